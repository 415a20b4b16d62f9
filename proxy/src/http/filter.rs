//! The HTTP filters of a connection manager, in their order.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Weak;

use http::StatusCode;
use serde_json::{Map, Value};

use super::exchange::Exchange;
use super::ext_authz::{Decision, ExtAuthz};
use super::local_rate_limit::LocalRateLimit;
use super::local_reply::LocalReply;
use super::request_body::RequestBody;
use super::route::{Resolve, Route};
use super::{cors, ext_authz, fault};
use crate::config::{AlpnOverride, ExtAuthzOverride, FilterOverride, FilterOverrides, HttpFilter, JwtPerRoute, Rbac};
use crate::error::ErrorKind;
use crate::flags::ResponseFlags;
use crate::jwt::{self, JwtContext, JwtFilter, RemoteKeySets, RemoteKeys};
use crate::peer::{Local, PeerMetadata};
use crate::rbac::{Engine, RbacError, RequestContext};
use crate::telemetry::metrics::{LimitCounters, ProxyMetrics};

/// Where RBAC filters tell what their shadow rules would have decided.
pub const RBAC_METADATA: &str = "envoy.filters.http.rbac";

/// What a filter decided.
pub enum Verdict {
    /// On to the next one.
    Continue,
    /// Answer here.
    Reply(LocalReply),
    /// The head was changed so that another route may fit: routes are chosen again, and the chain goes on at this filter.
    Reroute(usize),
    /// The caller failed while a filter held its request.
    Gone(ErrorKind),
}

/// Why a filter, or what a route tells it, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct FilterError {
    /// The filter's name in its chain.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

impl FilterError {
    fn new(name: &str, reason: &impl ToString) -> Self {
        Self { name: name.to_owned(), reason: reason.to_string() }
    }
}

/// What filters are compiled with.
pub struct FilterContext<'a> {
    /// Finds the clusters that filters call.
    pub resolve: Resolve<'a>,
    /// Where their metrics are registered.
    pub metrics: &'a ProxyMetrics,
    /// `stat_prefix` of the connection manager, a label of those.
    pub stat_prefix: &'a str,
    /// Who we are.
    pub local: &'a Local,
    /// Keys that tokens are verified with.
    pub remote_keys: &'a RemoteKeySets,
    /// Keeps keys fetched.
    pub start_fetching: &'a dyn Fn(Weak<RemoteKeys>),
}

impl FilterContext<'_> {
    fn jwt(&self) -> JwtContext<'_> {
        JwtContext { resolve: self.resolve, remote_keys: self.remote_keys, start: self.start_fetching }
    }
}

/// The compiled filter chain.
#[derive(Debug, Default)]
pub struct Filters {
    chain: Vec<Link>,
    /// `istio.alpn`: the ALPN offered upstream.
    pub alpn: Option<AlpnOverride>,
}

/// A filter and its name, by which routes mean it.
#[derive(Debug)]
struct Link {
    name: Box<str>,
    filter: Filter,
}

#[derive(Debug)]
enum Filter {
    Jwt(Box<JwtFilter>),
    Rbac(RbacFilter),
    ExtAuthz(ExtAuthz),
    LocalRateLimit(LocalRateLimit, LimitCounters),
    Fault,
    Cors,
    PeerMetadata(PeerMetadata),
}

/// One RBAC filter: what decides and what only counts.
#[derive(Debug)]
pub struct RbacFilter {
    rules: Option<Engine>,
    shadow: Option<Shadow>,
}

/// Rules that decide nothing, and under which keys they tell later filters what they would have decided.
#[derive(Debug)]
struct Shadow {
    engine: Engine,
    policy: String,
    result: String,
}

impl RbacFilter {
    /// Compiles the rules.
    ///
    /// # Errors
    /// When a matcher cannot be compiled.
    pub fn compile(config: &Rbac) -> Result<Self, RbacError> {
        let compile = |rules: &Option<_>| rules.as_ref().map(Engine::compile).transpose();
        let prefix = &config.shadow_stat_prefix;
        let shadow = compile(&config.shadow_rules)?.map(|engine| Shadow {
            engine,
            policy: format!("{prefix}shadow_effective_policy_id"),
            result: format!("{prefix}shadow_engine_result"),
        });
        Ok(Self { rules: compile(&config.rules)?, shadow })
    }

    /// What the shadow rules would have decided, as dynamic metadata of [`RBAC_METADATA`].
    fn shadow(&self, context: &RequestContext<'_>) -> Option<Map<String, Value>> {
        let shadow = self.shadow.as_ref()?;
        let verdict = shadow.engine.evaluate(context);
        tracing::debug!(target: "rbac", allowed = verdict.allowed, policy = verdict.policy.as_deref(), "shadow rules");
        let mut told = Map::new();
        if let Some(policy) = &verdict.policy {
            told.insert(shadow.policy.clone(), Value::from(&**policy));
        }
        told.insert(shadow.result.clone(), Value::from(if verdict.allowed { "allowed" } else { "denied" }));
        Some(told)
    }

