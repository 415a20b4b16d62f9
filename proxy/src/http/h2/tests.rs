//! The machine fed with frames, without a socket.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;

use super::client::H2Connection;
use super::core::{Core, Event, Failure, Options, Role, Shared};
use super::frame::{self, FrameHead, HEAD, flag, kind};
use super::hpack::Encoder;
use super::message::Limits;
use super::stream::{Handle, Incoming, Respond};
use super::tunnel::Tunnel;
use crate::config::HeadersWithUnderscores;
use crate::http::body::{BodySize, Frame};
use crate::http::head::{Known, Pseudo, RequestHead, ResponseHead};

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a.b:80"), (":path", "/")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "a.b:80"), (":path", "/")];

fn core(role: Role) -> Core {
    let underscores = HeadersWithUnderscores::Allow;
    let limits = Limits { bytes: 60 * 1024, fields: 100, connect_protocol: false, underscores };
    let options = Options { role, stream_window: 65_536, connection_window: 131_072, max_streams: 4, limits, lenient: false };
    let mut core = Core::new(options);
    if role == Role::Server {
        core.receive(frame::PREFACE);
    } else {
        core.greet();
    }
    core.receive(&raw(kind::SETTINGS, 0, 0, b""));
    assert!(core.broken.is_none());
    core.out.clear();
    core
}

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::head(&mut bytes, payload.len(), kind, flags, stream);
    bytes.extend_from_slice(payload);
    bytes
}

fn headers(stream: u32, end: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A fresh table for each: nothing refers to what another block has left.
        let mut one = Vec::new();
        Encoder::new().field(&mut one, name.as_bytes(), value.as_bytes());
        block.extend_from_slice(&one);
    }
    raw(kind::HEADERS, flag::END_HEADERS | u8::from(end), stream, &block)
}

/// Kind, stream and payload of every frame that is to be written.
fn written(core: &mut Core) -> Vec<(u8, u32, Vec<u8>)> {
    let mut bytes = std::mem::take(core.out.tail());
    core.out.clear();
    let mut frames = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEAD>().map(|head| FrameHead::parse(*head)) {
        let rest = bytes.split_off(HEAD + head.length);
        frames.push((head.kind, head.stream, bytes.split_off(HEAD)));
        bytes = rest;
    }
    frames
}

fn details(core: &mut Core) -> Vec<&'static str> {
    core.refuse_open("open");
    core.events.drain(..).map(|event| if let Event::Refused { details, .. } = event { details } else { "request" }).collect()
}

fn with(fields: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    fields.iter().chain(more).copied().collect()
}

#[test]
fn a_request_comes_out_of_single_bytes_and_keeps_the_order_of_its_pseudo_headers() {
    let mut core = core(Role::Server);
    let fields = with(&POST, &[("x-a", "1"), ("cookie", "a=1"), ("host", "ignored"), ("x-b", "2"), ("cookie", "b=2")]);
    let mut bytes = headers(1, false, &fields);
    bytes.extend(raw(kind::DATA, flag::PADDED | flag::END_STREAM, 1, b"\x02hello\0\0"));
    for byte in bytes {
        core.receive(&[byte]);
    }
    let Some(Event::Request { stream: 1, head, size }) = core.events.pop_front() else { panic!("no request") };
    assert_eq!(size, BodySize::Unknown);
    assert_eq!((head.authority(), head.path()), (&b"a.b:80"[..], &b"/"[..]));
    assert_eq!(head.pseudo_order, [Pseudo::Method, Pseudo::Scheme, Pseudo::Authority, Pseudo::Path]);
    let names: Vec<_> = head.headers.iter().map(|(n, v)| [n, b"=", v].concat()).collect();
    assert_eq!(names, [b"x-a=1".to_vec(), b"x-b=2".to_vec(), b"cookie=a=1; b=2".to_vec()]);
    let mut body = Vec::new();
    while let Some(Frame::Data(data)) = core.take_frame(1) {
        body.extend_from_slice(&data);
    }
    assert_eq!(body, b"hello");
    assert!(core.streams[&1].remote_end && core.broken.is_none());
}

