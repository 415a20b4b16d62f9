//! The admin page over a real socket.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use serde_json::{Value, json};
use skiff_proxy::config::Snapshot;
use skiff_proxy::{CertificateStatus, ClusterStatus, EndpointStatus, ListenerState, ListenerStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;
use crate::client;
use crate::logging;
use crate::page::MAX_HEAD;

const SOON: Duration = Duration::from_secs(5);

struct Served {
    address: SocketAddr,
    admin: Admin,
    // Keeps the log filter that the control belongs to.
    _log: Box<dyn std::any::Any>,
    _server: JoinSet<()>,
}

async fn serve() -> Served {
    let metrics = Metrics::new(&[]).unwrap();
    let (log, control) = logging::detached();
    let admin = Admin {
        proxy: Proxy::start(&skiff_proxy::Options { workers: 1, ..Default::default() }, metrics.recorder()).unwrap(),
        metrics,
        logging: control,
        readiness: Readiness::default(),
        shutdown: Shutdown::default(),
        node: Node { id: "sidecar~127.0.0.21~ratings.bookinfo~bookinfo.svc.cluster.local".to_owned(), cluster: String::new() },
        mesh: None,
        started: Instant::now(),
    };
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(admin.clone().serve(listener));
    Served { address, admin, _log: Box::new(log), _server: server }
}

impl Served {
    async fn send(&self, method: Method, path: &str) -> Response<Bytes> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost").body(Bytes::new()).unwrap();
        client::send(self.address, request, SOON).await.unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.send(Method::GET, path).await;
        (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
    }

    async fn post(&self, path: &str) -> (u16, String) {
        let response = self.send(Method::POST, path).await;
        (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
    }

    fn become_ready(&self) {
        for condition in [Condition::Certificate, Condition::Configuration, Condition::Listeners] {
            self.admin.readiness.met(condition);
        }
    }
}

#[tokio::test]
async fn readiness_gives_the_reason_and_health_agrees() {
    let served = serve().await;
    served.admin.readiness.waiting(Condition::Certificate, "no token");
    assert_eq!(served.get("/healthz/ready").await, (503, "waiting for certificate: no token\n".to_owned()));
    assert_eq!(probe(served.address).await.unwrap_err(), "503: waiting for certificate: no token");
    served.become_ready();
    assert_eq!(served.get("/ready").await, (200, "LIVE\n".to_owned()));
    probe(served.address).await.unwrap();
    let port = served.address.port();
    probe(SocketAddr::from(([0, 0, 0, 0], port))).await.unwrap();
}

#[tokio::test]
async fn answers_carry_envoys_headers() {
    let response = serve().await.send(Method::GET, "/certs").await;
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "no-cache, max-age=0"),
        ("x-content-type-options", "nosniff"),
        ("server", "envoy"),
        ("connection", "close"),
    ] {
        assert_eq!(response.headers()[name], value, "{name}");
    }
}

#[tokio::test]
async fn changes_are_post_and_never_from_a_web_page() {
    let served = serve().await;
    for path in ["/drain", "/drain_listeners?inboundonly", "/quitquitquit", "/logging?level=debug"] {
        let response = served.send(Method::GET, path).await;
        assert_eq!(response.status(), 405, "{path}");
        assert!(response.headers()[header::ALLOW].to_str().unwrap().ends_with("POST"), "{path}");
    }
    assert_eq!(served.send(Method::POST, "/clusters").await.status(), 405);
    let foreign = Request::post("/quitquitquit").header(header::HOST, "localhost").header(header::ORIGIN, "http://evil.example");
    let answer = client::send(served.address, foreign.body(Bytes::new()).unwrap(), SOON).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert!(!served.admin.readiness.is_draining());

    served.become_ready();
    assert_eq!(served.post("/drain_listeners?inboundonly").await, (200, "OK\n".to_owned()));
    assert_eq!(served.get("/ready").await, (503, "DRAINING\n".to_owned()));
    assert_eq!(served.get("/healthz/ready").await, (503, "draining\n".to_owned()));
    assert_eq!(served.post("/quitquitquit").await.0, 200);
    tokio::time::timeout(SOON, served.admin.shutdown.requested()).await.unwrap();
}

#[tokio::test]
async fn log_levels_are_shown_and_changed() {
    let served = serve().await;
    assert_eq!(served.get("/logging").await, (200, "active loggers:\n  info\n".to_owned()));
    assert_eq!(served.post("/logging?level=warning").await, (200, "active loggers:\n  warn\n".to_owned()));
    let (status, body) = served.post("/logging?paths=skiff_proxy%3A%3Atls%3Adebug").await;
    assert_eq!(status, 200);
    assert!(body.contains("skiff_proxy::tls=debug"), "{body}");
    assert_eq!(served.post("/logging?level=loud").await.0, 400);
    assert_eq!(served.post("/logging?colour=red").await.0, 400);
}

