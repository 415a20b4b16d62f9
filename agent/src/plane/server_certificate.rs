//! The plane's own server certificate, signed by its own root and renewed while it runs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::ca::CertificateAuthority;
use crate::identity::{Clock, crypto_provider};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Gives rustls the certificate in force.
pub(super) struct ServerCertificate {
    names: Vec<SanType>,
    current: ArcSwap<Current>,
    clock: Clock,
}

struct Current {
    certificate: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl ServerCertificate {
    pub(super) fn new(ca: &CertificateAuthority, names: Vec<String>, clock: Clock) -> Result<Self, String> {
        let names = CertificateParams::new(names).map_err(|error| format!("server name: {error}"))?.subject_alt_names;
        let current = ArcSwap::from_pointee(issue(ca, &names, &clock)?);
        Ok(Self { names, current, clock })
    }

    /// Renews at half of the lifetime. To be called by one task, before handshakes.
    pub(super) fn renew_if_due(&self, ca: &CertificateAuthority) {
        if self.clock.now() < self.current.load().renew_at {
            return;
        }
        match issue(ca, &self.names, &self.clock) {
            Ok(next) => self.current.store(Arc::new(next)),
            Err(error) => tracing::error!(error, "the plane's server certificate could not be renewed"),
        }
    }
}

fn issue(ca: &CertificateAuthority, names: &[SanType], clock: &Clock) -> Result<Current, String> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let issued = ca.issue_server(&key, names.to_vec(), LIFETIME).map_err(|error| error.to_string())?;
    // The root is left away: clients have it, or must not trust us.
    let leaf = issued.chain.first().ok_or("no certificate")?;
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let certificate = CertifiedKey::from_der(vec![leaf], key, &crypto_provider()).map_err(|error| error.to_string())?;
    Ok(Current { certificate: Arc::new(certificate), renew_at: clock.now() + LIFETIME / 2 })
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certificate.clone())
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}
