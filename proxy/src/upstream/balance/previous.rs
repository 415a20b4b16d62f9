//! Retries that go to other priorities than the attempts before them, in Istio's words to remote localities.
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto>.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::Level;
use crate::upstream::Endpoint;

/// Where the attempts of one request have been.
#[derive(Debug)]
pub struct PreviousPriorities {
    update_frequency: NonZeroUsize,
    tried: RefCell<Tried>,
}

#[derive(Debug, Default)]
struct Tried {
    /// One for each attempt.
    endpoints: Vec<Arc<Endpoint>>,
    /// Priorities that get nothing, as of the last time that this was worked out.
    left_alone: Vec<u32>,
}

impl PreviousPriorities {
    /// No attempt yet. After every `update_frequency` attempts it is worked out anew which priorities are left alone.
    pub fn new(update_frequency: NonZeroUsize) -> Self {
        Self { update_frequency, tried: RefCell::default() }
    }

    /// Notes an attempt that is followed by another one.
    pub fn add(&self, endpoint: &Arc<Endpoint>) {
        self.tried.borrow_mut().endpoints.push(Arc::clone(endpoint));
    }

    /// The share of each level in percent; `None` is that of a first attempt. When all that could carry anything have been
    /// tried, it starts over with all of them.
    pub(super) fn shares(&self, levels: &[Level]) -> Option<Vec<u64>> {
        let mut tried = self.tried.borrow_mut();
        let attempts = tried.endpoints.len();
        if attempts < self.update_frequency.get() {
            return None;
        }
        if attempts.is_multiple_of(self.update_frequency.get()) {
            tried.left_alone = tried.endpoints.iter().map(|endpoint| endpoint.priority()).collect();
        }
        shares(levels, &tried.left_alone).or_else(|| {
            *tried = Tried::default();
            shares(levels, &[])
        })
    }
}

/// `None` when nothing can carry anything.
fn shares(levels: &[Level], left_alone: &[u32]) -> Option<Vec<u64>> {
    let capacity = |level: &Level| if left_alone.contains(&level.priority) { 0 } else { level.capacity };
    let available = levels.iter().map(capacity).sum::<u64>().min(100);
    if available == 0 {
        return None;
    }
    let mut shares = vec![0; levels.len()];
    let mut left = 100;
    // What rounding leaves over is handed out in another round.
    while left > 0 {
        for (share, level) in shares.iter_mut().zip(levels) {
            let taken = (capacity(level) * 100 / available).min(left);
            *share += taken;
            left -= taken;
        }
    }
    Some(shares)
}
