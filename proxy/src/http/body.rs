//! Message bodies: a stream of frames, the same for both HTTP versions.

use bytes::Bytes;

use super::head::Headers;

/// One piece of a body.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Bytes, never empty.
    Data(Bytes),
    /// The end, with trailers.
    Trailers(Box<Headers>),
}

/// How long a body is, as far as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySize {
    /// There is none: the message ends with its head.
    Empty,
    /// Exactly this many bytes (`content-length`), zero included.
    Known(u64),
    /// Until it ends (chunked, HTTP/2 without length, or close-delimited).
    Unknown,
}

impl BodySize {
    /// Whether no byte of a body can follow.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Known(0))
    }
}
