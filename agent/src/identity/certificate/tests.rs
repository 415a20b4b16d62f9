use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use skiff_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use time::OffsetDateTime;
use time::macros::datetime;
use x509_parser::certification_request::X509CertificationRequest;

use super::*;

const ID: &str = "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm";

/// Within the 24 hours of the captured certificates.
const CAPTURED: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

fn id() -> SpiffeId {
    ID.parse().unwrap()
}

/// What pilot-agent asked a real istiod with a plugged-in authority, and its answer; the message must survive our types
/// byte by byte.
fn captured(request: &[u8], response: &[u8]) -> (Vec<u8>, Vec<String>) {
    let parsed = IstioCertificateRequest::decode(request).unwrap();
    assert_eq!(parsed.encode_to_vec(), request);
    assert_eq!(parsed.validity_duration, 86400);
    let csr = CertificateSigningRequestDer::from_pem_slice(parsed.csr.as_bytes()).unwrap();
    let (_, csr) = X509CertificationRequest::from_der(&csr).unwrap();
    let public_key = csr.certification_request_info.subject_pki.raw.to_vec();
    let parsed = IstioCertificateResponse::decode(response).unwrap();
    assert_eq!(parsed.encode_to_vec(), response);
    (public_key, parsed.cert_chain)
}

fn verify(cert_chain: &[String], public_key: &[u8], now: OffsetDateTime) -> Result<WorkloadCertificate, CertificateError> {
    let key = Arc::new(PrivateKeyDer::Pkcs8(Vec::new().into()));
    WorkloadCertificate::verify_for(cert_chain, public_key, key, &id(), now.into())
}

#[test]
fn what_a_real_istiod_returned_is_split_into_chain_and_roots() {
    let (public_key, mut cert_chain) = captured(
        include_bytes!("../../../testdata/csr/ecdsa-p256.request.bin"),
        include_bytes!("../../../testdata/csr/ecdsa-p256.response.bin"),
    );
    assert_eq!(cert_chain.len(), 4, "[leaf, intermediate, root, root]");
    let certificate = verify(&cert_chain, &public_key, CAPTURED).unwrap();
    assert_eq!((certificate.chain.len(), certificate.roots.len()), (2, 1));
    assert_eq!(certificate.serial, "9ce56fe70a77facde1d41bd650b9edcb");
    assert_eq!(certificate.not_after, SystemTime::from(datetime!(2026-11-22 09:55:29 UTC)));

    // A bundle of several roots in the last element.
    let (_, other) = test_ca();
    cert_chain[3].push_str(&pem(&other));
    let certificate = verify(&cert_chain, &public_key, CAPTURED).unwrap();
    assert_eq!((certificate.chain.len(), certificate.roots.len()), (2, 2));

    let (public_key, cert_chain) = captured(
        include_bytes!("../../../testdata/csr/rsa-2048.request.bin"),
        include_bytes!("../../../testdata/csr/rsa-2048.response.bin"),
    );
    assert!(verify(&cert_chain, &public_key, CAPTURED).is_ok());
}

#[test]
fn the_clock_decides_about_captured_certificates() {
    let (public_key, cert_chain) = captured(
        include_bytes!("../../../testdata/csr/ecdsa-p256.request.bin"),
        include_bytes!("../../../testdata/csr/ecdsa-p256.response.bin"),
    );
    let at = |now| verify(&cert_chain, &public_key, now);
    let unset = at(OffsetDateTime::UNIX_EPOCH).unwrap_err().to_string();
    assert!(unset.contains("not yet valid") && unset.contains("1970") && unset.contains("NTP"), "{unset}");
    assert!(matches!(at(datetime!(2026-11-21 09:53:28 UTC)), Err(CertificateError::NotYetValid { .. })));
    assert!(at(datetime!(2026-11-21 09:53:29 UTC)).is_ok());
    assert!(at(datetime!(2026-11-22 09:55:29 UTC)).is_ok());
    assert!(matches!(at(datetime!(2026-11-22 09:55:30 UTC)), Err(CertificateError::Expired { .. })));
}

#[test]
fn shapes_that_istiod_never_returns_are_refused() {
    let (public_key, chain) = captured(
        include_bytes!("../../../testdata/csr/ecdsa-p256.request.bin"),
        include_bytes!("../../../testdata/csr/ecdsa-p256.response.bin"),
    );
    let (leaf, root) = (&chain[0], &chain[3]);
    let refused = |elements: &[&str]| {
        let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
        verify(&elements, &public_key, CAPTURED).unwrap_err()
    };
    assert!(matches!(refused(&[]), CertificateError::Shape(_)));
    assert!(matches!(refused(&[leaf]), CertificateError::Shape(_)));
    assert!(matches!(refused(&[leaf, ""]), CertificateError::Shape(_)));
    assert!(matches!(refused(&[root, root]), CertificateError::Shape(_)));
    assert!(matches!(refused(&[leaf, &root.repeat(64)]), CertificateError::Shape(_)));
    let malformed = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(refused(&[malformed, root]), CertificateError::Malformed(_)));
    // The intermediate is missing, or the order is wrong.
    assert!(matches!(refused(&[leaf, root]), CertificateError::Untrusted(_)));
    assert!(matches!(refused(&[&chain[1], leaf, root]), CertificateError::WrongKey));
}

