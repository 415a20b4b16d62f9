//! Who workloads are, and how the proxies beside them tell each other (Istio's exchange of peer metadata).

use std::collections::BTreeMap;

use serde::Serialize;

/// Who this proxy is (Envoy `core.v3.Node`): given to the process once, not part of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Node {
    /// `sidecar~10.0.0.4~ratings-v1.bookinfo~bookinfo.svc.cluster.local`.
    pub id: String,
    /// Its service cluster, `ratings.bookinfo`.
    pub cluster: String,
    /// `ISTIO_VERSION` of its metadata, for `istio_build`.
    pub istio_version: String,
    /// The workload that it stands beside, with all labels.
    pub workload: Workload,
}

/// A workload, as the own node, a peer's metadata or istiod's `istio.workload` of an endpoint describes it. What is not known
/// is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Workload {
    /// Workload name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Canonical service.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Cluster id.
    pub cluster: String,
    /// `app.kubernetes.io/name`, else `app`. Endpoints do not tell it.
    pub app: String,
    /// `app.kubernetes.io/version`, else `version`. Endpoints do not tell it.
    pub version: String,
    /// Name of the instance, a pod's.
    pub instance: String,
    /// `kubernetes://apis/apps/v1/namespaces/NAMESPACE/deployments/NAME`.
    pub owner: String,
    /// SPIFFE id, where a peer tells one.
    pub identity: String,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Labels; of a peer none are kept, since nothing reads them.
    pub labels: BTreeMap<String, String>,
}

/// Istio's HTTP filter `io.istio.http.peer_metadata.Config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerMetadata {
    /// Its name in the chain.
    pub name: String,
    /// How callers are known, the first way that finds something.
    pub downstream_discovery: Vec<PeerDiscovery>,
    /// How endpoints are known.
    pub upstream_discovery: Vec<PeerDiscovery>,
    /// How callers that ask are told who we are.
    pub downstream_propagation: Vec<PeerPropagation>,
    /// How endpoints are told.
    pub upstream_propagation: Vec<PeerPropagation>,
    /// Labels that are told beside those of the app.
    pub additional_labels: Vec<String>,
}

/// A way to know a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PeerDiscovery {
    /// `x-envoy-peer-metadata`, which is removed.
    IstioHeaders,
    /// Istio's workload discovery. A sidecar's bootstrap does not switch it on, and then Envoy, too, finds nothing there.
    WorkloadDiscovery,
}

/// A way to tell a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PeerPropagation {
    /// `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
    IstioHeaders {
        /// Not to clusters outside of the mesh.
        skip_external_clusters: bool,
    },
}

/// Istio's network filter `envoy.tcp.metadataexchange.config.MetadataExchange`: where TLS agrees on the protocol, both sides
/// say who they are before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerExchange {
    /// `istio-peer-exchange`.
    pub protocol: String,
    /// As [`PeerMetadata::additional_labels`].
    pub additional_labels: Vec<String>,
}

impl PeerExchange {
    /// Whether this is the protocol that TLS agreed on.
    pub fn is_agreed(&self, alpn: Option<&[u8]>) -> bool {
        alpn == Some(self.protocol.as_bytes())
    }
}
