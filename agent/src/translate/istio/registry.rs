//! The services of the mesh as one workload sees them: ServiceEntries with their endpoints.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use skiff_proxy::config::{EndpointAddress, Workload as EndpointWorkload};

use super::Workload;
use super::documents::{DocumentError, Documents, Resource};
use super::schema::services::{Location, Resolution, ServiceEntry, ServicePort, WorkloadEntry};
use super::schema::{Labels, exported, selects};
use super::values::Port;

/// One host of a ServiceEntry.
#[derive(Clone, Debug)]
pub(super) struct Service<'a> {
    pub(super) host: String,
    pub(super) namespace: &'a str,
    pub(super) resource: &'a Resource<ServiceEntry>,
    pub(super) ports: &'a [ServicePort],
    pub(super) external: bool,
    pub(super) resolution: Resolution,
    pub(super) endpoints: Vec<ServiceEndpoint<'a>>,
}

/// One endpoint, on every port of its service.
#[derive(Clone, Debug)]
pub(super) struct ServiceEndpoint<'a> {
    pub(super) host: EndpointHost,
    pub(super) entry: &'a WorkloadEntry,
    pub(super) labels: Cow<'a, Labels>,
    pub(super) namespace: &'a str,
    pub(super) workload_name: String,
}

/// Where an endpoint is, without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EndpointHost {
    Ip(IpAddr),
    Name(String),
    Pipe(PathBuf),
}

impl Service<'_> {
    pub(super) fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number.get() == number)
    }

    /// SPIFFE service accounts of all endpoints and the declared names, sorted: what a server certificate must say.
    pub(super) fn subject_alt_names(&self, trust_domain: &str) -> Vec<String> {
        let mut names = self.resource.spec.subject_alt_names.clone();
        for endpoint in self.endpoints.iter().filter(|endpoint| !endpoint.entry.service_account.is_empty()) {
            names.push(format!("spiffe://{trust_domain}/ns/{}/sa/{}", endpoint.namespace, endpoint.entry.service_account));
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl ServiceEndpoint<'_> {
    /// The port that this endpoint serves `port` of the service on.
    pub(super) fn port(&self, port: &ServicePort) -> u16 {
        let own = self.entry.ports.get(&port.name).copied();
        own.or(port.target_port).map_or_else(|| port.number.get(), Port::get)
    }

    /// Address for the data plane.
    pub(super) fn address(&self, port: &ServicePort) -> EndpointAddress {
        match &self.host {
            EndpointHost::Ip(ip) => EndpointAddress::Socket((*ip, self.port(port)).into()),
            EndpointHost::Name(name) => EndpointAddress::Name(name.clone(), self.port(port)),
            EndpointHost::Pipe(path) => EndpointAddress::Pipe(path.clone()),
        }
    }

    /// Who runs here, as istiod writes it into `istio.workload`.
    pub(super) fn workload(&self, cluster: &str) -> EndpointWorkload {
        EndpointWorkload {
            name: self.workload_name.clone(),
            namespace: self.namespace.to_owned(),
            canonical_service: canonical_service(&self.labels).unwrap_or(&self.workload_name).to_owned(),
            canonical_revision: canonical_revision(&self.labels).unwrap_or_default().to_owned(),
            cluster: cluster.to_owned(),
            ..EndpointWorkload::default()
        }
    }
}

/// Istio's canonical service of a workload with these labels.
pub(super) fn canonical_service(labels: &Labels) -> Option<&str> {
    first_label(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
}

/// Istio's canonical revision of a workload with these labels.
pub(super) fn canonical_revision(labels: &Labels) -> Option<&str> {
    first_label(labels, &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
}

fn first_label<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| labels.get(*key)).map(String::as_str)
}

/// All services that are visible to the workload, by host. A host that several namespaces declare is taken from the
/// workload's own one, else from the first.
pub(super) fn services<'a>(
    documents: &'a Documents,
    workload: &Workload,
    warnings: &mut Vec<String>,
) -> Result<Vec<Service<'a>>, Vec<DocumentError>> {
    let mut by_host: BTreeMap<String, Service<'a>> = BTreeMap::new();
    let mut errors = Vec::new();
    for resource in &documents.service_entries {
        if !exported(&resource.spec.export_to, &resource.namespace, &workload.namespace) {
            continue;
        }
        for host in &resource.spec.hosts {
            let service = match service(documents, resource, host.as_str()) {
                Ok(service) => service,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            match by_host.get(&service.host) {
                Some(other) if other.namespace == workload.namespace || service.namespace != workload.namespace => {
                    warnings
                        .push(resource.remark(format_args!("host {host} is taken from {}", other.resource.remark("this one"))));
                }
                _ => {
                    by_host.insert(service.host.clone(), service);
                }
            }
        }
    }
    if errors.is_empty() { Ok(by_host.into_values().collect()) } else { Err(errors) }
}

fn service<'a>(documents: &'a Documents, resource: &'a Resource<ServiceEntry>, host: &str) -> Result<Service<'a>, DocumentError> {
    let spec = &resource.spec;
    let resolution = spec.resolution.value;
    let mut endpoints = Vec::new();
    for (index, located) in spec.endpoints.iter().enumerate() {
        let entry = &located.value;
        let host = endpoint_host(&entry.address);
        if resolution == Resolution::Static && matches!(host, EndpointHost::Name(_)) {
            let reason = format!("{:?}: expected an address or unix:///path, because the resolution is STATIC", entry.address);
            let mut error = located.error(reason);
            error.path.push_str(".address");
            return Err(resource.error(error));
        }
        let workload_name = format!("{}-{index}", resource.metadata.name);
        endpoints.push(ServiceEndpoint {
            host,
            entry,
            labels: Cow::Borrowed(&entry.labels),
            namespace: &resource.namespace,
            workload_name,
        });
    }
    if let Some(selector) = spec.workload_selector.as_ref().filter(|selector| !selector.labels.is_empty()) {
        for entry in documents.workload_entries.iter().filter(|entry| entry.namespace == resource.namespace) {
            // Labels of the object count too, and before those of its spec.
            let mut labels = entry.spec.labels.clone();
            labels.extend(entry.metadata.labels.clone());
            if selects(&selector.labels, &labels) {
                endpoints.push(ServiceEndpoint {
                    host: endpoint_host(&entry.spec.address),
                    entry: &entry.spec,
                    labels: Cow::Owned(labels),
                    namespace: &entry.namespace,
                    workload_name: entry.metadata.name.clone(),
                });
            }
        }
    }
    if resolution == Resolution::None && !endpoints.is_empty() {
        let reason = "NONE: endpoints need resolution STATIC or DNS";
        return Err(resource.error(spec.resolution.error(reason)));
    }
    if host.starts_with('*') && endpoints.is_empty() && matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
        let reason = format!("DNS: {host} cannot be resolved, expected endpoints or resolution NONE");
        return Err(resource.error(spec.resolution.error(reason)));
    }
    Ok(Service {
        host: host.to_owned(),
        namespace: &resource.namespace,
        resource,
        ports: &spec.ports,
        external: spec.location == Location::MeshExternal,
        resolution,
        endpoints,
    })
}

fn endpoint_host(address: &str) -> EndpointHost {
    if let Some(path) = address.strip_prefix("unix://") {
        return EndpointHost::Pipe(path.into());
    }
    address.parse().map_or_else(|_| EndpointHost::Name(address.to_owned()), EndpointHost::Ip)
}
