//! The admin page: what Envoy's answers on port 15000, plus the readiness that pilot-agent answers on 15021.
//!
//! Paths, bodies and headers follow Envoy's [administration interface](https://www.envoyproxy.io/docs/envoy/latest/operations/admin),
//! so that scripts keep working. Nothing on it ever shows a private key. Reads are GET, changes are POST.

mod config_dump;
mod dump;
mod health;
mod pages;
mod readiness;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use skiff_proto::envoy::config::core::v3::Node as XdsNode;
use skiff_proxy::Proxy;
use tokio::net::TcpListener;

pub use health::probe;
pub use readiness::{Condition, Readiness};

use crate::logging::LogControl;
use crate::metrics::Metrics;
use crate::page;
use crate::shutdown::Shutdown;
use crate::xds::Originals;

/// Where it listens unless `SKIFF_ADMIN_ADDRESS` says otherwise: Envoy's port, on the loopback address.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15000);

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
    /// What istiod sent, for a sidecar that has its configuration from there.
    pub mesh: Option<FromIstiod>,
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

/// What a sidecar in a mesh can show beside its own model of the configuration.
#[derive(Clone, Debug)]
pub struct FromIstiod {
    /// Resources as they came.
    pub originals: Originals,
    /// Who it was told that we are.
    pub node: Arc<XdsNode>,
}

impl Admin {
    /// Serves until the future is dropped; open connections end with it.
    pub async fn serve(self, listener: TcpListener) {
        page::serve(listener, move |request, _| std::future::ready(pages::answer(&self, &request))).await;
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
