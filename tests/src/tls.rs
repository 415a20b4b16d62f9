//! Certificates of all sorts, and TLS ends that show them.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::parse_x509_certificate;

use crate::wait::within;

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// From 1975 to 4096, as rcgen has it.
    Always,
    /// It ended with the year 2020.
    Expired,
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

/// A certificate with its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    /// One that nobody trusts.
    pub fn stranger() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// One whose root certificate is written to this file.
    pub fn with_root(path: &Path) -> Self {
        let authority = Self::stranger();
        fs::write(path, authority.root_pem()).unwrap();
        authority
    }

    /// Its root certificate.
    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }

    /// Signs a request as istiod does: for `uri`, whatever the request says about names. Leaf and root, PEM.
    pub fn sign_request(&self, csr: &str, uri: &str, lifetime: Duration) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let now = OffsetDateTime::now_utc();
        request.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        request.params.not_before = now - Duration::from_secs(120);
        request.params.not_after = now + lifetime;
        vec![request.signed_by(&self.issuer).unwrap().pem(), self.root_pem()]
    }

    /// The root of a plane that keeps its state in this folder.
    pub fn of_plane(state: &Path) -> Self {
        let pem = fs::read(state.join("ca.pem")).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let root = CertificateDer::from_pem_slice(&pem).unwrap();
        Self { issuer: Issuer::from_ca_cert_der(&root, key).unwrap(), root }
    }

    /// A certificate for this URI.
    pub fn issue(&self, uri: &str, validity: Validity) -> Identity {
        self.sign(SanType::URI(uri.try_into().unwrap()), validity)
    }

    /// A server's certificate for this DNS name.
    pub fn issue_for_name(&self, name: &str) -> Identity {
        self.sign(SanType::DnsName(name.try_into().unwrap()), Validity::Always)
    }

    /// The same, no longer valid.
    pub fn expired_for_name(&self, name: &str) -> Identity {
        self.sign(SanType::DnsName(name.try_into().unwrap()), Validity::Expired)
    }

    fn sign(&self, name: SanType, validity: Validity) -> Identity {
        self.issue_with(vec![name], |params| {
            if validity == Validity::Expired {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            }
        })
    }

    /// A certificate with these names and any other oddity.
    pub fn issue_with(&self, sans: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Identity { chain: vec![leaf.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }
}

impl Authority {
    /// A list of revoked certificates in PEM, by serial number.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A server's side of TLS that asks for no certificate.
pub fn acceptor(identity: Identity, alpn: &[&str]) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(identity.chain, identity.key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// The same, asking for a certificate of this authority, which the client need not show.
pub fn mutual_acceptor(identity: Identity, authority: &Authority, alpn: &[&str]) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let verifier = verifier.allow_unauthenticated().build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(identity.chain, identity.key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Identity {
    /// Writes it to `<name>.pem` and `<name>.key` of a folder.
    pub fn write(&self, folder: &Path, name: &str) {
        let chain: String = self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
        fs::write(folder.join(format!("{name}.pem")), chain).unwrap();
        fs::write(folder.join(format!("{name}.key")), pem("PRIVATE KEY", self.key.secret_der())).unwrap();
    }
}

/// Connects with TLS, showing this certificate and offering this ALPN; whoever answers is taken.
///
/// # Errors
/// When the handshake fails. A server that refuses the certificate says so only in the first read.
pub async fn connect(
    address: SocketAddr,
    identity: Option<&Identity>,
    alpn: &[&str],
) -> io::Result<client::TlsStream<TcpStream>> {
    let mut config = client(identity, rustls::DEFAULT_VERSIONS);
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    connect_as(address, &Arc::new(config)).await
}

/// A client that shows this certificate, speaks these versions and would resume a session.
pub fn client(identity: Option<&Identity>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider())));
    match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    }
}

/// Connects as this client.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as(address: SocketAddr, client: &Arc<ClientConfig>) -> io::Result<client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    within("a TLS handshake", TlsConnector::from(Arc::clone(client)).connect(name, stream)).await
}

/// Serial number of the certificate that the server showed, hex.
pub fn server_serial(stream: &client::TlsStream<TcpStream>) -> String {
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    parse_x509_certificate(&certificates[0]).unwrap().1.raw_serial_as_string()
}

/// A server that shows this certificate, asks for none, and closes every connection after the handshake.
pub async fn impostor(address: SocketAddr, identity: &Identity) -> JoinSet<()> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"istio".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address).await.unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _: io::Result<server::TlsStream<TcpStream>> = acceptor.accept(stream).await;
        }
    });
    serving
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Takes every certificate, as long as its owner holds the key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
