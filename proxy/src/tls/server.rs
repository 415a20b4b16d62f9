//! TLS termination: what [`DownstreamTls`] is compiled into.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::hello::read_client_hello;
use super::provider::{Providers, versions};
use super::secrets::{Context, Materials, Publish};
use super::verify::{ClientVerifier, PeerRules};
use super::{Handshake, PeerCertificate, Secrets, TlsError};
use crate::config::{CertificateSource, DownstreamTls};

/// Terminates TLS for one filter chain (Envoy `DownstreamTlsContext`); follows its secrets for as long as it lives.
#[derive(Debug)]
pub struct ServerContext(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tls: DownstreamTls,
    providers: Providers,
    built: ArcSwapOption<Built>,
}

#[derive(Debug)]
struct Built {
    config: Arc<ServerConfig>,
    /// For clients whose protocols we know none of. rustls would refuse them; BoringSSL, and so Envoy, goes on without ALPN.
    without_alpn: Arc<ServerConfig>,
    local: Option<Arc<PeerCertificate>>,
}

impl ServerContext {
    /// Compiles `tls`. Secrets that have not arrived yet may arrive later.
    ///
    /// # Errors
    /// When the configuration contradicts itself, a file cannot be used, or a secret is not of the kind that is wanted.
    pub fn new(secrets: &Arc<Secrets>, tls: &DownstreamTls) -> Result<Self, TlsError> {
        let asks = tls.require_client_certificate || !tls.sans.is_empty() || !tls.pins.is_empty() || tls.revocation.is_some();
        if tls.trust.is_none() && asks {
            return Err(TlsError::Config("client certificates are asked for, but nothing says who signs them".to_owned()));
        }
        if versions(tls.versions).is_empty() {
            return Err(TlsError::Config("the lowest version is above the highest".to_owned()));
        }
        let shared = Arc::new(Shared { tls: tls.clone(), providers: secrets.providers.clone(), built: ArcSwapOption::empty() });
        let lists = tls.revocation.as_ref().map(|revocation| &revocation.lists);
        let sources: Vec<_> = std::iter::once(&tls.certificate).chain(&tls.trust).chain(lists).collect();
        secrets.register(&shared, &sources)?;
        Ok(Self(shared))
    }

    /// The configuration of this moment; `None` until every secret is there. A caller that handshakes by itself must cope
    /// with clients whose ALPN matches none of ours: [`ServerContext::accept`] does.
    pub fn current(&self) -> Option<Arc<ServerConfig>> {
        self.0.built.load().as_ref().map(|built| Arc::clone(&built.config))
    }

    /// The configuration for a client that offers these protocols; `None` until every secret is there.
    pub fn for_alpn<'a>(&self, offered: impl IntoIterator<Item = &'a [u8]>) -> Option<Arc<ServerConfig>> {
        self.0.built.load().as_ref().map(|built| built.for_alpn(offered))
    }

    /// Shakes hands as the server. The caller sets the deadline. On failure the alert has been written.
    ///
    /// # Errors
    /// Those of the transport, [`TlsError::NotReady`], and every refusal of TLS; [`super::failure_reason`] words them as Envoy does.
    pub async fn accept<IO>(&self, mut io: IO) -> io::Result<(TlsStream<IO>, Handshake)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let built = self.0.built.load_full().ok_or_else(|| io::Error::other(TlsError::NotReady))?;
        let hello = read_client_hello(&mut io).await?;
        let config = match hello.client_hello().alpn() {
            Some(offered) => built.for_alpn(offered),
            None => Arc::clone(&built.config),
        };
        let stream = StartHandshake::from_parts(hello, io).into_stream(config).await?;
        let connection = stream.get_ref().1;
        let handshake = Handshake::new(connection, connection.server_name(), built.local.clone());
        Ok((stream, handshake))
    }
}

impl Built {
    fn for_alpn<'a>(&self, offered: impl IntoIterator<Item = &'a [u8]>) -> Arc<ServerConfig> {
        let ours = &self.config.alpn_protocols;
        let mut offered = offered.into_iter().peekable();
        let common = offered.peek().is_none() || offered.any(|theirs| ours.iter().any(|our| our == theirs));
        Arc::clone(if common { &self.config } else { &self.without_alpn })
    }
}

impl Shared {
    fn build(&self, materials: &Materials) -> Result<Option<Built>, TlsError> {
        let identity = materials.certificate(&self.tls.certificate)?;
        let trust = self.tls.trust.as_ref().map(|source| materials.trust(source)).transpose()?;
        let (Some(identity), Some(trust)) = (identity, trust.map_or(Some(None), |trust| trust.map(Some))) else {
            return Ok(None);
        };
        let provider = &self.providers.server;
        let verifier = match trust {
            Some(trust) => Arc::new(ClientVerifier::new(
                Arc::clone(&trust.roots),
                Arc::clone(provider),
                self.tls.require_client_certificate,
                PeerRules::new(&self.tls.sans, &self.tls.pins),
                materials.revocations(self.tls.revocation.as_ref(), &trust.roots, provider)?,
            )?),
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&versions(self.tls.versions))
            .map_err(|error| TlsError::Config(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<rustls::sign::SingleCertAndKey>::clone(&identity.resolver));
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = self.tls.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
        Ok(Some(Built { config: Arc::new(config), without_alpn, local: identity.own.clone() }))
    }
}

impl Context for Shared {
    fn uses(&self, source: &CertificateSource) -> bool {
        let lists = self.tls.revocation.as_ref().map(|revocation| &revocation.lists);
        self.tls.certificate == *source || self.tls.trust.as_ref() == Some(source) || lists == Some(source)
    }

    fn prepare(self: Arc<Self>, materials: &Materials) -> Result<Publish, TlsError> {
        let built = self.build(materials)?.map(Arc::new);
        Ok(Box::new(move || self.built.store(built)))
    }
}
