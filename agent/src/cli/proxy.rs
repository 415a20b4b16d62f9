//! `skiff proxy -c FILE`: the data plane alone, from a static Envoy bootstrap.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::task::JoinSet;

use super::parse_duration;
use crate::admin::{self, Admin, Condition, Node, Readiness};
use crate::bootstrap::{self, BootstrapError};
use crate::exit::Failure;
use crate::logging::LogControl;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::sidecar;
use skiff_proxy::telemetry::metrics::HISTOGRAM_BUCKETS;

/// What a data plane is run with.
#[derive(Debug, Args)]
pub(super) struct ProxyArgs {
    /// Static Envoy v3 bootstrap, YAML or JSON.
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    bootstrap: PathBuf,
    /// Worker threads; 0 takes the CPUs that the cgroup grants, at most 4.
    #[arg(long, env = "SKIFF_WORKERS", default_value_t = skiff_proxy::Options::default().workers)]
    workers: usize,
    /// From the first SIGTERM to the exit: `30s`, `500ms`, `2m`.
    #[arg(long, env = "SKIFF_DRAIN_DEADLINE", value_parser = parse_duration, default_value = "30s")]
    drain_deadline: Duration,
}

impl From<BootstrapError> for Failure {
    fn from(error: BootstrapError) -> Self {
        match error {
            BootstrapError::Read { .. } | BootstrapError::Syntax { .. } | BootstrapError::Rejected(_) => {
                Self::Configuration(error.to_string())
            }
            BootstrapError::Apply(_) | BootstrapError::Start(_) => Self::Unavailable(error.to_string()),
        }
    }
}

/// Runs until it is asked to stop, then drains. Nothing is started when a part of the bootstrap is not supported.
pub(super) async fn run(args: ProxyArgs, logging: LogControl, shutdown: &Shutdown) -> Result<(), Failure> {
    let metrics = Metrics::new(&HISTOGRAM_BUCKETS).map_err(|error| Failure::Internal(error.to_string()))?;
    let options = skiff_proxy::Options { workers: args.workers, ..skiff_proxy::Options::default() };
    let (proxy, bootstrap) = bootstrap::run(&args.bootstrap, &options, metrics.recorder()).await?;
    let readiness = Readiness::default();
    for condition in [Condition::Certificate, Condition::Configuration, Condition::Listeners] {
        readiness.met(condition);
    }
    let mut parts = JoinSet::new();
    if let Some(address) = bootstrap.admin {
        let listener = admin::bind(address).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
        let page = Admin {
            proxy: proxy.clone(),
            metrics: metrics.clone(),
            logging,
            readiness: readiness.clone(),
            shutdown: shutdown.clone(),
            node: Node::default(),
            mesh: None,
            started: Instant::now(),
        };
        parts.spawn(page.serve(listener));
    }
    parts.spawn(sidecar::upkeep(metrics, proxy.clone()));
    shutdown.requested().await;
    readiness.draining();
    tokio::select! {
        biased;
        () = shutdown.insisted() => tracing::warn!("asked twice to stop: not waiting for what is in flight"),
        () = sidecar::drain(&proxy, args.drain_deadline) => {}
    }
    Ok(())
}
