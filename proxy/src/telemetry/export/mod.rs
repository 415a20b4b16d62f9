//! Spans and log records on their way to a collector.
//!
//! An [`Exporter`] is a queue, bounded in records and in bytes, of records that are encoded already; what does not fit is dropped
//! and counted. A task of worker 0 takes all of it at once, a second after the first record or when many wait, and sends it through
//! the configured cluster, so with its endpoints, its TLS and its breakers. A batch that the collector does not take is lost and
//! counted: nobody's request ever waits for one.

pub(crate) mod otlp;
#[cfg(test)]
mod tests;
mod zipkin;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::config::ExportService;
use crate::error::{Error, ErrorKind};
use crate::http::subrequest::Limits;
use crate::telemetry::metrics::ExportCounters;
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

pub(crate) use zipkin::write as write_zipkin;

/// Records that wait above which further ones are dropped.
const MAX_RECORDS: usize = 2048;
/// Bytes that wait above which further records are dropped: half of what a gRPC server takes in one message unless told otherwise.
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Records with which a batch leaves at once.
const BATCH: usize = 512;
/// How long the first record waits for others.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of an answer; a collector says little.
const MAX_ANSWER: usize = 64 * 1024;

/// How records are put together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// Spans of OTLP under this encoded resource.
    Spans(Bytes),
    /// Log records of OTLP under this encoded resource.
    Logs(Bytes),
    /// Zipkin's JSON.
    Zipkin,
}

/// A queue of records for one collector. Dropping it drops what waits.
pub(crate) struct Exporter {
    service: ExportService,
    form: Form,
    cluster: ArcSwapOption<Cluster>,
    pending: Mutex<Batch>,
    counters: ExportCounters,
    /// A batch is on its way.
    sending: AtomicBool,
    /// The last batch was lost.
    failing: AtomicBool,
    /// What waits is to leave at once.
    hurry: AtomicBool,
    /// The first record of a batch has come, many wait, or the exporter is gone.
    wake: Arc<Notify>,
    settled: Notify,
}

/// Records one after the other, as the form wants them.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    records: usize,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let left = self.pending.get_mut().unwrap_or_else(PoisonError::into_inner).records;
        self.counters.dropped.increment(left as u64);
        self.wake.notify_one();
    }
}

impl Exporter {
    /// Queues one encoded record, or drops and counts it.
    pub(crate) fn push(&self, record: &[u8]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.records >= MAX_RECORDS || pending.bytes.len() + record.len() > MAX_BYTES {
            drop(pending);
            return self.counters.dropped.increment(1);
        }
        pending.bytes.extend_from_slice(record);
        pending.records += 1;
        if pending.records == 1 || pending.records == BATCH {
            self.wake.notify_one();
        }
    }

    fn is_due(&self) -> bool {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.records >= BATCH || pending.records > 0 && self.hurry.load(Ordering::Acquire)
    }

    fn is_settled(&self) -> bool {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.records == 0 && !self.sending.load(Ordering::Acquire)
    }

    /// Waits until what waits now has left, whatever came of it.
    pub(crate) async fn flush(&self) {
        self.hurry.store(true, Ordering::Release);
        loop {
            let settled = self.settled.notified();
            self.wake.notify_one();
            if self.is_settled() {
                break;
            }
            settled.await;
        }
        self.hurry.store(false, Ordering::Release);
    }

    /// Sends what waits, as long as the exporter is in use.
    pub(crate) async fn run(exporter: Weak<Self>, pool: Rc<Pool>) {
        let Some(wake) = exporter.upgrade().map(|exporter| exporter.wake.clone()) else { return };
        loop {
            wake.notified().await;
            let due = async {
                while exporter.upgrade().is_some_and(|exporter| !exporter.is_due()) {
                    wake.notified().await;
                }
            };
            // Too late is the usual case: few records, all of the interval.
            let _ = tokio::time::timeout(INTERVAL, due).await;
            let Some(exporter) = exporter.upgrade() else { return };
            exporter.send(&pool).await;
        }
    }

    async fn send(&self, pool: &Rc<Pool>) {
        let batch = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.records > 0 {
                self.sending.store(true, Ordering::Release);
            }
            std::mem::take(&mut *pending)
        };
        if batch.records > 0 {
            let records = batch.records as u64;
            // What a collector refuses of a batch it tells as a number of its own choice.
            let refused = match self.export(batch.bytes, pool).await {
                Ok(refused) => {
                    if self.failing.swap(false, Ordering::Relaxed) {
                        tracing::info!(cluster = self.service.cluster, "records can be exported again");
                    }
                    refused.min(records)
                }
                Err(error) => {
                    // Said once: the counter goes on.
                    if !self.failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!(cluster = self.service.cluster, %error, "records cannot be exported and are dropped");
                    }
                    records
                }
            };
            self.counters.dropped.increment(refused);
            self.counters.exported.increment(records - refused);
            self.sending.store(false, Ordering::Release);
        }
        self.settled.notify_waiters();
    }

    /// How many of the records the collector refused.
    async fn export(&self, records: Vec<u8>, pool: &Rc<Pool>) -> Result<u64, Error> {
        let Some(cluster) = self.cluster.load_full() else { return Err(Error::new(ErrorKind::NoCluster(503))) };
        let limits = Limits { timeout: self.service.timeout, max_body: MAX_ANSWER };
        match &self.form {
            Form::Spans(resource) => {
                otlp::export(otlp::Signal::Traces, resource, &records, &self.service, pool, &cluster, limits).await
            }
            Form::Logs(resource) => {
                otlp::export(otlp::Signal::Logs, resource, &records, &self.service, pool, &cluster, limits).await
            }
            Form::Zipkin => zipkin::export(&records, &self.service, pool, &cluster, limits).await.map(|()| 0),
        }
    }
}

/// All exporters in use: connection managers and access logs that mean the same service share one, those of a listener before and
/// after a change too.
#[derive(Default)]
pub(crate) struct Exporters(Mutex<Vec<Weak<Exporter>>>);

impl Exporters {
    /// The exporter of this service and form, which asks `cluster` from now on. `start` is called for a new one, with what has to be
    /// [run](Exporter::run).
    pub(crate) fn get(
        &self,
        service: &ExportService,
        form: &Form,
        cluster: Option<Arc<Cluster>>,
        counters: &ExportCounters,
        start: &dyn Fn(Weak<Exporter>),
    ) -> Arc<Exporter> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|exporter| exporter.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade).find(|known| known.service == *service && known.form == *form);
        if let Some(exporter) = known {
            exporter.cluster.store(cluster);
            return exporter;
        }
        let exporter = Arc::new(Exporter {
            service: service.clone(),
            form: form.clone(),
            cluster: ArcSwapOption::new(cluster),
            pending: Mutex::default(),
            counters: counters.clone(),
            sending: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            wake: Arc::default(),
            settled: Notify::new(),
        });
        all.push(Arc::downgrade(&exporter));
        start(Arc::downgrade(&exporter));
        exporter
    }

    /// Those in use.
    pub(crate) fn all(&self) -> Vec<Arc<Exporter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}
