//! The configuration of a sidecar from documents that are watched or pushed: translated, applied; the last good one stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::metrics::{Counter, Gauge};
use skiff_proxy::{ListenerState, Proxy, Rejected};
use tokio::sync::watch;

use super::{Document, PushedDocuments, Translate, departure, documents};
use crate::admin::{Condition, Readiness};
use crate::exit::Failure;
use crate::metrics::Metrics;
use crate::watch::Watcher;

/// How often listeners that could not be bound are looked at; the data plane retries them.
const LISTENER_CHECK: Duration = Duration::from_secs(1);

/// Keeps the data plane at what the documents say.
pub(super) struct Configuration {
    origin: Origin,
    translate: Translate,
    proxy: Proxy,
    readiness: Readiness,
    numbers: Numbers,
}

/// Where documents come from.
enum Origin {
    /// A folder, or a single file.
    Watched(PathBuf, Watcher),
    /// Somebody who sends them.
    Pushed(watch::Receiver<PushedDocuments>),
}

struct Numbers {
    reloads: Counter,
    failures: Counter,
    last_successful: Gauge,
    last_success_time: Gauge,
    rejected: Gauge,
}

impl Configuration {
    /// Of the files at `path`.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub(super) fn watched(
        path: PathBuf,
        translate: Translate,
        proxy: Proxy,
        readiness: Readiness,
        metrics: &Metrics,
    ) -> Result<Self, Failure> {
        let watcher = Watcher::new(vec![path.clone()]).map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Self::new(Origin::Watched(path, watcher), translate, proxy, readiness, metrics))
    }

    /// Of what is pushed.
    pub(super) fn pushed(
        documents: watch::Receiver<PushedDocuments>,
        translate: Translate,
        proxy: Proxy,
        readiness: Readiness,
        metrics: &Metrics,
    ) -> Self {
        Self::new(Origin::Pushed(documents), translate, proxy, readiness, metrics)
    }

    fn new(origin: Origin, translate: Translate, proxy: Proxy, readiness: Readiness, metrics: &Metrics) -> Self {
        let numbers = Numbers {
            reloads: metrics.counter("skiff_config_reloads_total", "Configurations that were read."),
            failures: metrics.counter("skiff_config_reload_failures_total", "Configurations that were refused as a whole."),
            last_successful: metrics.gauge(
                "skiff_config_last_reload_successful",
                "1 when the last configuration that was read is in force, otherwise 0.",
            ),
            last_success_time: metrics.gauge(
                "skiff_config_last_reload_success_timestamp_seconds",
                "When the configuration in force was read, as Unix time.",
            ),
            rejected: metrics.gauge(
                "skiff_config_rejected_resources",
                "Resources of the configuration in force that the data plane did not take over.",
            ),
        };
        Self { origin, translate, proxy, readiness, numbers }
    }

    /// Reads, translates and applies the documents as they are now.
    ///
    /// # Errors
    /// With a line for each reason why they are refused as a whole; what was in force stays.
    pub(super) async fn reload(&mut self) -> Result<(), Vec<String>> {
        let Some(documents) = self.origin.read().await else { return Ok(()) };
        self.numbers.reloads.increment(1);
        let outcome = match documents {
            Ok(documents) => self.apply(&documents),
            Err(error) => Err(vec![error.to_string()]),
        };
        self.numbers.last_successful.set(if outcome.is_ok() { 1.0 } else { 0.0 });
        if outcome.is_err() {
            self.numbers.failures.increment(1);
        }
        outcome
    }

    /// Applies the documents whenever they change; never returns.
    pub(super) async fn follow(&mut self) {
        let mut checks = tokio::time::interval(LISTENER_CHECK);
        checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let all_bound = note_listeners(&self.proxy, &self.readiness);
            tokio::select! {
                () = self.origin.changed() => {
                    if let Err(reasons) = self.reload().await {
                        self.refused(&reasons);
                    }
                }
                _ = checks.tick(), if !all_bound => {}
            }
        }
    }

    /// Says why documents are not taken over.
    pub(super) fn refused(&self, reasons: &[String]) {
        for reason in reasons {
            tracing::error!("configuration refused, the last good one stays: {reason}");
        }
        self.readiness.waiting(Condition::Configuration, reasons.join("; "));
    }

    fn apply(&self, documents: &[Document]) -> Result<(), Vec<String>> {
        let mut translation = (self.translate)(documents)?;
        if self.readiness.is_leaving() {
            departure::keep(&mut translation.snapshot, &self.proxy.snapshot());
        }
        let report = self.proxy.apply(translation.snapshot);
        for warning in translation.warnings {
            tracing::warn!("{warning}");
        }
        for Rejected { kind, name, reason } in &report.rejected {
            tracing::error!("{kind} {name} not taken over: {reason}");
        }
        let rejected = report.rejected.len();
        if !report.unchanged {
            tracing::info!(documents = documents.len(), rejected, "configuration applied");
        }
        // A gauge is a float; no count of resources comes near where that loses a digit.
        self.numbers.rejected.set(rejected as f64);
        self.numbers.last_success_time.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        self.readiness.met(Condition::Configuration);
        note_listeners(&self.proxy, &self.readiness);
        Ok(())
    }
}

impl Origin {
    /// What there is now; `None` when nothing has come yet.
    async fn read(&mut self) -> Option<std::io::Result<Arc<[Document]>>> {
        match self {
            Self::Watched(path, _) => {
                let path = path.clone();
                // The file system may be a slow one: not on the agent's only thread.
                let read = tokio::task::spawn_blocking(move || documents::read(&path)).await;
                Some(read.map_err(std::io::Error::other).flatten().map(Into::into))
            }
            Self::Pushed(documents) => documents.borrow_and_update().clone().map(Ok),
        }
    }

    async fn changed(&mut self) {
        match self {
            Self::Watched(_, watcher) => watcher.changed().await,
            Self::Pushed(documents) => {
                if documents.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Whether every listener is bound; the readiness page names the ones that are not.
pub(crate) fn note_listeners(proxy: &Proxy, readiness: &Readiness) -> bool {
    let failed: Vec<_> = proxy
        .listeners()
        .into_iter()
        .filter_map(|listener| match listener.state {
            ListenerState::Failed(reason) => Some(format!("{} on {}: {reason}", listener.name, listener.address)),
            ListenerState::Active | ListenerState::Draining => None,
        })
        .collect();
    if failed.is_empty() {
        readiness.met(Condition::Listeners);
    } else {
        readiness.waiting(Condition::Listeners, failed.join("; "));
    }
    failed.is_empty()
}
