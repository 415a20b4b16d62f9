use std::io;
use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::HandshakeKind;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::testing::{Ca, Leaf, dns, uri};
use super::*;
use crate::config::{
    CertificatePin, DownstreamTls, InlinePem, Regex, SanMatcher, Secret, StringMatch, StringMatcher, TlsVersion, UpstreamTls,
};

const DETAILS: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details";
const PRODUCTPAGE: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage";
const SNI: &str = "outbound_.9080_._.details.bookinfo.svc.cluster.local";

type Accepted = (tokio_rustls::server::TlsStream<DuplexStream>, Handshake);
type Connected = (tokio_rustls::client::TlsStream<DuplexStream>, Handshake);

fn secret(name: &str) -> CertificateSource {
    CertificateSource::Secret(name.into())
}

fn downstream() -> DownstreamTls {
    DownstreamTls {
        certificate: secret("default"),
        trust: Some(secret("ROOTCA")),
        require_client_certificate: true,
        sans: vec![SanMatcher::Any(StringMatcher::prefix("spiffe://cluster.local/"))],
        pins: Vec::new(),
        revocation: None,
        alpn: vec!["h2".into(), "http/1.1".into()],
        versions: (TlsVersion::Tls12, TlsVersion::Tls13),
    }
}

fn upstream() -> UpstreamTls {
    UpstreamTls {
        certificate: Some(secret("default")),
        trust: Some(secret("ROOTCA")),
        sans: vec![SanMatcher::Any(StringMatcher::exact(DETAILS))],
        pins: Vec::new(),
        revocation: None,
        sni: SNI.into(),
        auto_sni: false,
        auto_san_validation: false,
        alpn: vec!["http/1.1".into()],
        versions: (TlsVersion::Tls12, TlsVersion::Tls13),
    }
}

/// The secrets of one workload.
fn workload(trust: &Ca, leaf: &Leaf) -> Arc<Secrets> {
    let secrets = Secrets::new();
    secrets.set("default", leaf.secret()).unwrap();
    secrets.set("ROOTCA", trust.trust()).unwrap();
    secrets
}

async fn shake(
    server: &ServerContext,
    client: &ClientContext,
    alpn: Option<&[String]>,
) -> (io::Result<Accepted>, io::Result<Connected>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    tokio::join!(server.accept(ours), client.connect(theirs, alpn, None))
}

/// Shakes hands with a client that presents whatever it likes; what the server makes of it.
async fn intrude(server: &ServerContext, leaf: &Leaf) -> io::Result<Accepted> {
    let secrets = Secrets::new();
    let bare = UpstreamTls { certificate: None, trust: None, sans: vec![], ..upstream() };
    let client = ClientContext::new(&secrets, &bare).unwrap();
    let mut config = rustls::ClientConfig::clone(&client.config(None).unwrap());
    let key = secrets.providers.client.key_provider.load_private_key(leaf.key.clone_key()).unwrap();
    let certified = CertifiedKey::new(vec![leaf.certificate.clone()], key);
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let connect = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(client.server_name(), theirs);
    tokio::join!(server.accept(ours), connect).0
}

/// The error of a side that must have refused.
fn refusal<T>(result: io::Result<T>) -> String {
    failure_reason(&result.err().expect("refused"))
}

async fn echoed(server: &mut Accepted, client: &mut Connected) -> bool {
    let mut buffer = [0; 4];
    client.0.write_all(b"ping").await.unwrap();
    client.0.flush().await.unwrap();
    server.0.read_exact(&mut buffer).await.unwrap();
    buffer == *b"ping"
}

