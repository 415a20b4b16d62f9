//! Retries (Envoy `config.route.v3.RetryPolicy`).

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Serialize;

use super::HeaderMatcher;

/// Retry conditions (Envoy `retry_on`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent word of Envoy's retry_on list")]
pub struct RetryOn {
    /// `5xx`: any 5xx, reset or time-out.
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: the upstream did not answer at all.
    pub reset: bool,
    /// `reset-before-request`: reset before the head was sent.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `refused-stream`: REFUSED_STREAM on HTTP/2.
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `retriable-status-codes`.
    pub retriable_status_codes: bool,
    /// The codes, which count where [`Self::retriable_status_codes`] says so.
    pub status_codes: Vec<u16>,
    /// `retriable-headers`: those of [`RetryPolicy::retriable_headers`].
    pub retriable_headers: bool,
    /// `envoy-ratelimited`: `x-envoy-ratelimited`, which is never retried otherwise.
    pub envoy_ratelimited: bool,
    /// gRPC statuses in headers: `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable` as codes.
    pub grpc_statuses: Vec<u16>,
}

impl RetryOn {
    /// Adds the condition of one HTTP word of Envoy's `retry_on` list; whether it is one. The codes of `retriable-status-codes`
    /// come from elsewhere.
    pub fn add_word(&mut self, word: &str) -> bool {
        match word {
            "5xx" => self.server_error = true,
            "gateway-error" => self.gateway_error = true,
            "reset" => self.reset = true,
            "reset-before-request" => self.reset_before_request = true,
            "connect-failure" => self.connect_failure = true,
            "refused-stream" => self.refused_stream = true,
            "retriable-4xx" => self.retriable_4xx = true,
            "envoy-ratelimited" => self.envoy_ratelimited = true,
            "retriable-status-codes" => self.retriable_status_codes = true,
            "retriable-headers" => self.retriable_headers = true,
            // HTTP/3 is not spoken.
            "http3-post-connect-failure" => {}
            _ => return false,
        }
        true
    }

    /// Adds the condition of one gRPC word; whether it is one.
    pub fn add_grpc_word(&mut self, word: &str) -> bool {
        let status = match word {
            "cancelled" => 1,
            "deadline-exceeded" => 4,
            "resource-exhausted" => 8,
            "internal" => 13,
            "unavailable" => 14,
            _ => return false,
        };
        self.grpc_statuses.push(status);
        true
    }
}

/// Back-off that follows what a response asks for (Envoy `RateLimitedRetryBackOff`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateLimitedBackOff {
    /// Looked for in this order; the first that can be read counts.
    pub reset_headers: Vec<ResetHeader>,
    /// Longer waits are not taken from a response (Envoy: 300 s).
    pub max_interval: Duration,
}

/// A header that says when to come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResetHeader {
    /// Lower-case name.
    pub name: String,
    /// What its number means.
    pub format: ResetFormat,
}

/// The meaning of a reset header's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// How failed attempts are repeated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetryPolicy {
    /// When.
    pub retry_on: RetryOn,
    /// How often, beside the first attempt.
    pub num_retries: u32,
    /// Each attempt.
    pub per_try_timeout: Option<Duration>,
    /// No activity within an attempt.
    pub per_try_idle_timeout: Option<Duration>,
    /// First interval of the full-jitter back-off (Envoy: 25 ms).
    pub base_interval: Duration,
    /// Cap of the interval (Envoy: 10 times the base).
    pub max_interval: Duration,
    /// Responses may say when to come back (`rate_limited_retry_back_off`).
    pub rate_limited: Option<RateLimitedBackOff>,
    /// Responses with one of these headers are repeated, where [`RetryOn::retriable_headers`] says so.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests with one of these headers are repeated; empty: all.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// How often another host is looked for, so that a retry avoids the hosts that failed (`previous_hosts`); 0 does not.
    pub host_selection_attempts: u32,
    /// After how many attempts retries leave the priorities of those before them alone (`previous_priorities`); `None` does not.
    pub previous_priorities: Option<NonZeroUsize>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retry_on: RetryOn::default(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            rate_limited: None,
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            host_selection_attempts: 0,
            previous_priorities: None,
        }
    }
}

impl RetryPolicy {
    /// What istiod gives every outbound route: two retries on another host for failures before a request could have an effect.
    pub fn istio_default() -> Self {
        Self {
            retry_on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                retriable_status_codes: true,
                grpc_statuses: vec![14, 1],
                ..RetryOn::default()
            },
            num_retries: 2,
            host_selection_attempts: 5,
            ..Self::default()
        }
    }
}
