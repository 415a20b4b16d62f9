//! The configuration of a sidecar from documents that are watched: read, translated, applied; the last good one stays.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::metrics::{Counter, Gauge};
use skiff_proxy::{ListenerState, Proxy, Rejected};

use super::{Document, Translate, documents};
use crate::admin::{Condition, Readiness};
use crate::exit::Failure;
use crate::metrics::Metrics;
use crate::watch::Watcher;

/// How often listeners that could not be bound are looked at; the data plane retries them.
const LISTENER_CHECK: Duration = Duration::from_secs(1);

/// Keeps the data plane at what the documents say.
pub(super) struct Configuration {
    path: PathBuf,
    translate: Translate,
    proxy: Proxy,
    readiness: Readiness,
    watcher: Watcher,
    numbers: Numbers,
}

struct Numbers {
    reloads: Counter,
    failures: Counter,
    last_successful: Gauge,
    last_success_time: Gauge,
    rejected: Gauge,
}

impl Configuration {
    pub(super) fn new(
        path: PathBuf,
        translate: Translate,
        proxy: Proxy,
        readiness: Readiness,
        metrics: &Metrics,
    ) -> Result<Self, Failure> {
        let watcher = Watcher::new(vec![path.clone()]).map_err(|error| Failure::Internal(error.to_string()))?;
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
        Ok(Self { path, translate, proxy, readiness, watcher, numbers })
    }

    /// Reads, translates and applies the documents as they are now.
    ///
    /// # Errors
    /// With a line for each reason why they are refused as a whole; what was in force stays.
    pub(super) async fn reload(&mut self) -> Result<(), Vec<String>> {
        self.numbers.reloads.increment(1);
        let path = self.path.clone();
        // The file system may be a slow one: not on the agent's only thread.
        let read = tokio::task::spawn_blocking(move || documents::read(&path)).await;
        let outcome = match read.map_err(std::io::Error::other).flatten() {
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
                () = self.watcher.changed() => {
                    if let Err(reasons) = self.reload().await {
                        for reason in reasons {
                            tracing::error!("configuration refused, the last good one stays: {reason}");
                        }
                    }
                }
                _ = checks.tick(), if !all_bound => {}
            }
        }
    }

    fn apply(&self, documents: &[Document]) -> Result<(), Vec<String>> {
        let translation = (self.translate)(documents)?;
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
