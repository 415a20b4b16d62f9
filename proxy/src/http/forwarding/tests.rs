//! What Envoy 1.40 made of heads: the recorded scenarios named in each test.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::config::{RetryPolicy, RouteConfiguration, RouteSource, TrafficDirection};
use crate::http::head::{Headers, ResponseHead};
use crate::http::retry::Policy;
use crate::tls::PeerCertificate;

const ELEMENT: &str = "By=spiffe://c/ns/b/sa/details;Hash=ca;Subject=\"\";URI=spiffe://c/ns/b/sa/productpage";

fn hcm(change: impl FnOnce(&mut HttpConnectionManager)) -> Forwarding {
    let routes = RouteSource::Inline(Arc::new(RouteConfiguration::default()));
    let mut hcm = HttpConnectionManager::new("test", TrafficDirection::Inbound, routes);
    hcm.server_name = "istio-envoy".into();
    hcm.forward_client_cert = ForwardClientCert::AppendForward;
    change(&mut hcm);
    Forwarding::from(&hcm)
}

/// The mesh's sidecar listeners.
fn mesh() -> Forwarding {
    hcm(|_| {})
}

fn edge() -> Forwarding {
    hcm(|hcm| {
        hcm.use_remote_address = true;
        hcm.append_x_forwarded_port = true;
    })
}

fn internal() -> Forwarding {
    hcm(|hcm| {
        hcm.use_remote_address = true;
        hcm.internal_ranges = vec!["127.0.0.0/8".parse().unwrap()];
    })
}

fn connection(mtls: bool) -> ConnectionInfo {
    let peer = PeerCertificate {
        uri_sans: vec!["spiffe://c/ns/b/sa/productpage".into()],
        dns_sans: Vec::new(),
        subject: String::new(),
        sha256: "ca".into(),
        serial: "1".into(),
        ..PeerCertificate::default()
    };
    ConnectionInfo {
        tls_version: mtls.then_some("TLSv1.3"),
        peer: mtls.then(|| Arc::new(peer)),
        ..ConnectionInfo::new(1, "127.0.0.1:28092".parse().unwrap(), "127.0.0.1:40000".parse().unwrap())
    }
}

fn head(lines: &[&str]) -> RequestHead {
    let mut head = RequestHead::new();
    head.set_authority(b"details.bookinfo:9080");
    head.set_path(b"/");
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        head.headers.push(name.as_bytes(), value.trim().as_bytes());
    }
    head
}

fn lines(headers: &Headers) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = |(name, value): (&[u8], &[u8])| match name {
        b"x-request-id" if value.len() == 36 && value != &b"11111111-2222-4333-8444-555555555555"[..] => {
            "x-request-id: <UUID>".into()
        }
        b"date" => "date: <DATE>".into(),
        _ => format!("{}: {}", text(name), text(value)),
    };
    headers.iter().map(line).collect()
}

fn forwarded_over(forwarding: &Forwarding, mtls: bool, request: &[&str]) -> (Vec<String>, Prepared) {
    let mut head = head(request);
    let prepared = prepare_request(&mut head, &connection(mtls), ELEMENT.as_bytes(), forwarding).unwrap();
    (lines(&head.headers), prepared)
}

fn forwarded(forwarding: &Forwarding, request: &[&str]) -> Vec<String> {
    forwarded_over(forwarding, false, request).0
}

fn refusal(request: &[&str]) -> Refusal {
    prepare_request(&mut head(request), &connection(false), b"", &mesh()).unwrap_err()
}

