use super::*;

fn never_panics(policy: LbPolicy) -> config::Cluster {
    config::Cluster { panic_threshold: Fraction::NONE, ..config(policy) }
}

#[test]
fn load_spills_over_to_the_next_priority() {
    fastrand::seed(5);
    let localities = vec![locality(0, vec![weighted(1, 1), unhealthy(2)]), locality(3, vec![weighted(3, 1)])];
    let cluster = cluster(never_panics(LbPolicy::RoundRobin(None)), &Arc::new(ClusterLoadAssignment::of(localities)));
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
    let endpoints = Arc::new(ClusterLoadAssignment::of(localities));
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
    cluster.set_endpoints_at(&hosts(1).into(), start);
    let late = start + Duration::from_secs(200);
    cluster.set_endpoints_at(&hosts(2).into(), late);
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
    let cluster = cluster(config, &Arc::new(ClusterLoadAssignment::of(localities)));
    assert_eq!(picks(&cluster, 4), [(1, 2), (2, 2)].into());
}

#[test]
fn degraded_endpoints_help_out() {
    fastrand::seed(8);
    let degraded = config::Endpoint { health: HealthStatus::Degraded, ..weighted(3, 1) };
    let endpoints = vec![weighted(1, 1), unhealthy(2), degraded];
    let cluster = cluster(never_panics(LbPolicy::RoundRobin(None)), &assignment(endpoints));
    let picked = picks(&cluster, 10_000);
    // A third of the endpoints carries 46 %.
    assert_near(picked[&1], 5_000);
    assert_near(picked[&3], 5_000);
    assert_eq!(cluster.status().endpoints[2].health, "/degraded_eds_health");
}

#[test]
fn panic_can_be_made_to_fail() {
    let config = config::Cluster { fail_traffic_on_panic: true, ..config(LbPolicy::RoundRobin(None)) };
    let cluster = cluster(config, &assignment(vec![weighted(1, 1), unhealthy(2), unhealthy(3)]));
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
}

#[test]
fn draining_endpoints_do_not_count_towards_panic() {
    let draining = |port| config::Endpoint { health: HealthStatus::Draining, ..weighted(port, 1) };
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &assignment(vec![weighted(1, 1), draining(2), draining(3)]));
    assert_eq!(picks(&cluster, 10), [(1, 10)].into());
}

fn checked(ignore_health_on_host_removal: bool) -> (config::Cluster, Arc<HealthCheck>) {
    let check = Arc::new(HealthCheck {
        timeout: Duration::from_secs(1),
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        intervals: HealthCheckIntervals::every(Duration::from_secs(1)),
        reuse_connection: true,
        alpn: Vec::new(),
        transport_match: None,
        checker: HealthChecker::Tcp(TcpHealthCheck::default()),
    });
    let health_check = Some(Arc::clone(&check));
    (config::Cluster { health_check, ignore_health_on_host_removal, ..never_panics(LbPolicy::RoundRobin(None)) }, check)
}

#[test]
fn checked_endpoints_serve_once_they_pass() {
    let (config, check) = checked(true);
    let cluster = cluster(config, &hosts(2));
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
    let one = endpoint(&cluster, 1);
    cluster.check_succeeded(&one, false, &check);
    assert_eq!(picks(&cluster, 4), [(1, 4)].into());
    cluster.check_succeeded(&endpoint(&cluster, 2), true, &check);
    assert_eq!(cluster.status().endpoints[1].health, "/degraded_active_hc");
    let generation = one.generation();
    cluster.check_failed(&one, CheckFailure::Network, &check);
    assert_eq!(one.generation(), generation, "one failure is not enough");
    cluster.check_failed(&one, CheckFailure::Network, &check);
    assert_ne!(one.generation(), generation, "its connections are not used again");
    assert_eq!(picks(&cluster, 4), [(2, 4)].into());
    cluster.set_endpoints(&hosts(3).into());
    assert_eq!(picks(&cluster, 4), [(2, 4)].into(), "known hosts keep their health, new ones have to pass first");
}

#[test]
fn a_response_can_take_its_endpoint_out_at_once() {
    let (config, check) = checked(true);
    let cluster = cluster(config, &hosts(2));
    for port in [1, 2] {
        cluster.check_succeeded(&endpoint(&cluster, port), false, &check);
    }
    cluster.fail_immediately(&endpoint(&cluster, 1));
    assert_eq!(picks(&cluster, 4), [(2, 4)].into());
    assert_eq!(cluster.status().endpoints[0].health, "/failed_active_hc/excluded_via_immediate_hc_fail");
    for _ in 0..2 {
        cluster.check_succeeded(&endpoint(&cluster, 1), false, &check);
    }
    assert_eq!(picks(&cluster, 4).len(), 2);
}

#[test]
fn an_endpoint_that_passes_stays_when_the_assignment_loses_it() {
    let (config, check) = checked(false);
    let cluster = cluster(config, &hosts(2));
    let (one, two) = (endpoint(&cluster, 1), endpoint(&cluster, 2));
    cluster.check_succeeded(&one, false, &check);
    cluster.check_succeeded(&two, false, &check);
    cluster.set_endpoints(&hosts(1).into());
    assert_eq!(picks(&cluster, 4).len(), 2);
    assert_eq!(cluster.status().endpoints[1].health, "/pending_dynamic_removal");
    cluster.check_failed(&two, CheckFailure::Active { retriable: false }, &check);
    assert!(two.is_removed());
    assert_eq!(cluster.endpoints().iter().count(), 1);
    cluster.retire();
    assert!(one.is_removed(), "with the cluster everything goes");
}

#[test]
fn a_check_that_succeeds_ends_an_ejection() {
    let (config, check) = checked(true);
    let detection = OutlierDetection {
        consecutive_5xx: Some(ConsecutiveFailures::always(1)),
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    };
    let cluster = cluster(config::Cluster { outlier_detection: Some(detection), ..config }, &hosts(1));
    let one = endpoint(&cluster, 1);
    cluster.check_succeeded(&one, false, &check);
    cluster.report(&one, Outcome::Response(500));
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
    cluster.check_succeeded(&one, false, &check);
    assert_eq!(pick(&cluster), Ok(1));
}

#[test]
fn checks_that_end_leave_no_mark() {
    let (config, _) = checked(true);
    let cluster = cluster(config.clone(), &hosts(1));
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
    cluster.update_config(&Arc::new(config::Cluster { health_check: None, ..config }), &Secrets::new()).unwrap();
    assert_eq!(pick(&cluster), Ok(1));
}
