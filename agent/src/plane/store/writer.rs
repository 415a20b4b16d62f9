//! The thread that writes the database: rows that wait together are one transaction.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use redb::{Database, TableDefinition};
use tokio::sync::{Semaphore, oneshot};

use super::StoreError;
use super::embedded::{ENTRIES, REGISTRATIONS};
use crate::plane::objects::{ObjectKey, WorkloadAutoRegistration, WorkloadEntry};

/// Writes that wait; above that the plane answers that it cannot.
const QUEUE: usize = 16_384;
/// Writes of a transaction.
const MAX_BATCH: usize = 2048;
/// After a failure (a full disk); what waits is written then.
const PAUSE: Duration = Duration::from_secs(1);

/// Dropping it ends the thread, when what waits is written.
pub(super) struct Writer {
    queue: SyncSender<Write>,
    /// As many as fit into the queue.
    slots: std::sync::Arc<Semaphore>,
}

/// Rows that belong together, and who waits for them.
struct Write {
    rows: Vec<Row>,
    written: oneshot::Sender<()>,
    _slot: tokio::sync::OwnedSemaphorePermit,
}

/// A row of a table, or its end.
pub(super) struct Row {
    table: Table,
    key: String,
    value: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Registrations,
    Entries,
}

/// A place in the queue.
pub(super) struct Slot<'a> {
    queue: &'a SyncSender<Write>,
    permit: tokio::sync::OwnedSemaphorePermit,
}

impl Writer {
    pub(super) fn start(database: Database) -> std::io::Result<Self> {
        let (queue, writes) = mpsc::sync_channel(QUEUE);
        thread::Builder::new().name("skiff-plane-db".to_owned()).spawn(move || run(&database, &writes))?;
        Ok(Self { queue, slots: std::sync::Arc::new(Semaphore::new(QUEUE)) })
    }

    /// A place for a write, so that what was changed in memory is sure to be queued.
    pub(super) fn reserve(&self) -> Result<Slot<'_>, StoreError> {
        let permit = self.slots.clone().try_acquire_owned();
        let full = |_| StoreError::Unavailable("the plane's database does not keep up".to_owned());
        Ok(Slot { queue: &self.queue, permit: permit.map_err(full)? })
    }
}

impl Slot<'_> {
    /// Queues the rows; the receiver hears when they are on disk, or loses its sender when they never will be.
    pub(super) fn send(self, rows: Vec<Row>) -> oneshot::Receiver<()> {
        let (written, receiver) = oneshot::channel();
        match self.queue.try_send(Write { rows, written, _slot: self.permit }) {
            // There are as many slots as places. A thread that is gone leaves the receiver without sender.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => receiver,
        }
    }
}

impl Row {
    pub(super) fn registration(object: &WorkloadAutoRegistration) -> Result<Self, StoreError> {
        Ok(Self { table: Table::Registrations, key: object.key().to_string(), value: Some(json(object)?) })
    }

    pub(super) fn no_registration(key: &ObjectKey) -> Self {
        Self { table: Table::Registrations, key: key.to_string(), value: None }
    }

    pub(super) fn entry(object: &WorkloadEntry) -> Result<Self, StoreError> {
        Ok(Self { table: Table::Entries, key: object.key().to_string(), value: Some(json(object)?) })
    }

    pub(super) fn no_entry(key: &ObjectKey) -> Self {
        Self { table: Table::Entries, key: key.to_string(), value: None }
    }
}

fn json(object: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(object).map_err(|error| StoreError::Refused(error.to_string()))
}

fn run(database: &Database, writes: &Receiver<Write>) {
    while let Ok(first) = writes.recv() {
        let mut batch = vec![first];
        loop {
            batch.extend(writes.try_iter().take(MAX_BATCH.saturating_sub(batch.len())));
            match commit(database, &batch) {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(%error, waiting = batch.len(), "the plane's database cannot be written, trying again");
                    thread::sleep(PAUSE);
                }
            }
        }
        for Write { written, .. } in batch {
            // Who no longer waits was told that it took too long.
            let _ = written.send(());
        }
    }
}

fn commit(database: &Database, batch: &[Write]) -> Result<(), redb::Error> {
    // The last of several writes of a row is what counts.
    let mut rows: BTreeMap<(Table, &str), Option<&[u8]>> = BTreeMap::new();
    for row in batch.iter().flat_map(|write| &write.rows) {
        rows.insert((row.table, &row.key), row.value.as_deref());
    }
    let transaction = database.begin_write()?;
    for (table, definition) in [(Table::Registrations, REGISTRATIONS), (Table::Entries, ENTRIES)] {
        fill(&transaction, definition, rows.iter().filter(|((of, _), _)| *of == table).map(|((_, key), value)| (*key, *value)))?;
    }
    transaction.commit()?;
    Ok(())
}

fn fill<'a>(
    transaction: &redb::WriteTransaction,
    definition: TableDefinition<'static, &str, &[u8]>,
    rows: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(definition)?;
    for (key, value) in rows {
        match value {
            Some(value) => drop(table.insert(key, value)?),
            None => drop(table.remove(key)?),
        }
    }
    Ok(())
}
