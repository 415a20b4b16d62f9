//! Listeners and filter chains (Envoy `config.listener.v3`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{AccessLog, DownstreamTls, HttpConnectionManager, RbacRules, StatsLabels, WeightedCluster};

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
    /// Which side of the workload it serves.
    pub traffic_direction: TrafficDirection,
    /// Sniff the first bytes for a TLS `ClientHello` (Envoy `tls_inspector`). Without it every connection is plaintext,
    /// and a server-first protocol starts without delay.
    pub inspect_tls: bool,
    /// Sniff plaintext for HTTP/1.1 or HTTP/2 (Envoy `http_inspector`); only for ports whose protocol is undeclared.
    pub inspect_http: bool,
    /// How long the sniffing may take; afterwards the connection goes on as plaintext of an unknown protocol
    /// (`continue_on_listener_filters_timeout`). `None` waits for ever.
    pub inspect_timeout: Option<Duration>,
    /// Tried by Envoy's matching order, most specific first.
    pub filter_chains: Vec<FilterChain>,
    /// Serves what no chain matches. Without it such a connection is closed and logged `NR filter_chain_not_found`.
    pub default_filter_chain: Option<FilterChain>,
    /// Logs of connections that never reached a chain, usually filtered on NR.
    pub access_log: Vec<AccessLog>,
    /// Open connections above which new ones are closed at once. `None` leaves the process-wide limit only.
    pub max_connections: Option<u32>,
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
    /// Address ranges that the connection came from.
    pub source_prefix_ranges: Vec<ipnet::IpNet>,
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
    /// Network RBAC, in order; each must let the connection pass.
    pub rbac: Vec<Arc<RbacRules>>,
    /// The terminal filter.
    pub filter: NetworkFilter,
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
    /// Connect attempts to different endpoints before giving up; at least 1.
    pub max_connect_attempts: u32,
    /// One line per connection when it ends.
    pub access_log: Vec<AccessLog>,
    /// Labels of Istio's TCP metrics; `None` records none.
    pub stats: Option<Arc<StatsLabels>>,
}

impl Listener {
    /// Whether two addresses can be bound at once: the same port on the same or a wildcard address cannot.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let wildcard = |ip: IpAddr| ip.is_unspecified();
        self.address.port() == other.address.port()
            && self.address.is_ipv4() == other.address.is_ipv4()
            && (self.address.ip() == other.address.ip() || wildcard(self.address.ip()) || wildcard(other.address.ip()))
    }
}