#[tokio::test]
async fn workloads_prove_who_they_are() {
    let ca = Ca::new("mesh");
    let server = ServerContext::new(&workload(&ca, &ca.workload(DETAILS)), &downstream()).unwrap();
    for highest in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let tls = UpstreamTls { versions: (TlsVersion::Tls12, highest), ..upstream() };
        let client = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &tls).unwrap();
        let (accepted, connected) = shake(&server, &client, None).await;
        let (accepted, connected) = (accepted.unwrap().1, connected.unwrap().1);
        let expected = match highest {
            TlsVersion::Tls12 => ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
            TlsVersion::Tls13 => ("TLSv1.3", "TLS_AES_128_GCM_SHA256"),
        };
        assert_eq!((accepted.version, accepted.cipher), expected);
        assert_eq!(accepted.server_name.as_deref(), Some(SNI), "underscores travel");
        assert_eq!(accepted.alpn.as_deref(), Some(&b"http/1.1"[..]));
        assert_eq!(accepted.local.unwrap().uri_sans, [DETAILS]);
        assert_eq!(accepted.peer.unwrap().principal(), PRODUCTPAGE);
        assert_eq!(connected.peer.unwrap().uri_sans, [DETAILS]);
        assert_eq!(connected.local.unwrap().uri_sans, [PRODUCTPAGE]);
    }
}

#[tokio::test]
async fn rsa_certificates_work_under_both_versions() {
    let ca = Ca::new("mesh");
    let secrets = workload(&ca, &ca.rsa_workload(DETAILS));
    let server = ServerContext::new(&secrets, &downstream()).unwrap();
    for (highest, cipher) in [(TlsVersion::Tls12, "ECDHE-RSA-AES256-GCM-SHA384"), (TlsVersion::Tls13, "TLS_AES_128_GCM_SHA256")] {
        let tls = UpstreamTls { versions: (TlsVersion::Tls12, highest), ..upstream() };
        let client = ClientContext::new(&secrets, &tls).unwrap();
        assert_eq!(shake(&server, &client, None).await.0.unwrap().1.cipher, cipher);
    }
}

