//! What active health checking knows of one host: Envoy's health flags and the rows of results that change them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

const FAILED: u32 = 1;
const DEGRADED: u32 = 1 << 1;
const PENDING: u32 = 1 << 2;
const EXCLUDED: u32 = 1 << 3;
const TIMED_OUT: u32 = 1 << 4;
const LEAVING: u32 = 1 << 5;
const CHECKED: u32 = 1 << 6;

/// Why a check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckFailure {
    /// No connection, or it broke.
    Network,
    /// No answer in time.
    NetworkTimeout,
    /// An answer that says so.
    Active {
        /// It only counts towards the threshold.
        retriable: bool,
    },
    /// A response to an ordinary request said so (`x-envoy-immediate-health-check-fail`).
    Passive,
}

impl CheckFailure {
    /// The network is to blame, not the application.
    pub(crate) fn is_network(self) -> bool {
        matches!(self, Self::Network | Self::NetworkTimeout)
    }
}

/// What one result did to the state of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// Nothing.
    Unchanged,
    /// It takes more results of this kind.
    Pending,
    /// The host is to be balanced anew.
    Changed,
}

/// Active health of one host.
#[derive(Debug, Default)]
pub(in crate::upstream) struct ActiveHealth {
    flags: AtomicU32,
    row: Mutex<Row>,
}

#[derive(Debug, Default)]
struct Row {
    seen: bool,
    successes: u32,
    failures: u32,
}

impl ActiveHealth {
    /// The host is checked from now on and counts as failed until it passes. `pending` leaves it out of shares until then.
    pub(in crate::upstream) fn begin(&self, pending: bool) {
        self.flags.store(CHECKED | FAILED | if pending { PENDING } else { 0 }, Relaxed);
        *self.row() = Row::default();
    }

    /// The host is not checked any more. Whether that changes how it is balanced.
    pub(in crate::upstream) fn end(&self) -> bool {
        self.flags.swap(0, Relaxed) & (FAILED | DEGRADED | PENDING | EXCLUDED) != 0
    }

    /// It is checked.
    pub(in crate::upstream) fn is_checked(&self) -> bool {
        self.has(CHECKED)
    }

    /// It does not pass its checks.
    pub(in crate::upstream) fn is_failed(&self) -> bool {
        self.has(FAILED)
    }

    /// It passes, but says that it would rather be spared.
    pub(in crate::upstream) fn is_degraded(&self) -> bool {
        self.has(DEGRADED)
    }

    /// It counts neither as healthy nor as unhealthy.
    pub(in crate::upstream) fn is_excluded(&self) -> bool {
        self.has(PENDING | EXCLUDED)
    }

    /// It has left the assignment and stays only as long as it passes.
    pub(in crate::upstream) fn is_leaving(&self) -> bool {
        self.has(LEAVING)
    }

    /// See [`Self::is_leaving`].
    pub(in crate::upstream) fn set_leaving(&self, leaving: bool) {
        if leaving {
            self.set(LEAVING);
        } else {
            self.clear(LEAVING);
        }
    }

    /// It is to be left out of the shares, as its own answer asked for.
    pub(in crate::upstream) fn exclude(&self) {
        self.set(EXCLUDED);
    }

    /// A check succeeded.
    pub(in crate::upstream) fn succeed(&self, degraded: bool, healthy_threshold: u32) -> Transition {
        let mut row = self.row();
        row.failures = 0;
        let mut transition = Transition::Unchanged;
        if self.has(FAILED) {
            row.successes += 1;
            // The first result of all counts at once, so that a start does not wait for the threshold.
            if !row.seen || row.successes >= healthy_threshold {
                self.clear(FAILED | TIMED_OUT | EXCLUDED);
                transition = Transition::Changed;
            } else {
                transition = Transition::Pending;
            }
        }
        if self.take(PENDING) {
            transition = Transition::Changed;
        }
        if degraded != self.has(DEGRADED) {
            if degraded {
                self.set(DEGRADED);
            } else {
                self.clear(DEGRADED);
            }
            if transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        }
        row.seen = true;
        transition
    }

