//! Listeners, filter chains and network filters.

use std::sync::Arc;
use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::listener::v3 as pb;
use skiff_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use skiff_proto::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use skiff_proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config;

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{access_log, any, basic, http, peer, rbac, stats, tcp, tls};

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
        additional_addresses: each(&message.additional_addresses, "additional_addresses", |more| {
            basic::socket_address(required(more.address.as_ref(), "address")?).at("address")
        })?,
        traffic_direction: direction,
        inspect_tls: inspectors.tls,
        inspect_http: inspectors.http,
        inspect_timeout: basic::limit(
            message.listener_filters_timeout.as_ref(),
            Some(INSPECT_TIMEOUT),
            "listener_filters_timeout",
        )?,
        continue_on_inspect_timeout: message.continue_on_listener_filters_timeout,
        filter_chains: filter_chains?,
        default_filter_chain: default_filter_chain?,
        access_log: each(&message.access_log, "access_log", access_log::access_log)?,
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
    let NetworkFilters { connection_limit, peer_exchange, rbac, terminal: Some(filter), .. } =
        network_filters(message, direction)?
    else {
        return invalid("expected a terminal filter").at("filters");
    };
    let tls = maybe(message.transport_socket.as_ref(), "transport_socket", tls::downstream_socket)?.flatten();
    if let (Some(exchange), config::NetworkFilter::Http(_), Some(tls)) = (&peer_exchange, &filter, &tls)
        && tls.alpn.contains(&exchange.protocol)
    {
        return invalid(format!("offers {}, which is only supported before tcp_proxy", exchange.protocol)).at("transport_socket");
    }
    Ok(config::FilterChain {
        name: message.name.clone(),
        matches: maybe(message.filter_chain_match.as_ref(), "filter_chain_match", filter_chain_match)?.unwrap_or_default(),
        tls,
        handshake_timeout: basic::duration_or(
            message.transport_socket_connect_timeout.as_ref(),
            HANDSHAKE_TIMEOUT,
            "transport_socket_connect_timeout",
        )?,
        connection_limit,
        peer_exchange,
        rbac,
        filter,
    })
}

fn filter_chain_match(message: &pb::FilterChainMatch) -> Outcome<config::FilterChainMatch> {
    let destination_port = message.destination_port.map(|value| basic::port(value.value)).transpose().at("destination_port")?;
    let transport_protocol = match message.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(config::TransportProtocol::Tls),
        "raw_buffer" => Some(config::TransportProtocol::RawBuffer),
        other => return invalid(format!("expected tls or raw_buffer, found {other:?}")).at("transport_protocol"),
    };
    let source_type = match pb::filter_chain_match::ConnectionSourceType::try_from(message.source_type) {
        Ok(pb::filter_chain_match::ConnectionSourceType::Any) => config::SourceType::Any,
        Ok(pb::filter_chain_match::ConnectionSourceType::SameIpOrLoopback) => config::SourceType::SameIpOrLoopback,
        Ok(pb::filter_chain_match::ConnectionSourceType::External) => config::SourceType::External,
        Err(_) => return invalid("expected ANY, SAME_IP_OR_LOOPBACK or EXTERNAL").at("source_type"),
    };
    let ranges = |ranges: &[core::CidrRange], field: &str| each(ranges, field, basic::cidr);
    Ok(config::FilterChainMatch {
        destination_port,
        prefix_ranges: ranges(&message.prefix_ranges, "prefix_ranges")?,
        server_names: each(&message.server_names, "server_names", |name| server_name(name))?,
        transport_protocol,
        application_protocols: message.application_protocols.clone(),
        direct_source_prefix_ranges: ranges(&message.direct_source_prefix_ranges, "direct_source_prefix_ranges")?,
        source_type,
        source_prefix_ranges: ranges(&message.source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: each(&message.source_ports, "source_ports", |port| basic::port(*port))?,
    })
}

/// An exact name, or a wildcard in place of the first labels.
fn server_name(name: &str) -> Outcome<String> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.is_empty() || rest.contains('*') {
        return invalid(format!("expected a name or *.name, found {name:?}"));
    }
    Ok(name.to_ascii_lowercase())
}

/// What the network filters of a chain come to.
#[derive(Default)]
struct NetworkFilters {
    connection_limit: Option<config::ConnectionLimit>,
    peer_exchange: Option<Arc<config::PeerExchange>>,
    stats: Option<Arc<config::IstioStats>>,
    rbac: Vec<Arc<config::RbacRules>>,
    terminal: Option<config::NetworkFilter>,
}

fn network_filters(message: &pb::FilterChain, direction: config::TrafficDirection) -> Outcome<NetworkFilters> {
    let mut found = NetworkFilters::default();
    each(&message.filters, "filters", |filter| {
        let Some(pb::filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            return invalid(format!("network filter {}: only typed_config is supported", filter.name));
        };
        if found.terminal.is_some() {
            return invalid(format!("network filter {} comes after a terminal filter", filter.name));
        }
        network_filter(&filter.name, config, direction, &mut found).at("typed_config")
    })?;
    if found.terminal.is_none() {
        return invalid("expected a terminal filter: http_connection_manager or tcp_proxy").at("filters");
    }
    Ok(found)
}

fn network_filter(name: &str, config: &Any, direction: config::TrafficDirection, found: &mut NetworkFilters) -> Outcome<()> {
    match any::type_name(config).as_str() {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            if found.stats.is_some() {
                return invalid("stats.PluginConfig as a network filter is only supported before tcp_proxy");
            }
            let message: HttpConnectionManager = any::unpack(config)?;
            let manager = http::http_connection_manager(&message, direction)?;
            found.terminal = Some(config::NetworkFilter::Http(Arc::new(manager)));
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            let proxy = config::TcpProxy { stats: found.stats.take(), ..tcp::tcp_proxy(&any::unpack(config)?)? };
            found.terminal = Some(config::NetworkFilter::Tcp(Arc::new(proxy)));
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            let message: Rbac = any::unpack(config)?;
            found.rbac.extend(maybe(message.rules.as_ref(), "rules", rbac::rules)?.map(Arc::new));
        }
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
            let limit = tcp::connection_limit(&any::unpack(config)?)?;
            if limit.is_some() && found.connection_limit.is_some() {
                return invalid("expected one connection_limit in a filter chain");
            }
            found.connection_limit = found.connection_limit.or(limit);
        }
        "envoy.tcp.metadataexchange.config.MetadataExchange" => {
            found.peer_exchange = Some(Arc::new(peer::exchange(&any::unpack(config)?)?));
        }
        // istiod puts it before ports named mongo: it counts what passes and changes nothing, unless it delays.
        "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy" => {
            if any::unpack::<MongoProxy>(config)?.delay.is_some() {
                return invalid("is not supported").at("delay");
            }
        }
        "stats.PluginConfig" if found.stats.is_some() => {
            return invalid(format!("network filter {name}: expected one of its type"));
        }
        "stats.PluginConfig" => found.stats = Some(Arc::new(stats::stats(&any::unpack(config)?, direction)?)),
        other => return invalid(format!("network filter {name} ({other}) is not supported")),
    }
    Ok(())
}
