//! TLS origination: what [`UpstreamTls`] is compiled into.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::provider::{Providers, versions};
use super::secrets::{Context, Materials, Publish};
use super::verify::{PeerRules, ServerVerifier};
use super::{Handshake, PeerCertificate, Secrets, TlsError};
use crate::config::{CertificateSource, UpstreamTls};

/// ALPN lists that are kept ready beside the context's own; Istio's filter uses three.
const MAX_OVERRIDES: usize = 8;

/// Originates TLS for one cluster (Envoy `UpstreamTlsContext`); follows its secrets for as long as it lives.
///
/// Without a trust bundle every server certificate is accepted, as in Envoy: encryption without authentication.
#[derive(Clone, Debug)]
pub struct ClientContext(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tls: UpstreamTls,
    server_name: ServerName<'static>,
    providers: Providers,
    built: ArcSwapOption<Built>,
}

#[derive(Debug)]
struct Built {
    config: Arc<ClientConfig>,
    overrides: Mutex<Vec<Override>>,
    local: Option<Arc<PeerCertificate>>,
}

#[derive(Debug)]
struct Override {
    alpn: Box<[String]>,
    config: Arc<ClientConfig>,
}

impl ClientContext {
    /// Compiles `tls`. Secrets that have not arrived yet may arrive later.
    ///
    /// An SNI that is no DNS name (`outbound_.443_._.*.example.com` of a wildcard host) cannot be put on the wire by rustls;
    /// such a context sends none, which a sidecar does not mind.
    ///
    /// # Errors
    /// When the configuration contradicts itself, a file cannot be used, or a secret is not of the kind that is wanted.
    pub fn new(secrets: &Arc<Secrets>, tls: &UpstreamTls) -> Result<Self, TlsError> {
        Self::check(tls)?;
        let shared = Arc::new(Shared {
            tls: tls.clone(),
            server_name: server_name(&tls.sni),
            providers: secrets.providers.clone(),
            built: ArcSwapOption::empty(),
        });
        let lists = tls.revocation.as_ref().map(|revocation| &revocation.lists);
        let sources: Vec<_> = tls.certificate.iter().chain(&tls.trust).chain(lists).collect();
        secrets.register(&shared, &sources)?;
        Ok(Self(shared))
    }

    /// Whether `tls` can be compiled at all.
    ///
    /// # Errors
    /// When it contradicts itself.
    pub fn check(tls: &UpstreamTls) -> Result<(), TlsError> {
        if tls.trust.is_none() && (!tls.sans.is_empty() || tls.revocation.is_some()) {
            return Err(TlsError::Config("SAN matchers or revocation lists without a trust bundle prove nothing".to_owned()));
        }
        if tls.auto_san_validation && (tls.trust.is_none() || !tls.auto_sni) {
            return Err(TlsError::Config("host names are only proved with a trust bundle, and with auto_sni".to_owned()));
        }
        if versions(tls.versions).is_empty() {
            return Err(TlsError::Config("the lowest version is above the highest".to_owned()));
        }
        Ok(())
    }

    /// The configuration of this moment, with our own protocols or with `alpn` instead; `None` until every secret is there.
    pub fn config(&self, alpn: Option<&[String]>) -> Option<Arc<ClientConfig>> {
        self.0.built.load().as_ref().map(|built| built.config(alpn))
    }

