//! What the plane says a sidecar needs to start, read strictly, and the sources of configuration and certificates made of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proxy::config::{Locality, SpiffeId, TrustDomain};

use super::client::{OnboardingError, Session, duration};
use super::config::parse_root_certificates;
use super::member::Live;
use crate::admin::Node;
use crate::connect;
use crate::identity::{CaClient, ControlPlaneConnector, IdentityConfig, IdentityManager, RootSource, Security, TokenSource};
use crate::sidecar::ConfigurationSource;
use crate::translate::istio::Workload;
use crate::xds::{Connection, NodeConfig, Probe, Protocol};

/// Of a call to the certificate authority, without the connect.
const CA_TIMEOUT: Duration = Duration::from_secs(10);
/// Between heartbeats, when the plane says nothing or something absurd.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);
const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

/// What a sidecar starts with.
#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    /// Name of the WorkloadAutoRegistration and of the WorkloadEntry.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The group's labels, then those that were asked for.
    pub labels: BTreeMap<String, String>,
    /// The group's service account.
    pub service_account: String,
    /// Of the mesh.
    pub trust_domain: TrustDomain,
    /// Cluster id of the mesh.
    pub cluster_id: String,
    /// Istio's network of the workload; empty is the default one.
    pub network: String,
    /// Mesh id; empty is the trust domain.
    pub mesh_id: String,
    /// Where it runs.
    pub locality: Locality,
    /// `host:port` of the certificate authority; `None` where it is the plane itself, at the endpoint that we know.
    pub ca_address: Option<String>,
    /// `host:port` of istiod; `None` where the plane sends documents.
    pub discovery_address: Option<String>,
    /// Name that both certificates carry; `None` is the host of the address.
    pub control_plane_san: Option<String>,
    /// Istio's ProxyConfig.
    pub proxy_config: Map<String, Json>,
    /// Of the application.
    pub probe: Option<Probe>,
}

/// What may change while the sidecar runs.
pub(super) struct Volatile {
    pub(super) roots: Vec<u8>,
    pub(super) mesh_token: Session,
    pub(super) heartbeat: Duration,
    pub(super) propagation_delay: Duration,
}

impl Boot {
    pub(super) fn read(boot: proto::Boot) -> Result<(Self, Volatile), OnboardingError> {
        let wrong = |field: &str, reason: String| OnboardingError::Invalid(format!("Boot.{field}: {reason}"));
        let named = |field: &str, value: String| match value.is_empty() {
            true => Err(wrong(field, "is empty".to_owned())),
            false => Ok(value),
        };
        let address = |field: &str, value: String| match value.rsplit_once(':') {
            _ if value.is_empty() => Ok(None),
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(Some(value)),
            _ => Err(wrong(field, format!("{value:?}: expected host:port"))),
        };
        let proxy_config: Map<String, Json> = match boot.proxy_config.trim() {
            "" => Map::new(),
            text => {
                serde_json::from_str(text).map_err(|error| wrong("proxy_config", format!("expected a JSON object: {error}")))?
            }
        };
        let probe = proxy_config.get("readinessProbe").filter(|probe| !probe.is_null());
        let probe = probe.map(Probe::deserialize).transpose();
        let trust_domain = boot.trust_domain.parse().map_err(|error| wrong("trust_domain", format!("{error}")))?;
        let token = boot.mesh_token.ok_or_else(|| wrong("mesh_token", "is missing".to_owned()))?;
        let roots = parse_root_certificates("root_certificates", &boot.root_certificates);
        let volatile = Volatile {
            roots: roots.map_err(|error| OnboardingError::Invalid(format!("Boot.{error}")))?,
            mesh_token: Session::new(&token.token, token.expires_at)?,
            heartbeat: duration(boot.heartbeat_interval).filter(|d| HEARTBEATS.contains(d)).unwrap_or(DEFAULT_HEARTBEAT),
            propagation_delay: duration(boot.propagation_delay).unwrap_or_default(),
        };
        let read = Self {
            name: named("name", boot.name)?,
            namespace: named("namespace", boot.namespace)?,
            labels: boot.labels.into_iter().collect(),
            service_account: Some(boot.service_account).filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
            trust_domain,
            cluster_id: boot.cluster_id,
            network: boot.network,
            mesh_id: boot.mesh_id,
            locality: locality(&boot.locality),
            ca_address: address("ca_address", boot.ca_address)?,
            discovery_address: address("discovery_address", boot.discovery_address)?,
            control_plane_san: Some(boot.control_plane_san).filter(|name| !name.is_empty()),
            proxy_config,
            probe: probe.map_err(|error| wrong("proxy_config.readinessProbe", error.to_string()))?,
        };
        Ok((read, volatile))
    }

