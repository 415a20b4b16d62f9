//! Accepting: one acceptor per listener hands each socket to the worker with the fewest connections.
//!
//! A sidecar has few, long connections, so `SO_REUSEPORT` hashing would leave workers idle. With one worker nothing
//! crosses a thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::{Drain, ListenerRuntime};
use crate::proxy::{Connection, Worker};

/// Connections that the kernel may hold ready for us.
const BACKLOG: i32 = 4096;
/// Sockets taken per wake-up, so that one busy listener cannot starve the connections of its worker.
const ACCEPTS_PER_WAKE: usize = 16;
/// Pauses between attempts to bind an address that is taken.
const BIND_RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Pause when the process or the system is out of file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A listener that is bound, or waits to be.
pub struct Acceptor {
    /// What new connections are served by.
    pub runtime: ArcSwap<ListenerRuntime>,
    /// Begins when it must stop accepting.
    pub stop: Drain,
    /// Open connections.
    pub connections: AtomicU64,
    /// Why it is not bound.
    pub failure: ArcSwapOption<String>,
}

impl Acceptor {
    /// An acceptor that has yet to be [`run`](Self::run).
    pub fn new(runtime: Arc<ListenerRuntime>) -> Arc<Self> {
        Arc::new(Self {
            runtime: ArcSwap::new(runtime),
            stop: Drain::default(),
            connections: AtomicU64::new(0),
            failure: ArcSwapOption::empty(),
        })
    }

    /// Binds an address.
    ///
    /// # Errors
    /// As the system says; `AddrInUse` and `PermissionDenied` are the usual ones.
    pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    /// Binds the address, as often as it takes. `None` when [`Self::stop`] begins first.
    async fn bound(&self) -> Option<TcpListener> {
        let mut pause = BIND_RETRY.0;
        loop {
            tokio::select! {
                () = self.stop.wait() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BIND_RETRY.1);
            let config = self.runtime.load().config.clone();
            match Self::bind(config.address) {
                Ok(socket) => {
                    tracing::info!(listener = config.name, address = %config.address, "listener is bound now");
                    self.failure.store(None);
                    return Some(socket);
                }
                Err(error) => self.failure.store(Some(Arc::new(error.to_string()))),
            }
        }
    }

    /// Accepts until [`Self::stop`] begins; without a socket the address is bound first.
    pub async fn run(self: Arc<Self>, socket: Option<TcpListener>, worker: Rc<Worker>) {
        let socket = match socket {
            Some(socket) => socket,
            None => match self.bound().await {
                Some(socket) => socket,
                None => return,
            },
        };
        let socket = match AsyncFd::new(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = self.runtime.load().config.name, %error, "listener cannot be polled");
                return;
            }
        };
        loop {
            let ready = tokio::select! {
                biased;
                () = self.stop.wait() => return,
                ready = socket.readable() => ready,
            };
            let Ok(mut ready) = ready else { return };
            for _ in 0..ACCEPTS_PER_WAKE {
                match ready.try_io(|socket| socket.get_ref().accept()) {
                    Ok(Ok((stream, remote))) => self.hand_over(stream, remote, &worker),
                    Ok(Err(error)) => {
                        if let Some(pause) = self.accept_failed(&error) {
                            tokio::time::sleep(pause).await;
                        }
                        break;
                    }
                    Err(_would_block) => break,
                }
            }
        }
    }

    fn accept_failed(&self, error: &io::Error) -> Option<Duration> {
        // The caller gave up while it was queued: nothing is wrong here.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
        {
            return None;
        }
        tracing::warn!(listener = self.runtime.load().config.name, %error, "accept failed");
        Some(EXHAUSTED_PAUSE)
    }

    fn hand_over(self: &Arc<Self>, stream: std::net::TcpStream, remote: SocketAddr, worker: &Rc<Worker>) {
        let limit = self.runtime.load().config.max_connections.map_or(u64::MAX, u64::from);
        if self.connections.load(Ordering::Relaxed) >= limit || stream.set_nonblocking(true).is_err() {
            worker.metrics().connection_refused(&self.runtime.load().config.name);
            return;
        }
        if let Some(connection) = Connection::open(self.clone(), stream, remote, worker) {
            worker.dispatch(connection);
        }
    }
}
