//! Endpoints of clusters.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::endpoint::v3 as pb;
use skiff_proto::google::protobuf::{Struct, value::Kind};
use skiff_proxy::config::{
    AssignmentPolicy, ClusterLoadAssignment, Endpoint, EndpointAddress, EndpointHealthCheck, Fraction, HealthStatus, LbValue,
    Locality, LocalityEndpoints, Workload,
};

use super::basic;
use super::outcome::{At, Outcome, each, invalid, maybe, required};

/// Whether endpoints may be named instead of addressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Allowed,
    Refused,
}

pub(super) fn load_assignment(message: &pb::ClusterLoadAssignment, names: Names) -> Outcome<ClusterLoadAssignment> {
    let localities = each(&message.endpoints, "endpoints", |locality| locality_endpoints(locality, names))?;
    let policy = maybe(message.policy.as_ref(), "policy", assignment_policy)?.unwrap_or_default();
    Ok(ClusterLoadAssignment { localities, policy })
}

fn assignment_policy(message: &pb::cluster_load_assignment::Policy) -> Outcome<AssignmentPolicy> {
    // Envoy, too, takes no more than one category.
    let drop_overload = match message.drop_overloads.as_slice() {
        [] => Fraction::NONE,
        [only] => maybe(only.drop_percentage.as_ref(), "drop_overloads[0].drop_percentage", basic::fractional_percent)?
            .unwrap_or(Fraction::NONE),
        _ => return invalid("expected no more than one").at("drop_overloads"),
    };
    let overprovisioning_percent = match basic::count(message.overprovisioning_factor.as_ref(), 140) {
        0 => return invalid("expected more than 0").at("overprovisioning_factor"),
        percent => percent,
    };
    Ok(AssignmentPolicy { drop_overload, overprovisioning_percent, weighted_priority_health: message.weighted_priority_health })
}

fn health_check(message: &pb::endpoint::HealthCheckConfig) -> Outcome<EndpointHealthCheck> {
    Ok(EndpointHealthCheck {
        address: maybe(message.address.as_ref(), "address", |address| self::address(address, Names::Refused))?,
        port: basic::port(message.port_value).at("port_value")?,
        hostname: message.hostname.clone(),
        disable_active_health_check: message.disable_active_health_check,
    })
}

fn locality_endpoints(message: &pb::LocalityLbEndpoints, names: Names) -> Outcome<LocalityEndpoints> {
    let locality = message.locality.clone().unwrap_or_default();
    let endpoints = each(&message.lb_endpoints, "lb_endpoints", |endpoint| lb_endpoint(endpoint, names))?;
    Ok(LocalityEndpoints {
        locality: Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone },
        priority: message.priority,
        weight: message.load_balancing_weight.and_then(|weight| NonZeroU32::new(weight.value)),
        endpoints,
    })
}

fn lb_endpoint(message: &pb::LbEndpoint, names: Names) -> Outcome<Endpoint> {
    let Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &message.host_identifier else {
        return invalid("expected endpoint");
    };
    let address = address(required(endpoint.address.as_ref(), "address").at("endpoint")?, names).at("endpoint.address")?;
    let health = match core::HealthStatus::try_from(message.health_status) {
        Ok(core::HealthStatus::Unhealthy) => HealthStatus::Unhealthy,
        Ok(core::HealthStatus::Timeout) => HealthStatus::Timeout,
        Ok(core::HealthStatus::Draining) => HealthStatus::Draining,
        Ok(core::HealthStatus::Degraded) => HealthStatus::Degraded,
        Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => HealthStatus::Healthy,
        Err(_) => return invalid("unknown value").at("health_status"),
    };
    let metadata = |filter: &str| message.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get(filter));
    let more = each(&endpoint.additional_addresses, "additional_addresses", |more| {
        basic::socket_address(required(more.address.as_ref(), "address")?).at("address")
    })
    .at("endpoint")?;
    Ok(Endpoint {
        address,
        additional_addresses: (!more.is_empty()).then(|| more.into()),
        hostname: endpoint.hostname.clone(),
        weight: NonZeroU32::new(basic::count(message.load_balancing_weight.as_ref(), 1))
            .map_or_else(|| invalid("expected at least 1").at("load_balancing_weight"), Ok)?,
        health,
        health_check: maybe(endpoint.health_check_config.as_ref(), "endpoint.health_check_config", health_check)?.map(Arc::new),
        transport_match: shared(
            metadata("envoy.transport_socket_match").map(strings).transpose().at("metadata")?.unwrap_or_default(),
            &STRINGS,
        ),
        lb_metadata: shared(metadata("envoy.lb").map(labels).transpose().at("metadata")?.unwrap_or_default(), &LABELS),
        workload: metadata("istio").and_then(workload).map(Arc::new),
    })
}

