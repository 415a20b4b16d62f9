//! A sidecar in a mesh: it joins, follows what istiod sends and outlives istiod. With `SKIFF_TEST_ISTIOD` the tests of `living` run
//! against a real one (`skiff_tests::living` says how).
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "istiod/living.rs"]
mod living;

use std::net::SocketAddr;

use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::{AdditionalAddress, Listener};
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proto::google::protobuf::Duration;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http;
use skiff_tests::istiod::{HEALTH, Istiod, NAME, Oddity};
use skiff_tests::joined::{spawn, start_istiod};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS};
use skiff_tests::network::Network;
use skiff_tests::skiff::Skiff;
use skiff_tests::tls::Authority;
use skiff_tests::wait::eventually;
use tonic::Code;

const DETAILS_CLUSTER: &str = "outbound|9080||details.bookinfo.svc.cluster.local";
const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

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
        let istiod = Istiod::start(&mesh.network, address, mesh.authority()).await;
        let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
        let details = mesh.spawn(DETAILS_V1, &[]);
        istiod.endpoints(DETAILS_CLUSTER, &[mesh.ingress(DETAILS_V1, 9080)]).await;
        let proxy_config = format!(r#"{{"discoveryAddress": "{address}"{proxy_config}}}"#);
        // Certificates come from the same port.
        let address = address.to_string();
        let own = [("PROXY_CONFIG", proxy_config.as_str()), ("CA_ADDR", address.as_str())];
        let ratings = mesh.spawn_without_documents(RATINGS, &[&own, variables].concat());
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

    /// A change at istiod arrives.
    async fn follows(&self) {
        eventually("a change arrives", async || {
            self.istiod.endpoints(DETAILS_CLUSTER, &[]).await;
            (self.status().await == 503).then_some(())
        })
        .await;
        eventually("and the next one", async || {
            self.istiod.endpoints(DETAILS_CLUSTER, &[self.mesh.ingress(DETAILS_V1, 9080)]).await;
            (self.status().await == 200).then_some(())
        })
        .await;
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

/// They exist, with nobody in them, and hold nothing up for longer than they say.
#[tokio::test]
async fn endpoints_that_never_come_are_waited_for_as_long_as_their_cluster_says() {
    let mesh = Mesh::prepare_on(Network::claim_short()).await;
    let istiod = start_istiod(&mesh).await;
    istiod.push::<ClusterLoadAssignment>(DETAILS_CLUSTER, |_| None).await;
    istiod
        .push::<Cluster>(DETAILS_CLUSTER, |mut cluster| {
            let eds = cluster.eds_cluster_config.as_mut()?.eds_config.as_mut()?;
            eds.initial_fetch_timeout = Some(Duration { seconds: 0, nanos: 50_000_000 });
            Some(cluster)
        })
        .await;
    let ratings = spawn(&mesh, &[]);
    istiod.hears("the endpoints are asked for", |heard| heard.names.contains(DETAILS_CLUSTER)).await;
    ratings.ready().await;
    let egress = mesh.egress(RATINGS, 9080);
    assert_eq!(http::get(egress, DETAILS, "/never").await.status, 503);
    let line = ratings.stdout.line_with("/never").await;
    assert!(line.contains(" UH no_healthy_upstream "), "{line}");
    assert_eq!(ratings.metrics().await.sum("skiff_config_rejected_resources", &[]), 0.0);

    let _app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let details = mesh.spawn(DETAILS_V1, &[]);
    details.ready().await;
    istiod.endpoints(DETAILS_CLUSTER, &[mesh.ingress(DETAILS_V1, 9080)]).await;
    let served = async || (http::get(egress, DETAILS, "/late").await.status == 200).then_some(());
    eventually("they come after all", served).await;
}

/// Addresses come and go with their listener, and what it serves on stays open meanwhile.
#[tokio::test]
async fn a_listener_is_there_on_all_of_its_addresses() {
    let joined = Joined::new().await;
    let (first, second) = (joined.egress(), joined.mesh.network.at(4, 9080));
    let name = format!("{}_{}", first.ip(), first.port());
    assert!(http::try_get(second, DETAILS, "/details/0").await.is_err());
    let listens = async |also: bool| {
        let more = AdditionalAddress {
            address: Some(core::Address {
                address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                    address: second.ip().to_string(),
                    port_specifier: Some(core::socket_address::PortSpecifier::PortValue(second.port().into())),
                    ..core::SocketAddress::default()
                })),
            }),
            ..AdditionalAddress::default()
        };
        let edit = |mut listener: Listener| {
            listener.additional_addresses = also.then_some(more).into_iter().collect();
            Some(listener)
        };
        joined.istiod.push::<Listener>(&name, edit).await;
        let there = async || (http::try_get(second, DETAILS, "/details/0").await.is_ok() == also).then_some(());
        eventually("the second address follows", there).await;
    };
    listens(true).await;
    assert_eq!(http::get(second, DETAILS, "/details/0").await.status, 200);
    assert_eq!(joined.status().await, 200);
    let page = joined.ratings.page("/listeners?format=json").await.text();
    assert!(page.contains("additional_local_addresses") && page.contains(&second.ip().to_string()), "{page}");
    listens(false).await;
    assert_eq!(joined.status().await, 200);
    assert_eq!(joined.metric("skiff_config_rejected_resources").await, 0.0);
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

