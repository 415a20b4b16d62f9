//! Clusters (Envoy `config.cluster.v3`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{ClusterLoadAssignment, Fraction, HealthCheck, LbSubsetConfig, OutlierDetection, PeerExchange, UpstreamTls};

/// A group of endpoints and how to talk to them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Istio's form is `outbound|9080|subset|host` or `inbound|9080||`.
    pub name: String,
    /// Where the endpoints come from.
    pub discovery: ClusterDiscovery,
    /// How long its endpoints are waited for (`initial_fetch_timeout` of EDS), where that is configured.
    pub initial_fetch_timeout: Option<Duration>,
    /// Deadline of one connect, TLS included.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub lb_policy: LbPolicy,
    /// Limits.
    pub circuit_breakers: CircuitBreakers,
    /// Passive health.
    pub outlier_detection: Option<OutlierDetection>,
    /// Active health: an endpoint is healthy when the check says so. Envoy allows one per cluster.
    pub health_check: Option<Arc<HealthCheck>>,
    /// A healthy endpoint leaves as soon as it leaves the assignment; otherwise, with [`Self::health_check`], not before it
    /// fails a check.
    pub ignore_health_on_host_removal: bool,
    /// New endpoints do not count towards panic before their first check (Envoy `ignore_new_hosts_until_first_hc`).
    pub ignore_new_hosts_until_first_hc: bool,
    /// Below this share of healthy endpoints all are used (panic). Istio sets it to none.
    pub panic_threshold: Fraction,
    /// In panic every request fails instead of going to any endpoint (Envoy `zone_aware_lb_config.fail_traffic_on_panic`).
    pub fail_traffic_on_panic: bool,
    /// A locality is chosen by its weight before an endpoint is (Envoy `locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// Ring hash and Maglev know endpoints by their host names, not their addresses (Envoy `use_hostname_for_hashing`).
    pub use_hostname_for_hashing: bool,
    /// Endpoints by label: without it `metadata_match` of routes has no effect.
    pub lb_subset: Option<Arc<LbSubsetConfig>>,
    /// The first whose labels the endpoint has (Envoy `transport_socket_matches`); istiod keys them by `tlsMode`.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    /// For endpoints that no match selects.
    pub transport_socket: TransportSocket,
    /// Each connection begins with who it is made for (Envoy `ProxyProtocolUpstreamTransport` around all transport sockets).
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Which HTTP version is spoken.
    pub protocol: UpstreamProtocol,
    /// Limits of its HTTP connections.
    pub http: UpstreamHttpOptions,
    /// TCP keepalive of its connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Connections come from the first address of the endpoint's family (Envoy `upstream_bind_config`).
    pub source_addresses: Vec<SocketAddr>,
    /// Destination service for Istio's metrics: host, name and namespace.
    pub service: Option<Arc<Service>>,
    /// The exchange of peer metadata on connections of the TCP proxy, where TLS agrees on its protocol.
    pub peer_exchange: Option<Arc<PeerExchange>>,
    /// Outside of the mesh (istiod's `istio.external`).
    pub external: bool,
    /// Its endpoints are not told who we are (istiod's `istio.disable_mx`).
    pub disable_mx: bool,
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
            initial_fetch_timeout: None,
            connect_timeout: Duration::from_secs(5),
            lb_policy: LbPolicy::RoundRobin(None),
            circuit_breakers: CircuitBreakers::default(),
            outlier_detection: None,
            health_check: None,
            ignore_health_on_host_removal: false,
            ignore_new_hosts_until_first_hc: false,
            panic_threshold: Fraction::from_millionths(500_000),
            fail_traffic_on_panic: false,
            locality_weighted: false,
            use_hostname_for_hashing: false,
            lb_subset: None,
            transport_socket_matches: Vec::new(),
            transport_socket: TransportSocket::RawBuffer,
            proxy_protocol: None,
            protocol: UpstreamProtocol::Http1,
            http: UpstreamHttpOptions::default(),
            tcp_keepalive: None,
            source_addresses: Vec::new(),
            service: None,
            peer_exchange: None,
            external: false,
            disable_mx: false,
        }
    }

    /// Every transport socket that an endpoint may get: those of [`Self::transport_socket_matches`], then its own.
    pub fn transport_sockets(&self) -> impl Iterator<Item = &TransportSocket> {
        self.transport_socket_matches.iter().map(|matched| &matched.socket).chain([&self.transport_socket])
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
    /// Endpoints whose address is [`super::EndpointAddress::Name`].
    pub endpoints: Arc<ClusterLoadAssignment>,
    /// How often they are resolved (Envoy: 5 s).
    pub refresh: Duration,
    /// A name that was not resolved is asked for again after this long at first, and this long at most.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// Added to a pause, up to this much.
    pub jitter: Duration,
    /// Which addresses are used.
    pub family: DnsFamily,
}

impl DnsCluster {
    /// Resolved every `refresh`, with the defaults for everything else.
    pub fn new(endpoints: Arc<ClusterLoadAssignment>, refresh: Duration) -> Self {
        Self { endpoints, refresh, failure_refresh: None, jitter: Duration::ZERO, family: DnsFamily::default() }
    }
}

/// Which addresses of a name are used (Envoy `DnsLookupFamily`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum DnsFamily {
    /// IPv4 where there are any, else IPv6. Also what Envoy's `AUTO` is taken for: most tasks have no route for IPv6.
    #[default]
    V4Preferred,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// Both.
    All,
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
    /// Retries in flight; without effect beside [`Self::retry_budget`].
    pub max_retries: u32,
    /// Retries in flight, as a share of the requests.
    pub retry_budget: Option<RetryBudget>,
}

/// How many retries may be in flight for the requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RetryBudget {
    /// Share of the requests in flight or waiting (Envoy: 20 %).
    pub budget: Fraction,
    /// Always allowed (Envoy: 3).
    pub min_retry_concurrency: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3, retry_budget: None }
    }
}

impl CircuitBreakers {
    /// What istiod sets where no DestinationRule says otherwise.
    pub const UNLIMITED: Self = Self {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        max_retries: u32::MAX,
        retry_budget: None,
    };
}

/// A transport socket for endpoints with these labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TransportSocketMatch {
    /// For the admin page.
    pub name: String,
    /// What an endpoint's `envoy.transport_socket_match` metadata must hold; empty matches every endpoint.
    pub matches: Arc<BTreeMap<String, String>>,
    /// What is used.
    pub socket: TransportSocket,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
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