#[tokio::test]
async fn metrics_stats_and_server_info() {
    let served = serve().await;
    served.admin.metrics.counter("skiff_things_total", "Things.").increment(2);
    for path in ["/metrics", "/stats/prometheus", "/stats?format=prometheus"] {
        assert!(served.get(path).await.1.contains("# TYPE skiff_things_total counter\nskiff_things_total 2\n"), "{path}");
    }
    assert_eq!(served.get("/stats?filter=^skiff_things").await, (200, "skiff_things_total: 2\n".to_owned()));
    assert_eq!(served.get("/stats?filter=^server%5C.state$").await.1, "server.state: 3\n");
    assert_eq!(served.get("/stats?filter=(((a{1000}){1000}){1000})").await.0, 400);
    served.become_ready();
    assert_eq!(served.get("/stats?filter=server.state").await.1, "server.state: 0\n");
    let info: Value = serde_json::from_str(&served.get("/server_info").await.1).unwrap();
    assert_eq!(info["state"], "LIVE");
    assert_eq!(info["node"]["id"], "sidecar~127.0.0.21~ratings.bookinfo~bookinfo.svc.cluster.local");
}

#[tokio::test]
async fn health_checks_fail_until_they_are_to_pass_again() {
    let served = serve().await;
    served.become_ready();
    for path in ["/healthcheck/fail", "/healthcheck/ok"] {
        assert_eq!(served.get(path).await.0, 405, "{path}");
    }
    assert_eq!(served.post("/healthcheck/fail").await, (200, "OK\n".to_owned()));
    assert_eq!(served.get("/ready").await, (503, "DRAINING\n".to_owned()));
    assert!(served.get("/healthz/ready").await.1.contains("/healthcheck/ok"));
    assert_eq!(served.get("/stats?filter=^server.state$").await.1, "server.state: 1\n");
    assert_eq!(served.post("/healthcheck/ok").await, (200, "OK\n".to_owned()));
    assert_eq!(served.get("/ready").await, (200, "LIVE\n".to_owned()));
}

#[tokio::test]
async fn what_istios_agent_asks_is_answered() {
    let served = serve().await;
    served.become_ready();
    // Golden: admin_endpoints.json.
    let path = "/stats?usedonly&filter=^(server%5C.state|listener_manager%5C.workers_started)";
    assert_eq!(served.get(path).await.1, "listener_manager.workers_started: 1\nserver.state: 0\n");
    let json = |body: &str| serde_json::from_str::<Value>(body).unwrap();
    let stats = json(&served.get("/stats?format=json&filter=^server.state$").await.1);
    assert_eq!(stats, json!({"stats": [{"name": "server.state", "value": 0}]}));
    assert_eq!(json(&served.get("/runtime").await.1), json!({"layers": [], "entries": {}}));
    assert_eq!(served.get("/hot_restart_version").await.1, "disabled\n");
    let memory = json(&served.get("/memory").await.1);
    assert!(memory["total_physical_bytes"].as_str().unwrap().parse::<u64>().unwrap() > 1_000_000, "{memory}");
    for path in ["/clusters?filter=(", "/config_dump?name_regex=(", "/stats?filter=("] {
        assert_eq!(served.get(path).await.0, 400, "{path}");
    }
    assert_eq!(served.get("/clusters?filter=none").await, (200, String::new()));
}

#[test]
fn a_dump_holds_the_names_that_are_asked_for() {
    let mut dump = json!({"version": "1", "clusters": {"outbound|9080||a": {}, "inbound|9080||": {}}, "secrets": {}});
    dump::retain(&mut dump, |name| name.starts_with("outbound"));
    assert_eq!(dump, json!({"version": "1", "clusters": {"outbound|9080||a": {}}, "secrets": {}}));
}

