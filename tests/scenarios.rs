//! What istiod sent in the recorded scenarios does to traffic what Istio documents for their YAML.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, GREETING, Speaks};
use skiff_tests::http::{Answer, get_request};
use skiff_tests::istiod::Scenario;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const REVIEWS: &str = "reviews.bookinfo:9080";
const DETAILS: &str = "details.bookinfo:9080";
/// The egress listener of most scenarios.
const OUT: (u8, u16) = (2, 9080);

fn get(path: &str, id: &str) -> String {
    get_request("ratings.bookinfo:9080", path, &format!("x-request-id: {id}\r\n"))
}

async fn assert_logged(scenario: &Scenario, id: &str, fields: &[(&str, &str)]) {
    AccessLogLine::parse(&scenario.sidecar.stdout.line_with(id).await).assert(fields);
}

/// Every response was accepted.
async fn assert_accepted(scenario: &Scenario) {
    let metrics = scenario.sidecar.metrics().await;
    assert_eq!(metrics.sum("skiff_xds_responses_rejected_total", &[]), 0.0);
    assert!(metrics.sum("skiff_xds_responses_accepted_total", &[("type", "LDS")]) >= 1.0);
}

#[tokio::test]
async fn by_default_plaintext_and_mutual_tls_come_in_and_mutual_tls_goes_out() {
    let mut scenario = Scenario::join("01-default").await;
    let application = scenario.application();
    let _details = scenario.peer(31, 9080, "bookinfo-details", Speaks::Http).await;
    let _other = scenario.peer(32, 9080, "bookinfo-details", Speaks::Http).await;
    assert_eq!(scenario.ask_in_plaintext(9080, &get("/", "plain")).await.unwrap().status, 200);
    assert!(application.last_request().header("x-forwarded-client-cert").is_none());
    assert_eq!(scenario.ask_as("bookinfo-reviews", 9080, &get("/", "mutual")).await.unwrap().status, 200);
    let xfcc = application.last_request().header("x-forwarded-client-cert").unwrap().to_owned();
    assert!(xfcc.contains("URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews"), "{xfcc}");
    assert_logged(&scenario, "mutual", &[("response_code", "200"), ("upstream_cluster", "inbound|9080||")]).await;
    assert_eq!(scenario.ask_out(OUT, DETAILS, "/details/1", "x-request-id: out\r\n").await.status, 200);
    let cluster = "outbound|9080||details.bookinfo.svc.cluster.local";
    assert_logged(&scenario, "out", &[("response_code", "200"), ("upstream_cluster", cluster), ("route_name", "default")]).await;
    // A host that nobody declares: allow_any has nowhere to go without iptables.
    assert_eq!(scenario.ask_out(OUT, "unknown.example", "/", "x-request-id: unknown\r\n").await.status, 503);
    assert_logged(&scenario, "unknown", &[("response_flags", "UH"), ("upstream_cluster", "PassthroughCluster")]).await;
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn strict_takes_mutual_tls_alone() {
    for name in ["02-strict", "16-bound"] {
        let scenario = Scenario::join(name).await;
        let _application = scenario.application();
        assert!(scenario.ask_in_plaintext(9080, &get("/", "plain")).await.is_err(), "{name}");
        let line = scenario.sidecar.stdout.line_with("filter_chain_not_found").await;
        AccessLogLine::parse(&line).assert(&[("response_flags", "NR")]);
        assert_eq!(scenario.ask_as("bookinfo-reviews", 9080, &get("/", "mutual")).await.unwrap().status, 200);
        assert_accepted(&scenario).await;
    }
}

#[tokio::test]
async fn permissive_of_the_workload_wins_over_strict_of_the_mesh() {
    let scenario = Scenario::join("03-permissive").await;
    let _application = scenario.application();
    assert_eq!(scenario.ask_in_plaintext(9080, &get("/", "plain")).await.unwrap().status, 200);
    assert_eq!(scenario.ask_as("bookinfo-reviews", 9080, &get("/", "mutual")).await.unwrap().status, 200);
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn disable_speaks_plaintext_both_ways() {
    let scenario = Scenario::join("04-disable").await;
    let _application = scenario.application();
    let _details = [31, 32].map(|last| App::start(scenario.at(last, 9080), Speaks::Http));
    assert_eq!(scenario.ask_in_plaintext(9080, &get("/", "plain")).await.unwrap().status, 200);
    assert!(scenario.ask_as("bookinfo-reviews", 9080, &get("/", "mutual")).await.is_err());
    assert_eq!(scenario.ask_out(OUT, DETAILS, "/", "x-request-id: out\r\n").await.status, 200);
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn bytes_go_through_tcp_ports_in_mutual_tls() {
    let mut scenario = Scenario::join("05-tcp").await;
    let _mongodb = scenario.peer(71, 27_017, "bookinfo-mongodb", Speaks::Tcp).await;
    let _other = scenario.peer(72, 27_017, "bookinfo-mongodb", Speaks::Tcp).await;
    let mut stream = TcpStream::connect(scenario.at(3, 27_017)).await.unwrap();
    let mut greeting = vec![0; GREETING.len()];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting, GREETING);
    drop(stream);
    let line = scenario.sidecar.stdout.line_with("outbound|27017||mongodb.bookinfo.svc.cluster.local").await;
    AccessLogLine::parse(&line).assert(&[("response_code", "0"), ("response_flags", "-")]);
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn a_virtual_service_matches_rewrites_redirects_and_splits() {
    let mut scenario = Scenario::join("06-virtualservice").await;
    let [one, two, three] = [41, 42, 43];
    let v1 = scenario.peer(one, 9080, "bookinfo-reviews", Speaks::Http).await;
    let v2 = scenario.peer(two, 9080, "bookinfo-reviews", Speaks::Http).await;
    let v3 = scenario.peer(three, 9080, "bookinfo-reviews", Speaks::Http).await;
    let ask = async |path: &str, fields: &str| -> Answer { scenario.ask_out(OUT, REVIEWS, path, fields).await };
    let fields = "end-user: jason\r\nx-prefix: abcd\r\nx-re: v12\r\nx-present: 1\r\nx-request-id: jason\r\n";
    assert_eq!(ask("/reviews/1?q=1", fields).await.status, 200);
    assert_eq!(v2.requests().len(), 1, "every condition holds");
    assert_logged(&scenario, "jason", &[("route_name", "jason")]).await;
    assert_eq!(ask("/OLD/1", "x-remove: 1\r\n").await.header("x-resp"), Some("yes"));
    let rewritten = v1.last_request();
    assert_eq!((rewritten.second_word(), rewritten.header("host")), ("/new/1", Some("other.example")));
    assert_eq!((rewritten.header("x-set"), rewritten.header("x-remove")), (Some("1"), None));
    let redirect = ask("/redirect", "").await;
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("https://www.example.com/elsewhere")));
    let direct = ask("/direct", "x-request-id: id-direct\r\n").await;
    assert_eq!((direct.status, direct.text().as_str()), (503, "closed\n"));
    assert_logged(&scenario, "id-direct", &[("response_code_details", "direct_response"), ("route_name", "direct")]).await;
    let mut versions = [0, 0];
    for _ in 0..60 {
        let answer = ask("/split", "").await;
        versions[usize::from(answer.header("x-version") != Some("v1"))] += 1;
    }
    assert!(versions[0] > versions[1] && versions[1] > 0, "80 : 20, found {versions:?}");
    assert!(!v3.requests().is_empty());
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn a_destination_rule_chooses_protocol_balancing_and_tls() {
    let mut scenario = Scenario::join("07-destinationrule").await;
    let details = scenario.peer(31, 9080, "bookinfo-details", Speaks::Http).await;
    let other = scenario.peer(32, 9080, "bookinfo-details", Speaks::Http).await;
    let productpage = App::start(scenario.at(51, 9080), Speaks::Http);
    let ask =
        async |host: &str, id: &str| -> Answer { scenario.ask_out(OUT, host, "/", &format!("x-request-id: {id}\r\n")).await };
    let cookie = ask(DETAILS, "cookie").await;
    let cookie = cookie.header("set-cookie").unwrap();
    assert!(cookie.starts_with("sess=\"") && cookie.ends_with("\"; Max-Age=60; Path=/; HttpOnly"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let again = scenario.ask_out(OUT, DETAILS, "/", &format!("cookie: a=b; {pair}\r\n")).await;
    assert_eq!(again.header("set-cookie"), None, "the caller has it already");
    assert_eq!(details.requests().len().max(other.requests().len()), 2, "the cookie leads to the same endpoint");
    assert_eq!(ask("productpage.bookinfo:9080", "plain").await.status, 200);
    assert_eq!(productpage.requests().len(), 1, "mode DISABLE is plaintext");
    // PASSTHROUGH wants the address that the application meant, which only iptables could tell.
    assert_eq!(ask("legacy.bookinfo:9080", "legacy").await.status, 503);
    assert_logged(&scenario, "legacy", &[("response_flags", "UH"), ("response_code_details", "no_healthy_upstream")]).await;
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn authorization_policies_allow_deny_audit_and_try() {
    let scenario = Scenario::join("08-authz").await;
    let _application = scenario.application();
    let table = [
        ("bookinfo-reviews", "GET /ratings/1", 200),
        ("bookinfo-reviews", "GET /other", 403),
        ("bookinfo-reviews", "DELETE /ratings/1", 403),
        ("bookinfo-productpage", "GET /health", 200),
        ("bookinfo-details", "GET /books/a/x/b/c", 200),
        ("bookinfo-details", "GET /books/a/y/b", 403),
        ("bookinfo-details", "GET /ratings/1", 403),
    ];
    for (number, (account, request, status)) in table.into_iter().enumerate() {
        let id = format!("authz-{number}");
        let request = format!("{request} HTTP/1.1\r\nhost: ratings.bookinfo:9080\r\nx-request-id: {id}\r\n\r\n");
        assert_eq!(scenario.ask_as(account, 9080, &request).await.unwrap().status, status, "{account}: {request}");
        let line = AccessLogLine::parse(&scenario.sidecar.stdout.line_with(&id).await);
        let details = if status == 200 { "via_upstream" } else { "rbac_access_denied_matched_policy" };
        assert!(line.get("response_code_details").starts_with(details), "{line:?}");
    }
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn request_authentication_refuses_bad_tokens_and_the_policy_missing_ones() {
    let scenario = Scenario::join("09-jwt").await;
    let _application = scenario.application();
    let ask = async |path: &str, id: &str, token: &str| -> u16 {
        let fields = format!("x-request-id: {id}\r\n{token}");
        scenario.ask_in_plaintext(9080, &get_request("ratings.bookinfo:9080", path, &fields)).await.unwrap().status
    };
    assert_eq!(ask("/", "missing", "").await, 403);
    assert_logged(&scenario, "missing", &[("response_code_details", "rbac_access_denied_matched_policy[none]")]).await;
    assert_eq!(ask("/", "bad", "authorization: Bearer a.b.c\r\n").await, 401);
    let line = AccessLogLine::parse(&scenario.sidecar.stdout.line_with("bad").await);
    assert!(line.get("response_code_details").starts_with("jwt_authn_access_denied"), "{line:?}");
    assert_eq!(ask("/health", "health", "").await, 200);
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn registry_only_answers_502_to_hosts_that_nobody_declares() {
    let scenario = Scenario::join("10-external").await;
    assert_eq!(scenario.ask_out((2, 10_080), "elsewhere.example", "/", "x-request-id: foreign\r\n").await.status, 502);
    assert_logged(&scenario, "foreign", &[("response_code", "502"), ("route_name", "block_all")]).await;
    assert_accepted(&scenario).await;
}

#[tokio::test]
async fn without_a_port_the_egress_has_a_listener_for_every_port() {
    for name in ["13-no-sidecar-resource", "14-catch-all-egress"] {
        let scenario = Scenario::join(name).await;
        let _legacy = App::start(scenario.at(61, 9080), Speaks::Http);
        assert_eq!(scenario.ask_out((1, 9080), "legacy.bookinfo:9080", "/", "x-request-id: legacy\r\n").await.status, 200);
        let cluster = "outbound|9080||legacy.bookinfo.svc.cluster.local";
        assert_logged(&scenario, "legacy", &[("response_code", "200"), ("upstream_cluster", cluster)]).await;
        assert_accepted(&scenario).await;
    }
}
