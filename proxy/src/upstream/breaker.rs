//! Circuit breakers (Envoy `CircuitBreakers.Thresholds`): how much of a resource a cluster may use at once.
//!
//! A permit is a guard, so that a cancelled request gives back what it took. All workers share the counters: the limits are
//! those of the process, as Envoy's are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::config::{CircuitBreakers, RetryBudget};
use crate::error::ErrorKind;

/// The four breakers of a cluster.
#[derive(Debug)]
pub struct Breakers {
    /// Open connections.
    pub connections: Arc<Breaker>,
    /// Requests waiting for a connection.
    pub pending_requests: Arc<Breaker>,
    /// Requests in flight.
    pub requests: Arc<Breaker>,
    /// Retries in flight; taken with [`Self::acquire_retry`].
    retries: Arc<Breaker>,
    /// Millionths of the requests above the retries that are always allowed; [`NO_BUDGET`] is none.
    retry_budget: AtomicU64,
}

const NO_BUDGET: u64 = u64::MAX;

impl Breakers {
    /// With these limits.
    pub fn new(limits: &CircuitBreakers) -> Self {
        Self {
            connections: Arc::new(Breaker::new(limits.max_connections)),
            pending_requests: Arc::new(Breaker::new(limits.max_pending_requests)),
            requests: Arc::new(Breaker::new(limits.max_requests)),
            retries: Arc::new(Breaker::new(limits.max_retries)),
            retry_budget: AtomicU64::new(budget(limits)),
        }
    }

    /// Changes the limits; permits that are out stay valid and stay counted.
    pub fn set_limits(&self, limits: &CircuitBreakers) {
        self.connections.limit.store(limits.max_connections, Relaxed);
        self.pending_requests.limit.store(limits.max_pending_requests, Relaxed);
        self.requests.limit.store(limits.max_requests, Relaxed);
        self.retries.limit.store(limits.max_retries, Relaxed);
        self.retry_budget.store(budget(limits), Relaxed);
    }

    /// Takes one retry, as the limit or the budget of the moment allows.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when all are taken.
    pub fn acquire_retry(&self) -> Result<Permit, ErrorKind> {
        let budget = self.retry_budget.load(Relaxed);
        if budget == NO_BUDGET {
            return self.retries.acquire();
        }
        let requests = u64::from(self.requests.active()) + u64::from(self.pending_requests.active());
        let share = requests.saturating_mul(budget >> 32) / 1_000_000;
        let limit = share.max(budget & u64::from(u32::MAX));
        self.retries.acquire_within(u32::try_from(limit).unwrap_or(u32::MAX))
    }
}

fn budget(limits: &CircuitBreakers) -> u64 {
    let packed = |budget: RetryBudget| u64::from(budget.budget.millionths()) << 32 | u64::from(budget.min_retry_concurrency);
    limits.retry_budget.map_or(NO_BUDGET, packed)
}

/// A counter with a limit.
#[derive(Debug)]
pub struct Breaker {
    limit: AtomicU32,
    active: AtomicU32,
    overflows: AtomicU64,
}

impl Breaker {
    /// `u32::MAX` never refuses.
    pub fn new(limit: u32) -> Self {
        Self { limit: AtomicU32::new(limit), active: AtomicU32::new(0), overflows: AtomicU64::new(0) }
    }

    /// Takes one.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when all are taken.
    pub fn acquire(self: &Arc<Self>) -> Result<Permit, ErrorKind> {
        self.acquire_within(self.limit.load(Relaxed))
    }

    fn acquire_within(self: &Arc<Self>, limit: u32) -> Result<Permit, ErrorKind> {
        if limit == u32::MAX {
            return Ok(self.acquire_over_limit());
        }
        match self.active.fetch_update(Relaxed, Relaxed, |active| (active < limit).then_some(active + 1)) {
            Ok(_) => Ok(Permit(Arc::clone(self))),
            Err(_) => {
                self.overflows.fetch_add(1, Relaxed);
                Err(ErrorKind::Overflow)
            }
        }
    }

    /// Takes one even when all are taken. Envoy lets an endpoint without any connection have one over the limit, or its
    /// requests would wait for ever.
    pub fn acquire_over_limit(self: &Arc<Self>) -> Permit {
        self.active.fetch_add(1, Relaxed);
        Permit(Arc::clone(self))
    }

    /// How many are taken.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// How often it refused.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }
}

/// One unit of a resource, given back when dropped.
#[derive(Debug)]
#[must_use = "the unit is given back when the permit is dropped"]
pub struct Permit(Arc<Breaker>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_never_hold_more_than_the_limit_and_give_everything_back() {
        let breaker = Arc::new(Breaker::new(3));
        let most = AtomicU32::new(0);
        let refused = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        match breaker.acquire() {
                            Ok(permit) => {
                                most.fetch_max(breaker.active(), Relaxed);
                                std::thread::yield_now();
                                drop(permit);
                            }
                            Err(kind) => {
                                assert_eq!(kind, ErrorKind::Overflow);
                                refused.fetch_add(1, Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
        assert_eq!(breaker.active(), 0);
        assert_eq!(breaker.overflows(), refused.into_inner());
    }

    #[test]
    fn the_highest_limit_is_off_and_zero_refuses_everything() {
        let off = Arc::new(Breaker::new(u32::MAX));
        let permits: Vec<_> = (0..100).map(|_| off.acquire().unwrap()).collect();
        assert_eq!(off.active(), 100);
        drop(permits);
        assert_eq!((off.active(), off.overflows()), (0, 0));

        let none = Arc::new(Breaker::new(0));
        assert_eq!(none.acquire().unwrap_err(), ErrorKind::Overflow);
        assert_eq!(none.overflows(), 1);
    }

    #[test]
    fn a_retry_budget_follows_the_requests_in_flight() {
        let budget = RetryBudget { budget: crate::config::Fraction::from_millionths(200_000), min_retry_concurrency: 1 };
        let breakers =
            Breakers::new(&CircuitBreakers { retry_budget: Some(budget), max_retries: 0, ..CircuitBreakers::default() });
        let _always = breakers.acquire_retry().unwrap();
        assert_eq!(breakers.acquire_retry().unwrap_err(), ErrorKind::Overflow);
        let _requests: Vec<_> = (0..9).map(|_| breakers.requests.acquire().unwrap()).collect();
        assert!(breakers.acquire_retry().is_err());
        let _pending = breakers.pending_requests.acquire().unwrap();
        let _second = breakers.acquire_retry().unwrap();
        assert!(breakers.acquire_retry().is_err());
        breakers.set_limits(&CircuitBreakers { max_retries: 3, ..CircuitBreakers::default() });
        let _third = breakers.acquire_retry().unwrap();
    }

    #[test]
    fn a_lower_limit_counts_what_is_already_out() {
        let limits = CircuitBreakers { max_requests: 5, ..CircuitBreakers::UNLIMITED };
        let breakers = Breakers::new(&limits);
        let mut held: Vec<_> = (0..5).map(|_| breakers.requests.acquire().unwrap()).collect();
        breakers.set_limits(&CircuitBreakers { max_requests: 2, ..limits });
        held.truncate(2);
        assert!(breakers.requests.acquire().is_err());
        held.truncate(1);
        held.push(breakers.requests.acquire().unwrap());
        assert!(breakers.requests.acquire().is_err());
        let _over = breakers.requests.acquire_over_limit();
        assert_eq!(breakers.requests.active(), 3);
    }
}
