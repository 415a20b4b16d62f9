//! What Istio's tools and Kubernetes ask a sidecar in a mesh, from outside: ports 15020, 15021, 15090 and Envoy's admin page.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use skiff_proto::ENVOY_DESCRIPTORS;
use skiff_proto::envoy::admin::v3::{
    BootstrapConfigDump, ClustersConfigDump, ConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump,
    SecretsConfigDump,
};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3::{HealthStatus, data_source::Specifier};
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use skiff_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use skiff_proto::google::protobuf::Any;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{self, Answer, Connection};
use skiff_tests::istiod::Istiod;
use skiff_tests::mesh::{Mesh, RATINGS};
use skiff_tests::metrics::Metrics;
use skiff_tests::network::Network;
use skiff_tests::skiff::Skiff;
use skiff_tests::wait::{eventually, within};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

const DETAILS_CLUSTER: &str = "outbound|9080||details.bookinfo.svc.cluster.local";

/// ratings in a mesh with a fake istiod.
struct Joined {
    istiod: Istiod,
    ratings: Skiff,
    // Gives its addresses back when nobody is on them any more.
    mesh: Mesh,
}

impl Joined {
    async fn with(variables: &[(&str, &str)]) -> Self {
        let mesh = Mesh::prepare_on(Network::claim_short()).await;
        let istiod = start_istiod(&mesh).await;
        let ratings = spawn(&mesh, variables);
        ratings.ready().await;
        Self { istiod, ratings, mesh }
    }

    fn at(&self, port: u16) -> SocketAddr {
        at(&self.mesh, port)
    }
}

fn at(mesh: &Mesh, port: u16) -> SocketAddr {
    mesh.ingress(RATINGS, port)
}

async fn start_istiod(mesh: &Mesh) -> Istiod {
    Istiod::start(&mesh.network, mesh.network.at(16, 15012), &mesh.authority()).await
}

fn spawn(mesh: &Mesh, variables: &[(&str, &str)]) -> Skiff {
    let proxy_config = format!(r#"{{"discoveryAddress": "{}"}}"#, mesh.network.at(16, 15012));
    mesh.spawn_without_documents(RATINGS, &[&[("PROXY_CONFIG", proxy_config.as_str())], variables].concat())
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

/// A dump, decoded as strictly as protobuf's JSON form is. Types that are not known here give way to an empty one, by name.
fn decode(text: &str) -> (ConfigDump, BTreeSet<String>) {
    let pool = DescriptorPool::decode(ENVOY_DESCRIPTORS).unwrap();
    let (mut json, mut unknown) = (serde_json::from_str(text).unwrap(), BTreeSet::new());
    replace_unknown(&mut json, &pool, &mut unknown);
    let descriptor = pool.get_message_by_name("envoy.admin.v3.ConfigDump").unwrap();
    let dump = DynamicMessage::deserialize(descriptor, json).unwrap();
    (dump.transcode_to().unwrap(), unknown)
}

fn replace_unknown(json: &mut Value, pool: &DescriptorPool, unknown: &mut BTreeSet<String>) {
    if let Some(kind) = json.get("@type").and_then(Value::as_str) {
        let name = kind.rsplit('/').next().unwrap().to_owned();
        if pool.get_message_by_name(&name).is_none() {
            unknown.insert(name);
            *json = serde_json::json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}});
            return;
        }
    }
    match json {
        Value::Object(object) => object.values_mut().for_each(|value| replace_unknown(value, pool, unknown)),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_unknown(item, pool, unknown)),
        _ => {}
    }
}

fn section<T: Message + Name + Default>(dump: &ConfigDump) -> T {
    let found = dump.configs.iter().find(|any| any.type_url == format!("type.googleapis.com/{}", T::full_name()));
    T::decode(found.unwrap_or_else(|| panic!("no {}", T::full_name())).value.as_slice()).unwrap()
}

fn unpack<T: Message + Default>(any: Option<&Any>) -> T {
    T::decode(any.unwrap().value.as_slice()).unwrap()
}

/// What the fake istiod sent of a type, decoded.
fn sent<T: Message + Default>(network: &Network, kind: &str) -> Vec<T> {
    let file = format!("{}/data/istiod/{kind}.bin", env!("CARGO_MANIFEST_DIR"));
    let response = DeltaDiscoveryResponse::decode(network.localise_bytes(&std::fs::read(file).unwrap()).as_slice()).unwrap();
    response.resources.iter().map(|resource| unpack(resource.resource.as_ref())).collect()
}

