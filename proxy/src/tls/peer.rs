//! Facts of the other side's certificate, and the `x-forwarded-client-cert` element made of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use data_encoding::{HEXLOWER, HEXUPPER};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::provider;
use super::verify::Sans;
use crate::config::SetCurrentClientCertDetails;

/// Facts of a certificate: of a verified peer, extracted once per handshake, or our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// URI SANs in order.
    pub uri_sans: Vec<String>,
    /// DNS SANs in order.
    pub dns_sans: Vec<String>,
    /// E-mail SANs in order.
    pub email_sans: Vec<String>,
    /// IP address SANs in order, in their usual form.
    pub ip_sans: Vec<String>,
    /// Subject as Envoy prints it (RFC 2253 order); empty when there is none.
    pub subject: String,
    /// Issuer, in the same form.
    pub issuer: String,
    /// When it is valid: from, until.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// SHA-256 of the leaf, lower-case hex.
    pub sha256: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Leaf, then what the peer sent along.
    pub chain: Vec<CertificateDer<'static>>,
}

impl PeerCertificate {
    /// What RBAC and metrics call the principal: the first URI SAN, else the first DNS SAN, else the subject.
    pub fn principal(&self) -> &str {
        self.uri_sans.first().or(self.dns_sans.first()).unwrap_or(&self.subject)
    }

    /// The first URI, a SPIFFE id in a mesh: what Istio's metrics call a principal.
    pub fn uri_san(&self) -> Option<&str> {
        self.uri_sans.first().map(String::as_str)
    }

    /// The certificate as `%DOWNSTREAM_PEER_CERT%` prints it: PEM, percent-encoded.
    pub fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encoded_pem(&self.chain[..1.min(self.chain.len())], &mut out);
        out
    }

    /// The facts of the first certificate of a chain; `None` when it cannot be parsed.
    pub(super) fn parse(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = chain.first()?;
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let sans = Sans::of(&certificate).ok()?;
        Some(Self {
            uri_sans: sans.uris,
            dns_sans: sans.dns,
            email_sans: sans.emails,
            ip_sans: sans.ips,
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            validity: Some((
                system_time(certificate.validity().not_before.timestamp()),
                system_time(certificate.validity().not_after.timestamp()),
            )),
            sha256: HEXLOWER.encode(provider::sha256(leaf).as_ref()),
            serial: serial(&certificate),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
        })
    }
}

/// The certificate that the other side proved in a finished handshake; `None` when it showed none.
pub fn peer_certificate(connection: &rustls::CommonState) -> Option<Arc<PeerCertificate>> {
    PeerCertificate::parse(connection.peer_certificates()?).map(Arc::new)
}

/// Appends the element that Envoy adds to `x-forwarded-client-cert` for this peer: By, Hash, Cert, Chain, Subject, URI, DNS,
/// in this order. The same for every request of a connection, so it is made once.
///
/// Delimiters inside a URI or DNS SAN are percent-encoded, which Envoy does not do: a signer must not be able to add elements.
pub fn forwarded_client_cert(
    peer: &PeerCertificate,
    local_uri_san: Option<&str>,
    details: SetCurrentClientCertDetails,
    out: &mut Vec<u8>,
) {
    if let Some(by) = local_uri_san {
        out.extend_from_slice(b"By=");
        escape_delimiters(by, out);
        out.push(b';');
    }
    out.extend_from_slice(b"Hash=");
    out.extend_from_slice(peer.sha256.as_bytes());
    if details.cert {
        out.extend_from_slice(b";Cert=\"");
        encoded_pem(&peer.chain[..1.min(peer.chain.len())], out);
        out.push(b'"');
    }
    if details.chain {
        out.extend_from_slice(b";Chain=\"");
        encoded_pem(&peer.chain, out);
        out.push(b'"');
    }
    if details.subject {
        out.extend_from_slice(b";Subject=\"");
        out.extend_from_slice(peer.subject.as_bytes());
        out.push(b'"');
    }
    for (key, names, wanted) in [("URI", &peer.uri_sans, details.uri), ("DNS", &peer.dns_sans, details.dns)] {
        for name in names.iter().filter(|_| wanted) {
            out.push(b';');
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            escape_delimiters(name, out);
        }
    }
}

fn escape_delimiters(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b',' => out.extend_from_slice(b"%2C"),
            b';' => out.extend_from_slice(b"%3B"),
            b'"' => out.extend_from_slice(b"%22"),
            byte => out.push(byte),
        }
    }
}

