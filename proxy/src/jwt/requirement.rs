//! What a request needs, and whether it has it: one synchronous walk over a tree of requirements, in Envoy's order, which takes
//! verified tokens out of the request and puts their claims into it as it goes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::extract::Found;
use super::keys::KeySet;
use super::provider::{Audiences, Keys, Provider};
use super::status::Status;
use super::token::Token;
use super::{Counters, JwtError, Providers};
use crate::config::JwtRequirement;
use crate::http::head::{HeaderName, RequestHead};

/// Tokens of one place list that are looked at; a request with more is refused.
const MAX_TOKENS: usize = 16;

/// A compiled [`JwtRequirement`].
#[derive(Debug)]
pub(super) enum Requirement {
    Provider {
        index: usize,
        audiences: Option<Audiences>,
    },
    Any {
        list: Vec<Requirement>,
        allow: Allow,
    },
    All(Vec<Requirement>),
    /// Tokens of all providers.
    Optional(Allow),
    Nothing,
}

/// What may be wrong all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Allow {
    Nothing,
    Missing,
    MissingOrFailed,
}

/// Why a walk ended before it was done.
pub(super) enum Interrupt {
    /// The keys of this provider are needed first.
    Fetch(usize),
    /// A verified claim does not fit into its header.
    BadHeaderValue(HeaderName),
}

pub(super) type Outcome = Result<Result<(), Status>, Interrupt>;

/// One request on its walk.
pub(super) struct Attempt<'a> {
    pub(super) head: &'a mut RequestHead,
    pub(super) providers: &'a Providers,
    pub(super) counters: &'a Counters,
    /// What came of the fetches that were made for this request, by provider.
    pub(super) fetched: &'a [(usize, Option<Arc<KeySet>>)],
    /// Seconds since 1970.
    pub(super) now: u64,
    /// What verified tokens say, for later filters.
    pub(super) metadata: Map<String, Value>,
    /// The route must be chosen again.
    pub(super) reroute: bool,
    /// The path before a token was taken out of it.
    pub(super) original_path: Option<Vec<u8>>,
}

impl Requirement {
    pub(super) fn compile(config: &JwtRequirement, providers: &Providers) -> Result<Self, JwtError> {
        let each = |list: &[JwtRequirement]| list.iter().map(|one| Self::compile(one, providers)).collect::<Result<Vec<_>, _>>();
        Ok(match config {
            JwtRequirement::Provider { name, audiences } => Self::Provider {
                index: providers
                    .index(name)
                    .ok_or_else(|| JwtError(format!("Required provider ['{name}'] is not configured.")))?,
                audiences: (!audiences.is_empty()).then(|| Audiences::new(audiences)),
            },
            JwtRequirement::Any(list) => {
                let mut compiled = each(list)?;
                let allow = compiled.iter().filter_map(Self::optional).max().unwrap_or(Allow::Nothing);
                compiled.retain(|requirement| requirement.optional().is_none());
                if compiled.is_empty() { Self::Optional(allow) } else { Self::Any { list: compiled, allow } }
            }
            JwtRequirement::All(list) => Self::All(each(list)?),
            JwtRequirement::AllowMissing => Self::Optional(Allow::Missing),
            JwtRequirement::AllowMissingOrFailed => Self::Optional(Allow::MissingOrFailed),
            JwtRequirement::Nothing => Self::Nothing,
        })
    }

    fn optional(&self) -> Option<Allow> {
        match self {
            Self::Optional(allow) => Some(*allow),
            _ => None,
        }
    }

    /// Whether the request of `attempt` meets the requirement.
    pub(super) fn check(&self, attempt: &mut Attempt<'_>) -> Outcome {
        match self {
            Self::Nothing => Ok(Ok(())),
            Self::Provider { index, audiences } => attempt.by_provider(*index, audiences.as_ref()),
            Self::Optional(allow) => attempt.by_anybody(*allow),
            Self::All(list) => {
                for requirement in list {
                    if let Err(status) = requirement.check(attempt)? {
                        return Ok(Err(status));
                    }
                }
                Ok(Ok(()))
            }
            Self::Any { list, allow } => {
                let mut last = Status::Missing;
                for requirement in list {
                    let Err(status) = requirement.check(attempt)? else { return Ok(Ok(())) };
                    // A token of another issuer says more than none, and one that is wrong says more than both.
                    if !matches!(status, Status::Missing | Status::UnknownIssuer) || last == Status::Missing {
                        last = status;
                    }
                }
                Ok(allow.judge(Err(last)))
            }
        }
    }
}

impl Allow {
    fn judge(self, outcome: Result<(), Status>) -> Result<(), Status> {
        match (self, outcome) {
            (Self::MissingOrFailed, _) | (Self::Missing, Err(Status::Missing)) => Ok(()),
            (_, outcome) => outcome,
        }
    }
}

