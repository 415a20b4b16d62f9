//! Who may speak to whom: modes of PeerAuthentication, certificates of all sorts, rotation.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io;
use std::net::SocketAddr;

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{self, Connection};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS, Running};
use skiff_tests::skiff::Lines;
use skiff_tests::tls::{self, Authority, Identity, Validity};
use skiff_tests::wait::eventually;

/// What sidecars offer to each other.
const ISTIO: &[&str] = &["istio-http/1.1", "istio"];

async fn bookinfo_with(mode: &str) -> Running {
    let mesh = Mesh::prepare().await;
    mesh.edit("security.yaml", "STRICT", mode);
    mesh.run().await
}

fn door(bookinfo: &Running) -> SocketAddr {
    bookinfo.mesh.ingress(DETAILS_V1, 9080)
}

/// One request over TLS with this certificate.
async fn ask(address: SocketAddr, identity: Option<&Identity>, id: &str) -> io::Result<u16> {
    let mut connection = Connection::over(tls::connect(address, identity, ISTIO).await?);
    let answer = connection.ask(&http::get_request(DETAILS, "/", &format!("x-request-id: {id}\r\n"))).await?;
    Ok(answer.status)
}

#[tokio::test]
async fn strict_refuses_plaintext_and_says_so() {
    let bookinfo = bookinfo_with("STRICT").await;
    assert!(http::try_get(door(&bookinfo), DETAILS, "/").await.is_err());
    let line = AccessLogLine::parse(&bookinfo.details.stdout.line_with("filter_chain_not_found").await);
    line.assert(&[
        ("request", "- - -"),
        ("response_code", "0"),
        ("response_flags", "NR"),
        ("response_code_details", "filter_chain_not_found"),
        ("downstream_local_address", &door(&bookinfo).to_string()),
        ("upstream_host", "-"),
    ]);
    assert!(bookinfo.app.requests().is_empty());
    assert_eq!(ask(door(&bookinfo), Some(&bookinfo.mesh.identity()), "id-strict").await.unwrap(), 200);
}

#[tokio::test]
async fn permissive_takes_both_on_one_port() {
    let bookinfo = bookinfo_with("PERMISSIVE").await;
    assert_eq!(http::get_as(door(&bookinfo), DETAILS, "/", "id-plain").await.status, 200);
    assert_eq!(ask(door(&bookinfo), Some(&bookinfo.mesh.identity()), "id-tls").await.unwrap(), 200);
    assert_eq!(http::get_as(bookinfo.egress(), DETAILS, "/", "id-mesh").await.status, 200);
    for id in ["id-plain", "id-tls", "id-mesh"] {
        AccessLogLine::parse(&bookinfo.details.stdout.line_with(id).await).assert(&[("response_code", "200")]);
    }
    let metrics = bookinfo.details.metrics().await;
    let plain = [("connection_security_policy", "none"), ("source_principal", "unknown")];
    assert_eq!(metrics.only("istio_requests_total", &plain).value, 1.0);
    let caller = RATINGS.spiffe_id();
    let tls = [("connection_security_policy", "mutual_tls"), ("source_principal", caller.as_str())];
    // Of the two with a certificate one is a sidecar, which says who it stands beside.
    for workload in ["unknown", "ratings-v1"] {
        let tls = [&tls[..], &[("source_workload", workload)]].concat();
        assert_eq!(metrics.only("istio_requests_total", &tls).value, 1.0, "{workload}");
    }
    let seen: Vec<_> =
        bookinfo.app.requests().iter().map(|request| request.header("x-forwarded-client-cert").is_some()).collect();
    assert_eq!(seen, [false, true, true]);
}

