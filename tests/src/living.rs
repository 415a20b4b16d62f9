//! A living istiod, for the tests that make sense against one; they are skipped where none is given.
//!
//! | Variable | What |
//! |---|---|
//! | `SKIFF_TEST_ISTIOD` | `host:port` of its TLS port, `10.0.0.2:15012` |
//! | `SKIFF_TEST_ISTIOD_ROOT` | PEM file of the root that its certificate leads to |
//! | `SKIFF_TEST_ISTIOD_TOKEN_FILE` | a token of any service account for audience `istio-ca`; enough to join |
//! | `KUBECONFIG` | of its Kubernetes, with `kubectl` in the path: what changes configuration needs it |
//!
//! With a `KUBECONFIG` every test has a namespace of its own, which is deleted at its end. Sidecars and applications are on loopback
//! addresses of this machine.
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::network::Network;
use crate::skiff::{Skiff, command};
use crate::wait::within;

/// Two workloads; `{ns}` is the namespace, `127.0.0` the network.
const DOCUMENTS: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: details, namespace: {ns}}
spec:
  hosts: [details.{ns}.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 9080, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: details}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: details-v1, namespace: {ns}, labels: {app: details, version: v1}}
spec: {address: 127.0.0.31, labels: {app: details, version: v1}, serviceAccount: details}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: ratings, namespace: {ns}}
spec:
  metadata: {labels: {app: ratings, version: v1}}
  template: {serviceAccount: ratings, ports: {http: 9080}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: {ns}}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: ratings, namespace: {ns}}
