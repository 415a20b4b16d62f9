//! Publication: what changed is compiled and swapped in, what did not change is left alone.
//!
//! Three independent atomic publications: a listener's runtime, a route table, a cluster's endpoints. State such as pools,
//! breakers and ejections belongs to the live cluster and survives an apply.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;

use super::worker::Command;
use super::{ApplyReport, Inner, ListenerState, ListenerStatus, Rejected};
use crate::config::{self, AccessLogSink, NetworkFilter, RouteConfiguration, RouteSource, Snapshot, TrafficDirection};
use crate::drain::Drain;
use crate::http::filter::{FilterContext, Filters};
use crate::http::forwarding::Forwarding;
use crate::http::manager::ConnectionManager;
use crate::http::path::PathOptions;
use crate::http::route::RouteTable;
use crate::jwt::RemoteKeySets;
use crate::listener::{Acceptor, Filter, FilterChain, ListenerRuntime};
use crate::rbac::Engine;
use crate::tcp::TcpProxy;
use crate::telemetry::access_log::{AccessLogs, otel as otel_log};
use crate::telemetry::export::{Exporter, Exporters, Form};
use crate::telemetry::metrics::{ExportCounters, IstioHttpMetrics, IstioTcpMetrics};
use crate::telemetry::trace::Tracer;
use crate::tls::ServerContext;

/// Everything that is in force.
#[derive(Default)]
pub(super) struct Published {
    snapshot: Arc<Snapshot>,
    routes: HashMap<String, RouteSlot>,
    listeners: BTreeMap<String, Slot>,
    /// Replaced listeners that still have connections.
    leaving: Vec<Arc<Acceptor>>,
    draining: bool,
    /// Inbound connections are told to go elsewhere.
    announced: bool,
    remote_keys: RemoteKeySets,
    pub(super) exporters: Exporters,
    /// The last apply rejected something: the same snapshot is then looked at again.
    rejected: bool,
}

/// A route table that listeners hold on to, whatever happens to its contents.
struct RouteSlot {
    config: Option<Arc<RouteConfiguration>>,
    table: Arc<ArcSwap<RouteTable>>,
}

struct Slot {
    config: Arc<config::Listener>,
    acceptor: Arc<Acceptor>,
}

type Reason = String;