#[test]
fn malformed_requests_close_the_connection_without_a_word() {
    const FIELD: &str = "http2.invalid.header.field";
    const MESSAGING: &str = "http2.violation.of.messaging.rule";
    let cases: &[(Vec<(&str, &str)>, &str)] = &[
        (with(&GET, &[("X-Up", "1")]), FIELD),
        (with(&GET, &[("x y", "1")]), FIELD),
        (with(&GET, &[("", "1")]), FIELD),
        (with(&GET, &[("x", "a\nb")]), FIELD),
        (with(&GET, &[("x", "a\0b")]), FIELD),
        (with(&GET, &[("connection", "close")]), FIELD),
        (with(&GET, &[("transfer-encoding", "chunked")]), FIELD),
        (with(&GET, &[("te", "gzip")]), FIELD),
        (with(&GET, &[(":path", "/2")]), FIELD),
        (with(&GET, &[(":unknown", "1")]), FIELD),
        (with(&GET, &[(":protocol", "websocket")]), FIELD),
        (with(&GET, &[("x", "1"), (":status", "200")]), FIELD),
        (with(&GET, &[("host", "a b")]), FIELD),
        (with(&POST, &[("content-length", "+1")]), FIELD),
        (with(&POST, &[("content-length", "0"), ("content-length", "0")]), FIELD),
        (with(&POST, &[("content-length", "1")]), MESSAGING),
        (with(&GET[..3], &[(":path", "")]), FIELD),
        (with(&GET[..3], &[(":path", "/a b")]), FIELD),
        (with(&GET[..3], &[(":path", "relative")]), MESSAGING),
        (with(&GET[..3], &[(":path", "*")]), MESSAGING),
        (with(&GET[..3], &[]), MESSAGING),
        (with(&GET[1..], &[]), MESSAGING),
        (with(&GET[1..], &[(":method", "G T")]), FIELD),
        (with(&GET[..2], &[(":path", "/")]), MESSAGING),
        (with(&GET[..2], &[(":authority", "user@host"), (":path", "/")]), FIELD),
        (with(&GET[1..], &[(":method", "CONNECT")]), MESSAGING),
    ];
    for (fields, expected) in cases {
        let mut core = core(Role::Server);
        core.receive(&headers(1, true, fields));
        assert_eq!(details(&mut core), [*expected], "{fields:?}");
        assert!(core.broken.is_some() && written(&mut core).is_empty(), "{fields:?}");
    }
}

#[test]
fn requests_that_are_odd_but_well_formed_pass() {
    for fields in [
        with(&GET, &[("te", "Trailers")]),
        with(&GET, &[("x", " \u{e9}\t ")]),
        with(&GET[1..], &[(":method", "FOO")]),
        with(&GET[..2], &[(":path", "/"), ("host", "a")]),
        with(&[(":method", "OPTIONS"), (":path", "*")], &GET[1..3]),
        with(&[], &[(":method", "CONNECT"), (":authority", "a:443")]),
        with(&[(":scheme", "ftp")], &[GET[0], GET[2], GET[3]]),
    ] {
        let mut core = core(Role::Server);
        core.receive(&headers(1, true, &fields));
        assert_eq!(details(&mut core), ["request"], "{fields:?}");
        assert!(core.broken.is_none());
    }
}

#[test]
fn limits_reset_the_stream_and_the_connection_lives() {
    let names: Vec<String> = (0..97).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = GET.iter().copied().chain(names.iter().map(|name| (name.as_str(), "1"))).collect();
    let mut core = core(Role::Server);
    core.receive(&headers(1, true, &many));
    assert_eq!(details(&mut core), ["http2.too_many_headers"]);
    assert_eq!(written(&mut core), [(kind::RST_STREAM, 1, vec![0, 0, 0, 2])]);
    core.receive(&headers(3, true, &many[..100]));
    assert_eq!(details(&mut core), ["request"]);
}

#[test]
fn fields_out_of_the_table_count_with_their_bytes() {
    // 3.5 KB in the table, then one byte for each repetition: 12 MB, were they kept (CVE-2026-47774).
    let mut block = Vec::new();
    let mut encoder = Encoder::new();
    for (name, value) in GET {
        encoder.field(&mut block, name.as_bytes(), value.as_bytes());
    }
    block.extend([0x40, 6]);
    block.extend(b"cookie");
    block.extend([0x7f, 0xad, 0x1a]);
    block.extend(vec![b'c'; 127 + 0x2d + (0x1a << 7)]);
    block.extend(vec![0xbe; 3500]);
    let mut core = core(Role::Server);
    core.receive(&raw(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &block));
    assert_eq!(details(&mut core), ["http2.header_list_size_too_large"]);
    assert_eq!(written(&mut core), [(kind::RST_STREAM, 1, vec![0, 0, 0, 2])]);
    assert!(core.broken.is_none());
}

