//! Removes what has lost its owner: registrations of a WorkloadGroup that was deleted, entries of a registration that was. The
//! garbage collector of Kubernetes does the same; where it runs it is faster.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cache::Item;
use super::caches::Caches;
use super::client::{ApiServer, Kind, custom};
use crate::plane::objects::{Object, ObjectKey, OwnerReference, RegistrationSpec, WorkloadEntrySpec, WorkloadGroupSpec};
use crate::plane::store::{Expected, StoreError};

/// What changes together is looked at together, and the garbage collector comes first.
const QUIET: Duration = Duration::from_secs(2);
/// How often is looked in any case.
const INTERVAL: Duration = Duration::from_secs(60);

/// What has to run to remove them.
pub(super) struct Collector {
    pub(super) server: ApiServer,
    pub(super) groups: Caches<WorkloadGroupSpec>,
    pub(super) registrations: Caches<RegistrationSpec>,
    pub(super) entries: Caches<WorkloadEntrySpec>,
    /// Whether it is for this replica to do.
    pub(super) collects: watch::Receiver<bool>,
    pub(super) changes: watch::Receiver<u64>,
}

impl Collector {
    /// Never returns.
    pub(super) async fn run(mut self) {
        loop {
            if timeout(INTERVAL, self.changes.changed()).await.is_ok_and(|changed| changed.is_err()) {
                return;
            }
            sleep(QUIET).await;
            self.changes.mark_unchanged();
            if !*self.collects.borrow() {
                continue;
            }
            let removed = match self.collect(&self.registrations, &self.groups).await {
                Ok(()) => self.collect(&self.entries, &self.registrations).await,
                failed => failed,
            };
            if let Err(error) = removed {
                tracing::debug!("what has lost its owner stays for now: {error}");
            }
        }
    }

    /// Removes those of `owned` whose owner is none of `owners`, nor in Kubernetes.
    async fn collect<S: Kind, O: Kind>(&self, owned: &Caches<S>, owners: &Caches<O>) -> Result<(), StoreError> {
        let owner_of = |object: &Object<S>| object.metadata.owner_references.iter().find(|owner| owner.kind == O::KIND).cloned();
        let is_known = |object: &Object<S>, owner: &OwnerReference| {
            let found = owners.get(&ObjectKey::new(&object.metadata.namespace, &owner.name));
            // One that is not understood is there.
            found.map_or(true, |found| found.is_some_and(|found| found.metadata.uid.as_ref() == Some(&owner.uid)))
        };
        let orphans = owned.list(None, |object| owner_of(object).is_some_and(|owner| !is_known(object, &owner)))?;
        for object in orphans {
            let (key, Some(owner)) = (object.key(), owner_of(&object)) else { continue };
            if !self.is_gone::<O>(&ObjectKey::new(&key.namespace, &owner.name), &owner).await? {
                continue;
            }
            let same = Expected { uid: object.metadata.uid.clone(), resource_version: None };
            let place = custom::<S>(Some(&key.namespace));
            let removed = self.server.delete(&place, &key.name, &same).await.result.map_err(|error| error.of(&key))?;
            if let Some(cache) = owned.of(&key.namespace) {
                cache.removed(&key, object.metadata.uid.as_deref().unwrap_or_default());
            }
            if removed.is_some() {
                tracing::info!("{} {key} removed with its {} {}", S::KIND, O::KIND, owner.name);
            }
        }
        Ok(())
    }

    /// Whether Kubernetes itself knows no such owner: what is in memory may be behind.
    async fn is_gone<O: Kind>(&self, key: &ObjectKey, owner: &OwnerReference) -> Result<bool, StoreError> {
        let place = custom::<O>(Some(&key.namespace));
        let found = self.server.get::<Item<O>>(&place, &key.name).await.map_err(|error| error.of(key))?;
        Ok(found.is_none_or(|item| item.uid() != owner.uid))
    }
}
