//! BER as far as AWS's signatures need it: tags of one byte, lengths of up to two bytes, and the indefinite lengths that Java writes.

/// How deep values of indefinite length may lie in each other. AWS's have 4.
const MAX_DEPTH: usize = 8;
/// A length that is told by the end: two zeros.
const INDEFINITE: u8 = 0x80;
const END: [u8; 2] = [0, 0];
const CONSTRUCTED: u8 = 0x20;
/// More of the tag follows.
const LONG_TAG: u8 = 0x1f;

/// One value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    /// What it holds.
    pub(super) contents: &'a [u8],
    /// With tag and length.
    pub(super) whole: &'a [u8],
}

/// Values one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a>(&'a [u8]);

/// What has no place in a value; its name.
pub(super) type Misplaced = &'static str;

impl<'a> Values<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next value, which has to have this tag.
    pub(super) fn expect(&mut self, tag: u8, name: Misplaced) -> Result<Value<'a>, Misplaced> {
        self.optional(tag, name)?.ok_or(name)
    }

    /// The next value if it has this tag.
    pub(super) fn optional(&mut self, tag: u8, name: Misplaced) -> Result<Option<Value<'a>>, Misplaced> {
        if self.0.first() != Some(&tag) {
            return Ok(None);
        }
        self.next(name).map(Some)
    }

    /// The next value, whatever it is.
    pub(super) fn next(&mut self, name: Misplaced) -> Result<Value<'a>, Misplaced> {
        let (value, rest) = split(self.0, MAX_DEPTH).ok_or(name)?;
        self.0 = rest;
        Ok(value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// That nothing follows.
    pub(super) fn end(&self, name: Misplaced) -> Result<(), Misplaced> {
        if self.is_empty() { Ok(()) } else { Err(name) }
    }
}

impl<'a> Value<'a> {
    /// The values in it.
    pub(super) fn values(&self) -> Values<'a> {
        Values(self.contents)
    }

    /// The only value in it, which has to have this tag.
    pub(super) fn only(&self, tag: u8, name: Misplaced) -> Result<Value<'a>, Misplaced> {
        let mut values = self.values();
        let value = values.expect(tag, name)?;
        values.end(name)?;
        Ok(value)
    }

    /// Whether its length was told at its beginning.
    pub(super) fn is_definite(&self) -> bool {
        self.whole.get(1) != Some(&INDEFINITE)
    }
}

fn split(bytes: &[u8], depth: usize) -> Option<(Value<'_>, &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    if tag & LONG_TAG == LONG_TAG {
        return None;
    }
    let (contents, rest) = match length {
        0..INDEFINITE => rest.split_at_checked(length.into())?,
        INDEFINITE => until_end(tag, rest, depth)?,
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk::<1>()?;
            rest.split_at_checked(length.into())?
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            rest.split_at_checked(u16::from_be_bytes(*length).into())?
        }
        _ => return None,
    };
    let whole = bytes.get(..bytes.len() - rest.len())?;
    Some((Value { contents, whole }, rest))
}

fn until_end(tag: u8, bytes: &[u8], depth: usize) -> Option<(&[u8], &[u8])> {
    let depth = depth.checked_sub(1)?;
    if tag & CONSTRUCTED == 0 {
        return None;
    }
    let mut rest = bytes;
    loop {
        if let Some(after) = rest.strip_prefix(&END) {
            return Some((bytes.get(..bytes.len() - rest.len())?, after));
        }
        rest = split(rest, depth)?.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(bytes: &[u8]) -> Option<&[u8]> {
        split(bytes, MAX_DEPTH).filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value.contents)
    }

    #[test]
    fn lengths_of_every_form_are_read() {
        assert_eq!(contents(&[4, 2, 1, 2]), Some(&[1, 2][..]));
        assert_eq!(contents(&[4, 0]), Some(&[][..]));
        assert_eq!(contents(&[4, 0x81, 2, 1, 2]), Some(&[1, 2][..]));
        assert_eq!(contents(&[4, 0x82, 0, 2, 1, 2]), Some(&[1, 2][..]));
        assert_eq!(contents(&[0x24, 0x80, 4, 1, 0, 4, 1, 0, 0, 0]), Some(&[4, 1, 0, 4, 1, 0][..]));
        assert_eq!(contents(&[0x30, 0x80, 0x30, 0x80, 0, 0, 0, 0]), Some(&[0x30, 0x80, 0, 0][..]));
    }

    #[test]
    fn what_ends_too_early_or_lies_too_deep_is_no_value() {
        for bytes in [
            &[][..],
            &[4],
            &[4, 2, 1],
            &[4, 0x81],
            &[4, 0x82, 1],
            &[4, 0x82, 0xff, 0xff, 1],
            &[4, 0x83, 0, 0, 1, 1],
            &[4, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[4, 0xff],
            &[4, 0x80, 0, 0],
            &[0x24, 0x80, 4, 1, 1],
            &[0x24, 0x80, 4, 1, 1, 0],
            &[0x1f, 1, 1],
            &[0x3f, 0x80, 0, 0],
        ] {
            assert_eq!(contents(bytes), None, "{bytes:?}");
        }
        let nested = |depth: usize| [[0x30, 0x80].repeat(depth), [0, 0].repeat(depth)].concat();
        assert!(contents(&nested(MAX_DEPTH)).is_some());
        assert_eq!(contents(&nested(MAX_DEPTH + 1)), None);
        assert_eq!(contents(&[0x30, 0x80].repeat(10_000)), None);
    }
}
