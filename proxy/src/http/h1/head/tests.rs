//! Heads as a real Envoy was seen to take or refuse them, and the cases in which this codec is stricter.

use super::*;
use crate::http::head::Headers;

/// `H` stands for a good Host line.
fn request(text: &str) -> Result<Option<(RequestHead, ParsedRequest)>, HeadError> {
    parse(text, &HeadLimits::default())
}

fn parse(text: &str, limits: &HeadLimits) -> Result<Option<(RequestHead, ParsedRequest)>, HeadError> {
    let bytes: Vec<u8> = text.replace("{H}", "Host: details.bookinfo:9080\r\n").chars().map(|c| c as u8).collect();
    let mut head = RequestHead::new();
    Ok(parse_request(&bytes, limits, &mut head)?.map(|parsed| (head, parsed)))
}

fn list(headers: &Headers) -> Vec<String> {
    headers.iter().map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v))).collect()
}

#[test]
fn refused_requests_earn_envoys_answer() {
    let codec = (400, "http1.codec_error");
    let characters = (400, "http1.invalid_characters");
    let low = (426, "low_version");
    let coding = (501, "http1.invalid_transfer_encoding");
    let both = (400, "http1.content_length_and_chunked_not_allowed");
    let authority = (400, "http.invalid_authority");
    let table: &[(&str, (u16, &str))] = &[
        ("POST / HTTP/1.1\r\n{H}Content-Length: abc\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: \r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 0x3\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 99999999999999999999999\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: -1\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: +3\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 3 3\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 3, 3\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length : 3\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", codec),
        ("POST / HTTP/1.1\r\n{H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1", both),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", both),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", both),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", coding),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", coding),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", coding),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", coding),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", coding),
        ("POST / HTTP/1.1\r\n{H}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", codec),
        ("GET / HTTP/1.0\r\n{H}\r\n", low),
        ("GET / HTTP/1.2\r\n{H}\r\n", low),
        ("GET / HTTP/2.0\r\n{H}\r\n", low),
        ("GET /\r\n\r\n", low),
        ("GET / HTTP/1.11\r\n{H}\r\n", codec),
        ("GET / http/1.1\r\n{H}\r\n", codec),
        ("\x16\x03\x01\x00\x05hello\r\n\r\n", codec),
        ("\x16\x03\x01\x02\x00\x01\x00\x01", codec),
        ("BAD\r\n\r\n", codec),
        ("get / HTTP/1.1\r\n{H}\r\n", codec),
        ("FOOBAR / HTTP/1.1\r\n{H}\r\n", codec),
        ("M-SEARCH / HTTP/1.1\r\n{H}\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}X-Ctl: a\x01b\r\n\r\n", characters),
        ("GET / HTTP/1.1\r\n{H}X-Del: a\x7fb\r\n\r\n", characters),
        ("GET / HTTP/1.1\r\n{H}X-Nul: a\0b\r\n\r\n", characters),
        ("GET /a\x01b HTTP/1.1\r\n{H}\r\n", characters),
        ("GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", characters),
        ("GET /caf\u{e9} HTTP/1.1\r\n{H}\r\n", codec),
        ("GET foo HTTP/1.1\r\n{H}\r\n", codec),
        ("GET ftp://other.test/ HTTP/1.1\r\n{H}\r\n", (400, "http1.invalid_scheme")),
        ("GET http:///path HTTP/1.1\r\n{H}\r\n", (400, "http1.invalid_url")),
        ("GET / HTTP/1.1\r\n{H}a\"b: 1\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}X(y): a\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}X Sp: a\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}X-Sp : a\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}: a\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\nHost: a\r\nNoColon\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\n Host: x\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\nHost: host.test/path\r\n\r\n", authority),
        ("GET / HTTP/1.1\r\nHost: host test\r\n\r\n", authority),
        (
            "GET / HTTP/1.1\r\n{H}Connection: x-forwarded-for\r\nX-Forwarded-For: 1\r\n\r\n",
            (400, "http1.connection_header_rejected"),
        ),
        ("CONNECT other.test:443 HTTP/1.1\r\n{H}Content-Length: 3\r\n\r\nabc", (400, "http1.body_disallowed")),
        // Safer than Envoy: security cases 4, 10, 13, 14 and 16, and headers that only a proxy may take away.
        ("GET / HTTP/1.1\r\n{H}X-Cr: a\rX-B: c\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}{H}\r\n", codec),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", codec),
        ("GET / HTTP/1.1\r\nHost: user@host.test\r\n\r\n", authority),
        ("GET https://other.test/ HTTP/1.1\r\n{H}\r\n", codec),
        ("GET / HTTP/1.1\r\n{H}Connection: X-Forwarded-Client-Cert\r\n\r\n", (400, "http1.connection_header_rejected")),
    ];
    for (text, (status, details)) in table {
        let reply = request(text).expect_err(text).reply();
        assert_eq!((reply.status, &*reply.details), (*status, *details), "{text:?}");
        assert_eq!(reply.flag, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
    }
    let http10 = HeadLimits { accept_http_10: true, ..HeadLimits::default() };
    let error = parse("POST / HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &http10).expect_err("HTTP/1.0");
    assert_eq!(error, HeadError::InvalidTransferEncoding);
}

#[test]
fn accepted_requests_are_read_as_envoy_reads_them() {
    let table: &[(&str, &str, &str, &[&str])] = &[
        ("GET / HTTP/1.1\r\n{H}\r\n", "details.bookinfo:9080", "/", &[]),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/", &[]),
        ("GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", "a", "/", &[]),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/", &[]),
        ("GET / HTTP/1.1\nHost: a\nX: 1\n\n", "a", "/", &["x: 1"]),
        ("GET / HTTP/1.1\r\n{H}X-Fold: a\r\n\tb\r\n\r\n", "details.bookinfo:9080", "/", &["x-fold: a\tb"]),
        ("GET / HTTP/1.1\r\n{H}X-Fold: a  \r\n b\r\nY: 1\r\n\r\n", "details.bookinfo:9080", "/", &["x-fold: a   b", "y: 1"]),
        ("GET / HTTP/1.1\r\nHost: a_b.test\r\n\r\n", "a_b.test", "/", &[]),
        ("GET / HTTP/1.1\r\nHost: a.test:abc\r\n\r\n", "a.test:abc", "/", &[]),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "[::1]:80", "/", &[]),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "", "/", &[]),
        ("GET http://other.test:8080/abs?x=1 HTTP/1.1\r\nHost: ignored.test\r\n\r\n", "other.test:8080", "/abs?x=1", &[]),
        ("GET http://other.test/abs HTTP/1.1\r\n\r\n", "other.test", "/abs", &[]),
        ("GET HTTP://other.test HTTP/1.1\r\n{H}\r\n", "other.test", "/", &[]),
        ("GET http://other.test?q HTTP/1.1\r\n{H}\r\n", "other.test", "?q", &[]),
        ("GET http://user:pw@other.test/abs HTTP/1.1\r\n{H}\r\n", "other.test", "/abs", &[]),
        ("OPTIONS * HTTP/1.1\r\n{H}\r\n", "details.bookinfo:9080", "*", &[]),
        ("CONNECT other.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "other.test:443", "", &[]),
        (
            "GET / HTTP/1.1\r\n{H}X-Empty: \r\nX-Tab: a\tb\r\nX-Sp:   lead trail  \r\n\r\n",
            "details.bookinfo:9080",
            "/",
            &["x-empty: ", "x-tab: a\tb", "x-sp: lead trail"],
        ),
        (
            "GET / HTTP/1.1\r\n{H}X-B: 2\r\nx-a: 1\r\nX-MiXeD: V\r\nX-B: 3\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
            "details.bookinfo:9080",
            "/",
            &["x-b: 2", "x-a: 1", "x-mixed: V", "x-b: 3", "cookie: a=1", "cookie: b=2"],
        ),
    ];
    for (text, authority, path, fields) in table {
        let (head, parsed) = request(text).expect(text).expect("whole");
        assert_eq!(String::from_utf8_lossy(head.authority()), *authority, "{text:?}");
        assert_eq!(String::from_utf8_lossy(head.path()), *path, "{text:?}");
        assert_eq!(list(&head.headers), *fields, "{text:?}");
        assert_eq!(parsed.consumed, text.replace("{H}", "Host: details.bookinfo:9080\r\n").len(), "{text:?}");
    }
    let (head, _) = request("GET / HTTP/1.1\r\n\r\n").unwrap().unwrap();
    assert!(!head.has_authority(), "a missing Host is answered by the connection manager");
    let https = HeadLimits { allow_https_target: true, ..HeadLimits::default() };
    let (head, parsed) = parse("GET https://other.test/abs HTTP/1.1\r\n{H}\r\n", &https).unwrap().unwrap();
    assert_eq!((parsed.target_scheme, head.scheme), (Some(Scheme::Https), Scheme::Http));
}

