use super::*;

fn detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(2),
        consecutive_gateway_failure: None,
        consecutive_local_origin_failure: None,
        split_external_local_origin_errors: false,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(70),
        max_ejection_percent: 100,
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
    let gateway = OutlierDetection { consecutive_5xx: Some(100), consecutive_gateway_failure: Some(2), ..detection() };
    let cluster = watched(gateway, 2);
    report(&cluster, 1, &[Outcome::Response(503), Outcome::Response(500), Outcome::Response(504)]);
    assert!(ejected(&cluster).is_empty());
    report(&cluster, 1, &[Outcome::Response(502)]);
    assert_eq!(ejected(&cluster), [1]);
}

#[test]
fn failures_of_our_own_making_can_be_counted_apart() {
    let split =
        OutlierDetection { split_external_local_origin_errors: true, consecutive_local_origin_failure: Some(2), ..detection() };
    let cluster = watched(split, 2);
    report(&cluster, 1, &[Outcome::LocalOriginFailure, Outcome::Response(500), Outcome::Connected]);
    report(&cluster, 1, &[Outcome::LocalOriginTimeout, Outcome::Response(200)]);
    assert!(ejected(&cluster).is_empty());
    report(&cluster, 1, &[Outcome::LocalOriginFailure]);
    assert_eq!(ejected(&cluster), [1]);
}

#[test]
fn no_more_than_the_share_is_ejected_but_one_always_may() {
    let cluster = watched(OutlierDetection { max_ejection_percent: 10, ..detection() }, 3);
    for port in 1..=3 {
        report(&cluster, port, &[Outcome::Response(500); 2]);
    }
    assert_eq!(ejected(&cluster), [1]);
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
        cluster.eject(&host, now);
        cluster.sweep(now + Duration::from_secs(seconds - 1));
        assert!(host.is_ejected(), "{seconds}");
        now += Duration::from_secs(seconds + 10);
        cluster.sweep(now);
        assert!(!host.is_ejected(), "{seconds}");
    }
    assert_eq!(picks(&cluster, 4), [(1, 2), (2, 2)].into());
    // Quiet intervals count down: four ejections, four of them.
    for _ in 0..4 {
        now += Duration::from_secs(10);
        cluster.sweep(now);
    }
    cluster.eject(&host, now);
    cluster.sweep(now + Duration::from_secs(30));
    assert!(!host.is_ejected());
}

#[test]
fn an_ejection_survives_new_endpoints_but_not_the_end_of_outlier_detection() {
    let cluster = watched(detection(), 2);
    report(&cluster, 1, &[Outcome::Response(500); 2]);
    cluster.set_endpoints(&hosts(4));
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
