//! Routes (Envoy `config.route.v3`).

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{FilterOverrides, Fraction, HeaderMatcher, Regex, Resource, StringMatcher};

/// A named set of virtual hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteConfiguration {
    /// Resource name; Istio's is the port (`9080`) on outbound and `inbound|9080||` on inbound.
    pub name: String,
    /// By domain, most specific first.
    pub virtual_hosts: Vec<VirtualHostEntry>,
    /// The port of the Host header is left aside when domains are matched.
    pub ignore_port_in_host_matching: bool,
    /// Applied to every request and response.
    pub headers: HeaderMutations,
    /// What filters are told, where neither route nor virtual host says otherwise.
    pub filters: FilterOverrides,
}

/// A virtual host in its configuration: the domains that it is found by, and the rest where it is needed.
#[derive(Clone, Debug)]
pub struct VirtualHostEntry {
    /// One a line, which no domain holds: most virtual hosts of a mesh are nothing but this to a sidecar.
    domains: Box<str>,
    host: Resource<VirtualHost>,
}

impl VirtualHostEntry {
    /// `domains` are those of `host`, without a line break in any.
    pub fn new<'a>(domains: impl IntoIterator<Item = &'a str>, host: Resource<VirtualHost>) -> Self {
        let mut lines = String::new();
        for domain in domains {
            lines.extend(domain.chars().map(|letter| letter.to_ascii_lowercase()));
            lines.push('\n');
        }
        Self { domains: lines.into(), host }
    }

    /// Exact, `*.suffix`, `prefix.*` or `*`; lower case.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.domains.split_terminator('\n')
    }

    /// The domains, each with a line break after it.
    pub(crate) fn lines(&self) -> &str {
        &self.domains
    }

    /// The virtual host.
    pub fn host(&self) -> &Resource<VirtualHost> {
        &self.host
    }
}

impl From<VirtualHost> for VirtualHostEntry {
    fn from(host: VirtualHost) -> Self {
        let host = Arc::new(host);
        Self::new(host.domains.iter().map(String::as_str), Arc::clone(&host).into())
    }
}

impl PartialEq for VirtualHostEntry {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host
    }
}

impl Serialize for VirtualHostEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.host.serialize(serializer)
    }
}

/// Hosts that share routes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VirtualHost {
    /// Unique in its configuration.
    pub name: String,
    /// Exact, `*.suffix`, `prefix.*` or `*`; lower case.
    pub domains: Vec<String>,
    /// The first match wins.
    pub routes: Vec<Route>,
    /// Adds `x-envoy-attempt-count` to what goes upstream.
    pub include_request_attempt_count: bool,
    /// Adds it to responses.
    pub include_attempt_count_in_response: bool,
    /// Adds `x-envoy-is-timeout-retry` to retries (Envoy `include_is_timeout_retry_header`).
    pub include_is_timeout_retry: bool,
    /// Requests whose x-forwarded-proto is not `https` are redirected (Envoy `require_tls: ALL`, Istio `httpsRedirect`).
    pub require_tls: bool,
    /// For routes that have none of their own.
    pub retry_policy: Option<RetryPolicy>,
    /// For routes that have none of their own.
    pub cors: Option<CorsPolicy>,
    /// Applied to every request and response of these hosts.
    pub headers: HeaderMutations,
    /// What filters are told, where a route does not say otherwise.
    pub filters: FilterOverrides,
}

/// A condition and what happens to the requests that meet it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// `%ROUTE_NAME%`; empty is logged as `-`.
    pub name: String,
    /// The condition.
    pub matches: RouteMatch,
    /// What happens.
    pub action: RouteTarget,
    /// Applied to requests and responses of this route.
    pub headers: HeaderMutations,
    /// Cross-origin policy.
    pub cors: Option<CorsPolicy>,
    /// Fault injection.
    pub fault: Option<Fault>,
    /// What its filters are told.
    pub filters: FilterOverrides,
    /// What the spans of its requests are called.
    pub decorator: Option<Decorator>,
}

/// Envoy `config.route.v3.Decorator`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decorator {
    /// The name.
    pub operation: String,
    /// The other hop is told of it in x-envoy-decorator-operation.
    pub propagate: bool,
}

impl Route {
    /// A route without header mutations, faults or overrides.
    pub fn new(name: impl Into<String>, matches: RouteMatch, action: RouteTarget) -> Self {
        let (headers, filters) = (HeaderMutations::default(), FilterOverrides::new());
        Self { name: name.into(), matches, action, headers, cors: None, fault: None, filters, decorator: None }
    }
}

/// The condition of a route; all parts must hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteMatch {
    /// The path, without query.
    pub path: PathMatch,
    /// ASCII case of the path is ignored (not for regexes).
    pub ignore_case: bool,
    /// All must hold.
    pub headers: Vec<HeaderMatcher>,
    /// All must hold.
    pub query_parameters: Vec<QueryParameterMatcher>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Matches this share of requests only.
    pub fraction: Fraction,
}

