//! The store of certificates and trust bundles, and the rebuilding of what is compiled from them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use webpki::OwnedCertRevocationList;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider::Providers;
use super::revocation::{Lists, Revocations};
use super::verify::Sans;
use super::{PeerCertificate, TlsError, peer, source_name};
use crate::config::{CertificateSource, InlinePem, Revocation, Secret};
use crate::{CertificateStatus, PublicCertificates};

/// Where the usual distributions keep their bundle of public roots.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Secrets by source, with the contexts that are compiled from them.
///
/// A certificate and a trust bundle rotate independently. A secret that fails validation changes nothing: the old one serves on.
#[derive(Debug)]
pub struct Secrets {
    pub(super) providers: Providers,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    materials: Materials,
    contexts: Vec<Weak<dyn Context>>,
}

/// What contexts are built from.
#[derive(Clone, Debug, Default)]
pub(super) struct Materials(BTreeMap<CertificateSource, Material>);

#[derive(Clone, Debug)]
enum Material {
    Certificate(Arc<Identity>),
    Trust(Arc<Trust>),
    Revocation(Lists),
}

/// Our certificate, ready for handshakes.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) resolver: Arc<SingleCertAndKey>,
    pub(super) own: Option<Arc<PeerCertificate>>,
    chain: Vec<CertificateDer<'static>>,
    status: CertificateStatus,
}

/// A trust bundle, ready for handshakes.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
    statuses: Vec<CertificateStatus>,
}

/// Publishes what [`Context::prepare`] built.
pub(super) type Publish = Box<dyn FnOnce()>;

/// Something compiled from secrets.
pub(super) trait Context: Send + Sync + std::fmt::Debug {
    /// Whether it is built from this source.
    fn uses(&self, source: &CertificateSource) -> bool;

    /// Builds from new materials without publishing yet, so that a failure leaves every context as it was.
    fn prepare(self: Arc<Self>, materials: &Materials) -> Result<Publish, TlsError>;
}

