//! Istio's standard metrics, as the `istio.stats` filter of its sidecar makes them.
//!
//! <https://istio.io/latest/docs/reference/config/metrics/>
//!
//! Names, label names and the literal `unknown` are Istio's, so that its dashboards, Kiali and alerts work unchanged. Not
//! counted: `istio_request_messages_total` and `istio_response_messages_total`, the messages inside gRPC streams.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, Label, SharedString};

use super::cache::{HandleCache, Identity};
use super::{Description, Kind, Registry};
use crate::config::{Service, StatsLabels, Workload};
use crate::flags::ResponseFlags;

const REQUESTS_TOTAL: &str = "istio_requests_total";
pub(super) const REQUEST_DURATION_MILLISECONDS: &str = "istio_request_duration_milliseconds";
pub(super) const REQUEST_BYTES: &str = "istio_request_bytes";
pub(super) const RESPONSE_BYTES: &str = "istio_response_bytes";
const TCP_OPENED_TOTAL: &str = "istio_tcp_connections_opened_total";
const TCP_CLOSED_TOTAL: &str = "istio_tcp_connections_closed_total";
const TCP_SENT_TOTAL: &str = "istio_tcp_sent_bytes_total";
const TCP_RECEIVED_TOTAL: &str = "istio_tcp_received_bytes_total";

pub(super) const DESCRIPTIONS: &[Description] = &[
    (Kind::Counter, REQUESTS_TOTAL, "Requests handled."),
    (Kind::Histogram, REQUEST_DURATION_MILLISECONDS, "Duration of requests in milliseconds."),
    (Kind::Histogram, REQUEST_BYTES, "Size of request bodies in bytes."),
    (Kind::Histogram, RESPONSE_BYTES, "Size of response bodies in bytes."),
    (Kind::Counter, TCP_OPENED_TOTAL, "TCP connections opened."),
    (Kind::Counter, TCP_CLOSED_TOTAL, "TCP connections closed."),
    (Kind::Counter, TCP_SENT_TOTAL, "Bytes sent to the caller of TCP connections."),
    (Kind::Counter, TCP_RECEIVED_TOTAL, "Bytes received from the caller of TCP connections."),
];

const UNKNOWN: &str = "unknown";

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
const PRINCIPAL: usize = 2;

/// One HTTP request that has ended. References only: making one costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct HttpSample<'a> {
    /// The destination service, of the cluster. The same `Arc` for every request of a cluster: it is told apart by address.
    pub service: Option<&'a Arc<Service>>,
    /// The other side: the endpoint's workload on outbound, the caller's on inbound. Told apart by address as well.
    pub peer: Option<&'a Arc<Workload>>,
    /// The other side's SPIFFE id, when it proved one.
    pub peer_principal: Option<&'a str>,
    /// Whether the connection to the other side is mutual TLS.
    pub mtls: bool,
    /// Whether the request is gRPC.
    pub is_grpc: bool,
    /// gRPC status, see [`crate::telemetry::grpc_status`].
    pub grpc_status: Option<u32>,
    /// HTTP status; 0 when none was sent.
    pub response_code: u16,
    /// Response flags.
    pub flags: ResponseFlags,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// Body bytes of the request.
    pub request_bytes: u64,
    /// Body bytes of the response.
    pub response_bytes: u64,
}

/// Who a TCP connection is between.
#[derive(Clone, Copy, Debug)]
pub struct TcpSample<'a> {
    /// As [`HttpSample::service`].
    pub service: Option<&'a Arc<Service>>,
    /// As [`HttpSample::peer`].
    pub peer: Option<&'a Arc<Workload>>,
    /// As [`HttpSample::peer_principal`].
    pub peer_principal: Option<&'a str>,
    /// As [`HttpSample::mtls`].
    pub mtls: bool,
    /// Response flags so far.
    pub flags: ResponseFlags,
}

