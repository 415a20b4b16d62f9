//! Workload Onboarding: how a workload outside of Kubernetes joins the mesh.
//!
//! - [`config`]: what the agent is told.
//! - [`credential`]: what a workload shows to prove who it is, from AWS, a token, or a [`plugin`].
//! - [`identity`]: who it is, once its credential has been verified, and what its objects are called. [`aws`] and [`jwt`]: how a
//!   plane verifies it.
//! - `host`: where a workload can be reached; `application`: when the application beside it has stopped.
//! - `client`, `member`: discover, authorize, register, and hold the registration; `boot`: what comes of it.
//!
//! ```text
//! ONBOARDING_CONFIG ─► Discover ─► credential ─► Authorize ─► Register ─► Boot ─► Sidecar
//!                         ▲                                      │  tokens, roots, documents ─► what runs
//!                         └──────────── 1 s to 15 s ◄────────────┘  health, heartbeats ─► plane
//! SIGTERM ─► Unregister ─► propagation delay ─► drain ─► application has stopped ─► exit
//! ```

mod application;
pub mod aws;
mod boot;
mod client;
pub mod config;
pub mod credential;
mod documents;
mod host;
pub mod identity;
pub mod jwt;
mod member;
pub mod plugin;
mod proof;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use boot::Boot;
pub use client::OnboardingError;
pub use documents::Assembly;
pub(crate) use host::source_address;
pub use host::{HostError, HostSettings};
pub use proof::Variables;

use crate::admin::{Node, Readiness};
use crate::connect;
use crate::fetch::{Client, TrustedRoots};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::sidecar::Sources;
use crate::translate::envoy::local_node;
use crate::xds::{HealthReport, Probe};
use application::Application;
use client::{PlaneClient, Registration};
use config::{ConnectedOver, Settings, TransportSecurity};
use credential::{CredentialOrigin, ObtainError};
use host::Host;
use member::{Joining, Member};

/// A workload that is to join.
pub struct Onboarding {
    member: Arc<Member>,
    hold: BoxFuture<'static, Infallible>,
    application: Application,
    addresses: Vec<IpAddr>,
    group: String,
}

/// What a workload that has joined runs with.
pub struct Joined {
    /// Who it is in the mesh.
    pub node: Node,
    /// The same for those it talks to, and for metrics.
    pub local: skiff_proxy::config::Node,
    /// Where its configuration and certificates come from.
    pub sources: Sources,
}

