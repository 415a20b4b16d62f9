//! What the task metadata endpoint (version 4) says that the life of a sidecar depends on.
//!
//! <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4.html>. Fields are added there, never
//! taken away: unknown ones are left out.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::lookup_host;

use crate::client;

/// The endpoint is on the same machine.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The task metadata endpoint.
#[derive(Clone, Debug)]
pub(super) struct TaskMetadata {
    /// `ECS_CONTAINER_METADATA_URI_V4`.
    base: Uri,
}

/// How containers of a task are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetworkMode {
    /// An interface of the task's own.
    Awsvpc,
    /// That of the instance.
    Host,
    /// Behind the instance, or nowhere.
    Hidden,
}

/// Our own container.
#[derive(Debug)]
pub(super) struct Own {
    id: String,
    pub(super) mode: NetworkMode,
    /// As the endpoint calls it.
    pub(super) mode_name: String,
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    docker_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    known_status: String,
    #[serde(default)]
    networks: Vec<Network>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(default)]
    network_mode: String,
    #[serde(default, rename = "IPv4Addresses")]
    ipv4_addresses: Vec<String>,
    #[serde(default, rename = "IPv6Addresses")]
    ipv6_addresses: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    containers: Vec<Container>,
}

impl TaskMetadata {
    /// # Errors
    /// When it is no `http` address.
    pub(super) fn new(base: &str) -> Result<Self, String> {
        let wrong = || format!("ECS_CONTAINER_METADATA_URI_V4: {base:?}: expected http://<address>/v4/<id>");
        let base: Uri = base.trim_end_matches('/').parse().map_err(|_| wrong())?;
        if base.scheme_str() != Some("http") || base.host().is_none() {
            return Err(wrong());
        }
        Ok(Self { base })
    }

    /// Our own container.
    pub(super) async fn own(&self) -> Result<Own, String> {
        let container: Container = self.get("").await?;
        let mode_name = container.networks.first().map(|network| network.network_mode.clone()).unwrap_or_default();
        let addresses =
            container.networks.iter().flat_map(|network| network.ipv4_addresses.iter().chain(&network.ipv6_addresses));
        Ok(Own {
            id: container.docker_id,
            mode: match mode_name.as_str() {
                "awsvpc" => NetworkMode::Awsvpc,
                "host" => NetworkMode::Host,
                _ => NetworkMode::Hidden,
            },
            mode_name,
            // In host mode the one address is empty text.
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
        })
    }

    /// Whether the containers of these names, or all but ours when there are none, are there and have stopped.
    pub(super) async fn others_stopped(&self, own: &Own, names: &[String]) -> Result<bool, String> {
        let task: Task = self.get("/task").await?;
        // Pause containers hold the network of the task until its end.
        let is_normal = |container: &&Container| container.r#type.as_deref().is_none_or(|kind| kind == "NORMAL");
        let counts = |container: &&Container| match names {
            [] => container.docker_id != own.id,
            names => names.contains(&container.name),
        };
        let others: Vec<_> = task.containers.iter().filter(is_normal).filter(counts).collect();
        let all_there = names.iter().all(|name| others.iter().any(|container| container.name == *name));
        Ok(!others.is_empty() && all_there && others.iter().all(|container| container.known_status == "STOPPED"))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let named = |reason: &dyn std::fmt::Display| format!("task metadata endpoint: {reason}");
        let (host, port) = (self.base.host().unwrap_or_default(), self.base.port_u16().unwrap_or(80));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses = lookup_host((host, port)).await.map_err(|error| named(&error))?;
        let address = addresses.next().ok_or_else(|| named(&format!("{host} has no address")))?;
        let request = Request::get(format!("{}{path}", self.base.path().trim_end_matches('/')))
            .header(header::HOST, self.base.authority().map_or(host, |authority| authority.as_str()))
            .body(Bytes::new());
        let request = request.map_err(|error| named(&error))?;
        let answer = client::send(address, request, TIMEOUT).await.map_err(|error| named(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(named(&format!("answered {}", answer.status())));
        }
        serde_json::from_slice(answer.body()).map_err(|error| named(&error))
    }
}