    /// Who the workload is, on its own addresses; `group` names it in metrics, whose series must not follow the tasks.
    pub(super) fn workload(&self, group: &str, addresses: Vec<IpAddr>) -> Workload {
        Workload {
            name: group.to_owned(),
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            addresses,
            service_account: self.service_account.clone(),
            trust_domain: self.trust_domain.clone(),
            cluster_id: self.cluster_id.clone(),
            locality: self.locality.clone(),
        }
    }

    /// Istio's node id and service cluster.
    pub(super) fn node(&self, workload: &Workload) -> Node {
        let address = workload.addresses.first().map(ToString::to_string).unwrap_or_default();
        let Self { name, namespace, labels, .. } = self;
        Node {
            id: format!("sidecar~{address}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: format!("{}.{namespace}", labels.get("app").unwrap_or(&workload.name)),
        }
    }

    /// Where certificates come from; `plane` is the endpoint that we have registered at.
    pub(super) fn identity(&self, live: &Live, plane: &ControlPlaneConnector) -> IdentityManager {
        let id = SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        };
        let ca = CaClient {
            connector: self.ca_address.as_ref().map_or_else(|| plane.clone(), |address| self.connector(address, live)),
            token: TokenSource::Watch(live.mesh_token.subscribe()),
            cluster_id: self.cluster_id.clone(),
            request_timeout: CA_TIMEOUT,
        };
        IdentityManager::new(IdentityConfig::new(id), ca)
    }

    /// Where configuration comes from. `metadata` is what else istiod is to be told.
    pub(super) fn configuration(
        &self,
        live: &Live,
        workload: &Workload,
        node: &Node,
        identity: &IdentityManager,
        metadata: Map<String, Json>,
    ) -> ConfigurationSource {
        let Some(address) = &self.discovery_address else {
            let translate = connect::istio_yaml(workload.clone());
            return ConfigurationSource::Pushed { documents: live.documents.subscribe(), translate };
        };
        let connector = self.connector(address, live);
        let mut metadata = metadata;
        metadata.insert("WORKLOAD_ENTRY".to_owned(), json!(self.name));
        for (key, value) in [("NETWORK", &self.network), ("MESH_ID", &self.mesh_id)] {
            if !value.is_empty() {
                metadata.insert(key.to_owned(), json!(value));
            }
        }
        let pilot_san = vec![connector.authority.clone()];
        let config = NodeConfig { metadata, proxy_config: self.proxy_config.clone(), pilot_san };
        let connection = Connection {
            node: config.node(workload, &node.id, &node.cluster),
            connector,
            token: TokenSource::Watch(live.mesh_token.subscribe()),
            certificate: Some(identity.certificate()),
            cluster_id: self.cluster_id.clone(),
            protocol: Protocol::Delta,
        };
        ConfigurationSource::Mesh { connection: Box::new(connection), probe: None }
    }

    fn connector(&self, address: &str, live: &Live) -> ControlPlaneConnector {
        let mut connector = ControlPlaneConnector::new(address, Security::Tls(RootSource::Watch(live.roots.subscribe())));
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        connector.authority = self.control_plane_san.clone().unwrap_or_else(|| host.to_owned());
        connector
    }
}

/// `region/zone/sub-zone`, of which later parts may be missing.
fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}
