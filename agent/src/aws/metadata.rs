//! The task metadata endpoint of ECS, version 4: where the task runs, its addresses, and what its other containers do.
//!
//! AWS adds fields and never takes one away; what is not known here is ignored.
//!
//! <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4.html>

use std::net::IpAddr;

use bytes::Bytes;
use http::Request;
use serde::{Deserialize, Deserializer};

use super::arn::{ArnError, TaskArn, cluster_name};
use super::{AskError, ask, variable};
use crate::fetch::{Client, Endpoint, quiet};

/// Names the endpoint; that it is set says that this is a task.
pub const ENDPOINT_VARIABLE: &str = "ECS_CONTAINER_METADATA_URI_V4";

/// Why the endpoint says nothing.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The variable is not set or no URL.
    #[error("{ENDPOINT_VARIABLE}: {0}")]
    Variable(String),
    /// No answer, or no.
    #[error("task metadata: {0}")]
    Ask(#[from] AskError),
    /// Not the JSON that was expected.
    #[error("task metadata: {0}")]
    Json(String),
    /// A name that is none.
    #[error("task metadata: {0}")]
    Name(#[from] ArnError),
    /// Two things that cannot both be true.
    #[error("task metadata: the task is in the cluster {0:?}, its ARN says {1:?}")]
    Cluster(String, String),
}

/// Who provides what a task runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchType {
    /// An EC2 instance of the account.
    Ec2,
    /// AWS.
    Fargate,
    /// A machine outside of AWS (ECS Anywhere).
    External,
}

impl LaunchType {
    /// From AWS's word for it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "EC2" | "MANAGED_INSTANCES" => Some(Self::Ec2),
            "FARGATE" => Some(Self::Fargate),
            "EXTERNAL" => Some(Self::External),
            _ => None,
        }
    }

    /// AWS's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "EC2",
            Self::Fargate => "FARGATE",
            Self::External => "EXTERNAL",
        }
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskMetadata {
    /// Its name, which holds region, account and id.
    pub arn: TaskArn,
    /// The cluster's name.
    pub cluster: String,
    /// Name of its definition.
    pub family: String,
    /// Version of its definition.
    pub revision: String,
    /// The service that started it; not known on Fargate.
    pub service: Option<String>,
    /// Not known outside of AWS and to old platforms.
    pub zone: Option<String>,
    /// Not known to old platforms.
    pub launch_type: Option<LaunchType>,
    /// All containers that there are, ours included.
    pub containers: Vec<ContainerMetadata>,
}

/// A container of the task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerMetadata {
    /// Its id.
    pub docker_id: String,
    /// Its name in the task's definition.
    #[serde(default)]
    pub name: String,
    /// `NORMAL` for those of the task's definition.
    #[serde(default, rename = "Type")]
    pub kind: String,
    /// What ECS wants it to be, such as `STOPPED`.
    #[serde(default)]
    pub desired_status: String,
    /// What it is.
    #[serde(default)]
    pub known_status: String,
    /// Its networks.
    #[serde(default, deserialize_with = "or_default")]
    networks: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Network {
    #[serde(default, rename = "NetworkMode")]
    mode: String,
    #[serde(default, rename = "IPv4Addresses", deserialize_with = "or_default")]
    ipv4: Vec<String>,
    #[serde(default, rename = "IPv6Addresses", deserialize_with = "or_default")]
    ipv6: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawTask {
    cluster: String,
    #[serde(rename = "TaskARN")]
    task_arn: String,
    #[serde(default)]
    family: String,
    #[serde(default)]
    revision: String,
    service_name: Option<String>,
    availability_zone: Option<String>,
    launch_type: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<ContainerMetadata>,
}

/// `null` is as good as nothing.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl TaskMetadata {
    /// From the answer of `/task`.
    ///
    /// # Errors
    /// When it does not say which task this is.
    pub fn parse(json: &[u8]) -> Result<Self, MetadataError> {
        let raw: RawTask = serde_json::from_slice(json).map_err(|error| MetadataError::Json(quiet(&error)))?;
        let arn: TaskArn = raw.task_arn.parse()?;
        let cluster = cluster_name(&raw.cluster)?.to_owned();
        if let Some(other) = arn.cluster.as_ref().filter(|other| **other != cluster) {
            return Err(MetadataError::Cluster(cluster, other.clone()));
        }
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            arn,
            cluster,
            family: raw.family,
            revision: raw.revision,
            service: some(raw.service_name),
            zone: some(raw.availability_zone),
            launch_type: raw.launch_type.as_deref().and_then(LaunchType::parse),
            containers: raw.containers,
        })
    }

    /// The application: the containers of the task's definition but for `own`. Those that ECS adds (`CNI_PAUSE`, Service Connect)
    /// are none.
    pub fn applications<'a>(&'a self, own: &'a ContainerMetadata) -> impl Iterator<Item = &'a ContainerMetadata> {
        self.containers.iter().filter(|container| container.kind == "NORMAL" && container.docker_id != own.docker_id)
    }
}

