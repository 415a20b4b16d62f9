//! Local rate limits (Envoy `envoy.filters.http.local_ratelimit`): token buckets that all workers share.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/local_rate_limit_filter>

mod bucket;
mod describe;

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;

use self::bucket::Bucket;
use self::describe::{Entry, Rule};
use super::exchange::Exchange;
use super::ext_authz::{HeaderWrite, Write};
use super::head::Headers;
use super::local_reply::LocalReply;
use super::route::{HeaderMutations, RouteError};
use crate::config;
use crate::flags::ResponseFlags;
use crate::telemetry::metrics::LimitCounters;

/// gRPC's code for a limit that is reached.
const RESOURCE_EXHAUSTED: u32 = 8;

/// The filter, or what a route puts in its place, compiled.
#[derive(Debug)]
pub(super) struct LocalRateLimit {
    config: Arc<config::LocalRateLimit>,
    default: Option<Bucket>,
    /// The strictest first.
    descriptors: Box<[(Vec<Entry>, Bucket)]>,
    rules: Box<[Rule]>,
    not_enforced: HeaderMutations,
    refusal: HeaderMutations,
}

/// Whether a request passes, and the bucket that tells how much is left.
struct Outcome<'a> {
    allowed: bool,
    bucket: Option<&'a Bucket>,
}

impl LocalRateLimit {
    pub(super) fn compile(config: &Arc<config::LocalRateLimit>) -> Result<Self, RouteError> {
        let now = Instant::now();
        let adding = |headers: &Vec<config::HeaderValueOption>| {
            HeaderMutations::compile(&config::HeaderMutations { request_add: headers.clone(), ..Default::default() })
        };
        let entries = |descriptor: &config::RateLimitDescriptor| -> Vec<Entry> {
            descriptor.entries.iter().map(|(key, value)| (key.clone(), value.as_bytes().to_vec())).collect()
        };
        let descriptors = config.descriptors.iter();
        let mut descriptors: Vec<_> = descriptors.map(|one| (entries(one), Bucket::new(&one.bucket, now))).collect();
        descriptors.sort_by(|(_, one), (_, other)| one.rate().total_cmp(&other.rate()));
        Ok(Self {
            default: config.bucket.as_ref().map(|bucket| Bucket::new(bucket, now)),
            descriptors: descriptors.into(),
            rules: config.rules.iter().map(Rule::compile).collect(),
            not_enforced: adding(&config.request_headers_not_enforced)?,
            refusal: adding(&config.response_headers)?,
            config: config.clone(),
        })
    }

    /// Counts the request; the answer when it is one too many. What responses are to tell is left in the exchange for the filter
    /// numbered `index`.
    pub(super) fn count(&self, exchange: &mut Exchange, index: usize, counters: &LimitCounters) -> Option<LocalReply> {
        if !self.config.enabled.draw() {
            return None;
        }
        counters.enabled.increment(1);
        let now = Instant::now();
        let outcome = self.take(exchange, now);
        if let Some(bucket) = outcome.bucket.filter(|_| self.config.ratelimit_headers) {
            exchange.pending.push((index, tell(bucket, now)));
        }
        if outcome.allowed {
            counters.ok.increment(1);
            return None;
        }
        counters.rate_limited.increment(1);
        if !self.config.enforced.draw() {
            let mut headers = std::mem::take(&mut exchange.request.headers);
            self.not_enforced.add_to(&mut headers, &exchange.request, &exchange.info);
            exchange.request.headers = headers;
            return None;
        }
        counters.enforced.increment(1);
        Some(self.refuse(exchange, outcome.bucket, now))
    }

    fn take(&self, exchange: &Exchange, now: Instant) -> Outcome<'_> {
        let mut strictest = None;
        if !self.descriptors.is_empty() {
            let described: Vec<Vec<Entry>> = self.rules.iter().filter_map(|rule| rule.describe(exchange)).collect();
            for (_, bucket) in self.descriptors.iter().filter(|(entries, _)| described.contains(entries)) {
                if !bucket.take(now) {
                    return Outcome { allowed: false, bucket: Some(bucket) };
                }
                strictest = strictest.or(Some(bucket));
            }
        }
        match &self.default {
            Some(default) if strictest.is_none() || self.config.always_take_default => {
                let allowed = default.take(now);
                let fewer = strictest.is_none_or(|bucket| default.remaining(now) < bucket.remaining(now));
                Outcome { allowed, bucket: if !allowed || fewer { Some(default) } else { strictest } }
            }
            _ => Outcome { allowed: true, bucket: strictest },
        }
    }

    fn refuse(&self, exchange: &Exchange, bucket: Option<&Bucket>, now: Instant) -> LocalReply {
        let status = StatusCode::from_u16(self.config.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let mut reply = LocalReply::new(status, &b"local_rate_limited"[..], ResponseFlags::RATE_LIMITED, "local_rate_limited");
        reply.grpc_status = self.config.resource_exhausted.then_some(RESOURCE_EXHAUSTED);
        self.refusal.add_to(&mut reply.headers, &exchange.request, &exchange.info);
        if let Some(bucket) = bucket.filter(|_| self.config.retry_after) {
            push(&mut reply.headers, b"retry-after", bucket.next_token(now));
        }
        reply
    }
}

fn push(headers: &mut Headers, name: &[u8], number: u64) {
    headers.push(name, itoa::Buffer::new().format(number).as_bytes());
}

/// `x-ratelimit-*` as draft 3 of the RFC has them.
fn tell(bucket: &Bucket, now: Instant) -> Vec<HeaderWrite> {
    let remaining = bucket.remaining(now);
    let reset = if remaining > 0 { 0 } else { bucket.next_token(now) };
    let values: [(&[u8], u64); 3] =
        [(b"x-ratelimit-limit", bucket.max()), (b"x-ratelimit-remaining", remaining), (b"x-ratelimit-reset", reset)];
    let write = |(name, number): (&[u8], u64)| (name.into(), number.to_string().into_bytes().into(), Write::Add);
    values.into_iter().map(write).collect()
}
