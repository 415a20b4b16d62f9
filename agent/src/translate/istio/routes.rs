//! Route configurations of HTTP egress listeners: virtual hosts by service and VirtualService.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{
    Decorator, DirectResponse, PathMatch, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, RouteTarget,
    VirtualHost,
};

use super::documents::Resource;
use super::outbound::Import;
use super::policy::{self, Policy};
use super::registry::Service;
use super::route;
use super::schema::exported;
use super::schema::sidecar::OutboundMode;
use super::schema::virtual_service::{VirtualService, for_sidecars};
use super::scope::Scope;
use super::{Output, Selection, clusters};

/// VirtualServices that sidecars of the workload's namespace see.
pub(super) fn virtual_services<'s>(scope: &'s Scope<'_>) -> impl Iterator<Item = &'s Resource<VirtualService>> {
    let own = &scope.workload.namespace;
    scope
        .documents
        .virtual_services
        .iter()
        .filter(|vs| for_sidecars(&vs.spec.gateways) && exported(&vs.spec.export_to, &vs.namespace, own))
}

/// Adds the route configuration of one listener and returns its name: the port as istiod has it, `http_proxy`, or the
/// listener's name when another listener of that port imports other hosts.
pub(super) fn add(
    scope: &Scope<'_>,
    import: &Import<'_>,
    listener: &str,
    port: u16,
    proxy: bool,
    selection: &mut Selection,
    output: &mut Output,
) -> String {
    let mut config = RouteConfiguration { ignore_port_in_host_matching: !proxy, ..RouteConfiguration::default() };
    let mut builder = Builder { scope, import, selection, output, taken: BTreeSet::new() };
    let mut hosts = if proxy { builder.proxy_hosts() } else { builder.port_hosts(port) };
    hosts.push(unknown_hosts(scope));
    if proxy {
        hosts.iter_mut().for_each(accept_connect);
    }
    config.virtual_hosts = hosts.into_iter().map(Into::into).collect();
    config.name = if proxy { "http_proxy".to_owned() } else { port.to_string() };
    if output.snapshot.routes.get(&config.name).is_some_and(|other| **other != config) {
        listener.clone_into(&mut config.name);
    }
    let name = config.name.clone();
    output.snapshot.routes.insert(name.clone(), Arc::new(config));
    name
}

/// CONNECT has no path, so no route by path takes it: on a proxy listener it goes where the host's plain requests go.
fn accept_connect(host: &mut VirtualHost) {
    let any = host.routes.iter().rev().find(|route| route.matches == RouteMatch::any());
    if let Some(route) = any {
        let connect = Route { matches: RouteMatch::path(PathMatch::Connect), ..route.clone() };
        host.routes.insert(0, connect);
    }
}

