//! What a route does once it has matched: forward, redirect or answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{HeaderMutations, MatchedPath, Resolve, RouteError};
use crate::config::{
    self, CorsPolicy, DirectResponse, Fault, Fraction, HostRewrite, PathRewrite, RetryPolicy, RouteAction, UpgradeType,
};
use crate::error::ErrorKind;
use crate::http::filter::RouteFilters;
use crate::http::head::{HeaderName, RequestHead, ResponseHead};
use crate::http::retry::Policy;
use crate::http::rewrite;
use crate::stream_info::StreamInfo;
use crate::upstream::Cluster;

/// A route, compiled.
#[derive(Debug)]
pub struct Route {
    /// `%ROUTE_NAME%`.
    pub name: Arc<str>,
    /// What happens.
    pub action: Action,
    /// Cross-origin policy in force: the route's, else the virtual host's.
    pub cors: Option<Arc<CorsPolicy>>,
    /// Fault injection.
    pub fault: Option<Fault>,
    /// What filters are told here.
    pub filters: RouteFilters,
    /// What spans are called here, and whether the other hop is told.
    pub decorator: Option<(Arc<str>, bool)>,
    pub(super) matched: MatchedPath,
    /// Route, virtual host, route configuration: Envoy's order. Levels without mutations are left out.
    pub(super) mutations: Box<[Arc<HeaderMutations>]>,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Forward to a cluster.
    Forward(Box<ForwardRoute>),
    /// Answer with a Location.
    Redirect(Redirect),
    /// Answer here.
    DirectResponse(DirectResponse),
}

impl Route {
    /// Changes the head on its way upstream, once per request: header mutations from the most specific to the least, then
    /// host and path. Envoy has set x-envoy-expected-rq-timeout-ms and x-envoy-attempt-count before.
    /// `keep_original`: the old path and host are told in x-envoy-original-path and x-envoy-original-host.
    pub fn apply_request(&self, head: &mut RequestHead, choice: &ClusterChoice, info: &StreamInfo, keep_original: bool) {
        for mutations in choice.mutations.iter().chain(&*self.mutations) {
            mutations.apply_request(head, info);
        }
        let Action::Forward(forward) = &self.action else { return };
        match &forward.host_rewrite {
            Some(CompiledHostRewrite::Literal(host)) => {
                rewrite::rewrite_host(head, host, forward.append_x_forwarded_host, keep_original);
            }
            Some(CompiledHostRewrite::Header(name)) => {
                if let Some(host) = head.headers.find(name).filter(|host| is_host(host)).map(<[u8]>::to_vec) {
                    rewrite::rewrite_host(head, &host, forward.append_x_forwarded_host, keep_original);
                }
            }
            Some(CompiledHostRewrite::Auto) | None => {}
        }
        if let Some(path_rewrite) = &forward.path_rewrite {
            rewrite::rewrite_path(head, path_rewrite, self.matched, keep_original);
        }
    }

    /// Changes the headers of a response, an upstream's or a local one. `chosen` are the mutations of the cluster that was
    /// chosen for the request.
    pub fn apply_response(
        &self,
        response: &mut ResponseHead,
        request: &RequestHead,
        chosen: Option<&HeaderMutations>,
        info: &StreamInfo,
    ) {
        for mutations in chosen.into_iter().chain(self.mutations.iter().map(|mutations| &**mutations)) {
            mutations.apply_response(response, request, info);
        }
    }

    /// The Location of this route's redirect; `None` when it is none.
    pub fn redirect_location(&self, head: &RequestHead) -> Option<Vec<u8>> {
        match &self.action {
            Action::Redirect(Redirect::Configured(redirect)) => Some(rewrite::redirect_location(redirect, head, self.matched)),
            Action::Redirect(Redirect::RequireTls) => Some(rewrite::tls_location(head)),
            Action::Forward(_) | Action::DirectResponse(_) => None,
        }
    }
}

