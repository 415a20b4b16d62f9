//! The protocol against what istiod sent and istio-agent answered (`testdata/xds`), and what is warm when.

mod captures;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::{Message, Name};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, Resource};
use skiff_proto::google::protobuf::{self as pb, Any};
use skiff_proxy::config::Snapshot;

use super::recorded::{response, stream as recorded};
use super::resources::{INITIAL_FETCH_TIMEOUT, REMOVAL_DELAY};
use super::{Handled, Kind, Protocol, Request, Resources, Response, Session};

/// Handles a response and answers it, as the client does.
fn step(session: &mut Session, resources: &mut Resources, response: Response) -> (Handled, Vec<Request>) {
    let now = Instant::now();
    let mut handled = session.handle(response, resources, now);
    let mut requests = std::mem::take(&mut handled.requests);
    requests.extend(session.acknowledge(&handled));
    (handled, requests)
}

/// What a delta request says, without the node.
fn said(request: &Request) -> (String, BTreeSet<String>, BTreeSet<String>, bool, bool) {
    let Request::Delta(delta) = request else { panic!("expected delta, found {request:?}") };
    let set = |names: &[String]| names.iter().cloned().collect();
    let (subscribe, unsubscribe) = (set(&delta.resource_names_subscribe), set(&delta.resource_names_unsubscribe));
    (delta.type_url.clone(), subscribe, unsubscribe, !delta.response_nonce.is_empty(), delta.error_detail.is_some())
}