#[tokio::test]
async fn unacceptable_clients_are_refused() {
    let ca = Ca::new("mesh");
    let now = OffsetDateTime::now_utc();
    let odd = |text: &str| ca.workload(text);
    let cases = [
        ("certificate_has_expired", ca.issue(vec![uri(PRODUCTPAGE)], |p| p.not_after = now - Duration::seconds(5))),
        ("certificate_is_not_yet_valid", ca.issue(vec![uri(PRODUCTPAGE)], |p| p.not_before = now + Duration::minutes(5))),
        ("unable_to_get_local_issuer_certificate", Ca::new("other").workload(PRODUCTPAGE)),
        // The same name as the mesh's signer, another key.
        ("certificate_signature_failure", Ca::new("mesh").workload(PRODUCTPAGE)),
        (
            "unsupported_certificate_purpose",
            ca.issue(vec![uri(PRODUCTPAGE)], |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        ("SAN_matcher", odd("spiffe://other.domain/ns/bookinfo/sa/bookinfo-productpage")),
        ("SAN_matcher", odd("spiffe://cluster.local.evil/ns/bookinfo/sa/bookinfo-productpage")),
        ("SAN_matcher", odd("https://cluster.local/ns/bookinfo")),
        ("SAN_matcher", ca.issue(vec![dns("reviews.bookinfo.svc")], |_| {})),
        ("SAN_matcher,_certificate_SANs_are_[]", ca.issue(vec![], |_| {})),
        ("exactly_one_URI_SAN", ca.issue(vec![uri(PRODUCTPAGE), uri("spiffe://cluster.local/ns/a/sa/admin")], |_| {})),
        ("exactly_one_URI_SAN", ca.issue(vec![uri("https://a"), uri(PRODUCTPAGE)], |_| {})),
        ("illegal_character", odd("spiffe://cluster.local/ns/a/sa/b\0.evil")),
        ("illegal_character", odd("spiffe://cluster.local/ns/a/sa/b\r\nx: y")),
        ("illegal_character", ca.issue(vec![dns(PRODUCTPAGE)], |_| {})),
        ("illegal_character", ca.issue(vec![SanType::Rfc822Name(PRODUCTPAGE.try_into().unwrap())], |_| {})),
    ];
    // Without its slash the prefix still means the whole trust domain.
    for prefix in ["spiffe://cluster.local/", "spiffe://cluster.local"] {
        let tls = DownstreamTls { sans: vec![SanMatcher::Any(StringMatcher::prefix(prefix))], ..downstream() };
        let server = ServerContext::new(&workload(&ca, &ca.workload(DETAILS)), &tls).unwrap();
        for (expected, leaf) in &cases {
            let reason = refusal(intrude(&server, leaf).await);
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
        assert!(intrude(&server, &ca.workload(PRODUCTPAGE)).await.is_ok());
    }
}

#[tokio::test]
async fn clients_learn_why_as_envoy_tells_them() {
    let ca = Ca::new("mesh");
    let server = ServerContext::new(&workload(&ca, &ca.workload(DETAILS)), &downstream()).unwrap();
    let expired = ca.issue(vec![uri(PRODUCTPAGE)], |p| p.not_after = OffsetDateTime::now_utc() - Duration::hours(1));
    for (alert, leaf) in [
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", expired),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", ca.workload("spiffe://other.domain/ns/a/sa/b")),
        ("TLSV1_ALERT_UNKNOWN_CA", Ca::new("other").workload(PRODUCTPAGE)),
    ] {
        let client = ClientContext::new(&workload(&ca, &leaf), &upstream()).unwrap();
        let mut connected = shake(&server, &client, None).await.1.unwrap();
        let reason = refusal(connected.0.read(&mut [0]).await);
        assert!(reason.contains(alert), "{alert}: {reason}");
    }
}

#[tokio::test]
async fn client_certificates_are_required_optional_or_not_asked_for() {
    let ca = Ca::new("mesh");
    let secrets = workload(&ca, &ca.workload(DETAILS));
    let anonymous = ClientContext::new(&secrets, &UpstreamTls { certificate: None, ..upstream() }).unwrap();
    let named = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &upstream()).unwrap();
    let stranger = ClientContext::new(&workload(&ca, &Ca::new("other").workload(PRODUCTPAGE)), &upstream()).unwrap();

    let required = ServerContext::new(&secrets, &downstream()).unwrap();
    let reason = refusal(shake(&required, &anonymous, None).await.0);
    assert!(reason.contains("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "{reason}");

    let optional = DownstreamTls { require_client_certificate: false, ..downstream() };
    let optional = ServerContext::new(&secrets, &optional).unwrap();
    assert!(shake(&optional, &anonymous, None).await.0.unwrap().1.peer.is_none());
    assert!(shake(&optional, &named, None).await.0.unwrap().1.peer.is_some());
    assert!(shake(&optional, &stranger, None).await.0.is_err());

    let simple = DownstreamTls { trust: None, sans: vec![], require_client_certificate: false, ..downstream() };
    let simple = ServerContext::new(&secrets, &simple).unwrap();
    assert!(shake(&simple, &stranger, None).await.0.unwrap().1.peer.is_none());

    let contradiction = DownstreamTls { trust: None, ..downstream() };
    assert!(matches!(ServerContext::new(&secrets, &contradiction), Err(TlsError::Config(_))));
}

#[tokio::test]
async fn alpn_is_our_choice_and_never_a_reason_to_refuse() {
    let ca = Ca::new("mesh");
    let server = ServerContext::new(&workload(&ca, &ca.workload(DETAILS)), &downstream()).unwrap();
    let client = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &upstream()).unwrap();
    let agreed = async |offered: &[&str]| {
        let offered: Vec<String> = offered.iter().map(|&p| p.to_owned()).collect();
        let (accepted, connected) = shake(&server, &client, Some(&offered)).await;
        let alpn = accepted.unwrap().1.alpn.map(|p| String::from_utf8(p.into()).unwrap());
        assert_eq!(connected.unwrap().1.alpn.as_deref(), alpn.as_ref().map(String::as_bytes));
        alpn
    };
    assert_eq!(agreed(&["http/1.1", "h2"]).await.as_deref(), Some("h2"));
    assert_eq!(agreed(&["istio-http/1.1", "istio", "http/1.1"]).await.as_deref(), Some("http/1.1"));
    assert_eq!(agreed(&["istio"]).await, None);
    assert_eq!(agreed(&[]).await, None);

    let list = ["istio".to_owned()];
    assert!(Arc::ptr_eq(&client.config(Some(&list)).unwrap(), &client.config(Some(&list)).unwrap()));
    assert!(Arc::ptr_eq(&client.config(None).unwrap(), &client.config(None).unwrap()));
}

#[tokio::test]
async fn rotations_reach_new_handshakes_and_leave_open_connections_alone() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let secrets = workload(&old, &old.workload(DETAILS));
    let server = ServerContext::new(&secrets, &downstream()).unwrap();
    let client_secrets = workload(&old, &old.workload(PRODUCTPAGE));
    let client = ClientContext::new(&client_secrets, &upstream()).unwrap();
    let (accepted, connected) = shake(&server, &client, None).await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());

    // The bundle of the server alone: a client of the old signer is out, and no session helps it in.
    secrets.set("ROOTCA", new.trust()).unwrap();
    assert!(refusal(shake(&server, &client, None).await.0).contains("unable_to_get_local_issuer"));
    // Both signers while the mesh rolls over.
    let both = Secret::Trust { roots: vec![old.root(), new.root()] };
    secrets.set("ROOTCA", both.clone()).unwrap();
    client_secrets.set("ROOTCA", both).unwrap();
    client_secrets.set("default", new.workload(PRODUCTPAGE).secret()).unwrap();
    assert!(shake(&server, &client, None).await.0.is_ok());
    // The certificate of the server alone.
    secrets.set("default", new.workload(DETAILS).secret()).unwrap();
    let (_, rotated) = shake(&server, &client, None).await;
    let (stream, facts) = rotated.unwrap();
    assert_ne!(facts.peer.unwrap().sha256, connected.1.peer.clone().unwrap().sha256);
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "nothing is resumed");

    assert!(echoed(&mut accepted, &mut connected).await);
}

