//! The agent of skiff: everything around the data plane.
//!
//! - [`cli`]: the command line; [`connect`]: where a sidecar's configuration and certificates come from.
//! - [`sidecar`]: one sidecar, from documents ([`watch`], [`translate`]) and certificates ([`identity`]) to
//!   [`skiff_proxy::Proxy`]; [`admin`] shows what came of it, [`shutdown`] ends it.
//! - [`status`]: the ports that Istio's tools ask a workload on, beside the admin page.
//! - [`xds`]: the client of istiod, from which a sidecar in a real mesh has its configuration.
//! - [`bootstrap`]: the data plane from a static Envoy bootstrap, without any control plane.
//! - [`onboarding`]: how a workload outside of Kubernetes proves who it is and joins; [`aws`]: what AWS says about it.
//! - [`plane`]: the embedded onboarding plane, a certificate authority and token issuer for meshes without istiod.
//! - [`quickstart`]: a plane and two sidecars in one process.

pub mod admin;
pub mod aws;
pub mod bootstrap;
pub mod cli;
pub mod client;
pub mod connect;
pub mod descriptors;
pub mod exit;
pub mod fetch;
pub mod identity;
pub mod logging;
pub mod metrics;
pub mod onboarding;
mod page;
pub mod plane;
pub mod quickstart;
pub mod shutdown;
pub mod sidecar;
pub mod stand_in;
pub mod status;
pub mod translate;
pub mod watch;
pub mod xds;
