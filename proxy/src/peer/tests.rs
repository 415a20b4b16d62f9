use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::config::{self, PeerDiscovery, PeerPropagation, Workload};
use crate::http::head::{Headers, Known as Name};

/// What istiod's captured node (`01-default/sotw/node.json`) makes an Istio sidecar say.
fn ratings() -> Node {
    let labels = [("app", "ratings"), ("class", "vm"), ("version", "v1")];
    let text = |text: &str| text.to_owned();
    Node {
        cluster: text("ratings.bookinfo"),
        id: text("sidecar~127.0.0.21~ratings-vm.bookinfo~bookinfo.svc.cluster.local"),
        istio_version: text("1.32.0"),
        workload: Workload {
            name: text("ratings-vm"),
            namespace: text("bookinfo"),
            canonical_service: text("ratings"),
            canonical_revision: text("v1"),
            cluster: text("Kubernetes"),
            app: text("ratings"),
            version: text("v1"),
            instance: text("ratings-vm"),
            region: text("us-east-1"),
            zone: text("us-east-1a"),
            labels: labels.map(|(name, value)| (text(name), text(value))).into(),
            ..Workload::default()
        },
    }
}

/// The same, as a peer knows it.
fn as_peer(node: &Node) -> Workload {
    Workload { labels: std::collections::BTreeMap::new(), ..node.workload.clone() }
}

fn both_ways() -> config::PeerMetadata {
    let headers = PeerPropagation::IstioHeaders { skip_external_clusters: false };
    config::PeerMetadata {
        name: "istio.metadata_exchange".to_owned(),
        downstream_discovery: vec![PeerDiscovery::IstioHeaders, PeerDiscovery::WorkloadDiscovery],
        upstream_discovery: vec![PeerDiscovery::IstioHeaders],
        downstream_propagation: vec![headers],
        upstream_propagation: vec![headers],
        additional_labels: Vec::new(),
    }
}

