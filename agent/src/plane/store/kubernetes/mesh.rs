//! What istiod says of the mesh in its ConfigMaps: its roots, the trust domain, the configuration that proxies begin with.

use std::sync::Arc;
use std::time::Duration;

use kube::core::Request;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::client::{ApiServer, CallError, core};
use crate::identity::Backoff;

/// How often the ConfigMaps are read.
const INTERVAL: Duration = Duration::from_secs(15);
/// Until they could be read once.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// istiod's roots, in every namespace.
const ROOTS: (&str, &str) = ("istio-ca-root-cert", "root-cert.pem");
/// MeshConfig as YAML, with the revision at the end of the name.
const MESH: (&str, &str) = ("istio", "mesh");
/// Where the name of the cluster is, as JSON, with the revision at the end of the name.
const INJECTOR: (&str, &str) = ("istio-sidecar-injector", "values");

/// Which istiod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSource {
    /// Its namespace: `istio-system`.
    pub namespace: String,
    /// Its revision; empty is the default one.
    pub revision: String,
}

/// What a workload has to know of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct IstioMesh {
    /// PEM roots of istiod and its certificate authority.
    pub root_certificates: String,
    /// `trustDomain`.
    pub trust_domain: String,
    /// `host:port` of istiod.
    pub discovery_address: String,
    /// `defaultConfig`: Istio's ProxyConfig, as it is written.
    pub proxy_config: Map<String, Json>,
    /// `meshId` of `defaultConfig`, else the trust domain.
    pub mesh_id: String,
    /// The name that istiod has for this cluster.
    pub cluster_id: String,
}

/// What is known of the mesh, as it changes.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// All of it, or why nothing is known yet.
    pub(super) mesh: watch::Receiver<Result<Arc<IstioMesh>, String>>,
    /// Of it the roots; empty until they are known.
    pub(super) roots: watch::Receiver<Arc<str>>,
    /// Of it the proxy configuration.
    pub(super) proxy_config: watch::Receiver<Arc<Map<String, Json>>>,
}

/// What is known, and what has to run to know it.
pub(super) fn follow(server: ApiServer, source: MeshSource) -> (Known, impl Future<Output = ()> + use<>) {
    let (known, mesh) =
        watch::channel::<Result<Arc<IstioMesh>, String>>(Err("istiod's ConfigMaps have not been read yet".to_owned()));
    let (roots, roots_known) = watch::channel::<Arc<str>>("".into());
    let (proxy_config, proxy_config_known) = watch::channel::<Arc<Map<String, Json>>>(Arc::default());
    let follow = async move {
        let mut backoff = Backoff::new(FIRST_WAIT, INTERVAL);
        loop {
            let wait = match read(&server, &source).await {
                Ok(read) => {
                    backoff.reset();
                    set(&roots, |roots| **roots == *read.root_certificates, || read.root_certificates.as_str().into());
                    set(&proxy_config, |known| **known == read.proxy_config, || Arc::new(read.proxy_config.clone()));
                    known.send_if_modified(|mesh| match mesh {
                        Ok(known) if **known == read => false,
                        _ => {
                            tracing::info!(
                                trust_domain = read.trust_domain,
                                discovery = read.discovery_address,
                                "mesh configuration read"
                            );
                            *mesh = Ok(Arc::new(read));
                            true
                        }
                    });
                    INTERVAL
                }
                Err(reason) => {
                    // What was read once is good until something else can be read.
                    known.send_if_modified(|mesh| {
                        let is_new = mesh.as_ref().err().is_some_and(|known| *known != reason);
                        if is_new {
                            tracing::warn!("{reason}");
                            *mesh = Err(reason);
                        }
                        is_new
                    });
                    backoff.next_wait()
                }
            };
            sleep(wait).await;
        }
    };
    (Known { mesh, roots: roots_known, proxy_config: proxy_config_known }, follow)
}

/// Tells of a new value, if it is new.
fn set<T>(known: &watch::Sender<T>, is_same: impl FnOnce(&T) -> bool, new: impl FnOnce() -> T) {
    known.send_if_modified(|value| {
        let is_new = !is_same(value);
        if is_new {
            *value = new();
        }
        is_new
    });
}

