//! What the benches share: configurations for the roles of the side-by-side lab (`bench/` beside the project), a [`backend`] and a
//! [`client`].

pub mod backend;
pub mod client;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{
    AccessLog, AccessLogSink, CertificateSource, CircuitBreakers, Cluster, ClusterDiscovery, ClusterLoadAssignment, Codec,
    DownstreamTls, Endpoint, EndpointAddress, FilterChain, FilterChainMatch, HttpConnectionManager, IstioStats, Listener,
    LocalityEndpoints, LogFormat, NetworkFilter, Reporter, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource,
    RouteTarget, SanMatcher, Snapshot, StringMatcher, TcpProxy, TlsVersion, TrafficDirection, TransportSocket, UpstreamProtocol,
    UpstreamTls, VirtualHost, WeightedCluster,
};

/// What a listener does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// HTTP, without access log and metrics.
    Http,
    /// HTTP with Istio's access log and metrics.
    HttpLog,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Bytes.
    Tcp,
}

/// Builds a snapshot listener by listener.
#[derive(Debug, Default)]
pub struct Lab {
    snapshot: Snapshot,
}

impl Lab {
    /// Adds a listener that forwards to `upstream`, under TLS where a context is given.
    #[must_use]
    pub fn listener(
        mut self,
        role: Role,
        address: SocketAddr,
        tls: Option<Arc<DownstreamTls>>,
        upstream: (SocketAddr, Option<Arc<UpstreamTls>>, UpstreamProtocol),
        log: Option<&Path>,
    ) -> Self {
        let name = format!("{}_{}", address.ip(), address.port());
        let cluster_name = format!("inbound|{}||", address.port());
        self.snapshot.clusters.insert(cluster_name.as_str().into(), cluster(&cluster_name, upstream).into());
        let access_log = match log {
            Some(path) => {
                vec![AccessLog {
                    filter: None,
                    format: LogFormat::Text(LogFormat::ISTIO.to_owned()),
                    sink: AccessLogSink::File(path.to_owned()),
                }]
            }
            None => Vec::new(),
        };
        let filter = match role {
            Role::Tcp => NetworkFilter::Tcp(Arc::new(TcpProxy {
                stat_prefix: cluster_name.clone(),
                clusters: vec![WeightedCluster::only(cluster_name)],
                access_log,
                ..TcpProxy::default()
            })),
            Role::Http | Role::HttpLog | Role::Http2 => {
                NetworkFilter::Http(Arc::new(manager(role, &cluster_name, tls.is_some(), access_log)))
            }
        };
        let chain = FilterChain {
            name: name.clone(),
            matches: FilterChainMatch::default(),
            tls,
            handshake_timeout: Duration::from_secs(15),
            connection_limit: None,
            peer_exchange: None,
            rbac: Vec::new(),
            filter,
        };
        let listener = Listener {
            name: name.clone(),
            address,
            additional_addresses: Vec::new(),
            traffic_direction: TrafficDirection::Inbound,
            inspect_tls: false,
            inspect_http: false,
            inspect_timeout: None,
            continue_on_inspect_timeout: true,
            filter_chains: vec![chain],
            default_filter_chain: None,
            access_log: Vec::new(),
        };
        self.snapshot.listeners.insert(name, Arc::new(listener));
        self
    }

    /// The snapshot.
    pub fn build(self) -> Snapshot {
        self.snapshot
    }
}

/// `count` endpoints of a service; those of another `service` have other addresses.
pub fn endpoints(service: usize, count: usize) -> ClusterLoadAssignment {
    let address = |index: usize| SocketAddr::from(([10, (service / 250) as u8, (service % 250) as u8, index as u8], 9080));
    let endpoints = (0..count).map(|index| Endpoint::new(EndpointAddress::Socket(address(index)))).collect();
    ClusterLoadAssignment::of(vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }])
}

fn cluster(name: &str, (address, tls, protocol): (SocketAddr, Option<Arc<UpstreamTls>>, UpstreamProtocol)) -> Cluster {
    let endpoints = ClusterLoadAssignment::single(EndpointAddress::Socket(address));
    let mut cluster = Cluster::new(name, ClusterDiscovery::Static(Arc::new(endpoints)));
    cluster.circuit_breakers = CircuitBreakers::UNLIMITED;
    cluster.protocol = protocol;
    if let Some(tls) = tls {
        cluster.transport_socket = TransportSocket::Tls(tls);
    }
    cluster
}

fn manager(role: Role, cluster: &str, tls: bool, access_log: Vec<AccessLog>) -> HttpConnectionManager {
    let route = Route::new("default", RouteMatch::any(), RouteTarget::Forward(Box::new(RouteAction::cluster(cluster))));
    let host = VirtualHost {
        name: "inbound|http|9000".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let routes =
        RouteConfiguration { name: cluster.to_owned(), virtual_hosts: vec![host.into()], ..RouteConfiguration::default() };
    let mut manager = HttpConnectionManager::new("inbound", TrafficDirection::Inbound, RouteSource::Inline(Arc::new(routes)));
    manager.server_name = "istio-envoy".to_owned();
    manager.normalize_path = true;
    manager.stream_idle_timeout = None;
    manager.codec = match role {
        Role::Http2 => Codec::Http2,
        _ if tls => Codec::Auto,
        _ => Codec::Http1,
    };
    manager.access_log = access_log;
    if role == Role::HttpLog {
        manager.stats = Some(Arc::new(IstioStats::new(Reporter::Destination)));
    }
    manager
}

/// A server context with certificates of the lab: client certificates required, as between sidecars.
pub fn downstream_tls(certs: &Path) -> Arc<DownstreamTls> {
    Arc::new(DownstreamTls {
        certificate: CertificateSource::Files { certificates: certs.join("server.crt"), key: Some(certs.join("server.p8.key")) },
        trust: Some(CertificateSource::Files { certificates: certs.join("root.pem"), key: None }),
        require_client_certificate: true,
        sans: vec![SanMatcher::Any(StringMatcher::prefix("spiffe://cluster.local/"))],
        pins: Vec::new(),
        revocation: None,
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        versions: (TlsVersion::Tls13, TlsVersion::Tls13),
    })
}

/// A client context with certificates of the lab.
pub fn upstream_tls(certs: &Path, alpn: &[&str]) -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls {
        certificate: Some(CertificateSource::Files {
            certificates: certs.join("client.crt"),
            key: Some(certs.join("client.p8.key")),
        }),
        trust: Some(CertificateSource::Files { certificates: certs.join("root.pem"), key: None }),
        sans: vec![SanMatcher::Any(StringMatcher::exact("spiffe://cluster.local/ns/default/sa/server"))],
        pins: Vec::new(),
        revocation: None,
        sni: "localhost".to_owned(),
        auto_sni: false,
        auto_san_validation: false,
        alpn: alpn.iter().map(|p| (*p).to_owned()).collect(),
        versions: (TlsVersion::Tls13, TlsVersion::Tls13),
    })
}
