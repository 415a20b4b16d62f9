//! Where a workload can be reached, and where its sidecar listens.
//!
//! | Network | Its own addresses | What others are told |
//! |---|---|---|
//! | `awsvpc` | those of the task's interface | the same |
//! | `host` | the one that leads out of the instance | the same |
//! | `bridge`, `none` | those of the container | `SKIFF_ADVERTISED_ADDRESS`: the container's lead nowhere |
//! | elsewhere | the one that leads out of the machine | the same |
//!
//! `SKIFF_ADVERTISED_ADDRESS` always wins for what others are told, `INSTANCE_IP` for where the sidecar listens.

use std::net::{IpAddr, UdpSocket};

use super::application::Application;
use super::task::{NetworkMode, TaskMetadata};

/// Where a workload is.
pub struct Host {
    /// Where its sidecar listens.
    pub(super) own: Vec<IpAddr>,
    /// Where others reach it.
    pub(super) advertised: Vec<IpAddr>,
    pub(super) application: Application,
}

/// Why a workload cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nobody can reach it there.
    #[error(
        "network mode {0}: others cannot reach the container's address; set SKIFF_ADVERTISED_ADDRESS to the address of the instance and \
         map the ports of the mesh to the same ports of the host"
    )]
    Unreachable(String),
    /// It has none.
    #[error("this workload has no address: set INSTANCE_IP")]
    NoAddress,
    /// Nobody says.
    #[error("{0}")]
    Metadata(String),
}

/// A documentation address: nothing is sent there, it only makes the system choose a source address.
const ANYWHERE: (&str, u16) = ("192.0.2.1", 9);

/// What the environment says about addresses and containers.
#[derive(Clone, Debug, Default)]
pub struct HostSettings {
    /// `INSTANCE_IP`.
    pub own: Vec<IpAddr>,
    /// `SKIFF_ADVERTISED_ADDRESS`.
    pub advertised: Vec<IpAddr>,
    /// `SKIFF_APP_CONTAINERS`.
    pub containers: Vec<String>,
}

impl Host {
    /// Of this machine, or of this task when `metadata` (`ECS_CONTAINER_METADATA_URI_V4`) is given.
    ///
    /// # Errors
    /// When others cannot reach it, or the task's metadata cannot be read.
    pub async fn find(settings: HostSettings, metadata: Option<&str>) -> Result<Self, HostError> {
        let HostSettings { own: given, advertised, containers } = settings;
        let Some(metadata) = metadata else {
            let own = if given.is_empty() { source_address().into_iter().collect() } else { given };
            return Self::new(own, advertised, Application::unknown());
        };
        let metadata = TaskMetadata::new(metadata).map_err(HostError::Metadata)?;
        let task = metadata.own().await.map_err(HostError::Metadata)?;
        if task.mode == NetworkMode::Hidden && advertised.is_empty() {
            return Err(HostError::Unreachable(task.mode_name));
        }
        let own = match task.mode {
            _ if !given.is_empty() => given,
            NetworkMode::Awsvpc | NetworkMode::Hidden if !task.addresses.is_empty() => task.addresses.clone(),
            _ => source_address().into_iter().collect(),
        };
        Self::new(own, advertised, Application::of_task(metadata, task, containers))
    }

    fn new(own: Vec<IpAddr>, advertised: Vec<IpAddr>, application: Application) -> Result<Self, HostError> {
        if own.is_empty() {
            return Err(HostError::NoAddress);
        }
        let advertised = if advertised.is_empty() { own.clone() } else { advertised };
        Ok(Self { own, advertised, application })
    }
}

/// The address that this machine would send from.
pub(crate) fn source_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
