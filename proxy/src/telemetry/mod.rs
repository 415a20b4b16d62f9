//! Access logs and metrics.

pub mod access_log;
pub mod format;
pub mod metrics;
