//! The HTTP filters of a connection manager, in their order.

use std::borrow::Cow;
use std::net::IpAddr;

use http::StatusCode;

use super::exchange::Exchange;
use super::local_reply::LocalReply;
use super::route::Route;
use super::{cors, fault};
use crate::config::{AlpnOverride, HttpFilter, Rbac};
use crate::flags::ResponseFlags;
use crate::rbac::{Engine, RbacError, RequestContext};

/// What a filter decided.
pub enum Verdict {
    /// On to the next one.
    Continue,
    /// Answer here.
    Reply(LocalReply),
}

/// The compiled filter chain.
#[derive(Debug, Default)]
pub struct Filters {
    chain: Vec<Filter>,
    /// `istio.alpn`: the ALPN offered upstream.
    pub alpn: Option<AlpnOverride>,
}

#[derive(Debug)]
enum Filter {
    Rbac(RbacFilter),
    Fault,
    Cors,
}

/// One RBAC filter: what decides and what only counts.
#[derive(Debug)]
pub struct RbacFilter {
    rules: Option<Engine>,
    shadow: Option<Engine>,
}

impl RbacFilter {
    /// Compiles the rules.
    ///
    /// # Errors
    /// When a matcher cannot be compiled.
    pub fn compile(config: &Rbac) -> Result<Self, RbacError> {
        let compile = |rules: &Option<_>| rules.as_ref().map(Engine::compile).transpose();
        Ok(Self { rules: compile(&config.rules)?, shadow: compile(&config.shadow_rules)? })
    }

    /// The details of a denial; `None` lets the request pass.
    pub fn denies(&self, context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
        if let Some(shadow) = &self.shadow {
            let verdict = shadow.evaluate(context);
            tracing::debug!(target: "rbac", allowed = verdict.allowed, policy = verdict.policy.as_deref(), "shadow rules");
        }
        let verdict = self.rules.as_ref()?.evaluate(context);
        (!verdict.allowed).then(|| verdict.denied_details())
    }
}

impl Filters {
    /// Compiles the chain.
    ///
    /// # Errors
    /// When a rule cannot be compiled: the listener is then refused, never served without its filter.
    pub fn compile(filters: &[HttpFilter]) -> Result<Self, RbacError> {
        let mut compiled = Self::default();
        for filter in filters {
            match filter {
                HttpFilter::Rbac(config) => compiled.chain.push(Filter::Rbac(RbacFilter::compile(config)?)),
                HttpFilter::Fault => compiled.chain.push(Filter::Fault),
                HttpFilter::Cors => compiled.chain.push(Filter::Cors),
                HttpFilter::Alpn(alpn) => compiled.alpn = Some(alpn.clone()),
            }
        }
        Ok(compiled)
    }

    /// Runs the request through the chain.
    pub async fn request(&self, exchange: &mut Exchange, route: Option<&Route>) -> Verdict {
        for filter in &self.chain {
            let reply = match filter {
                Filter::Rbac(rbac) => check_rbac(route.and_then(|route| route.rbac.as_deref()).unwrap_or(rbac), exchange),
                Filter::Fault => match route.and_then(|route| route.fault.as_ref()) {
                    Some(config) => fault::inject(config, exchange).await,
                    None => None,
                },
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
        for filter in self.chain.iter().rev() {
            if let (Filter::Cors, Some(policy)) = (filter, route.and_then(|route| route.cors.as_deref())) {
                cors::actual(policy, &exchange.request, &mut exchange.response);
            }
        }
    }
}

fn check_rbac(rbac: &RbacFilter, exchange: &Exchange) -> Option<LocalReply> {
    let remote: IpAddr = exchange.info.remote.ip();
    let context =
        RequestContext { request: Some(&exchange.request), connection: &exchange.info.connection, remote, metadata: None };
    let details = rbac.denies(&context)?;
    Some(LocalReply::new(StatusCode::FORBIDDEN, &b"RBAC: access denied"[..], ResponseFlags::NONE, details))
}