#[test]
fn framing_and_connection_follow_from_the_fields() {
    let of = |text: &str| request(text).expect(text).expect("whole");
    let (head, parsed) = of("POST / HTTP/1.1\r\n{H}Content-Length: 10\r\n\r\nabc");
    assert_eq!(parsed.framing, Framing::Length(10));
    assert_eq!(list(&head.headers), ["content-length: 10"]);
    let (head, parsed) = of("POST / HTTP/1.1\r\n{H}Transfer-Encoding: \tChunked\r\nTrailer: X-Sum\r\n\r\n");
    assert_eq!(parsed.framing, Framing::Chunked);
    assert_eq!(list(&head.headers), ["trailer: X-Sum"]);
    let (head, parsed) = of("GET / HTTP/1.1\r\n{H}Connection: close, x-a\r\nX-A: 1\r\nX-B: 2\r\n\r\n");
    assert!(!parsed.keep_alive && !parsed.upgrade);
    assert_eq!(list(&head.headers), ["x-b: 2"]);
    let (head, parsed) =
        of("GET / HTTP/1.1\r\n{H}Connection: keep-alive\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\n\r\n");
    assert!(parsed.keep_alive);
    assert_eq!(list(&head.headers), ["te: trailers"]);
    let (head, _) = of("GET / HTTP/1.1\r\n{H}Connection: host\r\n\r\n");
    assert!(!head.has_authority());
    let (head, parsed) = of("GET / HTTP/1.1\r\n{H}connection: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\n\r\n");
    assert!(parsed.upgrade);
    assert_eq!(list(&head.headers), ["connection: keep-alive, UPGRADE", "upgrade: WebSocket"]);
    let (head, parsed) =
        of("GET / HTTP/1.1\r\n{H}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n");
    assert!(!parsed.upgrade && head.headers.is_empty());
    let (head, parsed) = of("GET / HTTP/1.1\r\n{H}Connection: Upgrade, X-A\r\nUpgrade: h2c\r\nUpgrade: foo\r\nX-A: 1\r\n\r\n");
    assert!(parsed.upgrade);
    assert_eq!(list(&head.headers), ["connection: Upgrade, X-A", "upgrade: h2c,foo", "x-a: 1"]);
    assert!(!of("GET / HTTP/1.1\r\n{H}Proxy-Connection: close\r\n\r\n").1.keep_alive);
    let (head, parsed) = of("GET / HTTP/1.1\r\n{H}Upgrade: websocket\r\n\r\n");
    assert!(!parsed.upgrade && head.headers.is_empty());
    let (_, parsed) = of("POST / HTTP/1.1\r\n{H}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert!(parsed.expect_continue);
    let http10 = HeadLimits { accept_http_10: true, ..HeadLimits::default() };
    let keeps = |text| parse(text, &http10).unwrap().unwrap().1.keep_alive;
    assert!(!keeps("GET / HTTP/1.0\r\n{H}\r\n") && keeps("GET / HTTP/1.0\r\n{H}Connection: keep-alive\r\n\r\n"));
    let lenient = HeadLimits { allow_chunked_length: true, ..HeadLimits::default() };
    let (head, parsed) =
        parse("POST / HTTP/1.1\r\n{H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", &lenient).unwrap().unwrap();
    assert!(parsed.framing == Framing::Chunked && head.headers.is_empty());
}

#[test]
fn limits_are_exact() {
    let fields = |count: usize| (0..count).map(|i| format!("X-{i}: v\r\n")).collect::<String>();
    let with = |count: usize| format!("GET / HTTP/1.1\r\n{{H}}{}\r\n", fields(count));
    assert!(request(&with(99)).is_ok());
    assert_eq!(request(&with(100)).expect_err("101 with Host"), HeadError::TooManyHeaders);
    let wide = HeadLimits { max_headers: 500, ..HeadLimits::default() };
    assert!(parse(&with(499), &wide).unwrap().is_some());
    assert_eq!(parse(&with(500), &wide).expect_err("501"), HeadError::TooManyHeaders);
    let url = |bytes: usize| format!("GET /{} HTTP/1.1\r\n{{H}}\r\n", "u".repeat(bytes));
    assert!(request(&url(4096)).unwrap().is_some());
    let reply = request(&url(70_000)).expect_err("too large").reply();
    assert_eq!((reply.status, &*reply.details), (431, "http1.headers_too_large"));
    assert_eq!(reply.body, "Request Header Fields Too Large");
    let unfinished = format!("GET /{}", "u".repeat(70_000));
    assert_eq!(request(&unfinished).expect_err("too large"), HeadError::HeadersTooLarge);
}

#[test]
fn a_head_that_is_cut_anywhere_is_waited_for() {
    let text = "POST /a?b HTTP/1.1\r\nHost: h\r\nX-Fold: a\r\n b\r\nContent-Length: 3\r\n\r\n";
    for cut in 0..text.len() {
        assert!(request(&text[..cut]).expect("no verdict yet").is_none(), "{cut}");
    }
    assert!(request(text).unwrap().is_some());
    assert!(request("GET / HTTP/1.1\rHost: a\r\r").unwrap().is_none(), "no line has ended yet");
}

#[test]
fn stray_crs_before_a_head_are_judged_with_it_wherever_it_is_cut() {
    let text = "\r\n\n\r\rGET\t/ HTTP/1.1\r\nHost: h\r\n\r\n";
    let whole = request(text).is_ok();
    for cut in 0..text.len() {
        assert_eq!(request(&text[..cut]).is_ok_and(|head| head.is_none()), whole, "{cut}");
    }
}

#[test]
fn progress_asks_for_a_parse_only_when_a_head_may_be_whole() {
    let limits = HeadLimits { max_bytes: 40, ..HeadLimits::default() };
    let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut progress = Progress::default();
    let due: Vec<usize> = (1..=text.len())
        .filter(|end| {
            let due = progress.is_due(&text[..*end], &limits);
            progress.note(&text[..*end]);
            due
        })
        .collect();
    assert_eq!(due, [1, 16, text.len()], "the end of the first line may be enough for a refusal");
    assert!(progress.is_due(&[b'x'; 41], &limits));
}

fn response(text: &str, request: RequestKind) -> Result<Option<(ResponseHead, ParsedResponse)>, HeadError> {
    let mut head = ResponseHead::default();
    Ok(parse_response(text.as_bytes(), &HeadLimits::default(), request, &mut head)?.map(|parsed| (head, parsed)))
}

#[test]
fn responses_are_framed_by_status_request_and_fields() {
    let plain = RequestKind::default();
    let head = RequestKind { head: true, ..plain };
    let connect = RequestKind { connect: true, ..plain };
    let upgrade = RequestKind { upgrade: true, ..plain };
    let table: &[(&str, RequestKind, Framing, bool)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", plain, Framing::Length(3), true),
        ("HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n", plain, Framing::Length(3), true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", plain, Framing::Chunked, true),
        ("HTTP/1.1 200 OK\r\n\r\n", plain, Framing::UntilClose, false),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n", plain, Framing::Length(3), false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n", plain, Framing::Length(4), false),
        ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 4\r\n\r\n", plain, Framing::Length(4), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", head, Framing::None, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", head, Framing::None, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", plain, Framing::None, true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", plain, Framing::None, true),
        ("HTTP/1.1 100 Continue\r\n\r\n", plain, Framing::None, true),
        ("HTTP/1.1 200 OK\r\n\r\n", connect, Framing::None, true),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", upgrade, Framing::None, true),
    ];
    for (text, kind, framing, keep_alive) in table {
        let (_, parsed) = response(text, *kind).expect(text).expect("whole");
        assert_eq!((parsed.framing, parsed.keep_alive), (*framing, *keep_alive), "{text:?}");
        assert_eq!(parsed.consumed, text.len());
    }
    let hop = "HTTP/1.1 200 OK\r\nConnection: x-private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
               Upgrade: h2c\r\nTE: trailers\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nok";
    let (head, _) = response(hop, plain).unwrap().unwrap();
    assert_eq!(list(&head.headers), ["x-private: 1", "te: trailers", "proxy-authenticate: Basic", "content-length: 2"]);
}

#[test]
fn broken_responses_are_refused() {
    let plain = RequestKind::default();
    for text in [
        "HTTP/1.1 abc Bad\r\nContent-Length: 0\r\n\r\n",
        "garbage\r\n\r\n",
        "garbage",
        "HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-Sp : a\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
    ] {
        assert!(response(text, plain).is_err(), "{text:?}");
    }
    let upgrade = RequestKind { upgrade: true, ..plain };
    for text in [
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert!(response(text, upgrade).is_err(), "{text:?}");
    }
    let many: String = (0..150).map(|i| format!("X-{i}: v\r\n")).collect();
    let error = response(&format!("HTTP/1.1 200 OK\r\n{many}\r\n"), plain).expect_err("150 fields");
    assert_eq!(error, HeadError::TooManyHeaders);
    let folded = "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok";
    for cut in 0..folded.len() - 2 {
        assert!(response(&folded[..cut], plain).expect("no verdict yet").is_none(), "{cut}");
    }
    assert_eq!(list(&response(folded, plain).unwrap().unwrap().0.headers)[0], "x: a b");
}

#[test]
fn no_damage_to_a_head_makes_the_parser_panic_or_overrun() {
    let seeds: [&[u8]; 4] = [
        b"POST /a?b HTTP/1.1\r\nHost: h\r\nX-Fold: a\r\n b\r\nContent-Length: 3\r\n\r\nabc",
        b"GET\thttp://u@h:1/x HTTP/1.1\nHost: h\nConnection: te, x-a\nX-A: 1\nTransfer-Encoding: chunked\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 101 S\r\nUpgrade: x\r\nX: a\r\n\tb\r\n\r\n",
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let (mut request, mut response) = (RequestHead::new(), ResponseHead::default());
    for _ in 0..50_000 {
        let mut text = seeds[random.usize(..seeds.len())].to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..text.len());
            match random.u8(..4) {
                0 => text[at] = random.u8(..),
                1 => text.insert(at, b"\r\n\t :,\0"[random.usize(..7)]),
                2 => text.truncate(at + 1),
                _ => drop(text.remove(at)),
            }
            if text.is_empty() {
                break;
            }
        }
        let limits = HeadLimits { accept_http_10: random.bool(), preserve_case: random.bool(), ..HeadLimits::default() };
        if let Ok(Some(parsed)) = parse_request(&text, &limits, &mut request) {
            assert!(parsed.consumed <= text.len());
            let wire = list(&request.headers).join("\n");
            assert!(!wire.contains(['\r', '\0']) && !request.path().contains(&b' '), "{text:?}");
        }
        let kind = RequestKind { upgrade: random.bool(), connect: random.bool(), head: random.bool() };
        if let Ok(Some(parsed)) = parse_response(&text, &limits, kind, &mut response) {
            assert!(parsed.consumed <= text.len());
            assert!(!list(&response.headers).join("\n").contains(['\r', '\0']), "{text:?}");
        }
    }
}
