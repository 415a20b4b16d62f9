//! Requests that mean one thing to one server and another to the next: none of them reaches the application as it came.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::door::Door;
use skiff_tests::http::{self, Connection};
use skiff_tests::mesh::{DETAILS, DETAILS_V1};
use skiff_tests::tls;

/// A POST with these header lines and this body.
fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: details\r\n{headers}\r\n\r\n{body}")
}

fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: details\r\n{headers}\r\n\r\n")
}

#[tokio::test]
async fn ambiguous_requests_are_refused_before_the_application() {
    let door = Door::open(&[]).await;
    let chunked = "transfer-encoding: chunked";
    let cases: Vec<(&str, String, u16)> = vec![
        ("length and chunks", post(&format!("content-length: 4\r\n{chunked}"), "0\r\n\r\n"), 400),
        ("chunks and length", post(&format!("{chunked}\r\ncontent-length: 4"), "0\r\n\r\n"), 400),
        ("two lengths that differ", post("content-length: 3\r\ncontent-length: 4", "abcd"), 400),
        ("two lengths that agree", post("content-length: 3\r\ncontent-length: 3", "abc"), 400),
        ("a list of lengths", post("content-length: 3, 3", "abc"), 400),
        ("a length with a sign", post("content-length: +3", "abc"), 400),
        ("a negative length", post("content-length: -1", ""), 400),
        ("a length in hex", post("content-length: 0x3", "abc"), 400),
        ("a length that overflows", post("content-length: 18446744073709551616", ""), 400),
        ("an empty length", post("content-length:", ""), 400),
        ("a blank before the colon", post("content-length : 3", "abc"), 400),
        ("gzip, chunked", post("transfer-encoding: gzip, chunked", "0\r\n\r\n"), 501),
        ("chunked, gzip", post("transfer-encoding: chunked, gzip", "0\r\n\r\n"), 501),
        ("chunked twice", post("transfer-encoding: chunked, chunked", "0\r\n\r\n"), 501),
        ("xchunked", post("transfer-encoding: xchunked", "0\r\n\r\n"), 501),
        ("two codings", post(&format!("{chunked}\r\ntransfer-encoding: identity"), "0\r\n\r\n"), 501),
        ("a bare CR in a value", get("x-a: a\rx-b: b"), 400),
        ("a NUL in a value", get("x-a: a\0b"), 400),
        ("a NUL in a name", get("x\0a: b"), 400),
        ("a blank in a name", get("x a: b"), 400),
        ("no colon", get("x-a"), 400),
        ("an empty name", get(": a"), 400),
        ("a continued first line", "GET / HTTP/1.1\r\n x: y\r\nhost: details\r\n\r\n".to_owned(), 400),
        ("two hosts", get("host: other"), 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("a host with a user", "GET / HTTP/1.1\r\nhost: a@details\r\n\r\n".to_owned(), 400),
        ("a host with a path", "GET / HTTP/1.1\r\nhost: details/x\r\n\r\n".to_owned(), 400),
        ("an escaped NUL in the path", "GET /a%00b HTTP/1.1\r\nhost: details\r\n\r\n".to_owned(), 400),
        ("a raw NUL in the path", "GET /a\0b HTTP/1.1\r\nhost: details\r\n\r\n".to_owned(), 400),
        ("HTTP/1.0", "GET / HTTP/1.0\r\nhost: details\r\n\r\n".to_owned(), 426),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nhost: details\r\n\r\n".to_owned(), 426),
        ("a large header", get(&format!("x-a: {}", "a".repeat(64 * 1024))), 431),
        ("a long path", format!("GET /{} HTTP/1.1\r\nhost: details\r\n\r\n", "a".repeat(64 * 1024)), 431),
        ("many headers", get(&"x-a: a\r\n".repeat(150)), 431),
        ("CONNECT", "CONNECT details:9080 HTTP/1.1\r\nhost: details:9080\r\n\r\n".to_owned(), 404),
    ];
    let mut faults = Vec::new();
    for (name, request, expected) in &cases {
        let status = door.status(request.as_bytes()).await;
        if status != *expected {
            faults.push(format!("{name}: {status}, expected {expected}"));
        }
        if !door.app.requests().is_empty() {
            faults.push(format!("{name}: reached the application"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(door.get("/", "x-request-id: id-after\r\n").await.status, 200);
    door.details.stdout.line_with("id-after").await;
    // Every refusal has a line, and says that the caller is to blame.
    let lines = door.details.stdout.all();
    assert_eq!(lines.len(), cases.len() + 1, "{lines:#?}");
    for line in &lines[..cases.len()] {
        AccessLogLine::parse(line).assert(&[("upstream_host", "-")]);
    }
}

#[tokio::test]
async fn malformed_chunks_never_complete_a_request() {
    let door = Door::open(&[]).await;
    let mut faults = Vec::new();
    for (name, body) in [
        ("a size in hex notation", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("a negative size", "-1\r\nabc\r\n0\r\n\r\n"),
        ("a size that overflows", "ffffffffffffffff1\r\nabc\r\n0\r\n\r\n"),
        ("a bare LF after the size", "3\nabc\r\n0\r\n\r\n"),
        ("a bare LF in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("no end of the chunk", "3\r\nabcde\r\n0\r\n\r\n"),
        ("an empty size", "\r\nabc\r\n0\r\n\r\n"),
    ] {
        let status = door.status(post("transfer-encoding: chunked", body).as_bytes()).await;
        if status != 400 {
            faults.push(format!("{name}: {status}, expected 400"));
        }
        if !door.app.requests().is_empty() {
            faults.push(format!("{name}: reached the application"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test]
async fn bytes_after_a_refused_request_are_no_request() {
    let door = Door::open(&[]).await;
    let hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: details\r\n\r\n";
    let mut connection = Connection::open(door.mesh.ingress(DETAILS_V1, 9080)).await.unwrap();
    connection.send(post("content-length: 5\r\ntransfer-encoding: chunked", hidden)).await.unwrap();
    assert_eq!(connection.answer().await.unwrap().status, 400);
    assert!(connection.rest().await.unwrap().is_empty());
    assert!(door.app.requests().is_empty());
}

const DENY_ADMIN: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: bookinfo}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin, /admin/*]}}]
";

#[tokio::test]
async fn a_denied_path_is_denied_however_it_is_written() {
    let door = Door::open(&[("authorization.yaml", DENY_ADMIN)]).await;
    let denied = [
        "/admin",
        "/admin?a=b",
        "/admin/x",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x/%2e%2e/admin",
        "/x/../../admin",
        "//../admin",
        "/admin#x",
    ];
    for (number, path) in denied.into_iter().enumerate() {
        let answer = door.get(path, &format!("x-request-id: id-denied-{number}.\r\n")).await;
        assert_eq!((answer.status, answer.text().as_str()), (403, "RBAC: access denied"), "{path}");
        let line = AccessLogLine::parse(&door.details.stdout.line_with(&format!("id-denied-{number}.")).await);
        line.assert(&[("response_code_details", "rbac_access_denied_matched_policy[ns[bookinfo]-policy[no-admin]-rule[0]]")]);
    }
    let absolute = "GET http://other.example/admin HTTP/1.1\r\nhost: details\r\n\r\n";
    assert_eq!(door.status(absolute.as_bytes()).await, 403);
    assert!(door.app.requests().is_empty());
    assert_eq!(door.get("/administrator", "").await.status, 200);
    let refused = [("response_code", "403"), ("reporter", "destination")];
    assert_eq!(door.details.metrics().await.sum("istio_requests_total", &refused), 11.0);
}

#[tokio::test]
async fn a_client_certificate_header_is_believed_from_nobody() {
    let door = Door::open(&[]).await;
    let spoofed = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/a/sa/b;URI=spiffe://cluster.local/ns/a/sa/admin\r\n";
    assert_eq!(door.get("/", spoofed).await.status, 200);
    assert_eq!(door.app.last_request().header("x-forwarded-client-cert"), None);

    let stream = tls::connect(door.mesh.ingress(DETAILS_V1, 9080), Some(&door.mesh.identity()), &["istio"]).await.unwrap();
    let answer = Connection::over(stream).ask(&http::get_request(DETAILS, "/", spoofed)).await.unwrap();
    assert_eq!(answer.status, 200);
    let request = door.app.last_request();
    let certificates: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| name == "x-forwarded-client-cert")
        .flat_map(|(_, value)| value.split(','))
        .collect();
    assert!(
        certificates.last().unwrap().ends_with("URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"),
        "{certificates:?}"
    );
}

#[tokio::test]
async fn hop_by_hop_names_cannot_remove_what_the_sidecar_vouches_for() {
    let door = Door::open(&[]).await;
    let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-client-cert"];
    for (number, name) in names.into_iter().enumerate() {
        let nominated = format!("connection: {name}\r\nx-forwarded-for: 192.0.2.7\r\n");
        assert_eq!(door.get("/", &nominated).await.status, 400, "{name}");
        // As from Envoy, the line tells nothing of a head that broke the protocol.
        let line =
            door.details.stdout.nth_line_with("\"- - HTTP/1.1\" 400 DPE http1.connection_header_rejected", number + 1).await;
        assert!(!line.contains("192.0.2.7"), "{line}");
    }
    assert!(door.app.requests().is_empty());
    assert_eq!(door.get("/", "connection: x-own, keep-alive\r\nx-own: a\r\nx-other: b\r\n").await.status, 200);
    let request = door.app.last_request();
    let [own, connection, other] = ["x-own", "connection", "x-other"].map(|name| request.header(name));
    assert_eq!((own, connection, other), (None, None, Some("b")));
}

#[tokio::test]
async fn envoys_own_headers_from_outside_steer_nothing() {
    let door = Door::open(&[]).await;
    let steering = [
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-max-retries", "5"),
        ("x-envoy-internal", "true"),
        // Envoy lets these two through.
        ("x-envoy-original-path", "/forged"),
        ("x-envoy-decorator-operation", "forged"),
    ];
    let lines: String = steering.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    assert_eq!(door.get("/asked", &lines).await.status, 200);
    let request = door.app.last_request();
    for (name, _) in steering {
        assert_eq!(request.header(name), None, "{name}");
    }
    AccessLogLine::parse(&door.details.stdout.line_with("/asked").await).assert(&[("request", "GET /asked HTTP/1.1")]);
}

#[tokio::test]
async fn whatever_is_asked_stays_in_its_log_line() {
    let door = Door::open(&[]).await;
    let agent = "x-request-id: id-forged\r\nuser-agent: a\" 200 - via_upstream \"\r\n";
    assert_eq!(door.get("/a%0ab", agent).await.status, 200);
    let line = door.details.stdout.line_with("id-forged").await;
    assert!(line.contains("/a%0ab"), "{line}");
    assert_eq!(door.details.stdout.all().len(), 1);
}
