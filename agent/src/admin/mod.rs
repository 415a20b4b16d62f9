//! The admin page: what Envoy's answers on port 15000, plus the readiness that pilot-agent answers on 15021.
//!
//! Paths, bodies and headers follow Envoy's [administration interface](https://www.envoyproxy.io/docs/envoy/latest/operations/admin),
//! so that scripts keep working. Nothing on it ever shows a private key. Reads are GET, changes are POST.

mod dump;
mod health;
mod pages;
mod readiness;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use skiff_proxy::Proxy;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use health::probe;
pub use readiness::{Condition, Readiness};

use crate::logging::LogControl;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// Where it listens unless `SKIFF_ADMIN_ADDRESS` says otherwise: Envoy's port, on the loopback address.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15000);

/// Connections at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// From the first byte of a request head to its end.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a connection; each carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to accept when the process is out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Head size.
const MAX_HEAD: usize = 16 * 1024;

/// What the admin page shows and acts upon.
#[derive(Clone)]
pub struct Admin {
    /// The data plane.
    pub proxy: Proxy,
    /// Its metrics and the agent's.
    pub metrics: Metrics,
    /// Log levels.
    pub logging: LogControl,
    /// Whether it may get traffic.
    pub readiness: Readiness,
    /// `/quitquitquit` asks it for the end.
    pub shutdown: Shutdown,
    /// Who we are in the mesh, for `/server_info`.
    pub node: Node,
    /// Uptime is counted from here.
    pub started: Instant,
}

/// Who a sidecar is in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Istio's node id, `sidecar~<address>~<workload>.<namespace>~<namespace>.svc.cluster.local`.
    pub id: String,
    /// Istio's service cluster, `<canonical service>.<namespace>`.
    pub cluster: String,
}

impl Admin {
    /// Serves until the future is dropped; open connections end with it.
    pub async fn serve(self, listener: TcpListener) {
        let admin = Arc::new(self);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = Arc::clone(&admin);
                    connections.spawn(async move {
                        let _permit = permit;
                        // A peer that is too slow or breaks off is its own problem.
                        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, admin.serve_connection(stream)).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "admin page cannot accept");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    async fn serve_connection(&self, stream: TcpStream) -> Result<(), hyper::Error> {
        let service = service_fn(|request: http::Request<Incoming>| async move {
            Ok::<_, Infallible>(pages::answer(self, &request).map(Full::new))
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
    }
}

/// Binds the admin page.
///
/// # Errors
/// With the address and the variable to change it, when it cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("admin page: cannot listen on {address} (SKIFF_ADMIN_ADDRESS): {error}"))
    })
}
