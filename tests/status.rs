//! What Istio's tools and Kubernetes ask a sidecar in a mesh, from outside: ports 15020, 15021, 15090 and Envoy's admin page.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{self, Answer, Connection};
use skiff_tests::joined::{Joined, spawn, start_istiod};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS};
use skiff_tests::metrics::Metrics;
use skiff_tests::network::Network;
use skiff_tests::skiff::Skiff;
use skiff_tests::tls::{self, Authority};
use skiff_tests::wait::{eventually, within};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;

fn at(mesh: &Mesh, port: u16) -> SocketAddr {
    mesh.ingress(RATINGS, port)
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    eventually("the port answers", async || http::try_get(address, "status", path).await.ok()).await
}

#[tokio::test]
async fn readiness_is_told_on_both_ports_before_and_after() {
    let mesh = Mesh::prepare_on(Network::claim_short()).await;
    let mut ratings = spawn(&mesh, &[]);
    for port in [15020, 15021] {
        let answer = get(at(&mesh, port), "/healthz/ready").await;
        assert_eq!(answer.status, 503, "{port}");
        assert!(answer.text().starts_with("waiting for "), "{port}: {}", answer.text());
    }
    let _istiod = start_istiod(&mesh).await;
    for port in [15020, 15021] {
        eventually("readiness", async || (get(at(&mesh, port), "/healthz/ready").await.status == 200).then_some(())).await;
    }
    for (port, path) in
        [(15021, "/"), (15021, "/healthz/readyness"), (15021, "/stats/prometheus"), (15090, "/healthz/ready"), (15020, "/x")]
    {
        assert_eq!(get(at(&mesh, port), path).await.status, 404, "{port}{path}");
    }
    let metrics = get(at(&mesh, 15090), "/stats/prometheus").await;
    assert_eq!(Metrics::parse(&metrics.text()).sum("skiff_xds_connected", &[]), 1.0);
    assert_eq!(get(at(&mesh, 15020), "/quitquitquit").await.status, 405, "a GET changes nothing");
    assert_eq!(get(at(&mesh, 15020), "/debug/ndsz").await.status, 404);
    let quit = http::exchange(at(&mesh, 15020), "POST /quitquitquit HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(quit.status, 200);
    assert_eq!(ratings.exit_code().await, 0);
}

/// A mutual TLS connection to the ingress of details, and what it answers.
async fn asked(mesh: &Mesh) -> Answer {
    let stream = tls::connect(mesh.ingress(DETAILS_V1, 9080), Some(&mesh.identity()), &["istio"]).await.unwrap();
    Connection::over(stream).ask(&http::get_request(DETAILS, "/", "")).await.unwrap()
}

/// Details in a mesh with its application and a request that this holds back.
async fn details(environment: &[(&str, &str)]) -> (Mesh, App, Skiff, Connection<TlsStream<TcpStream>>) {
    let mesh = Mesh::prepare().await;
    let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let details = mesh.spawn(DETAILS_V1, environment);
    details.ready().await;
    let stream = tls::connect(mesh.ingress(DETAILS_V1, 9080), Some(&mesh.identity()), &["istio"]).await.unwrap();
    let mut held = Connection::over(stream);
    held.send(http::get_request(DETAILS, "/hold", "")).await.unwrap();
    app.arrived("/hold").await;
    (mesh, app, details, held)
}

async fn post(address: SocketAddr, path: &str) -> u16 {
    http::exchange(address, &format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")).await.status
}

#[tokio::test]
async fn drain_goes_on_serving_and_the_end_does_not_wait_afterwards() {
    let (mesh, app, mut details, mut held) = details(&[("SKIFF_STATUS_PORT", "15020")]).await;
    let first = asked(&mesh).await;
    assert_eq!((first.status, first.header("connection")), (200, None));
    let status = mesh.ingress(DETAILS_V1, 15020);
    assert_eq!(post(status, "/drain").await, 200);
    let answer = asked(&mesh).await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "others do not know yet");
    assert_eq!(get(status, "/healthz/ready").await.status, 503);
    assert_eq!(details.metrics().await.sum("skiff_draining", &[]), 1.0);
    // What comes of an edit is told, too.
    mesh.edit("security.yaml", "mode: STRICT", "mode: PERMISSIVE");
    let told = async || {
        let answer = http::try_get(mesh.ingress(DETAILS_V1, 9080), DETAILS, "/").await.ok()?;
        (answer.status == 200 || answer.status == 403).then(|| answer.header("connection").map(str::to_owned))
    };
    assert_eq!(eventually("plaintext is taken", told).await.as_deref(), Some("close"));

    details.terminate().await;
    assert_eq!(details.exit_code().await, 0);
    details.stderr.line_with("drained before").await;
    assert!(held.answer().await.is_err(), "it was not waited for");
    drop(app);
}

#[tokio::test]
async fn the_minimum_drain_goes_on_serving() {
    let environment = [("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"), ("MINIMUM_DRAIN_DURATION", "10m")];
    let (mesh, _app, mut details, _held) = details(&environment).await;
    details.terminate().await;
    details.stderr.line_with("still accepting (MINIMUM_DRAIN_DURATION)").await;
    let told = async || (asked(&mesh).await.header("connection") == Some("close")).then_some(());
    eventually("callers are told to go elsewhere", told).await;
    details.terminate().await;
    assert_eq!(details.exit_code().await, 0);
    details.stderr.line_with("asked twice to stop").await;
}

#[tokio::test]
async fn an_end_with_zero_connections_has_no_deadline_of_the_proxy_configuration() {
    let environment = [
        ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
        ("MINIMUM_DRAIN_DURATION", "1ms"),
        ("PROXY_CONFIG", r#"{"terminationDrainDuration": "0.001s"}"#),
    ];
    let (mesh, app, mut details, mut held) = details(&environment).await;
    details.terminate().await;
    let refused = async || TcpStream::connect(mesh.ingress(DETAILS_V1, 9080)).await.is_err().then_some(());
    eventually("new connections are refused", refused).await;
    assert!(details.is_running());
    app.release();
    assert_eq!(held.answer().await.unwrap().status, 200);
    assert_eq!(details.exit_code().await, 0);
    details.stderr.line_with(" drained").await;
}

#[tokio::test]
async fn a_sidecar_outside_of_a_mesh_listens_only_where_it_is_told_to() {
    let mesh = Mesh::prepare().await;
    let ratings = mesh.spawn(RATINGS, &[("ENVOY_STATUS_PORT", "15021")]);
    ratings.ready().await;
    assert_eq!(get(at(&mesh, 15021), "/healthz/ready").await.status, 200);
    for port in [15020, 15090] {
        assert!(http::try_get(at(&mesh, port), "status", "/healthz/ready").await.is_err(), "{port}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_keeps_nothing_from_flowing_and_is_had_later() {
    let mesh = Mesh::prepare_on(Network::claim_short()).await;
    let _istiod = start_istiod(&mesh).await;
    let taken = TcpListener::bind(at(&mesh, 15020)).await.unwrap();
    let ratings = spawn(&mesh, &[]);
    ratings.ready().await;
    let line = ratings.stderr.line_with("SKIFF_STATUS_PORT").await;
    assert!(line.contains("WARN") && line.contains(&at(&mesh, 15020).to_string()), "{line}");
    assert_eq!(get(at(&mesh, 15021), "/healthz/ready").await.status, 200);
    drop(taken);
    assert_eq!(get(at(&mesh, 15020), "/healthz/ready").await.status, 200);
    ratings.stderr.line_with("is there now").await;
    assert_eq!(ratings.stderr.count("SKIFF_STATUS_PORT"), 1, "once is enough");
}

/// What the application answers to a scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Text,
    OpenMetrics,
    Status500,
    Garbage,
    HalfOfIt,
    Nothing,
    HundredMegabytes,
}

/// An application on 127.0.0.1, where alone the sidecar looks for one.
struct Application {
    port: u16,
    says: watch::Sender<Says>,
    asked: Arc<watch::Sender<Vec<http::Message>>>,
    _serving: JoinSet<()>,
}

impl Application {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (says, what) = watch::channel(Says::Text);
        let asked = Arc::new(watch::Sender::new(Vec::new()));
        let mut serving = JoinSet::new();
        let heard = Arc::clone(&asked);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (what, heard) = (what.clone(), Arc::clone(&heard));
                connections.spawn(async move {
                    let mut connection = Connection::over(stream);
                    let Ok(Some(head)) = connection.head().await else { return };
                    heard.send_modify(|all| all.push(head));
                    let says = *what.borrow();
                    // The sidecar hangs up on some of these.
                    let _ = answer(&mut connection, says).await;
                });
            }
        });
        Self { port, says, asked, _serving: serving }
    }

    fn last_asked(&self) -> http::Message {
        self.asked.borrow().last().cloned().expect("a scrape")
    }
}

