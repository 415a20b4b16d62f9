//! The application's health as a WorkloadGroup's probe sees it (Istio `readinessProbe` of the proxy configuration).
//!
//! istiod withholds a registered workload from its callers until a first good report, and takes it away at a bad one.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use serde::Deserialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::client;

/// What probes found out: nothing yet, healthy, or why not.
pub type HealthReport = Option<Result<(), String>>;

/// A Kubernetes probe as Istio's `ReadinessProbe` has it; times in seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Before the first one (0 s).
    #[serde(default)]
    pub initial_delay_seconds: u32,
    /// How long one may take (1 s).
    #[serde(default = "one")]
    pub timeout_seconds: u32,
    /// Between two of them (10 s).
    #[serde(default = "ten")]
    pub period_seconds: u32,
    /// Successes in a row that make it healthy (1).
    #[serde(default = "one")]
    pub success_threshold: u32,
    /// Failures in a row that make it unhealthy (3).
    #[serde(default = "three")]
    pub failure_threshold: u32,
    /// What is done.
    #[serde(flatten)]
    pub action: ProbeAction,
}

/// What one probe does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeAction {
    /// GET; 200 to 399 is healthy.
    #[serde(rename_all = "camelCase")]
    HttpGet {
        /// `/` unless given.
        #[serde(default)]
        path: String,
        /// Of the application.
        port: u16,
        /// 127.0.0.1 unless given: the application is behind the sidecar, so that the instance's address leads to ourselves.
        #[serde(default)]
        host: Option<String>,
        /// `HTTP`; HTTPS is refused.
        #[serde(default)]
        scheme: Option<String>,
        /// Sent along.
        #[serde(default)]
        http_headers: Vec<ProbeHeader>,
    },
    /// A connection is healthy.
    TcpSocket {
        /// Of the application.
        port: u16,
        /// 127.0.0.1 unless given.
        #[serde(default)]
        host: Option<String>,
    },
    /// Exit code 0 is healthy.
    Exec {
        /// Program and arguments; no shell.
        command: Vec<String>,
    },
}

/// A request header of a probe.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ProbeHeader {
    name: String,
    value: String,
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn ten() -> u32 {
    10
}

impl Probe {
    /// Probes for as long as anybody listens.
    pub async fn run(self, reports: watch::Sender<HealthReport>) {
        sleep(seconds(self.initial_delay_seconds, 0)).await;
        let (mut successes, mut failures) = (0, 0);
        while !reports.is_closed() {
            let outcome = self.once().await;
            match &outcome {
                Ok(()) => (successes, failures) = (successes + 1, 0),
                Err(_) => (successes, failures) = (0, failures + 1),
            }
            let threshold = if outcome.is_ok() { self.success_threshold } else { self.failure_threshold };
            if successes.max(failures) >= threshold.max(1) {
                report(&reports, outcome);
            }
            sleep(seconds(self.period_seconds, 1)).await;
        }
    }

    async fn once(&self) -> Result<(), String> {
        let limit = seconds(self.timeout_seconds, 1);
        timeout(limit, self.action.run(limit)).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }
}

/// Says so when it changes, so that a steady state is quiet.
fn report(reports: &watch::Sender<HealthReport>, outcome: Result<(), String>) {
    reports.send_if_modified(|current| {
        let changed = current.as_ref().is_none_or(|current| current.is_ok() != outcome.is_ok());
        if changed {
            match &outcome {
                Ok(()) => tracing::info!("the application is healthy"),
                Err(reason) => tracing::warn!(reason, "the application is not healthy"),
            }
            *current = Some(outcome);
        }
        changed
    });
}

fn seconds(count: u32, least: u32) -> Duration {
    Duration::from_secs(count.max(least).into())
}

impl ProbeAction {
    async fn run(&self, limit: Duration) -> Result<(), String> {
        match self {
            Self::HttpGet { path, port, host, scheme, http_headers } => {
                if scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
                    return Err("readinessProbe.httpGet.scheme: expected HTTP".to_owned());
                }
                let address = resolve(host.as_deref(), *port).await?;
                let mut request = Request::get(format!("/{}", path.trim_start_matches('/')))
                    .header(header::HOST, address.to_string())
                    .header(header::USER_AGENT, "kube-probe/skiff");
                for ProbeHeader { name, value } in http_headers {
                    request = request.header(name, value);
                }
                let request = request.body(Bytes::new()).map_err(|error| format!("readinessProbe.httpGet: {error}"))?;
                let answer = client::send(address, request, limit).await.map_err(|error| error.to_string())?;
                let status = answer.status().as_u16();
                if (200..400).contains(&status) { Ok(()) } else { Err(format!("{address}{path} answered {status}")) }
            }
            Self::TcpSocket { port, host } => {
                let address = resolve(host.as_deref(), *port).await?;
                TcpStream::connect(address).await.map(drop).map_err(|error| format!("{address}: {error}"))
            }
            Self::Exec { command } => {
                let [program, arguments @ ..] = command.as_slice() else {
                    return Err("readinessProbe.exec.command: expected a program".to_owned());
                };
                let quiet = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .status();
                match quiet.await {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => Err(format!("{program}: {status}")),
                    Err(error) => Err(format!("{program}: {error}")),
                }
            }
        }
    }
}

async fn resolve(host: Option<&str>, port: u16) -> Result<SocketAddr, String> {
    let host = host.filter(|host| !host.is_empty()).unwrap_or("127.0.0.1");
    let mut addresses = lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    addresses.next().ok_or_else(|| format!("{host}: no address"))
}
