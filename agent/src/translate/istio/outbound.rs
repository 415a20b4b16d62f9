//! From the application to the mesh: a Sidecar's egress.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use skiff_proxy::config::{
    AlpnOverride, ClusterDiscovery, EndpointAddress, FilterChain, FilterChainMatch, HttpConnectionManager, HttpFilter, Listener,
    NetworkFilter, RouteSource, TcpProxy, TrafficDirection, TransportProtocol, WeightedCluster,
};

use super::de::Located;
use super::documents::Resource;
use super::inbound::{HANDSHAKE_TIMEOUT, TCP_IDLE, apply_mesh_defaults, apply_tcp_pool};
use super::policy::{self, Policy};
use super::registry::Service;
use super::route::{Destinations, applies};
use super::schema::services::ServicePort;
use super::schema::sidecar::{Egress, OutboundMode};
use super::schema::virtual_service::{TcpDestination, VirtualService};
use super::scope::Scope;
use super::values::{HostFilter, Protocol, covers};
use super::{Output, Selection, clusters, peer, routes};

/// Where egress listeners without `bind` listen, as istiod has it for sidecars without iptables.
const DEFAULT_BIND: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// One egress listener and what it imports.
pub(super) struct Import<'i> {
    pub(super) services: Vec<&'i Service<'i>>,
    pub(super) virtual_services: Vec<&'i Resource<VirtualService>>,
}

/// Builds the listeners and routes of the Sidecar's egress; returns what they refer to.
pub(super) fn translate(scope: &Scope<'_>, output: &mut Output) -> Selection {
    let mut selection = Selection::new();
    for vs in routes::virtual_services(scope).filter(|vs| !vs.spec.http.is_empty()) {
        for host in vs.spec.hosts.iter().map(|host| host.resolve(&vs.namespace)) {
            if !scope.services.iter().any(|service| covers(&host, &service.host)) {
                output.warn(vs.remark(format_args!("{host} is no service, so it is only known to HTTP listeners on port 80")));
            }
        }
    }
    let everything = [Located { value: Egress::catch_all(), line: 1, path: "spec.egress".to_owned() }];
    let egress = match scope.sidecar {
        Some(sidecar) if !sidecar.spec.egress.is_empty() => &sidecar.spec.egress[..],
        _ => &everything[..],
    };
    // Listeners with a port come first: one without makes room for them.
    let (with_port, without): (Vec<_>, Vec<_>) = egress.iter().partition(|egress| egress.value.port.is_some());
    for egress in with_port.into_iter().chain(without) {
        let import = import(scope, &egress.value.hosts, output);
        let bind = egress.value.bind.unwrap_or(DEFAULT_BIND);
        match &egress.value.port {
            Some(port) => {
                let address = SocketAddr::new(bind, port.number.get());
                if let Some(listener) = listener(scope, &import, address, port.protocol, &mut selection, output) {
                    output.add_listener(scope, listener, egress);
                }
            }
            None => catch_all(scope, &import, bind, egress, &mut selection, output),
        }
    }
    selection
}

/// A listener for every port of every imported service, where the address is free.
fn catch_all(
    scope: &Scope<'_>,
    import: &Import<'_>,
    bind: IpAddr,
    egress: &Located<Egress>,
    selection: &mut Selection,
    output: &mut Output,
) {
    let ports: BTreeSet<u16> = import.services.iter().flat_map(|service| service.ports).map(|port| port.number.get()).collect();
    for number in ports {
        let address = SocketAddr::new(bind, number);
        let mut protocols = import.services.iter().filter_map(|service| service.port(number)).map(ServicePort::protocol);
        let first = protocols.clone().next().unwrap_or(Protocol::Tcp);
        let protocol = if protocols.any(Protocol::is_http) { Protocol::Http } else { first };
        if output.snapshot.listeners.values().any(|other| other.address == address) {
            continue;
        }
        if let Some(listener) = listener(scope, import, address, protocol, selection, output) {
            output.add_listener(scope, listener, egress);
        }
    }
}

