//! Metrics over the `metrics` facade, with the recorder handed in: this library never touches the global one.
//!
//! [`Registry`] bounds how many series exist, [`IstioHttpMetrics`] and [`IstioTcpMetrics`] are Istio's standard metrics,
//! [`ProxyMetrics`] what an operator wants to know about the proxy itself.

mod cache;
mod istio;
mod labels;
mod overrides;
mod proxy;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};

pub use istio::{HttpSample, IstioHttpMetrics, IstioTcpMetrics, TcpSample};
pub use labels::Destination;
pub use proxy::{
    AuthzCounters, ClusterMetrics, ExportCounters, HealthCheckMetrics, LimitCounters, ListenerMetrics, ProxyMetrics,
};

/// The value that takes the place of every label of a series that is one too many.
const OVERFLOW: &str = "overflow";

const SERIES_OVERFLOW_TOTAL: &str = "skiff_metric_series_overflow_total";

const METADATA: Metadata<'static> = Metadata::new("skiff", Level::INFO, None);

/// Upper bounds of Envoy's default histogram, which Istio uses for all of its own; here of durations in milliseconds.
pub const DURATION_BUCKETS_MILLISECONDS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The same bounds, of sizes in bytes.
pub const SIZE_BUCKETS_BYTES: &[f64] = DURATION_BUCKETS_MILLISECONDS;

/// The histograms with their buckets, to configure the Prometheus recorder with.
pub const HISTOGRAM_BUCKETS: [(&str, &[f64]); 3] = [
    (istio::REQUEST_DURATION_MILLISECONDS, DURATION_BUCKETS_MILLISECONDS),
    (istio::REQUEST_BYTES, SIZE_BUCKETS_BYTES),
    (istio::RESPONSE_BYTES, SIZE_BUCKETS_BYTES),
];

/// Kind, name and help text of a metric.
type Description = (Kind, &'static str, &'static str);

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Makes handles, for a bounded number of series.
///
/// A peer can choose some label values (statuses, principals of any certificate that the mesh's CA signed), so the number
/// of series must not be theirs to choose. Beyond the bound the label values of a new series become `overflow`, and
/// `skiff_metric_series_overflow_total` counts: sums over a metric stay right, details are lost.
pub struct Registry {
    recorder: Arc<dyn Recorder + Send + Sync>,
    max_series: usize,
    /// Hashes of the keys that exist; the keys themselves would take a kilobyte each.
    known: Mutex<HashSet<u64>>,
    overflow: Counter,
}

impl Registry {
    /// A registry that creates at most `max_series` labelled series in `recorder`, and describes every metric to it.
    pub fn new(recorder: Arc<dyn Recorder + Send + Sync>, max_series: usize) -> Self {
        let overflow = recorder.register_counter(&Key::from_static_name(SERIES_OVERFLOW_TOTAL), &METADATA);
        let registry = Self { recorder, max_series, known: Mutex::default(), overflow };
        let own = [(Kind::Counter, SERIES_OVERFLOW_TOTAL, "Series that were refused because there are too many.")];
        for (kind, name, help) in own.iter().chain(istio::DESCRIPTIONS).chain(proxy::DESCRIPTIONS) {
            registry.describe(*kind, name, help);
        }
        registry
    }

    /// A counter.
    pub fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&self.admit(name, labels), &METADATA)
    }

    /// A gauge.
    pub fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&self.admit(name, labels), &METADATA)
    }

    /// A histogram.
    pub fn histogram(&self, name: &'static str, labels: Vec<Label>) -> Histogram {
        self.recorder.register_histogram(&self.admit(name, labels), &METADATA)
    }

    fn describe(&self, kind: Kind, name: &'static str, help: &'static str) {
        let name = KeyName::from_const_str(name);
        match kind {
            Kind::Counter => self.recorder.describe_counter(name, None, help.into()),
            Kind::Gauge => self.recorder.describe_gauge(name, None, help.into()),
            Kind::Histogram => self.recorder.describe_histogram(name, None, help.into()),
        }
    }

    /// The key under which a series is kept. Series without labels are as many as there are metrics.
    fn admit(&self, name: &'static str, labels: Vec<Label>) -> Key {
        let key = Key::from_parts(name, labels);
        if key.labels().len() == 0 || self.remember(key.get_hash()) {
            return key;
        }
        self.overflow.increment(1);
        let collapse = |label: Label| Label::new(label.into_parts().0, OVERFLOW);
        Key::from_parts(name, key.into_parts().1.into_iter().map(collapse).collect::<Vec<_>>())
    }

    /// Whether the series exists already or may be created.
    fn remember(&self, hash: u64) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&hash) || (known.len() < self.max_series && known.insert(hash))
    }
}
