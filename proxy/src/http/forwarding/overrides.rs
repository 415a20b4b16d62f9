//! What internal callers may ask of the router with x-envoy-* headers.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#http-headers-consumed-from-downstreams>

use std::time::Duration;

use crate::config::{RetryOn, RetryPolicy};
use crate::http::head::RequestHead;

/// Wishes of an internal caller. A value that cannot be read counts as absent, as in Envoy without strict checking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `x-envoy-upstream-rq-timeout-ms`; ZERO is off.
    pub timeout: Option<Duration>,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`.
    pub per_try_timeout: Option<Duration>,
    /// `x-envoy-max-retries`.
    pub max_retries: Option<u32>,
    /// `x-envoy-retry-on` and `x-envoy-retry-grpc-on`, with `x-envoy-retriable-status-codes` where the words ask for codes.
    pub retry_on: Option<RetryOn>,
    /// `x-envoy-upstream-rq-timeout-alt-response`: a time-out is answered 204.
    pub timeout_alt_response: bool,
}

impl Overrides {
    /// Reads the wishes and removes their headers; `None` when there is none.
    pub(super) fn take(head: &mut RequestHead) -> Option<Box<Self>> {
        let mut reader = Reader::default();
        let mut found = false;
        head.headers.retain(|_, name, value| {
            let Some(name) = name.strip_prefix(b"x-envoy-") else { return true };
            let taken = reader.read(name, std::str::from_utf8(value).unwrap_or_default());
            found |= taken;
            !taken
        });
        found.then(|| Box::new(reader.finish()))
    }

    /// The retry policy in force: the route's and the caller's conditions together, the caller's number before the route's.
    /// A caller's number alone makes no policy.
    pub fn retry_policy(&self, route: Option<&RetryPolicy>) -> Option<RetryPolicy> {
        if route.is_none() && self.retry_on.is_none() {
            return None;
        }
        let mut policy = route.cloned().unwrap_or_default();
        if let Some(on) = &self.retry_on {
            unite(&mut policy.retry_on, on);
        }
        policy.num_retries = self.max_retries.unwrap_or(policy.num_retries);
        Some(policy)
    }
}

/// Headers come in any order, and codes count only when some word asks for them.
#[derive(Default)]
struct Reader {
    overrides: Overrides,
    status_codes: Vec<u16>,
    wants_status_codes: bool,
}

impl Reader {
    /// Whether the header (without `x-envoy-`) is one of ours.
    fn read(&mut self, name: &[u8], value: &str) -> bool {
        let words = || value.split(',').map(str::trim);
        match name {
            b"upstream-rq-timeout-ms" => self.overrides.timeout = milliseconds(value),
            b"upstream-rq-per-try-timeout-ms" => self.overrides.per_try_timeout = milliseconds(value),
            b"max-retries" => self.overrides.max_retries = value.parse().ok(),
            b"retry-on" => words().for_each(|word| self.retry_on(word)),
            b"retry-grpc-on" => words().for_each(|word| self.retry_grpc_on(word)),
            b"retriable-status-codes" => self.status_codes.extend(words().filter_map(|code| code.parse::<u16>().ok())),
            b"upstream-rq-timeout-alt-response" => self.overrides.timeout_alt_response = true,
            b"hedge-on-per-try-timeout" | b"retriable-header-names" | b"expected-rq-timeout-ms" => {}
            _ => return false,
        }
        true
    }

    fn retry_on(&mut self, word: &str) {
        let on = self.overrides.retry_on.get_or_insert_default();
        match word {
            word if on.add_word(word) => {}
            "retriable-status-codes" => self.wants_status_codes = true,
            _ => {}
        }
    }

    fn retry_grpc_on(&mut self, word: &str) {
        let status = match word {
            "cancelled" => 1,
            "deadline-exceeded" => 4,
            "resource-exhausted" => 8,
            "internal" => 13,
            "unavailable" => 14,
            _ => return,
        };
        self.overrides.retry_on.get_or_insert_default().grpc_statuses.push(status);
    }

    fn finish(mut self) -> Overrides {
        if let Some(on) = &mut self.overrides.retry_on
            && self.wants_status_codes
        {
            on.status_codes = self.status_codes;
        }
        self.overrides
    }
}

fn unite(all: &mut RetryOn, more: &RetryOn) {
    all.server_error |= more.server_error;
    all.gateway_error |= more.gateway_error;
    all.reset |= more.reset;
    all.reset_before_request |= more.reset_before_request;
    all.connect_failure |= more.connect_failure;
    all.refused_stream |= more.refused_stream;
    all.retriable_4xx |= more.retriable_4xx;
    all.envoy_ratelimited |= more.envoy_ratelimited;
    all.status_codes.extend_from_slice(&more.status_codes);
    all.grpc_statuses.extend_from_slice(&more.grpc_statuses);
}

fn milliseconds(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_millis)
}

/// The time-outs of a forwarded request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the whole response.
    pub request: Option<Duration>,
    /// Each attempt.
    pub per_try: Option<Duration>,
}

impl Timeouts {
    /// From route, retry policy and what the caller asks for. One attempt cannot have more time than all of them.
    pub fn new(route: Option<Duration>, per_try: Option<Duration>, overrides: Option<&Overrides>) -> Self {
        let request = overrides.and_then(|wish| wish.timeout).or(route).filter(|timeout| !timeout.is_zero());
        let per_try = overrides.and_then(|wish| wish.per_try_timeout).or(per_try).filter(|timeout| !timeout.is_zero());
        Self { request, per_try: per_try.filter(|per_try| request.is_none_or(|request| *per_try < request)) }
    }

    /// Value of x-envoy-expected-rq-timeout-ms, in milliseconds; `None` sets none.
    pub fn expected_ms(&self) -> Option<u128> {
        self.per_try.or(self.request).map(|timeout| timeout.as_millis())
    }
}
