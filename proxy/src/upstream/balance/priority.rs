//! Which priority gets how much, and when a priority panics.
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>,
//! [degraded endpoints](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/degraded) and
//! [panic threshold](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/panic_threshold).

use crate::config::Fraction;

/// Endpoints of a priority, each counted once or by its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// All, those included that do not count.
    pub(super) hosts: u64,
    /// All that count: the denominator of every share.
    pub(super) total: u64,
    /// Those that may get requests.
    pub(super) healthy: u64,
    /// Those that get requests where there are not enough healthy ones.
    pub(super) degraded: u64,
}

impl Census {
    /// Capacity in percent, capped.
    fn capacity(self, some: u64, overprovisioning_percent: u64) -> u64 {
        (overprovisioning_percent * some).checked_div(self.total).unwrap_or(0).min(100)
    }

    fn panics(self, threshold: Fraction) -> bool {
        let usable = (self.healthy + self.degraded) * 1_000_000;
        usable.checked_div(self.total).unwrap_or(0) < u64::from(threshold.millionths())
    }
}

/// What a priority gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Share of the requests that goes to healthy endpoints. The sum of all shares is 100.
    pub(super) healthy: u64,
    /// Share of the requests that goes to degraded endpoints.
    pub(super) degraded: u64,
    /// What healthy endpoints could carry, in percent.
    pub(super) healthy_capacity: u64,
    /// What degraded endpoints could carry, in percent.
    pub(super) degraded_capacity: u64,
    /// All endpoints are used, healthy or not.
    pub(super) panic: bool,
}

/// The load of each priority, first priority first.
pub(super) fn loads(levels: &[Census], overprovisioning_percent: u64, panic_threshold: Fraction) -> Vec<Load> {
    let healthy: Vec<u64> = levels.iter().map(|level| level.capacity(level.healthy, overprovisioning_percent)).collect();
    let degraded: Vec<u64> = levels.iter().map(|level| level.capacity(level.degraded, overprovisioning_percent)).collect();
    let available = healthy.iter().chain(&degraded).sum::<u64>().min(100);
    // While the priorities together can carry everything, a weak one just gets less.
    let panics = |level: &Census| available < 100 && level.panics(panic_threshold);
    let capacities = healthy.iter().zip(&degraded);
    let load = |(level, (&healthy_capacity, &degraded_capacity))| Load {
        healthy_capacity,
        degraded_capacity,
        panic: panics(level),
        ..Load::default()
    };
    let mut loads: Vec<Load> = levels.iter().zip(capacities).map(load).collect();
    if loads.iter().all(|load| load.panic) {
        // Health says nothing any more: by size.
        let hosts: u64 = levels.iter().map(|level| level.hosts).sum();
        let mut left = 100;
        for (load, level) in loads.iter_mut().zip(levels) {
            load.healthy = take(&mut left, (100 * level.hosts).checked_div(hosts).unwrap_or(0));
        }
        give_rest(&mut loads, left);
        return loads;
    }
    let mut left = 100;
    for (load, capacity) in loads.iter_mut().zip(healthy) {
        load.healthy = take(&mut left, (capacity * 100).checked_div(available).unwrap_or(0));
    }
    for (load, capacity) in loads.iter_mut().zip(degraded) {
        load.degraded = take(&mut left, (capacity * 100).checked_div(available).unwrap_or(0));
    }
    give_rest(&mut loads, left);
    loads
}

fn take(left: &mut u64, wanted: u64) -> u64 {
    let taken = wanted.min(*left);
    *left -= taken;
    taken
}

/// What rounding left over goes to the first that gets anything, healthy ones first; where nobody does, to the first.
fn give_rest(loads: &mut [Load], rest: u64) {
    if let Some(load) = loads.iter_mut().find(|load| load.healthy > 0) {
        load.healthy += rest;
    } else if let Some(load) = loads.iter_mut().find(|load| load.degraded > 0) {
        load.degraded += rest;
    } else if let Some(load) = loads.first_mut() {
        load.healthy += rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(healthy: u64, degraded: u64) -> Census {
        Census { hosts: 100, total: 100, healthy, degraded }
    }

    fn of(levels: &[Census], threshold: u32) -> Vec<(u64, u64, bool)> {
        let loads = loads(levels, 140, Fraction::from_millionths(threshold * 10_000));
        loads.iter().map(|load| (load.healthy, load.degraded, load.panic)).collect()
    }

    /// Healthy percentages of levels of 100 endpoints each.
    fn loads_of(usable: &[u64], threshold: u32) -> Vec<(u64, bool)> {
        let levels: Vec<_> = usable.iter().map(|usable| level(*usable, 0)).collect();
        of(&levels, threshold).into_iter().map(|(healthy, _, panic)| (healthy, panic)).collect()
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

    /// The table of Envoy's page on degraded endpoints.
    #[test]
    fn degraded_endpoints_take_what_healthy_ones_cannot() {
        assert_eq!(of(&[level(100, 0)], 50), [(100, 0, false)]);
        assert_eq!(of(&[level(71, 29)], 50), [(99, 1, false)]);
        assert_eq!(of(&[level(25, 65)], 50), [(35, 65, false)]);
        assert_eq!(of(&[level(0, 100)], 50), [(0, 100, false)]);
        assert_eq!(of(&[level(25, 75), level(100, 0)], 50), [(35, 0, false), (65, 0, false)]);
        assert_eq!(of(&[level(5, 0), level(5, 0)], 0), [(50, 0, false), (50, 0, false)]);
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
        let of_size = |hosts| Census { hosts, total: hosts, ..Census::default() };
        let loads = loads(&[of_size(30), of_size(10)], 140, Fraction::ALL);
        assert_eq!(loads.iter().map(|load| load.healthy).collect::<Vec<_>>(), [75, 25]);
    }

    #[test]
    fn excluded_endpoints_do_not_count_and_the_factor_is_the_assignments() {
        let level = Census { hosts: 10, total: 5, healthy: 5, degraded: 0 };
        assert_eq!(of(&[level], 50), [(100, 0, false)]);
        let half = Census { hosts: 10, total: 10, healthy: 5, degraded: 0 };
        let loads = loads(&[half, half], 100, Fraction::NONE);
        assert_eq!(loads.iter().map(|load| load.healthy).collect::<Vec<_>>(), [50, 50]);
        assert_eq!(of(&[Census { hosts: 3, total: 0, healthy: 0, degraded: 0 }], 50), [(100, 0, true)]);
    }
}
