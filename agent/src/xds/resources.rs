//! What the control plane has sent, translated, and what of it may be served.
//!
//! A resource is translated once: the same bytes sent again, which istiod does at every push, cost a hash and a comparison. Of most
//! resources the translation is not even kept, only the bytes, packed: a mesh has thousands of services, and a sidecar talks to a few.
//! [`Resources::publish`] decides what is *warm*: a cluster once its endpoints have come, a listener once its routes have, routes
//! once every cluster has. Until then the version before stays, so that no request meets a half of a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Name;
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config::{self, ClusterDiscovery, NetworkFilter, Resource, RouteSource, Snapshot};
use skiff_proxy::upstream::may_wait;
use xxhash_rust::xxh64::xxh64;

use super::originals::Originals;
use super::packed::Packer;
use super::routes::{self, Routes};
use crate::translate::envoy::Rejected;
use crate::translate::envoy::model::{self, Model};

/// Endpoints and routes that have not come after this are taken as not existing (Envoy `initial_fetch_timeout`), unless their cluster
/// or listener says otherwise. istiod says 0, for Envoy no limit: one cluster without endpoints would hold up every listener.
pub(super) const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// A cluster that was removed serves on until the routes that named it are replaced, but no longer than this.
pub(super) const REMOVAL_DELAY: Duration = Duration::from_secs(1);

/// A type of resource, in the order in which a client asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];

    /// `type.googleapis.com/…`.
    pub fn type_url(self) -> String {
        match self {
            Self::Cluster => Cluster::type_url(),
            Self::Endpoints => ClusterLoadAssignment::type_url(),
            Self::Listener => Listener::type_url(),
            Self::Routes => RouteConfiguration::type_url(),
        }
    }

    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// What operators call it: `CDS`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Listener => "LDS",
            Self::Routes => "RDS",
        }
    }

    /// Whether all resources are asked for rather than some by name.
    pub fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// Resources by name.
#[derive(Debug)]
struct Table<T> {
    entries: BTreeMap<Arc<str>, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    /// Of the bytes that were accepted last; `None` for one that only stands in.
    hash: Option<u64>,
    value: T,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    fn get(&self, name: &str) -> Option<&T> {
        self.entries.get(name).map(|entry| &entry.value)
    }

    /// Whether these bytes were accepted last.
    fn has(&self, name: &str, hash: u64) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.hash == Some(hash))
    }

    fn put(&mut self, name: Arc<str>, hash: u64, value: T) {
        self.entries.insert(name, Entry { hash: Some(hash), value });
    }

    /// Other bytes that say the same.
    fn confirm(&mut self, name: &str, hash: u64) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.hash = Some(hash);
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        self.entries.remove(name).is_some_and(|entry| entry.hash.is_some())
    }

    fn retain(&mut self, names: &BTreeSet<Arc<str>>) {
        self.entries.retain(|name, _| names.contains(name));
    }

    fn names(&self) -> BTreeSet<Arc<str>> {
        self.entries.iter().filter(|(_, entry)| entry.hash.is_some()).map(|(name, _)| Arc::clone(name)).collect()
    }

    fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.entries.iter().map(|(name, entry)| (name, &entry.value))
    }
}

/// The name of a resource that was taken over, and whether it says something new.
type Taken = (Arc<str>, bool);

/// Everything that has been accepted, and what of it was published last.
#[derive(Debug, Default)]
pub struct Resources {
    clusters: Table<Resource<config::Cluster>>,
    endpoints: Table<Resource<config::ClusterLoadAssignment>>,
    listeners: Table<Arc<config::Listener>>,
    routes: Table<Routes>,
    packer: Packer,
    /// Until when endpoints and routes that are wanted and have not come are waited for.
    missing: BTreeMap<(Kind, Arc<str>), Instant>,
    /// How long endpoints are waited for, where their cluster says so.
    fetch_timeouts: BTreeMap<Arc<str>, Duration>,
    /// When clusters were removed that are still served.
    removed: BTreeMap<Arc<str>, Instant>,
    published: Arc<Snapshot>,
    originals: Originals,
}

/// What may be served now.
#[derive(Debug)]
pub struct Publication {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Whether nothing is waited for.
    pub is_complete: bool,
    /// When to ask again although nothing came: something is waited for, or is to be removed.
    pub next: Option<Instant>,
}

impl Resources {
    /// What was accepted and refused, as it was sent.
    pub fn originals(&self) -> &Originals {
        &self.originals
    }

