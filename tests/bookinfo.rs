//! Bookinfo through two sidecars: answer, both access-log lines and metrics of each request.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::http::{self, Connection};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS};
use skiff_tests::skiff;
use skiff_tests::wait::eventually;

const DETAILS_CLUSTER: &str = "outbound|9080||details.bookinfo.svc.cluster.local";

const ONLY_RATINGS_MAY_GET: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: details-viewer, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: details}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/bookinfo/sa/bookinfo-ratings]}}]
    to: [{operation: {methods: [GET]}}]
";

#[tokio::test]
async fn a_request_in_mutual_tls_is_logged_field_by_field_on_both_sides() {
    let bookinfo = Mesh::prepare().await.run().await;
    let request = "POST /details/0 HTTP/1.1\r\nhost: details.bookinfo:9080\r\nx-request-id: id-fields\r\nuser-agent: ratings/1\r\n\
        x-forwarded-for: 192.0.2.7\r\ncontent-length: 5\r\n\r\nhello";
    let answer = http::exchange(bookinfo.egress(), request).await;
    assert_eq!((answer.status, answer.header("server"), answer.text()), (200, Some("envoy"), "hello".to_owned()));
    assert!(answer.header("x-envoy-upstream-service-time").is_some());

    let (ratings, details) = bookinfo.lines("id-fields").await;
    let (door, behind) = (bookinfo.mesh.ingress(DETAILS_V1, 9080).to_string(), bookinfo.mesh.app(DETAILS_V1).to_string());
    let both = [
        ("request", "POST /details/0 HTTP/1.1"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("response_code_details", "via_upstream"),
        ("connection_termination_details", "-"),
        ("upstream_transport_failure_reason", "-"),
        ("bytes_received", "5"),
        ("bytes_sent", "5"),
        ("x_forwarded_for", "192.0.2.7"),
        ("downstream_remote_address", "192.0.2.7:0"),
        ("user_agent", "ratings/1"),
        ("request_id", "id-fields"),
        ("authority", DETAILS),
        ("route_name", "default"),
    ];
    ratings.assert(&both);
    ratings.assert(&[
        ("upstream_host", &door),
        ("upstream_cluster", DETAILS_CLUSTER),
        ("downstream_local_address", &bookinfo.egress().to_string()),
        ("requested_server_name", "-"),
    ]);
    details.assert(&both);
    details.assert(&[
        ("upstream_host", &behind),
        ("upstream_cluster", "inbound|9080||"),
        ("downstream_local_address", &door),
        ("requested_server_name", "outbound_.9080_._.details.bookinfo.svc.cluster.local"),
    ]);
    for line in [&ratings, &details] {
        let (duration, upstream) = (line.get("duration"), line.get("upstream_service_time"));
        assert!(upstream.parse::<u64>().unwrap() <= duration.parse().unwrap(), "{line:?}");
        assert!(line.get("start_time").ends_with('Z') && line.get("start_time").contains('T'), "{line:?}");
    }
}

#[tokio::test]
async fn a_request_in_mutual_tls_is_counted_with_istios_labels_on_both_sides() {
    let bookinfo = Mesh::prepare().await.run().await;
    assert_eq!(http::get_as(bookinfo.egress(), DETAILS, "/", "id-labels").await.status, 200);
    bookinfo.lines("id-labels").await;
    let (caller, callee) = (RATINGS.spiffe_id(), DETAILS_V1.spiffe_id());
    let both = [
        ("response_code", "200"),
        ("response_flags", "-"),
        ("request_protocol", "http"),
        ("grpc_response_status", ""),
        ("source_principal", caller.as_str()),
        ("destination_principal", callee.as_str()),
        ("destination_service", "details.bookinfo.svc.cluster.local"),
        ("destination_service_namespace", "bookinfo"),
        ("destination_workload", "details-v1"),
        ("destination_workload_namespace", "bookinfo"),
        ("destination_canonical_service", "details"),
        ("destination_canonical_revision", "v1"),
        ("destination_cluster", "Kubernetes"),
    ];
    let source = bookinfo.ratings.metrics().await;
    let own = [("reporter", "source"), ("connection_security_policy", "unknown"), ("source_workload", "ratings-v1")];
    assert_eq!(source.only("istio_requests_total", &[&both[..], &own].concat()).value, 1.0);
    let destination = bookinfo.details.metrics().await;
    let own = [("reporter", "destination"), ("connection_security_policy", "mutual_tls"), ("destination_app", "details")];
    assert_eq!(destination.only("istio_requests_total", &[&both[..], &own].concat()).value, 1.0);
    for metrics in [source, destination] {
        assert_eq!(metrics.sum("istio_request_duration_milliseconds_count", &both), 1.0);
        assert_eq!(metrics.sum("istio_request_bytes_count", &both), 1.0);
        assert_eq!(metrics.sum("istio_response_bytes_sum", &both), 0.0);
    }
}

#[tokio::test]
async fn the_application_is_told_who_called() {
    let bookinfo = Mesh::prepare().await.run().await;
    assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200);
    let request = bookinfo.app.last_request();
    let cert = request.header("x-forwarded-client-cert").unwrap();
    assert!(cert.starts_with(&format!("By={};Hash=", DETAILS_V1.spiffe_id())), "{cert}");
    assert!(cert.ends_with(&format!(";URI={}", RATINGS.spiffe_id())), "{cert}");
    assert_eq!(request.header("x-forwarded-proto"), Some("http"));
    assert_eq!(request.header("x-request-id").map(str::len), Some(36));
}

