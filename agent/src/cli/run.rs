//! Bare `skiff`: one sidecar from its environment.
//!
//! The variables are those of Istio's `cluster.env` and `sidecar.env`, so that what `istioctl experimental workload entry
//! configure` writes for a virtual machine works as it is; skiff's own begin with `SKIFF_`. Where they come from is in
//! [`super::environment`].

mod onboard;

use skiff_proxy::telemetry::metrics::HISTOGRAM_BUCKETS;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value as Json;
use skiff_proxy::config::{Locality, SpiffeId, TrustDomain};

use super::environment::Environment;
use super::status::StatusArgs;
use crate::admin::{self, Node};
use crate::connect;
use crate::exit::Failure;
use crate::identity::{
    CaClient, ControlPlaneConnector, IdentityConfig, IdentityManager, RootSource, Security, TokenSource, WorkloadCertificate,
    read_certificates,
};
use crate::onboarding::config::{self as onboarding_config, Settings};
use crate::onboarding::source_address;
use crate::sidecar::{ConfigurationSource, DEFAULT_DRAIN_DEADLINE, SidecarConfig, Sources};
use crate::translate::envoy::local_node;
use crate::translate::istio::Workload;
use crate::xds::{Connection, NodeConfig, Probe, Protocol};
pub(super) use onboard::Plan;

/// With `EXIT_ON_ZERO_ACTIVE_CONNECTIONS` whoever runs the sidecar decides when it is killed; no platform waits as long as this.
const NO_DRAIN_DEADLINE: Duration = Duration::from_secs(3600);

/// Where Istio YAML is looked for unless `SKIFF_CONFIG` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/skiff";

/// Of a call to the certificate authority, without the connect.
const CA_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the token of the workload is, in the folder of a virtual machine and where Istio mounts it.
const TOKEN_FILES: &[&str] = &["istio-token", "var/run/secrets/tokens/istio-token"];
/// The same of the roots of the mesh.
const ROOT_FILES: &[&str] = &["root-cert.pem", "var/run/secrets/istio/root-cert.pem"];

/// What a sidecar is run with.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Folder of Istio YAML, or a single file, instead of a mesh's istiod; edits are applied at once [default: /etc/skiff].
    #[arg(long, env = "SKIFF_CONFIG")]
    config: Option<PathBuf>,
    /// Where the admin page listens [default: 127.0.0.1 and proxyAdminPort, else 15000].
    #[arg(long, env = "SKIFF_ADMIN_ADDRESS")]
    admin_address: Option<SocketAddr>,
    /// From the first SIGTERM to the exit: `30s`, `500ms`, `2m` [default: terminationDrainDuration, else 30s; of an onboarded
    /// workload, 2 s less than its stop timeout].
    #[arg(long, env = "SKIFF_DRAIN_DEADLINE", value_parser = super::parse_duration)]
    pub(super) drain_deadline: Option<Duration>,
    /// How long an onboarded workload has from SIGTERM to SIGKILL: `stopTimeout` of the task definition.
    #[arg(long, env = "SKIFF_STOP_TIMEOUT", value_parser = super::parse_duration, default_value = "30s")]
    stop_timeout: Duration,
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
    status: StatusArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    #[command(flatten)]
    control_plane: ControlPlaneArgs,
}

/// Who the workload is.
#[derive(Debug, Args)]
struct WorkloadArgs {
    /// Its namespace [env: POD_NAMESPACE] [default: default].
    #[arg(long)]
    namespace: Option<String>,
    /// Its service account [env: SERVICE_ACCOUNT] [default: default].
    #[arg(long)]
    service_account: Option<String>,
    /// Its name; the `app` label if it is not given [env: ISTIO_META_WORKLOAD_NAME].
    #[arg(long)]
    workload_name: Option<String>,
    /// Its labels, as a JSON object [env: ISTIO_METAJSON_LABELS].
    #[arg(long, value_parser = parse_labels)]
    labels: Option<Labels>,
    /// Its own addresses, separated by commas; the one that leads to the network if none is given [env: INSTANCE_IP].
    #[arg(long, value_delimiter = ',')]
    instance_ip: Vec<IpAddr>,
    /// Trust domain of the mesh [env: TRUST_DOMAIN] [default: cluster.local].
    #[arg(long)]
    trust_domain: Option<TrustDomain>,
    /// Cluster id of the mesh [env: ISTIO_META_CLUSTER_ID] [default: Kubernetes].
    #[arg(long)]
    cluster_id: Option<String>,
}