impl Attempt<'_> {
    /// Every token at the places of the provider must be one of its own: a good one beside a bad one could be the one that is
    /// verified while the application takes the other.
    fn by_provider(&mut self, index: usize, audiences: Option<&Audiences>) -> Outcome {
        let providers = self.providers;
        let provider = &providers[index];
        self.reroute |= provider.sanitize(self.head) && provider.config.clear_route_cache;
        let found = provider.locations.find(self.head);
        if found.is_empty() {
            return Ok(Err(Status::Missing));
        }
        if found.len() > MAX_TOKENS {
            return Ok(Err(Status::MultipleTokens));
        }
        // Envoy begins with the last one.
        for token in found.iter().rev() {
            if let Err(status) = self.token(token, Some(index), audiences)? {
                return Ok(Err(status));
            }
        }
        Ok(Ok(()))
    }

    /// Tokens of all providers, each verified by the one of its issuer.
    fn by_anybody(&mut self, allow: Allow) -> Outcome {
        let providers = self.providers;
        for provider in &**providers {
            self.reroute |= provider.sanitize(self.head) && provider.config.clear_route_cache;
        }
        let found = providers.locations().find(self.head);
        if found.is_empty() {
            return Ok(allow.judge(Err(Status::Missing)));
        }
        if found.len() > MAX_TOKENS {
            return Ok(allow.judge(Err(Status::MultipleTokens)));
        }
        for token in found.iter().rev() {
            let outcome = self.token(token, None, None)?;
            // Unlike Envoy, where the token that is looked at last decides.
            if outcome.is_err() && allow != Allow::MissingOrFailed {
                return Ok(allow.judge(outcome));
            }
        }
        Ok(Ok(()))
    }

    fn note_failure(&mut self, provider: usize, status: Status) {
        if let Some(key) = &self.providers[provider].config.failed_status_in_metadata {
            self.metadata.insert(key.clone(), json!({ "code": status.code(), "message": status.text() }));
        }
    }

    /// Judges one token, and tells later filters why it is refused.
    fn token(&mut self, found: &Found<'_>, provider: Option<usize>, audiences: Option<&Audiences>) -> Outcome {
        let mut judge = provider;
        let outcome = self.verify(found, &mut judge, audiences)?;
        if let (Err(status), Some(index)) = (outcome, judge) {
            self.note_failure(index, status);
        }
        Ok(outcome)
    }

    /// Verifies one token; only then is anything done with what it says. `judge` becomes the provider of its issuer, where none is
    /// given.
    fn verify(&mut self, found: &Found<'_>, judge: &mut Option<usize>, audiences: Option<&Audiences>) -> Outcome {
        let provider = *judge;
        let providers = self.providers;
        let cached = provider.and_then(|index| self.remembered(&providers[index], &found.text));
        let known = cached.is_some();
        let token = match cached.map_or_else(|| Token::parse(&found.text).map(Arc::new), Ok) {
            Ok(token) => token,
            Err(status) => return Ok(Err(status)),
        };
        if !found.may_be_of(token.issuer()) {
            return Ok(Err(Status::UnknownIssuer));
        }
        let Some(index) = provider.or_else(|| providers.of_issuer(token.issuer())) else {
            return Ok(Err(Status::UnknownIssuer));
        };
        *judge = Some(index);
        let provider = &providers[index];
        if let Err(status) = provider.check(&token, audiences, self.now) {
            return Ok(Err(status));
        }
        if !known {
            let keys = match self.keys(index)? {
                Some(keys) => keys,
                None => return Ok(Err(Status::FetchFailed)),
            };
            if let Err(status) = keys.verify(&token) {
                return Ok(Err(status));
            }
            if let Some(cache) = &provider.cache {
                cache.insert(&found.text, token.clone(), keys);
            }
        }
        self.accept(provider, &token, found)
    }

    /// The keys of a provider; `None` when they could not be fetched.
    fn keys(&self, index: usize) -> Result<Option<Arc<KeySet>>, Interrupt> {
        match &self.providers[index].keys {
            Keys::Local(keys) => Ok(Some(keys.clone())),
            Keys::Remote(keys) => match self.fetched.iter().find(|(known, _)| *known == index) {
                Some((_, fetched)) => Ok(fetched.clone()),
                None => keys.fresh().map(Some).ok_or(Interrupt::Fetch(index)),
            },
        }
    }

    fn remembered(&self, provider: &Provider, text: &[u8]) -> Option<Arc<Token>> {
        let keys = || match &provider.keys {
            Keys::Local(keys) => Some(keys.clone()),
            Keys::Remote(keys) => keys.fresh(),
        };
        let token = provider.cache.as_ref().and_then(|cache| cache.get(text, &keys()?));
        let counter = if token.is_some() { &self.counters.cache_hit } else { &self.counters.cache_miss };
        counter.increment(1);
        token
    }

    fn accept(&mut self, provider: &Provider, token: &Token, found: &Found<'_>) -> Outcome {
        provider.note(token, &mut self.metadata);
        match provider.forward_claims(token, self.head) {
            Ok(reroute) => self.reroute |= reroute,
            Err(bad) => return Err(Interrupt::BadHeaderValue(bad.0)),
        }
        if !provider.config.forward
            && let Some(path) = found.remove(self.head)
        {
            self.original_path.get_or_insert(path);
        }
        Ok(Ok(()))
    }
}
