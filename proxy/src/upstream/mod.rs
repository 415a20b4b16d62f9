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
mod clusters;
pub mod connect;
pub mod dns;
pub mod endpoint;
mod happy_eyeballs;
pub mod health;
mod outlier;
pub mod pool;
mod proxy_protocol;
mod set;
mod subset;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::Notify;

pub use balance::{PickContext, PreviousPriorities};
pub use breaker::{Breaker, Breakers, Permit};
pub use clusters::{Clusters, Task, may_wait};
pub use endpoint::{ActiveConnection, ActiveRequest, Endpoint, Health, HostId};
pub use outlier::Outcome;
pub use set::EndpointSet;

use self::health::{CheckFailure, Transition};
use crate::config::{self, ClusterDiscovery, ClusterLoadAssignment, OutlierDetection, Resource, TransportSocket};
use crate::drain::Drain;
use crate::error::ErrorKind;
use crate::telemetry::metrics::{ClusterMetrics, HealthCheckMetrics, ProxyMetrics};
use crate::tls::{ClientContext, Secrets, TlsError};
use crate::{ClusterStatus, EndpointStatus};

/// A live cluster: what [`crate::config::Cluster`] is compiled into. Shared by all workers.
pub struct Cluster {
    name: Arc<str>,
    breakers: Breakers,
    endpoints: ArcSwap<EndpointSet>,
    /// Nobody has asked for an endpoint yet: what was assigned has not been compiled.
    asleep: AtomicBool,
    contexts: ArcSwap<TlsContexts>,
    secrets: Arc<Secrets>,
    connection_released: Notify,
    /// Told at every publication, for the health checker.
    published: Notify,
    health_checker_started: AtomicBool,
    had_traffic: AtomicBool,
    metrics: OnceLock<ClusterMetrics>,
    check_metrics: OnceLock<HealthCheckMetrics>,
    retired: Drain,
    writer: Mutex<Writer>,
}

/// One TLS context for each distinct [`config::UpstreamTls`] of a cluster. What is made of secrets alone is made when it is used for
/// the first time: a mesh has more clusters than a sidecar uses.
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

/// The right to publish.
#[derive(Debug, Default)]
struct Writer {
    next_review: Option<Instant>,
    /// What was assigned last, by EDS or DNS; a cluster that is asleep has not looked at it.
    assigned: Option<Resource<ClusterLoadAssignment>>,
}

