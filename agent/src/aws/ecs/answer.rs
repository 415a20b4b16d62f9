//! What ECS says, as far as it is of use. Fields that are missing are empty, which satisfies no rule.

use std::net::IpAddr;

use serde::Deserialize;

use crate::aws::arn::{TaskArn, cluster_name};
use crate::aws::verifier::CallerIdentity;

#[derive(Deserialize)]
pub(super) struct DescribeTasks {
    #[serde(default)]
    pub(super) tasks: Vec<Task>,
}

/// A task.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct Task {
    pub(super) task_arn: String,
    pub(super) cluster_arn: String,
    pub(super) task_definition_arn: String,
    pub(super) last_status: String,
    pub(super) desired_status: String,
    pub(super) launch_type: String,
    pub(super) availability_zone: String,
    pub(super) overrides: Overrides,
    attachments: Vec<Attachment>,
    containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Overrides {
    pub(super) task_role_arn: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    network_interfaces: Vec<Interface>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Interface {
    private_ipv4_address: String,
    ipv6_address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Attachment {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    details: Vec<Detail>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DescribeTaskDefinition {
    pub(super) task_definition: Definition,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Definition {
    pub(super) task_role_arn: Option<String>,
}

impl Task {
    /// Whether this is the task that was asked for.
    pub(super) fn is(&self, caller: &CallerIdentity, cluster: &str) -> bool {
        let Ok(arn) = self.task_arn.parse::<TaskArn>() else { return false };
        arn.region == caller.region
            && arn.account == caller.account
            && arn.task_id == caller.session
            && arn.cluster.is_none_or(|own| own == cluster)
            && cluster_name(&self.cluster_arn).is_ok_and(|own| own == cluster)
    }

    /// Addresses of its network interfaces. IPv6 is with the containers alone; they are there a little later than the attachment.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        // It has been both, with the years.
        let is_interface = |kind: &str| matches!(kind, "ElasticNetworkInterface" | "eni");
        let is_there = |status: &str| !matches!(status, "DETACHED" | "DELETED");
        let interfaces = self.attachments.iter().filter(|own| is_interface(&own.kind) && is_there(&own.status));
        let details = interfaces.flat_map(|interface| &interface.details);
        let attached = details.filter(|detail| detail.name == "privateIPv4Address").map(|detail| &detail.value);
        let of_containers = self.containers.iter().flat_map(|container| &container.network_interfaces);
        let of_containers = of_containers.flat_map(|interface| [&interface.private_ipv4_address, &interface.ipv6_address]);
        let mut addresses: Vec<IpAddr> = attached.chain(of_containers).filter_map(|text| text.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}