/// Services and VirtualServices that `hosts` let in.
fn import<'i>(scope: &'i Scope<'_>, hosts: &[HostFilter], output: &mut Output) -> Import<'i> {
    let own = &scope.workload.namespace;
    for filter in hosts.iter().filter_map(HostFilter::single) {
        if !scope.services.iter().any(|service| service.host == *filter) {
            output.warn(format!("egress imports {filter}, which is no service"));
        }
    }
    let imported = |host: &str, namespace: &str| hosts.iter().any(|filter| filter.imports(host, namespace, own));
    Import {
        services: scope.services.iter().filter(|service| imported(&service.host, service.namespace)).collect(),
        virtual_services: routes::virtual_services(scope)
            .filter(|vs| vs.spec.hosts.iter().any(|host| imported(&host.resolve(&vs.namespace), &vs.namespace)))
            .collect(),
    }
}

fn listener(
    scope: &Scope<'_>,
    import: &Import<'_>,
    address: SocketAddr,
    protocol: Protocol,
    selection: &mut Selection,
    output: &mut Output,
) -> Option<Listener> {
    let name = format!("{}_{}", address.ip(), address.port());
    let mut listener = Listener {
        name: name.clone(),
        address,
        additional_addresses: Vec::new(),
        traffic_direction: TrafficDirection::Outbound,
        inspect_tls: false,
        inspect_http: false,
        inspect_timeout: None,
        filter_chains: Vec::new(),
        default_filter_chain: None,
        access_log: Vec::new(),
        continue_on_inspect_timeout: true,
    };
    if protocol.is_http() {
        let routes = routes::add(scope, import, &name, address.port(), protocol == Protocol::HttpProxy, selection, output);
        let mut http =
            HttpConnectionManager::new(format!("outbound_{name};"), TrafficDirection::Outbound, RouteSource::Named(routes));
        apply_mesh_defaults(&mut http, &scope.mesh);
        http.filters = vec![peer::outbound(), HttpFilter::Alpn(alpn()), HttpFilter::Fault, HttpFilter::Cors];
        http.access_log = scope.outbound.access_log.clone();
        http.tracing = scope.outbound.tracing.clone();
        http.stats = scope.outbound.stats.clone();
        http.http_proxy = protocol == Protocol::HttpProxy;
        listener.filter_chains = vec![chain(String::new(), FilterChainMatch::default(), NetworkFilter::Http(Arc::new(http)))];
        return Some(listener);
    }
    let mut tcp = TcpListener { scope, import, port: address.port(), selection, output };
    let (chains, default) = tcp.chains(protocol);
    if chains.is_empty() {
        output
            .warn(format!("listener {name}: no imported service has TCP port {}, so there is no such listener", address.port()));
        return None;
    }
    listener.inspect_tls = chains.iter().any(|chain| !chain.matches.server_names.is_empty());
    listener.filter_chains = chains;
    listener.default_filter_chain = default;
    Some(listener)
}

fn chain(name: String, matches: FilterChainMatch, filter: NetworkFilter) -> FilterChain {
    FilterChain {
        name,
        matches,
        tls: None,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        connection_limit: None,
        peer_exchange: None,
        rbac: Vec::new(),
        filter,
    }
}

/// What `istio.alpn` offers upstream in the mesh.
fn alpn() -> AlpnOverride {
    let list = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    AlpnOverride { http1: list(["istio-http/1.1", "istio", "http/1.1"]), http2: list(["istio-h2", "istio", "h2"]) }
}

/// The chains of one egress listener that carries bytes.
struct TcpListener<'t, 'o> {
    scope: &'t Scope<'t>,
    import: &'t Import<'t>,
    port: u16,
    selection: &'o mut Selection,
    output: &'o mut Output,
}