#[tokio::test]
async fn what_one_type_cannot_say_holds_no_other_up_and_is_taken_back() {
    let joined = Joined::new().await;
    joined.istiod.forget();
    joined
        .istiod
        .push::<RouteConfiguration>("9080", |mut routes| {
            routes.virtual_hosts[0].domains.clear();
            Some(routes)
        })
        .await;
    let nack = joined.istiod.hears("a NACK", |heard| heard.error.is_some()).await;
    assert!(nack.type_url == ROUTES && nack.error.unwrap().contains("domains"));
    joined.istiod.endpoints(DETAILS_CLUSTER, &[]).await;
    eventually("endpoints go on", async || (joined.status().await == 503).then_some(())).await;
    joined.istiod.endpoints(DETAILS_CLUSTER, &[joined.mesh.ingress(DETAILS_V1, 9080)]).await;
    eventually("and come back", async || (joined.status().await == 200).then_some(())).await;
}

#[tokio::test]
async fn a_removed_cluster_is_gone_within_a_second() {
    let joined = Joined::new().await;
    joined.istiod.push::<Cluster>(DETAILS_CLUSTER, |_| None).await;
    eventually("its route has no cluster", async || (joined.status().await == 503).then_some(())).await;
    let line = joined.ratings.stdout.line_with(" NC ").await;
    assert!(line.contains("cluster_not_found"), "{line}");
}

#[tokio::test]
async fn of_the_state_of_the_world_a_part_of_the_endpoints_leaves_the_others() {
    let joined = Joined::with(&[("ISTIO_DELTA_XDS", "false")], "").await;
    joined.istiod.forget();
    // What is sent holds one assignment only, another one.
    joined.istiod.endpoints("outbound|9080||reviews.bookinfo.svc.cluster.local", &[]).await;
    joined.istiod.hears("the answer", |heard| heard.type_url == ENDPOINTS && heard.nonce == "pushed").await;
    assert_eq!(joined.status().await, 200);
}

#[tokio::test]
async fn the_same_again_drains_nothing() {
    let joined = Joined::new().await;
    let mut kept = http::Connection::open(joined.egress()).await.unwrap();
    let request = http::get_request(DETAILS, "/", "");
    assert_eq!(kept.ask(&request).await.unwrap().status, 200);
    joined.istiod.forget();
    for kind in [CLUSTERS, ENDPOINTS, LISTENERS, ROUTES] {
        joined.istiod.repeat(kind).await;
        let answer = joined.istiod.hears("the answer", |heard| heard.type_url == kind && heard.nonce == "pushed").await;
        assert_eq!(answer.error, None);
    }
    assert_eq!(kept.ask(&request).await.unwrap().status, 200);
    assert_eq!(joined.metric("skiff_drained_connections_total").await, 0.0);
}

#[tokio::test]
async fn an_istiod_that_misbehaves_is_survived() {
    let mut joined = Joined::new().await;
    let oddities = [
        Oddity::Refuse(Code::Unauthenticated),
        Oddity::Refuse(Code::Unimplemented),
        Oddity::Break,
        Oddity::Huge,
        Oddity::Drip,
        Oddity::GoAway,
        Oddity::Garbage,
        Oddity::Nameless,
        Oddity::Twice,
        Oddity::NoNonce,
        Oddity::Foreign,
    ];
    for oddity in oddities {
        joined.istiod.stop().await;
        joined.istiod.misbehave(oddity);
        joined.istiod.resume().await;
        eventually("it misbehaves", async || joined.istiod.has_misbehaved().then_some(())).await;
        assert_eq!(joined.status().await, 200, "{oddity:?}");
        assert!(joined.ratings.is_ready().await, "{oddity:?}");
        // It is followed again afterwards.
        joined.follows().await;
    }
}

