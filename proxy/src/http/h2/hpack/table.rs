//! The dynamic table: entries over one arena, the newest first.

use std::collections::VecDeque;

use super::OVERHEAD;

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    name: usize,
    value: usize,
    tags: [u32; 2],
}

/// Bytes and entries together never exceed twice the size that was agreed on.
#[derive(Debug, Default)]
pub(super) struct Table {
    arena: Vec<u8>,
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    /// Size that entries may take.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Changes the size; entries that no longer fit are gone.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(0);
    }

    fn evict(&mut self, wanted: usize) {
        while self.size + wanted > self.max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.name + oldest.value + OVERHEAD;
        }
    }

    /// Adds an entry, with two words of the caller's. One that is larger than the table empties it.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], tags: [u32; 2]) {
        let wanted = name.len() + value.len() + OVERHEAD;
        self.evict(wanted);
        if wanted > self.max {
            return;
        }
        if self.arena.len() + wanted > 2 * self.max {
            self.compact();
        }
        let start = self.arena.len();
        self.arena.extend_from_slice(name);
        self.arena.extend_from_slice(value);
        self.entries.push_front(Entry { start, name: name.len(), value: value.len(), tags });
        self.size += wanted;
    }

    /// Moves what lives to the front of the arena.
    fn compact(&mut self) {
        let live = self.entries.back().map_or(self.arena.len(), |oldest| oldest.start);
        self.arena.copy_within(live.., 0);
        self.arena.truncate(self.arena.len() - live);
        for entry in &mut self.entries {
            entry.start -= live;
        }
    }

    /// Name, value and first word of an entry; zero is the newest.
    pub(super) fn get(&self, at: usize) -> Option<(&[u8], &[u8], u32)> {
        let entry = self.entries.get(at)?;
        let (name, value) = self.arena[entry.start..].split_at(entry.name);
        Some((name, &value[..entry.value], entry.tags[0]))
    }

    /// The newest entry for which `matches` holds, of those whose word `which` is `tag`.
    pub(super) fn find(&self, which: usize, tag: u32, matches: impl Fn(&[u8], &[u8]) -> bool) -> Option<usize> {
        self.entries.iter().enumerate().find_map(|(at, entry)| {
            let same = entry.tags[which] == tag && self.get(at).is_some_and(|(name, value, _)| matches(name, value));
            same.then_some(at)
        })
    }
}
