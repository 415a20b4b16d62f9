//! Istio's exchange of peer metadata, over HTTP and over TCP.

use skiff_proto::filters::metadata_exchange::MetadataExchange;
use skiff_proto::filters::peer_metadata::Config;
use skiff_proto::filters::peer_metadata::config::discovery_method::MethodSpecifier as Discovery;
use skiff_proto::filters::peer_metadata::config::propagation_method::MethodSpecifier as Propagation;
use skiff_proto::filters::peer_metadata::config::{DiscoveryMethod, PropagationMethod};
use skiff_proxy::config;

use super::outcome::{At, Outcome, each, invalid, required};

pub(super) fn http_filter(name: &str, message: &Config) -> Outcome<config::PeerMetadata> {
    Ok(config::PeerMetadata {
        name: name.to_owned(),
        downstream_discovery: each(&message.downstream_discovery, "downstream_discovery", discovery)?,
        upstream_discovery: each(&message.upstream_discovery, "upstream_discovery", discovery)?,
        downstream_propagation: each(&message.downstream_propagation, "downstream_propagation", propagation)?,
        upstream_propagation: each(&message.upstream_propagation, "upstream_propagation", propagation)?,
        additional_labels: message.additional_labels.clone(),
    })
}

fn discovery(message: &DiscoveryMethod) -> Outcome<config::PeerDiscovery> {
    match required(message.method_specifier.as_ref(), "istio_headers")? {
        Discovery::IstioHeaders(_) => Ok(config::PeerDiscovery::IstioHeaders),
        Discovery::WorkloadDiscovery(_) => Ok(config::PeerDiscovery::WorkloadDiscovery),
        // Of waypoints, which tunnel.
        Discovery::Baggage(_) => invalid("is not supported: only waypoints use it").at("baggage"),
        Discovery::UpstreamFilterState(_) => invalid("is not supported: only waypoints use it").at("upstream_filter_state"),
    }
}

fn propagation(message: &PropagationMethod) -> Outcome<config::PeerPropagation> {
    match required(message.method_specifier.as_ref(), "istio_headers")? {
        Propagation::IstioHeaders(headers) => {
            Ok(config::PeerPropagation::IstioHeaders { skip_external_clusters: headers.skip_external_clusters })
        }
        Propagation::Baggage(_) => invalid("is not supported: only waypoints use it").at("baggage"),
    }
}

pub(super) fn exchange(message: &MetadataExchange) -> Outcome<config::PeerExchange> {
    if message.protocol.is_empty() {
        return invalid("expected an ALPN protocol").at("protocol");
    }
    Ok(config::PeerExchange { protocol: message.protocol.clone(), additional_labels: message.additional_labels.clone() })
}
