//! MeshConfig, the part that a sidecar needs.

use std::collections::BTreeMap;

use serde::Deserialize;
use skiff_proxy::config::{LogFormat, TrustDomain};

use super::super::de::{FieldError, Located};
use super::super::values::{GoDuration, Ignored, Port, Refused, Share};
use super::request_authentication::HeaderName;
use super::sidecar::OutboundTrafficPolicy;
use super::telemetry::CustomTag;

/// [MeshConfig](https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/), a file without kind and apiVersion.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct MeshConfig {
    pub(in super::super) trust_domain: Option<TrustDomainText>,
    #[serde(default)]
    pub(in super::super) trust_domain_aliases: Vec<TrustDomainText>,
    pub(in super::super) root_namespace: Option<String>,
    pub(in super::super) access_log_file: Option<String>,
    pub(in super::super) access_log_format: Option<Located<String>>,
    #[serde(default)]
    pub(in super::super) access_log_encoding: AccessLogEncoding,
    pub(in super::super) enable_auto_mtls: Option<bool>,
    pub(in super::super) connect_timeout: Option<GoDuration>,
    pub(in super::super) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    #[serde(default)]
    pub(in super::super) path_normalization: PathNormalization,
    #[serde(default)]
    pub(in super::super) extension_providers: Vec<ExtensionProvider>,
    #[serde(default)]
    pub(in super::super) default_providers: DefaultProviders,
    #[serde(default)]
    pub(in super::super) default_config: ProxyConfig,
    #[serde(default)]
    pub(in super::super) enable_tracing: bool,
    #[serde(flatten)]
    pub(in super::super) other: BTreeMap<String, Ignored>,
}

/// [ExtensionProvider](https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ExtensionProvider): those
/// that policies with the action CUSTOM ask, and those that traces and logs go to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct ExtensionProvider {
    pub(in super::super) name: String,
    pub(in super::super) envoy_ext_authz_http: Option<Located<HttpAuthorizer>>,
    pub(in super::super) envoy_ext_authz_grpc: Option<Located<GrpcAuthorizer>>,
    pub(in super::super) envoy_file_access_log: Option<FileAccessLog>,
    pub(in super::super) envoy_otel_als: Option<OtelAls>,
    pub(in super::super) opentelemetry: Option<OpenTelemetryTracer>,
    pub(in super::super) zipkin: Option<ZipkinTracer>,
    /// Prometheus, which needs nothing, and those that skiff does not have.
    #[serde(flatten)]
    pub(in super::super) other: BTreeMap<String, Ignored>,
}

/// Who serves where a Telemetry resource names nobody.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct DefaultProviders {
    #[serde(default)]
    pub(in super::super) tracing: Vec<String>,
    pub(in super::super) metrics: Option<Vec<String>>,
    #[serde(default)]
    pub(in super::super) access_logging: Vec<String>,
}

