//! What a cluster may use, and passive health.

use std::time::Duration;

use skiff_proto::envoy::config::cluster::v3 as pb;
use skiff_proto::envoy::config::core::v3 as core;
use skiff_proxy::config::{self, ConsecutiveFailures};

use super::super::basic;
use super::super::outcome::{At, Outcome, invalid, maybe};

pub(super) fn circuit_breakers(message: Option<&pb::CircuitBreakers>) -> Outcome<config::CircuitBreakers> {
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
        retry_budget: maybe(found.retry_budget.as_ref(), "thresholds.retry_budget", |budget| {
            let percent = maybe(budget.budget_percent.as_ref(), "budget_percent", basic::percent)?;
            Ok(config::RetryBudget {
                budget: percent.unwrap_or(config::Fraction::from_millionths(200_000)),
                min_retry_concurrency: basic::count(budget.min_retry_concurrency.as_ref(), 3),
            })
        })?,
    })
}

/// Detectors that are never enforced are left out.
pub(super) fn outlier_detection(message: &pb::OutlierDetection) -> Outcome<config::OutlierDetection> {
    let number = basic::count;
    let row = |count: u32, enforcing: u32| {
        (count > 0 && enforcing > 0).then_some(ConsecutiveFailures { count, enforcing: enforcing.min(100) })
    };
    let defaults = config::OutlierDetection::default();
    let base_ejection_time =
        basic::duration_or(message.base_ejection_time.as_ref(), defaults.base_ejection_time, "base_ejection_time")?;
    let longest = defaults.max_ejection_time.max(base_ejection_time);
    let max_ejection_time = basic::duration_or(message.max_ejection_time.as_ref(), longest, "max_ejection_time")?;
    if max_ejection_time < base_ejection_time {
        return invalid("expected no less than base_ejection_time").at("max_ejection_time");
    }
    Ok(config::OutlierDetection {
        consecutive_5xx: row(
            number(message.consecutive_5xx.as_ref(), 5),
            number(message.enforcing_consecutive_5xx.as_ref(), 100),
        ),
        consecutive_gateway_failure: row(
            number(message.consecutive_gateway_failure.as_ref(), 5),
            number(message.enforcing_consecutive_gateway_failure.as_ref(), 0),
        ),
        consecutive_local_origin_failure: row(
            number(message.consecutive_local_origin_failure.as_ref(), 5),
            number(message.enforcing_consecutive_local_origin_failure.as_ref(), 100),
        ),
        split_external_local_origin_errors: message.split_external_local_origin_errors,
        success_rate: success_rate(message),
        failure_percentage: failure_percentage(message),
        interval: basic::duration_or(message.interval.as_ref(), defaults.interval, "interval")?,
        base_ejection_time,
        max_ejection_time,
        max_ejection_time_jitter: basic::duration_or(
            message.max_ejection_time_jitter.as_ref(),
            Duration::ZERO,
            "max_ejection_time_jitter",
        )?,
        max_ejection_percent: number(message.max_ejection_percent.as_ref(), 10).min(100),
        always_eject_one_host: basic::flag(message.always_eject_one_host.as_ref(), false),
        successful_active_health_check_uneject_host: basic::flag(
            message.successful_active_health_check_uneject_host.as_ref(),
            true,
        ),
    })
}

fn success_rate(message: &pb::OutlierDetection) -> Option<config::SuccessRate> {
    let number = basic::count;
    let local = number(message.enforcing_local_origin_success_rate.as_ref(), 100).min(100);
    let rule = config::SuccessRate {
        minimum_hosts: number(message.success_rate_minimum_hosts.as_ref(), 5),
        request_volume: number(message.success_rate_request_volume.as_ref(), 100),
        stdev_factor: number(message.success_rate_stdev_factor.as_ref(), 1900),
        enforcing: number(message.enforcing_success_rate.as_ref(), 100).min(100),
        enforcing_local_origin: if message.split_external_local_origin_errors { local } else { 0 },
    };
    (rule.enforcing > 0 || rule.enforcing_local_origin > 0).then_some(rule)
}

fn failure_percentage(message: &pb::OutlierDetection) -> Option<config::FailurePercentage> {
    let number = basic::count;
    let local = number(message.enforcing_failure_percentage_local_origin.as_ref(), 0).min(100);
    let rule = config::FailurePercentage {
        threshold: number(message.failure_percentage_threshold.as_ref(), 85),
        minimum_hosts: number(message.failure_percentage_minimum_hosts.as_ref(), 5),
        request_volume: number(message.failure_percentage_request_volume.as_ref(), 50),
        enforcing: number(message.enforcing_failure_percentage.as_ref(), 0).min(100),
        enforcing_local_origin: if message.split_external_local_origin_errors { local } else { 0 },
    };
    (rule.enforcing > 0 || rule.enforcing_local_origin > 0).then_some(rule)
}
