//! `skiff plane`: the onboarding plane, with its own store and its own authority or beside istiod; `skiff plane get war`: what has
//! registered with it; `skiff plane crds`: its kinds for Kubernetes.

mod credentials;
mod get;
mod kubernetes;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use skiff_proxy::config::TrustDomain;
use tokio::net::TcpListener;

use credentials::CredentialArgs;
pub(super) use credentials::DescribeTasks;
use get::Shown;
use kubernetes::KubernetesArgs;

use super::{parse_duration, print};
use crate::exit::Failure;
use crate::identity::Clock;
use crate::metrics::{Metrics, UPKEEP};
use crate::plane::store::{EmbeddedStore, Store};
use crate::plane::{
    Admin, Authority, CRDS, HISTOGRAMS, Limits, MeshSettings, OnboardingConfig, OnboardingLimits, OnboardingSettings, Plane,
    PlaneConfig, PlaneError, PlaneSecrets, Rate, StateFolder, Transport,
};
use crate::shutdown::Shutdown;

/// Where the plane's page listens: beside istiod's port for it, on the loopback address.
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);
/// The root that agents have to trust (`ONBOARDING_AGENT_ROOT_CERTS`), in the state folder.
const ROOT_FILE: &str = "root-cert.pem";

/// What a plane is run with.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct PlaneArgs {
    #[command(subcommand)]
    command: Option<PlaneCommand>,
    /// Where it listens, several separated by commas; port 443 as well makes the package repository's address shorter.
    #[arg(long, env = "SKIFF_PLANE_LISTEN", value_delimiter = ',', default_value = "0.0.0.0:15443")]
    listen: Vec<SocketAddr>,
    /// PEM chain of its certificate; one of its own authority if none is given.
    #[arg(long, env = "SKIFF_PLANE_TLS_CERT", requires = "tls_key", conflicts_with = "plaintext")]
    tls_cert: Option<PathBuf>,
    /// PEM key of its certificate.
    #[arg(long, env = "SKIFF_PLANE_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// No TLS: a gateway before the plane terminates it.
    #[arg(long, env = "SKIFF_PLANE_PLAINTEXT")]
    plaintext: bool,
    /// DNS names and addresses in the certificate of its own authority, besides localhost.
    #[arg(long, env = "SKIFF_PLANE_SERVER_NAMES", value_delimiter = ',')]
    server_names: Vec<String>,
    /// Folder of its keys and registrations.
    #[arg(long, env = "SKIFF_PLANE_STATE", default_value = "/var/lib/skiff/plane")]
    state: PathBuf,
    /// Folder of WorkloadGroups, OnboardingPolicies and the Istio YAML that workloads are sent; edits are applied at once.
    #[arg(long, env = "SKIFF_PLANE_CONFIG", default_value = "/etc/skiff/plane")]
    config: PathBuf,
    /// Its id, which credentials are bound to; a random one that is kept if none is given.
    #[arg(long, env = "SKIFF_PLANE_UID")]
    uid: Option<String>,
    /// Which replica it is, in the status of registrations [default: the host name].
    #[arg(long, env = "SKIFF_PLANE_INSTANCE")]
    instance: Option<String>,
    /// Lifetime of session tokens.
    #[arg(long, env = "SKIFF_PLANE_TOKEN_LIFETIME", value_parser = parse_duration, default_value = "1h")]
    token_lifetime: Duration,
    /// How long a workload that leaves is asked to serve on.
    #[arg(long, env = "SKIFF_PLANE_PROPAGATION_DELAY", value_parser = parse_duration, default_value = "10s")]
    propagation_delay: Duration,
    /// How often agents send a heartbeat; three missing ones are a lost stream.
    #[arg(long, env = "SKIFF_PLANE_HEARTBEAT_INTERVAL", value_parser = parse_duration, default_value = "10s")]
    heartbeat_interval: Duration,
    /// How long a workload that has lost its stream is still shown to others.
    #[arg(long, env = "SKIFF_PLANE_DISCONNECT_GRACE", value_parser = parse_duration, default_value = "8s")]
    disconnect_grace: Duration,
    /// After which a registration without stream is removed.
    #[arg(long, env = "SKIFF_PLANE_RETENTION", value_parser = parse_duration, default_value = "5m")]
    retention: Duration,
    /// How long workloads may take to come back after a start of the plane, before they count as lost.
    #[arg(long, env = "SKIFF_PLANE_START_GRACE", value_parser = parse_duration, default_value = "60s")]
    start_grace: Duration,
    /// Streams of workloads that it holds at the most.
    #[arg(long, env = "SKIFF_PLANE_MAX_STREAMS", default_value_t = OnboardingLimits::default().streams)]
    max_streams: usize,
    /// Calls for authorisation a second that one address may make, which may be the NAT gateway of a fleet; ten times as many at once.
    #[arg(long, env = "SKIFF_PLANE_AUTHORIZE_RATE", default_value_t = 500)]
    authorize_rate: u32,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Folder of packages that are served under /install/.
    #[arg(long, env = "SKIFF_PLANE_PACKAGES")]
    packages: Option<PathBuf>,
    /// Where its page listens: /healthz/ready, /metrics, /registrations.
    #[arg(long, env = "SKIFF_PLANE_ADMIN_ADDRESS", default_value_t = DEFAULT_ADMIN)]
    admin_address: SocketAddr,
}

