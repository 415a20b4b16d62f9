//! Bookinfo outside of Kubernetes: a real `skiff plane` with its own store, and tasks that join through it.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use serde_json::json;
use tempfile::TempDir;

use crate::aws::{FakeAws, FakeTask, Outlet};
use crate::network::Network;
use crate::skiff::{Skiff, command, run};

/// What the plane is given; `127.0.0` in them stands for the network.
const DOCUMENTS: [(&str, &str); 5] = [
    ("mesh.yaml", include_str!("../data/onboarding/mesh.yaml")),
    ("groups.yaml", include_str!("../data/onboarding/groups.yaml")),
    ("policies.yaml", include_str!("../data/onboarding/policies.yaml")),
    ("sidecars.yaml", include_str!("../data/onboarding/sidecars.yaml")),
    ("services.yaml", include_str!("../data/onboarding/services.yaml")),
];
const ISSUERS: &str = include_str!("../data/onboarding/issuers.yaml");

/// The name of the plane's endpoint.
pub const ENDPOINT: &str = "onboarding-endpoint.example";
/// The plane's id.
const UID: &str = "the-plane";

/// A workload that joins.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its WorkloadGroup.
    pub group: &'static str,
    /// Last byte of its own address.
    pub own: u8,
    /// Last byte of the address of its way out.
    pub out: u8,
    /// The id of its task; none of one that joins by a token.
    pub task: Option<&'static str>,
}

/// The task of the guide.
pub const RATINGS: Member = Member { group: "ratings", own: 21, out: 2, task: Some("3a151358f03a4e32bf8cd401c1c74653") };
/// A second task of the same service.
pub const RATINGS_TOO: Member = Member { group: "ratings-too", own: 22, out: 4, task: Some("4b151358f03a4e32bf8cd401c1c74654") };
/// A workload elsewhere, with a token of its issuer.
pub const DETAILS: Member = Member { group: "details", own: 31, out: 3, task: None };

/// A plane, AWS, and an issuer of tokens.
pub struct Bookinfo {
    /// Its addresses.
    pub network: Network,
    /// As tasks see it.
    pub aws: FakeAws,
    /// Its STS, as the plane sees it.
    pub sts: Outlet,
    /// Its ECS, as the plane sees it.
    pub ecs: Outlet,
    folder: TempDir,
    issuer: KeyPair,
    settings: Vec<(String, String)>,
    plane: Option<Skiff>,
}