/// `istio_requests_total` and its histograms, for one connection manager.
pub struct IstioHttpMetrics {
    labeller: Labeller,
    cache: HandleCache<HttpHandles>,
}

struct HttpHandles {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl IstioHttpMetrics {
    /// Metrics that are reported with these local labels.
    pub fn new(registry: &Arc<Registry>, labels: &StatsLabels) -> Self {
        Self { labeller: Labeller::new(registry, labels), cache: HandleCache::new() }
    }

    /// Counts a request.
    pub fn record(&self, sample: &HttpSample<'_>) {
        let identity = Identity {
            service: sample.service,
            peer: sample.peer,
            peer_principal: sample.peer_principal,
            mtls: sample.mtls,
            flags: sample.flags.bits(),
            response_code: sample.response_code,
            grpc: sample.is_grpc.then_some(sample.grpc_status),
        };
        self.cache.with(
            &identity,
            || self.register(&identity, sample.flags),
            |handles| {
                handles.requests.increment(1);
                handles.duration.record(sample.duration.as_secs_f64() * 1000.0);
                handles.request_bytes.record(sample.request_bytes as f64);
                handles.response_bytes.record(sample.response_bytes as f64);
            },
        );
    }

    fn register(&self, identity: &Identity<'_>, flags: ResponseFlags) -> HttpHandles {
        let grpc_status = identity.grpc.flatten().map_or(String::new(), |status| status.to_string());
        let mut labels = self.labeller.labels(identity);
        labels.extend([
            Label::new("request_protocol", if identity.grpc.is_some() { "grpc" } else { "http" }),
            Label::new("response_code", identity.response_code.to_string()),
            Label::new("grpc_response_status", grpc_status),
            Label::new("response_flags", flags.to_string()),
        ]);
        let registry = &self.labeller.registry;
        HttpHandles {
            requests: registry.counter(REQUESTS_TOTAL, labels.clone()),
            duration: registry.histogram(REQUEST_DURATION_MILLISECONDS, labels.clone()),
            request_bytes: registry.histogram(REQUEST_BYTES, labels.clone()),
            response_bytes: registry.histogram(RESPONSE_BYTES, labels),
        }
    }

    #[cfg(test)]
    pub(super) fn cached(&self) -> usize {
        self.cache.len()
    }
}

/// `istio_tcp_*`, for one TCP proxy.
pub struct IstioTcpMetrics {
    labeller: Labeller,
    cache: HandleCache<TcpHandles>,
}

struct TcpHandles {
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

impl IstioTcpMetrics {
    /// Metrics that are reported with these local labels.
    pub fn new(registry: &Arc<Registry>, labels: &StatsLabels) -> Self {
        Self { labeller: Labeller::new(registry, labels), cache: HandleCache::new() }
    }

    /// A connection was opened.
    pub fn opened(&self, sample: &TcpSample<'_>) {
        self.with(sample, |handles| handles.opened.increment(1));
    }

    /// A connection was closed.
    pub fn closed(&self, sample: &TcpSample<'_>) {
        self.with(sample, |handles| handles.closed.increment(1));
    }

    /// Bytes passed since the last call: from the caller and to it. Istio's sidecar reports long connections every 15 s.
    pub fn transferred(&self, sample: &TcpSample<'_>, received: u64, sent: u64) {
        self.with(sample, |handles| {
            handles.received.increment(received);
            handles.sent.increment(sent);
        });
    }

    fn with(&self, sample: &TcpSample<'_>, record: impl FnOnce(&TcpHandles)) {
        let identity = Identity {
            service: sample.service,
            peer: sample.peer,
            peer_principal: sample.peer_principal,
            mtls: sample.mtls,
            flags: sample.flags.bits(),
            ..Identity::default()
        };
        self.cache.with(&identity, || self.register(&identity, sample.flags), record);
    }

