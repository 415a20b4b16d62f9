//! One address of a cluster, and what is known about it while it serves.
//!
//! What the configuration says of an endpoint is immutable: a changed weight or label makes a new [`Endpoint`]. What
//! happens to it is kept apart and shared by all versions of the same host, where a host is an address and the transport
//! socket used to reach it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::health::ActiveHealth;
use super::outlier::Monitor;
use crate::config::{self, EndpointAddress, EndpointHealthCheck, HealthStatus, LbValue, Locality, TransportSocket, Workload};

/// An endpoint of a live cluster.
pub struct Endpoint {
    address: EndpointAddress,
    additional_addresses: Option<Arc<[SocketAddr]>>,
    host: Arc<str>,
    hostname: Arc<str>,
    weight: u32,
    health: HealthStatus,
    health_check: Option<Arc<EndpointHealthCheck>>,
    lb_metadata: Arc<BTreeMap<String, LbValue>>,
    workload: Option<Arc<Workload>>,
    group: Arc<LocalityGroup>,
    transport: TransportSocket,
    transport_index: usize,
    live: Arc<Live>,
}

/// Where an endpoint stands among the others.
#[derive(Debug)]
pub(super) struct LocalityGroup {
    pub(super) locality: Locality,
    pub(super) priority: u32,
    pub(super) weight: u32,
}

/// What outlives a new version of the same host.
#[derive(Debug)]
struct Live {
    active_requests: AtomicU32,
    active_connections: AtomicU32,
    removed: AtomicBool,
    /// How often it was found unhealthy: connections made before are not used again.
    failures: AtomicU32,
    /// When it joined, or passed its checks again: slow start begins then.
    fresh_since: Mutex<Instant>,
    monitor: Monitor,
    active: ActiveHealth,
}

/// How far an endpoint can be relied on, all that is known of it taken together (Envoy `Host::Health`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Used.
    Healthy,
    /// Used where there are not enough healthy ones.
    Degraded,
    /// Not used, except in panic.
    Unhealthy,
}

/// A host of a cluster, whatever version of its endpoint. Distinct from every other one as long as an [`Endpoint`] of it is
/// alive, so a map that is keyed by it must hold the endpoint too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(usize);

impl Endpoint {
    /// A version of a host: of the one that `known` is of, or of a new one that joined at `now`.
    pub(super) fn new(
        endpoint: &config::Endpoint,
        group: &Arc<LocalityGroup>,
        (transport, transport_index): (TransportSocket, usize),
        known: Option<&Self>,
        now: Instant,
    ) -> Self {
        let host = known.map_or_else(|| host(&endpoint.address), |known| Arc::clone(&known.host));
        let live = known.map_or_else(|| Arc::new(Live::new(now)), |known| Arc::clone(&known.live));
        Self {
            address: endpoint.address.clone(),
            additional_addresses: endpoint.additional_addresses.clone(),
            host,
            hostname: endpoint.hostname.as_str().into(),
            weight: endpoint.weight.get(),
            health: endpoint.health,
            health_check: endpoint.health_check.clone(),
            lb_metadata: endpoint.lb_metadata.clone(),
            workload: endpoint.workload.clone(),
            group: Arc::clone(group),
            transport,
            transport_index,
            live,
        }
    }

    /// Where it is; never a name.
    pub fn address(&self) -> &EndpointAddress {
        &self.address
    }

    /// Where else it is.
    pub fn additional_addresses(&self) -> &[SocketAddr] {
        self.additional_addresses.as_deref().unwrap_or_default()
    }

    /// `127.0.0.1:9080`, `[::1]:80` or a path (`%UPSTREAM_HOST%`).
    pub fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// For `host_rewrite: auto`: the configured host name or the name that was resolved; empty is none.
    pub fn hostname(&self) -> &Arc<str> {
        &self.hostname
    }

    /// Relative weight.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// How to talk to it.
    pub fn transport(&self) -> &TransportSocket {
        &self.transport
    }

    /// Position of [`Self::transport`] in the cluster's `transport_socket_matches`; their number for its `transport_socket`.
    pub fn transport_index(&self) -> usize {
        self.transport_index
    }

