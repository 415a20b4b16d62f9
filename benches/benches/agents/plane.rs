//! The plane as a process: what it is given, what it has registered, and what it takes up.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::sleep;

const ISSUER: &str = "https://issuer.example";
const UID: &str = "the-plane";
/// Between two looks at something that sends no event.
const INTERVAL: Duration = Duration::from_millis(50);
/// Nothing is said any more once nothing was said for this long.
const SETTLED: Duration = Duration::from_secs(10);
/// Ticks of `/proc/PID/stat` are hundredths of a second wherever Linux runs.
const TICK: Duration = Duration::from_millis(10);

const CONFIG: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: ratings, namespace: bookinfo, labels: {app: ratings}}
spec: {template: {serviceAccount: bookinfo-ratings, labels: {app: ratings, version: v1}, ports: {http: 9080}, network: ecs}}
---
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata: {name: holders, namespace: bookinfo}
spec:
  allow:
  - workloads: [{jwt: {issuer: 'https://issuer.example'}}]
    onboardTo: [{workloadGroupSelector: {matchLabels: {app: ratings}}}]
";

/// Who tells workloads of each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// The plane.
    Alone,
    /// An istiod, which nobody asks here.
    Istiod,
}

impl Mode {
    pub(crate) fn named(text: &str) -> Option<Self> {
        match text {
            "alone" => Some(Self::Alone),
            "istiod" => Some(Self::Istiod),
            _ => None,
        }
    }
}

/// What a process has taken up: bytes, and time of a core.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) resident: usize,
    pub(crate) private: usize,
    pub(crate) peak: usize,
    pub(crate) cpu: Duration,
    /// To sockets and files.
    pub(crate) written: usize,
}

pub(crate) struct Plane {
    mode: Mode,
    folder: TempDir,
    issuer: KeyPair,
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    process: Option<Child>,
}

impl Plane {
    pub(crate) async fn start(mode: Mode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::write(folder.path().join("config/plane.yaml"), CONFIG).unwrap();
        let issuer = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let x = URL_SAFE_NO_PAD.encode(issuer.public_key_raw());
        let jwks = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","alg":"EdDSA","x":"{x}"}}]}}"#);
        let issuers = format!("issuers:\n- issuer: {ISSUER}\n  shortName: a\n  jwks: '{jwks}'\n");
        fs::write(folder.path().join("issuers.yaml"), issuers).unwrap();
        let (listen, admin) = (free().await, free().await);
        let mut plane = Self { mode, folder, issuer, listen, admin, process: None };
        plane.resume().await;
        plane
    }

    /// Starts it where it was, with what it had.
    pub(crate) async fn resume(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let binary = std::env::var_os("SKIFF_BINARY").map_or_else(|| std::env::current_exe().unwrap(), Into::into);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("plane.log")).unwrap();
        let mut command = Command::new(binary);
        command.env_clear().args(["plane", "--aws-describe-tasks", "off", "--uid", UID]);
        command.args(["--listen", &self.listen.to_string(), "--admin-address", &self.admin.to_string()]);
        command
            .arg("--state")
            .arg(path("state"))
            .arg("--config")
            .arg(path("config"))
            .arg("--jwt-issuers")
            .arg(path("issuers.yaml"));
        if matches!(self.mode, Mode::Istiod) {
            command.args(["--discovery-address", "istiod.example:15012"]);
        }
        // Settings of an experiment, as variables of the plane.
        command.envs(std::env::vars().filter(|(name, _)| name.starts_with("SKIFF_PLANE_") || name == "SKIFF_LOG"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        self.process = Some(command.spawn().unwrap());
        let started = Instant::now();
        while self.page("/healthz/ready").await.is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "{}", fs::read_to_string(path("plane.log")).unwrap());
            sleep(INTERVAL).await;
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    pub(crate) fn root(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("state/root-cert.pem")).unwrap()
    }

    /// A token for each of them.
    pub(crate) fn tokens(&self, agents: usize) -> Vec<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let header = encode(r#"{"alg":"EdDSA","kid":"k1"}"#);
        let token = |number| {
            let claims = format!(r#"{{"iss":"{ISSUER}","aud":"{UID}","sub":"vm-{number}","exp":{}}}"#, now + 3600);
            let text = format!("{header}.{}", encode(&claims));
            format!("{text}.{}", URL_SAFE_NO_PAD.encode(self.issuer.sign(text.as_bytes()).unwrap()))
        };
        (0..agents).map(token).collect()
    }

    /// Name and uid of everything that is registered.
    pub(crate) async fn registrations(&self) -> std::collections::BTreeSet<(String, String)> {
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        let metadata = |object: &Json| (text(&object["metadata"]["name"]), text(&object["metadata"]["uid"]));
        self.objects().await.iter().map(metadata).collect()
    }

    /// How many of them hold a stream, by their status.
    pub(crate) async fn connected(&self) -> usize {
        let is_connected = |object: &&Json| object["status"]["conditions"][0]["status"] == "True";
        self.objects().await.iter().filter(is_connected).count()
    }

    async fn objects(&self) -> Vec<Json> {
        let page: Json = serde_json::from_str(&self.page("/registrations").await.unwrap()).unwrap();
        page.as_array().or_else(|| page["items"].as_array()).unwrap().clone()
    }

    /// A metric.
    pub(crate) async fn number(&self, name: &str) -> usize {
        let page = self.page("/metrics").await.unwrap_or_default();
        let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or(" 0");
        line.trim().parse::<f64>().unwrap() as usize
    }

    /// Waits until nothing is said any more; for how long something was.
    pub(crate) async fn settled(&self) -> Duration {
        let (started, mut since, mut written) = (Instant::now(), Instant::now(), self.usage().written);
        loop {
            sleep(Duration::from_secs(1)).await;
            let now = self.usage().written;
            // Acknowledged heartbeats are little; documents are not.
            if now - written > 1024 * 1024 {
                since = Instant::now();
            }
            written = now;
            if since.elapsed() >= SETTLED && (matches!(self.mode, Mode::Istiod) || since.elapsed() >= 7 * SETTLED) {
                return since - started;
            }
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let pid = self.process.as_ref().unwrap().id().unwrap();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        let kilobytes = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
        };
        let (memory, status, stat, io) = (read("smaps_rollup"), read("status"), read("stat"), read("io"));
        // The second field may hold anything, in parentheses.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u32 = [11, 12].iter().map(|&index: &usize| fields[index].parse::<u32>().unwrap()).sum();
        Usage {
            resident: kilobytes(&memory, "Rss:"),
            private: kilobytes(&memory, "Private_Clean:") + kilobytes(&memory, "Private_Dirty:"),
            peak: kilobytes(&status, "VmHWM:"),
            cpu: TICK * ticks,
            written: io.lines().find_map(|line| line.strip_prefix("wchar:")).unwrap().trim().parse().unwrap(),
        }
    }

    /// A page of the plane; `None` while it is not there.
    async fn page(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: plane\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
    }
}

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
