//! `runtime.onboarding.tetrate.io/v1alpha1` WorkloadAutoRegistration.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::meta::Condition;
use super::{Labels, Spec};
use crate::onboarding::identity::WorkloadIdentity;

/// A workload that has registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrationSpec {
    /// Who it is, as it was verified.
    pub identity: WorkloadIdentity,
    /// What it says of itself.
    pub registration: Registration,
}

impl Spec for RegistrationSpec {
    const KIND: &'static str = "WorkloadAutoRegistration";
    const API_VERSIONS: &'static [&'static str] = &["runtime.onboarding.tetrate.io/v1alpha1"];
    type Status = RegistrationStatus;
}

/// What a workload says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// The agent.
    pub agent: AgentInfo,
    /// The sidecar.
    pub sidecar: SidecarInfo,
    /// Where it runs.
    pub host: HostInfo,
    /// The workload itself.
    #[serde(default, skip_serializing_if = "WorkloadInfo::is_empty")]
    pub workload: WorkloadInfo,
    /// How it takes part.
    #[serde(default)]
    pub settings: Settings,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentInfo {
    /// Its version.
    pub version: String,
}

/// The sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidecarInfo {
    /// An Istio proxy, or what behaves as one.
    pub istio: IstioInfo,
}

/// An Istio proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IstioInfo {
    /// The version of Istio that it behaves as.
    pub version: String,
    /// The revision that it connects to; empty is the default one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
}

/// Where a workload runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostInfo {
    /// At least one.
    pub addresses: Vec<Address>,
}

/// Where a workload can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// From where.
    #[serde(rename = "type")]
    pub kind: AddressType,
}

/// From where an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AddressType {
    /// The private network.
    Vpc,
    /// Anywhere.
    Internet,
}

/// The workload itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadInfo {
    /// Beside those of its group.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl WorkloadInfo {
    fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// How a workload takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Which of its addresses the mesh uses.
    #[serde(default)]
    pub connected_over: ConnectedOver,
}

/// Which addresses of a workload the mesh uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConnectedOver {
    /// Those of type VPC.
    #[default]
    Vpc,
    /// Those of type INTERNET.
    Internet,
}

/// What is known of a workload that has registered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// [`RegistrationStatus::AGENT_CONNECTED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// There while an agent is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_agent_connection: Option<ActiveAgentConnection>,
}

impl RegistrationStatus {
    /// Type of the condition that says whether the agent holds its stream. False says nothing about the workload's health.
    pub const AGENT_CONNECTED: &'static str = "AgentConnected";

    /// The condition [`Self::AGENT_CONNECTED`].
    pub fn agent_connected(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == Self::AGENT_CONNECTED)
    }
}

/// The stream that an agent holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveAgentConnection {
    /// Which replica of the plane has it: its pod.
    pub connected_to: String,
}
