//! HTTP/2 that breaks the rules or wears the peer down, frame by frame. The numbers are those of the security cases.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire, block,
    frame, headers, length,
};
use skiff_tests::mesh::{DETAILS_V1, Mesh};
use skiff_tests::skiff::Skiff;

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "details"), (":path", "/")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "details"), (":path", "/hold")];

/// The sidecar of details with its application, called in plaintext.
struct Door {
    mesh: Mesh,
    details: Skiff,
    app: App,
}

impl Door {
    async fn open() -> Self {
        let mesh = Mesh::prepare().await;
        mesh.edit("security.yaml", "STRICT", "PERMISSIVE");
        let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
        let details = mesh.spawn(DETAILS_V1, &[]);
        details.ready().await;
        Self { mesh, details, app }
    }

    async fn wire(&self) -> Wire {
        Wire::open(self.mesh.ingress(DETAILS_V1, 9080)).await
    }

    /// A connection that is closed because of these bytes; what came before.
    async fn closes(&self, bytes: &[u8]) -> Vec<Frame> {
        let mut wire = self.wire().await;
        wire.send(bytes).await;
        wire.until_closed().await
    }

    /// Others are still served.
    async fn serves(&self) {
        let mut wire = self.wire().await;
        wire.send(&headers(1, true, &GET)).await;
        while wire.next().await.expect("an answer").kind != HEADERS {}
    }
}

fn with<'a>(fields: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    fields.iter().chain(more).copied().collect()
}

fn resets(frames: &[Frame]) -> Vec<(u32, u8)> {
    frames.iter().filter(|frame| frame.kind == RST_STREAM).map(|frame| (frame.stream, frame.payload[3])).collect()
}

