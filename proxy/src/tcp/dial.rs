//! Finding an endpoint that answers: a weighted cluster for each attempt, one endpoint after the other.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::TcpProxy;
use super::session::Session;
use crate::config::Backoff;
use crate::error::{Error, ErrorKind};
use crate::flags::ResponseFlags;
use crate::http::hash;
use crate::net::Stream;
use crate::proxy::Worker;
use crate::upstream::connect::{Purpose, connect};
use crate::upstream::{Cluster, Endpoint, OpenConnection, Outcome, Permit, PickContext};

/// A connection to an endpoint, with its place in the cluster's limit.
pub(super) struct Upstream {
    pub(super) stream: Stream,
    /// What the endpoint is told first, where it takes part in the exchange of peer metadata.
    pub(super) introduction: Option<Arc<[u8]>>,
    _permit: OpenConnection,
}

/// Connects, as often as the configuration allows; the session learns what was tried.
///
/// # Errors
/// Those of [`connect`], and what keeps from trying: no cluster, no usable endpoint, an open breaker.
pub(super) async fn dial(session: &mut Session<'_>, worker: &Worker) -> Result<Upstream, Error> {
    let proxy = session.proxy;
    let attempts = proxy.config.max_connect_attempts.max(1);
    let mut tried = Vec::new();
    loop {
        let (cluster, subset) = choose(proxy).ok_or_else(|| Error::new(ErrorKind::NoCluster(503)))?;
        session.info.upstream_cluster = Some(cluster.name().clone());
        session.service.clone_from(&cluster.current().config().service);
        let permit = cluster.breakers().connections.acquire().map_err(|kind| {
            cluster.metrics(worker.metrics()).connection_overflow.increment(1);
            Error::new(kind)
        })?;
        let endpoint = pick(session, &cluster, subset, &tried)?;
        session.info.attempts += 1;
        match attempt(session, &cluster, &endpoint, permit, worker).await {
            Ok(upstream) => return Ok(upstream),
            Err(error) if session.info.attempts >= attempts => {
                session.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
                return Err(error);
            }
            Err(error) => session.fail(&error),
        }
        tried.push(endpoint);
        if let Some(backoff) = &proxy.config.backoff {
            tokio::time::sleep(jittered(backoff, session.info.attempts)).await;
        }
    }
}

fn choose(proxy: &TcpProxy) -> Option<(Arc<Cluster>, &BTreeMap<String, String>)> {
    let total: u64 = proxy.clusters.iter().map(|(_, weighted)| u64::from(weighted.weight)).sum();
    let mut at = if total > 0 { fastrand::u64(0..total) } else { 0 };
    for (cluster, weighted) in &proxy.clusters {
        if at < u64::from(weighted.weight) || total == 0 {
            return cluster.clone().map(|cluster| (cluster, &weighted.metadata_match));
        }
        at -= u64::from(weighted.weight);
    }
    None
}

fn pick(
    session: &Session<'_>,
    cluster: &Cluster,
    subset: &BTreeMap<String, String>,
    tried: &[Arc<Endpoint>],
) -> Result<Arc<Endpoint>, Error> {
    let config = &session.proxy.config;
    let context = PickContext {
        hash: config.hash_source_ip.then(|| hash::of_address(session.info.connection.remote.ip())),
        subset: Some(subset),
        attempt: session.info.attempts,
        exclude: tried,
        exclude_attempts: config.max_connect_attempts,
        previous_priorities: None,
    };
    cluster.pick(&context).map_err(Error::new)
}

async fn attempt(
    session: &mut Session<'_>,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
    permit: Permit,
    worker: &Worker,
) -> Result<Upstream, Error> {
    let caller = Some((session.info.connection.remote, session.info.connection.local));
    let connected = connect(cluster, endpoint, Purpose { caller, ..Purpose::default() }).await;
    session.info.upstream_host = Some(endpoint.host().clone());
    session.endpoint = Some(endpoint.clone());
    match connected {
        Ok(connected) => {
            cluster.report(endpoint, Outcome::TcpConnected);
            session.info.upstream = Some(Rc::new(connected.info));
            let config = cluster.config();
            let exchange = config.peer_exchange.as_deref().filter(|exchange| exchange.is_agreed(connected.alpn.as_deref()));
            Ok(Upstream {
                stream: connected.stream,
                introduction: exchange.map(|exchange| worker.local().preamble(&exchange.additional_labels)),
                _permit: OpenConnection::new(permit, cluster.metrics(worker.metrics())),
            })
        }
        Err(error) => {
            cluster.report(endpoint, Outcome::LocalOriginFailure);
            cluster.metrics(worker.metrics()).connect_failures.increment(1);
            Err(error)
        }
    }
}

/// A random part of a pause that doubles with every attempt.
fn jittered(backoff: &Backoff, attempts: u32) -> std::time::Duration {
    let doubled = backoff.base.saturating_mul(1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(backoff.max).mul_f64(fastrand::f64())
}
