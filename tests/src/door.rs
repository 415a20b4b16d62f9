//! One sidecar with its application, called in plaintext: for requests that no well-behaved sidecar would send.

use crate::apps::{App, Speaks};
use crate::http::{self, Connection};
use crate::mesh::{DETAILS_V1, Mesh};
use crate::skiff::Skiff;

/// The sidecar of details with its application; it takes plaintext and mutual TLS.
#[derive(Debug)]
pub struct Door {
    /// The mesh it is in.
    pub mesh: Mesh,
    /// The sidecar.
    pub details: Skiff,
    /// The application behind it.
    pub app: App,
}

impl Door {
    /// Starts it with further documents, or others of the same name.
    pub async fn open(documents: &[(&str, &str)]) -> Self {
        let mesh = Mesh::prepare().await;
        mesh.edit("security.yaml", "STRICT", "PERMISSIVE");
        for (name, text) in documents {
            mesh.write(name, text);
        }
        let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
        let details = mesh.spawn(DETAILS_V1, &[]);
        details.ready().await;
        Self { mesh, details, app }
    }

    /// What comes back for these bytes: the status, zero when the connection is closed without one.
    pub async fn status(&self, bytes: &[u8]) -> u16 {
        let mut connection = Connection::open(self.mesh.ingress(DETAILS_V1, 9080)).await.unwrap();
        connection.send(bytes).await.unwrap();
        connection.answer().await.map_or(0, |answer| answer.status)
    }

    /// A GET of details with these header lines.
    pub async fn get(&self, path: &str, headers: &str) -> http::Answer {
        http::exchange(self.mesh.ingress(DETAILS_V1, 9080), &http::get_request("details", path, headers)).await
    }
}
