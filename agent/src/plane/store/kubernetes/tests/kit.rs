//! A real API server with what the tests need in it.

use std::path::PathBuf;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::Request;
use serde_json::{Value as Json, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::super::client::{ApiServer, CallError, Written};
use super::super::{KubernetesOptions, KubernetesStore, MeshSource};

/// Longer than anything takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The kubeconfig that these tests are run with.
pub(super) fn kubeconfig() -> PathBuf {
    let path = std::env::var_os("SKIFF_TEST_KUBECONFIG");
    path.expect("SKIFF_TEST_KUBECONFIG: these tests need a Kubernetes API server, tests/kubernetes/run.sh brings one").into()
}

/// The API server, with the definitions of all kinds.
pub(super) async fn server() -> ApiServer {
    let server = ApiServer::connect(Some(&kubeconfig())).await.unwrap();
    let istio = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/kubernetes/istio-crds.yaml");
    // Istio's own definitions stay where they are.
    let crds = Request::new("/apis/apiextensions.k8s.io/v1/customresourcedefinitions");
    if server.get::<Json>(&crds, "workloadgroups.networking.istio.io").await.unwrap().is_none() {
        apply(&server, &std::fs::read_to_string(istio).unwrap()).await.unwrap();
    }
    apply(&server, crate::plane::CRDS).await.unwrap();
    for name in ["workloadgroups.networking.istio.io", "workloadautoregistrations.runtime.onboarding.tetrate.io"] {
        until(async || {
            let crd = server.get::<Json>(&crds, name).await.unwrap().unwrap_or_default();
            let conditions = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|condition| condition["type"] == "Established" && condition["status"] == "True")
        })
        .await;
    }
    server
}

/// A namespace with the service account `ratings`, and what istiod says of the mesh.
pub(super) async fn namespace(server: &ApiServer, name: &str) {
    let yaml = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: ratings, namespace: {name}}}\n"
    );
    apply(server, &yaml).await.unwrap();
    istiod(server, name, &root(), "trustDomain: cluster.local\n").await;
}

/// A root certificate.
pub(super) fn root() -> String {
    rcgen::generate_simple_self_signed(["root".to_owned()]).unwrap().cert.pem()
}

/// As `kubectl apply --server-side --force-conflicts`. A kind that was just defined may not be served at once.
pub(super) async fn apply(server: &ApiServer, yaml: &str) -> Result<(), CallError> {
    let documents: Vec<Json> = serde_saphyr::from_multiple(yaml).unwrap();
    for object in documents.iter().filter(|object| !object.is_null()) {
        let place = place(object);
        let name = object["metadata"]["name"].as_str().unwrap();
        let request = place.patch(name, &PatchParams::apply("skiff-test").force(), &Patch::Apply(object)).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            match server.write::<Json>(request.clone()).await.result {
                Err(error) if error.code() == 404 && Instant::now() < end => sleep(Duration::from_millis(200)).await,
                result => {
                    result?;
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Where an API server has an object of one of the kinds in these tests.
pub(super) fn place(object: &Json) -> Request {
    let api = object["apiVersion"].as_str().unwrap();
    let root = if api.contains('/') { format!("/apis/{api}") } else { format!("/api/{api}") };
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Request::new(format!("{root}/namespaces/{namespace}/{plural}")),
        None => Request::new(format!("{root}/{plural}")),
    }
}

/// Removes whatever has the name, and waits for nothing.
pub(super) async fn delete(server: &ApiServer, place: &Request, name: &str) {
    let Written { result, .. } = server.delete(place, name, &Default::default()).await;
    result.unwrap();
}

/// Writes the ConfigMaps that istiod has: with these roots and this MeshConfig.
pub(super) async fn istiod(server: &ApiServer, namespace: &str, roots: &str, mesh: &str) {
    for (name, entry, text) in [("istio-ca-root-cert", "root-cert.pem", roots), ("istio", "mesh", mesh)] {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace}, "data": {entry: text},
        });
        apply(server, &map.to_string()).await.unwrap();
    }
}

/// A replica of a plane whose own namespace is `namespace`.
pub(super) async fn replica(namespace: &str, name: &str) -> KubernetesStore {
    let options = KubernetesOptions {
        kubeconfig: Some(kubeconfig()),
        namespaces: vec![namespace.to_owned()],
        namespace: Some(namespace.to_owned()),
        replica: name.to_owned(),
        mesh: MeshSource { namespace: namespace.to_owned(), revision: String::new() },
    };
    let store = KubernetesStore::start(options).await.unwrap();
    store.ready(PATIENCE).await.unwrap();
    store
}

/// Asks again until it is so.
pub(super) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < end, "it does not happen within {PATIENCE:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Runs `kill`, `start`, `freeze` or `thaw` of tests/kubernetes/server.sh.
pub(super) async fn control(action: &str) {
    let command = std::env::var("SKIFF_TEST_API_SERVER");
    let command = command.expect("SKIFF_TEST_API_SERVER: how to kill the API server, tests/kubernetes/run.sh says it");
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).arg(action).status().await.unwrap();
    assert!(status.success(), "{action}: {status}");
}

/// The WorkloadGroup `ratings`.
pub(super) fn group(namespace: &str) -> String {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": {"name": "ratings", "namespace": namespace, "labels": {"app": "ratings"}},
        "spec": {"template": {"serviceAccount": "ratings"}},
    })
    .to_string()
}
