//! Active health checking: one checker per cluster in the whole process, on worker 0, with connections of its own.
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/health_checking>. [`run`] keeps one task
//! per endpoint; a result goes to [`Cluster`], which balances anew when it changes anything.

mod flags;
mod grpc;
mod http;
mod probe;
mod tcp;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

pub(super) use self::flags::ActiveHealth;
pub(crate) use self::flags::{CheckFailure, Transition};
use self::probe::Prober;
use super::{Cluster, Endpoint, HostId};
use crate::config::{HealthCheck, HealthCheckIntervals};
use crate::telemetry::metrics::{HealthCheckMetrics, ProxyMetrics};

/// No faster than this, whatever the configuration says.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// Checks the endpoints of `cluster`, whichever it has, until it leaves the configuration. Runs on a worker.
///
/// # Cancel safety
/// May be dropped at any time; what is known of the endpoints stays.
pub async fn run(cluster: Arc<Cluster>, metrics: Arc<ProxyMetrics>) {
    let mut sessions = Sessions::default();
    let mut retired = pin!(cluster.retired());
    loop {
        let mut published = pin!(cluster.published());
        published.as_mut().enable();
        sessions.follow(&cluster, &metrics);
        tokio::select! {
            () = published => {}
            () = &mut retired => return,
        }
    }
}

/// The tasks of one cluster.
#[derive(Default)]
struct Sessions {
    check: Option<Arc<HealthCheck>>,
    by_host: HashMap<HostId, Session>,
}

/// The task of one endpoint, which ends with it.
struct Session {
    endpoint: Arc<Endpoint>,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sessions {
    /// Starts and ends tasks as the publication in force asks for.
    fn follow(&mut self, cluster: &Arc<Cluster>, metrics: &ProxyMetrics) {
        let set = cluster.endpoints();
        let check = set.config().health_check.clone();
        if check != self.check {
            self.by_host.clear();
            self.check.clone_from(&check);
        }
        let Some(check) = check else { return };
        let wanted: HashMap<HostId, &Arc<Endpoint>> =
            set.iter().filter(|endpoint| endpoint.active().is_checked()).map(|endpoint| (endpoint.id(), endpoint)).collect();
        self.by_host.retain(|id, session| {
            wanted.get(id).is_some_and(|endpoint| endpoint.health_check() == session.endpoint.health_check())
        });
        for (id, endpoint) in wanted {
            if let Entry::Vacant(vacant) = self.by_host.entry(id) {
                let metrics = cluster.check_metrics(metrics).clone();
                let task = session(Arc::clone(cluster), Arc::clone(endpoint), Arc::clone(&check), metrics);
                vacant.insert(Session { endpoint: Arc::clone(endpoint), task: tokio::task::spawn_local(task) });
            }
        }
    }
}

/// Checks one endpoint, again and again.
async fn session(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>, check: Arc<HealthCheck>, metrics: HealthCheckMetrics) {
    let mut prober = Prober::new(Arc::clone(&cluster), Arc::clone(&endpoint), Arc::clone(&check));
    let initial = check.intervals.initial_jitter;
    if !initial.is_zero() {
        tokio::time::sleep(initial.mul_f64(fastrand::f64())).await;
    }
    loop {
        metrics.attempts.increment(1);
        let result = tokio::time::timeout(check.timeout, prober.check()).await;
        let result = result.unwrap_or_else(|_| {
            prober.disconnect();
            Err(CheckFailure::NetworkTimeout)
        });
        let transition = match result {
            Ok(success) => {
                metrics.successes.increment(1);
                cluster.check_succeeded(&endpoint, success.degraded, &check)
            }
            Err(failure) => {
                metrics.failures.increment(1);
                metrics.network_failures.increment(u64::from(failure.is_network()));
                cluster.check_failed(&endpoint, failure, &check)
            }
        };
        if transition == Transition::Changed {
            tracing::info!(cluster = %cluster.name(), host = %endpoint.host(), health = %endpoint.health_words(), "health changed");
        }
        tokio::time::sleep(pause(&check.intervals, result.is_ok(), transition, cluster.has_had_traffic())).await;
    }
}

/// What a check that succeeded says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Success {
    /// The endpoint would rather be spared.
    degraded: bool,
}

/// Time to the next check.
fn pause(intervals: &HealthCheckIntervals, healthy: bool, transition: Transition, traffic: bool) -> Duration {
    let edge = transition == Transition::Pending;
    let base = match (traffic, healthy, edge) {
        (true, true, false) => intervals.interval,
        (true, true, true) => intervals.healthy_edge,
        (true, false, false) => intervals.unhealthy,
        (true, false, true) => intervals.unhealthy_edge,
        (false, true, false) => intervals.no_traffic_healthy,
        (false, _, _) => intervals.no_traffic,
    };
    let share = base.mul_f64(f64::from(intervals.jitter_percent) / 100.0 * fastrand::f64());
    (base + share + intervals.jitter.mul_f64(fastrand::f64())).max(MIN_INTERVAL)
}

#[cfg(test)]
mod tests;
