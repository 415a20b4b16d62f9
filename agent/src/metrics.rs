//! Metrics of one sidecar: a Prometheus recorder of its own, and what an operator wants to know of the process.
//!
//! The recorder is handed to the data plane explicitly instead of being the process's global one, so that two sidecars in one
//! process (`skiff quickstart`) do not mix their numbers.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// How often histograms are folded, so that samples do not pile up between two scrapes.
pub const UPKEEP: Duration = Duration::from_secs(5);

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Name of a histogram and its upper bounds, ascending, without `+Inf`.
pub type Buckets = (&'static str, &'static [f64]);

/// The metrics of one sidecar. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    process: Arc<Process>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// An empty recorder with the process's own metrics.
    ///
    /// # Errors
    /// When a histogram has no bounds.
    pub fn new(histograms: &[Buckets]) -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in histograms {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
        }
        let recorder = Arc::new(builder.build_recorder());
        let handle = recorder.handle();
        let process = Arc::new(Process::register(&recorder));
        Ok(Self { recorder, handle, process })
    }

    /// For [`skiff_proxy::Proxy::start`].
    pub fn recorder(&self) -> Arc<dyn Recorder + Send + Sync> {
        Arc::clone(&self.recorder) as Arc<dyn Recorder + Send + Sync>
    }

    /// A counter of the agent, described once.
    pub fn counter(&self, name: &'static str, description: &'static str) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, description.into());
        self.recorder.register_counter(&Key::from_static_name(name), &METADATA)
    }

    /// One counter of a family that a label tells apart.
    pub fn labelled_counter(
        &self,
        name: &'static str,
        description: &'static str,
        label: &'static str,
        value: &'static str,
    ) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, description.into());
        let key = Key::from_parts(name, vec![Label::from_static_parts(label, value)]);
        self.recorder.register_counter(&key, &METADATA)
    }

    /// A gauge of the agent, described once.
    pub fn gauge(&self, name: &'static str, description: &'static str) -> Gauge {
        gauge(&self.recorder, name, None, description)
    }

    /// A histogram of the agent, described once; its bounds were given to [`Self::new`].
    pub fn histogram(&self, name: &'static str, description: &'static str) -> Histogram {
        self.recorder.describe_histogram(KeyName::from_const_str(name), Some(Unit::Seconds), description.into());
        self.recorder.register_histogram(&Key::from_static_name(name), &METADATA)
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.process.refresh();
        self.handle.render()
    }

    /// Folds what histograms collected; to be called every [`UPKEEP`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Prometheus' conventional process metrics, read when they are asked for.
struct Process {
    resident_memory: Gauge,
    open_fds: Gauge,
    threads: Gauge,
}

impl Process {
    fn register(recorder: &PrometheusRecorder) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge(recorder, "process_start_time_seconds", Some(Unit::Seconds), "When the process started, as Unix time.")
            .set(now.as_secs_f64());
        let version = Key::from_parts("skiff_build_info", vec![Label::from_static_parts("version", env!("CARGO_PKG_VERSION"))]);
        recorder.describe_gauge(
            KeyName::from_const_str("skiff_build_info"),
            None,
            "Always 1; the labels say what is running.".into(),
        );
        recorder.register_gauge(&version, &METADATA).set(1.0);
        Self {
            resident_memory: gauge(recorder, "process_resident_memory_bytes", Some(Unit::Bytes), "Memory that is really in use."),
            open_fds: gauge(recorder, "process_open_fds", None, "Open file descriptors."),
            threads: gauge(recorder, "process_threads", None, "Threads."),
        }
    }

    // A value that cannot be read (no /proc) keeps the one before: a scrape never fails because of it.
    fn refresh(&self) {
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            if let Some(kilobytes) = status_field(&status, "VmRSS:") {
                self.resident_memory.set(kilobytes * 1024.0);
            }
            if let Some(threads) = status_field(&status, "Threads:") {
                self.threads.set(threads);
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // The folder that is being read is itself one of them.
            let open = u32::try_from(open.count().saturating_sub(1)).unwrap_or(u32::MAX);
            self.open_fds.set(f64::from(open));
        }
    }
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, unit: Option<Unit>, description: &'static str) -> Gauge {
    recorder.describe_gauge(KeyName::from_const_str(name), unit, description.into());
    recorder.register_gauge(&Key::from_static_name(name), &METADATA)
}

fn status_field(status: &str, name: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_process_and_what_was_recorded() {
        let metrics = Metrics::new(&[("latency", &[0.5, 1.0])]).unwrap();
        metrics.counter("skiff_things_total", "Things.").increment(3);
        metrics.recorder().register_histogram(&Key::from_static_name("latency"), &METADATA).record(0.7);
        metrics.upkeep();
        let text = metrics.render();
        assert!(
            text.contains("# HELP skiff_things_total Things.\n# TYPE skiff_things_total counter\nskiff_things_total 3\n"),
            "{text}"
        );
        assert!(
            text.contains("latency_bucket{le=\"0.5\"} 0\nlatency_bucket{le=\"1\"} 1\nlatency_bucket{le=\"+Inf\"} 1\n"),
            "{text}"
        );
        assert!(text.contains(concat!("skiff_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")), "{text}");
        let value = |name: &str| -> f64 {
            text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.trim().parse().ok()).unwrap_or_default()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_open_fds") >= 3.0 && value("process_threads") >= 1.0, "{text}");
        assert!(value("process_start_time_seconds") > 1.6e9, "{text}");
    }

    #[test]
    fn two_sidecars_of_a_process_do_not_mix() {
        let (ratings, details) = (Metrics::new(&[]).unwrap(), Metrics::new(&[]).unwrap());
        ratings.counter("skiff_things_total", "Things.").increment(1);
        assert!(!details.render().contains("skiff_things_total"));
    }
}
