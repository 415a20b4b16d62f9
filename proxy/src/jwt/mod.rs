//! JSON Web Tokens (Envoy `envoy.filters.http.jwt_authn`): what RequestAuthentication becomes.
//!
//! Read `token` for how a token is taken apart, `keys` for how its signature is verified, `extract` for where tokens are,
//! `provider` for what a token must say and what becomes of it, `requirement` for what a request needs. Everything fails closed:
//! a token is refused when anything in it or about its keys is not as it must be.
//!
//! Where Envoy lets pass what it should not, this does not: a token with a blank in it or with empty parts, an `exp` of 0, RSA keys
//! of less than 2048 bits, a bad token beside a good one where none is needed (`allow_missing`), claims written undecoded into a path.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/jwt_authn_filter>

mod algorithm;
mod cache;
mod extract;
mod issued;
pub(crate) mod json;
mod keys;
mod provider;
mod remote;
mod requirement;
mod status;
#[cfg(test)]
mod tests;
mod token;

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use metrics::Counter;
use serde_json::{Map, Value};

use self::extract::Locations;
pub use self::issued::{Jwks, TokenRefused, UnverifiedToken};
use self::keys::KeySet;
use self::provider::{Keys, Provider};
pub use self::remote::{RemoteKeySets, RemoteKeys};
use self::requirement::{Attempt, Interrupt, Requirement};
use self::status::Status;
use crate::config::{self, JwtAuthn, JwtPerRoute, JwtRuleRequirement};
use crate::flags::ResponseFlags;
use crate::http::exchange::Exchange;
use crate::http::head::{HeaderName, Known, RequestHead};
use crate::http::local_reply::LocalReply;
use crate::http::route::{Condition, Resolve};

/// Name under which claims are found in the dynamic metadata.
pub const FILTER_NAME: &str = "envoy.filters.http.jwt_authn";

/// Bytes of the path that a refusal shows, as in Envoy.
const MAX_REALM_PATH: usize = 256;

/// Whether tokens can be verified with this key set.
///
/// # Errors
/// Envoy's words for what is wrong.
pub fn check_jwks(text: &str) -> Result<(), &'static str> {
    KeySet::parse(text.as_bytes()).map(drop)
}

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JwtError(String);

/// What the filter counts (`http.<stat_prefix>.jwt_authn.*` of Envoy).
#[derive(Clone, Debug)]
pub struct Counters {
    /// Requests that passed.
    pub allowed: Counter,
    /// Requests that were refused.
    pub denied: Counter,
    /// Preflights that passed unasked.
    pub cors_preflight_bypassed: Counter,
    /// Key sets fetched.
    pub jwks_fetch_success: Counter,
    /// Key sets that could not be fetched.
    pub jwks_fetch_failed: Counter,
    /// Tokens that had been verified before.
    pub cache_hit: Counter,
    /// Tokens that had not.
    pub cache_miss: Counter,
}

/// What a filter with remote keys is compiled with.
pub struct JwtContext<'a> {
    /// Finds the clusters that are asked for keys.
    pub resolve: Resolve<'a>,
    /// Keys that are in use already.
    pub remote_keys: &'a RemoteKeySets,
    /// Runs `RemoteKeys::run` on a worker.
    pub start: &'a dyn Fn(Weak<RemoteKeys>),
}

/// A compiled [`JwtAuthn`].
#[derive(Debug)]
pub struct JwtFilter {
    providers: Providers,
    rules: Vec<(Condition, Rule)>,
    requirements: Vec<(Box<str>, Requirement)>,
    /// Headers that nobody but this filter may set.
    own_headers: Vec<HeaderName>,
    bypass_cors_preflight: bool,
    strip_failure_response: bool,
    /// Some keys are fetched.
    remote: bool,
    counters: Counters,
}

#[derive(Debug)]
enum Rule {
    Pass,
    Own(Requirement),
    Named(usize),
}

/// What the filter has done to a request.
pub enum Verdict {
    /// It passes.
    Pass {
        /// The route must be chosen anew.
        reroute: bool,
    },
    /// It is refused.
    Refuse(LocalReply),
}

/// A provider and the keys that were fetched for a request; `None` when that has failed.
type Fetch = (usize, Option<Arc<KeySet>>);

/// What came of a walk over requirements.
struct Walked {
    outcome: requirement::Outcome,
    metadata: Map<String, Value>,
    reroute: bool,
    original_path: Option<Vec<u8>>,
}

/// Providers in the order of their names.
#[derive(Debug)]
struct Providers {
    list: Vec<Provider>,
    names: Vec<Box<str>>,
    /// The places of all of them.
    locations: Locations,
}

