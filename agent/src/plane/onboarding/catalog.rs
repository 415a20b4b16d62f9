//! What workloads are told of each other where no istiod does: the Istio YAML of the plane's folder, and an entry for everyone that
//! is there and healthy.
//!
//! Everybody is told everything, so what a change costs counts: entries are spread over many documents, and a stream is sent only
//! those that are not as it was told before. Who comes back says what it has.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh64::xxh64;

use super::Onboarding;
use super::admission::is_healthy;
use crate::plane::objects::{ObjectKey, ObjectMeta, WorkloadEntry};
use crate::plane::store::EmbeddedStore;

/// Quiet time after a change: workloads come and go together.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked for workloads that have been lost for too long.
const TICK: Duration = Duration::from_secs(1);
/// Bytes a second that all workloads together are sent.
const BYTES_PER_SECOND: f64 = 50e6;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// As a sidecar takes them.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Documents that entries are spread over.
const SPREAD: u64 = 256;
/// Bytes of documents in one message: a stream keeps room for the largest one that it has sent.
const PART: usize = 4 * 1024;

/// Documents by name, shared by all streams, and by versions in which they are the same.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub(super) version: String,
    documents: BTreeMap<String, Arc<str>>,
}

impl Onboarding {
    /// Keeps what workloads are told up to date; never returns.
    pub(super) async fn keep_telling(&self) -> Infallible {
        let Some(store) = self.inputs.clone() else { return std::future::pending().await };
        let (mut objects, mut streams) = (self.store.changes(), self.streams.changes());
        loop {
            let began = Instant::now();
            let bytes = self.tell(&store).await;
            // However many workloads there are, most of the time is left for them.
            let rest = began.elapsed() * 10;
            // It goes to everybody: the more there is and the more there are, the more changes go together.
            let (held, lost) = self.streams.counts();
            let sending = Duration::try_from_secs_f64(bytes as f64 * held as f64 / BYTES_PER_SECOND).unwrap_or(LONGEST_PAUSE);
            sleep(sending.max(rest).clamp(PAUSE, LONGEST_PAUSE)).await;
            tokio::select! {
                _ = objects.changed() => {}
                _ = streams.changed() => {}
                () = sleep(TICK), if lost > 0 || self.clock.now() < self.streams.started() + self.settings.start_grace => {}
            }
            sleep(PAUSE).await;
            objects.mark_unchanged();
            streams.mark_unchanged();
        }
    }

    /// Publishes what is to be told now, if it has changed; the size of what has.
    pub(super) async fn tell(&self, store: &EmbeddedStore) -> usize {
        let entries = self.store.entries(None).await.unwrap_or_default();
        let inputs = store.inputs();
        let there = |entry: &&WorkloadEntry| {
            let key = entry.key();
            is_healthy(entry) && self.is_there(&key) && !inputs.entries.contains(&key)
        };
        let there: Vec<_> = entries.iter().filter(there).collect();
        let before = self.catalog.borrow().clone();
        let catalog = Catalog::of(&inputs.documents, &there, before.as_deref());
        let bytes = catalog.bytes();
        if bytes > MAX_BYTES {
            tracing::error!(bytes, limit = MAX_BYTES, "too much to tell workloads of each other; they keep what they know");
            return 0;
        }
        if before.as_ref().is_some_and(|before| before.version == catalog.version) {
            return 0;
        }
        let changed = catalog.changed(before.as_deref()).map(|(_, yaml)| yaml.len()).sum();
        tracing::debug!(catalog.version, bytes, changed, workloads = there.len(), "workloads are told of each other");
        self.catalog.send_replace(Some(Arc::new(catalog)));
        changed
    }

    /// Whether a workload holds its stream, or may soon do so again.
    fn is_there(&self, name: &ObjectKey) -> bool {
        let Some(lost) = self.streams.lost_since(name) else { return true };
        let now = self.clock.now();
        let started = self.streams.started();
        now < lost + self.settings.disconnect_grace || lost == started && now < started + self.settings.start_grace
    }
}

impl Catalog {
    fn of(written: &[proto::Document], entries: &[&WorkloadEntry], before: Option<&Self>) -> Self {
        let mut texts: BTreeMap<String, String> =
            written.iter().map(|document| (document.name.clone(), document.yaml.clone())).collect();
        for entry in entries {
            let Some(yaml) = as_written(entry) else { continue };
            let text = texts.entry(place(&entry.key())).or_default();
            if !text.is_empty() {
                text.push_str("\n---\n");
            }
            text.push_str(&yaml);
        }
        let share = |(name, text): (String, String)| {
            let same = before.and_then(|before| before.documents.get(&name)).filter(|same| ***same == *text).cloned();
            (name, same.unwrap_or_else(|| text.into()))
        };
        let documents = texts.into_iter().map(share).collect();
        Self { version: version(&documents), documents }
    }

    fn bytes(&self) -> usize {
        self.documents.values().map(|yaml| yaml.len()).sum()
    }

