//! Peers that have introduced themselves before: few of them, in the same bytes each time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::message;
use crate::config::Workload;

/// Peers remembered, as many as in Envoy's filter, and bytes of what they said; then a quarter is forgotten.
const MAX_PEERS: usize = 500;
const MAX_BYTES: usize = 1 << 20;

/// The peers that a worker knows. The same bytes give the same [`Arc`] for as long as they are remembered, by which metrics tell
/// peers apart. Found by all that was said, not by the id beside it as in Envoy: nobody speaks for another.
#[derive(Debug, Default)]
pub struct Known {
    headers: Memory,
    preambles: Memory,
}

#[derive(Debug, Default)]
struct Memory(RefCell<Entries>);

#[derive(Debug, Default)]
struct Entries {
    peers: HashMap<Box<[u8]>, Arc<Workload>, RandomState>,
    bytes: usize,
}

impl Known {
    /// The peer that a value of `x-envoy-peer-metadata` speaks of.
    pub fn by_header(&self, value: &[u8]) -> Option<Arc<Workload>> {
        self.headers.recall(value, message::from_header)
    }

    /// The peer that the metadata of a preamble speaks of.
    pub fn by_preamble(&self, value: &[u8]) -> Option<Arc<Workload>> {
        self.preambles.recall(value, message::from_preamble)
    }
}

impl Memory {
    fn recall(&self, said: &[u8], decode: impl FnOnce(&[u8]) -> Option<Workload>) -> Option<Arc<Workload>> {
        let mut entries = self.0.borrow_mut();
        if let Some(peer) = entries.peers.get(said) {
            return Some(peer.clone());
        }
        let peer = Arc::new(decode(said)?);
        entries.remember(said, peer.clone());
        Some(peer)
    }
}

impl Entries {
    fn remember(&mut self, said: &[u8], peer: Arc<Workload>) {
        if self.peers.len() >= MAX_PEERS || self.bytes + said.len() > MAX_BYTES {
            let mut place = 0_usize;
            self.peers.retain(|_, _| {
                place += 1;
                !place.is_multiple_of(4)
            });
            self.bytes = self.peers.keys().map(|said| said.len()).sum();
        }
        self.bytes += said.len();
        self.peers.insert(said.into(), peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(said: &[u8]) -> Option<Workload> {
        (said != b"nonsense").then(|| Workload { name: String::from_utf8_lossy(said).into_owned(), ..Workload::default() })
    }

    #[test]
    fn the_same_words_are_the_same_peer() {
        let memory = Memory::default();
        let first = memory.recall(b"ratings", decode).unwrap();
        let again = memory.recall(b"ratings", |_| panic!("decoded twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert!(memory.recall(b"nonsense", decode).is_none());
        assert_eq!(memory.0.borrow().peers.len(), 1, "nonsense is not remembered");
    }

    #[test]
    fn memory_is_bounded_in_peers_and_in_bytes() {
        let memory = Memory::default();
        for peer in 0..10 * MAX_PEERS {
            memory.recall(peer.to_string().as_bytes(), decode).unwrap();
        }
        let entries = memory.0.borrow();
        assert!(entries.peers.len() <= MAX_PEERS, "{}", entries.peers.len());
        assert_eq!(entries.bytes, entries.peers.keys().map(|said| said.len()).sum::<usize>());
        drop(entries);
        for peer in 0..200 {
            memory.recall(format!("{peer:016384}").as_bytes(), decode).unwrap();
        }
        assert!(memory.0.borrow().bytes <= MAX_BYTES);
    }
}
