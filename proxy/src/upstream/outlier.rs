//! Passive health (Envoy outlier detection): an endpoint that fails a number of times in a row, or more often than the
//! others, is taken out for a while.
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>. The counting is here; that an
//! ejection must not take out too many endpoints is [`super::Cluster`]'s business.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Endpoint;
use crate::config::{ConsecutiveFailures, FailurePercentage, OutlierDetection, SuccessRate};

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

/// Results are counted for success rates.
const RATES: u8 = 1;
/// Failures of our own making are counted apart.
const SPLIT: u8 = 2;

/// Passive health of one host.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    ejected: AtomicBool,
    /// [`RATES`] and [`SPLIT`].
    mode: AtomicU8,
    external: Rate,
    local: Rate,
    history: Mutex<History>,
}

/// Results of the current interval.
#[derive(Debug, Default)]
struct Rate {
    total: AtomicU32,
    successes: AtomicU32,
}

#[derive(Debug, Default)]
struct History {
    ejected_at: Option<Instant>,
    jitter: Duration,
    /// Multiplies the ejection time; falls again with every quiet interval.
    ejections: u32,
}

/// What a host did in the last interval.
#[derive(Clone, Copy, Debug)]
struct Interval {
    total: u32,
    successes: u32,
}

impl Interval {
    /// Successes of 100 requests.
    fn success_percent(self) -> f64 {
        100.0 * f64::from(self.successes) / f64::from(self.total.max(1))
    }
}

impl Rate {
    fn count(&self, success: bool) {
        self.total.fetch_add(1, Relaxed);
        if success {
            self.successes.fetch_add(1, Relaxed);
        }
    }

    fn take(&self) -> Interval {
        Interval { total: self.total.swap(0, Relaxed), successes: self.successes.swap(0, Relaxed) }
    }
}

impl Monitor {
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// What is counted from now on.
    pub(super) fn configure(&self, detection: Option<&OutlierDetection>) {
        let mode = detection.map_or(0, |detection| {
            let rates = detection.success_rate.is_some() || detection.failure_percentage.is_some();
            u8::from(rates) * RATES + u8::from(detection.split_external_local_origin_errors) * SPLIT
        });
        self.mode.store(mode, Relaxed);
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
        let mode = self.mode.load(Relaxed);
        if mode & RATES != 0 {
            match (outcome, mode & SPLIT != 0) {
                (Outcome::Connected | Outcome::TcpConnected, true) => self.local.count(true),
                // That a connection was made says nothing of the request to come.
                (Outcome::Connected, false) => {}
                _ => self.external.count(true),
            }
        }
        true
    }

    /// Counts a failure. The row that reached its threshold and starts anew, if one did: the host should be ejected.
    pub(super) fn record_failure(&self, outcome: Outcome, detection: &OutlierDetection) -> Option<ConsecutiveFailures> {
        let status = match outcome {
            Outcome::Response(status) => status,
            Outcome::LocalOriginFailure | Outcome::LocalOriginTimeout if detection.split_external_local_origin_errors => {
                self.count_failure(&self.local);
                return reached(&self.consecutive_local_origin_failure, detection.consecutive_local_origin_failure);
            }
            // Not split: failures of our own making count as the status that the caller gets.
            Outcome::LocalOriginFailure => 503,
            Outcome::LocalOriginTimeout => 504,
            Outcome::Connected | Outcome::TcpConnected => return None,
        };
        self.count_failure(&self.external);
        let gateway = if matches!(status, 502..=504) {
            reached(&self.consecutive_gateway_failure, detection.consecutive_gateway_failure)
        } else {
            reset(&self.consecutive_gateway_failure);
            None
        };
        let row = reached(&self.consecutive_5xx, detection.consecutive_5xx);
        // Both at once: the one that is enforced more often.
        [gateway, row].into_iter().flatten().max_by_key(|row| row.enforcing)
    }

    fn count_failure(&self, rate: &Rate) {
        if self.mode.load(Relaxed) & RATES != 0 {
            rate.count(false);
        }
    }

    pub(super) fn eject(&self, detection: &OutlierDetection, now: Instant) {
        let mut history = self.history();
        history.ejected_at = Some(now);
        history.jitter = detection.max_ejection_time_jitter.mul_f64(fastrand::f64());
        // No further than the longest ejection, or it would take long to forget.
        if detection.base_ejection_time.saturating_mul(history.ejections) < longest(detection) + detection.base_ejection_time {
            history.ejections = history.ejections.saturating_add(1);
        }
        self.ejected.store(true, Relaxed);
    }