/// What sidecars are told of the mesh.
#[derive(Debug, Args)]
struct MeshArgs {
    /// Trust domain of the mesh; beside istiod it is what that says.
    #[arg(long, env = "SKIFF_PLANE_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// Cluster id of the mesh [default: Kubernetes; beside istiod what it says].
    #[arg(long, env = "SKIFF_PLANE_CLUSTER_ID")]
    cluster_id: Option<String>,
    /// Mesh id.
    #[arg(long, env = "SKIFF_PLANE_MESH_ID", default_value = "")]
    mesh_id: String,
    /// `host:port` of the certificate authority; the plane itself if none is given.
    #[arg(long, env = "SKIFF_PLANE_CA_ADDRESS", default_value = "")]
    ca_address: String,
    /// `host:port` of istiod, as workloads reach it; without one the plane sends its folder's YAML, or beside istiod what that says.
    #[arg(long, env = "SKIFF_PLANE_DISCOVERY_ADDRESS", default_value = "")]
    discovery_address: String,
}

#[derive(Debug, Subcommand)]
enum PlaneCommand {
    /// Show objects of the running plane.
    Get {
        #[command(subcommand)]
        what: Shown,
    },
    /// Print the definitions of OnboardingPolicy and WorkloadAutoRegistration for `kubectl apply -f -`.
    Crds,
}

impl PlaneArgs {
    /// Whether it is to run, rather than to show something.
    pub(super) fn runs(&self) -> bool {
        self.command.is_none()
    }
}

/// Shows what was asked for.
pub(super) async fn show(args: PlaneArgs) -> Result<(), Failure> {
    match args.command {
        Some(PlaneCommand::Get { what }) => what.show().await,
        Some(PlaneCommand::Crds) => print(CRDS),
        None => Ok(()),
    }
}