#[test]
fn sidecars_believe_the_mesh_and_add_what_is_missing() {
    let m = mesh();
    // forwarding.none_in
    assert_eq!(forwarded(&m, &[]), ["x-forwarded-proto: http", "x-request-id: <UUID>"]);
    // forwarding.xff_two_headers_in: joined, and its last address is the client
    let (lines, prepared) = forwarded_over(&m, false, &["X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 5.6.7.8"]);
    assert_eq!(lines, ["x-forwarded-for: 1.2.3.4,5.6.7.8", "x-forwarded-proto: http", "x-request-id: <UUID>"]);
    assert_eq!(prepared.remote.to_string(), "5.6.7.8:0");
    assert!(!prepared.internal);
    // forwarding.xfh_xfport, xfp_https_in, xfp_list: kept as they are
    assert_eq!(
        forwarded(&m, &["X-Forwarded-Host: a.test", "X-Forwarded-Port: 99"]),
        ["x-forwarded-host: a.test", "x-forwarded-port: 99", "x-forwarded-proto: http", "x-request-id: <UUID>"]
    );
    assert_eq!(forwarded(&m, &["x-forwarded-proto: https,http"]), ["x-forwarded-proto: https,http", "x-request-id: <UUID>"]);
    // An address that is none names nobody.
    assert_eq!(forwarded_over(&m, false, &["x-forwarded-for: unknown"]).1.remote.to_string(), "127.0.0.1:40000");
}

#[test]
fn request_ids_are_kept_joined_or_made() {
    let m = mesh();
    // forwarding.request_id_{opaque_in,two,empty}
    assert_eq!(forwarded(&m, &["X-Request-Id: not-a-uuid"]), ["x-request-id: not-a-uuid", "x-forwarded-proto: http"]);
    assert_eq!(forwarded(&m, &["X-Request-Id: a", "X-Request-Id: b"]), ["x-request-id: a,b", "x-forwarded-proto: http"]);
    assert_eq!(forwarded(&m, &["X-Request-Id:"]), ["x-request-id: <UUID>", "x-forwarded-proto: http"]);
    // forwarding.request_id_uuid_edge: an edge replaces it, unless told otherwise
    let own = "x-request-id: 11111111-2222-4333-8444-555555555555";
    assert_eq!(forwarded(&edge(), &[own])[0], "x-request-id: <UUID>");
    let keeping = hcm(|hcm| (hcm.use_remote_address, hcm.preserve_external_request_id) = (true, true));
    assert_eq!(forwarded(&keeping, &[own])[0], own);
    // basic.quiet_listener
    assert_eq!(forwarded(&hcm(|hcm| hcm.generate_request_id = false), &[]), ["x-forwarded-proto: http"]);
}

#[test]
fn an_edge_believes_nobody() {
    let e = edge();
    // forwarding.xff_one_edge, xfp_https_edge
    assert_eq!(
        forwarded(&e, &["X-Forwarded-For: 10.1.2.3"]),
        [
            "x-forwarded-for: 10.1.2.3,127.0.0.1",
            "x-forwarded-proto: http",
            "x-forwarded-port: 28092",
            "x-envoy-external-address: 127.0.0.1",
            "x-request-id: <UUID>",
        ]
    );
    assert_eq!(forwarded(&e, &["X-Forwarded-Proto: https"])[0], "x-forwarded-proto: http");
    // forwarding.envoy_internal_edge
    assert_eq!(
        forwarded(&e, ENVOY_HEADERS),
        [
            "x-envoy-external-address: 127.0.0.1",
            "x-client-trace-id: c1",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http",
            "x-forwarded-port: 28092",
            "x-request-id: <UUID>",
        ]
    );
    let skipping = hcm(|hcm| (hcm.use_remote_address, hcm.skip_xff_append) = (true, true));
    assert!(!forwarded(&skipping, &[]).iter().any(|line| line.starts_with("x-forwarded-for")));
}

const ENVOY_HEADERS: &[&str] = &[
    "x-envoy-internal: true",
    "x-envoy-external-address: 9.9.9.9",
    "x-envoy-original-path: /orig",
    "x-envoy-decorator-operation: op",
    "x-envoy-force-trace: 1",
    "x-client-trace-id: c1",
    "x-envoy-downstream-service-cluster: dsc",
];