impl ContainerMetadata {
    /// From the answer of the endpoint itself, which is about the container that asks.
    ///
    /// # Errors
    /// When it is not about a container.
    pub fn parse(json: &[u8]) -> Result<Self, MetadataError> {
        serde_json::from_slice(json).map_err(|error| MetadataError::Json(quiet(&error)))
    }

    /// Its addresses, IPv4 first. In host mode there are none: they are the machine's, which ECS does not say.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = |pick: fn(&Network) -> &Vec<String>| self.networks.iter().flat_map(pick).filter_map(|text| text.parse().ok());
        all(|network| &network.ipv4).chain(all(|network| &network.ipv6)).collect()
    }

    /// `awsvpc`, `bridge`, `host` or `none`: of the first network.
    pub fn network_mode(&self) -> Option<&str> {
        self.networks.first().map(|network| network.mode.as_str()).filter(|mode| !mode.is_empty())
    }

    /// Whether it has ended and ECS does not mean to start it again.
    pub fn is_stopped(&self) -> bool {
        self.known_status == "STOPPED" && self.desired_status == "STOPPED"
    }
}

/// The endpoint. It allows some 40 requests a second for the whole machine: once a second is enough for anybody.
#[derive(Clone, Debug)]
pub struct MetadataClient {
    client: Client,
    endpoint: Endpoint,
}

impl MetadataClient {
    /// The endpoint of the task that this is; `None` when it is none.
    ///
    /// # Errors
    /// When the variable is no URL of a server.
    pub fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
        client: &Client,
    ) -> Result<Option<Self>, MetadataError> {
        let Some(url) = variable(environment, ENDPOINT_VARIABLE) else { return Ok(None) };
        let endpoint = url.parse().map_err(|error| MetadataError::Variable(format!("{url:?}: {error}")))?;
        Ok(Some(Self { client: client.clone(), endpoint }))
    }

    /// The task.
    ///
    /// # Errors
    /// When the endpoint does not answer in three tries, or with something else.
    pub async fn task(&self) -> Result<TaskMetadata, MetadataError> {
        TaskMetadata::parse(&self.get("/task").await?)
    }

    /// The container that asks: ours.
    ///
    /// # Errors
    /// When the endpoint does not answer in three tries, or with something else.
    pub async fn container(&self) -> Result<ContainerMetadata, MetadataError> {
        ContainerMetadata::parse(&self.get("").await?)
    }

    async fn get(&self, what: &str) -> Result<Bytes, MetadataError> {
        let path = format!("{}{what}", self.endpoint.path().trim_end_matches('/'));
        let request = Request::get(if path.is_empty() { "/" } else { &path }).body(Bytes::new());
        let request = request.map_err(|error| MetadataError::Variable(error.to_string()))?;
        Ok(ask(&self.client, &self.endpoint, &request).await?)
    }
}

#[cfg(test)]
mod tests;