impl TcpListener<'_, '_> {
    /// The chains and the default chain. VirtualServices are asked first; a service that none of them routes gets its own chain.
    fn chains(&mut self, protocol: Protocol) -> (Vec<FilterChain>, Option<FilterChain>) {
        let services: Vec<&Service<'_>> = self
            .import
            .services
            .iter()
            .copied()
            .filter(|service| service.port(self.port).is_some_and(|port| !port.protocol().is_http()))
            .collect();
        let mut chains = self.tls_routes();
        let routed_by_sni = !chains.is_empty();
        if let Some(chain) = self.tcp_route() {
            chains.push(chain);
            return (chains, None);
        }
        let many = services.len() > 1;
        if !routed_by_sni && many && protocol != Protocol::Tls {
            let hosts: Vec<&str> = services.iter().map(|service| service.host.as_str()).collect();
            let (first, rest) = (hosts[0], hosts[1..].join(", "));
            self.output
                .warn(format!("port {}: only {first} can be reached, not {rest}: bytes do not say which is meant", self.port));
        }
        let by_sni = protocol == Protocol::Tls && (many || routed_by_sni);
        for service in services.into_iter().take(if by_sni || !many { usize::MAX } else { 1 }) {
            let taken = chains.iter().any(|chain| chain.matches.server_names.contains(&service.host));
            if taken || (routed_by_sni && !by_sni) {
                continue;
            }
            self.selection.insert((service.host.clone(), self.port));
            let cluster = clusters::name(self.port, "", &service.host);
            let policy = Policy::of(policy::destination_rule(self.scope, service), None, self.port);
            if policy.load_balancer.is_some_and(|lb| lb.consistent_hash.is_some()) {
                self.output.warn(format!("{}: consistentHash has no effect on TCP port {}", service.host, self.port));
            }
            let mut proxy = self.proxy(cluster.clone(), vec![WeightedCluster::only(cluster)]);
            apply_tcp_pool(&mut proxy, policy.connection_pool);
            let matches = if by_sni { server_names(vec![service.host.clone()]) } else { FilterChainMatch::default() };
            chains.push(chain(String::new(), matches, NetworkFilter::Tcp(Arc::new(proxy))));
        }
        let default = chains.iter().any(|chain| !chain.matches.server_names.is_empty()).then(|| self.default_chain());
        (chains, default)
    }

    /// Where connections go that no SNI selects.
    fn default_chain(&self) -> FilterChain {
        let cluster = match self.scope.outbound_mode() {
            OutboundMode::AllowAny => clusters::PASSTHROUGH,
            OutboundMode::RegistryOnly => clusters::BLACK_HOLE,
        };
        let proxy = self.proxy(cluster.to_owned(), vec![WeightedCluster::only(cluster)]);
        chain("PassthroughFilterChain".to_owned(), FilterChainMatch::default(), NetworkFilter::Tcp(Arc::new(proxy)))
    }

    /// Whether a host of the VirtualService is a service with this port.
    fn concerns(&self, vs: &Resource<VirtualService>) -> bool {
        let hosts: Vec<String> = vs.spec.hosts.iter().map(|host| host.resolve(&vs.namespace)).collect();
        let with_port = |service: &&&Service<'_>| service.port(self.port).is_some();
        let mut services = self.import.services.iter().filter(with_port);
        services.any(|service| hosts.iter().any(|host| covers(host, &service.host)))
    }

    fn tls_routes(&mut self) -> Vec<FilterChain> {
        let mut chains: Vec<FilterChain> = Vec::new();
        for vs in self.import.virtual_services.iter().filter(|vs| self.concerns(vs)).copied().collect::<Vec<_>>() {
            for route in &vs.spec.tls {
                for matched in &route.value.matches {
                    let source = (&matched.source_labels, matched.source_namespace.as_deref(), &matched.gateways[..]);
                    if !applies(self.scope, matched.port, source, self.port) {
                        continue;
                    }
                    let names: Vec<String> = matched.sni_hosts.iter().map(|host| host.as_str().to_owned()).collect();
                    let Some(filter) = self.destinations(vs, &route.value.route, route.error("expected a route")) else {
                        continue;
                    };
                    let mut matches = server_names(names);
                    matches.prefix_ranges = matched.destination_subnets.iter().map(|block| block.0).collect();
                    chains.push(chain(String::new(), matches, filter));
                }
            }
        }
        chains
    }

