//! The TCP proxy and the limit of connections.

use std::time::Duration;

use skiff_proto::envoy::config::core::v3::BackoffStrategy;
use skiff_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use skiff_proto::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use skiff_proto::envoy::r#type::v3::{HashPolicy, hash_policy::PolicySpecifier};
use skiff_proxy::config;

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{access_log, basic, endpoint};

pub(super) fn tcp_proxy(message: &pb::TcpProxy) -> Outcome<config::TcpProxy> {
    let defaults = config::TcpProxy::default();
    let max = message.max_downstream_connection_duration.as_ref();
    let jitter = message.max_downstream_connection_duration_jitter_percentage.as_ref();
    let jitter = maybe(jitter, "max_downstream_connection_duration_jitter_percentage", basic::percent)?;
    let options = message.access_log_options.unwrap_or_default();
    // The older places of the same settings.
    let interval = options.access_log_flush_interval.as_ref().or(message.access_log_flush_interval.as_ref());
    let max_connect_attempts = basic::count(message.max_connect_attempts.as_ref(), 1);
    if max_connect_attempts == 0 {
        return invalid("expected at least 1").at("max_connect_attempts");
    }
    Ok(config::TcpProxy {
        stat_prefix: message.stat_prefix.clone(),
        clusters: clusters(message)?,
        idle_timeout: basic::limit(message.idle_timeout.as_ref(), defaults.idle_timeout, "idle_timeout")?,
        max_connection_duration: basic::limit(max, None, "max_downstream_connection_duration")?,
        max_connection_duration_jitter: jitter.map_or(0.0, |share| f64::from(share.millionths()) / 1e6),
        max_connect_attempts,
        backoff: maybe(message.backoff_options.as_ref(), "backoff_options", backoff)?,
        hash_source_ip: !each(&message.hash_policy, "hash_policy", hash_policy)?.is_empty(),
        access_log: each(&message.access_log, "access_log", access_log::access_log)?,
        log_on_start: options.flush_access_log_on_start,
        log_on_connected: options.flush_access_log_on_connected || message.flush_access_log_on_connected,
        log_interval: maybe(interval, "access_log_options.access_log_flush_interval", flush_interval)?,
        stats: None,
    })
}

fn clusters(message: &pb::TcpProxy) -> Outcome<Vec<config::WeightedCluster>> {
    use pb::tcp_proxy::ClusterSpecifier;
    let common = endpoint::lb_metadata(message.metadata_match.as_ref()).at("metadata_match")?;
    let one = |name: &str| config::WeightedCluster { metadata_match: common.clone(), ..config::WeightedCluster::only(name) };
    match required(message.cluster_specifier.as_ref(), "cluster")? {
        ClusterSpecifier::Cluster(name) => Ok(vec![one(name)]),
        ClusterSpecifier::WeightedClusters(weighted) => {
            let clusters = each(&weighted.clusters, "weighted_clusters.clusters", |cluster| {
                if cluster.weight == 0 {
                    return invalid("expected at least 1").at("weight");
                }
                let mut one = config::WeightedCluster { weight: cluster.weight, ..one(&cluster.name) };
                // Its own words win over those of all.
                one.metadata_match.extend(endpoint::lb_metadata(cluster.metadata_match.as_ref()).at("metadata_match")?);
                Ok(one)
            })?;
            if clusters.is_empty() {
                return invalid("expected at least one cluster").at("weighted_clusters.clusters");
            }
            Ok(clusters)
        }
    }
}

fn backoff(message: &BackoffStrategy) -> Outcome<config::Backoff> {
    let base = basic::duration(required(message.base_interval.as_ref(), "base_interval")?).at("base_interval")?;
    let max = basic::duration_or(message.max_interval.as_ref(), base.saturating_mul(10), "max_interval")?;
    if base < Duration::from_millis(1) {
        return invalid("expected at least 1ms").at("base_interval");
    }
    if max < base {
        return invalid("expected at least base_interval").at("max_interval");
    }
    Ok(config::Backoff { base, max })
}

fn hash_policy(message: &HashPolicy) -> Outcome<()> {
    match &message.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(()),
        _ => invalid("expected source_ip"),
    }
}

fn flush_interval(value: &skiff_proto::google::protobuf::Duration) -> Outcome<Duration> {
    let interval = basic::duration(value)?;
    if interval < Duration::from_millis(1) { invalid("expected at least 1ms") } else { Ok(interval) }
}

/// `None` when it is switched off.
pub(super) fn connection_limit(message: &ConnectionLimit) -> Outcome<Option<config::ConnectionLimit>> {
    let max = required(message.max_connections.as_ref(), "max_connections")?.value;
    if max == 0 {
        return invalid("expected at least 1").at("max_connections");
    }
    let on = message.runtime_enabled.as_ref().is_none_or(|flag| basic::flag(flag.default_value.as_ref(), false));
    let delay = basic::limit(message.delay.as_ref(), None, "delay")?;
    Ok(on.then_some(config::ConnectionLimit { max, delay }))
}
