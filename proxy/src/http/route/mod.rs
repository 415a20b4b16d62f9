//! Routing: a [`RouteTable`] compiled from configuration, asked once per request.
//!
//! Compiling resolves cluster names, prepares header names and formats, and indexes domains, so that finding a route
//! looks up one hash and walks the conditions of one virtual host, without allocating.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/http/http_routing>

mod action;
mod domains;
mod matches;
mod mutations;
mod template;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

pub use action::{Action, ClusterChoice, ForwardRoute, HashPolicy, Mirror, Redirect, Route};
pub(crate) use matches::Condition;
pub(super) use matches::query_matches;
pub use matches::{HeaderMatcher, MatchedPath};
pub use mutations::HeaderMutations;

use self::domains::Domains;
use super::filter::{FilterError, RouteFilters};
use super::head::RequestHead;
use super::rewrite;
use crate::config::{self, RouteConfiguration, RouteTarget, VirtualHostEntry};
use crate::telemetry::format::FormatError;
use crate::upstream::{Cluster, Clusters};

/// Finds a live cluster by name when routes are compiled.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Option<Arc<Cluster>>;

/// A route configuration, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    name: Arc<str>,
    config: Arc<RouteConfiguration>,
    domains: Arc<Domains>,
    /// As in the configuration. A packed one is compiled at its first request; `None` where that failed.
    virtual_hosts: Box<[OnceLock<Option<Box<VirtualHost>>>]>,
    /// Where packed ones find their clusters.
    clusters: Option<Arc<Clusters>>,
    ignore_port_in_host_matching: bool,
}

/// Hosts that share routes.
#[derive(Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    /// Adds `x-envoy-attempt-count` to what goes upstream.
    pub include_request_attempt_count: bool,
    /// Adds it to responses.
    pub include_attempt_count_in_response: bool,
    /// Adds `x-envoy-is-timeout-retry` to retries.
    pub include_is_timeout_retry: bool,
    routes: Box<[(Condition, Arc<Route>)]>,
    /// Taken by every request that did not come by TLS.
    require_tls: Option<Arc<Route>>,
}

/// What [`RouteTable::find`] found.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch<'a> {
    /// The virtual host.
    pub virtual_host: &'a VirtualHost,
    /// The route.
    pub route: &'a Arc<Route>,
}

/// Why a route configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Two virtual hosts claim one domain.
    #[error("domain {0:?} occurs twice")]
    DuplicateDomain(String),
    /// A route forwards to no cluster.
    #[error("route {0:?}: no cluster has a weight above zero")]
    NoCluster(String),
    /// A header that cannot be set or removed.
    #[error("header {0:?} cannot be mutated: it is a pseudo header, `host` or no valid name")]
    HeaderName(String),
    /// A header value that is no valid format.
    #[error(transparent)]
    Format(FormatError),
    /// What is said to a filter cannot be compiled.
    #[error("typed_per_filter_config: {0}")]
    Filter(#[from] FilterError),
    /// A template that is no valid one.
    #[error("URI template {0:?} must start with / and pair its braces")]
    UriTemplate(String),
}

impl RouteTable {
    /// Compiles a configuration. A route to a cluster that `resolve` does not know is none of the errors: it answers with the
    /// status it asks for. Routes with `cluster_header` choose among the clusters that this configuration names.
    ///
    /// # Errors
    /// When a domain, a header mutation, a template or a set of weights is invalid.
    pub fn compile(config: &Arc<RouteConfiguration>, resolve: Resolve<'_>) -> Result<Self, RouteError> {
        let domains = Arc::new(index(config)?);
        let compiler = Compiler::new(config, resolve)?;
        let compile = |entry: &VirtualHostEntry| compiler.virtual_host(&entry.host().get());
        let hosts = config.virtual_hosts.iter().map(|entry| Ok(OnceLock::from(Some(Box::new(compile(entry)?)))));
        Ok(Self::of(config, domains, hosts.collect::<Result<_, RouteError>>()?, None))
    }

