//! Exponential backoff with full jitter: many workloads that lost the same server come back spread out.

use std::time::Duration;

/// The waits between attempts: each a random part of a bound that doubles up to a cap.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    bound: Duration,
}

impl Backoff {
    /// Waits of at most `first`, then twice that, and so on up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, bound: first }
    }

    /// The next wait. Never shorter than a tenth of the bound, so that jitter cannot turn into a busy loop.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = bound.saturating_mul(2).min(self.cap);
        bound.mul_f64(0.1 + 0.9 * fastrand::f64())
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let mut bound = 0.1;
        for _ in 0..20 {
            let wait = backoff.next_wait().as_secs_f64();
            assert!((bound * 0.0999..=bound * 1.0001).contains(&wait), "{wait} is not within the bound {bound}");
            bound = (bound * 2.0).min(30.0);
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
