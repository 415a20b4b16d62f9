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
    /// When the route's mutations come.
    pub mutations: Mutations,
}

/// When the route's header mutations apply to a local reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutations {
    /// Before the reply's own headers, for routes that forward: Envoy's way where the router or a filter refuses.
    #[default]
    First,
    /// After them: redirects and direct responses, where the route itself answers.
    Last,
    /// Not at all: a filter answers by itself.
    Never,
}

impl LocalReply {
    /// A reply with a `text/plain` body.
    pub fn new(
        status: StatusCode,
        body: impl Into<Cow<'static, [u8]>>,
        flag: ResponseFlags,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            flag,
            details: details.into(),
            grpc_status: None,
            headers: Headers::new(),
            mutations: Mutations::First,
        }
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
        Self { headers: head.headers, mutations: Mutations::Never, ..Self::empty(head.status, details) }
    }

    /// The reply of a route that answers by itself.
    pub fn direct(config: &DirectResponse) -> Self {
        let status = StatusCode::from_u16(config.status).unwrap_or(StatusCode::OK);
        let reply = Self::new(status, config.body.clone(), ResponseFlags::NONE, "direct_response");
        Self { mutations: Mutations::Last, ..reply }
    }

    /// Framing of a reply without body: HTTP/1 says so with a length, HTTP/2 with the end of the stream. The answer to HEAD is
    /// framed as that to a GET whose length is not known.
    pub fn size(&self, is_http2: bool, is_head: bool) -> BodySize {
        match () {
            () if is_http2 => BodySize::Empty,
            () if is_head => BodySize::Unknown,
            () => BodySize::Known(0),
        }
    }

    /// The head as it goes out, before the steps that every response takes; `mutate` is what the route does to it. gRPC callers
    /// get HTTP 200 with `grpc-status` and `grpc-message` and no body, as from Envoy.
    pub fn write(&mut self, is_grpc: bool, is_head: bool, head: &mut ResponseHead, mutate: impl FnOnce(&mut ResponseHead)) {
        head.clear();
        head.status = self.status;
        if self.mutations == Mutations::First {
            mutate(head);
            self.write_own(head);
        } else {
            self.write_own(head);
            if self.mutations == Mutations::Last {
                mutate(head);
            }
        }
        if is_grpc {
            self.write_grpc(is_head, head);
        } else if self.body.is_empty() {
            head.headers.remove(Known::ContentLength);
            head.headers.remove(Known::ContentType);
        } else {
            head.headers.set(Known::ContentLength, itoa::Buffer::new().format(self.body.len()).as_bytes());
            if !head.headers.contains(Known::ContentType) {
                head.headers.push_known(Known::ContentType, b"text/plain");
            }
        }
        if is_head {
            self.body = Cow::Borrowed(b"");
        }
    }

    fn write_own(&self, head: &mut ResponseHead) {
        for (name, value) in self.headers.iter() {
            head.headers.push(name, value);
        }
    }

    fn write_grpc(&mut self, is_head: bool, head: &mut ResponseHead) {
        let code = self.grpc_status.unwrap_or_else(|| grpc_status(self.status.as_u16()));
        head.status = StatusCode::OK;
        head.headers.set(Known::ContentType, b"application/grpc");
        if head.headers.get(Known::GrpcStatus).is_none_or(<[u8]>::is_empty) {
            head.headers.set(Known::GrpcStatus, itoa::Buffer::new().format(code).as_bytes());
        }
        let message = self.body.trim_ascii();
        if !message.is_empty() && !is_head {
            head.headers.set(Known::GrpcMessage, &percent_encode(message));
        }
        head.headers.remove(Known::ContentLength);
        self.body = Cow::Borrowed(b"");
    }
}

impl From<Reply> for LocalReply {
    fn from(reply: Reply) -> Self {
        let body = match reply.body {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut local = Self { grpc_status: reply.grpc_status, ..Self::new(status, body, reply.flag, reply.details) };
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
        reply.write(true, false, &mut head, |_| ());
        assert_eq!(head.status, 200);
        let expected = [("content-type", "application/grpc"), ("grpc-status", "14"), ("grpc-message", "no healthy upstream")];
        assert_eq!(fields(&head), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert!(reply.body.is_empty());
    }

    #[test]
    fn a_body_is_announced_and_left_out_for_head_requests() {
        let mut head = ResponseHead::default();
        let mut reply = LocalReply::new(StatusCode::FORBIDDEN, &b"RBAC: access denied"[..], ResponseFlags::NONE, "x");
        reply.write(false, true, &mut head, |_| ());
        assert_eq!(fields(&head)[0], ("content-length".to_owned(), "19".to_owned()));
        assert!(reply.body.is_empty());
    }

    #[test]
    fn the_routes_headers_come_before_those_of_a_refusal_and_after_those_of_its_own_answer() {
        let mutate = |head: &mut ResponseHead| {
            head.headers.push(b"content-type", b"application/json");
            head.headers.push(b"x-route", b"1");
        };
        let names = |reply: &mut LocalReply| {
            let mut head = ResponseHead::default();
            reply.write(false, false, &mut head, mutate);
            fields(&head).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let mut refusal = LocalReply::new(StatusCode::FORBIDDEN, &b"no"[..], ResponseFlags::NONE, "x");
        refusal.headers.push(b"x-own", b"1");
        assert_eq!(names(&mut refusal), ["content-type", "x-route", "x-own", "content-length"]);
        let mut redirect = LocalReply::redirect(StatusCode::FOUND, b"/a", "x");
        redirect.mutations = Mutations::Last;
        assert_eq!(names(&mut redirect), ["location", "x-route"], "no type without a body");
        let mut filter = LocalReply::of_head(ResponseHead::default(), "x");
        assert!(names(&mut filter).is_empty());
    }
}