impl Published {
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.clone()
    }

    pub(super) fn apply(&mut self, snapshot: Arc<Snapshot>, inner: &Inner) -> ApplyReport {
        if !self.rejected && *self.snapshot == *snapshot {
            return ApplyReport { unchanged: true, ..ApplyReport::default() };
        }
        let clusters = inner.shared.clusters.publish(&snapshot);
        let rejected = clusters.rejected.into_iter().map(|(name, error)| Rejected {
            kind: "cluster",
            name: name.to_string(),
            reason: error.to_string(),
        });
        let mut report = ApplyReport { rejected: rejected.collect(), unchanged: false };
        self.apply_routes(&snapshot, clusters.changed, inner, &mut report);
        self.apply_listeners(&snapshot, inner, clusters.changed, &mut report);
        self.snapshot = snapshot;
        self.rejected = !report.rejected.is_empty();
        self.leaving.retain(|acceptor| acceptor.connections.load(Ordering::Relaxed) > 0);
        report
    }

    fn apply_routes(&mut self, snapshot: &Snapshot, clusters_changed: bool, inner: &Inner, report: &mut ApplyReport) {
        self.routes.retain(|name, slot| snapshot.routes.contains_key(name) || Arc::strong_count(&slot.table) > 1);
        for (name, config) in &snapshot.routes {
            let slot = self.routes.get(name);
            if slot.is_some_and(|slot| slot.config.as_ref() == Some(config)) && !clusters_changed {
                continue;
            }
            let before = slot.map(|slot| slot.table.load_full());
            match compile_routes(config, inner, before.as_deref()) {
                Ok(table) => {
                    let slot = self.route_slot(name);
                    slot.table.store(table);
                    slot.config = Some(config.clone());
                }
                Err(reason) => report.rejected.push(Rejected { kind: "route", name: name.clone(), reason }),
            }
        }
        for (name, slot) in &mut self.routes {
            if !snapshot.routes.contains_key(name) && slot.config.take().is_some() {
                slot.table.store(Arc::default());
            }
        }
    }

    fn route_slot(&mut self, name: &str) -> &mut RouteSlot {
        self.routes.entry(name.to_owned()).or_insert_with(|| RouteSlot { config: None, table: Arc::new(ArcSwap::default()) })
    }

    fn apply_listeners(&mut self, snapshot: &Snapshot, inner: &Inner, clusters_changed: bool, report: &mut ApplyReport) {
        // First, because a new name may want an address that goes with an old one.
        let gone: Vec<String> = self.listeners.keys().filter(|name| !snapshot.listeners.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(slot) = self.listeners.remove(&name) {
                self.retire(slot.acceptor);
            }
        }
        for (name, config) in &snapshot.listeners {
            let current = self.listeners.get(name);
            let same = current.is_some_and(|slot| slot.config == *config);
            if same && !(clusters_changed && names_clusters(config)) {
                continue;
            }
            let runtime = match self.compile_listener(config, inner) {
                Ok(runtime) => Arc::new(runtime),
                Err(reason) => {
                    report.rejected.push(Rejected { kind: "listener", name: name.clone(), reason });
                    continue;
                }
            };
            self.replace_listener(name, config, runtime, inner, same);
        }
    }

    /// `quietly`: only clusters were resolved anew, so connections need not be drained.
    fn replace_listener(
        &mut self,
        name: &str,
        config: &Arc<config::Listener>,
        runtime: Arc<ListenerRuntime>,
        inner: &Inner,
        quietly: bool,
    ) {
        if let Some(slot) = self.listeners.get_mut(name)
            && slot.config.address == config.address
        {
            let old = slot.acceptor.replace(runtime);
            let before = std::mem::replace(&mut slot.config, config.clone());
            if !self.draining {
                let known = |address: &SocketAddr| before.addresses().any(|known| known == *address);
                let new = config.addresses().filter(|address| !known(address));
                new.for_each(|address| listen(&slot.acceptor, config, address, inner));
            }
            if !quietly {
                old.drain.begin();
            }
            if self.announced {
                self.announce();
            }
            return;
        }
        // Make before break: the new address accepts before the old one stops.
        let acceptor = Acceptor::new(runtime);
        if !self.draining {
            config.addresses().for_each(|address| listen(&acceptor, config, address, inner));
        }
        if let Some(old) = self.listeners.insert(name.to_owned(), Slot { config: config.clone(), acceptor }) {
            self.retire(old.acceptor);
        }
        if self.announced {
            self.announce();
        }
    }

    fn retire(&mut self, acceptor: Arc<Acceptor>) {
        acceptor.stop.begin();
        acceptor.runtime.load().drain.begin();
        self.leaving.push(acceptor);
    }

    pub(super) fn listeners(&self) -> Vec<ListenerStatus> {
        let status = |name: &str, acceptor: &Acceptor, state| ListenerStatus {
            name: name.to_owned(),
            address: acceptor.runtime.load().config.address,
            additional_addresses: acceptor.runtime.load().config.additional_addresses.clone(),
            state,
            connections: acceptor.connections.load(Ordering::Relaxed),
        };
        let live = self.listeners.iter().map(|(name, slot)| {
            let state = match slot.acceptor.failure() {
                Some(reason) => ListenerState::Failed(reason),
                None if slot.acceptor.stop.is_draining() => ListenerState::Draining,
                None => ListenerState::Active,
            };
            status(name, &slot.acceptor, state)
        });
        let leaving = self.leaving.iter().map(|acceptor| {
            let name = acceptor.runtime.load().config.name.clone();
            status(&name, acceptor, ListenerState::Draining)
        });
        live.chain(leaving).collect()
    }

    pub(super) fn announce_drain(&mut self, inner: &Inner) {
        self.announced = true;
        inner.shared.metrics.draining.set(1.0);
        self.announce();
    }

    fn announce(&self) {
        let inbound = self.listeners.values().filter(|slot| slot.config.traffic_direction == TrafficDirection::Inbound);
        inbound.for_each(|slot| slot.acceptor.runtime.load().drain.begin());
    }

    pub(super) fn drain(&mut self, inbound_only: bool, inner: &Inner) {
        self.draining |= !inbound_only;
        inner.shared.metrics.draining.set(1.0);
        for slot in self.listeners.values() {
            if !inbound_only || slot.config.traffic_direction == TrafficDirection::Inbound {
                slot.acceptor.stop.begin();
                slot.acceptor.runtime.load().drain.begin();
            }
        }
    }

    /// Connections of listeners that have been told to drain.
    pub(super) fn draining_connections(&self) -> u64 {
        let live = self.listeners.values().map(|slot| &slot.acceptor).filter(|acceptor| acceptor.stop.is_draining());
        live.chain(&self.leaving).map(|acceptor| acceptor.connections.load(Ordering::Acquire)).sum()
    }

    fn compile_listener(&mut self, config: &Arc<config::Listener>, inner: &Inner) -> Result<ListenerRuntime, Reason> {
        let mut chains = Vec::with_capacity(config.filter_chains.len());
        for (index, chain) in config.filter_chains.iter().enumerate() {
            let compiled = self.compile_chain(chain, inner).map_err(|reason| format!("filter_chains[{index}]: {reason}"))?;
            chains.push(Arc::new(compiled));
        }
        let default_chain = match &config.default_filter_chain {
            Some(chain) => {
                let compiled = self.compile_chain(chain, inner).map_err(|reason| format!("default_filter_chain: {reason}"))?;
                Some(Arc::new(compiled))
            }
            None => None,
        };
        Ok(ListenerRuntime {
            config: config.clone(),
            chains,
            default_chain,
            access_log: self.access_logs(&config.access_log, inner)?,
            metrics: inner.shared.metrics.listener(&config.name),
            drain: Arc::new(Drain::default()),
        })
    }

    fn compile_chain(&mut self, chain: &config::FilterChain, inner: &Inner) -> Result<FilterChain, Reason> {
        let tls = chain.tls.as_ref().map(|tls| ServerContext::new(&inner.secrets, tls)).transpose();
        let rbac = chain.rbac.iter().map(|rules| Engine::compile(rules)).collect::<Result<_, _>>();
        let filter = match &chain.filter {
            NetworkFilter::Http(manager) => Filter::Http(Arc::new(self.compile_manager(manager, inner)?)),
            NetworkFilter::Tcp(proxy) => Filter::Tcp(Arc::new(self.compile_tcp(proxy, inner)?)),
        };
        Ok(FilterChain {
            name: chain.name.clone(),
            matches: chain.matches.clone(),
            tls: tls.map_err(|error| format!("tls: {error}"))?,
            handshake_timeout: chain.handshake_timeout,
            connection_limit: chain.connection_limit,
            peer_exchange: chain.peer_exchange.clone(),
            open: Arc::default(),
            rbac: rbac.map_err(|error| format!("rbac: {error}"))?,
            filter,
        })
    }

    fn compile_manager(
        &mut self,
        config: &Arc<config::HttpConnectionManager>,
        inner: &Inner,
    ) -> Result<ConnectionManager, Reason> {
        let routes = match &config.routes {
            RouteSource::Inline(routes) => {
                let table =
                    compile_routes(routes, inner, None).map_err(|reason| format!("route_config {}: {reason}", routes.name))?;
                Arc::new(ArcSwap::new(table))
            }
            RouteSource::Named(name) => self.route_slot(name).table.clone(),
        };
        Ok(ConnectionManager {
            config: config.clone(),
            routes,
            filters: Filters::compile(
                &config.filters,
                &FilterContext {
                    resolve: &|name| inner.shared.clusters.get(name),
                    metrics: &inner.shared.metrics,
                    stat_prefix: &config.stat_prefix,
                    local: &inner.shared.local,
                    remote_keys: &self.remote_keys,
                    start_fetching: &|keys| inner.shared.workers[0].send(Command::FetchKeys(keys)),
                },
            )
            .map_err(|error| format!("http_filters: {error}"))?,
            forwarding: Forwarding::from(&**config),
            path_options: PathOptions::from(&**config),
            access_log: self.access_logs(&config.access_log, inner)?,
            tracer: self.tracer(config, inner)?,
            metrics: config
                .stats
                .as_ref()
                .map(|stats| IstioHttpMetrics::new(inner.shared.metrics.registry(), inner.shared.local.node(), stats)),
        })
    }

    fn compile_tcp(&self, config: &Arc<config::TcpProxy>, inner: &Inner) -> Result<TcpProxy, Reason> {
        let resolve = |weighted: &config::WeightedCluster| (inner.shared.clusters.get(&weighted.name), weighted.clone());
        Ok(TcpProxy {
            config: config.clone(),
            clusters: config.clusters.iter().map(resolve).collect(),
            access_log: self.access_logs(&config.access_log, inner)?,
            metrics: config
                .stats
                .as_ref()
                .map(|stats| IstioTcpMetrics::new(inner.shared.metrics.registry(), inner.shared.local.node(), stats)),
        })
    }

    fn access_logs(&self, config: &[config::AccessLog], inner: &Inner) -> Result<AccessLogs, Reason> {
        let local = &inner.shared.local_info;
        let exporter = |log: &config::OtelLog| {
            self.exporter(&log.service, &otel_log::form(log, local), &inner.shared.metrics.otel_logs, inner)
        };
        AccessLogs::compile(config, &inner.logs, &exporter).map_err(|error| format!("access_log: {error}"))
    }

    fn tracer(&self, manager: &config::HttpConnectionManager, inner: &Inner) -> Result<Option<Tracer>, Reason> {
        let Some(config) = &manager.tracing else { return Ok(None) };
        let (service, form) = Tracer::export(config);
        let exporter = self.exporter(service, &form, &inner.shared.metrics.trace_spans, inner);
        let tracer = Tracer::compile(config, manager.direction, &inner.shared.local_info, exporter);
        tracer.map(Some).map_err(|error| format!("tracing: {error}"))
    }

    fn exporter(&self, service: &config::ExportService, form: &Form, counters: &ExportCounters, inner: &Inner) -> Arc<Exporter> {
        let cluster = inner.shared.clusters.get(&service.cluster);
        self.exporters.get(service, form, cluster, counters, &|new| inner.shared.workers[0].send(Command::Export(new)))
    }
}

