//! What internal callers may ask of the router with x-envoy-* headers.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#http-headers-consumed-from-downstreams>

use std::time::Duration;

use crate::config::{RetryOn, RetryPolicy};
use crate::http::head::RequestHead;
use crate::http::retry::Policy;

/// The headers, without `x-envoy-`. All are consumed here.
const NAMES: [&str; 11] = [
    "upstream-rq-timeout-ms",
    "upstream-rq-per-try-timeout-ms",
    "max-retries",
    "retry-on",
    "retry-grpc-on",
    "retriable-status-codes",
    "retriable-header-names",
    "upstream-rq-timeout-alt-response",
    "hedge-on-per-try-timeout",
    "upstream-stream-duration-ms",
    "upstream-alt-stat-name",
];

/// Wishes of an internal caller. A value that cannot be read counts as absent, as in Envoy without strict checking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `x-envoy-upstream-rq-timeout-ms`; ZERO is off.
    pub timeout: Option<Duration>,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`.
    pub per_try_timeout: Option<Duration>,
    /// `x-envoy-upstream-stream-duration-ms`: the life of an attempt.
    pub upstream_stream: Option<Duration>,
    /// `x-envoy-max-retries`.
    pub max_retries: Option<u32>,
    /// `x-envoy-retry-on` and `x-envoy-retry-grpc-on`; `None` without either.
    pub retry_on: Option<RetryOn>,
    /// `x-envoy-retriable-status-codes`, which count where a condition asks for codes.
    pub status_codes: Vec<u16>,
    /// `x-envoy-retriable-header-names`, which count where a condition asks for headers.
    pub header_names: Vec<String>,
    /// `x-envoy-upstream-rq-timeout-alt-response`: a time-out is answered 204.
    pub timeout_alt_response: bool,
    /// `x-envoy-hedge-on-per-try-timeout`. An attempt that takes too long is repeated whatever the conditions say, but not
    /// raced against the repetition, as Envoy does.
    pub hedged: bool,
    /// As they were sent, for [`Self::invalid_value`]: an index into the list of names and the lines joined.
    pub(in crate::http) sent: Vec<(usize, Vec<u8>)>,
}

impl Overrides {
    /// Reads the wishes and removes their headers; `None` when there is none.
    pub(super) fn take(head: &mut RequestHead) -> Option<Box<Self>> {
        let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
        head.headers.retain(|_, name, value| {
            let short = name.strip_prefix(b"x-envoy-");
            let Some(index) = short.and_then(|short| NAMES.iter().position(|known| known.as_bytes() == short)) else {
                return true;
            };
            match sent.iter_mut().find(|(known, _)| *known == index) {
                Some((_, joined)) => joined.extend_from_slice(&[b",", value].concat()),
                None => sent.push((index, value.to_vec())),
            }
            false
        });
        if sent.is_empty() {
            return None;
        }
        let mut overrides = Box::new(Self::default());
        for (index, value) in &sent {
            overrides.read(NAMES[*index], std::str::from_utf8(value).unwrap_or_default());
        }
        overrides.sent = sent;
        Some(overrides)
    }

    fn read(&mut self, name: &str, value: &str) {
        match name {
            "upstream-rq-timeout-ms" => self.timeout = milliseconds(value),
            "upstream-rq-per-try-timeout-ms" => self.per_try_timeout = milliseconds(value),
            "upstream-stream-duration-ms" => self.upstream_stream = milliseconds(value),
            "max-retries" => self.max_retries = value.parse::<u64>().ok().map(|max| u32::try_from(max).unwrap_or(u32::MAX)),
            "retry-on" => {
                let on = self.retry_on.get_or_insert_default();
                for word in words(value) {
                    on.add_word(word);
                }
            }
            "retry-grpc-on" => {
                let on = self.retry_on.get_or_insert_default();
                for word in words(value) {
                    on.add_grpc_word(word);
                }
            }
            "retriable-status-codes" => self.status_codes = words(value).filter_map(|code| code.parse().ok()).collect(),
            "retriable-header-names" => self.header_names = words(value).map(str::to_ascii_lowercase).collect(),
            "upstream-rq-timeout-alt-response" => self.timeout_alt_response = true,
            "hedge-on-per-try-timeout" => self.hedged = value == "true",
            _ => {}
        }
    }

    /// The value of the header `name`, when it is not what Envoy's strict checking wants; always `None` for headers that it does
    /// not check.
    pub fn invalid_value<'a>(&'a self, name: &'a str) -> Option<(&'a str, &'a [u8])> {
        let short = name.strip_prefix("x-envoy-")?;
        let (_, value) = self.sent.iter().find(|(index, _)| NAMES[*index] == short)?;
        let text = std::str::from_utf8(value).unwrap_or("?");
        let mut on = RetryOn::default();
        let valid = match short {
            "upstream-rq-timeout-ms" | "upstream-rq-per-try-timeout-ms" | "max-retries" => text.parse::<u64>().is_ok(),
            "retry-on" => words(text).all(|word| on.add_word(word)),
            "retry-grpc-on" => words(text).all(|word| on.add_grpc_word(word)),
            _ => true,
        };
        (!valid).then_some((name, value))
    }

    /// The retry policy in force: the route's and the caller's conditions together, the caller's number before the route's.
    /// A caller's number alone makes no policy.
    pub fn retry_policy(&self, route: Option<&Policy>) -> Option<Policy> {
        if route.is_none() && self.retry_on.is_none() {
            return None;
        }
        let mut policy = route.cloned().unwrap_or_else(|| Policy::compile(&RetryPolicy::default()));
        let config = policy.config_mut();
        if let Some(on) = &self.retry_on {
            unite(&mut config.retry_on, on);
        }
        config.retry_on.status_codes.extend_from_slice(&self.status_codes);
        config.num_retries = self.max_retries.unwrap_or(config.num_retries);
        self.header_names.iter().for_each(|name| policy.add_header(name));
        policy.hedged = self.hedged;
        Some(policy)
    }
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|word| !word.is_empty())
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
    all.retriable_status_codes |= more.retriable_status_codes;
    all.retriable_headers |= more.retriable_headers;
    all.grpc_statuses.extend_from_slice(&more.grpc_statuses);
}

fn milliseconds(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_millis)
}