#[tokio::test]
async fn the_dump_is_what_istiod_sent_in_envoys_shape() {
    let joined = Joined::with(&[]).await;
    let text = joined.ratings.page("/config_dump?include_eds").await.text();
    let (dump, unknown) = decode(&text);
    assert!(
        unknown.iter().all(|name| !name.starts_with("envoy.") || name.starts_with("envoy.tcp.metadataexchange")),
        "{unknown:?}"
    );

    let bootstrap: BootstrapConfigDump = section(&dump);
    let node = bootstrap.bootstrap.unwrap().node.unwrap();
    assert!(node.id.starts_with("sidecar~") && node.metadata.unwrap().fields.contains_key("ISTIO_VERSION"));

    let clusters: ClustersConfigDump = section(&dump);
    let shown = clusters.dynamic_active_clusters.iter().map(|one| unpack::<Cluster>(one.cluster.as_ref()).name);
    let names: BTreeSet<String> = sent::<Cluster>(&joined.mesh.network, "CDS").into_iter().map(|one| one.name).collect();
    assert_eq!(shown.collect::<BTreeSet<_>>(), names);
    assert!(clusters.dynamic_active_clusters.iter().all(|one| one.last_updated.is_some() && one.error_state.is_none()));
    assert!(clusters.dynamic_warming_clusters.is_empty());

    let endpoints: EndpointsConfigDump = section(&dump);
    let shown: Vec<ClusterLoadAssignment> =
        endpoints.dynamic_endpoint_configs.iter().map(|one| unpack(one.endpoint_config.as_ref())).collect();
    let all = sent::<ClusterLoadAssignment>(&joined.mesh.network, "EDS");
    for mut assignment in shown.clone() {
        // istiod says nothing of health; the dump says how they are.
        for endpoint in assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints) {
            assert_eq!(std::mem::take(&mut endpoint.health_status), HealthStatus::Healthy as i32);
        }
        assert_eq!(Some(&assignment), all.iter().find(|one| one.cluster_name == assignment.cluster_name));
    }
    assert!(!shown.is_empty());

    let listeners: ListenersConfigDump = section(&dump);
    for listener in &listeners.dynamic_listeners {
        let state = listener.active_state.as_ref().unwrap();
        assert_eq!(unpack::<Listener>(state.listener.as_ref()).name, listener.name);
    }
    assert_eq!(listeners.dynamic_listeners.len(), sent::<Listener>(&joined.mesh.network, "LDS").len());
    assert!(!section::<RoutesConfigDump>(&dump).dynamic_route_configs.is_empty());

    let without = joined.ratings.page("/config_dump").await.text();
    assert!(!without.contains("EndpointsConfigDump"));
    let model: Value = serde_json::from_str(&joined.ratings.page("/config_dump?format=skiff").await.text()).unwrap();
    assert!(model["clusters"][DETAILS_CLUSTER].is_object(), "skiff's own model is there too");
    istioctl_reads(&text, &joined.ratings.page("/clusters?format=json").await.text());
}

/// With `SKIFF_ISTIOCTL` the real tool reads the dump, and what it asks about endpoints, as well.
fn istioctl_reads(dump: &str, clusters: &str) {
    let Some(istioctl) = std::env::var_os("SKIFF_ISTIOCTL") else { return };
    for (what, page, says) in [
        ("cluster", dump, "details.bookinfo.svc.cluster.local"),
        ("listener", dump, "9080"),
        ("route", dump, "9080"),
        ("eds", dump, DETAILS_CLUSTER),
        ("secret", dump, "ACTIVE"),
        ("bootstrap", dump, "ISTIO_VERSION"),
        ("all", dump, "ROOTCA"),
        ("endpoint", clusters, "HEALTHY"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(page.as_bytes()).unwrap();
        let mut command = std::process::Command::new(&istioctl);
        let output = command.args(["proxy-config", what, "--file"]).arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        println!("istioctl proxy-config {what}:\n{text}");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains(says), "{what}: {complaint}{text}");
    }
}