#[tokio::test]
async fn a_host_that_the_mesh_does_not_know_gets_502() {
    let bookinfo = Mesh::prepare().await.run().await;
    let answer = http::get_as(bookinfo.egress(), "nobody.example", "/", "id-nobody").await;
    assert_eq!((answer.status, answer.header("server"), answer.body.len()), (502, Some("envoy"), 0));
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-nobody").await);
    line.assert(&[
        ("response_code", "502"),
        ("response_flags", "-"),
        ("response_code_details", "direct_response"),
        ("upstream_cluster", "-"),
        ("route_name", "block_all"),
    ]);
    let unknown =
        [("response_code", "502"), ("destination_service", "nobody.example"), ("destination_service_name", "BlackHoleCluster")];
    assert_eq!(bookinfo.ratings.metrics().await.only("istio_requests_total", &unknown).value, 1.0);
}

#[tokio::test]
async fn with_allow_any_an_unknown_host_has_no_original_destination_to_go_to() {
    let mesh = Mesh::prepare().await;
    mesh.edit("sidecars.yaml", "REGISTRY_ONLY", "ALLOW_ANY");
    let bookinfo = mesh.run().await;
    let answer = http::get_as(bookinfo.egress(), "nobody.example", "/", "id-any").await;
    assert_eq!((answer.status, answer.text()), (503, "no healthy upstream".to_owned()));
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-any").await);
    line.assert(&[
        ("response_code", "503"),
        ("response_flags", "UH"),
        ("response_code_details", "no_healthy_upstream"),
        ("upstream_cluster", "PassthroughCluster"),
        ("route_name", "allow_any"),
    ]);
    let refused = [("response_code", "503"), ("response_flags", "UH")];
    assert_eq!(bookinfo.ratings.metrics().await.only("istio_requests_total", &refused).value, 1.0);
}

#[tokio::test]
async fn what_the_policy_does_not_allow_gets_403_and_never_reaches_the_application() {
    let mesh = Mesh::prepare().await;
    mesh.write("authorization.yaml", ONLY_RATINGS_MAY_GET);
    let bookinfo = mesh.run().await;
    assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200);
    let request = "POST / HTTP/1.1\r\nhost: details\r\nx-request-id: id-rbac\r\ncontent-length: 2\r\n\r\n{}";
    let answer = http::exchange(bookinfo.egress(), request).await;
    assert_eq!((answer.status, answer.text()), (403, "RBAC: access denied".to_owned()));

    let (ratings, details) = bookinfo.lines("id-rbac").await;
    ratings.assert(&[("response_code", "403"), ("response_flags", "-"), ("response_code_details", "via_upstream")]);
    details.assert(&[
        ("response_code", "403"),
        ("response_flags", "-"),
        ("response_code_details", "rbac_access_denied_matched_policy[none]"),
        ("upstream_host", "-"),
    ]);
    let refused = [("response_code", "403"), ("connection_security_policy", "mutual_tls")];
    assert_eq!(bookinfo.details.metrics().await.only("istio_requests_total", &refused).value, 1.0);
    assert_eq!(bookinfo.app.requests().len(), 1);
}

#[tokio::test]
async fn a_stopped_application_gets_503_until_it_is_back() {
    let mut bookinfo = Mesh::prepare().await.run().await;
    assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200);
    bookinfo.app.stop().await;
    let answer = http::get_as(bookinfo.egress(), DETAILS, "/", "id-stopped").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().starts_with("upstream connect error or disconnect/reset before headers. "), "{}", answer.text());

    let (ratings, details) = bookinfo.lines("id-stopped").await;
    // The caller's sidecar got a complete answer: only the callee's knows why.
    ratings.assert(&[("response_code", "503"), ("response_code_details", "via_upstream")]);
    details.assert(&[("response_code", "503"), ("response_flags", "URX,UF"), ("upstream_cluster", "inbound|9080||")]);
    let why = details.get("response_code_details");
    assert!(why.starts_with("upstream_reset_before_response_started{remote_connection_failure|"), "{why}");
    assert!(details.get("upstream_transport_failure_reason").contains("Connection_refused"), "{details:?}");
    let failed = [("response_code", "503"), ("response_flags", "URX,UF")];
    assert_eq!(bookinfo.details.metrics().await.only("istio_requests_total", &failed).value, 1.0);

    bookinfo.app.restart();
    let answer = http::get_as(bookinfo.egress(), DETAILS, "/", "id-started").await;
    assert_eq!(answer.status, 200);
    let (ratings, details) = bookinfo.lines("id-started").await;
    ratings.assert(&[("response_code", "200"), ("response_flags", "-")]);
    details.assert(&[("response_code", "200"), ("response_flags", "-")]);
}

