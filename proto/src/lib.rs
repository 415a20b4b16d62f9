//! The wire types of skiff's control plane, generated from the `.proto` files in `proto/` of this crate.
//!
//! Modules follow the protobuf packages: [`istio::v1::auth`] is Istio's certificate service, [`skiff::onboarding::v1alpha1`] that of
//! the onboarding plane. Envoy's own messages come from the published crate `envoy-types`: [`envoy`], [`google`], [`opentelemetry`],
//! [`xds`]; [`ENVOY_DESCRIPTORS`] describes those of a bootstrap.
//! What Istio adds to Envoy is in [`filters`].

pub use envoy_types::pb::{envoy, google, opentelemetry::proto as opentelemetry, xds};

/// The descriptors (an encoded `FileDescriptorSet`) of what a bootstrap and the xDS resources skiff takes are made of.
///
/// They come from the same release of `envoy-types` as the Rust types and carry the names that the JSON form needs.
pub const ENVOY_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));

/// The same of [`filters`] alone: a pool of these takes next to no memory.
pub const FILTER_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/filters.bin"));

pub mod codec;
pub mod schema;

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

/// Configuration of the filters that Istio adds to Envoy.
pub mod filters {
    /// `io.istio.http.peer_metadata`: who is on the other side of a request.
    #[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated")]
    pub mod peer_metadata {
        include!(concat!(env!("OUT_DIR"), "/io.istio.http.peer_metadata.rs"));
    }
    /// `envoy.tcp.metadataexchange.config`: the same for connections.
    #[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated")]
    pub mod metadata_exchange {
        include!(concat!(env!("OUT_DIR"), "/envoy.tcp.metadataexchange.config.rs"));
    }
    /// `stats`: Istio's metrics.
    #[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated")]
    pub mod stats {
        include!(concat!(env!("OUT_DIR"), "/stats.rs"));
    }
}
