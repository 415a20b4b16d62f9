//! The TCP proxy: bytes to an endpoint, with half-close, limits, a log line and metrics when it ends.
//!
//! As in Envoy the endpoint is dialled while the caller still shakes hands, and whom network RBAC refuses is told so by
//! the answer to its first byte. Unlike in Envoy no byte of the endpoint reaches a caller before RBAC has let it pass.

pub mod copy;
mod dial;
mod session;

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::config;
use crate::error::Error;
use crate::flags::ResponseFlags;
use crate::net::Stream;
use crate::proxy::Worker;
use crate::stream_info::{ConnectionInfo, LogMoment};
use crate::telemetry::access_log::AccessLogs;
use crate::telemetry::metrics::IstioTcpMetrics;
use crate::upstream::Cluster;
use copy::{Copying, End, Limits};
use dial::{Upstream, dial};
use session::Session;

/// Bytes of an endpoint that are read and dropped for a caller that RBAC has refused.
const WITHHELD: usize = 64 * 1024;
const CHUNK: usize = 16 * 1024;

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

/// A connection after its handshake.
pub struct Secured {
    /// The caller's bytes.
    pub stream: Stream,
    /// Facts of the connection, those of TLS included.
    pub info: Rc<ConnectionInfo>,
    /// Why network RBAC refuses it.
    pub denied: Option<Cow<'static, str>>,
}

/// Why there is nothing to copy.
enum Failure {
    Handshake(Rc<ConnectionInfo>),
    Upstream(Error),
}

/// Logs a connection that is refused before anything else happens.
pub fn refuse(proxy: &TcpProxy, info: Rc<ConnectionInfo>) {
    drop(Session::new(proxy, info));
}

/// Serves a connection. `secured` shakes hands; when that fails it gives the facts of the connection with the reason.
pub async fn serve(
    proxy: &TcpProxy,
    info: Rc<ConnectionInfo>,
    secured: impl Future<Output = Result<Secured, Rc<ConnectionInfo>>>,
    worker: &Worker,
) {
    let mut session = Session::new(proxy, info);
    let life = Life::begin(&proxy.config);
    if proxy.config.log_on_start {
        session.log(LogMoment::TcpStart);
    }
    let established = {
        let establish = async {
            let dialled = async { dial(&mut session, worker).await.map_err(Failure::Upstream) };
            let secured = async { secured.await.map_err(Failure::Handshake) };
            // The endpoint first: it is dialled even for a caller whose first bytes are its last.
            tokio::try_join!(biased; dialled, secured)
        };
        tokio::select! {
            biased;
            established = establish => Ok(established),
            end = life.over() => Err(end),
        }
    };
    match established {
        Ok(Ok((upstream, secured))) => {
            session.info.connection = secured.info;
            match secured.denied {
                Some(details) => deny(&mut session, secured.stream, upstream, details, &life).await,
                None => carry(&mut session, secured.stream, upstream, &life).await,
            }
        }
        Ok(Err(Failure::Handshake(info))) => session.info.connection = info,
        Ok(Err(Failure::Upstream(error))) => session.fail(&error),
        Err(end) => session.ended(&end),
    }
}

/// How long a connection may live, from its beginning.
struct Life {
    start: Instant,
    idle: Option<Duration>,
    max: Option<Duration>,
}

impl Life {
    fn begin(config: &config::TcpProxy) -> Self {
        let jittered = |max: Duration| max.mul_f64(1.0 + config.max_connection_duration_jitter * fastrand::f64());
        Self { start: Instant::now(), idle: config.idle_timeout, max: config.max_connection_duration.map(jittered) }
    }

    /// For what remains from now on.
    fn limits(&self) -> Limits {
        Limits { idle: self.idle, max_duration: self.max.map(|max| max.saturating_sub(self.start.elapsed())) }
    }

    /// Waits until it has been idle, or has lived, for too long.
    async fn over(&self) -> End {
        let (limit, end) = match (self.idle, self.max) {
            (idle, Some(max)) if idle.is_none_or(|idle| max < idle) => (max, End::MaxDuration),
            (Some(idle), _) => (idle, End::Idle),
            (None, _) => return std::future::pending().await,
        };
        tokio::time::sleep_until(self.start + limit).await;
        end
    }
}

/// Copies until the end, with the log lines in between that are asked for.
async fn carry(session: &mut Session<'_>, mut downstream: Stream, mut upstream: Upstream, life: &Life) {
    session.open();
    let config = &session.proxy.config;
    if config.log_on_connected {
        session.log(LogMoment::TcpConnected);
    }
    let limits = life.limits();
    let mut flush = config.log_interval.map(|interval| Instant::now() + interval);
    let mut copying = Copying::new((BytesMut::new(), BytesMut::new()));
    let end = loop {
        let info = &mut session.info;
        let (received, sent) = (&mut info.bytes_received, &mut info.bytes_sent);
        match copying.run(&mut downstream, &mut upstream.stream, limits, flush, received, sent).await {
            End::Paused => {
                session.log(LogMoment::TcpPeriodic);
                flush = flush.zip(config.log_interval).map(|(last, interval)| last + interval);
            }
            end => break end,
        }
    };
    session.ended(&end);
    if session.info.flags.intersects(ResponseFlags::UPSTREAM_REMOTE_RESET) {
        downstream.reset_on_close();
    }
}

/// Waits for the first byte of a caller that network RBAC refuses, or for its farewell.
async fn deny(
    session: &mut Session<'_>,
    mut downstream: Stream,
    mut upstream: Upstream,
    details: Cow<'static, str>,
    life: &Life,
) {
    let mut from_caller = vec![0; CHUNK];
    let mut from_endpoint = vec![0; CHUNK];
    let mut withheld = 0;
    loop {
        tokio::select! {
            biased;
            end = life.over() => return session.ended(&end),
            read = downstream.read(&mut from_caller) => {
                match read {
                    Ok(len) => session.info.bytes_received = len as u64,
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(_) => return,
                }
                session.info.termination_details = Some(details);
                return;
            }
            read = upstream.stream.read(&mut from_endpoint), if withheld < WITHHELD => match read {
                Ok(len) if len > 0 => withheld += len,
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    session.ended(&End::Upstream(error));
                    downstream.reset_on_close();
                    return;
                }
                _ => {
                    withheld = WITHHELD;
                    let _ = downstream.shutdown().await;
                }
            },
        }
    }
}