#[tokio::test]
async fn the_dump_shows_certificates_and_no_key() {
    let joined = Joined::with(&[]).await;
    let (dump, _) = decode(&joined.ratings.page("/config_dump").await.text());
    let secrets: SecretsConfigDump = section(&dump);
    let inline = |source: Option<&Specifier>| match source {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("expected inline bytes, found {other:?}"),
    };
    let mut seen = BTreeSet::new();
    for one in &secrets.dynamic_active_secrets {
        let content: Secret = unpack(one.secret.as_ref());
        assert_eq!(content.name, one.name);
        match content.r#type.unwrap() {
            secret::Type::TlsCertificate(certificate) => {
                let chain = inline(certificate.certificate_chain.unwrap().specifier.as_ref());
                let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
                let leaf = pem.parse_x509().unwrap();
                let san = leaf.subject_alternative_name().unwrap().unwrap();
                assert!(format!("{:?}", san.value).contains("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"));
                assert_eq!(inline(certificate.private_key.unwrap().specifier.as_ref()), "[redacted]");
            }
            secret::Type::ValidationContext(context) => {
                let roots = inline(context.trusted_ca.unwrap().specifier.as_ref());
                assert!(x509_parser::pem::parse_x509_pem(roots.as_bytes()).unwrap().1.parse_x509().unwrap().is_ca());
            }
            other => panic!("{other:?}"),
        }
        seen.insert(one.name.as_str());
    }
    assert_eq!(seen, BTreeSet::from(["ROOTCA", "default"]));
    let key = base64::engine::general_purpose::STANDARD.encode("PRIVATE KEY");
    for path in ["/config_dump?include_eds", "/config_dump?format=skiff", "/config_dump?resource=dynamic_active_secrets"] {
        let text = joined.ratings.page(path).await.text();
        assert!(!text.contains("PRIVATE KEY") && !text.contains(&key[..12]), "{path}");
    }
}

#[tokio::test]
async fn parts_of_the_dump_and_what_was_refused() {
    let joined = Joined::with(&[]).await;
    let json = async |path: &str| -> Value { serde_json::from_str(&joined.ratings.page(path).await.text()).unwrap() };
    let part =
        json("/config_dump?resource=dynamic_active_clusters&mask=cluster.name,version_info&name_regex=^outbound.*details").await;
    let configs = part["configs"].as_array().unwrap();
    assert!(configs.iter().any(|one| one["cluster"]["name"] == DETAILS_CLUSTER), "{part:#}");
    for one in configs {
        assert_eq!(one["@type"], "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster");
        assert_eq!(one["cluster"].as_object().unwrap().keys().collect::<Vec<_>>(), ["@type", "name"]);
        assert!(one["cluster"]["name"].as_str().unwrap().contains("details") && one.get("last_updated").is_none(), "{one:#}");
    }
    let answer = joined.ratings.page("/config_dump?resource=nothing").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("nothing not found in config dump"), "{}", answer.text());

    joined
        .istiod
        .push::<Cluster>(DETAILS_CLUSTER, |mut cluster| {
            cluster.connect_timeout.as_mut().unwrap().seconds = -1;
            Some(cluster)
        })
        .await;
    joined.istiod.hears("a NACK", |heard| heard.error.is_some()).await;
    let (dump, _) = decode(&joined.ratings.page("/config_dump").await.text());
    let clusters: ClustersConfigDump = section(&dump);
    let refused: Vec<_> = clusters.dynamic_active_clusters.iter().filter(|one| one.error_state.is_some()).collect();
    let [refused] = refused.as_slice() else { panic!("expected one, found {}", refused.len()) };
    let state = refused.error_state.as_ref().unwrap();
    assert!(state.details.contains("connect_timeout"), "{}", state.details);
    let bad: Cluster = unpack(state.failed_configuration.as_ref());
    let good: Cluster = unpack(refused.cluster.as_ref());
    assert_eq!((good.name.as_str(), bad.name.as_str()), (DETAILS_CLUSTER, DETAILS_CLUSTER));
    assert!(bad.connect_timeout.unwrap().seconds < 0 && good.connect_timeout.unwrap().seconds > 0);

    joined.istiod.push::<Cluster>(DETAILS_CLUSTER, |_| None).await;
    eventually("the cluster is gone", async || {
        let dump = json("/config_dump?resource=dynamic_active_clusters").await;
        (!dump.to_string().contains(DETAILS_CLUSTER)).then_some(())
    })
    .await;
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
