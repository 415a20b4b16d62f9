//! A plane's view of a JSON Web Token: the issuers that it knows (JwtIssuer), and whose token it is.
//!
//! Tokens are verified as those of requests are (`skiff_proxy::jwt`), with public keys alone. Everything fails closed: without keys no
//! token is accepted, whoever has issued it.

mod issuer;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use skiff_proxy::jwt::{TokenRefused, UnverifiedToken};

pub use self::issuer::{IssuerError, JsonPath, JwtIssuer};
use self::keys::Keys;
use super::identity::JwtIdentity;
use crate::fetch::Client;
use crate::identity::Clock;

/// Bytes of the longest token.
const MAX_TOKEN: usize = 16 * 1024;
/// How far the clocks may be apart.
const SKEW: Duration = Duration::from_secs(60);
/// Characters of a subject, attributes of a token, values of an attribute, characters of a value.
const MAX_SUBJECT: usize = 1024;
const MAX_ATTRIBUTES: usize = 64;
const MAX_VALUES: usize = 256;
const MAX_VALUE: usize = 1024;

/// A token that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedJwt {
    /// Whose it is.
    pub identity: JwtIdentity,
    /// `shortName` of its issuer, for the names of objects.
    pub issuer_short_name: Option<String>,
}

/// Why a token is not accepted. Never holds it.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Longer than any that a workload has.
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    Size,
    /// Form, algorithm, signature, audience or time.
    #[error("the token is refused: {0}")]
    Refused(#[from] TokenRefused),
    /// Nobody has said that it is to be trusted.
    #[error("no JwtIssuer is configured for the issuer {0:?} of the token")]
    UnknownIssuer(String),
    /// Whose is it?
    #[error("sub of the token: expected 1 to {MAX_SUBJECT} characters")]
    Subject,
    /// The issuer's keys are not there. Worth another try.
    #[error("no keys of the issuer {issuer:?}: {reason}")]
    Keys {
        /// As configured.
        issuer: String,
        /// Why.
        reason: String,
    },
}

impl JwtError {
    /// Whether another try may have more luck.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Keys { .. })
    }
}

/// Verifies tokens.
#[derive(Debug)]
pub struct JwtVerifier {
    issuers: Vec<(JwtIssuer, Keys)>,
    audience: String,
    clock: Clock,
}

impl JwtVerifier {
    /// A verifier of tokens for `audience`, the plane's UID. Of two issuers with the same `issuer` the first counts.
    pub fn new(issuers: Vec<JwtIssuer>, audience: String, client: &Client, clock: Clock) -> Self {
        let issuers = issuers.into_iter().map(|issuer| {
            let keys = Keys::new(&issuer, client.clone());
            (issuer, keys)
        });
        Self { issuers: issuers.collect(), audience, clock }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When it does not hold, or its issuer's keys cannot be had.
    pub async fn verify(&self, token: &str) -> Result<VerifiedJwt, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Size);
        }
        let token = UnverifiedToken::parse(token)?;
        let known = self.issuers.iter().find(|(issuer, _)| issuer.issuer == token.issuer());
        let (issuer, keys) = known.ok_or_else(|| JwtError::UnknownIssuer(token.issuer().chars().take(256).collect()))?;
        let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let failed = |reason: String| JwtError::Keys { issuer: issuer.issuer.clone(), reason };
        let mut current = keys.current().await.map_err(failed)?;
        let mut claims = token.verify(&current, &self.audience, now, SKEW);
        if claims.as_ref().is_err_and(|refused| refused.no_key()) {
            // The issuer may have new keys.
            current = keys.newer(&current).await.map_err(failed)?;
            claims = token.verify(&current, &self.audience, now, SKEW);
        }
        let claims = claims?;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        if !matches!(subject.chars().count(), 1..=MAX_SUBJECT) {
            return Err(JwtError::Subject);
        }
        let attributes = issuer.attributes.as_ref().map_or_else(BTreeMap::new, |path| attributes(path, claims));
        let identity = JwtIdentity { issuer: issuer.issuer.clone(), subject: subject.to_owned(), attributes };
        Ok(VerifiedJwt { identity, issuer_short_name: issuer.short_name.clone() })
    }
}

/// The members of the object at `path` that are scalars or lists of scalars. What is beyond the bounds is left out, which no rule
/// matches.
fn attributes(path: &JsonPath, claims: &Map<String, Value>) -> BTreeMap<String, Vec<String>> {
    let Some(Value::Object(object)) = path.find(claims) else { return BTreeMap::new() };
    let attribute = |(name, value): (&String, &Value)| {
        let values = match value {
            Value::Array(list) => list.iter().take(MAX_VALUES).filter_map(scalar).collect(),
            value => vec![scalar(value)?],
        };
        (name.len() <= MAX_VALUE).then(|| (name.clone(), values))
    };
    object.iter().filter_map(attribute).take(MAX_ATTRIBUTES).collect()
}

fn scalar(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (text.len() <= MAX_VALUE).then_some(text)
}