fn test_ca() -> (Issuer<'static, KeyPair>, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("test root {}", fastrand::u64(..)));
    let root = params.self_signed(&key).unwrap().der().clone();
    (Issuer::from_ca_cert_der(&root, key).unwrap(), root)
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A leaf of `ca` for `key`, as istiod makes it, then changed.
fn leaf(ca: &Issuer<'static, KeyPair>, key: &WorkloadKey, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(ID)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let public_key = rcgen::SubjectPublicKeyInfo::from_der(&key.public_key()).unwrap();
    params.signed_by(&public_key, ca).unwrap().pem()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn only_our_own_identity_is_accepted() {
    let (ca, root) = test_ca();
    let key = WorkloadKey::generate().unwrap();
    let verify = |sans: Vec<SanType>| {
        let chain = [leaf(&ca, &key, |params| params.subject_alt_names = sans), pem(&root)];
        WorkloadCertificate::verify(&chain, &key, &id(), CAPTURED.into())
    };
    assert!(verify(vec![uri(ID)]).is_ok());
    assert!(verify(vec![SanType::DnsName("ratings.bookinfo".try_into().unwrap()), uri(ID)]).is_ok());
    for sans in [
        vec![],
        vec![uri("spiffe://cluster.local/ns/bookinfo/sa/reviews")],
        vec![uri("spiffe://cluster.local.evil/ns/bookinfo/sa/ratings-vm")],
        vec![uri("spiffe://cluster.local/ns/bookinfo/sa/ratings-vm\0")],
        vec![uri("spiffe://cluster.local/ns/bookinfo/sa/ratings-vm\0.evil")],
        vec![uri("SPIFFE://cluster.local/ns/bookinfo/sa/ratings-vm")],
        vec![uri(ID), uri("spiffe://cluster.local/ns/bookinfo/sa/reviews")],
        vec![uri(ID), uri(ID)],
        vec![SanType::DnsName(ID.try_into().unwrap())],
        vec![SanType::Rfc822Name(ID.try_into().unwrap())],
    ] {
        let shown = format!("{sans:?}");
        assert!(matches!(verify(sans), Err(CertificateError::WrongIdentity { .. })), "{shown}");
    }
}

#[test]
fn certificates_that_peers_would_refuse_are_refused_first() {
    let (ca, root) = test_ca();
    let (other_ca, _) = test_ca();
    let key = WorkloadKey::generate().unwrap();
    let verify = |leaf: String| WorkloadCertificate::verify(&[leaf, pem(&root)], &key, &id(), CAPTURED.into()).unwrap_err();
    let only = |usage| move |params: &mut CertificateParams| params.extended_key_usages = vec![usage];
    for forged in [
        leaf(&ca, &key, only(ExtendedKeyUsagePurpose::ClientAuth)),
        leaf(&ca, &key, only(ExtendedKeyUsagePurpose::ServerAuth)),
        leaf(&ca, &key, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        leaf(&other_ca, &key, |_| {}),
    ] {
        let error = verify(forged);
        assert!(matches!(error, CertificateError::Untrusted(_)), "{error}");
    }
    assert_eq!(verify(leaf(&ca, &WorkloadKey::generate().unwrap(), |_| {})), CertificateError::WrongKey);
    let expired = leaf(&ca, &key, |params| params.not_after = datetime!(2026-11-21 11:59:59 UTC));
    assert!(matches!(verify(expired), CertificateError::Expired { .. }));
}

#[test]
fn the_signing_request_is_what_pilot_agent_sends() {
    let key = WorkloadKey::generate().unwrap();
    let csr = key.signing_request(&id()).unwrap();
    let csr = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
    let (_, csr) = X509CertificationRequest::from_der(&csr).unwrap();
    csr.verify_signature().unwrap();
    assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
    assert_eq!(csr.certification_request_info.subject_pki.raw, key.public_key());
    assert_eq!(csr.requested_extensions().unwrap().count(), 1);
    // subjectAltName, critical TRUE.
    assert!(csr.certification_request_info.raw.windows(8).any(|w| w == [6, 3, 0x55, 0x1d, 0x11, 1, 1, 0xff]));
    assert_eq!(format!("{key:?}"), "WorkloadKey { <hidden> }");
}