    fn tcp_route(&mut self) -> Option<FilterChain> {
        for vs in &self.import.virtual_services {
            if !self.concerns(vs) {
                continue;
            }
            for route in &vs.spec.tcp {
                let none = [Default::default()];
                let matches = if route.value.matches.is_empty() { &none[..] } else { &route.value.matches[..] };
                for matched in matches {
                    let source = (&matched.source_labels, matched.source_namespace.as_deref(), &matched.gateways[..]);
                    if !applies(self.scope, matched.port, source, self.port) {
                        continue;
                    }
                    let filter = self.destinations(vs, &route.value.route, route.error("expected a route"))?;
                    let ranges = matched.destination_subnets.iter().map(|block| block.0).collect();
                    let matches = FilterChainMatch { prefix_ranges: ranges, ..FilterChainMatch::default() };
                    return Some(chain(String::new(), matches, filter));
                }
            }
        }
        None
    }

    fn destinations(
        &mut self,
        vs: &Resource<VirtualService>,
        route: &[TcpDestination],
        missing: super::de::FieldError,
    ) -> Option<NetworkFilter> {
        let mut destinations = Destinations { scope: self.scope, resource: vs, port: self.port, selection: self.selection };
        let weighted: Vec<WeightedCluster> = route
            .iter()
            .map(|to| {
                let mut cluster = WeightedCluster::only(destinations.cluster(&to.destination, self.output));
                cluster.weight = to.weight.unwrap_or(u32::from(route.len() == 1));
                cluster
            })
            .filter(|cluster| cluster.weight > 0)
            .collect();
        let Some(first) = weighted.first() else {
            self.output.errors.push(vs.error(missing));
            return None;
        };
        let prefix = first.name.clone();
        Some(NetworkFilter::Tcp(Arc::new(self.proxy(prefix, weighted))))
    }

    fn proxy(&self, stat_prefix: String, clusters: Vec<WeightedCluster>) -> TcpProxy {
        TcpProxy {
            stat_prefix,
            clusters,
            idle_timeout: Some(TCP_IDLE),
            access_log: self.scope.outbound.access_log.clone(),
            stats: self.scope.outbound.stats.clone(),
            ..TcpProxy::default()
        }
    }
}

fn server_names(server_names: Vec<String>) -> FilterChainMatch {
    FilterChainMatch { server_names, transport_protocol: Some(TransportProtocol::Tls), ..FilterChainMatch::default() }
}

/// An egress listener on the address where the application is expected would answer inbound requests in its place.
pub(super) fn warn_of_loops(output: &mut Output) {
    let mut warnings = Vec::new();
    for cluster in output
        .snapshot
        .clusters
        .values()
        .map(skiff_proxy::config::Resource::get)
        .filter(|cluster| cluster.name.starts_with("inbound|"))
    {
        let ClusterDiscovery::Static(load) = &cluster.discovery else { continue };
        for endpoint in load.localities.iter().flat_map(|locality| &locality.endpoints) {
            let EndpointAddress::Socket(application) = endpoint.address else { continue };
            if let Some(listener) = output.snapshot.listeners.values().find(|listener| listener.address == application) {
                warnings.push(format!(
                    "listener {} takes the address {application} where {} expects the application: set bind of the egress \
                     listener to another address",
                    listener.name, cluster.name
                ));
            }
        }
    }
    warnings.into_iter().for_each(|warning| output.warn(warning));
}
