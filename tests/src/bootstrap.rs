//! `skiff proxy -c`: a static Envoy bootstrap in a folder of its own.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::network::Network;
use crate::skiff::{self, Skiff};

/// Where the admin page is.
const ADMIN: (u8, u16) = (250, 15000);

/// A folder for a bootstrap and its certificates, and addresses for its listeners.
#[derive(Debug)]
pub struct Bootstrap {
    /// Addresses of this test.
    pub network: Network,
    folder: TempDir,
}

impl Bootstrap {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "it claims a network and makes a folder")]
    pub fn new() -> Self {
        Self { network: Network::claim(), folder: TempDir::new().unwrap() }
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the proxy with these resources, the YAML below `static_resources`, and waits until it is ready. `127.0.0.` stands for
    /// the test's network and `DIR/` for its folder; access logs go to standard output.
    pub async fn run(&self, resources: &str) -> Skiff {
        let (host, port) = ADMIN;
        let text = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.{host}, port_value: {port}}}}}}}\nstatic_resources:\n{resources}"
        );
        let folder = self.folder.path().display().to_string();
        let path = self.path("bootstrap.yaml");
        fs::write(&path, self.network.localise(&text).replace("DIR/", &format!("{folder}/"))).unwrap();
        let command = skiff::command(&["proxy", "-c", path.to_str().unwrap()]);
        let skiff = Skiff::spawn(command, self.network.at(host, port));
        skiff.ready().await;
        skiff
    }
}
