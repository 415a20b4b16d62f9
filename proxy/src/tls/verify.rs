//! Who may be at the other end: chain to the trust bundle, then the identity in the certificate.
//!
//! Host names are not checked, as in Envoy: the SAN matchers of the configuration are the identity check. On top of
//! Envoy's rules, a certificate that claims a SPIFFE id must be a valid SVID (exactly one URI SAN), and a SAN with a control
//! character is refused whoever signed it (CVE-2025-66220).

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;
use super::provider::sha256;
use super::revocation::{Peer, Revocations};
use crate::config::{CertificatePin, SanMatcher, StringMatch, StringMatcher};

/// Why a certificate from a trusted signer is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SanError {
    /// No matcher of the configuration accepts any of the SANs.
    #[error("SAN matcher, certificate SANs are [{}]", .0.join(", "))]
    NoMatch(Vec<String>),
    /// A SPIFFE id beside another URI SAN.
    #[error("a SPIFFE certificate must have exactly one URI SAN, certificate SANs are [{}]", .0.join(", "))]
    SeveralUris(Vec<String>),
    /// The certificate is not one for the host that was asked for.
    #[error("SAN list, certificate SANs are [{}]", .0.join(", "))]
    OtherHost(Vec<String>),
    /// Neither the certificate nor its key is one of those that are pinned.
    #[error("cert hash and spki")]
    NotPinned,
    /// A SAN with a control character, not in ASCII, of a broken encoding, or a DNS name that spells a URI.
    #[error("illegal character in a SAN")]
    IllegalCharacter,
    /// The certificate cannot be parsed.
    #[error("certificate cannot be parsed")]
    Malformed,
}

impl From<SanError> for rustls::Error {
    fn from(error: SanError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// Subject alternative names of a certificate, by type.
#[derive(Debug, Default)]
pub(super) struct Sans {
    pub(super) uris: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) emails: Vec<String>,
    pub(super) ips: Vec<String>,
    /// All of them in the certificate's order, as Envoy's failure text has them.
    all: Vec<String>,
}

impl Sans {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Self, SanError> {
        let mut sans = Self::default();
        let Some(extension) = certificate.subject_alternative_name().map_err(|_| SanError::Malformed)? else {
            return Ok(sans);
        };
        for name in &extension.value.general_names {
            let (names, name) = match name {
                GeneralName::URI(uri) => (&mut sans.uris, checked(uri)?),
                GeneralName::DNSName(dns) => (&mut sans.dns, not_uri(checked(dns)?)?),
                GeneralName::RFC822Name(mail) => (&mut sans.emails, not_uri(checked(mail)?)?),
                GeneralName::IPAddress(octets) => match ip(octets) {
                    Some(ip) => (&mut sans.ips, ip.to_string()),
                    None => continue,
                },
                GeneralName::Invalid(..) => return Err(SanError::IllegalCharacter),
                _ => continue,
            };
            sans.all.push(name.clone());
            names.push(name);
        }
        Ok(sans)
    }
}

fn checked(text: &str) -> Result<String, SanError> {
    if text.bytes().all(|b| b.is_ascii() && !b.is_ascii_control()) {
        Ok(text.to_owned())
    } else {
        Err(SanError::IllegalCharacter)
    }
}

/// A name of another type that spells a URI must never pass for a SPIFFE id (CVE-2022-21656).
fn not_uri(text: String) -> Result<String, SanError> {
    if text.contains("://") { Err(SanError::IllegalCharacter) } else { Ok(text) }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Which of the certificates of trusted signers a context accepts.
#[derive(Debug)]
pub(super) struct PeerRules {
    sans: Vec<SanMatcher>,
    pins: Vec<CertificatePin>,
}

impl PeerRules {
    pub(super) fn new(matchers: &[SanMatcher], pins: &[CertificatePin]) -> Self {
        Self { sans: matchers.iter().cloned().map(with_whole_trust_domain).collect(), pins: pins.to_vec() }
    }

    /// `host`: what the certificate must be one for.
    fn check(&self, leaf: &CertificateDer<'_>, host: Option<&ServerName<'_>>) -> Result<(), SanError> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| SanError::Malformed)?;
        if !self.pins.is_empty() {
            let whole = sha256(leaf);
            let key = sha256(certificate.public_key().raw);
            let pinned = |pin: &CertificatePin| match pin {
                CertificatePin::Certificate(hash) => whole.as_ref() == hash,
                CertificatePin::Key(hash) => key.as_ref() == hash,
            };
            if !self.pins.iter().any(pinned) {
                return Err(SanError::NotPinned);
            }
        }
        let sans = Sans::of(&certificate)?;
        if sans.uris.len() > 1 && sans.uris.iter().any(|uri| is_spiffe(uri)) {
            return Err(SanError::SeveralUris(sans.all));
        }
        if host.is_some_and(|host| !is_for(host, &sans)) {
            return Err(SanError::OtherHost(sans.all));
        }
        if self.sans.is_empty() || self.sans.iter().any(|matcher| accepts(matcher, &sans)) {
            return Ok(());
        }
        Err(SanError::NoMatch(sans.all))
    }
}