impl Providers {
    fn compile(config: &JwtAuthn, counters: &Counters, context: &JwtContext<'_>) -> Result<Self, JwtError> {
        let mut locations = Locations::default();
        config.providers.values().for_each(|provider| locations.add(provider));
        let compile = |(name, provider): (&String, &config::JwtProvider)| Provider::compile(name, provider, counters, context);
        let list = config.providers.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { list, names: config.providers.keys().map(|name| name.as_str().into()).collect(), locations })
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| **known == *name)
    }

    /// The first provider of an issuer, else the first one of any.
    fn of_issuer(&self, issuer: &str) -> Option<usize> {
        let of = |issuer: &str| self.list.iter().position(|provider| provider.config.issuer == issuer);
        of(issuer).or_else(|| of(""))
    }

    fn locations(&self) -> &Locations {
        &self.locations
    }
}

impl Deref for Providers {
    type Target = [Provider];

    fn deref(&self) -> &[Provider] {
        &self.list
    }
}

impl JwtFilter {
    /// Compiles the filter.
    ///
    /// # Errors
    /// For keys that are none, for names of providers and requirements that do not exist, and for conditions of rules that cannot
    /// be compiled.
    pub fn compile(config: &JwtAuthn, counters: Counters, context: &JwtContext<'_>) -> Result<Self, JwtError> {
        let providers = Providers::compile(config, &counters, context)?;
        let remote = providers.iter().any(|provider| matches!(provider.keys, Keys::Remote(_)));
        let mut requirements: Vec<(Box<str>, Requirement)> = Vec::new();
        for (name, requirement) in &config.requirement_map {
            requirements.push((name.as_str().into(), Requirement::compile(requirement, &providers)?));
        }
        let mut rules = Vec::new();
        for rule in &config.rules {
            let condition = Condition::compile(&rule.matches).map_err(|error| JwtError(error.to_string()))?;
            let requires = match &rule.requires {
                JwtRuleRequirement::None => Rule::Pass,
                JwtRuleRequirement::Inline(requirement) => Rule::Own(Requirement::compile(requirement, &providers)?),
                JwtRuleRequirement::Named(name) => Rule::Named(
                    requirements
                        .iter()
                        .position(|(known, _)| **known == **name)
                        .ok_or_else(|| wrong_name(name, &requirements))?,
                ),
            };
            rules.push((condition, requires));
        }
        let mut own_headers: Vec<HeaderName> = Vec::new();
        for name in providers.iter().flat_map(Provider::own_headers) {
            if !own_headers.contains(name) {
                own_headers.push(name.clone());
            }
        }
        let (bypass_cors_preflight, strip_failure_response) = (config.bypass_cors_preflight, config.strip_failure_response);
        Ok(Self { providers, rules, requirements, own_headers, bypass_cors_preflight, strip_failure_response, remote, counters })
    }

    /// Judges a request; `told` is what its route says about it.
    pub async fn check(&self, exchange: &mut Exchange, told: Option<&JwtPerRoute>) -> Verdict {
        let verdict = self.judge(exchange, told).await;
        match &verdict {
            Verdict::Pass { .. } => self.counters.allowed.increment(1),
            Verdict::Refuse(_) => self.counters.denied.increment(1),
        }
        verdict
    }

    async fn judge(&self, exchange: &mut Exchange, told: Option<&JwtPerRoute>) -> Verdict {
        let head = &mut exchange.request;
        // Whatever is asked of the request: nobody else may say what only a verified token can.
        let spoofed = self.own_headers.iter().fold(false, |any, name| head.headers.remove_named(name) | any);
        let reroute = spoofed && self.providers.iter().any(|provider| provider.config.clear_route_cache);
        if self.bypass_cors_preflight && is_preflight(head) {
            self.counters.cors_preflight_bypassed.increment(1);
            return Verdict::Pass { reroute };
        }
        let requirement = match self.requirement(head, told) {
            Ok(Some(requirement)) => requirement,
            Ok(None) => return Verdict::Pass { reroute },
            Err(refusal) => return Verdict::Refuse(refusal),
        };
        let mut walked = if self.remote {
            // Only waiting for keys needs a future of its own.
            match self.try_walk(requirement, &exchange.request, &[]) {
                Ok((head, walked)) => {
                    exchange.request = head;
                    walked
                }
                Err(missing) => Box::pin(self.walk_with_fetches(requirement, exchange, missing)).await,
            }
        } else {
            self.walk(requirement, &mut exchange.request, &[])
        };
        if !walked.metadata.is_empty() {
            exchange.info.metadata.get_or_insert_default().merge(FILTER_NAME, std::mem::take(&mut walked.metadata));
        }
        match walked.outcome {
            Ok(Ok(())) => Verdict::Pass { reroute: reroute | walked.reroute },
            Ok(Err(status)) => Verdict::Refuse(self.refusal(status, &exchange.request, walked.original_path.as_deref())),
            // What is asked for has been fetched by now, or has failed to be.
            Err(Interrupt::Fetch(_)) => {
                Verdict::Refuse(self.refusal(Status::FetchFailed, &exchange.request, walked.original_path.as_deref()))
            }
            Err(Interrupt::BadHeaderValue(name)) => Verdict::Refuse(bad_header_value(&name)),
        }
    }

