//! What the control plane has sent, translated, and what of it may be served.
//!
//! A resource is translated once: the same bytes sent again, which istiod does at every push, cost a hash and a comparison.
//! [`Resources::publish`] decides what is *warm*: a cluster once its endpoints have come, a listener once its routes have, routes
//! once every cluster has. Until then the version before stays, so that no request meets a half of a configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::{Message, Name};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config::{self, ClusterDiscovery, NetworkFilter, RouteSource, Snapshot};
use xxhash_rust::xxh64::xxh64;

use super::originals::Originals;
use crate::translate::envoy::{self, Rejected};

/// Endpoints and routes that have not come after this are taken as not existing (Envoy `initial_fetch_timeout`).
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

/// Resources by name with the hash of the bytes that they were made of.
#[derive(Debug)]
struct Table<T> {
    entries: BTreeMap<String, Arc<T>>,
    hashes: HashMap<String, u64>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), hashes: HashMap::new() }
    }
}

impl<T: PartialEq> Table<T> {
    /// Takes a resource over. `Ok(true)` when it says something new.
    fn take<M: Message + Name + Default>(
        &mut self,
        any: &Any,
        named: Option<&str>,
        name_of: impl Fn(&M) -> &str,
        translate: impl Fn(&M) -> Result<T, Vec<Rejected>>,
    ) -> Result<(String, bool), Vec<Rejected>> {
        let hash = xxh64(&any.value, 0);
        if let Some(name) = named.filter(|&name| self.hashes.get(name) == Some(&hash)) {
            return Ok((name.to_owned(), false));
        }
        let message = M::decode(any.value.as_slice()).map_err(|error| undecodable::<M>(named, &error.to_string()))?;
        let name = name_of(&message).to_owned();
        if let Some(named) = named.filter(|&named| named != name) {
            return Err(undecodable::<M>(Some(named), &format!("holds the resource {name:?}")));
        }
        if self.hashes.get(&name) == Some(&hash) {
            return Ok((name, false));
        }
        let unknown = envoy::unknown_fields(&name, &message, &any.value);
        if !unknown.is_empty() {
            return Err(unknown);
        }
        let value = translate(&message)?;
        self.hashes.insert(name.clone(), hash);
        if self.entries.get(&name).is_some_and(|current| **current == value) {
            return Ok((name, false));
        }
        self.entries.insert(name.clone(), Arc::new(value));
        Ok((name, true))
    }

    fn remove(&mut self, name: &str) -> bool {
        self.hashes.remove(name);
        self.entries.remove(name).is_some()
    }

    fn retain(&mut self, names: &BTreeSet<String>) {
        self.hashes.retain(|name, _| names.contains(name));
        self.entries.retain(|name, _| names.contains(name));
    }

    fn names(&self) -> BTreeSet<String> {
        self.hashes.keys().cloned().collect()
    }
}

fn undecodable<M: Name>(name: Option<&str>, reason: &str) -> Vec<Rejected> {
    let name = name.unwrap_or_default().to_owned();
    vec![Rejected { type_url: M::type_url(), name, path: String::new(), reason: reason.to_owned() }]
}

/// Everything that has been accepted, and what of it was published last.
#[derive(Debug, Default)]
pub struct Resources {
    clusters: Table<config::Cluster>,
    endpoints: Table<config::ClusterLoadAssignment>,
    listeners: Table<config::Listener>,
    routes: Table<config::RouteConfiguration>,
    /// Since when endpoints and routes that are wanted have not come.
    missing: BTreeMap<(Kind, String), Instant>,
    /// When clusters were removed that are still served.
    removed: BTreeMap<String, Instant>,
    published: Snapshot,
    originals: Originals,
}

/// What may be served now.
#[derive(Debug)]
pub struct Publication {
    /// The configuration.
    pub snapshot: Snapshot,
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
    pub fn take(&mut self, kind: Kind, any: &Any, named: Option<&str>) -> Result<(String, bool), Vec<Rejected>> {
        if any.type_url != kind.type_url() {
            let reason = format!("expected a {}, found a {:?}", kind.type_url(), any.type_url);
            let name = named.unwrap_or_default().to_owned();
            return Err(vec![Rejected { type_url: kind.type_url(), name, path: String::new(), reason }]);
        }
        let outcome = match kind {
            Kind::Cluster => self.clusters.take(any, named, |message: &Cluster| &message.name, envoy::cluster),
            Kind::Endpoints => {
                self.endpoints.take(any, named, |message: &ClusterLoadAssignment| &message.cluster_name, envoy::load_assignment)
            }
            Kind::Listener => self.listeners.take(any, named, |message: &Listener| &message.name, envoy::listener),
            Kind::Routes => {
                self.routes.take(any, named, |message: &RouteConfiguration| &message.name, envoy::route_configuration)
            }
        };
        match &outcome {
            Ok((name, _)) => {
                self.missing.remove(&(kind, name.clone()));
                self.removed.remove(name);
                self.originals.accept(kind, name, &any.value);
            }
            Err(all) => {
                let name = all.first().map(|rejected| rejected.name.as_str()).or(named).unwrap_or_default();
                let reasons: Vec<String> = all.iter().map(ToString::to_string).collect();
                self.originals.refuse(kind, name, &any.value, reasons.join("\n"));
            }
        }
        outcome
    }

