//! Bodies on the wire, without I/O: a decoder that is fed bytes and yields frames, an encoder that does the reverse.

use bytes::{Buf, Bytes, BytesMut};

use super::encode::{HeaderCase, encode_trailers};
use super::io::Output;
use crate::http::body::BodySize;
use crate::http::head::{Headers, Known};

/// Bytes of chunk extensions that one body may carry: they are dropped, so each is pure overhead.
const MAX_EXTENSION_BYTES: u32 = 16 * 1024;
/// Fields of a trailer section that is kept.
const MAX_TRAILERS: usize = 100;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// `content-length`.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// It ends with the connection.
    UntilClose,
}

impl Framing {
    /// What the message layer gets to know.
    pub fn size(self) -> BodySize {
        match self {
            Self::None => BodySize::Empty,
            Self::Length(length) => BodySize::Known(length),
            Self::Chunked | Self::UntilClose => BodySize::Unknown,
        }
    }
}

/// Why a body can't be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A chunk size, extension or end that is not of the form.
    #[error("malformed chunk")]
    Chunk,
    /// Too many bytes of chunk extensions.
    #[error("chunk extensions too large")]
    Extensions,
    /// A trailer section that is malformed.
    #[error("malformed trailers")]
    Trailers,
    /// A trailer section larger than a head may be.
    #[error("trailers too large")]
    TrailersTooLarge,
}

/// One step of a [`Decoder`].
#[derive(Debug)]
pub enum Decoded {
    /// Bytes, never empty.
    Data(Bytes),
    /// Trailers; the end follows.
    Trailers(Box<Headers>),
    /// The body is complete; what is left in the buffer belongs to the next message.
    End,
    /// Nothing to say before more bytes are in the buffer.
    NeedMore,
}

/// Turns bytes into a body.
#[derive(Debug, Default)]
pub enum Decoder {
    /// Complete.
    #[default]
    Done,
    /// So many bytes are missing.
    Length(u64),
    /// In chunks.
    Chunked(Chunked),
    /// Everything until the connection ends.
    UntilClose,
}

impl Decoder {
    /// A decoder at the start of a body. Trailers, of `max_trailer_bytes` at the most, are checked, and dropped unless
    /// `keep_trailers`.
    pub fn new(framing: Framing, keep_trailers: bool, max_trailer_bytes: usize) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked { keep_trailers, max_trailer_bytes, ..Chunked::default() }),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// How many bytes are sure to come, zero when unknown.
    pub(super) fn expected(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(chunked) if chunked.state == State::Data => chunked.left,
            Self::Done | Self::Chunked(_) | Self::UntilClose => 0,
        }
    }

    /// Takes the next piece from the start of `buf`: of a chunked body all that is there, so that what comes with a malformed
    /// chunk goes nowhere.
    ///
    /// # Errors
    /// The body is malformed; nothing after this point of the connection means anything.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        match self {
            Self::Done => Ok(Decoded::End),
            Self::Chunked(chunked) if buf.is_empty() && chunked.trailers.is_none() && chunked.failed.is_none() => {
                Ok(Decoded::NeedMore)
            }
            Self::Length(_) | Self::UntilClose if buf.is_empty() => Ok(Decoded::NeedMore),
            Self::Length(left) => {
                let data = take(buf, *left);
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Decoded::Data(data))
            }
            Self::UntilClose => Ok(Decoded::Data(std::mem::take(buf).freeze())),
            Self::Chunked(chunked) => {
                let decoded = chunked.decode(buf)?;
                if chunked.state == State::End && chunked.trailers.is_none() {
                    *self = Self::Done;
                }
                Ok(decoded)
            }
        }
    }

    /// The peer has sent its last byte, and `buf` is used up; whether the body is complete.
    pub fn end_of_input(&mut self) -> bool {
        if matches!(self, Self::UntilClose) {
            *self = Self::Done;
        }
        self.is_done()
    }
}

/// At most `limit` bytes; the whole buffer without sharing it.
fn take(buf: &mut BytesMut, limit: u64) -> Bytes {
    match usize::try_from(limit) {
        Ok(limit) if limit < buf.len() => buf.split_to(limit).freeze(),
        _ => std::mem::take(buf).freeze(),
    }
}