#[tokio::test]
async fn a_bad_secret_changes_nothing() {
    let ca = Ca::new("mesh");
    let (ours, other) = (ca.workload(DETAILS), ca.workload(DETAILS));
    let secrets = workload(&ca, &ours);
    let server = ServerContext::new(&secrets, &downstream()).unwrap();
    let client = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &upstream()).unwrap();
    let before = server.current().unwrap();

    let mismatched = Secret::Certificate { chain: vec![ours.certificate.clone()], key: Arc::clone(&other.key) };
    assert!(matches!(secrets.set("default", mismatched), Err(TlsError::Key { .. })));
    let chain = vec![ours.certificate.clone(), vec![1, 2, 3].into()];
    let broken = Secret::Certificate { chain, key: Arc::clone(&ours.key) };
    assert!(matches!(secrets.set("default", broken), Err(TlsError::Certificate { index: 1, .. })));
    let empty = Secret::Certificate { chain: vec![], key: Arc::clone(&ours.key) };
    assert!(matches!(secrets.set("default", empty), Err(TlsError::Empty(_))));
    assert!(matches!(secrets.set("ROOTCA", Secret::Trust { roots: vec![] }), Err(TlsError::Empty(_))));
    assert!(matches!(secrets.set("default", ca.trust()), Err(TlsError::Kind { .. })));

    assert!(Arc::ptr_eq(&before, &server.current().unwrap()));
    assert!(shake(&server, &client, None).await.0.is_ok());
    let names: Vec<_> = secrets.certificates().into_iter().map(|c| (c.name, c.identities)).collect();
    assert_eq!(names, [("ROOTCA".to_owned(), vec!["O=mesh".to_owned()]), ("default".to_owned(), vec![DETAILS.to_owned()])]);
}

#[tokio::test]
async fn nothing_is_served_before_every_secret_is_there() {
    let ca = Ca::new("mesh");
    let secrets = Secrets::new();
    let server = ServerContext::new(&secrets, &downstream()).unwrap();
    let client = ClientContext::new(&secrets, &upstream()).unwrap();
    secrets.set("default", ca.workload(DETAILS).secret()).unwrap();
    assert!(server.current().is_none() && client.config(None).is_none());
    assert!(refusal(shake(&server, &client, None).await.0).contains("not_arrived"));
    secrets.set("ROOTCA", ca.trust()).unwrap();
    assert!(shake(&server, &client, None).await.0.is_ok());
}