#[test]
fn control_headers_of_external_callers_are_removed() {
    // forwarding.envoy_internal_in; unlike Envoy, original-path and decorator-operation go as well (security case 27).
    assert_eq!(
        forwarded(&mesh(), ENVOY_HEADERS),
        [
            "x-envoy-external-address: 9.9.9.9",
            "x-client-trace-id: c1",
            "x-envoy-downstream-service-cluster: dsc",
            "x-forwarded-proto: http",
            "x-request-id: <UUID>",
        ]
    );
    // forwarding.envoy_timeouts_out
    let (lines, prepared) = forwarded_over(
        &mesh(),
        false,
        &[
            "x-envoy-upstream-rq-timeout-ms: 5000",
            "x-envoy-max-retries: 1",
            "x-envoy-retry-on: 5xx",
            "x-envoy-expected-rq-timeout-ms: 77",
            "x-envoy-attempt-count: 9",
            "x-envoy-original-dst-host: 127.0.0.1:1",
            "x-envoy-peer-metadata: abc",
        ],
    );
    assert_eq!(
        lines,
        [
            "x-envoy-attempt-count: 9",
            "x-envoy-original-dst-host: 127.0.0.1:1",
            "x-envoy-peer-metadata: abc",
            "x-forwarded-proto: http",
            "x-request-id: <UUID>",
        ]
    );
    assert!(prepared.overrides.is_none());
}

#[test]
fn trusted_hops_name_the_client() {
    let f = hcm(|hcm| {
        (hcm.use_remote_address, hcm.append_x_forwarded_port, hcm.xff_num_trusted_hops) = (true, true, 1);
    });
    // forwarding.xfh_port_trusted_hop
    let (lines, prepared) = forwarded_over(&f, false, &["X-Forwarded-For: 1.1.1.1, 2.2.2.2"]);
    assert_eq!(lines[0], "x-forwarded-for: 1.1.1.1, 2.2.2.2,127.0.0.1");
    assert_eq!(lines[3], "x-envoy-external-address: 2.2.2.2");
    assert_eq!(prepared.remote.to_string(), "2.2.2.2:0");
    assert!(forwarded(&f, &["x-forwarded-proto: https"]).contains(&"x-forwarded-proto: https".to_owned()));
    // Without edge mode the hops are skipped from the end.
    let sidecar = hcm(|hcm| hcm.xff_num_trusted_hops = 1);
    assert_eq!(forwarded_over(&sidecar, false, &["x-forwarded-for: 1.1.1.1, 2.2.2.2"]).1.remote.to_string(), "1.1.1.1:0");
    assert_eq!(forwarded_over(&sidecar, false, &["x-forwarded-for: 2.2.2.2"]).1.remote.to_string(), "127.0.0.1:40000");
}

