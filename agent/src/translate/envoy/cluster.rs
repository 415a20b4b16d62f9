//! Clusters: discovery, load balancing, limits and transport.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use skiff_proto::envoy::config::cluster::v3 as pb;
use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::extensions::load_balancing_policies as lb;
use skiff_proto::envoy::extensions::upstreams::http::v3 as upstream;
use skiff_proto::google::protobuf::{Struct, UInt64Value, value::Kind};
use skiff_proxy::config;

use super::endpoint::{self, Names};
use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic, http, tls};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const DNS_REFRESH: Duration = Duration::from_secs(5);

pub(super) fn cluster(message: &pb::Cluster) -> Outcome<config::Cluster> {
    let mut cluster = config::Cluster::new(&message.name, discovery(message)?);
    cluster.connect_timeout = basic::duration_or(message.connect_timeout.as_ref(), cluster.connect_timeout, "connect_timeout")?;
    cluster.circuit_breakers = circuit_breakers(message.circuit_breakers.as_ref()).at("circuit_breakers")?;
    cluster.outlier_detection = maybe(message.outlier_detection.as_ref(), "outlier_detection", outlier_detection)?;
    balancing(message, &mut cluster)?;
    cluster.transport_socket_matches = each(&message.transport_socket_matches, "transport_socket_matches", |entry| {
        Ok(config::TransportSocketMatch {
            name: entry.name.clone(),
            matches: maybe(entry.r#match.as_ref(), "match", endpoint::strings)?.unwrap_or_default(),
            socket: tls::upstream_socket(required(entry.transport_socket.as_ref(), "transport_socket")?)
                .at("transport_socket")?,
        })
    })?;
    if let Some(socket) = maybe(message.transport_socket.as_ref(), "transport_socket", tls::upstream_socket)? {
        cluster.transport_socket = socket;
    }
    protocol_options(message, &mut cluster)?;
    if let Some(keepalive) = message.upstream_connection_options.as_ref().and_then(|options| options.tcp_keepalive.as_ref()) {
        cluster.tcp_keepalive = Some(tcp_keepalive(keepalive));
    }
    if let Some(assignment) = &message.load_assignment {
        cluster.drop_overload = endpoint::drop_overload(assignment).at("load_assignment")?;
    }
    cluster.service = istio_metadata(message).and_then(service).map(Arc::new);
    Ok(cluster)
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
        Ok(config::DnsCluster { endpoints: endpoints(Names::Allowed)?, refresh })
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

fn circuit_breakers(message: Option<&pb::CircuitBreakers>) -> Outcome<config::CircuitBreakers> {
    let defaults = config::CircuitBreakers::default();
    let Some(message) = message else { return Ok(defaults) };
    let standard = |thresholds: &&pb::circuit_breakers::Thresholds| thresholds.priority == core::RoutingPriority::Default as i32;
    let Some(found) = message.thresholds.iter().find(standard) else { return Ok(defaults) };
    if message.thresholds.len() > 1 {
        return invalid("only priority DEFAULT is supported").at("thresholds");
    }
    Ok(config::CircuitBreakers {
        max_connections: basic::count(found.max_connections.as_ref(), defaults.max_connections),
        max_pending_requests: basic::count(found.max_pending_requests.as_ref(), defaults.max_pending_requests),
        max_requests: basic::count(found.max_requests.as_ref(), defaults.max_requests),
        max_retries: basic::count(found.max_retries.as_ref(), defaults.max_retries),
    })
}

/// Counts are off where their `enforcing_*` share is zero; shares in between are not supported.
fn outlier_detection(message: &pb::OutlierDetection) -> Outcome<config::OutlierDetection> {
    let counted = |value: u32, enforcing: u32, field: &str| match (value, enforcing) {
        (0, _) | (_, 0) => Ok(None),
        (value, 100) => Ok(Some(value)),
        _ => invalid("expected 0 or 100").at(field),
    };
    let number = basic::count;
    let base_ejection_time = Duration::from_secs(30);
    let base_ejection_time = basic::duration_or(message.base_ejection_time.as_ref(), base_ejection_time, "base_ejection_time")?;
    let max_ejection_time = Duration::from_secs(300).max(base_ejection_time);
    Ok(config::OutlierDetection {
        consecutive_5xx: counted(
            number(message.consecutive_5xx.as_ref(), 5),
            number(message.enforcing_consecutive_5xx.as_ref(), 100),
            "enforcing_consecutive_5xx",
        )?,
        consecutive_gateway_failure: counted(
            number(message.consecutive_gateway_failure.as_ref(), 5),
            number(message.enforcing_consecutive_gateway_failure.as_ref(), 0),
            "enforcing_consecutive_gateway_failure",
        )?,
        consecutive_local_origin_failure: counted(
            number(message.consecutive_local_origin_failure.as_ref(), 5),
            number(message.enforcing_consecutive_local_origin_failure.as_ref(), 100),
            "enforcing_consecutive_local_origin_failure",
        )?,
        split_external_local_origin_errors: message.split_external_local_origin_errors,
        interval: basic::duration_or(message.interval.as_ref(), Duration::from_secs(10), "interval")?,
        base_ejection_time,
        max_ejection_time: basic::duration_or(message.max_ejection_time.as_ref(), max_ejection_time, "max_ejection_time")?,
        max_ejection_percent: number(message.max_ejection_percent.as_ref(), 10).min(100),
    })
}

fn balancing(message: &pb::Cluster, cluster: &mut config::Cluster) -> Outcome<()> {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
    use pb::cluster::{LbConfig, LbPolicy};
    if let Some(common) = &message.common_lb_config {
        if let Some(threshold) = &common.healthy_panic_threshold {
            cluster.panic_threshold = basic::percent(threshold).at("common_lb_config.healthy_panic_threshold")?;
        }
        cluster.locality_weighted = matches!(common.locality_config_specifier, Some(Specifier::LocalityWeightedLbConfig(_)));
    }
    if let Some(policy) = &message.load_balancing_policy {
        return extension_policy(policy, cluster).at("load_balancing_policy");
    }
    cluster.lb_policy = match LbPolicy::try_from(message.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            let config = match &message.lb_config {
                Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            config::LbPolicy::RoundRobin(maybe(config, "round_robin_lb_config.slow_start_config", classic_slow_start)?)
        }
        Ok(LbPolicy::LeastRequest) => {
            let config = match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.clone(),
                _ => pb::cluster::LeastRequestLbConfig::default(),
            };
            let slow_start =
                maybe(config.slow_start_config.as_ref(), "least_request_lb_config.slow_start_config", classic_slow_start)?;
            config::LbPolicy::LeastRequest(least_request(basic::count(config.choice_count.as_ref(), 2), slow_start))
        }
        Ok(LbPolicy::RingHash) => {
            let config = match &message.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => pb::cluster::RingHashLbConfig::default(),
            };
            if config.hash_function != pb::cluster::ring_hash_lb_config::HashFunction::XxHash as i32 {
                return invalid("expected XX_HASH").at("ring_hash_lb_config.hash_function");
            }
            config::LbPolicy::RingHash(ring(config.minimum_ring_size.as_ref(), config.maximum_ring_size.as_ref()))
        }
        Ok(LbPolicy::Maglev) => {
            let size = match &message.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size,
                _ => None,
            };
            config::LbPolicy::Maglev(maglev(size.as_ref()))
        }
        Ok(LbPolicy::Random) => config::LbPolicy::Random,
        // ORIGINAL_DST: there is never an endpoint to choose.
        Ok(LbPolicy::ClusterProvided) => config::LbPolicy::RoundRobin(None),
        Ok(LbPolicy::LoadBalancingPolicyConfig) | Err(_) => {
            return invalid("expected load_balancing_policy beside it").at("lb_policy");
        }
    };
    Ok(())
}

