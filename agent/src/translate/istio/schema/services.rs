//! `networking.istio.io` ServiceEntry, WorkloadEntry and WorkloadGroup.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{Block, HostName, Ignored, LocalityText, Port, Protocol};
use super::{Labels, WorkloadSelector};

/// [ServiceEntry](https://istio.io/latest/docs/reference/config/networking/service-entry/).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct ServiceEntry {
    pub(in super::super) hosts: Vec<HostName>,
    #[serde(default)]
    pub(in super::super) addresses: Vec<Block>,
    #[serde(default)]
    pub(in super::super) ports: Vec<ServicePort>,
    #[serde(default)]
    pub(in super::super) location: Location,
    #[serde(default)]
    pub(in super::super) resolution: Located<Resolution>,
    #[serde(default)]
    pub(in super::super) endpoints: Vec<Located<WorkloadEntry>>,
    pub(in super::super) workload_selector: Option<WorkloadSelector>,
    #[serde(default)]
    pub(in super::super) export_to: Vec<String>,
    #[serde(default)]
    pub(in super::super) subject_alt_names: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct ServicePort {
    pub(in super::super) number: Port,
    pub(in super::super) name: String,
    pub(in super::super) protocol: Option<Protocol>,
    pub(in super::super) target_port: Option<Port>,
}

impl ServicePort {
    /// The declared protocol, else the one that the name begins with (`http-web`), else TCP.
    pub(in super::super) fn protocol(&self) -> Protocol {
        let by_name = || self.name.split('-').next().and_then(|prefix| prefix.parse().ok());
        self.protocol.or_else(by_name).unwrap_or(Protocol::Tcp)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
}

impl Default for Located<Resolution> {
    fn default() -> Self {
        Self { value: Resolution::None, line: 1, path: "spec.resolution".to_owned() }
    }
}

/// [WorkloadEntry](https://istio.io/latest/docs/reference/config/networking/workload-entry/), also the endpoints of a ServiceEntry.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "networks are reachable directly unless a gateway stands between them, which a task has none of")]
pub(in super::super) struct WorkloadEntry {
    pub(in super::super) address: String,
    #[serde(default)]
    pub(in super::super) ports: BTreeMap<String, Port>,
    #[serde(default)]
    pub(in super::super) labels: Labels,
    #[serde(default)]
    network: Ignored,
    #[serde(default)]
    pub(in super::super) locality: LocalityText,
    pub(in super::super) weight: Option<u32>,
    #[serde(default)]
    pub(in super::super) service_account: String,
}

/// [WorkloadGroup](https://istio.io/latest/docs/reference/config/networking/workload-group/): only read, for its errors; who
/// registers a workload uses it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a group says how workloads register, which happens elsewhere")]
pub(in super::super) struct WorkloadGroup {
    metadata: Option<GroupMetadata>,
    template: GroupTemplate,
    #[serde(default)]
    probe: Ignored,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as for WorkloadGroup")]
struct GroupMetadata {
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    annotations: Labels,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "as for WorkloadGroup")]
struct GroupTemplate {
    #[serde(default)]
    ports: BTreeMap<String, Port>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    network: String,
    #[serde(default)]
    locality: LocalityText,
    weight: Option<u32>,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    address: String,
}