#[test]
fn internal_callers_are_marked_and_may_override() {
    let i = internal();
    // forwarding.request_id_opaque_outint, timeout.header_override_timeout_internal
    let (lines, prepared) = forwarded_over(&i, false, &["X-Request-Id: mine", "x-envoy-upstream-rq-timeout-ms: 200"]);
    assert_eq!(lines, ["x-request-id: mine", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-envoy-internal: true"]);
    assert!(prepared.internal);
    assert_eq!(prepared.overrides.unwrap().timeout, Some(Duration::from_millis(200)));
    // forwarding.xff_one_outint: somebody else spoke for the caller
    let (lines, prepared) = forwarded_over(&i, false, &["X-Forwarded-For: 10.1.2.3", "x-envoy-max-retries: 3"]);
    assert!(!prepared.internal && prepared.overrides.is_none());
    assert_eq!(lines[2], "x-envoy-external-address: 127.0.0.1");
    // One address alone in x-forwarded-for is believed by a sidecar with internal ranges.
    let sidecar = hcm(|hcm| hcm.internal_ranges = vec!["10.0.0.0/8".parse().unwrap()]);
    assert!(forwarded_over(&sidecar, false, &["x-forwarded-for: 10.1.2.3"]).1.internal);
    assert!(!forwarded_over(&sidecar, false, &["x-forwarded-for: 10.9.9.9,10.1.2.3"]).1.internal);
    assert!(!forwarded_over(&sidecar, false, &[]).1.internal);
}

#[test]
fn overrides_unite_with_the_route() {
    let overrides = |request: &[&str]| forwarded_over(&internal(), false, request).1.overrides;
    // retry.header_retry_on_internal, retry.header_max_retries_internal, retry.header_codes_internal
    let wish = overrides(&["x-envoy-retry-on: 5xx, bogus", "x-envoy-max-retries: 1"]).unwrap();
    let policy = wish.retry_policy(None).unwrap();
    assert!(policy.config().retry_on.server_error && policy.config().num_retries == 1);
    let wish = overrides(&["x-envoy-max-retries: 3"]).unwrap();
    assert!(wish.retry_policy(None).is_none());
    let mut route = RetryPolicy { num_retries: 2, ..RetryPolicy::default() };
    route.retry_on.server_error = true;
    let route = Policy::compile(&route);
    assert_eq!(*wish.retry_policy(Some(&route)).unwrap().config(), RetryPolicy { num_retries: 3, ..route.config().clone() });
    let wish = overrides(&["x-envoy-retry-on: retriable-status-codes", "x-envoy-retriable-status-codes: 418,409,x"]).unwrap();
    let on = wish.retry_policy(Some(&route)).unwrap().config().retry_on.clone();
    assert_eq!((on.retriable_status_codes, on.status_codes), (true, vec![418, 409]));
    let wish = overrides(&["x-envoy-retriable-status-codes: 418", "x-envoy-retry-grpc-on: unavailable"]).unwrap();
    let on = wish.retry_policy(None).unwrap().config().retry_on.clone();
    assert_eq!((on.retriable_status_codes, on.grpc_statuses), (false, vec![14]));
    // timeout.alt_response_internal
    assert!(overrides(&["x-envoy-upstream-rq-timeout-alt-response: 1"]).unwrap().timeout_alt_response);
    assert!(overrides(&["x-envoy-peer-metadata: a", "x-other: b"]).is_none());
    // An outer proxy's word on the time that is left passes on.
    assert!(overrides(&["x-envoy-expected-rq-timeout-ms: 9"]).is_none());
}

#[test]
fn strict_checking_names_the_bad_header_with_all_its_lines() {
    let overrides = forwarded_over(
        &internal(),
        false,
        &[
            "x-envoy-max-retries: 1",
            "x-envoy-max-retries: 2",
            "x-envoy-retry-on: 5xx, reset",
            "x-envoy-upstream-rq-timeout-ms: -1",
        ],
    );
    let overrides = overrides.1.overrides.unwrap();
    assert_eq!(overrides.invalid_value("x-envoy-max-retries"), Some(("x-envoy-max-retries", &b"1,2"[..])));
    assert!(overrides.invalid_value("x-envoy-upstream-rq-timeout-ms").is_some());
    for fine in ["x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-other"] {
        assert_eq!(overrides.invalid_value(fine), None, "{fine}");
    }
}

#[test]
fn hop_by_hop_headers_stay_on_their_hop() {
    let rest = |request: &[&str]| {
        let mut lines = forwarded(&mesh(), request);
        lines.truncate(lines.len() - 2);
        lines
    };
    let none: [&str; 0] = [];
    // hopbyhop.connection_{close_token,keepalive,multi,token}, proxy_connection, upgrade_without_connection
    assert_eq!(rest(&["Connection: close, x-a", "X-A: 1"]), none);
    assert_eq!(rest(&["Connection: keep-alive", "Keep-Alive: timeout=5"]), none);
    assert_eq!(rest(&["Connection: a", "Connection: b", "a: 1", "b: 2", "c: 3"]), ["c: 3"]);
    assert_eq!(rest(&["Connection: X-Foo, Authorization", "x-foo: 1", "authorization: Bearer x"]), none);
    assert_eq!(rest(&["Proxy-Connection: keep-alive"]), none);
    assert_eq!(rest(&["Upgrade: websocket"]), none);
    // hopbyhop.te_*, proxy_authorization, via, expect_unknown
    assert_eq!(rest(&["TE: gzip"]), none);
    assert_eq!(rest(&["TE: gzip, trailers"]), ["te: trailers"]);
    assert_eq!(rest(&["TE: trailers;q=0.5"]), [""; 0]);
    assert_eq!(rest(&["Connection: TE", "TE: trailers"]), ["te: trailers"]);
    let kept = ["proxy-authorization: Basic Zm9v", "authorization: Bearer x", "via: 1.0 fred", "expect: something"];
    assert_eq!(rest(&kept), kept);
    // Framing is the codec's; nominating it changes nothing.
    assert_eq!(rest(&["Connection: content-length", "content-length: 3"]), ["content-length: 3"]);
}

#[test]
fn connection_cannot_hide_where_a_request_came_from() {
    // hopbyhop.connection_xff, hopbyhop.connection_host
    for name in ["x-forwarded-for", "X-Forwarded-Host", "x-forwarded-proto", ":path"] {
        assert_eq!(refusal(&[&format!("Connection: close, {name}"), "x-forwarded-for: 1.1.1.1"]), Refusal::CONNECTION_HEADER);
    }
    assert_eq!(refusal(&["Connection: upgrade, x-forwarded-for", "Upgrade: websocket"]), Refusal::CONNECTION_HEADER);
    assert_eq!(refusal(&["Connection: a,b,c,d,e,f,g,h,i,j"]), Refusal::CONNECTION_HEADER);
    assert_eq!(refusal(&["Connection: host"]), Refusal::MISSING_HOST);
    let mut hostless = RequestHead::new();
    assert_eq!(prepare_request(&mut hostless, &connection(false), b"", &mesh()).unwrap_err(), Refusal::MISSING_HOST);
}

#[test]
fn upgrades_keep_their_headers_but_h2c_does_not() {
    // upgrade.ws_case: forwarded as it was written
    let (lines, prepared) = forwarded_over(&mesh(), false, &["connection: keep-alive, UPGRADE", "upgrade: WebSocket"]);
    assert!(prepared.upgrade);
    assert_eq!(lines[..2], ["connection: keep-alive, UPGRADE", "upgrade: WebSocket"]);
    // malformed.h2c_upgrade
    let (lines, prepared) = forwarded_over(
        &mesh(),
        false,
        &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
    );
    assert!(!prepared.upgrade);
    assert_eq!(lines, ["x-forwarded-proto: http", "x-request-id: <UUID>"]);
}

#[test]
fn client_certificates_are_forwarded_by_rule() {
    use ForwardClientCert as Rule;
    let spoof = "x-forwarded-client-cert: By=spiffe://a;URI=spiffe://b";
    let own = format!("x-forwarded-client-cert: {ELEMENT}");
    let appended = format!("{spoof},{ELEMENT}");
    let with = |rule, mtls, request: &[&str]| {
        let lines = forwarded_over(&hcm(|hcm| hcm.forward_client_cert = rule), mtls, request).0;
        lines.into_iter().filter(|line| line.starts_with("x-forwarded-client-cert")).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    // mtls.ok, xfcc_spoof_appended, xfcc_two_spoof, xfcc_sanitize_set, xfcc_sanitize, xfcc_forward_only, xfcc_always_forward
    assert_eq!(with(Rule::AppendForward, true, &[]), [own.as_str()]);
    assert_eq!(with(Rule::AppendForward, true, &[spoof]), [appended.as_str()]);
    let two = ["x-forwarded-client-cert: By=a", "X-Forwarded-Client-Cert: By=b"];
    assert_eq!(with(Rule::AppendForward, true, &two), [format!("x-forwarded-client-cert: By=a,By=b,{ELEMENT}")]);
    assert_eq!(with(Rule::SanitizeSet, true, &[spoof]), [own.as_str()]);
    assert_eq!(with(Rule::Sanitize, true, &[spoof]), none);
    assert_eq!(with(Rule::ForwardOnly, true, &[spoof]), [spoof]);
    assert_eq!(with(Rule::AlwaysForwardOnly, true, &[spoof]), [spoof]);
    // forwarding.xfcc_plain_spoof, mtls.permissive_plain: an unproved claim
    for rule in [Rule::AppendForward, Rule::SanitizeSet, Rule::Sanitize, Rule::ForwardOnly] {
        assert_eq!(with(rule, false, &[spoof]), none);
    }
    assert_eq!(with(Rule::AlwaysForwardOnly, false, &[spoof]), [spoof]);
    // The element comes after x-request-id.
    let lines = forwarded_over(&mesh(), true, &[]).0;
    assert_eq!(lines, ["x-forwarded-proto: https", "x-request-id: <UUID>", own.as_str()]);
}

#[test]
fn the_scheme_of_http1_is_what_the_mesh_says() {
    let scheme = |mtls, request: &[&str]| {
        let mut head = head(request);
        prepare_request(&mut head, &connection(mtls), b"", &mesh()).unwrap();
        head.scheme
    };
    assert_eq!(scheme(false, &[]), Scheme::Http);
    assert_eq!(scheme(true, &[]), Scheme::Https);
    assert_eq!(scheme(false, &["x-forwarded-proto: https"]), Scheme::Https);
    assert_eq!(scheme(false, &["x-forwarded-proto: https,http"]), Scheme::Http);
}

fn answered(forwarding: &Forwarding, upgrade: bool, response: &[&str]) -> Vec<String> {
    let mut response_head = ResponseHead::new(StatusCode::OK);
    response_head.headers = head(response).headers;
    let asked = Asked { upgrade, request_id: false };
    prepare_response(&mut response_head, Some(&head(&["x-request-id: rid"])), asked, forwarding);
    lines(&response_head.headers)
}

#[test]
fn responses_get_server_and_date() {
    let m = mesh();
    // basic.method_get: server in its place; mirror of out: after date
    assert_eq!(
        answered(&m, false, &["server: app", "content-length: 3"]),
        ["server: istio-envoy", "content-length: 3", "date: <DATE>"]
    );
    assert_eq!(answered(&m, false, &[]), ["date: <DATE>", "server: istio-envoy"]);
    assert_eq!(answered(&m, false, &["date: now"]), ["date: <DATE>", "server: istio-envoy"]);
    let passing = hcm(|hcm| hcm.server_header = ServerHeaderTransformation::PassThrough);
    assert_eq!(answered(&passing, false, &[]), ["date: <DATE>"]);
    assert_eq!(answered(&passing, false, &["server: app"]), ["server: app", "date: <DATE>"]);
    let absent = hcm(|hcm| hcm.server_header = ServerHeaderTransformation::AppendIfAbsent);
    assert_eq!(answered(&absent, false, &["server: app"]), ["server: app", "date: <DATE>"]);
    assert_eq!(answered(&absent, false, &[]), ["date: <DATE>", "server: istio-envoy"]);
    let with_id = hcm(|hcm| hcm.always_set_request_id_in_response = true);
    assert_eq!(answered(&with_id, false, &[])[2], "x-request-id: rid");
}

#[test]
fn response_hop_by_hop_headers_go_but_nominated_ones_stay() {
    // body.upstream_hop_by_hop
    let response = [
        "connection: x-private",
        "x-private: 1",
        "keep-alive: 5",
        "te: trailers",
        "proxy-authenticate: Basic",
        "transfer-encoding: chunked",
        "upgrade: h2c",
    ];
    assert_eq!(answered(&mesh(), false, &response)[..3], ["x-private: 1", "te: trailers", "proxy-authenticate: Basic"]);
    // upgrade.ws_echo_in
    let switched = ["upgrade: websocket", "connection: Upgrade"];
    assert_eq!(answered(&mesh(), true, &switched)[..2], switched);
    assert_eq!(answered(&mesh(), false, &switched), ["date: <DATE>", "server: istio-envoy"]);
}

#[test]
fn the_service_time_replaces_the_upstreams() {
    let mut response = ResponseHead::new(StatusCode::OK);
    response.headers.push(b"x-envoy-upstream-service-time", b"777");
    set_upstream_service_time(&mut response, Duration::from_micros(12_900));
    assert_eq!(lines(&response.headers), ["x-envoy-upstream-service-time: 12"]);
}

#[test]
fn mirrored_requests_say_so() {
    // mirror.get
    let mut head = head(&["x-envoy-attempt-count: 1"]);
    head.set_authority(b"mirrored:9080");
    mirror_request(&mut head, false);
    assert_eq!(head.authority(), b"mirrored-shadow:9080");
    let lines = lines(&head.headers);
    assert_eq!(lines[..2], ["x-envoy-attempt-count: 1", "x-envoy-internal: true"]);
    assert!(lines[2].starts_with("x-forwarded-for: ") && lines.len() == 3, "{lines:?}");
    mirror_request(&mut head, true);
    assert_eq!(head.authority(), b"mirrored-shadow:9080");
}
