//! Upstreams: live clusters, balancing, circuit breakers, passive health.
//!
//! A [`Cluster`] is made once for a name and lives as long as the configuration knows that name: routes hold it, and
//! configuration and endpoints are published into it. What carries over:
//!
//! - circuit breakers, always: a changed limit counts what is already out;
//! - an endpoint's counters, ejection and age, as long as its address and its effective transport socket stay the same.
//!
//! Readers take one snapshot, an [`EndpointSet`], without a lock. Writers (publication, ejection, the sweep) take turns.

pub mod balance;
pub mod breaker;
pub mod connect;
pub mod dns;
pub mod endpoint;
mod outlier;
pub mod pool;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::Notify;

pub use balance::PickContext;
pub use breaker::{Breaker, Breakers, Permit};
pub use endpoint::{ActiveConnection, ActiveRequest, Endpoint, HostId};
pub use outlier::Outcome;

use self::balance::Balancer;
use self::endpoint::{LocalityGroup, is_subset};
use crate::config::{self, ClusterDiscovery, ClusterLoadAssignment, EndpointAddress, OutlierDetection, TransportSocket};
use crate::drain::Drain;
use crate::error::ErrorKind;
use crate::telemetry::metrics::{ClusterMetrics, ProxyMetrics};
use crate::tls::{ClientContext, Secrets, TlsError};
use crate::{ClusterStatus, EndpointStatus};

/// Subsets of one publication that are remembered; their number is bounded by the routes, this bounds a mistake.
const MAX_SUBSETS: usize = 64;

/// A live cluster: what [`crate::config::Cluster`] is compiled into. Shared by all workers.
pub struct Cluster {
    name: Arc<str>,
    breakers: Breakers,
    endpoints: ArcSwap<EndpointSet>,
    contexts: ArcSwap<TlsContexts>,
    connection_released: Notify,
    metrics: OnceLock<ClusterMetrics>,
    retired: Drain,
    writer: Mutex<Writer>,
}

/// One TLS context for each distinct [`config::UpstreamTls`] of a cluster.
type TlsContexts = Vec<(Arc<config::UpstreamTls>, ClientContext)>;

/// An open connection in the limits and metrics of its cluster.
pub struct OpenConnection {
    _permit: Permit,
    active: metrics::Gauge,
}

impl OpenConnection {
    /// Counts a connection that has just been made.
    pub fn new(permit: Permit, metrics: &ClusterMetrics) -> Self {
        metrics.connections_total.increment(1);
        metrics.connections_active.increment(1);
        Self { _permit: permit, active: metrics.connections_active.clone() }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.active.decrement(1);
    }
}

/// One publication: a configuration and the endpoints it applies to.
#[derive(Debug)]
pub struct EndpointSet {
    config: Arc<config::Cluster>,
    assignment: Arc<ClusterLoadAssignment>,
    endpoints: Box<[Arc<Endpoint>]>,
    balancer: Balancer,
    /// Some weights change with time.
    warming: bool,
    /// Balancers of the subsets that were asked for.
    subsets: ArcSwap<Vec<Subset>>,
}

/// Labels, and who balances the endpoints that have them.
type Subset = (BTreeMap<String, String>, Arc<Balancer>);

/// The right to publish.
#[derive(Debug, Default)]
struct Writer {
    next_review: Option<Instant>,
}

