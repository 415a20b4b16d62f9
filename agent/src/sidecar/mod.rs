//! One sidecar: configuration and identity go into the data plane, the admin page shows what came of it, drain ends it.
//!
//! ```text
//! documents (folder, watched) ─► Translate ─► Proxy::apply ─┐
//! istiod ───────────────────────► Xds ───────► Proxy::apply ─┤
//! certificates ─────────────────► Identity ─► set_secret ───┼─► Readiness ─► admin page
//! SIGTERM, /quitquitquit ───────► Shutdown ─► Proxy::drain ─┘
//! ```
//! What can't be taken over never replaces what serves: a bad edit keeps the last good configuration, a bad certificate the last
//! good certificate.

mod configuration;
pub(crate) mod departure;
mod documents;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use skiff_proxy::Proxy;
use skiff_proxy::config::{Secret, Snapshot};
use skiff_proxy::tls::TlsError;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, Admin, Condition, FromIstiod, Node, Readiness};
use crate::exit::Failure;
use crate::logging::LogControl;
use crate::metrics::{self, Buckets, Metrics};
use crate::onboarding::{Membership, Registered};
use crate::shutdown::Shutdown;
use crate::status::{Status, StatusConfig};
use crate::xds::{Connection, HealthReport, Probe, Xds};
use configuration::Configuration;
pub(crate) use configuration::note_listeners;
pub(crate) use departure::drain;
pub use documents::{Document, read as read_documents};

/// How long draining may take unless `SKIFF_DRAIN_DEADLINE` says otherwise: ECS kills 30 s after SIGTERM.
pub const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Settings of one sidecar.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// Who it is in the mesh.
    pub node: Node,
    /// Where the admin page listens (`SKIFF_ADMIN_ADDRESS`).
    pub admin_address: SocketAddr,
    /// The ports of Istio's status server (`SKIFF_STATUS_PORT` and others); `None` for none.
    pub status: Option<StatusConfig>,
    /// From the first request to stop until the exit (`SKIFF_DRAIN_DEADLINE`).
    pub drain_deadline: Duration,
    /// The part of it in which new connections are still taken (`MINIMUM_DRAIN_DURATION`); an onboarded workload has its own.
    pub minimum_drain: Duration,
    /// Of the data plane.
    pub proxy: skiff_proxy::Options,
    /// Bounds of its histograms.
    pub histograms: &'static [Buckets],
}

/// What documents come to.
#[derive(Clone, Debug, Default)]
pub struct Translation {
    /// What is served from now on.
    pub snapshot: Snapshot,
    /// What was left out or looks unintended, one line each: `file:line: field: reason`.
    pub warnings: Vec<String>,
}

/// Makes a configuration of documents. An error refuses them all: one line each, `file:line: field: reason`.
pub type Translate = Box<dyn Fn(&[Document]) -> Result<Translation, Vec<String>> + Send + Sync>;

/// Documents of somebody who sends them; `None` before the first ones.
pub type PushedDocuments = Option<Arc<[Document]>>;

/// Fetches certificates and publishes them for as long as it is polled.
pub type Identity = Box<dyn FnOnce(SecretPublisher) -> BoxFuture<'static, Infallible> + Send>;

/// Where a sidecar's configuration comes from.
pub enum ConfigurationSource {
    /// Istio YAML.
    Documents {
        /// A folder, or a single file (`SKIFF_CONFIG`).
        path: PathBuf,
        /// Documents to configuration.
        translate: Translate,
    },
    /// Istio YAML that is sent.
    Pushed {
        /// All of it, whenever it changes.
        documents: watch::Receiver<PushedDocuments>,
        /// Documents to configuration.
        translate: Translate,
    },
    /// A mesh's istiod.
    Mesh {
        /// How it is reached.
        connection: Box<Connection>,
        /// Of the application, whose health is reported to it.
        probe: Option<Probe>,
    },
}