    /// Forgets a resource. True when there was one.
    pub fn remove(&mut self, kind: Kind, name: &str, now: Instant) -> bool {
        self.originals.remove(kind, name);
        match kind {
            Kind::Cluster => {
                let existed = self.clusters.remove(name);
                if existed {
                    self.removed.insert(name.to_owned(), now);
                }
                existed
            }
            // A cluster that stays has no endpoints from now on; to wait for some would keep the old ones alive.
            Kind::Endpoints => {
                let existed = self.endpoints.remove(name);
                if existed {
                    self.endpoints.entries.insert(name.to_owned(), Arc::default());
                }
                existed
            }
            Kind::Listener => self.listeners.remove(name),
            Kind::Routes => self.routes.remove(name),
        }
    }

    /// Names of the resources that were accepted.
    pub fn names(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Cluster => self.clusters.names(),
            Kind::Endpoints => self.endpoints.names(),
            Kind::Listener => self.listeners.names(),
            Kind::Routes => self.routes.names(),
        }
    }

    /// The endpoints or routes that the accepted clusters or listeners ask for by name.
    pub fn wanted(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Endpoints => {
                self.clusters.entries.values().filter_map(|cluster| eds_service(cluster)).map(str::to_owned).collect()
            }
            Kind::Routes => {
                self.listeners.entries.values().flat_map(|listener| named_routes(listener)).map(str::to_owned).collect()
            }
            Kind::Cluster | Kind::Listener => BTreeSet::new(),
        }
    }

    /// Endpoints and routes that nothing asks for any more are forgotten.
    pub fn retain_wanted(&mut self, kind: Kind, wanted: &BTreeSet<String>) {
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
        !self.missing.iter().any(|((kind, _), since)| *kind == Kind::Endpoints && now < *since + INITIAL_FETCH_TIMEOUT)
    }

    fn note_missing(&mut self, kind: Kind, wanted: BTreeSet<String>, now: Instant) {
        for name in wanted {
            let present = match kind {
                Kind::Endpoints => self.endpoints.entries.contains_key(&name),
                _ => self.routes.entries.contains_key(&name),
            };
            if !present {
                self.missing.entry((kind, name)).or_insert(now);
            }
        }
    }

    /// The configuration as far as it is warm.
    pub fn publish(&mut self, version: &str, now: Instant) -> Publication {
        let clusters_warm = self.clusters_are_warm(now);
        let wanted = self.wanted(Kind::Routes);
        self.note_missing(Kind::Routes, wanted, now);
        let waits = |kind: Kind, name: &str| {
            self.missing.get(&(kind, name.to_owned())).is_some_and(|since| now < *since + INITIAL_FETCH_TIMEOUT)
        };
        let before = &self.published;
        let mut snapshot = Snapshot { version: version.to_owned(), ..Snapshot::default() };
        for (name, cluster) in &self.clusters.entries {
            let cold = eds_service(cluster).is_some_and(|service| waits(Kind::Endpoints, service));
            let serves = if cold { before.clusters.get(name) } else { Some(cluster) };
            snapshot.clusters.extend(serves.map(|cluster| (name.clone(), cluster.clone())));
        }
        if clusters_warm {
            for (name, listener) in &self.listeners.entries {
                let cold = named_routes(listener).any(|routes| waits(Kind::Routes, routes));
                let serves = if cold { before.listeners.get(name) } else { Some(listener) };
                snapshot.listeners.extend(serves.map(|listener| (name.clone(), listener.clone())));
            }
            snapshot.routes.clone_from(&self.routes.entries);
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
                snapshot.clusters.insert(name.clone(), cluster.clone());
            }
            serves_on
        });
        for service in snapshot.clusters.values().filter_map(|cluster| eds_service(cluster)) {
            let endpoints = self.endpoints.entries.get(service).or_else(|| before.endpoints.get(service));
            snapshot.endpoints.extend(endpoints.map(|endpoints| (service.to_owned(), endpoints.clone())));
        }
        let fetches = self.missing.values().map(|since| *since + INITIAL_FETCH_TIMEOUT).filter(|at| *at > now);
        let mut fetches = fetches.peekable();
        let is_complete = fetches.peek().is_none();
        let next = fetches.chain(self.removed.values().map(|since| *since + REMOVAL_DELAY)).min();
        self.published = snapshot.clone();
        Publication { snapshot, is_complete, next }
    }
}

fn eds_service(cluster: &config::Cluster) -> Option<&str> {
    match &cluster.discovery {
        ClusterDiscovery::Eds(service) => Some(service),
        _ => None,
    }
}

fn named_routes(listener: &config::Listener) -> impl Iterator<Item = &str> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => match &manager.routes {
            RouteSource::Named(name) => Some(name.as_str()),
            RouteSource::Inline(_) => None,
        },
        NetworkFilter::Tcp(_) => None,
    })
}
