//! From the mesh to the application: a Sidecar's ingress.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{
    Address, CircuitBreakers, Cluster, ClusterDiscovery, ClusterLoadAssignment, Decorator, EndpointAddress, EscapedSlashesAction,
    FilterChain, ForwardClientCert, HttpConnectionManager, HttpFilter, Listener, NetworkFilter, RetryOn, RetryPolicy, Route,
    RouteAction, RouteConfiguration, RouteMatch, RouteSource, RouteTarget, SetCurrentClientCertDetails, TcpProxy,
    TrafficDirection, UpgradeType, UpstreamProtocol, VirtualHost, WeightedCluster,
};

use super::de::Located;
use super::registry::EndpointHost;
use super::schema::destination_rule::ConnectionPool;
use super::schema::mesh::{MeshConfig, Normalization};
use super::schema::sidecar::Ingress;
use super::scope::Scope;
use super::values::{InboundEndpoint, Protocol};
use super::{Output, Selection, authz, clusters, custom, jwt, mtls, peer};

/// Envoy's TCP idle time-out where nobody sets one.
pub(super) const TCP_IDLE: Duration = Duration::from_secs(3600);

/// Listeners and clusters of the Sidecar's ingress. Without a Sidecar there are none: a sidecar without iptables has no port
/// to take inbound traffic on.
/// What comes back are services that are asked for the keys of tokens.
pub(super) fn translate(scope: &Scope<'_>, output: &mut Output) -> Selection {
    let mut asked_for_keys = Selection::new();
    let Some(sidecar) = scope.sidecar else {
        output.warnings.push("no Sidecar selects this workload: it has no inbound listener".to_owned());
        return asked_for_keys;
    };
    let jwt = jwt::http_filter(scope, &mut asked_for_keys, output);
    for ingress in &sidecar.spec.ingress {
        if ingress.value.port.protocol == Protocol::HttpProxy {
            output.errors.push(scope.sidecar_error(ingress.error("HTTP_PROXY: only an egress listener can be an HTTP proxy")));
            continue;
        }
        let addresses = match &ingress.value.bind {
            Some(bind) => std::slice::from_ref(bind),
            None => &scope.workload.addresses,
        };
        if addresses.is_empty() {
            output
                .errors
                .push(scope.sidecar_error(ingress.error("expected a bind, because the workload has no address of its own")));
            continue;
        }
        output.add_cluster(cluster(scope, ingress));
        for &ip in addresses {
            let listener = listener(scope, &ingress.value, ip, jwt.as_ref(), output);
            output.add_listener(scope, listener, ingress);
        }
    }
    asked_for_keys
}

fn cluster_name(ingress: &Ingress) -> String {
    format!("inbound|{}||", ingress.port.number.get())
}

/// The application behind an ingress listener.
fn cluster(scope: &Scope<'_>, ingress: &Located<Ingress>) -> Cluster {
    let ingress = &ingress.value;
    let port = ingress.port.number.get();
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let own = scope.workload.addresses.first().copied();
    let loopback = if own.is_some_and(|ip| ip.is_ipv6()) { V6 } else { V4 };
    let address = match &ingress.default_endpoint {
        Some(InboundEndpoint::Loopback(address)) => EndpointAddress::Socket(*address),
        Some(InboundEndpoint::Pipe(path)) => EndpointAddress::Pipe(path.clone()),
        Some(InboundEndpoint::Own(port)) => EndpointAddress::Socket((own.unwrap_or(loopback), *port).into()),
        None => EndpointAddress::Socket((loopback, port).into()),
    };
    let endpoints = Arc::new(ClusterLoadAssignment::single(address.clone()));
    let mut cluster = Cluster::new(cluster_name(ingress), ClusterDiscovery::Static(endpoints));
    cluster.connect_timeout = clusters::connect_timeout(scope);
    cluster.circuit_breakers = CircuitBreakers::UNLIMITED;
    if ingress.port.protocol.is_http2() {
        cluster.protocol = UpstreamProtocol::Http2;
    }
    let at_loopback = matches!(address, EndpointAddress::Socket(at) if [V4, V6].contains(&at.ip()));
    if !at_loopback {
        cluster.source_addresses = vec![SocketAddr::from((clusters::INBOUND_SOURCE, 0))];
    }
    cluster.service = own_service(scope, port).map(Arc::new);
    if let Some(pool) = connection_pool(scope, ingress) {
        clusters::apply_connection_pool(&mut cluster, pool, ingress.port.protocol.is_http());
    }
    cluster
}

