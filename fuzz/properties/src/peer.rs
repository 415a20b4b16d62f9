//! Peer metadata: whatever a peer says, a stream loses nothing but its preamble, however it is cut.

use skiff_proxy::peer::Known;
use skiff_proxy::peer::preamble::Reader;

use crate::input::Input;

/// The beginning of a stream in pieces of one size and in one, then the same bytes as a header and as metadata.
pub fn peer(data: &[u8]) {
    let mut input = Input::new(data);
    let size = usize::from(input.byte()) + 1;
    let bytes = input.rest();
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, size));
    assert!(bytes.ends_with(&whole.1));
    let peers = Known::default();
    for _ in 0..2 {
        let (header, preamble) = (peers.by_header(bytes), peers.by_preamble(bytes));
        assert_eq!((peers.by_header(bytes), peers.by_preamble(bytes)), (header, preamble));
    }
}

/// What the preamble said, if it was read, and what came after it.
fn read(bytes: &[u8], size: usize) -> (Option<Option<Vec<u8>>>, Vec<u8>) {
    let (mut reader, mut said, mut passed) = (Some(Reader::default()), None, Vec::new());
    for piece in bytes.chunks(size) {
        match reader.as_mut().map(|reader| reader.feed(piece)) {
            None => passed.extend(piece),
            Some(None) => {}
            Some(Some(read)) => {
                (reader, said) = (None, Some(read.metadata));
                passed.extend(read.rest);
            }
        }
    }
    passed.extend(reader.map(Reader::end).unwrap_or_default());
    (said, passed)
}
