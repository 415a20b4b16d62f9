//! The onboarding plane: it lets workloads outside of Kubernetes join a mesh.
//!
//! [`Plane`] serves, over TLS: onboarding (who may join, by [`policy`]; what is registered for them, in a [`store`] of [`objects`]),
//! and, where there is no istiod, what a workload needs of one: [`CertificateAuthority`] issues workload certificates as istiod does,
//! [`TokenIssuer`] the tokens that prove who may have one. Keys live in a [`StateFolder`] and survive a restart.

mod admin;
mod ca;
mod config;
mod connection;
mod crds;
mod inputs;
mod issuers;
mod limits;
mod nonce;
mod numbers;
pub mod objects;
mod onboarding;
mod packages;
pub mod policy;
mod secrets;
mod server;
mod server_certificate;
mod service;
mod session;
mod state;
pub mod store;
mod streams;
mod token;
mod verify;
mod workload;

pub use admin::{Admin, fetch_registrations};
pub use ca::{CertificateAuthority, IssueError, IssuedCertificate};
pub use config::{Limits, PlaneConfig, Transport};
pub use crds::CRDS;
pub use inputs::Inputs;
pub use issuers::{Checked, check, read_issuers};
pub use limits::Rate;
pub use numbers::HISTOGRAMS;
pub use onboarding::{MeshSettings, OnboardingConfig, OnboardingLimits, OnboardingSettings};
pub use secrets::PlaneSecrets;
pub use server::{Authority, Plane, PlaneError};
pub use state::{StateError, StateFolder};
pub use token::{AUDIENCE, TokenError, TokenIssuer};
pub use verify::Verifiers;

#[cfg(test)]
pub(crate) use connection::TestPlane;

/// Istio's name of a control plane, in the certificate of the plane's own authority.
pub const OWN_NAME: &str = "istiod.istio-system.svc";

#[cfg(test)]
mod tests;