impl Secrets {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { providers: Providers::new(), state: Mutex::default() })
    }

    /// Publishes a secret: new handshakes of every context that names it use it, open connections live on.
    ///
    /// # Errors
    /// When it fails validation (a certificate that cannot be parsed, a key of another leaf, an empty bundle) or is not of
    /// the kind that a context wants; nothing changes then.
    pub fn set(&self, name: &str, secret: Secret) -> Result<(), TlsError> {
        let material = self.validate(name, secret)?;
        self.lock().publish(&CertificateSource::Secret(name.to_owned()), material)
    }

    /// Reads again every file that a context names; for a timer or a file watcher. A source that fails keeps its last good
    /// version and is listed.
    pub fn reload_files(&self) -> Vec<TlsError> {
        let sources: Vec<_> = {
            let mut state = self.lock();
            state.forget_unused_files();
            let changes = |source: &&CertificateSource| match source {
                CertificateSource::Files { .. } | CertificateSource::System | CertificateSource::RevocationFile(_) => true,
                CertificateSource::Secret(_) | CertificateSource::Inline { .. } | CertificateSource::RevocationInline(_) => false,
            };
            state.materials.0.keys().filter(changes).cloned().collect()
        };
        let reload = |source: CertificateSource| self.load(&source).and_then(|material| self.lock().publish(&source, material));
        sources.into_iter().filter_map(|source| reload(source).err()).collect()
    }

    /// What is in force: one line for each certificate, one for each root of a bundle. The system's roots are left out.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let state = self.lock();
        let materials = state.materials.0.iter().filter(|(source, _)| **source != CertificateSource::System);
        materials
            .flat_map(|(_, material)| match material {
                Material::Certificate(identity) => std::slice::from_ref(&identity.status),
                Material::Trust(trust) => &trust.statuses,
                Material::Revocation(_) => &[],
            })
            .cloned()
            .collect()
    }

    /// The certificates of the secrets in force, those of files and of the system left out.
    pub fn public(&self) -> Vec<PublicCertificates> {
        let state = self.lock();
        let secrets = state.materials.0.iter().filter_map(|(source, material)| match source {
            CertificateSource::Secret(name) => Some((name, material)),
            _ => None,
        });
        secrets
            .filter_map(|(name, material)| {
                let (certificates, is_trust) = match material {
                    Material::Certificate(identity) => (&identity.chain, false),
                    Material::Trust(trust) => (&trust.certificates, true),
                    Material::Revocation(_) => return None,
                };
                Some(PublicCertificates { name: name.clone(), is_trust, certificates: certificates.clone() })
            })
            .collect()
    }

    /// Builds a context for the first time and keeps it up to date for as long as it lives.
    pub(super) fn register<C: Context + 'static>(
        &self,
        context: &Arc<C>,
        sources: &[&CertificateSource],
    ) -> Result<(), TlsError> {
        let mut state = self.lock();
        for source in sources {
            if !matches!(source, CertificateSource::Secret(_)) && !state.materials.0.contains_key(source) {
                let material = self.load(source)?;
                state.materials.0.insert((*source).clone(), material);
            }
        }
        Arc::clone(context).prepare(&state.materials)?();
        state.contexts.retain(|context| context.strong_count() > 0);
        let context: Arc<dyn Context> = Arc::<C>::clone(context);
        state.contexts.push(Arc::downgrade(&context));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves a map of immutable values: there is nothing half-done to see.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, source: &CertificateSource) -> Result<Material, TlsError> {
        let name = source_name(source);
        match source {
            CertificateSource::Files { certificates, key: Some(key) } => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(key, error))?;
                let chain = read_certificates(certificates)?;
                self.validate(&name, Secret::Certificate { chain, key: Arc::new(key) })
            }
            CertificateSource::Files { certificates, key: None } => {
                self.validate(&name, Secret::Trust { roots: read_certificates(certificates)? })
            }
            CertificateSource::Inline { certificates, key: Some(key) } => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(inline_error)?;
                let chain = inline_certificates(certificates)?;
                self.validate(&name, Secret::Certificate { chain, key: Arc::new(key) })
            }
            CertificateSource::Inline { certificates, key: None } => {
                self.validate(&name, Secret::Trust { roots: inline_certificates(certificates)? })
            }
            CertificateSource::System => system_trust().map(Material::Trust),
            CertificateSource::RevocationFile(path) => {
                let read = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                revocation_lists(&name, &read.map_err(|error| file_error(path, error))?)
            }
            CertificateSource::RevocationInline(pem) => {
                let read = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
                revocation_lists(&name, &read.map_err(inline_error)?)
            }
            CertificateSource::Secret(_) => Err(TlsError::NotReady),
        }
    }

    fn validate(&self, name: &str, secret: Secret) -> Result<Material, TlsError> {
        match secret {
            Secret::Certificate { chain, key } => self.identity(name, chain, &key).map(|it| Material::Certificate(Arc::new(it))),
            Secret::Trust { roots } => trust(name, &roots).map(|it| Material::Trust(Arc::new(it))),
        }
    }

    fn identity(&self, name: &str, chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) -> Result<Identity, TlsError> {
        let key_error = |error: rustls::Error| TlsError::Key { source_name: name.to_owned(), reason: error.to_string() };
        for (index, certificate) in chain.iter().enumerate() {
            parse(name, index, certificate)?;
        }
        let leaf = chain.first().ok_or_else(|| TlsError::Empty(name.to_owned()))?;
        let leaf = parse(name, 0, leaf)?;
        let sans = Sans::of(&leaf).map_err(|error| certificate_error(name, 0, &error))?;
        let status = status(name, &leaf, sans.uris.into_iter().chain(sans.dns).collect());
        let own = PeerCertificate::parse(&chain).map(Arc::new);
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &self.providers.server).map_err(key_error)?;
        // `from_der` lets a key pass whose public half it cannot derive; every key type of ours can.
        certified.keys_match().map_err(key_error)?;
        Ok(Identity { resolver: Arc::new(certified.into()), own, chain, status })
    }
}

impl State {
    fn publish(&mut self, source: &CertificateSource, material: Material) -> Result<(), TlsError> {
        let mut materials = self.materials.clone();
        materials.0.insert(source.clone(), material);
        let users = self.contexts.iter().filter_map(Weak::upgrade).filter(|context| context.uses(source));
        let ready = users.map(|context| context.prepare(&materials)).collect::<Result<Vec<Publish>, _>>()?;
        self.materials = materials;
        for publish in ready {
            publish();
        }
        Ok(())
    }

    fn forget_unused_files(&mut self) {
        self.contexts.retain(|context| context.strong_count() > 0);
        let users: Vec<_> = self.contexts.iter().filter_map(Weak::upgrade).collect();
        let used = |source: &CertificateSource| users.iter().any(|context| context.uses(source));
        self.materials.0.retain(|source, _| matches!(source, CertificateSource::Secret(_)) || used(source));
    }
}

