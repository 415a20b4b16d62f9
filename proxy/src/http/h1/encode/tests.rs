//! Heads as a real Envoy was seen to write them.

use super::*;
use crate::http::head::HeaderName;

fn request(method: &Method, fields: &[(&str, &str)], size: BodySize) -> (String, Framing) {
    let mut head = RequestHead::new();
    head.method = method.clone();
    head.set_authority(b"details.bookinfo:9080");
    head.set_path(b"/");
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    let mut out = Vec::new();
    let framing = encode_request(&head, size, HeaderCase::Lower, &mut out);
    (lines(&out), framing)
}

/// The lines after the first two of a request, or the first of a response, joined with `|`.
fn lines(out: &[u8]) -> String {
    let text = String::from_utf8(out.to_vec()).expect("text");
    let text = text.strip_suffix("\r\n\r\n").expect("an empty line ends a head");
    text.split("\r\n").collect::<Vec<_>>().join("|")
}

#[test]
fn requests_carry_host_first_and_their_framing_last() {
    let start = |method: &Method| format!("{method} / HTTP/1.1|host: details.bookinfo:9080");
    let proto = [("x-forwarded-proto", "http")];
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::TRACE] {
        let (text, framing) = request(&method, &proto, BodySize::Empty);
        assert_eq!((text, framing), (start(&method) + "|x-forwarded-proto: http", Framing::None));
    }
    let purge = Method::from_bytes(b"PURGE").expect("method");
    for method in [Method::POST, Method::PUT, Method::OPTIONS, purge] {
        let (text, _) = request(&method, &proto, BodySize::Empty);
        assert_eq!(text, start(&method) + "|x-forwarded-proto: http|content-length: 0");
    }
    let upgrade = [("upgrade", "websocket")];
    let (text, _) = request(&Method::POST, &upgrade, BodySize::Empty);
    assert_eq!(text, start(&Method::POST) + "|upgrade: websocket");
    let (text, framing) = request(&Method::POST, &proto, BodySize::Unknown);
    assert_eq!(text, start(&Method::POST) + "|x-forwarded-proto: http|transfer-encoding: chunked");
    assert_eq!(framing, Framing::Chunked);
    let fields = [("content-length", "4"), ("x-a", "1")];
    let (text, framing) = request(&Method::PUT, &fields, BodySize::Known(4));
    assert_eq!((text, framing), (start(&Method::PUT) + "|content-length: 4|x-a: 1", Framing::Length(4)));
}

#[test]
fn a_request_can_not_be_framed_twice() {
    let fields = [("content-length", "4"), ("transfer-encoding", "gzip"), ("content-length", "5")];
    let (text, _) = request(&Method::POST, &fields, BodySize::Unknown);
    assert!(text.ends_with(":9080|transfer-encoding: chunked"), "{text}");
    let (text, _) = request(&Method::POST, &fields, BodySize::Known(7));
    assert!(text.ends_with(":9080|content-length: 7"), "{text}");
}

fn response(status: u16, fields: &[(&str, &str)], size: BodySize, write: WriteHead) -> (String, Framing) {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).expect("status"));
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    let mut out = Vec::new();
    let framing = encode_response(&head, size, write, HeaderCase::Lower, &mut out);
    (lines(&out), framing)
}