/// A host from a header is as untrusted as Host itself.
fn is_host(host: &[u8]) -> bool {
    !host.is_empty() && http::uri::Authority::try_from(host).is_ok()
}

/// A redirect; its Location comes from [`Route::redirect_location`].
#[derive(Debug)]
pub enum Redirect {
    /// As configured.
    Configured(config::Redirect),
    /// The virtual host serves `https` only.
    RequireTls,
}

impl Redirect {
    /// Its status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Configured(redirect) => redirect.status,
            Self::RequireTls => 301,
        }
    }
}

/// Forward to a cluster (Envoy `RouteAction`).
#[derive(Debug)]
pub struct ForwardRoute {
    clusters: Clusters,
    cluster_not_found_status: u16,
    /// Until the whole response; `None` is off.
    pub timeout: Option<Duration>,
    /// No activity on the stream; overrides the listener's. `Some(ZERO)` is off.
    pub idle_timeout: Option<Duration>,
    /// Life of the stream; overrides the listener's. `Some(ZERO)` is off.
    pub max_stream_duration: Option<Duration>,
    /// Honour `grpc-timeout` up to this as the life of the stream; `Some(ZERO)` is without a cap.
    pub grpc_timeout_header_max: Option<Duration>,
    /// Taken off what `grpc-timeout` asks for then.
    pub grpc_timeout_header_offset: Option<Duration>,
    /// On gRPC requests `grpc-timeout` up to this takes the place of [`Self::timeout`]; `Some(ZERO)` is without a cap.
    pub max_grpc_timeout: Option<Duration>,
    /// Taken off what `grpc-timeout` asks for then, unless nothing were left.
    pub grpc_timeout_offset: Option<Duration>,
    /// Retries in force: the route's, else the virtual host's.
    pub retry: Option<Arc<Policy>>,
    /// Bytes of a request body that are kept for retries.
    pub request_body_buffer_limit: Option<u64>,
    /// Copies.
    pub mirrors: Box<[Mirror]>,
    /// For ring hash and Maglev.
    pub hash_policy: Box<[HashPolicy]>,
    upgrades: Box<[(UpgradeType, bool)]>,
    path_rewrite: Option<PathRewrite>,
    host_rewrite: Option<CompiledHostRewrite>,
    append_x_forwarded_host: bool,
}

#[derive(Debug)]
enum CompiledHostRewrite {
    Literal(Box<[u8]>),
    Auto,
    Header(HeaderName),
}

#[derive(Debug)]
enum Clusters {
    One(ClusterChoice),
    Weighted {
        /// Without those of weight zero.
        choices: Box<[ClusterChoice]>,
        total: u64,
    },
    /// Named by a header of the request.
    Named {
        header: HeaderName,
        by_name: Arc<HashMap<Box<[u8]>, ClusterChoice>>,
    },
}

/// A cluster that a request may go to.
#[derive(Debug)]
pub struct ClusterChoice {
    /// Its name, also when it does not exist.
    pub name: Arc<str>,
    /// The live cluster; `None` when it does not exist. [`ForwardRoute::choose`] never returns such a one.
    pub cluster: Option<Arc<Cluster>>,
    /// Endpoint metadata (`envoy.lb`) that an endpoint must have.
    pub metadata_match: BTreeMap<String, String>,
    weight: u64,
    /// Changes to the headers of requests that go there, and of their responses.
    pub mutations: Option<Arc<HeaderMutations>>,
}

impl ClusterChoice {
    pub(super) fn named(name: &str, resolve: Resolve<'_>) -> Self {
        Self { name: name.into(), cluster: resolve(name), metadata_match: BTreeMap::new(), weight: 1, mutations: None }
    }

    fn compile(config: &config::WeightedCluster, resolve: Resolve<'_>) -> Result<Self, RouteError> {
        let mutations = if config.headers.is_empty() { None } else { Some(HeaderMutations::compile(&config.headers)?.into()) };
        let (weight, metadata_match) = (config.weight.into(), config.metadata_match.clone());
        Ok(Self { weight, metadata_match, mutations, ..Self::named(&config.name, resolve) })
    }
}

