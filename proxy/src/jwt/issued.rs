//! Tokens that are verified outside of a filter: those by which a workload proves who it is.

use std::time::Duration;

use serde_json::{Map, Value};

use super::algorithm::{Algorithm, HMAC};
use super::keys::KeySet;
use super::status::Status;
use super::token::Token;

/// A key set, for public keys alone: what is signed with a shared secret proves nothing to a third.
#[derive(Debug)]
pub struct Jwks(KeySet);

/// A token that is well formed. Nothing in it can be believed before [`Self::verify`]; what it says about itself before that is good
/// for finding the keys.
pub struct UnverifiedToken(Token);

impl std::fmt::Debug for UnverifiedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnverifiedToken { <hidden> }")
    }
}

/// Why a token is not accepted, in Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.text())]
pub struct TokenRefused(Status);

impl TokenRefused {
    /// Whether no key of the set is for the token: the issuer may have others by now.
    pub fn no_key(self) -> bool {
        self.0 == Status::NoMatchingKey
    }
}

impl Jwks {
    /// Compiles a key set.
    ///
    /// # Errors
    /// Envoy's words for what is wrong, when no key can be used.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        KeySet::parse(text).map(Self)
    }
}

impl UnverifiedToken {
    /// Takes a token apart.
    ///
    /// # Errors
    /// When it is none, or its algorithm is unknown or works with a shared secret.
    pub fn parse(text: &str) -> Result<Self, TokenRefused> {
        let token = Token::parse(text.as_bytes()).map_err(TokenRefused)?;
        let is_shared = |algorithm: Algorithm| HMAC.iter().any(|(shared, _)| *shared == algorithm);
        if is_shared(token.algorithm) { Err(TokenRefused(Status::UnknownAlg)) } else { Ok(Self(token)) }
    }

    /// `iss`; empty when missing.
    pub fn issuer(&self) -> &str {
        self.0.issuer()
    }

    /// The claims, if one of `keys` has signed them, `audience` is among those that they are for, and the time is now. A token
    /// without an end is refused.
    ///
    /// `now` is in seconds since 1970; `skew` is how far the clocks may be apart.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self, keys: &Jwks, audience: &str, now: u64, skew: Duration) -> Result<&Map<String, Value>, TokenRefused> {
        keys.0.verify(&self.0).map_err(TokenRefused)?;
        if self.0.expires.is_none() {
            return Err(TokenRefused(Status::Expired));
        }
        self.0.check_time(now, skew.as_secs()).map_err(TokenRefused)?;
        if !self.0.audiences.iter().any(|own| own == audience) {
            return Err(TokenRefused(Status::AudienceNotAllowed));
        }
        Ok(&self.0.payload)
    }
}
