use super::*;

fn detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(ConsecutiveFailures::always(2)),
        consecutive_local_origin_failure: None,
        max_ejection_time: Duration::from_secs(70),
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    }
}

fn watched(detection: OutlierDetection, count: u16) -> Cluster {
    let config = config::Cluster {
        outlier_detection: Some(detection),
        panic_threshold: Fraction::NONE,
        ..config(LbPolicy::RoundRobin(None))
    };
    cluster(config, &hosts(count))
}

fn report(cluster: &Cluster, port: u16, outcomes: &[Outcome]) {
    let endpoint = endpoint(cluster, port);
    outcomes.iter().for_each(|outcome| cluster.report(&endpoint, *outcome));
}

fn ejected(cluster: &Cluster) -> Vec<u16> {
    cluster.endpoints().iter().filter(|endpoint| endpoint.is_ejected()).map(|endpoint| port(endpoint)).collect()
}

#[test]
fn failures_in_a_row_eject() {
    let cluster = watched(detection(), 2);
    report(&cluster, 1, &[Outcome::Response(500), Outcome::Response(200), Outcome::Response(500), Outcome::Connected]);
    assert!(ejected(&cluster).is_empty());
    report(&cluster, 1, &[Outcome::LocalOriginFailure]);
    assert_eq!(ejected(&cluster), [1]);
    assert_eq!(picks(&cluster, 4), [(2, 4)].into());
    assert_eq!(cluster.status().endpoints[0].health, "/failed_outlier_check");
}

/// Golden scenarios resilience.outlier_eject_single and resilience.outlier_panic.
#[test]
fn the_only_endpoint_may_be_ejected_and_panic_brings_it_back() {
    let cluster = watched(detection(), 1);
    report(&cluster, 1, &[Outcome::Response(500); 2]);
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
    let panic_threshold = Fraction::from_millionths(500_000);
    cluster
        .update_config(
            &Arc::new(config::Cluster { panic_threshold, ..config::Cluster::clone(&cluster.config()) }),
            &Secrets::new(),
        )
        .unwrap();
    assert_eq!(ejected(&cluster), [1]);
    assert_eq!(pick(&cluster), Ok(1));
}

/// Golden scenario resilience.outlier_gateway.
#[test]
fn gateway_failures_have_a_row_of_their_own() {
    let gateway = OutlierDetection {
        consecutive_5xx: None,
        consecutive_gateway_failure: Some(ConsecutiveFailures::always(2)),
        ..detection()
    };
    let cluster = watched(gateway, 2);
    report(&cluster, 1, &[Outcome::Response(503), Outcome::Response(500), Outcome::Response(504)]);
    assert!(ejected(&cluster).is_empty());
    report(&cluster, 1, &[Outcome::Response(502)]);
    assert_eq!(ejected(&cluster), [1]);
}

#[test]
fn failures_of_our_own_making_can_be_counted_apart() {
    let consecutive_local_origin_failure = Some(ConsecutiveFailures::always(2));
    let split = OutlierDetection { split_external_local_origin_errors: true, consecutive_local_origin_failure, ..detection() };
    let cluster = watched(split, 2);
    report(&cluster, 1, &[Outcome::LocalOriginFailure, Outcome::Response(500), Outcome::Connected]);
    report(&cluster, 1, &[Outcome::LocalOriginTimeout, Outcome::Response(200)]);
    assert!(ejected(&cluster).is_empty());
    report(&cluster, 1, &[Outcome::LocalOriginFailure]);
    assert_eq!(ejected(&cluster), [1]);
}

#[test]
fn no_more_than_the_share_is_ejected_unless_one_always_may() {
    let ten = OutlierDetection { max_ejection_percent: 10, ..detection() };
    let none = watched(ten.clone(), 3);
    let one = watched(OutlierDetection { always_eject_one_host: true, ..ten }, 3);
    for port in 1..=3 {
        report(&none, port, &[Outcome::Response(500); 2]);
        report(&one, port, &[Outcome::Response(500); 2]);
    }
    assert!(ejected(&none).is_empty());
    assert_eq!(ejected(&one), [1]);
    let half = watched(OutlierDetection { max_ejection_percent: 50, ..detection() }, 4);
    for port in 1..=4 {
        report(&half, port, &[Outcome::Response(500); 2]);
    }
    assert_eq!(ejected(&half), [1, 2]);
}