/// Where a sidecar gets its configuration and its certificates from.
pub struct Sources {
    /// Of the configuration.
    pub configuration: ConfigurationSource,
    /// `None` when no certificate is needed: the sidecar is ready without one then.
    pub identity: Option<Identity>,
    /// The registration of a workload that an onboarding plane has let in.
    pub membership: Option<Membership>,
}

/// Takes certificates over into the data plane. Cheap to clone.
#[derive(Clone)]
pub struct SecretPublisher {
    proxy: Proxy,
    readiness: Readiness,
}

impl SecretPublisher {
    /// [`Proxy::set_secret`]; the first certificate makes the sidecar ready as far as certificates go.
    ///
    /// # Errors
    /// As [`Proxy::set_secret`]; the secret before stays in force.
    pub fn publish(&self, name: &str, secret: Secret) -> Result<(), TlsError> {
        let is_certificate = matches!(secret, Secret::Certificate { .. });
        self.proxy.set_secret(name, secret)?;
        if is_certificate {
            self.readiness.met(Condition::Certificate);
        }
        Ok(())
    }

    /// Says on the readiness page why there is no certificate yet.
    pub fn waiting(&self, reason: &str) {
        self.readiness.waiting(Condition::Certificate, reason);
    }
}

/// What keeps the data plane at its configuration.
enum Following {
    Documents(Configuration),
    Mesh(Box<Xds>, Option<(Probe, watch::Sender<HealthReport>)>),
}

/// A sidecar that has been started: its listeners are bound, or being retried.
pub struct Sidecar {
    config: SidecarConfig,
    proxy: Proxy,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: Shutdown,
    logging: LogControl,
    configuration: Following,
    identity: Option<Identity>,
    membership: Option<Membership>,
    admin: TcpListener,
}

impl Sidecar {
    /// Binds the admin page, starts the data plane and applies the first configuration.
    ///
    /// # Errors
    /// When the admin address is in use, or the first configuration cannot be read or is refused.
    pub async fn start(
        config: SidecarConfig,
        sources: Sources,
        logging: LogControl,
        shutdown: Shutdown,
    ) -> Result<Self, Failure> {
        let admin = admin::bind(config.admin_address).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
        let metrics = Metrics::new(config.histograms).map_err(|error| Failure::Internal(error.to_string()))?;
        let proxy = Proxy::start(&config.proxy, metrics.recorder()).map_err(|error| Failure::Unavailable(error.to_string()))?;
        let readiness = Readiness::default();
        let Sources { configuration, identity, membership } = sources;
        if identity.is_none() {
            readiness.met(Condition::Certificate);
        }
        let configuration = match configuration {
            ConfigurationSource::Documents { path, translate } => {
                let mut documents = Configuration::watched(path, translate, proxy.clone(), readiness.clone(), &metrics)?;
                documents.reload().await.map_err(|reasons| Failure::Configuration(reasons.join("; ")))?;
                Following::Documents(documents)
            }
            ConfigurationSource::Pushed { documents, translate } => {
                let mut documents = Configuration::pushed(documents, translate, proxy.clone(), readiness.clone(), &metrics);
                // Nobody here can repair them: whoever sends them sends others.
                if let Err(reasons) = documents.reload().await {
                    documents.refused(&reasons);
                }
                Following::Documents(documents)
            }
            ConfigurationSource::Mesh { connection, probe } => {
                let (reports, health) = watch::channel(None);
                let reported = membership.as_ref().map(Membership::health);
                let health = reported.or_else(|| probe.is_some().then_some(health));
                let xds = Xds::new(*connection, health, proxy.clone(), readiness.clone(), &metrics);
                let xds = xds.map_err(|error| Failure::Internal(error.to_string()))?;
                Following::Mesh(Box::new(xds), probe.map(|probe| (probe, reports)))
            }
        };
        Ok(Self { config, proxy, metrics, readiness, shutdown, logging, configuration, identity, membership, admin })
    }

