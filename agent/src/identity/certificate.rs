//! What the authority returned, judged before anything uses it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use skiff_proxy::config::SpiffeId;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::connection::crypto_provider;
use super::key::WorkloadKey;

/// More certificates than any sane chain and trust bundle hold together.
const MAX_CERTIFICATES: usize = 64;

/// A verified workload certificate with its key and the trust roots that came with it.
#[derive(Clone)]
pub struct WorkloadCertificate {
    /// Leaf first, then intermediates; without roots.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: Arc<PrivateKeyDer<'static>>,
    /// Whom to trust: the mesh's root certificates.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whose certificate it is.
    pub id: SpiffeId,
    /// Serial number, hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Why a returned certificate is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not the shape istiod returns.
    #[error("the authority returned {0}; expected PEM: the leaf, intermediates, and the trust roots as last element")]
    Shape(&'static str),
    /// A certificate cannot be parsed.
    #[error("the authority returned a certificate that cannot be parsed: {0}")]
    Malformed(String),
    /// It is for another key than the one we made.
    #[error("the authority signed another public key than the one of our request")]
    WrongKey,
    /// It names somebody else.
    #[error(
        "the authority issued a certificate for {found}, expected {expected}; check the service account of the token and the trust domain"
    )]
    WrongIdentity {
        /// Whom it names.
        found: String,
        /// Whom it has to name.
        expected: SpiffeId,
    },
    /// Its validity starts in the future.
    #[error(
        "the certificate is not yet valid: it starts at {not_before} and this machine's clock says {now}; set the clock (NTP), we keep trying"
    )]
    NotYetValid {
        /// Start of validity.
        not_before: String,
        /// Our clock.
        now: String,
    },
    /// Its validity is over.
    #[error("the certificate ended at {not_after} and this machine's clock says {now}; check both clocks (NTP), we keep trying")]
    Expired {
        /// End of validity.
        not_after: String,
        /// Our clock.
        now: String,
    },
    /// It does not lead to a returned root, or must not be used for TLS on both sides.
    #[error("the certificate does not verify against the returned roots: {0}")]
    Untrusted(String),
}

impl WorkloadCertificate {
    /// Takes over `cert_chain` of a `CreateCertificate` response if it is what was asked for: our key, `id` as the only
    /// URI SAN, valid at `now`, and a chain that leads to one of the returned roots and may serve both sides of mutual
    /// TLS.
    ///
    /// istiod returns `[leaf, root]`, or `[leaf, intermediate, root, root]` with a plugged-in authority: everything but the
    /// last element is the chain, the last is the bundle of roots. Roots are dropped from the chain: peers know them.
    ///
    /// # Errors
    /// For anything else.
    pub fn verify(cert_chain: &[String], key: &WorkloadKey, id: &SpiffeId, now: SystemTime) -> Result<Self, CertificateError> {
        Self::verify_for(cert_chain, &key.public_key(), key.private_key(), id, now)
    }

    fn verify_for(
        cert_chain: &[String],
        public_key: &[u8],
        key: Arc<PrivateKeyDer<'static>>,
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let (mut chain, roots) = split_chain(cert_chain)?;
        chain.retain(|certificate| !roots.contains(certificate));
        let leaf_der = chain.first().ok_or(CertificateError::Shape("only roots"))?;
        let leaf = parse(leaf_der)?;

        if leaf.public_key().raw != public_key {
            return Err(CertificateError::WrongKey);
        }
        check_identity(&leaf, id)?;
        check_validity(&leaf, now)?;
        check_path(&chain, &roots, now)?;
        Self::from_parts(chain, key, roots)
    }