async fn answer(connection: &mut Connection, says: Says) -> std::io::Result<()> {
    let head = |status: &str, kind: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n")
    };
    let text = "# TYPE app_things counter\napp_things_total{of=\"it\"} 7\n";
    match says {
        Says::Text => connection.send(head("200 OK", "text/plain; version=0.0.4", text.len()) + text).await,
        Says::OpenMetrics => {
            let text = format!("{text}# EOF\n");
            connection.send(head("200 OK", "application/openmetrics-text; version=1.0.0", text.len()) + &text).await
        }
        Says::Status500 => connection.send(head("500 Internal Server Error", "text/plain", text.len()) + text).await,
        Says::Garbage => connection.send(head("200 OK", "text/plain", 6) + "<html>").await,
        Says::HalfOfIt => connection.send(head("200 OK", "text/plain", 2 * text.len()) + text).await,
        Says::Nothing => std::future::pending().await,
        Says::HundredMegabytes => {
            let chunk = "app_things_total 7\n".repeat(50_000);
            connection.send(head("200 OK", "text/plain", 110 * chunk.len())).await?;
            for _ in 0..110 {
                connection.send(&chunk).await?;
            }
            Ok(())
        }
    }
}

#[tokio::test]
async fn the_applications_metrics_are_merged_and_its_failures_cost_ours_nothing() {
    let app = Application::start().await;
    let annotations = format!(r#"{{"scrape": "true", "port": "{}", "path": "/app/metrics"}}"#, app.port);
    let joined = Joined::with(&[("ISTIO_PROMETHEUS_ANNOTATIONS", &annotations)]).await;
    let address = joined.at(15020);
    let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.5,application/vnd.google.protobuf;q=0.7,*/*;q=0.1\r\n";
    let scrape = async |path: &str| {
        let headers = format!("{accept}user-agent: Prometheus/3\r\nx-prometheus-scrape-timeout-seconds: 2\r\n");
        http::exchange(address, &http::get_request("status", path, &headers)).await
    };
    for path in ["/stats/prometheus", "/metrics"] {
        let merged = scrape(path).await;
        assert_eq!((merged.status, merged.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
        let metrics = Metrics::parse(&merged.text());
        assert_eq!(metrics.sum("app_things_total", &[("of", "it")]), 7.0);
        assert_eq!(metrics.sum("skiff_xds_connected", &[]), 1.0);
        assert!(metrics.sum("istio_agent_process_threads", &[]) > 1.0);
        assert_eq!(metrics.sum("process_threads", &[]), 0.0, "the name of the application's own");
    }
    let asked = app.last_asked();
    assert_eq!(asked.second_word(), "/app/metrics");
    assert_eq!(asked.header("accept"), Some("application/openmetrics-text;version=1.0.0;q=0.9,text/plain;version=0.0.4;q=0.8"));
    assert_eq!(asked.header("user-agent"), Some("Prometheus/3"));

    app.says.send_replace(Says::OpenMetrics);
    let merged = scrape("/stats/prometheus").await;
    assert_eq!(merged.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = merged.text();
    assert!(text.ends_with("app_things_total{of=\"it\"} 7\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    assert!(!text.contains("\n\n"), "OpenMetrics knows no empty lines");

    let failing = [Says::Status500, Says::Garbage, Says::HalfOfIt, Says::Nothing, Says::HundredMegabytes];
    for (before, says) in failing.into_iter().enumerate() {
        app.says.send_replace(says);
        let merged = scrape("/stats/prometheus").await;
        assert_eq!((merged.status, merged.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
        let metrics = Metrics::parse(&merged.text());
        assert_eq!(metrics.sum("app_things_total", &[]), 0.0, "{says:?}");
        assert_eq!(metrics.sum("skiff_xds_connected", &[]), 1.0, "{says:?}");
        let failures = metrics.sum("istio_agent_scrape_failures_total", &[("type", "application")]);
        assert_eq!(failures, before as f64 + 1.0, "{says:?}");
        joined.ratings.stderr.nth_line_with("metrics of the application left out", before + 1).await;
        let memory = metrics.sum("istio_agent_process_resident_memory_bytes", &[]);
        assert!(memory < 100e6, "{says:?} took {memory} bytes");
    }
    app.says.send_replace(Says::Text);
    assert_eq!(Metrics::parse(&scrape("/metrics").await.text()).sum("app_things_total", &[]), 7.0);
}

#[tokio::test]
async fn probes_of_the_application_go_through_the_sidecar() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut app = App::start(([127, 0, 0, 1], port).into(), Speaks::Http);
    let probers = format!(
        r#"{{"/app-health/ratings/readyz": {{"httpGet": {{"path": "/hello", "port": {port}}}}},
            "/app-health/ratings/livez": {{"tcpSocket": {{"port": {port}}}}},
            "/app-health/ratings/startupz": {{"grpc": {{"port": {port}}}}},
            "/app-lifecycle/ratings/prestopz": {{"httpGet": {{"path": "/hold", "port": {port}}}, "timeoutSeconds": 1}}}}"#
    );
    let joined = Joined::with(&[("ISTIO_KUBE_APP_PROBERS", &probers)]).await;
    let address = joined.at(15020);
    let host = format!("ratings:{}", address.port());
    let ask = async |path: &str| http::exchange(address, &http::get_request(&host, path, "x-probe: kubelet\r\n")).await.status;
    assert_eq!(ask("/app-health/ratings/readyz").await, 200);
    let request = app.last_request();
    assert_eq!((request.second_word(), request.header("x-probe")), ("/hello", Some("kubelet")));
    assert_eq!(request.header("host"), Some(format!("ratings:{port}").as_str()));
    assert_eq!(ask("/app-health/ratings/livez").await, 200);
    assert_eq!(ask("/app-health/ratings/startupz").await, 500, "it speaks no gRPC");
    assert_eq!(ask("/app-lifecycle/ratings/prestopz").await, 500, "it is not in time");
    assert_eq!(ask("/app-health/details/readyz").await, 400);
    app.stop().await;
    for path in ["/app-health/ratings/readyz", "/app-health/ratings/livez", "/app-health/ratings/startupz"] {
        assert_eq!(ask(path).await, 500, "{path}");
    }
}

/// Kubernetes verifies no certificate, and neither may who asks for it.
#[tokio::test]
async fn a_probe_over_tls_takes_any_certificate() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = Authority::stranger().issue_for_name("elsewhere.example");
    let acceptor = TlsAcceptor::from(tls::acceptor(identity, &["http/1.1"]));
    let asked = watch::Sender::new(String::new());
    let noted = asked.clone();
    let _serving = tokio::spawn(async move {
        loop {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let mut connection = Connection::over(stream);
            noted.send_replace(connection.head().await.unwrap().unwrap().start);
            connection.send("HTTP/1.1 418 Teapot\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    });
    let probers = format!(
        r#"{{"/app-health/ratings/readyz": {{"httpGet": {{"path": "/tls", "port": {port}, "scheme": "HTTPS"}}, "timeoutSeconds": 10}}}}"#
    );
    let joined = Joined::with(&[("ISTIO_KUBE_APP_PROBERS", &probers)]).await;
    assert_eq!(get(joined.at(15020), "/app-health/ratings/readyz").await.status, 418);
    assert_eq!(asked.borrow().as_str(), "GET /tls HTTP/1.1");
}

#[tokio::test]
async fn stats_have_the_names_that_istio_asks_for() {
    let joined = Joined::with(&[]).await;
    let stats = async |filter: &str| joined.ratings.page(&format!("/stats?usedonly&filter={filter}")).await.text();
    // pilot-agent's own two questions.
    let state = stats(r"^(server\.state|listener_manager\.workers_started)").await;
    assert_eq!(state, "listener_manager.workers_started: 1\nserver.state: 0\n");
    let updates = stats(r"^(cluster_manager\.cds|listener_manager\.lds)\.(update_success|update_rejected)$").await;
    for line in [
        "cluster_manager.cds.update_success: 1",
        "cluster_manager.cds.update_rejected: 0",
        "listener_manager.lds.update_success: 1",
    ] {
        assert!(updates.lines().any(|one| one == line), "{line}: {updates}");
    }
    assert_eq!(stats(r"^control_plane\.connected_state$").await, "control_plane.connected_state: 1\n");
    let name = format!("listener.{}_9080.downstream_cx_total", joined.mesh.egress(RATINGS, 9080).ip());
    within("a request", http::get(joined.mesh.egress(RATINGS, 9080), "nobody:9080", "/")).await;
    assert!(stats("downstream_cx_total").await.contains(&name));
    let clusters = joined.ratings.page("/clusters?format=json").await.text();
    let clusters: Value = serde_json::from_str(&clusters).unwrap();
    assert_eq!(clusters["cluster_statuses"][0]["added_via_api"], true);
    let info: Value = serde_json::from_str(&joined.ratings.page("/server_info").await.text()).unwrap();
    assert_eq!(info["command_line_options"]["service_node"], info["node"]["id"]);
    assert_eq!(serde_json::from_str::<Value>(&joined.ratings.page("/init_dump").await.text()).unwrap(), serde_json::json!({}));
}
