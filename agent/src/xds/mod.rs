//! The client of istiod's aggregated discovery service: what it sends becomes the data plane's configuration.
//!
//! | File | What |
//! |---|---|
//! | `session` | the protocol of one stream, without I/O |
//! | `resources` | what was accepted, and which part of it is warm |
//! | `client` | connections, tokens, backoff; applies and acknowledges |
//! | `node` | who we say we are |
//! | `originals` | what was sent, packed, for `/config_dump` |
//! | `check` | the same for files: `skiff check xds` |
//! | `health` | probes of the application and their reports |
//!
//! Losing the control plane changes nothing that serves; a bad resource is answered with a NACK and its last good version stays.

mod check;
mod client;
mod health;
mod node;
mod originals;
mod packed;
#[cfg(test)]
pub(crate) mod recorded;
mod resources;
mod routes;
mod session;
mod table;
#[cfg(test)]
mod tests;

pub use check::check;
pub use client::{Connection, Xds};
pub use health::{HealthReport, Probe, ProbeAction};
pub(crate) use node::ISTIO_VERSION;
pub use node::NodeConfig;
pub use originals::{Content, Originals, Refusal, Shown};
pub use resources::{Kind, Resources};
pub use session::{Handled, Protocol, Request, Response, Session};