    /// Compiles a configuration whose packed virtual hosts wait for their first request. `before`: the table of the configuration
    /// before, whose index can serve again.
    ///
    /// # Errors
    /// As [`Self::compile`]; packed virtual hosts have been compiled once before they were packed.
    pub(crate) fn publish(
        config: &Arc<RouteConfiguration>,
        clusters: &Arc<Clusters>,
        before: Option<&Self>,
    ) -> Result<Self, RouteError> {
        let domains = match before.filter(|before| Arc::ptr_eq(&before.config, config)) {
            Some(before) => Arc::clone(&before.domains),
            None => Arc::new(index(config)?),
        };
        let resolve = |name: &str| clusters.get(name);
        let compiler = Compiler::new(config, &resolve)?;
        let hosts = config.virtual_hosts.iter().map(|entry| match entry.host().whole() {
            Some(host) => Ok(OnceLock::from(Some(Box::new(compiler.virtual_host(host)?)))),
            None => Ok(OnceLock::new()),
        });
        Ok(Self::of(config, domains, hosts.collect::<Result<_, RouteError>>()?, Some(Arc::clone(clusters))))
    }

    fn of(
        config: &Arc<RouteConfiguration>,
        domains: Arc<Domains>,
        virtual_hosts: Box<[OnceLock<Option<Box<VirtualHost>>>]>,
        clusters: Option<Arc<Clusters>>,
    ) -> Self {
        let ignore_port_in_host_matching = config.ignore_port_in_host_matching;
        let (name, config) = (config.name.as_str().into(), Arc::clone(config));
        Self { name, config, domains, virtual_hosts, clusters, ignore_port_in_host_matching }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The route of a request whose path has been normalised. Draws once for each route with a runtime fraction.
    pub fn find(&self, head: &RequestHead) -> Option<RouteMatch<'_>> {
        let authority = head.authority();
        let host = if self.ignore_port_in_host_matching { domains::without_port(authority) } else { authority };
        let virtual_host = self.virtual_host(self.domains.find(host, &self.config.virtual_hosts)?)?;
        if let Some(route) = &virtual_host.require_tls
            && !rewrite::came_by_tls(head)
        {
            return Some(RouteMatch { virtual_host, route });
        }
        let path = head.path_without_query();
        let (_, route) = virtual_host.routes.iter().find(|(condition, _)| condition.matches(head, path))?;
        Some(RouteMatch { virtual_host, route })
    }

    fn virtual_host(&self, index: usize) -> Option<&VirtualHost> {
        let host = self.virtual_hosts.get(index)?;
        host.get().unwrap_or_else(|| host.get_or_init(|| self.wake(index))).as_deref()
    }

    /// Compiles a virtual host that was packed.
    #[cold]
    fn wake(&self, index: usize) -> Option<Box<VirtualHost>> {
        let host = self.config.virtual_hosts.get(index)?.host().get();
        let resolve = |name: &str| self.clusters.as_ref()?.get(name);
        let compiled = Compiler::of_one(&self.config, &resolve).and_then(|compiler| compiler.virtual_host(&host));
        compiled
            .map(Box::new)
            .inspect_err(|error| tracing::error!(routes = %self.name, host = host.name, %error, "virtual host is not served"))
            .ok()
    }
}

/// The index of the domains.
fn index(config: &RouteConfiguration) -> Result<Domains, RouteError> {
    Domains::of(&config.virtual_hosts).map_err(|domain| RouteError::DuplicateDomain(domain.to_owned()))
}

/// What the routes of one configuration share while they are compiled.
struct Compiler<'a> {
    by_name: Arc<HashMap<Box<[u8]>, ClusterChoice>>,
    config_mutations: Option<Arc<HeaderMutations>>,
    config_filters: &'a config::FilterOverrides,
    resolve: Resolve<'a>,
}

impl<'a> Compiler<'a> {
    fn new(config: &'a RouteConfiguration, resolve: Resolve<'a>) -> Result<Self, RouteError> {
        let (by_name, config_mutations) = (named_clusters(config, resolve), compile_mutations(&config.headers)?);
        Ok(Self { by_name, config_mutations, config_filters: &config.filters, resolve })
    }

    /// For a virtual host that asks for nothing of the others.
    fn of_one(config: &'a RouteConfiguration, resolve: Resolve<'a>) -> Result<Self, RouteError> {
        let config_mutations = compile_mutations(&config.headers)?;
        Ok(Self { by_name: Arc::default(), config_mutations, config_filters: &config.filters, resolve })
    }

