//! The configuration model of the data plane: plain data, no live state, no I/O.
//!
//! The proxy owns this model because the consumer owns the shape of its input; `agent::translate` builds it from
//! Istio YAML or from xDS. Every type derives `PartialEq`, so that an identical configuration is recognised and drains
//! nothing, and `Serialize`, so that the admin page can show it. Names are Envoy's; each type mirrors the Envoy v3
//! message of the same name.
//!
//! Two lifetimes, two modules: `config::Cluster` is data, [`crate::upstream::Cluster`] is the live thing compiled from it.

mod access_log;
mod cluster;
mod endpoint;
mod ext_authz;
mod health;
mod http;
mod jwt;
mod listener;
mod matcher;
mod overrides;
mod peer;
mod rate_limit;
mod rbac;
mod resource;
mod retry;
mod route;
mod stats;
mod subset;
mod tls;
mod tracing;

pub use access_log::{AccessLog, AccessLogFilter, AccessLogSink, LogFormat};
pub use cluster::{
    CircuitBreakers, Cluster, ClusterDiscovery, DnsCluster, DnsFamily, HashConfig, LbPolicy, LeastRequest, ProxyProtocol,
    RetryBudget, Service, SlowStart, TcpKeepalive, TransportSocket, TransportSocketMatch, UpstreamHttpOptions, UpstreamProtocol,
};
pub use endpoint::{
    AssignmentPolicy, ClusterLoadAssignment, Endpoint, EndpointAddress, EndpointHealthCheck, HealthStatus, LbValue, Locality,
    LocalityEndpoints,
};
pub use ext_authz::{AuthzBody, AuthzService, ExtAuthz, ExtAuthzOverride, GrpcAuthz, HttpAuthz};
pub use health::{
    ConsecutiveFailures, FailurePercentage, GrpcHealthCheck, HealthCheck, HealthCheckIntervals, HealthChecker, HttpHealthCheck,
    OutlierDetection, SuccessRate, TcpHealthCheck,
};
pub use http::{
    AlpnOverride, Codec, EscapedSlashesAction, ForwardClientCert, HeadersWithUnderscores, Http1Options, Http2Options,
    HttpConnectionManager, HttpFilter, RouteSource, ServerHeaderTransformation, SetCurrentClientCertDetails,
};
pub use jwt::{
    ClaimToHeader, Jwks, JwksAsyncFetch, JwtAuthn, JwtCache, JwtHeader, JwtPerRoute, JwtProvider, JwtRequirement, JwtRule,
    JwtRuleRequirement, LocalJwks, RemoteJwks,
};
pub use listener::{
    Address, Backoff, ConnectionLimit, FilterChain, FilterChainMatch, Listener, NetworkFilter, SourceType, TcpProxy,
    TrafficDirection, TransportProtocol,
};
pub use matcher::{Fraction, HeaderMatch, HeaderMatcher, Regex, StringMatch, StringMatcher};
pub use overrides::{FilterOverride, FilterOverrides};
pub use peer::{Node, PeerDiscovery, PeerExchange, PeerMetadata, PeerPropagation, Workload};
pub use rate_limit::{LocalRateLimit, RateLimitAction, RateLimitDescriptor, RateLimitRule, TokenBucket};
pub use rbac::{MetadataForm, MetadataMatcher, Permission, Policy, Principal, Rbac, RbacAction, RbacRules};
pub use resource::{Resource, Source};
pub use retry::{RateLimitedBackOff, ResetFormat, ResetHeader, RetryOn, RetryPolicy};
pub use route::{
    AppendAction, CorsPolicy, Decorator, DirectResponse, Fault, FaultAbort, FaultDelay, HashPolicy, HeaderMutations,
    HeaderValueOption, HostRewrite, Mirror, PathMatch, PathRewrite, QueryParameterMatcher, Redirect, RedirectPath, Route,
    RouteAction, RouteConfiguration, RouteMatch, RouteTarget, UpgradeType, VirtualHost, VirtualHostEntry, WeightedCluster,
};
pub use stats::{Attribute, Dimension, IstioMetric, IstioStats, MetricOverride, Reporter};
pub use subset::{LbSubsetConfig, SelectorFallback, SubsetFallback, SubsetSelector};
pub use tls::{
    CertificatePin, CertificateSource, DownstreamTls, InlinePem, Revocation, SanMatcher, Secret, SpiffeId, SpiffeIdError,
    TlsVersion, TrustDomain, UpstreamTls,
};
pub use tracing::{CustomTag, ExportService, OpenTelemetry, OtelLog, TagValue, Tracing, TracingProvider, Zipkin};

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

/// One whole configuration: what [`crate::Proxy::apply`] takes.
///
/// Maps are keyed by resource name. References between resources are by name and are resolved at apply; a route to a
/// cluster that does not exist answers `503 NC` as Envoy does, it is not an error of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Opaque version shown on the admin page and in the `skiff_config_version` metric.
    pub version: String,
    /// Listeners by name.
    pub listeners: BTreeMap<String, Arc<Listener>>,
    /// Route configurations that listeners name with [`RouteSource::Named`].
    pub routes: BTreeMap<String, Arc<RouteConfiguration>>,
    /// Clusters by name.
    pub clusters: BTreeMap<Arc<str>, Resource<Cluster>>,
    /// Load assignments by the service name that the cluster asks for ([`ClusterDiscovery::Eds`]).
    pub endpoints: BTreeMap<Arc<str>, Resource<ClusterLoadAssignment>>,
}