#[tokio::test]
async fn disable_takes_plaintext_only_and_the_caller_knows() {
    let bookinfo = bookinfo_with("DISABLE").await;
    assert_eq!(http::get_as(door(&bookinfo), DETAILS, "/", "id-plain").await.status, 200);
    assert_eq!(http::get_as(bookinfo.egress(), DETAILS, "/", "id-mesh").await.status, 200);
    // A ClientHello is a bad request here.
    assert!(ask(door(&bookinfo), Some(&bookinfo.mesh.identity()), "id-tls").await.is_err());
    let line = AccessLogLine::parse(&bookinfo.details.stdout.line_with(" DPE ").await);
    line.assert(&[("response_code", "400"), ("upstream_host", "-")]);
    bookinfo.lines("id-mesh").await;
    let plain = [("connection_security_policy", "none"), ("destination_principal", "unknown"), ("response_code", "200")];
    let metrics = bookinfo.details.metrics().await;
    // Without a certificate a peer can only be believed.
    for (workload, namespace) in [("unknown", "unknown"), ("ratings-v1", "bookinfo")] {
        let plain = [&plain[..], &[("source_workload", workload), ("source_workload_namespace", namespace)]].concat();
        assert_eq!(metrics.only("istio_requests_total", &plain).value, 1.0, "{workload}");
    }
}

/// Tries a certificate that must be refused, which Envoy has no access-log line for; returns what the sidecar's own log says.
async fn refused(certificate: impl FnOnce(&Mesh) -> Option<Identity>) -> String {
    let bookinfo = bookinfo_with("STRICT").await;
    let identity = certificate(&bookinfo.mesh);
    let outcome = ask(door(&bookinfo), identity.as_ref(), "id-refused").await;
    assert!(outcome.is_err(), "answered with {outcome:?}");
    let line = bookinfo.details.stderr.line_with("TLS handshake failed").await;
    let metrics = bookinfo.details.metrics().await;
    assert_eq!(metrics.sum("envoy_listener_ssl_connection_error", &[]), 1.0);
    assert_eq!(metrics.sum("istio_requests_total", &[]), 0.0);
    assert!(bookinfo.app.requests().is_empty());
    assert!(bookinfo.details.stdout.all().is_empty());
    line
}

