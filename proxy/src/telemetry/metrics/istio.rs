//! Istio's standard metrics, as the `istio.stats` filter of its sidecar makes them.
//!
//! <https://istio.io/latest/docs/reference/config/metrics/>
//!
//! Names, label names and the literal `unknown` are Istio's, so that its dashboards, Kiali and alerts work unchanged. Which
//! labels a series has is in `labels`, what a Telemetry resource changes about them in `overrides`.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, Label};

use super::cache::{HandleCache, Identity};
use super::labels::{Destination, Labeller};
use super::overrides::Overrides;
use super::{Description, Kind, Registry};
use crate::config::{IstioMetric, IstioStats, Node, Reporter, Workload};
use crate::flags::ResponseFlags;
use crate::stream_info::FormatContext;

pub(super) const REQUEST_DURATION_MILLISECONDS: &str = "istio_request_duration_milliseconds";
pub(super) const REQUEST_BYTES: &str = "istio_request_bytes";
pub(super) const RESPONSE_BYTES: &str = "istio_response_bytes";
const BUILD: &str = "istio_build";

pub(super) const DESCRIPTIONS: &[Description] = &[
    (Kind::Counter, "istio_requests_total", "Requests handled."),
    (Kind::Histogram, REQUEST_DURATION_MILLISECONDS, "Duration of requests in milliseconds."),
    (Kind::Histogram, REQUEST_BYTES, "Size of request bodies in bytes."),
    (Kind::Histogram, RESPONSE_BYTES, "Size of response bodies in bytes."),
    (Kind::Counter, "istio_request_messages_total", "gRPC messages from callers."),
    (Kind::Counter, "istio_response_messages_total", "gRPC messages to callers."),
    (Kind::Counter, "istio_tcp_connections_opened_total", "TCP connections opened."),
    (Kind::Counter, "istio_tcp_connections_closed_total", "TCP connections closed."),
    (Kind::Counter, "istio_tcp_sent_bytes_total", "Bytes sent to the caller of TCP connections."),
    (Kind::Counter, "istio_tcp_received_bytes_total", "Bytes received from the caller of TCP connections."),
    (Kind::Gauge, BUILD, "1, with the release of Istio whose proxy this one stands in for."),
];

/// One HTTP request that has ended. References only: making one costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpSample<'a> {
    /// What was asked for.
    pub destination: Destination<'a>,
    /// The other side. The same `Arc` for every request of a peer: it is told apart by address.
    pub peer: Option<&'a Arc<Workload>>,
    /// The other side's SPIFFE id, when it proved one.
    pub peer_principal: Option<&'a str>,
    /// Ours, when we proved it on the same connection. Always the same one.
    pub local_principal: Option<&'a str>,
    /// Whether the request is gRPC.
    pub is_grpc: bool,
    /// gRPC status, see [`crate::telemetry::grpc_status`].
    pub grpc_status: Option<u32>,
    /// gRPC messages of the request and of the response.
    pub grpc_messages: (u64, u64),
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
    /// Of [`IstioHttpMetrics::attributes`].
    pub custom: &'a [String],
}

/// Who a TCP connection is between.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpSample<'a> {
    /// What was asked for.
    pub destination: Destination<'a>,
    /// As [`HttpSample::peer`].
    pub peer: Option<&'a Arc<Workload>>,
    /// As [`HttpSample::peer_principal`].
    pub peer_principal: Option<&'a str>,
    /// As [`HttpSample::local_principal`].
    pub local_principal: Option<&'a str>,
    /// Response flags so far.
    pub flags: ResponseFlags,
    /// Of [`IstioTcpMetrics::attributes`].
    pub custom: &'a [String],
}

/// What the metrics of a listener have in common.
struct Common {
    registry: Arc<Registry>,
    labeller: Labeller,
    overrides: Overrides,
}

impl Common {
    fn new(registry: &Arc<Registry>, node: &Node, stats: &IstioStats) -> Self {
        let version = if node.istio_version.is_empty() { super::labels::UNKNOWN } else { &node.istio_version };
        registry.gauge(BUILD, vec![Label::new("component", "proxy"), Label::new("tag", version.to_owned())]).set(1.0);
        Self {
            registry: Arc::clone(registry),
            labeller: Labeller::new(node, stats),
            overrides: Overrides::compile(&stats.overrides),
        }
    }

    fn counter(&self, metric: IstioMetric, labels: &[Label], custom: &[String]) -> Counter {
        let labels = self.overrides.apply(metric, labels, custom);
        labels.map_or_else(Counter::noop, |labels| self.registry.counter(metric.name(), labels))
    }

    fn histogram(&self, metric: IstioMetric, labels: &[Label], custom: &[String]) -> Histogram {
        let labels = self.overrides.apply(metric, labels, custom);
        labels.map_or_else(Histogram::noop, |labels| self.registry.histogram(metric.name(), labels))
    }
}

/// `istio_requests_total` and its histograms, for one connection manager.
pub struct IstioHttpMetrics {
    common: Common,
    cache: HandleCache<HttpHandles>,
}

struct HttpHandles {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// Of gRPC.
    messages: Option<(Counter, Counter)>,
}

impl IstioHttpMetrics {
    /// Metrics of `node`, as they are configured.
    pub fn new(registry: &Arc<Registry>, node: &Node, stats: &IstioStats) -> Self {
        Self { common: Common::new(registry, node, stats), cache: HandleCache::new() }
    }