/// The service that this workload is an endpoint of on `port`.
fn own_service(scope: &Scope<'_>, port: u16) -> Option<skiff_proxy::config::Service> {
    let is_own = |host: &EndpointHost| matches!(host, EndpointHost::Ip(ip) if scope.workload.addresses.contains(ip));
    let service = scope.services.iter().find(|service| {
        service.endpoints.iter().any(|endpoint| {
            endpoint.namespace == scope.workload.namespace
                && is_own(&endpoint.host)
                && service.ports.iter().any(|declared| endpoint.port(declared) == port)
        })
    })?;
    Some(clusters::service_metadata(service))
}

fn listener(scope: &Scope<'_>, ingress: &Ingress, ip: IpAddr, jwt: Option<&HttpFilter>, output: &mut Output) -> Listener {
    let port = ingress.port.number.get();
    let address: Address = SocketAddr::new(ip, port);
    let name = format!("{ip}_{port}");
    let http = ingress.port.protocol.is_http();
    let mode = mtls::mode(scope, &scope.workload.namespace, &scope.workload.labels, port);
    let shapes = mtls::chains(scope, mode, port, http);
    let inspect_tls = shapes.iter().any(|shape| shape.tls.is_some());
    let (rbac, filter) = if http {
        (Vec::new(), NetworkFilter::Http(Arc::new(http_filter(scope, ingress, &name, jwt))))
    } else {
        (authz::network_rules(scope, output), NetworkFilter::Tcp(Arc::new(tcp_filter(scope, ingress))))
    };
    let chain = |shape: mtls::ChainShape| FilterChain {
        name: name.clone(),
        matches: shape.matches,
        tls: shape.tls,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        connection_limit: None,
        peer_exchange: Some(peer::exchange()),
        rbac: rbac.clone(),
        filter: filter.clone(),
    };
    Listener {
        name: name.clone(),
        address,
        additional_addresses: Vec::new(),
        traffic_direction: TrafficDirection::Inbound,
        inspect_tls,
        inspect_http: false,
        inspect_timeout: None,
        continue_on_inspect_timeout: true,
        filter_chains: shapes.into_iter().map(chain).collect(),
        default_filter_chain: None,
        access_log: scope.listener_access_log(),
    }
}

/// Istio's `transport_socket_connect_timeout`.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

fn tcp_filter(scope: &Scope<'_>, ingress: &Ingress) -> TcpProxy {
    let name = cluster_name(ingress);
    let mut proxy = TcpProxy {
        stat_prefix: name.clone(),
        clusters: vec![WeightedCluster::only(name)],
        idle_timeout: Some(TCP_IDLE),
        access_log: scope.inbound.access_log.clone(),
        stats: scope.inbound.stats.clone(),
        ..TcpProxy::default()
    };
    apply_tcp_pool(&mut proxy, connection_pool(scope, ingress));
    proxy
}

/// The time limits of connections that carry bytes.
pub(super) fn apply_tcp_pool(proxy: &mut TcpProxy, pool: Option<&ConnectionPool>) {
    let Some(pool) = pool else { return };
    if let Some(idle) = pool.tcp.idle_timeout {
        proxy.idle_timeout = Some(idle.0).filter(|idle| !idle.is_zero());
    }
    proxy.max_connection_duration = pool.tcp.max_connection_duration.map(|duration| duration.0);
}

