//! Parsing of message heads, without I/O.
//!
//! httparse finds the tokens in one pass; what it refuses but Envoy accepts (line folding, tabs in the request line) is
//! rewritten on a cold path and parsed again, and what both refuse is told apart there, so that the good case pays nothing.

mod fields;
mod second_look;
mod target;

use std::mem::MaybeUninit;

use http::{Method, StatusCode};

pub(super) use self::fields::offers_upgrade;
use self::fields::{Facts, request_framing, response_framing};
pub(super) use self::second_look::Progress;
use self::second_look::{Look, explain_request, second_look};
use self::target::{check_authority, known_method, set_target};
use super::body::Framing;
use crate::config::HeadersWithUnderscores;
use crate::error::Reply;
use crate::flags::ResponseFlags;
use crate::http::head::{Known, RequestHead, ResponseHead, Scheme, Version};
use crate::http::underscores::apply as apply_underscores;

/// Fields for which there is room on the stack; larger limits take a heap allocation per parse.
const INLINE_HEADERS: usize = 128;

/// What a head may look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first to the last line of the head (Envoy: 60 KiB).
    pub max_bytes: usize,
    /// Fields, `host` included (Envoy: 100).
    pub max_headers: usize,
    /// Take HTTP/1.0 requests (otherwise 426).
    pub accept_http_10: bool,
    /// Let `transfer-encoding: chunked` win over a content-length beside it. Never a mesh default.
    pub allow_chunked_length: bool,
    /// Take `https://` targets: right on TLS connections only, as the scheme would be the caller's claim otherwise.
    pub allow_https_target: bool,
    /// Remember how names are spelled.
    pub preserve_case: bool,
    /// What happens to names with an underscore.
    pub underscores: HeadersWithUnderscores,
}

impl Default for HeadLimits {
    /// Envoy's defaults for requests.
    fn default() -> Self {
        Self {
            max_bytes: 60 * 1024,
            max_headers: 100,
            accept_http_10: false,
            allow_chunked_length: false,
            allow_https_target: false,
            preserve_case: false,
            underscores: HeadersWithUnderscores::Allow,
        }
    }
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.
    #[error("http1.codec_error")]
    Malformed,
    /// A control character, NUL or DEL.
    #[error("http1.invalid_characters")]
    InvalidCharacters,
    /// No version, or one that is not spoken here.
    #[error("low_version")]
    LowVersion,
    /// Content-length beside transfer-encoding.
    #[error("http1.content_length_and_chunked_not_allowed")]
    ContentLengthAndChunked,
    /// Any transfer coding but exactly one `chunked`.
    #[error("http1.invalid_transfer_encoding")]
    InvalidTransferEncoding,
    /// A Host that can't be one.
    #[error("http.invalid_authority")]
    InvalidAuthority,
    /// A target that is neither a path nor a plain URL, or none that the method can have.
    #[error("http1.invalid_url")]
    InvalidUrl,
    /// A URL whose scheme is not HTTP's.
    #[error("http1.invalid_scheme")]
    InvalidScheme,
    /// CONNECT with a body.
    #[error("http1.body_disallowed")]
    BodyDisallowed,
    /// A name with an underscore, where those are refused.
    #[error("http1.unexpected_underscore")]
    UnexpectedUnderscore,
    /// `connection` nominates a header that a caller must not take away.
    #[error("http1.connection_header_rejected")]
    ConnectionHeaderRejected,
    /// More bytes than [`HeadLimits::max_bytes`].
    #[error("http1.headers_too_large")]
    HeadersTooLarge,
    /// More fields than [`HeadLimits::max_headers`].
    #[error("http1.too_many_headers")]
    TooManyHeaders,
}

impl HeadError {
    /// Envoy's response code details.
    pub fn details(self) -> &'static str {
        match self {
            Self::Malformed => "http1.codec_error",
            Self::InvalidCharacters => "http1.invalid_characters",
            Self::LowVersion => "low_version",
            Self::ContentLengthAndChunked => "http1.content_length_and_chunked_not_allowed",
            Self::InvalidTransferEncoding => "http1.invalid_transfer_encoding",
            Self::InvalidAuthority => "http.invalid_authority",
            Self::InvalidUrl => "http1.invalid_url",
            Self::InvalidScheme => "http1.invalid_scheme",
            Self::BodyDisallowed => "http1.body_disallowed",
            Self::UnexpectedUnderscore => "http1.unexpected_underscore",
            Self::ConnectionHeaderRejected => "http1.connection_header_rejected",
            Self::HeadersTooLarge => "http1.headers_too_large",
            Self::TooManyHeaders => "http1.too_many_headers",
        }
    }

    /// What the caller and the log get to see. The connection closes afterwards.
    pub fn reply(self) -> Reply {
        let (status, body) = match self {
            Self::Malformed
            | Self::InvalidCharacters
            | Self::ContentLengthAndChunked
            | Self::InvalidAuthority
            | Self::InvalidUrl
            | Self::InvalidScheme
            | Self::BodyDisallowed
            | Self::UnexpectedUnderscore
            | Self::ConnectionHeaderRejected => (400, "Bad Request"),
            Self::LowVersion => (426, "Upgrade Required"),
            Self::InvalidTransferEncoding => (501, "Not Implemented"),
            Self::HeadersTooLarge | Self::TooManyHeaders => (431, "Request Header Fields Too Large"),
        };
        Reply {
            status,
            body: body.into(),
            flag: ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
            details: self.details().into(),
            header: None,
            grpc_status: None,
        }
    }
}

