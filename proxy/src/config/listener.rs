//! Listeners and filter chains (Envoy `config.listener.v3`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{AccessLog, DownstreamTls, HttpConnectionManager, IstioStats, PeerExchange, RbacRules, WeightedCluster};

/// Where a listener is bound.
pub type Address = SocketAddr;

/// Which side of the workload a listener serves (Envoy `TrafficDirection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TrafficDirection {
    /// From the mesh to the application.
    Inbound,
    /// From the application to the mesh.
    Outbound,
    /// Neither is declared.
    Unspecified,
}

/// One listening socket and what happens to its connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listener {
    /// Unique name, Istio's form is `<bind>_<port>`.
    pub name: String,
    /// IPv4 or IPv6 address and port.
    pub address: Address,
    /// It listens on these, too (dual stack).
    pub additional_addresses: Vec<Address>,
    /// Which side of the workload it serves.
    pub traffic_direction: TrafficDirection,
    /// Sniff the first bytes for a TLS `ClientHello` (Envoy `tls_inspector`). Without it every connection is plaintext,
    /// and a server-first protocol starts without delay.
    pub inspect_tls: bool,
    /// Sniff plaintext for HTTP/1.1 or HTTP/2 (Envoy `http_inspector`); only for ports whose protocol is undeclared.
    pub inspect_http: bool,
    /// How long the sniffing may take. `None` waits for ever.
    pub inspect_timeout: Option<Duration>,
    /// After [`Self::inspect_timeout`] the connection goes on as plaintext of an unknown protocol, as server-first protocols
    /// need it (`continue_on_listener_filters_timeout`, which Istio sets); otherwise it is closed.
    pub continue_on_inspect_timeout: bool,
    /// Tried by Envoy's matching order, most specific first.
    pub filter_chains: Vec<FilterChain>,
    /// Serves what no chain matches. Without it such a connection is closed and logged `NR filter_chain_not_found`.
    pub default_filter_chain: Option<FilterChain>,
    /// Logs of connections that never reached a chain, usually filtered on NR.
    pub access_log: Vec<AccessLog>,
}

/// Which transport was seen on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TransportProtocol {
    /// A TLS `ClientHello` came first.
    Tls,
    /// Anything else.
    RawBuffer,
}

/// When a filter chain applies (Envoy `FilterChainMatch`); empty fields match everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FilterChainMatch {
    /// The port that the connection came to.
    pub destination_port: Option<u16>,
    /// Address ranges that the connection came to.
    pub prefix_ranges: Vec<ipnet::IpNet>,
    /// SNI, exact or `*.suffix`.
    pub server_names: Vec<String>,
    /// TLS or plaintext.
    pub transport_protocol: Option<TransportProtocol>,
    /// ALPN of the `ClientHello`, or `http/1.1` and `h2c` as found by [`Listener::inspect_http`].
    pub application_protocols: Vec<String>,
    /// Address ranges that the connection came from, by its socket.
    pub direct_source_prefix_ranges: Vec<ipnet::IpNet>,
    /// Whether the connection came from this machine.
    pub source_type: SourceType,
    /// Address ranges that the connection came from.
    pub source_prefix_ranges: Vec<ipnet::IpNet>,
    /// Ports that the connection came from.
    pub source_ports: Vec<u16>,
}

/// Where a connection came from (Envoy `FilterChainMatch.ConnectionSourceType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum SourceType {
    /// Does not matter.
    #[default]
    Any,
    /// A loopback address, or the address that it came to.
    SameIpOrLoopback,
    /// Any other.
    External,
}

/// What happens to the connections that [`FilterChainMatch`] selects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FilterChain {
    /// For logs and the admin page.
    pub name: String,
    /// When it applies.
    pub matches: FilterChainMatch,
    /// TLS termination; `None` is plaintext.
    pub tls: Option<Arc<DownstreamTls>>,
    /// Deadline of the TLS handshake (Envoy `transport_socket_connect_timeout`, Istio sets 15 s).
    pub handshake_timeout: Duration,
    /// Open connections of this chain above which new ones are closed (Envoy `connection_limit`); `None` leaves the
    /// process-wide limit only.
    pub connection_limit: Option<ConnectionLimit>,
    /// The exchange of peer metadata, where TLS agrees on its protocol. Only before a TCP proxy.
    pub peer_exchange: Option<Arc<PeerExchange>>,
    /// Network RBAC, in order; each must let the connection pass.
    pub rbac: Vec<Arc<RbacRules>>,
    /// The terminal filter.
    pub filter: NetworkFilter,
}

/// Envoy `connection_limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionLimit {
    /// Open connections at the most.
    pub max: u64,
    /// A connection above the limit is held for so long before it is closed.
    pub delay: Option<Duration>,
}

/// The terminal network filter of a chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum NetworkFilter {
    /// HTTP/1.1 and HTTP/2.
    Http(Arc<HttpConnectionManager>),
    /// Bytes.
    Tcp(Arc<TcpProxy>),
}

/// Envoy `tcp_proxy`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpProxy {
    /// Prefix for statistics.
    pub stat_prefix: String,
    /// Weighted choice, never empty; one entry for a plain cluster.
    pub clusters: Vec<WeightedCluster>,
    /// No byte in either direction for this long closes both sides. Envoy's default is one hour; `None` never.
    pub idle_timeout: Option<Duration>,
    /// Life of a connection at the most. `None` never ends it.
    pub max_connection_duration: Option<Duration>,
    /// Up to this share of [`Self::max_connection_duration`] is added at random, so that connections do not end together.
    pub max_connection_duration_jitter: f64,
    /// Connect attempts to different endpoints before giving up; at least 1.
    pub max_connect_attempts: u32,
    /// Pause before the next attempt; `None` tries again at once.
    pub backoff: Option<Backoff>,
    /// Endpoints of ring hash and Maglev are chosen by the caller's address.
    pub hash_source_ip: bool,
    /// One line per connection when it ends.
    pub access_log: Vec<AccessLog>,
    /// A line as well when the connection begins.
    pub log_on_start: bool,
    /// A line as well when the endpoint has been reached.
    pub log_on_connected: bool,
    /// A line as well as often as this.
    pub log_interval: Option<Duration>,
    /// Istio's TCP metrics; `None` records none.
    pub stats: Option<Arc<IstioStats>>,
}

impl Default for TcpProxy {
    /// Envoy's defaults, to no cluster.
    fn default() -> Self {
        Self {
            stat_prefix: String::new(),
            clusters: Vec::new(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_connection_duration_jitter: 0.0,
            max_connect_attempts: 1,
            backoff: None,
            hash_source_ip: false,
            access_log: Vec::new(),
            log_on_start: false,
            log_on_connected: false,
            log_interval: None,
            stats: None,
        }
    }
}

/// A pause that doubles with every attempt and of which a random part is waited (Envoy `BackoffStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backoff {
    /// The first one at the most.
    pub base: Duration,
    /// Any one at the most.
    pub max: Duration,
}

impl Listener {
    /// All that it listens on.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        std::iter::once(self.address).chain(self.additional_addresses.iter().copied())
    }

    /// Whether two listeners cannot be bound at once: the same port on the same or a wildcard address.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.addresses().any(|one| other.addresses().any(|other| conflict(one, other)))
    }
}

fn conflict(one: Address, other: Address) -> bool {
    let wildcard = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && (one.ip() == other.ip() || wildcard)
}
