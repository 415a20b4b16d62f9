//! What every [`Store`] has to do. Who implements one applies [`FIXTURE`] and calls [`run`]; it leaves nothing behind.

use super::{Expected, Store, StoreError};
use crate::onboarding::identity::{JwtIdentity, WorkloadIdentity};
use crate::plane::objects::{
    Address, AddressType, AgentInfo, Condition, ConditionStatus, HostInfo, IstioInfo, ObjectKey, ObjectMeta, Registration,
    RegistrationSpec, RegistrationStatus, SidecarInfo, WorkloadAutoRegistration, WorkloadEntry, WorkloadEntrySpec,
};

/// Where the objects of the suite are. Its service account `ratings` has to exist as well, `nobody` must not.
pub(crate) const NAMESPACE: &str = "skiff-suite";

/// What people have written.
pub(crate) const FIXTURE: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: ratings, namespace: skiff-suite, labels: {app: ratings}}
spec: {template: {serviceAccount: ratings, labels: {app: ratings}}}
---
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata: {name: any-task, namespace: skiff-suite}
spec:
  allow:
  - workloads: [{aws: {accounts: ['123456789012'], ecs: {}}}]
    onboardTo: [{workloadGroupSelector: {}}]
";

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(NAMESPACE, name)
}

/// All of it.
pub(crate) async fn run(store: &dyn Store) {
    what_people_have_written_is_found(store).await;
    writes_are_optimistic(store).await;
    a_status_is_written_apart(store).await;
    an_entry_goes_with_its_registration(store).await;
    removal_can_be_of_one_version(store).await;
    changes_are_told(store).await;
}

async fn what_people_have_written_is_found(store: &dyn Store) {
    let group = store.workload_group(&key("ratings")).await.unwrap().unwrap();
    assert_eq!((group.key(), group.spec.service_account()), (key("ratings"), "ratings"));
    assert!(group.owner_reference().is_some(), "a group without uid owns nothing");
    assert_eq!(store.workload_group(&key("details")).await.unwrap(), None);
    let policies = store.policies(NAMESPACE).await.unwrap();
    assert_eq!(policies.iter().map(|policy| policy.key()).collect::<Vec<_>>(), [key("any-task")]);
    assert!(store.policies("skiff-suite-nowhere").await.unwrap().is_empty());
    let token = store.mesh_token(NAMESPACE, "ratings").await.unwrap();
    assert!(token.token.expose().split('.').count() == 3 && token.expires_at > std::time::SystemTime::now());
}

/// A registration of the group, not yet stored.
async fn registration(store: &dyn Store, name: &str) -> WorkloadAutoRegistration {
    let group = store.workload_group(&key("ratings")).await.unwrap().unwrap();
    let identity = WorkloadIdentity::Jwt(JwtIdentity {
        issuer: "https://a.example".to_owned(),
        subject: name.to_owned(),
        attributes: [("team".to_owned(), vec!["a".to_owned()])].into(),
    });
    let registration = Registration {
        agent: AgentInfo { version: "0.1.0".to_owned() },
        sidecar: SidecarInfo { istio: IstioInfo { version: "1.28.0".to_owned(), revision: "canary".to_owned() } },
        host: HostInfo { addresses: vec![Address { ip: "10.0.0.1".parse().unwrap(), kind: AddressType::Vpc }] },
        workload: Default::default(),
        settings: Default::default(),
    };
    let mut metadata = ObjectMeta::new(&key(name));
    metadata.annotations.insert("onboarding.skiff/connection".to_owned(), "1".to_owned());
    metadata.owner_references = group.owner_reference().into_iter().collect();
    WorkloadAutoRegistration::new(metadata, RegistrationSpec { identity, registration })
}

fn entry(owner: &WorkloadAutoRegistration) -> WorkloadEntry {
    let mut metadata = ObjectMeta::new(&owner.key());
    metadata.owner_references = owner.owner_reference().into_iter().collect();
    let spec = WorkloadEntrySpec { address: "10.0.0.1".to_owned(), service_account: "ratings".to_owned(), ..Default::default() };
    WorkloadEntry::new(metadata, spec)
}

async fn writes_are_optimistic(store: &dyn Store) {
    let name = key("optimistic");
    let new = registration(store, &name.name).await;
    assert_eq!(store.registration(&name).await.unwrap(), None);
    let first = store.put_registration(new.clone()).await.unwrap();
    assert_eq!((&first.spec, first.metadata.generation), (&new.spec, Some(1)));
    assert!(
        first.metadata.uid.is_some() && first.metadata.resource_version.is_some() && first.metadata.creation_timestamp.is_some()
    );
    assert_eq!(first.metadata.annotations, new.metadata.annotations);
    assert_eq!(first.metadata.owner_references, new.metadata.owner_references);
    assert_eq!(store.put_registration(new).await, Err(StoreError::Exists(name.clone())));

    let mut changed = first.clone();
    changed.spec.registration.agent.version = "0.2.0".to_owned();
    let second = store.put_registration(changed.clone()).await.unwrap();
    assert_eq!((second.metadata.generation, &second.metadata.uid), (Some(2), &first.metadata.uid));
    assert_ne!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(store.put_registration(changed).await, Err(StoreError::Conflict(name.clone())));
    let mut annotated = second.clone();
    annotated.metadata.annotations.insert("onboarding.skiff/connection".to_owned(), "2".to_owned());
    let third = store.put_registration(annotated).await.unwrap();
    assert_eq!(third.metadata.generation, Some(2), "metadata is no spec");
    assert_eq!(store.registration(&name).await.unwrap().as_ref(), Some(&third));
    assert_eq!(store.registrations(Some(NAMESPACE)).await.unwrap(), std::slice::from_ref(&third));
    assert!(store.registrations(None).await.unwrap().contains(&third));

    assert!(store.delete_registration(&name, &Expected::any()).await.unwrap());
    assert!(!store.delete_registration(&name, &Expected::any()).await.unwrap());
    assert_eq!(store.put_registration(third).await, Err(StoreError::NotFound(name)));
}

