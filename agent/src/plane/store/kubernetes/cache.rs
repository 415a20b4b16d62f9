//! What the API server has said of the objects of one kind, and what was written since: who reads after a write sees it, though
//! the watch has not told of it yet, and reading goes on while the API server is away.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use tokio::sync::watch;

use super::client::Kind;
use crate::plane::objects::{Object, ObjectKey};
use crate::plane::store::StoreError;

/// Objects of a kind. A list that is longer is not taken over.
pub(super) const MAX_OBJECTS: usize = 50_000;
/// Objects that were removed here and of whose end the watch has not told yet.
const MAX_REMOVED: usize = 10_000;

/// The objects of one kind.
pub(super) struct Cache<S: Kind> {
    state: Mutex<State<S>>,
    changes: watch::Sender<u64>,
}

struct State<S: Kind> {
    objects: BTreeMap<ObjectKey, Item<S>>,
    /// By uid: an event that was under way when they were removed must not bring them back.
    removed: HashSet<String>,
    health: Health,
}

/// Whether the watch tells of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing was heard yet; why.
    New(String),
    /// It does.
    Live,
    /// Not since then; why.
    Lost(Instant, String),
}

/// An object as it was read, or why it could not be.
#[derive(Clone, Debug)]
pub(super) enum Item<S: Kind> {
    Read(Arc<Object<S>>),
    Unreadable(Unreadable),
}

/// An object that is not understood.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    key: ObjectKey,
    uid: String,
    version: String,
    reason: String,
}

impl<S: Kind> Item<S> {
    pub(super) fn key(&self) -> ObjectKey {
        match self {
            Self::Read(object) => object.key(),
            Self::Unreadable(unreadable) => unreadable.key.clone(),
        }
    }

    pub(super) fn version(&self) -> &str {
        match self {
            Self::Read(object) => object.metadata.resource_version.as_deref().unwrap_or_default(),
            Self::Unreadable(unreadable) => &unreadable.version,
        }
    }

    pub(super) fn uid(&self) -> &str {
        match self {
            Self::Read(object) => object.metadata.uid.as_deref().unwrap_or_default(),
            Self::Unreadable(unreadable) => &unreadable.uid,
        }
    }

    /// The object, or that it is not understood: nothing may be done with it.
    pub(super) fn read(&self) -> Result<&Arc<Object<S>>, StoreError> {
        match self {
            Self::Read(object) => Ok(object),
            Self::Unreadable(Unreadable { key, reason, .. }) => {
                Err(StoreError::Refused(format!("{} {key} is not understood: {reason}", S::KIND)))
            }
        }
    }
}

impl<'de, S: Kind> Deserialize<'de> for Item<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        match Object::<S>::deserialize(&json) {
            Ok(object) => Ok(Self::Read(Arc::new(object))),
            Err(error) => {
                let text = |name: &str| json["metadata"][name].as_str().unwrap_or_default().to_owned();
                let key = ObjectKey::new(text("namespace"), text("name"));
                let reason = error.to_string();
                Ok(Self::Unreadable(Unreadable { key, uid: text("uid"), version: text("resourceVersion"), reason }))
            }
        }
    }
}