impl RouteMatch {
    /// Every request.
    pub fn any() -> Self {
        Self::path(PathMatch::Prefix("/".to_owned()))
    }

    /// By path alone.
    pub fn path(path: PathMatch) -> Self {
        Self { path, ignore_case: false, headers: Vec::new(), query_parameters: Vec::new(), grpc: false, fraction: Fraction::ALL }
    }
}

/// How a path is matched.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PathMatch {
    /// The beginning.
    Prefix(String),
    /// The whole.
    Exact(String),
    /// The whole, or followed by `/` (Envoy `path_separated_prefix`).
    SeparatedPrefix(String),
    /// The whole path.
    Regex(Regex),
    /// Envoy's URI template (`/books/*/x/**`).
    UriTemplate(String),
    /// CONNECT requests.
    Connect,
}

/// A condition on one query parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryParameterMatcher {
    /// Its name.
    pub name: String,
    /// `None`: it only has to be there.
    pub value: Option<StringMatcher>,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RouteTarget {
    /// Forward.
    Forward(Box<RouteAction>),
    /// Answer with a Location.
    Redirect(Redirect),
    /// Answer here.
    DirectResponse(DirectResponse),
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightedCluster {
    /// Cluster name.
    pub name: String,
    /// Relative weight; zero never gets a request.
    pub weight: u32,
    /// Applied when this one is chosen.
    pub headers: HeaderMutations,
    /// Endpoint metadata (`envoy.lb`) that an endpoint must have: a subset.
    pub metadata_match: std::collections::BTreeMap<String, String>,
}

impl WeightedCluster {
    /// All of the traffic to one cluster.
    pub fn only(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            weight: 1,
            headers: HeaderMutations::default(),
            metadata_match: std::collections::BTreeMap::new(),
        }
    }
}

/// Protocol upgrades.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum UpgradeType {
    /// `Upgrade: websocket`.
    WebSocket,
    /// CONNECT, terminated here.
    Connect,
    /// Any other token, lower case.
    Other(String),
}

/// Forward to a cluster (Envoy `RouteAction`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteAction {
    /// Weighted choice, never empty.
    pub clusters: Vec<WeightedCluster>,
    /// The cluster is named by this request header instead (`cluster_header`).
    pub cluster_header: Option<String>,
    /// Status when the cluster does not exist (503 by default, 404 and 500 as options).
    pub cluster_not_found_status: u16,
    /// Until the whole response; `None` is off. Envoy's own default is 15 s, Istio's is off.
    pub timeout: Option<Duration>,
    /// No activity on the stream; overrides the listener's. `Some(ZERO)` is off.
    pub idle_timeout: Option<Duration>,
    /// Life of the stream; overrides the listener's. `Some(ZERO)` is off.
    pub max_stream_duration: Option<Duration>,
    /// Honour `grpc-timeout` up to this as the life of the stream; `Some(ZERO)` is without a cap.
    pub grpc_timeout_header_max: Option<Duration>,
    /// Taken off what `grpc-timeout` asks for by [`Self::grpc_timeout_header_max`].
    pub grpc_timeout_header_offset: Option<Duration>,
    /// On gRPC requests `grpc-timeout` up to this takes the place of [`Self::timeout`]; without the header this does.
    /// `Some(ZERO)` is without a cap (Envoy's deprecated `max_grpc_timeout`, which istiod still sends).
    pub max_grpc_timeout: Option<Duration>,
    /// Taken off what `grpc-timeout` asks for by [`Self::max_grpc_timeout`], unless nothing were left.
    pub grpc_timeout_offset: Option<Duration>,
    /// Retries.
    pub retry: Option<RetryPolicy>,
    /// Bytes of a request body that are kept for retries, at most 1 MiB (Envoy `request_body_buffer_limit`).
    pub request_body_buffer_limit: Option<u64>,
    /// Path on its way upstream.
    pub path_rewrite: Option<PathRewrite>,
    /// Host on its way upstream.
    pub host_rewrite: Option<HostRewrite>,
    /// A rewritten host is kept in x-forwarded-host.
    pub append_x_forwarded_host: bool,
    /// Copies.
    pub mirrors: Vec<Mirror>,
    /// For ring hash and Maglev.
    pub hash_policy: Vec<HashPolicy>,
    /// Upgrades of this route; `false` refuses one that the listener allows.
    pub upgrades: Vec<(UpgradeType, bool)>,
}

