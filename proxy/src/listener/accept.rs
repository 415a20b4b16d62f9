//! Accepting: one acceptor per listener hands each socket to the worker with the fewest connections.
//!
//! A sidecar has few, long connections, so `SO_REUSEPORT` hashing would leave workers idle. With one worker nothing
//! crosses a thread.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::Notify;

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
    /// Why addresses are not bound.
    failures: Mutex<BTreeMap<SocketAddr, String>>,
    /// Told when [`Self::runtime`] may listen on other addresses.
    changed: Notify,
}

impl Acceptor {
    /// An acceptor that has yet to be [`run`](Self::run).
    pub fn new(runtime: Arc<ListenerRuntime>) -> Arc<Self> {
        Arc::new(Self {
            runtime: ArcSwap::new(runtime),
            stop: Drain::default(),
            connections: AtomicU64::new(0),
            failures: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Replaces what new connections are served by; what served them before comes back. Addresses that it does not listen on any
    /// more are left, others have to be [`run`](Self::run).
    pub fn replace(&self, runtime: Arc<ListenerRuntime>) -> Arc<ListenerRuntime> {
        let old = self.runtime.swap(runtime);
        self.changed.notify_waiters();
        old
    }

    /// Why one of its addresses is not bound.
    pub fn failure(&self) -> Option<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, reason) = failures.first_key_value()?;
        let only = self.runtime.load().config.additional_addresses.is_empty();
        Some(if only { reason.clone() } else { format!("{address}: {reason}") })
    }

    /// Notes why an address is not bound, or that it is.
    pub fn note(&self, address: SocketAddr, failure: Option<String>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(reason) => failures.insert(address, reason),
            None => failures.remove(&address),
        };
    }

    fn listens_on(&self, address: SocketAddr) -> bool {
        self.runtime.load().config.addresses().any(|own| own == address)
    }

    /// Waits until it must not accept on this address any longer.
    async fn left(&self, address: SocketAddr) {
        let leave = async {
            loop {
                // Registered first, looked at afterwards: a change in between is not missed.
                let changed = self.changed.notified();
                if !self.listens_on(address) {
                    return;
                }
                changed.await;
            }
        };
        tokio::select! {
            () = self.stop.wait() => {}
            () = leave => {}
        }
        self.note(address, None);
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

    /// Binds the address, as often as it takes.
    async fn bound(&self, address: SocketAddr) -> TcpListener {
        let mut pause = BIND_RETRY.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BIND_RETRY.1);
            match Self::bind(address) {
                Ok(socket) => {
                    tracing::info!(listener = self.runtime.load().config.name, %address, "listener is bound now");
                    self.note(address, None);
                    return socket;
                }
                Err(error) => self.note(address, Some(error.to_string())),
            }
        }
    }

    /// Accepts on one of its addresses until [`Self::stop`] begins or it is no address of its any more; without a socket it is bound first.
    pub async fn run(self: Arc<Self>, address: SocketAddr, socket: Option<TcpListener>, worker: Rc<Worker>) {
        tokio::select! {
            biased;
            () = self.left(address) => {}
            () = self.accept(address, socket, &worker) => {}
        }
    }

    async fn accept(self: &Arc<Self>, address: SocketAddr, socket: Option<TcpListener>, worker: &Rc<Worker>) {
        let socket = match socket {
            Some(socket) => socket,
            None => self.bound(address).await,
        };
        let socket = match tokio::net::TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = self.runtime.load().config.name, %error, "listener cannot be polled");
                return;
            }
        };
        loop {
            match socket.accept().await {
                Ok((stream, remote)) => self.hand_over(stream, remote, worker),
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
