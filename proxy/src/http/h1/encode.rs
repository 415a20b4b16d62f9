//! Writing of message heads, without I/O: Envoy's order, framing rules and reason phrases.

use http::{Method, StatusCode};

use super::body::Framing;
use crate::http::body::BodySize;
use crate::http::head::{Headers, Known, RequestHead, ResponseHead};

/// How header names are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderCase {
    /// Lower case.
    #[default]
    Lower,
    /// As the sender spelled them, where the parser was told to remember that.
    Preserve,
    /// Title-Case.
    Proper,
}

/// What the framing of a response depends on beside its own head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteHead {
    /// Say `connection: close`.
    pub close: bool,
    /// The request was HEAD: the head is written as if a body followed, and none does.
    pub request_is_head: bool,
    /// The caller speaks HTTP/1.0: no chunks, and `connection: keep-alive` where the connection stays.
    pub http10: bool,
    /// The answer agrees to a CONNECT: nothing frames what follows.
    pub tunnel: bool,
}

/// Appends the head of a request: `host` first, then the fields in order, then what frames a body of `size`.
///
/// A `content-length` among the fields keeps its place and takes its value from `size`. As Envoy does, a request without body
/// says `content-length: 0` unless its method never has one.
pub fn encode_request(head: &RequestHead, size: BodySize, case: HeaderCase, out: &mut Vec<u8>) -> Framing {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(if head.path().is_empty() { head.authority() } else { head.path() });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if head.has_authority() {
        let name: &[u8] = if case == HeaderCase::Lower { b"host" } else { b"Host" };
        write_field(name, head.authority(), HeaderCase::Lower, out);
    }
    let upgrade = head.headers.contains(Known::Upgrade);
    let bodiless =
        upgrade || matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT);
    let framing = match size {
        BodySize::Empty => Framing::None,
        BodySize::Known(length) => Framing::Length(length),
        BodySize::Unknown => Framing::Chunked,
    };
    let length = match framing {
        Framing::None if !bodiless => Length::Write(0),
        Framing::Length(length) => Length::Write(length),
        Framing::None | Framing::Chunked | Framing::UntilClose => Length::Drop,
    };
    let missing = write_fields(&head.headers, length, true, case, out);
    write_length(missing, case, out);
    if framing == Framing::Chunked {
        write_field(b"transfer-encoding", b"chunked", case, out);
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Appends the head of a response, informational ones included; the fields in order, then `connection`, then what frames a
/// body of `size`.
pub fn encode_response(head: &ResponseHead, size: BodySize, write: WriteHead, case: HeaderCase, out: &mut Vec<u8>) -> Framing {
    out.extend_from_slice(if write.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(head.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    let status = head.status.as_u16();
    let switching = status == 101;
    let has_length = head.headers.contains(Known::ContentLength);
    let (framing, length) = match size {
        _ if status < 200 || status == 204 || write.tunnel => (Framing::None, Length::Drop),
        _ if (write.request_is_head || status == 304) && has_length => (Framing::None, Length::Keep),
        // A length would be that of what is not sent, and nobody knows it.
        _ if status == 304 => (Framing::None, Length::Drop),
        BodySize::Known(0) if write.request_is_head => (Framing::None, Length::Drop),
        BodySize::Known(length) if write.request_is_head => (Framing::None, Length::Write(length)),
        _ if write.request_is_head => (Framing::None, Length::Drop),
        BodySize::Empty => (Framing::None, Length::Write(0)),
        BodySize::Known(length) => (Framing::Length(length), Length::Write(length)),
        BodySize::Unknown if write.http10 => (Framing::UntilClose, Length::Drop),
        BodySize::Unknown => (Framing::Chunked, Length::Drop),
    };
    let connection: Option<&[u8]> = match () {
        () if status < 200 || write.tunnel => None,
        () if write.close || framing == Framing::UntilClose => Some(b"close"),
        () if write.http10 => Some(b"keep-alive"),
        () => None,
    };
    let missing = write_fields(&head.headers, length, switching, case, out);
    if let Some(value) = connection {
        write_field(b"connection", value, case, out);
    }
    write_length(missing, case, out);
    // A HEAD answer is framed as the GET's would be.
    let like_chunked = write.request_is_head && !write.http10 && !write.tunnel && status >= 200 && !matches!(status, 204 | 304);
    if framing == Framing::Chunked || (like_chunked && matches!(length, Length::Drop)) {
        write_field(b"transfer-encoding", b"chunked", case, out);
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Appends a trailer section, the empty line included.
pub(super) fn encode_trailers(trailers: &Headers, case: HeaderCase, out: &mut Vec<u8>) {
    for (_, name, value) in trailers.iter_spelled() {
        write_field(name, value, case, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// What happens to `content-length`.
#[derive(Clone, Copy)]
enum Length {
    Keep,
    Drop,
    Write(u64),
}

/// Writes the fields without those that only the codec may write, `content-length` in its place; its value when it has none.
fn write_fields(headers: &Headers, length: Length, keep_connection: bool, case: HeaderCase, out: &mut Vec<u8>) -> Option<u64> {
    let mut missing = if let Length::Write(length) = length { Some(length) } else { None };
    for (id, name, value, line) in headers.iter_lines() {
        match (id, length) {
            (Known::TransferEncoding, _) | (Known::ContentLength, Length::Drop) => {}
            (Known::Connection, _) if !keep_connection => {}
            (Known::ContentLength, Length::Write(_)) => {
                if let Some(length) = missing.take() {
                    write_field(name, itoa::Buffer::new().format(length).as_bytes(), case, out);
                }
            }
            _ => match line {
                Some(line) if case != HeaderCase::Proper => out.extend_from_slice(line),
                _ => write_field(name, value, case, out),
            },
        }
    }
    missing
}

fn write_length(length: Option<u64>, case: HeaderCase, out: &mut Vec<u8>) {
    if let Some(length) = length {
        write_field(b"content-length", itoa::Buffer::new().format(length).as_bytes(), case, out);
    }
}

fn write_field(name: &[u8], value: &[u8], case: HeaderCase, out: &mut Vec<u8>) {
    if case == HeaderCase::Proper {
        let mut upper = true;
        out.extend(name.iter().map(|b| {
            let first = std::mem::replace(&mut upper, *b == b'-');
            if first { b.to_ascii_uppercase() } else { *b }
        }));
    } else {
        out.extend_from_slice(name);
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Envoy's reason phrases, its gaps and oddities included.
pub fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        599 => "Last Unassigned Server Error Code",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests;