/// Who signs its certificate and, in a mesh, sends its configuration.
#[derive(Debug, Args)]
struct ControlPlaneArgs {
    /// `host:port` of the certificate authority [env: CA_ADDR] [default: that of istiod, in a mesh].
    #[arg(long)]
    ca_address: Option<String>,
    /// PEM file of the roots that the control plane's own certificate has to lead to [env: CA_ROOT_CA].
    #[arg(long)]
    ca_root: Option<PathBuf>,
    /// File of the token that is shown to it; read again each time [env: SKIFF_TOKEN_FILE].
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Lifetime of certificates to ask for [env: SECRET_TTL] [default: 24h].
    #[arg(long, value_parser = super::parse_duration)]
    secret_ttl: Option<Duration>,
}

/// A newtype, because clap takes a plain map for a repeated option.
#[derive(Clone, Debug, Default)]
struct Labels(BTreeMap<String, String>);

impl RunArgs {
    /// What a check reads when no file is named, and for whom.
    ///
    /// # Errors
    /// When the environment cannot be read.
    pub(super) fn subject(self) -> Result<(PathBuf, Workload), Failure> {
        let environment = Environment::of_process()?;
        Ok((self.config.unwrap_or_else(|| DEFAULT_CONFIG.into()), self.workload.resolve(&environment)?))
    }

    /// The settings of the sidecar and where it gets its configuration and certificates from.
    ///
    /// # Errors
    /// When there is nothing to run from, or a variable cannot be read.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        self.resolve_in(Environment::of_process()?, Path::new(onboarding_config::FOLDER))
    }

    fn resolve_in(self, environment: Environment, agent_folder: &Path) -> Result<Plan, Failure> {
        if self.config.is_none()
            && let Some(settings) = Settings::read(|name| environment.get(name), agent_folder).map_err(wrong)?
        {
            return self.join(environment, settings).map(|join| Plan::Onboarding(Box::new(join)));
        }
        let documents = match &self.config {
            Some(config) => Some(config.clone()),
            None => Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists()),
        };
        let in_mesh = documents.is_none() && environment.joins();
        if let Some(config) = documents.as_ref().filter(|path| !path.exists()) {
            return Err(nothing(&format!("SKIFF_CONFIG: {} does not exist", config.display())));
        }
        let minimum_drain = environment.minimum_drain_duration()?;
        let drain_deadline = match (self.drain_deadline, minimum_drain) {
            (Some(deadline), _) => deadline,
            (None, Some(_)) => NO_DRAIN_DEADLINE,
            (None, None) => environment.termination_drain_duration()?.unwrap_or(DEFAULT_DRAIN_DEADLINE),
        };
        let mut config = self.sidecar(&environment, in_mesh, drain_deadline)?;
        config.minimum_drain = minimum_drain.unwrap_or_default();
        let workload = self.workload.resolve(&environment)?;
        let node = node(&workload);
        let control_plane = self.control_plane.resolve(&environment, in_mesh)?;
        let identity = control_plane.manager(&workload);
        let node_config = NodeConfig {
            metadata: environment.node_metadata()?,
            proxy_config: environment.proxy_config.clone(),
            pilot_san: Vec::new(),
        };
        let local = local_node(&node_config.node(&workload, &node.id, &node.cluster));
        let configuration = match documents {
            Some(path) => ConfigurationSource::Documents { path, translate: connect::istio_yaml(workload) },
            None if in_mesh => control_plane.mesh(&environment, &workload, (&node, node_config), identity.as_ref())?,
            None => {
                return Err(nothing(&format!(
                    "no SKIFF_CONFIG, no ONBOARDING_CONFIG, no {DEFAULT_CONFIG}, and neither PROXY_CONFIG nor CA_ADDR nor the files of `istioctl x workload entry configure`"
                )));
            }
        };
        config.node = node;
        config.proxy.node = local;
        let identity = identity.map(connect::certificates);
        Ok(Plan::Sidecar(Box::new((config, Sources { configuration, identity, membership: None }))))
    }

    /// Everything of a sidecar but who it is.
    fn sidecar(&self, environment: &Environment, in_mesh: bool, drain_deadline: Duration) -> Result<SidecarConfig, Failure> {
        Ok(SidecarConfig {
            node: Node::default(),
            admin_address: admin_address_in(self.admin_address, environment)?,
            status: self.status.clone().resolve(environment, in_mesh)?,
            drain_deadline,
            minimum_drain: Duration::ZERO,
            proxy: skiff_proxy::Options {
                workers: self.workers,
                max_connections: self.max_connections,
                max_series: self.max_series,
                access_log_queue: self.access_log_queue,
                ..skiff_proxy::Options::default()
            },
            histograms: &HISTOGRAM_BUCKETS,
        })
    }
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::Configuration(error.to_string())
}

