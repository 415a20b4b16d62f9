use std::time::UNIX_EPOCH;

use prost::Message;
use rustls_pki_types::PrivateKeyDer;
use skiff_proto::istio::v1::auth::IstioCertificateRequest;

use super::*;
use crate::identity::{CertificateError, WorkloadCertificate, WorkloadKey, sole_spiffe_id};

const NOW: u64 = 1_800_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn at(seconds: u64) -> Clock {
    Clock::new(move || UNIX_EPOCH + Duration::from_secs(seconds))
}

fn open(state: &StateFolder, now: u64) -> Result<CertificateAuthority, StateError> {
    CertificateAuthority::load_or_create(state, &"cluster.local".parse().unwrap(), DAY, 90 * DAY, at(now))
}

fn with_ca(test: impl FnOnce(&CertificateAuthority)) {
    let folder = tempfile::tempdir().unwrap();
    test(&open(&StateFolder::open(folder.path()).unwrap(), NOW).unwrap());
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm".parse().unwrap()
}

fn csr() -> String {
    WorkloadKey::generate().unwrap().signing_request(&id()).unwrap()
}

fn leaf(issued: &IssuedCertificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.chain[0].as_bytes()).unwrap()
}

fn csr_of(key: &KeyPair, names: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn a_leaf_looks_as_istiods() {
    with_ca(|ca| {
        let issued = ca.issue(&csr(), &id(), 0).unwrap();
        assert_eq!(issued.chain.len(), 2, "[leaf, root]");
        assert_eq!(issued.chain[1], ca.root_pem());
        let der = leaf(&issued);
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0);
        assert_eq!(leaf.raw_serial_as_string().replace(':', ""), issued.serial);
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical && san.value.general_names.len() == 1);
        assert_eq!(sole_spiffe_id(&leaf), Some(id()));
        assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 5, "digitalSignature + keyEncipherment");
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
        let validity = leaf.validity();
        assert_eq!(validity.not_before.timestamp(), NOW as i64 - 120);
        assert_eq!(validity.not_after.timestamp(), NOW as i64 + 86_400);
    });
}

#[test]
fn lifetimes_follow_istiod() {
    with_ca(|ca| {
        for (requested, lifetime) in [(0, 86_400), (-1, 86_400), (60, 60), (90 * 86_400, 90 * 86_400)] {
            let issued = ca.issue(&csr(), &id(), requested).unwrap();
            assert_eq!(issued.not_after, UNIX_EPOCH + Duration::from_secs(NOW + lifetime), "{requested}");
        }
        let refused = ca.issue(&csr(), &id(), 91 * 86_400).unwrap_err().to_string();
        assert_eq!(refused, "CSR signing error (requested TTL 2184h0m0s is greater than the max allowed TTL 2160h0m0s)");
        assert!(ca.issue(&csr(), &id(), i64::MAX).is_err());
        assert!(ca.issue(&csr(), &id(), i64::MIN).is_ok());
    });
    let shown = [0, 59, 60, 3599, 3600, 90_061].map(|seconds| go_duration(Duration::from_secs(seconds)));
    assert_eq!(shown, ["0s", "59s", "1m0s", "59m59s", "1h0m0s", "25h1m1s"]);
}

#[test]
fn the_caller_decides_the_identity_and_the_request_only_the_key() {
    with_ca(|ca| {
        let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let admin = SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap());
        let dns = SanType::DnsName("istiod.istio-system.svc".try_into().unwrap());
        let rsa = include_bytes!("../../../testdata/csr/rsa-2048.request.bin");
        let rsa = IstioCertificateRequest::decode(rsa.as_slice()).unwrap().csr;
        for (what, csr) in [
            ("no SAN", csr_of(&p256, vec![])),
            ("SAN of somebody else", csr_of(&p256, vec![admin, dns])),
            ("P-384", csr_of(&p384, vec![])),
            ("Ed25519", csr_of(&ed25519, vec![])),
            ("RSA 2048 of pilot-agent", rsa),
        ] {
            let der = leaf(&ca.issue(&csr, &id(), 0).expect(what));
            let (_, leaf) = X509Certificate::from_der(&der).unwrap();
            assert_eq!(sole_spiffe_id(&leaf), Some(id()), "{what}");
            assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1, "{what}");
            assert!(!leaf.is_ca(), "{what}");
        }
    });
}

