//! The data plane of skiff.
//!
//! A library that knows no protobuf, YAML, AWS or Kubernetes: it takes a [`config::Snapshot`] and secrets, and carries traffic.
//! Folders follow a request: [`listener`] → [`http`] (or [`tcp`]) → [`upstream`] → [`telemetry`].

pub mod cel;
pub mod config;
mod drain;
pub mod error;
pub mod flags;
pub mod http;
pub mod jwt;
pub mod listener;
pub mod net;
pub mod peer;
mod proxy;
pub mod rbac;
pub mod stream_info;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;

pub use proxy::{
    ApplyReport, CertificateStatus, ClusterStatus, EndpointStatus, ListenerState, ListenerStatus, Options, Proxy,
    PublicCertificates, Rejected,
};
