//! When an attempt is repeated (Envoy `retry_on`).
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#x-envoy-retry-on>

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::head::{HeaderName, Known, RequestHead, ResponseHead};
use super::route::HeaderMatcher;
use crate::config::{self, RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy};
use crate::error::ErrorKind;

/// A retry policy, compiled.
#[derive(Clone, Debug)]
pub struct Policy {
    config: RetryPolicy,
    /// Responses with one of these are repeated.
    headers: Vec<HeaderMatcher>,
    /// Only requests with one of these are repeated; empty: all.
    request_headers: Vec<HeaderMatcher>,
    /// Where responses say when to come back.
    reset_headers: Vec<(HeaderName, ResetFormat)>,
    /// An attempt that takes too long is repeated whatever the conditions say (`x-envoy-hedge-on-per-try-timeout`).
    pub hedged: bool,
}

impl Policy {
    /// Prepares names for look-ups.
    pub fn compile(config: &RetryPolicy) -> Self {
        let matchers = |matchers: &[config::HeaderMatcher]| matchers.iter().map(HeaderMatcher::compile).collect();
        let resets = config.rate_limited.iter().flat_map(|back_off| &back_off.reset_headers);
        Self {
            headers: matchers(&config.retriable_headers),
            request_headers: matchers(&config.retriable_request_headers),
            reset_headers: resets.map(|header| (HeaderName::new(&header.name), header.format)).collect(),
            config: config.clone(),
            hedged: false,
        }
    }

    /// As it is configured.
    pub fn config(&self) -> &RetryPolicy {
        &self.config
    }

    /// To be changed for one request.
    pub fn config_mut(&mut self) -> &mut RetryPolicy {
        &mut self.config
    }

    /// Responses that carry this header are repeated, too, where the conditions ask for headers.
    pub fn add_header(&mut self, name: &str) {
        let present = config::HeaderMatcher {
            name: name.to_owned(),
            value: config::HeaderMatch::Present(true),
            invert: false,
            treat_missing_as_empty: false,
        };
        self.headers.push(HeaderMatcher::compile(&present));
    }

    /// When the response asks to come back, if it does in a way that is believed.
    fn reset(&self, response: &ResponseHead) -> Option<Duration> {
        let RateLimitedBackOff { max_interval, .. } = self.config.rate_limited.as_ref()?;
        let intervals = self.reset_headers.iter().filter_map(|(name, format)| {
            let number: u64 = std::str::from_utf8(response.headers.find(name)?).ok()?.trim().parse().ok()?;
            match format {
                ResetFormat::Seconds => Some(Duration::from_secs(number)),
                ResetFormat::UnixTimestamp => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
                    Duration::from_secs(number).checked_sub(now)
                }
            }
        });
        intervals.into_iter().find(|interval| interval <= max_interval).filter(|interval| interval.as_millis() > 1)
    }
}

/// Retries of one request.
#[derive(Debug)]
pub struct Retries<'a> {
    policy: Option<&'a Policy>,
    left: u32,
    made: u32,
    /// What the response to repeat asked to wait at least.
    reset: Option<Duration>,
}

impl<'a> Retries<'a> {
    /// With the route's policy, where it covers this request; none without.
    pub fn new(policy: Option<&'a Policy>, request: &RequestHead) -> Self {
        let policy = policy.filter(|policy| {
            policy.request_headers.is_empty() || policy.request_headers.iter().any(|matcher| matcher.matches(request))
        });
        Self { policy, left: policy.map_or(0, |p| p.config.num_retries), made: 0, reset: None }
    }