    /// What to hand to rustls beside the configuration: the SNI. An IP address stands for "send none".
    pub fn server_name(&self) -> ServerName<'static> {
        self.0.server_name.clone()
    }

    /// The same for a connection to `host`, which counts with [`UpstreamTls::auto_sni`] alone.
    fn server_name_for(&self, host: Option<&str>) -> ServerName<'static> {
        let own = host.filter(|_| self.0.tls.auto_sni).and_then(|host| ServerName::try_from(host.to_owned()).ok());
        own.unwrap_or_else(|| self.server_name())
    }

    /// Shakes hands as the client of `host`. The caller sets the deadline.
    ///
    /// # Errors
    /// Those of the transport, [`TlsError::NotReady`], and every refusal of TLS; [`super::failure_reason`] words them as Envoy does.
    pub async fn connect<IO>(&self, io: IO, alpn: Option<&[String]>, host: Option<&str>) -> io::Result<(TlsStream<IO>, Handshake)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let built = self.0.built.load_full().ok_or_else(|| io::Error::other(TlsError::NotReady))?;
        let name = self.server_name_for(host);
        let stream = TlsConnector::from(built.config(alpn)).connect(name.clone(), io).await?;
        let sni = match &name {
            ServerName::DnsName(name) => Some(name.as_ref()),
            _ => Some(self.0.tls.sni.as_str()).filter(|sni| !sni.is_empty()),
        };
        let handshake = Handshake::new(stream.get_ref().1, sni, built.local.clone());
        Ok((stream, handshake))
    }
}

fn server_name(sni: &str) -> ServerName<'static> {
    let no_sni = ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED));
    if sni.is_empty() {
        return no_sni;
    }
    ServerName::try_from(sni.to_owned()).unwrap_or_else(|_| {
        tracing::warn!(sni, "SNI is no DNS name: connections go without");
        no_sni
    })
}

impl Built {
    fn config(&self, alpn: Option<&[String]>) -> Arc<ClientConfig> {
        let Some(alpn) = alpn else { return Arc::clone(&self.config) };
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = overrides.iter().find(|ready| *ready.alpn == *alpn) {
            return Arc::clone(&ready.config);
        }
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = wire(alpn);
        let config = Arc::new(config);
        if overrides.len() < MAX_OVERRIDES {
            overrides.push(Override { alpn: alpn.into(), config: Arc::clone(&config) });
        }
        config
    }
}

fn wire(alpn: &[String]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect()
}

impl Shared {
    fn build(&self, materials: &Materials) -> Result<Option<Built>, TlsError> {
        let identity = self.tls.certificate.as_ref().map(|source| materials.certificate(source)).transpose()?;
        let trust = self.tls.trust.as_ref().map(|source| materials.trust(source)).transpose()?;
        // A secret that is named but missing: no connection rather than one with less proof.
        if matches!(identity, Some(None)) || matches!(trust, Some(None)) {
            return Ok(None);
        }
        let (identity, trust) = (identity.flatten(), trust.flatten());
        let provider = &self.providers.client;
        let roots = trust.map(|trust| Arc::clone(&trust.roots));
        let revocations = match &roots {
            Some(roots) => materials.revocations(self.tls.revocation.as_ref(), roots, provider)?,
            None => None,
        };
        let verifier = ServerVerifier::new(roots, Arc::clone(provider), PeerRules::new(&self.tls.sans, &self.tls.pins))
            .checking_host(self.tls.auto_san_validation)
            .asking(revocations);
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&versions(self.tls.versions))
            .map_err(|error| TlsError::Config(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::<rustls::sign::SingleCertAndKey>::clone(&identity.resolver)),
            None => builder.with_no_client_auth(),
        };
        // An IP address is never sent.
        config.enable_sni = true;
        config.resumption = Resumption::disabled();
        config.alpn_protocols = wire(&self.tls.alpn);
        let local = identity.and_then(|identity| identity.own.clone());
        Ok(Some(Built { config: Arc::new(config), overrides: Mutex::default(), local }))
    }
}

impl Context for Shared {
    fn uses(&self, source: &CertificateSource) -> bool {
        let lists = self.tls.revocation.as_ref().map(|revocation| &revocation.lists);
        self.tls.certificate.as_ref() == Some(source) || self.tls.trust.as_ref() == Some(source) || lists == Some(source)
    }

    fn prepare(self: Arc<Self>, materials: &Materials) -> Result<Publish, TlsError> {
        let built = self.build(materials)?.map(Arc::new);
        Ok(Box::new(move || self.built.store(built)))
    }
}
