//! The store of a plane without Kubernetes: what people write is a watched folder of YAML, what the plane writes an embedded
//! database in its state folder.
//!
//! Objects are in memory. A write changes them there and waits until a thread of its own has it on disk; what waits together
//! is one transaction, so that a thousand workloads that register at once cost a few syncs of the disk. After `kill -9` all that
//! was answered is there.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::writer::{Row, Writer};
use super::{ControlPlane, Expected, MeshToken, Store, StoreError};
use crate::exit::Failure;
use crate::identity::Clock;
use crate::plane::inputs::Inputs;
use crate::plane::objects::{
    Object, ObjectKey, OnboardingPolicy, RegistrationSpec, Spec, Timestamp, WorkloadAutoRegistration, WorkloadEntry,
    WorkloadEntrySpec, WorkloadGroup,
};
use crate::plane::secrets::random_uid;
use crate::plane::state::{StateError, StateFolder};
use crate::plane::token::TokenIssuer;
use crate::watch::Watcher;

const FILE: &str = "plane.redb";
/// Memory for pages; everything is read once, at the start.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// How long a write may wait for the disk.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Registrations, and entries.
const MAX_OBJECTS: usize = 50_000;

pub(super) const REGISTRATIONS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("registrations");
pub(super) const ENTRIES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("entries");

/// A folder of YAML and a database.
pub struct EmbeddedStore {
    folder: PathBuf,
    inputs: ArcSwap<Inputs>,
    objects: Mutex<Objects>,
    writer: Writer,
    tokens: Arc<TokenIssuer>,
    changes: watch::Sender<u64>,
    clock: Clock,
}