#[test]
fn a_wrong_length_resets_the_stream() {
    for (length, data, end) in [("10", &b"abc"[..], true), ("2", b"abc", false), ("0", b"a", true)] {
        let mut core = core(Role::Server);
        core.receive(&headers(1, false, &with(&POST, &[("content-length", length)])));
        core.receive(&raw(kind::DATA, u8::from(end), 1, data));
        assert_eq!(written(&mut core), [(kind::RST_STREAM, 1, vec![0, 0, 0, 1])], "{length}");
        assert_eq!(core.streams[&1].failure, Some(Failure::Violation("http2.remote_reset")));
        assert!(core.broken.is_none());
    }
}

#[test]
fn broken_frames_end_the_connection_with_or_without_a_goaway() {
    let open = headers(1, false, &POST);
    let after = |frame: Vec<u8>| [open.clone(), frame].concat();
    let ended = |frame: Vec<u8>| [headers(1, true, &GET), frame].concat();
    let cases: &[(&str, Vec<u8>, Option<u32>)] = &[
        ("DATA on stream 0", raw(kind::DATA, 0, 0, b"x"), Some(1)),
        ("DATA on an idle stream", raw(kind::DATA, 0, 5, b"x"), Some(1)),
        ("DATA after the end", ended(raw(kind::DATA, 0, 1, b"x")), Some(5)),
        ("padding longer than the frame", after(raw(kind::DATA, flag::PADDED, 1, b"\x05abc")), Some(1)),
        ("HEADERS of an even stream", headers(2, true, &GET), None),
        ("HEADERS after the end", ended(headers(1, true, &GET)), None),
        ("HEADERS that depend on themselves", raw(kind::HEADERS, 0x25, 1, &[0, 0, 0, 1, 16]), None),
        ("trailers without end", after(headers(1, false, &[("x", "1")])), None),
        ("trailers with pseudo headers", after(headers(1, true, &[(":path", "/")])), None),
        ("RST_STREAM of an idle stream", raw(kind::RST_STREAM, 0, 7, &[0; 4]), None),
        ("RST_STREAM of three bytes", after(raw(kind::RST_STREAM, 0, 1, &[0; 3])), Some(6)),
        ("SETTINGS on a stream", raw(kind::SETTINGS, 0, 1, b""), None),
        ("SETTINGS of five bytes", raw(kind::SETTINGS, 0, 0, b"12345"), Some(6)),
        ("ENABLE_PUSH of 2", raw(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), None),
        ("a window beyond the maximum", raw(kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), None),
        ("a frame size below the minimum", raw(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), None),
        ("PING of seven bytes", raw(kind::PING, 0, 0, &[0; 7]), Some(6)),
        ("PING on a stream", raw(kind::PING, 0, 1, &[0; 8]), None),
        ("WINDOW_UPDATE of zero", raw(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), None),
        ("WINDOW_UPDATE of zero on a stream", after(raw(kind::WINDOW_UPDATE, 0, 1, &[0; 4])), None),
        ("WINDOW_UPDATE beyond the maximum", raw(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]), None),
        ("CONTINUATION alone", raw(kind::CONTINUATION, 4, 1, b""), Some(1)),
        ("a PING inside a block", [raw(kind::HEADERS, 0, 1, b"\x82"), raw(kind::PING, 0, 0, &[0; 8])].concat(), Some(1)),
        ("PUSH_PROMISE", raw(kind::PUSH_PROMISE, 4, 1, &[0; 8]), None),
        ("a frame of 16,385 bytes", raw(kind::PING, 0, 0, &vec![0; 16_385]), Some(6)),
        ("an index beyond the table", raw(kind::HEADERS, 5, 1, b"\xff\x00"), Some(9)),
        ("empty DATA again and again", after(raw(kind::DATA, 0, 1, b"").repeat(3)), None),
        ("empty CONTINUATION again and again", [raw(kind::HEADERS, 0, 1, b"\x82"), raw(9, 0, 1, b"").repeat(3)].concat(), None),
        ("PRIORITY again and again", raw(kind::PRIORITY, 0, 1, &[0; 5]).repeat(200), None),
        ("WINDOW_UPDATE again and again", raw(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(10), None),
    ];
    for (what, bytes, goaway) in cases {
        let mut core = core(Role::Server);
        core.receive(bytes);
        assert!(core.broken.is_some(), "{what}");
        let last = written(&mut core).pop();
        let code = last.filter(|frame| frame.0 == kind::GOAWAY).map(|(_, _, payload)| frame::number_at(&payload, 4));
        assert_eq!(code, *goaway, "{what}");
    }
}

