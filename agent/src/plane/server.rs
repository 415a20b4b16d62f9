//! The plane as a server: its start, the connections that it accepts, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ca::CertificateAuthority;
use super::config::PlaneConfig;
use super::connection::Core;
use super::onboarding::OnboardingConfig;
use super::state::{StateError, StateFolder};
use super::token::{TokenError, TokenIssuer};
use crate::identity::Token;

/// How long open calls may take to finish once the plane stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Connections that the kernel holds ready: after a restart a whole fleet comes back within a second.
const BACKLOG: u32 = 4096;
/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
            let listener = bind(address).map_err(listen)?;
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
    pub(super) fn onboarding(&self) -> Arc<super::onboarding::Onboarding> {
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

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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
