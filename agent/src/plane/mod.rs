//! The embedded onboarding plane: what a workload needs to join a mesh when there is no istiod to ask.
//!
//! [`CertificateAuthority`] issues workload certificates as istiod does, [`TokenIssuer`] the tokens that prove who may have
//! one, and [`Plane`] serves Istio's certificate service over TLS. Keys live in a [`StateFolder`] and survive a restart.

mod ca;
pub mod objects;
mod server;
mod server_certificate;
mod service;
mod state;
pub mod store;
mod token;

pub use ca::{CertificateAuthority, IssueError, IssuedCertificate};
pub use server::{Limits, Plane, PlaneConfig, PlaneError};
pub use state::{StateError, StateFolder};
pub use token::{AUDIENCE, TokenError, TokenIssuer};

#[cfg(test)]
pub(crate) use server::TestPlane;

#[cfg(test)]
mod tests;