    /// Which side they are reported from.
    pub fn reporter(&self) -> Reporter {
        self.common.labeller.reporter
    }

    /// Values of the attributes that labels are made of; allocates nothing where there are none.
    pub fn attributes(&self, context: &FormatContext<'_>) -> Vec<String> {
        self.common.overrides.attributes(context)
    }

    /// Counts a request.
    pub fn record(&self, sample: &HttpSample<'_>) {
        let identity = Identity {
            peer: sample.peer,
            peer_principal: sample.peer_principal.unwrap_or_default(),
            local_principal: sample.local_principal,
            flags: sample.flags.bits(),
            response_code: sample.response_code,
            grpc: sample.is_grpc.then_some(sample.grpc_status),
            custom: sample.custom,
            ..self.common.labeller.destination(&sample.destination)
        };
        self.cache.with(
            &identity,
            || self.register(&identity, sample.flags),
            |handles| {
                handles.requests.increment(1);
                handles.duration.record(sample.duration.as_secs_f64() * 1000.0);
                handles.request_bytes.record(sample.request_bytes as f64);
                handles.response_bytes.record(sample.response_bytes as f64);
                if let Some((requests, responses)) = &handles.messages {
                    requests.increment(sample.grpc_messages.0);
                    responses.increment(sample.grpc_messages.1);
                }
            },
        );
    }

    fn register(&self, identity: &Identity<'_>, flags: ResponseFlags) -> HttpHandles {
        let grpc_status = identity.grpc.flatten().map_or(String::new(), |status| status.to_string());
        let common = &self.common;
        let mut labels = common.labeller.labels(identity);
        let custom = identity.custom;
        // They are reported while a stream goes on, when nothing but the two sides is known.
        let messages = identity.grpc.is_some().then(|| {
            (
                common.counter(IstioMetric::RequestMessagesTotal, &labels, custom),
                common.counter(IstioMetric::ResponseMessagesTotal, &labels, custom),
            )
        });
        labels.extend([
            Label::new("request_protocol", if identity.grpc.is_some() { "grpc" } else { "http" }),
            Label::new("response_code", identity.response_code.to_string()),
            Label::new("grpc_response_status", grpc_status),
            Label::new("response_flags", flags.to_string()),
            common.labeller.security_policy(identity),
        ]);
        HttpHandles {
            requests: common.counter(IstioMetric::RequestsTotal, &labels, custom),
            duration: common.histogram(IstioMetric::RequestDurationMilliseconds, &labels, custom),
            request_bytes: common.histogram(IstioMetric::RequestBytes, &labels, custom),
            response_bytes: common.histogram(IstioMetric::ResponseBytes, &labels, custom),
            messages,
        }
    }

    #[cfg(test)]
    pub(super) fn cached(&self) -> usize {
        self.cache.len()
    }
}

/// `istio_tcp_*`, for one TCP proxy.
pub struct IstioTcpMetrics {
    common: Common,
    cache: HandleCache<TcpHandles>,
}

struct TcpHandles {
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

impl IstioTcpMetrics {
    /// Metrics of `node`, as they are configured.
    pub fn new(registry: &Arc<Registry>, node: &Node, stats: &IstioStats) -> Self {
        Self { common: Common::new(registry, node, stats), cache: HandleCache::new() }
    }

    /// Which side they are reported from.
    pub fn reporter(&self) -> Reporter {
        self.common.labeller.reporter
    }

    /// As [`IstioHttpMetrics::attributes`].
    pub fn attributes(&self, context: &FormatContext<'_>) -> Vec<String> {
        self.common.overrides.attributes(context)
    }

    /// A connection was opened.
    pub fn opened(&self, sample: &TcpSample<'_>) {
        self.with(sample, |handles| handles.opened.increment(1));
    }

    /// A connection was closed.
    pub fn closed(&self, sample: &TcpSample<'_>) {
        self.with(sample, |handles| handles.closed.increment(1));
    }

    /// Bytes passed since the last call: from the caller and to it.
    pub fn transferred(&self, sample: &TcpSample<'_>, received: u64, sent: u64) {
        self.with(sample, |handles| {
            handles.received.increment(received);
            handles.sent.increment(sent);
        });
    }

    fn with(&self, sample: &TcpSample<'_>, record: impl FnOnce(&TcpHandles)) {
        let identity = Identity {
            peer: sample.peer,
            peer_principal: sample.peer_principal.unwrap_or_default(),
            local_principal: sample.local_principal,
            flags: sample.flags.bits(),
            custom: sample.custom,
            ..self.common.labeller.destination(&sample.destination)
        };
        self.cache.with(&identity, || self.register(&identity, sample.flags), record);
    }

    fn register(&self, identity: &Identity<'_>, flags: ResponseFlags) -> TcpHandles {
        let names: Vec<_> = flags.short_names_tcp().collect();
        let flags = if names.is_empty() { "-".to_owned() } else { names.join(",") };
        let common = &self.common;
        let mut labels = common.labeller.labels(identity);
        labels.extend([
            Label::new("request_protocol", "tcp"),
            Label::new("response_flags", flags),
            common.labeller.security_policy(identity),
        ]);
        let counter = |metric| common.counter(metric, &labels, identity.custom);
        TcpHandles {
            opened: counter(IstioMetric::TcpConnectionsOpenedTotal),
            closed: counter(IstioMetric::TcpConnectionsClosedTotal),
            sent: counter(IstioMetric::TcpSentBytesTotal),
            received: counter(IstioMetric::TcpReceivedBytesTotal),
        }
    }
}