#[test]
fn a_header_says_what_an_istio_sidecar_says_in_the_same_bytes() {
    let bytes = BASE64_STANDARD.decode(Local::new(ratings()).header(&[])).unwrap();
    // A Struct by hand: each field is a length, a name and a Value, in the order of the names.
    let length = |length: usize| match u8::try_from(length).unwrap() {
        short @ ..128 => vec![short],
        long => vec![long, 1],
    };
    let field = |name: &str, value: Vec<u8>| {
        let entry = [vec![0x0a], length(name.len()), name.as_bytes().to_vec(), vec![0x12], length(value.len()), value].concat();
        [vec![0x0a], length(entry.len()), entry].concat()
    };
    let text = |text: &str| [&[0x1a, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let labels = [
        field("app", text("ratings")),
        field("service.istio.io/canonical-name", text("ratings")),
        field("service.istio.io/canonical-revision", text("v1")),
        field("version", text("v1")),
    ]
    .concat();
    let labels = [vec![0x2a], length(labels.len()), labels].concat();
    let expected = [
        field("AVAILABILITY_ZONE", text("us-east-1a")),
        field("CLUSTER_ID", text("Kubernetes")),
        field("LABELS", labels),
        field("NAME", text("ratings-vm")),
        field("NAMESPACE", text("bookinfo")),
        field("REGION", text("us-east-1")),
        field("WORKLOAD_NAME", text("ratings-vm")),
    ]
    .concat();
    assert_eq!(bytes, expected);
    assert_eq!(message::from_header(&Local::new(ratings()).header(&[])).unwrap(), as_peer(&ratings()));
}

#[test]
fn additional_labels_and_owners_are_told() {
    let mut node = ratings();
    node.workload.owner = "kubernetes://apis/apps/v1/namespaces/bookinfo/deployments/ratings-vm".to_owned();
    let told = Local::new(node.clone()).header(&["class".to_owned(), "absent".to_owned()]);
    let bytes = BASE64_STANDARD.decode(&told).unwrap();
    assert!(bytes.windows(9).any(|window| window == b"\x0a\x05class\x12\x04"), "{bytes:?}");
    assert!(!bytes.windows(6).any(|window| window == b"absent"));
    assert_eq!(message::from_header(&told).unwrap().owner, node.workload.owner);
    node.workload.owner = "kubernetes://apis/apps/v1/namespaces/bookinfo/statefulsets/ratings-vm".to_owned();
    assert_eq!(message::from_header(&Local::new(node).header(&[])).unwrap().owner, "", "a kind that Istio does not know");
}

#[test]
fn a_preamble_says_the_same_and_the_id() {
    let sent = Local::new(ratings()).preamble(&[]);
    assert_eq!(sent[..4], [0x3d, 0x23, 0x04, 0x67]);
    let read = preamble::Reader::default().feed(&sent).unwrap();
    let metadata = read.metadata.unwrap();
    assert_eq!((metadata.len() + 8, read.rest.len()), (sent.len(), 0));
    let peers = Known::default();
    assert_eq!(*peers.by_preamble(&metadata).unwrap(), as_peer(&ratings()));
    assert!(metadata.windows(24).any(|window| window == HEADER_ID));
    assert!(peers.by_preamble(&metadata[1..]).is_none());
    assert!(peers.by_preamble(b"").is_none());
}

const HEADER_ID: &[u8] = b"x-envoy-peer-metadata-id";

#[test]
fn what_cannot_be_read_is_nothing_said() {
    let good = Local::new(ratings()).header(&[]);
    let unpadded: Vec<u8> = good.iter().copied().filter(|&byte| byte != b'=').collect();
    assert!(message::from_header(&unpadded).is_some(), "padding does not matter");
    let long = BASE64_STANDARD.encode(vec![0; MAX_METADATA]).into_bytes();
    let truncated = BASE64_STANDARD.encode(&BASE64_STANDARD.decode(&good).unwrap()[..20]).into_bytes();
    let wrong_text = BASE64_STANDARD.encode(b"\x0a\x0a\x0a\x04NAME\x12\x02\x1a\xff").into_bytes();
    for bad in [&b""[..], b"not base64!", b"////", &long, &truncated, &wrong_text] {
        assert!(message::from_header(bad).is_none(), "{:?}", String::from_utf8_lossy(bad));
    }
    // A list in a list in a list is no fact, and costs nothing.
    let deep = BASE64_STANDARD.encode(b"\x0a\x12\x0a\x04NAME\x12\x0a\x32\x08\x0a\x06\x32\x04\x0a\x02\x32\x00").into_bytes();
    assert_eq!(message::from_header(&deep), Some(Workload::default()));
}

#[test]
fn a_caller_is_answered_in_kind() {
    let local = Local::new(ratings());
    let inbound = config::PeerMetadata { upstream_propagation: Vec::new(), upstream_discovery: Vec::new(), ..both_ways() };
    let filter = PeerMetadata::compile(&inbound, &local);
    let peers = Known::default();
    let mut request = Headers::new();
    request.push(b"x-envoy-peer-metadata", &local.header(&[]));
    request.push(b"x-envoy-peer-metadata-id", b"sidecar~10.0.0.9~a.b~c");
    request.push(b"accept", b"*/*");
    let (asked, caller) = filter.request(&mut request, None, &peers);
    assert_eq!(caller.unwrap().app, "ratings");
    assert_eq!(request.iter().collect::<Vec<_>>(), [(&b"accept"[..], &b"*/*"[..])], "the application sees none of it");
    let mut response = Headers::new();
    assert!(filter.response(&mut response, asked, &peers).is_none());
    assert_eq!(response.get(Name::XEnvoyPeerMetadataId), Some(local.node().id.as_bytes()));
    assert_eq!(response.get(Name::XEnvoyPeerMetadata), Some(&*local.header(&[])));
    // Who says nothing is told nothing; who sends only the id is told the id.
    for (sent, told) in [(&[][..], 0), (&[Name::XEnvoyPeerMetadataId][..], 1)] {
        let mut request = Headers::new();
        sent.iter().for_each(|&name| request.push_known(name, b"x"));
        let (asked, caller) = filter.request(&mut request, None, &peers);
        assert!(caller.is_none() && request.is_empty());
        let mut response = Headers::new();
        filter.response(&mut response, asked, &peers);
        assert_eq!(response.len(), told);
    }
}

#[test]
fn an_endpoint_is_told_and_its_answer_cleaned() {
    let local = Local::new(ratings());
    let outbound = config::PeerMetadata { downstream_discovery: Vec::new(), downstream_propagation: Vec::new(), ..both_ways() };
    let filter = PeerMetadata::compile(&outbound, &local);
    let peers = Known::default();
    let mut request = Headers::new();
    request.push_known(Name::XEnvoyPeerMetadata, b"what the application made up");
    let (asked, caller) = filter.request(&mut request, None, &peers);
    assert!(caller.is_none());
    assert_eq!(request.get_all(Name::XEnvoyPeerMetadata).collect::<Vec<_>>(), [&*local.header(&[])]);
    let mut response = Headers::new();
    response.push_known(Name::XEnvoyPeerMetadata, &local.header(&[]));
    response.push_known(Name::XEnvoyPeerMetadataId, b"id");
    assert_eq!(filter.response(&mut response, asked, &peers).unwrap().name, "ratings-vm");
    assert!(response.is_empty());
}

#[test]
fn an_id_that_would_break_a_head_is_not_sent() {
    let local = Local::new(Node { id: "sidecar~\r\nx: y".to_owned(), ..ratings() });
    let filter = PeerMetadata::compile(&both_ways(), &local);
    let mut request = Headers::new();
    filter.request(&mut request, None, &Known::default());
    assert_eq!(request.get(Name::XEnvoyPeerMetadataId), Some(&b""[..]));
}
