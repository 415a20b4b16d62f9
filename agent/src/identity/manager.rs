//! Keeps the workload in possession of a valid certificate.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use serde::Serialize;
use skiff_proxy::config::{Secret, SpiffeId};
use tokio::sync::watch;
use tokio::time::sleep;

use super::backoff::Backoff;
use super::ca_client::CaClient;
use super::certificate::WorkloadCertificate;
use super::clock::Clock;
use super::files::write_certificates;

/// Istio's name for the workload certificate.
pub const WORKLOAD_SECRET: &str = "default";
/// Istio's name for the mesh's trust roots.
pub const ROOT_SECRET: &str = "ROOTCA";

/// The wall clock is looked at this often while waiting for a rotation: timers stand still while a machine sleeps, and
/// clocks get set.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// An authority that issues certificates of no duration must not get a request storm for it.
const MIN_ROTATION: Duration = Duration::from_secs(1);

/// Once a certificate has ended no connection can be made with it: an authority that is back is noticed within this.
const ENDED_RETRY: Duration = Duration::from_secs(5);

/// Whose certificate, how long, and when it is renewed.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// Who the workload is.
    pub id: SpiffeId,
    /// The lifetime to ask for (`SECRET_TTL`).
    pub lifetime: Duration,
    /// The part of the lifetime after which it is renewed (Istio's `SECRET_GRACE_PERIOD_RATIO`, which is not an option here).
    pub rotation_ratio: f64,
    /// Spread of [`Self::rotation_ratio`] to both sides.
    pub rotation_jitter: f64,
    /// Bound of the first wait after a failure.
    pub first_retry: Duration,
    /// Bound of any wait after a failure.
    pub retry_cap: Duration,
    /// Folder that every certificate is written to (`OUTPUT_CERTS`).
    pub output: Option<PathBuf>,
}

impl IdentityConfig {
    /// Istio's defaults: 24 hours, renewed at 50 % ± 1 %; retries from 100 ms to 30 s.
    pub fn new(id: SpiffeId) -> Self {
        Self {
            id,
            lifetime: Duration::from_secs(24 * 3600),
            rotation_ratio: 0.5,
            rotation_jitter: 0.01,
            first_retry: Duration::from_millis(100),
            retry_cap: Duration::from_secs(30),
            output: None,
        }
    }
}

/// How the identity is doing: for the admin page, readiness and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityStatus {
    /// Who the workload is.
    pub id: SpiffeId,
    /// Serial number of the certificate in force, hex.
    pub serial: Option<String>,
    /// Start of its validity.
    pub not_before: Option<SystemTime>,
    /// End of its validity.
    pub not_after: Option<SystemTime>,
    /// When it will be renewed.
    pub rotates_at: Option<SystemTime>,
    /// Certificates published so far.
    pub issued: u64,
    /// Failed attempts since the last success.
    pub failures: u64,
    /// Why the last attempt failed; `None` after a success.
    pub last_error: Option<String>,
}

impl IdentityStatus {
    /// Whether there is a certificate that is valid at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before.is_some_and(|start| start <= now) && self.not_after.is_some_and(|end| now <= end)
    }
}

/// Fetches the first certificate and rotates it for as long as it runs.
#[derive(Debug)]
pub struct IdentityManager {
    config: IdentityConfig,
    ca: CaClient,
    status: watch::Sender<IdentityStatus>,
    certificate: watch::Sender<Option<Arc<WorkloadCertificate>>>,
}

impl IdentityManager {
    /// A manager that has not started yet.
    pub fn new(config: IdentityConfig, ca: CaClient) -> Self {
        let status = IdentityStatus {
            id: config.id.clone(),
            serial: None,
            not_before: None,
            not_after: None,
            rotates_at: None,
            issued: 0,
            failures: 0,
            last_error: None,
        };
        Self { config, ca, status: watch::Sender::new(status), certificate: watch::Sender::new(None) }
    }

    /// Shows `certificate` to the authority until the first one has been issued (`PROV_CERT`).
    pub fn begin_with(&mut self, certificate: WorkloadCertificate) {
        self.certificate.send_replace(Some(Arc::new(certificate)));
    }

    /// How it is doing.
    pub fn status(&self) -> watch::Receiver<IdentityStatus> {
        self.status.subscribe()
    }

    /// The certificate in force, to authenticate other connections to the control plane with.
    pub fn certificate(&self) -> watch::Receiver<Option<Arc<WorkloadCertificate>>> {
        self.certificate.subscribe()
    }

