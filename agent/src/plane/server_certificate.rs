//! The plane's server certificates: its own, signed by its own root and renewed while it runs, and one that it is given in files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::OWN_NAME;
use super::ca::CertificateAuthority;
use crate::identity::{Clock, crypto_provider};
use crate::watch::Watcher;

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

/// A certificate in files, read again when they change.
pub(super) struct FileCertificate {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl FileCertificate {
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let current = ArcSwap::from_pointee(read(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    /// Follows changes of the files. What cannot be used leaves the last good one in force; ends only when nothing can be watched.
    pub(super) async fn follow(&self) {
        let mut watcher = match Watcher::new(vec![self.certificate.clone(), self.key.clone()]) {
            Ok(watcher) => watcher,
            Err(error) => return tracing::error!(%error, "the plane's certificate files cannot be watched"),
        };
        loop {
            watcher.changed().await;
            let (certificate, key) = (self.certificate.clone(), self.key.clone());
            let read = tokio::task::spawn_blocking(move || read(&certificate, &key)).await;
            match read.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(next) => {
                    tracing::info!("the plane's server certificate was replaced");
                    self.current.store(Arc::new(next));
                }
                Err(error) => tracing::error!(error, "the plane's new server certificate cannot be used, the last one stays"),
            }
        }
    }
}

impl fmt::Debug for FileCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileCertificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let in_file = |path: &Path, error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let text = |path: &Path| std::fs::read(path).map_err(|error| in_file(path, &error));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text(certificate)?).collect();
    let chain = chain.map_err(|error| in_file(certificate, &error))?;
    if chain.is_empty() {
        return Err(in_file(certificate, &"no PEM certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_slice(&text(key)?).map_err(|error| in_file(key, &error))?;
    CertifiedKey::from_der(chain, private, &crypto_provider()).map_err(|error| in_file(certificate, &error))
}

/// Gives rustls the certificate for the name that is asked for.
#[derive(Debug)]
pub(super) struct Certificates {
    own: Option<Arc<ServerCertificate>>,
    files: Option<Arc<FileCertificate>>,
}

impl Certificates {
    pub(super) fn new(own: Option<Arc<ServerCertificate>>, files: Option<Arc<FileCertificate>>) -> Result<Self, String> {
        if own.is_none() && files.is_none() {
            return Err("no certificate: expected --tls-cert and --tls-key".to_owned());
        }
        Ok(Self { own, files })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = || self.own.as_ref().map(|own| own.current.load().certificate.clone());
        match &self.files {
            // Sidecars ask for it: they trust the mesh root.
            Some(_) if hello.server_name() == Some(OWN_NAME) && self.own.is_some() => own(),
            Some(files) => Some(files.current.load_full()),
            None => own(),
        }
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}