impl Materials {
    /// The certificate of this source; `None` until it arrives.
    pub(super) fn certificate(&self, source: &CertificateSource) -> Result<Option<&Arc<Identity>>, TlsError> {
        match self.0.get(source) {
            Some(Material::Certificate(identity)) => Ok(Some(identity)),
            Some(Material::Trust(_) | Material::Revocation(_)) => {
                Err(TlsError::Kind { source_name: source_name(source), expected: "a certificate with its key" })
            }
            None => Ok(None),
        }
    }

    /// The trust bundle of this source; `None` until it arrives.
    pub(super) fn trust(&self, source: &CertificateSource) -> Result<Option<&Arc<Trust>>, TlsError> {
        match self.0.get(source) {
            Some(Material::Trust(trust)) => Ok(Some(trust)),
            Some(Material::Certificate(_) | Material::Revocation(_)) => {
                Err(TlsError::Kind { source_name: source_name(source), expected: "a trust bundle" })
            }
            None => Ok(None),
        }
    }

    /// What is asked about the certificates that these roots signed.
    pub(super) fn revocations(
        &self,
        config: Option<&Revocation>,
        roots: &Arc<RootCertStore>,
        provider: &CryptoProvider,
    ) -> Result<Option<Revocations>, TlsError> {
        let Some(Revocation { lists, leaf_only }) = config else { return Ok(None) };
        let Some(Material::Revocation(found)) = self.0.get(lists) else {
            return Err(TlsError::Kind { source_name: source_name(lists), expected: "revocation lists" });
        };
        let algorithms = provider.signature_verification_algorithms.all;
        Ok(Some(Revocations::new(Arc::clone(found), *leaf_only, Arc::clone(roots), algorithms)))
    }
}

fn trust(name: &str, certificates: &[CertificateDer<'static>]) -> Result<Trust, TlsError> {
    let mut roots = RootCertStore::empty();
    let mut statuses = Vec::with_capacity(certificates.len());
    for (index, der) in certificates.iter().enumerate() {
        let certificate = parse(name, index, der)?;
        statuses.push(status(name, &certificate, vec![peer::name(certificate.subject())]));
        roots.add(der.clone()).map_err(|error| certificate_error(name, index, &error))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Empty(name.to_owned()));
    }
    Ok(Trust { roots: Arc::new(roots), certificates: certificates.to_vec(), statuses })
}

fn revocation_lists(name: &str, all: &[CertificateRevocationListDer<'_>]) -> Result<Material, TlsError> {
    if all.is_empty() {
        return Err(TlsError::Empty(name.to_owned()));
    }
    let parsed = all.iter().enumerate().map(|(index, list)| match OwnedCertRevocationList::from_der(list) {
        Ok(list) => Ok(list.into()),
        Err(error) => Err(certificate_error(name, index, &format!("revocation list: {error}"))),
    });
    parsed.collect::<Result<Vec<_>, _>>().map(|lists| Material::Revocation(lists.into()))
}

/// The system's roots, without those that webpki cannot read: one odd root must not take the other hundred away.
fn system_trust() -> Result<Arc<Trust>, TlsError> {
    let path = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let path = path.ok_or_else(|| TlsError::Empty(format!("system trust store ({})", SYSTEM_BUNDLES.join(", "))))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read_certificates(path)?);
    if roots.is_empty() {
        return Err(TlsError::Empty(path.display().to_string()));
    }
    Ok(Arc::new(Trust { roots: Arc::new(roots), certificates: Vec::new(), statuses: Vec::new() }))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map_err(|error| file_error(path, error))
}

fn inline_certificates(pem: &InlinePem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(inline_error)
}

fn inline_error(source: pem::Error) -> TlsError {
    TlsError::File { path: "inline".to_owned(), source }
}

fn file_error(path: &Path, source: pem::Error) -> TlsError {
    TlsError::File { path: path.display().to_string(), source }
}

fn certificate_error(name: &str, index: usize, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Certificate { source_name: name.to_owned(), index, reason: reason.to_string() }
}

fn parse<'a>(name: &str, index: usize, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(certificate_error(name, index, &"bytes after its end")),
        Err(error) => Err(certificate_error(name, index, &error)),
    }
}

fn status(name: &str, certificate: &X509Certificate<'_>, identities: Vec<String>) -> CertificateStatus {
    let validity = certificate.validity();
    CertificateStatus {
        name: name.to_owned(),
        identities,
        serial: peer::serial(certificate),
        not_before: peer::system_time(validity.not_before.timestamp()),
        not_after: peer::system_time(validity.not_after.timestamp()),
    }
}