    /// Takes one resource over; `named` is the name beside it, which delta responses have. Returns its name and whether it
    /// says something new.
    ///
    /// # Errors
    /// Every field that cannot be honoured; the version before stays.
    pub fn take(&mut self, kind: Kind, any: &Any, named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        if any.type_url != kind.type_url() {
            let reason = format!("expected a {}, found a {:?}", kind.type_url(), any.type_url);
            let name = named.unwrap_or_default().to_owned();
            return Err(vec![Rejected { type_url: kind.type_url(), name, path: String::new(), reason }]);
        }
        let bytes = any.value.as_slice();
        let outcome = match kind {
            Kind::Cluster => self.take_cluster(bytes, named),
            Kind::Endpoints => self.take_endpoints(bytes, named),
            Kind::Listener => self.take_listener(bytes, named),
            Kind::Routes => self.take_routes(bytes, named),
        };
        match &outcome {
            Ok((name, changed)) => {
                self.missing.remove(&(kind, Arc::clone(name)));
                self.removed.remove(name);
                if !changed {
                    self.originals.confirm(kind, name);
                }
            }
            Err(all) => {
                let name = all.first().map(|rejected| rejected.name.as_str()).or(named).unwrap_or_default();
                let reasons: Vec<String> = all.iter().map(ToString::to_string).collect();
                self.originals.refuse(kind, name, bytes, reasons.join("\n"));
            }
        }
        outcome
    }

    fn take_cluster(&mut self, bytes: &[u8], named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        let table = &mut self.clusters;
        let New { name, hash, value } = match open::<config::Cluster, _>(table, bytes, named)? {
            Opened::Same(name) => return Ok((name, false)),
            Opened::New(new) => new,
        };
        if table.get(&name).is_some_and(|current| *current.get() == value) {
            table.confirm(&name, hash);
            return Ok((name, false));
        }
        if let ClusterDiscovery::Eds(service) = &value.discovery {
            match value.initial_fetch_timeout {
                Some(timeout) => _ = self.fetch_timeouts.insert(service.as_str().into(), timeout),
                None => _ = self.fetch_timeouts.remove(service.as_str()),
            }
        }
        let packed = self.originals.accept(Kind::Cluster, &name, bytes);
        // What a cluster of this name asks for is known without looking at it.
        let is_plain = matches!(&value.discovery, ClusterDiscovery::Eds(service) if **service == *name) && may_wait(&value);
        table.put(Arc::clone(&name), hash, if is_plain { Resource::packed(packed) } else { value.into() });
        Ok((name, true))
    }

    fn take_endpoints(&mut self, bytes: &[u8], named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        let table = &mut self.endpoints;
        let New { mut name, hash, value } = match open::<config::ClusterLoadAssignment, _>(table, bytes, named)? {
            Opened::Same(name) => return Ok((name, false)),
            Opened::New(new) => new,
        };
        if table.get(&name).is_some_and(|current| *current.get() == value) {
            table.confirm(&name, hash);
            return Ok((name, false));
        }
        if let Some((cluster, _)) = self.clusters.entries.get_key_value(&name) {
            // One text for both.
            name = Arc::clone(cluster);
        }
        let packed = self.originals.accept(Kind::Endpoints, &name, bytes);
        table.put(Arc::clone(&name), hash, Resource::packed(packed));
        Ok((name, true))
    }

    fn take_listener(&mut self, bytes: &[u8], named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        let (table, hash) = (&mut self.listeners, xxh64(bytes, 0));
        if let Some(name) = named.filter(|&name| table.has(name, hash)) {
            return Ok((name.into(), false));
        }
        let message = model::decode(bytes, named, |message: &Listener| &message.name)?;
        let name: Arc<str> = message.name.as_str().into();
        if table.has(&name, hash) {
            return Ok((name, false));
        }
        let value = model::listener(&message, bytes)?;
        if table.get(&name).is_some_and(|current| **current == value) {
            table.confirm(&name, hash);
            return Ok((name, false));
        }
        self.originals.accept(Kind::Listener, &name, bytes);
        table.put(Arc::clone(&name), hash, Arc::new(value));
        Ok((name, true))
    }

    fn take_routes(&mut self, bytes: &[u8], named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        let (table, hash) = (&mut self.routes, xxh64(bytes, 0));
        if let Some(name) = named.filter(|&name| table.has(name, hash)) {
            return Ok((name.into(), false));
        }
        let sent = routes::Sent::read(bytes, named)?;
        let name: Arc<str> = sent.name().into();
        if table.has(&name, hash) {
            return Ok((name, false));
        }
        let current = table.get(&name);
        let routes = sent.translate(current, &mut self.packer)?;
        if current.is_some_and(|current| *current.config == *routes.config) {
            table.confirm(&name, hash);
            return Ok((name, false));
        }
        self.originals.accept(Kind::Routes, &name, bytes);
        table.put(Arc::clone(&name), hash, routes);
        Ok((name, true))
    }

