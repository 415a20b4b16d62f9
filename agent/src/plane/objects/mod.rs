//! The objects of onboarding, read and written in exactly the shapes that Istio and Tetrate publish, so that they are the same in
//! a folder of YAML, in the embedded store and in Kubernetes.
//!
//! [`WorkloadGroup`] and [`OnboardingPolicy`] are written by people, [`WorkloadAutoRegistration`] and [`WorkloadEntry`] by the
//! plane. Each owns the next: WorkloadGroup, WorkloadAutoRegistration, WorkloadEntry.

mod meta;
mod onboarding_policy;
mod read;
mod registration;
mod selector;
#[cfg(test)]
mod tests;
mod workload_group;

pub use meta::{Condition, ConditionStatus, ObjectKey, ObjectMeta, OwnerReference, Timestamp};
pub use onboarding_policy::{
    Account, AllowRule, AttributeMatcher, AwsKindMatcher, AwsMatcher, Ec2Matcher, EcsMatcher, IssuerUrl, JwtMatcher, NonEmpty,
    OnboardTo, OnboardingPolicySpec, WorkloadMatcher,
};
pub use read::{ONBOARDING_KINDS, Objects, read};
pub use registration::{
    ActiveAgentConnection, Address, AddressType, AgentInfo, ConnectedOver, HostInfo, IstioInfo, Registration, RegistrationSpec,
    RegistrationStatus, Settings, SidecarInfo, WorkloadInfo,
};
pub use selector::{LabelSelector, Operator, Requirement};
pub use workload_group::{
    HEALTH_CHECKS_ENABLED, ReadinessProbe, TemplateMetadata, WorkloadEntrySpec, WorkloadEntryStatus, WorkloadGroupSpec,
};

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Labels and annotations.
pub type Labels = BTreeMap<String, String>;

/// Istio's [WorkloadGroup](https://istio.io/latest/docs/reference/config/networking/workload-group/).
pub type WorkloadGroup = Object<WorkloadGroupSpec>;
/// Istio's [WorkloadEntry](https://istio.io/latest/docs/reference/config/networking/workload-entry/).
pub type WorkloadEntry = Object<WorkloadEntrySpec>;
/// Tetrate's
/// [OnboardingPolicy](https://docs.tetrate.io/service-bridge/refs/onboarding/config/authorization/v1alpha1/policy).
pub type OnboardingPolicy = Object<OnboardingPolicySpec>;
/// Tetrate's WorkloadAutoRegistration (`kubectl get war`).
pub type WorkloadAutoRegistration = Object<RegistrationSpec>;

/// What makes an object of a kind.
pub trait Spec: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `kind`.
    const KIND: &'static str;
    /// Every `apiVersion` that is read. The first one is written.
    const API_VERSIONS: &'static [&'static str];
    /// `status`; [`NoStatus`] where there is none.
    type Status: Clone + Default + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// An object as Kubernetes has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<S: Spec> {
    /// Name, owners, version.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What is.
    pub status: S::Status,
}

/// The status of a kind that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoStatus;

impl<S: Spec> Object<S> {
    /// A new object without status.
    pub fn new(metadata: ObjectMeta, spec: S) -> Self {
        Self { metadata, spec, status: S::Status::default() }
    }

    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        self.metadata.key()
    }

    /// A reference from an object that this one owns; `None` before it was stored, when it has no uid yet.
    pub fn owner_reference(&self) -> Option<OwnerReference> {
        Some(OwnerReference {
            api_version: S::API_VERSIONS.first().copied().unwrap_or_default().to_owned(),
            kind: S::KIND.to_owned(),
            name: self.metadata.name.clone(),
            uid: self.metadata.uid.clone()?,
            controller: Some(true),
            block_owner_deletion: None,
        })
    }
}

impl<S: Spec> Serialize for Object<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let has_status = self.status != S::Status::default();
        let mut object = serializer.serialize_struct("Object", if has_status { 5 } else { 4 })?;
        object.serialize_field("apiVersion", S::API_VERSIONS.first().copied().unwrap_or_default())?;
        object.serialize_field("kind", S::KIND)?;
        object.serialize_field("metadata", &self.metadata)?;
        object.serialize_field("spec", &self.spec)?;
        if has_status {
            object.serialize_field("status", &self.status)?;
        }
        object.end()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, bound = "S: DeserializeOwned, T: DeserializeOwned")]
struct Raw<S, T> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: S,
    status: Option<T>,
}

impl<'de, S: Spec> Deserialize<'de> for Object<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw { api_version, kind, metadata, spec, status } = Raw::<S, S::Status>::deserialize(deserializer)?;
        let wrong = |found: &str, expected: &str| Err(serde::de::Error::custom(format_args!("{found:?}: expected {expected}")));
        if kind != S::KIND {
            return wrong(&kind, S::KIND);
        }
        if !S::API_VERSIONS.contains(&api_version.as_str()) {
            return wrong(&api_version, &S::API_VERSIONS.join(" or "));
        }
        Ok(Self { metadata, spec, status: status.unwrap_or_default() })
    }
}

impl Serialize for NoStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_struct("NoStatus", 0)?.end()
    }
}

/// Whatever an API server writes there is read over.
impl<'de> Deserialize<'de> for NoStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}
