//! Parsing of message heads, without I/O.
//!
//! httparse finds the tokens in one pass; what it refuses but Envoy accepts (line folding, tabs in the request line) is
//! rewritten on a cold path and parsed again, and what both refuse is told apart there, so that the good case pays nothing.

use std::mem::MaybeUninit;

use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::body::Framing;
use crate::error::Reply;
use crate::flags::ResponseFlags;
use crate::http::head::{Headers, Known, RequestHead, ResponseHead, Scheme, Version};

/// Fields for which there is room on the stack; larger limits take a heap allocation per parse.
const INLINE_HEADERS: usize = 128;
/// Names that one `connection` header may nominate for removal (Envoy's bound).
const MAX_NOMINATED: usize = 10;

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
    /// A Host or target authority that can't be one.
    #[error("http.invalid_authority")]
    InvalidAuthority,
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
            | Self::ConnectionHeaderRejected => (400, "Bad Request"),
            Self::LowVersion => (426, "Upgrade Required"),
            Self::InvalidTransferEncoding => (501, "Not Implemented"),
            Self::HeadersTooLarge | Self::TooManyHeaders => (431, "Request Header Fields Too Large"),
        };
        Reply { status, body: body.into(), flag: ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, details: self.details().into() }
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
    let error = match tokens_of_request(buf, buf.len(), limits, head) {
        Ok(parsed) => return bounded(parsed, |p| p.consumed, buf, limits),
        Err(Fault::Head(error)) => return Err(error),
        Err(Fault::Tokens(error)) => error,
    };
    match second_look(buf, limits, error, true)? {
        Look::Wait => Ok(None),
        Look::Final => Err(explain_request(buf)),
        Look::Rewritten { end, text } => match tokens_of_request(&text, end, limits, head) {
            Ok(parsed) => bounded(parsed, |p| p.consumed, buf, limits),
            Err(Fault::Head(error)) => Err(error),
            Err(Fault::Tokens(_)) => Err(explain_request(buf)),
        },
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
    let error = match tokens_of_response(buf, buf.len(), limits, request, head) {
        Ok(parsed) => return bounded(parsed, |p| p.consumed, buf, limits),
        Err(Fault::Head(error)) => return Err(error),
        Err(Fault::Tokens(error)) => error,
    };
    match second_look(buf, limits, error, false)? {
        Look::Wait => Ok(None),
        Look::Final => Err(HeadError::Malformed),
        Look::Rewritten { end, text } => match tokens_of_response(&text, end, limits, request, head) {
            Ok(parsed) => bounded(parsed, |p| p.consumed, buf, limits),
            Err(Fault::Head(error)) => Err(error),
            Err(Fault::Tokens(_)) => Err(HeadError::Malformed),
        },
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

fn bounded<T>(
    parsed: Option<T>,
    consumed: impl Fn(&T) -> usize,
    buf: &[u8],
    limits: &HeadLimits,
) -> Result<Option<T>, HeadError> {
    let bytes = parsed.as_ref().map_or(buf.len(), consumed);
    if bytes > limits.max_bytes { Err(HeadError::HeadersTooLarge) } else { Ok(parsed) }
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

/// One pass over a request. `end` is what a rewritten text counts for in the connection's bytes.
fn tokens_of_request(
    buf: &[u8],
    end: usize,
    limits: &HeadLimits,
    head: &mut RequestHead,
) -> Result<Option<ParsedRequest>, Fault> {
    let mut inline = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
    let mut heap = Vec::new();
    let slots = slots(&mut inline, &mut heap, limits.max_headers);
    let mut request = httparse::Request::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config.allow_multiple_spaces_in_request_line_delimiters(true);
    let httparse::Status::Complete(consumed) = config.parse_request_with_uninit_headers(&mut request, buf, slots)? else {
        return Ok(None);
    };
    let consumed = if end == buf.len() { consumed } else { end };
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
    let mut host = None;
    for field in request.headers.iter() {
        if field.name.eq_ignore_ascii_case("host") {
            if host.replace(field.value).is_some() {
                return Err(HeadError::Malformed.into());
            }
            continue;
        }
        facts.add(&mut head.headers, field, limits.preserve_case)?;
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
    end: usize,
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
    let consumed = if end == buf.len() { consumed } else { end };
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(HeadError::Malformed.into());
    };
    head.clear();
    head.status = StatusCode::from_u16(status).map_err(|_| HeadError::Malformed)?;
    head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let mut facts = Facts::default();
    for field in response.headers.iter() {
        facts.add(&mut head.headers, field, limits.preserve_case)?;
    }
    let upgraded = status == 101 || (request.connect && head.status.is_success());
    if status == 101 && !request.upgrade {
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

/// What the fields say about framing and connection, gathered while they are copied.
#[derive(Default)]
struct Facts {
    content_length: Option<u64>,
    transfer_encodings: u8,
    chunked: bool,
    has_connection: bool,
    has_upgrade: bool,
    has_private: bool,
    expect_continue: bool,
}

/// What a request's `connection` header comes down to.
struct Connection {
    keep_alive: bool,
    upgrade: bool,
    nominates_host: bool,
}

impl Facts {
    fn add(&mut self, headers: &mut Headers, field: &httparse::Header<'_>, spelled: bool) -> Result<(), HeadError> {
        let (name, value) = (field.name.as_bytes(), field.value);
        let id = if spelled { headers.push_spelled(name, value) } else { headers.push(name, value) };
        match id {
            Known::ContentLength => {
                let length = parse_length(value).ok_or(HeadError::Malformed)?;
                if self.content_length.replace(length).is_some() {
                    return Err(HeadError::Malformed);
                }
            }
            Known::TransferEncoding => {
                self.transfer_encodings = self.transfer_encodings.saturating_add(1);
                self.chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            Known::Connection => self.has_connection = true,
            Known::Upgrade => self.has_upgrade = true,
            Known::KeepAlive | Known::ProxyConnection => self.has_private = true,
            Known::Expect => self.expect_continue = value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        Ok(())
    }

    /// Acts on a request's `connection` header as Envoy's codec does and removes what concerns this connection only.
    fn connection(&self, headers: &mut Headers, version: Version) -> Result<Connection, HeadError> {
        let mut found = Connection { keep_alive: version != Version::Http10, upgrade: false, nominates_host: false };
        let mut h2c = false;
        if self.has_connection {
            let upgrade = has_token(headers, Known::Connection, b"upgrade");
            h2c = upgrade && has_token(headers, Known::Upgrade, b"h2c");
            found.upgrade = upgrade && self.has_upgrade && !h2c;
            found.keep_alive = keeps_alive(headers, version);
            found.nominates_host = remove_nominated(headers)?;
        }
        if self.has_connection || self.has_upgrade || self.has_private || self.transfer_encodings > 0 {
            headers.retain(|id, _, _| match id {
                Known::TransferEncoding | Known::KeepAlive | Known::ProxyConnection => false,
                Known::Connection | Known::Upgrade => found.upgrade,
                Known::Http2Settings => !h2c,
                _ => true,
            });
        }
        Ok(found)
    }

    /// The same for a response, where Envoy honours no nominations.
    fn response_connection(&self, headers: &mut Headers, version: Version, upgraded: bool) -> bool {
        let keep_alive = keeps_alive(headers, version);
        if !upgraded && (self.has_connection || self.has_upgrade || self.has_private) {
            headers
                .retain(|id, _, _| !matches!(id, Known::Connection | Known::Upgrade | Known::KeepAlive | Known::ProxyConnection));
        }
        keep_alive
    }
}

fn keeps_alive(headers: &Headers, version: Version) -> bool {
    if version == Version::Http10 {
        has_token(headers, Known::Connection, b"keep-alive")
    } else {
        !has_token(headers, Known::Connection, b"close")
    }
}

/// The elements of a comma-separated list.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn has_token(headers: &Headers, id: Known, token: &[u8]) -> bool {
    headers.get_all(id).flat_map(tokens).any(|t| t.eq_ignore_ascii_case(token))
}

/// Whether a head offers an upgrade: an `upgrade` header that `connection` speaks of.
pub(super) fn offers_upgrade(headers: &Headers) -> bool {
    headers.contains(Known::Upgrade) && has_token(headers, Known::Connection, b"upgrade")
}

/// Removes the headers that `connection` nominates; whether `host` is one of them, which then counts as missing.
fn remove_nominated(headers: &mut Headers) -> Result<bool, HeadError> {
    const ORDINARY: [&[u8]; 4] = [b"close", b"keep-alive", b"upgrade", b"te"];
    const PROTECTED: [&[u8]; 4] = [b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-client-cert"];
    let same = |token: &[u8], names: &[&[u8]]| names.iter().any(|name| token.eq_ignore_ascii_case(name));
    let mut nominated = SmallVec::<[u8; 64]>::new();
    let mut count = 0;
    for token in headers.get_all(Known::Connection).flat_map(tokens).filter(|token| !same(token, &ORDINARY)) {
        count += 1;
        if same(token, &PROTECTED) || token[0] == b':' || count > MAX_NOMINATED {
            return Err(HeadError::ConnectionHeaderRejected);
        }
        nominated.extend_from_slice(token);
        nominated.push(b',');
    }
    if count > 0 {
        headers.retain(|_, name, _| !tokens(&nominated).any(|token| token.eq_ignore_ascii_case(name)));
    }
    Ok(tokens(&nominated).any(|token| token.eq_ignore_ascii_case(b"host")))
}

fn request_framing(facts: &Facts, head: &mut RequestHead, limits: &HeadLimits) -> Result<Framing, HeadError> {
    let has_length = facts.content_length.is_some();
    if facts.transfer_encodings > 0 {
        if has_length && !limits.allow_chunked_length {
            return Err(HeadError::ContentLengthAndChunked);
        }
        // HTTP/1.0 has no transfer codings: a peer that does not know them would take the chunks for the next request.
        if facts.transfer_encodings != 1 || !facts.chunked || head.version == Version::Http10 {
            return Err(HeadError::InvalidTransferEncoding);
        }
        if has_length {
            head.headers.remove(Known::ContentLength);
        }
    }
    if head.method == Method::CONNECT {
        let body = facts.transfer_encodings > 0 || facts.content_length.is_some_and(|n| n > 0);
        return if body { Err(HeadError::Malformed) } else { Ok(Framing::None) };
    }
    Ok(match facts.content_length {
        _ if facts.transfer_encodings > 0 => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::None,
    })
}

fn response_framing(facts: &Facts, status: u16, request: RequestKind, limits: &HeadLimits) -> Result<Framing, HeadError> {
    if facts.transfer_encodings > 0 {
        if facts.content_length.is_some() && !limits.allow_chunked_length {
            return Err(HeadError::ContentLengthAndChunked);
        }
        if facts.transfer_encodings != 1 || !facts.chunked {
            return Err(HeadError::InvalidTransferEncoding);
        }
    }
    let tunnel = status == 101 || (request.connect && (200..300).contains(&status));
    if tunnel {
        return Ok(Framing::None);
    }
    if status < 200 || status == 204 {
        // A length or coding where no body can be is how a response is made to swallow the next one.
        let body = facts.transfer_encodings > 0 || facts.content_length.is_some_and(|n| n > 0);
        return if body { Err(HeadError::Malformed) } else { Ok(Framing::None) };
    }
    if request.head || status == 304 {
        return Ok(Framing::None);
    }
    Ok(match facts.content_length {
        _ if facts.transfer_encodings > 0 => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    })
}

/// Digits only: no sign, no list, no blank inside.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// The methods that Envoy's parser knows (it spells `MSEARCH` so).
fn known_method(name: &[u8]) -> Option<Method> {
    const EXTENSIONS: [&[u8]; 25] = [
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"MSEARCH",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
    ];
    Some(match name {
        b"GET" => Method::GET,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"HEAD" => Method::HEAD,
        b"DELETE" => Method::DELETE,
        b"OPTIONS" => Method::OPTIONS,
        b"PATCH" => Method::PATCH,
        b"CONNECT" => Method::CONNECT,
        b"TRACE" => Method::TRACE,
        _ if EXTENSIONS.contains(&name) => Method::from_bytes(name).ok()?,
        _ => return None,
    })
}

/// Sets path and, where the target carries one, authority; says the scheme of an absolute-form target.
fn set_target(head: &mut RequestHead, target: &[u8], limits: &HeadLimits) -> Result<Option<Scheme>, HeadError> {
    if !target.is_ascii() {
        return Err(HeadError::Malformed);
    }
    if head.method == Method::CONNECT {
        if target.is_empty() {
            return Err(HeadError::Malformed);
        }
        check_authority(target)?;
        head.set_authority(target);
        return Ok(None);
    }
    if target.first() == Some(&b'/') || target == b"*" {
        head.set_path(target);
        return Ok(None);
    }
    let (scheme, rest) = if let Some(rest) = strip_prefix_ignore_case(target, b"http://") {
        (Scheme::Http, rest)
    } else if let Some(rest) = strip_prefix_ignore_case(target, b"https://").filter(|_| limits.allow_https_target) {
        (Scheme::Https, rest)
    } else {
        return Err(HeadError::Malformed);
    };
    let (authority, path) = rest.split_at(rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len()));
    let authority = authority.iter().rposition(|b| *b == b'@').map_or(authority, |at| &authority[at + 1..]);
    if authority.is_empty() {
        return Err(HeadError::Malformed);
    }
    check_authority(authority)?;
    head.set_authority(authority);
    if path.first() == Some(&b'/') {
        head.set_path(path);
    } else {
        let mut rooted = SmallVec::<[u8; 128]>::from_slice(b"/");
        rooted.extend_from_slice(path);
        head.set_path(&rooted);
    }
    Ok(Some(scheme))
}

fn strip_prefix_ignore_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The characters of RFC 3986's authority without `@`: user-info in Host lets a name look like another.
fn check_authority(authority: &[u8]) -> Result<(), HeadError> {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(b);
    if authority.iter().all(fits) { Ok(()) } else { Err(HeadError::InvalidAuthority) }
}

/// Where the head in `buf` ends for a receiver that takes bare LF for a line end; the search begins at `from`.
fn end_from(buf: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(lf) = buf[at..].iter().position(|b| *b == b'\n') {
        let next = at + lf + 1;
        match &buf[next..] {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => at = next,
        }
    }
    None
}

/// Keeps a head that arrives in drops from being parsed again for each of them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    seen: usize,
}

impl Progress {
    /// Whether parsing `buf` can find anything new: at the first bytes, at the end of the head, and beyond the limit.
    pub(super) fn is_due(&self, buf: &[u8], limits: &HeadLimits) -> bool {
        self.seen == 0 || buf.len() > limits.max_bytes || end_from(buf, self.seen.saturating_sub(3).min(buf.len())).is_some()
    }

    /// `buf` holds no whole head.
    pub(super) fn note(&mut self, buf: &[u8]) {
        self.seen = buf.len();
    }

    /// The next head begins.
    pub(super) fn reset(&mut self) {
        self.seen = 0;
    }
}

/// What can be done about a head that httparse refuses.
enum Look {
    /// A verdict needs more bytes.
    Wait,
    /// It stays refused.
    Final,
    /// Its text without what Envoy takes but httparse does not; `end` is where the original ends.
    Rewritten { end: usize, text: Vec<u8> },
}

#[cold]
fn second_look(buf: &[u8], limits: &HeadLimits, error: httparse::Error, request: bool) -> Result<Look, HeadError> {
    if error == httparse::Error::TooManyHeaders {
        return Err(HeadError::TooManyHeaders);
    }
    let blank = buf.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let start = &buf[blank..];
    // A request may still turn out well as long as it starts like a method, a response when only a field's line is odd.
    let hopeless =
        if request { !start.first().is_some_and(u8::is_ascii_uppercase) } else { error != httparse::Error::HeaderName };
    if hopeless {
        return Err(HeadError::Malformed);
    }
    let Some(end) = end_from(start, 0) else {
        return if buf.len() > limits.max_bytes { Err(HeadError::HeadersTooLarge) } else { Ok(Look::Wait) };
    };
    Ok(match rewrite(&start[..end], request) {
        Some(text) => Look::Rewritten { end: blank + end, text },
        None => Look::Final,
    })
}

/// Joins folded lines and, in requests, turns tabs between the words of the first line into spaces; `None` when there is
/// nothing of that kind.
fn rewrite(head: &[u8], request: bool) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(head.len());
    let mut changed = false;
    for (index, line) in head.split_inclusive(|b| *b == b'\n').enumerate() {
        if index == 0 && request && line.contains(&b'\t') {
            changed = true;
            text.extend(line.iter().map(|b| if *b == b'\t' { b' ' } else { *b }));
            continue;
        }
        if index > 1 && matches!(line[0], b' ' | b'\t') {
            changed = true;
            let kept = text.trim_ascii_end().len();
            text.truncate(kept);
        }
        text.extend_from_slice(line);
    }
    changed.then_some(text)
}

/// Which refusal a request has earned that can't be parsed.
#[cold]
fn explain_request(buf: &[u8]) -> HeadError {
    let buf = buf.trim_ascii_start();
    let head = &buf[..end_from(buf, 0).unwrap_or(buf.len())];
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end();
    let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty()).skip(1);
    if head.iter().any(|b| b.is_ascii_control() && !matches!(b, b'\r' | b'\n' | b'\t')) {
        return HeadError::InvalidCharacters;
    }
    match (words.next(), words.next(), words.next()) {
        (Some(_), None, None) => HeadError::LowVersion,
        (Some(_), Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() && !(*major == b'1' && matches!(minor, b'0' | b'1')) =>
        {
            HeadError::LowVersion
        }
        _ => HeadError::Malformed,
    }
}

#[cfg(test)]
mod tests;