#[test]
fn what_is_harmless_is_ignored() {
    let mut core = core(Role::Server);
    core.receive(&raw(0x77, 0xff, 9, b"unknown"));
    core.receive(&raw(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 16]));
    core.receive(&headers(1, false, &POST));
    core.receive(&raw(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    core.receive(&raw(kind::DATA, 0, 1, b"late"));
    core.receive(&raw(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]));
    assert!(core.broken.is_none());
    assert_eq!(core.streams[&1].failure, Some(Failure::Reset(frame::Reason::CANCEL)));
    assert_eq!(core.active, 0);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_resetting_makes_no_room() {
    let mut core = core(Role::Server);
    for id in [1, 3, 5, 7, 9] {
        core.receive(&headers(id, false, &POST));
    }
    assert_eq!(written(&mut core), [(kind::RST_STREAM, 9, vec![0, 0, 0, 7])]);
    for id in (11..61).step_by(2) {
        core.receive(&raw(kind::RST_STREAM, 0, id - 10, &[0; 4]));
        core.receive(&headers(id, false, &POST));
    }
    assert!(core.streams.len() <= 8, "{} streams are held", core.streams.len());
}

#[test]
fn rapid_resets_end_the_connection() {
    let mut core = core(Role::Server);
    let mut sent = 0;
    while core.broken.is_none() {
        let id = 2 * sent + 1;
        core.receive(&headers(id, false, &POST));
        core.receive(&raw(kind::RST_STREAM, 0, id, &[0, 0, 0, 8]));
        core.events.clear();
        core.release(id);
        sent += 1;
        assert!(sent < 1000, "the flood goes on");
    }
    assert_eq!(sent, 250);
}

#[test]
fn credit_goes_back_when_frames_are_taken_and_no_sooner() {
    let mut core = core(Role::Server);
    core.receive(&headers(1, false, &POST));
    for _ in 0..4 {
        core.receive(&raw(kind::DATA, 0, 1, &vec![b'x'; 16_000]));
    }
    assert_eq!(core.streams[&1].recv_window, 65_536 - 64_000);
    assert!(written(&mut core).is_empty(), "nothing was taken yet");
    while core.take_frame(1).is_some() {}
    let credit: u32 = written(&mut core).iter().filter(|f| f.1 == 1).map(|(_, _, p)| frame::number_at(p, 0)).sum();
    assert!(credit >= 32_768, "{credit}");
    core.receive(&raw(kind::DATA, 0, 1, &vec![b'x'; 16_000]).repeat(9));
    assert!(core.streams[&1].failure.is_some() || core.broken.is_some(), "a peer that ignores the window is stopped");
}

#[test]
fn a_client_reads_its_response_and_refuses_a_bad_one() {
    let mut good = core(Role::Client);
    good.next = 3;
    good.open(1, false, true, None, false);
    good.receive(&headers(1, false, &[(":status", "103"), ("link", "x")]));
    good.receive(&headers(1, false, &[(":status", "200"), ("content-length", "2")]));
    good.receive(&raw(kind::DATA, 1, 1, b"ok"));
    let statuses: Vec<u16> = good.streams[&1].heads.iter().map(|head| head.status.as_u16()).collect();
    assert_eq!(statuses, [103, 200]);
    assert!(good.streams[&1].is_closed() && good.streams[&1].failure.is_none());

    for fields in [&[(":status", "101")][..], &[(":status", "20")], &[("x", "1")], &[(":status", "200"), ("connection", "x")]] {
        let mut bad = core(Role::Client);
        bad.next = 3;
        bad.open(1, false, true, None, false);
        bad.receive(&headers(1, false, fields));
        assert!(matches!(bad.streams[&1].failure, Some(Failure::Violation(_))), "{fields:?}");
    }
}

#[test]
fn a_goaway_refuses_the_streams_that_were_not_looked_at() {
    let mut core = core(Role::Client);
    core.next = 5;
    core.open(1, false, true, None, false);
    core.open(3, false, true, None, false);
    core.receive(&raw(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
    assert_eq!((core.streams[&1].failure, core.streams[&3].failure), (None, Some(Failure::Refused)));
    assert!(core.going_away);
}

/// Hands what one side has written to the other.
fn shuttle(from: &Shared, to: &Shared) {
    let bytes = std::mem::take(from.borrow_mut().out.tail());
    from.borrow_mut().out.clear();
    to.borrow_mut().receive(&bytes);
}

#[test]
fn an_upgrade_becomes_a_tunnel_on_both_ends() {
    use tokio::io::{AsyncRead, AsyncWrite};
    let quiet = &mut Context::from_waker(Waker::noop());
    let (client, server) = (Rc::new(RefCell::new(core(Role::Client))), Rc::new(RefCell::new(core(Role::Server))));
    server.borrow_mut().options.limits.connect_protocol = true;
    let mut head = RequestHead::new();
    head.set_authority(b"a.b:80");
    head.set_path(b"/chat");
    head.headers.push(b"connection", b"Upgrade");
    head.headers.push(b"upgrade", b"websocket");
    let (out, mut response) = H2Connection { core: client.clone() }.send(&head, false);
    shuttle(&client, &server);
    let Some(Event::Request { stream, head, size }) = server.borrow_mut().events.pop_front() else { panic!("no request") };
    // RFC 8441 on the wire, an upgrade on either side of it.
    assert_eq!((head.method.as_str(), head.path(), size), ("GET", &b"/chat"[..], BodySize::Unknown));
    assert_eq!(head.pseudo_order, [Pseudo::Authority, Pseudo::Path, Pseudo::Method, Pseudo::Scheme]);
    assert_eq!(head.headers.get(Known::Upgrade), Some(&b"websocket"[..]));
    assert_eq!(head.headers.get(Known::Connection), Some(&b"upgrade"[..]));

    let handle = Rc::new(Handle { core: server.clone(), id: stream });
    let answer = ResponseHead::new(http::StatusCode::SWITCHING_PROTOCOLS);
    let server_out = Respond::new(handle.clone()).head(&answer, false).unwrap();
    shuttle(&server, &client);
    let mut status = ResponseHead::default();
    assert!(matches!(response.poll_head(quiet, &mut status), Poll::Ready(Ok(()))));
    assert_eq!(status.status.as_u16(), 200);

    let mut near = Tunnel::new(response.take_body().unwrap(), out);
    let mut far = Tunnel::new(Incoming::new(handle), server_out);
    let mut buffer = [0; 16];
    assert!(matches!(Pin::new(&mut near).poll_write(quiet, b"ping"), Poll::Ready(Ok(4))));
    shuttle(&client, &server);
    let mut read = ReadBuf::new(&mut buffer);
    assert!(Pin::new(&mut far).poll_read(quiet, &mut read).is_ready());
    assert_eq!(read.filled(), b"ping");
    assert!(matches!(Pin::new(&mut far).poll_write(quiet, b"pong"), Poll::Ready(Ok(4))));
    assert!(Pin::new(&mut far).poll_shutdown(quiet).is_ready());
    shuttle(&server, &client);
    let mut read = ReadBuf::new(&mut buffer);
    assert!(Pin::new(&mut near).poll_read(quiet, &mut read).is_ready());
    assert_eq!(read.filled(), b"pong");
    let mut read = ReadBuf::new(&mut buffer);
    assert!(Pin::new(&mut near).poll_read(quiet, &mut read).is_ready());
    assert!(read.filled().is_empty(), "the far end has closed its half");
    drop((near, response));
    shuttle(&client, &server);
    assert!(Pin::new(&mut far).poll_read(quiet, &mut ReadBuf::new(&mut buffer)).is_ready(), "the near end is gone");
}

#[test]
fn resets_that_the_caller_provokes_count_as_its_own() {
    let mut core = core(Role::Server);
    let mut sent = 0;
    while core.broken.is_none() {
        let id = 2 * sent + 1;
        core.receive(&headers(id, false, &with(&POST, &[("content-length", "1")])));
        core.receive(&raw(kind::DATA, 0, id, b"more"));
        core.events.clear();
        core.release(id);
        sent += 1;
        assert!(sent < 1000, "the flood goes on");
    }
    assert_eq!(sent, 250);
}