#[test]
fn responses_are_framed_as_envoy_frames_them() {
    let plain = WriteHead::default();
    let close = WriteHead { close: true, ..plain };
    let head = WriteHead { request_is_head: true, ..plain };
    let old = WriteHead { http10: true, ..plain };
    let tunnel = WriteHead { tunnel: true, close: true, ..plain };
    let length: &[(&str, &str)] = &[("content-length", "3"), ("server", "envoy")];
    let server: &[(&str, &str)] = &[("server", "envoy")];
    let upgrade: &[(&str, &str)] = &[("upgrade", "websocket"), ("connection", "Upgrade")];
    type Case<'a> = (u16, &'a [(&'a str, &'a str)], BodySize, WriteHead, &'a str, Framing);
    let table: &[Case<'_>] = &[
        (200, length, BodySize::Known(3), plain, "HTTP/1.1 200 OK|content-length: 3|server: envoy", Framing::Length(3)),
        (200, server, BodySize::Unknown, plain, "HTTP/1.1 200 OK|server: envoy|transfer-encoding: chunked", Framing::Chunked),
        (
            404,
            server,
            BodySize::Empty,
            close,
            "HTTP/1.1 404 Not Found|server: envoy|connection: close|content-length: 0",
            Framing::None,
        ),
        (
            403,
            length,
            BodySize::Known(3),
            close,
            "HTTP/1.1 403 Forbidden|content-length: 3|server: envoy|connection: close",
            Framing::Length(3),
        ),
        (204, length, BodySize::Empty, plain, "HTTP/1.1 204 No Content|server: envoy", Framing::None),
        (304, length, BodySize::Empty, plain, "HTTP/1.1 304 Not Modified|content-length: 3|server: envoy", Framing::None),
        (304, server, BodySize::Empty, plain, "HTTP/1.1 304 Not Modified|server: envoy", Framing::None),
        (304, server, BodySize::Empty, head, "HTTP/1.1 304 Not Modified|server: envoy", Framing::None),
        (200, server, BodySize::Known(0), head, "HTTP/1.1 200 OK|server: envoy|transfer-encoding: chunked", Framing::None),
        (200, length, BodySize::Empty, head, "HTTP/1.1 200 OK|content-length: 3|server: envoy", Framing::None),
        (200, server, BodySize::Empty, head, "HTTP/1.1 200 OK|server: envoy|transfer-encoding: chunked", Framing::None),
        (200, server, BodySize::Known(9), head, "HTTP/1.1 200 OK|server: envoy|content-length: 9", Framing::None),
        (200, server, BodySize::Unknown, old, "HTTP/1.0 200 OK|server: envoy|connection: close", Framing::UntilClose),
        (
            200,
            length,
            BodySize::Known(3),
            old,
            "HTTP/1.0 200 OK|content-length: 3|server: envoy|connection: keep-alive",
            Framing::Length(3),
        ),
        (
            101,
            upgrade,
            BodySize::Empty,
            plain,
            "HTTP/1.1 101 Switching Protocols|upgrade: websocket|connection: Upgrade",
            Framing::None,
        ),
        (200, server, BodySize::Empty, tunnel, "HTTP/1.1 200 OK|server: envoy", Framing::None),
        (103, server, BodySize::Empty, plain, "HTTP/1.1 103 Unknown|server: envoy", Framing::None),
        (418, length, BodySize::Known(3), plain, "HTTP/1.1 418 Unknown|content-length: 3|server: envoy", Framing::Length(3)),
    ];
    for (status, fields, size, write, text, framing) in table {
        assert_eq!(response(*status, fields, *size, *write), ((*text).to_owned(), *framing));
    }
    assert_eq!(reason(StatusCode::from_u16(599).expect("status")), "Last Unassigned Server Error Code");
}

#[test]
fn names_keep_or_gain_their_case() {
    let mut head = RequestHead::new();
    head.set_authority(b"h");
    head.set_path(b"/");
    head.headers.push_spelled(b"X-MiXeD", b"v");
    head.headers.set_named(&HeaderName::new("x-request-id"), b"1");
    let text = |case| {
        let mut out = Vec::new();
        encode_request(&head, BodySize::Known(1), case, &mut out);
        lines(&out)
    };
    assert_eq!(text(HeaderCase::Preserve), "GET / HTTP/1.1|Host: h|X-MiXeD: v|x-request-id: 1|content-length: 1");
    head.headers.remove_named(&HeaderName::new("x-mixed"));
    let mut out = Vec::new();
    encode_request(&head, BodySize::Known(1), HeaderCase::Proper, &mut out);
    assert_eq!(lines(&out), "GET / HTTP/1.1|Host: h|X-Request-Id: 1|Content-Length: 1");
}