#[tokio::test]
async fn no_certificate_is_refused_and_logged() {
    let line = refused(|_| None).await;
    assert!(line.contains("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "{line}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_and_logged() {
    let line = refused(|_| Some(Authority::stranger().issue(&RATINGS.spiffe_id(), Validity::Always))).await;
    assert!(line.contains("CERTIFICATE_VERIFY_FAILED"), "{line}");
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_is_refused_and_logged() {
    let foreign = "spiffe://cluster.local.evil/ns/bookinfo/sa/bookinfo-ratings";
    let line = refused(|mesh| Some(mesh.authority().issue(foreign, Validity::Always))).await;
    assert!(line.contains(foreign), "{line}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_logged() {
    let line = refused(|mesh| Some(mesh.authority().issue(&RATINGS.spiffe_id(), Validity::Expired))).await;
    assert!(line.contains("certificate_has_expired"), "{line}");
}

/// Puts a server with this certificate in the place of details and calls it; returns the caller's log line.
async fn called(certificate: impl FnOnce(&Mesh) -> Identity) -> AccessLogLine {
    let mesh = Mesh::prepare().await;
    let _impostor = tls::impostor(mesh.ingress(DETAILS_V1, 9080), &certificate(&mesh)).await;
    let ratings = mesh.spawn(RATINGS, &[]);
    ratings.ready().await;
    let answer = http::get_as(mesh.egress(RATINGS, 9080), DETAILS, "/", "id-impostor").await;
    assert_eq!(answer.status, 503);
    let line = AccessLogLine::parse(&ratings.stdout.line_with("id-impostor").await);
    line.assert(&[("response_code", "503"), ("response_flags", "URX,UF")]);
    let failed = [("response_code", "503"), ("response_flags", "URX,UF"), ("destination_principal", "unknown")];
    assert_eq!(ratings.metrics().await.only("istio_requests_total", &failed).value, 1.0);
    line
}

#[tokio::test]
async fn a_server_with_another_service_account_is_not_spoken_to() {
    let other = "spiffe://cluster.local/ns/bookinfo/sa/impostor";
    let line = called(|mesh| mesh.authority().issue(other, Validity::Always)).await;
    let why = line.get("upstream_transport_failure_reason");
    assert!(why.starts_with("TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:"), "{why}");
    assert!(why.contains(&format!("SAN_matcher,_certificate_SANs_are_[{other}]")), "{why}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_spoken_to() {
    let line = called(|_| Authority::stranger().issue(&DETAILS_V1.spiffe_id(), Validity::Always)).await;
    let why = line.get("upstream_transport_failure_reason");
    assert!(why.contains("unable_to_get_local_issuer_certificate"), "{why}");
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_not_spoken_to() {
    let line = called(|mesh| mesh.authority().issue(&DETAILS_V1.spiffe_id(), Validity::Expired)).await;
    let why = line.get("upstream_transport_failure_reason");
    assert!(why.contains("certificate_has_expired"), "{why}");
}

/// Sends requests one after another until `done` says so; every one must be answered with 200.
async fn load(address: SocketAddr, mut done: impl AsyncFnMut() -> bool) -> u32 {
    let mut kept = Connection::open(address).await.unwrap();
    let mut sent = 0;
    while !done().await {
        let request = http::get_request(DETAILS, "/", "");
        assert_eq!(kept.ask(&request).await.unwrap().status, 200);
        assert_eq!(http::exchange(address, &request).await.status, 200);
        sent += 2;
    }
    sent
}

#[tokio::test]
async fn certificates_rotate_under_load_without_a_lost_request() {
    let mesh = Mesh::prepare().await;
    let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let ttl = [("SECRET_TTL", "4s")];
    let (ratings, details) = (mesh.spawn(RATINGS, &ttl), mesh.spawn(DETAILS_V1, &ttl));
    ratings.ready().await;
    details.ready().await;
    let serial =
        async || tls::server_serial(&tls::connect(mesh.ingress(DETAILS_V1, 9080), Some(&mesh.identity()), ISTIO).await.unwrap());
    let first = serial().await;
    let rotated = |lines: &Lines| lines.count("workload certificate in force") >= 3;
    let sent = load(mesh.egress(RATINGS, 9080), async || rotated(&ratings.stderr) && rotated(&details.stderr)).await;
    assert_ne!(serial().await, first);
    assert_eq!(app.requests().len(), usize::try_from(sent).unwrap());
    assert_eq!(ratings.metrics().await.sum("istio_requests_total", &[("response_code", "200")]), f64::from(sent));
    assert_eq!(ratings.metrics().await.sum("istio_requests_total", &[]), f64::from(sent));
}

#[tokio::test]
async fn without_the_authority_the_old_certificate_keeps_serving() {
    let mut mesh = Mesh::prepare().await;
    let _app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    // Renewal is due after five seconds; there are several attempts before the certificate ends.
    let (ratings, details) = (mesh.spawn(RATINGS, &[]), mesh.spawn(DETAILS_V1, &[("SECRET_TTL", "10s")]));
    ratings.ready().await;
    details.ready().await;
    mesh.stop_plane();
    let door = mesh.ingress(DETAILS_V1, 9080);
    let serial = tls::server_serial(&tls::connect(door, Some(&mesh.identity()), ISTIO).await.unwrap());
    details.stderr.line_with("no new workload certificate").await;
    assert_eq!(http::get(mesh.egress(RATINGS, 9080), DETAILS, "/").await.status, 200);
    assert_eq!(tls::server_serial(&tls::connect(door, Some(&mesh.identity()), ISTIO).await.unwrap()), serial);
    assert!(details.is_ready().await);
}

#[tokio::test]
async fn without_a_first_certificate_it_is_not_ready_and_says_why() {
    let mut mesh = Mesh::prepare().await;
    mesh.stop_plane();
    let details = mesh.spawn(DETAILS_V1, &[]);
    let why = eventually("the reason", async || {
        let answer = http::try_get(details.admin, "admin", "/healthz/ready").await.ok()?;
        (answer.status == 503 && answer.text().contains(&mesh.network.at(15, 15012).to_string())).then(|| answer.text())
    })
    .await;
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    // Fails closed: there is nothing to show, so nobody is served.
    assert!(http::try_get(mesh.ingress(DETAILS_V1, 9080), DETAILS, "/").await.is_err());
    assert!(tls::connect(mesh.ingress(DETAILS_V1, 9080), Some(&mesh.identity()), ISTIO).await.is_err());
}