    /// Who runs there.
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref()
    }

    /// Where it runs.
    pub fn locality(&self) -> &Locality {
        &self.group.locality
    }

    /// 0 is used first.
    pub fn priority(&self) -> u32 {
        self.group.priority
    }

    /// The host that this is a version of.
    pub fn id(&self) -> HostId {
        HostId(Arc::as_ptr(&self.live).addr())
    }

    /// Whether it may get new requests.
    pub fn health(&self) -> Health {
        let assigned = match self.health {
            HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Timeout | HealthStatus::Draining => return Health::Unhealthy,
        };
        if self.is_ejected() || self.is_removed() || self.live.active.is_failed() {
            Health::Unhealthy
        } else if self.live.active.is_degraded() {
            Health::Degraded
        } else {
            assigned
        }
    }

    /// It counts neither as healthy nor as unhealthy where shares are worked out.
    pub(super) fn is_excluded(&self) -> bool {
        self.health == HealthStatus::Draining || self.live.active.is_excluded()
    }

    /// How it differs from the others where it is checked.
    pub(super) fn health_check(&self) -> Option<&EndpointHealthCheck> {
        self.health_check.as_deref()
    }

    /// It is not asked for its health whatever the cluster says.
    pub(super) fn refuses_checks(&self) -> bool {
        self.health_check.as_ref().is_some_and(|check| check.disable_active_health_check)
    }

    /// It is asked for its health.
    pub fn is_actively_checked(&self) -> bool {
        self.live.active.is_checked()
    }

    pub(super) fn active(&self) -> &ActiveHealth {
        &self.live.active
    }

    /// It may stay after it has left the assignment, as long as it passes its checks.
    pub(super) fn may_stay(&self) -> bool {
        let active = &self.live.active;
        active.is_checked() && !active.is_failed() && matches!(self.health, HealthStatus::Healthy | HealthStatus::Degraded)
    }

    /// Outlier detection took it out.
    pub fn is_ejected(&self) -> bool {
        self.live.monitor.is_ejected()
    }

    /// The host is no longer in its cluster: idle connections to it should close.
    pub fn is_removed(&self) -> bool {
        self.live.removed.load(Relaxed)
    }

    /// Changes whenever the host is found unhealthy. Connections of an earlier generation should close once they are idle: if
    /// the path to the host is at fault, new connections may do better.
    pub fn generation(&self) -> u32 {
        self.live.failures.load(Relaxed)
    }

    pub(super) fn mark_failed(&self) {
        self.live.failures.fetch_add(1, Relaxed);
    }

    /// Requests in flight.
    pub fn active_requests(&self) -> u32 {
        self.live.active_requests.load(Relaxed)
    }

    /// Open connections.
    pub fn active_connections(&self) -> u32 {
        self.live.active_connections.load(Relaxed)
    }

    /// Counts a request in flight until the guard is dropped.
    pub fn start_request(&self) -> ActiveRequest {
        self.live.active_requests.fetch_add(1, Relaxed);
        ActiveRequest(Arc::clone(&self.live))
    }

    /// Counts an open connection until the guard is dropped.
    pub fn start_connection(&self) -> ActiveConnection {
        self.live.active_connections.fetch_add(1, Relaxed);
        ActiveConnection(Arc::clone(&self.live))
    }

    /// Envoy's words on the admin page.
    pub(super) fn health_words(&self) -> String {
        let assigned = match self.health {
            HealthStatus::Healthy => None,
            HealthStatus::Degraded => Some("/degraded_eds_health"),
            HealthStatus::Unhealthy | HealthStatus::Timeout => Some("/failed_eds_health"),
            HealthStatus::Draining => Some("/eds_status_draining"),
        };
        let outlier = self.is_ejected().then_some("/failed_outlier_check");
        let words: String = self.live.active.words().chain(outlier).chain(assigned).collect();
        if words.is_empty() { "healthy".to_owned() } else { words }
    }

    /// Has all of these labels. `list_as_any`: a list has any of its values.
    pub(super) fn has_labels(&self, labels: &BTreeMap<String, String>, list_as_any: bool) -> bool {
        labels.iter().all(|(key, wanted)| match self.lb_metadata.get(key) {
            Some(LbValue::One(value)) => value == wanted,
            Some(LbValue::List(values)) => list_as_any && values.contains(wanted),
            None => false,
        })
    }

    /// What it is called where it is hashed: `hash_key` of its `envoy.lb` metadata, else its host name or address.
    pub(super) fn hash_key(&self, by_hostname: bool) -> &str {
        match self.lb_metadata.get("hash_key") {
            Some(LbValue::One(key)) => key,
            _ if by_hostname && !self.hostname.is_empty() => &self.hostname,
            _ => &self.host,
        }
    }

    pub(super) fn group(&self) -> &Arc<LocalityGroup> {
        &self.group
    }

    /// When it joined, or was found healthy again.
    pub(super) fn fresh_since(&self) -> Instant {
        *self.live.fresh_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refresh(&self, now: Instant) {
        *self.live.fresh_since.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.live.monitor
    }

    /// A host that left does not come back: the same address is a new host then.
    pub(super) fn mark_removed(&self) {
        self.live.removed.store(true, Relaxed);
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("host", &self.host).field("health", &self.health_words()).finish_non_exhaustive()
    }
}

impl Live {
    fn new(now: Instant) -> Self {
        Self {
            active_requests: AtomicU32::new(0),
            active_connections: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            fresh_since: Mutex::new(now),
            monitor: Monitor::default(),
            active: ActiveHealth::default(),
        }
    }
}

/// A request in flight.
#[derive(Debug)]
#[must_use = "the request ends when the guard is dropped"]
pub struct ActiveRequest(Arc<Live>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active_requests.fetch_sub(1, Relaxed);
    }
}

/// An open connection.
#[derive(Debug)]
#[must_use = "the connection ends when the guard is dropped"]
pub struct ActiveConnection(Arc<Live>);

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.active_connections.fetch_sub(1, Relaxed);
    }
}

/// Every pair of `part` is in `whole`.
pub(super) fn is_subset(part: &BTreeMap<String, String>, whole: &BTreeMap<String, String>) -> bool {
    part.iter().all(|(key, value)| whole.get(key) == Some(value))
}

fn host(address: &EndpointAddress) -> Arc<str> {
    match address {
        EndpointAddress::Socket(address) => address.to_string().into(),
        EndpointAddress::Pipe(path) => path.to_string_lossy().into(),
        EndpointAddress::Name(name, port) => format!("{name}:{port}").into(),
    }
}
