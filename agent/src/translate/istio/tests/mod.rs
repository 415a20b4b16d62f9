//! istiod is the oracle: for the same YAML the same configuration, resource by resource.

mod errors;
mod principles;
mod semantics;
mod telemetry;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use skiff_proxy::config::{Locality, Snapshot};

use super::{Documents, Translation, Workload, translate};
use crate::xds::recorded::{self, PROTOCOLS, join, scenarios};
use principles::Principles;

/// The task of every scenario.
fn workload() -> Workload {
    let labels = [
        ("app", "ratings"),
        ("class", "vm"),
        ("version", "v1"),
        ("service.istio.io/canonical-name", "ratings"),
        ("service.istio.io/canonical-revision", "v1"),
    ];
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

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/istio").join(name)
}

/// The base files and those of a scenario, which replace base files of the same name.
fn files(scenario: &str) -> Vec<(PathBuf, String)> {
    let mut files = BTreeMap::new();
    for folder in [folder("base"), folder(scenario)] {
        for entry in std::fs::read_dir(folder).unwrap() {
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

/// The places where two configurations differ.
fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let side = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or("(absent)".into());
                differences(&format!("{path}.{key}"), &side(a), &side(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{index}]"), a, b, found);
            }
        }
        _ if ours == theirs => {}
        _ => found.push(format!("{path}: ours {ours}, istiod's {theirs}")),
    }
}

#[test]
fn local_documents_give_what_istiod_gives() {
    let (mut principles, mut found) = (Principles::default(), Vec::new());
    for scenario in scenarios().iter().filter(|scenario| principles::is_comparable(scenario)) {
        let mut ours = translated(scenario).snapshot;
        // Its version is our own.
        ours.version.clear();
        for protocol in PROTOCOLS {
            let (mut theirs, _) = join(scenario, protocol);
            principles.add_to_theirs(scenario, &ours, &mut theirs);
            compare(&format!("{scenario} {protocol:?}"), &ours, &theirs, &mut found);
        }
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
    principles.assert_all_met();
}

fn compare(what: &str, ours: &Snapshot, theirs: &Snapshot, found: &mut Vec<String>) {
    let (a, b) = (serde_json::to_value(ours).unwrap(), serde_json::to_value(theirs).unwrap());
    let before = found.len();
    differences(what, &a, &b, found);
    found.iter_mut().skip(before).for_each(|line| *line = line.chars().take(400).collect());
    // What the serialised form leaves out counts too.
    if found.len() == before && ours != theirs {
        found.push(format!("{what}: equal in form but not in value"));
    }
}

/// The files of `push-updates` were applied one by one to the start state, then taken away in reverse; after which response
/// istiod had said all about it.
const PUSHES: [(&[&str], &str); 12] = [
    (&["1"], "014"),
    (&["1", "6"], "022"),
    (&["1", "6", "2"], "028"),
    (&["1", "6", "2", "3"], "039"),
    (&["1", "6", "2", "3", "4"], "048"),
    (&["1", "6", "2", "3", "4", "5"], "050"),
    (&["1", "6", "2", "3", "4"], "052"),
    (&["1", "6", "2", "3"], "061"),
    (&["1", "6", "2"], "070"),
    (&["1", "6"], "076"),
    (&["1"], "084"),
    (&[], "999"),
];

#[test]
fn a_series_of_changes_gives_what_istiod_gives_after_each() {
    let (mut principles, mut found) = (Principles::default(), Vec::new());
    let start = files("02-strict");
    let mut stream = recorded::Replay::of("delta");
    for (applied, until) in PUSHES {
        let mut files = start.clone();
        let mut paths: Vec<_> = std::fs::read_dir(folder("push-updates")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if applied.iter().any(|number| name.starts_with(&format!("{number}-"))) {
                files.push((name.into(), std::fs::read_to_string(path).unwrap()));
            }
        }
        let documents = Documents::parse(&files, "default").unwrap();
        let mut ours = translate(&documents, &workload()).unwrap().snapshot;
        // Its version is our own.
        ours.version.clear();
        let mut theirs = stream.up_to(until);
        principles.add_to_theirs("push-updates", &ours, &mut theirs);
        compare(&format!("{applied:?}"), &ours, &theirs, &mut found);
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
}