fn address(message: &core::Address, names: Names) -> Outcome<EndpointAddress> {
    match required(message.address.as_ref(), "address")? {
        core::address::Address::Pipe(pipe) => Ok(EndpointAddress::Pipe(PathBuf::from(&pipe.path))),
        core::address::Address::SocketAddress(socket) => {
            let (host, port) = basic::host_and_port(socket).at("socket_address")?;
            match host.parse::<IpAddr>() {
                Ok(ip) => Ok(EndpointAddress::Socket((ip, port).into())),
                Err(_) if names == Names::Allowed => Ok(EndpointAddress::Name(host.to_owned(), port)),
                Err(_) => invalid(format!("expected an IP address, found {host:?}")).at("socket_address.address"),
            }
        }
        core::address::Address::EnvoyInternalAddress(_) => invalid("is not supported").at("envoy_internal_address"),
    }
}

/// Different maps that are kept to be shared.
const MAX_SHARED: usize = 64;

/// Maps that many endpoints and clusters have in common.
pub(super) type Shared<T> = Mutex<Vec<Arc<BTreeMap<String, T>>>>;

pub(super) static STRINGS: Shared<String> = Mutex::new(Vec::new());
static LABELS: Shared<LbValue> = Mutex::new(Vec::new());

/// The map, the same one for all who have an equal one.
pub(super) fn shared<T: PartialEq>(map: BTreeMap<String, T>, known: &Shared<T>) -> Arc<BTreeMap<String, T>> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = known.iter().find(|same| ***same == map) {
        return same.clone();
    }
    let map = Arc::new(map);
    if known.len() < MAX_SHARED {
        known.push(map.clone());
    }
    map
}

/// The `envoy.lb` part of metadata, which subsets are chosen by.
pub(super) fn lb_metadata(message: Option<&core::Metadata>) -> Outcome<BTreeMap<String, String>> {
    let subset = message.and_then(|metadata| metadata.filter_metadata.get("envoy.lb"));
    Ok(subset.map(strings).transpose().at("filter_metadata[\"envoy.lb\"]")?.unwrap_or_default())
}

/// The `envoy.lb` metadata of an endpoint, which may have lists too.
fn labels(message: &Struct) -> Outcome<BTreeMap<String, LbValue>> {
    let mut all = BTreeMap::new();
    for (key, value) in &message.fields {
        let value = match &value.kind {
            Some(Kind::ListValue(list)) => {
                LbValue::List(list.values.iter().map(|value| text(value.kind.as_ref())).collect::<Outcome<_>>().at(key)?)
            }
            kind => LbValue::One(text(kind.as_ref()).at(key)?),
        };
        all.insert(key.clone(), value);
    }
    Ok(all)
}

fn text(value: Option<&Kind>) -> Outcome<String> {
    match value {
        Some(Kind::StringValue(text)) => Ok(text.clone()),
        Some(Kind::BoolValue(value)) => Ok(value.to_string()),
        Some(Kind::NumberValue(value)) => Ok(value.to_string()),
        _ => invalid("expected a text, a number or a truth value"),
    }
}

/// A flat Struct; only texts, numbers and truth values are compared.
pub(super) fn strings(message: &Struct) -> Outcome<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (key, value) in &message.fields {
        all.insert(key.clone(), text(value.kind.as_ref()).at(key)?);
    }
    Ok(all)
}

/// `name;namespace;canonical service;canonical revision;cluster`.
fn workload(message: &Struct) -> Option<Workload> {
    let Some(Kind::StringValue(text)) = message.fields.get("workload").and_then(|value| value.kind.as_ref()) else { return None };
    // As in Istio, less than five parts say nothing.
    let [name, namespace, service, revision, cluster, ..] = text.split(';').collect::<Vec<_>>()[..] else { return None };
    Some(Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        canonical_service: service.to_owned(),
        canonical_revision: revision.to_owned(),
        cluster: cluster.to_owned(),
        ..Workload::default()
    })
}
