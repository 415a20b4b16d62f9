//! Clusters: discovery and transport.

mod balancing;
mod health;
mod limits;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use skiff_proto::envoy::config::cluster::v3 as pb;
use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::extensions::upstreams::http::v3 as upstream;
use skiff_proto::google::protobuf::{Struct, value::Kind};
use skiff_proxy::config;

use super::endpoint::{self, Names};
use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic, http, peer, tls};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const DNS_REFRESH: Duration = Duration::from_secs(5);

pub(super) fn cluster(message: &pb::Cluster) -> Outcome<config::Cluster> {
    let mut cluster = config::Cluster::new(&message.name, discovery(message)?);
    let eds = message.eds_cluster_config.as_ref().and_then(|eds| eds.eds_config.as_ref());
    cluster.initial_fetch_timeout = basic::fetch_timeout(eds).at("eds_cluster_config.eds_config")?;
    cluster.connect_timeout = basic::duration_or(message.connect_timeout.as_ref(), cluster.connect_timeout, "connect_timeout")?;
    cluster.circuit_breakers = limits::circuit_breakers(message.circuit_breakers.as_ref()).at("circuit_breakers")?;
    cluster.outlier_detection = maybe(message.outlier_detection.as_ref(), "outlier_detection", limits::outlier_detection)?;
    cluster.health_check = health::checks(&message.health_checks).at("health_checks")?.map(Arc::new);
    cluster.ignore_health_on_host_removal = message.ignore_health_on_host_removal;
    balancing::balancing(message, &mut cluster)?;
    transport_sockets(message, &mut cluster)?;
    protocol_options(message, &mut cluster)?;
    if let Some(keepalive) = message.upstream_connection_options.as_ref().and_then(|options| options.tcp_keepalive.as_ref()) {
        cluster.tcp_keepalive = Some(tcp_keepalive(keepalive));
    }
    cluster.source_addresses =
        maybe(message.upstream_bind_config.as_ref(), "upstream_bind_config", source_addresses)?.unwrap_or_default();
    cluster.service = istio_metadata(message).and_then(service).map(Arc::new);
    let flag = |name: &str| {
        let value = istio_metadata(message).and_then(|istio| istio.fields.get(name)?.kind.as_ref());
        matches!(value, Some(Kind::BoolValue(true)))
    };
    (cluster.external, cluster.disable_mx) = (flag("external"), flag("disable_mx"));
    cluster.peer_exchange = each(&message.filters, "filters", filter)?.pop().map(Arc::new);
    Ok(cluster)
}

fn filter(message: &pb::Filter) -> Outcome<config::PeerExchange> {
    let config = required(message.typed_config.as_ref(), "typed_config")?;
    match any::type_name(config).as_str() {
        "envoy.tcp.metadataexchange.config.MetadataExchange" => any::unpack(config).and_then(|message| peer::exchange(&message)),
        other => invalid(format!("cluster filter {} ({other}) is not supported", message.name)),
    }
    .at("typed_config")
}

fn discovery(message: &pb::Cluster) -> Outcome<config::ClusterDiscovery> {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match &message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(value)) => match DiscoveryType::try_from(*value) {
            Ok(kind) => kind,
            Err(_) => return invalid("unknown value").at("type"),
        },
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return invalid(format!("cluster type {} is not supported", custom.name)).at("cluster_type");
        }
    };
    let endpoints = |names| match &message.load_assignment {
        Some(assignment) => endpoint::load_assignment(assignment, names).at("load_assignment").map(Arc::new),
        None => Ok(Arc::default()),
    };
    let dns = || -> Outcome<config::DnsCluster> {
        let refresh = basic::duration_or(message.dns_refresh_rate.as_ref(), DNS_REFRESH, "dns_refresh_rate")?;
        Ok(config::DnsCluster {
            failure_refresh: maybe(message.dns_failure_refresh_rate.as_ref(), "dns_failure_refresh_rate", failure_refresh)?,
            jitter: basic::duration_or(message.dns_jitter.as_ref(), Duration::ZERO, "dns_jitter")?,
            family: dns_family(message.dns_lookup_family).at("dns_lookup_family")?,
            ..config::DnsCluster::new(endpoints(Names::Allowed)?, refresh)
        })
    };
    Ok(match kind {
        DiscoveryType::Static => config::ClusterDiscovery::Static(endpoints(Names::Refused)?),
        DiscoveryType::StrictDns => config::ClusterDiscovery::StrictDns(dns()?),
        DiscoveryType::LogicalDns => config::ClusterDiscovery::LogicalDns(dns()?),
        DiscoveryType::OriginalDst => config::ClusterDiscovery::OriginalDst,
        DiscoveryType::Eds => {
            let service = message.eds_cluster_config.as_ref().map_or("", |eds| &eds.service_name);
            config::ClusterDiscovery::Eds(if service.is_empty() { message.name.clone() } else { service.to_owned() })
        }
    })
}