impl RouteAction {
    /// Forward everything to one cluster, without time-outs and retries, as Istio's defaults do.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self {
            clusters: vec![WeightedCluster::only(name)],
            cluster_header: None,
            cluster_not_found_status: 503,
            timeout: None,
            idle_timeout: None,
            max_stream_duration: None,
            grpc_timeout_header_max: None,
            grpc_timeout_header_offset: None,
            max_grpc_timeout: None,
            grpc_timeout_offset: None,
            retry: None,
            request_body_buffer_limit: None,
            path_rewrite: None,
            host_rewrite: None,
            append_x_forwarded_host: false,
            mirrors: Vec::new(),
            hash_policy: Vec::new(),
            upgrades: Vec::new(),
        }
    }
}

/// How the path changes on its way upstream; the query stays.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PathRewrite {
    /// The matched prefix (or the whole exact path) is replaced.
    Prefix(String),
    /// Every match of the pattern is replaced; `\1` are groups.
    Regex {
        /// What is looked for.
        pattern: Regex,
        /// What replaces it.
        substitution: String,
    },
}

/// How the host changes on its way upstream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum HostRewrite {
    /// To this.
    Literal(String),
    /// To the endpoint's hostname.
    Auto,
    /// To the value of this header.
    Header(String),
}

/// A copy of the request whose response is thrown away.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mirror {
    /// Where it goes.
    pub cluster: String,
    /// How many of the requests.
    pub fraction: Fraction,
    /// The host of the copy stays as it is, where Envoy otherwise appends `-shadow`.
    pub keeps_host: bool,
}

/// What a request is hashed by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum HashPolicy {
    /// A header.
    Header(String),
    /// A cookie, made when it is missing and `ttl` is set.
    Cookie {
        /// Its name.
        name: String,
        /// Life of one made here; ZERO makes a session cookie.
        ttl: Option<Duration>,
        /// Path of one made here.
        path: String,
    },
    /// The caller's address.
    SourceIp,
    /// A query parameter.
    QueryParameter(String),
}

/// Answer with a Location (Envoy `RedirectAction`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<String>,
    /// New host.
    pub host: Option<String>,
    /// New port; `None` keeps the request's, except when the scheme changes and it was the default one.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<RedirectPath>,
    /// The query is dropped.
    pub strip_query: bool,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The path of a redirect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RedirectPath {
    /// The whole path (may hold a query of its own).
    Full(String),
    /// The matched prefix is replaced.
    Prefix(String),
    /// Every match is replaced.
    Regex {
        /// What is looked for.
        pattern: Regex,
        /// What replaces it.
        substitution: String,
    },
}

/// An answer made here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DirectResponse {
    /// Status code.
    pub status: u16,
    /// Body, at most 1 MiB.
    pub body: Vec<u8>,
}

/// Changes to the headers of requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeaderMutations {
    /// On requests; values are access-log formats (`%REQ(:path)%`).
    pub request_add: Vec<HeaderValueOption>,
    /// From requests.
    pub request_remove: Vec<String>,
    /// On responses.
    pub response_add: Vec<HeaderValueOption>,
    /// From responses.
    pub response_remove: Vec<String>,
}

impl HeaderMutations {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.request_add.is_empty()
            && self.request_remove.is_empty()
            && self.response_add.is_empty()
            && self.response_remove.is_empty()
    }
}

/// One header to set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeaderValueOption {
    /// Lower-case name.
    pub name: String,
    /// Value, in the format language of access logs.
    pub value: String,
    /// What happens when it is there already.
    pub action: AppendAction,
    /// Set it even when the value comes out empty.
    pub keep_empty_value: bool,
}

/// Envoy `HeaderAppendAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum AppendAction {
    /// A further line.
    AppendIfExistsOrAdd,
    /// Only when missing.
    AddIfAbsent,
    /// Replace.
    OverwriteIfExistsOrAdd,
    /// Replace, never add.
    OverwriteIfExists,
}

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

/// Cross-origin policy (Envoy `CorsPolicy`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CorsPolicy {
    /// Origins that are let in.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub allow_methods: Option<String>,
    /// `access-control-allow-headers`.
    pub allow_headers: Option<String>,
    /// `access-control-expose-headers`.
    pub expose_headers: Option<String>,
    /// `access-control-max-age`, in seconds as text.
    pub max_age: Option<String>,
    /// `access-control-allow-credentials: true`.
    pub allow_credentials: bool,
    /// Preflights of other origins go upstream.
    pub forward_not_matching_preflights: bool,
}

/// Fault injection (Envoy `HTTPFault`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// Wait first.
    pub delay: Option<FaultDelay>,
    /// Then answer here.
    pub abort: Option<FaultAbort>,
}

/// A fixed wait for a share of requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultDelay {
    /// How long.
    pub fixed: Duration,
    /// How many of the requests.
    pub fraction: Fraction,
}

/// An error for a share of requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultAbort {
    /// HTTP status, or the gRPC status of [`FaultAbort::grpc_status`].
    pub http_status: Option<NonZeroU32>,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// How many of the requests.
    pub fraction: Fraction,
}
