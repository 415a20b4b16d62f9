//! Bare `skiff`: one sidecar from its environment.
//!
//! The variables are those of Istio's `cluster.env` and `sidecar.env`, so that what `istioctl experimental workload entry
//! configure` writes for a virtual machine works as it is; skiff's own begin with `SKIFF_`.

use skiff_proxy::telemetry::metrics::HISTOGRAM_BUCKETS;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use skiff_proxy::config::{Locality, SpiffeId, TrustDomain};

use crate::admin::{self, Node};
use crate::connect;
use crate::exit::Failure;
use crate::identity::{CaClient, ControlPlaneConnector, IdentityConfig, IdentityManager, RootSource, Security, TokenSource};
use crate::sidecar::{SidecarConfig, Sources};
use crate::translate::istio::Workload;

/// Where Istio YAML is looked for unless `SKIFF_CONFIG` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/skiff";

/// Of a call to the certificate authority, without the connect.
const CA_TIMEOUT: Duration = Duration::from_secs(10);

/// A documentation address: nothing is sent there, it only makes the system choose a source address.
const ANYWHERE: (&str, u16) = ("192.0.2.1", 9);

/// What a sidecar is run with.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Folder of Istio YAML, or a single file; edits are applied at once.
    #[arg(long, env = "SKIFF_CONFIG", default_value = DEFAULT_CONFIG)]
    pub(super) config: PathBuf,
    /// Where the admin page listens.
    #[arg(long, env = "SKIFF_ADMIN_ADDRESS", default_value_t = admin::DEFAULT_ADDRESS)]
    admin_address: SocketAddr,
    /// From the first SIGTERM to the exit: `30s`, `500ms`, `2m`.
    #[arg(long, env = "SKIFF_DRAIN_DEADLINE", value_parser = super::parse_duration, default_value = "30s")]
    pub(super) drain_deadline: Duration,
    /// Worker threads; 0 takes the CPUs that the cgroup grants, at most 4.
    #[arg(long, env = "SKIFF_WORKERS", default_value_t = skiff_proxy::Options::default().workers)]
    workers: usize,
    /// Open downstream connections above which new ones are refused.
    #[arg(long, env = "SKIFF_MAX_CONNECTIONS", default_value_t = skiff_proxy::Options::default().max_connections)]
    max_connections: usize,
    /// Series of Istio's metrics that may exist.
    #[arg(long, env = "SKIFF_MAX_SERIES", default_value_t = skiff_proxy::Options::default().max_series)]
    max_series: usize,
    /// Access-log lines that may wait to be written.
    #[arg(long, env = "SKIFF_ACCESS_LOG_QUEUE", default_value_t = skiff_proxy::Options::default().access_log_queue)]
    access_log_queue: usize,
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    ca: CaArgs,
}

/// Who the workload is.
#[derive(Debug, Args)]
struct WorkloadArgs {
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Its service account.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    service_account: String,
    /// Its name; the `app` label if it is not given.
    #[arg(long, env = "ISTIO_META_WORKLOAD_NAME")]
    workload_name: Option<String>,
    /// Its labels, as a JSON object.
    #[arg(long, env = "ISTIO_METAJSON_LABELS", value_parser = parse_labels, default_value = "{}")]
    labels: Labels,
    /// Its own addresses, separated by commas; the one that leads to the network if none is given.
    #[arg(long, env = "INSTANCE_IP", value_delimiter = ',')]
    instance_ip: Vec<IpAddr>,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// Cluster id of the mesh.
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
}

/// Who signs its certificate.
#[derive(Debug, Args)]
struct CaArgs {
    /// `host:port` of the certificate authority; without one the sidecar has no certificate, and mutual TLS is refused.
    #[arg(long, env = "CA_ADDR")]
    ca_address: Option<String>,
    /// PEM file of the roots that the authority's own certificate has to lead to.
    #[arg(long, env = "CA_ROOT_CA", default_value = "./var/run/secrets/istio/root-cert.pem")]
    ca_root: PathBuf,
    /// File of the token that is shown to it; read again each time.
    #[arg(long, env = "SKIFF_TOKEN_FILE", default_value = "./var/run/secrets/tokens/istio-token")]
    token_file: PathBuf,
    /// Lifetime of certificates to ask for.
    #[arg(long, env = "SECRET_TTL", value_parser = super::parse_duration, default_value = "24h")]
    secret_ttl: Duration,
}

