//! The HTTP filter: headers of the exchange are read, removed and added.
//!
//! Our own pair is made when configuration is compiled; a request costs two copies into its head. A peer's value is hashed and
//! compared, about 700 bytes, and decoded only the first time.

use std::sync::Arc;

use super::{Known as Peers, Local};
use crate::config::{self, PeerDiscovery, PeerPropagation, Workload};
use crate::http::head::{Headers, Known};
use crate::upstream::Cluster;

/// What nobody outside of the mesh can be told from, whatever its metadata says.
const PASSTHROUGH: &str = "PassthroughCluster";

/// What [`config::PeerMetadata`] is compiled into.
#[derive(Debug)]
pub struct PeerMetadata {
    /// Callers are known by their headers.
    knows_callers: bool,
    /// Endpoints are.
    knows_endpoints: bool,
    /// Callers that ask are told who we are.
    tells_callers: bool,
    /// Endpoints are told who we are, but not those outside of the mesh where it is true.
    tells_endpoints: Option<bool>,
    id: Box<[u8]>,
    value: Arc<[u8]>,
}

/// Which headers of the pair the caller sent: it is answered in kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    id: bool,
    value: bool,
}

impl PeerMetadata {
    /// Prepares the filter.
    pub fn compile(config: &config::PeerMetadata, local: &Local) -> Self {
        let by_headers = |ways: &[PeerDiscovery]| ways.contains(&PeerDiscovery::IstioHeaders);
        let told = config.upstream_propagation.first();
        let id = local.node().id.as_bytes();
        Self {
            knows_callers: by_headers(&config.downstream_discovery),
            knows_endpoints: by_headers(&config.upstream_discovery),
            tells_callers: !config.downstream_propagation.is_empty(),
            tells_endpoints: told.map(|PeerPropagation::IstioHeaders { skip_external_clusters }| *skip_external_clusters),
            // It comes from the environment: what would break a head is not sent.
            id: if id.iter().all(|byte| (0x21..0x7f).contains(byte)) { id.into() } else { Box::default() },
            value: local.header(&config.additional_labels),
        }
    }

    /// Learns who calls and tells the endpoint who we are.
    pub fn request(
        &self,
        headers: &mut Headers,
        cluster: Option<&Arc<Cluster>>,
        peers: &Peers,
    ) -> (Asked, Option<Arc<Workload>>) {
        let mut asked = Asked::default();
        let mut caller = None;
        if self.knows_callers {
            asked =
                Asked { id: headers.contains(Known::XEnvoyPeerMetadataId), value: headers.contains(Known::XEnvoyPeerMetadata) };
            caller = learn(headers, peers);
        }
        if let Some(skip_external) = self.tells_endpoints
            && !cluster.is_some_and(|cluster| is_left_out(cluster, skip_external))
        {
            self.tell(headers, Asked { id: true, value: true });
        }
        (asked, caller)
    }

    /// Learns who answers and tells the caller who we are, where it asked.
    pub fn response(&self, headers: &mut Headers, asked: Asked, peers: &Peers) -> Option<Arc<Workload>> {
        let endpoint = if self.knows_endpoints { learn(headers, peers) } else { None };
        if self.tells_callers {
            self.tell(headers, asked);
        }
        endpoint
    }

    fn tell(&self, headers: &mut Headers, asked: Asked) {
        if asked.id {
            headers.set(Known::XEnvoyPeerMetadataId, &self.id);
        }
        if asked.value {
            headers.set(Known::XEnvoyPeerMetadata, &self.value);
        }
    }
}

/// Takes the pair off a head.
fn learn(headers: &mut Headers, peers: &Peers) -> Option<Arc<Workload>> {
    let peer = headers.get(Known::XEnvoyPeerMetadata).and_then(|value| peers.by_header(value));
    if headers.contains(Known::XEnvoyPeerMetadata) || headers.contains(Known::XEnvoyPeerMetadataId) {
        headers.remove(Known::XEnvoyPeerMetadata);
        headers.remove(Known::XEnvoyPeerMetadataId);
    }
    peer
}

fn is_left_out(cluster: &Cluster, skip_external: bool) -> bool {
    let current = cluster.current();
    let config = current.config();
    config.disable_mx || skip_external && (config.external || config.name == PASSTHROUGH)
}
