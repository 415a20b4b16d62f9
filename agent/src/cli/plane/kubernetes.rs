//! `skiff plane --kubernetes`: the plane beside istiod.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{Parts, PlaneArgs};
use crate::exit::Failure;
use crate::plane::store::{IstioMesh, KubernetesOptions, KubernetesStore, MeshSource, StoreError};
use crate::plane::{MeshSettings, PlaneSecrets, Transport};

/// The Secret that replicas share.
const SECRET: &str = "skiff-plane";
/// How often it is said that the API server is not there.
const REMINDER: Duration = Duration::from_secs(30);
/// After the Secret could not be read or made.
const RETRY: Duration = Duration::from_secs(2);

/// Where a plane beside istiod has its objects.
#[derive(Debug, Args)]
pub(super) struct KubernetesArgs {
    /// Keep everything in Kubernetes, beside istiod: no folder of configuration, no folder of state, no authority of its own.
    #[arg(long, env = "SKIFF_PLANE_KUBERNETES")]
    kubernetes: bool,
    /// The same, from outside of the cluster.
    #[arg(long, env = "SKIFF_PLANE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Namespaces whose workloads may join, separated by commas; all of them if none is given.
    #[arg(long, env = "SKIFF_PLANE_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Where its Secret and its Lease are [default: the pod's namespace].
    #[arg(long, env = "SKIFF_PLANE_NAMESPACE")]
    own_namespace: Option<String>,
    /// Where istiod is.
    #[arg(long, env = "SKIFF_PLANE_ISTIO_NAMESPACE", default_value = "istio-system")]
    istio_namespace: String,
    /// Its revision; the default one if none is given.
    #[arg(long, env = "SKIFF_PLANE_ISTIO_REVISION", default_value = "")]
    istio_revision: String,
}

impl KubernetesArgs {
    /// Whether this is the plane's store.
    pub(super) fn is_meant(&self) -> bool {
        self.kubernetes || self.kubeconfig.is_some()
    }

    fn options(&self, replica: String) -> KubernetesOptions {
        KubernetesOptions {
            kubeconfig: self.kubeconfig.clone(),
            namespaces: self.namespaces.iter().filter(|namespace| !namespace.is_empty()).cloned().collect(),
            namespace: self.own_namespace.clone(),
            replica,
            mesh: MeshSource { namespace: self.istio_namespace.clone(), revision: self.istio_revision.clone() },
        }
    }
}

/// What such a plane is made of. Waits for the API server as long as it takes.
pub(super) async fn parts(args: &PlaneArgs) -> Result<Parts, Failure> {
    let config = args.plane_config()?;
    if config.transport == Transport::Own {
        let reason = "in Kubernetes the plane has no authority of its own: name its certificate (SKIFF_PLANE_TLS_CERT, \
            SKIFF_PLANE_TLS_KEY), or SKIFF_PLANE_PLAINTEXT behind a gateway that has one";
        return Err(Failure::Configuration(reason.to_owned()));
    }
    let store = Arc::new(KubernetesStore::start(args.kubernetes.options(args.instance())).await?);
    while let Err(error) = store.ready(REMINDER).await {
        tracing::warn!(%error, "waiting for the API server");
    }
    let secrets = secrets(&store, args.uid.as_deref()).await?;
    let known = store.mesh().map_err(|error| Failure::Unavailable(error.to_string()))?;
    let mesh = mesh(args, &store, &known)?;
    tracing::info!(uid = secrets.uid(), trust_domain = %mesh.trust_domain, discovery = mesh.discovery_address, "the plane is one of istiod's");
    Ok(Parts { config, authority: None, secrets, store, documents: None, mesh, state: None })
}

async fn secrets(store: &KubernetesStore, uid: Option<&str>) -> Result<PlaneSecrets, Failure> {
    let make = || PlaneSecrets::generate(uid).map(|secrets| secrets.to_pem());
    let text = loop {
        match store.shared_secret(SECRET, make).await {
            Ok(text) => break text,
            Err(error @ (StoreError::Unavailable(_) | StoreError::Conflict(_))) => {
                tracing::warn!(%error, "the plane's Secret cannot be read yet");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(Failure::Configuration(error.to_string())),
        }
    };
    let secrets = PlaneSecrets::from_pem(&text).map_err(|reason| Failure::Configuration(format!("Secret {SECRET}: {reason}")))?;
    match uid {
        Some(uid) if uid != secrets.uid() => Err(Failure::Configuration(format!(
            "SKIFF_PLANE_UID is {uid:?}, but the plane's Secret says {:?}: remove one of them",
            secrets.uid()
        ))),
        _ => Ok(secrets),
    }
}

/// What istiod says, unless the command line knows better.
fn mesh(args: &PlaneArgs, store: &KubernetesStore, known: &IstioMesh) -> Result<MeshSettings, Failure> {
    let given = &args.mesh;
    let wrong = |error| Failure::Configuration(format!("MeshConfig: trustDomain: {error}"));
    let trust_domain = known.trust_domain.parse().map_err(wrong)?;
    let or = |given: &str, known: &str| if given.is_empty() { known.to_owned() } else { given.to_owned() };
    let discovery_address = or(&given.discovery_address, &known.discovery_address);
    // Its certificate has the name that the mesh knows it by, whatever gateway leads there.
    let host = known.discovery_address.rsplit_once(':').map_or(known.discovery_address.as_str(), |(host, _)| host);
    Ok(MeshSettings {
        trust_domain,
        cluster_id: given.cluster_id.clone().unwrap_or_else(|| known.cluster_id.clone()),
        mesh_id: or(&given.mesh_id, &known.mesh_id),
        ca_address: or(&given.ca_address, &discovery_address),
        discovery_address,
        control_plane_san: host.to_owned(),
        roots: store.roots(),
        proxy_config: store.proxy_config(),
    })
}