#[tokio::test]
async fn servers_are_known_by_their_sans_not_by_their_host_names() {
    let ca = Ca::new("mesh");
    let simple = DownstreamTls { trust: None, sans: vec![], require_client_certificate: false, ..downstream() };
    let connect = async |leaf: &Leaf, tls: UpstreamTls| {
        let server = ServerContext::new(&workload(&ca, leaf), &simple).unwrap();
        let client = ClientContext::new(&workload(&ca, leaf), &tls).unwrap();
        shake(&server, &client, None).await.1
    };
    let sans = |host: &str| UpstreamTls { sans: vec![SanMatcher::Any(StringMatcher::exact(host))], ..upstream() };
    let wild = ca.issue(vec![dns("*.example.com")], |_| {});
    assert!(connect(&wild, sans("API.example.com")).await.is_ok());
    for host in ["example.com", "a.b.example.com", "api.example.org"] {
        assert!(connect(&wild, sans(host)).await.is_err(), "{host}");
    }

    let impostor = ca.workload("spiffe://cluster.local/ns/bookinfo/sa/impostor");
    assert_eq!(
        refusal(connect(&impostor, upstream()).await),
        "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher,\
         _certificate_SANs_are_[spiffe://cluster.local/ns/bookinfo/sa/impostor]:TLS_error_end"
    );
    let stranger = Ca::new("other").workload(DETAILS);
    assert!(refusal(connect(&stranger, upstream()).await).contains("unable_to_get_local_issuer_certificate"));
    // Without a trust bundle everything is accepted, and SAN matchers would pretend otherwise.
    assert!(connect(&stranger, UpstreamTls { trust: None, sans: vec![], ..upstream() }).await.is_ok());
    let pretence = ClientContext::new(&Secrets::new(), &UpstreamTls { trust: None, ..upstream() });
    assert!(matches!(pretence, Err(TlsError::Config(_))));
}

#[tokio::test]
async fn the_host_that_is_asked_for_is_the_server_name_and_what_the_certificate_must_say() {
    let ca = Ca::new("public");
    let secrets = workload(&ca, &ca.issue(vec![dns("*.example.com")], |_| {}));
    let simple = DownstreamTls { trust: None, sans: vec![], require_client_certificate: false, ..downstream() };
    let server = ServerContext::new(&secrets, &simple).unwrap();
    let tls = UpstreamTls { sans: vec![], sni: String::new(), auto_sni: true, auto_san_validation: true, ..upstream() };
    let client = ClientContext::new(&secrets, &tls).unwrap();
    let shake = async |host: Option<&str>| {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::join!(server.accept(ours), client.connect(theirs, None, host))
    };
    let (accepted, connected) = shake(Some("api.example.com")).await;
    assert_eq!(accepted.unwrap().1.server_name.as_deref(), Some("api.example.com"));
    assert!(connected.is_ok());
    for host in [Some("api.example.org"), Some("127.0.0.1"), Some("no name"), None] {
        assert!(refusal(shake(host).await.1).contains("SAN_list,_certificate_SANs_are_[*.example.com]"), "{host:?}");
    }
    let unproved = UpstreamTls { trust: None, ..tls };
    assert!(matches!(ClientContext::new(&secrets, &unproved), Err(TlsError::Config(_))));
}

#[tokio::test]
async fn sni_is_left_out_when_there_is_none_to_send() {
    let ca = Ca::new("mesh");
    let secrets = workload(&ca, &ca.workload(DETAILS));
    let server = ServerContext::new(&secrets, &downstream()).unwrap();
    for sni in ["", "outbound_.443_._.*.example.com"] {
        let client = ClientContext::new(&secrets, &UpstreamTls { sni: sni.into(), ..upstream() }).unwrap();
        assert_eq!(shake(&server, &client, None).await.0.unwrap().1.server_name, None, "{sni:?}");
    }
}

#[tokio::test]
async fn a_plaintext_server_is_named_as_such() {
    let ca = Ca::new("mesh");
    let client = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &upstream()).unwrap();
    let (mut ours, theirs) = tokio::io::duplex(1024);
    ours.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let expected = "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end";
    assert_eq!(refusal(client.connect(theirs, None, None).await), expected);
}