/// State of a chunked body.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    /// Bytes missing of the current chunk; its size while the size is being read.
    left: u64,
    extension_bytes: u32,
    keep_trailers: bool,
    max_trailer_bytes: usize,
    trailer_bytes: usize,
    /// Read together with the last data, which goes first.
    trailers: Option<Box<Headers>>,
    /// Found behind the last data, which as with Envoy counts all the same.
    failed: Option<DecodeError>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Size,
    /// After a digit.
    Digits,
    /// In blanks or an extension after the size.
    Extension,
    /// After the CR of a size line.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    End,
}

impl Chunked {
    fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        if let Some(trailers) = self.trailers.take() {
            return Ok(Decoded::Trailers(trailers));
        }
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let mut gathered: Option<Bytes> = None;
        loop {
            let next = match self.next(buf) {
                Err(failed) if self.is_past_data() && gathered.is_some() => {
                    self.failed = Some(failed);
                    Decoded::NeedMore
                }
                next => next?,
            };
            match (next, gathered.take()) {
                (Decoded::Data(data), None) => gathered = Some(data),
                (Decoded::Data(data), Some(before)) => {
                    let mut joined = before.try_into_mut().unwrap_or_else(|before| {
                        let mut copy = BytesMut::with_capacity(before.len() + data.len() + buf.len());
                        copy.extend_from_slice(&before);
                        copy
                    });
                    joined.extend_from_slice(&data);
                    gathered = Some(joined.freeze());
                }
                (end, None) => return Ok(end),
                (end, Some(data)) => {
                    if let Decoded::Trailers(trailers) = end {
                        self.trailers = Some(trailers);
                    }
                    return Ok(Decoded::Data(data));
                }
            }
        }
    }

    /// Whether the size of the last chunk, which is zero, has been read.
    fn is_past_data(&self) -> bool {
        self.left == 0 && matches!(self.state, State::Digits | State::Extension | State::SizeLf | State::Trailers)
    }

    fn next(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        loop {
            match self.state {
                State::Data => {
                    if buf.is_empty() {
                        return Ok(Decoded::NeedMore);
                    }
                    let data = take(buf, self.left);
                    self.left -= data.len() as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Trailers if self.keep_trailers => return self.read_trailers(buf),
                State::Trailers => return self.drop_trailers(buf),
                State::End => return Ok(Decoded::End),
                _ => {
                    let Some(byte) = buf.first().copied() else { return Ok(Decoded::NeedMore) };
                    buf.advance(1);
                    self.state = self.step(byte)?;
                }
            }
        }
    }

    /// One byte between the data of two chunks.
    fn step(&mut self, byte: u8) -> Result<State, DecodeError> {
        Ok(match (self.state, byte) {
            (State::Size | State::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or_default());
                self.left = self.left.checked_mul(16).ok_or(DecodeError::Chunk)? + digit;
                // Leading zeros add nothing to the size, so they count as overhead.
                if self.left == 0 {
                    self.count_extension()?;
                }
                State::Digits
            }
            (State::Digits, b';' | b' ' | b'\t') => State::Extension,
            (State::Digits | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count_extension()?;
                State::Extension
            }
            (State::SizeLf, b'\n') if self.left == 0 => State::Trailers,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            // A bare LF ends the data of a chunk for Envoy, too; what goes on is chunked anew.
            (State::DataCr | State::DataLf, b'\n') => State::Size,
            _ => return Err(DecodeError::Chunk),
        })
    }

    fn count_extension(&mut self) -> Result<(), DecodeError> {
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES { Err(DecodeError::Extensions) } else { Ok(()) }
    }

    fn read_trailers(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
        let section = match httparse::parse_headers(buf, &mut fields).map_err(|_| DecodeError::Trailers)? {
            httparse::Status::Complete((bytes, fields)) => Some((bytes, Self::kept(fields))),
            httparse::Status::Partial => None,
        };
        let bytes = section.as_ref().map_or(buf.len(), |(bytes, _)| *bytes);
        if bytes > self.max_trailer_bytes {
            return Err(DecodeError::TrailersTooLarge);
        }
        let Some((bytes, trailers)) = section else { return Ok(Decoded::NeedMore) };
        buf.advance(bytes);
        self.state = State::End;
        Ok(trailers.map_or(Decoded::End, Decoded::Trailers))
    }

    /// Reads past the section line by line; a line that could be none is an error all the same.
    fn drop_trailers(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        while let Some(lf) = buf.iter().position(|b| *b == b'\n') {
            let line = buf[..lf].strip_suffix(b"\r").unwrap_or(&buf[..lf]);
            let (end, good) = (line.is_empty(), is_trailer(line, self.trailer_bytes > 0));
            self.trailer_bytes += lf + 1;
            buf.advance(lf + 1);
            if end {
                self.state = State::End;
                return Ok(Decoded::End);
            }
            if !good {
                return Err(DecodeError::Trailers);
            }
            if self.trailer_bytes > self.max_trailer_bytes {
                return Err(DecodeError::TrailersTooLarge);
            }
        }
        let bytes = self.trailer_bytes + buf.len();
        if bytes > self.max_trailer_bytes { Err(DecodeError::TrailersTooLarge) } else { Ok(Decoded::NeedMore) }
    }

    /// The trailers that may be seen: never one that would frame, route or describe the message anew.
    fn kept(fields: &[httparse::Header<'_>]) -> Option<Box<Headers>> {
        let mut trailers = Box::new(Headers::new());
        for field in fields.iter().filter(|field| !field.name.eq_ignore_ascii_case("host")) {
            trailers.push(field.name.as_bytes(), field.value);
        }
        trailers.retain(|id, _, _| {
            !matches!(
                id,
                Known::ContentLength | Known::TransferEncoding | Known::Connection | Known::Trailer | Known::Te | Known::Upgrade
            )
        });
        (!trailers.is_empty()).then_some(trailers)
    }
}

