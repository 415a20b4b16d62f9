use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn labelled(port: u16, pairs: &[(&str, &str)]) -> config::Endpoint {
    let lb_metadata: BTreeMap<_, _> = labels(pairs).into_iter().map(|(key, value)| (key, LbValue::One(value))).collect();
    config::Endpoint { lb_metadata: Arc::new(lb_metadata), ..weighted(port, 1) }
}

fn selector(keys: &[&str]) -> SubsetSelector {
    SubsetSelector { keys: keys.iter().map(|key| (*key).to_owned()).collect(), ..SubsetSelector::default() }
}

/// Ports 1 and 2 are v1, 3 is v2; 1 and 3 are in stage prod.
fn subsets(lb_subset: LbSubsetConfig) -> Cluster {
    let endpoints = vec![
        labelled(1, &[("version", "v1"), ("stage", "prod")]),
        labelled(2, &[("version", "v1"), ("stage", "dev")]),
        labelled(3, &[("version", "v2"), ("stage", "prod")]),
    ];
    let config = config::Cluster { lb_subset: Some(Arc::new(lb_subset)), ..config(LbPolicy::RoundRobin(None)) };
    cluster(config, &assignment(endpoints))
}

/// The ports that such a request can go to; empty is nobody.
fn ports(cluster: &Cluster, pairs: &[(&str, &str)]) -> Vec<u16> {
    let labels = labels(pairs);
    let context = PickContext { subset: Some(&labels), ..PickContext::default() };
    let mut ports: Vec<u16> = (0..30).filter_map(|_| cluster.pick(&context).ok()).map(|endpoint| port(&endpoint)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn without_a_subset_configuration_labels_have_no_effect() {
    let cluster = cluster(config(LbPolicy::RoundRobin(None)), &hosts(2));
    assert_eq!(ports(&cluster, &[("version", "v1")]), [1, 2]);
}

#[test]
fn a_request_goes_to_the_subset_of_exactly_its_keys() {
    let selectors = vec![selector(&["version"]), selector(&["stage", "version"])];
    let cluster = subsets(LbSubsetConfig { selectors, ..LbSubsetConfig::default() });
    assert_eq!(ports(&cluster, &[("version", "v1")]), [1, 2]);
    assert_eq!(ports(&cluster, &[("version", "v1"), ("stage", "prod")]), [1]);
    assert!(ports(&cluster, &[("stage", "prod")]).is_empty(), "no selector has this key alone");
    assert!(ports(&cluster, &[("version", "v3")]).is_empty());
    assert!(ports(&cluster, &[]).is_empty(), "no fallback for requests without labels either");
}

#[test]
fn the_fallback_serves_what_no_subset_fits() {
    let any = LbSubsetConfig {
        fallback: SubsetFallback::AnyEndpoint,
        selectors: vec![selector(&["version"])],
        ..LbSubsetConfig::default()
    };
    assert_eq!(ports(&subsets(any.clone()), &[("version", "v3")]), [1, 2, 3]);
    assert_eq!(ports(&subsets(any.clone()), &[]), [1, 2, 3]);
    let default =
        LbSubsetConfig { fallback: SubsetFallback::DefaultSubset, default_subset: labels(&[("version", "v2")]), ..any.clone() };
    assert_eq!(ports(&subsets(default.clone()), &[("zone", "x")]), [3]);
    let nobody = LbSubsetConfig { default_subset: labels(&[("version", "v9")]), ..default };
    assert!(ports(&subsets(nobody.clone()), &[]).is_empty());
    assert_eq!(ports(&subsets(LbSubsetConfig { panic_mode_any: true, ..nobody }), &[]), [1, 2, 3]);
    let redundant = LbSubsetConfig { allow_redundant_keys: true, ..any };
    assert_eq!(ports(&subsets(redundant), &[("version", "v2"), ("zone", "x")]), [3]);
}

#[test]
fn a_selector_may_have_a_fallback_of_its_own() {
    let with = |fallback| SubsetSelector { fallback: Some(fallback), ..selector(&["stage", "version"]) };
    let cluster = |fallback| {
        subsets(LbSubsetConfig {
            fallback: SubsetFallback::AnyEndpoint,
            selectors: vec![with(fallback), selector(&["version"])],
            ..LbSubsetConfig::default()
        })
    };
    let wanted = [("stage", "test"), ("version", "v2")];
    assert!(ports(&cluster(SelectorFallback::Cluster(SubsetFallback::NoFallback)), &wanted).is_empty());
    assert_eq!(ports(&cluster(SelectorFallback::Cluster(SubsetFallback::AnyEndpoint)), &wanted), [1, 2, 3]);
    let keys = SelectorFallback::KeysSubset(["version".to_owned()].into());
    assert_eq!(ports(&cluster(keys), &wanted), [3]);
}

#[test]
fn a_subset_whose_members_are_down_has_no_fallback() {
    let mut sick = labelled(1, &[("version", "v1")]);
    sick.health = HealthStatus::Unhealthy;
    let lb_subset = LbSubsetConfig {
        fallback: SubsetFallback::AnyEndpoint,
        selectors: vec![selector(&["version"])],
        ..LbSubsetConfig::default()
    };
    let config = config::Cluster {
        lb_subset: Some(Arc::new(lb_subset)),
        panic_threshold: Fraction::NONE,
        ..config(LbPolicy::RoundRobin(None))
    };
    let cluster = cluster(config, &assignment(vec![sick, labelled(2, &[("version", "v2")])]));
    assert!(ports(&cluster, &[("version", "v1")]).is_empty());
    assert_eq!(ports(&cluster, &[]), [2]);
}

#[test]
fn lists_and_single_hosts() {
    let list = LbValue::List(vec!["v1".into(), "v2".into()]);
    let endpoint =
        |port| config::Endpoint { lb_metadata: Arc::new([("version".to_owned(), list.clone())].into()), ..weighted(port, 1) };
    let of = |list_as_any, single_host_per_subset| {
        let selectors = vec![SubsetSelector { single_host_per_subset, ..selector(&["version"]) }];
        let lb_subset = LbSubsetConfig { list_as_any, selectors, ..LbSubsetConfig::default() };
        let config = config::Cluster { lb_subset: Some(Arc::new(lb_subset)), ..config(LbPolicy::RoundRobin(None)) };
        cluster(config, &assignment(vec![endpoint(1), endpoint(2)]))
    };
    assert_eq!(ports(&of(true, false), &[("version", "v2")]), [1, 2]);
    assert!(ports(&of(false, false), &[("version", "v2")]).is_empty());
    assert_eq!(ports(&of(true, true), &[("version", "v2")]), [1]);
}