    /// The review at the end of an interval: whether the host returns to service.
    pub(super) fn review(&self, detection: &OutlierDetection, now: Instant) -> bool {
        let mut history = self.history();
        let Some(ejected_at) = history.ejected_at else {
            history.ejections = history.ejections.saturating_sub(1);
            return false;
        };
        let time = detection.base_ejection_time.saturating_mul(history.ejections).min(longest(detection)) + history.jitter;
        if now.saturating_duration_since(ejected_at) < time {
            return false;
        }
        self.return_to_service(&mut history);
        true
    }

    /// The host proved healthy in another way: whether it returns to service.
    pub(super) fn end_ejection(&self) -> bool {
        let mut history = self.history();
        let ejected = history.ejected_at.is_some();
        self.return_to_service(&mut history);
        ejected
    }

    /// Outlier detection was switched off: whether the host returns to service.
    pub(super) fn forget(&self) -> bool {
        self.history().ejections = 0;
        self.end_ejection()
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

fn longest(detection: &OutlierDetection) -> Duration {
    detection.max_ejection_time.max(detection.base_ejection_time)
}

/// The hosts that did worse in the last interval than they may, each with how often of 100 times that is enforced. Begins a
/// new interval.
pub(super) fn review_rates(endpoints: &[Arc<Endpoint>], detection: &OutlierDetection) -> Vec<(Arc<Endpoint>, u32)> {
    let (success_rate, percentage) = (detection.success_rate.as_ref(), detection.failure_percentage.as_ref());
    if success_rate.is_none() && percentage.is_none() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for local in [false, true] {
        let rate = |endpoint: &Endpoint| if local { endpoint.monitor().local.take() } else { endpoint.monitor().external.take() };
        let intervals: Vec<_> = endpoints.iter().map(|endpoint| (endpoint, rate(endpoint))).collect();
        let in_service = intervals.into_iter().filter(|(endpoint, interval)| !endpoint.is_ejected() && interval.total > 0);
        let hosts: Vec<(&Arc<Endpoint>, Interval)> = in_service.collect();
        if let Some(rule) = success_rate {
            let enforcing = if local { rule.enforcing_local_origin } else { rule.enforcing };
            found.extend(below_the_others(&hosts, rule).map(|endpoint| (endpoint, enforcing)));
        }
        if let Some(rule) = percentage {
            let enforcing = if local { rule.enforcing_local_origin } else { rule.enforcing };
            found.extend(above_the_threshold(&hosts, rule).map(|endpoint| (endpoint, enforcing)));
        }
    }
    found.retain(|(_, enforcing)| *enforcing > 0);
    found
}

/// Those whose success rate is more than so many standard deviations below the mean.
fn below_the_others(hosts: &[(&Arc<Endpoint>, Interval)], rule: &SuccessRate) -> impl Iterator<Item = Arc<Endpoint>> {
    let rates: Vec<(&Arc<Endpoint>, f64)> = hosts
        .iter()
        .filter(|(_, interval)| interval.total >= rule.request_volume)
        .map(|(endpoint, interval)| (*endpoint, interval.success_percent()))
        .collect();
    let enough = !rates.is_empty() && rates.len() >= rule.minimum_hosts as usize;
    #[expect(clippy::cast_precision_loss, reason = "numbers of endpoints")]
    let count = rates.len().max(1) as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - f64::from(rule.stdev_factor) / 1000.0 * variance.sqrt();
    let below = rates.into_iter().filter(move |(_, rate)| enough && *rate < threshold);
    below.map(|(endpoint, _)| Arc::clone(endpoint)).collect::<Vec<_>>().into_iter()
}

/// Those that fail too large a share of their requests.
fn above_the_threshold(hosts: &[(&Arc<Endpoint>, Interval)], rule: &FailurePercentage) -> impl Iterator<Item = Arc<Endpoint>> {
    let valid: Vec<_> = hosts.iter().filter(|(_, interval)| interval.total >= rule.request_volume).collect();
    let enough = !valid.is_empty() && valid.len() >= rule.minimum_hosts as usize;
    let threshold = f64::from(rule.threshold);
    let above = valid.into_iter().filter(move |(_, interval)| enough && 100.0 - interval.success_percent() >= threshold);
    above.map(|(endpoint, _)| Arc::clone(endpoint)).collect::<Vec<_>>().into_iter()
}

fn reached(row: &AtomicU32, threshold: Option<ConsecutiveFailures>) -> Option<ConsecutiveFailures> {
    let threshold = threshold?;
    let reached = row.fetch_add(1, Relaxed).saturating_add(1) >= threshold.count;
    if reached {
        row.store(0, Relaxed);
    }
    reached.then_some(threshold)
}

/// Written only when it changes, so that a healthy endpoint's cache line stays shared.
fn reset(row: &AtomicU32) {
    if row.load(Relaxed) != 0 {
        row.store(0, Relaxed);
    }
}
