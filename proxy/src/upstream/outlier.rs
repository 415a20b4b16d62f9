//! Passive health (Envoy outlier detection): an endpoint that fails a number of times in a row is taken out for a while.
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>. The counting is here; that an
//! ejection must not take out too many endpoints is [`super::Cluster`]'s business.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::OutlierDetection;

/// What came of an attempt, as [`super::Cluster::report`] takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered with this HTTP status. For gRPC, the status that its `grpc-status` maps to.
    Response(u16),
    /// An HTTP connection was made; its requests are reported on their own.
    Connected,
    /// A TCP connection was made; nothing more will be reported of it.
    TcpConnected,
    /// The connection could not be made, or broke before an answer.
    LocalOriginFailure,
    /// No answer in time.
    LocalOriginTimeout,
}

/// Passive health of one host.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    ejected: AtomicBool,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    ejected_at: Option<Instant>,
    /// Multiplies the ejection time; falls again with every quiet interval.
    ejections: u32,
}

impl Monitor {
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// A success ends the rows of failures that it disproves. Whether it was one.
    pub(super) fn record_success(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Response(status) if status < 500 => self.end_external(),
            Outcome::Connected => reset(&self.consecutive_local_origin_failure),
            Outcome::TcpConnected => {
                self.end_external();
                reset(&self.consecutive_local_origin_failure);
            }
            Outcome::Response(_) | Outcome::LocalOriginFailure | Outcome::LocalOriginTimeout => return false,
        }
        true
    }

    /// Counts a failure. Whether the host should be ejected; the row that reached its threshold starts anew.
    pub(super) fn record_failure(&self, outcome: Outcome, detection: &OutlierDetection) -> bool {
        let status = match outcome {
            Outcome::Response(status) => status,
            Outcome::LocalOriginFailure | Outcome::LocalOriginTimeout if detection.split_external_local_origin_errors => {
                return reached(&self.consecutive_local_origin_failure, detection.consecutive_local_origin_failure);
            }
            // Not split: failures of our own making count as the status that the caller gets.
            Outcome::LocalOriginFailure => 503,
            Outcome::LocalOriginTimeout => 504,
            Outcome::Connected | Outcome::TcpConnected => return false,
        };
        let gateway = if matches!(status, 502..=504) {
            reached(&self.consecutive_gateway_failure, detection.consecutive_gateway_failure)
        } else {
            reset(&self.consecutive_gateway_failure);
            false
        };
        reached(&self.consecutive_5xx, detection.consecutive_5xx) || gateway
    }

    pub(super) fn eject(&self, now: Instant) {
        let mut history = self.history();
        history.ejected_at = Some(now);
        history.ejections = history.ejections.saturating_add(1);
        self.ejected.store(true, Relaxed);
    }

    /// The review at the end of an interval: whether the host returns to service.
    pub(super) fn review(&self, detection: &OutlierDetection, now: Instant) -> bool {
        let mut history = self.history();
        let Some(ejected_at) = history.ejected_at else {
            history.ejections = history.ejections.saturating_sub(1);
            return false;
        };
        if now.saturating_duration_since(ejected_at) < ejection_time(detection, history.ejections) {
            return false;
        }
        self.return_to_service(&mut history);
        true
    }

    /// Outlier detection was switched off: whether the host returns to service.
    pub(super) fn forget(&self) -> bool {
        let mut history = self.history();
        history.ejections = 0;
        let ejected = history.ejected_at.is_some();
        self.return_to_service(&mut history);
        ejected
    }

    fn return_to_service(&self, history: &mut History) {
        history.ejected_at = None;
        self.end_external();
        reset(&self.consecutive_local_origin_failure);
        self.ejected.store(false, Relaxed);
    }

    fn end_external(&self) {
        reset(&self.consecutive_5xx);
        reset(&self.consecutive_gateway_failure);
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The base time, as often as the host was ejected, but not over the cap; a cap below the base is the base.
fn ejection_time(detection: &OutlierDetection, ejections: u32) -> Duration {
    let cap = detection.max_ejection_time.max(detection.base_ejection_time);
    detection.base_ejection_time.saturating_mul(ejections).min(cap)
}

fn reached(row: &AtomicU32, threshold: Option<u32>) -> bool {
    let Some(threshold) = threshold else { return false };
    let reached = row.fetch_add(1, Relaxed).saturating_add(1) >= threshold;
    if reached {
        row.store(0, Relaxed);
    }
    reached
}

/// Written only when it changes, so that a healthy endpoint's cache line stays shared.
fn reset(row: &AtomicU32) {
    if row.load(Relaxed) != 0 {
        row.store(0, Relaxed);
    }
}
