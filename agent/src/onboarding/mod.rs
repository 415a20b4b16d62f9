//! Workload Onboarding: how a workload outside of Kubernetes joins the mesh.
//!
//! - [`identity`]: who a workload is, once its credential has been verified, and what its objects are called.
//! - [`credential`]: what a workload shows to prove it, from AWS, a token, or a [`plugin`].
//! - [`aws`] and [`jwt`]: how a plane verifies it.

pub mod aws;
pub mod credential;
pub mod identity;
pub mod jwt;
pub mod plugin;