/// What ProxyConfig says of tracing. The rest of it configures Istio's own agent.
#[derive(Clone, Debug, Default, Deserialize)]
pub(in super::super) struct ProxyConfig {
    #[serde(default)]
    pub(in super::super) tracing: ProxyTracing,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct ProxyTracing {
    pub(in super::super) sampling: Option<Share>,
    pub(in super::super) max_path_tag_length: Option<u32>,
    #[serde(default)]
    pub(in super::super) custom_tags: BTreeMap<String, CustomTag>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct FileAccessLog {
    #[serde(default)]
    pub(in super::super) path: String,
    pub(in super::super) log_format: Option<ProviderLogFormat>,
    #[serde(default)]
    pub(in super::super) omit_empty_values: bool,
}

/// A text, or labels: keys of a JSON object, attributes of a record.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ProviderLogFormat {
    #[serde(default)]
    pub(in super::super) text: String,
    #[serde(default)]
    pub(in super::super) labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct OtelAls {
    pub(in super::super) service: String,
    pub(in super::super) port: Port,
    #[serde(default)]
    pub(in super::super) log_name: String,
    #[serde(default)]
    pub(in super::super) log_format: ProviderLogFormat,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct OpenTelemetryTracer {
    pub(in super::super) service: String,
    pub(in super::super) port: Port,
    pub(in super::super) max_tag_length: Option<u32>,
    pub(in super::super) http: Option<HttpExport>,
    #[serde(default)]
    pub(in super::super) grpc: GrpcExport,
    #[serde(default)]
    pub(in super::super) resource_detectors: ResourceDetectors,
    #[serde(rename = "dynatraceSampler")]
    pub(in super::super) _dynatrace_sampler: Option<Refused>,
    #[serde(rename = "serviceAttributeEnrichment")]
    pub(in super::super) _service_attribute_enrichment: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct HttpExport {
    pub(in super::super) path: String,
    pub(in super::super) timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) headers: Vec<ExportHeader>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct GrpcExport {
    pub(in super::super) timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) initial_metadata: Vec<ExportHeader>,
}

/// `envName`, which takes the value from istiod's environment, is not supported.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ExportHeader {
    pub(in super::super) name: HeaderName,
    pub(in super::super) value: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ResourceDetectors {
    pub(in super::super) environment: Option<Ignored>,
    #[serde(rename = "dynatrace")]
    pub(in super::super) _dynatrace: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct ZipkinTracer {
    pub(in super::super) service: String,
    pub(in super::super) port: Port,
    pub(in super::super) max_tag_length: Option<u32>,
    #[serde(default, rename = "enable64bitTraceId")]
    pub(in super::super) enable_64bit_trace_id: bool,
    #[serde(default)]
    pub(in super::super) path: String,
    #[serde(default)]
    pub(in super::super) trace_context_option: TraceContextOption,
    pub(in super::super) timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) headers: Vec<ExportHeader>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(in super::super) enum TraceContextOption {
    #[default]
    #[serde(rename = "USE_B3")]
    B3,
    #[serde(rename = "USE_B3_WITH_W3C_PROPAGATION")]
    B3WithW3c,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct HttpAuthorizer {
    pub(in super::super) service: String,
    pub(in super::super) port: Port,
    pub(in super::super) timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) path_prefix: String,
    #[serde(default)]
    pub(in super::super) fail_open: bool,
    #[serde(default)]
    pub(in super::super) clear_route_cache: bool,
    pub(in super::super) status_on_error: Option<ErrorStatus>,
    #[serde(default)]
    pub(in super::super) include_headers_in_check: Vec<String>,
    #[serde(default)]
    pub(in super::super) include_request_headers_in_check: Vec<String>,
    #[serde(default)]
    pub(in super::super) include_additional_headers_in_check: BTreeMap<String, String>,
    pub(in super::super) include_request_body_in_check: Option<RequestBodyInCheck>,
    #[serde(default)]
    pub(in super::super) headers_to_upstream_on_allow: Vec<String>,
    #[serde(default)]
    pub(in super::super) headers_to_downstream_on_deny: Vec<String>,
    #[serde(default)]
    pub(in super::super) headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct GrpcAuthorizer {
    pub(in super::super) service: String,
    pub(in super::super) port: Port,
    pub(in super::super) timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) fail_open: bool,
    #[serde(default)]
    pub(in super::super) clear_route_cache: bool,
    pub(in super::super) status_on_error: Option<ErrorStatus>,
    pub(in super::super) include_request_body_in_check: Option<RequestBodyInCheck>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct RequestBodyInCheck {
    pub(in super::super) max_request_bytes: std::num::NonZeroU32,
    #[serde(default)]
    pub(in super::super) allow_partial_message: bool,
    #[serde(default)]
    pub(in super::super) pack_as_bytes: bool,
}

/// A status as a text, `"503"`.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ErrorStatus(pub(in super::super) u16);

impl<'de> Deserialize<'de> for ErrorStatus {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(status @ 200..600) => Ok(Self(status)),
            _ => Err(serde::de::Error::custom(format!("{text:?}: expected a status from 200 to 599"))),
        }
    }
}

/// Fields that are known to change nothing for a sidecar of ours, so that they deserve no warning.
pub(in super::super) const HARMLESS_MESH_FIELDS: [&str; 2] = ["configSources", "enablePrometheusMerge"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

/// What is done to paths before routes and policies look at them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct PathNormalization {
    #[serde(default)]
    pub(in super::super) normalization: Normalization,
}

/// `ProxyPathNormalization.NormalizationType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum Normalization {
    /// BASE.
    #[default]
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// A SPIFFE trust domain.
#[derive(Clone, Debug)]
pub(in super::super) struct TrustDomainText(pub(in super::super) TrustDomain);

impl<'de> Deserialize<'de> for TrustDomainText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl MeshConfig {
    /// The format of access log lines.
    ///
    /// # Errors
    /// When the encoding is JSON and `accessLogFormat` is not a JSON object of strings.
    pub(in super::super) fn log_format(&self) -> Result<LogFormat, FieldError> {
        let own = self.access_log_format.as_ref().filter(|format| !format.value.is_empty());
        match self.access_log_encoding {
            AccessLogEncoding::Text => {
                Ok(LogFormat::Text(own.map_or_else(|| LogFormat::ISTIO.to_owned(), |format| format.value.clone())))
            }
            AccessLogEncoding::Json => {
                let fields: BTreeMap<String, String> = match own {
                    None => DEFAULT_JSON.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
                    Some(format) => serde_json::from_str(&format.value).map_err(|_| {
                        format.error(format!("{:?}: expected a JSON object of strings for encoding JSON", format.value))
                    })?,
                };
                Ok(LogFormat::Json { fields: fields.into_iter().collect(), omit_empty_values: false, sort: true })
            }
        }
    }
}

/// The fields of Istio's JSON access log.
pub(in super::super) const DEFAULT_JSON: [(&str, &str); 24] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];