#[tokio::test]
async fn certificates_may_stand_in_the_configuration_itself() {
    let pem = |label: &str, der: &[u8]| {
        use base64::Engine as _;
        let body = base64::prelude::BASE64_STANDARD.encode(der);
        InlinePem::new(format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"))
    };
    let ca = Ca::new("mesh");
    let leaf = ca.workload(DETAILS);
    let key = Some(pem("PRIVATE KEY", leaf.key.secret_der()));
    let tls = DownstreamTls {
        certificate: CertificateSource::Inline { certificates: pem("CERTIFICATE", &leaf.certificate), key },
        trust: Some(CertificateSource::Inline { certificates: pem("CERTIFICATE", &ca.root()), key: None }),
        ..downstream()
    };
    let secrets = Secrets::new();
    let server = ServerContext::new(&secrets, &tls).unwrap();
    let client = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &upstream()).unwrap();
    assert!(shake(&server, &client, None).await.0.is_ok());
    assert!(secrets.reload_files().is_empty());
    let stranger = Ca::new("other");
    let client = ClientContext::new(&workload(&stranger, &stranger.workload(PRODUCTPAGE)), &upstream()).unwrap();
    assert!(shake(&server, &client, None).await.0.is_err());
    let broken = CertificateSource::Inline { certificates: InlinePem::new("no certificate"), key: None };
    let broken = DownstreamTls { trust: Some(broken), ..tls };
    assert!(matches!(ServerContext::new(&secrets, &broken), Err(TlsError::Empty(_))));
}

#[tokio::test]
async fn files_are_read_again_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let (certificates, key, roots) = (dir.path().join("cert.pem"), dir.path().join("key.pem"), dir.path().join("root.pem"));
    let pem = |label: &str, der: &[u8]| {
        use base64::Engine as _;
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64::prelude::BASE64_STANDARD.encode(der))
    };
    let write = |ca: &Ca, leaf: &Leaf| {
        std::fs::write(&certificates, pem("CERTIFICATE", &leaf.certificate)).unwrap();
        std::fs::write(&key, pem("PRIVATE KEY", leaf.key.secret_der())).unwrap();
        std::fs::write(&roots, pem("CERTIFICATE", &ca.root())).unwrap();
    };
    let tls = DownstreamTls {
        certificate: CertificateSource::Files { certificates: certificates.clone(), key: Some(key.clone()) },
        trust: Some(CertificateSource::Files { certificates: roots.clone(), key: None }),
        ..downstream()
    };
    let secrets = Secrets::new();
    assert!(matches!(ServerContext::new(&secrets, &tls), Err(TlsError::File { .. })));

    let (old, new) = (Ca::new("old"), Ca::new("new"));
    write(&old, &old.workload(DETAILS));
    let server = ServerContext::new(&secrets, &tls).unwrap();
    let client = |ca: &Ca| ClientContext::new(&workload(ca, &ca.workload(PRODUCTPAGE)), &upstream()).unwrap();
    assert!(shake(&server, &client(&old), None).await.0.is_ok());

    write(&new, &new.workload(DETAILS));
    assert!(secrets.reload_files().is_empty());
    assert!(shake(&server, &client(&new), None).await.0.is_ok());

    std::fs::write(&key, "no key").unwrap();
    assert!(matches!(secrets.reload_files()[..], [TlsError::File { .. }]));
    assert!(shake(&server, &client(&new), None).await.0.is_ok());
    drop(server);
    secrets.reload_files();
    assert!(secrets.certificates().is_empty());
}

#[tokio::test]
async fn a_client_of_tls_1_1_hears_protocol_version() {
    let ca = Ca::new("mesh");
    let server = ServerContext::new(&workload(&ca, &ca.workload(DETAILS)), &downstream()).unwrap();
    // A minimal hello: TLS 1.1, one suite, no extensions.
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x09, 1, 0]);
    let len = u8::try_from(body.len()).unwrap();
    let hello = [&[22, 3, 1, 0, len + 4, 1, 0, 0, len][..], &body].concat();
    let (ours, mut theirs) = tokio::io::duplex(1024);
    theirs.write_all(&hello).await.unwrap();
    assert!(refusal(server.accept(ours).await).contains("UNSUPPORTED_PROTOCOL"));
    let mut answer = Vec::new();
    theirs.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [21, 3, 2, 0, 2, 2, 70]);
}

