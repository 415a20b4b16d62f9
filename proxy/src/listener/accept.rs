//! Accepting: one acceptor per listener hands each socket to the worker with the fewest connections.
//!
//! A sidecar has few, long connections, so `SO_REUSEPORT` hashing would leave workers idle. With one worker nothing
//! crosses a thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::ListenerRuntime;
use crate::drain::Drain;
use crate::proxy::{Connection, Worker};

/// Connections that the kernel may hold ready for us.
const BACKLOG: i32 = 4096;
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
        let socket = match tokio::net::TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = self.runtime.load().config.name, %error, "listener cannot be polled");
                return;
            }
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.wait() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => self.hand_over(stream, remote, &worker),
                Err(error) => {
                    if let Some(pause) = self.accept_failed(&error) {
                        tokio::time::sleep(pause).await;
                    }
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

    fn hand_over(self: &Arc<Self>, stream: TcpStream, remote: SocketAddr, worker: &Rc<Worker>) {
        if let Some(connection) = Connection::open(self.clone(), stream, remote, worker) {
            worker.dispatch(connection);
        }
    }
}
