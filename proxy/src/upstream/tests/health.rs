use super::*;

fn never_panics(policy: LbPolicy) -> config::Cluster {
    config::Cluster { panic_threshold: Fraction::NONE, ..config(policy) }
}

#[test]
fn load_spills_over_to_the_next_priority() {
    fastrand::seed(5);
    let localities = vec![locality(0, vec![weighted(1, 1), unhealthy(2)]), locality(3, vec![weighted(3, 1)])];
    let cluster = cluster(never_panics(LbPolicy::RoundRobin(None)), &Arc::new(ClusterLoadAssignment { localities }));
    let picked = picks(&cluster, 10_000);
    assert_near(picked[&1], 7_000);
    assert_near(picked[&3], 3_000);
}

#[test]
fn without_a_threshold_nobody_is_better_than_the_unhealthy() {
    let sick = assignment(vec![unhealthy(1), config::Endpoint { health: HealthStatus::Draining, ..weighted(2, 1) }]);
    let cluster = cluster(never_panics(LbPolicy::RoundRobin(None)), &sick);
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
    cluster.update_config(&Arc::new(config(LbPolicy::RoundRobin(None))), &Secrets::new()).unwrap();
    assert_eq!(picks(&cluster, 10), [(1, 5), (2, 5)].into(), "the default of 50 % panics");
}

#[test]
fn clusters_without_endpoints_have_nobody() {
    let cluster =
        Cluster::new(Arc::new(config::Cluster::new("PassthroughCluster", ClusterDiscovery::OriginalDst)), &Secrets::new())
            .unwrap();
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
}

#[test]
fn localities_get_their_share_when_asked_for() {
    let of = |weight, ports: &[u16]| LocalityEndpoints {
        weight: NonZeroU32::new(weight),
        ..locality(0, ports.iter().map(|port| weighted(*port, 1)).collect())
    };
    let localities = vec![of(80, &[1]), of(20, &[2, 3, 4, 5]), of(0, &[6])];
    let endpoints = Arc::new(ClusterLoadAssignment { localities });
    let flat = cluster(config(LbPolicy::RoundRobin(None)), &endpoints);
    assert_eq!(picks(&flat, 6)[&1], 1);

    for policy in [LbPolicy::RoundRobin(None), least_request(2)] {
        let weighted = cluster(config::Cluster { locality_weighted: true, ..config(policy) }, &endpoints);
        let picked = picks(&weighted, 1_000);
        assert_eq!((picked[&1], picked.get(&6)), (800, None));
    }

    fastrand::seed(6);
    let policy = LbPolicy::RingHash(HashConfig { size: 4096, max_size: 4096 });
    let ring = cluster(config::Cluster { locality_weighted: true, ..config(policy) }, &endpoints);
    assert_near(picks(&ring, 10_000)[&1], 8_000);
}

#[test]
fn new_endpoints_warm_up() {
    let start = Instant::now();
    let slow = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_weight: Fraction::from_millionths(100_000) };
    let cluster = Cluster::new(Arc::new(config(LbPolicy::RoundRobin(Some(slow)))), &Secrets::new()).unwrap();
    cluster.set_endpoints_at(&hosts(1), start);
    let late = start + Duration::from_secs(200);
    cluster.set_endpoints_at(&hosts(2), late);
    let share = |after: u64| {
        cluster.sweep(late + Duration::from_secs(after));
        let picked = picks(&cluster, 6_000);
        picked[&2] as f64 / picked[&1] as f64
    };
    assert!((share(0) - 0.1).abs() < 0.01, "the least weight");
    assert!((share(50) - 0.5).abs() < 0.01, "half way, linear");
    assert!((share(100) - 1.0).abs() < 0.01, "warm");
    let warm = cluster.endpoints();
    cluster.sweep(late + Duration::from_secs(101));
    assert!(Arc::ptr_eq(&warm, &cluster.endpoints()), "nothing is published when nothing changes");
}

#[test]
fn localities_without_any_weight_are_all_alike() {
    let localities = vec![locality(0, vec![weighted(1, 1)]), locality(0, vec![weighted(2, 1)])];
    let config = config::Cluster { locality_weighted: true, ..config(LbPolicy::RoundRobin(None)) };
    let cluster = cluster(config, &Arc::new(ClusterLoadAssignment { localities }));
    assert_eq!(picks(&cluster, 4), [(1, 2), (2, 2)].into());
}
