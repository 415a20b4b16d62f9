//! Configuration: any bytes are translated or refused with a reason, the same way each time, and what is translated can be
//! published or is refused with a reason there.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use prost::{Message, Name};
use skiff_agent::bootstrap;
use skiff_agent::translate::envoy::{self, Rejected};
use skiff_agent::translate::istio::{Documents, Workload, translate};
use skiff_proxy::config::{
    self, HttpFilter, Listener, Locality, NetworkFilter, RbacRules, RouteConfiguration, RouteSource, Snapshot,
};
use skiff_proxy::http::head::RequestHead;
use skiff_proxy::http::route::RouteTable;
use skiff_proxy::rbac::Engine;
use skiff_proxy::telemetry::format::LogTemplate;

use crate::input::Input;

/// What the documents stand beside, so that short ones mean something.
const BASE: [(&str, &str); 4] = [
    ("mesh.yaml", include_str!("../../../agent/testdata/istio/base/mesh.yaml")),
    ("services.yaml", include_str!("../../../agent/testdata/istio/base/services.yaml")),
    ("sidecar.yaml", include_str!("../../../agent/testdata/istio/base/sidecar.yaml")),
    ("workloads.yaml", include_str!("../../../agent/testdata/istio/base/workloads.yaml")),
];

/// Istio YAML: one more document beside a small mesh, or (first byte odd) alone.
pub fn istio(data: &[u8]) {
    let mut input = Input::new(data);
    let alone = input.byte() & 1 != 0;
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    let mut files = vec![(PathBuf::from("fuzzed.yaml"), text.to_owned())];
    if !alone {
        files.extend(BASE.map(|(name, text)| (PathBuf::from(name), text.to_owned())));
    }
    let documents = match Documents::parse(&files, "bookinfo") {
        Ok(documents) => documents,
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            for error in errors {
                assert!(error.line > 0 && !error.reason.is_empty(), "{error:?}");
            }
            return;
        }
    };
    let make = || translate(&documents, &workload());
    match (make(), make()) {
        (Ok(first), Ok(second)) => {
            assert!(first.snapshot == second.snapshot, "translated in two ways");
            publish(&first.snapshot);
        }
        (Err(first), Err(second)) => {
            assert!(!first.is_empty());
            assert_eq!(first, second);
        }
        _ => panic!("translated once, refused once"),
    }
}

fn workload() -> Workload {
    let labels = [("app", "ratings"), ("class", "vm"), ("version", "v1"), ("service.istio.io/canonical-name", "ratings")];
    Workload {
        name: "ratings-vm".to_owned(),
        namespace: "bookinfo".to_owned(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        addresses: vec!["127.0.0.21".parse().unwrap()],
        service_account: "ratings-vm".to_owned(),
        trust_domain: "cluster.local".parse().unwrap(),
        cluster_id: "Kubernetes".to_owned(),
        locality: Locality { region: "us-east-1".to_owned(), zone: "us-east-1a".to_owned(), sub_zone: String::new() },
    }
}

/// A static bootstrap, YAML or JSON.
pub fn bootstrap(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match bootstrap::parse(Path::new("fuzzed.yaml"), text) {
        Ok(bootstrap) => {
            reasons(&bootstrap.report.rejected);
            publish(&bootstrap.snapshot);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// One resource as xDS carries it; the first byte says of which type.
pub fn resource(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.below(5);
    let bytes = input.rest();
    let mut snapshot = Snapshot::default();
    let name = || "r".to_owned();
    match choice {
        0 => {
            if let Some(listener) = taken(bytes, envoy::listener) {
                snapshot.listeners.insert(name(), listener.into());
            }
        }
        1 => {
            if let Some(routes) = taken(bytes, envoy::route_configuration) {
                snapshot.routes.insert(name(), routes.into());
            }
        }
        2 => {
            if let Some(cluster) = taken(bytes, envoy::cluster) {
                snapshot.clusters.insert(name().into(), cluster.into());
            }
        }
        3 => {
            if let Some(endpoints) = taken(bytes, envoy::load_assignment) {
                snapshot.endpoints.insert(name().into(), endpoints.into());
            }
        }
        _ => {
            let secret = taken(bytes, envoy::secret);
            let debug = format!("{secret:?}");
            assert!(
                !debug.contains("PRIVATE KEY") || !String::from_utf8_lossy(bytes).contains("PRIVATE KEY"),
                "a key in {debug}"
            );
        }
    }
    publish(&snapshot);
}

fn taken<M, T>(bytes: &[u8], translate: fn(&M) -> Result<T, Vec<Rejected>>) -> Option<T>
where
    M: Message + Name + Default,
    T: Debug,
{
    let message = M::decode(bytes).ok()?;
    let _ = envoy::ignored(&message);
    match (translate(&message), translate(&message)) {
        (Ok(first), Ok(second)) => {
            assert_eq!(format!("{first:?}"), format!("{second:?}"));
            Some(first)
        }
        (Err(first), Err(second)) => {
            reasons(&first);
            assert_eq!(first.len(), second.len());
            None
        }
        _ => panic!("translated once, refused once"),
    }
}

fn reasons(rejected: &[Rejected]) {
    for one in rejected {
        assert!(!one.reason.is_empty() && !one.type_url.is_empty(), "{one:?}");
        assert!(!one.to_string().contains("PRIVATE KEY"), "{one}");
    }
}

/// Everything of a publication but sockets: it must not panic, and refusals have reasons.
pub(crate) fn publish(snapshot: &Snapshot) {
    serde_json::to_string(snapshot).expect("what /config_dump shows");
    for listener in snapshot.listeners.values() {
        publish_listener(listener);
    }
    for routes in snapshot.routes.values() {
        publish_routes(routes);
    }
}

fn publish_listener(listener: &Listener) {
    for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
        chain.rbac.iter().for_each(|rules| publish_rules(rules));
        let NetworkFilter::Http(manager) = &chain.filter else { continue };
        for log in &manager.access_log {
            if let Err(error) = LogTemplate::compile(&log.format) {
                assert!(!error.reason.is_empty());
            }
        }
        for filter in &manager.filters {
            if let HttpFilter::Rbac(rbac) = filter {
                rbac.rules.iter().chain(&rbac.shadow_rules).for_each(publish_rules);
            }
        }
        if let RouteSource::Inline(routes) = &manager.routes {
            publish_routes(routes);
        }
    }
}

fn publish_rules(rules: &RbacRules) {
    if let Err(error) = Engine::compile(rules) {
        assert!(!error.reason.is_empty());
    }
}

fn publish_routes(routes: &RouteConfiguration) {
    match RouteTable::compile(&routes.clone().into(), &|_| None) {
        Ok(table) => {
            let mut head = RequestHead::new();
            for domain in routes.virtual_hosts.iter().flat_map(config::VirtualHostEntry::domains).take(16) {
                head.clear();
                head.set_authority(domain.replace('*', "x").as_bytes());
                head.set_path(b"/productpage?a=b");
                let _ = table.find(&head);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
