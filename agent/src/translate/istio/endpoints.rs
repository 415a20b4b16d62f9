//! Load assignments: the endpoints of one cluster, by locality and priority.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use skiff_proxy::config::{ClusterLoadAssignment, Endpoint, EndpointAddress, Locality, LocalityEndpoints};

use super::mtls;
use super::policy::Policy;
use super::registry::{Service, ServiceEndpoint};
use super::schema::destination_rule::Failover;
use super::schema::security::MtlsMode;
use super::schema::services::{Resolution, ServicePort};
use super::schema::{Labels, selects};
use super::scope::Scope;

/// Endpoint label and metadata key that says whether an endpoint speaks Istio's mTLS.
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// Endpoints of `service` on `port`, of a subset when `subset` asks for labels. `labelled`: mark the ones that speak mTLS.
pub(super) fn load_assignment(
    scope: &Scope<'_>,
    service: &Service<'_>,
    port: &ServicePort,
    subset: Option<&Labels>,
    policy: &Policy<'_>,
    labelled: bool,
) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<Locality, Vec<Endpoint>> = BTreeMap::new();
    for endpoint in service.endpoints.iter().filter(|endpoint| subset.is_none_or(|wanted| selects(wanted, &endpoint.labels))) {
        let built = build(scope, service, port, endpoint, labelled);
        localities.entry(endpoint.entry.locality.0.clone()).or_default().push(built);
    }
    if service.endpoints.is_empty() && matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
        localities.insert(Locality::default(), vec![by_host(scope, service, port)]);
    }
    let mut localities: Vec<LocalityEndpoints> = localities
        .into_iter()
        .map(|(locality, endpoints)| LocalityEndpoints {
            locality,
            priority: 0,
            weight: NonZeroU32::new(endpoints.iter().map(|endpoint| endpoint.weight.get()).fold(0, u32::saturating_add)),
            endpoints,
        })
        .collect();
    apply_failover(scope, policy, &mut localities);
    ClusterLoadAssignment::of(localities)
}

fn build(scope: &Scope<'_>, service: &Service<'_>, port: &ServicePort, from: &ServiceEndpoint<'_>, labelled: bool) -> Endpoint {
    let mut endpoint = Endpoint::new(from.address(port));
    endpoint.weight = from.entry.weight.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    endpoint.workload = Some(Arc::new(from.workload(&scope.workload.cluster_id)));
    let in_mesh = match from.labels.get(TLS_MODE_LABEL) {
        Some(mode) => mode == "istio",
        None => !from.entry.service_account.is_empty(),
    };
    let accepts = || mtls::mode(scope, from.namespace, &from.labels, from.port(port)) != MtlsMode::Disable;
    if labelled && !service.external && in_mesh && accepts() {
        endpoint.transport_match = Arc::new(BTreeMap::from([("tlsMode".to_owned(), "istio".to_owned())]));
    }
    endpoint
}

/// A DNS service without endpoints is its own endpoint.
fn by_host(scope: &Scope<'_>, service: &Service<'_>, port: &ServicePort) -> Endpoint {
    let number = port.target_port.unwrap_or(port.number).get();
    let mut endpoint = Endpoint::new(EndpointAddress::Name(service.host.clone(), number));
    let name = service.resource.metadata.name.clone();
    endpoint.workload = Some(Arc::new(skiff_proxy::config::Workload {
        canonical_service: name.clone(),
        name,
        namespace: service.namespace.to_owned(),
        canonical_revision: String::new(),
        cluster: scope.workload.cluster_id.clone(),
        ..Default::default()
    }));
    endpoint
}

/// Near localities first, when failing endpoints are detected: without that nothing would ever fail over.
fn apply_failover(scope: &Scope<'_>, policy: &Policy<'_>, localities: &mut [LocalityEndpoints]) {
    let setting = policy.load_balancer.and_then(|lb| lb.locality_lb_setting.as_ref());
    let enabled = setting.and_then(|setting| setting.enabled).unwrap_or(true);
    if policy.outlier_detection.is_none() || !enabled || scope.workload.locality.region.is_empty() {
        return;
    }
    let failover = setting.map_or(&[][..], |setting| &setting.failover);
    let distances: Vec<u32> =
        localities.iter().map(|group| distance(&scope.workload.locality, &group.locality, failover)).collect();
    let mut ranks = distances.clone();
    ranks.sort_unstable();
    ranks.dedup();
    for (group, distance) in localities.iter_mut().zip(distances) {
        // Priorities are consecutive from 0.
        group.priority = ranks.iter().take_while(|rank| **rank < distance).count().try_into().unwrap_or(u32::MAX);
    }
}

fn distance(own: &Locality, other: &Locality, failover: &[Failover]) -> u32 {
    if own.region != other.region {
        let preferred = failover.iter().any(|rule| rule.from == own.region && rule.to == other.region);
        return if preferred { 3 } else { 4 };
    }
    match (own.zone == other.zone, own.sub_zone == other.sub_zone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}
