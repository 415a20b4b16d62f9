//! Health of endpoints: active checks (Envoy `core.v3.HealthCheck`) and passive ones (`OutlierDetection`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::{HeaderValueOption, StringMatcher};

/// How endpoints are asked for their health. Mirrors
/// <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/core/v3/health_check.proto>.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HealthCheck {
    /// An answer that takes longer is a failure.
    pub timeout: Duration,
    /// Failures in a row before a healthy endpoint is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row before an unhealthy endpoint is healthy; the first check of all needs one.
    pub healthy_threshold: u32,
    /// When checks happen.
    pub intervals: HealthCheckIntervals,
    /// The connection is kept for the next check.
    pub reuse_connection: bool,
    /// ALPN offer of the checks; empty is the cluster's.
    pub alpn: Vec<String>,
    /// Chooses the transport socket of the checks instead of the endpoint's labels.
    pub transport_match: Option<BTreeMap<String, String>>,
    /// What is asked.
    pub checker: HealthChecker,
}

/// Pauses between checks of an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HealthCheckIntervals {
    /// While it is healthy.
    pub interval: Duration,
    /// While it is unhealthy.
    pub unhealthy: Duration,
    /// After the first failure of a healthy one.
    pub unhealthy_edge: Duration,
    /// After the first success of an unhealthy one.
    pub healthy_edge: Duration,
    /// As long as the cluster has never had a connection.
    pub no_traffic: Duration,
    /// The same, while it is healthy.
    pub no_traffic_healthy: Duration,
    /// Added before the first check, up to this much.
    pub initial_jitter: Duration,
    /// Added to every pause, up to this much.
    pub jitter: Duration,
    /// Added to every pause, up to this share of it.
    pub jitter_percent: u32,
}

impl HealthCheckIntervals {
    /// Everything that Envoy derives from the interval.
    pub fn every(interval: Duration) -> Self {
        let no_traffic = Duration::from_secs(60);
        Self {
            interval,
            unhealthy: interval,
            unhealthy_edge: interval,
            healthy_edge: interval,
            no_traffic,
            no_traffic_healthy: no_traffic,
            initial_jitter: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_percent: 0,
        }
    }
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum HealthChecker {
    /// A request.
    Http(Box<HttpHealthCheck>),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcHealthCheck),
    /// A connection, perhaps with a few bytes.
    Tcp(TcpHealthCheck),
}

/// Envoy `HealthCheck.HttpHealthCheck`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpHealthCheck {
    /// Host; empty is the cluster's name. One of the endpoint's health check comes first.
    pub host: String,
    /// Path.
    pub path: String,
    /// Method.
    pub method: String,
    /// Body; empty is none.
    pub send: Vec<u8>,
    /// What the body of the answer must contain, in this order.
    pub receive: Vec<Vec<u8>>,
    /// Bytes of the answer that are looked at.
    pub response_buffer_size: u64,
    /// Further headers; values are literal.
    pub headers_to_add: Vec<HeaderValueOption>,
    /// Headers that are left out.
    pub headers_to_remove: Vec<String>,
    /// Statuses of a healthy endpoint.
    pub expected_statuses: Vec<Range<u16>>,
    /// Statuses that count towards the unhealthy threshold; others are a failure at once.
    pub retriable_statuses: Vec<Range<u16>>,
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
    /// What `x-envoy-upstream-healthchecked-cluster` of the answer must be.
    pub service_name: Option<StringMatcher>,
}

impl HttpHealthCheck {
    /// The statuses that are just this one.
    pub fn only(status: u16) -> Vec<Range<u16>> {
        std::iter::once(status..status + 1).collect()
    }
}

/// Envoy `HealthCheck.GrpcHealthCheck`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GrpcHealthCheck {
    /// Service that is asked for; empty is the server as a whole.
    pub service_name: String,
    /// `:authority`; empty is the cluster's name. One of the endpoint's health check comes first.
    pub authority: String,
    /// Further metadata; values are literal.
    pub initial_metadata: Vec<HeaderValueOption>,
}

/// Envoy `HealthCheck.TcpHealthCheck`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TcpHealthCheck {
    /// Sent after the connect.
    pub send: Vec<u8>,
    /// What must come back, in this order; nothing is that the connect succeeds.
    pub receive: Vec<Vec<u8>>,
}

/// Passive health checking (Envoy `OutlierDetection`); `None` of a count is off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutlierDetection {
    /// 5xx in a row.
    pub consecutive_5xx: Option<ConsecutiveFailures>,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway_failure: Option<ConsecutiveFailures>,
    /// Connect failures, resets and time-outs in a row, when they are counted apart.
    pub consecutive_local_origin_failure: Option<ConsecutiveFailures>,
    /// Failures of our own making are counted apart.
    pub split_external_local_origin_errors: bool,
    /// Fewer successes than the other endpoints have.
    pub success_rate: Option<SuccessRate>,
    /// Too large a share of failures, whatever the others have.
    pub failure_percentage: Option<FailurePercentage>,
    /// How often ejections are reviewed.
    pub interval: Duration,
    /// First ejection; multiplied by how often it happened.
    pub base_ejection_time: Duration,
    /// Longest ejection.
    pub max_ejection_time: Duration,
    /// Added to an ejection, up to this much.
    pub max_ejection_time_jitter: Duration,
    /// Share of endpoints that may be ejected.
    pub max_ejection_percent: u32,
    /// One endpoint may be ejected whatever the share says.
    pub always_eject_one_host: bool,
    /// A successful active check ends an ejection.
    pub successful_active_health_check_uneject_host: bool,
}

impl Default for OutlierDetection {
    /// Envoy's own defaults, without success rate and failure percentage.
    fn default() -> Self {
        Self {
            consecutive_5xx: Some(ConsecutiveFailures::always(5)),
            consecutive_gateway_failure: None,
            consecutive_local_origin_failure: Some(ConsecutiveFailures::always(5)),
            split_external_local_origin_errors: false,
            success_rate: None,
            failure_percentage: None,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            successful_active_health_check_uneject_host: true,
        }
    }
}

/// A row of failures that ejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConsecutiveFailures {
    /// How many.
    pub count: u32,
    /// In how many of 100 cases it does eject.
    pub enforcing: u32,
}

impl ConsecutiveFailures {
    /// Every row of so many ejects.
    pub const fn always(count: u32) -> Self {
        Self { count, enforcing: 100 }
    }
}

/// Envoy's `success_rate_*` and the shares in which it is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SuccessRate {
    /// Endpoints with enough requests that it takes.
    pub minimum_hosts: u32,
    /// Requests in an interval that it takes.
    pub request_volume: u32,
    /// How many standard deviations below the mean eject, in thousandths.
    pub stdev_factor: u32,
    /// In how many of 100 cases it does eject.
    pub enforcing: u32,
    /// The same, for failures of our own making when they are counted apart.
    pub enforcing_local_origin: u32,
}

/// Envoy's `failure_percentage_*` and the shares in which it is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FailurePercentage {
    /// Failures of 100 requests that eject.
    pub threshold: u32,
    /// Endpoints with enough requests that it takes.
    pub minimum_hosts: u32,
    /// Requests in an interval that it takes.
    pub request_volume: u32,
    /// In how many of 100 cases it does eject.
    pub enforcing: u32,
    /// The same, for failures of our own making when they are counted apart.
    pub enforcing_local_origin: u32,
}
