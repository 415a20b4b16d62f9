//! MeshConfig, the part that a sidecar needs.

use std::collections::BTreeMap;

use serde::Deserialize;
use skiff_proxy::config::TrustDomain;

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
    #[serde(default)]
    pub(in super::super) access_log_format: String,
    #[serde(default)]
    pub(in super::super) access_log_encoding: AccessLogEncoding,
    pub(in super::super) enable_auto_mtls: Option<bool>,
    pub(in super::super) connect_timeout: Option<GoDuration>,
    pub(in super::super) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
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

/// A SPIFFE trust domain.
#[derive(Clone, Debug)]
pub(in super::super) struct TrustDomainText(pub(in super::super) TrustDomain);

impl<'de> Deserialize<'de> for TrustDomainText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}