    /// Runs until dropped. `publish` is [`skiff_proxy::Proxy::set_secret`]: it is given verified secrets only, the trust
    /// roots when they changed and always before the certificate. While the authority is away, or when `publish` refuses,
    /// the last certificate stays in force and the next attempt follows with backoff.
    pub async fn run(self, mut publish: impl FnMut(&str, Secret) -> Result<(), String>) -> Infallible {
        let mut backoff = Backoff::new(self.config.first_retry, self.config.retry_cap);
        loop {
            match self.rotate(&mut publish).await {
                Ok(rotates_at) => {
                    backoff.reset();
                    wait_until(rotates_at, self.clock()).await;
                }
                Err(error) => {
                    let wait = self.no_longer_than_affordable(backoff.next_wait());
                    self.report_failure(error, wait);
                    sleep(wait).await;
                }
            }
        }
    }

    /// One certificate; returns when the next is due.
    async fn rotate(&self, publish: &mut impl FnMut(&str, Secret) -> Result<(), String>) -> Result<SystemTime, String> {
        let current = self.certificate.borrow().clone();
        let request = self.ca.request_certificate(&self.config.id, self.config.lifetime, current.as_deref());
        let next = request.await.map_err(|error| error.to_string())?;

        // What was provisioned only shows who we are; nothing of it is in force.
        if self.status.borrow().issued == 0 || current.is_none_or(|current| current.roots != next.roots) {
            publish(ROOT_SECRET, Secret::Trust { roots: next.roots.clone() })?;
        }
        publish(WORKLOAD_SECRET, Secret::Certificate { chain: next.chain.clone(), key: next.key.clone() })?;

        if let Some(folder) = &self.config.output
            && let Err(error) = write_certificates(folder, &next)
        {
            tracing::warn!(%error, folder = %folder.display(), "certificate not written (OUTPUT_CERTS)");
        }
        let rotates_at = self.rotation_time(&next);
        tracing::info!(id = %next.id, serial = next.serial, not_after = %utc(next.not_after), rotates_at = %utc(rotates_at), "workload certificate in force");
        self.status.send_modify(|status| {
            status.serial = Some(next.serial.clone());
            status.not_before = Some(next.not_before);
            status.not_after = Some(next.not_after);
            status.rotates_at = Some(rotates_at);
            status.issued += 1;
            status.failures = 0;
            status.last_error = None;
        });
        self.certificate.send_replace(Some(Arc::new(next)));
        Ok(rotates_at)
    }

    /// Counted from now rather than from the start of validity, which the authority dates back.
    fn rotation_time(&self, certificate: &WorkloadCertificate) -> SystemTime {
        let now = self.clock().now();
        let left = certificate.not_after.duration_since(now).unwrap_or_default();
        let jitter = self.config.rotation_jitter * (2.0 * fastrand::f64() - 1.0);
        now + left.mul_f64((self.config.rotation_ratio + jitter).clamp(0.0, 1.0)).max(MIN_ROTATION)
    }

    /// The less is left of the current certificate, the shorter the waits: an authority that is back just in time is
    /// noticed in time.
    fn no_longer_than_affordable(&self, wait: Duration) -> Duration {
        let ends = self.certificate.borrow().as_ref().map(|current| current.not_after);
        match ends.map(|ends| ends.duration_since(self.clock().now())) {
            Some(Ok(left)) => wait.min((left / 8).max(self.config.first_retry)),
            Some(Err(_)) => wait.min(ENDED_RETRY),
            None => wait,
        }
    }

    fn report_failure(&self, error: String, wait: Duration) {
        let expired = self.certificate.borrow().as_ref().is_some_and(|current| !current.is_valid_at(self.clock().now()));
        if expired {
            tracing::error!(error, retry_in = ?wait, "no new workload certificate, and the current one has ended");
        } else {
            tracing::warn!(error, retry_in = ?wait, "no new workload certificate");
        }
        self.status.send_modify(|status| {
            status.failures += 1;
            status.last_error = Some(error);
        });
    }

    fn clock(&self) -> &Clock {
        &self.ca.connector.clock
    }
}

async fn wait_until(time: SystemTime, clock: &Clock) {
    while let Ok(left) = time.duration_since(clock.now()) {
        if left.is_zero() {
            return;
        }
        // Timers count milliseconds: never wait for less, or a rest of microseconds spins.
        sleep(left.clamp(Duration::from_millis(1), CLOCK_CHECK)).await;
    }
}
fn utc(moment: SystemTime) -> String {
    OffsetDateTime::from(moment).format(&Rfc3339).unwrap_or_default()
}