#[test]
fn a_stream_begins_as_that_of_istio_agent() {
    let (mut session, mut resources) =
        (Session::new(Protocol::Delta, Node { id: "me".to_owned(), ..Node::default() }), Resources::default());
    let opened = session.open(&mut resources, Instant::now());
    let [Request::Delta(first)] = opened.as_slice() else { panic!("{opened:?}") };
    assert_eq!((first.type_url.as_str(), &first.node.as_ref().unwrap().id[..]), (&Kind::Cluster.type_url()[..], "me"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (name, bytes) in recorded("istio-agent") {
        match response(&name, &bytes) {
            Some(response) => {
                let (handled, requests) = step(&mut session, &mut resources, response);
                assert!(handled.rejected.is_empty(), "{name}: {:?}", handled.rejected);
                ours.extend(requests.iter().map(said));
            }
            None if name.contains("HEALTH") => {}
            None => theirs.push(said(&Request::Delta(DeltaDiscoveryRequest::decode(bytes.as_slice()).unwrap()))),
        }
    }
    // Both ask for the listeners once the endpoints have come; istio-agent's acknowledgement of the endpoints overtakes it.
    let listeners = ours.iter().position(|(kind, _, _, nonce, _)| *kind == Kind::Listener.type_url() && !nonce).unwrap();
    ours.swap(listeners, listeners + 1);
    assert_eq!(ours, theirs);
}

/// Replays a recorded stream of changes; the snapshot after each response.
fn replay(stream: &str, protocol: Protocol) -> Vec<(String, bool, Arc<Snapshot>)> {
    let (mut session, mut resources) = (Session::new(protocol, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    let mut seen = Vec::new();
    for (name, bytes) in recorded(stream) {
        let Some(response) = response(&name, &bytes) else { continue };
        let (handled, requests) = step(&mut session, &mut resources, response);
        assert!(handled.rejected.is_empty(), "{name}: {:?}", handled.rejected);
        let acknowledged = requests.iter().any(|request| match request {
            Request::Delta(DeltaDiscoveryRequest { response_nonce, error_detail, .. })
            | Request::StateOfTheWorld(DiscoveryRequest { response_nonce, error_detail, .. }) => {
                !response_nonce.is_empty() && error_detail.is_none()
            }
        });
        assert!(acknowledged, "{name} was not acknowledged");
        let later = Instant::now() + REMOVAL_DELAY;
        seen.push((name, handled.changed, resources.publish("", later).snapshot));
    }
    seen
}

#[test]
fn a_series_of_changes_ends_where_it_began_on_both_protocols() {
    let (delta, world) = (replay("delta", Protocol::Delta), replay("sotw", Protocol::StateOfTheWorld));
    for stream in [&delta, &world] {
        let joined = &stream.iter().find(|(name, ..)| name.contains("RDS")).unwrap().2;
        let last = &stream.last().unwrap().2;
        assert_eq!(joined, last, "every change was taken back");
        assert!(stream.iter().any(|(_, _, snapshot)| snapshot.clusters.len() > joined.clusters.len()));
    }
    // Each change leads to the same configuration, however it travels.
    for ((name, _, by_delta), (_, _, by_world)) in delta.iter().zip(&world) {
        assert_eq!(by_delta, by_world, "{name}");
    }
}

#[test]
fn what_is_sent_again_changes_nothing() {
    // An endpoint with a new service account: clusters, endpoints, listeners and routes are pushed, the last two as they were.
    for (stream, protocol) in [("delta", Protocol::Delta), ("sotw", Protocol::StateOfTheWorld)] {
        let seen = replay(stream, protocol);
        let changed = |number: &str| seen.iter().find(|(name, ..)| name.starts_with(number)).unwrap().1;
        assert!(changed("015"), "{stream}: the cluster's SAN list is longer");
        assert!(!changed("019") && !changed("021"), "{stream}: listeners and routes were sent again");
    }
}

#[test]
fn a_reconnect_tells_what_is_there_and_repeats_every_subscription() {
    let (mut session, mut resources) = (Session::new(Protocol::Delta, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    for (name, bytes) in recorded("delta").into_iter().take(12) {
        if let Some(response) = response(&name, &bytes) {
            step(&mut session, &mut resources, response);
        }
    }
    let mut again = Session::new(Protocol::Delta, Node::default());
    let requests = again.open(&mut resources, Instant::now());
    let [Request::Delta(clusters), Request::Delta(endpoints), Request::Delta(listeners), Request::Delta(routes)] =
        requests.as_slice()
    else {
        panic!("{requests:?}")
    };
    assert!(clusters.node.is_some() && endpoints.node.is_none());
    assert_eq!(clusters.initial_resource_versions.len(), resources.names(Kind::Cluster).len());
    assert_eq!(endpoints.resource_names_subscribe.len(), 5);
    assert_eq!(listeners.type_url, Kind::Listener.type_url());
    assert_eq!(routes.resource_names_subscribe.len(), 1);
}

fn cluster(name: &str, edit: impl FnOnce(&mut Cluster)) -> Resource {
    let mut cluster = Cluster { name: name.to_owned(), ..Cluster::default() };
    cluster.connect_timeout = Some(skiff_proto::google::protobuf::Duration { seconds: 1, nanos: 0 });
    edit(&mut cluster);
    let any = Any { type_url: Cluster::type_url(), value: cluster.encode_to_vec() };
    Resource { name: name.to_owned(), resource: Some(any), ..Resource::default() }
}

fn push(resources: Vec<Resource>, removed: &[&str]) -> Response {
    Response::Delta(DeltaDiscoveryResponse {
        type_url: Cluster::type_url(),
        nonce: "n".to_owned(),
        resources,
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    })
}

#[test]
fn a_bad_resource_is_named_and_its_last_good_version_stays_beside_the_good_ones() {
    let (mut session, mut resources) = (Session::new(Protocol::Delta, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    step(&mut session, &mut resources, push(vec![cluster("a", |_| {}), cluster("b", |_| {})], &[]));
    let before = resources.publish("", Instant::now()).snapshot;
    let bad = cluster("a", |cluster| cluster.connect_timeout.as_mut().unwrap().seconds = -1);
    let (handled, requests) = step(&mut session, &mut resources, push(vec![bad, cluster("c", |_| {})], &["b"]));
    let Some(Request::Delta(nack)) = requests.last() else { panic!("{requests:?}") };
    let message = &nack.error_detail.as_ref().unwrap().message;
    assert!(message.contains("Cluster \"a\"") && message.contains("connect_timeout"), "{message}");
    assert_eq!((nack.response_nonce.as_str(), handled.rejected.len()), ("n", 1));
    let after = resources.publish("", Instant::now() + REMOVAL_DELAY).snapshot;
    assert!(after.clusters["a"].is_same(&before.clusters["a"]));
    assert!(after.clusters.contains_key("c") && !after.clusters.contains_key("b"));
}

#[test]
fn fields_that_nobody_knows_and_endless_nesting_are_refused_by_name() {
    let (mut session, mut resources) = (Session::new(Protocol::Delta, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    let mut newer = cluster("newer", |_| {});
    // Number 15000, a varint.
    newer.resource.as_mut().unwrap().value.extend([0xc0, 0xa9, 0x07, 0x01]);
    let nested = cluster("nested", |cluster| {
        use skiff_proto::envoy::config::core::v3::{TransportSocket, TypedExtensionConfig, transport_socket::ConfigType};
        let mut any = Any { type_url: TypedExtensionConfig::type_url(), value: Vec::new() };
        for _ in 0..10_000 {
            let outer = TypedExtensionConfig { name: String::new(), typed_config: Some(any) };
            any = Any { type_url: TypedExtensionConfig::type_url(), value: outer.encode_to_vec() };
        }
        cluster.transport_socket =
            Some(TransportSocket { name: "x".to_owned(), config_type: Some(ConfigType::TypedConfig(any)) });
    });
    let (handled, _) = step(&mut session, &mut resources, push(vec![newer, nested], &[]));
    let reasons: Vec<_> = handled.rejected.iter().map(ToString::to_string).collect();
    assert!(
        reasons.iter().any(|text| text.contains("\"newer\"") && text.contains("unknown field with number 15000")),
        "{reasons:?}"
    );
    assert!(reasons.iter().any(|text| text.contains("\"nested\"") && text.contains("nested more than 100 times")), "{reasons:?}");
}

#[test]
fn undecodable_and_misnamed_resources_are_rejected() {
    let (mut session, mut resources) = (Session::new(Protocol::Delta, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    let garbage = Any { type_url: Cluster::type_url(), value: vec![0xff; 40] };
    let other = Any { type_url: Node::type_url(), value: Vec::new() };
    let body = |name: &str, resource| Resource { name: name.to_owned(), resource, ..Resource::default() };
    let misnamed = Resource { name: "y".to_owned(), ..cluster("z", |_| {}) };
    let all = vec![body("w", Some(garbage)), body("v", Some(other)), body("x", None), misnamed];
    let (handled, _) = step(&mut session, &mut resources, push(all, &[]));
    let names: Vec<_> = handled.rejected.iter().map(|rejected| rejected.name.as_str()).collect();
    assert_eq!(names, ["w", "v", "x", "y"]);
    assert!(resources.names(Kind::Cluster).is_empty() && !handled.changed);
}

#[test]
fn nobody_meets_a_cluster_without_endpoints_or_routes_without_their_cluster() {
    let mut resources = Resources::default();
    let stream = recorded("delta");
    let take = |resources: &mut Resources, name: &str| {
        let (name, bytes) = stream.iter().find(|(file, _)| file == name).unwrap();
        let Some(Response::Delta(delta)) = response(name, bytes) else { panic!("{name}") };
        let kind = Kind::of(&delta.type_url).unwrap();
        for resource in delta.resources {
            resources.take(kind, &resource.resource.unwrap(), Some(&resource.name)).unwrap();
        }
    };
    let start = Instant::now();
    take(&mut resources, "002-CDS-dresp");
    take(&mut resources, "008-LDS-dresp");
    let cold = resources.publish("1", start);
    assert!(cold.snapshot.listeners.is_empty() && !cold.is_complete);
    assert_eq!(cold.next, Some(start + INITIAL_FETCH_TIMEOUT));
    take(&mut resources, "006-EDS-dresp");
    let without_routes = resources.publish("2", start);
    let served: Vec<_> = without_routes.snapshot.listeners.keys().collect();
    assert_eq!(served.len(), 1, "the inbound listener carries its routes: {served:?}");
    take(&mut resources, "011-RDS-dresp");
    let warm = resources.publish("3", start);
    assert!(warm.is_complete && warm.next.is_none() && warm.snapshot.listeners.len() == 2);
    // A cluster more, whose endpoints never come: it holds the others back for a while only.
    take(&mut resources, "029-CDS-dresp");
    take(&mut resources, "034-LDS-dresp");
    let waiting = resources.publish("4", start + Duration::from_secs(1));
    assert_eq!(waiting.snapshot.clusters.len(), warm.snapshot.clusters.len());
    let given_up = resources.publish("5", start + Duration::from_secs(1) + INITIAL_FETCH_TIMEOUT);
    assert_eq!(given_up.snapshot.clusters.len(), warm.snapshot.clusters.len() + 1);
}

#[test]
fn a_cluster_says_how_long_its_endpoints_are_waited_for() {
    let start = Instant::now();
    let until = |timeout: Option<pb::Duration>| {
        let mut resources = Resources::default();
        let eds = |message: &mut Cluster| {
            message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
            let eds = message.eds_cluster_config.get_or_insert_default().eds_config.get_or_insert_default();
            eds.initial_fetch_timeout = timeout;
        };
        let resource = cluster("a", eds);
        resources.take(Kind::Cluster, &resource.resource.unwrap(), Some("a")).unwrap();
        resources.publish("1", start).next.unwrap() - start
    };
    let seconds = |seconds| Some(pb::Duration { seconds, nanos: 0 });
    assert_eq!(until(seconds(2)), Duration::from_secs(2));
    assert_eq!(until(seconds(0)), INITIAL_FETCH_TIMEOUT, "istiod's; there is always a limit here");
    assert_eq!(until(None), INITIAL_FETCH_TIMEOUT);
}
