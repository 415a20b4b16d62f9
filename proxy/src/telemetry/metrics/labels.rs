//! The labels of Istio's metrics: who is on either side, and what was asked for.

use std::sync::Arc;

use metrics::{Label, SharedString};

use super::cache::Identity;
use crate::config::{IstioStats, Node, Reporter, Service};

pub(super) const UNKNOWN: &str = "unknown";
const LATEST: &str = "latest";

/// Longer than any DNS name.
const MAX_LABEL_BYTES: usize = 256;

/// Label names of a side's facts, in the order of [`Facts`].
const SOURCE: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
];
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
];

/// Workload, namespace, principal, app, version, cluster, canonical service and revision.
type Facts = [SharedString; 8];
const NAMESPACE: usize = 1;
const PRINCIPAL: usize = 2;
const CANONICAL_SERVICE: usize = 6;

/// Clusters that stand for no service, and are named instead of one.
const SPECIAL: [&str; 5] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];
/// The same by the routes that lead there.
const SPECIAL_ROUTES: [(&str, &str); 2] = [("block_all", SPECIAL[0]), ("allow_any", SPECIAL[1])];

/// What a caller asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Destination<'a> {
    /// The service of the cluster. The same `Arc` for every request of a cluster: it is told apart by address.
    pub service: Option<&'a Arc<Service>>,
    /// The cluster's name.
    pub cluster: Option<&'a str>,
    /// The route's name.
    pub route: Option<&'a str>,
    /// The host of a request.
    pub host: Option<&'a [u8]>,
}

/// Makes the labels that HTTP and TCP have in common.
pub(super) struct Labeller {
    pub(super) reporter: Reporter,
    host_fallback: bool,
    local: Facts,
}

impl Labeller {
    pub(super) fn new(node: &Node, stats: &IstioStats) -> Self {
        let workload = &node.workload;
        // As in Istio: what the own node does not say is empty, not unknown.
        let label = |name: &str| workload.labels.get(name).map_or("", String::as_str);
        Self {
            reporter: stats.reporter,
            host_fallback: !stats.disable_host_header_fallback,
            local: [
                shared(&workload.name),
                shared(&workload.namespace),
                UNKNOWN.into(),
                shared(label("app")),
                shared(label("version")),
                shared(&workload.cluster),
                shared(&workload.canonical_service),
                shared(&workload.canonical_revision),
            ],
        }
    }

    /// What distinguishes destinations. A host is only looked at where no service is known.
    pub(super) fn destination<'a>(&self, asked: &Destination<'a>) -> Identity<'a> {
        if asked.service.is_some() {
            return Identity { service: asked.service, ..Identity::default() };
        }
        let route = asked.route.and_then(|route| SPECIAL_ROUTES.into_iter().find(|(name, _)| *name == route));
        let cluster = || SPECIAL.into_iter().find(|name| Some(*name) == asked.cluster);
        let host = asked.host.filter(|_| self.host_fallback).and_then(|host| std::str::from_utf8(host).ok());
        let special = route.map(|(_, cluster)| cluster).or_else(cluster);
        Identity { special, host: host.unwrap_or_default(), ..Identity::default() }
    }

    pub(super) fn labels(&self, identity: &Identity<'_>) -> Vec<Label> {
        let peer = self.peer(identity);
        let mut local = self.local.clone();
        local[PRINCIPAL] = known(identity.local_principal.unwrap_or_default());
        let service = self.service(identity, &peer);
        let (source, destination) = match self.reporter {
            Reporter::Source => (local, peer),
            Reporter::Destination => (peer, local),
        };
        let mut labels = Vec::with_capacity(27);
        labels.push(Label::new("reporter", self.reporter.as_str()));
        labels.extend(SOURCE.into_iter().zip(source).map(|(name, value)| Label::new(name, value)));
        labels.extend(DESTINATION.into_iter().zip(destination).map(|(name, value)| Label::new(name, value)));
        let names = ["destination_service", "destination_service_name", "destination_service_namespace"];
        labels.extend(names.into_iter().zip(service).map(|(name, value)| Label::new(name, value)));
        labels
    }

    /// Host, name and namespace.
    fn service(&self, identity: &Identity<'_>, peer: &Facts) -> [SharedString; 3] {
        let (host, name, namespace) = match identity.service {
            Some(service) => (service.host.as_str(), service.name.as_str(), service.namespace.as_str()),
            None => (identity.host, identity.special.unwrap_or(identity.host), ""),
        };
        match self.reporter {
            // The application is its own service where nobody says which.
            Reporter::Destination => {
                let or_own = |text: &str| if text.is_empty() { self.local[CANONICAL_SERVICE].clone() } else { shared(text) };
                [or_own(host), or_own(name), self.local[NAMESPACE].clone()]
            }
            Reporter::Source if namespace.is_empty() => [known(host), known(name), peer[NAMESPACE].clone()],
            Reporter::Source => [known(host), known(name), shared(namespace)],
        }
    }

    /// A proven identity says more than what a peer tells of itself.
    fn peer(&self, identity: &Identity<'_>) -> Facts {
        let peer = identity.peer.map(|peer| &**peer);
        let fact = |fact: fn(&crate::config::Workload) -> &str| peer.map_or("", fact);
        let mut principal = identity.peer_principal;
        if principal.is_empty() && self.reporter == Reporter::Source {
            principal = fact(|peer| &peer.identity);
        }
        let namespace = namespace(principal).unwrap_or_else(|| fact(|peer| &peer.namespace));
        let revision = fact(|peer| &peer.canonical_revision);
        [
            known(fact(|peer| &peer.name)),
            known(namespace),
            known(principal),
            known(fact(|peer| &peer.app)),
            known(fact(|peer| &peer.version)),
            known(fact(|peer| &peer.cluster)),
            known(fact(|peer| &peer.canonical_service)),
            if revision.is_empty() { LATEST.into() } else { shared(revision) },
        ]
    }

    /// Only the side that terminates TLS knows for sure.
    pub(super) fn security_policy(&self, identity: &Identity<'_>) -> Label {
        let proven = !identity.peer_principal.is_empty() && identity.local_principal.is_some();
        let policy = match (self.reporter, proven) {
            (Reporter::Source, _) => UNKNOWN,
            (Reporter::Destination, true) => "mutual_tls",
            (Reporter::Destination, false) => "none",
        };
        Label::new("connection_security_policy", policy)
    }
}

/// The namespace of `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
fn namespace(principal: &str) -> Option<&str> {
    let (_, rest) = principal.split_once("/ns/")?;
    rest.split('/').next().filter(|namespace| !namespace.is_empty())
}

fn known(value: &str) -> SharedString {
    if value.is_empty() { UNKNOWN.into() } else { shared(value) }
}

/// Labels are cloned for each metric of a set and once more by the recorder: one allocation serves all of them. Peers can
/// choose some, so their length is bounded.
pub(super) fn shared(value: &str) -> SharedString {
    SharedString::from_shared(Arc::from(&value[..value.floor_char_boundary(MAX_LABEL_BYTES)]))
}
