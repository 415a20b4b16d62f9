//! AuthorizationPolicy against requests that are written in other ways than the policy: what is denied stays denied, and what
//! reaches the application is what was decided on.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::door::Door;
use skiff_tests::http::{self, Connection};
use skiff_tests::mesh::{DETAILS, DETAILS_V1};
use skiff_tests::tls::{self, Validity};

fn policy(action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: bookinfo}}\n\
         spec:\n  action: {action}\n  rules:\n{rules}\n"
    )
}

/// A mesh whose paths are normalised in this way.
fn mesh(normalization: &str) -> String {
    format!("trustDomain: cluster.local\naccessLogFile: /dev/stdout\npathNormalization: {{normalization: {normalization}}}\n")
}

const NO_ADMIN: &str = "  - to: [{operation: {paths: [/admin, /admin/*]}}]";

/// Ways to write `/admin`, and what each mesh setting (NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES) makes of them:
/// denied, or the path that the application gets.
const WRITTEN: [(&str, [Option<&str>; 4]); 15] = [
    ("/admin", [None, None, None, None]),
    ("/admin/", [None, None, None, None]),
    ("/admin#x", [None, None, None, None]),
    ("/ADMIN", [Some("/ADMIN"), Some("/ADMIN"), Some("/ADMIN"), Some("/ADMIN")]),
    ("/admin;x=1", [Some("/admin;x=1"), Some("/admin;x=1"), Some("/admin;x=1"), Some("/admin;x=1")]),
    ("/./admin", [Some("/./admin"), None, None, None]),
    ("/x/../admin", [Some("/x/../admin"), None, None, None]),
    ("/%61dmin", [Some("/%61dmin"), None, None, None]),
    ("/x/%2e%2e/admin", [Some("/x/%2e%2e/admin"), None, None, None]),
    ("//admin", [Some("//admin"), Some("//admin"), None, None]),
    ("/x/..//admin", [Some("/x/..//admin"), Some("//admin"), None, None]),
    ("/%5cadmin", [Some("/%5cadmin"), Some("/%5cadmin"), Some("/%5cadmin"), None]),
    ("/%2fadmin", [Some("/%2fadmin"), Some("/%2fadmin"), Some("/%2fadmin"), None]),
    ("/admin%2f", [Some("/admin%2f"), Some("/admin%2f"), Some("/admin%2f"), None]),
    ("/%2561dmin", [Some("/%2561dmin"), Some("/%2561dmin"), Some("/%2561dmin"), Some("/%2561dmin")]),
];

