//! What routes do with a request that goes upstream.

use std::num::NonZeroUsize;
use std::time::Duration;

use skiff_proto::envoy::config::route::v3 as pb;
use skiff_proto::envoy::config::route::v3::route_action as ra;
use skiff_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use skiff_proxy::config::{self, Fraction};

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::route::{Mutations, ROUTE_TIMEOUT};
use super::{any, basic, endpoint, http};

pub(super) fn route_action(message: &pb::RouteAction) -> Outcome<config::RouteAction> {
    let metadata_match = endpoint::lb_metadata(message.metadata_match.as_ref()).at("metadata_match")?;
    let (mut clusters, mut cluster_header) = (Vec::new(), None);
    match required(message.cluster_specifier.as_ref(), "cluster")? {
        ra::ClusterSpecifier::Cluster(name) => clusters.push(config::WeightedCluster::only(name)),
        ra::ClusterSpecifier::ClusterHeader(name) => cluster_header = Some(name.to_ascii_lowercase()),
        ra::ClusterSpecifier::WeightedClusters(weighted) => clusters = weighted_clusters(weighted).at("weighted_clusters")?,
        _ => return invalid("cluster specifier plugins are not supported").at("cluster_specifier"),
    }
    for cluster in &mut clusters {
        for (key, value) in &metadata_match {
            cluster.metadata_match.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    let durations = message.max_stream_duration.unwrap_or_default();
    let at = "max_stream_duration";
    // In Envoy `max_stream_duration` takes the place of the older limits, whatever it says.
    let old = message.max_stream_duration.is_none();
    Ok(config::RouteAction {
        clusters,
        cluster_header,
        cluster_not_found_status: not_found_status(message.cluster_not_found_response_code)?,
        timeout: basic::limit(message.timeout.as_ref(), Some(ROUTE_TIMEOUT), "timeout")?.filter(|_| old),
        idle_timeout: basic::override_(message.idle_timeout.as_ref(), "idle_timeout")?,
        max_stream_duration: basic::override_(durations.max_stream_duration.as_ref(), "max_stream_duration").at(at)?,
        grpc_timeout_header_max: basic::override_(durations.grpc_timeout_header_max.as_ref(), "grpc_timeout_header_max")
            .at(at)?,
        grpc_timeout_header_offset: basic::override_(durations.grpc_timeout_header_offset.as_ref(), "grpc_timeout_header_offset")
            .at(at)?,
        max_grpc_timeout: basic::override_(message.max_grpc_timeout.as_ref(), "max_grpc_timeout")?.filter(|_| old),
        grpc_timeout_offset: basic::override_(message.grpc_timeout_offset.as_ref(), "grpc_timeout_offset")?.filter(|_| old),
        retry: maybe(message.retry_policy.as_ref(), "retry_policy", retry_policy)?,
        path_rewrite: path_rewrite(message)?,
        host_rewrite: host_rewrite(message)?,
        append_x_forwarded_host: message.append_x_forwarded_host,
        mirrors: each(&message.request_mirror_policies, "request_mirror_policies", mirror)?,
        hash_policy: each(&message.hash_policy, "hash_policy", hash_policy)?,
        upgrades: message
            .upgrade_configs
            .iter()
            .map(|config| (http::upgrade_type(&config.upgrade_type), basic::flag(config.enabled.as_ref(), true)))
            .collect(),
        // Stands on the route, not on its action.
        request_body_buffer_limit: None,
    })
}

fn not_found_status(value: i32) -> Outcome<u16> {
    match ra::ClusterNotFoundResponseCode::try_from(value) {
        Ok(ra::ClusterNotFoundResponseCode::ServiceUnavailable) => Ok(503),
        Ok(ra::ClusterNotFoundResponseCode::NotFound) => Ok(404),
        Ok(ra::ClusterNotFoundResponseCode::InternalServerError) => Ok(500),
        Err(_) => invalid("unknown value").at("cluster_not_found_response_code"),
    }
}

fn weighted_clusters(message: &pb::WeightedCluster) -> Outcome<Vec<config::WeightedCluster>> {
    let clusters = each(&message.clusters, "clusters", |cluster| {
        if !cluster.typed_per_filter_config.is_empty() {
            return invalid("is supported on virtual hosts and routes only").at("typed_per_filter_config");
        }
        Ok(config::WeightedCluster {
            name: cluster.name.clone(),
            weight: basic::count(cluster.weight.as_ref(), 0),
            headers: Mutations {
                request_add: &cluster.request_headers_to_add,
                request_remove: &cluster.request_headers_to_remove,
                response_add: &cluster.response_headers_to_add,
                response_remove: &cluster.response_headers_to_remove,
            }
            .translate()?,
            metadata_match: endpoint::lb_metadata(cluster.metadata_match.as_ref()).at("metadata_match")?,
        })
    })?;
    if clusters.iter().all(|cluster| cluster.weight == 0) {
        return invalid("expected a cluster with a weight above 0").at("clusters");
    }
    Ok(clusters)
}

fn path_rewrite(message: &pb::RouteAction) -> Outcome<Option<config::PathRewrite>> {
    match (&message.regex_rewrite, message.prefix_rewrite.as_str()) {
        (None, "") => Ok(None),
        (None, prefix) => Ok(Some(config::PathRewrite::Prefix(prefix.to_owned()))),
        (Some(rewrite), "") => {
            let pattern = required(rewrite.pattern.as_ref(), "pattern").at("regex_rewrite")?;
            let pattern = basic::regex(pattern).at("regex_rewrite.pattern")?;
            Ok(Some(config::PathRewrite::Regex { pattern, substitution: rewrite.substitution.clone() }))
        }
        (Some(_), _) => invalid("excludes prefix_rewrite").at("regex_rewrite"),
    }
}

fn host_rewrite(message: &pb::RouteAction) -> Outcome<Option<config::HostRewrite>> {
    Ok(match &message.host_rewrite_specifier {
        None => None,
        Some(ra::HostRewriteSpecifier::HostRewriteLiteral(host) | ra::HostRewriteSpecifier::HostRewrite(host)) => {
            Some(config::HostRewrite::Literal(host.clone()))
        }
        Some(ra::HostRewriteSpecifier::AutoHostRewrite(auto)) => auto.value.then_some(config::HostRewrite::Auto),
        Some(ra::HostRewriteSpecifier::HostRewriteHeader(name)) => Some(config::HostRewrite::Header(name.to_ascii_lowercase())),
        Some(ra::HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            return invalid("is not supported").at("host_rewrite_path_regex");
        }
    })
}

fn mirror(message: &ra::RequestMirrorPolicy) -> Outcome<config::Mirror> {
    if message.cluster.is_empty() {
        return invalid("is empty").at("cluster");
    }
    let fraction = basic::runtime_fraction(message.runtime_fraction.as_ref(), Fraction::ALL).at("runtime_fraction")?;
    Ok(config::Mirror { cluster: message.cluster.clone(), fraction, keeps_host: message.disable_shadow_host_suffix_append })
}

fn hash_policy(message: &ra::HashPolicy) -> Outcome<config::HashPolicy> {
    use ra::hash_policy::PolicySpecifier;
    Ok(match required(message.policy_specifier.as_ref(), "policy_specifier")? {
        PolicySpecifier::Header(header) => config::HashPolicy::Header(header.header_name.to_ascii_lowercase()),
        PolicySpecifier::Cookie(cookie) => config::HashPolicy::Cookie {
            name: cookie.name.clone(),
            ttl: basic::override_(cookie.ttl.as_ref(), "ttl").at("cookie")?,
            path: cookie.path.clone(),
        },
        PolicySpecifier::ConnectionProperties(properties) if properties.source_ip => config::HashPolicy::SourceIp,
        PolicySpecifier::ConnectionProperties(_) => return invalid("expected source_ip").at("connection_properties"),
        PolicySpecifier::QueryParameter(parameter) => config::HashPolicy::QueryParameter(parameter.name.clone()),
        PolicySpecifier::FilterState(_) => return invalid("is not supported").at("filter_state"),
    })
}

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

pub(super) fn retry_policy(message: &pb::RetryPolicy) -> Outcome<config::RetryPolicy> {
    let defaults = config::RetryPolicy::default();
    let (mut base, mut max) = (defaults.base_interval, None);
    if let Some(back_off) = &message.retry_back_off {
        base = basic::duration_or(back_off.base_interval.as_ref(), base, "base_interval").at("retry_back_off")?;
        max = basic::override_(back_off.max_interval.as_ref(), "max_interval").at("retry_back_off")?;
    }
    let previous_hosts = each(&message.retry_host_predicate, "retry_host_predicate", |predicate| {
        let pb::retry_policy::retry_host_predicate::ConfigType::TypedConfig(config) =
            required(predicate.config_type.as_ref(), "typed_config")?;
        match any::type_name(config).as_str() {
            PREVIOUS_HOSTS => Ok(()),
            other => invalid(format!("retry host predicate {other} is not supported")).at("typed_config"),
        }
    })?;
    // Without a predicate no host is ever turned down, so that there is nothing to select again.
    let attempts = if previous_hosts.is_empty() { 0 } else { message.host_selection_retry_max_attempts.max(1) };
    Ok(config::RetryPolicy {
        retry_on: retry_on(&message.retry_on, &message.retriable_status_codes)?,
        num_retries: basic::count(message.num_retries.as_ref(), 1),
        per_try_timeout: basic::limit(message.per_try_timeout.as_ref(), None, "per_try_timeout")?,
        per_try_idle_timeout: basic::limit(message.per_try_idle_timeout.as_ref(), None, "per_try_idle_timeout")?,
        base_interval: base,
        max_interval: max.unwrap_or(base * 10),
        rate_limited: maybe(message.rate_limited_retry_back_off.as_ref(), "rate_limited_retry_back_off", rate_limited)?,
        retriable_headers: each(&message.retriable_headers, "retriable_headers", response_matcher)?,
        retriable_request_headers: each(&message.retriable_request_headers, "retriable_request_headers", basic::header_matcher)?,
        host_selection_attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        previous_priorities: maybe(message.retry_priority.as_ref(), "retry_priority", retry_priority)?,
    })
}

fn retry_priority(message: &pb::retry_policy::RetryPriority) -> Outcome<NonZeroUsize> {
    let pb::retry_policy::retry_priority::ConfigType::TypedConfig(config) =
        required(message.config_type.as_ref(), "typed_config")?;
    let previous: PreviousPrioritiesConfig = any::unpack(config).at("typed_config")?;
    let frequency = usize::try_from(previous.update_frequency).ok().and_then(NonZeroUsize::new);
    frequency.map_or_else(|| invalid("expected a number above 0").at("typed_config.update_frequency"), Ok)
}

/// Responses have no pseudo header here that could be asked for.
fn response_matcher(message: &pb::HeaderMatcher) -> Outcome<config::HeaderMatcher> {
    if message.name.starts_with(':') {
        return invalid("expected a header, not a pseudo header").at("name");
    }
    basic::header_matcher(message)
}

fn rate_limited(message: &pb::retry_policy::RateLimitedRetryBackOff) -> Outcome<config::RateLimitedBackOff> {
    use pb::retry_policy::ResetHeaderFormat as Format;
    if message.reset_headers.is_empty() {
        return invalid("is empty").at("reset_headers");
    }
    Ok(config::RateLimitedBackOff {
        reset_headers: each(&message.reset_headers, "reset_headers", |header| {
            let format = match Format::try_from(header.format) {
                Ok(Format::Seconds) => config::ResetFormat::Seconds,
                Ok(Format::UnixTimestamp) => config::ResetFormat::UnixTimestamp,
                Err(_) => return invalid("unknown value").at("format"),
            };
            Ok(config::ResetHeader { name: header.name.to_ascii_lowercase(), format })
        })?,
        max_interval: basic::duration_or(message.max_interval.as_ref(), RATE_LIMITED_MAX, "max_interval")?,
    })
}

/// Envoy's own limit on what a response may ask to wait.
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// Words that Envoy does not know are ignored by it too, but one that it knows and we do not would change what is retried.
fn retry_on(words: &str, status_codes: &[u32]) -> Outcome<config::RetryOn> {
    let mut on = config::RetryOn::default();
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if !on.add_word(word) && !on.add_grpc_word(word) {
            return invalid(format!("condition {word:?} is not supported")).at("retry_on");
        }
    }
    let codes = status_codes.iter().map(|&code| u16::try_from(code));
    on.status_codes =
        codes.collect::<Result<_, _>>().or_else(|_| invalid("expected status codes").at("retriable_status_codes"))?;
    Ok(on)
}
