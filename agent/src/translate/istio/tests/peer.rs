//! The filter for peer metadata, in the shape that istiod writes it.

use serde_json::{Map, Value, json};
use skiff_proxy::config::{PeerDiscovery, PeerMetadata, PeerPropagation};

pub(super) fn filter(peer: &PeerMetadata) -> Value {
    let discovery = |ways: &[PeerDiscovery]| -> Vec<Value> {
        let one = |way: &PeerDiscovery| match way {
            PeerDiscovery::IstioHeaders => json!({ "istio_headers": {} }),
            PeerDiscovery::WorkloadDiscovery => json!({ "workload_discovery": {} }),
        };
        ways.iter().map(one).collect()
    };
    let propagation = |ways: &[PeerPropagation]| -> Vec<Value> {
        let one = |way: &PeerPropagation| match way {
            PeerPropagation::IstioHeaders { skip_external_clusters: false } => json!({ "istio_headers": {} }),
            PeerPropagation::IstioHeaders { .. } => json!({ "istio_headers": { "skip_external_clusters": true } }),
        };
        ways.iter().map(one).collect()
    };
    assert!(peer.additional_labels.is_empty());
    let fields = [
        ("downstream_discovery", discovery(&peer.downstream_discovery)),
        ("upstream_discovery", discovery(&peer.upstream_discovery)),
        ("downstream_propagation", propagation(&peer.downstream_propagation)),
        ("upstream_propagation", propagation(&peer.upstream_propagation)),
    ];
    let set = fields.into_iter().filter(|(_, ways)| !ways.is_empty());
    Value::Object(set.map(|(name, ways)| (name.to_owned(), Value::Array(ways))).collect::<Map<_, _>>())
}
