//! Where the plane's objects are: [`Store`], implemented by an embedded database beside a folder of YAML, and by Kubernetes.
//!
//! Writing is optimistic: who changes an object shows the version that it has read, and starts over on [`StoreError::Conflict`].
//! Every method may be called by many tasks at once and every replica of the plane; none waits longer than a few seconds.

mod embedded;
mod kubernetes;
#[cfg(test)]
pub(crate) mod suite;
mod writer;

pub use embedded::EmbeddedStore;
pub use kubernetes::{IstioMesh, KubernetesOptions, KubernetesStore, MeshSource};

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::objects::{ObjectKey, OnboardingPolicy, WorkloadAutoRegistration, WorkloadEntry, WorkloadGroup};
use crate::identity::Token;

/// The objects of a plane.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Who tells workloads of each other.
    fn control_plane(&self) -> ControlPlane;

    /// Whether it is for this replica to remove what has ended; one at a time is told so.
    fn collects(&self) -> bool {
        true
    }

    /// A group, or `None`.
    async fn workload_group(&self, key: &ObjectKey) -> Result<Option<Arc<WorkloadGroup>>, StoreError>;

    /// Every policy of a namespace.
    async fn policies(&self, namespace: &str) -> Result<Vec<Arc<OnboardingPolicy>>, StoreError>;

    /// A token with which a workload gets a certificate for `service_account` in `namespace` and configuration.
    /// [`StoreError::NotFound`] when there is no such account.
    async fn mesh_token(&self, namespace: &str, service_account: &str) -> Result<MeshToken, StoreError>;

    /// A registration, or `None`.
    async fn registration(&self, key: &ObjectKey) -> Result<Option<WorkloadAutoRegistration>, StoreError>;

    /// All registrations, of one namespace or of all, by namespace and name.
    async fn registrations(&self, namespace: Option<&str>) -> Result<Vec<WorkloadAutoRegistration>, StoreError>;

    /// Makes a registration (`resource_version` is `None`) or replaces metadata and spec of the one with this version, and
    /// returns what is stored then. The status stays as it is.
    async fn put_registration(&self, registration: WorkloadAutoRegistration) -> Result<WorkloadAutoRegistration, StoreError>;

    /// Replaces the status of the registration with this version.
    async fn put_registration_status(
        &self,
        registration: WorkloadAutoRegistration,
    ) -> Result<WorkloadAutoRegistration, StoreError>;

    /// Removes a registration, and with it the entry that it owns; false when there was none. With [`Expected`] it is removed
    /// only if it is that one.
    async fn delete_registration(&self, key: &ObjectKey, expected: &Expected) -> Result<bool, StoreError>;

    /// An entry, or `None`.
    async fn entry(&self, key: &ObjectKey) -> Result<Option<WorkloadEntry>, StoreError>;

    /// All entries that a registration owns, of one namespace or of all, by namespace and name.
    async fn entries(&self, namespace: Option<&str>) -> Result<Vec<WorkloadEntry>, StoreError>;

    /// As [`Self::put_registration`].
    async fn put_entry(&self, entry: WorkloadEntry) -> Result<WorkloadEntry, StoreError>;

    /// As [`Self::put_registration_status`]. Only called when [`Self::control_plane`] is the plane: istiod writes it otherwise.
    async fn put_entry_status(&self, entry: WorkloadEntry) -> Result<WorkloadEntry, StoreError>;

    /// As [`Self::delete_registration`].
    async fn delete_entry(&self, key: &ObjectKey, expected: &Expected) -> Result<bool, StoreError>;

    /// Changes when groups, policies, registrations or entries may have changed, by whomever.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Who tells workloads of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// The plane itself sends Istio YAML, and the entries with it.
    Plane,
    /// istiod. It hears of a workload's health from its sidecar, and notes in the entry's annotations
    /// [`CONNECTED_AT`] and [`DISCONNECTED_AT`] whether it is connected.
    Istiod,
}

/// Annotation of istiod: since when the sidecar of an entry is connected.
pub const CONNECTED_AT: &str = "istio.io/connectedAt";
/// Annotation of istiod: since when the sidecar of an entry is no longer connected.
pub const DISCONNECTED_AT: &str = "istio.io/disconnectedAt";

/// Which object is meant, beside its name. Empty is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Of the object.
    pub uid: Option<String>,
    /// Of the object.
    pub resource_version: Option<String>,
}

impl Expected {
    /// Whatever has the name.
    pub fn any() -> Self {
        Self::default()
    }

    /// Just this version of just this object.
    pub fn version_of(metadata: &super::objects::ObjectMeta) -> Self {
        Self { uid: metadata.uid.clone(), resource_version: metadata.resource_version.clone() }
    }
}

/// A token for the certificate authority and istiod.
#[derive(Clone, Debug)]
pub struct MeshToken {
    /// The token.
    pub token: Token,
    /// When it ends.
    pub expires_at: SystemTime,
}

/// Why a store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has changed the object: read it again.
    #[error("{0} has changed meanwhile")]
    Conflict(ObjectKey),
    /// It was to be made, and is there.
    #[error("{0} exists")]
    Exists(ObjectKey),
    /// It was to be changed, and is not there.
    #[error("{0} does not exist")]
    NotFound(ObjectKey),
    /// The store takes no such object, or does not let us.
    #[error("{0}")]
    Refused(String),
    /// The store cannot be reached or written; another try may help.
    #[error("{0}")]
    Unavailable(String),
}
