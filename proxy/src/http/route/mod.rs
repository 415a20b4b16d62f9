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
use std::sync::Arc;

pub use action::{Action, ClusterChoice, ForwardRoute, HashPolicy, Mirror, Redirect, Route};
pub(crate) use matches::Condition;
pub(super) use matches::query_matches;
pub use matches::{HeaderMatcher, MatchedPath};
pub use mutations::HeaderMutations;

use self::domains::Domains;
use super::filter::{FilterError, RouteFilters};
use super::head::RequestHead;
use super::rewrite;
use crate::config::{self, RouteConfiguration, RouteTarget};
use crate::telemetry::format::FormatError;
use crate::upstream::Cluster;

/// Finds a live cluster by name when routes are compiled.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Option<Arc<Cluster>>;

/// A route configuration, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    name: Arc<str>,
    domains: Domains,
    virtual_hosts: Box<[VirtualHost]>,
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
    pub fn compile(config: &RouteConfiguration, resolve: Resolve<'_>) -> Result<Self, RouteError> {
        let mut compiler = Compiler {
            by_name: named_clusters(config, resolve),
            config_mutations: None,
            config_filters: &config.filters,
            resolve,
        };
        compiler.config_mutations = compile_mutations(&config.headers)?;
        let mut domains = Domains::default();
        for (index, host) in config.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                if !domains.insert(domain, index) {
                    return Err(RouteError::DuplicateDomain(domain.clone()));
                }
            }
        }
        let virtual_hosts =
            config.virtual_hosts.iter().map(|host| compiler.virtual_host(host)).collect::<Result<Box<[_]>, _>>()?;
        let ignore_port_in_host_matching = config.ignore_port_in_host_matching;
        Ok(Self { name: config.name.as_str().into(), domains, virtual_hosts, ignore_port_in_host_matching })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The route of a request whose path has been normalised. Draws once for each route with a runtime fraction.
    pub fn find(&self, head: &RequestHead) -> Option<RouteMatch<'_>> {
        let authority = head.authority();
        let host = if self.ignore_port_in_host_matching { domains::without_port(authority) } else { authority };
        let virtual_host = &self.virtual_hosts[self.domains.find(host)?];
        if let Some(route) = &virtual_host.require_tls
            && !rewrite::came_by_tls(head)
        {
            return Some(RouteMatch { virtual_host, route });
        }
        let path = head.path_without_query();
        let (_, route) = virtual_host.routes.iter().find(|(condition, _)| condition.matches(head, path))?;
        Some(RouteMatch { virtual_host, route })
    }
}

/// What the routes of one configuration share while they are compiled.
struct Compiler<'a> {
    by_name: Arc<HashMap<Box<[u8]>, ClusterChoice>>,
    config_mutations: Option<Arc<HeaderMutations>>,
    config_filters: &'a config::FilterOverrides,
    resolve: Resolve<'a>,
}

impl Compiler<'_> {
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

/// Every cluster that the configuration names, when some route lets a header choose among them.
fn named_clusters(config: &RouteConfiguration, resolve: Resolve<'_>) -> Arc<HashMap<Box<[u8]>, ClusterChoice>> {
    let actions = || {
        config.virtual_hosts.iter().flat_map(|host| &host.routes).filter_map(|route| match &route.action {
            RouteTarget::Forward(action) => Some(action),
            RouteTarget::Redirect(_) | RouteTarget::DirectResponse(_) => None,
        })
    };
    if actions().all(|action| action.cluster_header.is_none()) {
        return Arc::default();
    }
    let names = actions().flat_map(|action| &action.clusters).map(|cluster| cluster.name.as_str());
    Arc::new(names.map(|name| (name.as_bytes().into(), ClusterChoice::named(name, resolve))).collect())
}
