//! Istio YAML for one workload, with istiod's semantics for a sidecar without iptables (`INTERCEPTION_MODE=NONE`).
//!
//! Read `documents` for how files become typed resources, then [`translate`] and the modules in the order it calls them:
//! `scope` (what the workload sees), `inbound`, `outbound` (with `routes`), `clusters` (with `policy` and `endpoints`).
//!
//! Three things differ from istiod on purpose:
//! - An ingress listener without `bind` takes the workload's own addresses, never `0.0.0.0`, which would take the
//!   application's own port on the loopback address.
//! - Several services on one TLS egress listener are told apart by SNI even without a VirtualService; istiod serves one of them.
//! - Two HTTP egress listeners on one port that import different hosts get a route configuration each; istiod serves both
//!   from the first.

mod authz;
mod clusters;
mod custom;
pub(crate) mod de;
mod documents;
mod endpoints;
mod inbound;
mod jwt;
mod mtls;
mod outbound;
mod peer;
mod policy;
mod registry;
mod route;
mod routes;
mod schema;
mod scope;
pub(crate) mod single;
mod telemetry;
#[cfg(test)]
mod tests;
mod values;
pub(crate) mod yaml;

pub use documents::{DocumentError, Documents};

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use schema::Labels;
use skiff_proxy::config::{Cluster, Listener, Locality, Snapshot, TrustDomain};

use de::Located;
use scope::Scope;

/// The workload that a sidecar stands beside.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Workload name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels, which selectors are compared with.
    pub labels: Labels,
    /// Its own addresses; inbound listeners without `bind` take them, so the application must not listen on them.
    pub addresses: Vec<IpAddr>,
    /// Service account.
    pub service_account: String,
    /// Trust domain of its certificate.
    pub trust_domain: TrustDomain,
    /// Cluster id of the mesh, a label of metrics.
    pub cluster_id: String,
    /// Where it runs: near endpoints come first when failing ones are detected.
    pub locality: Locality,
}

/// What [`translate`] makes.
#[derive(Clone, Debug)]
pub struct Translation {
    /// For [`skiff_proxy::Proxy::apply`].
    pub snapshot: Snapshot,
    /// What was left out or looks unintended, one line each.
    pub warnings: Vec<String>,
}

/// Builds the configuration of `workload`.
///
/// # Errors
/// What can only be found when resources are put together: two listeners on one address, a route without destinations. Nothing
/// is served then; the last good configuration stays.
pub fn translate(documents: &Documents, workload: &Workload) -> Result<Translation, Vec<DocumentError>> {
    let mut output = Output { warnings: documents.warnings.clone(), ..Output::default() };
    let scope = Scope::new(documents, workload, &mut output)?;
    let authorizers = custom::check(&scope, &mut output);
    let asked_for_keys = inbound::translate(&scope, &mut output);
    let mut selection = outbound::translate(&scope, &mut output);
    selection.extend(asked_for_keys.into_iter().chain(authorizers).chain(scope.collectors.iter().cloned()));
    clusters::translate(&scope, &selection, &mut output);
    outbound::warn_of_loops(&mut output);
    if !output.errors.is_empty() {
        output.errors.sort();
        output.errors.dedup();
        return Err(output.errors);
    }
    let Output { mut snapshot, warnings, .. } = output;
    snapshot.version = version(&snapshot);
    Ok(Translation { snapshot, warnings })
}

/// Equal for equal content, so that a file that is only touched shows no new version.
fn version(snapshot: &Snapshot) -> String {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(snapshot).unwrap_or_default().hash(&mut hasher);
    format!("istio-{:016x}", hasher.finish())
}

/// Ports of services, by host, that something refers to.
type Selection = BTreeSet<(String, u16)>;

/// What is being built.
#[derive(Default)]
struct Output {
    snapshot: Snapshot,
    warnings: Vec<String>,
    errors: Vec<DocumentError>,
}

impl Output {
    /// A warning, once.
    fn warn(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    fn add_cluster(&mut self, cluster: Cluster) {
        self.snapshot.clusters.insert(cluster.name.as_str().into(), cluster.into());
    }

    /// Adds a listener that `from`, an entry of the Sidecar, asks for, unless its address is taken.
    fn add_listener<T>(&mut self, scope: &Scope<'_>, listener: Listener, from: &Located<T>) {
        match self.snapshot.listeners.values().find(|other| other.conflicts_with(&listener)) {
            Some(other) => {
                let reason = format!("{}: the address of listener {} again", listener.address, other.name);
                self.errors.push(scope.sidecar_error(from.error(reason)));
            }
            None => {
                self.snapshot.listeners.insert(listener.name.clone(), Arc::new(listener));
            }
        }
    }
}
