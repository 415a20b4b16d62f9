//! The TCP proxy: bytes to an endpoint, with half-close, limits, a log line and metrics when it ends.
//!
//! As in Envoy the endpoint is dialled while the caller still shakes hands, and whom network RBAC refuses is told so by
//! the answer to its first byte. Unlike in Envoy no byte of the endpoint reaches a caller before RBAC has let it pass.
//!
//! Where TLS agreed on Istio's exchange of peer metadata, on either side, our preamble is the first thing written there and the
//! other's is taken off what is read, while bytes flow: neither direction waits for the other.

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
use crate::error::{Error, Side};
use crate::flags::ResponseFlags;
use crate::net::Stream;
use crate::peer::preamble::Reader;
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
    /// What the caller is told first, where it takes part in the exchange of peer metadata.
    pub introduction: Option<Arc<[u8]>>,
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
                Some(details) => {
                    let introduction = secured.introduction.is_some().then(Reader::default);
                    deny(&mut session, secured.stream, introduction, upstream, details, &life).await;
                }
                None => carry(&mut session, (secured.stream, secured.introduction), upstream, &life, worker).await,
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

/// Copies until the end, with the log lines and reports in between that are asked for.
async fn carry(
    session: &mut Session<'_>,
    (mut downstream, introduction): (Stream, Option<Arc<[u8]>>),
    mut upstream: Upstream,
    life: &Life,
    worker: &Worker,
) {
    let first = |introduction: &Option<Arc<[u8]>>| introduction.as_deref().map_or_else(BytesMut::new, BytesMut::from);
    let mut copying = Copying::new((first(&upstream.introduction), first(&introduction)));
    session.established();
    for (side, introduction) in [(Side::Downstream, &introduction), (Side::Upstream, &upstream.introduction)] {
        match introduction {
            Some(_) => copying.expect_preamble(side),
            None => session.met(side, None),
        }
    }
    let config = &session.proxy.config;
    if config.log_on_connected {
        session.log(LogMoment::TcpConnected);
    }
    let limits = life.limits();
    let mut flush = Periodic::begin(config.log_interval);
    let mut report = Periodic::begin(config.stats.as_ref().and_then(|stats| stats.tcp_reporting_duration));
    let end = loop {
        let info = &mut session.info;
        let (received, sent) = (&mut info.bytes_received, &mut info.bytes_sent);
        let pause = [flush.next, report.next].into_iter().flatten().min();
        let end = copying.run(&mut downstream, &mut upstream.stream, limits, pause, received, sent).await;
        for side in [Side::Downstream, Side::Upstream] {
            if let Some(said) = copying.introduced(side) {
                session.met(side, said.and_then(|said| worker.peers.by_preamble(&said)));
            }
        }
        match end {
            End::Paused => {
                if flush.is_due() {
                    session.log(LogMoment::TcpPeriodic);
                }
                if report.is_due() {
                    session.report();
                }
            }
            End::Introduced => {}
            end => break end,
        }
    };
    session.ended(&end);
    if session.info.flags.intersects(ResponseFlags::UPSTREAM_REMOTE_RESET) {
        downstream.reset_on_close();
    }
}

/// Something that is done again and again.
struct Periodic {
    interval: Option<Duration>,
    next: Option<Instant>,
}

impl Periodic {
    fn begin(interval: Option<Duration>) -> Self {
        let interval = interval.filter(|interval| !interval.is_zero());
        Self { interval, next: interval.map(|interval| Instant::now() + interval) }
    }

    /// Whether its time has come; the next time follows.
    fn is_due(&mut self) -> bool {
        let due = self.next.is_some_and(|at| at <= Instant::now());
        if due {
            self.next = self.next.zip(self.interval).map(|(last, interval)| last + interval);
        }
        due
    }
}

/// Waits for the first byte of a caller that network RBAC refuses, or for its farewell.
async fn deny(
    session: &mut Session<'_>,
    mut downstream: Stream,
    mut introduction: Option<Reader>,
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
                    // Who introduces itself has not asked for anything yet.
                    Ok(len) if len > 0 && introduction.is_some() => {
                        match introduction.as_mut().and_then(|reader| reader.feed(&from_caller[..len])) {
                            Some(read) => session.info.bytes_received = read.rest.len() as u64,
                            None => continue,
                        }
                    }
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