#[derive(Default)]
struct Objects {
    registrations: BTreeMap<ObjectKey, WorkloadAutoRegistration>,
    entries: BTreeMap<ObjectKey, WorkloadEntry>,
    /// The last resource version.
    version: u64,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the database in `state` and reads the YAML in `folder`.
    ///
    /// # Errors
    /// When the database cannot be opened, or with every fault of the YAML.
    pub fn open(state: &StateFolder, folder: PathBuf, tokens: Arc<TokenIssuer>, clock: Clock) -> Result<Self, Failure> {
        let inputs = Inputs::read(&folder).map_err(|faults| Failure::Configuration(faults.join("\n")))?;
        let database = open(state).map_err(|error| Failure::Unavailable(error.to_string()))?;
        let objects = load(&database, state).map_err(|error| Failure::Unavailable(error.to_string()))?;
        let writer = Writer::start(database).map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Self {
            folder,
            inputs: ArcSwap::from_pointee(inputs),
            objects: Mutex::new(objects),
            writer,
            tokens,
            changes: watch::Sender::new(0),
            clock,
        })
    }

    /// What people have written, as it is in force.
    pub fn inputs(&self) -> Arc<Inputs> {
        self.inputs.load_full()
    }

    /// Reads the folder again whenever it changes. What has a fault is not taken over; never returns.
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub async fn follow(&self) -> Result<std::convert::Infallible, Failure> {
        let watched = Watcher::new(vec![self.folder.clone()]);
        let mut watcher = watched.map_err(|error| Failure::Internal(error.to_string()))?;
        // What changed between the first reading and the watching.
        self.reload().await;
        loop {
            watcher.changed().await;
            self.reload().await;
        }
    }

    async fn reload(&self) {
        let folder = self.folder.clone();
        // The file system may be a slow one: not on the agent's only thread.
        let read = tokio::task::spawn_blocking(move || Inputs::read(&folder)).await;
        match read.unwrap_or_else(|error| Err(vec![error.to_string()])) {
            Ok(inputs) if inputs == **self.inputs.load() => {}
            Ok(inputs) => {
                tracing::info!(groups = inputs.groups.len(), policies = inputs.policies(), "configuration of the plane applied");
                self.inputs.store(Arc::new(inputs));
                self.changed();
            }
            Err(faults) => {
                for fault in faults {
                    tracing::error!("configuration of the plane refused, the last good one stays: {fault}");
                }
            }
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    /// Changes objects with `change`, which also says what to write; returns when it is on disk.
    async fn write<T>(&self, change: impl FnOnce(&mut Objects) -> Result<(T, Vec<Row>), StoreError>) -> Result<T, StoreError> {
        let (value, written) = {
            let mut objects = self.objects();
            let slot = self.writer.reserve()?;
            let (value, rows) = change(&mut objects)?;
            // In the order of the changes, because the lock is held.
            (value, if rows.is_empty() { None } else { Some(slot.send(rows)) })
        };
        if let Some(written) = written {
            self.changed();
            on_disk(written).await?;
        }
        Ok(value)
    }
}

async fn on_disk(written: oneshot::Receiver<()>) -> Result<(), StoreError> {
    let late = || StoreError::Unavailable(format!("the plane's database was not written within {WRITE_TIMEOUT:?}"));
    timeout(WRITE_TIMEOUT, written).await.ok().and_then(Result::ok).ok_or_else(late)
}

#[tonic::async_trait]
impl Store for EmbeddedStore {
    fn control_plane(&self) -> ControlPlane {
        ControlPlane::Plane
    }

    async fn workload_group(&self, key: &ObjectKey) -> Result<Option<Arc<WorkloadGroup>>, StoreError> {
        Ok(self.inputs.load().groups.get(key).cloned())
    }

    async fn policies(&self, namespace: &str) -> Result<Vec<Arc<OnboardingPolicy>>, StoreError> {
        Ok(self.inputs.load().policies_of(namespace).to_vec())
    }

    async fn mesh_token(&self, namespace: &str, service_account: &str) -> Result<MeshToken, StoreError> {
        let expires_at = self.clock.now() + self.tokens.lifetime();
        let token = self.tokens.issue(namespace, service_account).map_err(|error| StoreError::Refused(error.to_string()))?;
        Ok(MeshToken { token, expires_at })
    }

    async fn registration(&self, key: &ObjectKey) -> Result<Option<WorkloadAutoRegistration>, StoreError> {
        Ok(self.objects().registrations.get(key).cloned())
    }

    async fn registrations(&self, namespace: Option<&str>) -> Result<Vec<WorkloadAutoRegistration>, StoreError> {
        Ok(of_namespace(&self.objects().registrations, namespace))
    }

    async fn put_registration(&self, registration: WorkloadAutoRegistration) -> Result<WorkloadAutoRegistration, StoreError> {
        let now = self.clock.now().into();
        self.write(|objects| {
            let stored = put(&mut objects.registrations, &mut objects.version, registration, now)?;
            Ok((stored.clone(), vec![Row::registration(&stored)?]))
        })
        .await
    }

    async fn put_registration_status(
        &self,
        registration: WorkloadAutoRegistration,
    ) -> Result<WorkloadAutoRegistration, StoreError> {
        self.write(|objects| {
            let stored = put_status(&mut objects.registrations, &mut objects.version, registration)?;
            Ok((stored.clone(), vec![Row::registration(&stored)?]))
        })
        .await
    }

    async fn delete_registration(&self, key: &ObjectKey, expected: &Expected) -> Result<bool, StoreError> {
        self.write(|objects| {
            let Some(removed) = remove(&mut objects.registrations, key, expected)? else { return Ok((false, Vec::new())) };
            let mut rows = vec![Row::no_registration(key)];
            let owned = |entry: &WorkloadEntry| removed.owner_reference().is_some_and(|owner| entry.metadata.is_owned_by(&owner));
            if objects.entries.get(key).is_some_and(owned) {
                objects.entries.remove(key);
                rows.push(Row::no_entry(key));
            }
            Ok((true, rows))
        })
        .await
    }

    async fn entry(&self, key: &ObjectKey) -> Result<Option<WorkloadEntry>, StoreError> {
        Ok(self.objects().entries.get(key).cloned())
    }

    async fn entries(&self, namespace: Option<&str>) -> Result<Vec<WorkloadEntry>, StoreError> {
        Ok(of_namespace(&self.objects().entries, namespace))
    }

    async fn put_entry(&self, entry: WorkloadEntry) -> Result<WorkloadEntry, StoreError> {
        if self.inputs.load().entries.contains(&entry.key()) {
            return Err(StoreError::Exists(entry.key()));
        }
        let now = self.clock.now().into();
        self.write(|objects| {
            let stored = put(&mut objects.entries, &mut objects.version, entry, now)?;
            Ok((stored.clone(), vec![Row::entry(&stored)?]))
        })
        .await
    }

    async fn put_entry_status(&self, entry: WorkloadEntry) -> Result<WorkloadEntry, StoreError> {
        self.write(|objects| {
            let stored = put_status(&mut objects.entries, &mut objects.version, entry)?;
            Ok((stored.clone(), vec![Row::entry(&stored)?]))
        })
        .await
    }

    async fn delete_entry(&self, key: &ObjectKey, expected: &Expected) -> Result<bool, StoreError> {
        self.write(|objects| {
            let removed = remove(&mut objects.entries, key, expected)?.is_some();
            Ok((removed, if removed { vec![Row::no_entry(key)] } else { Vec::new() }))
        })
        .await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn of_namespace<S: Spec>(objects: &BTreeMap<ObjectKey, Object<S>>, namespace: Option<&str>) -> Vec<Object<S>> {
    let wanted = |object: &&Object<S>| namespace.is_none_or(|namespace| object.metadata.namespace == namespace);
    objects.values().filter(wanted).cloned().collect()
}

type Map<S> = BTreeMap<ObjectKey, Object<S>>;

/// What an API server does with a POST or PUT.
fn put<S: Spec>(map: &mut Map<S>, version: &mut u64, object: Object<S>, now: Timestamp) -> Result<Object<S>, StoreError> {
    let key = object.key();
    let mut object = object;
    match (map.get(&key), &object.metadata.resource_version) {
        (Some(_), None) => return Err(StoreError::Exists(key)),
        (None, Some(_)) => return Err(StoreError::NotFound(key)),
        (None, None) => {
            if map.len() >= MAX_OBJECTS {
                return Err(StoreError::Refused(format!("{key}: there are {MAX_OBJECTS} objects already")));
            }
            object.status = S::Status::default();
            object.metadata.uid = Some(random_uid().map_err(StoreError::Unavailable)?);
            object.metadata.generation = Some(1);
            object.metadata.creation_timestamp = Some(now);
        }
        (Some(stored), Some(_)) => {
            check(stored, &key, &Expected::version_of(&object.metadata))?;
            let generation = stored.metadata.generation.unwrap_or(0) + i64::from(stored.spec != object.spec);
            object.metadata.uid.clone_from(&stored.metadata.uid);
            object.metadata.creation_timestamp = stored.metadata.creation_timestamp;
            object.metadata.generation = Some(generation);
            object.status = stored.status.clone();
        }
    }
    Ok(store(map, version, object))
}

fn put_status<S: Spec>(map: &mut Map<S>, version: &mut u64, object: Object<S>) -> Result<Object<S>, StoreError> {
    let key = object.key();
    let stored = map.get(&key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
    check(stored, &key, &Expected::version_of(&object.metadata))?;
    let changed = Object { status: object.status, ..stored.clone() };
    Ok(store(map, version, changed))
}

fn store<S: Spec>(map: &mut Map<S>, version: &mut u64, mut object: Object<S>) -> Object<S> {
    *version += 1;
    object.metadata.resource_version = Some(version.to_string());
    map.insert(object.key(), object.clone());
    object
}

fn remove<S: Spec>(map: &mut Map<S>, key: &ObjectKey, expected: &Expected) -> Result<Option<Object<S>>, StoreError> {
    if let Some(stored) = map.get(key) {
        check(stored, key, expected)?;
    }
    Ok(map.remove(key))
}

fn check<S: Spec>(stored: &Object<S>, key: &ObjectKey, expected: &Expected) -> Result<(), StoreError> {
    let same = |expected: &Option<String>, stored: &Option<String>| expected.is_none() || expected == stored;
    let is = same(&expected.uid, &stored.metadata.uid) && same(&expected.resource_version, &stored.metadata.resource_version);
    if is { Ok(()) } else { Err(StoreError::Conflict(key.clone())) }
}

fn open(state: &StateFolder) -> Result<Database, StateError> {
    let path = state.path().join(FILE);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|source| StateError::Io { action: "cannot open", path, source })?;
    let corrupt = |error: redb::DatabaseError| state.corrupt(FILE, error.to_string());
    let file = FileBackend::new(file).map_err(corrupt)?;
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(file).map_err(corrupt)
}

fn load(database: &Database, state: &StateFolder) -> Result<Objects, StateError> {
    let corrupt = |reason: String| state.corrupt(FILE, reason);
    let registrations: Vec<Object<RegistrationSpec>> = rows(database, REGISTRATIONS).map_err(corrupt)?;
    let entries: Vec<Object<WorkloadEntrySpec>> = rows(database, ENTRIES).map_err(corrupt)?;
    let versions = registrations.iter().map(|object| &object.metadata).chain(entries.iter().map(|object| &object.metadata));
    let numbers = versions.filter_map(|metadata| metadata.resource_version.as_deref()?.parse::<u64>().ok());
    Ok(Objects {
        version: numbers.max().unwrap_or(0),
        registrations: registrations.into_iter().map(|object| (object.key(), object)).collect(),
        entries: entries.into_iter().map(|object| (object.key(), object)).collect(),
    })
}

fn rows<S: Spec>(database: &Database, table: TableDefinition<'static, &str, &[u8]>) -> Result<Vec<Object<S>>, String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let transaction = database.begin_read().map_err(|error| text(&error))?;
    let table = match transaction.open_table(table) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(text(&error)),
    };
    let mut objects = Vec::new();
    for row in table.iter().map_err(|error| text(&error))? {
        let (key, value) = row.map_err(|error| text(&error))?;
        objects.push(serde_json::from_slice(value.value()).map_err(|error| format!("{}: {error}", key.value()))?);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests;
