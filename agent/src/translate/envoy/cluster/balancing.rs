//! How endpoints are chosen: policy, panic, localities, subsets; in the old form and as typed extensions.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use skiff_proto::envoy::config::cluster::v3 as pb;
use skiff_proto::envoy::extensions::load_balancing_policies as lb;
use skiff_proto::google::protobuf::{Any, Struct, UInt64Value};
use skiff_proxy::config::{self, LbSubsetConfig, SelectorFallback, SubsetFallback, SubsetSelector};

use super::super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::super::{any, basic, endpoint};

pub(super) fn balancing(message: &pb::Cluster, cluster: &mut config::Cluster) -> Outcome<()> {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
    use pb::cluster::{LbConfig, LbPolicy};
    if let Some(common) = &message.common_lb_config {
        if let Some(threshold) = &common.healthy_panic_threshold {
            cluster.panic_threshold = basic::percent(threshold).at("common_lb_config.healthy_panic_threshold")?;
        }
        cluster.locality_weighted = matches!(common.locality_config_specifier, Some(Specifier::LocalityWeightedLbConfig(_)));
        if let Some(Specifier::ZoneAwareLbConfig(zone_aware)) = &common.locality_config_specifier {
            cluster.fail_traffic_on_panic = zone_aware.fail_traffic_on_panic;
        }
        cluster.ignore_new_hosts_until_first_hc = common.ignore_new_hosts_until_first_hc;
        cluster.use_hostname_for_hashing =
            common.consistent_hashing_lb_config.as_ref().is_some_and(|hashing| hashing.use_hostname_for_hashing);
    }
    if let Some(policy) = &message.load_balancing_policy {
        return extension_policy(policy, cluster).at("load_balancing_policy");
    }
    cluster.lb_subset = maybe(message.lb_subset_config.as_ref(), "lb_subset_config", subsets)?.flatten().map(Arc::new);
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
    for policy in &message.policies {
        let config = policy.typed_extension_config.as_ref().and_then(|extension| extension.typed_config.as_ref());
        if let Some(config) = config
            && known_policy(config, cluster)?
        {
            return Ok(());
        }
    }
    invalid("expected round_robin, least_request, random, ring_hash, maglev, subset or wrr_locality").at("policies")
}

/// Whether the policy is one of those that are known.
fn known_policy(config: &Any, cluster: &mut config::Cluster) -> Outcome<bool> {
    match any::type_name(config).as_str() {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            let policy: lb::round_robin::v3::RoundRobin = any::unpack(config)?;
            localities(policy.locality_lb_config.as_ref(), cluster);
            let slow_start = maybe(policy.slow_start_config.as_ref(), "slow_start_config", slow_start)?;
            cluster.lb_policy = config::LbPolicy::RoundRobin(slow_start);
        }
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            let policy: lb::least_request::v3::LeastRequest = any::unpack(config)?;
            localities(policy.locality_lb_config.as_ref(), cluster);
            let slow_start = maybe(policy.slow_start_config.as_ref(), "slow_start_config", slow_start)?;
            let choices = basic::count(policy.choice_count.as_ref(), 2);
            cluster.lb_policy = config::LbPolicy::LeastRequest(least_request(choices, slow_start));
        }
        "envoy.extensions.load_balancing_policies.random.v3.Random" => {
            let policy: lb::random::v3::Random = any::unpack(config)?;
            localities(policy.locality_lb_config.as_ref(), cluster);
            cluster.lb_policy = config::LbPolicy::Random;
        }
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
            let policy: lb::ring_hash::v3::RingHash = any::unpack(config)?;
            cluster.locality_weighted |= policy.locality_weighted_lb_config.is_some();
            hashing(policy.consistent_hashing_lb_config.as_ref(), cluster);
            let sizes = ring(policy.minimum_ring_size.as_ref(), policy.maximum_ring_size.as_ref());
            cluster.lb_policy = config::LbPolicy::RingHash(sizes);
        }
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
            let policy: lb::maglev::v3::Maglev = any::unpack(config)?;
            cluster.locality_weighted |= policy.locality_weighted_lb_config.is_some();
            hashing(policy.consistent_hashing_lb_config.as_ref(), cluster);
            cluster.lb_policy = config::LbPolicy::Maglev(maglev(policy.table_size.as_ref()));
        }
        "envoy.extensions.load_balancing_policies.subset.v3.Subset" => {
            let policy: lb::subset::v3::Subset = any::unpack(config)?;
            let inner = required(policy.subset_lb_policy.as_ref(), "subset_lb_policy")?;
            extension_policy(&same(inner)?, cluster).at("subset_lb_policy")?;
            // The typed form has the fields of the old one and `allow_redundant_keys` of its own.
            let subset = subsets(&same(&lb::subset::v3::Subset { subset_lb_policy: None, ..policy.clone() })?)?;
            let subset = subset.map(|subset| LbSubsetConfig { allow_redundant_keys: policy.allow_redundant_keys, ..subset });
            cluster.lb_subset = subset.map(Arc::new);
        }
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality" => {
            let policy: lb::wrr_locality::v3::WrrLocality = any::unpack(config)?;
            let inner = required(policy.endpoint_picking_policy.as_ref(), "endpoint_picking_policy")?;
            extension_policy(&same(inner)?, cluster).at("endpoint_picking_policy")?;
            cluster.locality_weighted = true;
        }
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
            cluster.lb_policy = config::LbPolicy::RoundRobin(None);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// A message of another type with the same fields and numbers.
