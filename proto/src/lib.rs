//! The wire types of skiff's control plane, generated from the `.proto` files in `proto/` of this crate.
//!
//! Modules follow the protobuf packages: [`istio::v1::auth`] is Istio's certificate service.

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
