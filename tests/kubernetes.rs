//! `skiff plane --kubeconfig` with a real API server, and tasks of ECS that join through it. tests/kubernetes/run.sh brings the API
//! server; without one these tests are ignored. The last one needs an istiod as well.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value as Json, json};
use skiff_tests::apps::{App, Speaks};
use skiff_tests::aws::{FakeAws, FakeTask};
use skiff_tests::http;
use skiff_tests::network::Network;
use skiff_tests::skiff::{Skiff, command, run};
use skiff_tests::tls::Authority;
use skiff_tests::wait::patiently;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// The name in the plane's certificate.
const ENDPOINT: &str = "onboarding-endpoint.example";
/// Longer than a replica's lease, and than anything else on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace that workloads may join, and what they and the plane need around it.
struct World {
    namespace: String,
    /// Where istiod's ConfigMaps are.
    istio_namespace: String,
    /// Where workloads reach it.
    discovery: String,
    aws: FakeAws,
    network: Network,
    folder: tempfile::TempDir,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: these tests are run by tests/kubernetes/run.sh"))
}

/// `kubectl` with these arguments; its standard output.
async fn kubectl(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut kubectl = Command::new(variable("SKIFF_TEST_KUBECTL"));
    kubectl.env("KUBECONFIG", variable("SKIFF_TEST_KUBECONFIG")).args(arguments);
    let mut running = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = running.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

async fn apply(yaml: &str) {
    kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml).await.unwrap();
}

/// Runs `kill` or `start` of tests/kubernetes/server.sh.
async fn api_server(action: &str) {
    let control = variable("SKIFF_TEST_API_SERVER");
    let mut words = control.split_whitespace();
    assert!(Command::new(words.next().unwrap()).args(words).arg(action).status().await.unwrap().success(), "{action}");
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    patiently(PATIENCE, what, async || is_so().await.then_some(())).await;
}