#[tokio::test]
async fn case_41_rapid_resets_close_the_connection() {
    let door = Door::open().await;
    let mut flood = Vec::new();
    for stream in (1..2400).step_by(2) {
        flood.extend(headers(stream, false, &POST));
        flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    door.closes(&flood).await;
    let line = AccessLogLine::parse(&door.details.stdout.line_with("http2.remote_reset").await);
    line.assert(&[("response_code", "0"), ("response_flags", "DR")]);
    assert!(door.app.requests().is_empty(), "a request was completed");
    door.serves().await;
}

#[tokio::test]
async fn case_42_a_cookie_bomb_costs_its_stream() {
    let door = Door::open().await;
    let mut bomb = block(&GET);
    bomb.extend([0x40, 6]);
    bomb.extend(b"cookie");
    length(&mut bomb, 3500);
    bomb.extend(vec![b'c'; 3500]);
    // Each of these bytes is the whole cookie again: 12 MB out of 5.5 KB.
    bomb.extend(vec![0xbe; 3500]);
    let mut wire = door.wire().await;
    wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    assert_eq!(resets(&wire.until_answered().await), [(1, 2)]);
    let line = AccessLogLine::parse(&door.details.stdout.line_with("http2.header_list_size_too_large").await);
    line.assert(&[("request", "- - HTTP/2"), ("response_code", "0"), ("response_flags", "DR"), ("upstream_host", "-")]);
    let metrics = door.details.metrics().await;
    assert!(metrics.sum("istio_requests_total", &[("response_code", "0"), ("response_flags", "DR")]) > 0.0);
    assert!(door.app.requests().is_empty());
    door.serves().await;
}

#[tokio::test]
async fn case_43_dropped_headers_are_charged() {
    let door = Door::open().await;
    let mut bomb = block(&GET);
    bomb.extend([0x40, 4]);
    bomb.extend(b"host");
    length(&mut bomb, 3500);
    bomb.extend(vec![b'h'; 3500]);
    bomb.extend(vec![0xbe; 3500]);
    door.closes(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    let line = AccessLogLine::parse(&door.details.stdout.line_with("http2.invalid.header.field").await);
    line.assert(&[("request", "- - HTTP/2"), ("response_code", "0"), ("response_flags", "DPE")]);
    assert!(door.app.requests().is_empty());
}

#[tokio::test]
async fn case_44_resets_that_the_caller_provokes_close_the_connection() {
    let door = Door::open().await;
    let open = |stream| headers(stream, false, &POST);
    door.closes(&[open(1), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat()).await;
    door.details.stdout.line_with("0 DPE http2.unknown.nghttp2.error").await;
    let goaway = door.closes(&[open(1), frame(DATA, END_STREAM, 1, b"x"), frame(DATA, 0, 1, b"y")].concat()).await;
    assert_eq!(goaway.last().map(|frame| (frame.kind, frame.payload[7])), Some((GOAWAY, 5)));
    // Ours for a wrong length count as the caller's own.
    let mut flood = Vec::new();
    for stream in (1..2400).step_by(2) {
        flood.extend(headers(stream, false, &with(&POST, &[("content-length", "1")])));
        flood.extend(frame(DATA, END_STREAM, stream, b"more"));
    }
    let frames = door.closes(&flood).await;
    assert!(resets(&frames).len() <= 500, "{} resets", resets(&frames).len());
    assert!(door.app.requests().is_empty());
    door.serves().await;
}

#[tokio::test]
async fn case_45_continuations_without_end_close_the_connection() {
    let door = Door::open().await;
    let begin = frame(HEADERS, END_STREAM, 1, &block(&GET));
    let empty = frame(CONTINUATION, 0, 1, b"").repeat(2000);
    door.closes(&[begin.clone(), empty].concat()).await;
    let line = AccessLogLine::parse(&door.details.stdout.line_with("http2.inbound_empty_frames_flood").await);
    line.assert(&[("request", "- - HTTP/2"), ("response_code", "0"), ("response_flags", "DPE")]);
    let full = frame(CONTINUATION, 0, 1, &block(&[("x-fill", "x".repeat(16_000).as_str())])).repeat(80);
    let frames = door.closes(&[begin, full].concat()).await;
    assert_eq!(resets(&frames), [(1, 2)]);
    assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{frames:?}");
    assert!(door.app.requests().is_empty());
    door.serves().await;
}

#[tokio::test]
async fn case_46_empty_data_closes_the_connection() {
    let door = Door::open().await;
    let flood = [headers(1, false, &POST), frame(DATA, 0, 1, b"").repeat(3000)].concat();
    door.closes(&flood).await;
    let line = AccessLogLine::parse(&door.details.stdout.line_with("http2.inbound_empty_frames_flood").await);
    line.assert(&[("response_code", "0"), ("response_flags", "DPE")]);
    door.serves().await;
}

#[tokio::test]
async fn case_47_answers_that_nobody_reads_close_the_connection() {
    let door = Door::open().await;
    for question in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, b"")] {
        let mut wire = door.wire().await;
        let burst = question.repeat(5000);
        // Nothing is read here: what is asked goes on until the answers fill every buffer on the way.
        let mut sent = 0;
        while sent < 2000 && wire.try_send(&burst).await.is_ok() {
            sent += 1;
        }
        assert!(sent < 2000, "{} questions were taken", sent * 5000);
    }
    door.serves().await;
}

#[tokio::test]
async fn case_47_streams_beyond_the_limit_are_refused() {
    let door = Door::open().await;
    let mut wire = door.wire().await;
    for stream in (1..6000).step_by(2) {
        wire.send(&headers(stream, false, &POST)).await;
    }
    let resets = resets(&wire.until_answered().await);
    let refused: Vec<_> = resets.iter().filter(|(_, code)| *code == 7).collect();
    assert!(!refused.is_empty(), "{resets:?}");
    assert!(refused.iter().all(|(stream, _)| *stream > 2048), "{refused:?}");
    door.serves().await;
}

#[tokio::test]
async fn case_48_malformed_requests_close_the_connection_and_are_logged() {
    const FIELD: &str = "http2.invalid.header.field";
    const MESSAGING: &str = "http2.violation.of.messaging.rule";
    let door = Door::open().await;
    let cases = [
        ("an upper-case name", with(&GET, &[("X-Up", "1")]), FIELD),
        ("connection", with(&GET, &[("connection", "close")]), FIELD),
        ("transfer-encoding", with(&GET, &[("transfer-encoding", "chunked")]), FIELD),
        ("te", with(&GET, &[("te", "gzip")]), FIELD),
        ("CR LF in a value", with(&GET, &[("x", "a\r\nx-admin: 1")]), FIELD),
        ("NUL in a value", with(&GET, &[("x", "a\0b")]), FIELD),
        ("an unknown pseudo header", with(&GET, &[(":admin", "1")]), FIELD),
        ("a pseudo header twice", with(&GET, &[(":path", "/admin")]), FIELD),
        ("a pseudo header after others", with(&with(&GET[..3], &[("x", "1")]), &[(":path", "/")]), FIELD),
        ("a method with a blank", with(&GET[1..], &[(":method", "GET /admin")]), FIELD),
        ("a path with a blank", with(&GET[..3], &[(":path", "/ HTTP/1.1")]), FIELD),
        ("a path that is relative", with(&GET[..3], &[(":path", "admin")]), MESSAGING),
        ("no path", GET[..3].to_vec(), MESSAGING),
        ("an authority with a user", with(&[GET[0], GET[1], GET[3]], &[(":authority", "a@details")]), FIELD),
        ("no authority", vec![GET[0], GET[1], GET[3]], MESSAGING),
    ];
    for (number, (what, fields, details)) in cases.iter().enumerate() {
        let frames = door.closes(&headers(1, true, fields)).await;
        assert!(frames.iter().all(|frame| frame.kind != HEADERS && frame.kind != GOAWAY), "{what}: {frames:?}");
        let line = AccessLogLine::parse(&door.details.stdout.nth_line_with("- - HTTP/2", number + 1).await);
        line.assert(&[("response_code", "0"), ("response_flags", "DPE"), ("response_code_details", details), ("authority", "-")]);
    }
    let trailers = [headers(1, false, &POST), frame(DATA, 0, 1, b"x"), headers(1, true, &[(":path", "/admin")])].concat();
    door.closes(&trailers).await;
    AccessLogLine::parse(&door.details.stdout.line_with("POST /hold HTTP/2").await).assert(&[
        ("response_code", "0"),
        ("response_flags", "DPE"),
        ("response_code_details", FIELD),
    ]);
    assert!(door.app.requests().is_empty());
    let metrics = door.details.metrics().await;
    let refused = metrics.sum("istio_requests_total", &[("response_code", "0"), ("response_flags", "DPE")]);
    assert!((refused - 16.0).abs() < 0.5, "{refused}");
    door.serves().await;
}

#[tokio::test]
async fn case_49_a_wrong_length_resets_and_the_authority_alone_counts() {
    let door = Door::open().await;
    for (length, body, end) in [("10", &b"abc"[..], END_STREAM), ("2", b"abc", 0)] {
        let mut wire = door.wire().await;
        let head = headers(1, false, &with(&POST, &[("content-length", length)]));
        wire.send(&[head, frame(DATA, end, 1, body)].concat()).await;
        assert_eq!(resets(&wire.until_answered().await), [(1, 1)], "{length}");
    }
    AccessLogLine::parse(&door.details.stdout.nth_line_with("POST /hold HTTP/2", 2).await).assert(&[
        ("response_code", "0"),
        ("response_flags", "DPE"),
        ("response_code_details", "http2.remote_reset"),
    ]);
    door.closes(&headers(1, true, &with(&POST, &[("content-length", "10")]))).await;
    door.details.stdout.line_with("http2.violation.of.messaging.rule").await;
    assert!(door.app.requests().is_empty());

    let mut wire = door.wire().await;
    wire.send(&headers(1, true, &with(&GET, &[("host", "other")]))).await;
    while wire.next().await.expect("an answer").kind != HEADERS {}
    assert_eq!(door.app.last_request().header("host"), Some("details"));
}

#[tokio::test]
async fn case_38_a_head_beyond_the_limits_is_reset_and_the_connection_lives() {
    let door = Door::open().await;
    let names: Vec<String> = (0..97).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let mut wire = door.wire().await;
    wire.send(&headers(1, true, &with(&GET, &many))).await;
    assert_eq!(resets(&wire.until_answered().await), [(1, 2)]);
    let line = AccessLogLine::parse(&door.details.stdout.line_with("http2.too_many_headers").await);
    line.assert(&[("request", "- - HTTP/2"), ("response_flags", "DR")]);
    wire.send(&headers(3, true, &GET)).await;
    while wire.next().await.expect("an answer").kind != HEADERS {}
}