fn parse_addresses(text: &str) -> Option<Vec<IpAddr>> {
    text.split(',').map(|ip| ip.trim().parse().ok()).collect()
}

/// Where the admin page of this machine's sidecar is.
///
/// # Errors
/// When the environment cannot be read.
pub(super) fn admin_address(given: Option<SocketAddr>) -> Result<SocketAddr, Failure> {
    match given {
        Some(address) => Ok(address),
        None => admin_address_in(None, &Environment::of_process()?),
    }
}

fn admin_address_in(given: Option<SocketAddr>, environment: &Environment) -> Result<SocketAddr, Failure> {
    let default = admin::DEFAULT_ADDRESS;
    let configured = |port: Option<u16>| SocketAddr::new(default.ip(), port.filter(|&port| port != 0).unwrap_or(default.port()));
    given.map_or_else(|| environment.proxy_config_port("proxyAdminPort").map(configured), Ok)
}

fn nothing(reason: &str) -> Failure {
    Failure::Configuration(format!(
        "nothing to run from: {reason}; set SKIFF_CONFIG to a folder of Istio YAML, or see it work with `skiff quickstart`"
    ))
}

impl WorkloadArgs {
    fn resolve(self, environment: &Environment) -> Result<Workload, Failure> {
        let text = |given: Option<String>, name: &str| given.or_else(|| environment.get(name).map(str::to_owned));
        let labels = match self.labels {
            Some(labels) => labels.0,
            None => {
                environment
                    .parse("ISTIO_METAJSON_LABELS", "a JSON object of strings", |text| parse_labels(text).ok())?
                    .unwrap_or_default()
                    .0
            }
        };
        let name = text(self.workload_name, "ISTIO_META_WORKLOAD_NAME").or_else(|| labels.get("app").cloned());
        let name = name.or_else(|| environment.get("HOSTNAME").map(str::to_owned)).unwrap_or_default();
        let given = if self.instance_ip.is_empty() {
            environment.parse("INSTANCE_IP", "addresses separated by commas", parse_addresses)?.unwrap_or_default()
        } else {
            self.instance_ip
        };
        let addresses = if given.is_empty() { source_address().into_iter().collect() } else { given };
        let trust_domain = match self.trust_domain {
            Some(domain) => domain,
            None => {
                let set = environment.parse("TRUST_DOMAIN", "a trust domain", |text| text.parse().ok())?;
                set.map_or_else(|| "cluster.local".parse(), Ok).map_err(|_| Failure::Internal("cluster.local".to_owned()))?
            }
        };
        Ok(Workload {
            name,
            namespace: text(self.namespace, "POD_NAMESPACE").unwrap_or_else(|| "default".to_owned()),
            service_account: text(self.service_account, "SERVICE_ACCOUNT").unwrap_or_else(|| "default".to_owned()),
            cluster_id: text(self.cluster_id, "ISTIO_META_CLUSTER_ID").unwrap_or_else(|| "Kubernetes".to_owned()),
            locality: locality(&labels),
            labels,
            addresses,
            trust_domain,
        })
    }
}

