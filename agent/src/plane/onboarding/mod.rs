//! The onboarding plane's own service: who may join, what is registered for them, and when it ends.
//!
//! The way of a workload: `service` discovers and authorises it, `stream` holds its registration, which [`Onboarding::admit`]
//! writes down; `upkeep` removes what is over and ends what is no longer admitted. Where no istiod does, `catalog` tells workloads of
//! each other.

mod admission;
mod catalog;
mod service;
mod stream;
#[cfg(test)]
mod tests;
mod upkeep;

pub(super) use service::Service;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value as Json};
use skiff_proxy::config::TrustDomain;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::catalog::Catalog;
use super::limits::{Rate, Rates, Signatures};
use super::nonce::Nonces;
use super::numbers::Numbers;
use super::secrets::PlaneSecrets;
use super::session::SessionTokens;
use super::store::{EmbeddedStore, Store};
use super::streams::Streams;
use super::verify::Verifiers;
use crate::identity::Clock;
use crate::metrics::Metrics;

/// Workloads that documents are on their way to at once.
const TELLING: usize = 512;

/// What an onboarding plane is made of.
pub struct OnboardingConfig {
    /// How it behaves.
    pub settings: OnboardingSettings,
    /// Its id and keys.
    pub secrets: PlaneSecrets,
    /// Its objects.
    pub store: Arc<dyn Store>,
    /// The YAML that workloads are sent, where no istiod tells them what they need; the same store as `store`.
    pub documents: Option<Arc<EmbeddedStore>>,
    /// Whom it believes.
    pub verifiers: Verifiers,
    /// Where it counts.
    pub metrics: Metrics,
    /// Judges tokens and the age of everything.
    pub clock: Clock,
}

/// How an onboarding plane behaves.
#[derive(Clone, Debug)]
pub struct OnboardingSettings {
    /// Which replica it is (`connectedTo`): its pod.
    pub instance: String,
    /// Lifetime of session tokens.
    pub session_lifetime: Duration,
    /// How long the registration of a workload outlives its end, so that others hear of it first.
    pub propagation_delay: Duration,
    /// How often agents are asked to send a heartbeat. Who sends nothing for three times this has lost its stream.
    pub heartbeat_interval: Duration,
    /// How long a workload that has lost its stream is still shown to others, where no istiod knows better.
    pub disconnect_grace: Duration,
    /// After which a registration without stream is removed; in a mesh only if istiod does not see the workload either.
    pub retention: Duration,
    /// After a start of the plane, how long every workload may take to come back before it counts as lost.
    pub start_grace: Duration,
    /// What sidecars are told.
    pub mesh: MeshSettings,
    /// What callers may take up.
    pub limits: OnboardingLimits,
}

/// What every sidecar of the mesh is told.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// Cluster id.
    pub cluster_id: String,
    /// Mesh id; empty is the trust domain.
    pub mesh_id: String,
    /// `host:port` of the certificate authority; empty is the plane's own endpoint.
    pub ca_address: String,
    /// `host:port` of istiod; empty where the plane itself sends documents.
    pub discovery_address: String,
    /// Name in the certificates of both; empty is the host of the address.
    pub control_plane_san: String,
    /// PEM roots of the control plane.
    pub roots: watch::Receiver<Arc<str>>,
    /// Istio's ProxyConfig of the mesh (`defaultConfig`).
    pub proxy_config: watch::Receiver<Arc<Map<String, Json>>>,
}

/// What callers may take up.
#[derive(Clone, Copy, Debug)]
pub struct OnboardingLimits {
    /// Streams that are held at once.
    pub streams: usize,
    /// Calls for authorisation of one address, which may be that of a NAT gateway.
    pub rate: Rate,
    /// Credentials that are verified at once; further ones wait.
    pub verifications: usize,
    /// How long a credential may wait, and how long it may take.
    pub verification_timeout: Duration,
    /// For the first message of a stream, and for each that is sent on it.
    pub message_timeout: Duration,
    /// Messages of a workload within a heartbeat interval.
    pub messages: u32,
}

impl Default for OnboardingLimits {
    fn default() -> Self {
        Self {
            streams: 20_000,
            rate: Rate { per_second: 500.0, burst: 5000.0 },
            verifications: 64,
            verification_timeout: Duration::from_secs(20),
            message_timeout: Duration::from_secs(10),
            messages: 200,
        }
    }
}

impl OnboardingSettings {
    /// Tetrate's defaults, and our own where theirs are not known.
    pub fn new(instance: impl Into<String>, mesh: MeshSettings) -> Self {
        Self {
            instance: instance.into(),
            session_lifetime: Duration::from_secs(3600),
            propagation_delay: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(10),
            disconnect_grace: Duration::from_secs(8),
            retention: Duration::from_secs(300),
            start_grace: Duration::from_secs(60),
            mesh,
            limits: OnboardingLimits::default(),
        }
    }
}

impl MeshSettings {
    /// Of a plane that is certificate authority and control plane itself.
    pub fn embedded(trust_domain: TrustDomain, cluster_id: impl Into<String>, root_pem: &str) -> Self {
        let (_, roots) = watch::channel(root_pem.into());
        let (_, proxy_config) = watch::channel(Arc::default());
        Self {
            trust_domain,
            cluster_id: cluster_id.into(),
            mesh_id: String::new(),
            ca_address: String::new(),
            discovery_address: String::new(),
            control_plane_san: super::OWN_NAME.to_owned(),
            roots,
            proxy_config,
        }
    }
}

/// The service behind one plane.
pub(super) struct Onboarding {
    settings: OnboardingSettings,
    uid: String,
    store: Arc<dyn Store>,
    inputs: Option<Arc<EmbeddedStore>>,
    verifiers: Verifiers,
    nonces: Nonces,
    sessions: SessionTokens,
    signatures: Signatures,
    rates: Rates,
    verifications: Semaphore,
    streams: Streams,
    catalog: watch::Sender<Option<Arc<Catalog>>>,
    telling: Semaphore,
    departures: upkeep::Departures,
    numbers: Numbers,
    clock: Clock,
    stopping: watch::Sender<bool>,
    /// Every stream has a task.
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Onboarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Onboarding").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Onboarding {
    /// # Errors
    /// When there is no randomness.
    pub(super) fn new(config: OnboardingConfig) -> Result<Self, String> {
        let OnboardingConfig { settings, secrets, store, documents, verifiers, metrics, clock } = config;
        let limits = &settings.limits;
        Ok(Self {
            uid: secrets.uid().to_owned(),
            store,
            inputs: documents,
            verifiers,
            nonces: Nonces::new(secrets.nonce_key(), secrets.uid(), clock.clone())?,
            sessions: SessionTokens::new(&secrets, settings.session_lifetime, clock.clone()),
            signatures: Signatures::default(),
            rates: Rates::new(limits.rate),
            verifications: Semaphore::new(limits.verifications),
            streams: Streams::new(limits.streams, clock.now()),
            catalog: watch::Sender::new(None),
            telling: Semaphore::new(TELLING),
            departures: upkeep::Departures::default(),
            numbers: Numbers::new(&metrics),
            clock,
            stopping: watch::Sender::new(false),
            tasks: Mutex::default(),
            settings,
        })
    }

    /// How much longer than others its calls may take: AWS is asked.
    pub(super) fn patience(&self) -> Duration {
        self.settings.limits.verification_timeout
    }

    /// Ends every stream, so that agents go to another replica.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Cuts off what does not end by itself.
    pub(super) fn abort(&self) {
        self.tasks().abort_all();
    }

    /// Runs `task` for as long as it takes, at most as long as the plane.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
