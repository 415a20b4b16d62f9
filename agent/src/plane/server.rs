//! The plane as a server: TLS, HTTP/2, limits, and an orderly end.
//!
//! HTTP/2 is hyper's, used directly: connection cap, handshake and request time-outs and the peer's certificate are ours to
//! decide, and one gRPC service needs no router.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use skiff_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use skiff_proxy::config::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::ca::CertificateAuthority;
use super::server_certificate::ServerCertificate;
use super::service::{CertificateService, Peer};
use super::state::{StateError, StateFolder};
use super::token::{TokenError, TokenIssuer};
use crate::identity::{Clock, Token, crypto_provider, sole_spiffe_id};

/// How long open calls may take to finish once the plane stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a plane serves, and to whom.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The folder of its keys.
    pub state: PathBuf,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Its id: issuer of its tokens.
    pub id: String,
    /// The cluster id that clients may send besides none.
    pub cluster_id: String,
    /// Further DNS names and IP addresses of its server certificate, besides `istiod.istio-system.svc`, `localhost` and the
    /// loopback addresses.
    pub server_names: Vec<String>,
    /// Lifetime of workload tokens.
    pub token_lifetime: Duration,
    /// Lifetime of certificates when the client asks for none.
    pub default_certificate_lifetime: Duration,
    /// Longest lifetime of certificates.
    pub max_certificate_lifetime: Duration,
    /// What clients may take up.
    pub limits: Limits,
    /// Judges tokens and certificates.
    pub clock: Clock,
}

impl PlaneConfig {
    /// istiod's defaults: certificates for 24 hours, at most 90 days; tokens for an hour.
    pub fn new(listen: SocketAddr, state: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            listen,
            state: state.into(),
            id: format!("skiff-plane.{trust_domain}"),
            trust_domain,
            cluster_id: "Kubernetes".to_owned(),
            server_names: Vec::new(),
            token_lifetime: hour,
            default_certificate_lifetime: 24 * hour,
            max_certificate_lifetime: 90 * 24 * hour,
            limits: Limits::default(),
            clock: Clock::system(),
        }
    }
}

/// What clients may take up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; further ones are closed at once.
    pub max_connections: usize,
    /// Calls at the same time on one connection.
    pub max_concurrent_streams: u32,
    /// Bytes of a request message.
    pub max_message_bytes: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for a call, with the receipt of its message.
    pub request_timeout: Duration,
    /// Age at which a connection is asked to go (GOAWAY), so that none stays for ever.
    pub max_connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_concurrent_streams: 32,
            max_message_bytes: 64 * 1024,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(30 * 60),
        }
    }
}

/// Why a plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// Its keys.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its TLS.
    #[error("TLS of the plane: {0}")]
    Tls(String),
}

/// A running plane; it stops when dropped.
#[derive(Debug)]
pub struct Plane {
    address: SocketAddr,
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    _state: StateFolder,
}