/// The ingress listener's pool, else the Sidecar's: the one replaces the other.
fn connection_pool<'p>(scope: &'p Scope<'_>, ingress: &'p Ingress) -> Option<&'p ConnectionPool> {
    let sidecar = scope.sidecar.and_then(|sidecar| sidecar.spec.inbound_connection_pool.as_ref());
    ingress.connection_pool.as_ref().or(sidecar)
}

fn http_filter(scope: &Scope<'_>, ingress: &Ingress, listener: &str, jwt: Option<&HttpFilter>) -> HttpConnectionManager {
    let sidecar = scope.sidecar.map(|sidecar| format!("{}.{}", sidecar.metadata.name, sidecar.namespace)).unwrap_or_default();
    let routes = RouteSource::Inline(Arc::new(routes(&sidecar, ingress)));
    let mut http = HttpConnectionManager::new(format!("inbound_{listener};"), TrafficDirection::Inbound, routes);
    apply_mesh_defaults(&mut http, &scope.mesh);
    http.server_name = "istio-envoy".to_owned();
    http.forward_client_cert = ForwardClientCert::AppendForward;
    http.client_cert_details = SetCurrentClientCertDetails { subject: true, dns: true, uri: true, ..Default::default() };
    http.filters = vec![peer::inbound()];
    http.filters.extend(custom::http_filters(scope));
    http.filters.extend(jwt.cloned());
    http.filters.extend(authz::http_filters(scope));
    http.filters.extend([HttpFilter::Fault, HttpFilter::Cors]);
    http.access_log = scope.inbound.access_log.clone();
    http.tracing = scope.inbound.tracing.clone();
    http.stats = scope.inbound.stats.clone();
    http
}

/// From the first byte of a request to the end of its head.
const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(60);

/// What istiod sets on every connection manager of a sidecar.
pub(super) fn apply_mesh_defaults(http: &mut HttpConnectionManager, mesh: &MeshConfig) {
    let normalization = mesh.path_normalization.normalization;
    http.normalize_path = normalization != Normalization::None;
    http.merge_slashes = matches!(normalization, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes);
    if normalization == Normalization::DecodeAndMergeSlashes {
        http.escaped_slashes = EscapedSlashesAction::UnescapeAndForward;
    }
    http.stream_idle_timeout = None;
    // Istio leaves it to Envoy's default, which is none: a caller that sends a head byte by byte would hold its place for ever.
    http.request_headers_timeout = Some(REQUEST_HEADERS_TIMEOUT);
    http.proxy_100_continue = true;
    http.upgrades = vec![UpgradeType::WebSocket];
}

/// Everything goes to the application. A gRPC port retries nothing, as a client of it decides that.
/// Spans are called by the name of the Sidecar, as in istiod.
fn routes(sidecar: &str, ingress: &Ingress) -> RouteConfiguration {
    let mut action = RouteAction::cluster(cluster_name(ingress));
    action.max_stream_duration = Some(Duration::ZERO);
    action.grpc_timeout_header_max = Some(Duration::ZERO);
    if ingress.port.protocol != Protocol::Grpc {
        let retry_on = RetryOn { reset_before_request: true, ..RetryOn::default() };
        action.retry = Some(RetryPolicy { retry_on, num_retries: 2, ..RetryPolicy::default() });
    }
    RouteConfiguration {
        name: cluster_name(ingress),
        virtual_hosts: vec![
            VirtualHost {
                name: format!("inbound|http|{}", ingress.port.number.get()),
                domains: vec!["*".to_owned()],
                routes: vec![Route {
                    name: "default".to_owned(),
                    matches: RouteMatch::any(),
                    action: RouteTarget::Forward(Box::new(action)),
                    headers: Default::default(),
                    cors: None,
                    fault: None,
                    filters: Vec::new(),
                    decorator: Some(Decorator {
                        operation: format!("{sidecar}:{}/*", ingress.port.number.get()),
                        propagate: true,
                    }),
                }],
                ..VirtualHost::default()
            }
            .into(),
        ],
        ..RouteConfiguration::default()
    }
}
