//! x-forwarded-client-cert: what the next hop learns of the caller's certificate.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert>

use crate::config::ForwardClientCert;
use crate::http::head::{Known, RequestHead};
use crate::stream_info::ConnectionInfo;

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

#[cfg(test)]
mod tests {
    use crate::config::SetCurrentClientCertDetails;
    use crate::tls::{PeerCertificate, forwarded_client_cert};

    fn element(local_uri_san: Option<&str>, details: SetCurrentClientCertDetails) -> String {
        let mut element = Vec::new();
        forwarded_client_cert(&peer(), local_uri_san, details, &mut element);
        String::from_utf8(element).unwrap()
    }

    fn peer() -> PeerCertificate {
        PeerCertificate {
            uri_sans: vec!["spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews".into()],
            dns_sans: vec!["reviews.bookinfo.svc".into(), "reviews.example.test".into()],
            subject: "CN=reviews,O=Golden".into(),
            sha256: "8d14".into(),
            serial: "01".into(),
            chain: vec![vec![0xfb, 0xff, 0xfe, 0x00].into()],
            ..PeerCertificate::default()
        }
    }

    #[test]
    fn the_element_has_envoys_order() {
        // golden mtls.dns_and_subject, with what istiod asks for
        let details = SetCurrentClientCertDetails { subject: true, dns: true, uri: true, ..Default::default() };
        assert_eq!(
            element(Some("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details"), details),
            "By=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details;Hash=8d14;Subject=\"CN=reviews,O=Golden\";\
             URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews;DNS=reviews.bookinfo.svc;DNS=reviews.example.test"
        );
    }

    #[test]
    fn certificates_are_url_encoded_pem() {
        let details = SetCurrentClientCertDetails { cert: true, ..Default::default() };
        assert_eq!(
            element(None, details),
            "Hash=8d14;Cert=\"-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A\""
        );
    }
}