    /// The details of a denial; `None` lets the request pass.
    pub fn denies(&self, context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
        let verdict = self.rules.as_ref()?.evaluate(context);
        (!verdict.allowed).then(|| verdict.denied_details())
    }
}

/// What a route tells filters, compiled: its own words, then those of its virtual host, then those of the configuration.
#[derive(Debug, Default)]
pub struct RouteFilters(Box<[(Box<str>, Override)]>);

#[derive(Debug)]
enum Override {
    Disabled,
    Jwt(JwtPerRoute),
    Rbac(RbacFilter),
    ExtAuthz(ExtAuthzOverride),
    LocalRateLimit(LocalRateLimit),
}

impl Override {
    /// Adds what a less specific level says. Only context extensions add up.
    fn add(&mut self, farther: &FilterOverride) {
        if let (Self::ExtAuthz(nearer), FilterOverride::ExtAuthz(farther)) = (self, farther) {
            for (key, value) in &farther.context_extensions {
                nearer.context_extensions.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}

impl RouteFilters {
    /// Compiles the levels, the most specific first.
    ///
    /// # Errors
    /// When a rule cannot be compiled.
    pub fn compile(levels: [&FilterOverrides; 3]) -> Result<Self, FilterError> {
        let mut all: Vec<(Box<str>, Override)> = Vec::new();
        for (name, told) in levels.into_iter().flatten() {
            if let Some((_, nearer)) = all.iter_mut().find(|(known, _)| **known == **name) {
                nearer.add(told);
                continue;
            }
            let compiled = match told {
                FilterOverride::Disabled => Override::Disabled,
                FilterOverride::ExtAuthz(told) => Override::ExtAuthz((**told).clone()),
                FilterOverride::LocalRateLimit(limit) => {
                    Override::LocalRateLimit(LocalRateLimit::compile(limit).map_err(|error| FilterError::new(name, &error))?)
                }
                FilterOverride::Jwt(told) => Override::Jwt(told.clone()),
                FilterOverride::Rbac(rbac) => {
                    Override::Rbac(RbacFilter::compile(rbac).map_err(|error| FilterError::new(name, &error))?)
                }
            };
            all.push((name.as_str().into(), compiled));
        }
        Ok(Self(all.into()))
    }

    fn of(&self, name: &str) -> Option<&Override> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, told)| told)
    }
}

impl Filters {
    /// Compiles the chain.
    ///
    /// # Errors
    /// When a rule cannot be compiled: the listener is then refused, never served without its filter.
    pub fn compile(filters: &[HttpFilter], context: &FilterContext<'_>) -> Result<Self, FilterError> {
        let mut compiled = Self::default();
        for filter in filters {
            let (name, filter) = match filter {
                HttpFilter::JwtAuthn(config) => {
                    let counters = context.metrics.jwt_authn(context.stat_prefix, &config.stat_prefix);
                    let jwt = JwtFilter::compile(config, counters, &context.jwt())
                        .map_err(|error| FilterError::new(&config.name, &error))?;
                    (config.name.as_str(), Filter::Jwt(Box::new(jwt)))
                }
                HttpFilter::Rbac(config) => {
                    let rbac = RbacFilter::compile(config).map_err(|error| FilterError::new(&config.name, &error))?;
                    (config.name.as_str(), Filter::Rbac(rbac))
                }
                HttpFilter::ExtAuthz(config) => {
                    let counters = context.metrics.ext_authz(context.stat_prefix);
                    let authz = ExtAuthz::compile(config, context.resolve, counters)
                        .map_err(|error| FilterError::new(&config.name, &error))?;
                    (config.name.as_str(), Filter::ExtAuthz(authz))
                }
                HttpFilter::LocalRateLimit(config) => {
                    let limit = LocalRateLimit::compile(config).map_err(|error| FilterError::new(&config.name, &error))?;
                    let counters = context.metrics.local_rate_limit(&config.stat_prefix);
                    (config.name.as_str(), Filter::LocalRateLimit(limit, counters))
                }
                HttpFilter::Fault => ("envoy.filters.http.fault", Filter::Fault),
                HttpFilter::Cors => ("envoy.filters.http.cors", Filter::Cors),
                HttpFilter::PeerMetadata(config) => {
                    (config.name.as_str(), Filter::PeerMetadata(PeerMetadata::compile(config, context.local)))
                }
                HttpFilter::Alpn(alpn) => {
                    compiled.alpn = Some(alpn.clone());
                    continue;
                }
            };
            compiled.chain.push(Link { name: name.into(), filter });
        }
        Ok(compiled)
    }

