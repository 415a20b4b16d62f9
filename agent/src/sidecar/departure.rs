//! The end of a sidecar: what others still send is served, what the application still needs stays open, and all of it ends before
//! the container is killed.
//!
//! Of a workload that an onboarding plane has let in (times from the request to stop):
//! 1. at once: it is unregistered, and reported as not healthy;
//! 2. for the propagation delay that the plane names: it goes on serving, because others don't know yet;
//! 3. inbound: no new connections, `connection: close` and GOAWAY, what is in flight is finished;
//! 4. outbound: open until the application's containers have stopped, or the deadline.
//!
//! When the application has stopped there is nothing to wait for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use skiff_proxy::Proxy;
use skiff_proxy::config::Snapshot;
use tokio::time::{sleep, sleep_until};

use crate::onboarding::Registered;

/// Part of the deadline that is kept for finishing what is in flight, however long the propagation delay is.
const DRAIN_SHARE: u32 = 4;

/// Ends a sidecar. For `minimum` of the deadline inbound listeners go on accepting, unless the plane has a say in that.
pub(super) async fn depart(proxy: &Proxy, deadline: Duration, minimum: Duration, registered: Option<&Registered>) {
    let Some(registered) = registered else {
        let minimum = minimum.min(deadline);
        if !minimum.is_zero() {
            tracing::info!(?minimum, "draining, and still accepting (MINIMUM_DRAIN_DURATION)");
            proxy.announce_drain();
            sleep(minimum).await;
        }
        return drain(proxy, deadline - minimum).await;
    };
    let end = Instant::now() + deadline;
    let application = registered.application().stopped();
    tokio::pin!(application);
    let delay = registered.leave().await;
    let latest = end.checked_sub(deadline / DRAIN_SHARE).unwrap_or(end);
    let mut serve_until = Instant::now() + delay;
    if serve_until > latest {
        tracing::warn!(?delay, ?deadline, "the propagation delay does not fit: raise stopTimeout and SKIFF_STOP_TIMEOUT");
        serve_until = latest;
    }
    let mut stopped = tokio::select! {
        biased;
        () = &mut application => true,
        () = sleep_until(serve_until.into()) => false,
    };
    proxy.drain(true);
    let inbound = proxy.drained(left(end)).await;
    if !stopped && registered.application().is_known() {
        stopped = tokio::select! {
            biased;
            () = &mut application => true,
            () = sleep_until(end.into()) => false,
        };
        if !stopped {
            tracing::warn!(?deadline, "the application has not stopped before the deadline; its way out is closed");
        }
    }
    if stopped {
        tracing::info!("the application has stopped");
    }
    proxy.drain(false);
    report(inbound & proxy.drained(left(end)).await, deadline);
}

/// Inbound first: what the application is still answering may need its way out, so that stays open until nothing is in flight.
pub(crate) async fn drain(proxy: &Proxy, deadline: Duration) {
    let end = Instant::now() + deadline;
    let mut finished = true;
    for inbound_only in [true, false] {
        proxy.drain(inbound_only);
        finished = proxy.drained(left(end)).await;
    }
    report(finished, deadline);
}

/// Adds what is in force and would be taken away: a workload that is leaving is no part of the mesh's configuration any more, but
/// still serves.
pub(crate) fn keep(snapshot: &mut Snapshot, in_force: &Snapshot) {
    fn missing<K: Clone + Ord, T: Clone>(into: &mut BTreeMap<K, T>, from: &BTreeMap<K, T>) {
        for (name, value) in from {
            into.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    missing(&mut snapshot.listeners, &in_force.listeners);
    missing(&mut snapshot.routes, &in_force.routes);
    missing(&mut snapshot.clusters, &in_force.clusters);
    missing(&mut snapshot.endpoints, &in_force.endpoints);
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

fn report(finished: bool, deadline: Duration) {
    if finished {
        tracing::info!("drained");
    } else {
        tracing::warn!(?deadline, "some requests did not finish before the drain deadline (SKIFF_DRAIN_DEADLINE)");
    }
}
