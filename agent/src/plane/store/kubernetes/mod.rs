//! The store of a plane beside istiod: everything is in Kubernetes, where people write WorkloadGroups and OnboardingPolicies and
//! the plane writes WorkloadAutoRegistrations and WorkloadEntries.
//!
//! Reading is from memory ([`cache`]), which watches keep up to date ([`watcher`]) and writes add to, so that a plane whose API
//! server is away still knows what it knew. Writing is one request with the version that was read; it is repeated for a few
//! seconds where that may help. Admission needs the API server: policies that may be out of date are not answered with, and
//! neither a registration nor a token can be made without it.

mod cache;
mod caches;
mod client;
mod lease;
mod mesh;
mod orphans;
mod secret;
#[cfg(test)]
mod tests;
mod watcher;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::core::Request;
use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{ControlPlane, Expected, MeshToken, Store, StoreError};
use crate::exit::Failure;
use crate::identity::Token;
use crate::plane::objects::{
    Object, ObjectKey, OnboardingPolicy, OnboardingPolicySpec, RegistrationSpec, Spec, Timestamp, WorkloadAutoRegistration,
    WorkloadEntry, WorkloadEntrySpec, WorkloadGroup, WorkloadGroupSpec,
};
use cache::{Cache, Item};
use caches::Caches;
use client::{ApiServer, CallError, Kind, Written, custom};

pub use mesh::{IstioMesh, MeshSource};

/// How long a token for istiod lives.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// How old policies may be that somebody is admitted by.
const MAX_POLICY_AGE: Duration = Duration::from_secs(60);

/// Which API server, and what of it.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    /// How to reach it; `None` in a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Namespaces whose workloads may join; empty is all of them.
    pub namespaces: Vec<String>,
    /// Where the plane keeps its secret and its lease; `None` is the pod's namespace or that of the kubeconfig.
    pub namespace: Option<String>,
    /// Which replica this is: the name of its pod.
    pub replica: String,
    /// Where istiod's roots and mesh configuration are.
    pub mesh: MeshSource,
}

/// Objects in Kubernetes.
pub struct KubernetesStore {
    server: ApiServer,
    namespace: String,
    groups: Caches<WorkloadGroupSpec>,
    policies: Caches<OnboardingPolicySpec>,
    registrations: Caches<RegistrationSpec>,
    entries: Caches<WorkloadEntrySpec>,
    mesh: mesh::Known,
    collects: watch::Receiver<bool>,
    changes: watch::Sender<u64>,
    /// End with the store.
    _tasks: JoinSet<()>,
}

impl fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesStore").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl KubernetesStore {
    /// Starts to watch. The API server need not be there yet.
    ///
    /// # Errors
    /// When it is not known how to reach it.
    pub async fn start(options: KubernetesOptions) -> Result<Self, Failure> {
        let KubernetesOptions { kubeconfig, namespaces, namespace, replica, mesh } = options;
        let server = ApiServer::connect(kubeconfig.as_deref()).await?;
        let namespace = namespace.unwrap_or_else(|| server.namespace.clone());
        let changes = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        let groups = Caches::start(&server, &namespaces, &changes, &mut tasks);
        let policies = Caches::start(&server, &namespaces, &changes, &mut tasks);
        let registrations = Caches::start(&server, &namespaces, &changes, &mut tasks);
        let entries = Caches::start(&server, &namespaces, &changes, &mut tasks);
        let (mesh, follow_mesh) = mesh::follow(server.clone(), mesh);
        tasks.spawn(follow_mesh);
        let (collects, hold) = lease::hold(server.clone(), namespace.clone(), replica);
        tasks.spawn(hold);
        let collector = orphans::Collector {
            server: server.clone(),
            groups: groups.clone(),
            registrations: registrations.clone(),
            entries: entries.clone(),
            collects: collects.clone(),
            changes: changes.subscribe(),
        };
        tasks.spawn(collector.run());
        Ok(Self { server, namespace, groups, policies, registrations, entries, mesh, collects, changes, _tasks: tasks })
    }

    /// Returns when every kind of object, and the mesh, have been read once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] with the reason when that takes longer than `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<(), StoreError> {
        let all_read = async {
            let mut changes = self.changes.subscribe();
            while self.state().is_err() {
                // Who has never been heard changes nothing.
                let _ = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await;
            }
        };
        if tokio::time::timeout(limit, all_read).await.is_ok() { Ok(()) } else { self.state() }
    }

    /// What has not been read yet.
    fn state(&self) -> Result<(), StoreError> {
        self.groups.health()?;
        self.policies.health()?;
        self.registrations.health()?;
        self.entries.health()?;
        self.mesh().map(drop)
    }

    /// What istiod's ConfigMaps say of the mesh, as they were last read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while they have not been read yet.
    pub fn mesh(&self) -> Result<Arc<IstioMesh>, StoreError> {
        self.mesh.mesh.borrow().clone().map_err(StoreError::Unavailable)
    }

    /// istiod's roots, PEM, as they change; empty until they have been read.
    pub fn roots(&self) -> watch::Receiver<Arc<str>> {
        self.mesh.roots.clone()
    }

    /// Istio's ProxyConfig of the mesh, as it changes; empty until it has been read.
    pub fn proxy_config(&self) -> watch::Receiver<Arc<Map<String, Json>>> {
        self.mesh.proxy_config.clone()
    }

    /// A text that all replicas have in common and nobody else, in a Secret: what is there, else what `make` says.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub async fn shared_secret(&self, name: &str, make: impl FnOnce() -> Result<String, String>) -> Result<String, StoreError> {
        secret::shared(&self.server, &self.namespace, name, make).await
    }
}