    /// Forgets a resource. True when there was one.
    pub fn remove(&mut self, kind: Kind, name: &str, now: Instant) -> bool {
        self.originals.remove(kind, name);
        match kind {
            Kind::Cluster => {
                let existed = self.clusters.remove(name);
                self.fetch_timeouts.remove(name);
                if existed {
                    self.removed.insert(name.into(), now);
                }
                existed
            }
            // A cluster that stays has no endpoints from now on; to wait for some would keep the old ones alive.
            Kind::Endpoints => {
                let existed = self.endpoints.remove(name);
                if existed {
                    self.endpoints.entries.insert(name.into(), Entry { hash: None, value: Resource::default() });
                }
                existed
            }
            Kind::Listener => self.listeners.remove(name),
            Kind::Routes => self.routes.remove(name),
        }
    }

    /// Names of the resources that were accepted.
    pub fn names(&self, kind: Kind) -> BTreeSet<Arc<str>> {
        match kind {
            Kind::Cluster => self.clusters.names(),
            Kind::Endpoints => self.endpoints.names(),
            Kind::Listener => self.listeners.names(),
            Kind::Routes => self.routes.names(),
        }
    }

    /// The endpoints or routes that the accepted clusters or listeners ask for by name.
    pub fn wanted(&self, kind: Kind) -> BTreeSet<Arc<str>> {
        match kind {
            Kind::Endpoints => self.clusters.iter().filter_map(|(name, cluster)| eds_service(name, cluster)).collect(),
            Kind::Routes => self.listeners.iter().flat_map(|(_, listener)| named_routes(listener)).map(Into::into).collect(),
            Kind::Cluster | Kind::Listener => BTreeSet::new(),
        }
    }

    /// Endpoints and routes that nothing asks for any more are forgotten.
    pub fn retain_wanted(&mut self, kind: Kind, wanted: &BTreeSet<Arc<str>>) {
        match kind {
            Kind::Endpoints => self.endpoints.retain(wanted),
            Kind::Routes => self.routes.retain(wanted),
            Kind::Cluster | Kind::Listener => return,
        }
        self.originals.retain(kind, |name| wanted.contains(name));
        self.missing.retain(|(of, name), _| *of != kind || wanted.contains(name));
    }

    /// Whether every cluster has its endpoints, or has waited long enough for them.
    pub fn clusters_are_warm(&mut self, now: Instant) -> bool {
        let wanted = self.wanted(Kind::Endpoints);
        self.note_missing(Kind::Endpoints, wanted, now);
        !self.missing.iter().any(|((kind, _), until)| *kind == Kind::Endpoints && now < *until)
    }

    fn note_missing(&mut self, kind: Kind, wanted: BTreeSet<Arc<str>>, now: Instant) {
        for name in wanted {
            let present = match kind {
                Kind::Endpoints => self.endpoints.entries.contains_key(&name),
                _ => self.routes.entries.contains_key(&name),
            };
            if !present {
                let until = now + self.fetch_timeout(kind, &name).unwrap_or(INITIAL_FETCH_TIMEOUT);
                self.missing.entry((kind, name)).or_insert(until);
            }
        }
    }

    /// As configured; where several listeners name the same routes, the shortest.
    fn fetch_timeout(&self, kind: Kind, name: &str) -> Option<Duration> {
        match kind {
            Kind::Endpoints => self.fetch_timeouts.get(name).copied(),
            _ => {
                let managers = self.listeners.iter().flat_map(|(_, listener)| managers(listener));
                let named = managers.filter(|manager| named(manager) == Some(name));
                named.filter_map(|manager| manager.initial_fetch_timeout).min()
            }
        }
    }