/// A newtype, because clap takes a plain map for a repeated option.
#[derive(Clone, Debug)]
struct Labels(BTreeMap<String, String>);

impl RunArgs {
    /// The settings of the sidecar and where it gets its configuration and certificates from.
    ///
    /// # Errors
    /// When there is nothing to run from.
    pub(super) fn resolve(self) -> Result<(SidecarConfig, Sources), Failure> {
        if !self.config.exists() {
            return Err(Failure::Configuration(format!(
                "nothing to run from: {} does not exist; set SKIFF_CONFIG to a folder of Istio YAML, or see it work with `skiff quickstart`",
                self.config.display()
            )));
        }
        let workload = self.workload.resolve();
        let identity = self.ca.manager(&workload).map(connect::certificates);
        let config = SidecarConfig {
            path: self.config,
            node: node(&workload),
            admin_address: self.admin_address,
            drain_deadline: self.drain_deadline,
            proxy: skiff_proxy::Options {
                workers: self.workers,
                max_connections: self.max_connections,
                max_series: self.max_series,
                access_log_queue: self.access_log_queue,
            },
            histograms: &HISTOGRAM_BUCKETS,
        };
        Ok((config, Sources { translate: connect::istio_yaml(workload), identity }))
    }
}

impl WorkloadArgs {
    fn resolve(self) -> Workload {
        let labels = self.labels.0;
        let name = self.workload_name.or_else(|| labels.get("app").cloned()).unwrap_or_default();
        let addresses = if self.instance_ip.is_empty() { source_address().into_iter().collect() } else { self.instance_ip };
        Workload {
            name,
            namespace: self.namespace,
            labels,
            addresses,
            service_account: self.service_account,
            trust_domain: self.trust_domain,
            cluster_id: self.cluster_id,
            locality: Locality::default(),
        }
    }
}

impl CaArgs {
    fn manager(self, workload: &Workload) -> Option<IdentityManager> {
        let id = SpiffeId {
            trust_domain: workload.trust_domain.clone(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
        };
        let ca = CaClient {
            connector: ControlPlaneConnector::new(self.ca_address?, Security::Tls(RootSource::File(self.ca_root))),
            token: TokenSource::File(self.token_file),
            cluster_id: workload.cluster_id.clone(),
            request_timeout: CA_TIMEOUT,
        };
        Some(IdentityManager::new(IdentityConfig { lifetime: self.secret_ttl, ..IdentityConfig::new(id) }, ca))
    }
}

/// Istio's node id and service cluster.
pub(crate) fn node(workload: &Workload) -> Node {
    let Workload { name, namespace, addresses, .. } = workload;
    let address = addresses.first().map(ToString::to_string).unwrap_or_default();
    Node {
        id: format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{}.{namespace}", workload.labels.get("app").unwrap_or(name)),
    }
}

/// The address that this machine would send from.
fn source_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn parse_labels(text: &str) -> Result<Labels, String> {
    serde_json::from_str(text).map(Labels).map_err(|error| format!("expected a JSON object of strings: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn without_anything_to_run_from_it_says_how_to_begin() {
        let args = Cli::try_parse_from(["skiff", "--config", "/nowhere"]).unwrap().run;
        let failure = args.resolve().err().unwrap();
        assert_eq!(failure.code(), 78);
        assert!(failure.to_string().contains("/nowhere") && failure.to_string().contains("skiff quickstart"), "{failure}");
    }

    #[test]
    fn the_workload_is_what_istios_variables_say() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().to_str().unwrap();
        let labels = r#"{"app":"ratings","version":"v1"}"#;
        let arguments =
            ["skiff", "--config", config, "--namespace", "bookinfo", "--labels", labels, "--instance-ip", "127.0.0.21,::1"];
        let (config, sources) = Cli::try_parse_from(arguments).unwrap().run.resolve().unwrap();
        assert_eq!(config.node.id, "sidecar~127.0.0.21~ratings.bookinfo~bookinfo.svc.cluster.local");
        assert_eq!(config.node.cluster, "ratings.bookinfo");
        assert!(sources.identity.is_none());
        assert!(Cli::try_parse_from(["skiff", "--labels", "app=ratings"]).is_err());
    }
}
