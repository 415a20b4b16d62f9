//! Routes (Envoy `config.route.v3`).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{FilterOverrides, Fraction, HeaderMatcher, Regex, Resource, RetryPolicy, StringMatcher};

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
