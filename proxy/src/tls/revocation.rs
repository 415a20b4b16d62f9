//! Revoked certificates (Envoy `crl`).

use std::sync::Arc;

use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

/// Revocation lists, ready for handshakes.
pub(super) type Lists = Arc<[CertRevocationList<'static>]>;

/// Asks the lists about the certificates of a chain. An authority without a list of its own, or with one that has expired, vouches
/// for nobody, as in Envoy.
#[derive(Debug)]
pub(super) struct Revocations {
    lists: Lists,
    leaf_only: bool,
    roots: Arc<RootCertStore>,
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

/// Which side is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

impl Revocations {
    /// `leaf_only`: whoever signed the leaf is not asked about.
    pub(super) fn new(
        lists: Lists,
        leaf_only: bool,
        roots: Arc<RootCertStore>,
        algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
    ) -> Self {
        Self { lists, leaf_only, roots, algorithms }
    }

    /// Verifies the chain once more, with the lists.
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let lists: Vec<_> = self.lists.iter().collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else {
            return Err(CertificateError::UnknownRevocationStatus.into());
        };
        let depth = if self.leaf_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let options = options
            .with_depth(depth)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        let usage = match peer {
            Peer::Client => KeyUsage::client_auth(),
            Peer::Server => KeyUsage::server_auth(),
        };
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| refusal(&error))?;
        let verified = leaf.verify_for_usage(self.algorithms, &self.roots.roots, intermediates, now, usage, Some(options), None);
        verified.map(drop).map_err(|error| refusal(&error))
    }
}

/// The chain itself has been verified before, so that what is left are words about lists.
fn refusal(error: &webpki::Error) -> rustls::Error {
    let reason = match error {
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        _ => CertificateError::UnknownRevocationStatus,
    };
    reason.into()
}
