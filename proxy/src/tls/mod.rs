//! TLS: secrets, compiled contexts, SPIFFE verification, peer facts.
//!
//! [`Secrets`] holds what the agent (or a file) gives: certificates and trust bundles. A [`ServerContext`] or [`ClientContext`]
//! is compiled from a configuration and from the secrets it names; a new secret rebuilds the contexts that use it and swaps
//! them atomically, so that new handshakes see it and open connections live on. Mirrors Envoy's transport socket `tls` with SDS.
//!
//! Nothing resumes: every handshake verifies the peer against the trust of that moment, so a session can outlive neither a
//! change of trust nor the certificate that it was made with (CVE-2022-21654). Sidecars keep few and long connections, which
//! makes that cheap.

mod client;
mod failure;
mod hello;
mod peer;
mod provider;
mod revocation;
mod secrets;
mod server;
mod sniff;
#[cfg(test)]
mod testing;
mod verify;

pub use client::ClientContext;
pub use failure::failure_reason;
pub(crate) use peer::encoded_pem;
pub use peer::{PeerCertificate, forwarded_client_cert, peer_certificate};
pub use secrets::Secrets;
pub use server::ServerContext;
pub use sniff::{HttpSniff, SNIFF_LIMIT, Sniff, sniff, sniff_http};
pub use verify::SanError;

use std::sync::Arc;

use crate::config::CertificateSource;

/// Why a secret or a context is refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be parsed.
    #[error("{source_name}: certificate {index}: {reason}")]
    Certificate {
        /// Which secret or file.
        source_name: String,
        /// Position in the chain or bundle, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// The chain or the bundle is empty.
    #[error("{0}: holds no certificate")]
    Empty(String),
    /// The key cannot be loaded, or it does not belong to the leaf.
    #[error("{source_name}: private key: {reason}")]
    Key {
        /// Which secret or file.
        source_name: String,
        /// What is wrong.
        reason: String,
    },
    /// A certificate is wanted where a trust bundle is, or the other way round.
    #[error("{source_name}: expected {expected}")]
    Kind {
        /// Which secret or file.
        source_name: String,
        /// What the configuration wants.
        expected: &'static str,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The configuration contradicts itself.
    #[error("TLS context: {0}")]
    Config(String),
    /// A secret that the configuration names has not arrived; the connection is refused.
    #[error("a secret has not arrived yet")]
    NotReady,
}

/// Facts of a finished handshake, for [`crate::stream_info::ConnectionInfo`].
#[derive(Clone, Debug)]
pub struct Handshake {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's name of the cipher suite.
    pub cipher: &'static str,
    /// The protocol that both sides agreed on.
    pub alpn: Option<Box<[u8]>>,
    /// SNI.
    pub server_name: Option<Box<str>>,
    /// The verified certificate of the other side.
    pub peer: Option<Arc<PeerCertificate>>,
    /// Our own certificate.
    pub local: Option<Arc<PeerCertificate>>,
}

impl Handshake {
    fn new(connection: &rustls::CommonState, server_name: Option<&str>, local: Option<Arc<PeerCertificate>>) -> Self {
        Self {
            version: connection.protocol_version().map_or("", provider::version_name),
            cipher: connection.negotiated_cipher_suite().map_or("", |suite| provider::cipher_name(suite.suite())),
            alpn: connection.alpn_protocol().map(Into::into),
            server_name: server_name.map(Into::into),
            peer: peer_certificate(connection),
            local,
        }
    }
}

/// How errors and the admin page name a source.
fn source_name(source: &CertificateSource) -> String {
    match source {
        CertificateSource::Secret(name) => name.clone(),
        CertificateSource::Files { certificates, .. } => certificates.display().to_string(),
        CertificateSource::RevocationFile(path) => path.display().to_string(),
        CertificateSource::Inline { .. } | CertificateSource::RevocationInline(_) => "inline".to_owned(),
        CertificateSource::System => "system".to_owned(),
    }
}

#[cfg(test)]
mod tests;
