//! A token bucket without a lock and without a timer.
//!
//! The whole state is one instant, kept as seconds in the bits of an atomic: when an empty bucket would have had to begin to fill
//! to hold what it holds. Taking a token moves it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::config::TokenBucket;

/// Shared by all workers.
#[derive(Debug)]
pub(super) struct Bucket {
    max: f64,
    /// Tokens a second.
    rate: f64,
    created: Instant,
    empty_since: AtomicU64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(config: &TokenBucket, now: Instant) -> Self {
        let max = f64::from(config.max_tokens.get());
        let rate = f64::from(config.tokens_per_fill.get()) / config.fill_interval.as_secs_f64().max(0.05);
        Self { max, rate, created: now, empty_since: AtomicU64::new((-max / rate).to_bits()) }
    }

    /// Takes a token, if there is a whole one.
    pub(super) fn take(&self, now: Instant) -> bool {
        let seconds = self.seconds(now);
        let taken = self.empty_since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            let left = self.tokens(bits, seconds) - 1.0;
            (left >= 0.0).then(|| (seconds - left / self.rate).to_bits())
        });
        taken.is_ok()
    }

    /// How many tokens it can hold.
    pub(super) fn max(&self) -> u64 {
        whole(self.max)
    }

    /// How many whole tokens it holds.
    pub(super) fn remaining(&self, now: Instant) -> u64 {
        whole(self.tokens(self.empty_since.load(Ordering::Relaxed), self.seconds(now)))
    }

    /// Seconds until it holds a whole token.
    pub(super) fn next_token(&self, now: Instant) -> u64 {
        let tokens = self.tokens(self.empty_since.load(Ordering::Relaxed), self.seconds(now));
        whole(((1.0 - tokens).max(0.0) / self.rate).ceil())
    }

    /// Tokens a second: the lower, the stricter.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    fn tokens(&self, empty_since: u64, seconds: f64) -> f64 {
        ((seconds - f64::from_bits(empty_since)) * self.rate).min(self.max)
    }

    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.created).as_secs_f64()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, never near 2^64")]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;

    fn bucket(max: u32, per_fill: u32, interval: u64, now: Instant) -> Bucket {
        let nonzero = |count| NonZeroU32::new(count).unwrap();
        let fill_interval = Duration::from_secs(interval);
        Bucket::new(&TokenBucket { max_tokens: nonzero(max), tokens_per_fill: nonzero(per_fill), fill_interval }, now)
    }

    #[test]
    fn it_starts_full_fills_steadily_and_never_overflows() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let bucket = bucket(2, 2, 1, start);
        assert_eq!([0, 0, 0].map(|at| bucket.take(after(at))), [true, true, false]);
        assert_eq!((bucket.remaining(after(0)), bucket.next_token(after(0))), (0, 1));
        // One token in half a second: half of the interval's two.
        assert_eq!([499, 501, 502].map(|at| bucket.take(after(at))), [false, true, false]);
        assert_eq!(bucket.remaining(after(60_000)), 2);
        assert_eq!([60_000, 60_000, 60_000].map(|at| bucket.take(after(at))), [true, true, false]);
    }

    #[test]
    fn it_tells_when_the_next_token_comes() {
        let start = Instant::now();
        let bucket = bucket(1, 1, 60, start);
        assert_eq!((bucket.max(), bucket.remaining(start), bucket.next_token(start)), (1, 1, 0));
        assert!(bucket.take(start));
        assert_eq!(bucket.next_token(start), 60);
        assert_eq!(bucket.next_token(start + Duration::from_millis(2500)), 58);
    }
}
