//! Endpoints (Envoy `config.endpoint.v3`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::{Fraction, Workload};

/// The endpoints of a cluster (EDS).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterLoadAssignment {
    /// By locality.
    pub localities: Vec<LocalityEndpoints>,
    /// How they are used together.
    pub policy: AssignmentPolicy,
}

/// Envoy `ClusterLoadAssignment.Policy`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AssignmentPolicy {
    /// Share of requests dropped on purpose (`drop_overloads`).
    pub drop_overload: Fraction,
    /// A priority or locality counts as whole until its healthy share times this falls below 100 %.
    pub overprovisioning_percent: u32,
    /// The healthy share of a priority is one of weights, not of endpoints.
    pub weighted_priority_health: bool,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { drop_overload: Fraction::NONE, overprovisioning_percent: 140, weighted_priority_health: false }
    }
}

impl ClusterLoadAssignment {
    /// One endpoint, without locality.
    pub fn single(address: EndpointAddress) -> Self {
        Self::of(vec![LocalityEndpoints { endpoints: vec![Endpoint::new(address)], ..LocalityEndpoints::default() }])
    }

    /// These, used together as Envoy does by default.
    pub fn of(localities: Vec<LocalityEndpoints>) -> Self {
        Self { localities, policy: AssignmentPolicy::default() }
    }
}

/// Region, zone, sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Locality {
    /// `us-east-1`.
    pub region: String,
    /// `us-east-1a`.
    pub zone: String,
    /// Finer.
    pub sub_zone: String,
}

/// Endpoints of one locality.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// 0 is used first.
    pub priority: u32,
    /// Weight of the locality; only used with [`super::Cluster::locality_weighted`].
    pub weight: Option<NonZeroU32>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum EndpointAddress {
    /// Address and port.
    Socket(SocketAddr),
    /// Unix domain socket.
    Pipe(PathBuf),
    /// A name to resolve, only in DNS clusters.
    Name(String, u16),
}

/// Health as the control plane sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum HealthStatus {
    /// Usable.
    #[default]
    Healthy,
    /// Used where there are not enough healthy ones.
    Degraded,
    /// Not usable.
    Unhealthy,
    /// Not usable: a health check of the control plane timed out.
    Timeout,
    /// Keeps its connections, gets no new requests.
    Draining,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Other addresses of the same host (dual stack), tried where the first one does not answer (RFC 8305).
    pub additional_addresses: Option<Arc<[SocketAddr]>>,
    /// For `host_rewrite: auto`; empty is none.
    pub hostname: String,
    /// Relative weight.
    pub weight: NonZeroU32,
    /// Health.
    pub health: HealthStatus,
    /// How it is checked, where the cluster's own form does not fit.
    pub health_check: Option<Arc<EndpointHealthCheck>>,
    /// `envoy.transport_socket_match` metadata; istiod sets `tlsMode: istio`. Shared, as all endpoints of a mesh say the same.
    pub transport_match: Arc<BTreeMap<String, String>>,
    /// `envoy.lb` metadata for subsets.
    pub lb_metadata: Arc<BTreeMap<String, LbValue>>,
    /// `istio.workload` metadata, for the labels of metrics.
    pub workload: Option<Arc<Workload>>,
}

impl Endpoint {
    /// A healthy, plaintext endpoint of weight 1.
    pub fn new(address: EndpointAddress) -> Self {
        Self {
            address,
            additional_addresses: None,
            hostname: String::new(),
            weight: NonZeroU32::MIN,
            health: HealthStatus::Healthy,
            health_check: None,
            transport_match: Arc::default(),
            lb_metadata: Arc::default(),
            workload: None,
        }
    }
}

/// A value of an endpoint's `envoy.lb` metadata.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum LbValue {
    /// A text, a number or a truth value.
    One(String),
    /// A list, any of which counts with `list_as_any`.
    List(Vec<String>),
}

/// Envoy `Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndpointHealthCheck {
    /// Checked at this address instead.
    pub address: Option<EndpointAddress>,
    /// Checked at this port of the endpoint's address, or of [`Self::address`]; 0 leaves the port.
    pub port: u16,
    /// Host of the check; empty leaves the cluster's.
    pub hostname: String,
    /// Not checked: healthy as far as the check goes.
    pub disable_active_health_check: bool,
}
