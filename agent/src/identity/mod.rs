//! The workload's identity: an X.509 certificate with a SPIFFE id, fetched from an Istio certificate authority and
//! rotated before it ends.
//!
//! The way of a certificate: [`WorkloadKey`] makes a key and a signing request, [`CaClient`] has it signed over a
//! connection of [`ControlPlaneConnector`], [`WorkloadCertificate::verify`] distrusts the answer, and
//! [`IdentityManager`] publishes it as the secrets `default` and `ROOTCA`, then starts over at half of its lifetime.

mod backoff;
mod ca_client;
mod certificate;
mod clock;
mod connection;
mod files;
mod key;
mod manager;
mod token;

pub use backoff::Backoff;
pub use ca_client::{CaClient, CaError};
pub use certificate::{CertificateError, WorkloadCertificate, sole_spiffe_id};
pub use clock::Clock;
pub use connection::{ConnectError, ControlPlaneConnector, RootSource, Security};
pub use files::{read_certificates, write_certificates};
pub use key::{KeyError, WorkloadKey};
pub use manager::{IdentityConfig, IdentityManager, IdentityStatus, ROOT_SECRET, WORKLOAD_SECRET};
pub use token::{Token, TokenSource, TokenSourceError};

pub(crate) use certificate::system_time;
pub(crate) use connection::{crypto_provider, unverified_tls};
pub(crate) use token::authenticated;

#[cfg(test)]
mod tests;
