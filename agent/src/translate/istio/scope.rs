//! What one workload sees of the mesh: the input of every later step of the translation.

use std::path::PathBuf;

use skiff_proxy::config::{AccessLog, AccessLogFilter};

use super::de::FieldError;
use super::documents::{DocumentError, Documents, Resource};
use super::registry::{self, Service};
use super::schema::mesh::MeshConfig;
use super::schema::sidecar::{OutboundMode, Sidecar};
use super::schema::telemetry::Mode;
use super::schema::{Labels, selects};
use super::telemetry::{Side, Telemetry};
use super::values::covers;
use super::{Output, Selection, Workload};

/// The root namespace where MeshConfig does not name one.
const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";

pub(super) struct Scope<'a> {
    pub(super) documents: &'a Documents,
    pub(super) workload: &'a Workload,
    pub(super) mesh: MeshConfig,
    pub(super) root_namespace: String,
    pub(super) sidecar: Option<&'a Resource<Sidecar>>,
    pub(super) services: Vec<Service<'a>>,
    /// Logs, spans and metrics of what comes in and of what goes out.
    pub(super) inbound: Side,
    pub(super) outbound: Side,
    /// Services that take them.
    pub(super) collectors: Selection,
}

impl<'a> Scope<'a> {
    pub(super) fn new(documents: &'a Documents, workload: &'a Workload, output: &mut Output) -> Result<Self, Vec<DocumentError>> {
        let mesh = documents.mesh.clone().unwrap_or_default();
        if let Some(declared) = mesh.trust_domain.as_ref().filter(|declared| declared.0 != workload.trust_domain) {
            let own = &workload.trust_domain;
            output.warnings.push(format!("trustDomain of the mesh is {}, this workload's is {own}, which is used", declared.0));
        }
        let root_namespace = mesh.root_namespace.clone().unwrap_or_else(|| DEFAULT_ROOT_NAMESPACE.to_owned());
        let services = registry::services(documents, workload, &mut output.warnings)?;
        let mut collectors = Selection::new();
        let mut telemetry =
            Telemetry { documents, workload, mesh: &mesh, root_namespace: &root_namespace, services: &services, output };
        let mut side = |mode| telemetry.side(mode, &mut collectors);
        let (inbound, outbound) = (side(Mode::Server), side(Mode::Client));
        Ok(Self {
            documents,
            workload,
            sidecar: choose_sidecar(documents, workload, &root_namespace, &mut output.warnings),
            services,
            inbound,
            outbound,
            collectors,
            mesh,
            root_namespace,
        })
    }

    /// The service that a host of a resource in `namespace` means.
    pub(super) fn service(&self, host: &str) -> Option<&Service<'a>> {
        self.services.iter().find(|service| service.host == host)
    }

    /// REGISTRY_ONLY or ALLOW_ANY: what happens to hosts that nobody declares.
    pub(super) fn outbound_mode(&self) -> OutboundMode {
        let own = self.sidecar.and_then(|sidecar| sidecar.spec.outbound_traffic_policy.as_ref());
        own.or(self.mesh.outbound_traffic_policy.as_ref()).map(|policy| policy.mode).unwrap_or_default()
    }

    /// Trust domains whose certificates are ours: the own one and its aliases.
    pub(super) fn trust_domains(&self) -> Vec<&str> {
        let mut domains = vec![self.workload.trust_domain.as_str()];
        domains.extend(self.mesh.trust_domain_aliases.iter().map(|alias| alias.0.as_str()));
        domains.dedup();
        domains
    }

    /// Logs of connections that reach no filter chain.
    pub(super) fn listener_access_log(&self) -> Vec<AccessLog> {
        let unmatched = AccessLogFilter::ResponseFlags(vec!["NR".to_owned()]);
        let narrowed = |log: AccessLog| {
            let filter = match log.filter {
                Some(filter) => AccessLogFilter::And(vec![unmatched.clone(), filter]),
                None => unmatched.clone(),
            };
            AccessLog { filter: Some(filter), ..log }
        };
        self.inbound.access_log.iter().cloned().map(narrowed).collect()
    }

    /// The most specific of `candidates` whose host covers `host`: exact before the longest wildcard before shorter ones, then
    /// the oldest.
    pub(super) fn most_specific<T>(candidates: impl Iterator<Item = (T, String)>, host: &str) -> Option<T> {
        let mut best: Option<(T, usize)> = None;
        for (candidate, pattern) in candidates.filter(|(_, pattern)| covers(pattern, host)) {
            let rank = if pattern == host { usize::MAX } else { pattern.len() };
            if best.as_ref().is_none_or(|(_, other)| rank > *other) {
                best = Some((candidate, rank));
            }
        }
        best.map(|(candidate, _)| candidate)
    }

    /// An error of the chosen Sidecar's field.
    pub(super) fn sidecar_error(&self, error: FieldError) -> DocumentError {
        match self.sidecar {
            Some(sidecar) => sidecar.error(error),
            None => DocumentError { file: PathBuf::new(), line: error.line, path: error.path, reason: error.reason },
        }
    }
}

/// Istio's order: a selector in the own namespace, the own namespace's default, the root namespace's default.
fn choose_sidecar<'a>(
    documents: &'a Documents,
    workload: &Workload,
    root_namespace: &str,
    warnings: &mut Vec<String>,
) -> Option<&'a Resource<Sidecar>> {
    let labels = |sidecar: &'a Resource<Sidecar>| -> Option<&'a Labels> {
        sidecar.spec.workload_selector.as_ref().map(|selector| &selector.labels).filter(|labels| !labels.is_empty())
    };
    let own = || documents.sidecars.iter().filter(|sidecar| sidecar.namespace == workload.namespace);
    let mut selected = own().filter(|sidecar| labels(sidecar).is_some_and(|wanted| selects(wanted, &workload.labels)));
    if let Some(first) = selected.next() {
        warnings.extend(selected.map(|other| other.remark("left out, an older Sidecar selects this workload too")));
        return Some(first);
    }
    let root = || documents.sidecars.iter().filter(|sidecar| sidecar.namespace == root_namespace);
    own().find(|sidecar| labels(sidecar).is_none()).or_else(|| root().find(|sidecar| labels(sidecar).is_none()))
}
