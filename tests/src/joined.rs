//! A sidecar that is joined to the fake istiod, as most tests of a mesh begin.

use std::net::SocketAddr;

use crate::istiod::Istiod;
use crate::mesh::{Mesh, RATINGS};
use crate::network::Network;
use crate::skiff::Skiff;

/// ratings in a mesh with a fake istiod.
#[derive(Debug)]
pub struct Joined {
    /// The control plane.
    pub istiod: Istiod,
    /// The sidecar.
    pub ratings: Skiff,
    /// The mesh. It gives its addresses back when nobody is on them any more, so it is dropped last.
    pub mesh: Mesh,
}

impl Joined {
    /// Joined and ready, with further variables.
    pub async fn with(variables: &[(&str, &str)]) -> Self {
        let mesh = Mesh::prepare_on(Network::claim_short()).await;
        let istiod = start_istiod(&mesh).await;
        let ratings = spawn(&mesh, variables);
        ratings.ready().await;
        Self { istiod, ratings, mesh }
    }

    /// A port of the sidecar's own address.
    pub fn at(&self, port: u16) -> SocketAddr {
        self.mesh.ingress(RATINGS, port)
    }
}

/// The control plane, where [`spawn`] looks for it.
pub async fn start_istiod(mesh: &Mesh) -> Istiod {
    Istiod::start(&mesh.network, mesh.network.at(16, 15012), mesh.authority()).await
}

/// The sidecar of ratings, which joins the mesh once [`start_istiod`] is there.
pub fn spawn(mesh: &Mesh, variables: &[(&str, &str)]) -> Skiff {
    let proxy_config = format!(r#"{{"discoveryAddress": "{}"}}"#, mesh.network.at(16, 15012));
    mesh.spawn_without_documents(RATINGS, &[&[("PROXY_CONFIG", proxy_config.as_str())], variables].concat())
}
