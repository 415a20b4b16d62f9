//! `networking.istio.io` WorkloadGroup and WorkloadEntry.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

use super::meta::Condition;
use super::{Labels, NoStatus, Spec};
use crate::xds::Probe;

/// Annotation of a WorkloadEntry: istiod gives it requests only while its sidecar says that it is healthy.
pub const HEALTH_CHECKS_ENABLED: &str = "proxy.istio.io/health-checks-enabled";

/// What the workloads of a group have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadGroupSpec {
    /// For the metadata of their entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// For their entries.
    pub template: WorkloadEntrySpec,
    /// How their sidecars find out whether they are healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ReadinessProbe>,
}

impl Spec for WorkloadGroupSpec {
    const KIND: &'static str = "WorkloadGroup";
    const API_VERSIONS: &'static [&'static str] =
        &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
    type Status = NoStatus;
}

impl WorkloadGroupSpec {
    /// The service account of its workloads; `default` where none is named.
    pub fn service_account(&self) -> &str {
        let named = self.template.service_account.as_str();
        if named.is_empty() { "default" } else { named }
    }
}

/// Labels and annotations of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub annotations: Labels,
}

/// One workload; in a WorkloadGroup what they have in common, without address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntrySpec {
    /// Where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Port of the workload, by the name of the service's port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, NonZeroU16>,
    /// What services select it by.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Not empty where it cannot be reached directly.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// `region/zone/sub-zone`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Its share of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its identity in the mesh.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

impl Spec for WorkloadEntrySpec {
    const KIND: &'static str = "WorkloadEntry";
    const API_VERSIONS: &'static [&'static str] =
        &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
    type Status = WorkloadEntryStatus;
}

/// What is known of a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntryStatus {
    /// `Healthy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What else Istio writes there.
    #[serde(flatten)]
    pub other: BTreeMap<String, Json>,
}

/// Istio's ReadinessProbe, as it is written; it has been read as one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReadinessProbe(Json);

impl ReadinessProbe {
    /// For `readinessProbe` of a ProxyConfig.
    pub fn as_json(&self) -> &Json {
        &self.0
    }
}

impl<'de> Deserialize<'de> for ReadinessProbe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Json::deserialize(deserializer)?;
        Probe::deserialize(&written).map_err(serde::de::Error::custom)?;
        Ok(Self(written))
    }
}
