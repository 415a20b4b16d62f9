//! Keys that are fetched from an HTTP server, through a cluster like any request.
//!
//! One fetch at a time for all that use the same keys, and whoever has waited for it takes what came of it. Only a complete `200` with
//! usable keys is one: redirects are not followed, since where they lead to nobody has configured.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::StatusCode;

use super::Counters;
use super::keys::KeySet;
use super::provider::MAX_JWKS;
use crate::config::RemoteJwks;
use crate::http::head::{Known, RequestHead, Scheme};
use crate::http::subrequest::{self, Limits};
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

/// Background fetches begin so long before keys are too old, as in Envoy.
const AHEAD: Duration = Duration::from_secs(5);
/// Background fetches are never nearer to each other.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Keys that are fetched, and the ones that were.
pub struct RemoteKeys {
    config: RemoteJwks,
    cluster: ArcSwapOption<Cluster>,
    current: ArcSwapOption<Fetched>,
    counters: Counters,
    /// Held by who fetches.
    turn: tokio::sync::Mutex<()>,
    /// Fetches that have ended.
    ended: AtomicU64,
}

struct Fetched {
    keys: Arc<KeySet>,
    /// `None` is when others have come.
    expires: Option<Instant>,
}

impl std::fmt::Debug for RemoteKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteKeys").field("config", &self.config).finish_non_exhaustive()
    }
}

/// All remote keys in use: filters of different listeners, and of a listener before and after a change, share them.
#[derive(Default)]
pub struct RemoteKeySets(Mutex<Vec<Weak<RemoteKeys>>>);

impl RemoteKeySets {
    /// The keys of this configuration, asked of `cluster` from now on. `start` is called for new ones that are to be fetched in the
    /// background, with [`RemoteKeys::run`].
    pub(super) fn get(
        &self,
        config: &RemoteJwks,
        cluster: Option<Arc<Cluster>>,
        counters: &Counters,
        start: &dyn Fn(Weak<RemoteKeys>),
    ) -> Arc<RemoteKeys> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|keys| keys.strong_count() > 0);
        if let Some(keys) = all.iter().filter_map(Weak::upgrade).find(|keys| keys.config == *config) {
            keys.cluster.store(cluster);
            return keys;
        }
        let keys = Arc::new(RemoteKeys {
            config: config.clone(),
            cluster: ArcSwapOption::new(cluster),
            current: ArcSwapOption::empty(),
            counters: counters.clone(),
            turn: tokio::sync::Mutex::default(),
            ended: AtomicU64::new(0),
        });
        all.push(Arc::downgrade(&keys));
        if config.async_fetch.is_some() {
            start(Arc::downgrade(&keys));
        }
        keys
    }
}

impl RemoteKeys {
    /// The keys, unless they have to be fetched first.
    pub(super) fn fresh(&self) -> Option<Arc<KeySet>> {
        let current = self.current.load();
        let fetched = current.as_ref()?;
        fetched.expires.is_none_or(|expires| Instant::now() < expires).then(|| fetched.keys.clone())
    }

    /// Fetches the keys, or waits for who does so already; `None` when that has failed.
    pub(super) async fn fetch(&self, pool: &Rc<Pool>) -> Option<Arc<KeySet>> {
        let ended = self.ended.load(Ordering::Acquire);
        let _turn = self.turn.lock().await;
        if self.ended.load(Ordering::Acquire) != ended {
            return self.fresh();
        }
        let fetched = tokio::time::timeout(self.config.timeout, self.attempts(pool)).await;
        let keys = fetched.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        self.ended.fetch_add(1, Ordering::Release);
        match keys {
            Ok(keys) => {
                self.counters.jwks_fetch_success.increment(1);
                let keys = Arc::new(keys);
                let background = self.config.async_fetch.is_some();
                let expires = if background { None } else { Instant::now().checked_add(self.config.cache_duration) };
                self.current.store(Some(Arc::new(Fetched { keys: keys.clone(), expires })));
                Some(keys)
            }
            Err(reason) => {
                self.counters.jwks_fetch_failed.increment(1);
                let RemoteJwks { authority, cluster, .. } = &self.config;
                tracing::warn!(authority, cluster, reason, "JWKS cannot be fetched");
                None
            }
        }
    }

    async fn attempts(&self, pool: &Rc<Pool>) -> Result<KeySet, String> {
        let mut left = self.config.retries;
        let mut interval = self.config.base_interval;
        loop {
            match self.ask(pool).await {
                Err(Failure::Passing(_)) if left > 0 => {
                    left -= 1;
                    tokio::time::sleep(interval.mul_f64(fastrand::f64())).await;
                    interval = (interval * 2).min(self.config.max_interval);
                }
                Ok(keys) => return Ok(keys),
                Err(Failure::Passing(reason) | Failure::Lasting(reason)) => return Err(reason),
            }
        }
    }

    async fn ask(&self, pool: &Rc<Pool>) -> Result<KeySet, Failure> {
        let Some(cluster) = self.cluster.load_full() else {
            return Err(Failure::Lasting("the cluster does not exist".to_owned()));
        };
        let mut head = RequestHead::new();
        head.scheme = if self.config.https { Scheme::Https } else { Scheme::Http };
        head.set_authority(self.config.authority.as_bytes());
        head.set_path(self.config.path.as_bytes());
        // Envoy's word: some servers answer nobody without one.
        head.headers.push_known(Known::UserAgent, b"Go-browser");
        let limits = Limits { timeout: self.config.timeout, max_body: MAX_JWKS };
        let answer = subrequest::send(pool, &cluster, head, Bytes::new(), limits).await;
        let answer = answer.map_err(|error| Failure::Passing(error.to_string()))?;
        match answer.head.status {
            StatusCode::OK => KeySet::parse(&answer.body).map_err(|reason| Failure::Lasting(reason.to_owned())),
            status if status.is_server_error() => Err(Failure::Passing(status.to_string())),
            status => Err(Failure::Lasting(status.to_string())),
        }
    }

    /// Fetches keys before they are needed, as long as somebody uses them.
    pub(crate) async fn run(keys: Weak<Self>, pool: Rc<Pool>) {
        while let Some(keys_now) = keys.upgrade() {
            let again = match (keys_now.fetch(&pool).await, keys_now.config.async_fetch) {
                (None, Some(fetch)) => fetch.failed_refetch_duration,
                _ => keys_now.config.cache_duration.checked_sub(AHEAD).unwrap_or(keys_now.config.cache_duration),
            };
            drop(keys_now);
            tokio::time::sleep(again.max(MIN_INTERVAL)).await;
        }
    }
}

/// Why there are no keys.
enum Failure {
    /// Another attempt may have more luck.
    Passing(String),
    /// None would.
    Lasting(String),
}
