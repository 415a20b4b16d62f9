//! Signature algorithms (RFC 7518 §3.1, RFC 8037): those that Envoy knows. `none` is not among them.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self as signatures, RsaParameters, VerificationAlgorithm};

macro_rules! algorithms {
    ($($name:ident,)*) => {
        /// A signature algorithm.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Algorithm {
            $($name,)*
        }

        impl Algorithm {
            /// The algorithm of a JWA name, whose case counts.
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

algorithms! {
    RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, HS256, HS384, HS512, EdDSA,
}

/// Those of RSA keys, with what verifies them.
pub(super) const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::RS256, &signatures::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &signatures::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &signatures::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &signatures::RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &signatures::RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &signatures::RSA_PSS_2048_8192_SHA512),
];

/// Those of shared secrets.
pub(super) const HMAC: [(Algorithm, hmac::Algorithm); 3] =
    [(Algorithm::HS256, hmac::HMAC_SHA256), (Algorithm::HS384, hmac::HMAC_SHA384), (Algorithm::HS512, hmac::HMAC_SHA512)];

/// An elliptic curve of ECDSA. Each has one algorithm (RFC 7518 §3.4).
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) algorithm: Algorithm,
    /// Bytes of a coordinate.
    pub(super) size: usize,
    pub(super) verifier: &'static dyn VerificationAlgorithm,
}

pub(super) const CURVES: [Curve; 3] = [
    Curve { name: "P-256", algorithm: Algorithm::ES256, size: 32, verifier: &signatures::ECDSA_P256_SHA256_FIXED },
    Curve { name: "P-384", algorithm: Algorithm::ES384, size: 48, verifier: &signatures::ECDSA_P384_SHA384_FIXED },
    Curve { name: "P-521", algorithm: Algorithm::ES512, size: 66, verifier: &signatures::ECDSA_P521_SHA512_FIXED },
];