impl Plane {
    /// Loads or makes the keys and starts to serve.
    ///
    /// # Errors
    /// When the state cannot be used or the address is taken.
    pub async fn start(config: PlaneConfig) -> Result<Self, PlaneError> {
        let state = StateFolder::open(&config.state)?;
        let core = Arc::new(Core::new(&config, &state)?);
        let listen = |source| PlaneError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (stop, stopping) = watch::channel(false);
        let accepting = tokio::spawn(accept(core.clone(), listener, stopping));
        tracing::info!(%address, trust_domain = %config.trust_domain, "onboarding plane serves");
        Ok(Self { address, core, stop, accepting, _state: state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The mesh root that its clients have to trust, PEM.
    pub fn root_pem(&self) -> &str {
        self.core.service.ca.root_pem()
    }

    /// A token for the service account `service_account` in `namespace`; written to the audit log, without the token.
    ///
    /// # Errors
    /// When these names cannot be part of an identity.
    pub fn issue_token(&self, namespace: &str, service_account: &str) -> Result<Token, TokenError> {
        let issued = self.core.service.tokens.issue(namespace, service_account);
        match &issued {
            Ok(_) => tracing::info!(target: "audit", event = "token", decision = "issued", namespace, service_account),
            Err(error) => {
                tracing::warn!(target: "audit", event = "token", decision = "denied", namespace, service_account, reason = %error);
            }
        }
        issued
    }

    /// Stops accepting, lets open calls finish for up to five seconds, and releases the state folder.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if timeout(SHUTDOWN_GRACE, &mut self.accepting).await.is_err() {
            tracing::warn!("calls to the onboarding plane were cut off");
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(core: Arc<Core>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    // Owns the connections: when this task is dropped, so are they.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((tcp, peer)) => {
                connections.spawn(core.clone().serve(tcp, peer, stopping.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "the onboarding plane cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Everything that a connection needs.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) service: CertificateService,
    tls: Arc<ServerConfig>,
    certificate: Arc<ServerCertificate>,
    trust_domain: TrustDomain,
    limits: Limits,
    connections: Arc<Semaphore>,
}

impl Core {
    pub(super) fn new(config: &PlaneConfig, state: &StateFolder) -> Result<Self, PlaneError> {
        let PlaneConfig { trust_domain, clock, limits, .. } = config;
        let ca = Arc::new(CertificateAuthority::load_or_create(
            state,
            trust_domain,
            config.default_certificate_lifetime,
            config.max_certificate_lifetime,
            clock.clone(),
        )?);
        let tokens = Arc::new(TokenIssuer::load_or_create(
            state,
            config.id.clone(),
            trust_domain.clone(),
            config.token_lifetime,
            clock.clone(),
        )?);
        let mut names: Vec<String> = ["istiod.istio-system.svc", "localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned).into();
        names.extend(config.server_names.iter().cloned());
        let certificate = Arc::new(ServerCertificate::new(&ca, names, clock.clone()).map_err(PlaneError::Tls)?);
        let tls = server_config(&ca, certificate.clone(), clock).map_err(|error| PlaneError::Tls(error.to_string()))?;
        Ok(Self {
            service: CertificateService { ca, tokens, cluster_id: config.cluster_id.as_str().into() },
            tls: Arc::new(tls),
            certificate,
            trust_domain: trust_domain.clone(),
            limits: limits.clone(),
            connections: Arc::new(Semaphore::new(limits.max_connections)),
        })
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        address: SocketAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        let Ok(_permit) = self.connections.try_acquire() else {
            tracing::warn!(peer = %address, limit = self.limits.max_connections, "too many connections to the onboarding plane");
            return;
        };
        self.certificate.renew_if_due(&self.service.ca);
        let tls = match timeout(self.limits.handshake_timeout, TlsAcceptor::from(self.tls.clone()).accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(peer = %address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(peer = %address, "TLS handshake timed out"),
        };
        let peer = Peer { address, certificate: self.peer_identity(tls.get_ref().1.peer_certificates()) };
        let service =
            IstioCertificateServiceServer::new(self.service.clone()).max_decoding_message_size(self.limits.max_message_bytes);
        let request_timeout = self.limits.request_timeout;
        let handler = service_fn(move |request| call(service.clone(), request, peer.clone(), request_timeout));

        let connection = self.http2().serve_connection(TokioIo::new(tls), handler);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = leave(&mut stopping, self.limits.max_connection_age) => {
                connection.as_mut().graceful_shutdown();
                // A peer that ignores GOAWAY has until its calls would have timed out anyway.
                timeout(self.limits.request_timeout, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %address, %error, "connection to the onboarding plane ended");
        }
    }

    /// Whom the client certificate names; rustls has verified that our root signed it and that it is valid.
    fn peer_identity(&self, certificates: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Option<SpiffeId> {
        let (_, leaf) = X509Certificate::from_der(certificates?.first()?).ok()?;
        sole_spiffe_id(&leaf).filter(|id| id.trust_domain == self.trust_domain)
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.max_concurrent_streams)
            .max_header_list_size(24 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        builder
    }
}

async fn leave(stopping: &mut watch::Receiver<bool>, age: Duration) {
    // A dropped sender is a stop, too.
    let _ = timeout(age, stopping.wait_for(|stop| *stop)).await;
}

async fn call(
    mut service: IstioCertificateServiceServer<CertificateService>,
    mut request: http::Request<Incoming>,
    peer: Peer,
    request_timeout: Duration,
) -> Result<http::Response<Body>, Infallible> {
    request.extensions_mut().insert(peer);
    let late = || Status::deadline_exceeded("the request took too long").into_http();
    Ok(timeout(request_timeout, service.call(request)).await.map_or_else(|_| late(), |Ok(response)| response))
}

fn server_config(
    ca: &CertificateAuthority,
    certificate: Arc<ServerCertificate>,
    clock: &Clock,
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root().clone())?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider()).allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_details(crypto_provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry a client certificate that is not looked at again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A plane without a socket, for tests that pause time: a real socket would be outrun by the clock.
#[cfg(test)]
#[derive(Clone)]
pub(crate) struct TestPlane {
    core: Arc<Core>,
    stop: watch::Sender<bool>,
}

#[cfg(test)]
impl TestPlane {
    pub(crate) fn new(config: &PlaneConfig, state: &StateFolder) -> Self {
        Self { core: Arc::new(Core::new(config, state).unwrap()), stop: watch::Sender::new(false) }
    }

    pub(crate) fn root_pem(&self) -> &str {
        self.core.service.ca.root_pem()
    }

    pub(crate) fn token(&self, namespace: &str, service_account: &str) -> Token {
        self.core.service.tokens.issue(namespace, service_account).unwrap()
    }

    pub(crate) fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (core, stopping) = (self.core.clone(), self.stop.subscribe());
        core.serve(stream, peer, stopping)
    }
}