async fn a_status_is_written_apart(store: &dyn Store) {
    let name = key("status");
    let first = store.put_registration(registration(store, &name.name).await).await.unwrap();
    let mut observed = first.clone();
    observed.spec.registration.agent.version = "not written".to_owned();
    observed.status.observed_generation = first.metadata.generation;
    let condition = Condition {
        kind: RegistrationStatus::AGENT_CONNECTED.to_owned(),
        status: ConditionStatus::True,
        reason: "ConnectionEstablished".to_owned(),
        message: String::new(),
        last_transition_time: Some("2026-11-29T15:49:33Z".parse().unwrap()),
        last_probe_time: None,
    };
    Condition::set(&mut observed.status.conditions, condition.clone());
    let second = store.put_registration_status(observed.clone()).await.unwrap();
    assert_eq!((&second.spec, second.status.agent_connected()), (&first.spec, Some(&condition)));
    assert_eq!(second.metadata.generation, first.metadata.generation);
    assert_eq!(store.put_registration_status(observed).await, Err(StoreError::Conflict(name.clone())));

    let mut changed = second.clone();
    changed.spec.registration.agent.version = "0.2.0".to_owned();
    changed.status = RegistrationStatus::default();
    let third = store.put_registration(changed).await.unwrap();
    assert_eq!((third.status, third.spec.registration.agent.version.as_str()), (second.status, "0.2.0"));
    store.delete_registration(&name, &Expected::any()).await.unwrap();
}

async fn an_entry_goes_with_its_registration(store: &dyn Store) {
    let name = key("owned");
    let owner = store.put_registration(registration(store, &name.name).await).await.unwrap();
    let stored = store.put_entry(entry(&owner)).await.unwrap();
    assert_eq!(store.entry(&name).await.unwrap().as_ref(), Some(&stored));
    assert_eq!(store.entries(Some(NAMESPACE)).await.unwrap(), std::slice::from_ref(&stored));
    assert_eq!(store.put_entry(entry(&owner)).await, Err(StoreError::Exists(name.clone())));
    let mut moved = stored.clone();
    moved.spec.address = "10.0.0.2".to_owned();
    assert_eq!(store.put_entry(moved.clone()).await.unwrap().spec.address, "10.0.0.2");
    assert_eq!(store.put_entry(moved).await, Err(StoreError::Conflict(name.clone())));

    // An entry can go alone, and be made again.
    assert!(store.delete_entry(&name, &Expected::any()).await.unwrap());
    assert!(store.registration(&name).await.unwrap().is_some());
    store.put_entry(entry(&owner)).await.unwrap();
    assert!(store.delete_registration(&name, &Expected::any()).await.unwrap());
    gone(store, &name).await;
}

/// Kubernetes removes what is owned a little later.
async fn gone(store: &dyn Store, name: &ObjectKey) {
    let mut changes = store.changes();
    let until_it_is_gone = async {
        while store.entry(name).await.unwrap().is_some() {
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), changes.changed()).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), until_it_is_gone).await.expect("the entry outlives its owner");
}

async fn removal_can_be_of_one_version(store: &dyn Store) {
    let name = key("version");
    let first = store.put_registration(registration(store, &name.name).await).await.unwrap();
    let mut changed = first.clone();
    changed.spec.registration.agent.version = "0.2.0".to_owned();
    let second = store.put_registration(changed).await.unwrap();
    let conflict = Err(StoreError::Conflict(name.clone()));
    assert_eq!(store.delete_registration(&name, &Expected::version_of(&first.metadata)).await, conflict);
    let other = Expected { uid: Some("00000000-0000-4000-8000-000000000000".to_owned()), resource_version: None };
    assert_eq!(store.delete_registration(&name, &other).await, conflict);
    assert!(store.delete_registration(&name, &Expected::version_of(&second.metadata)).await.unwrap());
}

async fn changes_are_told(store: &dyn Store) {
    let mut changes = store.changes();
    changes.mark_unchanged();
    let name = key("told");
    store.put_registration(registration(store, &name.name).await).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(30), changes.changed()).await.expect("no change is told").unwrap();
    store.delete_registration(&name, &Expected::any()).await.unwrap();
}