    /// A check failed.
    pub(in crate::upstream) fn fail(&self, failure: CheckFailure, unhealthy_threshold: u32) -> Transition {
        let mut row = self.row();
        row.successes = 0;
        let mut transition = Transition::Unchanged;
        if !self.has(FAILED) {
            row.failures += 1;
            let counts = failure.is_network() || failure == CheckFailure::Active { retriable: true };
            if !counts || row.failures >= unhealthy_threshold {
                self.set(FAILED);
                transition = Transition::Changed;
            } else {
                transition = Transition::Pending;
            }
        }
        if failure == CheckFailure::NetworkTimeout && self.has(FAILED) {
            self.set(TIMED_OUT);
        } else {
            self.clear(TIMED_OUT);
        }
        if self.take(PENDING) {
            transition = Transition::Changed;
        }
        row.seen = true;
        transition
    }

    /// Envoy's words on the admin page, with whether each stands before those of the other kinds of health.
    pub(in crate::upstream) fn words(&self) -> impl Iterator<Item = &'static str> {
        let words = [
            (FAILED, "/failed_active_hc"),
            (DEGRADED, "/degraded_active_hc"),
            (LEAVING, "/pending_dynamic_removal"),
            (PENDING, "/pending_active_hc"),
            (EXCLUDED, "/excluded_via_immediate_hc_fail"),
            (TIMED_OUT, "/active_hc_timeout"),
        ];
        let flags = self.flags.load(Relaxed);
        words.into_iter().filter(move |(flag, _)| flags & flag != 0).map(|(_, word)| word)
    }

    fn has(&self, flags: u32) -> bool {
        self.flags.load(Relaxed) & flags != 0
    }

    fn set(&self, flags: u32) {
        self.flags.fetch_or(flags, Relaxed);
    }

    fn clear(&self, flags: u32) {
        self.flags.fetch_and(!flags, Relaxed);
    }

    fn take(&self, flags: u32) -> bool {
        self.flags.fetch_and(!flags, Relaxed) & flags != 0
    }

    fn row(&self) -> std::sync::MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: CheckFailure = CheckFailure::Active { retriable: false };
    const RETRIABLE: CheckFailure = CheckFailure::Active { retriable: true };

    fn new() -> ActiveHealth {
        let health = ActiveHealth::default();
        health.begin(false);
        health
    }

    #[test]
    fn the_first_result_counts_at_once_later_ones_need_a_row() {
        let health = new();
        assert!(health.is_failed());
        assert_eq!(health.succeed(false, 3), Transition::Changed);
        assert!(!health.is_failed());
        assert_eq!(health.fail(CheckFailure::Network, 2), Transition::Pending);
        assert_eq!(health.succeed(false, 3), Transition::Unchanged);
        assert_eq!(health.fail(RETRIABLE, 2), Transition::Pending);
        assert_eq!(health.fail(CheckFailure::Network, 2), Transition::Changed);
        assert!(health.is_failed());
        assert_eq!(health.succeed(false, 3), Transition::Pending);
        assert_eq!(health.fail(ACTIVE, 2), Transition::Unchanged);
        assert_eq!(health.succeed(false, 3), Transition::Pending);
        assert_eq!(health.succeed(false, 3), Transition::Pending);
        assert_eq!(health.succeed(false, 3), Transition::Changed);
    }

    #[test]
    fn a_failure_first_of_all_means_that_a_row_is_needed() {
        let health = new();
        assert_eq!(health.fail(CheckFailure::Network, 3), Transition::Unchanged);
        assert_eq!(health.succeed(false, 2), Transition::Pending);
        assert_eq!(health.succeed(false, 2), Transition::Changed);
    }

    #[test]
    fn an_answer_that_says_so_needs_no_row() {
        let health = new();
        health.succeed(false, 1);
        assert_eq!(health.fail(ACTIVE, 5), Transition::Changed);
        health.succeed(false, 1);
        assert_eq!(health.fail(CheckFailure::Passive, 5), Transition::Changed);
    }

    #[test]
    fn a_new_host_may_be_left_out_until_its_first_check() {
        let health = ActiveHealth::default();
        health.begin(true);
        assert!(health.is_excluded());
        assert_eq!(health.fail(CheckFailure::NetworkTimeout, 2), Transition::Changed);
        assert!(!health.is_excluded());
        assert_eq!(health.words().collect::<String>(), "/failed_active_hc/active_hc_timeout");
        health.exclude();
        assert_eq!(health.succeed(true, 1), Transition::Changed);
        assert!(health.is_degraded() && !health.is_excluded());
        assert_eq!(health.words().collect::<String>(), "/degraded_active_hc");
        assert_eq!(health.succeed(false, 1), Transition::Changed);
        assert!(!health.end());
    }
}