    fn virtual_host(&self, config: &config::VirtualHost) -> Result<VirtualHost, RouteError> {
        let mutations = compile_mutations(&config.headers)?;
        let routes = config.routes.iter().map(|route| {
            let condition = Condition::compile(&route.matches)?;
            let compiled = self.route(route, config, mutations.as_ref(), condition.matched())?;
            Ok((condition, Arc::new(compiled)))
        });
        Ok(VirtualHost {
            name: config.name.as_str().into(),
            include_request_attempt_count: config.include_request_attempt_count,
            include_attempt_count_in_response: config.include_attempt_count_in_response,
            include_is_timeout_retry: config.include_is_timeout_retry,
            routes: routes.collect::<Result<_, RouteError>>()?,
            require_tls: config.require_tls.then(|| Arc::new(require_tls_route())),
        })
    }

    fn route(
        &self,
        config: &config::Route,
        host: &config::VirtualHost,
        host_mutations: Option<&Arc<HeaderMutations>>,
        matched: MatchedPath,
    ) -> Result<Route, RouteError> {
        let action = match &config.action {
            RouteTarget::Forward(action) => {
                let retry = host.retry_policy.as_ref();
                Action::Forward(Box::new(ForwardRoute::compile(&config.name, action, retry, self.resolve, &self.by_name)?))
            }
            RouteTarget::Redirect(redirect) => Action::Redirect(Redirect::Configured(redirect.clone())),
            RouteTarget::DirectResponse(response) => Action::DirectResponse(response.clone()),
        };
        let own = compile_mutations(&config.headers)?;
        let mutations = [own.as_ref(), host_mutations, self.config_mutations.as_ref()];
        Ok(Route {
            name: config.name.as_str().into(),
            action,
            cors: config.cors.as_ref().or(host.cors.as_ref()).cloned().map(Arc::new),
            fault: config.fault.clone(),
            filters: RouteFilters::compile([&config.filters, &host.filters, self.config_filters])?,
            decorator: config.decorator.as_ref().map(|one| (one.operation.as_str().into(), one.propagate)),
            matched,
            mutations: mutations.into_iter().flatten().cloned().collect(),
        })
    }
}

fn compile_mutations(config: &config::HeaderMutations) -> Result<Option<Arc<HeaderMutations>>, RouteError> {
    if config.is_empty() { Ok(None) } else { Ok(Some(Arc::new(HeaderMutations::compile(config)?))) }
}

fn require_tls_route() -> Route {
    Route {
        name: "".into(),
        action: Action::Redirect(Redirect::RequireTls),
        cors: None,
        fault: None,
        filters: RouteFilters::default(),
        decorator: None,
        matched: MatchedPath::Whole,
        mutations: Box::default(),
    }
}

/// Every cluster that the configuration names, when some route lets a header choose among them. Packed virtual hosts have no such
/// route ([`may_be_packed`]).
fn named_clusters(config: &RouteConfiguration, resolve: Resolve<'_>) -> Arc<HashMap<Box<[u8]>, ClusterChoice>> {
    let hosts: Vec<_> = config.virtual_hosts.iter().filter_map(|entry| entry.host().whole()).collect();
    if !hosts.iter().copied().flat_map(|host| actions(host)).any(|action| action.cluster_header.is_some()) {
        return Arc::default();
    }
    let names = hosts.iter().copied().flat_map(|host| actions(host)).flat_map(|action| &action.clusters);
    let names = names.map(|cluster| cluster.name.as_str());
    Arc::new(names.map(|name| (name.as_bytes().into(), ClusterChoice::named(name, resolve))).collect())
}

fn actions(host: &config::VirtualHost) -> impl Iterator<Item = &config::RouteAction> {
    host.routes.iter().filter_map(|route| match &route.action {
        RouteTarget::Forward(action) => Some(&**action),
        RouteTarget::Redirect(_) | RouteTarget::DirectResponse(_) => None,
    })
}

/// Whether a virtual host can be compiled alone and later: it can be compiled now, and no header of a request chooses among the
/// clusters of the others. Either all of a configuration are packed or none. `shell` is the configuration without virtual hosts.
pub fn may_be_packed(host: &config::VirtualHost, shell: &RouteConfiguration) -> bool {
    let compiles = || Compiler::of_one(shell, &|_| None).and_then(|compiler| compiler.virtual_host(host)).is_ok();
    actions(host).all(|action| action.cluster_header.is_none()) && compiles()
}
