//! Publishing a configuration of 1,000 clusters with 10 endpoints each.

use std::collections::BTreeMap;
use std::sync::Arc;

use criterion::{BatchSize, Criterion};
use metrics_exporter_prometheus::PrometheusBuilder;
use skiff_benches::endpoints;
use skiff_proxy::config::{
    Cluster, ClusterDiscovery, Route, RouteAction, RouteConfiguration, RouteMatch, RouteTarget, Snapshot, VirtualHost,
};
use skiff_proxy::{Options, Proxy};

const CLUSTERS: usize = 1_000;
const ENDPOINTS: usize = 10;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.sample_size(20);
    group.bench_function("everything new", |bench| {
        bench.iter_batched(
            || (proxy(), snapshot()),
            |(proxy, snapshot)| (apply(&proxy, snapshot), proxy),
            BatchSize::PerIteration,
        );
    });
    let proxy = proxy();
    apply(&proxy, snapshot());
    group.bench_function("the same again, by value", |bench| {
        bench.iter_batched(snapshot, |snapshot| apply(&proxy, snapshot), BatchSize::PerIteration);
    });
    let same = (*proxy.snapshot()).clone();
    group.bench_function("the same again, by pointer", |bench| {
        bench.iter_batched(|| same.clone(), |snapshot| apply(&proxy, snapshot), BatchSize::PerIteration);
    });
    let mut count = 0;
    group.bench_function("endpoints of one cluster changed", |bench| {
        let mut change = || {
            count = (count + 1) % ENDPOINTS;
            let mut snapshot = same.clone();
            snapshot.endpoints.insert(host(500).into(), endpoints(500, 1 + count).into());
            snapshot
        };
        bench.iter_batched(&mut change, |snapshot| apply(&proxy, snapshot), BatchSize::PerIteration);
    });
    group.finish();
}

fn proxy() -> Proxy {
    let recorder = PrometheusBuilder::new().build_recorder();
    Proxy::start(&Options { workers: 1, ..Options::default() }, Arc::new(recorder)).unwrap()
}

/// The snapshot is dropped inside too: a control plane's thread pays for that as well.
fn apply(proxy: &Proxy, snapshot: Snapshot) {
    let report = proxy.apply(snapshot);
    assert!(report.rejected.is_empty(), "{:?}", report.rejected);
}

fn host(index: usize) -> String {
    format!("service-{index}.bookinfo.svc.cluster.local")
}

fn snapshot() -> Snapshot {
    let mut clusters = BTreeMap::new();
    let mut assignments = BTreeMap::new();
    let mut virtual_hosts = Vec::new();
    for index in 0..CLUSTERS {
        let (name, host) = (format!("outbound|9080||{}", host(index)), host(index));
        let route = Route::new("default", RouteMatch::any(), RouteTarget::Forward(Box::new(RouteAction::cluster(name.clone()))));
        virtual_hosts.push(
            VirtualHost { name: host.clone(), domains: vec![host.clone()], routes: vec![route], ..VirtualHost::default() }.into(),
        );
        clusters.insert(name.as_str().into(), Cluster::new(&name, ClusterDiscovery::Eds(host.clone())).into());
        assignments.insert(host.into(), endpoints(index, ENDPOINTS).into());
    }
    let routes = RouteConfiguration { name: "9080".to_owned(), virtual_hosts, ..RouteConfiguration::default() };
    Snapshot {
        routes: BTreeMap::from([("9080".to_owned(), Arc::new(routes))]),
        clusters,
        endpoints: assignments,
        ..Snapshot::default()
    }
}
