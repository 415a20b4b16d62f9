//! The tables of Envoy's own test of this extension, as picks.

use super::*;

/// Ten endpoints of each priority, as many of them healthy and degraded; ports tell priority (tens) and health.
fn priorities(levels: &[(u16, u16)]) -> Cluster {
    let endpoint = |port, health| config::Endpoint { health, ..weighted(port, 1) };
    let level = |(priority, &(healthy, degraded)): (usize, &(u16, u16))| {
        let first = u16::try_from(priority).unwrap() * 10 + 1;
        let health = |index| match index {
            index if index < healthy => HealthStatus::Healthy,
            index if index < healthy + degraded => HealthStatus::Degraded,
            _ => HealthStatus::Unhealthy,
        };
        locality(u32::try_from(priority).unwrap(), (0..10).map(|index| endpoint(first + index, health(index))).collect())
    };
    let localities = levels.iter().enumerate().map(level).collect();
    cluster(
        config::Cluster { panic_threshold: Fraction::NONE, ..config(LbPolicy::Random) },
        &Arc::new(ClusterLoadAssignment::of(localities)),
    )
}

fn after(frequency: usize) -> PreviousPriorities {
    PreviousPriorities::new(frequency.try_into().unwrap())
}

fn any_of(cluster: &Cluster, priority: u32) -> Arc<Endpoint> {
    Arc::clone(cluster.endpoints().iter().find(|endpoint| endpoint.priority() == priority).unwrap())
}

/// Share of each priority in percent.
fn shares(cluster: &Cluster, previous: &PreviousPriorities) -> Vec<usize> {
    let count = cluster.endpoints().iter().map(|endpoint| endpoint.priority()).max().unwrap() as usize + 1;
    let mut shares = vec![0; count];
    // A hash takes each percent once.
    for hash in 0..100 {
        let context = PickContext { hash: Some(hash), attempt: 1, previous_priorities: Some(previous), ..PickContext::default() };
        shares[cluster.pick(&context).unwrap().priority() as usize] += 1;
    }
    shares
}

#[test]
fn a_priority_that_was_tried_gets_nothing_until_all_were_tried() {
    let cluster = priorities(&[(10, 0), (10, 0)]);
    let previous = after(1);
    assert_eq!(shares(&cluster, &previous), [100, 0]);
    previous.add(&any_of(&cluster, 0));
    assert_eq!(shares(&cluster, &previous), [0, 100]);
    previous.add(&any_of(&cluster, 1));
    assert_eq!(shares(&cluster, &previous), [100, 0]);
    previous.add(&any_of(&cluster, 0));
    assert_eq!(shares(&cluster, &previous), [0, 100], "it has started over");
}

#[test]
fn what_is_left_shares_by_health() {
    let cluster = priorities(&[(3, 0), (2, 0), (10, 0)]);
    let previous = after(1);
    assert_eq!(shares(&cluster, &previous), [42, 28, 30]);
    previous.add(&any_of(&cluster, 0));
    assert_eq!(shares(&cluster, &previous), [0, 28, 72]);
    previous.add(&any_of(&cluster, 1));
    assert_eq!(shares(&cluster, &previous), [0, 0, 100]);
    previous.add(&any_of(&cluster, 2));
    assert_eq!(shares(&cluster, &previous), [42, 28, 30]);
}

#[test]
fn degraded_endpoints_take_what_healthy_ones_cannot() {
    let cluster = priorities(&[(0, 3), (9, 1), (2, 0)]);
    let previous = after(1);
    assert_eq!(shares(&cluster, &previous), [0, 100, 0]);
    previous.add(&any_of(&cluster, 1));
    // 28 % of the third, 42 % of the first: 40 and 60 of what there is.
    assert_eq!(shares(&cluster, &previous), [60, 0, 40]);
    previous.add(&any_of(&cluster, 2));
    assert_eq!(shares(&cluster, &previous), [100, 0, 0]);
    previous.add(&any_of(&cluster, 0));
    assert_eq!(shares(&cluster, &previous), [0, 100, 0]);
}

#[test]
fn the_frequency_says_how_many_attempts_come_first() {
    let cluster = priorities(&[(10, 0), (10, 0), (10, 0)]);
    let previous = after(2);
    for expected in [[100, 0, 0], [0, 100, 0], [0, 100, 0]] {
        previous.add(&any_of(&cluster, 0));
        assert_eq!(shares(&cluster, &previous), expected);
    }
    previous.add(&any_of(&cluster, 1));
    assert_eq!(shares(&cluster, &previous), [0, 0, 100]);
}

#[test]
fn where_nobody_is_healthy_nothing_changes() {
    let cluster = priorities(&[(0, 0), (0, 0)]);
    cluster.update_config(&Arc::new(config(LbPolicy::Random)), &Secrets::new()).unwrap();
    let previous = after(1);
    let first = shares(&cluster, &previous);
    assert_eq!(first, [50, 50], "in panic all count");
    previous.add(&any_of(&cluster, 0));
    assert_eq!(shares(&cluster, &previous), first);
}
