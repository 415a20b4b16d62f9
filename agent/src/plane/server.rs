//! The plane as a server: TLS, HTTP/2, limits, and an orderly end.
//!
//! HTTP is hyper's, used directly: connection cap, handshake and request time-outs and the peer's certificate are ours to decide.
//! `Core::answer` tells gRPC services and the package repository apart by their paths.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use skiff_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateServiceServer, SERVICE_NAME as CERTIFICATES,
};
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_server::{OnboardingServiceServer, SERVICE_NAME as ONBOARDING};
use skiff_proxy::config::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::OWN_NAME;
use super::ca::CertificateAuthority;
use super::onboarding::{Onboarding, OnboardingConfig, Service as OnboardingCalls};
use super::packages::Packages;
use super::server_certificate::{Certificates, FileCertificate, ServerCertificate};
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
    /// Where else.
    pub also_listen: Vec<SocketAddr>,
    /// How connections are protected.
    pub transport: Transport,
    /// The folder of packages that are served under `/install/`.
    pub packages: Option<PathBuf>,
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
            also_listen: Vec::new(),
            transport: Transport::Own,
            packages: None,
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

/// How connections to a plane are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS with a certificate of the plane's own authority.
    Own,
    /// TLS with this certificate; who asks for istiod's name gets that of the plane's own authority, if it has one.
    Files {
        /// PEM chain.
        certificate: PathBuf,
        /// PEM key.
        key: PathBuf,
    },
    /// None: something before the plane terminates TLS.
    Plaintext,
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

/// The plane's own certificate authority, and the issuer of the tokens that it takes.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Signs.
    pub ca: Arc<CertificateAuthority>,
    /// Says who may have a certificate.
    pub tokens: Arc<TokenIssuer>,
}

impl Authority {
    /// Loads the keys from `state`, or makes and keeps them.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub fn load_or_create(config: &PlaneConfig, state: &StateFolder) -> Result<Self, StateError> {
        let PlaneConfig { trust_domain, clock, .. } = config;
        let ca = CertificateAuthority::load_or_create(
            state,
            trust_domain,
            config.default_certificate_lifetime,
            config.max_certificate_lifetime,
            clock.clone(),
        )?;
        let (id, lifetime) = (config.id.clone(), config.token_lifetime);
        let tokens = TokenIssuer::load_or_create(state, id, trust_domain.clone(), lifetime, clock.clone())?;
        Ok(Self { ca: Arc::new(ca), tokens: Arc::new(tokens) })
    }
}

/// A running plane; it stops when dropped.
#[derive(Debug)]
pub struct Plane {
    addresses: Vec<SocketAddr>,
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
    /// What else runs.
    tasks: JoinSet<()>,
    _state: Option<StateFolder>,
}

impl Plane {
    /// Loads or makes the keys and starts to serve certificates.
    ///
    /// # Errors
    /// When the state cannot be used or the address is taken.
    pub async fn start(config: PlaneConfig) -> Result<Self, PlaneError> {
        let state = StateFolder::open(&config.state)?;
        let authority = Authority::load_or_create(&config, &state)?;
        Self::serve(config, Some(authority), None, Some(state)).await
    }

    /// Starts to serve: certificates, when it has an authority of its own, and onboarding. `state` is kept locked meanwhile.
    ///
    /// # Errors
    /// When its certificate cannot be used or an address is taken.
    pub async fn serve(
        config: PlaneConfig,
        authority: Option<Authority>,
        onboarding: Option<OnboardingConfig>,
        state: Option<StateFolder>,
    ) -> Result<Self, PlaneError> {
        let core = Arc::new(Core::new(&config, authority, onboarding)?);
        let (stop, stopping) = watch::channel(false);
        let (mut addresses, mut accepting, mut tasks) = (Vec::new(), JoinSet::new(), JoinSet::new());
        for address in [config.listen].into_iter().chain(config.also_listen) {
            let listen = |source| PlaneError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(listen)?;
            let address = listener.local_addr().map_err(listen)?;
            addresses.push(address);
            accepting.spawn(accept(core.clone(), listener, stopping.clone()));
            tracing::info!(%address, trust_domain = %config.trust_domain, "onboarding plane serves");
        }
        if let Some(files) = core.files.clone() {
            tasks.spawn(async move { files.follow().await });
        }
        if let Some(onboarding) = core.onboarding.clone() {
            tasks.spawn(async move { match onboarding.run().await {} });
        }
        Ok(Self { addresses, core, stop, accepting, tasks, _state: state })
    }