/// Istio's `istio-locality` label, `region.zone.sub-zone` with dots or slashes.
fn locality(labels: &BTreeMap<String, String>) -> Locality {
    let mut parts = labels.get("istio-locality").map(String::as_str).unwrap_or_default().splitn(3, ['.', '/']).map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

/// Where the control plane is and how it is spoken to.
struct ControlPlane {
    /// Of the certificate authority; `None` makes a sidecar without certificate.
    ca: Option<ControlPlaneConnector>,
    security: Security,
    token: TokenSource,
    lifetime: Duration,
    /// `PROV_CERT`: a certificate to begin with.
    provisioned: Option<WorkloadCertificate>,
    /// `OUTPUT_CERTS`: where certificates are written.
    output: Option<PathBuf>,
}

impl ControlPlaneArgs {
    fn resolve(self, environment: &Environment, in_mesh: bool) -> Result<ControlPlane, Failure> {
        let path = |given: Option<PathBuf>, name: &str, files: &[&str]| {
            given.or_else(|| environment.get(name).map(PathBuf::from)).unwrap_or_else(|| environment.file(files))
        };
        let security = match environment.get("SKIFF_CONTROL_PLANE_SECURITY") {
            None | Some("tls") => Security::Tls(RootSource::File(path(self.ca_root, "CA_ROOT_CA", ROOT_FILES))),
            Some("none") => Security::Plaintext,
            Some(other) => {
                return Err(Failure::Configuration(format!(
                    "SKIFF_CONTROL_PLANE_SECURITY: expected tls or none, found {other:?}"
                )));
            }
        };
        let address = self.ca_address.or_else(|| environment.get("CA_ADDR").map(str::to_owned));
        let address = address.or_else(|| in_mesh.then(|| environment.discovery_address().to_owned()));
        let provisioned = environment.get("PROV_CERT").map(|folder| {
            read_certificates(folder.as_ref()).map_err(|reason| Failure::Configuration(format!("PROV_CERT: {reason}")))
        });
        let lifetime = environment.parse("SECRET_TTL", "a duration like 24h", |text| super::parse_duration(text).ok())?;
        Ok(ControlPlane {
            ca: address.map(|address| connector(environment, &address, security.clone())),
            security,
            token: TokenSource::File(path(self.token_file, "SKIFF_TOKEN_FILE", TOKEN_FILES)),
            lifetime: self.secret_ttl.or(lifetime).unwrap_or(Duration::from_secs(24 * 3600)),
            provisioned: provisioned.transpose()?,
            output: environment.get("OUTPUT_CERTS").map(PathBuf::from),
        })
    }
}

/// A connection to `address`, whose certificate has to carry its name or `ISTIOD_SAN`.
fn connector(environment: &Environment, address: &str, security: Security) -> ControlPlaneConnector {
    let mut connector = ControlPlaneConnector::new(environment.dial_address(address), security);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    // An address that only leads there says nothing about the name: Istio's own is expected then.
    let named = Some(host).filter(|host| host.parse::<IpAddr>().is_err() && *host != "localhost");
    if let Some(authority) = environment.get("ISTIOD_SAN").or(named) {
        authority.clone_into(&mut connector.authority);
    }
    connector
}

impl ControlPlane {
    fn manager(&self, workload: &Workload) -> Option<IdentityManager> {
        let id = SpiffeId {
            trust_domain: workload.trust_domain.clone(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
        };
        let ca = CaClient {
            connector: self.ca.clone()?,
            token: self.token.clone(),
            cluster_id: workload.cluster_id.clone(),
            request_timeout: CA_TIMEOUT,
        };
        let config = IdentityConfig { lifetime: self.lifetime, output: self.output.clone(), ..IdentityConfig::new(id) };
        let mut manager = IdentityManager::new(config, ca);
        if let Some(certificate) = &self.provisioned {
            manager.begin_with(certificate.clone());
        }
        Some(manager)
    }

    /// Configuration from istiod.
    fn mesh(
        &self,
        environment: &Environment,
        workload: &Workload,
        (node, node_config): (&Node, NodeConfig),
        identity: Option<&IdentityManager>,
    ) -> Result<ConfigurationSource, Failure> {
        let connector = connector(environment, environment.discovery_address(), self.security.clone());
        let protocol = match environment.get("ISTIO_DELTA_XDS") {
            Some("false") => Protocol::StateOfTheWorld,
            _ => Protocol::Delta,
        };
        let probe = environment.proxy_config.get("readinessProbe").filter(|probe| !probe.is_null());
        let probe = probe.map(|probe: &Json| {
            Probe::deserialize(probe).map_err(|error| Failure::Configuration(format!("PROXY_CONFIG.readinessProbe: {error}")))
        });
        let node_config = NodeConfig { pilot_san: vec![connector.authority.clone()], ..node_config };
        let connection = Connection {
            node: node_config.node(workload, &node.id, &node.cluster),
            connector,
            token: self.token.clone(),
            certificate: identity.map(IdentityManager::certificate),
            cluster_id: workload.cluster_id.clone(),
            protocol,
        };
        Ok(ConfigurationSource::Mesh { connection: Box::new(connection), probe: probe.transpose()? })
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

fn parse_labels(text: &str) -> Result<Labels, String> {
    serde_json::from_str(text).map(Labels).map_err(|error| format!("expected a JSON object of strings: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::*;
    use crate::status::Ports;

    fn plan(arguments: &[&str], environment: &Environment) -> Plan {
        let args = Cli::try_parse_from(arguments).unwrap().run;
        args.resolve_in(environment.clone(), Path::new("/nowhere")).unwrap()
    }

    #[test]
    fn without_anything_to_run_from_it_says_how_to_begin() {
        let args = Cli::try_parse_from(["skiff", "--config", "/nowhere"]).unwrap().run;
        let folder = tempfile::tempdir().unwrap();
        let failure = args.resolve_in(Environment::default(), folder.path()).err().unwrap();
        assert_eq!(failure.code(), 78);
        assert!(failure.to_string().contains("/nowhere") && failure.to_string().contains("skiff quickstart"), "{failure}");
        let failure =
            Cli::try_parse_from(["skiff"]).unwrap().run.resolve_in(Environment::default(), folder.path()).err().unwrap();
        assert!(failure.code() == 78 && failure.to_string().contains("skiff quickstart"), "{failure}");
    }

    #[test]
    fn the_workload_is_what_istios_variables_say() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().to_str().unwrap();
        let labels = r#"{"app":"ratings","version":"v1"}"#;
        let arguments = ["skiff", "--config", config, "--labels", labels, "--instance-ip", "127.0.0.21,::1"];
        let environment = Environment::read([("POD_NAMESPACE".to_owned(), "bookinfo".to_owned())], folder.path()).unwrap();
        let Plan::Sidecar(sidecar) = plan(&arguments, &environment) else { panic!("no sidecar") };
        let (config, sources) = *sidecar;
        assert_eq!(config.node.id, "sidecar~127.0.0.21~ratings.bookinfo~bookinfo.svc.cluster.local");
        assert_eq!(config.node.cluster, "ratings.bookinfo");
        assert!(sources.identity.is_none());
        assert!(Cli::try_parse_from(["skiff", "--labels", "app=ratings"]).is_err());
    }

    #[test]
    fn a_mesh_is_joined_with_what_istio_gives_a_virtual_machine() {
        let folder = tempfile::tempdir().unwrap();
        let proxy_config = r#"{"discoveryAddress": "istiod.example:15012", "readinessProbe": {"httpGet": {"port": 9080}},
            "proxyAdminPort": 16000, "terminationDrainDuration": "5.5s"}"#;
        let variables =
            [("PROXY_CONFIG", proxy_config), ("INSTANCE_IP", "10.0.0.4"), ("ISTIO_META_AUTO_REGISTER_GROUP", "ratings")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::read(variables, folder.path()).unwrap();
        let Plan::Sidecar(sidecar) = plan(&["skiff"], &environment) else { panic!("no sidecar") };
        let (config, sources) = *sidecar;
        assert_eq!(config.admin_address, "127.0.0.1:16000".parse().unwrap());
        assert_eq!(config.drain_deadline, Duration::from_millis(5500));
        assert_eq!(config.minimum_drain, Duration::ZERO);
        assert_eq!(config.status.unwrap().ports, Ports::ISTIO);
        let ConfigurationSource::Mesh { connection, probe } = sources.configuration else { panic!("not in a mesh") };
        assert_eq!(
            (connection.connector.address.as_str(), connection.connector.authority.as_str()),
            ("istiod.example:15012", "istiod.example")
        );
        assert!(probe.is_some() && sources.identity.is_some());
        let metadata = &connection.node.metadata.unwrap().fields;
        assert!(metadata.contains_key("AUTO_REGISTER_GROUP") && metadata.contains_key("INTERCEPTION_MODE"));
    }
}
