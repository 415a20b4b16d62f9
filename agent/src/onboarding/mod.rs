//! Workload Onboarding: how a workload outside of Kubernetes joins the mesh.
//!
//! - [`identity`]: who a workload is, once its credential has been verified, and what its objects are called.

pub mod identity;
