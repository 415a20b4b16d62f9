//! One connection to the plane: TLS, HTTP, limits, and which service answers.
//!
//! HTTP is hyper's, used directly: connection cap, handshake and request time-outs and the peer's certificate are ours to decide.
//! `Core::answer` tells gRPC services and the package repository apart by their paths.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Version;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use skiff_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateServiceServer, SERVICE_NAME as CERTIFICATES,
};
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_server::{OnboardingServiceServer, SERVICE_NAME as ONBOARDING};
use skiff_proxy::config::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::OWN_NAME;
use super::ca::CertificateAuthority;
use super::config::{Limits, PlaneConfig, Transport};
use super::onboarding::{Onboarding, OnboardingConfig, Service as OnboardingCalls};
use super::packages::Packages;
use super::server::{Authority, PlaneError};
use super::server_certificate::{Certificates, FileCertificate, ServerCertificate};
use super::service::{CertificateService, Peer};
use super::state::StateError;
#[cfg(test)]
use super::state::StateFolder;
#[cfg(test)]
use crate::identity::Token;
use crate::identity::{Clock, crypto_provider, sole_spiffe_id};

/// Everything that a connection needs.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) authority: Option<Authority>,
    pub(super) onboarding: Option<Arc<Onboarding>>,
    packages: Option<Arc<Packages>>,
    cluster_id: Arc<str>,
    /// `None` where something else terminates it.
    tls: Option<Arc<ServerConfig>>,
    own: Option<Arc<ServerCertificate>>,
    pub(super) files: Option<Arc<FileCertificate>>,
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
            return self.serve_http(Version::HTTP_2, stream, Peer::new(address, None), stopping).await;
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
        let version = match session.alpn_protocol() {
            Some(b"h2") => Version::HTTP_2,
            _ if self.packages.is_some() => Version::HTTP_11,
            _ => Version::HTTP_2,
        };
        self.serve_http(version, tls, peer, stopping).await;
    }

    /// HTTP/2 for all, and HTTP/1 for packages, which are all that there is without HTTP/2. No async function, which would keep room for
    /// the stream beside the connection that it becomes part of.
    fn serve_http(
        self: Arc<Self>,
        version: Version,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        stopping: watch::Receiver<bool>,
    ) -> BoxFuture<'static, ()> {
        let (core, caller, stream) = (self.clone(), peer.clone(), TokioIo::new(stream));
        let handler = service_fn(move |request| core.clone().answer(request, caller.clone()));
        match version {
            Version::HTTP_2 => {
                let connection = Box::pin(self.http2().serve_connection(stream, handler));
                Box::pin(self.follow(connection, peer, stopping))
            }
            _ => {
                let connection = Box::pin(self.http1().serve_connection(stream, handler));
                Box::pin(self.follow(connection, peer, stopping))
            }
        }
    }

    /// Until it ends, or is asked to go for its age or because the plane stops.
    async fn follow<C>(self: Arc<Self>, mut connection: Pin<Box<C>>, peer: Peer, mut stopping: watch::Receiver<bool>)
    where
        C: GracefulConnection<Error = hyper::Error>,
    {
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break ended,
                () = leave(&mut stopping, self.limits.max_connection_age) => {
                    // Who holds a stream stays, unless we go.
                    if peer.is_held() && !*stopping.borrow() {
                        continue;
                    }
                    connection.as_mut().graceful_shutdown();
                    // A peer that does not go has until its calls would have timed out anyway.
                    break timeout(self.limits.request_timeout, connection).await.unwrap_or(Ok(()));
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %peer.address, %error, "connection to the onboarding plane ended");
        }
    }

    /// Whom the client certificate names; rustls has verified that our root signed it and that it is valid.
    fn peer_identity(&self, certificates: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Option<SpiffeId> {
        let (_, leaf) = X509Certificate::from_der(certificates?.first()?).ok()?;
        sole_spiffe_id(&leaf).filter(|id| id.trust_domain == self.trust_domain)
    }

    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.limits.request_timeout).max_buf_size(16 * 1024);
        builder
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
