//! What routes do with time: time-outs and attempts, as answer, log line and metric tell of them.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::http;
use skiff_tests::mesh::{DETAILS, Mesh};

/// `/hold` is never answered here.
const LIMITS: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: details, namespace: bookinfo}
spec:
  hosts: [details.bookinfo.svc.cluster.local]
  http:
  - name: limited
    match: [{headers: {x-case: {exact: limited}}}]
    timeout: 0.2s
    retries: {attempts: 0}
    route: [{destination: {host: details.bookinfo.svc.cluster.local}}]
  - name: tried
    match: [{headers: {x-case: {exact: tried}}}]
    retries: {attempts: 1, perTryTimeout: 0.2s, retryOn: 'gateway-error'}
    route: [{destination: {host: details.bookinfo.svc.cluster.local}}]
    headers: {response: {add: {x-route: tried}}}
  - route: [{destination: {host: details.bookinfo.svc.cluster.local}}]
";

fn held(case: &str) -> String {
    http::get_request(DETAILS, "/hold", &format!("x-request-id: id-{case}\r\nx-case: {case}\r\n"))
}

#[tokio::test]
async fn a_route_that_takes_too_long_is_504_ut() {
    let mesh = Mesh::prepare().await;
    mesh.write("limits.yaml", LIMITS);
    let bookinfo = mesh.run().await;
    let answer = http::exchange(bookinfo.egress(), &held("limited")).await;
    assert_eq!((answer.status, answer.text()), (504, "upstream request timeout".to_owned()));
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-limited").await);
    line.assert(&[
        ("response_code", "504"),
        ("response_flags", "UT"),
        ("response_code_details", "response_timeout"),
        ("route_name", "limited"),
        ("upstream_service_time", "-"),
    ]);
    let timed_out = [("reporter", "source"), ("response_code", "504"), ("response_flags", "UT")];
    assert_eq!(bookinfo.ratings.metrics().await.only("istio_requests_total", &timed_out).value, 1.0);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_made_again_and_the_last_one_is_urx() {
    let mesh = Mesh::prepare().await;
    mesh.write("limits.yaml", LIMITS);
    let bookinfo = mesh.run().await;
    let answer = http::exchange(bookinfo.egress(), &held("tried")).await;
    assert_eq!((answer.status, answer.header("x-route")), (504, Some("tried")), "local answers have the route's headers");
    let attempts: Vec<_> = bookinfo.app.requests().iter().map(|r| r.header("x-envoy-attempt-count").map(str::to_owned)).collect();
    assert_eq!(attempts, [Some("1".to_owned()), Some("2".to_owned())]);
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-tried").await);
    line.assert(&[
        ("response_code", "504"),
        ("response_flags", "URX,UT"),
        ("response_code_details", "upstream_per_try_timeout"),
        ("route_name", "tried"),
    ]);
    let timed_out = [("reporter", "source"), ("response_code", "504"), ("response_flags", "URX,UT")];
    assert_eq!(bookinfo.ratings.metrics().await.only("istio_requests_total", &timed_out).value, 1.0);
}