/// Why a workload cannot even try to join.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Nobody vouches for it.
    #[error(transparent)]
    Credential(#[from] ObtainError),
    /// Nobody can reach it.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Onboarding {
    /// Finds out where the workload is and who vouches for it. Nothing is sent to the plane yet.
    ///
    /// # Errors
    /// When there is nobody, or no way to it.
    pub async fn prepare(settings: &Settings, host: HostSettings, variables: Variables<'_>) -> Result<Self, PrepareError> {
        let client = Client::new(TrustedRoots::System);
        let Settings { onboarding, agent, .. } = settings;
        let host = Host::find(host, agent, onboarding.connected_over, variables, &client).await?;
        let credentials = proof::origin(agent, variables, &client).await?;
        Ok(Self::new(settings, credentials, host))
    }

    fn new(settings: &Settings, credentials: CredentialOrigin, host: Host) -> Self {
        let Settings { onboarding, agent, roots } = settings;
        match onboarding.endpoint.security {
            TransportSecurity::Tls { insecure_skip_verify: true, .. } => {
                tracing::warn!(
                    "transportSecurity.tls.insecureSkipVerify: anybody can be the onboarding plane; never in production"
                );
            }
            TransportSecurity::None => {
                tracing::warn!("transportSecurity.none: what is said to the onboarding plane can be read and changed by others");
            }
            TransportSecurity::Tls { .. } => {}
        }
        let registration = Registration {
            revision: agent.revision.clone(),
            addresses: host.advertised,
            labels: onboarding.labels.clone().into_iter().collect(),
            over_internet: onboarding.connected_over == ConnectedOver::Internet,
        };
        let joining = Joining {
            plane: PlaneClient::new(&onboarding.endpoint, roots.as_deref()),
            group: onboarding.workload_group.clone(),
            credentials,
            registration,
            first_retry: agent.first_retry,
            retry_cap: agent.retry_cap,
        };
        let member = Arc::new(Member::new(joining));
        let held = Arc::clone(&member);
        let hold = Box::pin(async move { held.hold().await });
        Self { member, hold, application: host.application, addresses: host.own, group: onboarding.workload_group.name.clone() }
    }

    /// Registers, again and again until the plane lets us in; `None` when the process is to stop before. `metadata` is what istiod
    /// is to be told beside.
    pub async fn join(mut self, metadata: Map<String, Json>, shutdown: &Shutdown) -> Option<Joined> {
        let mut boots = self.member.boot.subscribe();
        let boot = tokio::select! {
            boot = boots.wait_for(Option::is_some) => boot.ok()?.clone()?,
            never = &mut self.hold => match never {},
            () = shutdown.requested() => return None,
        };
        let workload = boot.workload(&self.group, self.addresses.clone());
        let node = boot.node(&workload);
        let live = &self.member.live;
        let identity = boot.identity(live, self.member.plane());
        let told = boot.told(&workload, &node, metadata);
        let local = local_node(&told);
        let configuration = boot.configuration(live, workload, told, &identity);
        let registered = Registered { member: self.member, application: self.application };
        let membership = Membership { registered, hold: self.hold, probe: boot.probe };
        let identity = Some(connect::certificates(identity));
        Some(Joined { node, local, sources: Sources { configuration, identity, membership: Some(membership) } })
    }
}

/// The registration of a workload whose sidecar is about to run.
pub struct Membership {
    registered: Registered,
    hold: BoxFuture<'static, Infallible>,
    probe: Option<Probe>,
}

impl Membership {
    /// What the plane, and istiod where there is one, is told about the application.
    pub(crate) fn health(&self) -> watch::Receiver<HealthReport> {
        self.registered.member.health.subscribe()
    }

    /// Holds the registration and reports the application's health, once the sidecar is ready and until it is asked to stop.
    pub(crate) fn start(
        self,
        parts: &mut JoinSet<()>,
        metrics: &Metrics,
        readiness: &Readiness,
        shutdown: &Shutdown,
    ) -> Registered {
        let Self { registered, hold, probe } = self;
        registered.member.count(metrics);
        parts.spawn(async move { match hold.await {} });
        let (member, readiness, shutdown) = (Arc::clone(&registered.member), readiness.clone(), shutdown.clone());
        parts.spawn(async move {
            tokio::select! {
                () = report_health(&member, probe, &readiness) => {}
                () = shutdown.requested() => {}
            }
            std::future::pending::<()>().await;
        });
        registered
    }
}

/// The registration of a workload whose sidecar runs.
pub(crate) struct Registered {
    member: Arc<Member>,
    application: Application,
}

impl Registered {
    /// Gives the registration up; how long others may still send requests.
    pub(crate) async fn leave(&self) -> Duration {
        self.member.leave().await
    }

    /// The application beside the sidecar.
    pub(crate) fn application(&self) -> &Application {
        &self.application
    }
}

/// A workload is withheld from others until a first good report. One without a probe is healthy as soon as its sidecar is ready.
async fn report_health(member: &Member, probe: Option<Probe>, readiness: &Readiness) {
    // Probes end when nobody listens, and between two streams nobody else does.
    let _listening = member.health.subscribe();
    readiness.ready().await;
    match probe {
        Some(probe) => probe.run(member.health.clone()).await,
        None => _ = member.health.send_replace(Some(Ok(()))),
    }
}
