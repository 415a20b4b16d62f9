//! istiod is the oracle: for the same YAML the same listeners, routes, clusters and endpoints.

mod built;
mod captured;
mod errors;
mod jwt;
mod peer;
mod rbac;
mod semantics;
mod telemetry;

use std::path::PathBuf;

use serde_json::Value;
use skiff_proxy::config::{Locality, Snapshot};

use super::{Documents, Translation, Workload, translate};
use captured::Facts;

/// The task of every scenario.
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

/// The base files and those of a scenario, which replace base files of the same name.
fn files(scenario: &str) -> Vec<(PathBuf, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/istio");
    let mut files = std::collections::BTreeMap::new();
    for folder in ["base", scenario] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let name = PathBuf::from(path.file_name().unwrap());
                files.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    files.into_iter().collect()
}

fn translated(scenario: &str) -> Translation {
    let documents = Documents::parse(&files(scenario), "default").unwrap();
    translate(&documents, &workload()).unwrap()
}

#[track_caller]
fn assert_same(kind: &str, ours: &Facts, theirs: &Facts) {
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "names of {kind}");
    for ((name, ours), theirs) in ours.iter().zip(theirs.values()) {
        let difference = difference(name, ours, theirs);
        assert!(difference.is_none(), "{kind}: {}", difference.unwrap());
    }
}

/// The first place where two facts differ, for a message that fits a screen.
fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().find_map(|(key, value)| difference(&format!("{path}.{key}"), value, &b[key]))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(index, (a, b))| difference(&format!("{path}[{index}]"), a, b))
        }
        _ => (ours != theirs).then(|| format!("{path}: ours {ours}, istiod's {theirs}")),
    }
}

fn assert_as_istiod(scenario: &str) -> Snapshot {
    let snapshot = translated(scenario).snapshot;
    assert_same("listeners", &built::listeners(&snapshot), &captured::listeners(scenario));
    assert_same("routes", &built::routes(&snapshot), &captured::routes(scenario));
    assert_same("clusters", &built::clusters(&snapshot), &captured::clusters(scenario));
    assert_same("endpoints", &built::endpoints(&snapshot), &captured::endpoints(scenario));
    snapshot
}

#[test]
fn scenario_01_default() {
    assert_as_istiod("01-default");
}

#[test]
fn scenario_02_strict() {
    assert_as_istiod("02-strict");
}

#[test]
fn scenario_03_permissive() {
    assert_as_istiod("03-permissive");
}

#[test]
fn scenario_04_disable() {
    assert_as_istiod("04-disable");
}

#[test]
fn scenario_05_tcp() {
    assert_as_istiod("05-tcp");
}

#[test]
fn scenario_06_virtual_service() {
    assert_as_istiod("06-virtualservice");
}

#[test]
fn scenario_08_authorization() {
    assert_as_istiod("08-authz");
}

#[test]
fn scenario_09_jwt() {
    assert_as_istiod("09-jwt");
}

#[test]
fn scenario_16_bound() {
    assert_as_istiod("16-bound");
}

#[test]
fn scenario_07_destination_rule() {
    assert_as_istiod("07-destinationrule");
}

#[test]
fn scenario_10_external() {
    let scenario = "10-external";
    let snapshot = translated(scenario).snapshot;
    let (mut ours, mut theirs) = (built::listeners(&snapshot), captured::listeners(scenario));
    // istiod serves one of the two TLS services on this address; here both are told apart by SNI.
    let chains = &ours.remove("127.0.0.2_443").unwrap()["chains"];
    assert_eq!(chains.as_array().unwrap().len(), 2);
    theirs.remove("127.0.0.2_443");
    assert_same("listeners", &ours, &theirs);
    assert_same("routes", &built::routes(&snapshot), &captured::routes(scenario));
    assert_same("clusters", &built::clusters(&snapshot), &captured::clusters(scenario));
    assert_same("endpoints", &built::endpoints(&snapshot), &captured::endpoints(scenario));
}

#[test]
fn scenario_14_catch_all() {
    assert_as_istiod("14-catch-all-egress");
}