/// The PROXY protocol is the cluster's: health checks and fallbacks have to speak it, too.
fn transport_sockets(message: &pb::Cluster, cluster: &mut config::Cluster) -> Outcome<()> {
    let mut wrappers = Vec::new();
    cluster.transport_socket_matches = each(&message.transport_socket_matches, "transport_socket_matches", |entry| {
        let socket = required(entry.transport_socket.as_ref(), "transport_socket")?;
        let (socket, wrapper) = tls::upstream_socket(socket).at("transport_socket")?;
        wrappers.push(wrapper);
        Ok(config::TransportSocketMatch {
            name: entry.name.clone(),
            matches: endpoint::shared(
                maybe(entry.r#match.as_ref(), "match", endpoint::strings)?.unwrap_or_default(),
                &endpoint::STRINGS,
            ),
            socket,
        })
    })?;
    if let Some((socket, wrapper)) = maybe(message.transport_socket.as_ref(), "transport_socket", tls::upstream_socket)? {
        cluster.transport_socket = socket;
        wrappers.push(wrapper);
    }
    cluster.proxy_protocol = wrappers.first().copied().flatten();
    if wrappers.iter().any(|wrapper| *wrapper != cluster.proxy_protocol) {
        return invalid("expected the same PROXY protocol for all transport sockets").at("transport_socket_matches");
    }
    Ok(())
}

fn failure_refresh(message: &pb::cluster::RefreshRate) -> Outcome<(Duration, Duration)> {
    let base = basic::duration(required(message.base_interval.as_ref(), "base_interval")?).at("base_interval")?;
    Ok((base, basic::duration_or(message.max_interval.as_ref(), base.saturating_mul(10), "max_interval")?.max(base)))
}

fn dns_family(value: i32) -> Outcome<config::DnsFamily> {
    use pb::cluster::DnsLookupFamily as Family;
    match Family::try_from(value) {
        Ok(Family::Auto | Family::V4Preferred) => Ok(config::DnsFamily::V4Preferred),
        Ok(Family::V4Only) => Ok(config::DnsFamily::V4Only),
        Ok(Family::V6Only) => Ok(config::DnsFamily::V6Only),
        Ok(Family::All) => Ok(config::DnsFamily::All),
        Err(_) => invalid("unknown value"),
    }
}

/// At most one address of a family has an effect.
fn source_addresses(message: &core::BindConfig) -> Outcome<Vec<SocketAddr>> {
    let first = message.source_address.iter().map(|address| (address, "source_address"));
    let extra =
        message.extra_source_addresses.iter().filter_map(|extra| Some((extra.address.as_ref()?, "extra_source_addresses")));
    let parse = |(address, field)| {
        let (host, port) = basic::host_and_port(address).at(field)?;
        match host.parse::<IpAddr>() {
            Ok(ip) => Ok(SocketAddr::new(ip, port)),
            Err(_) => invalid(format!("expected an IP address, found {host:?}")).at(field),
        }
    };
    first.chain(extra).map(parse).collect()
}

fn protocol_options(message: &pb::Cluster, cluster: &mut config::Cluster) -> Outcome<()> {
    use upstream::http_protocol_options::{UpstreamProtocolOptions as Protocol, explicit_http_config::ProtocolConfig};
    cluster.http.max_requests_per_connection = basic::nonzero(message.max_requests_per_connection.as_ref());
    let Some((name, config)) = message.typed_extension_protocol_options.iter().next() else { return Ok(()) };
    let at = format!("typed_extension_protocol_options[{name:?}]");
    if message.typed_extension_protocol_options.len() > 1 || any::type_name(config) != HTTP_OPTIONS {
        return invalid(format!("expected {HTTP_OPTIONS} alone")).at(&at);
    }
    let options: upstream::HttpProtocolOptions = any::unpack(config).at(&at)?;
    if let Some(common) = &options.common_http_protocol_options {
        common_options(common, &mut cluster.http).at("common_http_protocol_options").at(&at)?;
    }
    let (protocol, http1, http2) = match required(options.upstream_protocol_options.as_ref(), "explicit_http_config").at(&at)? {
        Protocol::ExplicitHttpConfig(explicit) => {
            match required(explicit.protocol_config.as_ref(), "explicit_http_config").at(&at)? {
                ProtocolConfig::HttpProtocolOptions(http1) => (config::UpstreamProtocol::Http1, Some(http1), None),
                ProtocolConfig::Http2ProtocolOptions(http2) => (config::UpstreamProtocol::Http2, None, Some(http2)),
                ProtocolConfig::Http3ProtocolOptions(_) => {
                    return invalid("HTTP/3 is not supported").at("explicit_http_config").at(&at);
                }
            }
        }
        Protocol::UseDownstreamProtocolConfig(both) => {
            (config::UpstreamProtocol::UseDownstream, both.http_protocol_options.as_ref(), both.http2_protocol_options.as_ref())
        }
        Protocol::AutoConfig(_) => return invalid("is not supported").at("auto_config").at(&at),
    };
    cluster.protocol = protocol;
    if let Some(http1) = http1 {
        let http1 = http::http1_options(http1).at("http_protocol_options").at(&at)?;
        cluster.http.preserve_case = http1.preserve_case;
        cluster.http.enable_trailers = http1.enable_trailers;
    }
    cluster.http.max_concurrent_streams = http2.and_then(|http2| basic::nonzero(http2.max_concurrent_streams.as_ref()));
    if let Some(upstream) = &options.upstream_http_protocol_options {
        host_names(upstream, cluster).at("upstream_http_protocol_options").at(&at)?;
    }
    Ok(())
}

/// `auto_sni` and `auto_san_validation` belong to the TLS that they change.
fn host_names(message: &core::UpstreamHttpProtocolOptions, cluster: &mut config::Cluster) -> Outcome<()> {
    if message.auto_san_validation && !message.auto_sni {
        return invalid("expected auto_sni beside it").at("auto_san_validation");
    }
    let sockets = cluster.transport_socket_matches.iter_mut().map(|matched| &mut matched.socket);
    for socket in sockets.chain([&mut cluster.transport_socket]) {
        if let config::TransportSocket::Tls(tls) = socket {
            let tls = Arc::make_mut(tls);
            tls.auto_sni = message.auto_sni;
            // Without a trust bundle there is nothing that a name could be proved with, and Envoy proves nothing either.
            tls.auto_san_validation = message.auto_san_validation && tls.trust.is_some();
        }
    }
    Ok(())
}

fn common_options(message: &core::HttpProtocolOptions, to: &mut config::UpstreamHttpOptions) -> Outcome<()> {
    to.idle_timeout = basic::limit(message.idle_timeout.as_ref(), to.idle_timeout, "idle_timeout")?;
    to.max_connection_duration = basic::limit(message.max_connection_duration.as_ref(), None, "max_connection_duration")?;
    to.max_stream_duration = basic::limit(message.max_stream_duration.as_ref(), None, "max_stream_duration")?;
    if let Some(max) = basic::nonzero(message.max_requests_per_connection.as_ref()) {
        to.max_requests_per_connection = Some(max);
    }
    Ok(())
}

fn tcp_keepalive(message: &core::TcpKeepalive) -> config::TcpKeepalive {
    let seconds = |value: Option<u32>| value.map(|seconds| Duration::from_secs(seconds.into()));
    config::TcpKeepalive {
        time: seconds(basic::nonzero(message.keepalive_time.as_ref())),
        interval: seconds(basic::nonzero(message.keepalive_interval.as_ref())),
        probes: basic::nonzero(message.keepalive_probes.as_ref()),
    }
}

/// The first entry of istiod's `istio.services`: host, name, namespace.
fn service(message: &Struct) -> Option<config::Service> {
    let Some(Kind::ListValue(list)) = message.fields.get("services")?.kind.as_ref() else { return None };
    let Some(Kind::StructValue(first)) = list.values.first()?.kind.as_ref() else { return None };
    let text = |key: &str| match first.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    };
    let (host, name) = (text("host"), text("name"));
    let name = if name.is_empty() { host.split('.').next().unwrap_or_default().to_owned() } else { name };
    Some(config::Service { name, host, namespace: text("namespace") })
}

fn istio_metadata(message: &pb::Cluster) -> Option<&Struct> {
    message.metadata.as_ref()?.filter_metadata.get("istio")
}
