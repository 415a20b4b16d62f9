//! Connections to the control plane: TCP, TLS verified against the mesh's root, HTTP/2 for gRPC.
//!
//! TLS is our own rustls configuration rather than tonic's, so that there is one TLS stack in the process and no
//! system trust store in its way.

use std::io;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use super::certificate::WorkloadCertificate;
use super::clock::Clock;

/// Where distributions keep their trust roots: Debian and Alpine, Red Hat, SUSE, and OpenSSL's own name.
const SYSTEM_ROOTS: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// Where the certificates come from that the control plane's certificate has to lead to.
#[derive(Clone, Debug)]
pub enum RootSource {
    /// PEM text.
    Pem(Vec<u8>),
    /// A PEM file, read again for every connection (`./var/run/secrets/istio/root-cert.pem`).
    File(PathBuf),
    /// PEM text that somebody else in this process keeps up to date.
    Watch(watch::Receiver<Arc<[u8]>>),
    /// Where this system keeps its own: `SSL_CERT_FILE`, else the first of the usual files.
    System,
}

/// How the connection is protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS, with the server's certificate verified for the connector's authority.
    Tls(RootSource),
    /// TLS to whoever answers: encrypted, but with nobody known at the other end.
    UnverifiedTls,
    /// Nothing: for tests and for a control plane on the same machine (istiod's port 15010).
    Plaintext,
}

/// Makes connections to istiod, or to whatever speaks its protocols.
#[derive(Clone, Debug)]
pub struct ControlPlaneConnector {
    /// `host:port` to connect to.
    pub address: String,
    /// The name its certificate must carry, sent as SNI and `:authority` (`istiod.istio-system.svc`).
    pub authority: String,
    /// How the connection is protected.
    pub security: Security,
    /// How long name resolution, TCP and TLS may take together.
    pub connect_timeout: Duration,
    /// Judges the server's certificate.
    pub clock: Clock,
    #[cfg(test)]
    pub(crate) memory: Option<tokio::sync::mpsc::Sender<tokio::io::DuplexStream>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The authority is no DNS name or IP address.
    #[error("control plane name {0:?}: expected a DNS name or an IP address")]
    Authority(String),
    /// The trust roots cannot be used.
    #[error("control plane roots: {0}")]
    Roots(String),
    /// The TLS configuration cannot be used.
    #[error("TLS towards the control plane: {0}")]
    Tls(#[from] rustls::Error),
    /// It took too long.
    #[error("no connection to the control plane at {address} within {after:?}; check the address and the network")]
    Timeout {
        /// Where to.
        address: String,
        /// The time it had.
        after: Duration,
    },
    /// Network or TLS.
    #[error("cannot connect to the control plane at {address}: {source}")]
    Io {
        /// Where to.
        address: String,
        /// What failed.
        source: io::Error,
    },
    /// The server's certificate and our clock do not agree.
    #[error(
        "the control plane's certificate is {state} by this machine's clock ({now} s after 1970); set the clock (NTP), we keep trying"
    )]
    Clock {
        /// `not yet valid` or `expired`.
        state: &'static str,
        /// Our clock.
        now: u64,
    },
    /// HTTP/2 could not be set up.
    #[error("no HTTP/2 with the control plane at {address}: {source}")]
    Http2 {
        /// Where to.
        address: String,
        /// What failed.
        source: tonic::transport::Error,
    },
}

impl ControlPlaneConnector {
    /// A connector with Istio's usual name and a time-out of 10 s.
    pub fn new(address: impl Into<String>, security: Security) -> Self {
        Self {
            address: address.into(),
            authority: "istiod.istio-system.svc".to_owned(),
            security,
            connect_timeout: Duration::from_secs(10),
            clock: Clock::system(),
            #[cfg(test)]
            memory: None,
        }
    }

    /// Connects, showing `client` as our certificate if there is one. The channel is one connection: when it is lost,
    /// calls fail and it is time to connect again.
    ///
    /// # Errors
    /// See [`ConnectError`]; all but wrong settings are worth another try.
    pub async fn connect(&self, client: Option<&WorkloadCertificate>) -> Result<Channel, ConnectError> {
        let connected = timeout(self.connect_timeout, self.connect_unbounded(client)).await;
        connected.map_err(|_| ConnectError::Timeout { address: self.address.clone(), after: self.connect_timeout })?
    }