impl Writer {
    /// The endpoints of a configuration: those that it holds itself, those that were assigned, or those there were before.
    fn assignment(&mut self, config: &config::Cluster, old: &EndpointSet) -> Arc<ClusterLoadAssignment> {
        match (written_endpoints(config), &self.assigned) {
            (Some(written), _) => {
                self.assigned = None;
                Arc::clone(written)
            }
            (None, Some(assigned)) => assigned.get(),
            (None, None) => Arc::clone(old.assignment()),
        }
    }
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
            secrets: Arc::clone(secrets),
            asleep: AtomicBool::new(may_sleep(&config)),
            endpoints: ArcSwap::from_pointee(if may_sleep(&config) {
                EndpointSet::of(config, assignment, Box::default(), now)
            } else {
                EndpointSet::new(config, assignment, &[], now)
            }),
            connection_released: Notify::new(),
            published: Notify::new(),
            health_checker_started: AtomicBool::new(false),
            had_traffic: AtomicBool::new(false),
            metrics: OnceLock::new(),
            check_metrics: OnceLock::new(),
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
        Arc::clone(self.endpoints.load().config())
    }

    /// The TLS context for connections over `transport`, an endpoint's for instance; `None` for plaintext.
    ///
    /// # Errors
    /// When the endpoint belongs to a configuration whose context could not be made: never fall back to plaintext.
    pub fn tls_context(&self, transport: &TransportSocket) -> Result<Option<ClientContext>, TlsError> {
        match transport {
            TransportSocket::RawBuffer => Ok(None),
            TransportSocket::Tls(tls) => {
                let contexts = self.contexts.load();
                let known = |contexts: &TlsContexts| {
                    let found = contexts.iter().find(|(known, _)| Arc::ptr_eq(known, tls) || known == tls);
                    found.map(|(_, context)| context.clone())
                };
                if let Some(context) = known(&contexts) {
                    return Ok(Some(context));
                }
                if !is_of_secrets(tls) {
                    return Err(TlsError::NotReady);
                }
                let context = ClientContext::new(&self.secrets, tls)?;
                self.contexts.rcu(|contexts| {
                    let mut contexts = TlsContexts::clone(contexts);
                    if known(&contexts).is_none() {
                        contexts.push((Arc::clone(tls), context.clone()));
                    }
                    contexts
                });
                Ok(Some(context))
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
        self.wake();
        self.endpoints.load_full()
    }

    /// Compiles what was assigned, if that has been put off. A mesh has more clusters than a sidecar uses, and a host with its
    /// counters takes more memory than the words it was made of.
    fn wake(&self) {
        if !self.asleep.load(Acquire) {
            return;
        }
        let mut writer = self.writer();
        if self.asleep.load(Acquire) {
            let old = self.endpoints.load_full();
            let assignment = writer.assignment(old.config(), &old);
            self.publish(&old, EndpointSet::new(Arc::clone(old.config()), assignment, &[], Instant::now()));
            self.asleep.store(false, Release);
        }
    }

    /// Changes the configuration, not the name. Endpoints stay until others are set, unless the configuration holds its own.
    ///
    /// # Errors
    /// As [`Self::new`]; the old configuration then stays in force.
    pub fn update_config(&self, config: &Arc<config::Cluster>, secrets: &Arc<Secrets>) -> Result<(), TlsError> {
        let mut writer = self.writer();
        let old = self.endpoints.load_full();
        if old.config() == config {
            return Ok(());
        }
        self.contexts.store(Arc::new(tls_contexts(config, secrets)?));
        self.breakers.set_limits(&config.circuit_breakers);
        if config.outlier_detection.is_none() {
            for endpoint in old.iter() {
                endpoint.monitor().forget();
            }
        }
        let now = Instant::now();
        if self.asleep.load(Acquire) && may_sleep(config) {
            self.publish(&old, EndpointSet::of(Arc::clone(config), Arc::clone(old.assignment()), Box::default(), now));
        } else {
            let assignment = writer.assignment(config, &old);
            self.publish(&old, EndpointSet::new(Arc::clone(config), assignment, old.hosts(), now));
            self.asleep.store(false, Release);
        }
        Ok(())
    }

    /// Publishes endpoints (EDS or DNS). Those whose address is a name are left out: [`dns::run`] resolves them.
    pub fn set_endpoints(&self, assignment: &Resource<ClusterLoadAssignment>) {
        self.set_endpoints_at(assignment, Instant::now());
    }

    fn set_endpoints_at(&self, assignment: &Resource<ClusterLoadAssignment>, now: Instant) {
        let mut writer = self.writer();
        if writer.assigned.as_ref().is_some_and(|known| known.is_same(assignment)) {
            return;
        }
        writer.assigned = Some(assignment.clone());
        if self.asleep.load(Acquire) {
            return;
        }
        let (old, assignment) = (self.endpoints.load_full(), assignment.get());
        if *old.assignment() != assignment {
            let set = EndpointSet::new(Arc::clone(old.config()), assignment, old.hosts(), now);
            self.publish(&old, set.keeping(&old, now));
        }
    }

    /// The cluster left the configuration: its hosts count as removed, so that pools let go of them, and nothing can be picked.
    pub fn retire(&self) {
        self.retired.begin();
        let mut writer = self.writer();
        writer.assigned = None;
        self.asleep.store(false, Release);
        let old = self.endpoints.load_full();
        self.publish(&old, EndpointSet::new(Arc::clone(old.config()), Arc::default(), &[], Instant::now()));
    }

    /// Handles of its metrics, made when it is used for the first time: a mesh has more clusters than a sidecar uses.
    pub fn metrics(&self, metrics: &ProxyMetrics) -> &ClusterMetrics {
        self.metrics.get_or_init(|| {
            let metrics = metrics.cluster(&self.name);
            self.wake();
            self.endpoints.load().measure(&metrics);
            metrics
        })
    }

    /// Handles of the metrics of its active health checks, for who makes these.
    pub(crate) fn check_metrics(&self, metrics: &ProxyMetrics) -> &HealthCheckMetrics {
        self.check_metrics.get_or_init(|| metrics.health_checks(&self.name))
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
        self.wake();
        let set = self.endpoints.load();
        let drop_overload = set.assignment().policy.drop_overload;
        if context.attempt == 0 && drop_overload.draw() {
            return Err(ErrorKind::DropOverload { unconditional: drop_overload == config::Fraction::ALL });
        }
        set.pick(context).ok_or(ErrorKind::NoHealthyUpstream)
    }

    /// Tells outlier detection what came of an attempt on one of this cluster's endpoints.
    pub fn report(&self, endpoint: &Endpoint, outcome: Outcome) {
        if matches!(outcome, Outcome::Connected | Outcome::TcpConnected) {
            self.had_traffic.store(true, Relaxed);
        }
        // The common case, before the configuration is looked at.
        if endpoint.monitor().record_success(outcome) {
            return;
        }
        let set = self.endpoints.load();
        if let Some(detection) = &set.config().outlier_detection
            && let Some(row) = endpoint.monitor().record_failure(outcome, detection)
        {
            self.eject(endpoint, row.enforcing, Instant::now());
        }
    }

    fn eject(&self, endpoint: &Endpoint, enforcing: u32, now: Instant) {
        let _turn = self.writer();
        let set = self.endpoints.load_full();
        let Some(detection) = &set.config().outlier_detection else { return };
        if endpoint.is_removed() || endpoint.is_ejected() {
            return;
        }
        if !may_eject(set.hosts(), detection) {
            self.count(|metrics| metrics.ejections_overflow.increment(1));
        } else if fastrand::u32(..100) < enforcing {
            endpoint.monitor().eject(detection, now);
            endpoint.mark_failed();
            self.count(|metrics| metrics.ejections_enforced.increment(1));
            self.republish(&set, now);
        }
    }

    /// An active check of `endpoint` succeeded.
    pub(crate) fn check_succeeded(&self, endpoint: &Endpoint, degraded: bool, check: &config::HealthCheck) -> Transition {
        let was_failed = endpoint.active().is_failed();
        let transition = endpoint.active().succeed(degraded, check.healthy_threshold);
        let now = Instant::now();
        if was_failed && !endpoint.active().is_failed() {
            endpoint.refresh(now);
        }
        let _turn = self.writer();
        let set = self.endpoints.load_full();
        let detection = set.config().outlier_detection.as_ref();
        let returns = endpoint.is_ejected()
            && !endpoint.active().is_failed()
            && detection.is_some_and(|detection| detection.successful_active_health_check_uneject_host)
            && endpoint.monitor().end_ejection();
        if returns || transition == Transition::Changed {
            self.republish(&set, now);
        }
        transition
    }

    /// An active check of `endpoint` failed, or an ordinary response said that it would.
    pub(crate) fn check_failed(&self, endpoint: &Endpoint, failure: CheckFailure, check: &config::HealthCheck) -> Transition {
        let transition = endpoint.active().fail(failure, check.unhealthy_threshold);
        if transition == Transition::Changed {
            if endpoint.active().is_failed() {
                endpoint.mark_failed();
            }
            let _turn = self.writer();
            self.republish(&self.endpoints.load_full(), Instant::now());
        }
        transition
    }

    /// A response of `endpoint` asked to be spared at once (`x-envoy-immediate-health-check-fail`). Without an active health
    /// check, which alone could end that, nothing happens.
    pub fn fail_immediately(&self, endpoint: &Endpoint) {
        let Some(check) = self.config().health_check.clone() else { return };
        if endpoint.active().is_checked() {
            endpoint.active().exclude();
            if let Some(metrics) = self.check_metrics.get() {
                metrics.passive_failures.increment(1);
                metrics.failures.increment(1);
            }
            self.check_failed(endpoint, CheckFailure::Passive, &check);
        }
    }

    /// Whether its endpoints are to be checked and nobody does yet: who is told so calls [`health::run`].
    pub(crate) fn wants_health_checker(&self) -> bool {
        self.config().health_check.is_some() && !self.health_checker_started.swap(true, Relaxed)
    }

    /// Whether a request or a TCP connection ever had a connection of this cluster.
    pub(crate) fn has_had_traffic(&self) -> bool {
        self.had_traffic.load(Relaxed)
    }

    /// Waits for the next publication. Enable it before the state is looked at.
    pub(crate) fn published(&self) -> tokio::sync::futures::Notified<'_> {
        self.published.notified()
    }

    /// Counts where the cluster's metrics exist: a mesh has more clusters than a sidecar uses.
    fn count(&self, count: impl FnOnce(&ClusterMetrics)) {
        if let Some(metrics) = self.metrics.get() {
            count(metrics);
        }
    }

    /// Housekeeping: ends ejections at the end of an outlier detection interval and lets new endpoints warm up. To be called
    /// about once a second; cheap when there is nothing to do.
    pub fn sweep(&self, now: Instant) {
        let mut writer = self.writer();
        let set = self.endpoints.load_full();
        let mut changed = false;
        let mut outliers = Vec::new();
        if let Some(detection) = &set.config().outlier_detection {
            let due = *writer.next_review.get_or_insert(now + detection.interval);
            if now >= due {
                writer.next_review = Some(now + detection.interval);
                for endpoint in set.iter() {
                    changed |= endpoint.monitor().review(detection, now);
                }
                outliers = outlier::review_rates(set.hosts(), detection);
            }
        }
        if changed || set.is_warming() {
            self.republish(&set, now);
        }
        drop(writer);
        for (endpoint, enforcing) in outliers {
            self.eject(&endpoint, enforcing, now);
        }
    }

    /// For the admin page.
    pub fn status(&self) -> ClusterStatus {
        let mut set = self.endpoints.load_full();
        if self.asleep.load(Acquire) {
            // To be looked at is not to be used.
            let assignment = self.writer().assignment(set.config(), &set);
            set = Arc::new(EndpointSet::new(Arc::clone(set.config()), assignment, &[], Instant::now()));
        }
        ClusterStatus { name: self.name.to_string(), endpoints: set.iter().map(|e| endpoint_status(e)).collect() }
    }

    /// The same endpoints, balanced anew; those that only stayed because they were healthy go when they no longer are.
    fn republish(&self, set: &EndpointSet, now: Instant) {
        let stays = |endpoint: &&Arc<Endpoint>| !endpoint.active().is_leaving() || endpoint.may_stay();
        let hosts: Box<[_]> = set.iter().filter(stays).cloned().collect();
        self.publish(set, EndpointSet::of(Arc::clone(set.config()), Arc::clone(set.assignment()), hosts, now));
    }

    fn publish(&self, old: &EndpointSet, new: EndpointSet) {
        let new = Arc::new(new);
        let hosts: HashSet<HostId> = new.iter().map(|endpoint| endpoint.id()).collect();
        self.endpoints.store(Arc::clone(&new));
        for endpoint in old.iter().filter(|endpoint| !hosts.contains(&endpoint.id())) {
            endpoint.mark_removed();
        }
        self.count(|metrics| new.measure(metrics));
        if let Some(metrics) = self.check_metrics.get() {
            new.measure_checks(metrics);
        }
        self.published.notify_waiters();
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls_contexts(config: &config::Cluster, secrets: &Arc<Secrets>) -> Result<TlsContexts, TlsError> {
    // It connects nowhere.
    if config.discovery == ClusterDiscovery::OriginalDst {
        return Ok(Vec::new());
    }
    config
        .transport_sockets()
        .filter_map(|socket| match socket {
            TransportSocket::Tls(tls) if is_of_secrets(tls) => ClientContext::check(tls).err().map(Err),
            TransportSocket::Tls(tls) => Some(ClientContext::new(secrets, tls).map(|context| (tls.clone(), context))),
            TransportSocket::RawBuffer => None,
        })
        .collect()
}

/// Whose endpoints are checked, or get more traffic with age, has to know them from the start.
fn may_sleep(config: &config::Cluster) -> bool {
    config.health_check.is_none() && balance::slow_start(&config.lb_policy).is_none()
}

/// Whether the cluster can be made, now and later, whatever becomes of files: what TLS it has is made of secrets and is none that
/// contradicts itself.
fn is_sound_by_secrets(config: &config::Cluster) -> bool {
    config.transport_sockets().all(|socket| match socket {
        TransportSocket::Tls(tls) => is_of_secrets(tls) && ClientContext::check(tls).is_ok(),
        TransportSocket::RawBuffer => true,
    })
}

/// Nothing is read from files for it.
fn is_of_secrets(tls: &config::UpstreamTls) -> bool {
    let is_secret = |source| matches!(source, &config::CertificateSource::Secret(_));
    tls.revocation.is_none() && tls.certificate.iter().chain(&tls.trust).all(is_secret)
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.endpoints.load();
        f.debug_struct("Cluster").field("name", &self.name).field("endpoints", &set.hosts()).finish_non_exhaustive()
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

/// One more ejection keeps within the cluster's share. Small clusters never eject unless the share is large enough for one
/// host, or one may always go.
fn may_eject(endpoints: &[Arc<Endpoint>], detection: &OutlierDetection) -> bool {
    let ejected = endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
    let fits = 100 * (ejected + 1) <= detection.max_ejection_percent as usize * endpoints.len();
    fits || (detection.always_eject_one_host && ejected == 0)
}

fn endpoint_status(endpoint: &Endpoint) -> EndpointStatus {
    let config::Locality { region, zone, sub_zone } = endpoint.locality();
    EndpointStatus {
        address: endpoint.host().to_string(),
        health: endpoint.health_words(),
        active: endpoint.active_requests().into(),
        weight: endpoint.weight(),
        locality: format!("{region}/{zone}/{sub_zone}"),
        hostname: endpoint.hostname().to_string(),
        priority: endpoint.priority(),
    }
}

#[cfg(test)]
mod tests;
