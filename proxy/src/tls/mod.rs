//! TLS: compiled contexts, SPIFFE verification, peer facts.

/// Facts of a verified peer certificate, extracted once per handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// URI SANs in order.
    pub uri_sans: Vec<String>,
    /// DNS SANs in order.
    pub dns_sans: Vec<String>,
    /// Subject as Envoy prints it (RFC 2253 order); empty when there is none.
    pub subject: String,
    /// SHA-256 of the leaf, lower-case hex.
    pub sha256: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Leaf, then what the peer sent along.
    pub chain: Vec<rustls_pki_types::CertificateDer<'static>>,
}

impl PeerCertificate {
    /// What RBAC and metrics call the principal: the first URI SAN, else the first DNS SAN, else the subject.
    pub fn principal(&self) -> &str {
        self.uri_sans.first().or(self.dns_sans.first()).unwrap_or(&self.subject)
    }
}