impl<S: Kind> Cache<S> {
    pub(super) fn new(changes: watch::Sender<u64>) -> Self {
        let health = Health::New("the API server has not been heard yet".to_owned());
        let state = State { objects: BTreeMap::new(), removed: HashSet::new(), health };
        Self { state: Mutex::new(state), changes }
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of `key`.
    pub(super) fn get(&self, key: &ObjectKey) -> Result<Option<Arc<Object<S>>>, StoreError> {
        let state = self.state();
        state.health.heard()?;
        state.objects.get(key).map(|item| item.read().cloned()).transpose()
    }

    /// All that are understood and `wanted`. Of the others the log has told.
    pub(super) fn list(&self, wanted: impl Fn(&Object<S>) -> bool) -> Result<Vec<Arc<Object<S>>>, StoreError> {
        let state = self.state();
        state.health.heard()?;
        Ok(state.objects.values().filter_map(|item| item.read().ok()).filter(|object| wanted(object)).cloned().collect())
    }

    pub(super) fn health(&self) -> Health {
        self.state().health.clone()
    }

    /// Fails when nothing was heard of changes for longer than `limit`.
    pub(super) fn is_fresh(&self, limit: Duration) -> Result<(), StoreError> {
        match &self.state().health {
            Health::Lost(since, why) if since.elapsed() > limit => {
                Err(StoreError::Unavailable(format!("{} unknown for {:.0?}: {why}", S::PLURAL, since.elapsed())))
            }
            health => health.heard(),
        }
    }

    /// The watch tells of changes. True when it did not before.
    pub(super) fn live(&self) -> bool {
        std::mem::replace(&mut self.state().health, Health::Live) != Health::Live
    }

    /// The watch has ended. True when that, or the reason, is new.
    pub(super) fn lost(&self, why: String) -> bool {
        let mut state = self.state();
        let (next, is_new) = match &state.health {
            Health::New(known) => (Health::New(why.clone()), *known != why),
            Health::Live => (Health::Lost(Instant::now(), why), true),
            Health::Lost(since, known) => (Health::Lost(*since, why.clone()), *known != why),
        };
        state.health = next;
        is_new
    }

    /// Takes over a list. What was written after it stays.
    pub(super) fn replace(&self, items: Vec<Item<S>>, list_version: &str) {
        {
            let mut state = self.state();
            let mut objects: BTreeMap<_, _> = items.into_iter().map(|item| (item.key(), item)).collect();
            for (key, item) in std::mem::take(&mut state.objects) {
                let newer = match objects.get(&key) {
                    Some(listed) => is_newer(item.version(), listed.version()),
                    None => is_newer(item.version(), list_version),
                };
                if newer {
                    objects.insert(key, item);
                }
            }
            // A removal came before the list or its event is still to come: only the latter has to be remembered.
            state.removed.retain(|uid| objects.values().any(|item| item.uid() == uid));
            objects.retain(|_, item| !state.removed.contains(item.uid()));
            state.objects = objects;
        }
        self.changed();
    }

    /// An object as it is at its version.
    pub(super) fn observe(&self, item: Item<S>) {
        {
            let mut state = self.state();
            let key = item.key();
            let old = state.objects.get(&key).is_some_and(|known| !is_newer(item.version(), known.version()));
            let full = state.objects.len() >= MAX_OBJECTS && !state.objects.contains_key(&key);
            if old || full || state.removed.contains(item.uid()) {
                return;
            }
            state.objects.insert(key, item);
        }
        self.changed();
    }

    /// The watch says that it has gone, at its last version.
    pub(super) fn observe_end(&self, item: &Item<S>) {
        {
            let mut state = self.state();
            state.removed.remove(item.uid());
            match state.objects.get(&item.key()) {
                Some(known) if known.uid() == item.uid() => state.objects.remove(&item.key()),
                _ => return,
            };
        }
        self.changed();
    }

    /// It was removed here.
    pub(super) fn removed(&self, key: &ObjectKey, uid: &str) {
        {
            let mut state = self.state();
            if !uid.is_empty() {
                if state.removed.len() >= MAX_REMOVED {
                    state.removed.clear();
                }
                state.removed.insert(uid.to_owned());
            }
            if state.objects.get(key).is_none_or(|known| known.uid() != uid && !uid.is_empty()) {
                return;
            }
            state.objects.remove(key);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
    }
}

impl Health {
    fn heard(&self) -> Result<(), StoreError> {
        if let Self::New(why) = self { Err(StoreError::Unavailable(why.clone())) } else { Ok(()) }
    }
}

/// Whether one version follows the other. They are numbers in every API server; what is none is taken as it comes.
fn is_newer(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plane::objects::WorkloadEntrySpec;

    type Entries = Cache<WorkloadEntrySpec>;

    fn item(name: &str, uid: &str, version: u64) -> Item<WorkloadEntrySpec> {
        serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": name, "namespace": "a", "uid": uid, "resourceVersion": version.to_string()},
            "spec": {"address": "10.0.0.1"},
        }))
        .unwrap()
    }

    fn versions(cache: &Entries) -> Vec<String> {
        let all = cache.list(|_| true).unwrap();
        all.iter().map(|o| format!("{}@{}", o.metadata.name, o.metadata.resource_version.as_deref().unwrap())).collect()
    }

    fn cache() -> Entries {
        let cache = Cache::new(watch::Sender::new(0));
        cache.live();
        cache
    }

    #[test]
    fn what_was_written_is_read_whatever_the_watch_tells_late() {
        let cache = cache();
        cache.replace(vec![item("x", "1", 5)], "10");
        cache.observe(item("x", "1", 12));
        cache.observe(item("y", "2", 13));
        cache.observe(item("x", "1", 5));
        assert_eq!(versions(&cache), ["x@12", "y@13"]);
        // A list from before the writes knows neither.
        cache.replace(vec![item("x", "1", 5), item("z", "3", 6)], "11");
        assert_eq!(versions(&cache), ["x@12", "y@13", "z@6"]);
        // One from after them knows all.
        cache.replace(vec![item("x", "1", 12)], "20");
        assert_eq!(versions(&cache), ["x@12"]);
    }

    #[test]
    fn what_was_removed_does_not_come_back() {
        let cache = cache();
        cache.replace(vec![item("x", "1", 5)], "10");
        cache.removed(&ObjectKey::new("a", "x"), "1");
        cache.observe(item("x", "1", 11));
        cache.replace(vec![item("x", "1", 11)], "11");
        assert!(versions(&cache).is_empty());
        // Another of its name is another; the end of the first does not touch it.
        cache.observe(item("x", "2", 13));
        cache.observe_end(&item("x", "1", 12));
        assert_eq!(versions(&cache), ["x@13"]);
        assert!(cache.state().removed.is_empty());
        cache.observe_end(&item("x", "2", 14));
        assert!(versions(&cache).is_empty());
    }

    #[test]
    fn what_is_not_understood_is_known_by_name_only() {
        let cache = cache();
        let strange: Item<WorkloadEntrySpec> = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": "x", "namespace": "a", "uid": "1", "resourceVersion": "7"}, "spec": {"adress": "10.0.0.1"},
        }))
        .unwrap();
        cache.observe(strange);
        let error = cache.get(&ObjectKey::new("a", "x")).unwrap_err();
        assert!(
            matches!(&error, StoreError::Refused(text) if text.contains("WorkloadEntry a/x") && text.contains("adress")),
            "{error}"
        );
        cache.observe(item("x", "1", 8));
        assert!(cache.get(&ObjectKey::new("a", "x")).unwrap().is_some());
    }

    #[test]
    fn nothing_is_said_before_the_first_list_and_staleness_is_bounded() {
        let cache: Entries = Cache::new(watch::Sender::new(0));
        let key = ObjectKey::new("a", "x");
        assert!(matches!(cache.get(&key), Err(StoreError::Unavailable(_))));
        assert!(cache.lost("refused".to_owned()));
        assert_eq!(cache.get(&key), Err(StoreError::Unavailable("refused".to_owned())));
        cache.live();
        assert_eq!(cache.get(&key), Ok(None));
        assert!(cache.lost("refused".to_owned()));
        assert!(!cache.lost("refused".to_owned()));
        assert_eq!(cache.get(&key), Ok(None), "as last heard");
        assert_eq!(cache.is_fresh(Duration::from_secs(60)), Ok(()));
        assert!(matches!(cache.is_fresh(Duration::ZERO), Err(StoreError::Unavailable(_))));
    }
}