spec:
  workloadSelector: {labels: {app: ratings}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  ingress: [{port: {number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.21, defaultEndpoint: "0.0.0.0:8080"}]
  egress: [{port: {number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.2, hosts: ["./*"]}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: details, namespace: {ns}}
spec:
  workloadSelector: {labels: {app: details}}
  ingress: [{port: {number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.31, defaultEndpoint: "0.0.0.0:8080"}]
  egress: [{port: {number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.3, hosts: ["./*"]}]
"#;

/// Where it is, and how it is known.
#[derive(Debug)]
pub struct Living {
    address: String,
    root: PathBuf,
}

impl Living {
    /// From the environment; says so when a test is skipped.
    pub fn given() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(address) = variable("SKIFF_TEST_ISTIOD") else {
            eprintln!("skipped: SKIFF_TEST_ISTIOD is not set, see tests/src/living.rs");
            return None;
        };
        let root = variable("SKIFF_TEST_ISTIOD_ROOT").expect("SKIFF_TEST_ISTIOD_ROOT beside SKIFF_TEST_ISTIOD");
        Some(Self { address, root: root.into() })
    }

    /// The token that was given, if there is one.
    pub fn token_file(&self) -> Option<PathBuf> {
        let given = std::env::var_os("SKIFF_TEST_ISTIOD_TOKEN_FILE").map(PathBuf::from);
        if given.is_none() {
            eprintln!("skipped: SKIFF_TEST_ISTIOD_TOKEN_FILE is not set, see tests/src/living.rs");
        }
        given
    }

    /// A namespace for one test, with two workloads; `None` where Kubernetes cannot be asked.
    pub async fn namespace(self) -> Option<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("KUBECONFIG").is_none() {
            eprintln!("skipped: KUBECONFIG is not set, see tests/src/living.rs");
            return None;
        }
        let name = format!("skiff-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace { living: self, network: Network::claim(), name, folder: tempfile::tempdir().unwrap() };
        kubectl(&["create", "namespace", &namespace.name], "").await;
        for account in ["ratings", "details"] {
            kubectl(&["create", "serviceaccount", account, "-n", &namespace.name], "").await;
            let token = kubectl(&["create", "token", account, "-n", &namespace.name, "--audience", "istio-ca"], "").await;
            std::fs::write(namespace.folder.path().join(account), token).unwrap();
        }
        namespace.apply(DOCUMENTS).await;
        Some(namespace)
    }

    /// A sidecar that joins as the service account of this token.
    pub fn sidecar(&self, network: &Network, own: u8, app: &str, token: &Path, variables: &[(&str, &str)]) -> Skiff {
        let (namespace, account) = holder(token);
        let admin = network.at(own, 15000);
        let mut command = command(&[]);
        command
            .env("SKIFF_ADMIN_ADDRESS", admin.to_string())
            .env("SKIFF_WORKERS", "1")
            .env("POD_NAMESPACE", namespace)
            .env("SERVICE_ACCOUNT", account)
            .env("ISTIO_META_WORKLOAD_NAME", format!("{app}-v1"))
            .env("ISTIO_METAJSON_LABELS", format!(r#"{{"app":"{app}","version":"v1"}}"#))
            .env("INSTANCE_IP", network.ip(own).to_string())
            .env("CA_ADDR", &self.address)
            .env("CA_ROOT_CA", &self.root)
            .env("SKIFF_TOKEN_FILE", token)
            .env("PROXY_CONFIG", format!(r#"{{"discoveryAddress": "{}"}}"#, self.address))
            .envs(variables.iter().copied());
        Skiff::spawn(command, admin)
    }
}

/// Namespace and name of the service account that a token is for.
fn holder(token: &Path) -> (String, String) {
    let token = std::fs::read_to_string(token).unwrap();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let mut subject = claims["sub"].as_str().unwrap().rsplit(':').map(str::to_owned);
    let account = subject.next().unwrap();
    (subject.next().unwrap(), account)
}

/// The two workloads of a test.
#[derive(Debug)]
pub struct Namespace {
    living: Living,
    /// Their addresses.
    pub network: Network,
    /// Its name.
    pub name: String,
    folder: TempDir,
}

impl Namespace {
    /// The sidecar of the caller.
    pub fn ratings(&self, variables: &[(&str, &str)]) -> Skiff {
        self.living.sidecar(&self.network, 21, "ratings", &self.folder.path().join("ratings"), variables)
    }

    /// The sidecar of the callee.
    pub fn details(&self) -> Skiff {
        self.living.sidecar(&self.network, 31, "details", &self.folder.path().join("details"), &[])
    }

    /// Where the caller's application goes out.
    pub fn egress(&self) -> SocketAddr {
        self.network.at(2, 9080)
    }

    /// Where the callee's application listens.
    pub fn app(&self) -> SocketAddr {
        self.network.at(31, 8080)
    }

    /// What the callee is called.
    pub fn host(&self) -> String {
        format!("details.{}:9080", self.name)
    }

    /// Applies documents; `{ns}` and `127.0.0` are replaced.
    pub async fn apply(&self, documents: &str) {
        let documents = self.network.localise(&documents.replace("{ns}", &self.name));
        kubectl(&["apply", "--server-side", "-f", "-"], &documents).await;
    }

    /// Deletes an object.
    pub async fn delete(&self, kind: &str, name: &str) {
        kubectl(&["delete", kind, name, "-n", &self.name], "").await;
    }

    /// Objects of a kind, as Kubernetes has them.
    pub async fn objects(&self, kind: &str) -> Vec<serde_json::Value> {
        let list = kubectl(&["get", kind, "-n", &self.name, "-o", "json"], "").await;
        serde_json::from_str::<serde_json::Value>(&list).unwrap()["items"].as_array().unwrap().clone()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kubectl")
            .args(["delete", "namespace", &self.name, "--wait=false"])
            .stdout(Stdio::null())
            .status();
        // Without a controller for namespaces nothing else would delete what is in it.
        let kinds = "sidecars.networking.istio.io,serviceentries.networking.istio.io,workloadentries.networking.istio.io,\
                     workloadgroups.networking.istio.io,peerauthentications.security.istio.io,\
                     authorizationpolicies.security.istio.io,virtualservices.networking.istio.io";
        let _ = std::process::Command::new("kubectl")
            .args(["delete", kinds, "--all", "-n", &self.name, "--wait=false"])
            .stdout(Stdio::null())
            .status();
    }
}

async fn kubectl(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("kubectl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("kubectl in the path");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = within("kubectl", child.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
