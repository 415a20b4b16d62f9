//! The mesh's certificate authority: a self-signed root that signs workload certificates as istiod does.

use std::fmt;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use skiff_proxy::config::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::state::{StateError, StateFolder};
use crate::identity::{Clock, crypto_provider};

/// Key and certificate are one file, so that a crash can never separate them.
const CA_FILE: &str = "ca.pem";
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates start this much before they are issued, for peers whose clock is late.
const BACKDATE: Duration = Duration::from_secs(120);
const MAX_CSR_BYTES: usize = 16 * 1024;
/// 2026-01-01: a clock before this was never set.
const EARLIEST_SANE_CLOCK: u64 = 1_767_225_600;

/// Signs workload certificates with a root that is kept in a [`StateFolder`].
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    root_ends: OffsetDateTime,
    default_lifetime: Duration,
    max_lifetime: Duration,
    clock: Clock,
}

/// A freshly signed certificate.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// PEM, as in Istio's response: the leaf, then the root as last element.
    pub chain: Vec<String>,
    /// Serial number, hex.
    pub serial: String,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Why nothing is signed. Texts are istiod's, as clients know them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The request is no PEM signing request.
    #[error("CSR signing error (certificate signing request is not properly encoded)")]
    Encoding,
    /// The request is not signed by its own key, or that key is of a kind we do not sign.
    #[error("CSR signing error ({0})")]
    Key(String),
    /// A longer lifetime than allowed.
    #[error("CSR signing error (requested TTL {} is greater than the max allowed TTL {})", go_duration(*.requested), go_duration(*.max))]
    Lifetime {
        /// What was asked for.
        requested: Duration,
        /// What we give at most.
        max: Duration,
    },
    /// The signature failed.
    #[error("CSR signing error (internal: {0})")]
    Internal(String),
}

impl CertificateAuthority {
    /// Loads the root from `state`, or makes one for ten years and keeps it.
    ///
    /// # Errors
    /// When the file is corrupt, readable by others or cannot be written, or when a new root is needed and the clock is
    /// not set.
    pub fn load_or_create(
        state: &StateFolder,
        trust_domain: &TrustDomain,
        default_lifetime: Duration,
        max_lifetime: Duration,
        clock: Clock,
    ) -> Result<Self, StateError> {
        let pem = match state.read(CA_FILE)? {
            Some(pem) => pem,
            None => {
                let pem = new_root(trust_domain, &clock)?;
                state.write(CA_FILE, &pem)?;
                pem
            }
        };
        let corrupt = |reason: String| state.corrupt(CA_FILE, reason);
        let (key, root) = parse_root(&pem).map_err(corrupt)?;
        let (_, parsed) = X509Certificate::from_der(&root).map_err(|error| corrupt(error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(corrupt("key and certificate do not belong together".to_owned()));
        }
        let root_ends = parsed.validity().not_after.to_datetime();
        if root_ends <= OffsetDateTime::from(clock.now()) {
            return Err(corrupt(format!("the root ended at {root_ends}")));
        }
        let root_pem = pem_certificate(&pem).ok_or_else(|| corrupt("no certificate".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|error| corrupt(error.to_string()))?;
        Ok(Self { issuer, root_pem, root_ends, root, default_lifetime, max_lifetime, clock })
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Signs the key of the request for `id`, the caller's own identity: what the request says about names, usages or
    /// subject is ignored, as istiod does. `lifetime` is in seconds; zero or less takes the default.
    ///
    /// Keys are P-256, P-384, Ed25519, or RSA of at least 2048 bits (istiod signs RSA 1024, too; we do not).
    ///
    /// # Errors
    /// For a bad request or a lifetime above the maximum.
    pub fn issue(&self, csr_pem: &str, id: &SpiffeId, lifetime: i64) -> Result<IssuedCertificate, IssueError> {
        let lifetime = match u64::try_from(lifetime) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds),
            _ => self.default_lifetime,
        };
        if lifetime > self.max_lifetime {
            return Err(IssueError::Lifetime { requested: lifetime, max: self.max_lifetime });
        }
        let public_key = verified_key(csr_pem)?;
        let internal = |error: rcgen::Error| IssueError::Internal(error.to_string());
        let uri = id.to_string().try_into().map_err(internal)?;
        self.sign(&public_key, vec![SanType::URI(uri)], lifetime).map_err(internal)
    }

    /// Signs a certificate for a server of the plane itself.
    pub(super) fn issue_server(
        &self,
        key: &KeyPair,
        names: Vec<SanType>,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, rcgen::Error> {
        self.sign(key, names, lifetime)
    }

    fn sign(&self, key: &impl PublicKeyData, names: Vec<SanType>, lifetime: Duration) -> Result<IssuedCertificate, rcgen::Error> {
        let now = self.clock.now();
        // A leaf that outlives its root would fail at an hour that nobody expects.
        let not_after = OffsetDateTime::from(now + lifetime).min(self.root_ends);
        let serial = random_serial()?;
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = not_after;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(IssuedCertificate {
            chain: vec![leaf.pem(), self.root_pem.clone()],
            serial: HEXLOWER.encode(&serial),
            not_after: not_after.into(),
        })
    }
}

// By hand, so that the key can never reach a log.
impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("root_ends", &self.root_ends).finish_non_exhaustive()
    }
}

fn new_root(trust_domain: &TrustDomain, clock: &Clock) -> Result<String, StateError> {
    if clock.since_epoch().as_secs() < EARLIEST_SANE_CLOCK {
        return Err(StateError::Clock(clock.since_epoch().as_secs()));
    }
    let make = || {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from(clock.now() - BACKDATE);
        params.not_after = OffsetDateTime::from(clock.now() + ROOT_LIFETIME);
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        params.distinguished_name.push(DnType::CommonName, "skiff root CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?;
        Ok(key.serialize_pem() + &root.pem())
    };
    make().map_err(|error: rcgen::Error| StateError::Crypto(error.to_string()))
}

fn parse_root(pem: &str) -> Result<(KeyPair, CertificateDer<'static>), String> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("private key: {error}"))?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| format!("private key: {error}"))?;
    let root = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("certificate: {error}"))?;
    Ok((key, root))
}

/// The certificate's part of key and certificate.
fn pem_certificate(pem: &str) -> Option<String> {
    pem.find("-----BEGIN CERTIFICATE-----").map(|start| pem[start..].to_owned())
}

/// The public key of a signing request that its own key has signed.
fn verified_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, IssueError> {
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(IssueError::Encoding);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(|_| IssueError::Encoding)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| IssueError::Encoding)?;
    if !rest.is_empty() {
        return Err(IssueError::Encoding);
    }
    request.verify_signature().map_err(|error| IssueError::Key(format!("signature of the request: {error}")))?;
    SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|error| IssueError::Key(format!("public key: {error}")))
}

/// 127 random bits: positive, as X.509 wants it.
fn random_serial() -> Result<[u8; 16], rcgen::Error> {
    let mut serial = [0; 16];
    crypto_provider().secure_random.fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    // Neither negative nor with a leading zero byte, so that text and DER agree.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// A duration as Go prints it (`2184h0m0s`), because istiod's texts hold it.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match seconds {
        0..60 => format!("{rest}s"),
        60..3600 => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests;
