//! The HTTP/1 rows of the security cases (S1 to S40, S55), each by its number, with the real binary: what the caller gets, what
//! reaches the application, what the access log says. `security.rs` has the rows about paths and identity.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{Answer, Connection};
use skiff_tests::mesh::{DETAILS_V1, Mesh};
use skiff_tests::raw::{Raw, Script};
use skiff_tests::skiff::Skiff;

/// The sidecar of details in front of an application, called in plaintext.
struct Door<A> {
    mesh: Mesh,
    skiff: Skiff,
    app: A,
}

impl<A> Door<A> {
    async fn open(start: impl FnOnce(&Mesh) -> A) -> Self {
        let mesh = Mesh::prepare().await;
        mesh.edit("security.yaml", "STRICT", "PERMISSIVE");
        let app = start(&mesh);
        let skiff = mesh.spawn(DETAILS_V1, &[]);
        skiff.ready().await;
        Self { mesh, skiff, app }
    }

    async fn connect(&self) -> Connection {
        Connection::open(self.mesh.ingress(DETAILS_V1, 9080)).await.unwrap()
    }

    async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut connection = self.connect().await;
        connection.send(request).await.unwrap();
        connection.answer().await.unwrap()
    }

    /// The line of the request with this id.
    async fn line(&self, id: &str) -> AccessLogLine {
        AccessLogLine::parse(&self.skiff.stdout.line_with(id).await)
    }

    async fn requests(&self, labels: &[(&str, &str)]) -> f64 {
        self.skiff.metrics().await.sum("istio_requests_total", labels)
    }
}

async fn echoing() -> Door<App> {
    Door::open(|mesh| App::start(mesh.app(DETAILS_V1), Speaks::Http)).await
}

async fn scripted(scripts: Vec<Script>) -> Door<Raw> {
    Door::open(|mesh| Raw::start(mesh.app(DETAILS_V1), scripts)).await
}

/// `{H}` stands for a good Host line.
fn bytes(text: &str) -> Vec<u8> {
    text.replace("{H}", "Host: details\r\n").chars().map(|c| c as u8).collect()
}

/// Row, request, status, response code details.
type Refused<'a> = (u8, &'a str, u16, &'a str);

const CODEC: &str = "http1.codec_error";
const BOTH: &str = "http1.content_length_and_chunked_not_allowed";
const CODING: &str = "http1.invalid_transfer_encoding";
const CHARACTERS: &str = "http1.invalid_characters";
const AUTHORITY: &str = "http.invalid_authority";