fn same<A: Message, B: Message + Default>(message: &A) -> Outcome<B> {
    B::decode(message.encode_to_vec().as_slice()).or_else(|error| invalid(error.to_string()))
}

fn localities(config: Option<&lb::common::v3::LocalityLbConfig>, cluster: &mut config::Cluster) {
    use lb::common::v3::locality_lb_config::LocalityConfigSpecifier as Specifier;
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(Specifier::LocalityWeightedLbConfig(_)) => cluster.locality_weighted = true,
        Some(Specifier::ZoneAwareLbConfig(zone_aware)) => cluster.fail_traffic_on_panic |= zone_aware.fail_traffic_on_panic,
        None => {}
    }
}

fn hashing(config: Option<&lb::common::v3::ConsistentHashingLbConfig>, cluster: &mut config::Cluster) {
    cluster.use_hostname_for_hashing |= config.is_some_and(|hashing| hashing.use_hostname_for_hashing);
}

/// Without selectors there are no subsets.
fn subsets(message: &pb::cluster::LbSubsetConfig) -> Outcome<Option<LbSubsetConfig>> {
    use pb::cluster::lb_subset_config::LbSubsetFallbackPolicy as Fallback;
    let fallback = match Fallback::try_from(message.fallback_policy) {
        Ok(Fallback::NoFallback) => SubsetFallback::NoFallback,
        Ok(Fallback::AnyEndpoint) => SubsetFallback::AnyEndpoint,
        Ok(Fallback::DefaultSubset) => SubsetFallback::DefaultSubset,
        Err(_) => return invalid("unknown value").at("fallback_policy"),
    };
    let labels = |labels: &Struct| -> Outcome<BTreeMap<String, String>> { endpoint::strings(labels) };
    let config = LbSubsetConfig {
        fallback,
        default_subset: maybe(message.default_subset.as_ref(), "default_subset", labels)?.unwrap_or_default(),
        selectors: each(&message.subset_selectors, "subset_selectors", selector)?,
        locality_weight_aware: message.locality_weight_aware,
        scale_locality_weight: message.scale_locality_weight,
        panic_mode_any: message.panic_mode_any,
        list_as_any: message.list_as_any,
        allow_redundant_keys: false,
    };
    Ok((!config.selectors.is_empty()).then_some(config))
}

fn selector(message: &pb::cluster::lb_subset_config::LbSubsetSelector) -> Outcome<SubsetSelector> {
    use pb::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Fallback;
    let keys: BTreeSet<String> = message.keys.iter().cloned().collect();
    let fewer: BTreeSet<String> = message.fallback_keys_subset.iter().cloned().collect();
    let fallback = match Fallback::try_from(message.fallback_policy) {
        Ok(Fallback::NotDefined) => None,
        Ok(Fallback::NoFallback) => Some(SelectorFallback::Cluster(SubsetFallback::NoFallback)),
        Ok(Fallback::AnyEndpoint) => Some(SelectorFallback::Cluster(SubsetFallback::AnyEndpoint)),
        Ok(Fallback::DefaultSubset) => Some(SelectorFallback::Cluster(SubsetFallback::DefaultSubset)),
        Ok(Fallback::KeysSubset) if fewer.is_empty() || !fewer.is_subset(&keys) || fewer == keys => {
            return invalid("expected some of the keys, not all").at("fallback_keys_subset");
        }
        Ok(Fallback::KeysSubset) => Some(SelectorFallback::KeysSubset(fewer)),
        Err(_) => return invalid("unknown value").at("fallback_policy"),
    };
    if message.single_host_per_subset && keys.len() != 1 {
        return invalid("expected one key with single_host_per_subset").at("keys");
    }
    Ok(SubsetSelector { keys, fallback, single_host_per_subset: message.single_host_per_subset })
}

fn least_request(choices: u32, slow_start: Option<config::SlowStart>) -> config::LeastRequest {
    const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
    config::LeastRequest { choice_count: NonZeroU32::new(choices).unwrap_or(TWO), slow_start }
}

/// The old and the new form of the message have the same fields and numbers.
fn classic_slow_start(message: &pb::cluster::SlowStartConfig) -> Outcome<config::SlowStart> {
    slow_start(&same(message)?)
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
