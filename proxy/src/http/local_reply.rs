//! Responses made here instead of upstream: what went wrong, in the form that the caller's protocol expects.

use std::borrow::Cow;

use http::StatusCode;

use super::body::BodySize;
use super::head::{Headers, Known, ResponseHead};
use crate::config::DirectResponse;
use crate::error::{Reply, grpc_status};
use crate::flags::ResponseFlags;

/// A response made here.
#[derive(Debug)]
pub struct LocalReply {
    /// Status.
    pub status: StatusCode,
    /// Body.
    pub body: Cow<'static, [u8]>,
    /// Response flag.
    pub flag: ResponseFlags,
    /// Response code details.
    pub details: Cow<'static, str>,
    /// gRPC status, when it is not the one that follows from the HTTP status.
    pub grpc_status: Option<u32>,
    /// Further headers, such as Location.
    pub headers: Headers,
}

impl LocalReply {
    /// A reply with a `text/plain` body.
    pub fn new(
        status: StatusCode,
        body: impl Into<Cow<'static, [u8]>>,
        flag: ResponseFlags,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, body: body.into(), flag, details: details.into(), grpc_status: None, headers: Headers::new() }
    }

    /// A reply without a body.
    pub fn empty(status: StatusCode, details: &'static str) -> Self {
        Self::new(status, &b""[..], ResponseFlags::NONE, details)
    }

    /// A reply with a Location.
    pub fn redirect(status: StatusCode, location: &[u8], details: &'static str) -> Self {
        let mut reply = Self::empty(status, details);
        reply.headers.push_known(Known::Location, location);
        reply
    }

    /// A reply that a filter has worked out as a head.
    pub fn of_head(head: ResponseHead, details: &'static str) -> Self {
        Self { headers: head.headers, ..Self::empty(head.status, details) }
    }

    /// The reply of a route that answers by itself.
    pub fn direct(config: &DirectResponse) -> Self {
        let status = StatusCode::from_u16(config.status).unwrap_or(StatusCode::OK);
        Self::new(status, config.body.clone(), ResponseFlags::NONE, "direct_response")
    }

    /// Framing of a reply without body: HTTP/1 says so with a length, HTTP/2 with the end of the stream. A HEAD request learns
    /// no length, as from Envoy.
    pub fn size(&self, is_http2: bool, is_head: bool) -> BodySize {
        match (is_http2, is_head) {
            (true, _) => BodySize::Empty,
            (false, true) => BodySize::Unknown,
            (false, false) => BodySize::Known(0),
        }
    }

    /// The head as it goes out, before the steps that every response takes. gRPC callers get HTTP 200 with `grpc-status` and
    /// `grpc-message` and no body, as from Envoy.
    pub fn write(&mut self, is_grpc: bool, is_head: bool, head: &mut ResponseHead) {
        head.clear();
        // A content type says what the body is; there is none without one, and gRPC has its own.
        let typed = !is_grpc && !self.body.is_empty();
        let mut own_type = false;
        for (name, value) in self.headers.iter() {
            let is_type = Known::of(name) == Known::ContentType;
            own_type |= is_type;
            if typed || !is_type {
                head.headers.push(name, value);
            }
        }
        if is_grpc {
            let code = self.grpc_status.unwrap_or_else(|| grpc_status(self.status.as_u16()));
            head.status = StatusCode::OK;
            head.headers.push_known(Known::ContentType, b"application/grpc");
            head.headers.push_known(Known::GrpcStatus, itoa::Buffer::new().format(code).as_bytes());
            if !self.body.is_empty() {
                head.headers.push_known(Known::GrpcMessage, &percent_encode(&self.body));
            }
            self.body = Cow::Borrowed(b"");
        } else {
            head.status = self.status;
            if !self.body.is_empty() {
                head.headers.push_known(Known::ContentLength, itoa::Buffer::new().format(self.body.len()).as_bytes());
                if !own_type {
                    head.headers.push_known(Known::ContentType, b"text/plain");
                }
            }
        }
        if is_head {
            self.body = Cow::Borrowed(b"");
        }
    }
}

impl From<Reply> for LocalReply {
    fn from(reply: Reply) -> Self {
        let body = match reply.body {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut local = Self::new(status, body, reply.flag, reply.details);
        if let Some(name) = reply.header {
            local.headers.push(name.as_bytes(), b"true");
        }
        local
    }
}

/// The gRPC message encoding: everything outside printable ASCII, and `%`, is percent-encoded.
fn percent_encode(message: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(message.len());
    for byte in message {
        match byte {
            b' '..=b'~' if *byte != b'%' => out.push(*byte),
            _ => out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn fields(head: &ResponseHead) -> Vec<(String, String)> {
        head.headers.iter().map(|(n, v)| (String::from_utf8_lossy(n).into(), String::from_utf8_lossy(v).into())).collect()
    }

    #[test]
    fn grpc_callers_get_a_status_in_headers() {
        let mut head = ResponseHead::default();
        let mut reply = LocalReply::from(ErrorKind::NoHealthyUpstream.reply(None, false));
        reply.write(true, false, &mut head);
        assert_eq!(head.status, 200);
        let expected = [("content-type", "application/grpc"), ("grpc-status", "14"), ("grpc-message", "no healthy upstream")];
        assert_eq!(fields(&head), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert!(reply.body.is_empty());
    }

    #[test]
    fn a_body_is_announced_and_left_out_for_head_requests() {
        let mut head = ResponseHead::default();
        let mut reply = LocalReply::new(StatusCode::FORBIDDEN, &b"RBAC: access denied"[..], ResponseFlags::NONE, "x");
        reply.write(false, true, &mut head);
        assert_eq!(fields(&head)[0], ("content-length".to_owned(), "19".to_owned()));
        assert!(reply.body.is_empty());
    }
}