impl From<PlaneError> for Failure {
    fn from(error: PlaneError) -> Self {
        match error {
            PlaneError::Tls(_) => Self::Configuration(error.to_string()),
            PlaneError::State(_) | PlaneError::Listen { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

/// What a plane is made of, whichever its store is.
struct Parts {
    config: PlaneConfig,
    authority: Option<Authority>,
    secrets: PlaneSecrets,
    store: Arc<dyn Store>,
    /// The same store, where no istiod tells workloads what they need.
    documents: Option<Arc<EmbeddedStore>>,
    mesh: MeshSettings,
    state: Option<StateFolder>,
}

/// Runs until it is asked to stop, then asks agents to go to another replica.
pub(super) async fn run(args: PlaneArgs, descriptors: Option<u64>, shutdown: &Shutdown) -> Result<(), Failure> {
    if let Some(limit) = descriptors.filter(|limit| usize::try_from(*limit).is_ok_and(|limit| limit < args.max_streams)) {
        tracing::warn!(
            limit,
            max_streams = args.max_streams,
            "this process may open fewer files than it may hold streams (ulimit -n)"
        );
    }
    let parts = async {
        if args.kubernetes.is_meant() {
            return kubernetes::parts(&args).await.map(|parts| (parts, None));
        }
        embedded(&args).map(|(parts, store)| (parts, Some(store)))
    };
    let (parts, followed) = tokio::select! {
        parts = parts => parts?,
        () = shutdown.requested() => return Ok(()),
    };
    serve(args, parts, followed, shutdown).await
}

/// A plane that is everything itself, and its store.
fn embedded(args: &PlaneArgs) -> Result<(Parts, Arc<EmbeddedStore>), Failure> {
    let unavailable = |error: &dyn std::fmt::Display| Failure::Unavailable(error.to_string());
    let config = args.plane_config()?;
    let state = StateFolder::open(&args.state).map_err(|error| unavailable(&error))?;
    let authority = Authority::load_or_create(&config, &state).map_err(|error| unavailable(&error))?;
    let secrets = PlaneSecrets::load_or_create(&state, args.uid.as_deref()).map_err(|error| unavailable(&error))?;
    let root = state.path().join(ROOT_FILE);
    fs::write(&root, authority.ca.root_pem()).map_err(|error| Failure::Unavailable(format!("{}: {error}", root.display())))?;
    tracing::info!(uid = secrets.uid(), root = %root.display(), "agents of this plane have to trust this root");
    let store = Arc::new(EmbeddedStore::open(&state, args.config.clone(), authority.tokens.clone(), Clock::system())?);
    let mesh = args.mesh.settings(authority.ca.root_pem());
    let documents = mesh.discovery_address.is_empty().then(|| store.clone());
    let authority = Some(authority);
    Ok((Parts { config, authority, secrets, store: store.clone(), documents, mesh, state: Some(state) }, store))
}

async fn serve(args: PlaneArgs, parts: Parts, followed: Option<Arc<EmbeddedStore>>, shutdown: &Shutdown) -> Result<(), Failure> {
    let Parts { config, authority, secrets, store, documents, mesh, state } = parts;
    let (metrics, clock) = (Metrics::new(&HISTOGRAMS).map_err(|error| Failure::Internal(error.to_string()))?, Clock::system());
    let verifiers = args.credentials.verifiers(secrets.uid(), &clock)?;
    let settings = args.settings(mesh);
    let onboarding =
        OnboardingConfig { settings, secrets, store: store.clone(), documents, verifiers, metrics: metrics.clone(), clock };
    let page = TcpListener::bind(args.admin_address).await.map_err(|error| {
        Failure::Unavailable(format!("cannot listen on {} (SKIFF_PLANE_ADMIN_ADDRESS): {error}", args.admin_address))
    })?;
    let mut plane = Plane::serve(config, authority, Some(onboarding), state).await?;
    let admin = Admin { store, metrics: metrics.clone(), shutdown: shutdown.clone() };
    plane.run_beside(admin.serve(page));
    if let Some(store) = followed {
        plane.run_beside(async move {
            let Err(error) = store.follow().await;
            tracing::error!(%error, "the plane's configuration is not followed");
        });
    }
    plane.run_beside(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            metrics.upkeep();
        }
    });
    shutdown.requested().await;
    tokio::select! {
        biased;
        () = shutdown.insisted() => tracing::warn!("asked twice to stop: not waiting for what is in flight"),
        () = plane.shutdown() => {}
    }
    Ok(())
}

impl MeshArgs {
    fn cluster_id(&self) -> String {
        self.cluster_id.clone().unwrap_or_else(|| "Kubernetes".to_owned())
    }

    /// Of a plane with its own authority.
    fn settings(&self, root_pem: &str) -> MeshSettings {
        let Self { mesh_id, ca_address, discovery_address, .. } = self;
        MeshSettings {
            mesh_id: mesh_id.clone(),
            ca_address: ca_address.clone(),
            discovery_address: discovery_address.clone(),
            ..MeshSettings::embedded(self.trust_domain.clone(), self.cluster_id(), root_pem)
        }
    }
}

impl PlaneArgs {
    fn plane_config(&self) -> Result<PlaneConfig, Failure> {
        let (first, others) =
            self.listen.split_first().ok_or_else(|| Failure::Usage("SKIFF_PLANE_LISTEN: expected an address".to_owned()))?;
        let transport = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Transport::Files { certificate: certificate.clone(), key: key.clone() },
            _ if self.plaintext => Transport::Plaintext,
            _ => Transport::Own,
        };
        // Some connections more than streams: who only asks for a token or a package.
        let limits = Limits { max_connections: self.max_streams.saturating_add(1024), ..Limits::default() };
        Ok(PlaneConfig {
            also_listen: others.to_vec(),
            transport,
            packages: self.packages.clone(),
            server_names: self.server_names.clone(),
            cluster_id: self.mesh.cluster_id(),
            limits,
            ..PlaneConfig::new(*first, &self.state, self.mesh.trust_domain.clone())
        })
    }

    fn instance(&self) -> String {
        self.instance.clone().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "plane".to_owned())
    }

