//! What is decided and written down for a workload: whether it may join, its objects, their state.

use std::sync::Arc;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use tonic::Status;

use super::Onboarding;
use crate::onboarding::identity::{JwtIdentity, WorkloadIdentity};
use crate::plane::objects::{
    ActiveAgentConnection, Condition, ConditionStatus, ObjectKey, Registration, RegistrationStatus, WorkloadAutoRegistration,
    WorkloadEntry, WorkloadGroup,
};
use crate::plane::policy::{Mismatch, Rule, Subject, Verdict, evaluate};
use crate::plane::session::Session;
use crate::plane::store::{ControlPlane, Expected, MeshToken, StoreError};
use crate::plane::workload::{entry_object, merged_labels, registration_object};

/// Annotation of a WorkloadAutoRegistration: counts the streams of its workload, over all replicas.
const CONNECTION: &str = "onboarding.skiff/connection";
/// How often a write is tried that others come before.
const ATTEMPTS: usize = 8;
/// Condition of a WorkloadEntry.
const HEALTHY: &str = "Healthy";
/// Characters of an error that a workload gives for its health.
const MAX_HEALTH_ERROR: usize = 256;

/// Why a condition `AgentConnected` is what it is.
pub(super) mod reason {
    /// Tetrate's word.
    pub(in super::super) const ESTABLISHED: &str = "ConnectionEstablished";
    /// The stream ended without the workload having unregistered; it may serve nevertheless.
    pub(in super::super) const LOST: &str = "ConnectionLost";
    /// The workload has left; its registration goes after the propagation delay.
    pub(in super::super) const UNREGISTERED: &str = "WorkloadUnregistered";
}

/// Why a workload may not join.
#[derive(Clone, Debug)]
pub(super) enum Denial {
    /// There is no such group.
    NoGroup,
    /// No rule admits it.
    Policy(Vec<Mismatch>),
    /// The store does not say.
    Store(StoreError),
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoGroup => f.write_str("the WorkloadGroup does not exist"),
            Self::Policy(rules) if rules.is_empty() => f.write_str("no OnboardingPolicy in the namespace"),
            Self::Policy(rules) => {
                let shown: Vec<_> =
                    rules.iter().take(4).map(|rule| format!("{}: {}", rule.rule, rule.reasons.join(", "))).collect();
                f.write_str(&shown.join("; "))
            }
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl Denial {
    /// What the caller is told: not whether a group exists.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::NoGroup | Self::Policy(_) => Status::permission_denied("Not authorized by OnboardingPolicy"),
            Self::Store(error) => unavailable(error),
        }
    }
}

/// The caller is to try again.
pub(super) fn unavailable(error: &StoreError) -> Status {
    tracing::warn!(%error, "the plane's store does not do what is needed");
    Status::unavailable("the plane's store is not available")
}

/// A workload whose objects are written.
pub(super) struct Admitted {
    pub(super) group: Arc<WorkloadGroup>,
    pub(super) registration: WorkloadAutoRegistration,
    /// Which stream of the workload this is.
    pub(super) connection: u64,
}

impl Onboarding {
    /// Whether `subject` may join the group: the group, and the rule that says so.
    pub(super) async fn decide(&self, subject: &Subject, group: &ObjectKey) -> Result<(Arc<WorkloadGroup>, Rule), Denial> {
        let found = self.store.workload_group(group).await.map_err(Denial::Store)?.ok_or(Denial::NoGroup)?;
        let policies = self.store.policies(&group.namespace).await.map_err(Denial::Store)?;
        match evaluate(subject, &found, &policies) {
            Verdict::Admitted(rule) => Ok((found, rule)),
            Verdict::Denied(rules) => Err(Denial::Policy(rules)),
        }
    }

