//! The preamble of `istio-peer-exchange`: a magic number, a length and an Any, before the first byte of either direction.
//!
//! Both sides write theirs as soon as TLS has agreed on the protocol. Envoy waits for the first byte of either direction, but takes a
//! preamble at any time. A side that sends something else is one without the exchange: its bytes are passed on as they are.

use super::MAX_METADATA;

/// In network order, before a length of four bytes in network order.
pub const MAGIC: [u8; 4] = 0x3D23_0467_u32.to_be_bytes();

const INTRODUCTION: usize = MAGIC.len() + 4;

/// Takes a preamble off the beginning of a stream.
#[derive(Debug, Default)]
pub struct Reader {
    held: Vec<u8>,
    /// Bytes of metadata that are too many to be kept.
    skip: usize,
}

/// The beginning of a stream has been read.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// An Any, for [`super::Known::by_preamble`]; `None` when there is none, or it was too long.
    pub metadata: Option<Vec<u8>>,
    /// The first bytes of the stream itself.
    pub rest: Vec<u8>,
}

impl Reader {
    /// Takes bytes as they come; `None` as long as the preamble may go on.
    pub fn feed(&mut self, data: &[u8]) -> Option<Read> {
        if self.skip > 0 {
            return self.pass_over(data);
        }
        self.held.extend_from_slice(data);
        let known = self.held.len().min(MAGIC.len());
        if self.held[..known] != MAGIC[..known] {
            return Some(Read { metadata: None, rest: std::mem::take(&mut self.held) });
        }
        let (introduction, after) = self.held.split_first_chunk::<INTRODUCTION>()?;
        let [_, _, _, _, length @ ..] = *introduction;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_METADATA {
            let after = after.to_vec();
            self.held = Vec::new();
            self.skip = length;
            return self.pass_over(&after);
        }
        let (metadata, rest) = after.split_at_checked(length)?;
        Some(Read { metadata: Some(metadata.to_vec()), rest: rest.to_vec() })
    }

    fn pass_over(&mut self, data: &[u8]) -> Option<Read> {
        let passed = self.skip.min(data.len());
        self.skip -= passed;
        (self.skip == 0).then(|| Read { metadata: None, rest: data[passed..].to_vec() })
    }

    /// The stream ended before its preamble did: what is held is passed on, unless it was the beginning of one.
    pub fn end(self) -> Vec<u8> {
        if self.held.len() < INTRODUCTION { self.held } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(metadata: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &u32::try_from(metadata.len()).unwrap().to_be_bytes(), metadata].concat()
    }

    fn read(metadata: Option<&[u8]>, rest: &[u8]) -> Read {
        Read { metadata: metadata.map(<[u8]>::to_vec), rest: rest.to_vec() }
    }

    #[test]
    fn a_preamble_is_taken_off_however_it_is_cut() {
        let stream = [&preamble(b"metadata")[..], b"hello"].concat();
        for cut in 0..stream.len() {
            let mut reader = Reader::default();
            let (first, second) = stream.split_at(cut);
            let (mut found, mut after) = (reader.feed(first), &b""[..]);
            match &found {
                None => found = reader.feed(second),
                Some(_) => after = second,
            }
            let found = found.unwrap();
            assert_eq!(found.metadata.as_deref(), Some(&b"metadata"[..]), "cut at {cut}");
            assert_eq!([&found.rest[..], after].concat(), b"hello", "cut at {cut}");
        }
    }

    #[test]
    fn other_bytes_pass_at_once() {
        assert_eq!(Reader::default().feed(b"GET"), Some(read(None, b"GET")));
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&MAGIC[..2]), None);
        assert_eq!(reader.feed(b"x"), Some(read(None, b"\x3d\x23x")));
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&MAGIC[..3]), None);
        assert_eq!(reader.end(), &MAGIC[..3]);
    }

    #[test]
    fn too_much_metadata_is_passed_over_and_not_kept() {
        let long = vec![7; MAX_METADATA + 1];
        let stream = [&preamble(&long)[..], b"hello"].concat();
        let mut reader = Reader::default();
        let (first, second) = stream.split_at(1000);
        assert_eq!(reader.feed(first), None);
        assert!(reader.held.is_empty());
        assert_eq!(reader.feed(second), Some(read(None, b"hello")));
        assert_eq!(Reader::default().feed(&preamble(b"")), Some(read(Some(b""), b"")));
    }

    #[test]
    fn a_truncated_preamble_is_nobodys_data() {
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&preamble(b"metadata")[..10]), None);
        assert!(reader.end().is_empty());
    }
}
