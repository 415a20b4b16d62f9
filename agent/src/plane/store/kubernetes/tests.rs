//! Against a real API server: `tests/kubernetes/run.sh` runs them with one, `cargo test` alone names them as ignored.

mod kit;
mod outage;

use std::time::Duration;

use kube::core::Request;
use serde_json::json;

use super::client::custom;
use super::*;
use crate::plane::objects::{Condition, ConditionStatus, ObjectMeta, RegistrationStatus};
use crate::plane::store::suite;
use kit::{apply, delete, group, istiod, namespace, place, replica, server, until};

/// A registration of the group `ratings` as it was published.
async fn registration(store: &KubernetesStore, namespace: &str, name: &str) -> WorkloadAutoRegistration {
    let group = store.workload_group(&ObjectKey::new(namespace, "ratings")).await.unwrap().expect("the group");
    let spec = serde_json::from_value(json!({
        "identity": {"aws": {
            "partition": "aws", "account": "123456789012", "region": "us-east-1", "zone": "us-east-1a",
            "ecs": {"taskId": "3a151358f03a4e32bf8cd401c1c74653", "cluster": "bookinfo", "iamRole": {"name": "bookinfoECSTaskRole"}},
        }},
        "registration": {
            "agent": {"version": "0.1.0"}, "sidecar": {"istio": {"version": "1.28.0", "revision": "canary"}},
            "host": {"addresses": [{"ip": "10.0.0.1", "type": "VPC"}, {"ip": "fd00::1", "type": "INTERNET"}]},
            "workload": {"labels": {"version": "v5"}}, "settings": {"connectedOver": "INTERNET"},
        },
    }))
    .unwrap();
    let mut metadata = ObjectMeta::new(&ObjectKey::new(namespace, name));
    metadata.owner_references = group.owner_reference().into_iter().collect();
    WorkloadAutoRegistration::new(metadata, spec)
}

async fn entry(owner: &WorkloadAutoRegistration) -> WorkloadEntry {
    let mut metadata = ObjectMeta::new(&owner.key());
    metadata.owner_references = owner.owner_reference().into_iter().collect();
    metadata.annotations.insert("proxy.istio.io/health-checks-enabled".to_owned(), "true".to_owned());
    WorkloadEntry::new(metadata, WorkloadEntrySpec { address: "10.0.0.1".to_owned(), ..WorkloadEntrySpec::default() })
}

