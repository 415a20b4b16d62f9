//! A task that joins a mesh with istiod through an onboarding plane, serves, and leaves. Plane and istiod are fakes that say what a
//! test makes them say; the task is a real process with the environment of a task.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::Duration;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Tell;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::aws::{FakeAws, FakeTask};
use skiff_tests::http::{self, Connection};
use skiff_tests::istiod::{self, HEALTH, Istiod, Oddity};
use skiff_tests::load::Load;
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS};
use skiff_tests::network::Network;
use skiff_tests::onboarding::{FakePlane, Heard, NAME, token};
use skiff_tests::skiff::{Skiff, command, run};
use skiff_tests::tls;
use skiff_tests::wait::eventually;
use tokio::net::TcpStream;
use tonic::Status;

const TASK: &str = "3a151358f03a4e32bf8cd401c1c74653";
const DETAILS_CLUSTER: &str = "outbound|9080||details.bookinfo.svc.cluster.local";
const DELAY: Duration = Duration::from_secs(2);

/// What a task needs to join, and what it joins.
struct World {
    mesh: Mesh,
    aws: FakeAws,
    istiod: Istiod,
    plane: FakePlane,
}

impl World {
    async fn with(proxy_config: &str) -> Self {
        let mesh = Mesh::prepare_on(Network::claim_short()).await;
        let network = &mesh.network;
        let aws = FakeAws::start(network.at(90, 8080)).await;
        aws.add_task(FakeTask { address: Some(network.ip(21).into()), ..FakeTask::new(TASK) });
        let istiod = Istiod::start(network, network.at(16, 15012), mesh.authority()).await;
        istiod.endpoints(DETAILS_CLUSTER, &[mesh.ingress(DETAILS_V1, 9080)]).await;
        let boot = proto::Boot {
            name: format!("ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-{TASK}"),
            namespace: "bookinfo".to_owned(),
            labels: [("app".to_owned(), "ratings".to_owned())].into(),
            service_account: "bookinfo-ratings".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            network: "ecs".to_owned(),
            mesh_id: "mesh".to_owned(),
            locality: "us-east-1/us-east-1a".to_owned(),
            root_certificates: mesh.root_pem(),
            ca_address: mesh.ca().to_string(),
            discovery_address: network.at(16, 15012).to_string(),
            control_plane_san: istiod::NAME.to_owned(),
            proxy_config: proxy_config.to_owned(),
            mesh_token: Some(token(&mesh.token(RATINGS))),
            heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            propagation_delay: prost_types::Duration::try_from(DELAY).ok(),
        };
        let plane = FakePlane::start(network.at(17, 15443), &mesh.authority(), boot).await;
        Self { mesh, aws, istiod, plane }
    }

    async fn new() -> Self {
        Self::with("").await
    }

    /// The task, and what it calls: an application behind a sidecar.
    async fn pair(&self) -> (App, Skiff, Skiff) {
        let app = App::start(self.mesh.app(DETAILS_V1), Speaks::Http);
        let (details, task) = (self.mesh.spawn(DETAILS_V1, &[]), self.task(&[]));
        task.ready().await;
        details.ready().await;
        (app, details, task)
    }

    /// The environment of the task's sidecar.
    fn variables(&self) -> Vec<(String, String)> {
        let configuration = format!(
            r#"{{"apiVersion": "config.agent.onboarding.tetrate.io/v1alpha1", "kind": "OnboardingConfiguration",
              "onboardingEndpoint": {{"host": "{}", "transportSecurity": {{"tls": {{"sni": "{NAME}"}}}}}},
              "workload": {{"labels": {{"version": "v5"}}}}, "workloadGroup": {{"name": "ratings", "namespace": "bookinfo"}},}}"#,
            self.mesh.network.ip(17)
        );
        let mut variables = self.aws.task_environment(TASK);
        variables.push(("ONBOARDING_CONFIG".to_owned(), configuration));
        // As the console folds it.
        variables.push(("ONBOARDING_AGENT_ROOT_CERTS".to_owned(), self.mesh.root_pem().replace('\n', " ")));
        variables.push(("SKIFF_ADMIN_ADDRESS".to_owned(), self.mesh.network.at(21, 15000).to_string()));
        variables.push(("SKIFF_WORKERS".to_owned(), "1".to_owned()));
        variables
    }

    fn task(&self, more: &[(&str, &str)]) -> Skiff {
        let mut command = command(&[]);
        command.envs(self.variables()).envs(more.iter().copied());
        Skiff::spawn(command, self.mesh.network.at(21, 15000))
    }

    fn stop_application(&self) {
        self.aws.update_task(TASK, |task| task.applications = vec![("ratings".to_owned(), "STOPPED".to_owned())]);
    }

    /// The status that details answers with to the task.
    async fn outbound(&self) -> u16 {
        http::get(self.mesh.egress(RATINGS, 9080), DETAILS, "/details/0").await.status
    }

    /// What the mesh gets from the task on a connection of its own.
    async fn inbound(&self) -> std::io::Result<u16> {
        let door = self.mesh.ingress(RATINGS, 9080);
        let stream = tls::connect(door, Some(&self.mesh.identity()), &["istio"]).await?;
        let request = http::get_request("ratings.bookinfo:9080", "/ratings/0", "");
        Connection::over(stream).ask(&request).await.map(|answer| answer.status)
    }
}

