//! Workload tokens: JWTs in the shape of Kubernetes service-account tokens for Istio.

use std::fmt;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use skiff_proxy::config::{SpiffeId, TrustDomain};

use super::state::{StateError, StateFolder};
use crate::identity::{Clock, Token};

/// The audience of a workload token, as istiod expects it.
pub const AUDIENCE: &str = "istio-ca";

const KEY_FILE: &str = "token-key.pem";
const SUBJECT_PREFIX: &str = "system:serviceaccount:";
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Issues and verifies workload tokens (ES256 only), with a key of its own.
pub struct TokenIssuer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    issuer: String,
    trust_domain: TrustDomain,
    lifetime: Duration,
    clock: Clock,
}

/// Why a token is not issued or not accepted. Never holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Signature, algorithm, issuer, audience, or form.
    #[error("token refused: {0}")]
    Invalid(String),
    /// Its time is over.
    #[error("token expired {0:?} ago")]
    Expired(Duration),
    /// Its time has not come: the clocks differ.
    #[error("token is valid only in {0:?}")]
    NotYetValid(Duration),
    /// Namespace or service account cannot be part of an identity.
    #[error("no workload identity: {0}")]
    Subject(String),
    /// It could not be signed.
    #[error("token could not be signed")]
    Signing,
}

#[derive(Serialize)]
struct NewClaims<'a> {
    iss: &'a str,
    aud: [&'static str; 1],
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    nbf: Option<u64>,
}

impl TokenIssuer {
    /// Loads the signing key from `state`, or makes and keeps one.
    ///
    /// # Errors
    /// When the key file is corrupt, readable by others, or cannot be written.
    pub fn load_or_create(
        state: &StateFolder,
        issuer: String,
        trust_domain: TrustDomain,
        lifetime: Duration,
        clock: Clock,
    ) -> Result<Self, StateError> {
        let crypto = |error: rcgen::Error| StateError::Crypto(error.to_string());
        let key = match state.read(KEY_FILE)? {
            Some(pem) => parse_key(&pem).map_err(|reason| state.corrupt(KEY_FILE, reason))?,
            None => {
                let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
                state.write(KEY_FILE, &key.serialize_pem())?;
                key
            }
        };
        let encoding = EncodingKey::from_ec_der(key.serialized_der());
        let decoding = DecodingKey::from_ec_der(key.der_bytes());
        Ok(Self { encoding, decoding, issuer, trust_domain, lifetime, clock })
    }

    /// How long its tokens live.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// A token for the service account `service_account` in `namespace`.
    ///
    /// # Errors
    /// When these names cannot be part of a SPIFFE id.
    pub fn issue(&self, namespace: &str, service_account: &str) -> Result<Token, TokenError> {
        let id = self.identity(namespace, service_account)?;
        let now = self.clock.since_epoch().as_secs();
        let claims = NewClaims {
            iss: &self.issuer,
            aud: [AUDIENCE],
            sub: format!("{SUBJECT_PREFIX}{}:{}", id.namespace, id.service_account),
            iat: now,
            nbf: now,
            exp: now.saturating_add(self.lifetime.as_secs()),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.encoding);
        token.map(|token| Token::new(&token)).map_err(|_| TokenError::Signing)
    }

    /// Whose token it is, if it is one of ours, for the certificate authority, and its time is now.
    ///
    /// # Errors
    /// For any other; without leeway, as both ends of the time are ours.
    pub fn verify(&self, token: &str) -> Result<SpiffeId, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid("too long".to_owned()));
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&self.issuer]);
        // Judged below by our clock, where jsonwebtoken would take the system's.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|error| TokenError::Invalid(error.to_string()))?
            .claims;
        let now = self.clock.since_epoch().as_secs();
        if now >= claims.exp {
            return Err(TokenError::Expired(Duration::from_secs(now - claims.exp)));
        }
        if let Some(early) = claims.nbf.and_then(|start| start.checked_sub(now)).filter(|early| *early > 0) {
            return Err(TokenError::NotYetValid(Duration::from_secs(early)));
        }
        let subject = || TokenError::Subject("sub is not system:serviceaccount:<namespace>:<service account>".to_owned());
        let names = claims.sub.strip_prefix(SUBJECT_PREFIX).and_then(|names| names.split_once(':')).ok_or_else(subject)?;
        self.identity(names.0, names.1)
    }

    fn identity(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, TokenError> {
        let id = format!("spiffe://{}/ns/{namespace}/sa/{service_account}", self.trust_domain);
        id.parse().map_err(|error: skiff_proxy::config::SpiffeIdError| TokenError::Subject(error.to_string()))
    }
}

pub(super) fn parse_key(pem: &str) -> Result<KeyPair, String> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())
}

// By hand, so that the key can never reach a log.
impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuer").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