    /// Whether it may get traffic.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Runs until it is asked to stop, then drains; asked twice, it stops at once.
    ///
    /// # Errors
    /// When a part of it ends that must not.
    pub async fn run(self) -> Result<(), Failure> {
        let Self { config, proxy, metrics, readiness, shutdown, logging, configuration, identity, membership, admin } = self;
        let mesh = match &configuration {
            Following::Documents(_) => None,
            Following::Mesh(xds, _) => Some(FromIstiod { originals: xds.originals(), node: Arc::new(xds.node().clone()) }),
        };
        let page = Admin {
            proxy: proxy.clone(),
            metrics: metrics.clone(),
            logging,
            readiness: readiness.clone(),
            shutdown: shutdown.clone(),
            node: config.node,
            mesh,
            started: Instant::now(),
        };
        let mut parts = JoinSet::new();
        parts.spawn(page.serve(admin));
        if let Some(status) = config.status {
            let drain = drain_now(proxy.clone(), readiness.clone(), membership.is_none().then(|| shutdown.clone()));
            let status = Status::new(status, metrics.clone(), readiness.clone(), shutdown.clone(), drain);
            parts.spawn(async move { match status.run().await {} });
        }
        match configuration {
            Following::Documents(mut documents) => _ = parts.spawn(async move { documents.follow().await }),
            Following::Mesh(xds, probe) => {
                parts.spawn(async move { match xds.run().await {} });
                if let Some((probe, reports)) = probe {
                    parts.spawn(probe.run(reports));
                }
            }
        }
        let registered = membership.map(|membership| membership.start(&mut parts, &metrics, &readiness, &shutdown));
        parts.spawn(upkeep(metrics, proxy.clone()));
        if let Some(identity) = identity {
            let publisher = SecretPublisher { proxy: proxy.clone(), readiness: readiness.clone() };
            parts.spawn(async move { match identity(publisher).await {} });
        }
        tokio::select! {
            () = shutdown.requested() => {}
            () = application_ended(registered.as_ref()) => {
                tracing::info!("the application has ended, so does its sidecar");
                shutdown.request();
            }
            Some(ended) = parts.join_next() => {
                let reason = ended.err().map_or_else(String::new, |error| format!(": {error}"));
                return Err(Failure::Internal(format!("a part of the sidecar ended{reason}")));
            }
        }
        readiness.draining();
        tokio::select! {
            biased;
            () = shutdown.insisted() => match shutdown.skips_drain() {
                true => tracing::info!("drained before: not waiting for what is in flight"),
                false => tracing::warn!("asked twice to stop: not waiting for what is in flight"),
            },
            () = departure::depart(&proxy, config.drain_deadline, config.minimum_drain, registered.as_ref()) => {}
        }
        Ok(())
    }
}

/// The drain of somebody who asks for the end later (istio-agent's `/drain`), for which there is nothing to be done any more then:
/// `shutdown` skips it. An onboarded workload still has to leave.
fn drain_now(proxy: Proxy, readiness: Readiness, shutdown: Option<Shutdown>) -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(move || {
        readiness.draining();
        proxy.announce_drain();
        if let Some(shutdown) = &shutdown {
            shutdown.skip_drain();
        }
    })
}

/// For a sidecar that ends with its application.
async fn application_ended(registered: Option<&Registered>) {
    match registered {
        Some(registered) => registered.application().ended().await,
        None => std::future::pending().await,
    }
}

/// What has to be done every few seconds: histograms are folded, certificate files looked at, and memory is given back when the
/// configuration has been left alone for that long.
pub(crate) async fn upkeep(metrics: Metrics, proxy: Proxy) {
    let mut ticks = tokio::time::interval(metrics::UPKEEP);
    let (mut known, mut given_back) = (Weak::new(), false);
    loop {
        ticks.tick().await;
        let current = Arc::downgrade(&proxy.snapshot());
        if !current.ptr_eq(&known) {
            (known, given_back) = (current, false);
        } else if !std::mem::replace(&mut given_back, true) {
            skiff_memory::give_back();
        }
        metrics.upkeep();
        for error in proxy.reload_certificates() {
            tracing::warn!(%error, "certificate file not taken over, the one before stays");
        }
    }
}
