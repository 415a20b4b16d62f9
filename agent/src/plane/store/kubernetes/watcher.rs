//! Keeping a [`Cache`] up to date: a list, then what changes after it, and both again when the API server was away or remembers
//! no longer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::core::WatchEvent;
use tokio::time::{sleep, timeout};

use super::cache::{Cache, Item, MAX_OBJECTS};
use super::client::{ApiServer, CallError, Kind, custom, is_too_old};
use crate::identity::Backoff;

/// How long one watch lasts.
const WATCH_SECONDS: u32 = 290;
/// Longest silence of a watch: the API server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// Between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Keeps the objects of one kind, of one namespace or of all.
pub(super) struct Watcher<S: Kind> {
    pub(super) server: ApiServer,
    pub(super) namespace: Option<String>,
    pub(super) cache: Arc<Cache<S>>,
}

/// How a watch ended.
enum End {
    /// As it should: it can be continued.
    Continue,
    /// The version is too old: list again.
    TooOld,
    Failed(CallError),
}

impl<S: Kind> Watcher<S> {
    /// Never returns.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        // Where the next watch begins; `None` is with a list.
        let mut version = None;
        loop {
            match self.follow(&mut version, &mut backoff).await {
                // Even so not at once: somebody between us may close every watch as soon as it begins.
                End::Continue => {}
                End::TooOld => version = None,
                End::Failed(error) => self.lost(&error),
            }
            sleep(backoff.next_wait()).await;
        }
    }

    async fn follow(&self, version: &mut Option<String>, backoff: &mut Backoff) -> End {
        let place = custom::<S>(self.namespace.as_deref());
        let from = match version.clone() {
            Some(version) => version,
            None => match self.server.list::<Item<S>>(&place, MAX_OBJECTS).await {
                Ok((items, listed)) => {
                    items.iter().for_each(warn_unreadable);
                    self.cache.replace(items, &listed);
                    self.live();
                    version.insert(listed).clone()
                }
                Err(error) => return End::Failed(error),
            },
        };
        let events = match self.server.watch::<Item<S>>(&place, &from, WATCH_SECONDS).await {
            Ok(events) => events,
            Err(CallError::Status(status)) if is_too_old(&status) => return End::TooOld,
            Err(error) => return End::Failed(error),
        };
        self.live();
        let mut events = pin!(events);
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(None) => return End::Continue,
                Ok(Some(Err(CallError::Status(status)))) if is_too_old(&status) => return End::TooOld,
                Ok(Some(Err(error))) => return End::Failed(error),
                Err(_) => return End::Failed(CallError::Unreachable(format!("nothing heard for {SILENCE:?}"))),
            };
            backoff.reset();
            match event {
                WatchEvent::Added(item) | WatchEvent::Modified(item) => {
                    *version = Some(item.version().to_owned());
                    warn_unreadable(&item);
                    self.cache.observe(item);
                }
                WatchEvent::Deleted(item) => {
                    *version = Some(item.version().to_owned());
                    self.cache.observe_end(&item);
                }
                WatchEvent::Bookmark(bookmark) => *version = Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) if is_too_old(&status) => return End::TooOld,
                WatchEvent::Error(status) => return End::Failed(CallError::Status(status)),
            }
        }
    }

    fn live(&self) {
        if self.cache.live() {
            tracing::info!(kind = S::KIND, namespace = self.namespace, "the API server tells of changes");
        }
    }

    fn lost(&self, error: &CallError) {
        if self.cache.lost(error.to_string()) {
            tracing::warn!(kind = S::KIND, namespace = self.namespace, "changes are unknown until the next answer: {error}");
        }
    }
}

fn warn_unreadable<S: Kind>(item: &Item<S>) {
    if let Err(error) = item.read() {
        tracing::warn!("{error}");
    }
}
