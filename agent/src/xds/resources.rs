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
use super::table::{Opened, Table};
use crate::translate::envoy::Rejected;

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
        let same = |current: &Resource<config::Cluster>, value: &config::Cluster| *current.get() == *value;
        let (name, hash, value) = match self.clusters.open(bytes, named, same)? {
            Opened::Same(name) => return Ok((name, false)),
            Opened::New { name, hash, value } => (name, hash, value),
        };
        let packed = self.originals.accept(Kind::Cluster, &name, bytes);
        // What a cluster of this name asks for, and for how long, is known without looking at it.
        let is_plain = matches!(&value.discovery, ClusterDiscovery::Eds(service) if **service == *name)
            && value.initial_fetch_timeout.is_none()
            && may_wait(&value);
        self.clusters.put(Arc::clone(&name), hash, if is_plain { Resource::packed(packed) } else { value.into() });
        Ok((name, true))
    }

    fn take_endpoints(&mut self, bytes: &[u8], named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        let same =
            |current: &Resource<config::ClusterLoadAssignment>, value: &config::ClusterLoadAssignment| *current.get() == *value;
        let (mut name, hash) = match self.endpoints.open(bytes, named, same)? {
            Opened::Same(name) => return Ok((name, false)),
            Opened::New { name, hash, .. } => (name, hash),
        };
        if let Some(cluster) = self.clusters.name(&name) {
            // One text for both.
            name = Arc::clone(cluster);
        }
        let packed = self.originals.accept(Kind::Endpoints, &name, bytes);
        self.endpoints.put(Arc::clone(&name), hash, Resource::packed(packed));
        Ok((name, true))
    }

    fn take_listener(&mut self, bytes: &[u8], named: Option<&str>) -> Result<Taken, Vec<Rejected>> {
        let same = |current: &Arc<config::Listener>, value: &config::Listener| **current == *value;
        let (name, hash, value) = match self.listeners.open(bytes, named, same)? {
            Opened::Same(name) => return Ok((name, false)),
            Opened::New { name, hash, value } => (name, hash, value),
        };
        self.originals.accept(Kind::Listener, &name, bytes);
        self.listeners.put(Arc::clone(&name), hash, Arc::new(value));
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
                if existed {
                    self.removed.insert(name.into(), now);
                }
                existed
            }
            // A cluster that stays has no endpoints from now on; to wait for some would keep the old ones alive.
            Kind::Endpoints => {
                let existed = self.endpoints.remove(name);
                if existed {
                    self.endpoints.stand_in(name.into(), Resource::default());
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
        let is_missing = |name: &Arc<str>| match kind {
            Kind::Endpoints => self.endpoints.get(name).is_none(),
            _ => self.routes.get(name).is_none(),
        };
        let missing: Vec<_> = wanted.into_iter().filter(is_missing).collect();
        if missing.is_empty() {
            return;
        }
        let timeouts = self.fetch_timeouts(kind);
        for name in missing {
            let until = now + timeouts.get(&name).copied().unwrap_or(INITIAL_FETCH_TIMEOUT);
            self.missing.entry((kind, name)).or_insert(until);
        }
    }

    /// Those that are configured, by what is waited for; where several say one, the shortest.
    fn fetch_timeouts(&self, kind: Kind) -> BTreeMap<Arc<str>, Duration> {
        let mut timeouts = BTreeMap::new();
        let mut add = |name: Option<Arc<str>>, timeout: Option<Duration>| {
            if let (Some(name), Some(timeout)) = (name, timeout) {
                let shortest = timeouts.entry(name).or_insert(timeout);
                *shortest = timeout.min(*shortest);
            }
        };
        match kind {
            Kind::Endpoints => {
                for (name, cluster) in self.clusters.iter() {
                    add(eds_service(name, cluster), cluster.whole().and_then(|whole| whole.initial_fetch_timeout));
                }
            }
            _ => {
                for manager in self.listeners.iter().flat_map(|(_, listener)| managers(listener)) {
                    add(named(manager).map(Into::into), manager.initial_fetch_timeout);
                }
            }
        }
        timeouts
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