#[tokio::test]
async fn an_application_that_closes_without_an_answer_gets_503_uc() {
    let bookinfo = Mesh::prepare().await.run().await;
    let answer = http::get_as(bookinfo.egress(), DETAILS, "/close", "id-close").await;
    assert_eq!(answer.status, 503);
    let (_, details) = bookinfo.lines("id-close").await;
    details.assert(&[
        ("response_code", "503"),
        ("response_flags", "UC"),
        ("response_code_details", "upstream_reset_before_response_started{connection_termination}"),
    ]);
}

#[tokio::test]
async fn a_service_without_endpoint_gets_503_uh() {
    let bookinfo = Mesh::prepare().await.run().await;
    let answer = http::get_as(bookinfo.egress(), "reviews.bookinfo:9080", "/", "id-empty").await;
    assert_eq!((answer.status, answer.text()), (503, "no healthy upstream".to_owned()));
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-empty").await);
    line.assert(&[
        ("response_flags", "UH"),
        ("response_code_details", "no_healthy_upstream"),
        ("upstream_host", "-"),
        ("upstream_cluster", "outbound|9080||reviews.bookinfo.svc.cluster.local"),
    ]);
    let refused = [("response_flags", "UH"), ("destination_service", "reviews.bookinfo.svc.cluster.local")];
    assert_eq!(bookinfo.ratings.metrics().await.only("istio_requests_total", &refused).value, 1.0);
}

#[tokio::test]
async fn a_sidecar_that_is_gone_gets_503_uf_after_its_retries() {
    let mut bookinfo = Mesh::prepare().await.run().await;
    bookinfo.details.terminate().await;
    assert_eq!(bookinfo.details.exit_code().await, 0);
    let answer = http::get_as(bookinfo.egress(), DETAILS, "/", "id-gone").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("retried and the latest reset reason: remote connection failure"), "{}", answer.text());
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-gone").await);
    line.assert(&[("response_flags", "URX,UF"), ("upstream_cluster", DETAILS_CLUSTER)]);
}

#[tokio::test]
async fn an_http_proxy_listener_takes_absolute_form() {
    let bookinfo = Mesh::prepare().await.run().await;
    let proxy = bookinfo.mesh.egress(RATINGS, 15080);
    let host = "details.bookinfo.svc.cluster.local:9080";
    let absolute = format!("GET http://{host}/details/0 HTTP/1.1\r\nhost: {host}\r\nx-request-id: id-absolute\r\n\r\n");
    assert_eq!(http::exchange(proxy, &absolute).await.status, 200);
    assert_eq!(bookinfo.app.last_request().start, "GET /details/0 HTTP/1.1");
    let (ratings, _) = bookinfo.lines("id-absolute").await;
    ratings.assert(&[("response_code", "200"), ("authority", host), ("upstream_cluster", DETAILS_CLUSTER)]);
}

/// It has fixed addresses: while another quickstart holds them, it is asked again.
#[tokio::test]
async fn the_quickstart_checks_itself() {
    let said = eventually("the addresses of the quickstart are free", async || {
        let said = skiff::run(skiff::command(&["quickstart", "--check"])).await;
        (said.code != 69).then_some(said)
    })
    .await;
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("7 of 7 scenarios did what they should"), "{}", said.stdout);
}

#[tokio::test]
async fn an_http_proxy_listener_takes_connect() {
    let bookinfo = Mesh::prepare().await.run().await;
    let host = "details.bookinfo.svc.cluster.local:9080";
    let mut tunnel = Connection::open(bookinfo.mesh.egress(RATINGS, 15080)).await.unwrap();
    tunnel.send(format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\nx-request-id: id-connect\r\n\r\n")).await.unwrap();
    let head = tunnel.head().await.unwrap().unwrap();
    assert!(head.start.starts_with("HTTP/1.1 200 "), "{head:?}");
    let answer =
        tunnel.ask(&http::get_request(host, "/tunnelled", "connection: close\r\nx-request-id: id-inside\r\n")).await.unwrap();
    assert_eq!((answer.status, bookinfo.app.last_request().second_word()), (200, "/tunnelled"));
    drop(tunnel);
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-connect").await);
    line.assert(&[("response_code", "200"), ("authority", host), ("upstream_cluster", DETAILS_CLUSTER)]);
    // Inside the tunnel is mutual TLS as anywhere in the mesh.
    let inside = AccessLogLine::parse(&bookinfo.details.stdout.line_with("id-inside").await);
    inside.assert(&[("response_code", "200"), ("upstream_cluster", "inbound|9080||")]);
}
