//! Two workloads of Bookinfo, ratings and details, with a plane that signs their certificates.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use skiff_agent::plane::{Plane, PlaneConfig};
use tempfile::TempDir;

use crate::access_log::AccessLogLine;
use crate::apps::{App, Speaks};
use crate::network::Network;
use crate::skiff::{Skiff, command};
use crate::tls::{Authority, Identity, Validity};

/// The documents that a mesh begins with; `127.0.0` in them stands for its network.
const DOCUMENTS: [(&str, &str); 5] = [
    ("mesh.yaml", include_str!("../data/mesh/mesh.yaml")),
    ("security.yaml", include_str!("../data/mesh/security.yaml")),
    ("services.yaml", include_str!("../data/mesh/services.yaml")),
    ("sidecars.yaml", include_str!("../data/mesh/sidecars.yaml")),
    ("workloads.yaml", include_str!("../data/mesh/workloads.yaml")),
];

/// Authority of details over HTTP.
pub const DETAILS: &str = "details.bookinfo:9080";

/// A workload of the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its `app` label.
    pub name: &'static str,
    own: u8,
    out: u8,
}

/// The caller in most tests.
pub const RATINGS: Member = Member { name: "ratings", own: 21, out: 2 };
/// The callee in most tests.
pub const DETAILS_V1: Member = Member { name: "details", own: 31, out: 3 };

/// Documents, plane and addresses of one mesh.
#[derive(Debug)]
pub struct Mesh {
    /// Its addresses.
    pub network: Network,
    folder: TempDir,
    plane: Option<Plane>,
    ca: SocketAddr,
}

/// Both sidecars with the HTTP application of details.
#[derive(Debug)]
pub struct Running {
    /// The mesh they are in.
    pub mesh: Mesh,
    /// The sidecar of ratings.
    pub ratings: Skiff,
    /// The sidecar of details.
    pub details: Skiff,
    /// The application of details.
    pub app: App,
}

impl Mesh {
    /// Documents in a folder and a running plane, no sidecar yet.
    pub async fn prepare() -> Self {
        Self::prepare_on(Network::claim()).await
    }