    fn walk(&self, requirement: &Requirement, head: &mut RequestHead, fetched: &[Fetch]) -> Walked {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut attempt = Attempt {
            head,
            providers: &self.providers,
            counters: &self.counters,
            fetched,
            now,
            metadata: Map::new(),
            reroute: false,
            original_path: None,
        };
        let outcome = requirement.check(&mut attempt);
        let Attempt { metadata, reroute, original_path, .. } = attempt;
        Walked { outcome, metadata, reroute, original_path }
    }

    /// Walks with a copy of the head, as a walk that finds keys missing must begin anew; the error is whose keys those are.
    fn try_walk(&self, requirement: &Requirement, head: &RequestHead, fetched: &[Fetch]) -> Result<(RequestHead, Walked), usize> {
        let mut head = head.clone();
        let walked = self.walk(requirement, &mut head, fetched);
        match walked.outcome {
            Err(Interrupt::Fetch(missing)) => Err(missing),
            _ => Ok((head, walked)),
        }
    }

    async fn walk_with_fetches(&self, requirement: &Requirement, exchange: &mut Exchange, missing: usize) -> Walked {
        let pool = exchange.connection.worker.pool.clone();
        let mut missing = missing;
        let mut fetched: Vec<Fetch> = Vec::new();
        // Every round fetches the keys of a provider that no round before has asked.
        loop {
            let keys = match &self.providers[missing].keys {
                Keys::Local(keys) => Some(keys.clone()),
                Keys::Remote(remote) => remote.fetch(&pool).await,
            };
            fetched.push((missing, keys));
            match self.try_walk(requirement, &exchange.request, &fetched) {
                Ok((head, walked)) => {
                    exchange.request = head;
                    return walked;
                }
                Err(next) => missing = next,
            }
        }
    }

    /// What is asked of a request; the error is the answer to one whose route asks for what does not exist.
    fn requirement(&self, head: &RequestHead, told: Option<&JwtPerRoute>) -> Result<Option<&Requirement>, LocalReply> {
        match told {
            Some(JwtPerRoute::Disabled) => return Ok(None),
            Some(JwtPerRoute::Requirement(name)) => {
                let found = self.requirements.iter().find(|(known, _)| **known == **name);
                return match found {
                    Some((_, requirement)) => Ok(Some(requirement)),
                    None => Err(self.unknown_requirement(name)),
                };
            }
            None => {}
        }
        let path = head.path_without_query();
        let rule = self.rules.iter().find(|(condition, _)| condition.matches(head, path));
        Ok(match rule.map(|(_, requires)| requires) {
            None | Some(Rule::Pass) => None,
            Some(Rule::Own(requirement)) => Some(requirement),
            Some(Rule::Named(index)) => self.requirements.get(*index).map(|(_, requirement)| requirement),
        })
    }

    fn unknown_requirement(&self, name: &str) -> LocalReply {
        let reason = wrong_name(name, &self.requirements).0;
        let body = if self.strip_failure_response { String::new() } else { format!("Failed JWT authentication: {reason}") };
        LocalReply::new(StatusCode::FORBIDDEN, body.into_bytes(), ResponseFlags::NONE, details(&reason))
    }

    fn refusal(&self, status: Status, head: &RequestHead, original_path: Option<&[u8]>) -> LocalReply {
        let details = details(status.text());
        if self.strip_failure_response {
            return LocalReply::new(status.http(), &b""[..], ResponseFlags::NONE, details);
        }
        let mut reply = LocalReply::new(status.http(), status.text().as_bytes(), ResponseFlags::NONE, details);
        let path = original_path.unwrap_or(head.path());
        let path = &path[..path.len().min(MAX_REALM_PATH)];
        let scheme = head.scheme.as_str().as_bytes();
        let mut challenge = [b"Bearer realm=\"", scheme, b"://", head.authority(), path, b"\""].concat();
        if status != Status::Missing {
            challenge.extend_from_slice(b", error=\"invalid_token\"");
        }
        reply.headers.push(b"www-authenticate", &challenge);
        reply
    }
}

fn wrong_name(name: &str, requirements: &[(Box<str>, Requirement)]) -> JwtError {
    let known: Vec<&str> = requirements.iter().map(|(name, _)| &**name).collect();
    JwtError(format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(",")))
}

/// Response code details: one word, so that a log line keeps its columns.
fn details(reason: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", reason.replace(' ', "_"))
}

/// As Envoy's router answers when a filter has made a header that cannot be sent.
fn bad_header_value(name: &HeaderName) -> LocalReply {
    let reason = format!("invalid header value for: {}", name.as_str());
    let details = format!("filter_removed_required_request_headers{{{}}}", reason.replace(' ', "_"));
    LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, reason.into_bytes(), ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, details)
}

/// Asks a server whether a request from another origin would be answered; carries no credentials.
fn is_preflight(head: &RequestHead) -> bool {
    let says = |id| head.headers.get(id).is_some_and(|value| !value.is_empty());
    head.method == Method::OPTIONS && says(Known::Origin) && says(Known::AccessControlRequestMethod)
}