    fn register(&self, identity: &Identity<'_>, flags: ResponseFlags) -> TcpHandles {
        let names: Vec<_> = flags.short_names_tcp().collect();
        let flags = if names.is_empty() { "-".to_owned() } else { names.join(",") };
        let mut labels = self.labeller.labels(identity);
        labels.extend([Label::new("request_protocol", "tcp"), Label::new("response_flags", flags)]);
        let registry = &self.labeller.registry;
        TcpHandles {
            opened: registry.counter(TCP_OPENED_TOTAL, labels.clone()),
            closed: registry.counter(TCP_CLOSED_TOTAL, labels.clone()),
            sent: registry.counter(TCP_SENT_TOTAL, labels.clone()),
            received: registry.counter(TCP_RECEIVED_TOTAL, labels),
        }
    }
}

/// Makes the labels that HTTP and TCP have in common.
struct Labeller {
    registry: Arc<Registry>,
    reporter: SharedString,
    is_source: bool,
    local: Facts,
}

impl Labeller {
    fn new(registry: &Arc<Registry>, labels: &StatsLabels) -> Self {
        let local = |name: &str| known(labels.local.get(name).map_or("", String::as_str));
        Self {
            registry: Arc::clone(registry),
            reporter: shared(&labels.reporter),
            is_source: labels.reporter == "source",
            local: [
                local("workload"),
                local("workload_namespace"),
                known(labels.local_principal.as_deref().unwrap_or_default()),
                local("app"),
                local("version"),
                local("cluster"),
                local("canonical_service"),
                local("canonical_revision"),
            ],
        }
    }

    fn labels(&self, identity: &Identity<'_>) -> Vec<Label> {
        let peer = peer_facts(identity);
        let mut local = self.local.clone();
        if !identity.mtls {
            // An identity that was not shown on the wire is not reported.
            local[PRINCIPAL] = UNKNOWN.into();
        }
        let (source, destination) = if self.is_source { (local, peer) } else { (peer, local) };
        let mut labels = Vec::with_capacity(25);
        labels.push(Label::new("reporter", self.reporter.clone()));
        labels.extend(SOURCE.into_iter().zip(source).map(|(name, value)| Label::new(name, value)));
        labels.extend(DESTINATION.into_iter().zip(destination).map(|(name, value)| Label::new(name, value)));
        let service = identity.service.map_or_else(Service::default, |service| Service::clone(service));
        labels.extend([
            Label::new("destination_service", known(&service.host)),
            Label::new("destination_service_name", known(&service.name)),
            Label::new("destination_service_namespace", known(&service.namespace)),
            Label::new("connection_security_policy", self.security_policy(identity.mtls)),
        ]);
        labels
    }

    /// Only the side that terminates TLS knows for sure.
    fn security_policy(&self, mtls: bool) -> &'static str {
        match (self.is_source, mtls) {
            (true, _) => UNKNOWN,
            (false, true) => "mutual_tls",
            (false, false) => "none",
        }
    }
}

/// App and version are not part of the workload metadata that istiod and the peers send.
fn peer_facts(identity: &Identity<'_>) -> Facts {
    let peer = identity.peer.map_or_else(Workload::default, |peer| Workload::clone(peer));
    let principal = identity.peer_principal.filter(|_| identity.mtls).unwrap_or_default();
    [
        known(&peer.name),
        known(&peer.namespace),
        known(principal),
        UNKNOWN.into(),
        UNKNOWN.into(),
        known(&peer.cluster),
        known(&peer.canonical_service),
        known(&peer.canonical_revision),
    ]
}

fn known(value: &str) -> SharedString {
    if value.is_empty() { UNKNOWN.into() } else { shared(value) }
}

/// Labels are cloned for each metric of a set and once more by the recorder: one allocation serves all of them. Peers can
/// choose some, so their length is bounded.
fn shared(value: &str) -> SharedString {
    SharedString::from_shared(Arc::from(&value[..value.floor_char_boundary(MAX_LABEL_BYTES)]))
}