impl Cluster {
    /// A cluster with the endpoints that its configuration holds; others come with [`Self::set_endpoints`].
    ///
    /// # Errors
    /// When a TLS context cannot be made, because a file is missing for instance.
    pub fn new(config: Arc<config::Cluster>, secrets: &Arc<Secrets>) -> Result<Self, TlsError> {
        let now = Instant::now();
        let assignment = written_endpoints(&config).cloned().unwrap_or_default();
        Ok(Self {
            name: config.name.as_str().into(),
            breakers: Breakers::new(&config.circuit_breakers),
            contexts: ArcSwap::from_pointee(tls_contexts(&config, secrets)?),
            endpoints: ArcSwap::from_pointee(EndpointSet::new(config, assignment, &[], now)),
            connection_released: Notify::new(),
            metrics: OnceLock::new(),
            retired: Drain::default(),
            writer: Mutex::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its configuration and endpoints as they are now, for one decision.
    pub fn current(&self) -> Guard<Arc<EndpointSet>> {
        self.endpoints.load()
    }

    /// Its configuration as it is now.
    pub fn config(&self) -> Arc<config::Cluster> {
        Arc::clone(&self.endpoints.load().config)
    }

    /// The TLS context for connections to `endpoint`; `None` for plaintext.
    ///
    /// # Errors
    /// When the endpoint belongs to a configuration whose context could not be made: never fall back to plaintext.
    pub fn tls_context(&self, endpoint: &Endpoint) -> Result<Option<ClientContext>, TlsError> {
        match endpoint.transport() {
            TransportSocket::RawBuffer => Ok(None),
            TransportSocket::Tls(tls) => {
                let contexts = self.contexts.load();
                let found = contexts.iter().find(|(known, _)| Arc::ptr_eq(known, tls) || known == tls);
                let (_, context) = found.ok_or(TlsError::NotReady)?;
                Ok(Some(context.clone()))
            }
        }
    }

    /// Told whenever an HTTP/1 connection becomes free, for requests that wait below `max_connections`.
    pub fn connection_released(&self) -> &Notify {
        &self.connection_released
    }

    /// Its circuit breakers.
    pub fn breakers(&self) -> &Breakers {
        &self.breakers
    }

    /// Its endpoints as they are now, usable or not.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// Changes the configuration, not the name. Endpoints stay until others are set, unless the configuration holds its own.
    ///
    /// # Errors
    /// As [`Self::new`]; the old configuration then stays in force.
    pub fn update_config(&self, config: &Arc<config::Cluster>, secrets: &Arc<Secrets>) -> Result<(), TlsError> {
        let _turn = self.writer();
        let old = self.endpoints.load_full();
        if old.config == *config {
            return Ok(());
        }
        self.contexts.store(Arc::new(tls_contexts(config, secrets)?));
        self.breakers.set_limits(&config.circuit_breakers);
        if config.outlier_detection.is_none() {
            for endpoint in &old.endpoints {
                endpoint.monitor().forget();
            }
        }
        let assignment = written_endpoints(config).unwrap_or(&old.assignment);
        self.publish(&old, Arc::clone(config), Arc::clone(assignment), Instant::now());
        Ok(())
    }

    /// Publishes endpoints (EDS or DNS). Those whose address is a name are left out: [`dns::run`] resolves them.
    pub fn set_endpoints(&self, assignment: &Arc<ClusterLoadAssignment>) {
        self.set_endpoints_at(assignment, Instant::now());
    }

    fn set_endpoints_at(&self, assignment: &Arc<ClusterLoadAssignment>, now: Instant) {
        let _turn = self.writer();
        let old = self.endpoints.load_full();
        if old.assignment != *assignment {
            self.publish(&old, Arc::clone(&old.config), Arc::clone(assignment), now);
        }
    }

    /// The cluster left the configuration: its hosts count as removed, so that pools let go of them, and nothing can be picked.
    pub fn retire(&self) {
        self.retired.begin();
        let _turn = self.writer();
        let old = self.endpoints.load_full();
        self.publish(&old, Arc::clone(&old.config), Arc::default(), Instant::now());
    }

    /// Handles of its metrics, made when it is used for the first time: a mesh has more clusters than a sidecar uses.
    pub fn metrics(&self, metrics: &ProxyMetrics) -> &ClusterMetrics {
        self.metrics.get_or_init(|| metrics.cluster(&self.name))
    }

    /// Waits until the cluster has left the configuration.
    pub async fn retired(&self) {
        self.retired.wait().await;
    }

    /// Chooses the endpoint of an attempt.
    ///
    /// # Errors
    /// [`ErrorKind::DropOverload`] for the configured share of first attempts, [`ErrorKind::NoHealthyUpstream`] when no
    /// endpoint is usable.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Arc<Endpoint>, ErrorKind> {
        let set = self.endpoints.load();
        if context.attempt == 0 && set.config.drop_overload.draw() {
            return Err(ErrorKind::DropOverload { unconditional: set.config.drop_overload == config::Fraction::ALL });
        }
        let endpoint = match context.subset {
            Some(labels) if !labels.is_empty() => set.subset(labels).pick(context),
            _ => set.balancer.pick(context),
        };
        endpoint.ok_or(ErrorKind::NoHealthyUpstream)
    }

    /// Tells outlier detection what came of an attempt on one of this cluster's endpoints.
    pub fn report(&self, endpoint: &Endpoint, outcome: Outcome) {
        // The common case, before the configuration is looked at.
        if endpoint.monitor().record_success(outcome) {
            return;
        }
        let set = self.endpoints.load();
        if let Some(detection) = &set.config.outlier_detection
            && endpoint.monitor().record_failure(outcome, detection)
        {
            self.eject(endpoint, Instant::now());
        }
    }

    fn eject(&self, endpoint: &Endpoint, now: Instant) {
        let _turn = self.writer();
        let set = self.endpoints.load_full();
        let Some(detection) = &set.config.outlier_detection else { return };
        if endpoint.is_removed() || endpoint.is_ejected() || !may_eject(&set.endpoints, detection) {
            return;
        }
        endpoint.monitor().eject(now);
        endpoint.mark_failed();
        self.republish(&set, now);
    }

    /// Housekeeping: ends ejections at the end of an outlier detection interval and lets new endpoints warm up. To be called
    /// about once a second; cheap when there is nothing to do.
    pub fn sweep(&self, now: Instant) {
        let mut writer = self.writer();
        let set = self.endpoints.load_full();
        let mut changed = false;
        if let Some(detection) = &set.config.outlier_detection {
            let due = *writer.next_review.get_or_insert(now + detection.interval);
            if now >= due {
                writer.next_review = Some(now + detection.interval);
                for endpoint in &set.endpoints {
                    changed |= endpoint.monitor().review(detection, now);
                }
            }
        }
        if changed || set.warming {
            self.republish(&set, now);
        }
    }

    /// For the admin page.
    pub fn status(&self) -> ClusterStatus {
        let set = self.endpoints.load();
        ClusterStatus { name: self.name.to_string(), endpoints: set.endpoints.iter().map(|e| endpoint_status(e)).collect() }
    }

    /// The same endpoints, balanced anew.
    fn republish(&self, set: &EndpointSet, now: Instant) {
        let config = Arc::clone(&set.config);
        self.endpoints.store(Arc::new(EndpointSet::of(config, Arc::clone(&set.assignment), set.endpoints.clone(), now)));
    }

    fn publish(&self, old: &EndpointSet, config: Arc<config::Cluster>, assignment: Arc<ClusterLoadAssignment>, now: Instant) {
        let new = Arc::new(EndpointSet::new(config, assignment, &old.endpoints, now));
        let hosts: HashSet<HostId> = new.endpoints.iter().map(|endpoint| endpoint.id()).collect();
        self.endpoints.store(new);
        for endpoint in old.endpoints.iter().filter(|endpoint| !hosts.contains(&endpoint.id())) {
            endpoint.mark_removed();
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls_contexts(config: &config::Cluster, secrets: &Arc<Secrets>) -> Result<TlsContexts, TlsError> {
    let sockets = config.transport_socket_matches.iter().map(|matched| &matched.socket).chain([&config.transport_socket]);
    sockets
        .filter_map(|socket| match socket {
            TransportSocket::Tls(tls) => Some(ClientContext::new(secrets, tls).map(|context| (tls.clone(), context))),
            TransportSocket::RawBuffer => None,
        })
        .collect()
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.endpoints.load();
        f.debug_struct("Cluster").field("name", &self.name).field("endpoints", &set.endpoints).finish_non_exhaustive()
    }
}

impl EndpointSet {
    /// Compiles an assignment; hosts that are among `known` keep their live state.
    fn new(config: Arc<config::Cluster>, assignment: Arc<ClusterLoadAssignment>, known: &[Arc<Endpoint>], now: Instant) -> Self {
        let mut by_address = HashMap::<&EndpointAddress, Vec<&Endpoint>>::new();
        for endpoint in known {
            by_address.entry(endpoint.address()).or_default().push(endpoint);
        }
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        let mut taken = HashMap::<&EndpointAddress, Vec<usize>>::new();
        for locality in &assignment.localities {
            let group = Arc::new(LocalityGroup {
                locality: locality.locality.clone(),
                priority: locality.priority,
                weight: locality.weight.map_or(0, std::num::NonZeroU32::get),
            });
            for endpoint in &locality.endpoints {
                let (transport, index) = effective_transport(&config, endpoint);
                let same = taken.entry(&endpoint.address).or_default();
                // Listed twice, the first counts, as in Envoy.
                if matches!(endpoint.address, EndpointAddress::Name(..))
                    || same.iter().any(|at| endpoints[*at].transport() == transport)
                {
                    continue;
                }
                same.push(endpoints.len());
                let known = by_address.get(&endpoint.address).into_iter().flatten().find(|e| e.transport() == transport).copied();
                let transport = (transport.clone(), index);
                endpoints.push(Arc::new(Endpoint::new(endpoint, &group, transport, known, now)));
            }
        }
        drop(taken);
        Self::of(config, assignment, endpoints.into(), now)
    }

    fn of(
        config: Arc<config::Cluster>,
        assignment: Arc<ClusterLoadAssignment>,
        endpoints: Box<[Arc<Endpoint>]>,
        now: Instant,
    ) -> Self {
        let balancer = Balancer::new(&config, &endpoints, now);
        let warming = endpoints.iter().any(|endpoint| balance::is_in_slow_start(&config.lb_policy, endpoint, now));
        Self { config, assignment, endpoints, balancer, warming, subsets: ArcSwap::default() }
    }

    /// The configuration that this was compiled from.
    pub fn config(&self) -> &Arc<config::Cluster> {
        &self.config
    }

    /// All endpoints, usable or not.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Endpoint>> {
        self.endpoints.iter()
    }

    /// The balancer of the endpoints that have these labels.
    fn subset(&self, labels: &BTreeMap<String, String>) -> Arc<Balancer> {
        if let Some((_, balancer)) = self.subsets.load().iter().find(|(known, _)| known == labels) {
            return Arc::clone(balancer);
        }
        let members = self.endpoints.iter().filter(|endpoint| endpoint.has_labels(labels));
        let balancer = Arc::new(Balancer::new(&self.config, members, Instant::now()));
        self.subsets.rcu(|subsets| {
            let mut subsets = Vec::clone(subsets);
            if subsets.len() < MAX_SUBSETS {
                subsets.push((labels.clone(), Arc::clone(&balancer)));
            }
            subsets
        });
        balancer
    }
}

impl<'a> IntoIterator for &'a EndpointSet {
    type Item = &'a Arc<Endpoint>;
    type IntoIter = std::slice::Iter<'a, Arc<Endpoint>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The endpoints that a configuration holds itself.
fn written_endpoints(config: &config::Cluster) -> Option<&Arc<ClusterLoadAssignment>> {
    match &config.discovery {
        ClusterDiscovery::Static(assignment) => Some(assignment),
        ClusterDiscovery::Eds(_)
        | ClusterDiscovery::StrictDns(_)
        | ClusterDiscovery::LogicalDns(_)
        | ClusterDiscovery::OriginalDst => None,
    }
}

/// The first match whose labels the endpoint has, and its position; else the cluster's own, after the last one.
fn effective_transport<'c>(config: &'c config::Cluster, endpoint: &config::Endpoint) -> (&'c TransportSocket, usize) {
    let matches = &config.transport_socket_matches;
    let index = matches.iter().position(|candidate| is_subset(&candidate.matches, &endpoint.transport_match));
    match index {
        Some(index) => (&matches[index].socket, index),
        None => (&config.transport_socket, matches.len()),
    }
}

/// One more ejection keeps within the cluster's share; the first always may, or small clusters could never eject.
fn may_eject(endpoints: &[Arc<Endpoint>], detection: &OutlierDetection) -> bool {
    let ejected = endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
    let percent = u32::try_from(100 * (ejected + 1) / endpoints.len().max(1)).unwrap_or(u32::MAX);
    detection.max_ejection_percent > 0 && (ejected == 0 || percent <= detection.max_ejection_percent)
}

fn endpoint_status(endpoint: &Endpoint) -> EndpointStatus {
    let config::Locality { region, zone, sub_zone } = endpoint.locality();
    EndpointStatus {
        address: endpoint.host().to_string(),
        health: endpoint.health_words().to_owned(),
        active: endpoint.active_requests().into(),
        weight: endpoint.weight(),
        locality: format!("{region}/{zone}/{sub_zone}"),
    }
}

#[cfg(test)]
mod tests;