/// S1 to S4, S10, S12 to S14, S16, S17: heads that are refused before anything reaches the application.
const REFUSED: &[Refused<'_>] = &[
    (1, "POST / HTTP/1.1\r\n{H}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, BOTH),
    (1, "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, BOTH),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: 3, 3\r\n\r\nabc", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: +3\r\n\r\nabc", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: -1\r\n\r\n", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: 0x3\r\n\r\nabc", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length: 18446744073709551616\r\n\r\n", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length:\r\n\r\n", 400, CODEC),
    (2, "POST / HTTP/1.1\r\n{H}Content-Length : 3\r\n\r\nabc", 400, CODEC),
    (3, "POST / HTTP/1.1\r\n{H}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, CODING),
    (3, "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 501, CODING),
    (3, "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501, CODING),
    (3, "POST / HTTP/1.1\r\n{H}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, CODING),
    (3, "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501, CODING),
    (4, "POST / HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 426, "low_version"),
    (4, "GET / HTTP/1.0\r\n{H}\r\n", 426, "low_version"),
    (4, "GET / HTTP/0.9\r\n{H}\r\n", 426, "low_version"),
    (4, "GET / HTTP/1.2\r\n{H}\r\n", 426, "low_version"),
    (4, "GET / HTTP/2.0\r\n{H}\r\n", 426, "low_version"),
    (4, "GET /\r\n", 426, "low_version"),
    (10, "GET / HTTP/1.1\r\n{H}X-A: a\rX-B: c\r\n\r\n", 400, CODEC),
    (12, "GET / HTTP/1.1\r\n{H}X-A: a\0b\r\n\r\n", 400, CHARACTERS),
    (12, "GET / HTTP/1.1\r\n{H}X-A: a\x01b\r\n\r\n", 400, CHARACTERS),
    (12, "GET / HTTP/1.1\r\n{H}X A: b\r\n\r\n", 400, CODEC),
    (12, "GET / HTTP/1.1\r\n{H}: b\r\n\r\n", 400, CODEC),
    (12, "GET / HTTP/1.1\r\n{H}X-A\r\n\r\n", 400, CODEC),
    (12, "GET / HTTP/1.1\r\n X-A: b\r\n{H}\r\n", 400, CODEC),
    (13, "GET / HTTP/1.1\r\n{H}{H}\r\n", 400, CODEC),
    (13, "GET / HTTP/1.1\r\n{H}Host: other\r\n\r\n", 400, CODEC),
    (14, "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, AUTHORITY),
    (14, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, AUTHORITY),
    (14, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, AUTHORITY),
    (14, "GET / HTTP/1.1\r\n\r\n", 400, "missing_host_header"),
    (16, "GET https://details/ HTTP/1.1\r\n{H}\r\n", 400, CODEC),
    (16, "GET ftp://details/ HTTP/1.1\r\n{H}\r\n", 400, "http1.invalid_scheme"),
    (17, "GET /a%00b HTTP/1.1\r\n{H}\r\n", 400, "path_normalization_failed"),
    (17, "GET /a\0b HTTP/1.1\r\n{H}\r\n", 400, CHARACTERS),
    (17, "GET /caf\u{e9} HTTP/1.1\r\n{H}\r\n", 400, CODEC),
];

#[tokio::test]
async fn s01_to_s17_heads_that_could_be_read_in_two_ways_reach_nobody() {
    let door = echoing().await;
    let mut faults = Vec::new();
    for (number, (row, request, status, details)) in REFUSED.iter().enumerate() {
        let mut connection = door.connect().await;
        connection.send(bytes(request)).await.unwrap();
        let answer = connection.answer().await.unwrap();
        let closes = answer.header("connection") == Some("close");
        let rest = connection.rest().await.unwrap();
        if answer.status != *status || !closes || !rest.is_empty() {
            faults.push(format!("S{row} {request:?}: {} {:?}", answer.status, answer.headers));
        }
        // One line each, in order: the connections follow one another.
        let lines = skiff_tests::wait::eventually("the line", async || {
            let lines = door.skiff.stdout.all();
            (lines.len() > number).then_some(lines)
        });
        let line = AccessLogLine::parse(&lines.await[number]);
        let logged = [line.get("response_code"), line.get("response_code_details"), line.get("upstream_host")];
        if logged != [status.to_string().as_str(), *details, "-"] {
            faults.push(format!("S{row} {request:?}: logged {logged:?}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(door.app.requests().is_empty());
    for status in [400, 426, 501] {
        let refused = u32::try_from(REFUSED.iter().filter(|refused| refused.2 == status).count()).unwrap();
        let counted = door.requests(&[("response_code", &status.to_string()), ("reporter", "destination")]).await;
        assert_eq!(counted, f64::from(refused), "{status}");
    }
}

#[tokio::test]
async fn s05_s06_malformed_chunks_end_the_request_here_and_upstream() {
    let door = echoing().await;
    let chunked = "POST /chunks HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n";
    let sizes =
        ["3;a\nb\r\nabc\r\n", "3\nabc\r\n", "0x3\r\nabc\r\n", "-1\r\nabc\r\n", "ffffffffffffffff1\r\nabc\r\n", "3\r\nabcde\r\n"];
    for (number, size) in sizes.into_iter().enumerate() {
        let answer = door.ask(bytes(&format!("{chunked}{size}0\r\n\r\n"))).await;
        assert_eq!((answer.status, answer.text().as_str()), (400, "Bad Request"), "{size:?}");
        let line = AccessLogLine::parse(&door.skiff.stdout.nth_line_with("/chunks", number + 1).await);
        line.assert(&[("response_flags", "DPE"), ("response_code_details", CODEC), ("bytes_received", "0")]);
    }
    assert!(door.app.requests().is_empty(), "none was completed");
    assert_eq!(door.requests(&[("response_code", "400"), ("response_flags", "DPE")]).await, 6.0);
}

#[tokio::test]
async fn s07_s08_what_goes_up_is_chunked_anew_and_without_trailers() {
    let door = scripted(vec![Script::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]).await;
    let body = "3\r\nabc\n2;ext=1\r\nde\r\n0\r\nContent-Length: 9\r\nHost: evil\r\nX-T: 1\r\n\r\n";
    let request = format!("POST /again HTTP/1.1\r\n{{H}}Transfer-Encoding: chunked\r\n\r\n{body}");
    assert_eq!(door.ask(bytes(&request)).await.status, 200);
    door.app.arrived("\r\n\r\n5\r\nabcde\r\n0\r\n\r\n").await;
    assert!(!door.app.text().contains("evil") && !door.app.text().contains("x-t"), "{}", door.app.text());
    door.line("/again").await.assert(&[("response_code", "200"), ("bytes_received", "5")]);
}

#[tokio::test]
async fn s09_s11_line_ends_and_folded_lines_are_written_anew() {
    let door = scripted(vec![Script::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]).await;
    assert_eq!(door.ask("GET /lf HTTP/1.1\nHost: details\nX-A: 1\n\n").await.status, 200);
    assert_eq!(door.ask("GET /fold HTTP/1.1\r\nHost: details\r\nX-B: a\r\n b\r\n\r\n").await.status, 200);
    let text = door.app.text();
    assert!(text.contains("GET /lf HTTP/1.1\r\nhost: details\r\nx-a: 1\r\n"), "{text:?}");
    assert!(text.contains("\r\nx-b: a b\r\n"), "{text:?}");
    assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{text:?}");
}

#[tokio::test]
async fn s15_the_host_of_an_absolute_target_wins() {
    let door = echoing().await;
    let answer = door.ask("GET http://details:9080/absolute?q HTTP/1.1\r\nHost: ignored\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    let request = door.app.last_request();
    assert_eq!((request.start.as_str(), request.header("host")), ("GET /absolute?q HTTP/1.1", Some("details:9080")));
    assert_ne!(request.header("x-forwarded-proto"), Some("https"));
    door.line("/absolute").await.assert(&[("authority", "details:9080"), ("response_code", "200")]);
}

#[tokio::test]
async fn s25_s28_hop_by_hop_headers_stay_and_forwarding_headers_go_on() {
    let door = echoing().await;
    let headers = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Host: h\r\nConnection: X-Foo, Authorization\r\nX-Foo: 1\r\n\
                   Authorization: secret\r\nTE: trailers, gzip\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\n";
    assert_eq!(door.ask(format!("GET /hops HTTP/1.1\r\nHost: details\r\n{headers}\r\n")).await.status, 200);
    let request = door.app.last_request();
    for gone in ["connection", "x-foo", "authorization", "keep-alive", "proxy-connection"] {
        assert_eq!(request.header(gone), None, "{gone}");
    }
    for (name, value) in [("te", "trailers"), ("x-forwarded-for", "192.0.2.7"), ("x-forwarded-host", "h")] {
        assert_eq!(request.header(name), Some(value));
    }
    door.line("/hops").await.assert(&[("x_forwarded_for", "192.0.2.7")]);
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn s29_only_a_websocket_becomes_a_tunnel() {
    let door = scripted(vec![Script::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]).await;
    for upgrade in ["Upgrade: foo\r\n", "Upgrade: websocket\r\nUpgrade: foo\r\n", "Upgrade: h2c, websocket\r\n"] {
        let answer = door.ask(format!("GET /foo HTTP/1.1\r\nHost: details\r\nConnection: Upgrade\r\n{upgrade}\r\n")).await;
        assert_eq!(answer.status, 403, "{upgrade}");
    }
    door.line("/foo").await.assert(&[("response_code_details", "upgrade_failed"), ("upstream_host", "-")]);
    assert_eq!(door.app.text(), "");

    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let hidden = "GET /hidden HTTP/1.1\r\nHost: details\r\n\r\n";
    let mut connection = door.connect().await;
    connection.send(format!("GET /h2c HTTP/1.1\r\nHost: details\r\n{h2c}{hidden}")).await.unwrap();
    for path in ["/h2c", "/hidden"] {
        assert_eq!(connection.answer().await.unwrap().text(), "ok");
        door.line(path).await.assert(&[("response_code", "200")]);
    }
    let text = door.app.text().to_lowercase();
    assert!(!text.contains("upgrade") && !text.contains("http2-settings"), "{text}");
}

#[tokio::test]
async fn s30_s31_a_tunnel_needs_both_sides_to_agree() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: details\r\n\r\n";
    let door = scripted(vec![Script::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]).await;
    let mut connection = door.connect().await;
    connection.send(format!("GET /refused HTTP/1.1\r\nHost: details\r\n{HANDSHAKE}{smuggled}")).await.unwrap();
    let answer = connection.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str(), answer.header("connection")), (200, "", Some("close")));
    assert!(connection.rest().await.unwrap().is_empty());
    door.line("/refused").await.assert(&[("response_code_details", "websocket_handshake_unsuccessful"), ("bytes_sent", "0")]);
    assert!(!door.app.text().contains("smuggled"), "{}", door.app.text());

    let door =
        scripted(vec![Script::Say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n")]).await;
    assert_eq!(door.ask("GET /unasked HTTP/1.1\r\nHost: details\r\n\r\n").await.status, 502);
    door.line("/unasked").await.assert(&[("response_flags", "UPE"), ("response_code", "502")]);
    assert_eq!(door.requests(&[("response_code", "502"), ("response_flags", "UPE")]).await, 1.0);
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_tells_who_hung_up() {
    let switching: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
    let door = scripted(vec![Script::Say(switching), Script::SayAndClose(switching)]).await;
    let mut caller = door.connect().await;
    caller.send(format!("GET /caller HTTP/1.1\r\nHost: details\r\n{HANDSHAKE}early")).await.unwrap();
    assert_eq!(caller.answer().await.unwrap().status, 101);
    door.app.arrived("early").await;
    drop(caller);
    let line = door.line("/caller").await;
    line.assert(&[("response_code", "101"), ("response_flags", "DC"), ("response_code_details", "downstream_remote_disconnect")]);
    line.assert(&[("bytes_received", "5"), ("bytes_sent", "5"), ("upstream_service_time", "-")]);

    let mut upstream = door.connect().await;
    upstream.send(format!("GET /upstream HTTP/1.1\r\nHost: details\r\n{HANDSHAKE}")).await.unwrap();
    assert_eq!(upstream.answer().await.unwrap().status, 101);
    assert_eq!(upstream.rest().await.unwrap(), b"hello");
    drop(upstream);
    let details = "upstream_reset_after_response_started{connection_termination}";
    door.line("/upstream").await.assert(&[("response_flags", "UC"), ("response_code_details", details)]);
}

#[tokio::test]
async fn s32_connect_without_a_route_opens_nothing() {
    let door = echoing().await;
    let early = "GET /early HTTP/1.1\r\nHost: details\r\n\r\n";
    let mut connection = door.connect().await;
    connection.send(format!("CONNECT details:9080 HTTP/1.1\r\nHost: details:9080\r\n\r\n{early}")).await.unwrap();
    let answer = connection.answer().await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (404, Some("close")));
    assert!(connection.rest().await.unwrap().is_empty());
    assert!(door.app.requests().is_empty());
    door.line("CONNECT").await.assert(&[("response_code", "404"), ("upstream_host", "-")]);
}

#[tokio::test]
async fn s33_s34_interim_answers_are_relayed_and_none_is_made_up() {
    let interim: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                           HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let door = scripted(vec![Script::Say(interim)]).await;
    let mut connection = door.connect().await;
    connection.send("POST /expect HTTP/1.1\r\nHost: details\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await.unwrap();
    assert_eq!(connection.answer().await.unwrap().status, 100);
    door.app.arrived("expect: 100-continue").await;
    connection.send("abc").await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(connection.answer().await.unwrap());
    }
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [102, 103, 200]);
    assert_eq!((answers[1].header("link"), answers[2].text().as_str()), (Some("</a>"), "ok"));
    door.line("/expect").await.assert(&[("response_code", "200")]);
}

#[tokio::test]
async fn s35_s39_malformed_responses_are_502() {
    let many: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-a: b\r\n".repeat(150)).into_boxed_str());
    let responses: [&'static [u8]; 8] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 2\r\n\r\nok",
        b"this is not http\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        many.as_bytes(),
    ];
    let door = scripted(responses.into_iter().map(Script::Say).collect()).await;
    for (number, response) in responses.iter().enumerate() {
        let answer = door.ask("GET /bad HTTP/1.1\r\nHost: details\r\n\r\n").await;
        assert_eq!(answer.status, 502, "{}", response.escape_ascii());
        let line = AccessLogLine::parse(&door.skiff.stdout.nth_line_with("/bad", number + 1).await);
        line.assert(&[("response_flags", "UPE")]);
    }
    assert_eq!(door.requests(&[("response_code", "502"), ("response_flags", "UPE")]).await, 8.0);
}

#[tokio::test]
async fn s36_bytes_after_a_response_are_nobodys_answer() {
    let extra = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let door = scripted(vec![Script::Say(extra), Script::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")]).await;
    let mut connection = door.connect().await;
    assert_eq!(connection.ask("GET /1 HTTP/1.1\r\nHost: details\r\n\r\n").await.unwrap().text(), "ok");
    assert_eq!(connection.ask("GET /2 HTTP/1.1\r\nHost: details\r\n\r\n").await.unwrap().text(), "next");
    door.line("GET /2 ").await.assert(&[("response_code", "200"), ("bytes_sent", "4")]);
    assert_eq!(door.requests(&[("response_code", "200")]).await, 2.0);
}

#[tokio::test]
async fn s37_a_truncated_response_has_no_end() {
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf!";
    let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let door = scripted(vec![Script::SayAndClose(short), Script::SayAndClose(chunks)]).await;
    for path in ["/short", "/chunks"] {
        let mut connection = door.connect().await;
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: details\r\n\r\n")).await.unwrap();
        assert!(connection.answer().await.is_err(), "{path}: the answer must not look complete");
        door.line(path).await.assert(&[("response_code", "200"), ("response_flags", "UPE"), ("bytes_sent", "5")]);
    }
}

#[tokio::test]
async fn s38_heads_have_limits() {
    let door = echoing().await;
    let long = "a".repeat(61_000);
    for request in [
        format!("GET / HTTP/1.1\r\nHost: details\r\nX-A: {long}{long}\r\n\r\n"),
        format!("GET /{long}{long} HTTP/1.1\r\nHost: details\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: details\r\n{}\r\n", "x-a: b\r\n".repeat(100)),
        format!("GET /{long}{long}"),
    ] {
        let answer = door.ask(request).await;
        assert_eq!((answer.status, answer.text().as_str()), (431, "Request Header Fields Too Large"));
    }
    let good = format!("GET / HTTP/1.1\r\nHost: details\r\n{}\r\n", "x-a: b\r\n".repeat(99));
    assert_eq!(door.ask(good).await.status, 200);
    let counted = door.requests(&[("response_code", "431"), ("response_flags", "DPE")]).await;
    assert_eq!((counted, door.app.requests().len()), (4.0, 1));
}

#[tokio::test]
async fn s40_a_head_that_is_never_finished_is_logged_when_its_caller_goes() {
    let door = echoing().await;
    for start in ["G", "GET / HTTP/1.1\r\nHost: det", "\r\n"] {
        let mut connection = door.connect().await;
        connection.send(start).await.unwrap();
        drop(connection);
    }
    let line = door.skiff.stdout.nth_line_with("\"- - HTTP/1.1\" 0 DC downstream_remote_disconnect", 3).await;
    AccessLogLine::parse(&line).assert(&[("upstream_host", "-"), ("authority", "-")]);
    assert_eq!(door.ask("GET /after HTTP/1.1\r\nHost: details\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn s55_a_half_closed_caller_gets_its_answer() {
    use tokio::io::AsyncWriteExt;
    let door = echoing().await;
    let mut connection = door.connect().await;
    connection.send("POST /hold HTTP/1.1\r\nHost: details\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
    connection.0.shutdown().await.unwrap();
    door.app.arrived("/hold").await;
    // A caller that has waited a while is asked whether it is still there, with what is true.
    let interim = connection.answer().await.unwrap();
    assert_eq!((interim.status, interim.headers.len()), (100, 0));
    door.app.release();
    let answer = connection.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "abc"));
    assert!(connection.rest().await.unwrap().is_empty());
    door.line("/hold").await.assert(&[("response_code", "200"), ("response_flags", "-"), ("bytes_sent", "3")]);
    assert_eq!(door.requests(&[("response_code", "200")]).await, 1.0);
}

#[tokio::test]
async fn s55_a_caller_that_has_closed_is_found_out_and_the_upstream_freed() {
    let door = scripted(vec![Script::Wait]).await;
    let mut connection = door.connect().await;
    connection.send("GET /gone HTTP/1.1\r\nHost: details\r\n\r\n").await.unwrap();
    door.app.arrived("/gone").await;
    drop(connection);
    door.app.closed().await;
    let details = "downstream_remote_disconnect";
    door.line("/gone").await.assert(&[("response_code", "0"), ("response_flags", "DC"), ("response_code_details", details)]);
    assert_eq!(door.requests(&[("response_code", "0"), ("response_flags", "DC")]).await, 1.0);
}