#[tokio::test]
async fn an_istiod_that_shows_the_wrong_certificate_is_not_followed() {
    let mut joined = Joined::new().await;
    let authority = joined.mesh.authority();
    let expired = authority.expired_for_name(NAME);
    for (identity, reason) in [
        (expired, "expired"),
        (authority.issue_for_name("istiod.elsewhere.svc"), "not valid for name"),
        (Authority::stranger().issue_for_name(NAME), "UnknownIssuer"),
    ] {
        joined.istiod.stop().await;
        joined.istiod.show(identity);
        joined.istiod.forget();
        joined.istiod.resume().await;
        joined.ratings.stderr.line_with(reason).await;
        assert!(joined.istiod.heard().is_empty(), "nothing was said to it");
        assert_eq!(joined.status().await, 200);
    }
    joined.istiod.stop().await;
    joined.istiod.show(authority.issue_for_name(NAME));
    joined.istiod.resume().await;
    joined.follows().await;
}

#[tokio::test]
async fn when_the_token_has_ended_the_certificate_renews_itself_and_opens_streams() {
    let mut joined = Joined::with(&[("SECRET_TTL", "4s")], "").await;
    joined.istiod.revoke(&joined.mesh.token(RATINGS));
    let before = joined.istiod.certificates_issued();
    eventually("three certificates more", async || {
        assert_eq!(joined.status().await, 200);
        (joined.istiod.certificates_issued() >= before + 3).then_some(())
    })
    .await;
    joined.istiod.stop().await;
    joined.istiod.forget();
    joined.istiod.resume().await;
    joined.istiod.hears("the sidecar again", |heard| heard.type_url == CLUSTERS && !heard.metadata.is_empty()).await;
    assert_eq!(joined.status().await, 200);
}

#[tokio::test]
async fn a_new_root_and_a_new_token_are_taken_up() {
    let mut joined = Joined::new().await;
    // The old and the new root, then the new one shows itself.
    let new = Authority::stranger();
    joined.istiod.forget();
    joined.mesh.trust(&[joined.mesh.authority().root_pem(), new.root_pem()]);
    joined.istiod.hears("a new stream", |heard| heard.type_url == CLUSTERS && !heard.metadata.is_empty()).await;
    joined.istiod.stop().await;
    joined.istiod.show(new.issue_for_name(NAME));
    joined.istiod.revoke(&joined.mesh.token(RATINGS));
    joined.mesh.renew_token(RATINGS);
    joined.istiod.resume().await;
    joined.follows().await;
    assert_eq!(joined.metric("skiff_drained_connections_total").await, 0.0);
}

#[tokio::test]
async fn it_registers_itself_once_its_group_exists() {
    let mesh = Mesh::prepare_on(Network::claim_short()).await;
    let address = mesh.network.at(16, 15012);
    let mut istiod = Istiod::start(&mesh.network, address, mesh.authority()).await;
    istiod.groups(&[]);
    let proxy_config = format!(r#"{{"discoveryAddress": "{address}"}}"#);
    let variables = [("PROXY_CONFIG", proxy_config.as_str()), ("ISTIO_META_AUTO_REGISTER_GROUP", "ratings")];
    let ratings = mesh.spawn_without_documents(RATINGS, &variables);
    ratings.stderr.line_with("cannot find WorkloadGroup").await;
    assert!(!ratings.is_ready().await);
    istiod.groups(&["ratings"]);
    ratings.ready().await;
    istiod.registered("one entry", |entries| matches!(entries, [entry] if entry.connected)).await;
    // A restart of istiod finds the same entry again.
    istiod.stop().await;
    istiod.registered("nobody is connected", |entries| matches!(entries, [entry] if !entry.connected)).await;
    istiod.resume().await;
    istiod.registered("the same entry", |entries| matches!(entries, [entry] if entry.connected)).await;
    drop(ratings);
    istiod.registered("nobody is connected", |entries| matches!(entries, [entry] if !entry.connected)).await;
}

#[tokio::test]
async fn a_push_of_a_thousand_services_fails_no_request() {
    let joined = Joined::new().await;
    joined.istiod.forget();
    joined.istiod.multiply(DETAILS_CLUSTER, 1_000).await;
    let taken = || {
        let heard = joined.istiod.heard();
        let mut answers = heard.iter().skip_while(|one| one.names.len() < 1_000).skip(1);
        answers.any(|one| one.type_url == ENDPOINTS && !one.nonce.is_empty() && one.error.is_none())
    };
    eventually("all are taken", async || {
        assert_eq!(joined.status().await, 200);
        taken().then_some(())
    })
    .await;
    assert_eq!(joined.status().await, 200);
    assert_eq!(joined.metric("skiff_xds_responses_rejected_total").await, 0.0);
    assert_eq!(joined.metric("skiff_drained_connections_total").await, 0.0);
}