    /// Runs the request through the chain, beginning with the filter numbered `from`.
    pub async fn request(&self, exchange: &mut Exchange, route: Option<&Route>, body: &mut RequestBody, from: usize) -> Verdict {
        for (index, link) in self.chain.iter().enumerate().skip(from) {
            let told = route.and_then(|route| route.filters.of(&link.name));
            if matches!(told, Some(Override::Disabled)) {
                continue;
            }
            let reply = match &link.filter {
                Filter::Jwt(jwt) => {
                    let told = if let Some(Override::Jwt(told)) = told { Some(told) } else { None };
                    match jwt.check(exchange, told).await {
                        jwt::Verdict::Pass { reroute: false } => None,
                        jwt::Verdict::Pass { reroute: true } => return Verdict::Reroute(index + 1),
                        jwt::Verdict::Refuse(reply) => Some(reply),
                    }
                }
                Filter::Rbac(rbac) => {
                    let rbac = if let Some(Override::Rbac(rbac)) = told { rbac } else { rbac };
                    check_rbac(rbac, exchange)
                }
                Filter::ExtAuthz(authz) => {
                    let told = if let Some(Override::ExtAuthz(told)) = told { Some(told) } else { None };
                    match Box::pin(authz.decide(exchange, body, told, index)).await {
                        Decision::Pass => None,
                        Decision::Reroute => return Verdict::Reroute(index + 1),
                        Decision::Reply(reply) => Some(reply),
                        Decision::Gone(kind) => return Verdict::Gone(kind),
                    }
                }
                Filter::LocalRateLimit(limit, counters) => {
                    let limit = if let Some(Override::LocalRateLimit(limit)) = told { limit } else { limit };
                    limit.count(exchange, index, counters)
                }
                Filter::Fault => match route.and_then(|route| route.fault.as_ref()) {
                    Some(config) => fault::inject(config, exchange).await,
                    None => None,
                },
                Filter::PeerMetadata(peer) => {
                    exchange.meet_caller(peer);
                    None
                }
                Filter::Cors => {
                    let policy = route.and_then(|route| route.cors.as_deref());
                    policy
                        .and_then(|policy| cors::preflight(policy, &exchange.request))
                        .map(|head| LocalReply::of_head(head, cors::DETAILS))
                }
            };
            if let Some(reply) = reply {
                return Verdict::Reply(reply);
            }
        }
        Verdict::Continue
    }

    /// Runs the response back through the chain.
    pub fn response(&self, exchange: &mut Exchange, route: Option<&Route>) {
        for (index, link) in self.chain.iter().enumerate().rev() {
            match &link.filter {
                Filter::Cors => {
                    if let Some(policy) = route.and_then(|route| route.cors.as_deref()) {
                        cors::actual(policy, &exchange.request, &mut exchange.response);
                    }
                }
                Filter::ExtAuthz(_) | Filter::LocalRateLimit(..) => {
                    for (_, writes) in exchange.pending.iter().filter(|(filter, _)| *filter == index) {
                        ext_authz::write_response(&mut exchange.response.headers, writes);
                    }
                }
                Filter::PeerMetadata(peer) => {
                    let told = route.and_then(|route| route.filters.of(&link.name));
                    if !matches!(told, Some(Override::Disabled)) {
                        exchange.meet_endpoint(peer);
                    }
                }
                Filter::Jwt(_) | Filter::Rbac(_) | Filter::Fault => {}
            }
        }
    }
}

fn check_rbac(rbac: &RbacFilter, exchange: &mut Exchange) -> Option<LocalReply> {
    let remote: IpAddr = exchange.info.remote.ip();
    let context = RequestContext {
        request: Some(&exchange.request),
        connection: &exchange.info.connection,
        remote,
        metadata: exchange.info.metadata.as_deref(),
    };
    let (shadow, denial) = (rbac.shadow(&context), rbac.denies(&context));
    if let Some(told) = shadow {
        exchange.info.metadata.get_or_insert_default().merge(RBAC_METADATA, told);
    }
    let details = denial?;
    Some(LocalReply::new(StatusCode::FORBIDDEN, &b"RBAC: access denied"[..], ResponseFlags::NONE, details))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_means_the_filter_of_its_name_and_the_nearest_one_counts() {
        let rbac = |name: &str| {
            let none = Rbac { name: name.into(), rules: None, shadow_rules: None, shadow_stat_prefix: String::new() };
            (name.to_owned(), FilterOverride::Rbac(none.into()))
        };
        let off = |name: &str| (name.to_owned(), FilterOverride::Disabled);
        let (route, host, config) = (vec![rbac("a")], vec![off("a"), off("b")], vec![rbac("b"), off("c")]);
        let filters = RouteFilters::compile([&route, &host, &config]).unwrap();
        assert!(matches!(filters.of("a"), Some(Override::Rbac(_))));
        assert!(matches!(filters.of("b"), Some(Override::Disabled)));
        assert!(matches!(filters.of("c"), Some(Override::Disabled)));
        assert!(filters.of("envoy.filters.http.rbac").is_none());
    }
}