const SPIFFE: &str = "spiffe://";

fn is_spiffe(uri: &str) -> bool {
    uri.get(..SPIFFE.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SPIFFE))
}

/// A prefix that ends within a trust domain would accept `spiffe://cluster.local.evil/`: the domain is closed with a slash.
fn with_whole_trust_domain(mut matcher: SanMatcher) -> SanMatcher {
    if let SanMatcher::Uri(text) | SanMatcher::Any(text) = &mut matcher
        && let StringMatch::Prefix(prefix) = &mut text.pattern
        && is_spiffe(prefix)
        && prefix.len() > SPIFFE.len()
        && !prefix[SPIFFE.len()..].contains('/')
    {
        prefix.push('/');
    }
    matcher
}

fn accepts(matcher: &SanMatcher, sans: &Sans) -> bool {
    let any = |names: &[String], wanted: &StringMatcher| names.iter().any(|name| wanted.matches(name.as_bytes()));
    let dns = |wanted: &StringMatcher| sans.dns.iter().any(|name| dns_accepts(name, wanted));
    match matcher {
        SanMatcher::Uri(wanted) => any(&sans.uris, wanted),
        SanMatcher::Dns(wanted) => dns(wanted),
        SanMatcher::Email(wanted) => any(&sans.emails, wanted),
        SanMatcher::Ip(wanted) => any(&sans.ips, wanted),
        SanMatcher::Any(wanted) => any(&sans.uris, wanted) || dns(wanted) || any(&sans.emails, wanted) || any(&sans.ips, wanted),
    }
}

/// An exact matcher is a host name: case does not count, and `*.example.com` in the certificate covers one label.
fn dns_accepts(name: &str, wanted: &StringMatcher) -> bool {
    let StringMatch::Exact(host) = &wanted.pattern else { return wanted.matches(name.as_bytes()) };
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(parent), Some((label, rest))) = (name.strip_prefix("*."), host.split_once('.')) else { return false };
    !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
}

fn is_for(host: &ServerName<'_>, sans: &Sans) -> bool {
    match host {
        ServerName::DnsName(name) => {
            let wanted = StringMatcher::exact(name.as_ref());
            sans.dns.iter().any(|dns| dns_accepts(dns, &wanted))
        }
        ServerName::IpAddress(ip) => sans.ips.contains(&IpAddr::from(*ip).to_string()),
        _ => false,
    }
}

/// Verifies client certificates.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    rules: PeerRules,
    revocations: Option<Revocations>,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        required: bool,
        rules: PeerRules,
        revocations: Option<Revocations>,
    ) -> Result<Self, TlsError> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        let chain = builder.build().map_err(|error| TlsError::Config(error.to_string()))?;
        Ok(Self { chain, rules, revocations })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        if let Some(revocations) = &self.revocations {
            revocations.check(leaf, intermediates, Peer::Client, now)?;
        }
        self.rules.check(leaf, None)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Verifies server certificates; without roots it accepts any that is pinned, and any at all where none is, as Envoy does
/// without a validation context.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Option<Arc<RootCertStore>>,
    provider: Arc<CryptoProvider>,
    rules: PeerRules,
    checks_host: bool,
    revocations: Option<Revocations>,
}

impl ServerVerifier {
    pub(super) fn new(roots: Option<Arc<RootCertStore>>, provider: Arc<CryptoProvider>, rules: PeerRules) -> Self {
        Self { roots, provider, rules, checks_host: false, revocations: None }
    }

    /// With lists of revoked certificates.
    pub(super) fn asking(mut self, revocations: Option<Revocations>) -> Self {
        self.revocations = revocations;
        self
    }

    /// Whether the certificate must be one for the host that the connection is for.
    pub(super) fn checking_host(mut self, checks_host: bool) -> Self {
        self.checks_host = checks_host;
        self
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let parsed = ParsedCertificate::try_from(leaf)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        }
        if let Some(revocations) = &self.revocations {
            revocations.check(leaf, intermediates, Peer::Server, now)?;
        }
        if self.roots.is_some() || !self.rules.pins.is_empty() {
            self.rules.check(leaf, Some(server_name).filter(|_| self.checks_host))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
