//! How sidecars tell each other who they are: what istiod configures for it.

use std::sync::Arc;

use skiff_proxy::config::{HttpFilter, PeerDiscovery, PeerExchange, PeerMetadata, PeerPropagation};

const NAME: &str = "istio.metadata_exchange";

/// Of an inbound listener: callers are known by their headers and answered in kind.
pub(super) fn inbound() -> HttpFilter {
    HttpFilter::PeerMetadata(Arc::new(PeerMetadata {
        name: NAME.to_owned(),
        downstream_discovery: discovery(),
        downstream_propagation: propagation(),
        ..PeerMetadata::default()
    }))
}

/// Of an outbound listener: endpoints are told who calls and known by their answer.
pub(super) fn outbound() -> HttpFilter {
    HttpFilter::PeerMetadata(Arc::new(PeerMetadata {
        name: NAME.to_owned(),
        upstream_discovery: discovery(),
        upstream_propagation: propagation(),
        ..PeerMetadata::default()
    }))
}

/// The same for connections, of listeners and clusters.
pub(super) fn exchange() -> Arc<PeerExchange> {
    Arc::new(PeerExchange { protocol: "istio-peer-exchange".to_owned(), additional_labels: Vec::new() })
}

fn discovery() -> Vec<PeerDiscovery> {
    vec![PeerDiscovery::IstioHeaders, PeerDiscovery::WorkloadDiscovery]
}

fn propagation() -> Vec<PeerPropagation> {
    vec![PeerPropagation::IstioHeaders { skip_external_clusters: false }]
}
