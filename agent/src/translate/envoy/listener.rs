//! Listeners, filter chains and network filters.

use std::sync::Arc;
use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::listener::v3 as pb;
use skiff_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use skiff_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use skiff_proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use skiff_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config;

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{access_log, any, basic, endpoint, http, rbac, tls};

const CONNECTION_LIMIT: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
/// Envoy's own deadline for sniffing.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy has no deadline for TLS handshakes of its own; Istio sets this one, and we never wait without a limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn listener(message: &pb::Listener) -> Outcome<config::Listener> {
    let address = basic::socket_address(required(message.address.as_ref(), "address")?).at("address")?;
    let direction = traffic_direction(message.traffic_direction);
    let inspectors = inspectors(message)?;
    let filter_chains = each(&message.filter_chains, "filter_chains", |chain| filter_chain(chain, direction));
    let default_filter_chain =
        maybe(message.default_filter_chain.as_ref(), "default_filter_chain", |chain| filter_chain(chain, direction));
    Ok(config::Listener {
        name: message.name.clone(),
        address,
        traffic_direction: direction,
        inspect_tls: inspectors.tls,
        inspect_http: inspectors.http,
        inspect_timeout: basic::limit(
            message.listener_filters_timeout.as_ref(),
            Some(INSPECT_TIMEOUT),
            "listener_filters_timeout",
        )?,
        filter_chains: filter_chains?,
        default_filter_chain: default_filter_chain?,
        access_log: each(&message.access_log, "access_log", access_log::access_log)?,
        max_connections: connection_limit(message)?,
    })
}

fn traffic_direction(value: i32) -> config::TrafficDirection {
    match core::TrafficDirection::try_from(value) {
        Ok(core::TrafficDirection::Inbound) => config::TrafficDirection::Inbound,
        Ok(core::TrafficDirection::Outbound) => config::TrafficDirection::Outbound,
        Ok(core::TrafficDirection::Unspecified) | Err(_) => config::TrafficDirection::Unspecified,
    }
}

#[derive(Default)]
struct Inspectors {
    tls: bool,
    http: bool,
}

fn inspectors(message: &pb::Listener) -> Outcome<Inspectors> {
    let mut found = Inspectors::default();
    each(&message.listener_filters, "listener_filters", |filter| {
        let Some(pb::listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            return invalid(format!("{}: only typed_config is supported", filter.name));
        };
        match any::type_name(config).as_str() {
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => found.tls = true,
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => found.http = true,
            // The connection came to us; there is no other destination to recover without iptables.
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {}
            other => return invalid(format!("listener filter {} ({other}) is not supported", filter.name)),
        }
        Ok(())
    })?;
    Ok(found)
}

fn filter_chain(message: &pb::FilterChain, direction: config::TrafficDirection) -> Outcome<config::FilterChain> {
    let (rbac, filter) = network_filters(message, direction)?;
    Ok(config::FilterChain {
        name: message.name.clone(),
        matches: maybe(message.filter_chain_match.as_ref(), "filter_chain_match", filter_chain_match)?.unwrap_or_default(),
        tls: maybe(message.transport_socket.as_ref(), "transport_socket", tls::downstream_socket)?.flatten(),
        handshake_timeout: basic::duration_or(
            message.transport_socket_connect_timeout.as_ref(),
            HANDSHAKE_TIMEOUT,
            "transport_socket_connect_timeout",
        )?,
        rbac,
        filter,
    })
}

/// Ours is a limit of the listener, which is the same thing where the listener has one chain.
fn connection_limit(message: &pb::Listener) -> Outcome<Option<u32>> {
    let chains = message.filter_chains.iter().chain(&message.default_filter_chain);
    let configs = chains.flat_map(|chain| &chain.filters).filter_map(|filter| match &filter.config_type {
        Some(pb::filter::ConfigType::TypedConfig(config)) if any::type_name(config) == CONNECTION_LIMIT => Some(config),
        _ => None,
    });
    let limits = configs.map(any::unpack::<ConnectionLimit>).collect::<Outcome<Vec<_>>>().at("filter_chains")?;
    match limits.as_slice() {
        [] => Ok(None),
        [limit] if message.filter_chains.len() == 1 && message.default_filter_chain.is_none() => {
            let max = limit.max_connections.map(|max| u32::try_from(max.value).unwrap_or(u32::MAX));
            Ok(Some(max.map_or_else(|| invalid("is missing").at("max_connections").at("filter_chains[0]"), Ok)?))
        }
        _ => invalid("connection_limit is supported on listeners with one filter chain only").at("filter_chains"),
    }
}