fn connected() -> RegistrationStatus {
    let condition = Condition {
        kind: RegistrationStatus::AGENT_CONNECTED.to_owned(),
        status: ConditionStatus::True,
        reason: "ConnectionEstablished".to_owned(),
        message: String::new(),
        last_transition_time: Some("2026-11-29T15:49:33Z".parse().unwrap()),
        last_probe_time: None,
    };
    RegistrationStatus {
        observed_generation: Some(1),
        conditions: vec![condition],
        active_agent_connection: Some(crate::plane::objects::ActiveAgentConnection { connected_to: "plane-0".to_owned() }),
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn it_is_a_store() {
    let server = server().await;
    namespace(&server, suite::NAMESPACE).await;
    apply(&server, suite::FIXTURE).await.unwrap();
    suite::run(&replica(suite::NAMESPACE, "a").await).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn everything_that_is_written_is_kept_and_shown() {
    let (server, ns) = (server().await, "skiff-kept");
    namespace(&server, ns).await;
    apply(&server, &group(ns)).await.unwrap();
    let store = replica(ns, "a").await;
    let name = "ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-3a151358f03a4e32bf8cd401c1c74653";
    let key = ObjectKey::new(ns, name);
    store.delete_registration(&key, &Expected::any()).await.unwrap();
    let wanted = registration(&store, ns, name).await;
    let mut stored = store.put_registration(wanted.clone()).await.unwrap();
    assert_eq!(stored.spec, wanted.spec, "the schema drops nothing");
    stored.status = connected();
    let stored = store.put_registration_status(stored).await.unwrap();
    assert_eq!(stored.status, connected());
    let entry = store.put_entry(entry(&stored).await).await.unwrap();
    assert_eq!(entry.metadata.owner_references, [stored.owner_reference().unwrap()]);

    // What `kubectl get war` prints comes from the API server.
    let place = custom::<RegistrationSpec>(Some(ns));
    let mut request = place.get(name, &Default::default()).unwrap();
    request.headers_mut().insert(http::header::ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io".parse().unwrap());
    let table: Json = server.call(request).await.unwrap();
    let columns: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].clone()).collect();
    assert_eq!(columns, ["Name", "Agent Connected", "Age"]);
    assert_eq!((&table["rows"][0]["cells"][0], &table["rows"][0]["cells"][1]), (&json!(name), &json!("True")));
    let definition: Json = server
        .call(Request::new("/apis/runtime.onboarding.tetrate.io").get("v1alpha1", &Default::default()).unwrap())
        .await
        .unwrap();
    assert_eq!(definition["resources"][0]["shortNames"], json!(["war"]));
    store.delete_registration(&key, &Expected::any()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn a_token_is_for_istio_and_an_hour() {
    use base64::Engine as _;
    let (server, ns) = (server().await, "skiff-tokens");
    namespace(&server, ns).await;
    let store = replica(ns, "a").await;
    let MeshToken { token, expires_at } = store.mesh_token(ns, "ratings").await.unwrap();
    let left = expires_at.duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3500), "{left:?}");
    let payload = token.expose().split('.').nth(1).unwrap().to_owned();
    let claims: Json =
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!(["istio-ca"]), &json!(format!("system:serviceaccount:{ns}:ratings"))));
    for nobody in ["nobody", "../../secrets", "a/b", ""] {
        let refused = store.mesh_token(ns, nobody).await.unwrap_err();
        assert_eq!(refused, StoreError::NotFound(ObjectKey::new(ns, nobody)));
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn replicas_that_write_at_once_lose_nothing() {
    let (server, ns) = (server().await, "skiff-race");
    namespace(&server, ns).await;
    apply(&server, &group(ns)).await.unwrap();
    let (one, two) = (replica(ns, "a").await, replica(ns, "b").await);
    let key = ObjectKey::new(ns, "counted");
    one.delete_registration(&key, &Expected::any()).await.unwrap();
    one.put_registration(registration(&one, ns, "counted").await).await.unwrap();
    until(async || two.registration(&key).await.unwrap().is_some()).await;
    let count = async |store: &KubernetesStore| {
        for _ in 0..20 {
            // A conflict is followed by a reading that knows better, so few rounds are enough.
            let mut rounds = 0;
            loop {
                rounds += 1;
                assert!(rounds < 100, "conflict upon conflict");
                let mut object = store.registration(&key).await.unwrap().unwrap();
                let annotations = &mut object.metadata.annotations;
                let number: u32 = annotations.get("count").map_or(0, |number| number.parse().unwrap());
                annotations.insert("count".to_owned(), (number + 1).to_string());
                match store.put_registration(object).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    tokio::join!(count(&one), count(&two));
    let end = |object: Option<WorkloadAutoRegistration>| object.unwrap().metadata.annotations["count"] == "40";
    until(async || end(one.registration(&key).await.unwrap()) && end(two.registration(&key).await.unwrap())).await;
    // What one removes is gone for the other.
    assert!(one.delete_registration(&key, &Expected::any()).await.unwrap());
    until(async || two.registration(&key).await.unwrap().is_none()).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn replicas_have_one_secret_and_one_collector() {
    let (server, ns) = (server().await, "skiff-replicas");
    namespace(&server, ns).await;
    delete(&server, &Request::new(format!("/api/v1/namespaces/{ns}/secrets")), "plane").await;
    delete(&server, &Request::new(format!("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases")), "skiff-plane").await;
    let (one, two) = (replica(ns, "a").await, replica(ns, "b").await);
    let make = |text: &'static str| move || Ok(text.to_owned());
    let (first, second) =
        tokio::join!(one.shared_secret("plane", make("made by a")), two.shared_secret("plane", make("made by b")));
    let first = first.unwrap();
    assert_eq!(first, second.unwrap());
    assert!(["made by a", "made by b"].contains(&first.as_str()));
    assert_eq!(one.shared_secret("plane", || panic!("it is there")).await.unwrap(), first);

    until(async || one.collects() || two.collects()).await;
    let (holder, other) = if one.collects() { (one, two) } else { (two, one) };
    assert!(!other.collects());
    drop(holder);
    until(async || other.collects()).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn registrations_end_with_their_group() {
    let (server, ns) = (server().await, "skiff-orphans");
    namespace(&server, ns).await;
    apply(&server, &group(ns)).await.unwrap();
    let store = replica(ns, "a").await;
    let key = ObjectKey::new(ns, "owned");
    store.delete_registration(&key, &Expected::any()).await.unwrap();
    let owner = store.put_registration(registration(&store, ns, "owned").await).await.unwrap();
    store.put_entry(entry(&owner).await).await.unwrap();
    // A foreign entry of somebody else stays.
    let foreign = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": "foreign", "namespace": ns}, "spec": {"address": "10.0.0.9"},
    });
    apply(&server, &foreign.to_string()).await.unwrap();
    // A new group of the same name is another one.
    delete(&server, &custom::<WorkloadGroupSpec>(Some(ns)), "ratings").await;
    apply(&server, &group(ns)).await.unwrap();
    until(async || store.registration(&key).await.unwrap().is_none() && store.entry(&key).await.unwrap().is_none()).await;
    assert!(store.entry(&ObjectKey::new(ns, "foreign")).await.unwrap().is_some());
    assert!(store.entries(Some(ns)).await.unwrap().is_empty(), "it is nobody's registration");

    // And when the registration alone was removed, by hand.
    let owner = store.put_registration(registration(&store, ns, "owned").await).await.unwrap();
    store.put_entry(entry(&owner).await).await.unwrap();
    delete(&server, &custom::<RegistrationSpec>(Some(ns)), "owned").await;
    until(async || store.entry(&key).await.unwrap().is_none()).await;
    assert!(store.workload_group(&ObjectKey::new(ns, "ratings")).await.unwrap().is_some());
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn a_policy_that_is_not_understood_admits_nobody() {
    let (server, ns) = (server().await, "skiff-policies");
    namespace(&server, ns).await;
    let policy = |workload: Json, selector: Json| {
        json!({
            "apiVersion": "authorization.onboarding.tetrate.io/v1alpha1", "kind": "OnboardingPolicy",
            "metadata": {"name": "some", "namespace": ns},
            "spec": {"allow": [{"workloads": [workload], "onboardTo": [{"workloadGroupSelector": selector}]}]},
        })
    };
    let any = json!({"aws": {"accounts": ["123456789012"], "ecs": {}}});
    let good = policy(any.clone(), json!({}));
    // What cannot be meant is refused where it is written.
    for bad in [
        policy(json!({"aws": {"ecs": {}}}), json!({})),
        policy(json!({"aws": {"accounts": [], "ecs": {}}}), json!({})),
        policy(json!({"aws": {"accounts": ["*"], "ecs": {}}}), json!({})),
        policy(json!({"aws": {"accounts": ["1234567890123"], "ecs": {}}}), json!({})),
        policy(json!({"aws": {"accounts": ["123456789012"]}}), json!({})),
        policy(json!({"aws": {"accounts": ["123456789012"], "ecs": {}, "ec2": {}}}), json!({})),
        policy(json!({"jwt": {"issuer": "http://a.example"}}), json!({})),
        policy(json!({"jwt": {"issuer": "https://a.example", "attributes": [{"name": "a", "values": []}]}}), json!({})),
        policy(json!({}), json!({})),
        policy(any.clone(), json!({"matchExpressions": [{"key": "a", "operator": "Near"}]})),
        policy(any.clone(), Json::Null),
    ] {
        let error = apply(&server, &bad.to_string()).await.expect_err(&bad.to_string());
        assert_eq!(error.code(), 422, "{bad}: {error}");
    }
    apply(&server, &good.to_string()).await.unwrap();
    let store = replica(ns, "a").await;
    assert_eq!(store.policies(ns).await.unwrap().len(), 1);
    assert!(store.policies("skiff-elsewhere").await.unwrap().is_empty());
    // A mistyped restriction must not become none.
    let mistyped = policy(json!({"aws": {"accounts": ["123456789012"], "ecs": {"cluster": ["bookinfo"]}}}), json!({}));
    apply(&server, &mistyped.to_string()).await.unwrap();
    until(async || store.policies(ns).await.unwrap().is_empty()).await;
    apply(&server, &good.to_string()).await.unwrap();
    until(async || store.policies(ns).await.unwrap().len() == 1).await;
    delete(&server, &place(&good), "some").await;
    until(async || store.policies(ns).await.unwrap().is_empty()).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn what_istiod_says_of_the_mesh_is_followed() {
    let (server, ns) = (server().await, "skiff-mesh");
    namespace(&server, ns).await;
    let root = kit::root();
    istiod(&server, ns, &root, "trustDomain: one.example\n").await;
    let store = replica(ns, "a").await;
    until(async || store.mesh().is_ok_and(|mesh| mesh.trust_domain == "one.example")).await;
    assert_eq!(**store.roots().borrow(), *root);
    let next = kit::root();
    istiod(&server, ns, &next, "trustDomain: two.example\ndefaultConfig: {meshId: m}\n").await;
    until(async || store.mesh().is_ok_and(|mesh| mesh.trust_domain == "two.example" && mesh.mesh_id == "m")).await;
    until(async || **store.roots().borrow() == *next && store.proxy_config().borrow()["meshId"] == "m").await;
}
