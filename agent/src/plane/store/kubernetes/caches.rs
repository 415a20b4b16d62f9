//! One [`Cache`] of all namespaces, or one of each that is watched.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cache::{Cache, Health};
use super::client::{ApiServer, Kind};
use super::watcher::Watcher;
use crate::plane::objects::{Object, ObjectKey};
use crate::plane::store::StoreError;

/// The objects of a kind, of each namespace or of all together.
pub(super) struct Caches<S: Kind>(Arc<Vec<Scoped<S>>>);

/// A namespace, or all, and what is there.
type Scoped<S> = (Option<String>, Arc<Cache<S>>);

impl<S: Kind> Clone for Caches<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Kind> Caches<S> {
    pub(super) fn start(
        server: &ApiServer,
        namespaces: &[String],
        changes: &watch::Sender<u64>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let named: BTreeSet<_> = namespaces.iter().cloned().map(Some).collect();
        let scopes = if named.is_empty() { BTreeSet::from([None]) } else { named };
        let start = |namespace: Option<String>| {
            let cache = Arc::new(Cache::new(changes.clone()));
            tasks.spawn(Watcher { server: server.clone(), namespace: namespace.clone(), cache: cache.clone() }.run());
            (namespace, cache)
        };
        Self(Arc::new(scopes.into_iter().map(start).collect()))
    }

    /// The cache that has what is in `namespace`.
    pub(super) fn of(&self, namespace: &str) -> Option<&Cache<S>> {
        let has = |(scope, _): &&Scoped<S>| scope.as_deref().is_none_or(|scope| scope == namespace);
        self.0.iter().find(has).map(|(_, cache)| &**cache)
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Result<Option<Arc<Object<S>>>, StoreError> {
        self.of(&key.namespace).map_or(Ok(None), |cache| cache.get(key))
    }

    /// By namespace and name.
    pub(super) fn list(
        &self,
        namespace: Option<&str>,
        wanted: impl Fn(&Object<S>) -> bool,
    ) -> Result<Vec<Object<S>>, StoreError> {
        let wanted =
            |object: &Object<S>| namespace.is_none_or(|namespace| object.metadata.namespace == namespace) && wanted(object);
        let mut objects = Vec::new();
        for (_, cache) in self.0.iter() {
            objects.extend(cache.list(wanted)?.into_iter().map(Arc::unwrap_or_clone));
        }
        objects.sort_by_cached_key(Object::key);
        Ok(objects)
    }

    pub(super) fn health(&self) -> Result<(), StoreError> {
        let new = |cache: &Cache<S>| if let Health::New(why) = cache.health() { Some(why) } else { None };
        match self.0.iter().find_map(|(_, cache)| new(cache)) {
            Some(why) => Err(StoreError::Unavailable(format!("{}: {why}", S::KIND))),
            None => Ok(()),
        }
    }
}
