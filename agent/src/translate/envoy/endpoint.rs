//! Endpoints of clusters.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::endpoint::v3 as pb;
use skiff_proto::google::protobuf::{Struct, value::Kind};
use skiff_proxy::config::{
    ClusterLoadAssignment, Endpoint, EndpointAddress, Fraction, HealthStatus, Locality, LocalityEndpoints, Workload,
};

use super::basic;
use super::outcome::{At, Outcome, each, invalid, required};

/// Whether endpoints may be named instead of addressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Allowed,
    Refused,
}

pub(super) fn load_assignment(message: &pb::ClusterLoadAssignment, names: Names) -> Outcome<ClusterLoadAssignment> {
    let localities = each(&message.endpoints, "endpoints", |locality| locality_endpoints(locality, names))?;
    Ok(ClusterLoadAssignment { localities })
}

/// The share of requests that all `drop_overloads` together drop.
pub(super) fn drop_overload(message: &pb::ClusterLoadAssignment) -> Outcome<Fraction> {
    let mut passed = 1.0;
    for drop in message.policy.iter().flat_map(|policy| &policy.drop_overloads) {
        if let Some(percent) = &drop.drop_percentage {
            let dropped = basic::fractional_percent(percent).at("policy.drop_overloads.drop_percentage")?;
            passed *= 1.0 - f64::from(dropped.millionths()) / 1e6;
        }
    }
    Ok(Fraction::from_percent((1.0 - passed) * 100.0).unwrap_or(Fraction::ALL))
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
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Timeout) => HealthStatus::Unhealthy,
        Ok(core::HealthStatus::Draining) => HealthStatus::Draining,
        // DEGRADED is used after the healthy ones by Envoy; istiod never sends it, and unused would be the greater harm.
        _ => HealthStatus::Healthy,
    };
    let metadata = |filter: &str| message.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get(filter));
    Ok(Endpoint {
        address,
        hostname: endpoint.hostname.clone(),
        weight: NonZeroU32::new(basic::count(message.load_balancing_weight.as_ref(), 1))
            .map_or_else(|| invalid("expected at least 1").at("load_balancing_weight"), Ok)?,
        health,
        transport_match: metadata("envoy.transport_socket_match").map(strings).transpose().at("metadata")?.unwrap_or_default(),
        lb_metadata: lb_metadata(message.metadata.as_ref()).at("metadata")?,
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

/// The `envoy.lb` part of metadata, which subsets are chosen by.
pub(super) fn lb_metadata(message: Option<&core::Metadata>) -> Outcome<BTreeMap<String, String>> {
    let subset = message.and_then(|metadata| metadata.filter_metadata.get("envoy.lb"));
    Ok(subset.map(strings).transpose().at("filter_metadata[\"envoy.lb\"]")?.unwrap_or_default())
}

/// A flat Struct; only texts, numbers and truth values are compared.
pub(super) fn strings(message: &Struct) -> Outcome<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (key, value) in &message.fields {
        let text = match &value.kind {
            Some(Kind::StringValue(text)) => text.clone(),
            Some(Kind::BoolValue(value)) => value.to_string(),
            Some(Kind::NumberValue(value)) => value.to_string(),
            _ => return invalid("expected a text, a number or a truth value").at(key),
        };
        all.insert(key.clone(), text);
    }
    Ok(all)
}

/// `name;namespace;canonical service;canonical revision;cluster`.
fn workload(message: &Struct) -> Option<Workload> {
    let Some(Kind::StringValue(text)) = message.fields.get("workload").and_then(|value| value.kind.as_ref()) else { return None };
    let mut parts = text.split(';').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Some(Workload { name: next(), namespace: next(), canonical_service: next(), canonical_revision: next(), cluster: next() })
}