/// What the codec found out about a request beside its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedRequest {
    /// Bytes of the head.
    pub consumed: usize,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the caller wants to keep the connection.
    pub keep_alive: bool,
    /// Upgrade or CONNECT: the connection becomes a tunnel if the answer agrees.
    pub upgrade: bool,
    /// `expect: 100-continue`.
    pub expect_continue: bool,
    /// Scheme of an absolute-form target; never a reason to believe that the connection is secure.
    pub target_scheme: Option<Scheme>,
}

/// What the codec found out about a response beside its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedResponse {
    /// Bytes of the head.
    pub consumed: usize,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the connection may serve again.
    pub keep_alive: bool,
    /// 101, or 2xx to CONNECT: the connection is a tunnel from here on.
    pub upgraded: bool,
}

/// What a response answers: its framing depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestKind {
    /// HEAD.
    pub head: bool,
    /// CONNECT.
    pub connect: bool,
    /// The request offered an upgrade; without it a 101 is a protocol error.
    pub upgrade: bool,
}

/// Parses the head of a request from the start of `buf` into `head`; `None` when bytes are missing.
///
/// `host` becomes the authority and `transfer-encoding` the framing; headers that concern this connection only, and those
/// that `connection` nominates, are removed unless the request is an upgrade. A request without Host is not refused here:
/// see [`RequestHead::has_authority`].
///
/// # Errors
/// The request must be answered with [`HeadError::reply`]; `head` is then in no particular state.
pub fn parse_request(buf: &[u8], limits: &HeadLimits, head: &mut RequestHead) -> Result<Option<ParsedRequest>, HeadError> {
    let error = match tokens_of_request(buf, limits, head) {
        Ok(parsed) => return check_size(parsed.as_ref().map_or(buf.len(), |p| p.consumed), limits).map(|()| parsed),
        Err(Fault::Head(error)) => return Err(error),
        Err(Fault::Tokens(error)) => error,
    };
    let (consumed, text) = match second_look(buf, limits, error, true)? {
        Look::Wait => return Ok(None),
        Look::Final => return Err(explain_request(buf)),
        Look::Rewritten { consumed, text } => (consumed, text),
    };
    check_size(consumed, limits)?;
    match tokens_of_request(&text, limits, head) {
        Ok(parsed) => Ok(parsed.map(|parsed| ParsedRequest { consumed, ..parsed })),
        Err(Fault::Head(error)) => Err(error),
        Err(Fault::Tokens(_)) => Err(explain_request(buf)),
    }
}

/// Parses the head of a response from the start of `buf` into `head`; `None` when bytes are missing.
///
/// # Errors
/// The upstream breaks the protocol; the connection is useless.
pub fn parse_response(
    buf: &[u8],
    limits: &HeadLimits,
    request: RequestKind,
    head: &mut ResponseHead,
) -> Result<Option<ParsedResponse>, HeadError> {
    let error = match tokens_of_response(buf, limits, request, head) {
        Ok(parsed) => return check_size(parsed.as_ref().map_or(buf.len(), |p| p.consumed), limits).map(|()| parsed),
        Err(Fault::Head(error)) => return Err(error),
        Err(Fault::Tokens(error)) => error,
    };
    let (consumed, text) = match second_look(buf, limits, error, false)? {
        Look::Wait => return Ok(None),
        Look::Final => return Err(HeadError::Malformed),
        Look::Rewritten { consumed, text } => (consumed, text),
    };
    check_size(consumed, limits)?;
    match tokens_of_response(&text, limits, request, head) {
        Ok(parsed) => Ok(parsed.map(|parsed| ParsedResponse { consumed, ..parsed })),
        Err(Fault::Head(error)) => Err(error),
        Err(Fault::Tokens(_)) => Err(HeadError::Malformed),
    }
}

/// Why a pass failed: httparse refused the text, or the head means something that is not allowed.
enum Fault {
    Tokens(httparse::Error),
    Head(HeadError),
}

