//! x-forwarded-client-cert: what the next hop learns of the caller's certificate.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert>

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::config::{ForwardClientCert, SetCurrentClientCertDetails};
use crate::http::head::{Known, RequestHead};
use crate::stream_info::ConnectionInfo;
use crate::tls::PeerCertificate;

/// Applies the rule. Without a client certificate a caller's value is an unproved claim and removed.
pub(super) fn apply(head: &mut RequestHead, connection: &ConnectionInfo, element: &[u8], rule: ForwardClientCert, present: bool) {
    const ID: Known = Known::XForwardedClientCert;
    match rule {
        ForwardClientCert::AlwaysForwardOnly => {}
        _ if !connection.is_mtls() || rule == ForwardClientCert::Sanitize => {
            if present {
                head.headers.remove(ID);
            }
        }
        ForwardClientCert::ForwardOnly | ForwardClientCert::Sanitize => {}
        ForwardClientCert::SanitizeSet => head.headers.set(ID, element),
        ForwardClientCert::AppendForward => match head.headers.get(ID) {
            Some(value) if present && !value.is_empty() => {
                let appended = [value, b",", element].concat();
                head.headers.set(ID, &appended);
            }
            _ => head.headers.set(ID, element),
        },
    }
}

/// The element for a peer, made once per connection: By, Hash, Cert, Chain, Subject, URI, DNS.
pub fn client_cert_element(peer: &PeerCertificate, local_uri_san: Option<&str>, details: SetCurrentClientCertDetails) -> Vec<u8> {
    let mut parts = Vec::new();
    if let Some(uri) = local_uri_san {
        parts.push(format!("By={uri}"));
    }
    parts.push(format!("Hash={}", peer.sha256));
    if details.cert {
        let leaf = peer.chain.first().map(|cert| url_encoded_pem(cert)).unwrap_or_default();
        parts.push(format!("Cert=\"{leaf}\""));
    }
    if details.chain {
        let chain: String = peer.chain.iter().map(|cert| url_encoded_pem(cert)).collect();
        parts.push(format!("Chain=\"{chain}\""));
    }
    if details.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if details.uri {
        parts.extend(peer.uri_sans.iter().map(|san| format!("URI={san}")));
        if peer.uri_sans.is_empty() {
            parts.push("URI=".to_owned());
        }
    }
    if details.dns {
        parts.extend(peer.dns_sans.iter().map(|san| format!("DNS={san}")));
    }
    parts.join(";").into_bytes()
}

/// PEM with line feed, space, `+`, `/` and `=` percent-encoded.
fn url_encoded_pem(der: &[u8]) -> String {
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for line in BASE64_STANDARD.encode(der).as_bytes().chunks(64) {
        for byte in line {
            match byte {
                b'+' => out.push_str("%2B"),
                b'/' => out.push_str("%2F"),
                b'=' => out.push_str("%3D"),
                byte => out.push(char::from(*byte)),
            }
        }
        out.push_str("%0A");
    }
    out.push_str("-----END%20CERTIFICATE-----%0A");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerCertificate {
        PeerCertificate {
            uri_sans: vec!["spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews".into()],
            dns_sans: vec!["reviews.bookinfo.svc".into(), "reviews.example.test".into()],
            subject: "CN=reviews,O=Golden".into(),
            sha256: "8d14".into(),
            serial: "01".into(),
            chain: vec![vec![0xfb, 0xff, 0xfe, 0x00].into()],
        }
    }

    #[test]
    fn the_element_has_envoys_order() {
        // golden mtls.dns_and_subject, with what istiod asks for
        let details = SetCurrentClientCertDetails { subject: true, dns: true, uri: true, ..Default::default() };
        let element = client_cert_element(&peer(), Some("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details"), details);
        assert_eq!(
            String::from_utf8(element).unwrap(),
            "By=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details;Hash=8d14;Subject=\"CN=reviews,O=Golden\";\
             URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews;DNS=reviews.bookinfo.svc;DNS=reviews.example.test"
        );
    }

    #[test]
    fn certificates_are_url_encoded_pem() {
        let details = SetCurrentClientCertDetails { cert: true, ..Default::default() };
        assert_eq!(
            String::from_utf8(client_cert_element(&peer(), None, details)).unwrap(),
            "Hash=8d14;Cert=\"-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A\""
        );
    }
}