/// The first policy of the list that is known, as Envoy does.
fn extension_policy(message: &pb::LoadBalancingPolicy, cluster: &mut config::Cluster) -> Outcome<()> {
    use lb::common::v3::locality_lb_config::LocalityConfigSpecifier as Specifier;
    let weighted = |config: Option<&lb::common::v3::LocalityLbConfig>| {
        matches!(
            config.and_then(|config| config.locality_config_specifier.as_ref()),
            Some(Specifier::LocalityWeightedLbConfig(_))
        )
    };
    let configs = message.policies.iter().filter_map(|policy| policy.typed_extension_config.as_ref()?.typed_config.as_ref());
    for config in configs {
        match any::type_name(config).as_str() {
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
                let policy: lb::round_robin::v3::RoundRobin = any::unpack(config)?;
                cluster.locality_weighted |= weighted(policy.locality_lb_config.as_ref());
                let slow_start = maybe(policy.slow_start_config.as_ref(), "slow_start_config", slow_start)?;
                cluster.lb_policy = config::LbPolicy::RoundRobin(slow_start);
            }
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
                let policy: lb::least_request::v3::LeastRequest = any::unpack(config)?;
                cluster.locality_weighted |= weighted(policy.locality_lb_config.as_ref());
                let slow_start = maybe(policy.slow_start_config.as_ref(), "slow_start_config", slow_start)?;
                let choices = basic::count(policy.choice_count.as_ref(), 2);
                cluster.lb_policy = config::LbPolicy::LeastRequest(least_request(choices, slow_start));
            }
            "envoy.extensions.load_balancing_policies.random.v3.Random" => {
                let policy: lb::random::v3::Random = any::unpack(config)?;
                cluster.locality_weighted |= weighted(policy.locality_lb_config.as_ref());
                cluster.lb_policy = config::LbPolicy::Random;
            }
            "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
                let policy: lb::ring_hash::v3::RingHash = any::unpack(config)?;
                cluster.locality_weighted |= policy.locality_weighted_lb_config.is_some();
                let sizes = ring(policy.minimum_ring_size.as_ref(), policy.maximum_ring_size.as_ref());
                cluster.lb_policy = config::LbPolicy::RingHash(sizes);
            }
            "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
                let policy: lb::maglev::v3::Maglev = any::unpack(config)?;
                cluster.locality_weighted |= policy.locality_weighted_lb_config.is_some();
                cluster.lb_policy = config::LbPolicy::Maglev(maglev(policy.table_size.as_ref()));
            }
            _ => continue,
        }
        return Ok(());
    }
    invalid("expected round_robin, least_request, random, ring_hash or maglev").at("policies")
}