/// Whether a line can be a field, or go on with the one before.
fn is_trailer(line: &[u8], continued: bool) -> bool {
    let value = if continued && matches!(line.first(), Some(b' ' | b'\t')) {
        line
    } else {
        let Some(colon) = line.iter().position(|b| *b == b':') else { return false };
        let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        if colon == 0 || !line[..colon].iter().all(is_token) {
            return false;
        }
        &line[colon + 1..]
    };
    value.iter().all(|b| !b.is_ascii_control() || *b == b'\t')
}

/// Turns a body into bytes.
#[derive(Debug, Default)]
pub(super) enum Encoder {
    /// Complete.
    #[default]
    Done,
    /// There is no body: what is given is dropped.
    Nothing,
    /// So many bytes are still owed.
    Length(u64),
    Chunked,
    UntilClose,
}

impl Encoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Nothing,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Writes a piece. `false` when there is more of it than was announced: the rest is dropped, as it would be taken for
    /// the next message.
    pub(super) fn write(&mut self, data: Bytes, out: &mut Output) -> bool {
        match self {
            Self::Done => data.is_empty(),
            Self::Nothing => true,
            Self::UntilClose => {
                out.push(data);
                true
            }
            Self::Chunked if data.is_empty() => true,
            Self::Chunked => {
                write_chunk_size(data.len(), out.tail());
                out.push(data);
                out.tail().extend_from_slice(b"\r\n");
                true
            }
            Self::Length(left) => {
                let fits = data.len() as u64 <= *left;
                let data = if fits { data } else { data.slice(..usize::try_from(*left).unwrap_or(usize::MAX)) };
                *left -= data.len() as u64;
                out.push(data);
                fits
            }
        }
    }

    /// Writes the end. `false` when bytes are owed: the peer can only learn that by the end of the connection.
    pub(super) fn finish(&mut self, trailers: Option<(&Headers, HeaderCase)>, out: &mut Output) -> bool {
        let complete = !matches!(self, Self::Length(left) if *left > 0);
        if matches!(self, Self::Chunked) {
            let tail = out.tail();
            tail.extend_from_slice(b"0\r\n");
            match trailers {
                Some((trailers, case)) => encode_trailers(trailers, case, tail),
                None => tail.extend_from_slice(b"\r\n"),
            }
        }
        *self = Self::Done;
        complete
    }
}

/// The size line of a chunk, in lower-case hexadecimal.
fn write_chunk_size(size: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (digit * 4)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
