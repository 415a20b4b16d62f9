//! The private key of the workload and its signing request.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::PrivateKeyDer;
use skiff_proxy::config::SpiffeId;

/// A P-256 key that lives in memory only; a new one is made for each certificate, as Istio's agent does.
pub struct WorkloadKey(KeyPair);

/// Why a key or its signing request could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the workload's key or signing request: {0}")]
pub struct KeyError(#[from] rcgen::Error);

impl WorkloadKey {
    /// Makes a key.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?))
    }

    /// The signing request for `id` as PEM: empty subject and the id as critical URI SAN, as pilot-agent sends it.
    ///
    /// # Errors
    /// When the request cannot be signed.
    pub fn signing_request(&self, id: &SpiffeId) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    /// The public half (DER, SubjectPublicKeyInfo).
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The private half, for TLS.
    pub fn private_key(&self) -> Arc<PrivateKeyDer<'static>> {
        Arc::new(PrivateKeyDer::Pkcs8(self.0.serialize_der().into()))
    }
}

// By hand, so that the key can never reach a log.
impl fmt::Debug for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadKey { <hidden> }")
    }
}
