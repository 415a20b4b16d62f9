use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::config::{
    AssignmentPolicy, CircuitBreakers, ConsecutiveFailures, EndpointAddress, FailurePercentage, Fraction, HashConfig,
    HealthCheck, HealthCheckIntervals, HealthChecker, HealthStatus, LbPolicy, LbSubsetConfig, LbValue, LeastRequest,
    LocalityEndpoints, SelectorFallback, SlowStart, SubsetFallback, SubsetSelector, SuccessRate, TcpHealthCheck,
    TransportSocketMatch, UpstreamTls,
};

fn weighted(port: u16, weight: u32) -> config::Endpoint {
    let address = EndpointAddress::Socket(([127, 0, 0, 1], port).into());
    config::Endpoint { weight: NonZeroU32::new(weight).unwrap(), ..config::Endpoint::new(address) }
}

fn unhealthy(port: u16) -> config::Endpoint {
    config::Endpoint { health: HealthStatus::Unhealthy, ..weighted(port, 1) }
}

fn locality(priority: u32, endpoints: Vec<config::Endpoint>) -> LocalityEndpoints {
    LocalityEndpoints { priority, endpoints, ..LocalityEndpoints::default() }
}

fn assignment(endpoints: Vec<config::Endpoint>) -> Arc<ClusterLoadAssignment> {
    Arc::new(ClusterLoadAssignment::of(vec![locality(0, endpoints)]))
}

/// Endpoints at ports 1 to `count`.
fn hosts(count: u16) -> Arc<ClusterLoadAssignment> {
    assignment((1..=count).map(|port| weighted(port, 1)).collect())
}

fn config(policy: LbPolicy) -> config::Cluster {
    config::Cluster { lb_policy: policy, ..config::Cluster::new("c", ClusterDiscovery::Eds("c".into())) }
}

fn cluster(config: config::Cluster, assignment: &Arc<ClusterLoadAssignment>) -> Cluster {
    let cluster = Cluster::new(Arc::new(config), &Secrets::new()).unwrap();
    cluster.set_endpoints(&Arc::clone(assignment).into());
    cluster
}

fn port(endpoint: &Endpoint) -> u16 {
    match endpoint.address() {
        EndpointAddress::Socket(address) => address.port(),
        other => panic!("{other:?}"),
    }
}

fn endpoint(cluster: &Cluster, wanted: u16) -> Arc<Endpoint> {
    Arc::clone(cluster.endpoints().iter().find(|endpoint| port(endpoint) == wanted).unwrap())
}

fn pick(cluster: &Cluster) -> Result<u16, ErrorKind> {
    cluster.pick(&PickContext::default()).map(|endpoint| port(&endpoint))
}

/// How often each port was picked.
fn picks(cluster: &Cluster, count: usize) -> BTreeMap<u16, usize> {
    let mut picks = BTreeMap::new();
    for _ in 0..count {
        *picks.entry(pick(cluster).unwrap()).or_default() += 1;
    }
    picks
}

fn least_request(choices: u32) -> LbPolicy {
    LbPolicy::LeastRequest(LeastRequest { choice_count: NonZeroU32::new(choices).unwrap(), slow_start: None })
}

#[track_caller]
fn assert_near(actual: usize, expected: usize) {
    assert!(actual.abs_diff(expected) * 10 < expected, "{actual} is not within a tenth of {expected}");
}

mod health;
mod outliers;
mod policies;
mod previous_priorities;
mod publication;
mod subsets;