async fn read(server: &ApiServer, source: &MeshSource) -> Result<IstioMesh, String> {
    let MeshSource { namespace, revision } = source;
    let place = core(namespace, "configmaps");
    let revised = |name: &str| if revision.is_empty() { name.to_owned() } else { format!("{name}-{revision}") };
    let entry = async |name: &str, entry: &str| entry_of(server, &place, name, entry).await;
    let in_map = |name: &str, error: &dyn std::fmt::Display| format!("ConfigMap {namespace}/{name}: {error}");
    let needed = |name: &str, found: Result<Option<String>, CallError>| match found {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(in_map(name, &"not there, or without its entry")),
        Err(error) => Err(in_map(name, &error)),
    };
    let roots = needed(ROOTS.0, entry(ROOTS.0, ROOTS.1).await)?;
    let name = revised(MESH.0);
    let mesh = needed(&name, entry(&name, MESH.1).await)?;
    let values = entry(&revised(INJECTOR.0), INJECTOR.1).await.ok().flatten();
    parse(source, roots, &mesh, values.as_deref()).map_err(|error| in_map(&name, &error))
}

async fn entry_of(server: &ApiServer, place: &Request, name: &str, entry: &str) -> Result<Option<String>, CallError> {
    let map: Option<Json> = server.get(place, name).await?;
    Ok(map.and_then(|map| map["data"][entry].as_str().map(str::to_owned)))
}

fn parse(source: &MeshSource, roots: String, mesh: &str, values: Option<&str>) -> Result<IstioMesh, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(roots.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => {}
        _ => return Err(format!("{}: expected certificates in PEM", ROOTS.0)),
    }
    let mesh: Json = serde_saphyr::from_str(mesh).map_err(|error| format!("{}: {}", MESH.1, error.without_snippet()))?;
    let text = |value: &Json| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let proxy_config = match &mesh["defaultConfig"] {
        Json::Null => Map::new(),
        Json::Object(fields) => fields.clone(),
        other => return Err(format!("{}: defaultConfig: {other}: expected an object", MESH.1)),
    };
    let field = |name: &str| proxy_config.get(name).and_then(text);
    let trust_domain = text(&mesh["trustDomain"]).unwrap_or_else(|| "cluster.local".to_owned());
    let host = if source.revision.is_empty() { "istiod".to_owned() } else { format!("istiod-{}", source.revision) };
    let discovery_address = field("discoveryAddress").unwrap_or_else(|| format!("{host}.{}.svc:15012", source.namespace));
    let mesh_id = field("meshId").unwrap_or_else(|| trust_domain.clone());
    let values: Json = values.and_then(|values| serde_json::from_str(values).ok()).unwrap_or_default();
    let cluster_id = text(&values["global"]["multiCluster"]["clusterName"]).unwrap_or_else(|| "Kubernetes".to_owned());
    Ok(IstioMesh { root_certificates: roots, trust_domain, discovery_address, proxy_config, mesh_id, cluster_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(revision: &str) -> MeshSource {
        MeshSource { namespace: "istio-system".to_owned(), revision: revision.to_owned() }
    }

    fn root() -> String {
        rcgen::generate_simple_self_signed(["root".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn what_is_said_is_taken_and_the_rest_is_istios_default() {
        let mesh =
            "trustDomain: example.org\ndefaultConfig: {discoveryAddress: 'istiod.mesh:443', meshId: m, drainDuration: 5s}\n";
        let values = r#"{"global":{"multiCluster":{"clusterName":"east"}}}"#;
        let read = parse(&source(""), root(), mesh, Some(values)).unwrap();
        assert_eq!((read.trust_domain.as_str(), read.discovery_address.as_str()), ("example.org", "istiod.mesh:443"));
        assert_eq!((read.mesh_id.as_str(), read.cluster_id.as_str()), ("m", "east"));
        assert_eq!(read.proxy_config["drainDuration"], "5s");

        let read = parse(&source("canary"), root(), "accessLogFile: /dev/stdout\n", None).unwrap();
        assert_eq!(read.discovery_address, "istiod-canary.istio-system.svc:15012");
        let defaults = (read.trust_domain.as_str(), read.mesh_id.as_str(), read.cluster_id.as_str());
        assert_eq!(defaults, ("cluster.local", "cluster.local", "Kubernetes"));
        assert!(read.proxy_config.is_empty());
    }

    #[test]
    fn without_roots_or_with_another_shape_there_is_no_mesh() {
        assert!(parse(&source(""), "no PEM".to_owned(), "{}", None).unwrap_err().contains("istio-ca-root-cert"));
        assert!(parse(&source(""), root(), "defaultConfig: [1]\n", None).unwrap_err().contains("expected an object"));
        assert!(parse(&source(""), root(), "a: [", None).is_err());
    }
}