#[tonic::async_trait]
impl Store for KubernetesStore {
    fn control_plane(&self) -> ControlPlane {
        ControlPlane::Istiod
    }

    fn collects(&self) -> bool {
        *self.collects.borrow()
    }

    async fn workload_group(&self, key: &ObjectKey) -> Result<Option<Arc<WorkloadGroup>>, StoreError> {
        self.groups.get(key)
    }

    async fn policies(&self, namespace: &str) -> Result<Vec<Arc<OnboardingPolicy>>, StoreError> {
        let Some(cache) = self.policies.of(namespace) else { return Ok(Vec::new()) };
        cache.is_fresh(MAX_POLICY_AGE)?;
        cache.list(|policy| policy.metadata.namespace == namespace && policy.metadata.deletion_timestamp.is_none())
    }

    async fn mesh_token(&self, namespace: &str, service_account: &str) -> Result<MeshToken, StoreError> {
        let key = ObjectKey::new(namespace, service_account);
        let answer = client::token_request(&self.server, namespace, service_account, TOKEN_LIFETIME).await;
        let (token, end) = answer.map_err(|error| error.of(&key))?;
        let end: Timestamp = end.parse().map_err(StoreError::Refused)?;
        Ok(MeshToken { token: Token::new(&token), expires_at: SystemTime::min(end.time(), SystemTime::now() + TOKEN_LIFETIME) })
    }

    async fn registration(&self, key: &ObjectKey) -> Result<Option<WorkloadAutoRegistration>, StoreError> {
        Ok(self.registrations.get(key)?.map(Arc::unwrap_or_clone))
    }

    async fn registrations(&self, namespace: Option<&str>) -> Result<Vec<WorkloadAutoRegistration>, StoreError> {
        self.registrations.list(namespace, |_| true)
    }

    async fn put_registration(&self, registration: WorkloadAutoRegistration) -> Result<WorkloadAutoRegistration, StoreError> {
        self.put(&self.registrations, registration).await
    }

    async fn put_registration_status(
        &self,
        registration: WorkloadAutoRegistration,
    ) -> Result<WorkloadAutoRegistration, StoreError> {
        self.put_status(&self.registrations, registration).await
    }

    async fn delete_registration(&self, key: &ObjectKey, expected: &Expected) -> Result<bool, StoreError> {
        let Some(uid) = self.delete(&self.registrations, key, expected).await? else { return Ok(false) };
        // Kubernetes does that too, later.
        let entry = self.entries.get(key)?.filter(|entry| entry.metadata.owner_references.iter().any(|owner| owner.uid == uid));
        if let Some(entry) = entry {
            let same = Expected { uid: entry.metadata.uid.clone(), resource_version: None };
            if let Err(error) = self.delete(&self.entries, key, &same).await {
                tracing::warn!("WorkloadEntry {key} is left to the garbage collector: {error}");
            }
        }
        Ok(true)
    }

    async fn entry(&self, key: &ObjectKey) -> Result<Option<WorkloadEntry>, StoreError> {
        Ok(self.entries.get(key)?.map(Arc::unwrap_or_clone))
    }

    async fn entries(&self, namespace: Option<&str>) -> Result<Vec<WorkloadEntry>, StoreError> {
        self.entries.list(namespace, is_registered)
    }

    async fn put_entry(&self, entry: WorkloadEntry) -> Result<WorkloadEntry, StoreError> {
        self.put(&self.entries, entry).await
    }

