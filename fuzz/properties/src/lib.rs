//! What must hold for whatever bytes come in: one function for each parser of network input and for each translation.
//!
//! `fuzz/fuzz_targets` gives them bytes that libFuzzer makes up, `tests/replay.rs` of this crate those in `fuzz/corpus`, which
//! hold every input that once found a fault. A function panics when its property does not hold. They use what the crates offer
//! to everybody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a property that does not hold panics")]

pub mod access_log;
pub mod connection;
pub mod discovery;
pub mod facts;
pub mod forwarding;
pub mod http1;
pub mod http2;
pub mod input;
pub mod onboarding;
pub mod path;
pub mod peer;
pub mod proxy;
pub mod rbac;
pub mod routes;
pub mod strict;
pub mod tls;
pub mod translate;

/// A property: panics when the bytes break it.
pub type Property = fn(&[u8]);

/// All of them, by the name of their fuzz target and of their folder in the corpus.
pub const ALL: &[(&str, Property)] = &[
    ("access_log", access_log::access_log),
    ("bootstrap", translate::bootstrap),
    ("certificate", tls::certificate),
    ("client_hello", tls::client_hello),
    ("discovery", discovery::discovery),
    ("forwarding", forwarding::forwarding),
    ("http1_body", http1::body),
    ("http1_connection", connection::connection),
    ("http1_request", http1::request),
    ("http1_response", http1::response),
    ("http2_upstream", http2::upstream),
    ("http_sniff", tls::http_sniff),
    ("instance_document", onboarding::instance_document),
    ("istio", translate::istio),
    ("path", path::path),
    ("peer", peer::peer),
    ("proof", onboarding::proof),
    ("proxy", proxy::proxy),
    ("rbac", rbac::rbac),
    ("resource", translate::resource),
    ("routes", routes::routes),
    ("spiffe_id", tls::spiffe_id),
];