    /// Where it listens, first of all.
    pub fn address(&self) -> SocketAddr {
        // There always is one.
        self.addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// The mesh root that its clients have to trust, PEM; empty when it has no authority of its own.
    pub fn root_pem(&self) -> &str {
        self.core.authority.as_ref().map_or("", |authority| authority.ca.root_pem())
    }

    /// A token for the service account `service_account` in `namespace`; written to the audit log, without the token.
    ///
    /// # Errors
    /// When these names cannot be part of an identity, or the plane has no authority of its own.
    pub fn issue_token(&self, namespace: &str, service_account: &str) -> Result<Token, TokenError> {
        let authority = self.core.authority.as_ref().ok_or(TokenError::Signing)?;
        let issued = authority.tokens.issue(namespace, service_account);
        match &issued {
            Ok(_) => tracing::info!(target: "audit", event = "token", decision = "issued", namespace, service_account),
            Err(error) => {
                tracing::warn!(target: "audit", event = "token", decision = "denied", namespace, service_account, reason = %error);
            }
        }
        issued
    }

    #[cfg(test)]
    pub(super) fn onboarding(&self) -> Arc<Onboarding> {
        self.core.onboarding.clone().unwrap()
    }

    /// Runs `task` for as long as the plane.
    pub fn run_beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Stops accepting, asks held streams to go elsewhere, lets open calls finish for up to five seconds, and releases the state
    /// folder.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(onboarding) = &self.core.onboarding {
            onboarding.stop();
        }
        let ended = async { while self.accepting.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_GRACE, ended).await.is_err() {
            tracing::warn!("calls to the onboarding plane were cut off");
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.accepting.abort_all();
        if let Some(onboarding) = &self.core.onboarding {
            onboarding.abort();
        }
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
                // Small messages, which somebody waits for.
                let _ = tcp.set_nodelay(true);
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
    authority: Option<Authority>,
    onboarding: Option<Arc<Onboarding>>,
    packages: Option<Arc<Packages>>,
    cluster_id: Arc<str>,
    /// `None` where something else terminates it.
    tls: Option<Arc<ServerConfig>>,
    own: Option<Arc<ServerCertificate>>,
    files: Option<Arc<FileCertificate>>,
    trust_domain: TrustDomain,
    limits: Limits,
    connections: Arc<Semaphore>,
}

impl Core {
    pub(super) fn new(
        config: &PlaneConfig,
        authority: Option<Authority>,
        onboarding: Option<OnboardingConfig>,
    ) -> Result<Self, PlaneError> {
        let PlaneConfig { trust_domain, clock, limits, .. } = config;
        let mut names: Vec<String> = [OWN_NAME, "localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned).into();
        names.extend(config.server_names.iter().cloned());
        let own = authority.as_ref().map(|authority| ServerCertificate::new(&authority.ca, names, clock.clone()));
        let own = own.transpose().map_err(PlaneError::Tls)?.map(Arc::new);
        let files = match &config.transport {
            Transport::Files { certificate, key } => {
                Some(Arc::new(FileCertificate::read(certificate, key).map_err(PlaneError::Tls)?))
            }
            Transport::Own | Transport::Plaintext => None,
        };
        let packages = config.packages.clone().map(|folder| Arc::new(Packages::new(folder)));
        let tls = match &config.transport {
            Transport::Plaintext => None,
            Transport::Own | Transport::Files { .. } => {
                let certificates = Certificates::new(own.clone(), files.clone()).map_err(PlaneError::Tls)?;
                let ca = authority.as_ref().map(|authority| &*authority.ca);
                let config = server_config(ca, Arc::new(certificates), clock, packages.is_some());
                Some(Arc::new(config.map_err(|error| PlaneError::Tls(error.to_string()))?))
            }
        };
        let onboarding = onboarding.map(Onboarding::new).transpose().map_err(StateError::Crypto)?;
        Ok(Self {
            authority,
            onboarding: onboarding.map(Arc::new),
            packages,
            cluster_id: config.cluster_id.as_str().into(),
            tls,
            own,
            files,
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
        stopping: watch::Receiver<bool>,
    ) {
        let Ok(_permit) = self.connections.clone().try_acquire_owned() else {
            tracing::warn!(peer = %address, limit = self.limits.max_connections, "too many connections to the onboarding plane");
            return;
        };
        let Some(tls) = self.tls.clone() else {
            return self.serve_http2(stream, Peer::new(address, None), stopping).await;
        };
        if let (Some(own), Some(authority)) = (&self.own, &self.authority) {
            own.renew_if_due(&authority.ca);
        }
        let tls = match timeout(self.limits.handshake_timeout, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(peer = %address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(peer = %address, "TLS handshake timed out"),
        };
        let session = tls.get_ref().1;
        let peer = Peer::new(address, self.peer_identity(session.peer_certificates()));
        // Without ALPN it is a client that is asked for packages; where there are none, HTTP/2 is all there is.
        match session.alpn_protocol() {
            Some(b"h2") => self.serve_http2(tls, peer, stopping).await,
            _ if self.packages.is_some() => self.serve_http1(tls, peer, stopping).await,
            _ => self.serve_http2(tls, peer, stopping).await,
        }
    }

    async fn serve_http2(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        mut stopping: watch::Receiver<bool>,
    ) {
        let (core, caller) = (self.clone(), peer.clone());
        let handler = service_fn(move |request| core.clone().answer(request, caller.clone()));
        let connection = self.http2().serve_connection(TokioIo::new(stream), handler);
        let mut connection = std::pin::pin!(connection);
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break ended,
                () = leave(&mut stopping, self.limits.max_connection_age) => {
                    // Who holds a stream stays, unless we go.
                    if peer.is_held() && !*stopping.borrow() {
                        continue;
                    }
                    connection.as_mut().graceful_shutdown();
                    // A peer that ignores GOAWAY has until its calls would have timed out anyway.
                    break timeout(self.limits.request_timeout, connection).await.unwrap_or(Ok(()));
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %peer.address, %error, "connection to the onboarding plane ended");
        }
    }

    /// Packages are all that there is without HTTP/2.
    async fn serve_http1(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        mut stopping: watch::Receiver<bool>,
    ) {
        let (core, caller) = (self.clone(), peer.clone());
        let handler = service_fn(move |request| core.clone().answer(request, caller.clone()));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.request_timeout)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), handler);
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(peer = %peer.address, %error, "connection to the package repository ended");
            },
            () = leave(&mut stopping, self.limits.max_connection_age) => {}
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
            // Ten thousand workloads hold a connection: what each may make us keep counts.
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(256 * 1024)
            .max_send_buf_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        builder
    }

