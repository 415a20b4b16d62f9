//! The running data plane: workers, publication of configuration, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::config::{Secret, Snapshot};

/// Settings of the data plane that do not change while it runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads; 0 takes the CPUs that the cgroup grants, at least 1 and at most 4 (`SKIFF_WORKERS`).
    pub workers: usize,
    /// Open downstream connections above which new ones are refused.
    pub max_connections: usize,
    /// Series of Istio's metrics that may exist; further label sets are counted as `overflow`.
    pub max_series: usize,
    /// Lines waiting to be written above which further ones are dropped and counted.
    pub access_log_queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 0, max_connections: 20_000, max_series: 10_000, access_log_queue: 8 * 1024 }
    }
}

/// A resource that was not taken over, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// `listener`, `cluster`, `route`, `secret`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why, naming the field and what was expected.
    pub reason: String,
}

/// What [`Proxy::apply`] did.
#[derive(Clone, Debug, Default)]
pub struct ApplyReport {
    /// Resources that keep their last good version, or are not served at all.
    pub rejected: Vec<Rejected>,
    /// Nothing was different.
    pub unchanged: bool,
}

/// Where a listener stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ListenerState {
    /// It accepts.
    Active,
    /// It could not be bound; it is tried again.
    Failed(String),
    /// It finishes what is in flight.
    Draining,
}

/// A listener on the admin page.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// Where it stands.
    pub state: ListenerState,
    /// Open connections.
    pub connections: u64,
}

/// A cluster on the admin page.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint on the admin page.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// Its address.
    pub address: String,
    /// `healthy`, or Envoy's words for why not (`/failed_outlier_check`, `/failed_eds_health`).
    pub health: String,
    /// Requests in flight.
    pub active: u64,
    /// Relative weight.
    pub weight: u32,
    /// `region/zone/sub_zone`.
    pub locality: String,
}

/// A certificate on the admin page.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateStatus {
    /// Secret name.
    pub name: String,
    /// Subject alternative names of the leaf, or subjects of the roots.
    pub identities: Vec<String>,
    /// Serial number, hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// A running data plane. Cheap to clone; the last clone that is dropped stops it.
#[derive(Clone)]
pub struct Proxy {
    _inner: Arc<()>,
}

impl Proxy {
    /// Starts the workers; nothing listens yet. Metrics are registered with `recorder`.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be created.
    pub fn start(options: &Options, recorder: Arc<dyn metrics::Recorder + Send + Sync>) -> std::io::Result<Self> {
        let _ = (options, recorder);
        Ok(Self { _inner: Arc::new(()) })
    }

    /// Publishes a configuration. What is unchanged is left alone; what cannot be compiled keeps its last good version.
    /// Returns once every listener of the snapshot has been bound or has failed to.
    pub fn apply(&self, snapshot: Snapshot) -> ApplyReport {
        let _ = snapshot;
        ApplyReport::default()
    }

    /// Publishes a certificate or trust bundle; new handshakes use it, open connections live on.
    ///
    /// # Errors
    /// When key and certificate do not belong together or a certificate cannot be parsed; the old secret keeps serving.
    pub fn set_secret(&self, name: &str, secret: Secret) -> Result<(), String> {
        let _ = (name, secret);
        Ok(())
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot::default())
    }

    /// All listeners.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        Vec::new()
    }

    /// All clusters.
    pub fn clusters(&self) -> Vec<ClusterStatus> {
        Vec::new()
    }

    /// All certificates in force.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }

    /// Stops accepting, tells peers to go elsewhere (`connection: close`, GOAWAY), finishes what is in flight. Inbound
    /// listeners only when `inbound_only`. Returns at once.
    pub fn drain(&self, inbound_only: bool) {
        let _ = inbound_only;
    }

    /// Waits until nothing is in flight, `deadline` at the most; whether everything finished.
    pub async fn drained(&self, deadline: Duration) -> bool {
        let _ = deadline;
        true
    }
}
