//! The TCP proxy: bytes to an endpoint, with half-close, limits, a log line and metrics when it ends.

pub mod copy;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use crate::config;
use crate::error::{Error, ErrorKind};
use crate::flags::ResponseFlags;
use crate::net::Stream;
use crate::proxy::Worker;
use crate::stream_info::{ConnectionInfo, FormatContext, StreamInfo};
use crate::telemetry::access_log::AccessLogs;
use crate::telemetry::metrics::{IstioTcpMetrics, TcpSample};
use crate::upstream::connect::{Connected, connect};
use crate::upstream::{Cluster, Endpoint, OpenConnection, Outcome, PickContext};
use copy::{End, Limits, copy_both_ways};

/// What [`config::TcpProxy`] is compiled into.
pub struct TcpProxy {
    /// As it was configured.
    pub config: Arc<config::TcpProxy>,
    /// Clusters with their weights; `None` where the name does not exist.
    pub clusters: Vec<(Option<Arc<Cluster>>, config::WeightedCluster)>,
    /// One line per connection.
    pub access_log: AccessLogs,
    /// Istio's metrics.
    pub metrics: Option<IstioTcpMetrics>,
}

/// A connection in the log: written and counted when dropped.
struct Session<'a> {
    proxy: &'a TcpProxy,
    info: StreamInfo,
    endpoint: Option<Arc<Endpoint>>,
    service: Option<Arc<config::Service>>,
    opened: bool,
}

impl Session<'_> {
    fn sample(&self) -> TcpSample<'_> {
        let inbound = self.info.connection.peer.as_ref();
        let outbound = self.info.upstream.as_ref().and_then(|upstream| upstream.peer.as_ref());
        let peer_principal = inbound.or(outbound).map(|peer| peer.principal());
        TcpSample {
            service: self.service.as_ref(),
            peer: self.endpoint.as_ref().and_then(|e| e.workload()),
            peer_principal,
            mtls: peer_principal.is_some(),
            flags: self.info.flags,
        }
    }

    fn open(&mut self) {
        self.opened = true;
        if let Some(metrics) = &self.proxy.metrics {
            metrics.opened(&self.sample());
        }
    }

    fn fail(&mut self, error: &Error) {
        let reply = error.kind.reply(None, false);
        self.info.flags |= reply.flag;
        if let Some(source) = &error.source {
            self.info.upstream_transport_failure = Some(Rc::from(source.to_string()));
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.proxy.metrics.as_ref().filter(|_| self.opened) {
            let sample = self.sample();
            metrics.transferred(&sample, self.info.bytes_received, self.info.bytes_sent);
            metrics.closed(&sample);
        }
        let context = FormatContext { info: &self.info, request: None, response: None, trailers: None, now: Instant::now() };
        self.proxy.access_log.log(&context);
    }
}

/// Serves a connection; `denied` holds the details when network RBAC refused it.
pub async fn serve(
    proxy: &TcpProxy,
    mut downstream: Stream,
    info: Rc<ConnectionInfo>,
    denied: Option<Cow<'static, str>>,
    worker: &Worker,
) {
    let mut session = Session { proxy, info: StreamInfo::new(info), endpoint: None, service: None, opened: false };
    if let Some(details) = denied {
        session.info.termination_details = Some(details);
        return;
    }
    let Some((cluster, subset)) = choose(proxy) else {
        session.info.flags |= ResponseFlags::NO_CLUSTER_FOUND;
        return;
    };
    session.info.upstream_cluster = Some(cluster.name().clone());
    session.service = cluster.current().config().service.clone();
    let (mut connected, _permit) = match dial(&mut session, &cluster, subset, worker).await {
        Ok(connected) => connected,
        Err(error) => {
            session.fail(&error);
            return;
        }
    };
    session.info.upstream = Some(Rc::new(connected.info));
    session.open();
    let limits = Limits { idle: proxy.config.idle_timeout, max_duration: proxy.config.max_connection_duration };
    let early = (BytesMut::new(), BytesMut::new());
    let info = &mut session.info;
    match copy_both_ways(&mut downstream, &mut connected.stream, early, limits, &mut info.bytes_received, &mut info.bytes_sent)
        .await
    {
        End::Finished => {}
        End::Idle => info.flags |= ResponseFlags::STREAM_IDLE_TIMEOUT,
        End::MaxDuration => info.flags |= ResponseFlags::DURATION_TIMEOUT,
        End::Downstream(_) => info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
        End::Upstream(_) => info.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
    }
}

fn choose(proxy: &TcpProxy) -> Option<(Arc<Cluster>, &BTreeMap<String, String>)> {
    let total: u32 = proxy.clusters.iter().map(|(_, weighted)| weighted.weight).sum();
    let mut at = if total > 0 { fastrand::u32(0..total) } else { 0 };
    for (cluster, weighted) in &proxy.clusters {
        if at < weighted.weight || total == 0 {
            return cluster.clone().map(|cluster| (cluster, &weighted.metadata_match));
        }
        at -= weighted.weight;
    }
    None
}

/// Connects, to one endpoint after the other as often as the configuration allows.
async fn dial(
    session: &mut Session<'_>,
    cluster: &Arc<Cluster>,
    subset: &BTreeMap<String, String>,
    worker: &Worker,
) -> Result<(Connected, OpenConnection), Error> {
    let attempts = session.proxy.config.max_connect_attempts.max(1);
    let mut tried = Vec::new();
    loop {
        session.info.attempts += 1;
        let permit = cluster.breakers().connections.acquire().map_err(Error::new)?;
        let attempt = session.info.attempts - 1;
        let context = PickContext { hash: None, subset: Some(subset), attempt, exclude: &tried, exclude_attempts: attempts };
        let endpoint = cluster.pick(&context).map_err(Error::new)?;
        session.info.upstream_host = Some(endpoint.host().clone());
        session.endpoint = Some(endpoint.clone());
        match connect(cluster, &endpoint, None).await {
            Ok(connected) => {
                cluster.report(&endpoint, Outcome::TcpConnected);
                return Ok((connected, OpenConnection::new(permit, cluster.metrics(worker.metrics()))));
            }
            Err(error) => {
                cluster.report(&endpoint, Outcome::LocalOriginFailure);
                cluster.metrics(worker.metrics()).connect_failures.increment(1);
                if session.info.attempts >= attempts {
                    if error.kind != ErrorKind::Overflow {
                        session.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
                    }
                    return Err(error);
                }
                tried.push(endpoint);
            }
        }
    }
}
