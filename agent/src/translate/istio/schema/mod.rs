//! Istio's resources as they are written, one type for each message, closed against unknown fields.

pub(super) mod destination_rule;
pub(super) mod mesh;
pub(super) mod request_authentication;
pub(super) mod security;
pub(super) mod services;
pub(super) mod sidecar;
pub(super) mod telemetry;
pub(super) mod virtual_service;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::values::Ignored;

/// Labels of workloads and of selectors.
pub(super) type Labels = BTreeMap<String, String>;

/// Kubernetes object metadata. What an API server adds is read over.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the ignored fields are named so that other names are errors")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    #[serde(default)]
    pub(super) labels: Labels,
    #[serde(default)]
    pub(super) annotations: Labels,
    #[serde(default)]
    uid: Ignored,
    #[serde(default)]
    resource_version: Ignored,
    #[serde(default)]
    generation: Ignored,
    #[serde(default)]
    generate_name: Ignored,
    #[serde(default)]
    creation_timestamp: Ignored,
    #[serde(default)]
    managed_fields: Ignored,
    #[serde(default)]
    owner_references: Ignored,
    #[serde(default)]
    finalizers: Ignored,
    #[serde(default)]
    self_link: Ignored,
}

/// `workloadSelector` of networking resources.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkloadSelector {
    #[serde(default)]
    pub(super) labels: Labels,
}

/// `selector` of security resources, and of DestinationRule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    #[serde(default)]
    pub(super) match_labels: Labels,
}

/// Whether a workload with `labels` has all that `wanted` asks for.
pub(super) fn selects(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a resource of `namespace` with this `exportTo` is visible in `viewer`.
pub(super) fn exported(export_to: &[String], namespace: &str, viewer: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|target| match target.as_str() {
            "*" => true,
            "." => namespace == viewer,
            "~" => false,
            name => name == viewer,
        })
}
