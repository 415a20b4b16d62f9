//! Upstream HTTP connections of one worker.
//!
//! Keyed by endpoint, protocol, ALPN offer and server name, typed, owned by one thread: a request takes a connection and gives it back
//! without a lock or a task hop. Nothing connects in the background, so circuit breakers see every connection.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::connect::{Connected, Purpose, connect};
use super::{Cluster, Endpoint, HostId, OpenConnection, Outcome, Permit};
use crate::config::{AlpnOverride, UpstreamHttpOptions, UpstreamProtocol};
use crate::error::{Error, ErrorKind, Retry};
use crate::http::h1::client::{ClientConnection, ClientOptions};
use crate::http::h1::encode::HeaderCase;
use crate::http::h2::client::H2Connection;
use crate::http::head::Version;
use crate::net;
use crate::stream_info::UpstreamConnectionInfo;
use crate::telemetry::metrics::ProxyMetrics;

/// Idle time-outs below this are told by the clock, others by the last sweep.
const SHORT_IDLE: Duration = Duration::from_secs(30);
/// Idle connections that one worker keeps to one endpoint.
const MAX_IDLE_PER_HOST: usize = 256;
/// A connection for one caller is of no use once this caller is gone, which nobody tells.
const CALLER_IDLE: Duration = Duration::from_secs(60);
/// Server names that one worker remembers: a route for a wildcard takes any.
const MAX_NAMES: usize = 1024;

/// HTTP version spoken upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    /// What a cluster is spoken to in, given what the caller speaks.
    pub fn of(configured: UpstreamProtocol, downstream: Version) -> Self {
        match configured {
            UpstreamProtocol::Http1 => Self::Http1,
            UpstreamProtocol::Http2 => Self::Http2,
            UpstreamProtocol::UseDownstream if downstream == Version::Http2 => Self::Http2,
            UpstreamProtocol::UseDownstream => Self::Http1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// One per cluster, address and transport.
    endpoint: HostId,
    protocol: Protocol,
    /// Connections made with `istio.alpn`'s offer are not shared with those made without.
    alpn_overridden: bool,
    /// Of [`Names`]: the host where the endpoint's TLS asks for it, the caller where the endpoint is told; 0 is neither.
    name: u64,
    /// It serves one caller alone.
    of_caller: bool,
}

/// Server names and callers by number. One that was forgotten and comes back has another number, and so other connections.
#[derive(Default)]
struct Names {
    numbers: HashMap<Box<str>, u64>,
    last: u64,
}

impl Names {
    fn number(&mut self, name: &str) -> u64 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        if self.numbers.len() >= MAX_NAMES {
            self.numbers.clear();
        }
        self.last += 1;
        self.numbers.insert(name.into(), self.last);
        self.last
    }
}

struct Host {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    idle: Vec<Idle>,
    http2: Vec<Http2Entry>,
    /// Somebody is connecting: others wait for it instead of connecting too.
    connecting: Option<Rc<Notify>>,
    /// HTTP/1 connections of this worker, idle ones included.
    open: u32,
}

struct Idle {
    connection: Http1,
    since: Instant,
}

struct Http2Entry {
    connection: H2Connection,
    info: Rc<UpstreamConnectionInfo>,
    created: Instant,
    generation: u32,
}

/// The connections of one worker.
pub struct Pool {
    /// Keys are addresses of our own making, so no caller can choose them: a fast hash will do.
    hosts: RefCell<HashMap<Key, Host, foldhash::fast::RandomState>>,
    names: RefCell<Names>,
    metrics: Arc<ProxyMetrics>,
    /// The time of the last sweep: fine enough to tell how long a connection has been idle.
    now: Cell<Instant>,
}

/// A connection for one request.
pub enum Lease {
    /// Exclusive.
    Http1(Http1Lease),
    /// Shared with other streams.
    Http2(H2Connection, Rc<UpstreamConnectionInfo>),
    /// HTTP/1 on a connection that no pool knows.
    Own(ClientConnection, Rc<UpstreamConnectionInfo>),
}

impl Lease {
    /// Facts of the connection.
    pub fn info(&self) -> Rc<UpstreamConnectionInfo> {
        match self {
            Self::Http1(lease) => lease.http1().info.clone(),
            Self::Http2(_, info) | Self::Own(_, info) => info.clone(),
        }
    }
}

struct Http1 {
    connection: ClientConnection,
    info: Rc<UpstreamConnectionInfo>,
    created: Instant,
    requests: u32,
    /// [`Endpoint::generation`] when it was made.
    generation: u32,
    open: OpenConnection,
}

/// An HTTP/1 connection that goes back to the pool when it is dropped in a reusable state.
pub struct Http1Lease {
    inner: Option<Http1>,
    pool: Rc<Pool>,
    key: Key,
    reused: bool,
}

