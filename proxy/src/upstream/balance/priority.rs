//! Which priority gets how much, and when a priority panics.
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority> and
//! [panic threshold](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/panic_threshold).

use crate::config::Fraction;

/// A priority counts as whole until its healthy share times this falls below 100 %.
pub(super) const OVERPROVISIONING_PERCENT: u64 = 140;

/// Endpoints of a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Census {
    /// All; at least one.
    pub(super) total: u64,
    /// Those that may get requests.
    pub(super) usable: u64,
}

/// What a priority gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Share of the requests. The sum is 100.
    pub(super) percent: u64,
    /// All endpoints are used, healthy or not.
    pub(super) panic: bool,
}

/// The load of each priority, first priority first.
pub(super) fn loads(levels: &[Census], panic_threshold: Fraction) -> Vec<Load> {
    let health: Vec<u64> = levels.iter().map(|level| (OVERPROVISIONING_PERCENT * level.usable / level.total).min(100)).collect();
    let available: u64 = health.iter().sum::<u64>().min(100);
    let panic: Vec<bool> = levels
        .iter()
        // While the priorities together can carry everything, a weak one just gets less.
        .map(|level| available < 100 && level.usable * 1_000_000 / level.total < u64::from(panic_threshold.millionths()))
        .collect();
    let percents = if panic.iter().all(|panic| *panic) {
        // Health says nothing any more: by size.
        let hosts: u64 = levels.iter().map(|level| level.total).sum();
        distribute(levels.iter().map(|level| 100 * level.total / hosts.max(1)))
    } else {
        distribute(health.iter().map(|health| health * 100 / available.max(1)))
    };
    percents.into_iter().zip(panic).map(|(percent, panic)| Load { percent, panic }).collect()
}

/// Earlier priorities first, no more than 100 together; what rounding left over goes to the first that gets anything.
fn distribute(wanted: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut left = 100;
    let mut percents: Vec<u64> = wanted
        .map(|wanted| {
            let percent = wanted.min(left);
            left -= percent;
            percent
        })
        .collect();
    let first = percents.iter().position(|percent| *percent > 0).unwrap_or(0);
    if let Some(percent) = percents.get_mut(first) {
        *percent += left;
    }
    percents
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Healthy percentages of levels of 100 endpoints each.
    fn loads_of(usable: &[u64], threshold: u32) -> Vec<(u64, bool)> {
        let levels: Vec<_> = usable.iter().map(|usable| Census { total: 100, usable: *usable }).collect();
        loads(&levels, Fraction::from_millionths(threshold * 10_000)).iter().map(|load| (load.percent, load.panic)).collect()
    }

    #[test]
    fn load_spills_over_as_envoys_table_says() {
        assert_eq!(loads_of(&[100, 100], 50), [(100, false), (0, false)]);
        assert_eq!(loads_of(&[72, 100], 50), [(100, false), (0, false)]);
        assert_eq!(loads_of(&[71, 100], 50), [(99, false), (1, false)]);
        assert_eq!(loads_of(&[50, 100], 50), [(70, false), (30, false)]);
        assert_eq!(loads_of(&[25, 100], 50), [(35, false), (65, false)]);
        assert_eq!(loads_of(&[0, 100], 50), [(0, false), (100, false)]);
        assert_eq!(loads_of(&[25, 25], 20), [(50, false), (50, false)]);
        assert_eq!(loads_of(&[5, 20, 0], 0), [(20, false), (80, false), (0, false)]);
    }

    #[test]
    fn a_priority_panics_only_when_all_together_are_too_weak() {
        assert_eq!(loads_of(&[10, 100], 50), [(14, false), (86, false)]);
        assert_eq!(loads_of(&[50, 20], 50), [(72, false), (28, true)]);
        assert_eq!(loads_of(&[10, 10], 50), [(50, true), (50, true)]);
        assert_eq!(loads_of(&[0], 50), [(100, true)]);
    }

    #[test]
    fn a_threshold_of_zero_never_panics() {
        assert_eq!(loads_of(&[0], 0), [(100, false)]);
        assert_eq!(loads_of(&[1, 0], 0), [(100, false), (0, false)]);
    }

    #[test]
    fn total_panic_goes_by_size() {
        let levels = [Census { total: 30, usable: 0 }, Census { total: 10, usable: 0 }];
        let percents: Vec<u64> = loads(&levels, Fraction::ALL).iter().map(|load| load.percent).collect();
        assert_eq!(percents, [75, 25]);
    }
}
