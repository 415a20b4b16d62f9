//! Turns: who is next, by weight.
//!
//! Envoy keeps an earliest-deadline-first queue per worker. The order of one whole cycle of that queue only depends on the
//! weights, so it is laid out at publish and a pick is one atomic increment, without a lock.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Turns of a cycle beyond which weights are rounded, unless there are more members than that.
const MAX_CYCLE: usize = 8 * 1024;

/// Gives each member its turns in proportion to its weight, evenly spread, from a random start. Every cycle is exact as long
/// as the weights' least terms add up to no more than 8,192; beyond that they are rounded, to one turn a cycle at least.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Index of the member whose turn it is; `None` when all weights are equal.
    cycle: Option<Box<[u32]>>,
    turns: usize,
    next: AtomicUsize,
}

impl Schedule {
    /// Weights are positive and there is at least one.
    pub(super) fn new(weights: &[f64]) -> Self {
        let cycle = weights.iter().any(|weight| *weight != weights[0]).then(|| cycle(weights));
        let turns = cycle.as_ref().map_or(weights.len(), |cycle| cycle.len());
        Self { cycle, turns, next: AtomicUsize::new(fastrand::usize(..turns)) }
    }

    /// The member whose turn it is.
    pub(super) fn next(&self) -> usize {
        self.member(self.next.fetch_add(1, Relaxed) % self.turns)
    }

    /// Any member, in proportion to its weight.
    pub(super) fn random(&self) -> usize {
        self.member(fastrand::usize(..self.turns))
    }

    /// All weights are equal.
    pub(super) fn is_uniform(&self) -> bool {
        self.cycle.is_none()
    }

    fn member(&self, turn: usize) -> usize {
        self.cycle.as_ref().map_or(turn, |cycle| cycle[turn] as usize)
    }
}

/// Each member's turns lie in the middle of equal parts of the cycle; whose comes first goes first.
fn cycle(weights: &[f64]) -> Box<[u32]> {
    let mut turns = Vec::new();
    for (member, share) in (0_u32..).zip(shares(weights)) {
        let share = f64::from(share);
        let mut turn = 0.5;
        while turn < share {
            turns.push((turn / share, member));
            turn += 1.0;
        }
    }
    turns.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    turns.into_iter().map(|(_, member)| member).collect()
}

/// Turns of each member in a cycle: the weights in least terms, rounded when they are too many.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "capped before")]
fn shares(weights: &[f64]) -> Vec<u32> {
    let max = MAX_CYCLE.max(4 * weights.len()) as f64;
    let whole = weights.iter().all(|weight| weight.fract() == 0.0 && *weight <= f64::from(u32::MAX));
    if whole {
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight as u32));
        let terms: Vec<u32> = weights.iter().map(|weight| *weight as u32 / divisor).collect();
        if terms.iter().map(|term| f64::from(*term)).sum::<f64>() <= max {
            return terms;
        }
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / total * max).round().max(1.0) as u32).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(schedule: &Schedule, members: usize, picks: usize) -> Vec<usize> {
        let mut turns = vec![0; members];
        for _ in 0..picks {
            turns[schedule.next()] += 1;
        }
        turns
    }

    #[test]
    fn a_cycle_is_exact_wherever_it_starts() {
        for _ in 0..20 {
            assert_eq!(turns(&Schedule::new(&[50.0, 30.0, 20.0]), 3, 10), [5, 3, 2]);
            assert_eq!(turns(&Schedule::new(&[7.0, 7.0, 7.0]), 3, 6), [2, 2, 2]);
        }
    }

    #[test]
    fn turns_are_spread() {
        let cycle = cycle(&[5.0, 1.0, 1.0]);
        assert_eq!(*cycle, [0, 0, 0, 1, 2, 0, 0]);
    }

    #[test]
    fn weights_without_small_terms_are_rounded_but_nobody_starves() {
        let schedule = Schedule::new(&[4_000_000_007.0, 1.0, 2_000_000_003.0]);
        assert!(schedule.turns <= MAX_CYCLE + 3);
        let turns = turns(&schedule, 3, schedule.turns);
        assert_eq!(turns[1], 1);
        assert!((turns[0] as f64 / turns[2] as f64 - 2.0).abs() < 0.01, "{turns:?}");
    }

    #[test]
    fn fractions_are_kept() {
        let schedule = Schedule::new(&[1.0, 0.1]);
        let turns = turns(&schedule, 2, schedule.turns);
        assert!((turns[0] as f64 / turns[1] as f64 - 10.0).abs() < 0.1, "{turns:?}");
    }
}
