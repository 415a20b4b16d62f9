//! The RBAC engine (Envoy `envoy.filters.http.rbac` and `envoy.filters.network.rbac`): what AuthorizationPolicy becomes.
//!
//! Rules are compiled once per listener; a request is then decided without look-ups by name and, but for odd host names and
//! repeated headers, without allocation.
//!
//! Where a value can be read in two ways, a rule takes the reading that denies: DENY policies and negations inside ALLOW
//! policies match on any reading, ALLOW policies and negations inside DENY policies on the plain one. `Doubt` says which.
//! The readings are: lines of a repeated header each or joined (CVE-2026-26308), the authority with and without port,
//! trailing dot and case, a value that is not UTF-8 against a regular expression (CVE-2026-73552), and which of a
//! certificate's names is its principal.

mod header;
mod rule;
mod template;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use self::rule::Rule;
pub(crate) use self::rule::metadata_matches;
use crate::config::{RbacAction, RbacRules, StringMatch, StringMatcher};
use crate::http::head::RequestHead;
use crate::stream_info::ConnectionInfo;

/// What a decision is made on.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext<'a> {
    /// The request, its path normalised; `None` on TCP, where no condition on a request matches.
    pub request: Option<&'a RequestHead>,
    /// The downstream connection.
    pub connection: &'a ConnectionInfo,
    /// The client, from x-forwarded-for where that is trusted.
    pub remote: IpAddr,
    /// What filters before this one found out; `None` is empty.
    pub metadata: Option<&'a Metadata>,
}

/// The outcome for one request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passes.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<Arc<str>>,
}

/// Compiled [`RbacRules`].
#[derive(Debug)]
pub struct Engine {
    action: RbacAction,
    policies: Vec<Policy>,
}

#[derive(Debug)]
struct Policy {
    name: Arc<str>,
    permissions: Rule,
    principals: Rule,
}

/// Why rules are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy {policy}: {reason}")]
pub struct RbacError {
    /// The policy.
    pub policy: String,
    /// What is wrong, naming the field and what was expected.
    pub reason: String,
}

impl Engine {
    /// Compiles `rules`.
    ///
    /// # Errors
    /// For a condition that Envoy refuses too: an empty list of conditions, an empty port range, a malformed URI template.
    pub fn compile(rules: &RbacRules) -> Result<Self, RbacError> {
        let compiler = rule::Compiler { action: rules.action };
        let compile = |(name, policy): (&String, &crate::config::Policy)| {
            let error = |reason| RbacError { policy: name.clone(), reason };
            Ok(Policy {
                name: name.as_str().into(),
                permissions: compiler.permissions(&policy.permissions).map_err(error)?,
                principals: compiler.principals(&policy.principals).map_err(error)?,
            })
        };
        Ok(Self { action: rules.action, policies: rules.policies.iter().map(compile).collect::<Result<_, _>>()? })
    }

    /// Decides. With the action LOG everything passes and `policy` is what to record.
    pub fn evaluate(&self, context: &RequestContext<'_>) -> Verdict {
        let matched =
            self.policies.iter().find(|policy| policy.permissions.matches(context) && policy.principals.matches(context));
        let allowed = match self.action {
            RbacAction::Allow => matched.is_some(),
            RbacAction::Deny => matched.is_none(),
            RbacAction::Log => true,
        };
        Verdict { allowed, policy: matched.map(|policy| Arc::clone(&policy.name)) }
    }
}

impl Verdict {
    /// Response code details or connection termination details of a refusal, as Envoy writes them.
    pub fn denied_details(&self) -> Cow<'static, str> {
        match &self.policy {
            None => Cow::Borrowed("rbac_access_denied_matched_policy[none]"),
            Some(name) => format!("rbac_access_denied_matched_policy[{}]", name.replace(char::is_whitespace, "_")).into(),
        }
    }
}

/// Dynamic metadata: what filters tell later ones about a request (Envoy `config.core.v3.Metadata`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(Vec<(Box<str>, Value)>);

impl Metadata {
    /// Replaces what `filter` has said.
    pub fn set(&mut self, filter: &str, value: Value) {
        match self.0.iter_mut().find(|(name, _)| **name == *filter) {
            Some((_, old)) => *old = value,
            None => self.0.push((filter.into(), value)),
        }
    }

    /// Adds to what `filter` has said; a key that it had used gets the new value.
    pub fn merge(&mut self, filter: &str, more: Map<String, Value>) {
        match self.0.iter_mut().find(|(name, _)| **name == *filter) {
            Some((_, Value::Object(old))) => old.extend(more),
            Some((_, old)) => *old = Value::Object(more),
            None => self.0.push((filter.into(), Value::Object(more))),
        }
    }

    /// What each filter has said.
    pub fn filters(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// What `filter` said at `path`, keys from the root.
    pub fn get(&self, filter: &str, path: &[String]) -> Option<&Value> {
        let (_, root) = self.0.iter().find(|(name, _)| **name == *filter)?;
        path.iter().try_fold(root, |value, key| value.get(key))
    }
}

/// What a condition answers when a value can be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// A match denies.
    Match,
    /// A match admits.
    Miss,
}

impl Doubt {
    fn flipped(self) -> Self {
        match self {
            Self::Match => Self::Miss,
            Self::Miss => Self::Match,
        }
    }

    fn flipped_if(self, flip: bool) -> Self {
        if flip { self.flipped() } else { self }
    }

    /// Regular expressions are about characters, so that `.` passes over a byte that is none: such a value is in doubt.
    fn matches(self, matcher: &StringMatcher, value: &[u8]) -> bool {
        if matches!(matcher.pattern, StringMatch::Regex(_)) && std::str::from_utf8(value).is_err() {
            return self == Self::Match;
        }
        matcher.matches(value)
    }
}

#[cfg(test)]
mod tests;
