//! Istio YAML for one workload, with istiod's semantics for a sidecar without iptables.

mod de;
mod documents;
mod schema;
mod values;
mod yaml;

pub use documents::{DocumentError, Documents};