/// The last virtual host: `allow_any` passes unknown hosts on, `block_all` answers 502 (REGISTRY_ONLY).
fn unknown_hosts(scope: &Scope<'_>) -> VirtualHost {
    let (name, action) = match scope.outbound_mode() {
        OutboundMode::AllowAny => ("allow_any", forward(RouteAction::cluster(clusters::PASSTHROUGH))),
        OutboundMode::RegistryOnly => {
            ("block_all", RouteTarget::DirectResponse(DirectResponse { status: 502, body: Vec::new() }))
        }
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![plain_route(name, action)],
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}

/// Without a time-out, but `grpc-timeout` is honoured.
fn forward(mut action: RouteAction) -> RouteTarget {
    action.max_grpc_timeout = Some(Duration::ZERO);
    RouteTarget::Forward(Box::new(action))
}

fn plain_route(name: &str, action: RouteTarget) -> Route {
    Route {
        name: name.to_owned(),
        matches: RouteMatch::any(),
        action,
        headers: Default::default(),
        cors: None,
        fault: None,
        filters: Vec::new(),
        decorator: None,
    }
}

struct Builder<'b, 'o> {
    scope: &'b Scope<'b>,
    import: &'b Import<'b>,
    selection: &'o mut Selection,
    output: &'o mut Output,
    /// Domains of this configuration: one may only occur once, and the first keeps it.
    taken: BTreeSet<String>,
}

impl Builder<'_, '_> {
    /// A virtual host for each imported service that has HTTP on `port`.
    fn port_hosts(&mut self, port: u16) -> Vec<VirtualHost> {
        for service in &self.import.services {
            if service.port(port).is_some_and(|declared| !declared.protocol().is_http()) {
                let text = format!("{}: port {port} is not HTTP, so the HTTP listener of that port leaves it out", service.host);
                self.output.warn(text);
            }
        }
        let mut hosts: Vec<VirtualHost> = self
            .import
            .services
            .iter()
            .filter(|service| service.port(port).is_some_and(|declared| declared.protocol().is_http()))
            .map(|service| self.service_host(service, port, domains(self.scope, service)))
            .collect();
        // istiod takes hosts that are no services for port 80.
        if port == 80 {
            hosts.extend(self.foreign_hosts(port));
        }
        hosts.retain(|host| !host.domains.is_empty());
        hosts
    }

    /// For absolute-form requests the port belongs to the host; port 80 may be left out.
    fn proxy_hosts(&mut self) -> Vec<VirtualHost> {
        let mut hosts = Vec::new();
        for service in &self.import.services {
            for port in service.ports.iter().filter(|port| port.protocol().is_http()).map(|port| port.number.get()) {
                let names = domains(self.scope, service);
                let with_port = names.iter().map(|name| format!("{name}:{port}"));
                let domains = if port == 80 { names.iter().cloned().chain(with_port).collect() } else { with_port.collect() };
                hosts.push(self.service_host(service, port, domains));
            }
        }
        hosts.retain(|host| !host.domains.is_empty());
        hosts
    }

    fn service_host(&mut self, service: &Service<'_>, port: u16, domains: Vec<String>) -> VirtualHost {
        self.selection.insert((service.host.clone(), port));
        let hosts =
            |vs: &Resource<VirtualService>| vs.spec.hosts.iter().map(|host| host.resolve(&vs.namespace)).collect::<Vec<_>>();
        let candidates = self.import.virtual_services.iter().filter(|vs| !vs.spec.http.is_empty());
        let candidates = candidates.flat_map(|vs| hosts(vs).into_iter().map(move |host| (*vs, host)));
        let routes = match Scope::most_specific(candidates, &service.host) {
            Some(vs) => route::routes(self.scope, vs, port, self.selection, self.output),
            None => vec![self.default_route(service, port)],
        };
        self.host(&service.host, port, domains, routes)
    }

    fn host(&mut self, name: &str, port: u16, domains: Vec<String>, routes: Vec<Route>) -> VirtualHost {
        VirtualHost {
            name: format!("{name}:{port}"),
            domains: domains.into_iter().filter(|domain| self.taken.insert(domain.clone())).collect(),
            routes,
            include_request_attempt_count: true,
            ..VirtualHost::default()
        }
    }

    fn default_route(&self, service: &Service<'_>, port: u16) -> Route {
        let mut action = RouteAction::cluster(clusters::name(port, "", &service.host));
        action.retry = Some(RetryPolicy::istio_default());
        let policy = Policy::of(policy::destination_rule(self.scope, service), None, port);
        let hash = policy.load_balancer.and_then(|lb| lb.consistent_hash.as_ref());
        action.hash_policy = hash.map(clusters::hash_policies).unwrap_or_default();
        let decorator = Some(Decorator { operation: format!("{}:{port}/*", service.host), propagate: true });
        Route { decorator, ..plain_route("default", forward(action)) }
    }

    /// Hosts of VirtualServices that no service declares.
    fn foreign_hosts(&mut self, port: u16) -> Vec<VirtualHost> {
        let mut hosts = Vec::new();
        for vs in self.import.virtual_services.iter().filter(|vs| !vs.spec.http.is_empty()) {
            for host in vs.spec.hosts.iter().map(|host| host.resolve(&vs.namespace)) {
                if self.import.services.iter().any(|service| super::values::covers(&host, &service.host)) {
                    continue;
                }
                let routes = route::routes(self.scope, vs, port, self.selection, self.output);
                let domains = vec![host.clone()];
                hosts.push(self.host(&host, port, domains, routes));
            }
        }
        hosts
    }
}

/// The names by which an application may call a service: the host, absolute, what Kubernetes' search path leaves of it, and the
/// addresses of the service.
fn domains(scope: &Scope<'_>, service: &Service<'_>) -> Vec<String> {
    let host = &service.host;
    let mut names = vec![host.clone()];
    if host.starts_with('*') {
        return names;
    }
    names.push(format!("{host}."));
    let in_cluster = host.strip_suffix(".svc.cluster.local").and_then(|labels| labels.rsplit_once('.'));
    if let Some((name, namespace)) = in_cluster {
        if namespace == scope.workload.namespace {
            names.push(name.to_owned());
        }
        names.push(format!("{name}.{namespace}.svc"));
        names.push(format!("{name}.{namespace}"));
    }
    let single = |block: &ipnet::IpNet| block.prefix_len() == block.max_prefix_len();
    names
        .extend(service.resource.spec.addresses.iter().map(|block| block.0).filter(single).map(|block| block.addr().to_string()));
    names
}