/// A copy of the request whose response is thrown away.
#[derive(Debug)]
pub struct Mirror {
    /// Where it goes; `None` when that cluster does not exist: no copy is made then.
    pub cluster: Option<Arc<Cluster>>,
    /// How many of the requests.
    pub fraction: Fraction,
    /// The copy's host stays as it is.
    pub keeps_host: bool,
}

/// What a request is hashed by.
#[derive(Debug)]
pub enum HashPolicy {
    /// A header.
    Header(HeaderName),
    /// A cookie, made when it is missing and `ttl` is set.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// Life of one made here; ZERO makes a session cookie.
        ttl: Option<Duration>,
        /// Path of one made here.
        path: Box<str>,
    },
    /// The caller's address.
    SourceIp,
    /// A query parameter.
    QueryParameter(Box<str>),
}

impl HashPolicy {
    fn compile(config: &config::HashPolicy) -> Self {
        match config {
            config::HashPolicy::Header(name) => Self::Header(HeaderName::new(name)),
            config::HashPolicy::Cookie { name, ttl, path } => {
                Self::Cookie { name: name.as_str().into(), ttl: *ttl, path: path.as_str().into() }
            }
            config::HashPolicy::SourceIp => Self::SourceIp,
            config::HashPolicy::QueryParameter(name) => Self::QueryParameter(name.as_str().into()),
        }
    }
}

impl ForwardRoute {
    pub(super) fn compile(
        route: &str,
        config: &RouteAction,
        vhost_retry: Option<&RetryPolicy>,
        resolve: Resolve<'_>,
        by_name: &Arc<HashMap<Box<[u8]>, ClusterChoice>>,
    ) -> Result<Self, RouteError> {
        let clusters = match &config.cluster_header {
            Some(header) => Clusters::Named { header: HeaderName::new(header), by_name: Arc::clone(by_name) },
            None => Clusters::weighted(route, &config.clusters, resolve)?,
        };
        let mirror = |mirror: &config::Mirror| Mirror {
            cluster: resolve(&mirror.cluster),
            fraction: mirror.fraction,
            keeps_host: mirror.keeps_host,
        };
        Ok(Self {
            clusters,
            cluster_not_found_status: config.cluster_not_found_status,
            timeout: config.timeout,
            idle_timeout: config.idle_timeout,
            max_stream_duration: config.max_stream_duration,
            grpc_timeout_header_max: config.grpc_timeout_header_max,
            grpc_timeout_header_offset: config.grpc_timeout_header_offset,
            max_grpc_timeout: config.max_grpc_timeout,
            grpc_timeout_offset: config.grpc_timeout_offset,
            retry: config.retry.as_ref().or(vhost_retry).map(|policy| Arc::new(Policy::compile(policy))),
            request_body_buffer_limit: config.request_body_buffer_limit,
            mirrors: config.mirrors.iter().map(mirror).collect(),
            hash_policy: config.hash_policy.iter().map(HashPolicy::compile).collect(),
            upgrades: config.upgrades.clone().into_boxed_slice(),
            path_rewrite: config.path_rewrite.clone(),
            host_rewrite: config.host_rewrite.as_ref().map(|rewrite| match rewrite {
                HostRewrite::Literal(host) => CompiledHostRewrite::Literal(host.as_bytes().into()),
                HostRewrite::Auto => CompiledHostRewrite::Auto,
                HostRewrite::Header(name) => CompiledHostRewrite::Header(HeaderName::new(name)),
            }),
            append_x_forwarded_host: config.append_x_forwarded_host,
        })
    }