fn filter_chain_match(message: &pb::FilterChainMatch) -> Outcome<config::FilterChainMatch> {
    let destination_port = message.destination_port.map(|value| basic::port(value.value)).transpose().at("destination_port")?;
    let transport_protocol = match message.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(config::TransportProtocol::Tls),
        "raw_buffer" => Some(config::TransportProtocol::RawBuffer),
        other => return invalid(format!("expected tls or raw_buffer, found {other:?}")).at("transport_protocol"),
    };
    Ok(config::FilterChainMatch {
        destination_port,
        prefix_ranges: each(&message.prefix_ranges, "prefix_ranges", basic::cidr)?,
        server_names: message.server_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        transport_protocol,
        application_protocols: message.application_protocols.clone(),
        source_prefix_ranges: each(&message.source_prefix_ranges, "source_prefix_ranges", basic::cidr)?,
    })
}

/// The network RBACs and the terminal filter of a chain.
fn network_filters(
    message: &pb::FilterChain,
    direction: config::TrafficDirection,
) -> Outcome<(Vec<Arc<config::RbacRules>>, config::NetworkFilter)> {
    let (mut rules, mut terminal) = (Vec::new(), None);
    each(&message.filters, "filters", |filter| {
        let Some(pb::filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            return invalid(format!("network filter {}: only typed_config is supported", filter.name));
        };
        if terminal.is_some() {
            return invalid(format!("network filter {} comes after a terminal filter", filter.name));
        }
        match network_filter(&filter.name, config, direction).at("typed_config")? {
            Network::Rbac(found) => rules.extend(found.map(Arc::new)),
            Network::Terminal(found) => terminal = Some(found),
            Network::Nothing => {}
        }
        Ok(())
    })?;
    let Some(terminal) = terminal else {
        return invalid("expected a terminal filter: http_connection_manager or tcp_proxy").at("filters");
    };
    Ok((rules, terminal))
}

enum Network {
    Rbac(Option<config::RbacRules>),
    Terminal(config::NetworkFilter),
    Nothing,
}

fn network_filter(name: &str, config: &Any, direction: config::TrafficDirection) -> Outcome<Network> {
    Ok(match any::type_name(config).as_str() {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            let message: HttpConnectionManager = any::unpack(config)?;
            let manager = http::http_connection_manager(&message, direction)?;
            Network::Terminal(config::NetworkFilter::Http(Arc::new(manager)))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            let message: tcp::TcpProxy = any::unpack(config)?;
            Network::Terminal(config::NetworkFilter::Tcp(Arc::new(tcp_proxy(&message)?)))
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            let message: Rbac = any::unpack(config)?;
            Network::Rbac(maybe(message.rules.as_ref(), "rules", rbac::rules)?)
        }
        // See `connection_limit`.
        CONNECTION_LIMIT => Network::Nothing,
        // Peer metadata and Istio's statistics: labels of metrics, nothing that decides.
        "envoy.tcp.metadataexchange.config.MetadataExchange" | "stats.PluginConfig" => Network::Nothing,
        other => return invalid(format!("network filter {name} ({other}) is not supported")),
    })
}

fn tcp_proxy(message: &tcp::TcpProxy) -> Outcome<config::TcpProxy> {
    use tcp::tcp_proxy::ClusterSpecifier;
    let metadata_match = endpoint::lb_metadata(message.metadata_match.as_ref()).at("metadata_match")?;
    let one = |name: &str, weight: u32| config::WeightedCluster {
        weight,
        metadata_match: metadata_match.clone(),
        ..config::WeightedCluster::only(name)
    };
    let clusters = match required(message.cluster_specifier.as_ref(), "cluster")? {
        ClusterSpecifier::Cluster(name) => vec![one(name, 1)],
        ClusterSpecifier::WeightedClusters(weighted) => {
            let clusters: Vec<_> = weighted.clusters.iter().map(|cluster| one(&cluster.name, cluster.weight)).collect();
            if clusters.iter().all(|cluster| cluster.weight == 0) {
                return invalid("expected a cluster with a weight above 0").at("weighted_clusters.clusters");
            }
            clusters
        }
    };
    let hour = Some(Duration::from_secs(3600));
    let max = message.max_downstream_connection_duration.as_ref();
    Ok(config::TcpProxy {
        stat_prefix: message.stat_prefix.clone(),
        clusters,
        idle_timeout: basic::limit(message.idle_timeout.as_ref(), hour, "idle_timeout")?,
        max_connection_duration: basic::limit(max, None, "max_downstream_connection_duration")?,
        max_connect_attempts: basic::count(message.max_connect_attempts.as_ref(), 1).max(1),
        access_log: each(&message.access_log, "access_log", access_log::access_log)?,
        stats: None,
    })
}
