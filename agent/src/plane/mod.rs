//! The embedded onboarding plane: what a workload needs to join a mesh when there is no istiod to ask.
//!
//! [`CertificateAuthority`] issues workload certificates as istiod does, [`TokenIssuer`] the tokens that prove who may have
//! one, and [`Plane`] serves Istio's certificate service over TLS. Keys live in a [`StateFolder`] and survive a restart.

mod ca;
mod crds;
mod inputs;
mod nonce;
pub mod objects;
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
mod workload;

pub use ca::{CertificateAuthority, IssueError, IssuedCertificate};
pub use crds::CRDS;
pub use inputs::Inputs;
pub use secrets::PlaneSecrets;
pub use server::{Limits, Plane, PlaneConfig, PlaneError};
pub use state::{StateError, StateFolder};
pub use token::{AUDIENCE, TokenError, TokenIssuer};

#[cfg(test)]
pub(crate) use server::TestPlane;

#[cfg(test)]
mod tests;