impl World {
    async fn new(namespace: &str) -> Self {
        let network = Network::claim();
        let (aws, folder) = (FakeAws::start(network.at(90, 8080)).await, tempfile::tempdir().unwrap());
        let root = folder.path().join("root.pem");
        Authority::with_root(&root).issue_for_name(ENDPOINT).write(folder.path(), "endpoint");
        if kubectl(&["get", "crd", "workloadgroups.networking.istio.io"], "").await.is_err() {
            let istio = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/istio-crds.yaml");
            apply(&std::fs::read_to_string(istio).unwrap()).await;
        }
        let crds = run(command(&["plane", "crds"])).await;
        apply(&crds.stdout).await;
        kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").await.unwrap();
        let (discovery, istio_namespace) = match std::env::var("SKIFF_TEST_ISTIOD") {
            Ok(address) => (address, "istio-system".to_owned()),
            // Nobody is there; a task joins nevertheless.
            Err(_) => (network.at(91, 15012).to_string(), namespace.to_owned()),
        };
        let world = Self { namespace: namespace.to_owned(), istio_namespace, discovery, aws, network, folder };
        world.apply(&world.objects()).await;
        // What a run before this one left.
        world.kubectl(&["delete", "war,workloadentries", "--all"]).await.unwrap();
        world.enrol().await;
        if world.istio_namespace == namespace {
            let map = |name: &str, entry: &str, text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {entry: text}});
            let roots = std::fs::read_to_string(&root).unwrap();
            world
                .apply(&[
                    map("istio-ca-root-cert", "root-cert.pem", &roots),
                    map("istio", "mesh", "trustDomain: cluster.local\n"),
                ])
                .await;
        }
        world
    }

    /// Gives the plane the rights of the manifests, here instead of skiff-system and bookinfo, and a kubeconfig that has just these.
    async fn enrol(&self) {
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/manifests");
        let read = |name: &str| std::fs::read_to_string(format!("{manifests}/{name}")).unwrap();
        let enrolled = read("enrolled-namespace.yaml");
        let rights = enrolled.split("---\n").filter(|document| document.contains("rbac.authorization.k8s.io"));
        let all = read("rbac.yaml") + "---\n" + &rights.collect::<Vec<_>>().join("---\n");
        let here = all.replace("istio-system", &self.istio_namespace).replace("skiff-system", &self.namespace);
        apply(&here.replace("bookinfo", &self.namespace)).await;
        let admin = kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"], "").await.unwrap();
        let mut kubeconfig: Json = serde_json::from_str(&admin).unwrap();
        let token = self.kubectl(&["create", "token", "skiff-plane", "--duration", "1h"]).await.unwrap();
        kubeconfig["users"][0]["user"] = json!({"token": token.trim()});
        std::fs::write(self.folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
    }

    /// Namespace, service account, group and policy.
    fn objects(&self) -> [Json; 4] {
        [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ratings-vm"}}),
            self.group("ratings"),
            json!({
                "apiVersion": "authorization.onboarding.tetrate.io/v1alpha1", "kind": "OnboardingPolicy",
                "metadata": {"name": "tasks"},
                "spec": {"allow": [{
                    "workloads": [{"aws": {
                        "accounts": ["123456789012"], "regions": ["us-east-1"],
                        "ecs": {"clusters": ["bookinfo"], "iamRoleNames": ["bookinfoECSTaskRole"]},
                    }}],
                    "onboardTo": [{"workloadGroupSelector": {"matchLabels": {"class": "vm"}}}],
                }]},
            }),
        ]
    }

    fn group(&self, name: &str) -> Json {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
            "metadata": {"name": name, "labels": {"app": name, "class": "vm"}},
            "spec": {"template": {"labels": {"app": name, "class": "vm"}, "serviceAccount": "ratings-vm"}},
        })
    }

    /// Applies objects to this namespace.
    async fn apply(&self, objects: &[Json]) {
        let place = |object: &Json| {
            let mut object = object.clone();
            if object["kind"] != "Namespace" {
                object["metadata"]["namespace"] = json!(self.namespace);
            }
            object.to_string()
        };
        apply(&objects.iter().map(place).collect::<Vec<_>>().join("\n---\n")).await;
    }

    /// `kubectl -n NAMESPACE …`
    async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        kubectl(&[&["-n", &self.namespace], arguments].concat(), "").await
    }

    async fn has(&self, kind: &str, name: &str) -> bool {
        self.kubectl(&["get", kind, name]).await.is_ok()
    }

    /// A replica of the plane; `ip` is where it listens.
    async fn plane(&self, name: &str, ip: IpAddr) -> Skiff {
        let (listen, admin) = (SocketAddr::new(ip, 15443), SocketAddr::new(ip, 15014));
        let file = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        let mut plane = command(&["plane", "--kubeconfig", &file("kubeconfig"), "--instance", name]);
        plane.args(["--tls-cert", &file("endpoint.pem"), "--tls-key", &file("endpoint.key")]);
        plane.args(["--listen", &listen.to_string(), "--admin-address", &admin.to_string()]);
        plane.args(["--namespaces", &self.namespace, "--own-namespace", &self.namespace]);
        plane.args(["--istio-namespace", &self.istio_namespace, "--discovery-address", &self.discovery]);
        plane.args(["--propagation-delay", "1s", "--heartbeat-interval", "1s"]);
        plane.envs(self.aws.plane_environment());
        let plane = Skiff::spawn(plane, admin);
        plane.ready().await;
        plane
    }

    /// A task of ECS that joins `group` through the plane at `plane`.
    fn task(&self, id: &str, group: &str, address: IpAddr, plane: IpAddr) -> Skiff {
        self.aws.add_task(FakeTask { address: Some(address), ..FakeTask::new(id) });
        let configuration = json!({
            "apiVersion": "config.agent.onboarding.tetrate.io/v1alpha1", "kind": "OnboardingConfiguration",
            "onboardingEndpoint": {"host": plane, "transportSecurity": {"tls": {"sni": ENDPOINT}}},
            "workload": {"labels": {"version": "v5"}}, "workloadGroup": {"namespace": self.namespace, "name": group},
        });
        let admin = SocketAddr::new(address, 15000);
        let mut task = command(&[]);
        task.envs(self.aws.task_environment(id)).env("ONBOARDING_CONFIG", configuration.to_string());
        task.env("ONBOARDING_AGENT_ROOT_CERTS", std::fs::read_to_string(self.folder.path().join("root.pem")).unwrap());
        task.env("SKIFF_ADMIN_ADDRESS", admin.to_string()).env("SKIFF_WORKERS", "1");
        Skiff::spawn(task, admin)
    }
}

/// The published name of a task's objects.
fn name(group: &str, id: &str) -> String {
    format!("{group}-aws-aws-123456789012-us-east-1a-ecs-bookinfo-{id}")
}

