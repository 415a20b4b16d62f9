//! `skiff plane` as a process: what it keeps when it is killed, how it goes, what it serves; `skiff explain policy`, `skiff check`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use skiff_agent::identity::{ControlPlaneConnector, RootSource, Security};
use skiff_agent::onboarding::Assembly;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_client::OnboardingServiceClient;
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Say;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Told;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::aws::{FakeAws, FakeTask};
use skiff_tests::http;
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Member, Mesh, RATINGS};
use skiff_tests::network::Network;
use skiff_tests::skiff::{Said, Skiff, binary, command, run};
use skiff_tests::wait::{eventually, within};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

const CONFIG: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: WorkloadGroup
metadata: {name: ratings, namespace: bookinfo, labels: {app: ratings}}
spec: {template: {serviceAccount: ratings-vm, labels: {app: ratings}}}
---
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata: {name: holders, namespace: bookinfo}
spec:
  allow:
  - workloads:
    - jwt: {issuer: 'https://issuer.example', subjects: [vm-1, vm-2]}
    onboardTo: [{workloadGroupSelector: {}}]
";

/// A plane's folder, and the issuer that it believes.
struct Plane {
    folder: tempfile::TempDir,
    issuer: KeyPair,
    listen: SocketAddr,
    admin: SocketAddr,
    _network: Network,
}