    /// What is not as in `before`.
    fn changed<'a>(&'a self, before: Option<&'a Self>) -> impl Iterator<Item = (&'a String, &'a Arc<str>)> {
        let known = move |name: &str| before.and_then(|before| before.documents.get(name));
        self.documents
            .iter()
            .filter(move |(name, yaml)| known(name).is_none_or(|known| !Arc::ptr_eq(known, yaml) && known != *yaml))
    }

    /// Messages that tell it to a workload which knows `before`.
    pub(super) fn messages<'a>(&'a self, before: Option<&'a Self>) -> impl Iterator<Item = proto::Documents> + 'a {
        let message = move || proto::Documents {
            version: self.version.clone(),
            since: before.map(|before| before.version.clone()).unwrap_or_default(),
            ..proto::Documents::default()
        };
        let mut pieces = self.changed(before).flat_map(|(name, yaml)| pieces(yaml).map(move |piece| (name, piece))).peekable();
        let gone = before.into_iter().flat_map(|before| before.documents.keys());
        let mut removed: Vec<String> = gone.filter(|name| !self.documents.contains_key(*name)).cloned().collect();
        let mut over = false;
        std::iter::from_fn(move || {
            if over {
                return None;
            }
            let mut part = proto::Documents { removed: std::mem::take(&mut removed), ..message() };
            let mut bytes = 0;
            while let Some((name, piece)) = pieces.next_if(|(_, piece)| bytes == 0 || bytes + piece.len() <= PART) {
                bytes += piece.len();
                part.documents.push(proto::Document { name: name.clone(), yaml: piece.to_owned() });
            }
            part.more = pieces.peek().is_some();
            over = !part.more;
            Some(part)
        })
    }
}

/// Pieces of a document, one even if it is empty.
fn pieces(yaml: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(yaml);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (piece, others) = text.split_at(text.floor_char_boundary(PART));
        rest = (!others.is_empty()).then_some(others);
        Some(piece)
    })
}

/// The document of an entry: always the same one. No file of a folder has a name with a slash.
fn place(key: &ObjectKey) -> String {
    format!("registered-workloads/{:02x}.yaml", xxh64(key.to_string().as_bytes(), 0) % SPREAD)
}

/// The entry as somebody could have written it: JSON is YAML.
fn as_written(entry: &WorkloadEntry) -> Option<String> {
    let mut metadata = ObjectMeta::new(&entry.key());
    metadata.labels.clone_from(&entry.metadata.labels);
    serde_json::to_string(&WorkloadEntry::new(metadata, entry.spec.clone())).ok()
}

fn version(documents: &BTreeMap<String, Arc<str>>) -> String {
    let mut context = Context::new(&SHA256);
    for text in documents.iter().flat_map(|(name, yaml)| [name.as_str(), yaml]) {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    HEXLOWER.encode(&context.finish().as_ref()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onboarding::Assembly;
    use crate::plane::objects::WorkloadEntrySpec;

    fn entry(number: usize) -> WorkloadEntry {
        let spec = WorkloadEntrySpec { address: format!("10.0.{}.{}", number / 250, number % 250), ..Default::default() };
        WorkloadEntry::new(ObjectMeta::new(&ObjectKey::new("bookinfo", format!("ratings-{number}"))), spec)
    }

    fn written(yaml: &str) -> Vec<proto::Document> {
        vec![proto::Document { name: "a.yaml".to_owned(), yaml: yaml.to_owned() }]
    }

    #[test]
    fn a_change_is_told_in_small_parts_and_makes_the_same_whole() {
        let all: Vec<_> = (0..2000).map(entry).collect();
        let all: Vec<_> = all.iter().collect();
        let first = Catalog::of(&written(&"é".repeat(PART)), &all, None);
        let mut assembly = Assembly::default();
        let mut put_together = |catalog: &Catalog, before: Option<&Catalog>| {
            let (mut whole, mut messages, mut largest) = (None, 0, 0);
            for part in catalog.messages(before) {
                messages += 1;
                largest = largest.max(part.documents.iter().map(|document| document.yaml.len()).sum());
                assert_eq!(part.more, {
                    whole = assembly.take(part.clone()).unwrap();
                    whole.is_none()
                });
            }
            let whole = whole.unwrap();
            assert!(largest <= PART && whole.len() == catalog.documents.len());
            for (name, yaml) in whole.iter() {
                assert_eq!(*yaml, *catalog.documents[name.to_str().unwrap()]);
            }
            messages
        };
        assert!(put_together(&first, None) > 30);
        // One goes, one comes, and what is written is another.
        let fewer = Catalog::of(&written("two"), &all[1..], Some(&first));
        assert!(put_together(&fewer, Some(&first)) < 5);
        let none = Catalog::of(&[], &[], Some(&fewer));
        assert_eq!(put_together(&none, Some(&fewer)), 1);
        assert_eq!(first.version, Catalog::of(&written(&"é".repeat(PART)), &all, None).version);
    }
}