impl Http1Lease {
    /// The connection.
    pub fn connection(&self) -> ClientConnection {
        self.http1().connection.clone()
    }

    /// The byte stream and what was read ahead of it, for a tunnel; the permit is to be kept while the tunnel lives. `None`
    /// while another handle of the connection is alive.
    pub fn into_parts(mut self) -> Option<(net::Stream, BytesMut, OpenConnection)> {
        let http1 = self.inner.take()?;
        self.pool.forget(self.key);
        let (stream, early) = http1.connection.into_parts().ok()?;
        Some((stream, early, http1.open))
    }

    /// Whether it has served a request before.
    pub fn reused(&self) -> bool {
        self.reused
    }

    fn http1(&self) -> &Http1 {
        #[expect(clippy::expect_used, reason = "`inner` is taken only by Drop")]
        self.inner.as_ref().expect("a lease holds its connection until it is dropped")
    }
}

impl Drop for Http1Lease {
    fn drop(&mut self) {
        if let Some(mut http1) = self.inner.take() {
            http1.requests += 1;
            self.pool.give_back(self.key, http1);
        }
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(metrics: Arc<ProxyMetrics>) -> Rc<Self> {
        Rc::new(Self { hosts: RefCell::default(), names: RefCell::default(), metrics, now: Cell::new(Instant::now()) })
    }

    /// The place of a request that waits for a connection.
    fn pending(&self, cluster: &Cluster) -> Result<Permit, Error> {
        cluster.breakers().pending_requests.acquire().map_err(|kind| {
            cluster.metrics(&self.metrics).pending_overflow.increment(1);
            Error::new(kind)
        })
    }

    /// Connects, and counts what comes of it.
    async fn connect(&self, cluster: &Cluster, endpoint: &Endpoint, purpose: Purpose<'_>) -> Result<Connected, Error> {
        let connected = connect(cluster, endpoint, purpose).await;
        match &connected {
            Ok(_) => cluster.report(endpoint, Outcome::Connected),
            Err(_) => cluster.metrics(&self.metrics).connect_failures.increment(1),
        }
        connected
    }

    /// A connection to `endpoint`: an idle one, or a new one when the cluster's limits allow. Of `host`, the one that is asked
    /// for without its port, where the cluster's TLS wants to know it; for `caller` alone, as
    /// [`Purpose`] has it, where there is one: only where the cluster is told about callers (`proxy_protocol`).
    ///
    /// # Errors
    /// What [`connect`] gives; [`ErrorKind::Overflow`] when too many requests wait already.
    pub async fn get(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        protocol: Protocol,
        alpn: Option<&AlpnOverride>,
        host: Option<&str>,
        caller: Option<(SocketAddr, SocketAddr)>,
    ) -> Result<Lease, Error> {
        let host = host.filter(|_| cluster.current().asks_for_host());
        let name = match (host, caller) {
            (None, None) => 0,
            (Some(host), None) => self.names.borrow_mut().number(host),
            (host, Some((from, to))) => self.names.borrow_mut().number(&format!("{from} {to} {}", host.unwrap_or_default())),
        };
        let of_caller = caller.is_some();
        let key = Key { endpoint: endpoint.id(), protocol, alpn_overridden: alpn.is_some(), name, of_caller };
        let alpn = alpn.map(|alpn| match protocol {
            Protocol::Http1 => alpn.http1.as_slice(),
            Protocol::Http2 => alpn.http2.as_slice(),
        });
        let purpose = Purpose { alpn, host, caller };
        match protocol {
            Protocol::Http1 => match self.take_idle(key) {
                Some(inner) => Ok(self.lease(key, inner, true)),
                None => Box::pin(self.connect_http1(cluster, endpoint, key, purpose)).await,
            },
            Protocol::Http2 => match self.shared_http2(key) {
                Some(lease) => Ok(lease),
                None => Box::pin(self.connect_http2(cluster, endpoint, key, purpose)).await,
            },
        }
    }

    fn lease(self: &Rc<Self>, key: Key, inner: Http1, reused: bool) -> Lease {
        Lease::Http1(Http1Lease { inner: Some(inner), pool: self.clone(), key, reused })
    }

    fn take_idle(&self, key: Key) -> Option<Http1> {
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.get_mut(&key)?;
        // Last in, first out: the warmest connection serves, the others get the chance to time out.
        let generation = host.endpoint.generation();
        let timeout = short_idle_timeout(&host.cluster.current().config().http);
        while let Some(idle) = host.idle.pop() {
            let mut quiet = Context::from_waker(std::task::Waker::noop());
            let fresh = idle.connection.generation == generation && timeout.is_none_or(|max| idle.since.elapsed() < max);
            if fresh && idle.connection.connection.poll_idle(&mut quiet).is_pending() {
                return Some(idle.connection);
            }
            host.open -= 1;
        }
        None
    }

    fn give_back(&self, key: Key, http1: Http1) {
        let mut hosts = self.hosts.borrow_mut();
        let Some(host) = hosts.get_mut(&key) else { return };
        let current = host.cluster.current();
        let limits = &current.config().http;
        let worn = http1.generation != host.endpoint.generation()
            || limits.max_requests_per_connection.is_some_and(|max| http1.requests >= max)
            || limits.max_connection_duration.is_some_and(|max| http1.created.elapsed() >= max);
        if worn || host.endpoint.is_removed() || host.idle.len() >= MAX_IDLE_PER_HOST || !http1.connection.is_reusable() {
            host.open -= 1;
        } else {
            let since = if short_idle_timeout(limits).is_some() { Instant::now() } else { self.now.get() };
            host.idle.push(Idle { connection: http1, since });
        }
        host.cluster.connection_released().notify_one();
    }

    /// A connection left for good.
    fn forget(&self, key: Key) {
        if let Some(host) = self.hosts.borrow_mut().get_mut(&key) {
            host.open -= 1;
        }
    }

    fn with_host<T>(&self, key: Key, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, f: impl FnOnce(&mut Host) -> T) -> T {
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.entry(key).or_insert_with(|| Host {
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            idle: Vec::new(),
            http2: Vec::new(),
            connecting: None,
            open: 0,
        });
        if !Arc::ptr_eq(&host.cluster, cluster) {
            host.cluster = cluster.clone();
        }
        f(host)
    }

    /// A place for one more connection of the cluster. As in Envoy, a worker that has none at all may make one above the limit:
    /// otherwise it could never serve.
    fn place(&self, key: Key, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Result<Permit, ErrorKind> {
        let connections = &cluster.breakers().connections;
        connections.acquire().or_else(|kind| {
            if self.with_host(key, cluster, endpoint, |host| host.open == 0 && host.http2.is_empty()) {
                return Ok(connections.acquire_over_limit());
            }
            cluster.metrics(&self.metrics).connection_overflow.increment(1);
            Err(kind)
        })
    }

    async fn connect_http1(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        key: Key,
        purpose: Purpose<'_>,
    ) -> Result<Lease, Error> {
        let _pending = self.pending(cluster)?;
        let permit = loop {
            match self.place(key, cluster, endpoint) {
                Ok(permit) => break permit,
                Err(_) => {
                    let released = cluster.connection_released().notified();
                    if let Some(inner) = self.take_idle(key) {
                        return Ok(self.lease(key, inner, true));
                    }
                    // A connection of another worker may be the one that was released, hence the bound.
                    let _ = tokio::time::timeout(Duration::from_millis(50), released).await;
                    if let Some(inner) = self.take_idle(key) {
                        return Ok(self.lease(key, inner, true));
                    }
                }
            }
        };
        let opening = Opening::new(self, key, cluster, endpoint);
        let generation = endpoint.generation();
        let connected = self.connect(cluster, endpoint, purpose).await?;
        let open = OpenConnection::new(permit, cluster.metrics(&self.metrics));
        opening.done.set(true);
        let options = Rc::new(client_options(&cluster.current().config().http));
        let connection = ClientConnection::new(connected.stream, options);
        let inner = Http1 { connection, info: Rc::new(connected.info), created: Instant::now(), requests: 0, generation, open };
        Ok(self.lease(key, inner, false))
    }

    fn shared_http2(&self, key: Key) -> Option<Lease> {
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.get_mut(&key)?;
        let current = host.cluster.current();
        let limits = &current.config().http;
        host.http2.retain(|entry| entry.connection.is_open());
        let generation = host.endpoint.generation();
        let usable = |entry: &&Http2Entry| {
            entry.generation == generation
                && (entry.connection.active() > 0
                    || short_idle_timeout(limits).is_none_or(|max| entry.connection.idle_since().elapsed() < max))
                && limits.max_concurrent_streams.is_none_or(|max| entry.connection.active() < max)
                && limits.max_requests_per_connection.is_none_or(|max| entry.connection.opened() < max)
                && limits.max_connection_duration.is_none_or(|max| entry.created.elapsed() < max)
        };
        let entry = host.http2.iter().find(usable)?;
        Some(Lease::Http2(entry.connection.clone(), entry.info.clone()))
    }

    async fn connect_http2(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        key: Key,
        purpose: Purpose<'_>,
    ) -> Result<Lease, Error> {
        let _pending = self.pending(cluster)?;
        loop {
            if let Some(lease) = self.shared_http2(key) {
                return Ok(lease);
            }
            let other = self.with_host(key, cluster, endpoint, |host| host.connecting.clone());
            let Some(other) = other else { break };
            other.notified().await;
        }
        let permit = self.place(key, cluster, endpoint).map_err(Error::new)?;
        let connecting = Connecting::new(self, key, cluster, endpoint);
        let generation = endpoint.generation();
        let connected = self.connect(cluster, endpoint, purpose).await?;
        let open = OpenConnection::new(permit, cluster.metrics(&self.metrics));
        if connected.info.tls_version.is_some() && !speaks_http2(connected.alpn.as_deref()) {
            let refused = std::io::Error::other("upstream did not agree on HTTP/2");
            return Err(Error::with_source(ErrorKind::UpstreamProtocol, refused).retry(Retry::Yes));
        }
        let connection = H2Connection::open(connected.stream, move || drop(open));
        let info = Rc::new(connected.info);
        let entry = Http2Entry { connection: connection.clone(), info: info.clone(), created: Instant::now(), generation };
        self.with_host(key, cluster, endpoint, |host| host.http2.push(entry));
        drop(connecting);
        Ok(Lease::Http2(connection, info))
    }

    /// Closes what has been idle for too long, what the upstream has closed, and what belongs to removed endpoints.
    /// The worker calls it about once a second.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.now.set(now);
        self.hosts.borrow_mut().retain(|key, host| {
            let removed = host.endpoint.is_removed();
            let generation = host.endpoint.generation();
            let current = host.cluster.current();
            let limits = &current.config().http;
            let passed = |limit: Option<Duration>, since: Instant| limit.is_some_and(|max| now.duration_since(since) >= max);
            let idle_timeout = match limits.idle_timeout {
                configured if !key.of_caller => configured,
                configured => Some(configured.map_or(CALLER_IDLE, |timeout| timeout.min(CALLER_IDLE))),
            };
            let worn = |idle: Instant, created: Instant, of: u32| {
                removed || of != generation || passed(idle_timeout, idle) || passed(limits.max_connection_duration, created)
            };
            let before = host.idle.len();
            host.idle.retain(|idle| {
                let mut quiet = Context::from_waker(std::task::Waker::noop());
                let http1 = &idle.connection;
                !worn(idle.since, http1.created, http1.generation) && http1.connection.poll_idle(&mut quiet) == Poll::Pending
            });
            host.open -= u32::try_from(before - host.idle.len()).unwrap_or(0);
            host.http2.retain(|entry| {
                let connection = &entry.connection;
                let close = connection.active() == 0 && worn(connection.idle_since(), entry.created, entry.generation);
                if close {
                    connection.close();
                }
                !close && connection.is_open()
            });
            host.open > 0 || !host.http2.is_empty() || host.connecting.is_some()
        });
    }
}

/// An idle time-out that a sweep would notice too late.
fn short_idle_timeout(limits: &UpstreamHttpOptions) -> Option<Duration> {
    limits.idle_timeout.filter(|timeout| *timeout < SHORT_IDLE)
}

fn client_options(config: &UpstreamHttpOptions) -> ClientOptions {
    let case = if config.preserve_case { HeaderCase::Preserve } else { HeaderCase::Lower };
    let mut options = ClientOptions { enable_trailers: config.enable_trailers, case, ..ClientOptions::default() };
    options.limits.preserve_case = config.preserve_case;
    options
}

/// Whether the agreed ALPN stands for HTTP/2; Istio's own names included. No ALPN at all is a peer that was configured for it.
fn speaks_http2(alpn: Option<&[u8]>) -> bool {
    !matches!(alpn, Some(b"http/1.1" | b"http/1.0" | b"istio-http/1.1" | b"istio-http/1.0"))
}

/// Counts a connection that is being made; a failure or a cancelled request takes it back.
struct Opening<'a> {
    pool: &'a Rc<Pool>,
    key: Key,
    done: Cell<bool>,
}

impl<'a> Opening<'a> {
    fn new(pool: &'a Rc<Pool>, key: Key, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Self {
        pool.with_host(key, cluster, endpoint, |host| host.open += 1);
        Self { pool, key, done: Cell::new(false) }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.done.get()
            && let Some(host) = self.pool.hosts.borrow_mut().get_mut(&self.key)
        {
            host.open -= 1;
        }
    }
}

/// Announces that an HTTP/2 connection is being made; wakes the others whatever comes of it.
struct Connecting<'a> {
    pool: &'a Rc<Pool>,
    key: Key,
    notify: Rc<Notify>,
}

impl<'a> Connecting<'a> {
    fn new(pool: &'a Rc<Pool>, key: Key, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Self {
        let notify = Rc::new(Notify::new());
        pool.with_host(key, cluster, endpoint, |host| host.connecting = Some(notify.clone()));
        Self { pool, key, notify }
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.pool.hosts.borrow_mut().get_mut(&self.key) {
            host.connecting = None;
        }
        self.notify.notify_waiters();
    }
}
