//! A sidecar in a mesh: it joins, follows what istiod sends and outlives istiod.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::SocketAddr;

use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http;
use skiff_tests::istiod::{HEALTH, Istiod};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS};
use skiff_tests::network::Network;
use skiff_tests::skiff::Skiff;
use skiff_tests::wait::eventually;

const DETAILS_CLUSTER: &str = "outbound|9080||details.bookinfo.svc.cluster.local";
const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// ratings in a mesh with a fake istiod; details from documents, as any sidecar of the mesh.
struct Joined {
    istiod: Istiod,
    ratings: Skiff,
    details: Skiff,
    app: App,
    // Gives its addresses back when nobody is on them any more.
    mesh: Mesh,
}

impl Joined {
    async fn with(variables: &[(&str, &str)], proxy_config: &str) -> Self {
        let mesh = Mesh::prepare_on(Network::claim_short()).await;
        let address = mesh.network.at(16, 15012);
        let istiod = Istiod::start(&mesh.network, address, &mesh.authority()).await;
        let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
        let details = mesh.spawn(DETAILS_V1, &[]);
        istiod.endpoints(DETAILS_CLUSTER, &[mesh.ingress(DETAILS_V1, 9080)]).await;
        let proxy_config = format!(r#"{{"discoveryAddress": "{address}"{proxy_config}}}"#);
        let ratings = mesh.spawn_without_documents(RATINGS, &[&[("PROXY_CONFIG", proxy_config.as_str())], variables].concat());
        ratings.ready().await;
        details.ready().await;
        Self { istiod, ratings, details, app, mesh }
    }

    async fn new() -> Self {
        Self::with(&[], "").await
    }

    fn egress(&self) -> SocketAddr {
        self.mesh.egress(RATINGS, 9080)
    }

    async fn status(&self) -> u16 {
        http::get(self.egress(), DETAILS, "/details/0").await.status
    }

    async fn metric(&self, name: &str) -> f64 {
        self.ratings.metrics().await.sum(name, &[])
    }
}

#[tokio::test]
async fn it_joins_by_delta_and_carries_traffic() {
    joins_and_carries_traffic("true").await;
}

#[tokio::test]
async fn it_joins_by_state_of_the_world_and_carries_traffic() {
    joins_and_carries_traffic("false").await;
}

async fn joins_and_carries_traffic(delta: &str) {
    let joined = Joined::with(&[("ISTIO_DELTA_XDS", delta), ("ISTIO_META_AUTO_REGISTER_GROUP", "ratings")], "").await;
    let first = joined.istiod.hears("the first request", |heard| !heard.metadata.is_empty()).await;
    assert_eq!(first.type_url, CLUSTERS);
    for key in ["AUTO_REGISTER_GROUP", "INTERCEPTION_MODE", "INSTANCE_IPS", "NAMESPACE", "SERVICE_ACCOUNT", "PROXY_CONFIG"] {
        assert!(first.metadata.contains(key), "{key} is missing in {:?}", first.metadata);
    }
    let answer = http::get_as(joined.egress(), DETAILS, "/details/0", "joined").await;
    assert_eq!(answer.status, 200);
    let request = joined.app.last_request();
    let xfcc = request.header("x-forwarded-client-cert").unwrap();
    assert!(xfcc.contains("URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"), "{xfcc}");
    let line = joined.ratings.stdout.line_with("joined").await;
    assert!(line.contains(DETAILS_CLUSTER), "{line}");
    joined.details.stdout.line_with("joined").await;
    // Both say who they are, whether documents or istiod configured them.
    let sides = [
        ("source_workload", "ratings-v1"),
        ("source_workload_namespace", "bookinfo"),
        ("source_app", "ratings"),
        ("source_canonical_service", "ratings"),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", "details-v1"),
        ("destination_app", "details"),
        ("destination_version", "v1"),
        ("destination_service", "details.bookinfo.svc.cluster.local"),
        ("response_code", "200"),
    ];
    for sidecar in [&joined.ratings, &joined.details] {
        assert_eq!(sidecar.metrics().await.only("istio_requests_total", &sides).value, 1.0);
    }
    assert_eq!(joined.metric("skiff_xds_connected").await, 1.0);
}

#[tokio::test]
async fn endpoints_come_and_go_within_a_push() {
    let joined = Joined::new().await;
    assert_eq!(joined.status().await, 200);
    joined.istiod.endpoints(DETAILS_CLUSTER, &[]).await;
    eventually("no stale endpoint is used", async || (joined.status().await == 503).then_some(())).await;
    let line = joined.ratings.stdout.line_with(" UH ").await;
    assert!(line.contains("no_healthy_upstream"), "{line}");
    joined.istiod.endpoints(DETAILS_CLUSTER, &[joined.mesh.ingress(DETAILS_V1, 9080)]).await;
    eventually("the endpoint is back", async || (joined.status().await == 200).then_some(())).await;
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_last_good_one_serves_on() {
    let joined = Joined::new().await;
    joined.istiod.forget();
    joined
        .istiod
        .push::<Cluster>(DETAILS_CLUSTER, |mut cluster| {
            cluster.connect_timeout.as_mut().unwrap().seconds = -1;
            Some(cluster)
        })
        .await;
    let nack = joined.istiod.hears("a NACK", |heard| heard.error.is_some()).await;
    let error = nack.error.unwrap();
    assert!(nack.type_url == CLUSTERS && error.contains(DETAILS_CLUSTER) && error.contains("connect_timeout"), "{error}");
    let line = joined.ratings.stderr.line_with("CDS rejected").await;
    assert!(line.contains("connect_timeout"), "{line}");
    assert_eq!(joined.status().await, 200);
    assert_eq!(joined.ratings.metrics().await.sum("skiff_xds_responses_rejected_total", &[("type", "CDS")]), 1.0);
}

#[tokio::test]
async fn traffic_does_not_notice_that_istiod_is_gone_and_back() {
    let mut joined = Joined::new().await;
    joined.istiod.stop().await;
    joined.ratings.stderr.line_with("no connection to the control plane").await;
    for _ in 0..20 {
        assert_eq!(joined.status().await, 200);
    }
    assert!(joined.ratings.is_ready().await, "losing the control plane does not take the sidecar out of service");
    assert_eq!(joined.metric("skiff_xds_connected").await, 0.0);
    joined.istiod.forget();
    joined.istiod.resume().await;
    let again = joined.istiod.hears("the sidecar again", |heard| heard.type_url == CLUSTERS && !heard.metadata.is_empty()).await;
    assert!(again.known.contains(DETAILS_CLUSTER), "it says what it has: {:?}", again.known);
    assert_eq!(joined.status().await, 200);
    assert_eq!(joined.metric("skiff_drained_connections_total").await, 0.0, "nothing changed, nothing drains");
}

#[tokio::test]
async fn the_applications_health_is_reported() {
    let network = Network::claim_short();
    let port = 18_080;
    let probe = format!(
        r#", "readinessProbe": {{"tcpSocket": {{"host": "{}", "port": {port}}}, "periodSeconds": 1, "failureThreshold": 1}}"#,
        network.ip(99)
    );
    let mut probed = App::start(network.at(99, port), Speaks::Http);
    let joined = Joined::with(&[], &probe).await;
    joined.istiod.hears("a good report", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
    probed.stop().await;
    let bad = joined.istiod.hears("a bad report", |heard| heard.type_url == HEALTH && heard.error.is_some()).await;
    assert!(bad.error.unwrap().contains(&port.to_string()));
    probed.restart();
    joined.istiod.forget();
    joined.istiod.hears("a good report again", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
}
