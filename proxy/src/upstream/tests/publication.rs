use super::*;

#[test]
fn live_state_survives_new_endpoints_where_the_host_is_the_same() {
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &hosts(3));
    let (stays, leaves) = (endpoint(&cluster, 1), endpoint(&cluster, 3));
    let request = stays.start_request();
    let connection = stays.start_connection();
    cluster.set_endpoints(&assignment(vec![weighted(2, 1), weighted(1, 5)]).into());

    let now = endpoint(&cluster, 1);
    assert_eq!((now.id(), now.weight(), now.active_requests(), now.active_connections()), (stays.id(), 5, 1, 1));
    assert!(!stays.is_removed() && leaves.is_removed());
    drop((request, connection));
    assert_eq!((now.active_requests(), now.active_connections()), (0, 0));

    cluster.set_endpoints(&hosts(3).into());
    assert_ne!(endpoint(&cluster, 3).id(), leaves.id(), "who comes back is someone else");
    assert!(leaves.is_removed());
}

#[test]
fn equal_endpoints_publish_nothing() {
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &hosts(3));
    let before = cluster.endpoints();
    cluster.set_endpoints(&hosts(3).into());
    cluster.update_config(&Arc::new(config(LbPolicy::RoundRobin(None))), &Secrets::new()).unwrap();
    assert!(Arc::ptr_eq(&before, &cluster.endpoints()));
}

#[test]
fn an_address_listed_twice_is_one_endpoint_and_names_wait_for_dns() {
    let name = config::Endpoint::new(EndpointAddress::Name("example.com".into(), 80));
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &assignment(vec![weighted(1, 1), weighted(1, 3), name]));
    let weights: Vec<u32> = cluster.endpoints().iter().map(|endpoint| endpoint.weight()).collect();
    assert_eq!(weights, [1]);
}

#[test]
fn a_new_configuration_keeps_permits_and_hosts() {
    let limits = CircuitBreakers { max_requests: 1, ..CircuitBreakers::UNLIMITED };
    let cluster = cluster(config::Cluster { circuit_breakers: limits, ..config(LbPolicy::Random) }, &hosts(2));
    let host = endpoint(&cluster, 1);
    let _permit = cluster.breakers().requests.acquire().unwrap();
    assert_eq!(cluster.breakers().requests.acquire().unwrap_err(), ErrorKind::Overflow);
    let limits = CircuitBreakers { max_requests: 2, ..limits };
    cluster
        .update_config(
            &Arc::new(config::Cluster { circuit_breakers: limits, ..config(LbPolicy::RoundRobin(None)) }),
            &Secrets::new(),
        )
        .unwrap();
    let _second = cluster.breakers().requests.acquire().unwrap();
    assert!(cluster.breakers().requests.acquire().is_err());
    assert_eq!(endpoint(&cluster, 1).id(), host.id());
    assert_eq!(picks(&cluster, 4), [(1, 2), (2, 2)].into());

    cluster.retire();
    assert!(host.is_removed());
    assert_eq!(pick(&cluster), Err(ErrorKind::NoHealthyUpstream));
}

#[test]
fn written_endpoints_follow_the_configuration() {
    let of = |assignment| config::Cluster::new("c", ClusterDiscovery::Static(assignment));
    let cluster = Cluster::new(Arc::new(of(hosts(1))), &Secrets::new()).unwrap();
    assert_eq!(pick(&cluster), Ok(1));
    cluster.update_config(&Arc::new(of(assignment(vec![weighted(9, 1)]))), &Secrets::new()).unwrap();
    assert_eq!(pick(&cluster), Ok(9));
}

fn tls(sni: &str) -> TransportSocket {
    use crate::config::TlsVersion::{Tls12, Tls13};
    TransportSocket::Tls(Arc::new(UpstreamTls {
        certificate: None,
        trust: None,
        sans: Vec::new(),
        pins: Vec::new(),
        revocation: None,
        sni: sni.into(),
        auto_sni: false,
        auto_san_validation: false,
        alpn: Vec::new(),
        versions: (Tls12, Tls13),
    }))
}

#[test]
fn the_first_transport_socket_whose_labels_an_endpoint_has_is_its_own() {
    let mode = |mode: &str| Arc::new(BTreeMap::from([("tlsMode".to_owned(), mode.to_owned())]));
    let matching = |name: &str, matches, socket| TransportSocketMatch { name: name.into(), matches, socket };
    let mut config = config(LbPolicy::RoundRobin(None));
    config.transport_socket = tls("default");
    config.transport_socket_matches = vec![matching("istio", mode("istio"), tls("mesh"))];
    let mut labelled = weighted(1, 1);
    labelled.transport_match = mode("istio");
    Arc::make_mut(&mut labelled.transport_match).insert("more".into(), "labels".into());
    let cluster = cluster(config.clone(), &assignment(vec![labelled, weighted(2, 1)]));

    let (mesh, plain) = (endpoint(&cluster, 1), endpoint(&cluster, 2));
    assert_eq!((mesh.transport(), mesh.transport_index()), (&tls("mesh"), 0));
    assert_eq!((plain.transport(), plain.transport_index()), (&tls("default"), 1));

    // What istiod ends its list with: it matches everyone.
    config.transport_socket_matches.push(matching("disabled", Arc::default(), TransportSocket::RawBuffer));
    cluster.update_config(&Arc::new(config), &Secrets::new()).unwrap();
    assert_eq!(endpoint(&cluster, 1).id(), mesh.id());
    assert!(plain.is_removed(), "another transport makes another host");
    assert_eq!(endpoint(&cluster, 2).transport(), &TransportSocket::RawBuffer);
}

#[test]
fn the_admin_page_shows_envoys_words() {
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &assignment(vec![weighted(1, 4), unhealthy(2)]));
    let _request = endpoint(&cluster, 1).start_request();
    let status = cluster.status();
    assert_eq!((status.endpoints[0].address.as_str(), status.endpoints[0].health.as_str()), ("127.0.0.1:1", "healthy"));
    assert_eq!((status.endpoints[0].active, status.endpoints[0].weight, status.endpoints[0].locality.as_str()), (1, 4, "//"));
    assert_eq!(status.endpoints[1].health, "/failed_eds_health");
}
