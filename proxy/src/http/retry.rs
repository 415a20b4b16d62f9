//! When an attempt is repeated (Envoy `retry_on`).
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#x-envoy-retry-on>

use std::time::Duration;

use super::head::{Known, ResponseHead};
use crate::config::{RetryOn, RetryPolicy};
use crate::error::ErrorKind;

/// Retries of one request.
#[derive(Debug)]
pub struct Retries<'a> {
    policy: Option<&'a RetryPolicy>,
    left: u32,
    made: u32,
}

impl<'a> Retries<'a> {
    /// With the route's policy; none without.
    pub fn new(policy: Option<&'a RetryPolicy>) -> Self {
        Self { policy, left: policy.map_or(0, |p| p.num_retries), made: 0 }
    }

    /// The policy.
    pub fn policy(&self) -> Option<&'a RetryPolicy> {
        self.policy
    }

    /// Whether a body has to be kept for another attempt.
    pub fn needs_replay(&self) -> bool {
        self.left > 0
    }

    /// Whether at least one retry was made.
    pub fn any_made(&self) -> bool {
        self.made > 0
    }

    /// Whether the retries that the policy grants are used up, so that a failure it covers is final (`URX`).
    pub fn exhausted(&self) -> bool {
        self.policy.is_some() && self.left == 0
    }

    /// Whether the policy covers this failure, however many retries are left. `head_sent`: the request reached the upstream.
    pub fn covers_failure(&self, kind: ErrorKind, head_sent: bool) -> bool {
        self.policy.is_some_and(|policy| failure_matches(&policy.retry_on, kind, head_sent))
    }

    /// Whether the policy covers this response, however many retries are left.
    pub fn covers_response(&self, head: &ResponseHead) -> bool {
        self.policy.is_some_and(|policy| response_matches(&policy.retry_on, head))
    }

    /// Uses up one retry, if there is one.
    pub fn take(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.made += 1;
        true
    }

    /// How long to wait before the retry just taken: full jitter over an exponentially growing interval.
    pub fn back_off(&self) -> Duration {
        let Some(policy) = self.policy else { return Duration::ZERO };
        let cap = policy.base_interval.saturating_mul(1 << self.made.saturating_sub(1).min(16)).min(policy.max_interval);
        cap.mul_f64(fastrand::f64())
    }
}

fn failure_matches(on: &RetryOn, kind: ErrorKind, head_sent: bool) -> bool {
    let any_reset = on.reset || on.server_error || on.gateway_error;
    match kind {
        ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout | ErrorKind::TlsFailure => {
            on.connect_failure || any_reset || on.reset_before_request
        }
        ErrorKind::UpstreamRefused => on.refused_stream || any_reset || (on.reset_before_request && !head_sent),
        ErrorKind::UpstreamClosed | ErrorKind::UpstreamReset | ErrorKind::UpstreamProtocol => {
            any_reset || (on.reset_before_request && !head_sent)
        }
        ErrorKind::PerTryTimeout => on.server_error || on.gateway_error || on.reset,
        ErrorKind::Overflow
        | ErrorKind::NoRoute
        | ErrorKind::NoCluster(_)
        | ErrorKind::NoHealthyUpstream
        | ErrorKind::DropOverload { .. }
        | ErrorKind::Timeout
        | ErrorKind::StreamIdle { .. }
        | ErrorKind::RequestTimeout
        | ErrorKind::HeaderTimeout
        | ErrorKind::MaxStreamDuration { .. }
        | ErrorKind::DownstreamClosed
        | ErrorKind::DownstreamReset
        | ErrorKind::DownstreamProtocol
        | ErrorKind::DownstreamTooLarge
        | ErrorKind::DownstreamViolation(_) => false,
    }
}

fn response_matches(on: &RetryOn, head: &ResponseHead) -> bool {
    let status = head.status.as_u16();
    if (on.server_error && status >= 500)
        || (on.gateway_error && matches!(status, 502..=504))
        || (on.retriable_4xx && status == 409)
        || on.status_codes.contains(&status)
    {
        return true;
    }
    let grpc_status = || std::str::from_utf8(head.headers.get(Known::GrpcStatus)?).ok()?.parse::<u16>().ok();
    !on.grpc_statuses.is_empty() && grpc_status().is_some_and(|code| on.grpc_statuses.contains(&code))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn istios_default_covers_only_what_cannot_have_had_an_effect() {
        let policy = RetryPolicy::istio_default();
        let mut retries = Retries::new(Some(&policy));
        assert!(retries.covers_failure(ErrorKind::ConnectFailure, false));
        assert!(retries.covers_failure(ErrorKind::UpstreamRefused, true));
        assert!(!retries.covers_failure(ErrorKind::UpstreamClosed, true));
        assert!(!retries.covers_response(&ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE)));
        let mut unavailable = ResponseHead::new(StatusCode::OK);
        unavailable.headers.push(b"grpc-status", b"14");
        assert!(retries.covers_response(&unavailable));
        assert!(retries.take() && retries.take() && !retries.take());
        assert!(retries.exhausted());
    }

    #[test]
    fn back_off_stays_below_its_cap() {
        let policy = RetryPolicy { num_retries: 20, ..RetryPolicy::default() };
        let mut retries = Retries::new(Some(&policy));
        while retries.take() {
            assert!(retries.back_off() <= Duration::from_millis(250));
        }
    }

    #[test]
    fn without_a_policy_nothing_is_repeated() {
        let mut retries = Retries::new(None);
        assert!(!retries.covers_failure(ErrorKind::ConnectFailure, false));
        assert!(!retries.take() && !retries.exhausted());
    }
}