#[tokio::test]
async fn a_matcher_looks_at_names_of_its_own_type_only() {
    let ca = Ca::new("mesh");
    let simple = DownstreamTls { trust: None, sans: vec![], require_client_certificate: false, ..downstream() };
    let leaf = ca.issue(
        vec![
            uri("https://td/x"),
            dns("a.example"),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::Rfc822Name("a@b.c".try_into().unwrap()),
            SanType::IpAddress("::1".parse().unwrap()),
        ],
        |_| {},
    );
    let server = ServerContext::new(&workload(&ca, &leaf), &simple).unwrap();
    let connect = async |matcher: SanMatcher| {
        let tls = UpstreamTls { sans: vec![matcher], ..upstream() };
        let client = ClientContext::new(&workload(&ca, &leaf), &tls).unwrap();
        shake(&server, &client, None).await.1
    };
    let exact = |text: &str| StringMatcher::exact(text);
    let regex = |text: &str| StringMatcher::from(StringMatch::Regex(Regex::new(text).unwrap()));
    for matcher in [
        SanMatcher::Uri(exact("https://td/x")),
        SanMatcher::Dns(exact("A.EXAMPLE")),
        SanMatcher::Dns(StringMatch::Suffix(".example".into()).into()),
        SanMatcher::Dns(StringMatch::Contains("exam".into()).into()),
        SanMatcher::Dns(regex(r"[a-z]\.example")),
        SanMatcher::Ip(exact("10.0.0.1")),
        SanMatcher::Ip(exact("::1")),
        SanMatcher::Email(exact("a@b.c")),
    ] {
        assert!(connect(matcher.clone()).await.is_ok(), "{matcher:?}");
    }
    for matcher in [
        SanMatcher::Uri(exact("a.example")),
        SanMatcher::Dns(exact("https://td/x")),
        SanMatcher::Dns(StringMatcher::prefix("A.EX")),
        SanMatcher::Dns(regex("example")),
        SanMatcher::Ip(exact("10.0.0.2")),
        SanMatcher::Email(exact("10.0.0.1")),
    ] {
        let reason = refusal(connect(matcher.clone()).await);
        // Recorded with Envoy 1.40: the order is the certificate's.
        assert!(reason.contains("SANs_are_[https://td/x,_a.example,_10.0.0.1,_a@b.c,_::1]"), "{matcher:?}: {reason}");
    }
}

#[tokio::test]
async fn pins_hold_with_and_without_a_trust_bundle() {
    let ca = Ca::new("mesh");
    let simple = DownstreamTls { trust: None, sans: vec![], require_client_certificate: false, ..downstream() };
    let (pinned, other) = (ca.workload(DETAILS), ca.workload(DETAILS));
    let hash = |bytes: &[u8]| <[u8; 32]>::try_from(provider::sha256(bytes).as_ref()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&pinned.certificate).unwrap();
    let certificate = CertificatePin::Certificate(hash(&pinned.certificate));
    let key = CertificatePin::Key(hash(parsed.public_key().raw));
    for (pins, trust) in [(vec![certificate], true), (vec![key], true), (vec![key], false)] {
        let tls = UpstreamTls { pins, ..upstream() };
        let tls = if trust { tls } else { UpstreamTls { trust: None, sans: vec![], ..tls } };
        let connect = async |leaf: &Leaf| {
            let server = ServerContext::new(&workload(&ca, leaf), &simple).unwrap();
            let client = ClientContext::new(&workload(&ca, leaf), &tls).unwrap();
            shake(&server, &client, None).await.1
        };
        assert!(connect(&pinned).await.is_ok());
        assert!(refusal(connect(&other).await).contains("CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_cert_hash_and_spki"));
    }
}

mod revocation;