    /// What somebody whom we trust has put together already: nothing but its form is judged here. Roots in the chain are dropped.
    ///
    /// # Errors
    /// When there is no certificate, or one that names no SPIFFE id.
    pub(super) fn from_parts(
        mut chain: Vec<CertificateDer<'static>>,
        key: Arc<PrivateKeyDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CertificateError> {
        chain.retain(|certificate| !roots.contains(certificate));
        let leaf = parse(chain.first().ok_or(CertificateError::Shape("only roots"))?)?;
        let id = sole_spiffe_id(&leaf).ok_or(CertificateError::Shape("a certificate without SPIFFE id"))?;
        let validity = leaf.validity();
        let (not_before, not_after) = (system_time(validity.not_before), system_time(validity.not_after));
        Ok(Self { key, id, serial: HEXLOWER.encode(&leaf.serial.to_bytes_be()), not_before, not_after, chain, roots })
    }

    /// Whether its validity covers `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

// By hand, so that the key can never reach a log.
impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate").field("id", &self.id).field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// The SPIFFE id of a certificate that has exactly one URI SAN; `None` when it has none, several, or one that is no
/// Istio identity.
pub fn sole_spiffe_id(certificate: &X509Certificate<'_>) -> Option<SpiffeId> {
    match uri_sans(certificate)?.as_slice() {
        [uri] => uri.parse().ok(),
        _ => None,
    }
}

/// `None` when the extension is there twice or cannot be parsed.
fn uri_sans<'a>(certificate: &'a X509Certificate<'_>) -> Option<Vec<&'a str>> {
    let Some(extension) = certificate.subject_alternative_name().ok()? else { return Some(Vec::new()) };
    let uris = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    Some(uris.collect())
}

type Certificates = Vec<CertificateDer<'static>>;

fn split_chain(cert_chain: &[String]) -> Result<(Certificates, Certificates), CertificateError> {
    let (roots, chain) = cert_chain.split_last().ok_or(CertificateError::Shape("no certificate"))?;
    if chain.is_empty() {
        return Err(CertificateError::Shape("one element without roots"));
    }
    let chain = chain.iter().map(|pem| parse_pem(pem)).collect::<Result<Vec<_>, _>>()?.concat();
    let roots = parse_pem(roots)?;
    if chain.len() + roots.len() > MAX_CERTIFICATES {
        return Err(CertificateError::Shape("more than 64 certificates"));
    }
    Ok((chain, roots))
}

fn parse_pem(pem: &str) -> Result<Certificates, CertificateError> {
    let certificates: Certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| CertificateError::Malformed(error.to_string()))?;
    if certificates.is_empty() { Err(CertificateError::Shape("an element without certificate")) } else { Ok(certificates) }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Malformed("bytes after its end".to_owned())),
        Err(error) => Err(CertificateError::Malformed(error.to_string())),
    }
}

fn check_identity(leaf: &X509Certificate<'_>, expected: &SpiffeId) -> Result<(), CertificateError> {
    if sole_spiffe_id(leaf).as_ref() == Some(expected) {
        return Ok(());
    }
    let found = match uri_sans(leaf) {
        None => "an unreadable subject alternative name".to_owned(),
        Some(uris) if uris.is_empty() => "nobody (no URI SAN)".to_owned(),
        Some(uris) => format!("{uris:?}"),
    };
    Err(CertificateError::WrongIdentity { found, expected: expected.clone() })
}

fn check_validity(leaf: &X509Certificate<'_>, now: SystemTime) -> Result<(), CertificateError> {
    let validity = leaf.validity();
    if now < system_time(validity.not_before) {
        return Err(CertificateError::NotYetValid { not_before: validity.not_before.to_string(), now: show(now) });
    }
    if now > system_time(validity.not_after) {
        return Err(CertificateError::Expired { not_after: validity.not_after.to_string(), now: show(now) });
    }
    Ok(())
}

fn check_path(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>], now: SystemTime) -> Result<(), CertificateError> {
    let untrusted = |error: webpki::Error| CertificateError::Untrusted(error.to_string());
    let (leaf, intermediates) = chain.split_first().ok_or(CertificateError::Shape("only roots"))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(untrusted)?;
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>().map_err(untrusted)?;
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        leaf.verify_for_usage(algorithms, &anchors, intermediates, time, usage, None, None).map_err(untrusted)?;
    }
    Ok(())
}

/// Times before 1970 become 1970: nothing we trust ends before that.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
}

fn show(time: SystemTime) -> String {
    ASN1Time::from(time::OffsetDateTime::from(time)).to_string()
}

#[cfg(test)]
mod tests;
