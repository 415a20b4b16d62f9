//! From what people and control planes write to what the data plane reads: pure functions into
//! [`skiff_proxy::config::Snapshot`], without I/O.

pub mod envoy;
pub mod istio;
mod uri;