const TASK: &str = "3a151358f03a4e32bf8cd401c1c74653";
const LATE_TASK: &str = "3a151358f03a4e32bf8cd401c1c74654";

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn a_task_joins_through_two_replicas() {
    let world = World::new("skiff-join").await;
    let (first, second) = (world.network.ip(1).into(), world.network.ip(2).into());
    let one = world.plane("plane-1", first).await;
    let two = world.plane("plane-2", second).await;
    let war = name("ratings", TASK);
    let task = world.task(TASK, "ratings", world.network.ip(21).into(), first);
    let connected_to = async |plane: &str| {
        let path = "jsonpath={.status.conditions[0].status} {.status.activeAgentConnection.connectedTo}";
        world.kubectl(&["get", "war", &war, "-o", path]).await.is_ok_and(|said| said == format!("True {plane}"))
    };
    until("the agent is connected", async || connected_to("plane-1").await).await;
    let table = world.kubectl(&["get", "war"]).await.unwrap();
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "AGENT", "CONNECTED", "AGE"]);
    assert_eq!(lines[1][..2], [war.as_str(), "True"]);
    let entry: Json = serde_json::from_str(&world.kubectl(&["get", "workloadentry", &war, "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!(entry["spec"]["address"], world.network.ip(21).to_string());
    assert_eq!(entry["metadata"]["annotations"]["proxy.istio.io/health-checks-enabled"], "true");
    assert_eq!(entry["metadata"]["ownerReferences"][0]["kind"], "WorkloadAutoRegistration");
    assert_eq!(entry["spec"]["labels"], json!({"app": "ratings", "class": "vm", "version": "v5"}));

    // The task starts anew elsewhere: the newest stream is the one that counts, and the session of one replica is good for the other.
    drop(task);
    let task = world.task(TASK, "ratings", world.network.ip(21).into(), second);
    until("the newest stream counts", async || connected_to("plane-2").await).await;

    // A replica that is killed takes nothing with it.
    drop(one);
    assert!(connected_to("plane-2").await && world.has("workloadentry", &war).await);
    drop(two);
    let two = world.plane("plane-2", second).await;
    task.stderr.nth_line_with("registered with the onboarding plane", 2).await;
    assert!(world.has("workloadentry", &war).await);

    // Nor does an API server that is away; but nobody new is let in.
    let registered = task.stderr.count("registered with the onboarding plane");
    api_server("kill").await;
    let late = world.task(LATE_TASK, "ratings", world.network.ip(22).into(), second);
    let line = late.stderr.line_with("not onboarded yet").await;
    assert!(line.contains("code = Unavailable"), "{line}");
    api_server("start").await;
    until("the late one is in", async || world.has("workloadentry", &name("ratings", LATE_TASK)).await).await;
    assert!(connected_to("plane-2").await);
    assert_eq!(task.stderr.count("registered with the onboarding plane"), registered, "its stream has not ended");

    // Leaving is at once for those who call it.
    late.terminate().await;
    task.terminate().await;
    until("the entry is gone", async || !world.has("workloadentry", &war).await).await;
    until("the registration is gone", async || !world.has("war", &war).await).await;
    for secret in ["X-Amz-Signature", "eyJ"] {
        assert_eq!(two.stderr.count(secret), 0, "a secret is in the log");
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn what_people_change_is_in_force_at_once() {
    let world = World::new("skiff-change").await;
    let plane_ip = world.network.ip(1).into();
    let _plane = world.plane("plane-1", plane_ip).await;
    let war = name("ratings", TASK);
    let policy = world.objects()[3].clone();
    world.kubectl(&["delete", "onboardingpolicy", "tasks"]).await.unwrap();
    let task = world.task(TASK, "ratings", world.network.ip(21).into(), plane_ip);
    let line = task.stderr.line_with("not onboarded yet").await;
    assert!(line.contains("PermissionDenied desc = Not authorized by OnboardingPolicy"), "{line}");
    assert!(!world.has("war", &war).await);
    world.apply(&[policy]).await;
    until("it is admitted", async || world.has("workloadentry", &war).await).await;

    // A registration goes with its group.
    world.kubectl(&["delete", "workloadgroup", "ratings"]).await.unwrap();
    until("all of it is gone", async || !world.has("war", &war).await && !world.has("workloadentry", &war).await).await;
    world.apply(&[world.group("ratings")]).await;
    until("it joins the new one", async || world.has("workloadentry", &war).await).await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server: tests/kubernetes/run.sh"]
async fn the_rights_of_the_plane_end_where_nobody_is_enrolled() {
    let world = World::new("skiff-rights").await;
    let ours = world.namespace.as_str();
    for (verb, resource, namespace, expected) in [
        ("create", "serviceaccounts/ratings-vm", ours, true),
        ("create", "serviceaccounts/other", ours, false),
        ("create", "serviceaccounts/ratings-vm", "default", false),
        ("create", "workloadentries.networking.istio.io", ours, true),
        ("create", "workloadentries.networking.istio.io", "default", false),
        ("delete", "workloadautoregistrations.runtime.onboarding.tetrate.io", "default", false),
        ("watch", "onboardingpolicies.authorization.onboarding.tetrate.io", "default", true),
        ("update", "onboardingpolicies.authorization.onboarding.tetrate.io", ours, false),
        ("get", "secrets/skiff-plane", ours, true),
        ("get", "secrets/other", ours, false),
        ("list", "secrets", ours, false),
        ("create", "secrets", "default", false),
    ] {
        let who = format!("--as=system:serviceaccount:{ours}:skiff-plane");
        let token = if resource.starts_with("serviceaccounts") { "--subresource=token" } else { "--subresource=" };
        let said = kubectl(&["auth", "can-i", &who, verb, resource, "-n", namespace, token], "").await;
        // The answer is the exit code as well.
        assert_eq!(said.is_ok(), expected, "{verb} {resource} in {namespace}: {said:?}");
    }
}

#[tokio::test]
#[ignore = "needs an API server with istiod: SKIFF_TEST_ISTIOD is its host:port, SKIFF_TEST_ADDRESSES the first three numbers of ours"]
async fn tasks_that_istiod_knows_call_each_other() {
    let world = World::new("skiff-istiod").await;
    let prefix = variable("SKIFF_TEST_ADDRESSES");
    variable("SKIFF_TEST_ISTIOD");
    let ip = |last: u8| format!("{prefix}.{last}").parse::<IpAddr>().unwrap();
    let ids = ["3a151358f03a4e32bf8cd401c1c70001", "3a151358f03a4e32bf8cd401c1c70002"];
    let groups = ["one", "two"];
    let egress = |index: usize| world.network.at(210 + index as u8, 9080);
    let host = |index: usize| format!("{}.{}.svc.cluster.local", groups[index], world.namespace);
    for (index, group) in groups.iter().enumerate() {
        let service = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": group},
            "spec": {
                "hosts": [host(index)], "location": "MESH_INTERNAL", "resolution": "STATIC",
                "ports": [{"number": 9080, "name": "http", "protocol": "HTTP"}], "workloadSelector": {"labels": {"app": group}},
            },
        });
        // istiod takes no other address of an application than 127.0.0.1.
        let sidecar = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": group},
            "spec": {
                "workloadSelector": {"labels": {"app": group}},
                "ingress": [{
                    "port": {"number": 9080, "protocol": "HTTP", "name": "http"}, "bind": ip(150 + index as u8),
                    "defaultEndpoint": format!("127.0.0.1:{}", 18150 + index),
                }],
                "egress": [{
                    "bind": egress(index).ip(), "port": {"number": 9080, "protocol": "HTTP", "name": "egress-http"}, "hosts": ["*/*"],
                }],
            },
        });
        world.apply(&[world.group(group), service, sidecar]).await;
    }
    let plane = world.plane("plane-1", ip(152)).await;
    let apps: Vec<_> = (0..2).map(|index| App::start(SocketAddr::from(([127, 0, 0, 1], 18150 + index)), Speaks::Http)).collect();
    let task = |index: usize| world.task(ids[index], groups[index], ip(150 + index as u8), ip(152));
    let tasks = [task(0), task(1)];
    for task in &tasks {
        task.ready().await;
    }
    for (index, group) in groups.iter().enumerate() {
        let war = name(group, ids[index]);
        let path = "jsonpath={.status.conditions[?(@.type==\"Healthy\")].status}";
        until("istiod says that it is healthy", async || {
            world.kubectl(&["get", "workloadentry", &war, "-o", path]).await.is_ok_and(|said| said == "True")
        })
        .await;
    }
    println!("{}", world.kubectl(&["get", "war"]).await.unwrap());
    for (from, to) in [(0, 1), (1, 0)] {
        until("there is a way", async || {
            http::try_get(egress(from), &host(to), "/hello").await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        let request = apps[to].last_request();
        let caller = request.header("x-forwarded-client-cert").unwrap_or_default().to_owned();
        assert!(caller.contains(&format!("URI=spiffe://cluster.local/ns/{}/sa/ratings-vm", world.namespace)), "{caller}");
    }

    // The plane is away: nothing that serves changes.
    drop(plane);
    assert_eq!(http::get(egress(0), &host(1), "/hello").await.status, 200);
    let plane = world.plane("plane-1", ip(152)).await;
    // A task that leaves is called no more.
    tasks[1].terminate().await;
    until("nobody is left to be called", async || {
        http::try_get(egress(0), &host(1), "/hello").await.is_ok_and(|answer| answer.status == 503)
    })
    .await;
    let war = name(groups[1], ids[1]);
    until("its objects are gone", async || !world.has("war", &war).await && !world.has("workloadentry", &war).await).await;
    drop(plane);
}
