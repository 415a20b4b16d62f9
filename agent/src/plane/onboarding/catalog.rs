//! What workloads are told of each other where no istiod does: the Istio YAML of the plane's folder, and an entry for everyone that
//! is there and healthy.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use tokio::time::sleep;

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
/// Where entries seem to come from, for messages.
const NAME: &str = "registered-workloads.yaml";

impl Onboarding {
    /// Keeps what workloads are told up to date; never returns.
    pub(super) async fn keep_telling(&self) -> Infallible {
        let Some(store) = self.inputs.clone() else { return std::future::pending().await };
        let (mut objects, mut streams) = (self.store.changes(), self.streams.changes());
        loop {
            let bytes = self.tell(&store).await;
            // All of it goes to everybody: the more there is and the more there are, the more changes go together.
            let (held, lost) = self.streams.counts();
            let sending = Duration::try_from_secs_f64(bytes as f64 * held as f64 / BYTES_PER_SECOND).unwrap_or(LONGEST_PAUSE);
            sleep(sending.clamp(PAUSE, LONGEST_PAUSE)).await;
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

    /// Publishes what is to be told now, if it has changed; its size.
    pub(super) async fn tell(&self, store: &EmbeddedStore) -> usize {
        let entries = self.store.entries(None).await.unwrap_or_default();
        let inputs = store.inputs();
        let mut documents = inputs.documents.clone();
        let there = |entry: &&WorkloadEntry| {
            let key = entry.key();
            is_healthy(entry) && self.is_there(&key) && !inputs.entries.contains(&key)
        };
        let yaml: Vec<_> = entries.iter().filter(there).filter_map(written).collect();
        documents.push(proto::Document { name: NAME.to_owned(), yaml: yaml.join("\n---\n") });
        let bytes: usize = documents.iter().map(|document| document.yaml.len()).sum();
        if bytes > MAX_BYTES {
            tracing::error!(bytes, limit = MAX_BYTES, "too much to tell workloads of each other; they keep what they know");
            return bytes;
        }
        let version = version(&documents);
        self.documents.send_if_modified(|current| {
            let same = current.as_ref().is_some_and(|current| current.version == version);
            if !same {
                tracing::debug!(version, bytes, workloads = yaml.len(), "workloads are told of each other");
                *current = Some(Arc::new(proto::Documents { version, documents }));
            }
            !same
        });
        bytes
    }

    /// Whether a workload holds its stream, or may soon do so again.
    fn is_there(&self, name: &ObjectKey) -> bool {
        let Some(lost) = self.streams.lost_since(name) else { return true };
        let now = self.clock.now();
        let started = self.streams.started();
        now < lost + self.settings.disconnect_grace || lost == started && now < started + self.settings.start_grace
    }
}

/// The entry as somebody could have written it: JSON is YAML.
fn written(entry: &WorkloadEntry) -> Option<String> {
    let mut metadata = ObjectMeta::new(&entry.key());
    metadata.labels.clone_from(&entry.metadata.labels);
    serde_json::to_string(&WorkloadEntry::new(metadata, entry.spec.clone())).ok()
}

fn version(documents: &[proto::Document]) -> String {
    let mut context = Context::new(&SHA256);
    for document in documents {
        for text in [&document.name, &document.yaml] {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
    }
    HEXLOWER.encode(&context.finish().as_ref()[..16])
}