#[tokio::test]
async fn each_mesh_setting_denies_the_ways_to_write_a_path_that_it_names() {
    let mut faults = Vec::new();
    for (column, setting) in ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"].into_iter().enumerate() {
        let door = Door::open(&[("authorization.yaml", &policy("DENY", NO_ADMIN)), ("mesh.yaml", &mesh(setting))]).await;
        for (number, (path, outcomes)) in WRITTEN.iter().enumerate() {
            let id = format!("id-{setting}-{number}.");
            let status = door.get(path, &format!("x-request-id: {id}\r\n")).await.status;
            let reached = door.app.requests().into_iter().find(|request| request.header("x-request-id") == Some(&id));
            let reached = reached.map(|request| request.second_word().to_owned());
            let expected = if outcomes[column].is_some() { 200 } else { 403 };
            if (status, reached.as_deref()) != (expected, outcomes[column]) {
                faults.push(format!("{setting}: {path}: {status}, the application got {reached:?}"));
            }
            let line = AccessLogLine::parse(&door.details.stdout.line_with(&id).await);
            line.assert(&[("response_code", &expected.to_string())]);
        }
        // Not a path at all in any setting.
        if door.status(b"GET \\admin HTTP/1.1\r\nhost: details\r\n\r\n").await != 400 {
            faults.push(format!("{setting}: a path that begins with a backslash is not refused"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test]
async fn a_repeated_header_hides_nothing() {
    let rules = "  - when: [{key: 'request.headers[x-role]', values: [admin]}]";
    let door = Door::open(&[("authorization.yaml", &policy("DENY", rules))]).await;
    for (headers, expected) in [
        ("x-role: user\r\n", 200),
        ("x-role: admin\r\n", 403),
        ("X-Role: admin\r\n", 403),
        ("x-role:   admin  \r\n", 403),
        ("x-role: user\r\nx-role: admin\r\n", 403),
        ("x-role: admin\r\nx-other: a\r\nx-role: user\r\n", 403),
        // One line with a comma is one value, and an exact condition is about the whole of it.
        ("x-role: user,admin\r\n", 200),
    ] {
        assert_eq!(door.get("/", headers).await.status, expected, "{headers:?}");
    }
    let denied = [("response_code", "403"), ("reporter", "destination")];
    assert_eq!(door.details.metrics().await.sum("istio_requests_total", &denied), 5.0);
}

#[tokio::test]
async fn an_allowed_header_value_is_allowed_as_it_is_written() {
    let rules = "  - when: [{key: 'request.headers[x-role]', values: [admin]}]";
    let door = Door::open(&[("authorization.yaml", &policy("ALLOW", rules))]).await;
    for (headers, expected) in [
        ("x-role: admin\r\n", 200),
        ("x-role: Admin\r\n", 403),
        ("x-role: user,admin\r\n", 403),
        ("x_role: admin\r\n", 403),
        ("x-role: admin\u{80}\r\n", 403),
        ("", 403),
    ] {
        assert_eq!(door.get("/", headers).await.status, expected, "{headers:?}");
    }
}

#[tokio::test]
async fn a_denied_host_is_denied_in_every_spelling() {
    let rules = "  - to: [{operation: {hosts: [secret.example]}}]";
    let door = Door::open(&[("authorization.yaml", &policy("DENY", rules))]).await;
    let mut faults = Vec::new();
    for host in
        ["secret.example", "SECRET.Example", "secret.example:80", "secret.example:9080", "secret.example.", "secret.example.:80"]
    {
        let plain = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        // The target wins over Host for the policy as well.
        let absolute = format!("GET http://{host}/ HTTP/1.1\r\nhost: details\r\n\r\n");
        for request in [plain, absolute] {
            let status = door.status(request.as_bytes()).await;
            if status != 403 {
                faults.push(format!("{request:?}: {status}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(door.app.requests().is_empty());
    let beside = "GET http://other.example/ HTTP/1.1\r\nhost: secret.example\r\n\r\n";
    assert_eq!(door.status(beside.as_bytes()).await, 200);
    assert_eq!(door.app.last_request().header("host"), Some("other.example"));
}

#[tokio::test]
async fn a_dot_in_a_service_account_is_a_dot() {
    for rules in [
        "  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/a.b]}}]",
        "  - from: [{source: {serviceAccounts: [bookinfo/a.b]}}]",
    ] {
        let door = Door::open(&[("authorization.yaml", &policy("ALLOW", rules))]).await;
        for (account, expected) in [("a.b", 200), ("axb", 403), ("a.bc", 403), ("xa.b", 403)] {
            let identity =
                door.mesh.authority().issue(&format!("spiffe://cluster.local/ns/bookinfo/sa/{account}"), Validity::Always);
            let stream = tls::connect(door.mesh.ingress(DETAILS_V1, 9080), Some(&identity), &["istio"]).await.unwrap();
            let answer = Connection::over(stream).ask(&http::get_request(DETAILS, "/", "")).await.unwrap();
            assert_eq!(answer.status, expected, "{account} under {rules}");
        }
        assert_eq!(door.get("/", "").await.status, 403, "without a certificate");
    }
}

#[tokio::test]
async fn forwarded_claims_of_a_caller_are_passed_on_and_change_no_decision() {
    let rules = "  - from: [{source: {ipBlocks: [192.0.2.0/24]}}]";
    let door = Door::open(&[("authorization.yaml", &policy("ALLOW", rules))]).await;
    // `ipBlocks` is about the connection, whatever the caller claims.
    let claims = "x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: https\r\nx-forwarded-host: a.example\r\n";
    assert_eq!(door.get("/", claims).await.status, 403);
    assert!(door.app.requests().is_empty());

    let door = Door::open(&[]).await;
    assert_eq!(door.get("/", &format!("x-request-id: id-claims\r\n{claims}")).await.status, 200);
    let request = door.app.last_request();
    for (name, value) in [("x-forwarded-for", "192.0.2.7"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "a.example")] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    let line = AccessLogLine::parse(&door.details.stdout.line_with("id-claims").await);
    line.assert(&[("x_forwarded_for", "192.0.2.7"), ("downstream_remote_address", "192.0.2.7:0")]);
}
