//! The resources of a kind by name, with the hash of the bytes that they were made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::translate::envoy::Rejected;
use crate::translate::envoy::model::{self, Model};

#[derive(Debug)]
pub(super) struct Table<T> {
    entries: BTreeMap<Arc<str>, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    /// Of the bytes that were accepted last; `None` for one that only stands in.
    hash: Option<u64>,
    value: T,
}

/// A resource that has come.
pub(super) enum Opened<T> {
    /// It says what the one says that was accepted last.
    Same(Arc<str>),
    /// It is to be [`put`](Table::put).
    New { name: Arc<str>, hash: u64, value: T },
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    /// Reads a resource, unless its very bytes were accepted last. `same`: whether what is kept says this.
    ///
    /// # Errors
    /// Every field that cannot be honoured.
    pub(super) fn open<M: Model>(
        &mut self,
        bytes: &[u8],
        named: Option<&str>,
        same: impl Fn(&T, &M) -> bool,
    ) -> Result<Opened<M>, Vec<Rejected>> {
        let hash = xxh64(bytes, 0);
        if let Some(name) = named.filter(|&name| self.has(name, hash)) {
            return Ok(Opened::Same(name.into()));
        }
        let message = model::decode(bytes, named, M::name)?;
        let name: Arc<str> = M::name(&message).into();
        if self.has(&name, hash) {
            return Ok(Opened::Same(name));
        }
        let value = model::translate(&message, bytes, &name, M::translate)?;
        if self.get(&name).is_some_and(|current| same(current, &value)) {
            self.confirm(&name, hash);
            return Ok(Opened::Same(name));
        }
        Ok(Opened::New { name, hash, value })
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.entries.get(name).map(|entry| &entry.value)
    }

    /// The name of an entry as it is kept.
    pub(super) fn name(&self, name: &str) -> Option<&Arc<str>> {
        self.entries.get_key_value(name).map(|(name, _)| name)
    }

    /// Whether these bytes were accepted last.
    pub(super) fn has(&self, name: &str, hash: u64) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.hash == Some(hash))
    }

    pub(super) fn put(&mut self, name: Arc<str>, hash: u64, value: T) {
        self.entries.insert(name, Entry { hash: Some(hash), value });
    }

    /// Something in the place of a resource that nobody has sent: it is none of [`Self::names`].
    pub(super) fn stand_in(&mut self, name: Arc<str>, value: T) {
        self.entries.insert(name, Entry { hash: None, value });
    }

    /// Other bytes that say the same.
    pub(super) fn confirm(&mut self, name: &str, hash: u64) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.hash = Some(hash);
        }
    }

    /// True when there was one.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.entries.remove(name).is_some_and(|entry| entry.hash.is_some())
    }

    pub(super) fn retain(&mut self, names: &BTreeSet<Arc<str>>) {
        self.entries.retain(|name, _| names.contains(name));
    }

    /// Of those that were accepted.
    pub(super) fn names(&self) -> BTreeSet<Arc<str>> {
        self.entries.iter().filter(|(_, entry)| entry.hash.is_some()).map(|(name, _)| Arc::clone(name)).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.entries.iter().map(|(name, entry)| (name, &entry.value))
    }
}
