//! What a workload may say of itself when it registers, and the objects that come of it.

use std::collections::HashMap;
use std::net::IpAddr;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;

use super::objects::{
    Address, AddressType, AgentInfo, ConnectedOver, HEALTH_CHECKS_ENABLED, HostInfo, IstioInfo, Labels, ObjectMeta, Registration,
    RegistrationSpec, Settings, SidecarInfo, WorkloadAutoRegistration, WorkloadEntry, WorkloadEntrySpec, WorkloadGroup,
    WorkloadInfo,
};
use super::session::Session;
use crate::onboarding::identity::WorkloadIdentity;

const MAX_VERSION: usize = 64;
const MAX_REVISION: usize = 56;
const MAX_ADDRESSES: usize = 16;
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 63;
const MAX_LABEL_PREFIX: usize = 253;

/// Where a workload is connected from, and what is known of its addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// The other end of its connection.
    pub(super) peer: IpAddr,
    /// Its addresses, where AWS was asked for them.
    pub(super) verified: Option<&'a [IpAddr]>,
}

/// Reads a registration. The error says which field is wrong, and is for the agent.
pub(super) fn read(message: proto::Registration, origin: Origin<'_>) -> Result<Registration, String> {
    let connected_over = match message.connected_over() {
        proto::ConnectedOver::Internet => ConnectedOver::Internet,
        proto::ConnectedOver::Unspecified | proto::ConnectedOver::Vpc => ConnectedOver::Vpc,
    };
    let addresses = addresses(&message.addresses, origin)?;
    let registration = Registration {
        agent: AgentInfo { version: version("agent_version", message.agent_version)? },
        sidecar: SidecarInfo {
            istio: IstioInfo {
                version: version("istio_version", message.istio_version)?,
                revision: revision(message.istio_revision)?,
            },
        },
        host: HostInfo { addresses },
        workload: WorkloadInfo { labels: labels(message.labels)? },
        settings: Settings { connected_over },
    };
    address_in_use(&registration)?;
    Ok(registration)
}

fn version(field: &str, text: String) -> Result<String, String> {
    let good = (1..=MAX_VERSION).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(text) } else { Err(format!("{field} {text:?}: expected 1 to {MAX_VERSION} visible ASCII characters")) }
}

/// Tetrate's rule: empty, or `^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?$`.
pub(super) fn is_revision(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= MAX_REVISION
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn revision(text: String) -> Result<String, String> {
    let good = text.is_empty() || is_revision(&text);
    if good { Ok(text) } else { Err(format!("istio_revision {text:?}: expected lower-case letters, digits and dashes")) }
}

fn addresses(messages: &[proto::Address], origin: Origin<'_>) -> Result<Vec<Address>, String> {
    if !(1..=MAX_ADDRESSES).contains(&messages.len()) {
        return Err(format!("addresses: expected 1 to {MAX_ADDRESSES}, found {}", messages.len()));
    }
    messages.iter().enumerate().map(|(index, message)| address(message, origin, index)).collect()
}

fn address(message: &proto::Address, origin: Origin<'_>, index: usize) -> Result<Address, String> {
    let wrong = |reason: &str| format!("addresses[{index}] {:?}: {reason}", message.ip);
    let ip: IpAddr = message.ip.parse().map_err(|_| wrong("expected an IP address"))?;
    let ip = ip.to_canonical();
    let kind = match message.r#type() {
        proto::AddressType::Vpc => AddressType::Vpc,
        proto::AddressType::Internet => AddressType::Internet,
        proto::AddressType::Unspecified => return Err(wrong("expected a type, VPC or INTERNET")),
    };
    // Requests of others go there: not to themselves, and not to the metadata service of their host.
    let on_one_machine = ip.is_loopback() && origin.peer.to_canonical().is_loopback();
    if !on_one_machine && !is_reachable(ip) {
        return Err(wrong("others cannot reach it"));
    }
    match origin.verified {
        Some(verified) if kind == AddressType::Vpc && !verified.contains(&ip) => {
            Err(wrong("AWS says that the workload has no network interface with it"))
        }
        // AWS does not say which public address a task has, so it has to come from there.
        Some(_) if kind == AddressType::Internet && ip != origin.peer.to_canonical() => {
            Err(wrong("expected the address that the connection comes from"))
        }
        _ => Ok(Address { ip, kind }),
    }
}

fn is_reachable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