    /// Chooses the cluster of a request: by weight, or by the header that names it.
    ///
    /// # Errors
    /// [`ErrorKind::NoCluster`] when the chosen one does not exist.
    pub fn choose(&self, head: &RequestHead) -> Result<&ClusterChoice, ErrorKind> {
        let choice = match &self.clusters {
            Clusters::One(choice) => Some(choice),
            Clusters::Weighted { choices, total } => pick(choices, fastrand::u64(0..*total)),
            Clusters::Named { header, by_name } => head.headers.find(header).and_then(|name| by_name.get(name)),
        };
        choice.filter(|choice| choice.cluster.is_some()).ok_or(ErrorKind::NoCluster(self.cluster_not_found_status))
    }

    /// Whether an upgrade to `token` (the value of Upgrade, any case) may pass. The route's rules come before the
    /// listener's `upgrades`; what neither allows is answered 403 `upgrade_failed`.
    pub fn allows_upgrade(&self, token: &[u8], upgrades: &[UpgradeType]) -> bool {
        match self.upgrades.iter().find(|(upgrade, _)| upgrade_is(upgrade, token)) {
            Some((_, enabled)) => *enabled,
            None => upgrades.iter().any(|upgrade| upgrade_is(upgrade, token)),
        }
    }

    /// Whether CONNECT is terminated here.
    pub fn allows_connect(&self, upgrades: &[UpgradeType]) -> bool {
        match self.upgrades.iter().find(|(upgrade, _)| *upgrade == UpgradeType::Connect) {
            Some((_, enabled)) => *enabled,
            None => upgrades.contains(&UpgradeType::Connect),
        }
    }

    /// The host becomes that of the endpoint, once one is picked (`auto_host_rewrite`).
    pub fn apply_endpoint_host(&self, head: &mut RequestHead, hostname: &str, keep_original: bool) {
        if matches!(self.host_rewrite, Some(CompiledHostRewrite::Auto)) && !hostname.is_empty() {
            rewrite::rewrite_host(head, hostname.as_bytes(), self.append_x_forwarded_host, keep_original);
        }
    }
}

impl Clusters {
    fn weighted(route: &str, clusters: &[config::WeightedCluster], resolve: Resolve<'_>) -> Result<Self, RouteError> {
        let mut choices = clusters
            .iter()
            .filter(|cluster| cluster.weight > 0)
            .map(|cluster| ClusterChoice::compile(cluster, resolve))
            .collect::<Result<Vec<_>, _>>()?;
        match (choices.len(), choices.pop()) {
            (1, Some(only)) => Ok(Self::One(only)),
            (_, Some(last)) => {
                choices.push(last);
                let total = choices.iter().map(|choice| choice.weight).sum();
                Ok(Self::Weighted { choices: choices.into_boxed_slice(), total })
            }
            (_, None) => Err(RouteError::NoCluster(route.to_owned())),
        }
    }
}

/// The choice into whose share `draw` (below the sum of weights) falls.
fn pick(choices: &[ClusterChoice], mut draw: u64) -> Option<&ClusterChoice> {
    choices.iter().find(|choice| match draw.checked_sub(choice.weight) {
        Some(rest) => {
            draw = rest;
            false
        }
        None => true,
    })
}

fn upgrade_is(upgrade: &UpgradeType, token: &[u8]) -> bool {
    match upgrade {
        UpgradeType::WebSocket => token.eq_ignore_ascii_case(b"websocket"),
        UpgradeType::Connect => false,
        UpgradeType::Other(other) => token.eq_ignore_ascii_case(other.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_fall_into_shares_by_weight() {
        let choice = |name, weight| ClusterChoice { weight, ..ClusterChoice::named(name, &|_| None) };
        let choices = [choice("a", 1), choice("b", 3), choice("c", 2)];
        let drawn: Vec<_> = (0..7).map(|draw| pick(&choices, draw).map_or("-", |choice| &*choice.name)).collect();
        assert_eq!(drawn, ["a", "b", "b", "b", "c", "c", "-"]);
    }
}