impl Bookinfo {
    /// A running plane with these settings beside its own.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let (network, folder) = (Network::claim(), tempfile::tempdir().unwrap());
        let aws = FakeAws::start(network.at(90, 8080)).await;
        let (sts, ecs) = (aws.outlet(network.at(91, 8080)).await, aws.outlet(network.at(92, 8080)).await);
        for member in [RATINGS, RATINGS_TOO] {
            let address = Some(network.ip(member.own).into());
            aws.add_task(FakeTask { address, ..FakeTask::new(member.task.unwrap()) });
        }
        let issuer = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        for (name, text) in DOCUMENTS {
            fs::write(folder.path().join("config").join(name), network.localise(text)).unwrap();
        }
        let x = URL_SAFE_NO_PAD.encode(issuer.public_key_raw());
        let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "alg": "EdDSA", "x": x}]});
        fs::write(folder.path().join("issuers.yaml"), ISSUERS.replace("KEYS", &keys.to_string())).unwrap();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut bookinfo = Self { network, aws, sts, ecs, folder, issuer, settings, plane: None };
        bookinfo.start_plane().await;
        bookinfo
    }

    /// A running plane.
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// Starts the plane where it was, with what it had.
    pub async fn start_plane(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let admin = self.network.at(17, 15014);
        let mut command = command(&["plane"]);
        command
            .envs(self.aws.plane_environment())
            .env("SKIFF_PLANE_LISTEN", self.network.at(17, 15443).to_string())
            .env("SKIFF_PLANE_ADMIN_ADDRESS", admin.to_string())
            .env("SKIFF_PLANE_STATE", path("state"))
            .env("SKIFF_PLANE_CONFIG", path("config"))
            .env("SKIFF_PLANE_SERVER_NAMES", ENDPOINT)
            .env("SKIFF_PLANE_UID", UID)
            .env("SKIFF_PLANE_JWT_ISSUERS", path("issuers.yaml"))
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
            .env("AWS_ENDPOINT_URL_ECS", self.ecs.url())
            .env("SKIFF_PLANE_HEARTBEAT_INTERVAL", "1s")
            .env("SKIFF_PLANE_PROPAGATION_DELAY", "2s")
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        let plane = Skiff::spawn(command, admin);
        plane.ready().await;
        self.plane = Some(plane);
    }

    /// The plane that runs.
    pub fn plane(&self) -> &Skiff {
        self.plane.as_ref().unwrap()
    }

    /// Kills the plane.
    pub async fn kill_plane(&mut self) {
        self.plane.take().unwrap().kill().await;
    }

    /// Replaces text in a document of the plane.
    ///
    /// # Panics
    /// When the text is not there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.folder.path().join("config").join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{name} holds no {from:?}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// The root of the plane, as a task definition spells it: with `\n` for line breaks.
    pub fn root(&self) -> String {
        fs::read_to_string(self.folder.path().join("state/root-cert.pem")).unwrap().replace('\n', "\\n")
    }

    /// Starts the sidecar of a member, with the environment of a task and no other.
    pub fn join(&self, member: Member, more: &[(&str, &str)]) -> Skiff {
        let admin = self.network.at(member.own, 15000);
        // As the guide has it, with a comma that JSON does not allow.
        let configuration = format!(
            r#"{{
  "apiVersion": "config.agent.onboarding.tetrate.io/v1alpha1",
  "kind": "OnboardingConfiguration",
  "onboardingEndpoint": {{
    "host": "{}",
    "transportSecurity": {{"tls": {{"sni": "{ENDPOINT}"}}}},
  }},
  "workload": {{"labels": {{"version": "v5"}}}},
  "workloadGroup": {{"name": "{}", "namespace": "bookinfo"}}
}}"#,
            self.network.ip(17),
            member.group
        );
        let mut command = command(&[]);
        command
            .env("ONBOARDING_CONFIG", configuration)
            .env("ONBOARDING_AGENT_ROOT_CERTS", self.root())
            .env("SKIFF_ADMIN_ADDRESS", admin.to_string())
            .env("SKIFF_WORKERS", "1");
        match member.task {
            Some(task) => command.envs(self.aws.task_environment(task)),
            None => {
                command.env("ONBOARDING_JWT", self.token("details")).env("INSTANCE_IP", self.network.ip(member.own).to_string())
            }
        };
        command.envs(more.iter().copied());
        Skiff::spawn(command, admin)
    }

    /// A token of the issuer for this subject.
    pub fn token(&self, subject: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let claims = json!({"iss": "https://issuer.example", "sub": subject, "aud": UID, "iat": now, "exp": now + 600});
        let text = [r#"{"alg":"EdDSA","kid":"k1"}"#.to_owned(), claims.to_string()];
        let text = text.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature = self.issuer.sign(text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// What `skiff plane get war` shows.
    pub async fn war(&self, more: &[&str]) -> String {
        let arguments = [&["plane", "get", "war", "-n", "bookinfo"], more].concat();
        let mut command = command(&arguments);
        command.env("SKIFF_PLANE_ADMIN_ADDRESS", self.network.at(17, 15014).to_string());
        let said = run(command).await;
        assert_eq!(said.code, 0, "{}", said.stderr);
        said.stdout
    }

    /// The line of a member there.
    pub async fn line(&self, member: Member) -> Option<String> {
        let name = format!("{}-", member.group);
        self.war(&[])
            .await
            .lines()
            .find(|line| line.starts_with(&name) && line.contains(member.task.unwrap_or("jwt")))
            .map(str::to_owned)
    }

    /// Where the application of a member goes out.
    pub fn egress(&self, member: Member) -> SocketAddr {
        self.network.at(member.out, 9080)
    }

    /// Where the mesh comes in to a member.
    pub fn ingress(&self, member: Member) -> SocketAddr {
        self.network.at(member.own, 9080)
    }
}