#[test]
fn bad_requests_are_refused() {
    with_ca(|ca| {
        let good = csr();
        let encoding = "CSR signing error (certificate signing request is not properly encoded)";
        let mut trailing = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        trailing.push(0);
        for bad in [
            "",
            "garbage",
            ca.root_pem(),
            &good.replace("REQUEST", "CERT"),
            &good[..good.len() / 2],
            &"x".repeat(20_000),
            &pem(&trailing),
        ] {
            assert_eq!(ca.issue(bad, &id(), 0).unwrap_err().to_string(), encoding, "{bad}");
        }
        // The key of a victim in a request that its private key has not signed.
        let mut forged = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        let victim = WorkloadKey::generate().unwrap().public_key();
        let start = forged.windows(27).position(|window| window == &victim[..27]).unwrap();
        forged[start..start + victim.len()].copy_from_slice(&victim);
        assert!(matches!(ca.issue(&pem(&forged), &id(), 0), Err(IssueError::Key(_))));
    });
}

fn pem(der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn the_root_survives_a_restart_and_old_leaves_still_verify() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let first = open(&state, NOW).unwrap();
    let key = WorkloadKey::generate().unwrap();
    let issued = first.issue(&key.signing_request(&id()).unwrap(), &id(), 0).unwrap();
    drop((first, state));

    // The lock of a killed plane is gone, and what its last write left does not matter.
    std::fs::write(folder.path().join("ca.pem.new"), "-----BEGIN PRIV").unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let second = open(&state, NOW + 600).unwrap();
    let chain = [issued.chain[0].clone(), second.root_pem().to_owned()];
    let verify = |now| WorkloadCertificate::verify(&chain, &key, &id(), UNIX_EPOCH + Duration::from_secs(now));
    verify(NOW + 600).unwrap();
    assert!(matches!(verify(NOW + 86_401), Err(CertificateError::Expired { .. })));
}

#[test]
fn a_damaged_or_useless_root_is_refused_rather_than_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    assert!(matches!(open(&state, 3600), Err(StateError::Clock(3600))), "a root of 1970");
    open(&state, NOW).unwrap();
    let good = state.read(CA_FILE).unwrap().unwrap();
    let certificate = pem_certificate(&good).unwrap();
    let key_only = good.replace(&certificate, "");
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let ten_years = open(&state, NOW + ROOT_LIFETIME.as_secs()).unwrap_err();
    assert!(ten_years.to_string().contains("root ended"), "{ten_years}");
    for bad in ["", "garbage", &good[..100], &key_only, &certificate, &(other_key + &certificate)] {
        state.write(CA_FILE, bad).unwrap();
        let error = open(&state, NOW).unwrap_err();
        assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
        assert!(!error.to_string().contains("BEGIN"), "{error}");
        assert_eq!(state.read(CA_FILE).unwrap().unwrap(), bad, "nothing is overwritten");
    }
}

#[test]
fn a_leaf_ends_with_its_root_at_the_latest() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    open(&state, NOW).unwrap();
    let ends = NOW + ROOT_LIFETIME.as_secs();
    let issued = open(&state, ends - 3600).unwrap().issue(&csr(), &id(), 0).unwrap();
    assert_eq!(issued.not_after, UNIX_EPOCH + Duration::from_secs(ends));
}

#[test]
fn the_key_never_shows_in_debug_output() {
    with_ca(|ca| {
        let shown = format!("{ca:?}");
        let key = PrivateKeyDer::Pkcs8(ca.issuer.key().serialize_der().into());
        assert!(shown.starts_with("CertificateAuthority { root_ends") && !shown.contains(&format!("{:?}", key.secret_der())));
    });
}