    /// Every request, by its path.
    async fn answer(
        self: Arc<Self>,
        mut request: http::Request<Incoming>,
        peer: Peer,
    ) -> Result<http::Response<Body>, Infallible> {
        request.extensions_mut().insert(peer);
        let path = request.uri().path().to_owned();
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let size = self.limits.max_message_bytes;
        match (service, &self.authority, &self.onboarding, &self.packages) {
            (CERTIFICATES, Some(Authority { ca, tokens }), _, _) => {
                let service = CertificateService { ca: ca.clone(), tokens: tokens.clone(), cluster_id: self.cluster_id.clone() };
                let service = IstioCertificateServiceServer::new(service).max_decoding_message_size(size);
                Ok(within(self.limits.request_timeout, service, request).await)
            }
            (ONBOARDING, _, Some(onboarding), _) => {
                // The answer to a registration is a stream, which begins in time and then goes on.
                let limit = self.limits.request_timeout + onboarding.patience();
                let service = OnboardingServiceServer::new(OnboardingCalls(onboarding.clone())).max_decoding_message_size(size);
                Ok(within(limit, service, request).await)
            }
            ("install", _, _, Some(packages)) => {
                let method = request.method().clone();
                Ok(packages.answer(&method, &path).await)
            }
            _ => Ok(unknown(&request)),
        }
    }
}

async fn leave(stopping: &mut watch::Receiver<bool>, age: Duration) {
    // A dropped sender is a stop, too.
    let _ = timeout(age, stopping.wait_for(|stop| *stop)).await;
}

async fn within<S>(limit: Duration, mut service: S, request: http::Request<Incoming>) -> http::Response<Body>
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>,
{
    let late = || Status::deadline_exceeded("the request took too long").into_http();
    timeout(limit, service.call(request)).await.map_or_else(|_| late(), |Ok(response)| response)
}

fn unknown(request: &http::Request<Incoming>) -> http::Response<Body> {
    let is_grpc =
        request.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        return Status::unimplemented("this plane has no such service").into_http();
    }
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = http::StatusCode::NOT_FOUND;
    response
}

fn server_config(
    ca: Option<&CertificateAuthority>,
    certificates: Arc<dyn ResolvesServerCert>,
    clock: &Clock,
    with_http1: bool,
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let builder =
        ServerConfig::builder_with_details(crypto_provider(), Arc::new(clock.clone())).with_safe_default_protocol_versions()?;
    let builder = match ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.root().clone())?;
            let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider());
            builder.with_client_cert_verifier(clients.allow_unauthenticated().build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec()];
    if with_http1 {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
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
        let authority = Authority::load_or_create(config, state).unwrap();
        Self { core: Arc::new(Core::new(config, Some(authority), None).unwrap()), stop: watch::Sender::new(false) }
    }

    pub(crate) fn root_pem(&self) -> &str {
        self.core.authority.as_ref().unwrap().ca.root_pem()
    }

    pub(crate) fn token(&self, namespace: &str, service_account: &str) -> Token {
        self.core.authority.as_ref().unwrap().tokens.issue(namespace, service_account).unwrap()
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