    /// The configuration as far as it is warm.
    pub fn publish(&mut self, version: &str, now: Instant) -> Publication {
        let clusters_warm = self.clusters_are_warm(now);
        let wanted = self.wanted(Kind::Routes);
        self.note_missing(Kind::Routes, wanted, now);
        let waits = |kind: Kind, name: &Arc<str>| self.missing.get(&(kind, Arc::clone(name))).is_some_and(|until| now < *until);
        let before = Arc::clone(&self.published);
        let mut snapshot = Snapshot { version: version.to_owned(), ..Snapshot::default() };
        for (name, cluster) in self.clusters.iter() {
            let cold =
                !self.missing.is_empty() && eds_service(name, cluster).is_some_and(|service| waits(Kind::Endpoints, &service));
            let serves = if cold { before.clusters.get(name) } else { Some(cluster) };
            snapshot.clusters.extend(serves.map(|cluster| (Arc::clone(name), cluster.clone())));
        }
        if clusters_warm {
            for (name, listener) in self.listeners.iter() {
                let cold = named_routes(listener).any(|routes| waits(Kind::Routes, &routes.into()));
                let serves = if cold { before.listeners.get(&**name) } else { Some(listener) };
                snapshot.listeners.extend(serves.map(|listener| (name.to_string(), Arc::clone(listener))));
            }
            snapshot.routes = self.routes.iter().map(|(name, routes)| (name.to_string(), Arc::clone(&routes.config))).collect();
        } else {
            snapshot.listeners.clone_from(&before.listeners);
            snapshot.routes.clone_from(&before.routes);
        }
        // A listener that serves on until its new routes are there keeps its old ones; like Envoy, one whose routes are taken away.
        for name in snapshot.listeners.values().flat_map(|listener| named_routes(listener)) {
            if let (None, Some(routes)) = (snapshot.routes.get(name), before.routes.get(name)) {
                snapshot.routes.insert(name.to_owned(), routes.clone());
            }
        }
        let routes_changed = snapshot.routes != before.routes || snapshot.listeners != before.listeners;
        self.removed.retain(|name, since| {
            let serves_on = !routes_changed && now < *since + REMOVAL_DELAY;
            if serves_on && let Some(cluster) = before.clusters.get(name) {
                snapshot.clusters.insert(Arc::clone(name), cluster.clone());
            }
            serves_on
        });
        for service in snapshot.clusters.iter().filter_map(|(name, cluster)| eds_service(name, cluster)) {
            let endpoints = self.endpoints.get(&service).or_else(|| before.endpoints.get(&service));
            let endpoints = endpoints.cloned();
            snapshot.endpoints.extend(endpoints.map(|endpoints| (service, endpoints)));
        }
        let fetches = self.missing.values().copied().filter(|until| *until > now);
        let mut fetches = fetches.peekable();
        let is_complete = fetches.peek().is_none();
        let next = fetches.chain(self.removed.values().map(|since| *since + REMOVAL_DELAY)).min();
        let snapshot = Arc::new(snapshot);
        self.published = Arc::clone(&snapshot);
        Publication { snapshot, is_complete, next }
    }
}

/// A resource that is not the one that was accepted last.
struct New<T> {
    name: Arc<str>,
    hash: u64,
    value: T,
}

enum Opened<T> {
    /// These very bytes were accepted last.
    Same(Arc<str>),
    New(New<T>),
}

fn open<T: Model, U>(table: &Table<U>, bytes: &[u8], named: Option<&str>) -> Result<Opened<T>, Vec<Rejected>> {
    let hash = xxh64(bytes, 0);
    if let Some(name) = named.filter(|&name| table.has(name, hash)) {
        return Ok(Opened::Same(name.into()));
    }
    let message = model::decode(bytes, named, T::name)?;
    let name: Arc<str> = T::name(&message).into();
    if table.has(&name, hash) {
        return Ok(Opened::Same(name));
    }
    let value = model::translate(&message, bytes, &name, T::translate)?;
    Ok(Opened::New(New { name, hash, value }))
}

/// The name under which a cluster's endpoints are asked for. A packed one is called like its service.
fn eds_service(name: &Arc<str>, cluster: &Resource<config::Cluster>) -> Option<Arc<str>> {
    match cluster.whole().map(|cluster| &cluster.discovery) {
        None => Some(Arc::clone(name)),
        Some(ClusterDiscovery::Eds(service)) if **service == **name => Some(Arc::clone(name)),
        Some(ClusterDiscovery::Eds(service)) => Some(service.as_str().into()),
        Some(_) => None,
    }
}

fn named_routes(listener: &config::Listener) -> impl Iterator<Item = &str> {
    managers(listener).filter_map(named)
}

fn managers(listener: &config::Listener) -> impl Iterator<Item = &config::HttpConnectionManager> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(&**manager),
        NetworkFilter::Tcp(_) => None,
    })
}

fn named(manager: &config::HttpConnectionManager) -> Option<&str> {
    match &manager.routes {
        RouteSource::Named(name) => Some(name),
        RouteSource::Inline(_) => None,
    }
}