    fn settings(&self, mesh: MeshSettings) -> OnboardingSettings {
        let rate = Rate { per_second: self.authorize_rate.into(), burst: f64::from(self.authorize_rate) * 10.0 };
        OnboardingSettings {
            session_lifetime: self.token_lifetime,
            propagation_delay: self.propagation_delay,
            heartbeat_interval: self.heartbeat_interval,
            disconnect_grace: self.disconnect_grace,
            retention: self.retention,
            start_grace: self.start_grace,
            limits: OnboardingLimits { streams: self.max_streams, rate, ..OnboardingLimits::default() },
            ..OnboardingSettings::new(self.instance(), mesh)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn args(arguments: &[&str]) -> PlaneArgs {
        let all = ["skiff", "plane"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Some(Command::Plane(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_tetrate() {
        let args = args(&[]);
        let settings = args.settings(args.mesh.settings(""));
        assert_eq!((settings.session_lifetime.as_secs(), settings.propagation_delay.as_secs()), (3600, 10));
        let config = args.plane_config().unwrap();
        assert_eq!((config.listen.to_string(), config.transport), ("0.0.0.0:15443".to_owned(), Transport::Own));
        assert!(config.limits.max_connections > 10_000 && args.runs());
        assert_eq!(args.credentials.aws_describe_tasks, DescribeTasks::Required);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for wrong in [
            &["--tls-cert", "a"][..],
            &["--tls-key", "a"],
            &["--plaintext", "--tls-cert", "a", "--tls-key", "b"],
            &["--token-lifetime", "1"],
            &["--aws-describe-tasks", "maybe"],
            &["--aws-sts-endpoint", "sts.example"],
            &["--state", "/a", "get", "war"],
            &["get", "pods"],
        ] {
            assert!(Cli::try_parse_from(["skiff", "plane"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
        assert!(!args(&["get", "war", "-n", "bookinfo", "-o", "yaml"]).runs());
    }

    #[tokio::test]
    async fn beside_istiod_its_own_certificate_is_needed_and_a_way_to_the_api_server() {
        assert!(!args(&[]).kubernetes.is_meant());
        let own = kubernetes::parts(&args(&["--kubernetes"])).await.err().unwrap();
        assert!(matches!(&own, Failure::Configuration(text) if text.contains("SKIFF_PLANE_TLS_CERT")), "{own}");
        let nowhere = kubernetes::parts(&args(&["--kubeconfig", "/nowhere", "--plaintext"])).await.err().unwrap();
        assert!(matches!(&nowhere, Failure::Configuration(text) if text.contains("/nowhere")), "{nowhere}");
        assert!(!args(&["crds"]).runs());
    }
}