/// The address that the mesh sends requests to.
fn address_in_use(registration: &Registration) -> Result<IpAddr, String> {
    let (wanted, name) = match registration.settings.connected_over {
        ConnectedOver::Vpc => (AddressType::Vpc, "VPC"),
        ConnectedOver::Internet => (AddressType::Internet, "INTERNET"),
    };
    let found = registration.host.addresses.iter().find(|address| address.kind == wanted);
    found.map(|address| address.ip).ok_or_else(|| format!("addresses: none of type {name}, over which it is connected"))
}

fn labels(labels: HashMap<String, String>) -> Result<Labels, String> {
    if labels.len() > MAX_LABELS {
        return Err(format!("labels: expected at most {MAX_LABELS}, found {}", labels.len()));
    }
    // In a stable order, so that it is always the same one that is named.
    let labels: Labels = labels.into_iter().collect();
    for (key, value) in &labels {
        if !is_label_key(key) {
            return Err(format!("labels: {key:?} is no key of a Kubernetes label"));
        }
        if is_reserved(key) {
            return Err(format!("labels: {key:?} is not for a workload to set"));
        }
        if !value.is_empty() && !is_label_name(value) {
            return Err(format!("labels: {key}: {value:?} is no value of a Kubernetes label"));
        }
    }
    Ok(labels)
}

/// What the mesh itself reads: a workload could turn off mutual TLS for itself, or move into another locality or network.
fn is_reserved(key: &str) -> bool {
    const OWNED: [&str; 3] = ["istio.io", "kubernetes.io", "k8s.io"];
    let Some((prefix, _)) = key.split_once('/') else { return key == "istio-locality" };
    // The names of an application that everybody may give.
    prefix != "app.kubernetes.io"
        && OWNED.iter().any(|owned| prefix.strip_suffix(owned).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => prefix.len() <= MAX_LABEL_PREFIX && prefix.split('.').all(is_dns_label) && is_label_name(name),
        None => is_label_name(key),
    }
}

fn is_dns_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_label_name(name: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    (1..=MAX_LABEL).contains(&bytes.len())
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The labels of the group, and of those that the workload asked for what does not collide with them.
pub(super) fn merged_labels(group: &WorkloadGroup, registration: &Registration) -> Labels {
    let mut labels = registration.workload.labels.clone();
    let of_metadata = group.spec.metadata.as_ref().map(|metadata| &metadata.labels);
    for own in of_metadata.into_iter().chain([&group.spec.template.labels]) {
        labels.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    labels
}

/// The registration of a workload: `existing`, or a new one, with what it says now.
pub(super) fn registration_object(
    existing: Option<WorkloadAutoRegistration>,
    session: &Session,
    group: &WorkloadGroup,
    registration: Registration,
) -> WorkloadAutoRegistration {
    let spec = RegistrationSpec { identity: session.subject.identity.clone(), registration };
    let mut object = match existing {
        Some(existing) => WorkloadAutoRegistration { spec, ..existing },
        None => WorkloadAutoRegistration::new(ObjectMeta::new(&session.name), spec),
    };
    object.metadata.owner_references = group.owner_reference().into_iter().collect();
    object
}

/// The entry of a workload: `existing`, or a new one, with what the group and the registration say now.
pub(super) fn entry_object(
    existing: Option<WorkloadEntry>,
    owner: &WorkloadAutoRegistration,
    group: &WorkloadGroup,
    placement_verified: bool,
) -> Result<WorkloadEntry, String> {
    let RegistrationSpec { identity, registration } = &owner.spec;
    let template = &group.spec.template;
    let spec = WorkloadEntrySpec {
        address: address_in_use(registration)?.to_string(),
        labels: merged_labels(group, registration),
        locality: locality(&template.locality, identity, placement_verified),
        service_account: group.spec.service_account().to_owned(),
        ..template.clone()
    };
    let mut object = match existing {
        Some(existing) => WorkloadEntry { spec, ..existing },
        None => WorkloadEntry::new(ObjectMeta::new(&owner.key()), spec),
    };
    if let Some(of_group) = &group.spec.metadata {
        object.metadata.labels.clone_from(&of_group.labels);
        object.metadata.annotations.extend(of_group.annotations.clone());
    }
    object.metadata.annotations.insert(HEALTH_CHECKS_ENABLED.to_owned(), "true".to_owned());
    object.metadata.owner_references = owner.owner_reference().into_iter().collect();
    Ok(object)
}

/// The group's, else where AWS says that the workload runs.
fn locality(of_group: &str, identity: &WorkloadIdentity, placement_verified: bool) -> String {
    match identity {
        WorkloadIdentity::Aws(aws) if of_group.is_empty() && placement_verified => format!("{}/{}", aws.region, aws.zone),
        _ => of_group.to_owned(),
    }
}

#[cfg(test)]
mod tests;
