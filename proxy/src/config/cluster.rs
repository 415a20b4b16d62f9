//! Clusters and endpoints (Envoy `config.cluster.v3`, `config.endpoint.v3`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Fraction, UpstreamTls};

/// A group of endpoints and how to talk to them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Istio's form is `outbound|9080|subset|host` or `inbound|9080||`.
    pub name: String,
    /// Where the endpoints come from.
    pub discovery: ClusterDiscovery,
    /// Deadline of one connect, TLS included.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub lb_policy: LbPolicy,
    /// Limits.
    pub circuit_breakers: CircuitBreakers,
    /// Passive health.
    pub outlier_detection: Option<OutlierDetection>,
    /// Below this share of healthy endpoints all are used (panic). Istio sets it to none.
    pub panic_threshold: Fraction,
    /// A locality is chosen by its weight before an endpoint is (Envoy `locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// The first whose labels the endpoint has (Envoy `transport_socket_matches`); istiod keys them by `tlsMode`.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    /// For endpoints that no match selects.
    pub transport_socket: TransportSocket,
    /// Which HTTP version is spoken.
    pub protocol: UpstreamProtocol,
    /// Limits of its HTTP connections.
    pub http: UpstreamHttpOptions,
    /// TCP keepalive of its connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Share of requests dropped on purpose (`drop_overloads`).
    pub drop_overload: Fraction,
    /// Destination service for Istio's metrics: host, name and namespace.
    pub service: Option<Arc<Service>>,
}

/// The service that a cluster stands for (istiod's `istio.services` metadata).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Fully qualified host.
    pub host: String,
    /// Short name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

impl Cluster {
    /// Envoy's defaults, plaintext HTTP/1.1.
    pub fn new(name: impl Into<String>, discovery: ClusterDiscovery) -> Self {
        Self {
            name: name.into(),
            discovery,
            connect_timeout: Duration::from_secs(5),
            lb_policy: LbPolicy::RoundRobin(None),
            circuit_breakers: CircuitBreakers::default(),
            outlier_detection: None,
            panic_threshold: Fraction::from_millionths(500_000),
            locality_weighted: false,
            transport_socket_matches: Vec::new(),
            transport_socket: TransportSocket::RawBuffer,
            protocol: UpstreamProtocol::Http1,
            http: UpstreamHttpOptions::default(),
            tcp_keepalive: None,
            drop_overload: Fraction::NONE,
            service: None,
        }
    }
}

/// Where endpoints come from (Envoy `DiscoveryType`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum ClusterDiscovery {
    /// Written in the cluster.
    Static(Arc<ClusterLoadAssignment>),
    /// By service name from [`super::Snapshot::endpoints`].
    Eds(String),
    /// Every address of every name is an endpoint.
    StrictDns(DnsCluster),
    /// The first address of one name.
    LogicalDns(DnsCluster),
    /// `ORIGINAL_DST`: cannot work without iptables, so every request gets `503 UH`.
    OriginalDst,
}

/// Names to resolve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DnsCluster {
    /// Endpoints whose address is [`EndpointAddress::Name`].
    pub endpoints: Arc<ClusterLoadAssignment>,
    /// How often they are resolved (Envoy: 5 s).
    pub refresh: Duration,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum LbPolicy {
    /// In turn, by weight.
    RoundRobin(Option<SlowStart>),
    /// Fewest active requests of a few random ones.
    LeastRequest(LeastRequest),
    /// Any.
    Random,
    /// Ketama ring.
    RingHash(HashConfig),
    /// Maglev table.
    Maglev(HashConfig),
}

/// Parameters of least request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeastRequest {
    /// How many are drawn (Envoy: 2).
    pub choice_count: NonZeroU32,
    /// New endpoints get less at first.
    pub slow_start: Option<SlowStart>,
}

/// New endpoints get less at first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowStart {
    /// How long they are new.
    pub window: Duration,
    /// 1.0 is linear.
    pub aggression: f64,
    /// Share of the weight at the start.
    pub min_weight: Fraction,
}

/// Size of the ring or table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HashConfig {
    /// Least ring size, or the (prime) table size.
    pub size: u64,
    /// Greatest ring size.
    pub max_size: u64,
}

/// Envoy `CircuitBreakers.Thresholds` of the default priority; `u32::MAX` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CircuitBreakers {
    /// Open connections.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending_requests: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight.
    pub max_retries: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 }
    }
}

impl CircuitBreakers {
    /// What istiod sets where no DestinationRule says otherwise.
    pub const UNLIMITED: Self =
        Self { max_connections: u32::MAX, max_pending_requests: u32::MAX, max_requests: u32::MAX, max_retries: u32::MAX };
}

