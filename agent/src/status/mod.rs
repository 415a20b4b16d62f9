//! The ports that Istio's tools and Kubernetes ask a workload on, as istio-agent and the listeners of its Envoy bootstrap have them.
//!
//! | Port | What |
//! |---|---|
//! | 15020 | istio-agent's own: readiness, merged metrics, probes of the application, `/drain`, `/quitquitquit` |
//! | 15021 | readiness for load balancers and probes, nothing else |
//! | 15090 | the sidecar's metrics alone |
//!
//! Nothing here keeps traffic from flowing: a port that is taken is a warning and is tried again.

mod accept;
mod exposition;
mod grpc;
mod pages;
mod probes;
mod scrape;

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use probes::AppProbes;
pub use scrape::ScrapeTargets;

use crate::admin::Readiness;
use crate::metrics::Metrics;
use crate::page::{self, Body};
use crate::shutdown::Shutdown;
use pages::Pages;

/// Where the ports are unless `SKIFF_STATUS_ADDRESS` says otherwise.
pub const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Between two attempts to listen on a port that is taken.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Settings of the status ports.
#[derive(Clone, Debug)]
pub struct StatusConfig {
    /// All ports listen on it (`SKIFF_STATUS_ADDRESS`).
    pub address: IpAddr,
    /// Which ports.
    pub ports: Ports,
    /// Whose metrics are merged with ours (`ISTIO_PROMETHEUS_ANNOTATIONS`).
    pub scrape: ScrapeTargets,
    /// Kubernetes' probes of the application (`ISTIO_KUBE_APP_PROBERS`).
    pub probes: AppProbes,
    /// Only the machine itself may see merged metrics (`METRICS_LOCALHOST_ACCESS_ONLY`).
    pub metrics_for_localhost_only: bool,
}

/// Ports; 0 switches one off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// istio-agent's (`SKIFF_STATUS_PORT`, `statusPort` of the proxy configuration).
    pub status: u16,
    /// Readiness (`ENVOY_STATUS_PORT`).
    pub health: u16,
    /// The sidecar's metrics (`ENVOY_PROMETHEUS_PORT`).
    pub metrics: u16,
}

impl Ports {
    /// Istio's.
    pub const ISTIO: Self = Self { status: 15020, health: 15021, metrics: 15090 };
    /// None.
    pub const OFF: Self = Self { status: 0, health: 0, metrics: 0 };
}

/// Serves the status ports of one sidecar.
pub struct Status {
    config: StatusConfig,
    pages: Arc<Pages>,
}

impl Status {
    /// Nothing listens yet. `drain` is what `/drain` does.
    pub fn new(
        config: StatusConfig,
        metrics: Metrics,
        readiness: Readiness,
        shutdown: Shutdown,
        drain: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let pages = Arc::new(Pages::new(&config, metrics, readiness, shutdown, drain));
        Self { config, pages }
    }

    /// Serves until dropped.
    pub async fn run(self) -> Infallible {
        let StatusConfig { address, ports, .. } = self.config;
        let mut servers = JoinSet::new();
        if ports.status != 0 {
            let pages = Arc::clone(&self.pages);
            servers.spawn(port(address, ports.status, "SKIFF_STATUS_PORT", move |request, peer: SocketAddr| {
                let pages = Arc::clone(&pages);
                async move { pages.agent(&request, peer).await }
            }));
        }
        if ports.health != 0 {
            let pages = Arc::clone(&self.pages);
            servers.spawn(port(address, ports.health, "ENVOY_STATUS_PORT", move |request, _| {
                std::future::ready(pages.health(&request))
            }));
        }
        if ports.metrics != 0 {
            let pages = Arc::clone(&self.pages);
            servers.spawn(port(address, ports.metrics, "ENVOY_PROMETHEUS_PORT", move |request, _| {
                std::future::ready(pages.metrics(&request))
            }));
        }
        // They end with this future; none ends by itself.
        while servers.join_next().await.is_some() {}
        std::future::pending().await
    }
}

/// One port, as soon as it can be had.
async fn port<F, A>(address: IpAddr, port: u16, variable: &'static str, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send,
{
    let address = SocketAddr::new(address, port);
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !said => {
                said = true;
                tracing::warn!(
                    "status port {address} ({variable}, SKIFF_STATUS_ADDRESS): {error}; traffic flows without it, it is tried again"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_RETRY).await;
    };
    if said {
        tracing::info!("status port {address} is there now");
    }
    page::serve(listener, answer).await;
}
