//! Rate limits that this proxy keeps by itself (Envoy `extensions.filters.http.local_ratelimit.v3`).

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Serialize;

use super::{Fraction, HeaderMatcher, HeaderValueOption, QueryParameterMatcher};

/// One `envoy.filters.http.local_ratelimit` filter, or what a route puts in its place. Its buckets are shared by all workers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LocalRateLimit {
    /// Name of the filter in its chain, by which routes override it.
    pub name: String,
    /// Prefix for statistics.
    pub stat_prefix: String,
    /// For requests that no descriptor fits, and beside those; `None` limits only what a descriptor fits.
    pub bucket: Option<TokenBucket>,
    /// Share of requests that are counted. Envoy's default is none.
    pub enabled: Fraction,
    /// Share of requests over the limit that are refused. Envoy's default is none.
    pub enforced: Fraction,
    /// Status of a refusal.
    pub status: u16,
    /// gRPC callers are told `RESOURCE_EXHAUSTED` instead of `UNAVAILABLE`.
    pub resource_exhausted: bool,
    /// On requests that are over the limit and pass.
    pub request_headers_not_enforced: Vec<HeaderValueOption>,
    /// On refusals.
    pub response_headers: Vec<HeaderValueOption>,
    /// Responses tell `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset`.
    pub ratelimit_headers: bool,
    /// Refusals tell `retry-after`.
    pub retry_after: bool,
    /// Limits of what requests are described as.
    pub descriptors: Vec<RateLimitDescriptor>,
    /// How requests are described.
    pub rules: Vec<RateLimitRule>,
    /// A request that a descriptor fits takes from [`Self::bucket`] too.
    pub always_take_default: bool,
}

/// A bucket that fills steadily and holds no more than its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    /// Size, and what it holds at first.
    pub max_tokens: NonZeroU32,
    /// Tokens that come in [`Self::fill_interval`].
    pub tokens_per_fill: NonZeroU32,
    /// At least 50 ms.
    pub fill_interval: Duration,
}

/// A limit for requests with exactly these entries.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateLimitDescriptor {
    /// Key and value, in order.
    pub entries: Vec<(String, String)>,
    /// Its bucket.
    pub bucket: TokenBucket,
}

/// How one descriptor is made of a request: an action that finds nothing makes the rule fail.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateLimitRule {
    /// One entry each, in order.
    pub actions: Vec<RateLimitAction>,
}

/// Makes one entry of a descriptor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RateLimitAction {
    /// A fixed entry.
    GenericKey {
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// The cluster of the route, as `destination_cluster`.
    DestinationCluster,
    /// A header's value.
    RequestHeader {
        /// Lower-case name, or a pseudo header.
        name: String,
        /// Key.
        key: String,
        /// A request without it goes without the entry.
        skip_if_absent: bool,
    },
    /// The client's address, as `remote_address`.
    RemoteAddress,
    /// The client's network, as `masked_remote_address`.
    MaskedRemoteAddress {
        /// Prefix length of IPv4.
        v4: u8,
        /// Prefix length of IPv6.
        v6: u8,
    },
    /// A fixed entry for requests whose headers match.
    HeaderMatch {
        /// Key.
        key: String,
        /// Value.
        value: String,
        /// All must hold.
        headers: Vec<HeaderMatcher>,
        /// Otherwise: for requests whose headers do not match.
        expect: bool,
    },
    /// A fixed entry for requests whose query matches.
    QueryMatch {
        /// Key.
        key: String,
        /// Value.
        value: String,
        /// All must hold.
        parameters: Vec<QueryParameterMatcher>,
        /// Otherwise: for requests whose query does not match.
        expect: bool,
    },
}
