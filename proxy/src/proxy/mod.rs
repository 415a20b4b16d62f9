//! The running data plane: workers, publication of configuration, drain.

mod publish;
mod worker;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tokio::sync::Notify;

pub(crate) use self::worker::{Connection, Worker};

use self::publish::Published;
use self::worker::{Command, Handle};
use crate::config::{Node, Secret, Snapshot};
use crate::peer::Local;
use crate::stream_info::LocalInfo;
use crate::telemetry::access_log::{LogOptions, LogWriter};
use crate::telemetry::metrics::{ProxyMetrics, Registry};
use crate::tls::{Secrets, TlsError};
use crate::upstream::{Clusters, Task};

/// How long a drain waits for collectors.
const EXPORT_FLUSH: Duration = Duration::from_secs(2);

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
    /// Who we are: what peers are told, and the labels of our side in Istio's metrics.
    pub node: Node,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 0, max_connections: 20_000, max_series: 10_000, access_log_queue: 8 * 1024, node: Node::default() }
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
    /// Others of its addresses.
    pub additional_addresses: Vec<SocketAddr>,
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
    /// Its host name, empty where it has none.
    pub hostname: String,
    /// 0 is asked first.
    pub priority: u32,
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

/// The public part of a secret: nothing of it is confidential.
#[derive(Clone, Debug)]
pub struct PublicCertificates {
    /// Secret name.
    pub name: String,
    /// Roots of trust rather than a chain of our own.
    pub is_trust: bool,
    /// The chain, leaf first, or the roots.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// A running data plane. Cheap to clone; the last clone that is dropped stops it.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    published: Mutex<Published>,
    secrets: Arc<Secrets>,
    logs: LogWriter,
}

/// What workers and publication have in common.
pub(crate) struct Shared {
    options: Options,
    local: Local,
    /// The same for spans and log records.
    local_info: Arc<LocalInfo>,
    workers: Arc<[Handle]>,
    metrics: Arc<ProxyMetrics>,
    /// Open downstream connections.
    connections: AtomicUsize,
    /// Told when one has closed.
    closed: Notify,
    clusters: Arc<Clusters>,
}

impl Shared {
    fn connection_closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.closed.notify_waiters();
    }

    fn sweep(&self, now: Instant) {
        self.clusters.sweep(now);
    }
}

impl Proxy {
    /// Starts the workers; nothing listens yet. Metrics are registered with `recorder`.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be created.
    pub fn start(options: &Options, recorder: Arc<dyn metrics::Recorder + Send + Sync>) -> std::io::Result<Self> {
        let count = match options.workers {
            // What the cgroup grants; more than four are no use to a sidecar.
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            count => count,
        };
        let (workers, queues) = worker::handles(count);
        let workers: Arc<[Handle]> = workers.into();
        let secrets = Secrets::new();
        let first = Arc::clone(&workers);
        let clusters = Clusters::new(Arc::clone(&secrets), move |task, cluster| {
            first[0].send(match task {
                Task::Resolve => Command::Resolve(cluster),
                Task::CheckHealth => Command::CheckHealth(cluster),
            });
        });
        let registry = Arc::new(Registry::new(recorder, options.max_series));
        let metrics = Arc::new(ProxyMetrics::new(&registry));
        let queue = LogOptions { max_lines: options.access_log_queue, ..LogOptions::default() };
        let logs = LogWriter::start(queue, metrics.access_log_dropped.clone())?;
        let shared = Arc::new(Shared {
            local: Local::new(options.node.clone()),
            local_info: Arc::new(LocalInfo::from(&options.node)),
            options: options.clone(),
            workers,
            metrics,
            connections: AtomicUsize::new(0),
            closed: Notify::new(),
            clusters: Arc::new(clusters),
        });
        for (index, queue) in queues.into_iter().enumerate() {
            worker::start(index, queue, shared.clone())?;
        }
        let inner = Inner { shared, published: Mutex::default(), secrets, logs };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        // A panic while publishing leaves every resource in its old or its new version, never in between.
        self.inner.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a configuration. What is unchanged is left alone; what cannot be compiled keeps its last good version.
    /// Returns once every listener of the snapshot has been bound or has failed to; those that failed are tried again every second.
    pub fn apply(&self, snapshot: impl Into<Arc<Snapshot>>) -> ApplyReport {
        let report = self.published().apply(snapshot.into(), &self.inner);
        let metrics = &self.inner.shared.metrics;
        metrics.config_version(&self.snapshot().version);
        metrics.config_updates.increment(u64::from(!report.unchanged));
        metrics.config_rejected.increment(report.rejected.len() as u64);
        report
    }

    /// Publishes a certificate or trust bundle; new handshakes use it, open connections live on.
    ///
    /// # Errors
    /// When key and certificate do not belong together or a certificate cannot be parsed; the old secret keeps serving.
    pub fn set_secret(&self, name: &str, secret: Secret) -> Result<(), TlsError> {
        self.inner.secrets.set(name, secret)?;
        self.note_certificates();
        Ok(())
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published().snapshot()
    }

    /// All listeners.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.published().listeners()
    }

    /// All clusters.
    pub fn clusters(&self) -> Vec<ClusterStatus> {
        self.inner.shared.clusters.status()
    }

    /// All certificates in force.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        self.inner.secrets.certificates()
    }

    /// The public part of the secrets in force.
    pub fn public_certificates(&self) -> Vec<PublicCertificates> {
        self.inner.secrets.public()
    }

    /// Tells peers of inbound connections to go elsewhere, as [`Self::drain`] does, but goes on accepting: others may not know yet
    /// that they should. Listeners that come later are told, too.
    pub fn announce_drain(&self) {
        self.published().announce_drain(&self.inner);
    }

    /// Stops accepting, tells peers to go elsewhere (`connection: close`, GOAWAY), finishes what is in flight. Inbound
    /// listeners only when `inbound_only`. Returns at once.
    pub fn drain(&self, inbound_only: bool) {
        self.published().drain(inbound_only, &self.inner);
    }

    /// Waits until the listeners that drain have no connection left, `deadline` at the most; whether they had none. The access
    /// log is written out then, and spans and log records are exported, for two seconds at the most.
    pub async fn drained(&self, deadline: Duration) -> bool {
        let finished = tokio::time::timeout(deadline, async {
            loop {
                let closed = self.inner.shared.closed.notified();
                if self.published().draining_connections() == 0 {
                    return;
                }
                closed.await;
            }
        });
        let finished = finished.await.is_ok();
        self.inner.logs.flush(Duration::from_secs(1));
        let exporters = self.published().exporters.all();
        let flushed = async {
            for exporter in &exporters {
                exporter.flush().await;
            }
        };
        if tokio::time::timeout(EXPORT_FLUSH, flushed).await.is_err() {
            tracing::warn!("spans or log records could not be exported before the end");
        }
        finished
    }

    /// Reads certificate files again and publishes those that changed; what is wrong with the others, which keep serving as
    /// they were. The owner calls it every few seconds.
    pub fn reload_certificates(&self) -> Vec<TlsError> {
        let errors = self.inner.secrets.reload_files();
        self.note_certificates();
        errors
    }

    fn note_certificates(&self) {
        for certificate in self.inner.secrets.certificates() {
            self.inner.shared.metrics.certificate_expires(&certificate.name, certificate.not_after);
        }
    }

    /// Opens the access log files again, after they have been rotated.
    pub fn reopen_access_logs(&self) {
        self.inner.logs.reopen();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for worker in self.shared.workers.iter() {
            worker.send(Command::Stop);
        }
    }
}
