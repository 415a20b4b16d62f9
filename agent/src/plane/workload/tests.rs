//! Every field of a registration, and the objects that come of it.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::super::objects::{self, ObjectKey};
use super::super::policy::Subject;
use super::*;
use crate::onboarding::identity::{AwsIdentity, AwsKind, EcsIdentity, IamRole};

fn message() -> proto::Registration {
    proto::Registration {
        agent_version: "0.1.0".to_owned(),
        istio_version: "1.28.0".to_owned(),
        istio_revision: String::new(),
        addresses: vec![proto::Address { ip: "10.0.0.1".to_owned(), r#type: proto::AddressType::Vpc.into() }],
        labels: [("version".to_owned(), "v5".to_owned())].into(),
        connected_over: proto::ConnectedOver::Unspecified.into(),
        documents_version: String::new(),
    }
}

fn from(peer: &str) -> Origin<'static> {
    Origin { peer: peer.parse().unwrap(), verified: None }
}

fn at(ip: &str, kind: proto::AddressType) -> proto::Registration {
    proto::Registration { addresses: vec![proto::Address { ip: ip.to_owned(), r#type: kind.into() }], ..message() }
}

fn labelled(key: &str, value: &str) -> proto::Registration {
    proto::Registration { labels: [(key.to_owned(), value.to_owned())].into(), ..message() }
}

#[test]
fn a_registration_is_read_strictly() {
    assert_eq!(read(message(), from("10.0.0.1")).unwrap().host.addresses[0].kind, AddressType::Vpc);
    let vpc = proto::AddressType::Vpc;
    let revised = |text: &str| proto::Registration { istio_revision: text.to_owned(), ..message() };
    for (registration, field) in [
        (proto::Registration { agent_version: String::new(), ..message() }, "agent_version"),
        (proto::Registration { agent_version: "a b".to_owned(), ..message() }, "agent_version"),
        (proto::Registration { istio_version: "1".repeat(65), ..message() }, "istio_version"),
        (revised("Canary"), "istio_revision"),
        (revised("-canary"), "istio_revision"),
        (revised(&"a".repeat(57)), "istio_revision"),
        (proto::Registration { addresses: Vec::new(), ..message() }, "addresses: expected 1 to 16"),
        (proto::Registration { addresses: vec![message().addresses.remove(0); 17], ..message() }, "addresses: expected 1 to 16"),
        (at("ratings.example", vpc), "addresses[0] \"ratings.example\": expected an IP"),
        (at("10.0.0.1", proto::AddressType::Unspecified), "expected a type"),
        (at("10.0.0.1", proto::AddressType::Internet), "none of type VPC"),
        (proto::Registration { connected_over: proto::ConnectedOver::Internet.into(), ..message() }, "INTERNET"),
        (at("127.0.0.1", vpc), "others cannot reach it"),
        (at("0.0.0.0", vpc), "others cannot reach it"),
        (at("169.254.169.254", vpc), "others cannot reach it"),
        (at("::ffff:169.254.170.2", vpc), "others cannot reach it"),
        (at("224.0.0.1", vpc), "others cannot reach it"),
        (at("fe80::1", vpc), "others cannot reach it"),
        (at("::", vpc), "others cannot reach it"),
        (labelled("security.istio.io/tlsMode", "disabled"), "not for a workload"),
        (labelled("topology.istio.io/network", "x"), "not for a workload"),
        (labelled("istio.io/rev", "x"), "not for a workload"),
        (labelled("service.istio.io/canonical-name", "x"), "not for a workload"),
        (labelled("istio-locality", "x"), "not for a workload"),
        (labelled("topology.kubernetes.io/zone", "x"), "not for a workload"),
        (labelled("a b", "x"), "no key"),
        (labelled("a/b/c", "x"), "no key"),
        (labelled("/a", "x"), "no key"),
        (labelled("a", "x y"), "no value"),
        (labelled("a", &"x".repeat(64)), "no value"),
        (proto::Registration { labels: (0..65).map(|n| (format!("a{n}"), String::new())).collect(), ..message() }, "at most 64"),
    ] {
        let error = read(registration, from("10.0.0.1")).expect_err(field);
        assert!(error.contains(field), "{field}: {error}");
    }
    for good in [labelled("app.kubernetes.io/version", "v1"), labelled("example.com/team", ""), labelled("notistio.io/a", "b")] {
        assert!(read(good, from("10.0.0.1")).is_ok());
    }
    assert!(read(at("127.0.0.21", vpc), from("127.0.0.1")).is_ok(), "everything on one machine");
}

#[test]
fn what_aws_says_of_addresses_counts() {
    let verified = ["10.0.0.1".parse().unwrap()];
    let origin = Origin { peer: "192.0.2.7".parse().unwrap(), verified: Some(&verified) };
    assert!(read(message(), origin).is_ok());
    let error = read(at("10.0.0.2", proto::AddressType::Vpc), origin).unwrap_err();
    assert!(error.contains("no network interface"), "{error}");
    let internet = |ip: &str| proto::Registration {
        connected_over: proto::ConnectedOver::Internet.into(),
        ..at(ip, proto::AddressType::Internet)
    };
    assert!(read(internet("192.0.2.7"), origin).is_ok());
    assert!(read(internet("192.0.2.8"), origin).unwrap_err().contains("the connection comes from"));
    assert!(read(internet("192.0.2.8"), from("192.0.2.7")).is_ok());
}

#[test]
fn the_objects_are_those_of_tetrate() {
    let text = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: ratings, namespace: bookinfo, uid: abc}\n\
        spec:\n  metadata: {labels: {team: a}, annotations: {note: b}}\n  template:\n    labels: {app: ratings, class: vm}\n\
        \x20   ports: {http: 9080}\n    network: vms\n    weight: 3\n    serviceAccount: ratings-vm\n";
    let group = objects::read(&[(PathBuf::from("a.yaml"), text.to_owned())], "default").unwrap().groups.remove(0);
    let identity = WorkloadIdentity::Aws(AwsIdentity {
        partition: "aws".to_owned(),
        account: "123456789012".to_owned(),
        region: "us-east-1".to_owned(),
        zone: "us-east-1a".to_owned(),
        kind: AwsKind::Ecs(EcsIdentity {
            task_id: "3a15".to_owned(),
            cluster: "bookinfo".to_owned(),
            iam_role: IamRole { name: "task".to_owned() },
        }),
    });
    let session = Session {
        name: ObjectKey::new("bookinfo", identity.object_name("ratings", None)),
        group: group.key(),
        subject: Subject { identity, placement_verified: true },
        addresses: None,
        expires_at: UNIX_EPOCH,
    };
    let mut said = message();
    said.labels.insert("app".to_owned(), "reviews".to_owned());
    said.labels.insert("team".to_owned(), "b".to_owned());
    let mut war = registration_object(None, &session, &group, read(said, from("10.0.0.1")).unwrap());
    war.metadata.uid = Some("def".to_owned());
    assert_eq!(war.key().to_string(), "bookinfo/ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-3a15");
    let owner = &war.metadata.owner_references[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), ("WorkloadGroup", "ratings", "abc"));

    let entry = entry_object(None, &war, &group, true).unwrap();
    let expected = serde_json::json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": "ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-3a15",
            "namespace": "bookinfo",
            "labels": {"team": "a"},
            "annotations": {"note": "b", "proxy.istio.io/health-checks-enabled": "true"},
            "ownerReferences": [{
                "apiVersion": "runtime.onboarding.tetrate.io/v1alpha1", "kind": "WorkloadAutoRegistration",
                "name": "ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-3a15", "uid": "def", "controller": true,
            }],
        },
        "spec": {
            "address": "10.0.0.1", "ports": {"http": 9080}, "network": "vms", "weight": 3, "serviceAccount": "ratings-vm",
            "labels": {"app": "ratings", "class": "vm", "team": "a", "version": "v5"}, "locality": "us-east-1/us-east-1a",
        },
    });
    assert_eq!(serde_json::to_value(&entry).unwrap(), expected);
    assert_eq!(entry_object(None, &war, &group, false).unwrap().spec.locality, "");

    // What istiod has noted on an entry stays there.
    let mut noted = entry;
    noted.metadata.annotations.insert("istio.io/connectedAt".to_owned(), "now".to_owned());
    let again = entry_object(Some(noted.clone()), &war, &group, true).unwrap();
    assert_eq!(again, noted);
}