    /// The same on this network.
    pub async fn prepare_on(network: Network) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = PlaneConfig::new(network.at(15, 15012), folder.path().join("plane"), "cluster.local".parse().unwrap());
        config.server_names = vec![network.ip(15).to_string()];
        let plane = Plane::start(config).await.unwrap();
        fs::write(folder.path().join("root.pem"), plane.root_pem()).unwrap();
        for member in [RATINGS, DETAILS_V1] {
            let token = plane.issue_token("bookinfo", &format!("bookinfo-{}", member.name)).unwrap();
            fs::write(folder.path().join(format!("{}.token", member.name)), token.expose()).unwrap();
        }
        fs::create_dir(folder.path().join("config")).unwrap();
        let mesh = Self { ca: plane.address(), network, folder, plane: Some(plane) };
        for (name, text) in DOCUMENTS {
            mesh.write(name, text);
        }
        mesh
    }

    /// Both sidecars and the application of details, ready.
    pub async fn run(self) -> Running {
        let app = App::start(self.app(DETAILS_V1), Speaks::Http);
        let (ratings, details) = (self.spawn(RATINGS, &[]), self.spawn(DETAILS_V1, &[]));
        ratings.ready().await;
        details.ready().await;
        Running { mesh: self, ratings, details, app }
    }

    /// Writes a document; `127.0.0` in it stands for the network.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.document(name), self.network.localise(text)).unwrap();
    }

    /// Replaces text in a document; both texts as they stand in the original.
    ///
    /// # Panics
    /// When the text is not there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.document(name)).unwrap();
        let from = self.network.localise(from);
        assert!(text.contains(&from), "{name} holds no {from:?}");
        fs::write(self.document(name), text.replace(&from, &self.network.localise(to))).unwrap();
    }

    /// Where a document is.
    pub fn document(&self, name: &str) -> PathBuf {
        self.folder.path().join("config").join(name)
    }

    /// Starts the sidecar of a member from the documents, with further variables.
    pub fn spawn(&self, member: Member, variables: &[(&str, &str)]) -> Skiff {
        let documents = self.folder.path().join("config");
        let documents = ("SKIFF_CONFIG", documents.to_str().unwrap());
        self.spawn_without_documents(member, &[&[documents], variables].concat())
    }

    /// Starts the sidecar of a member; the variables have to say where its configuration comes from.
    pub fn spawn_without_documents(&self, member: Member, variables: &[(&str, &str)]) -> Skiff {
        let admin = self.network.at(member.own, 15000);
        let path = |name: &str| self.folder.path().join(name);
        let mut command = command(&[]);
        command
            .env("SKIFF_ADMIN_ADDRESS", admin.to_string())
            .env("SKIFF_STATUS_ADDRESS", self.network.ip(member.own).to_string())
            .env("SKIFF_WORKERS", "1")
            .env("POD_NAMESPACE", "bookinfo")
            .env("SERVICE_ACCOUNT", format!("bookinfo-{}", member.name))
            .env("ISTIO_META_WORKLOAD_NAME", format!("{}-v1", member.name))
            .env("ISTIO_METAJSON_LABELS", format!(r#"{{"app":"{}","version":"v1"}}"#, member.name))
            .env("INSTANCE_IP", self.network.ip(member.own).to_string())
            .env("CA_ADDR", self.ca.to_string())
            .env("CA_ROOT_CA", path("root.pem"))
            .env("SKIFF_TOKEN_FILE", path(&format!("{}.token", member.name)))
            .envs(variables.iter().copied());
        Skiff::spawn(command, admin)
    }

    /// The token of a member.
    pub fn token(&self, member: Member) -> String {
        fs::read_to_string(self.folder.path().join(format!("{}.token", member.name))).unwrap()
    }

    /// Puts another token in the place of a member's.
    pub fn renew_token(&self, member: Member) {
        let plane = self.plane.as_ref().unwrap();
        let token = plane.issue_token("bookinfo", &format!("bookinfo-{}", member.name)).unwrap();
        fs::write(self.folder.path().join(format!("{}.token", member.name)), token.expose()).unwrap();
    }

    /// Sets the roots that a control plane's certificate has to lead to.
    pub fn trust(&self, roots: &[String]) {
        let file = self.folder.path().join("root.pem");
        fs::write(file.with_extension("new"), roots.concat()).unwrap();
        fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// Takes the plane away.
    pub fn stop_plane(&mut self) {
        self.plane = None;
    }

    /// Where the application of a member goes out on this port.
    pub fn egress(&self, member: Member, port: u16) -> SocketAddr {
        self.network.at(member.out, port)
    }

    /// Where the mesh comes in to a member on this port.
    pub fn ingress(&self, member: Member, port: u16) -> SocketAddr {
        self.network.at(member.own, port)
    }

    /// Where the HTTP application of a member listens.
    pub fn app(&self, member: Member) -> SocketAddr {
        self.network.at(member.own, 8080)
    }

    /// Where its certificate authority is.
    pub fn ca(&self) -> SocketAddr {
        self.ca
    }

    /// Its root certificate.
    pub fn root_pem(&self) -> String {
        fs::read_to_string(self.folder.path().join("root.pem")).unwrap()
    }

    /// Signs as the plane does.
    pub fn authority(&self) -> Authority {
        Authority::of_plane(&self.folder.path().join("plane"))
    }

    /// A certificate of the mesh for the service account of ratings.
    pub fn identity(&self) -> Identity {
        self.authority().issue(&RATINGS.spiffe_id(), Validity::Always)
    }
}

impl Running {
    /// Where ratings goes out to HTTP services.
    pub fn egress(&self) -> SocketAddr {
        self.mesh.egress(RATINGS, 9080)
    }

    /// The lines of both sidecars about the request with this id: ratings' and details'.
    pub async fn lines(&self, id: &str) -> (AccessLogLine, AccessLogLine) {
        let (ratings, details) = tokio::join!(self.ratings.stdout.line_with(id), self.details.stdout.line_with(id));
        (AccessLogLine::parse(&ratings), AccessLogLine::parse(&details))
    }
}

impl Member {
    /// Its identity.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-{}", self.name)
    }
}