#[test]
fn an_ejection_lasts_longer_each_time_up_to_the_cap() {
    let cluster = watched(detection(), 2);
    let host = endpoint(&cluster, 1);
    let mut now = Instant::now();
    cluster.sweep(now);
    for seconds in [30, 60, 70, 70] {
        cluster.eject(&host, 100, now);
        cluster.sweep(now + Duration::from_secs(seconds - 1));
        assert!(host.is_ejected(), "{seconds}");
        now += Duration::from_secs(seconds + 10);
        cluster.sweep(now);
        assert!(!host.is_ejected(), "{seconds}");
    }
    assert_eq!(picks(&cluster, 4), [(1, 2), (2, 2)].into());
    // Quiet intervals count down, at most as many as the cap has base times.
    for _ in 0..4 {
        now += Duration::from_secs(10);
        cluster.sweep(now);
    }
    cluster.eject(&host, 100, now);
    cluster.sweep(now + Duration::from_secs(30));
    assert!(!host.is_ejected());
}

#[test]
fn an_ejection_survives_new_endpoints_but_not_the_end_of_outlier_detection() {
    let cluster = watched(detection(), 2);
    report(&cluster, 1, &[Outcome::Response(500); 2]);
    cluster.set_endpoints(&hosts(4).into());
    assert_eq!(ejected(&cluster), [1]);
    cluster
        .update_config(
            &Arc::new(config::Cluster { outlier_detection: None, ..config::Cluster::clone(&cluster.config()) }),
            &Secrets::new(),
        )
        .unwrap();
    assert!(ejected(&cluster).is_empty());
    report(&cluster, 1, &[Outcome::Response(500); 10]);
    assert_eq!(picks(&cluster, 4).len(), 4);
}

#[test]
fn a_detector_that_is_not_enforced_ejects_nobody() {
    fastrand::seed(3);
    let never = ConsecutiveFailures { count: 2, enforcing: 0 };
    let cluster = watched(OutlierDetection { consecutive_5xx: Some(never), ..detection() }, 2);
    report(&cluster, 1, &[Outcome::Response(500); 20]);
    assert!(ejected(&cluster).is_empty());
}

/// Reports so many successes and failures of each port, and lets an interval pass.
fn interval(cluster: &Cluster, now: &mut Instant, results: &[(u16, usize, usize)]) {
    cluster.sweep(*now);
    for (port, successes, failures) in results {
        report(cluster, *port, &vec![Outcome::Response(200); *successes]);
        report(cluster, *port, &vec![Outcome::Response(500); *failures]);
    }
    *now += Duration::from_secs(10);
    cluster.sweep(*now);
}

#[test]
fn success_rates_are_held_against_the_others() {
    let rule =
        SuccessRate { minimum_hosts: 5, request_volume: 10, stdev_factor: 1900, enforcing: 100, enforcing_local_origin: 100 };
    let detection = OutlierDetection { consecutive_5xx: None, success_rate: Some(rule), ..detection() };
    let cluster = watched(detection.clone(), 5);
    let mut now = Instant::now();
    interval(&cluster, &mut now, &[(1, 5, 5), (2, 10, 0), (3, 10, 0), (4, 10, 0)]);
    assert!(ejected(&cluster).is_empty(), "four hosts with enough requests are too few");
    interval(&cluster, &mut now, &[(1, 5, 5), (2, 10, 0), (3, 10, 0), (4, 10, 0), (5, 10, 0)]);
    assert_eq!(ejected(&cluster), [1]);
    let even = watched(detection, 5);
    interval(&even, &mut now, &[(1, 5, 5), (2, 5, 5), (3, 5, 5), (4, 5, 5), (5, 5, 5)]);
    assert!(ejected(&even).is_empty(), "bad, but no worse than the others");
}

#[test]
fn a_share_of_failures_is_held_against_a_threshold() {
    let rule =
        FailurePercentage { threshold: 85, minimum_hosts: 2, request_volume: 10, enforcing: 100, enforcing_local_origin: 100 };
    let detection = OutlierDetection {
        consecutive_5xx: None,
        failure_percentage: Some(rule),
        split_external_local_origin_errors: true,
        ..detection()
    };
    let cluster = watched(detection, 3);
    let mut now = Instant::now();
    interval(&cluster, &mut now, &[(1, 2, 8), (2, 1, 9), (3, 0, 5)]);
    assert_eq!(ejected(&cluster), [2]);
    report(&cluster, 1, &[Outcome::LocalOriginFailure; 10]);
    report(&cluster, 3, &[Outcome::Connected; 10]);
    now += Duration::from_secs(10);
    cluster.sweep(now);
    assert_eq!(ejected(&cluster), [1, 2]);
}