impl Plane {
    fn new() -> Self {
        let network = Network::claim();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::write(folder.path().join("config/plane.yaml"), CONFIG).unwrap();
        let issuer = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let x = URL_SAFE_NO_PAD.encode(issuer.public_key_raw());
        let jwks = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","alg":"EdDSA","x":"{x}"}}]}}"#);
        let issuers = format!("issuers:\n- issuer: https://issuer.example\n  shortName: a\n  jwks: '{jwks}'\n");
        fs::write(folder.path().join("issuers.yaml"), issuers).unwrap();
        Self { folder, issuer, listen: network.at(1, 15443), admin: network.at(1, 15014), _network: network }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    async fn start(&self, more: &[&str]) -> Skiff {
        let (state, config, issuers) = (self.path("state"), self.path("config"), self.path("issuers.yaml"));
        let (listen, admin) = (self.listen.to_string(), self.admin.to_string());
        let usual = ["plane", "--listen", &listen, "--admin-address", &admin, "--state", &state, "--config", &config];
        let arguments = [&usual[..], &["--jwt-issuers", &issuers, "--aws-describe-tasks", "off"], more].concat();
        let plane = Skiff::spawn(command(&arguments), self.admin);
        plane.ready().await;
        plane
    }

    async fn agent(&self) -> OnboardingServiceClient<Channel> {
        let roots = RootSource::File(self.folder.path().join("state/root-cert.pem"));
        let connector = ControlPlaneConnector::new(self.listen.to_string(), Security::Tls(roots));
        OnboardingServiceClient::new(within("connected", connector.connect(None)).await.unwrap())
    }

    async fn session(&self, agent: &mut OnboardingServiceClient<Channel>, subject: &str) -> Result<String, Status> {
        let uid = agent.discover(proto::DiscoverRequest::default()).await?.into_inner().plane_uid;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = format!(r#"{{"iss":"https://issuer.example","aud":"{uid}","sub":"{subject}","exp":{}}}"#, now + 600);
        let text = [r#"{"alg":"EdDSA","kid":"k1"}"#, &claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(self.issuer.sign(text.as_bytes()).unwrap()));
        let workload_group = Some(proto::WorkloadGroup { namespace: "bookinfo".to_owned(), name: "ratings".to_owned() });
        let credential = Some(Credential::Jwt(proto::JwtCredential { token }));
        Ok(agent.authorize(proto::AuthorizeRequest { workload_group, credential }).await?.into_inner().token)
    }

    async fn get_war(&self, more: &[&str]) -> Said {
        let admin = self.admin.to_string();
        run(command(&[&["plane", "get", "war", "--admin-address", &admin], more].concat())).await
    }
}

/// A stream that is held.
struct Held {
    requests: mpsc::Sender<proto::RegisterRequest>,
    responses: Streaming<proto::RegisterResponse>,
    documents: Assembly,
}

impl Held {
    async fn open(agent: &mut OnboardingServiceClient<Channel>, session: &str, ip: &str) -> Self {
        let (requests, receiver) = mpsc::channel(4);
        let registration = proto::Registration {
            agent_version: "0.1.0".to_owned(),
            istio_version: "1.28.0".to_owned(),
            addresses: vec![proto::Address { ip: ip.to_owned(), r#type: proto::AddressType::Vpc.into() }],
            ..proto::Registration::default()
        };
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {session}").parse().unwrap());
        let mut held = {
            let say = proto::RegisterRequest { message: Some(Say::Registration(registration)) };
            requests.send(say).await.unwrap();
            Self { requests, responses: agent.register(request).await.unwrap().into_inner(), documents: Assembly::default() }
        };
        assert!(matches!(held.next().await.unwrap(), Told::Boot(_)));
        let healthy = proto::RegisterRequest { message: Some(Say::Health(proto::Health::default())) };
        held.requests.send(healthy).await.unwrap();
        held
    }

    async fn next(&mut self) -> Result<Told, Status> {
        let next = within("something is said", self.responses.message()).await?;
        next.and_then(|response| response.message).ok_or_else(|| Status::unknown("ended"))
    }

    async fn until_told(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        loop {
            if let Told::Documents(documents) = self.next().await.unwrap_or_else(|status| panic!("{what}: {status}"))
                && let Some(all) = self.documents.take(documents).unwrap()
                && wanted(&all.iter().map(|(_, yaml)| yaml.as_str()).collect::<String>())
            {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_killed_plane_knows_everybody_when_it_is_back() {
    let plane = Plane::new();
    let process = plane.start(&[]).await;
    let mut agent = plane.agent().await;
    let session = plane.session(&mut agent, "vm-1").await.unwrap();
    let held = Held::open(&mut agent, &session, "10.0.0.1").await;
    let before = plane.get_war(&["-n", "bookinfo"]).await;
    assert!(before.stdout.starts_with("NAME                 AGENT CONNECTED   AGE\nratings-jwt-a-vm-1   True  "), "{before:?}");

    // Nothing is said, nothing is flushed.
    process.kill().await;
    drop((held, agent));
    let process = plane.start(&["--disconnect-grace", "1s"]).await;
    let after = plane.get_war(&["-o", "yaml"]).await;
    assert!(after.stdout.contains("kind: WorkloadAutoRegistration") && after.stdout.contains("subject: vm-1"), "{after:?}");
    // Another workload is told of the one that has not come back yet. The first one's session is good for the new process.
    let mut agent = plane.agent().await;
    let other = plane.session(&mut agent, "vm-2").await.unwrap();
    let mut other = Held::open(&mut agent, &other, "10.0.0.2").await;
    other.until_told("vm-1 is shown", |yaml| yaml.contains("10.0.0.1") && yaml.contains("10.0.0.2")).await;
    let mut agent = plane.agent().await;
    let held = Held::open(&mut agent, &session, "10.0.0.1").await;

    // A workload that is killed is no longer shown soon after.
    drop((held, agent));
    other.until_told("vm-1 is hidden", |yaml| !yaml.contains("10.0.0.1") && yaml.contains("10.0.0.2")).await;
    let lost = eventually("the loss is noted", async || {
        Some(plane.get_war(&["-n", "bookinfo"]).await.stdout).filter(|table| table.contains("False"))
    });
    assert!(lost.await.contains("ratings-jwt-a-vm-2   True"));
    let metrics = process.metrics().await;
    assert_eq!(metrics.sum("skiff_plane_streams", &[]), 1.0);
}

#[tokio::test]
async fn a_plane_that_is_asked_to_stop_sends_its_workloads_away() {
    let plane = Plane::new();
    let mut process = plane.start(&[]).await;
    let mut agent = plane.agent().await;
    let session = plane.session(&mut agent, "vm-1").await.unwrap();
    let mut held = Held::open(&mut agent, &session, "10.0.0.1").await;
    assert_eq!(plane.session(&mut agent, "vm-3").await.unwrap_err().code(), Code::PermissionDenied);
    process.terminate().await;
    let status = loop {
        if let Err(status) = held.next().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(process.exit_code().await, 0);
    let log = process.stderr.all().join("\n") + &process.stdout.all().join("\n");
    for line in ["event=\"authorize\" decision=\"admitted\"", "event=\"register\" decision=\"registered\"", "decision=\"denied\""]
    {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(!log.contains(&session));
}

#[tokio::test]
async fn a_plane_holds_more_connections_than_files_may_be_open_at_first() {
    let plane = Plane::new();
    let (state, config, issuers) = (plane.path("state"), plane.path("config"), plane.path("issuers.yaml"));
    let mut limited = tokio::process::Command::new("sh");
    limited.env_clear().args(["-c", r#"ulimit -Sn 64 && exec "$0" "$@""#]).arg(binary()).arg("plane").kill_on_drop(true);
    limited.args(["--listen", &plane.listen.to_string(), "--admin-address", &plane.admin.to_string(), "--state", &state]);
    limited.args(["--config", &config, "--jwt-issuers", &issuers, "--aws-describe-tasks", "off"]);
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Skiff::spawn(limited, plane.admin);
    process.ready().await;
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections.push(within("connected", TcpStream::connect(plane.listen)).await.unwrap());
    }
    let mut agent = plane.agent().await;
    plane.session(&mut agent, "vm-1").await.unwrap();
    assert_eq!(process.stderr.count("cannot accept a connection"), 0);
}

#[tokio::test]
async fn packages_come_over_https() {
    let plane = Plane::new();
    fs::create_dir_all(plane.folder.path().join("packages/deb/amd64")).unwrap();
    fs::write(plane.folder.path().join("packages/deb/amd64/onboarding-agent.deb"), "package").unwrap();
    let packages = plane.path("packages");
    let _process = plane.start(&["--packages", &packages]).await;
    let root = plane.path("state/root-cert.pem");
    let get = async |path: &str| {
        let url = format!("https://localhost:15443{path}");
        let resolve = format!("localhost:15443:{}", plane.listen.ip());
        let arguments = ["-sS", "--fail", "--noproxy", "*", "--cacert", &root, "--resolve", &resolve, &url];
        let output = within("curl", tokio::process::Command::new("curl").args(arguments).output()).await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(get("/install/deb/amd64/onboarding-agent.deb").await, (true, "package".to_owned(), String::new()));
    let (_, sum, _) = get("/install/deb/amd64/onboarding-agent.deb.sha256").await;
    assert!(sum.ends_with("  onboarding-agent.deb\n") && sum.len() == 64 + 23, "{sum}");
    assert!(!get("/install/deb/amd64/../../../issuers.yaml").await.0);
    assert!(!get("/").await.0);
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_runs() {
    let plane = Plane::new();
    let check = async |file: String| run(command(&["check", &file])).await;
    let good = check(plane.path("config")).await;
    assert_eq!(good.code, 0, "{good:?}");
    assert_eq!(check(plane.path("issuers.yaml")).await.code, 0);
    fs::write(plane.folder.path().join("config/plane.yaml"), CONFIG.replace("subjects:", "subject:")).unwrap();
    let bad = check(plane.path("config")).await;
    assert!(
        bad.code == 78 && bad.stdout.contains("plane.yaml:12: spec.allow[0].workloads[0].jwt.subject: unknown field"),
        "{bad:?}"
    );
    let (state, config) = (plane.path("state"), plane.path("config"));
    let started = run(command(&["plane", "--state", &state, "--config", &config, "--listen", "127.0.0.1:0"])).await;
    assert!(started.code == 78 && started.stderr.contains("plane.yaml:12: "), "{started:?}");
    let explained = run(command(&[
        "explain",
        "policy",
        "-f",
        &config,
        "--group",
        "bookinfo/ratings",
        "--jwt-issuer",
        "https://issuer.example",
        "--jwt-subject",
        "vm-1",
    ]));
    assert_eq!(explained.await.code, 78);
    fs::write(plane.folder.path().join("config/plane.yaml"), CONFIG).unwrap();
    for (subject, code, text) in
        [("vm-1", 0, "may join bookinfo/ratings"), ("vm-3", 1, "jwt.subjects: \"vm-3\" is not among vm-1, vm-2")]
    {
        let explained = run(command(&[
            "explain",
            "policy",
            "-f",
            &config,
            "--group",
            "bookinfo/ratings",
            "--jwt-issuer",
            "https://issuer.example",
            "--jwt-subject",
            subject,
        ]));
        let explained = explained.await;
        assert!(explained.code == code && explained.stdout.contains(text), "{explained:?}");
    }
}

const GROUPS: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: ratings, namespace: bookinfo, labels: {app: ratings}}
spec: {template: {serviceAccount: bookinfo-ratings, labels: {app: ratings, version: v1}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: details, namespace: bookinfo, labels: {app: details}}
spec: {template: {serviceAccount: bookinfo-details, labels: {app: details, version: v1}}}
---
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata: {name: tasks, namespace: bookinfo}
spec:
  allow:
  - workloads:
    - aws:
        accounts: ['123456789012']
        regions: [us-east-1]
        ecs: {clusters: [bookinfo], iamRoleNames: [bookinfoECSTaskRole]}
    onboardTo: [{workloadGroupSelector: {}}]
";

/// A mesh of tasks around a plane, without Kubernetes: nothing in it is a fake but AWS.
struct Tasks {
    mesh: Mesh,
    aws: FakeAws,
    folder: tempfile::TempDir,
}

impl Tasks {
    async fn new() -> Self {
        let mesh = Mesh::prepare().await;
        mesh.write("workloads.yaml", GROUPS);
        let aws = FakeAws::start(mesh.network.at(90, 8080)).await;
        Self { mesh, aws, folder: tempfile::tempdir().unwrap() }
    }

    async fn plane(&self) -> Skiff {
        let network = &self.mesh.network;
        let (listen, admin) = (network.at(17, 15443).to_string(), network.at(17, 15014));
        let (own, page) = (network.ip(17).to_string(), admin.to_string());
        let state = self.folder.path().join("state");
        let documents = self.mesh.document("workloads.yaml");
        let (state, config) = (state.to_str().unwrap(), documents.parent().unwrap().to_str().unwrap());
        let mut command = command(&["plane", "--listen", &listen, "--admin-address", &page, "--server-names", &own]);
        command.args(["--state", state, "--config", config, "--disconnect-grace", "1s"]).envs(self.aws.plane_environment());
        let plane = Skiff::spawn(command, admin);
        plane.ready().await;
        plane
    }

    fn task(&self, member: Member, id: &str) -> Skiff {
        let (network, own) = (&self.mesh.network, self.mesh.ingress(member, 9080).ip());
        let admin = SocketAddr::new(own, 15000);
        self.aws.add_task(FakeTask { address: Some(own), ..FakeTask::new(id) });
        let configuration = format!(
            "{{apiVersion: config.agent.onboarding.tetrate.io/v1alpha1, kind: OnboardingConfiguration, \
             onboardingEndpoint: {{host: {}}}, workloadGroup: {{name: {}, namespace: bookinfo}}}}",
            network.ip(17),
            member.name
        );
        let root = fs::read_to_string(self.folder.path().join("state/root-cert.pem")).unwrap();
        let mut command = command(&[]);
        command
            .envs(self.aws.task_environment(id))
            .env("ONBOARDING_CONFIG", configuration)
            .env("ONBOARDING_AGENT_ROOT_CERTS", root)
            .env("SKIFF_ADMIN_ADDRESS", admin.to_string())
            .env("SKIFF_WORKERS", "1");
        Skiff::spawn(command, admin)
    }

    async fn table(&self) -> String {
        let admin = self.mesh.network.at(17, 15014).to_string();
        run(command(&["plane", "get", "war", "--admin-address", &admin])).await.stdout
    }

    async fn until_connected(&self, workloads: usize) {
        eventually("both are connected", async || (self.table().await.matches("True").count() == workloads).then_some(())).await;
    }

    /// What the ratings application gets from details.
    async fn call(&self) -> (u16, String) {
        let answer = http::get(self.mesh.egress(RATINGS, 9080), DETAILS, "/details/0").await;
        (answer.status, answer.text())
    }
}

#[tokio::test]
async fn tasks_find_each_other_through_the_plane_alone() {
    let tasks = Tasks::new().await;
    let plane = tasks.plane().await;
    let _app = App::start(tasks.mesh.app(DETAILS_V1), Speaks::Http);
    let ratings = tasks.task(RATINGS, "3a151358f03a4e32bf8cd401c1c74653");
    let details = tasks.task(DETAILS_V1, "4b151358f03a4e32bf8cd401c1c74653");
    ratings.ready().await;
    details.ready().await;
    eventually("details answers", async || (tasks.call().await.0 == 200).then_some(())).await;
    let table = tasks.table().await;
    let name = "details-aws-aws-123456789012-us-east-1a-ecs-bookinfo-4b151358f03a4e32bf8cd401c1c74653   True";
    assert!(table.contains(name), "{table}");

    // The plane is killed: what serves, serves. It comes back: nobody had to go.
    plane.kill().await;
    assert_eq!(tasks.call().await.0, 200);
    let plane = tasks.plane().await;
    // The table says what was known before; a stream is one that is held now.
    let held = async || plane.metrics().await.sum("skiff_plane_streams", &[]);
    eventually("both are back", async || (held().await == 2.0).then_some(())).await;
    tasks.until_connected(2).await;
    assert_eq!(tasks.call().await.0, 200);

    // A task is killed: others stop to call it although nobody says goodbye.
    details.kill().await;
    let gone = eventually("details is gone", async || Some(tasks.call().await).filter(|(_, body)| body.contains("no healthy")));
    assert_eq!(gone.await.0, 503);
    tasks.until_connected(1).await;
    assert_eq!(plane.metrics().await.sum("skiff_plane_workloads_without_stream", &[]), 1.0);
}
