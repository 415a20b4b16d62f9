//! Which workloads hold their stream to this replica, and since when others do not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::objects::ObjectKey;
use super::session::Session;

/// Every stream of this replica.
#[derive(Debug)]
pub(super) struct Streams {
    places: Arc<Semaphore>,
    workloads: Mutex<HashMap<ObjectKey, Presence>>,
    changes: watch::Sender<u64>,
    /// Who has not come back to this replica after its start was last seen then.
    started: SystemTime,
}

#[derive(Debug)]
enum Presence {
    Held(Arc<Handle>),
    Lost { since: SystemTime },
}

/// A stream that is held.
#[derive(Debug)]
pub(super) struct Handle {
    /// Counts the streams of this workload, over all replicas. The newest one is the one that counts.
    pub(super) connection: u64,
    /// What its agent has shown.
    pub(super) session: Session,
    end: watch::Sender<Option<End>>,
}

/// Why a stream is ended from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The workload has registered anew, here or with another replica.
    Superseded,
    /// Its registration is gone.
    Removed,
    /// No policy admits it any longer.
    Denied,
    /// It has unregistered.
    Unregistered,
}

/// A stream's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    pub(super) fn new(limit: usize, started: SystemTime) -> Self {
        let places = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { places, workloads: Mutex::default(), changes: watch::Sender::new(0), started }
    }

    /// A place for a stream, while there are any.
    pub(super) fn place(&self) -> Option<Place> {
        self.places.clone().try_acquire_owned().ok().map(|permit| Place { _permit: permit })
    }

    /// Takes the workload over from any older stream, which ends. `None` when there is a newer one.
    pub(super) fn hold(&self, connection: u64, session: Session) -> Option<(Arc<Handle>, watch::Receiver<Option<End>>)> {
        let (end, ended) = watch::channel(None);
        let name = session.name.clone();
        let handle = Arc::new(Handle { connection, session, end });
        let mut workloads = self.lock();
        match workloads.get(&name) {
            Some(Presence::Held(other)) if other.connection >= connection => return None,
            Some(Presence::Held(other)) => other.end(End::Superseded),
            _ => {}
        }
        workloads.insert(name, Presence::Held(handle.clone()));
        drop(workloads);
        self.changed();
        Some((handle, ended))
    }

    /// Notes that a stream was lost; false when it no longer was the workload's.
    pub(super) fn lose(&self, handle: &Handle, since: SystemTime) -> bool {
        let mut workloads = self.lock();
        let Some(presence) = workloads.get_mut(&handle.session.name) else { return false };
        if !matches!(presence, Presence::Held(held) if held.connection == handle.connection) {
            return false;
        }
        *presence = Presence::Lost { since };
        drop(workloads);
        self.changed();
        true
    }

    /// Forgets a stream that has ended from here: whoever ended it knows what is with the workload.
    pub(super) fn release(&self, handle: &Handle) {
        let mut workloads = self.lock();
        let name = &handle.session.name;
        if matches!(workloads.get(name), Some(Presence::Held(held)) if held.connection == handle.connection) {
            workloads.remove(name);
            drop(workloads);
            self.changed();
        }
    }

    /// The number of the workload's last stream here, if it is remembered.
    pub(super) fn connection(&self, name: &ObjectKey) -> u64 {
        match self.lock().get(name) {
            Some(Presence::Held(handle)) => handle.connection,
            Some(Presence::Lost { .. }) | None => 0,
        }
    }

    /// Forgets a workload whose objects are gone, and ends its stream if it has one.
    pub(super) fn forget(&self, name: &ObjectKey, why: End) {
        let removed = self.lock().remove(name);
        if let Some(Presence::Held(handle)) = removed {
            handle.end(why);
        }
        self.changed();
    }

    /// Every stream.
    pub(super) fn all(&self) -> Vec<Arc<Handle>> {
        let workloads = self.lock();
        let held = workloads.values().filter_map(|presence| match presence {
            Presence::Held(handle) => Some(handle.clone()),
            Presence::Lost { .. } => None,
        });
        held.collect()
    }

    /// How many streams are held, and how many workloads have lost theirs.
    pub(super) fn counts(&self) -> (usize, usize) {
        let workloads = self.lock();
        let held = workloads.values().filter(|presence| matches!(presence, Presence::Held(_))).count();
        (held, workloads.len() - held)
    }

    /// Since when a workload is without stream; `None` when it has one. Of one that was never seen it is the start of this replica.
    pub(super) fn lost_since(&self, name: &ObjectKey) -> Option<SystemTime> {
        match self.lock().get(name) {
            Some(Presence::Held(_)) => None,
            Some(Presence::Lost { since }) => Some(*since),
            None => Some(self.started),
        }
    }

    /// When this replica started.
    pub(super) fn started(&self) -> SystemTime {
        self.started
    }

    /// Changes when a stream begins or ends.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Presence>> {
        self.workloads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Ends the stream, unless it is ending.
    pub(super) fn end(&self, why: End) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(why);
            first
        });
    }
}