impl From<httparse::Error> for Fault {
    fn from(error: httparse::Error) -> Self {
        Self::Tokens(error)
    }
}

impl From<HeadError> for Fault {
    fn from(error: HeadError) -> Self {
        Self::Head(error)
    }
}

fn check_size(bytes: usize, limits: &HeadLimits) -> Result<(), HeadError> {
    if bytes > limits.max_bytes { Err(HeadError::HeadersTooLarge) } else { Ok(()) }
}

type Slot<'buf> = MaybeUninit<httparse::Header<'buf>>;

fn slots<'s, 'buf>(
    inline: &'s mut [Slot<'buf>; INLINE_HEADERS],
    heap: &'s mut Vec<Slot<'buf>>,
    count: usize,
) -> &'s mut [Slot<'buf>] {
    if count <= INLINE_HEADERS {
        return &mut inline[..count];
    }
    heap.extend((0..count).map(|_| MaybeUninit::uninit()));
    heap
}

/// One pass over a request.
fn tokens_of_request(buf: &[u8], limits: &HeadLimits, head: &mut RequestHead) -> Result<Option<ParsedRequest>, Fault> {
    let mut inline = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
    let mut heap = Vec::new();
    let slots = slots(&mut inline, &mut heap, limits.max_headers);
    let mut request = httparse::Request::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config.allow_multiple_spaces_in_request_line_delimiters(true);
    let httparse::Status::Complete(consumed) = config.parse_request_with_uninit_headers(&mut request, buf, slots)? else {
        return Ok(None);
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed.into());
    };
    head.clear();
    head.method = known_method(method.as_bytes()).ok_or(HeadError::Malformed)?;
    head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    if version == 0 && !limits.accept_http_10 {
        return Err(HeadError::LowVersion.into());
    }
    let mut facts = Facts::default();
    let block = (!limits.preserve_case).then_some(&buf[..consumed]);
    head.headers.load(block.unwrap_or_default());
    let mut host = None;
    for field in request.headers.iter() {
        if field.name.eq_ignore_ascii_case("host") {
            if host.replace(field.value).is_some() {
                return Err(HeadError::Malformed.into());
            }
            continue;
        }
        facts.add(&mut head.headers, field, block)?;
    }
    if limits.underscores != HeadersWithUnderscores::Allow && !apply_underscores(limits.underscores, &mut head.headers) {
        return Err(HeadError::UnexpectedUnderscore.into());
    }
    let target_scheme = set_target(head, target.as_bytes(), limits)?;
    let connection = facts.connection(&mut head.headers, head.version)?;
    if let Some(host) = host
        && !head.has_authority()
        && !connection.nominates_host
    {
        check_authority(host)?;
        head.set_authority(host);
    }
    let framing = request_framing(&facts, head, limits)?;
    Ok(Some(ParsedRequest {
        consumed,
        framing,
        keep_alive: connection.keep_alive,
        upgrade: connection.upgrade || head.method == Method::CONNECT,
        expect_continue: facts.expect_continue && version == 1,
        target_scheme,
    }))
}

/// One pass over a response.
fn tokens_of_response(
    buf: &[u8],
    limits: &HeadLimits,
    request: RequestKind,
    head: &mut ResponseHead,
) -> Result<Option<ParsedResponse>, Fault> {
    let mut inline = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
    let mut heap = Vec::new();
    let slots = slots(&mut inline, &mut heap, limits.max_headers);
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let httparse::Status::Complete(consumed) = config.parse_response_with_uninit_headers(&mut response, buf, slots)? else {
        return Ok(None);
    };
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(HeadError::Malformed.into());
    };
    head.clear();
    head.status = StatusCode::from_u16(status).map_err(|_| HeadError::Malformed)?;
    head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let mut facts = Facts::default();
    let block = (!limits.preserve_case).then_some(&buf[..consumed]);
    head.headers.load(block.unwrap_or_default());
    for field in response.headers.iter() {
        facts.add(&mut head.headers, field, block)?;
    }
    let upgraded = status == 101 || (request.connect && head.status.is_success());
    // Nobody asked, or nobody says to what: what follows is nothing that we or the caller could read.
    if status == 101 && !(request.upgrade && facts.upgrades > 0) {
        return Err(HeadError::Malformed.into());
    }
    let framing = response_framing(&facts, status, request, limits)?;
    let keep_alive = facts.response_connection(&mut head.headers, head.version, upgraded);
    if facts.transfer_encodings > 0 {
        head.headers.remove(Known::TransferEncoding);
    }
    let keep_alive = keep_alive && framing != Framing::UntilClose;
    Ok(Some(ParsedResponse { consumed, framing, keep_alive, upgraded }))
}

#[cfg(test)]
mod tests;
