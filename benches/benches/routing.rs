//! Finding a route among 300 virtual hosts, as many as a namespace without a Sidecar resource has.

use std::sync::Arc;

use std::hint::black_box;

use criterion::Criterion;
use skiff_proxy::config::{PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch, RouteTarget, VirtualHost};
use skiff_proxy::http::head::RequestHead;
use skiff_proxy::http::route::RouteTable;

const HOSTS: usize = 300;

pub(crate) fn bench(criterion: &mut Criterion) {
    let table = RouteTable::compile(&Arc::new(configuration()), &|_| None).unwrap();
    let requests = [
        ("exact domain, last route", "service-150.bookinfo.svc.cluster.local:9080", "/"),
        ("exact domain, first route", "service-299.bookinfo:9080", "/v1/details/0"),
        ("wildcard domain", "deep.below.team-150.example.org", "/"),
        ("no domain", "unknown.example.com", "/"),
    ];
    for (name, host, path) in requests {
        let mut head = RequestHead::new();
        head.set_authority(host.as_bytes());
        head.set_path(path.as_bytes());
        criterion.bench_function(&format!("routing/{name}"), |bench| bench.iter(|| table.find(black_box(&head)).is_some()));
    }
}

/// Domains as istiod writes them for a service on port 9080.
fn configuration() -> RouteConfiguration {
    let host = |index: usize| {
        let name = format!("service-{index}");
        let full = format!("{name}.bookinfo.svc.cluster.local");
        let names = [full.clone(), name.clone(), format!("{name}.bookinfo.svc"), format!("{name}.bookinfo")];
        let mut domains: Vec<String> = names.iter().flat_map(|name| [name.clone(), format!("{name}:9080")]).collect();
        domains.push(format!("*.team-{index}.example.org"));
        let forward = || RouteTarget::Forward(Box::new(RouteAction::cluster(format!("outbound|9080||{full}"))));
        let versioned = RouteMatch::path(PathMatch::SeparatedPrefix("/v1".to_owned()));
        let routes = vec![Route::new("v1", versioned, forward()), Route::new("default", RouteMatch::any(), forward())];
        VirtualHost { name: format!("{full}:9080"), domains, routes, ..VirtualHost::default() }
    };
    RouteConfiguration {
        name: "9080".to_owned(),
        virtual_hosts: (0..HOSTS).map(|index| host(index).into()).collect(),
        ..RouteConfiguration::default()
    }
}