#[tokio::test]
async fn a_task_joins_serves_and_leaves() {
    let world = World::new().await;
    let (_ratings, _details) =
        (App::start(world.mesh.network.at(1, 9080), Speaks::Http), App::start(world.mesh.app(DETAILS_V1), Speaks::Http));
    let details = world.mesh.spawn(DETAILS_V1, &[]);
    let mut task = world.task(&[]);
    task.ready().await;
    details.ready().await;

    let Heard::Authorize(authorized) = world.plane.hears("a credential", |heard| matches!(heard, Heard::Authorize(_))).await
    else {
        panic!("no credential");
    };
    let Some(Credential::Aws(credential)) = authorized.credential else { panic!("no credential of AWS") };
    assert!(credential.presigned_url.starts_with("https://sts.us-east-1.amazonaws.com/?"));
    let group = proto::WorkloadGroup { namespace: "bookinfo".to_owned(), name: "ratings".to_owned() };
    assert_eq!(authorized.workload_group, Some(group));
    let Heard::Register(registration) = world.plane.hears("a registration", |heard| matches!(heard, Heard::Register(_))).await
    else {
        panic!("no registration");
    };
    assert_eq!(registration.addresses[0].ip, world.mesh.network.ip(21).to_string());
    assert_eq!(registration.labels["version"], "v5");

    // istiod hears who it is, and that it is healthy although there is no probe.
    let first = world.istiod.hears("the first request", |heard| !heard.metadata.is_empty()).await;
    for key in ["WORKLOAD_ENTRY", "NETWORK", "MESH_ID", "INSTANCE_IPS", "SERVICE_ACCOUNT"] {
        assert!(first.metadata.contains(key), "{key} is missing in {:?}", first.metadata);
    }
    world.istiod.hears("a good report", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
    world.plane.hears("a good report", |heard| *heard == Heard::Health(String::new())).await;
    assert_eq!((world.outbound().await, world.inbound().await.unwrap()), (200, 200));
    let certificates = task.page("/certs").await.text();
    assert!(certificates.contains("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"), "{certificates}");
    for secret in [credential.presigned_url.as_str(), "X-Amz-Signature", &world.mesh.token(RATINGS)] {
        assert_eq!(task.stderr.count(secret), 0, "a secret is in the log");
    }

    // It leaves: at once for those who tell others, later for those who call.
    world.istiod.forget();
    task.terminate().await;
    world.plane.hears("the end", |heard| *heard == Heard::Unregister).await;
    world.istiod.hears("a bad report", |heard| heard.type_url == HEALTH && heard.error.is_some()).await;
    assert_eq!((world.outbound().await, world.inbound().await.unwrap()), (200, 200), "it serves during the delay");
    let refused = async || TcpStream::connect(world.mesh.ingress(RATINGS, 9080)).await.is_err().then_some(());
    eventually("new connections are refused", refused).await;
    assert!(task.is_running());
    assert_eq!(world.outbound().await, 200, "the application still has its way out");
    world.stop_application();
    assert_eq!(task.exit_code().await, 0);
    task.stderr.line_with("the application has stopped").await;
    task.stderr.line_with(" drained").await;
}

#[tokio::test]
async fn who_may_not_join_says_so_and_asks_again() {
    let world = World::new().await;
    for _ in 0..2 {
        world.plane.refuse(Status::permission_denied("Not authorized by OnboardingPolicy"));
    }
    let agent = "{apiVersion: config.agent.onboarding.tetrate.io/v1alpha1, kind: AgentConfiguration, settings: {connection: \
                 {retryPolicy: {exponentialBackoff: {initialInterval: 10ms, maxInterval: 10ms}}}}}";
    let task = world.task(&[("AGENT_CONFIG", agent)]);
    let line = task.stderr.line_with("not onboarded yet").await;
    let reason = "RPC failed: rpc error: code = PermissionDenied desc = Not authorized by OnboardingPolicy";
    assert!(line.contains(reason) && line.contains("retry_in"), "{line}");
    assert!(task.stderr.count("obtaining discovery information from the Workload Onboarding Plane") > 0);
    assert!(task.stderr.count("agent using platform-specific credential procured by \"aws-ecs-credential\"") > 0);
    task.ready().await;
    let urls: Vec<_> = world.plane.heard().into_iter().filter(|heard| matches!(heard, Heard::Authorize(_))).collect();
    assert_eq!((urls.len(), task.stderr.count("not onboarded yet")), (3, 2));
}

#[tokio::test]
async fn an_entry_that_istiod_does_not_see_yet_is_waited_for() {
    let world = World::new().await;
    world.istiod.misbehave(Oddity::Unseen);
    let task = world.task(&[]);
    task.stderr.line_with("does not see our WorkloadEntry yet").await;
    task.ready().await;
    assert_eq!(task.stderr.count("no connection to the control plane"), 0, "it is no failure");
    assert_eq!(task.metrics().await.sum("skiff_xds_failures_total", &[]), 0.0);
}

#[tokio::test]
async fn losing_plane_and_istiod_changes_nothing_that_serves() {
    let mut world = World::new().await;
    let (_app, _details, task) = world.pair().await;
    world.plane.hears("a good report", |heard| *heard == Heard::Health(String::new())).await;
    world.plane.stop().await;
    world.istiod.stop().await;
    task.stderr.line_with("no registration with the onboarding plane; what serves stays").await;
    task.stderr.line_with("no connection to the control plane").await;
    for _ in 0..20 {
        assert_eq!(world.outbound().await, 200);
    }
    assert!(task.is_ready().await);
    assert_eq!(task.metrics().await.sum("skiff_onboarding_connected", &[]), 0.0);
    world.istiod.forget();
    world.plane.resume().await;
    world.istiod.resume().await;
    let reports = |all: &[Heard]| all.iter().filter(|heard| **heard == Heard::Health(String::new())).count();
    eventually("health is told again", async || (reports(&world.plane.heard()) == 2).then_some(())).await;
    world.istiod.hears("a good report again", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
    assert_eq!(task.metrics().await.sum("skiff_onboarding_connected", &[]), 1.0);
    assert_eq!(task.metrics().await.sum("skiff_drained_connections_total", &[]), 0.0, "nothing changed, nothing drains");
    assert_eq!(world.plane.heard().iter().filter(|heard| matches!(heard, Heard::Authorize(_))).count(), 1, "the session counts");
}

#[tokio::test]
async fn an_istiod_that_is_killed_under_load_costs_no_request() {
    let mut world = World::new().await;
    let (_app, _details, task) = world.pair().await;
    let load = Load::start(world.mesh.egress(RATINGS, 9080), DETAILS);
    for outage in 1..=2 {
        world.istiod.stop().await;
        task.stderr.nth_line_with("no connection to the control plane", outage).await;
        world.istiod.forget();
        world.istiod.resume().await;
        world.istiod.hears("a good report", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
    }
    load.finish().await;
    assert_eq!(task.metrics().await.sum("skiff_drained_connections_total", &[]), 0.0, "nothing changed, nothing drains");
}

#[tokio::test]
async fn a_task_that_comes_while_istiod_is_away_serves_once_it_is_back() {
    let mut world = World::new().await;
    let _details = App::start(world.mesh.app(DETAILS_V1), Speaks::Http);
    let details = world.mesh.spawn(DETAILS_V1, &[]);
    details.ready().await;
    world.istiod.stop().await;
    let task = world.task(&[]);
    task.stderr.line_with("registered with the onboarding plane").await;
    task.stderr.line_with("no connection to the control plane").await;
    assert!(!task.is_ready().await && world.inbound().await.is_err(), "nothing is served that nobody has configured");
    world.istiod.resume().await;
    task.ready().await;
    assert_eq!(world.outbound().await, 200);
    assert_eq!(
        world.plane.heard().iter().filter(|heard| matches!(heard, Heard::Register(_))).count(),
        1,
        "it has stayed registered"
    );
}

#[tokio::test]
async fn a_mesh_token_that_is_renewed_on_the_stream_is_the_one_that_is_shown() {
    let mut world = World::new().await;
    let task = world.task(&[]);
    task.ready().await;
    world.istiod.hears("a good report", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
    let first = world.mesh.token(RATINGS);
    assert_eq!(world.istiod.token_shown().as_deref(), Some(first.trim()));

    world.mesh.renew_token(RATINGS);
    let renewed = world.mesh.token(RATINGS);
    assert_ne!(first, renewed);
    world.plane.tell(&Tell::MeshToken(token(&renewed)));
    task.stderr.line_with("mesh token renewed").await;
    // Whoever is asked from now on is shown the new one; what was asked with the old one goes on.
    assert_eq!(task.stderr.count("no connection to the control plane"), 0);
    world.istiod.stop().await;
    world.istiod.forget();
    world.istiod.resume().await;
    world.istiod.hears("a good report again", |heard| heard.type_url == HEALTH && heard.error.is_none()).await;
    assert_eq!(world.istiod.token_shown().as_deref(), Some(renewed.trim()));
    assert_eq!(task.stderr.count("registered with the onboarding plane"), 1, "its stream lives on");
    for secret in [first, renewed] {
        assert_eq!(task.stderr.count(&secret), 0, "a token is in the log");
    }
}

#[tokio::test]
async fn a_probe_asks_the_application_and_not_the_sidecar() {
    // The application's port is the sidecar's as well, on another address.
    let network_port = 9080;
    let probe =
        format!(r#"{{"readinessProbe": {{"httpGet": {{"port": {network_port}}}, "periodSeconds": 1, "failureThreshold": 1}}}}"#);
    let world = World::with(&probe).await;
    let task = world.task(&[]);
    task.ready().await;
    let Heard::Health(error) = world.plane.hears("a bad report", |heard| matches!(heard, Heard::Health(_))).await else {
        panic!("no health");
    };
    assert!(error.contains("127.0.0.1:9080"), "{error}");
    world.istiod.hears("a bad report", |heard| heard.type_url == HEALTH && heard.error.is_some()).await;
}

#[tokio::test]
async fn a_job_ends_its_sidecar() {
    let world = World::new().await;
    let mut task = world.task(&[("SKIFF_APP_CONTAINERS", "ratings")]);
    task.ready().await;
    assert!(task.is_running());
    world.stop_application();
    assert_eq!(task.exit_code().await, 0);
    task.stderr.line_with("the application has ended, so does its sidecar").await;
    world.plane.hears("the end", |heard| *heard == Heard::Unregister).await;
    assert_eq!(task.stderr.count("asked to stop"), 0, "nobody has asked it");
}

#[tokio::test]
async fn what_has_to_be_repaired_ends_with_78_and_one_line() {
    let world = World::new().await;
    for (name, value, expected) in [
        ("ONBOARDING_CONFIG", "{kind: OnboardingConfiguration}", "ONBOARDING_CONFIG: apiVersion: missing"),
        ("ONBOARDING_AGENT_ROOT_CERTS", "MIIC", "ONBOARDING_AGENT_ROOT_CERTS: holds no certificate"),
        ("AGENT_CONFIG", "{", "AGENT_CONFIG:1: "),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "", "the task has no role"),
    ] {
        let mut refused = command(&[]);
        refused.envs(world.variables()).env(name, value);
        let said = run(refused).await;
        let last = said.stderr.lines().last().unwrap_or_default();
        assert!(said.code == 78 && last.starts_with("skiff: ") && last.contains(expected), "{}: {}", said.code, said.stderr);
    }
}

#[tokio::test]
async fn what_a_task_is_given_can_be_checked_before_it_runs() {
    let world = World::new().await;
    let check = async |name: &str, value: &str| {
        let mut check = command(&["check"]);
        check.envs(world.variables()).env(name, value);
        run(check).await
    };
    let good = check("NOTHING", "").await;
    assert_eq!(good.code, 0, "{}", good.stderr);
    assert!(good.stdout.starts_with("joins bookinfo/ratings at "), "{}", good.stdout);
    let bad = check("ONBOARDING_AGENT_ROOT_CERTS", "MIIC").await;
    assert!(bad.code == 78 && bad.stderr.contains("ONBOARDING_AGENT_ROOT_CERTS: "), "{}", bad.stderr);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    let text =
        "apiVersion: config.agent.onboarding.tetrate.io/v1alpha1\nkind: AgentConfiguration\nsidecar: {istio: {revision: a}}\n";
    for (text, code) in [(text.to_owned(), 0), (text.replace("revision", "version"), 78)] {
        std::fs::write(&file, text).unwrap();
        let said = run(command(&["check", file.to_str().unwrap()])).await;
        assert_eq!(said.code, code, "{}{}", said.stdout, said.stderr);
    }
}
