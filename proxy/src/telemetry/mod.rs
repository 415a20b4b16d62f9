//! Access logs and metrics: what operators see of the traffic.
//!
//! [`mod@format`] compiles Envoy's format language, [`access_log`] hands rendered lines to one writer thread, [`metrics`] holds
//! Istio's standard metrics and our own, [`trace`] makes spans. What goes to collectors, spans and log records, waits in `export`.

pub mod access_log;
pub(crate) mod export;
pub mod format;
pub mod metrics;
pub mod trace;

pub use access_log::{AccessLogError, AccessLogs, LogOptions, LogWriter};
pub use format::{Format, FormatError, LogTemplate, grpc_status};
