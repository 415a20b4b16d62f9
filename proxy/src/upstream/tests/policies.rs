use super::*;

#[test]
fn round_robin_is_exact_over_a_cycle() {
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &assignment(vec![weighted(1, 2), weighted(2, 6), weighted(3, 2)]));
    for _ in 0..10 {
        assert_eq!(picks(&cluster, 5), [(1, 1), (2, 3), (3, 1)].into());
    }
}

#[test]
fn round_robin_starts_anywhere() {
    let first: std::collections::BTreeSet<_> =
        (0..200).map(|_| pick(&cluster(config(LbPolicy::RoundRobin(None)), &hosts(4))).unwrap()).collect();
    assert_eq!(first.len(), 4);
}

#[test]
fn least_request_prefers_the_idle_one() {
    fastrand::seed(1);
    let two = cluster(config(least_request(2)), &hosts(2));
    let _busy = endpoint(&two, 1).start_request();
    assert_eq!(picks(&two, 100), [(2, 100)].into());

    // Two draws of ten, with replacement: the busy one is only taken when drawn twice.
    let ten = cluster(config(least_request(2)), &hosts(10));
    let busy = endpoint(&ten, 1).start_request();
    let picked = picks(&ten, 10_000);
    assert!(picked.get(&1).copied().unwrap_or(0) < 200, "{picked:?}");
    drop(busy);
    assert_near(picks(&ten, 10_000)[&1], 1_000);
}

#[test]
fn least_request_keeps_to_the_weights_at_rest_and_relieves_under_load() {
    fastrand::seed(2);
    let cluster = cluster(config(least_request(2)), &assignment(vec![weighted(1, 3), weighted(2, 1)]));
    assert_near(picks(&cluster, 10_000)[&1], 7_500);
    let _busy = endpoint(&cluster, 1).start_request();
    // Only when both draws are the heavy one: 9 of 16.
    assert_near(picks(&cluster, 10_000)[&1], 5_625);
}

#[test]
fn random_is_even_whatever_the_weights() {
    fastrand::seed(3);
    let cluster = cluster(config(LbPolicy::Random), &assignment(vec![weighted(1, 9), weighted(2, 1)]));
    assert_near(picks(&cluster, 10_000)[&1], 5_000);
}

#[test]
fn a_hash_stays_with_its_endpoint_while_it_is_there() {
    let sizes = HashConfig { size: 1024, max_size: 8_388_608 };
    for policy in [LbPolicy::RingHash(sizes.clone()), LbPolicy::Maglev(HashConfig { size: 65_537, ..sizes })] {
        let ten = cluster(config(policy), &hosts(10));
        let place = |hash: u64| port(&ten.pick(&PickContext { hash: Some(hash), ..PickContext::default() }).unwrap());
        let keys: Vec<u64> = (0..1_000_u64).map(|i| balance::hash(&i.to_le_bytes())).collect();
        let before: Vec<u16> = keys.iter().map(|key| place(*key)).collect();
        assert_eq!(before, keys.iter().map(|key| place(*key)).collect::<Vec<_>>());
        ten.set_endpoints(&hosts(9).into());
        let moved = keys.iter().zip(&before).filter(|(key, before)| place(**key) != **before).count();
        assert!((50..200).contains(&moved), "{moved}");
    }
}

#[test]
fn previous_hosts_are_avoided_as_often_as_asked() {
    let sizes = HashConfig { size: 1024, max_size: 8_388_608 };
    for policy in [LbPolicy::RoundRobin(None), LbPolicy::RingHash(sizes)] {
        let cluster = cluster(config(policy), &hosts(3));
        let previous = [endpoint(&cluster, 1), endpoint(&cluster, 2)];
        let context =
            PickContext { hash: Some(7), attempt: 2, exclude: &previous, exclude_attempts: 64, ..PickContext::default() };
        for _ in 0..30 {
            assert_eq!(port(&cluster.pick(&context).unwrap()), 3);
        }
    }
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &hosts(1));
    let previous = [endpoint(&cluster, 1)];
    let context = PickContext { attempt: 1, exclude: &previous, exclude_attempts: 5, ..PickContext::default() };
    assert_eq!(port(&cluster.pick(&context).unwrap()), 1, "a used host is better than none");
}

fn dropping(drop_overload: Fraction) -> Arc<ClusterLoadAssignment> {
    let policy = AssignmentPolicy { drop_overload, ..AssignmentPolicy::default() };
    Arc::new(ClusterLoadAssignment { policy, ..ClusterLoadAssignment::clone(&hosts(1)) })
}

#[test]
fn the_configured_share_is_dropped_on_first_attempts_only() {
    fastrand::seed(4);
    let cluster = cluster(config(LbPolicy::Random), &dropping(Fraction::from_millionths(200_000)));
    let dropped = (0..10_000).filter(|_| pick(&cluster) == Err(ErrorKind::DropOverload { unconditional: false })).count();
    assert_near(dropped, 2_000);
    let retry = PickContext { attempt: 1, ..PickContext::default() };
    assert!((0..1_000).all(|_| cluster.pick(&retry).is_ok()));
}

/// Golden scenario resilience.drop_overload.
#[test]
fn dropping_everything_is_told_apart() {
    let cluster = cluster(config(LbPolicy::Random), &dropping(Fraction::ALL));
    let kind = pick(&cluster).unwrap_err();
    assert_eq!(kind, ErrorKind::DropOverload { unconditional: true });
    let reply = kind.reply(None, false);
    assert_eq!((&*reply.body, &*reply.details), ("unconditional drop overload", "unconditional_drop_overload"));
    assert_eq!(reply.header, Some("x-envoy-unconditional-drop-overload"));
}
