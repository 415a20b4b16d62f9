//! Choices and texts out of fuzzed bytes.

/// Fuzzed bytes, taken from the front; when they run out every further choice is the first one.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Begins with all of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// Everything up to the next byte 0xff, which separates parts because it is in no UTF-8 text.
    pub fn part(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|b| *b == 0xff);
        let part = &self.0[..end.unwrap_or(self.0.len())];
        self.0 = end.map_or(&[][..], |end| &self.0[end + 1..]);
        part
    }

    /// As [`Input::part`], as text.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.part()).into_owned()
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Places to cut `bytes` in two: all of them when there are few, else some that depend on the bytes.
pub fn cuts(bytes: &[u8]) -> impl Iterator<Item = usize> + use<> {
    let len = bytes.len();
    let seed = bytes.iter().fold(len as u64, |sum, b| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(*b));
    let few = len <= 24;
    let count = if few { len + 1 } else { 12 };
    (0..count).map(move |index| {
        let scattered = seed.wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        if few { index } else { usize::try_from(scattered).unwrap_or(0) % (len + 1) }
    })
}

/// Cuts `bytes` into pieces whose lengths come from `sizes` (zero is one byte), again and again.
pub fn pieces<'a>(bytes: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let sizes = if sizes.is_empty() { &[255][..] } else { sizes };
    let mut sizes = sizes.iter().cycle();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let size = usize::from(*sizes.next()?).max(1).min(rest.len());
        let (piece, tail) = rest.split_at(size);
        rest = tail;
        (!piece.is_empty()).then_some(piece)
    })
}