#[tokio::test]
async fn the_configuration_is_dumped_whole_or_in_part() {
    let served = serve().await;
    let dump: Value = serde_json::from_str(&served.get("/config_dump?format=skiff").await.1).unwrap();
    for part in dump::RESOURCES {
        assert!(dump[part].is_object(), "{part}");
    }
    let part: Value = serde_json::from_str(&served.get("/config_dump?resource=routes").await.1).unwrap();
    assert_eq!(part.as_object().unwrap().keys().collect::<Vec<_>>(), ["routes", "version"]);
    assert_eq!(served.get("/config_dump?format=skiff&resource=keys").await.0, 400);
    assert_eq!(served.get("/config_dump?resource=keys").await.0, 404);
    let dump: Value = serde_json::from_str(&served.get("/config_dump").await.1).unwrap();
    let types: Vec<_> = dump["configs"].as_array().unwrap().iter().map(|config| config["@type"].as_str().unwrap()).collect();
    let names: Vec<_> = types.iter().map(|name| name.rsplit('.').next().unwrap()).collect();
    assert_eq!(names, ["BootstrapConfigDump", "ConfigDump", "SecretsConfigDump"]);
    assert_eq!(dump["configs"][1]["listeners"], json!({}));
}

#[tokio::test]
async fn unknown_paths_get_the_list() {
    let served = serve().await;
    let (status, body) = served.get("/nope").await;
    assert_eq!(status, 404);
    assert!(body.starts_with("invalid path. admin commands are:\n  /: "), "{body}");
    assert!(served.get("/help").await.1.contains("  /quitquitquit (POST): drain and exit\n"));
}

#[tokio::test]
async fn garbage_and_slow_heads_end_the_connection() {
    let served = serve().await;
    let huge = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * MAX_HEAD));
    for bytes in ["\0\u{1}\u{2}\r\n\r\n", huge.as_str()] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as a close.
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(served.get("/ready").await.0, 503);
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = bind(taken.local_addr().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains(&taken.local_addr().unwrap().to_string()) && error.contains("SKIFF_ADMIN_ADDRESS"), "{error}");
}

#[test]
fn clusters_look_like_envoys() {
    let endpoint = |address: &str, health: &str| EndpointStatus {
        address: address.to_owned(),
        health: health.to_owned(),
        active: 3,
        weight: 1,
        locality: "us-east-1/us-east-1a/".to_owned(),
        hostname: String::new(),
        priority: 0,
    };
    let cluster = ClusterStatus {
        name: "outbound|9080||details".to_owned(),
        endpoints: vec![endpoint("127.0.0.31:9080", "healthy"), endpoint("127.0.0.32:9080", "/failed_eds_health")],
    };
    let text = dump::clusters_text(std::slice::from_ref(&cluster), &Snapshot::default(), true);
    assert!(text.contains("outbound|9080||details::127.0.0.31:9080::rq_active::3\n"), "{text}");
    assert!(text.contains("outbound|9080||details::127.0.0.32:9080::health_flags::/failed_eds_health\n"), "{text}");
    assert!(text.contains("::zone::us-east-1a\n"), "{text}");
    let hosts = &dump::clusters_json(&[cluster], &Snapshot::default(), true)["cluster_statuses"][0]["host_statuses"];
    assert_eq!(hosts[0]["address"]["socket_address"], json!({"address": "127.0.0.31", "port_value": 9080}));
    assert_eq!(hosts[0]["health_status"], json!({"eds_health_status": "HEALTHY"}));
    assert_eq!(hosts[1]["health_status"], json!({"eds_health_status": "UNHEALTHY"}));
}

#[test]
fn listeners_look_like_envoys() {
    let listener = ListenerStatus {
        name: "127.0.0.2_9080".to_owned(),
        additional_addresses: Vec::new(),
        address: "127.0.0.2:9080".parse().unwrap(),
        state: ListenerState::Failed("address in use".to_owned()),
        connections: 0,
    };
    assert_eq!(dump::listeners_text(std::slice::from_ref(&listener)), "127.0.0.2_9080::127.0.0.2:9080\n");
    let status = &dump::listeners_json(&[listener])["listener_statuses"][0];
    assert_eq!(status["local_address"]["socket_address"]["port_value"], 9080);
    assert_eq!(status["state"]["Failed"], "address in use");
}

#[test]
fn certificates_show_how_long_they_last() {
    let status = |name: &str, identity: &str| CertificateStatus {
        name: name.to_owned(),
        identities: vec![identity.to_owned()],
        serial: "0a1b".to_owned(),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::now() + Duration::from_secs(10 * 24 * 3600 + 60),
    };
    let certs = dump::certificates(&[status("default", "spiffe://td/ns/a/sa/b"), status("ROOTCA", "O=root")]);
    let leaf = &certs["certificates"][0]["cert_chain"][0];
    assert_eq!(leaf["subject_alt_names"], json!([{"uri": "spiffe://td/ns/a/sa/b"}]));
    assert_eq!((&leaf["days_until_expiration"], &leaf["valid_from"]), (&json!("10"), &json!("1970-01-01T00:00:00Z")));
    assert_eq!(certs["certificates"][1]["ca_cert"][0]["serial_number"], "0a1b");
}
