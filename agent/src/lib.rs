//! The agent of skiff: what turns a process beside an application into a member of the mesh.
//!
//! - [`identity`]: the workload's certificate, from the first request to the last rotation.
//! - [`plane`]: the embedded onboarding plane, a certificate authority and token issuer for meshes without istiod.

pub mod identity;
pub mod plane;