    async fn connect_unbounded(&self, client: Option<&WorkloadCertificate>) -> Result<Channel, ConnectError> {
        let name = || ConnectError::Authority(self.authority.clone());
        let server_name = ServerName::try_from(self.authority.clone()).map_err(|_| name())?;
        let tcp = self.dial().await.map_err(|source| self.io_error(source))?;
        let (scheme, stream): (_, Box<dyn Stream>) = match &self.security {
            Security::Plaintext => ("http", tcp),
            Security::Tls(roots) => {
                let config = client_config(Some(&read_roots(roots).await?), client, &self.clock)?;
                let tls = TlsConnector::from(Arc::new(config)).connect(server_name, tcp).await;
                ("https", Box::new(tls.map_err(|source| self.io_error(source))?))
            }
            Security::UnverifiedTls => {
                let config = client_config(None, client, &self.clock)?;
                let tls = TlsConnector::from(Arc::new(config)).connect(server_name, tcp).await;
                ("https", Box::new(tls.map_err(|source| self.io_error(source))?))
            }
        };
        let authority = match self.authority.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.authority.clone(),
        };
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        Endpoint::from(uri.map_err(|_| name())?)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_with_connector(Once(Some(stream)))
            .await
            .map_err(|source| ConnectError::Http2 { address: self.address.clone(), source })
    }

    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        #[cfg(test)]
        if let Some(listener) = &self.memory {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            listener.send(theirs).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            return Ok(Box::new(ours));
        }
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        Ok(Box::new(tcp))
    }

    fn io_error(&self, source: io::Error) -> ConnectError {
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let state = match tls {
            Some(rustls::Error::InvalidCertificate(
                TlsCertificateError::NotValidYet | TlsCertificateError::NotValidYetContext { .. },
            )) => "not yet valid",
            Some(rustls::Error::InvalidCertificate(
                TlsCertificateError::Expired | TlsCertificateError::ExpiredContext { .. },
            )) => "expired",
            _ => return ConnectError::Io { address: self.address.clone(), source },
        };
        ConnectError::Clock { state, now: self.clock.since_epoch().as_secs() }
    }
}

/// The one cryptography of the process, shared so that its tables exist once.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

async fn read_roots(source: &RootSource) -> Result<RootCertStore, ConnectError> {
    let (pem, origin) = match source {
        RootSource::Pem(pem) => (pem.clone(), "the given PEM".to_owned()),
        RootSource::File(path) => {
            let origin = path.display().to_string();
            let pem = tokio::fs::read(path).await.map_err(|error| ConnectError::Roots(format!("{origin}: {error}")))?;
            (pem, origin)
        }
        RootSource::Watch(pem) => (pem.borrow().to_vec(), "what the plane sent".to_owned()),
        RootSource::System => return system_roots().await,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| ConnectError::Roots(format!("{origin}: {error}")))?;
        roots.add(certificate).map_err(|error| ConnectError::Roots(format!("{origin}: {error}")))?;
    }
    if roots.is_empty() {
        return Err(ConnectError::Roots(format!("{origin} holds no PEM certificate")));
    }
    Ok(roots)
}

/// What cannot be parsed in a bundle of hundreds is left out.
async fn system_roots() -> Result<RootCertStore, ConnectError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    for path in named.into_iter().chain(SYSTEM_ROOTS.iter().map(PathBuf::from)) {
        let Ok(pem) = tokio::fs::read(&path).await else { continue };
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        if added > 0 {
            return Ok(roots);
        }
    }
    Err(ConnectError::Roots("this system has none: give them in ONBOARDING_AGENT_ROOT_CERTS or SSL_CERT_FILE".to_owned()))
}

/// Without roots, whoever answers is taken.
fn client_config(
    roots: Option<&RootCertStore>,
    client: Option<&WorkloadCertificate>,
    clock: &Clock,
) -> Result<ClientConfig, rustls::Error> {
    let builder =
        ClientConfig::builder_with_details(crypto_provider(), Arc::new(clock.clone())).with_safe_default_protocol_versions()?;
    let builder = match roots {
        Some(roots) => builder.with_root_certificates(roots.clone()),
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(crypto_provider()))),
    };
    let mut config = match client {
        Some(certificate) => builder.with_client_auth_cert(certificate.chain.clone(), certificate.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // One connection per configuration: there is nothing to resume, and roots are checked each time.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS with whoever answers: encrypted, but with nobody known at the other end.
pub(crate) fn unverified_tls() -> Result<ClientConfig, rustls::Error> {
    client_config(None, None, &Clock::system())
}

/// Takes any certificate, as the user has asked for. Its key still has to be the one that signs the handshake.
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
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Hands tonic the stream that is already there; asked again, it has none.
struct Once(Option<Box<dyn Stream>>);

impl Service<Uri> for Once {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}