    /// Writes the registration of a workload as that of its newest stream.
    pub(super) async fn admit(
        &self,
        session: &Session,
        group: Arc<WorkloadGroup>,
        registration: &Registration,
    ) -> Result<Admitted, Status> {
        for _ in 0..ATTEMPTS {
            let existing = self.store.registration(&session.name).await.map_err(|error| unavailable(&error))?;
            if let Some(existing) = &existing {
                check_owner(existing, session)?;
            }
            // A registration that was removed and is made again counts on.
            let last = existing.as_ref().map_or(0, connection_of).max(self.streams.connection(&session.name));
            let connection = last.saturating_add(1);
            let mut object = registration_object(existing, session, &group, registration.clone());
            object.metadata.annotations.insert(CONNECTION.to_owned(), connection.to_string());
            match self.store.put_registration(object).await {
                Ok(registration) => return Ok(Admitted { group, registration, connection }),
                Err(error) if is_race(&error) => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(Status::aborted("the registration is being changed by others"))
    }

    /// Writes the entry of a workload that was admitted; its locality.
    pub(super) async fn enter(&self, admitted: &Admitted, placement_verified: bool) -> Result<String, Status> {
        let name = admitted.registration.key();
        let owner = admitted.registration.owner_reference();
        for _ in 0..ATTEMPTS {
            let existing = self.store.entry(&name).await.map_err(|error| unavailable(&error))?;
            let foreign = |entry: &WorkloadEntry| !owner.as_ref().is_some_and(|owner| entry.metadata.is_owned_by(owner));
            if existing.as_ref().is_some_and(foreign) {
                return Err(Status::already_exists(format!("WorkloadEntry {name} belongs to somebody else")));
            }
            let entry = entry_object(existing.clone(), &admitted.registration, &admitted.group, placement_verified);
            let entry = entry.map_err(Status::invalid_argument)?;
            if existing.as_ref() == Some(&entry) {
                return Ok(entry.spec.locality);
            }
            match self.store.put_entry(entry).await {
                Ok(entry) => return Ok(entry.spec.locality),
                // A file of the plane's folder may have the name.
                Err(error @ StoreError::Exists(_)) if existing.is_none() && self.inputs_have(&name) => {
                    return Err(Status::already_exists(format!("WorkloadEntry {error}")));
                }
                Err(error) if is_race(&error) => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(Status::aborted("the entry is being changed by others"))
    }

    fn inputs_have(&self, name: &ObjectKey) -> bool {
        self.inputs.as_ref().is_some_and(|store| store.inputs().entries.contains(name))
    }

    /// Notes whether the agent is connected, if the stream that this is about still is the newest one.
    pub(super) async fn note_connection(
        &self,
        name: &ObjectKey,
        connection: u64,
        connected: bool,
        why: &str,
    ) -> Result<Option<WorkloadAutoRegistration>, StoreError> {
        for _ in 0..ATTEMPTS {
            let Some(mut object) = self.store.registration(name).await? else { return Ok(None) };
            if connection_of(&object) != connection {
                return Ok(None);
            }
            let condition = Condition {
                kind: RegistrationStatus::AGENT_CONNECTED.to_owned(),
                status: if connected { ConditionStatus::True } else { ConditionStatus::False },
                reason: why.to_owned(),
                message: String::new(),
                last_transition_time: Some(self.clock.now().into()),
                last_probe_time: None,
            };
            Condition::set(&mut object.status.conditions, condition);
            object.status.observed_generation = object.metadata.generation;
            object.status.active_agent_connection =
                connected.then(|| ActiveAgentConnection { connected_to: self.settings.instance.clone() });
            match self.store.put_registration_status(object).await {
                Err(error) if is_race(&error) => {}
                written => return written.map(Some),
            }
        }
        Err(StoreError::Conflict(name.clone()))
    }

    /// Notes what a workload says of its health, where no istiod is told by its sidecar.
    pub(super) async fn note_health(&self, name: &ObjectKey, error: &str) -> Result<(), StoreError> {
        if self.store.control_plane() == ControlPlane::Istiod {
            return Ok(());
        }
        let status = if error.is_empty() { ConditionStatus::True } else { ConditionStatus::False };
        for _ in 0..ATTEMPTS {
            let Some(mut entry) = self.store.entry(name).await? else { return Ok(()) };
            let now = Some(self.clock.now().into());
            let condition = Condition {
                kind: HEALTHY.to_owned(),
                status,
                reason: String::new(),
                message: error.chars().take(MAX_HEALTH_ERROR).collect(),
                last_transition_time: now,
                last_probe_time: None,
            };
            let before = entry.status.clone();
            Condition::set(&mut entry.status.conditions, condition);
            if entry.status == before {
                return Ok(());
            }
            match self.store.put_entry_status(entry).await {
                Err(error) if is_race(&error) => {}
                written => return written.map(drop),
            }
        }
        Err(StoreError::Conflict(name.clone()))
    }

    /// A token for the mesh, counted.
    pub(super) async fn mesh_token(&self, group: &WorkloadGroup) -> Result<MeshToken, StoreError> {
        let token = self.store.mesh_token(&group.metadata.namespace, group.spec.service_account()).await?;
        self.numbers.mesh_tokens.increment(1);
        Ok(token)
    }

    /// Removes the objects of a workload whatever their version.
    pub(super) async fn remove(&self, name: &ObjectKey) -> Result<bool, StoreError> {
        // The entry first: it is what others send requests to, and Kubernetes removes what is owned only later.
        let entry = self.store.delete_entry(name, &Expected::any()).await?;
        Ok(self.store.delete_registration(name, &Expected::any()).await? || entry)
    }

    /// What the sidecar of a workload needs to start.
    pub(super) fn boot(&self, admitted: &Admitted, locality: String, mesh_token: &MeshToken) -> proto::Boot {
        let mesh = &self.settings.mesh;
        let Admitted { group, registration, .. } = admitted;
        let mut proxy_config = (**mesh.proxy_config.borrow()).clone();
        if let Some(probe) = &group.spec.probe {
            proxy_config.insert("readinessProbe".to_owned(), probe.as_json().clone());
        }
        let proxy_config =
            if proxy_config.is_empty() { String::new() } else { serde_json::Value::Object(proxy_config).to_string() };
        proto::Boot {
            name: registration.metadata.name.clone(),
            namespace: registration.metadata.namespace.clone(),
            labels: merged_labels(group, &registration.spec.registration).into_iter().collect(),
            service_account: group.spec.service_account().to_owned(),
            trust_domain: mesh.trust_domain.to_string(),
            cluster_id: mesh.cluster_id.clone(),
            network: group.spec.template.network.clone(),
            mesh_id: mesh.mesh_id.clone(),
            locality,
            root_certificates: mesh.roots.borrow().to_string(),
            ca_address: mesh.ca_address.clone(),
            discovery_address: mesh.discovery_address.clone(),
            control_plane_san: mesh.control_plane_san.clone(),
            proxy_config,
            mesh_token: Some(token(mesh_token)),
            heartbeat_interval: prost_types::Duration::try_from(self.settings.heartbeat_interval).ok(),
            propagation_delay: prost_types::Duration::try_from(self.settings.propagation_delay).ok(),
        }
    }
}

/// A token for the mesh, as it is sent.
pub(super) fn token(token: &MeshToken) -> proto::Token {
    proto::Token { token: token.token.expose().to_owned(), expires_at: Some(token.expires_at.into()) }
}

/// Which stream of its workload a registration was last written for.
pub(super) fn connection_of(registration: &WorkloadAutoRegistration) -> u64 {
    registration.metadata.annotations.get(CONNECTION).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether a workload says that it is healthy, where no istiod knows.
pub(super) fn is_healthy(entry: &WorkloadEntry) -> bool {
    entry.status.conditions.iter().any(|condition| condition.kind == HEALTHY && condition.status == ConditionStatus::True)
}

/// Names hold what users choose, so that two identities may have the same.
pub(super) fn check_owner(registration: &WorkloadAutoRegistration, session: &Session) -> Result<(), Status> {
    let same = match (&registration.spec.identity, &session.subject.identity) {
        // Attributes of a token may change.
        (WorkloadIdentity::Jwt(one), WorkloadIdentity::Jwt(other)) => {
            let who = |jwt: &JwtIdentity| (jwt.issuer.clone(), jwt.subject.clone());
            who(one) == who(other)
        }
        (one, other) => one == other,
    };
    if same { Ok(()) } else { Err(Status::already_exists(format!("{} is the name of another workload", session.name))) }
}

/// Whether reading again and writing again may help.
fn is_race(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_))
}