/// PEM with the five characters percent-encoded that Envoy encodes.
pub(crate) fn encoded_pem(chain: &[CertificateDer<'_>], out: &mut Vec<u8>) {
    for certificate in chain {
        out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
        for line in BASE64_STANDARD.encode(certificate).as_bytes().chunks(64) {
            for byte in line {
                match byte {
                    b'+' => out.extend_from_slice(b"%2B"),
                    b'/' => out.extend_from_slice(b"%2F"),
                    b'=' => out.extend_from_slice(b"%3D"),
                    byte => out.push(*byte),
                }
            }
            out.extend_from_slice(b"%0A");
        }
        out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
    }
}

/// A point in time from seconds since 1970.
pub(super) fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// The serial number as `%DOWNSTREAM_PEER_SERIAL%` prints it.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    let raw = certificate.raw_serial();
    HEXLOWER.encode(if raw.len() > 1 && raw[0] == 0 { &raw[1..] } else { raw })
}

/// A subject or an issuer in RFC 2253 form: last attribute first, `CN=reviews,O=Golden`.
pub(super) fn name(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let names: Vec<_> = name.iter_rdn().collect();
    for (index, rdn) in names.iter().rev().enumerate() {
        for (part, attribute) in rdn.iter().enumerate() {
            match (index, part) {
                (0, 0) => {}
                (_, 0) => out.push(','),
                _ => out.push('+'),
            }
            push_attribute(attribute, &mut out);
        }
    }
    out
}

fn push_attribute(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let oid = attribute.attr_type().to_id_string();
    let name = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        other => other,
    };
    out.push_str(name);
    out.push('=');
    match attribute.as_str() {
        Ok(value) => push_escaped(value, out),
        Err(_) => {
            out.push('#');
            out.push_str(&HEXLOWER.encode(attribute.attr_value().data));
        }
    }
}

/// RFC 2253 escapes, and as OpenSSL does, everything that is not printable ASCII as `\XX`.
fn push_escaped(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        let special = matches!(byte, b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';')
            || (at == 0 && matches!(byte, b'#' | b' '))
            || (at == last && byte == b' ');
        if !(b' '..=b'~').contains(&byte) {
            out.push('\\');
            out.push_str(&HEXUPPER.encode(&[byte]));
            continue;
        }
        if special {
            out.push('\\');
        }
        out.push(char::from(byte));
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::tls::testing::{Ca, uri};

    const BY: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details";
    const ISTIO: SetCurrentClientCertDetails =
        SetCurrentClientCertDetails { subject: true, cert: false, chain: false, dns: true, uri: true };

    fn golden(pem: &[u8]) -> PeerCertificate {
        PeerCertificate::parse(&[CertificateDer::from_pem_slice(pem).unwrap()]).unwrap()
    }

    fn element(peer: &PeerCertificate, by: Option<&str>, details: SetCurrentClientCertDetails) -> String {
        let mut out = Vec::new();
        forwarded_client_cert(peer, by, details, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn elements_are_those_that_envoy_writes() {
        let plain = golden(include_bytes!("../../testdata/certs/client.pem"));
        let named = golden(include_bytes!("../../testdata/certs/client-dns.pem"));
        assert_eq!(
            element(&named, Some(BY), ISTIO),
            "By=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details;\
             Hash=8d1430ff47beb01e355396020525ef86e353aea69583c8f9d9d2dc2aeedccaea;Subject=\"CN=reviews,O=Golden\";\
             URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews;DNS=reviews.bookinfo.svc;DNS=reviews.example.test"
        );
        // Recorded: golden scenario mtls.xfcc_certchain.
        let with_cert = SetCurrentClientCertDetails { cert: true, chain: true, ..ISTIO };
        assert_eq!(element(&plain, Some(BY), with_cert), include_str!("../../testdata/certs/xfcc-cert.txt"));
        let bare = element(&plain, None, SetCurrentClientCertDetails { chain: true, ..Default::default() });
        assert!(bare.starts_with("Hash=cac1ba3ee11b66eb4c2913b6774ed7fce329397f4f43c2c73e6bc58f0c3a8b5c;Chain=\"-----BEGIN%20"));
        assert_eq!(plain.serial, "119fa97f48c8270d8b230826d6810c1b7e53b96b");
    }

    #[test]
    fn a_san_cannot_add_an_element() {
        let leaf = Ca::new("mesh").workload("spiffe://td/ns/a/sa/b,By=x;URI=\"spiffe://td/admin\"");
        let peer = PeerCertificate::parse(&[leaf.certificate]).unwrap();
        let uri = SetCurrentClientCertDetails { uri: true, ..Default::default() };
        let element = element(&peer, None, uri);
        assert!(element.ends_with(";URI=spiffe://td/ns/a/sa/b%2CBy=x%3BURI=%22spiffe://td/admin%22"), "{element}");
    }

    #[test]
    fn subjects_are_escaped_as_openssl_does() {
        let leaf = Ca::new("mesh").issue(vec![uri("spiffe://td/ns/a/sa/b")], |params| {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "A, \"B\"");
            params.distinguished_name.push(rcgen::DnType::CommonName, " caf\u{e9}");
        });
        let peer = PeerCertificate::parse(&[leaf.certificate]).unwrap();
        assert_eq!(peer.subject, r#"CN=\ caf\C3\A9,O=A\, \"B\""#);
    }
}