/// Passive health checking (Envoy `OutlierDetection`); `None` of a count is off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutlierDetection {
    /// 5xx in a row.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway_failure: Option<u32>,
    /// Connect failures, resets and time-outs in a row, when they are counted apart.
    pub consecutive_local_origin_failure: Option<u32>,
    /// Failures of our own making are counted apart.
    pub split_external_local_origin_errors: bool,
    /// How often ejections are reviewed.
    pub interval: Duration,
    /// First ejection; multiplied by how often it happened.
    pub base_ejection_time: Duration,
    /// Longest ejection.
    pub max_ejection_time: Duration,
    /// Share of endpoints that may be ejected; at least one may.
    pub max_ejection_percent: u32,
}

/// A transport socket for endpoints with these labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TransportSocketMatch {
    /// For the admin page.
    pub name: String,
    /// What an endpoint's `envoy.transport_socket_match` metadata must hold; empty matches every endpoint.
    pub matches: BTreeMap<String, String>,
    /// What is used.
    pub socket: TransportSocket,
}

/// Plaintext or TLS.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum TransportSocket {
    /// Plaintext.
    RawBuffer,
    /// TLS.
    Tls(Arc<UpstreamTls>),
}

/// Which HTTP version is spoken upstream (Envoy `HttpProtocolOptions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// As the downstream.
    UseDownstream,
}

/// Limits of HTTP connections to an upstream; `None` is off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamHttpOptions {
    /// Connection without a request (Envoy: one hour).
    pub idle_timeout: Option<Duration>,
    /// Requests on a connection.
    pub max_requests_per_connection: Option<u32>,
    /// Life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Life of a stream.
    pub max_stream_duration: Option<Duration>,
    /// Streams at once on an HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Keep the spelling of header names on HTTP/1.
    pub preserve_case: bool,
    /// Forward trailers of HTTP/1 bodies.
    pub enable_trailers: bool,
}

impl Default for UpstreamHttpOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_requests_per_connection: None,
            max_connection_duration: None,
            max_stream_duration: None,
            max_concurrent_streams: None,
            preserve_case: false,
            enable_trailers: false,
        }
    }
}

/// TCP keepalive; `None` leaves the system's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TcpKeepalive {
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// Probes before giving up.
    pub probes: Option<u32>,
}

/// The endpoints of a cluster (EDS).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterLoadAssignment {
    /// By locality.
    pub localities: Vec<LocalityEndpoints>,
}

impl ClusterLoadAssignment {
    /// One endpoint, without locality.
    pub fn single(address: EndpointAddress) -> Self {
        Self { localities: vec![LocalityEndpoints { endpoints: vec![Endpoint::new(address)], ..LocalityEndpoints::default() }] }
    }
}

/// Region, zone, sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Locality {
    /// `us-east-1`.
    pub region: String,
    /// `us-east-1a`.
    pub zone: String,
    /// Finer.
    pub sub_zone: String,
}

/// Endpoints of one locality.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// 0 is used first.
    pub priority: u32,
    /// Weight of the locality; only used with [`Cluster::locality_weighted`].
    pub weight: Option<NonZeroU32>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum EndpointAddress {
    /// Address and port.
    Socket(SocketAddr),
    /// Unix domain socket.
    Pipe(PathBuf),
    /// A name to resolve, only in DNS clusters.
    Name(String, u16),
}

/// Health as the control plane sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum HealthStatus {
    /// Usable.
    #[default]
    Healthy,
    /// Not usable.
    Unhealthy,
    /// Keeps its connections, gets no new requests.
    Draining,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// For `host_rewrite: auto`; empty is none.
    pub hostname: String,
    /// Relative weight.
    pub weight: NonZeroU32,
    /// Health.
    pub health: HealthStatus,
    /// `envoy.transport_socket_match` metadata; istiod sets `tlsMode: istio`.
    pub transport_match: BTreeMap<String, String>,
    /// `envoy.lb` metadata for subsets.
    pub lb_metadata: BTreeMap<String, String>,
    /// `istio.workload` metadata, for the labels of metrics.
    pub workload: Option<Arc<Workload>>,
}

impl Endpoint {
    /// A healthy, plaintext endpoint of weight 1.
    pub fn new(address: EndpointAddress) -> Self {
        Self {
            address,
            hostname: String::new(),
            weight: NonZeroU32::MIN,
            health: HealthStatus::Healthy,
            transport_match: BTreeMap::new(),
            lb_metadata: BTreeMap::new(),
            workload: None,
        }
    }
}

/// Who runs at an endpoint (istiod's `istio.workload` metadata: `name;namespace;canonical;revision;cluster`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Workload {
    /// Workload name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Canonical service.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Cluster id.
    pub cluster: String,
}
