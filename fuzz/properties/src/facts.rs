//! Connections and certificates that the properties reason about.

use std::sync::Arc;

use skiff_proxy::stream_info::ConnectionInfo;
use skiff_proxy::tls::PeerCertificate;

/// A downstream connection, with a client certificate where one is given.
pub fn connection(peer: Option<Arc<PeerCertificate>>) -> ConnectionInfo {
    let mut connection = ConnectionInfo::new(1, ([10, 0, 0, 2], 9080).into(), ([10, 0, 0, 1], 40000).into());
    if peer.is_some() {
        connection.tls_version = Some("TLSv1.3");
        connection.local_certificate = Some(Arc::new(certificate(&["spiffe://cluster.local/ns/b/sa/own"], &[], "")));
    }
    connection.peer = peer;
    connection
}

/// A certificate with these names.
pub fn certificate(uris: &[&str], dns: &[&str], subject: &str) -> PeerCertificate {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    PeerCertificate {
        uri_sans: owned(uris),
        dns_sans: owned(dns),
        subject: subject.to_owned(),
        sha256: "00ff".to_owned(),
        serial: "01".to_owned(),
        ..PeerCertificate::default()
    }
}
