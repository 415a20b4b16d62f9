//! Finds the handles of a label set without touching a string that is neither a principal nor what was asked to be a label.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::{Service, Workload};

/// Label sets kept per cache. A sidecar sees a few dozen; what is evicted is registered again and finds its old series.
const CAPACITY: usize = 1024;

/// What distinguishes the label sets of one listener or connection manager.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Identity<'a> {
    pub(super) service: Option<&'a Arc<Service>>,
    /// The host that was asked for, where it stands in for a service.
    pub(super) host: &'a str,
    /// What stands in for the name of a service.
    pub(super) special: Option<&'static str>,
    pub(super) peer: Option<&'a Arc<Workload>>,
    /// Empty is none.
    pub(super) peer_principal: &'a str,
    /// The same for all label sets that have one, so only that there is one distinguishes them.
    pub(super) local_principal: Option<&'a str>,
    pub(super) flags: u32,
    pub(super) response_code: u16,
    /// Whether the request is gRPC, and its status.
    pub(super) grpc: Option<Option<u32>>,
    /// Values of attributes that are labels.
    pub(super) custom: &'a [String],
}

/// The same, with pointers for shared data and one hash for all texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    service: usize,
    peer: usize,
    texts: u64,
    grpc: u64,
    flags: u32,
    response_code: u16,
    has_local_principal: bool,
}

/// Handles of type `H` by identity.
#[derive(Debug)]
pub(super) struct HandleCache<H> {
    entries: RwLock<HashMap<CacheKey, Entry<H>, BuildHasherDefault<Mixer>>>,
}

#[derive(Debug)]
struct Entry<H> {
    handles: H,
    /// Looked up since the last eviction.
    used: AtomicBool,
    /// The key only holds their hash.
    texts: Texts,
    /// Kept alive, so that no other service can get the address that the key holds.
    _service: Option<Arc<Service>>,
    _peer: Option<Arc<Workload>>,
}

/// The texts of an identity.
#[derive(Debug)]
struct Texts {
    principal: Box<str>,
    host: Box<str>,
    special: Option<&'static str>,
    custom: Box<[String]>,
}

impl Texts {
    fn of(identity: &Identity<'_>) -> Self {
        let &Identity { peer_principal, host, special, custom, .. } = identity;
        Self { principal: peer_principal.into(), host: host.into(), special, custom: custom.into() }
    }

    fn are_of(&self, identity: &Identity<'_>) -> bool {
        *self.principal == *identity.peer_principal
            && *self.host == *identity.host
            && self.special == identity.special
            && *self.custom == *identity.custom
    }
}

impl<H> HandleCache<H> {
    pub(super) fn new() -> Self {
        Self { entries: RwLock::default() }
    }

    /// Calls `record` with the handles of `identity`, which `make` creates the first time.
    pub(super) fn with(&self, identity: &Identity<'_>, make: impl FnOnce() -> H, record: impl FnOnce(&H)) {
        let key = CacheKey::of(identity);
        {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = entries.get(&key).filter(|entry| entry.texts.are_of(identity)) {
                // Most often it is set: a store would make the other workers fetch the cache line again.
                if !entry.used.load(Ordering::Relaxed) {
                    entry.used.store(true, Ordering::Relaxed);
                }
                return record(&entry.handles);
            }
        }
        let handles = make();
        record(&handles);
        let entry = Entry {
            handles,
            used: AtomicBool::new(true),
            texts: Texts::of(identity),
            _service: identity.service.cloned(),
            _peer: identity.peer.cloned(),
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CAPACITY {
            entries.retain(|_, entry| std::mem::take(entry.used.get_mut()));
        }
        if entries.len() >= CAPACITY {
            entries.clear();
        }
        entries.insert(key, entry);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.read().unwrap().len()
    }
}

impl CacheKey {
    fn of(identity: &Identity<'_>) -> Self {
        let mut texts = Mixer::default();
        texts.write(identity.peer_principal.as_bytes());
        if identity.service.is_none() {
            texts.write(identity.host.as_bytes());
            texts.write(identity.special.unwrap_or_default().as_bytes());
        }
        for value in identity.custom {
            texts.write(value.as_bytes());
        }
        Self {
            service: identity.service.map_or(0, |service| Arc::as_ptr(service).addr()),
            peer: identity.peer.map_or(0, |peer| Arc::as_ptr(peer).addr()),
            texts: texts.finish(),
            grpc: match identity.grpc {
                None => 0,
                Some(None) => 1,
                Some(Some(status)) => 2 + u64::from(status),
            },
            flags: identity.flags,
            response_code: identity.response_code,
            has_local_principal: identity.local_principal.is_some(),
        }
    }
}

/// A hash of a handful of integers in a handful of instructions. A flood of collisions gains an attacker nothing: the cache
/// is small, and who can choose principals holds the CA.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        // The table takes its index from the low bits, and multiplication carries upwards only.
        self.0 ^ (self.0 >> 32)
    }
}