fn compile_routes(
    config: &Arc<RouteConfiguration>,
    inner: &Inner,
    before: Option<&RouteTable>,
) -> Result<Arc<RouteTable>, Reason> {
    RouteTable::publish(config, &inner.shared.clusters, before).map(Arc::new).map_err(|error| error.to_string())
}

/// Binds at once, so that an apply can report what failed; the worker goes on trying.
fn listen(acceptor: &Arc<Acceptor>, config: &config::Listener, address: SocketAddr, inner: &Inner) {
    let socket = Acceptor::bind(address);
    if let Err(error) = &socket {
        tracing::warn!(listener = config.name, %address, %error, "listener cannot be bound, trying again");
        acceptor.note(address, Some(error.to_string()));
    }
    inner.shared.workers[0].send(Command::Listen(acceptor.clone(), address, socket.ok()));
}

/// Whether a listener holds live clusters itself, instead of by a named route table.
fn names_clusters(config: &config::Listener) -> bool {
    let exports = |logs: &[config::AccessLog]| logs.iter().any(|log| matches!(log.sink, AccessLogSink::OpenTelemetry(_)));
    let mut chains = config.filter_chains.iter().chain(&config.default_filter_chain);
    let names = |manager: &config::HttpConnectionManager| {
        matches!(manager.routes, RouteSource::Inline(_))
            || manager.filters.iter().any(config::HttpFilter::names_cluster)
            || manager.tracing.is_some()
            || exports(&manager.access_log)
    };
    exports(&config.access_log)
        || chains.any(|chain| match &chain.filter {
            NetworkFilter::Http(manager) => names(manager),
            NetworkFilter::Tcp(_) => true,
        })
}
