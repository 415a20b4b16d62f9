//! Tracing, and the services that spans and log records are exported to (Envoy `HttpConnectionManager.Tracing`,
//! `config.trace.v3`, `extensions.access_loggers.open_telemetry.v3`).

use std::time::Duration;

use serde::Serialize;

use super::Fraction;

/// Which requests are traced, what their spans say and who gets them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tracing {
    /// Share of requests with x-client-trace-id that are traced.
    pub client_sampling: Fraction,
    /// Share of the other requests.
    pub random_sampling: Fraction,
    /// Share of all of those that stay traced.
    pub overall_sampling: Fraction,
    /// The decision is taken from x-request-id, and the same on every hop; otherwise every request is traced that its caller's
    /// span does not exclude.
    pub use_request_id: bool,
    /// The decision is written into x-request-id.
    pub pack_trace_reason: bool,
    /// Bytes of the path in `http.url` (Envoy: 256).
    pub max_path_tag_length: u32,
    /// Further tags, in this order; one with the name of a tag before replaces it.
    pub custom_tags: Vec<CustomTag>,
    /// Every attempt upstream gets a span of its own.
    pub spawn_upstream_span: bool,
    /// Nothing is written into the headers of requests.
    pub no_context_propagation: bool,
    /// How traces are carried and where spans go.
    pub provider: TracingProvider,
}

impl Tracing {
    /// Envoy's defaults for everything but the provider.
    pub fn new(provider: TracingProvider) -> Self {
        Self {
            client_sampling: Fraction::ALL,
            random_sampling: Fraction::ALL,
            overall_sampling: Fraction::ALL,
            use_request_id: true,
            pack_trace_reason: true,
            max_path_tag_length: 256,
            custom_tags: Vec::new(),
            spawn_upstream_span: false,
            no_context_propagation: false,
            provider,
        }
    }
}

/// A tag of a span (Envoy `type.tracing.v3.CustomTag`). One without a value is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CustomTag {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub value: TagValue,
}

/// Where the value of a tag comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum TagValue {
    /// Always the same.
    Literal(String),
    /// A variable of this process' environment, read when the configuration is compiled.
    Environment {
        /// Its name.
        name: String,
        /// Where it is not set.
        default: String,
    },
    /// A request header; the first line of repeated ones.
    RequestHeader {
        /// Its name.
        name: String,
        /// Where the request has none.
        default: String,
    },
    /// What a filter has found out.
    Metadata {
        /// The filter.
        filter: String,
        /// Keys.
        path: Vec<String>,
        /// Where there is nothing.
        default: String,
    },
    /// A format string of access logs.
    Format(String),
}

/// How traces are carried from hop to hop and where spans go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum TracingProvider {
    /// `traceparent` and `tracestate`; OTLP.
    OpenTelemetry(OpenTelemetry),
    /// `x-b3-*`; Zipkin's JSON, version 2, over HTTP.
    Zipkin(Zipkin),
}

/// `envoy.config.trace.v3.OpenTelemetryConfig`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpenTelemetry {
    /// The collector.
    pub service: ExportService,
    /// `service.name`; Envoy's is `unknown_service:envoy` where it is empty.
    pub service_name: String,
    /// Further attributes of the resource.
    pub resource_attributes: Vec<(String, String)>,
    /// `OTEL_RESOURCE_ATTRIBUTES` of this process' environment adds attributes.
    pub detect_environment: bool,
}

/// `envoy.config.trace.v3.ZipkinConfig`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Zipkin {
    /// The collector.
    pub service: ExportService,
    /// Trace ids of 128 bits.
    pub trace_id_128bit: bool,
    /// A server's span has the id of its client's.
    pub shared_span_context: bool,
    /// `traceparent` is read and written beside `x-b3-*`.
    pub with_w3c: bool,
}

/// A service that takes batches of spans or log records, asked through a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExportService {
    /// The cluster.
    pub cluster: String,
    /// `:authority`.
    pub authority: String,
    /// Over plain HTTP to this path; `None` is gRPC.
    pub http_path: Option<String>,
    /// Headers, or gRPC metadata, that every call carries.
    pub headers: Vec<(String, String)>,
    /// What one call may take.
    pub timeout: Duration,
}

impl ExportService {
    /// What a call may take where nothing is said.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// A gRPC service.
    pub fn grpc(cluster: impl Into<String>, authority: impl Into<String>) -> Self {
        let (cluster, authority) = (cluster.into(), authority.into());
        Self { cluster, authority, http_path: None, headers: Vec::new(), timeout: Self::TIMEOUT }
    }
}

/// Log records instead of lines (`OpenTelemetryAccessLogConfig`). The format of the log is the record's body: a text, or a map of
/// texts for a JSON format; none where the text is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct OtelLog {
    /// The collector.
    pub service: ExportService,
    /// `log_name` of the resource.
    pub log_name: String,
    /// The resource has `log_name`, `zone_name`, `cluster_name` and `node_name`.
    pub builtin_labels: bool,
    /// Further attributes of the resource.
    pub resource_attributes: Vec<(String, String)>,
    /// Attributes of every record: names and formats.
    pub attributes: Vec<(String, String)>,
}