    async fn put_entry_status(&self, entry: WorkloadEntry) -> Result<WorkloadEntry, StoreError> {
        self.put_status(&self.entries, entry).await
    }

    async fn delete_entry(&self, key: &ObjectKey, expected: &Expected) -> Result<bool, StoreError> {
        Ok(self.delete(&self.entries, key, expected).await?.is_some())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Whether a registration owns the entry.
fn is_registered(entry: &WorkloadEntry) -> bool {
    entry.metadata.owner_references.iter().any(|owner| owner.kind == RegistrationSpec::KIND)
}

impl KubernetesStore {
    async fn put<S: Kind>(&self, caches: &Caches<S>, object: Object<S>) -> Result<Object<S>, StoreError> {
        let key = object.key();
        let place = custom::<S>(Some(&key.namespace));
        let body = serde_json::to_vec(&object).map_err(|error| StoreError::Refused(error.to_string()))?;
        let request = match object.metadata.resource_version {
            None => place.create(&Default::default(), body),
            Some(_) => place.replace(client::segment(&key.name), &Default::default(), body),
        };
        self.write(caches, &place, &key, request, |stored| {
            let (wanted, stored_metadata) = (&object.metadata, &stored.metadata);
            stored.spec == object.spec
                && stored_metadata.labels == wanted.labels
                && stored_metadata.annotations == wanted.annotations
                && stored_metadata.owner_references == wanted.owner_references
        })
        .await
    }

    async fn put_status<S: Kind>(&self, caches: &Caches<S>, object: Object<S>) -> Result<Object<S>, StoreError> {
        let key = object.key();
        let place = custom::<S>(Some(&key.namespace));
        let body = serde_json::to_vec(&object).map_err(|error| StoreError::Refused(error.to_string()))?;
        let request = place.replace_subresource("status", client::segment(&key.name), &Default::default(), body);
        self.write(caches, &place, &key, request, |stored| stored.status == object.status).await
    }

    /// Writes, and remembers what is stored then. `is_done` tells an object that is as it was to become: an attempt whose answer
    /// was lost has made it so.
    async fn write<S: Kind>(
        &self,
        caches: &Caches<S>,
        place: &Request,
        key: &ObjectKey,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        is_done: impl Fn(&Object<S>) -> bool,
    ) -> Result<Object<S>, StoreError> {
        let cache = caches.of(&key.namespace).ok_or_else(|| not_watched(key))?;
        let request = request.map_err(|error| CallError::from(error).of(key))?;
        let Written { result, perhaps_twice } = self.server.write::<Item<S>>(request).await;
        match result {
            Ok(stored) => {
                cache.observe(stored.clone());
                Ok((**stored.read()?).clone())
            }
            Err(error) => {
                // Who starts over now must not read what has just been refused.
                let now = if matches!(error.code(), 404 | 409) { self.read_again(cache, place, key).await } else { None };
                match now {
                    Some(now) if perhaps_twice && is_done(&now) => Ok((*now).clone()),
                    _ => Err(error.of(key)),
                }
            }
        }
    }

    async fn delete<S: Kind>(
        &self,
        caches: &Caches<S>,
        key: &ObjectKey,
        expected: &Expected,
    ) -> Result<Option<String>, StoreError> {
        let cache = caches.of(&key.namespace).ok_or_else(|| not_watched(key))?;
        let place = custom::<S>(Some(&key.namespace));
        let Written { result, .. } = self.server.delete(&place, &key.name, expected).await;
        match result {
            Ok(uid) => {
                cache.removed(key, uid.as_deref().unwrap_or_default());
                Ok(uid)
            }
            Err(error) => {
                if error.code() == 409 {
                    self.read_again(cache, &place, key).await;
                }
                Err(error.of(key))
            }
        }
    }

    /// Reads an object from the API server; what cannot be read is known as before.
    async fn read_again<S: Kind>(&self, cache: &Cache<S>, place: &Request, key: &ObjectKey) -> Option<Arc<Object<S>>> {
        match self.server.get::<Item<S>>(place, &key.name).await {
            Ok(Some(item)) => {
                cache.observe(item.clone());
                item.read().ok().cloned()
            }
            Ok(None) => {
                cache.removed(key, "");
                None
            }
            Err(_) => None,
        }
    }
}

fn not_watched(key: &ObjectKey) -> StoreError {
    StoreError::Refused(format!("{key}: {} is not one of the plane's namespaces", key.namespace))
}