fn least_request(choices: u32, slow_start: Option<config::SlowStart>) -> config::LeastRequest {
    const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
    config::LeastRequest { choice_count: NonZeroU32::new(choices).unwrap_or(TWO), slow_start }
}

/// The old and the new form of the message have the same fields and numbers.
fn classic_slow_start(message: &pb::cluster::SlowStartConfig) -> Outcome<config::SlowStart> {
    match lb::common::v3::SlowStartConfig::decode(message.encode_to_vec().as_slice()) {
        Ok(message) => slow_start(&message),
        Err(error) => invalid(error.to_string()),
    }
}

fn slow_start(message: &lb::common::v3::SlowStartConfig) -> Outcome<config::SlowStart> {
    let min_weight = maybe(message.min_weight_percent.as_ref(), "min_weight_percent", basic::percent)?;
    Ok(config::SlowStart {
        window: basic::duration_or(message.slow_start_window.as_ref(), Duration::ZERO, "slow_start_window")?,
        aggression: message.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value),
        min_weight: min_weight.unwrap_or(config::Fraction::from_millionths(100_000)),
    })
}

fn ring(least: Option<&UInt64Value>, most: Option<&UInt64Value>) -> config::HashConfig {
    let number = |value: Option<&UInt64Value>, default| value.map_or(default, |value| value.value);
    config::HashConfig { size: number(least, 1024), max_size: number(most, 8 * 1024 * 1024) }
}

fn maglev(size: Option<&UInt64Value>) -> config::HashConfig {
    let size = size.map_or(65_537, |value| value.value);
    config::HashConfig { size, max_size: size }
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
    Some(config::Service { host: text("host"), name: text("name"), namespace: text("namespace") })
}

fn istio_metadata(message: &pb::Cluster) -> Option<&Struct> {
    message.metadata.as_ref()?.filter_metadata.get("istio")
}
