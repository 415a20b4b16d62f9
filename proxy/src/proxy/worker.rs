//! Workers: threads that each run a current-thread runtime and own the connections they are given.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use super::Shared;
use crate::jwt::RemoteKeys;
use crate::listener::{self, Acceptor};
use crate::peer::{Known, Local};
use crate::telemetry::export::Exporter;
use crate::telemetry::metrics::{ListenerMetrics, ProxyMetrics};
use crate::upstream::pool::Pool;
use crate::upstream::{Cluster, dns, health};

/// How often pools and ejections are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Commands and sockets that may wait for a worker; a full queue keeps the socket on the accepting worker.
const QUEUE: usize = 1024;

/// What a worker is told.
pub(super) enum Command {
    /// Serve a connection.
    Serve(Connection),
    /// Accept on a socket; without one the address is bound first.
    Listen(Arc<Acceptor>, SocketAddr, Option<TcpListener>),
    /// Keep a DNS cluster resolved.
    Resolve(Arc<Cluster>),
    /// Keep keys of tokens fetched.
    FetchKeys(Weak<RemoteKeys>),
    /// Keep spans or log records going to their collector.
    Export(Weak<Exporter>),
    /// Keep the health of a cluster's endpoints known.
    CheckHealth(Arc<Cluster>),
    /// End, and close every connection.
    Stop,
}

/// How others see a worker.
pub(super) struct Handle {
    commands: mpsc::Sender<Command>,
    load: AtomicUsize,
}

impl Handle {
    /// Queues a command, waiting for room. Not for use on a worker's own thread.
    pub(super) fn send(&self, command: Command) {
        let mut command = command;
        // Publication may run inside a runtime, where blocking is not allowed: a full queue is waited for by hand.
        while let Err(mpsc::error::TrySendError::Full(back)) = self.commands.try_send(command) {
            command = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the tasks of a worker share; never leaves its thread.
pub struct Worker {
    /// Upstream connections.
    pub pool: Rc<Pool>,
    /// Peers that have introduced themselves.
    pub peers: Known,
    shared: Arc<Shared>,
    index: usize,
}

/// An accepted connection and its place in the counts, which it gives back when dropped.
pub struct Connection {
    stream: Option<Socket>,
    remote: SocketAddr,
    acceptor: Arc<Acceptor>,
    shared: Arc<Shared>,
    metrics: ListenerMetrics,
    worker: usize,
}

/// A socket is registered with the runtime of the worker that polls it.
enum Socket {
    Registered(TcpStream),
    Between(std::net::TcpStream),
}

impl Connection {
    /// Takes a place for a connection on the least loaded worker; `None` when the process has all it may have.
    pub fn open(acceptor: Arc<Acceptor>, stream: TcpStream, remote: SocketAddr, worker: &Worker) -> Option<Self> {
        let shared = worker.shared.clone();
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= shared.options.max_connections {
            shared.connection_closed();
            acceptor.runtime.load().metrics.connections_overflow.increment(1);
            return None;
        }
        let chosen = shared.least_loaded(worker.index);
        shared.workers[chosen].load.fetch_add(1, Ordering::Relaxed);
        acceptor.connections.fetch_add(1, Ordering::Relaxed);
        let metrics = acceptor.runtime.load().metrics.clone();
        metrics.connections_total.increment(1);
        metrics.connections_active.increment(1);
        Some(Self { stream: Some(Socket::Registered(stream)), remote, acceptor, shared, metrics, worker: chosen })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.acceptor.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.workers[self.worker].load.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections_active.decrement(1);
        if self.acceptor.stop.is_draining() {
            self.shared.metrics.drained_connections.increment(1);
        }
        self.shared.connection_closed();
    }
}

impl Shared {
    /// The worker with the fewest connections; the asking one on a tie.
    fn least_loaded(&self, own: usize) -> usize {
        let load = |index: usize| self.workers[index].load.load(Ordering::Relaxed);
        (0..self.workers.len()).min_by_key(|index| (load(*index), *index != own)).unwrap_or(own)
    }
}

impl Worker {
    /// The data plane's own metrics.
    pub fn metrics(&self) -> &ProxyMetrics {
        &self.shared.metrics
    }

    /// Who we are.
    pub fn local(&self) -> &Local {
        &self.shared.local
    }

    /// Serves a connection here or on the worker that it was counted for.
    pub fn dispatch(self: &Rc<Self>, mut connection: Connection) {
        if connection.worker == self.index {
            self.serve(connection);
            return;
        }
        if let Some(Socket::Registered(stream)) = connection.stream.take() {
            // Fails only for a socket that is no longer valid, which the serving worker then finds missing.
            connection.stream = stream.into_std().ok().map(Socket::Between);
        }
        let target = connection.worker;
        if let Err(error) = self.shared.workers[target].commands.try_send(Command::Serve(connection))
            && let Command::Serve(connection) = error.into_inner()
        {
            self.serve(connection);
        }
    }

    fn serve(self: &Rc<Self>, mut connection: Connection) {
        let worker = self.clone();
        let Some(stream) = connection.stream.take() else { return };
        let stream = match stream {
            Socket::Registered(stream) => stream,
            Socket::Between(stream) => match TcpStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepted socket cannot be polled");
                    return;
                }
            },
        };
        tokio::task::spawn_local(async move {
            let runtime = connection.acceptor.runtime.load_full();
            listener::serve(stream, connection.remote, runtime, worker).await;
            drop(connection);
        });
    }

    async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop) | None => return,
                    Some(command) => self.obey(command),
                },
                _ = sweep.tick() => {
                    self.pool.sweep();
                    if self.index == 0 {
                        self.shared.sweep(Instant::now());
                    }
                }
            }
        }
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Serve(connection) => self.serve(connection),
            Command::Listen(acceptor, address, socket) => {
                drop(tokio::task::spawn_local(acceptor.run(address, socket, self.clone())));
            }
            Command::FetchKeys(keys) => drop(tokio::task::spawn_local(RemoteKeys::run(keys, self.pool.clone()))),
            Command::Export(exporter) => drop(tokio::task::spawn_local(Exporter::run(exporter, self.pool.clone()))),
            Command::Stop => {}
            Command::CheckHealth(cluster) => {
                drop(tokio::task::spawn_local(health::run(cluster, self.shared.metrics.clone())));
            }
            Command::Resolve(cluster) => drop(tokio::task::spawn_local(async move {
                tokio::select! {
                    () = cluster.retired() => {}
                    () = dns::run(cluster.clone()) => {}
                }
            })),
        }
    }
}

/// Queues of the workers to be started: made first, so that every worker knows all the others.
pub(super) fn handles(count: usize) -> (Vec<Handle>, Vec<mpsc::Receiver<Command>>) {
    (0..count)
        .map(|_| {
            let (commands, receiver) = mpsc::channel(QUEUE);
            (Handle { commands, load: AtomicUsize::new(0) }, receiver)
        })
        .unzip()
}

/// Starts the thread of one worker. It ends with [`Command::Stop`].
///
/// # Errors
/// When thread or runtime cannot be created.
pub(super) fn start(index: usize, commands: mpsc::Receiver<Command>, shared: Arc<Shared>) -> io::Result<()> {
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, index, "worker has no runtime");
                return;
            }
        };
        let worker = Rc::new(Worker { pool: Pool::new(shared.metrics.clone()), peers: Known::default(), shared, index });
        runtime.block_on(worker.run(commands));
    })?;
    Ok(())
}
