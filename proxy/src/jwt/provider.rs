//! A compiled provider: what a token must say, and what becomes of one that says it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Map, Value};

use super::cache::TokenCache;
use super::extract::Locations;
use super::json;
use super::keys::KeySet;
use super::remote::RemoteKeys;
use super::status::Status;
use super::token::Token;
use super::{Counters, JwtContext, JwtError};
use crate::config::{self, Jwks, JwtProvider};
use crate::http::head::{HeaderName, RequestHead};

/// Bytes of a key set.
pub(super) const MAX_JWKS: usize = 1024 * 1024;

/// Compiled [`JwtProvider`].
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) config: JwtProvider,
    pub(super) keys: Keys,
    pub(super) locations: Locations,
    pub(super) cache: Option<TokenCache>,
    audiences: Audiences,
    payload_header: Option<HeaderName>,
    claim_headers: Vec<(HeaderName, Vec<String>)>,
}

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Keys {
    Local(Arc<KeySet>),
    Remote(Arc<RemoteKeys>),
}

/// Audiences that are let in; none lets in all.
#[derive(Debug)]
pub(super) struct Audiences(Vec<Box<str>>);

impl Audiences {
    pub(super) fn new(list: &[String]) -> Self {
        Self(list.iter().map(|audience| plain(audience).into()).collect())
    }

    fn allow(&self, token: &[String]) -> bool {
        self.0.is_empty() || token.iter().any(|audience| self.0.iter().any(|known| **known == *plain(audience)))
    }
}

/// An audience without scheme and final slash.
fn plain(audience: &str) -> &str {
    let name = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    name.strip_suffix('/').unwrap_or(name)
}

/// A claim that no header can carry.
pub(super) struct BadHeaderValue(pub(super) HeaderName);

impl Provider {
    pub(super) fn compile(
        name: &str,
        config: &JwtProvider,
        counters: &Counters,
        context: &JwtContext<'_>,
    ) -> Result<Self, JwtError> {
        let keys = match &config.jwks {
            Jwks::Local(jwks) => Keys::Local(Arc::new(local_keys(name, jwks.0.as_bytes())?)),
            Jwks::File(path) => {
                let text = read_jwks(path)
                    .map_err(|error| JwtError(format!("Provider '{name}': local_jwks.filename {}: {error}", path.display())))?;
                Keys::Local(Arc::new(local_keys(name, &text)?))
            }
            Jwks::Remote(remote) => {
                let cluster = (context.resolve)(&remote.cluster);
                Keys::Remote(context.remote_keys.get(remote, cluster, counters, context.start))
            }
        };
        let header = |text: &str| {
            let valid = http::HeaderName::from_bytes(text.as_bytes()).is_ok();
            let reserved = matches!(text.to_ascii_lowercase().as_str(), "host" | "content-length" | "transfer-encoding");
            if !valid || reserved {
                return Err(JwtError(format!("Provider '{name}': {text:?} is no header that a claim can go into")));
            }
            Ok(HeaderName::new(text))
        };
        let claim = |claim: &config::ClaimToHeader| Ok((header(&claim.header)?, claim.claim.clone()));
        let mut locations = Locations::default();
        locations.add(config);
        Ok(Self {
            keys,
            locations,
            cache: config.cache.map(TokenCache::new),
            audiences: Audiences::new(&config.audiences),
            payload_header: config.forward_payload_header.as_deref().map(header).transpose()?,
            claim_headers: config.claim_to_headers.iter().map(claim).collect::<Result<_, _>>()?,
            config: config.clone(),
        })
    }

