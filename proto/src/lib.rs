//! The wire types of skiff's control plane, generated from the `.proto` files in `proto/` of this crate.
//!
//! Modules follow the protobuf packages: [`istio::v1::auth`] is Istio's certificate service, [`skiff::onboarding::v1alpha1`] that of
//! the onboarding plane. Envoy's own messages come from
//! the published crate `envoy-types`: [`envoy`], [`google`], [`xds`]; [`ENVOY_DESCRIPTORS`] describes those of a bootstrap.

pub use envoy_types::pb::{envoy, google, xds};

/// The descriptors (an encoded `FileDescriptorSet`) of what a bootstrap and the xDS resources skiff takes are made of.
///
/// They come from the same release of `envoy-types` as the Rust types and carry the names that the JSON form needs.
pub const ENVOY_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));

/// Istio's packages.
pub mod istio {
    /// Version 1.
    pub mod v1 {
        /// Istio's certificate service (`istio.v1.auth`): how a workload gets its certificate from istiod.
        #[allow(
            missing_docs,
            unused_qualifications,
            clippy::all,
            reason = "generated; what is documented there comes from the .proto file"
        )]
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

/// Our own packages.
pub mod skiff {
    /// The onboarding plane.
    pub mod onboarding {
        /// Version 1alpha1: how a workload joins a mesh through an onboarding plane (`skiff.onboarding.v1alpha1`).
        #[allow(
            missing_docs,
            unused_qualifications,
            clippy::all,
            reason = "generated; what is documented there comes from the .proto file"
        )]
        pub mod v1alpha1 {
            tonic::include_proto!("skiff.onboarding.v1alpha1");
        }
    }
}
