//! TLS (Envoy `extensions.transport_sockets.tls.v3`) and SPIFFE identities.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Serialize, Serializer};

use super::StringMatcher;

/// Where a certificate or a trust bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum CertificateSource {
    /// A secret of this name given to [`crate::Proxy::set_secret`]; Istio's are `default` and `ROOTCA`.
    Secret(String),
    /// PEM files, read at apply.
    Files {
        /// Certificate chain, or trust bundle.
        certificates: PathBuf,
        /// Private key; `None` for a trust bundle.
        key: Option<PathBuf>,
    },
    /// PEM that stands in the configuration itself.
    Inline {
        /// Certificate chain, or trust bundle.
        certificates: InlinePem,
        /// Private key; `None` for a trust bundle.
        key: Option<InlinePem>,
    },
    /// The system's trust store.
    System,
    /// A PEM file of revocation lists, read at apply.
    RevocationFile(PathBuf),
    /// Revocation lists in PEM that stand in the configuration itself.
    RevocationInline(InlinePem),
}

/// Which certificates of trusted signers are revoked (Envoy `crl`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revocation {
    /// The lists.
    pub lists: CertificateSource,
    /// Only the peer's own certificate is asked about, not those that signed it (`only_verify_leaf_cert_crl`).
    pub leaf_only: bool,
}

/// PEM that stands in the configuration. It may be a key: neither logs nor the admin page show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InlinePem(Vec<u8>);

impl InlinePem {
    /// The bytes as they were written.
    pub fn new(pem: impl Into<Vec<u8>>) -> Self {
        Self(pem.into())
    }

    /// The bytes as they were written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for InlinePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl Serialize for InlinePem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

/// What an accepted peer certificate must carry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum SanMatcher {
    /// A URI SAN.
    Uri(StringMatcher),
    /// A DNS SAN.
    Dns(StringMatcher),
    /// An e-mail address.
    Email(StringMatcher),
    /// An IP address, in its usual form.
    Ip(StringMatcher),
    /// A SAN of any type (Envoy's deprecated `match_subject_alt_names`, which istiod still uses).
    Any(StringMatcher),
}

/// One certificate, or one key, that an accepted peer may have (Envoy `verify_certificate_hash`, `verify_certificate_spki`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CertificatePin {
    /// SHA-256 of the whole certificate.
    Certificate([u8; 32]),
    /// SHA-256 of its public key with the algorithm (SPKI).
    Key([u8; 32]),
}

/// TLS protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// TLS termination (Envoy `DownstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DownstreamTls {
    /// Our certificate and key.
    pub certificate: CertificateSource,
    /// Who signed acceptable clients; `None` asks for no client certificate.
    pub trust: Option<CertificateSource>,
    /// A client without certificate is refused.
    pub require_client_certificate: bool,
    /// Any of these must match a client certificate; empty accepts every one that [`Self::trust`] signed.
    pub sans: Vec<SanMatcher>,
    /// A client certificate must be one of these as well; empty accepts every one.
    pub pins: Vec<CertificatePin>,
    /// Client certificates that are refused; only with [`Self::trust`].
    pub revocation: Option<Revocation>,
    /// Protocols we accept, by our preference.
    pub alpn: Vec<String>,
    /// Lowest and highest version.
    pub versions: (TlsVersion, TlsVersion),
}

/// TLS origination (Envoy `UpstreamTlsContext`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamTls {
    /// Our certificate for mutual TLS.
    pub certificate: Option<CertificateSource>,
    /// Who signed acceptable servers. `None` accepts any certificate, as Envoy does; translation never leaves it out for mesh traffic.
    pub trust: Option<CertificateSource>,
    /// Any of these must match; empty accepts every server certificate that [`Self::trust`] signed.
    pub sans: Vec<SanMatcher>,
    /// The server certificate must be one of these as well; empty accepts every one.
    pub pins: Vec<CertificatePin>,
    /// Server certificates that are refused; only with [`Self::trust`].
    pub revocation: Option<Revocation>,
    /// Server name to send; empty sends none.
    pub sni: String,
    /// The host that the request is for takes the place of [`Self::sni`], port left out (Envoy `auto_sni`). What has no host, a
    /// TCP connection or a health check, takes the service that the cluster stands for.
    pub auto_sni: bool,
    /// The server certificate must also be one for that host (Envoy `auto_san_validation`); only with [`Self::auto_sni`].
    pub auto_san_validation: bool,
    /// Protocols to offer.
    pub alpn: Vec<String>,
    /// Lowest and highest version.
    pub versions: (TlsVersion, TlsVersion),
}

/// A certificate with its key, or a trust bundle: what [`CertificateSource::Secret`] names.
#[derive(Clone)]
pub enum Secret {
    /// A workload certificate.
    Certificate {
        /// Leaf first, without the root.
        chain: Vec<CertificateDer<'static>>,
        /// Its private key.
        key: Arc<PrivateKeyDer<'static>>,
    },
    /// Trust anchors.
    Trust {
        /// Root certificates.
        roots: Vec<CertificateDer<'static>>,
    },
}

// By hand, so that a key can never reach a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { chain, .. } => write!(f, "Certificate {{ chain: {} certificates, key: <hidden> }}", chain.len()),
            Self::Trust { roots } => write!(f, "Trust {{ {} roots }}", roots.len()),
        }
    }
}

/// A trust domain: the authority part of a SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// As text, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(legal) {
            return Err(SpiffeIdError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// An Istio workload identity, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    pub service_account: String,
}

/// Why a text is not a SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The trust domain is empty or has other characters than `a-z 0-9 . - _`.
    #[error("trust domain {0:?}: expected 1 to 255 characters of a-z, 0-9, '.', '-', '_'")]
    TrustDomain(String),
    /// Not Istio's form.
    #[error("SPIFFE id {0:?}: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let form = || SpiffeIdError::Form(text.to_owned());
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(form)?.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or_else(form);
        let (domain, ns, namespace, sa, service_account) = (next()?, next()?, next()?, next()?, next()?);
        let legal = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if ns != "ns" || sa != "sa" || parts.next().is_some() || !legal(namespace) || !legal(service_account) {
            return Err(form());
        }
        Ok(Self { trust_domain: domain.parse()?, namespace: namespace.to_owned(), service_account: service_account.to_owned() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_are_parsed_strictly() {
        let id: SpiffeId = "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm".parse().unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm");
        for bad in [
            "cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns/a/sa/b ",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\0",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_inline_key_shows_neither_in_debug_output_nor_on_the_admin_page() {
        let pem = || InlinePem::new("secret");
        let source = CertificateSource::Inline { certificates: pem(), key: Some(pem()) };
        assert_eq!(format!("{source:?}"), "Inline { certificates: <6 bytes>, key: Some(<6 bytes>) }");
        let shown = serde_json::to_string(&source).unwrap();
        assert_eq!(shown, r#"{"Inline":{"certificates":"<6 bytes>","key":"<6 bytes>"}}"#);
    }

    #[test]
    fn a_key_never_shows_in_debug_output() {
        let key = PrivateKeyDer::Pkcs8(vec![1, 2, 3].into());
        let shown = format!("{:?}", Secret::Certificate { chain: vec![], key: Arc::new(key) });
        assert_eq!(shown, "Certificate { chain: 0 certificates, key: <hidden> }");
    }
}
