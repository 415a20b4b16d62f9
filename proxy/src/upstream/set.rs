//! One publication of a cluster: its configuration, its endpoints, and how they are balanced.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use super::balance::{self, Balancer, Layout, PickContext};
use super::endpoint::{Endpoint, Health, LocalityGroup, is_subset};
use super::subset::Subsets;
use crate::config::{self, ClusterLoadAssignment, EndpointAddress, TransportSocket};
use crate::telemetry::metrics::{ClusterMetrics, HealthCheckMetrics};

/// One publication: a configuration and the endpoints it applies to.
#[derive(Debug)]
pub struct EndpointSet {
    config: Arc<config::Cluster>,
    assignment: Arc<ClusterLoadAssignment>,
    endpoints: Box<[Arc<Endpoint>]>,
    balancer: Balancer,
    /// Some weights change with time.
    warming: bool,
    /// Its TLS asks for the host of a request.
    asks_for_host: bool,
    subsets: Subsets,
}

impl EndpointSet {
    /// Compiles an assignment; hosts that are among `known` keep their live state.
    pub(super) fn new(
        config: Arc<config::Cluster>,
        assignment: Arc<ClusterLoadAssignment>,
        known: &[Arc<Endpoint>],
        now: Instant,
    ) -> Self {
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
                weight: locality.weight.map_or(0, NonZeroU32::get),
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
                let endpoint = Endpoint::new(endpoint, &group, transport, known, now);
                watch(&endpoint, &config);
                endpoints.push(Arc::new(endpoint));
            }
        }
        drop(taken);
        Self::of(config, assignment, endpoints.into(), now)
    }

    pub(super) fn of(
        config: Arc<config::Cluster>,
        assignment: Arc<ClusterLoadAssignment>,
        endpoints: Box<[Arc<Endpoint>]>,
        now: Instant,
    ) -> Self {
        let layout = Layout {
            config: &config,
            policy: &assignment.policy,
            now,
            locality_weighted: config.locality_weighted,
            scale_by: None,
        };
        let balancer = Balancer::new(&layout, &endpoints);
        let warming = endpoints.iter().any(|endpoint| balance::is_in_slow_start(&config.lb_policy, endpoint, now));
        let asks = |socket: &TransportSocket| matches!(socket, TransportSocket::Tls(tls) if tls.auto_sni);
        let asks_for_host = config.transport_sockets().any(asks);
        Self { config, assignment, endpoints, balancer, warming, asks_for_host, subsets: Subsets::default() }
    }

    /// With those hosts of `old` that are not here any more but pass their health checks: an assignment can be wrong about
    /// them (Envoy's eventually consistent service discovery).
    pub(super) fn keeping(self, old: &Self, now: Instant) -> Self {
        if self.config.health_check.is_none() || self.config.ignore_health_on_host_removal {
            return self;
        }
        let gone =
            |endpoint: &&Arc<Endpoint>| endpoint.may_stay() && self.endpoints.iter().all(|here| here.id() != endpoint.id());
        let kept: Vec<_> = old.iter().filter(gone).cloned().collect();
        if kept.is_empty() {
            return self;
        }
        kept.iter().for_each(|endpoint| endpoint.active().set_leaving(true));
        let endpoints = self.endpoints.into_iter().chain(kept).collect();
        Self::of(self.config, self.assignment, endpoints, now)
    }

    /// Whether connections differ by the host that they are made for ([`config::UpstreamTls::auto_sni`]).
    pub fn asks_for_host(&self) -> bool {
        self.asks_for_host
    }

    /// The configuration that this was compiled from.
    pub fn config(&self) -> &Arc<config::Cluster> {
        &self.config
    }

    /// The assignment that this was compiled from.
    pub(super) fn assignment(&self) -> &Arc<ClusterLoadAssignment> {
        &self.assignment
    }

    /// All endpoints, usable or not.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Endpoint>> {
        self.endpoints.iter()
    }

    pub(super) fn hosts(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub(super) fn is_warming(&self) -> bool {
        self.warming
    }

    /// Chooses an endpoint; `None` when none is usable.
    pub(super) fn pick(&self, context: &PickContext<'_>) -> Option<Arc<Endpoint>> {
        let Some(config) = &self.config.lb_subset else { return self.balancer.pick(context) };
        let layout = || Layout {
            config: &self.config,
            policy: &self.assignment.policy,
            now: Instant::now(),
            locality_weighted: self.config.locality_weighted && config.locality_weight_aware,
            scale_by: config.scale_locality_weight.then_some(&self.endpoints),
        };
        self.subsets.pick(config, &self.endpoints, layout, context)
    }

    /// Sets the gauges of who is there.
    pub(super) fn measure(&self, metrics: &ClusterMetrics) {
        let count = |wanted: &dyn Fn(&Endpoint) -> bool| {
            let count = self.endpoints.iter().filter(|endpoint| wanted(endpoint)).count();
            #[expect(clippy::cast_precision_loss, reason = "numbers of endpoints")]
            let count = count as f64;
            count
        };
        metrics.membership_total.set(count(&|_| true));
        metrics.membership_healthy.set(count(&|endpoint| endpoint.health() == Health::Healthy));
        metrics.membership_degraded.set(count(&|endpoint| endpoint.health() == Health::Degraded));
        metrics.membership_excluded.set(count(&Endpoint::is_excluded));
        metrics.ejections_active.set(count(&Endpoint::is_ejected));
    }

    /// Sets the gauge of who passes its checks.
    pub(super) fn measure_checks(&self, metrics: &HealthCheckMetrics) {
        let passes = |endpoint: &&Arc<Endpoint>| endpoint.active().is_checked() && !endpoint.active().is_failed();
        #[expect(clippy::cast_precision_loss, reason = "numbers of endpoints")]
        metrics.healthy.set(self.endpoints.iter().filter(passes).count() as f64);
    }
}

impl<'a> IntoIterator for &'a EndpointSet {
    type Item = &'a Arc<Endpoint>;
    type IntoIter = std::slice::Iter<'a, Arc<Endpoint>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Tells an endpoint how its health is watched from now on.
fn watch(endpoint: &Endpoint, config: &config::Cluster) {
    endpoint.monitor().configure(config.outlier_detection.as_ref());
    let active = endpoint.active();
    active.set_leaving(false);
    match (&config.health_check, endpoint.refuses_checks()) {
        (Some(_), false) if !active.is_checked() => active.begin(config.ignore_new_hosts_until_first_hc),
        (Some(_), false) => {}
        (None, _) | (_, true) => drop(active.end()),
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