    /// Headers that only this filter may set.
    pub(super) fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().chain(self.claim_headers.iter().map(|(name, _)| name))
    }

    /// Removes what a caller has put where verified claims go; whether there was anything.
    pub(super) fn sanitize(&self, head: &mut RequestHead) -> bool {
        self.own_headers().fold(false, |any, name| head.headers.remove_named(name) | any)
    }

    /// What can be judged without keys. `audiences` of a requirement take the place of the provider's.
    pub(super) fn check(&self, token: &Token, audiences: Option<&Audiences>, now: u64) -> Result<(), Status> {
        token.check_time(now, self.config.clock_skew.as_secs())?;
        if !audiences.unwrap_or(&self.audiences).allow(&token.audiences) {
            return Err(Status::AudienceNotAllowed);
        }
        if self.config.subjects.as_ref().is_some_and(|subjects| !subjects.matches(token.subject().as_bytes())) {
            return Err(Status::VerificationFails);
        }
        let near = match (self.config.max_lifetime, token.expires) {
            (Some(max), Some(expires)) => Duration::from_secs(expires.saturating_sub(now)) < max,
            (Some(_), None) => false,
            (None, expires) => !self.config.require_expiration || expires.is_some(),
        };
        if near { Ok(()) } else { Err(Status::VerificationFails) }
    }

    /// Puts what a verified token says into headers; whether that may lead to another route.
    pub(super) fn forward_claims(&self, token: &Token, head: &mut RequestHead) -> Result<bool, BadHeaderValue> {
        if let Some(name) = &self.payload_header {
            if self.config.pad_forward_payload_header {
                head.headers.push(name.as_str().as_bytes(), token.padded_payload().as_bytes());
            } else {
                head.headers.push(name.as_str().as_bytes(), token.payload_text.as_bytes());
            }
        }
        let mut added = false;
        for (name, path) in &self.claim_headers {
            let Some(value) = claim(&token.payload, path).and_then(header_value) else { continue };
            // A line feed in a claim would be a header of the issuer's choice.
            if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
                return Err(BadHeaderValue(name.clone()));
            }
            head.headers.push(name.as_str().as_bytes(), &value);
            added = true;
        }
        Ok(self.config.clear_route_cache && (added || self.config.payload_in_metadata.is_some()))
    }

    /// Tells later filters and the access log what a verified token says.
    pub(super) fn note(&self, token: &Token, metadata: &mut Map<String, Value>) {
        if let Some(key) = &self.config.header_in_metadata {
            metadata.insert(key.clone(), Value::Object(token.header.clone()));
        }
        if let Some(key) = &self.config.payload_in_metadata {
            let mut payload = token.payload.clone();
            for claim in &self.config.space_delimited_claims {
                if let Some(Value::String(words)) = payload.get_mut(claim)
                    && !words.is_empty()
                {
                    let words = words.split(' ').filter(|word| !word.is_empty()).map(Into::into).collect();
                    payload.insert(claim.clone(), Value::Array(words));
                }
            }
            metadata.insert(key.clone(), Value::Object(payload));
        }
    }
}

fn local_keys(name: &str, text: &[u8]) -> Result<KeySet, JwtError> {
    let wrong = |reason| JwtError(format!("Provider '{name}' in jwt_authn config has invalid local jwks: {reason}"));
    KeySet::parse(text).map_err(wrong)
}

fn read_jwks(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_JWKS as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MAX_JWKS { Err(io::Error::other("more than 1 MiB")) } else { Ok(text) }
}

fn claim<'p>(payload: &'p Map<String, Value>, path: &[String]) -> Option<&'p Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(payload.get(first)?, |value, key| value.get(key))
}

/// A claim as a header has it: numbers that are whole and positive as such, others with six digits, lists and objects as JSON in
/// base64. Empty values make no header.
fn header_value(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.as_bytes().to_vec()).filter(|text| !text.is_empty()),
        Value::Bool(flag) => Some(flag.to_string().into_bytes()),
        Value::Number(number) => Some(decimal(number.as_f64().unwrap_or_default()).into_bytes()),
        Value::Array(_) | Value::Object(_) => {
            let mut text = Vec::new();
            json::write(value, &mut text);
            Some(base64::engine::general_purpose::STANDARD.encode(text).into_bytes())
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn decimal(value: f64) -> String {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    if (0.0..LIMIT).contains(&value) && value.fract() == 0.0 { (value as u64).to_string() } else { format!("{value:.6}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn audiences_are_compared_without_scheme_and_slash() {
        let allowed = Audiences::new(&["https://aud.example/".to_owned(), "plain".to_owned()]);
        for good in ["https://aud.example", "http://aud.example/", "aud.example", "plain", "https://plain/"] {
            assert!(allowed.allow(&[good.to_owned()]), "{good}");
        }
        assert!(allowed.allow(&["x".to_owned(), "plain".to_owned()]));
        assert!(!allowed.allow(&["other".to_owned()]) && !allowed.allow(&[]));
        assert!(Audiences::new(&[]).allow(&[]));
    }

    #[test]
    fn claims_as_headers() {
        // Recorded from Envoy 1.40.
        for (value, expected) in [
            (json!("alice"), Some("alice")),
            (json!(""), None),
            (json!(null), None),
            (json!(true), Some("true")),
            (json!(1), Some("1")),
            (json!(1.5), Some("1.500000")),
            (json!(-3), Some("-3.000000")),
            (json!(1e21), Some("1000000000000000000000.000000")),
            (json!(12_345_678_901_234_567_890_u64), Some("12345678901234567168")),
            (json!(0.1), Some("0.100000")),
            (json!(["a", "b"]), Some("WyJhIiwiYiJd")),
            (json!({"d": "e"}), Some("eyJkIjoiZSJ9")),
        ] {
            assert_eq!(header_value(&value).map(|text| String::from_utf8(text).unwrap()).as_deref(), expected, "{value}");
        }
    }
}