    /// The policy.
    pub fn policy(&self) -> Option<&'a RetryPolicy> {
        self.policy.map(|policy| &policy.config)
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
        self.policy.is_some_and(|policy| {
            policy.hedged && kind.is_try_timeout() || failure_matches(&policy.config.retry_on, kind, head_sent)
        })
    }

    /// Whether the policy covers this response, however many retries are left.
    pub fn covers_response(&self, head: &ResponseHead) -> bool {
        self.policy.is_some_and(|policy| response_matches(policy, head))
    }

    /// Waits as long as the response asks for, where the policy follows that.
    pub fn learn_reset(&mut self, response: &ResponseHead) {
        self.reset = self.policy.and_then(|policy| policy.reset(response));
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

    /// How long to wait before the retry just taken: full jitter over an exponentially growing interval, or half as much again
    /// at the most as the response asked for.
    pub fn back_off(&mut self) -> Duration {
        if let Some(reset) = self.reset.take() {
            return reset + reset.mul_f64(0.5 * fastrand::f64());
        }
        let Some(policy) = self.policy() else { return Duration::ZERO };
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
        ErrorKind::PerTryTimeout | ErrorKind::PerTryIdleTimeout | ErrorKind::UpstreamMaxStreamDuration { .. } => any_reset,
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

fn response_matches(policy: &Policy, head: &ResponseHead) -> bool {
    let on = &policy.config.retry_on;
    // It comes from another proxy, whose limit the retry would meet again.
    if head.headers.contains(Known::XEnvoyRatelimited) {
        return on.envoy_ratelimited;
    }
    let status = head.status.as_u16();
    if (on.server_error && status >= 500)
        || (on.gateway_error && matches!(status, 502..=504))
        || (on.retriable_headers && policy.headers.iter().any(|matcher| matcher.matches_fields(&head.headers)))
        || (on.retriable_4xx && status == 409)
        || (on.retriable_status_codes && on.status_codes.contains(&status))
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
    use crate::config::ResetHeader;

    fn response(status: u16, headers: &[(&str, &str)]) -> ResponseHead {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        for (name, value) in headers {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    #[test]
    fn istios_default_covers_only_what_cannot_have_had_an_effect() {
        let policy = Policy::compile(&RetryPolicy::istio_default());
        let mut retries = Retries::new(Some(&policy), &RequestHead::new());
        assert!(retries.covers_failure(ErrorKind::ConnectFailure, false));
        assert!(retries.covers_failure(ErrorKind::UpstreamRefused, true));
        assert!(!retries.covers_failure(ErrorKind::UpstreamClosed, true));
        assert!(!retries.covers_response(&response(503, &[])));
        assert!(retries.covers_response(&response(200, &[("grpc-status", "14")])));
        assert!(retries.take() && retries.take() && !retries.take());
        assert!(retries.exhausted());
    }

    #[test]
    fn a_rate_limited_response_is_repeated_only_where_that_is_asked_for() {
        let limited = response(503, &[("x-envoy-ratelimited", "true")]);
        let mut config = RetryPolicy { retry_on: RetryOn { server_error: true, ..RetryOn::default() }, ..RetryPolicy::default() };
        let policy = Policy::compile(&config);
        let retries = Retries::new(Some(&policy), &RequestHead::new());
        assert!(retries.covers_response(&response(503, &[])));
        assert!(!retries.covers_response(&limited));
        config.retry_on = RetryOn { envoy_ratelimited: true, ..RetryOn::default() };
        let policy = Policy::compile(&config);
        let retries = Retries::new(Some(&policy), &RequestHead::new());
        assert!(retries.covers_response(&limited) && !retries.covers_response(&response(503, &[])));
    }

    #[test]
    fn headers_of_request_and_response_decide_where_the_policy_names_them() {
        let matcher = |name: &str| config::HeaderMatcher {
            name: name.to_owned(),
            value: config::HeaderMatch::String(config::StringMatcher::exact("yes")),
            invert: false,
            treat_missing_as_empty: false,
        };
        let policy = Policy::compile(&RetryPolicy {
            retry_on: RetryOn { retriable_headers: true, ..RetryOn::default() },
            retriable_headers: vec![matcher("x-again")],
            retriable_request_headers: vec![matcher("x-may")],
            ..RetryPolicy::default()
        });
        let mut request = RequestHead::new();
        let again = response(200, &[("x-again", "yes")]);
        assert!(!Retries::new(Some(&policy), &request).covers_response(&again));
        request.headers.push(b"x-may", b"yes");
        let retries = Retries::new(Some(&policy), &request);
        assert!(retries.covers_response(&again));
        assert!(!retries.covers_response(&response(503, &[("x-again", "no")])));
    }

    #[test]
    fn back_off_stays_below_its_cap() {
        let policy = Policy::compile(&RetryPolicy { num_retries: 20, ..RetryPolicy::default() });
        let mut retries = Retries::new(Some(&policy), &RequestHead::new());
        while retries.take() {
            assert!(retries.back_off() <= Duration::from_millis(250));
        }
    }

    #[test]
    fn a_believable_reset_header_sets_the_pause_once() {
        let header = |name: &str, format| ResetHeader { name: name.to_owned(), format };
        let reset_headers = vec![header("retry-after", ResetFormat::Seconds), header("x-reset", ResetFormat::UnixTimestamp)];
        let rate_limited = Some(RateLimitedBackOff { reset_headers, max_interval: Duration::from_secs(10) });
        let policy = Policy::compile(&RetryPolicy { rate_limited, ..RetryPolicy::default() });
        let mut retries = Retries::new(Some(&policy), &RequestHead::new());
        retries.learn_reset(&response(429, &[("retry-after", "4")]));
        let pause = retries.back_off();
        assert!((Duration::from_secs(4)..=Duration::from_secs(6)).contains(&pause), "{pause:?}");
        assert!(retries.back_off() <= Duration::from_millis(25), "the next failure says nothing");
        let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 5;
        retries.learn_reset(&response(429, &[("retry-after", "99"), ("x-reset", &soon.to_string())]));
        assert!(retries.back_off() > Duration::from_secs(3), "too long a wait is passed over for the next header");
        for unbelievable in ["11", "soon", "0", "-1"] {
            retries.learn_reset(&response(429, &[("retry-after", unbelievable)]));
            assert!(retries.back_off() <= Duration::from_millis(25), "{unbelievable}");
        }
    }

    #[test]
    fn without_a_policy_nothing_is_repeated() {
        let mut retries = Retries::new(None, &RequestHead::new());
        assert!(!retries.covers_failure(ErrorKind::ConnectFailure, false));
        assert!(!retries.take() && !retries.exhausted());
    }
}
