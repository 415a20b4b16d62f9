//! MeshConfig, the part that a sidecar needs.

use std::collections::BTreeMap;

use serde::Deserialize;
use skiff_proxy::config::{LogFormat, TrustDomain};

use super::super::de::{FieldError, Located};
use super::super::values::{GoDuration, Ignored};
use super::sidecar::OutboundTrafficPolicy;

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
    #[serde(flatten)]
    pub(in super::super) other: BTreeMap<String, Ignored>,
}

/// Fields that are known to change nothing for a sidecar of ours, so that they deserve no warning.
pub(in super::super) const HARMLESS_MESH_FIELDS: [&str; 4] =
    ["configSources", "defaultConfig", "enablePrometheusMerge", "defaultProviders"];

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
const DEFAULT_JSON: [(&str, &str); 24] = [
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
