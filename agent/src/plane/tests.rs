//! The plane over real sockets, row by row of what a real istiod did (shared/istio/README.md, section 2).

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skiff_proto::istio::v1::auth::IstioCertificateRequest;
use skiff_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use skiff_proxy::config::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::{Code, Request, Status};
use tracing::subscriber::DefaultGuard;

use super::*;
use crate::identity::{
    CaClient, CaError, ControlPlaneConnector, RootSource, Security, Token, TokenSource, WorkloadCertificate, WorkloadKey,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm".parse().unwrap()
}

fn config(folder: &tempfile::TempDir) -> PlaneConfig {
    PlaneConfig::new((Ipv4Addr::LOCALHOST, 0).into(), folder.path(), "cluster.local".parse().unwrap())
}

fn connector(plane: &Plane) -> ControlPlaneConnector {
    let roots = RootSource::Pem(plane.root_pem().as_bytes().to_vec());
    ControlPlaneConnector::new(plane.address().to_string(), Security::Tls(roots))
}

fn client(plane: &Plane, token: Token) -> CaClient {
    CaClient {
        connector: connector(plane),
        token: TokenSource::Watch(watch::Sender::new(Some(token)).subscribe()),
        cluster_id: "Kubernetes".to_owned(),
        request_timeout: Duration::from_secs(10),
    }
}

/// One call with exactly these headers and fields.
async fn call(
    plane: &Plane,
    certificate: Option<&WorkloadCertificate>,
    headers: &[(&'static str, String)],
    message: IstioCertificateRequest,
) -> Result<Vec<String>, Status> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    let channel = connector(plane).connect(certificate).await.unwrap();
    let response = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(response.into_inner().cert_chain)
}

fn message() -> IstioCertificateRequest {
    let csr = WorkloadKey::generate().unwrap().signing_request(&id()).unwrap();
    IstioCertificateRequest { csr, metadata: None, validity_duration: 0 }
}

fn bearer(token: &Token) -> (&'static str, String) {
    ("authorization", format!("Bearer {}", token.expose()))
}

/// Everything logged in this test, by this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn capture() -> (Self, DefaultGuard) {
        // While only one subscriber exists, tracing asks the thread that reaches a log statement first whether anybody
        // wants it, and another test's thread says never for all. With a second one it asks every subscriber.
        static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));
        LazyLock::force(&SECOND);
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub(crate) fn audit(&self) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(" audit: ")).map(ToOwned::to_owned).collect()
    }
}

#[tokio::test]
async fn a_workload_gets_its_certificate_and_renews_it_without_token() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(config(&folder)).await.unwrap();
    let mut client = client(&plane, plane.issue_token("bookinfo", "ratings-vm").unwrap());
    let first = client.request_certificate(&id(), DAY, None).await.unwrap();
    assert_eq!((first.chain.len(), first.roots.len(), &first.id), (1, 1, &id()));

    client.token = TokenSource::File(folder.path().join("gone"));
    let second = client.request_certificate(&id(), DAY, Some(&first)).await.unwrap();
    assert_ne!(first.serial, second.serial);
    assert!(matches!(client.request_certificate(&id(), DAY, None).await, Err(CaError::Token(_))));
    plane.shutdown().await;
}

#[tokio::test]
async fn callers_that_prove_nothing_are_refused_as_istiod_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::capture();
    let plane = Plane::start(config(&folder)).await.unwrap();
    let token = plane.issue_token("bookinfo", "ratings-vm").unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let other = Plane::start(config(&other_folder)).await.unwrap();
    let foreign = other.issue_token("bookinfo", "ratings-vm").unwrap();
    let cluster = |id: &str| ("clusterid", id.to_owned());

    for (what, headers, reason) in [
        ("no token", vec![], "neither token nor certificate"),
        ("garbage", vec![("authorization", "Bearer garbage".to_owned())], "token refused"),
        ("basic", vec![("authorization", "Basic YTpi".to_owned())], "no bearer token"),
        ("other plane", vec![bearer(&foreign)], "token refused"),
        ("unknown cluster", vec![bearer(&token), cluster("other")], "unknown cluster id"),
    ] {
        let status = call(&plane, None, &headers, message()).await.expect_err(what);
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "request authenticate failure"), "{what}");
        let last = log.audit().pop().unwrap();
        assert!(last.contains(r#"decision="denied""#) && last.contains(reason), "{what}: {last}");
    }
    for headers in [vec![bearer(&token)], vec![bearer(&token), cluster("")], vec![bearer(&token), cluster("Kubernetes")]] {
        assert_eq!(call(&plane, None, &headers, message()).await.unwrap().len(), 2);
        let last = log.audit().pop().unwrap();
        assert!(
            last.contains(r#"decision="issued""#) && last.contains("id=spiffe://cluster.local/ns/bookinfo/sa/ratings-vm"),
            "{last}"
        );
    }

    let mut impersonation = message();
    let kind = Some(Kind::StringValue("spiffe://cluster.local/ns/kube-system/sa/admin".to_owned()));
    impersonation.metadata = Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), Value { kind })].into() });
    let status = call(&plane, None, &[bearer(&token)], impersonation).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "request impersonation authentication failure"));

    assert!(!log.text().contains(token.expose()) && !log.text().contains(foreign.expose()), "a token was logged");
    let decisions = log.audit().into_iter().filter(|line| line.contains(r#"event="certificate""#)).count();
    assert_eq!(decisions, 9, "one line per decision");
}

#[tokio::test]
async fn refused_requests_carry_istiods_words() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(config(&folder)).await.unwrap();
    let token = plane.issue_token("bookinfo", "ratings-vm").unwrap();
    let too_long = IstioCertificateRequest { validity_duration: 91 * 24 * 3600, ..message() };
    let bad_csr = IstioCertificateRequest { csr: "garbage".to_owned(), ..message() };
    for (message, text) in [
        (too_long, "CSR signing error (requested TTL 2184h0m0s is greater than the max allowed TTL 2160h0m0s)"),
        (bad_csr, "CSR signing error (certificate signing request is not properly encoded)"),
    ] {
        let status = call(&plane, None, &[bearer(&token)], message).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    let client = client(&plane, token);
    let refused = client.request_certificate(&id(), 91 * DAY, None).await.unwrap_err();
    assert!(matches!(&refused, CaError::InvalidArgument(text) if text.contains("2184h0m0s")), "{refused}");
}

#[tokio::test]
async fn a_certificate_renews_for_itself_only() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(config(&folder)).await.unwrap();
    let client = client(&plane, plane.issue_token("bookinfo", "ratings-vm").unwrap());
    let certificate = client.request_certificate(&id(), DAY, None).await.unwrap();
    // Neither the token of somebody else nor the request changes who is asking.
    let other = plane.issue_token("bookinfo", "reviews").unwrap();
    let chain = call(&plane, Some(&certificate), &[bearer(&other)], message()).await.unwrap();
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(crate::identity::sole_spiffe_id(&leaf), Some(id()));

    // The certificate of another mesh does not pass the handshake, with or without a good token.
    let other_folder = tempfile::tempdir().unwrap();
    let other_plane = Plane::start(config(&other_folder)).await.unwrap();
    let token = plane.issue_token("bookinfo", "ratings-vm").unwrap();
    let connected = connector(&other_plane).connect(Some(&certificate)).await;
    if let Ok(channel) = connected {
        // TLS 1.3: the client learns of it with its first call.
        let mut request = Request::new(message());
        request.metadata_mut().insert("authorization", bearer(&token).1.parse().unwrap());
        assert!(IstioCertificateServiceClient::new(channel).create_certificate(request).await.is_err());
    }
}

#[tokio::test]
async fn the_root_and_the_address_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    let plane = Plane::start(config.clone()).await.unwrap();
    let (root, address) = (plane.root_pem().to_owned(), plane.address());
    let client = client(&plane, plane.issue_token("bookinfo", "ratings-vm").unwrap());
    let first = client.request_certificate(&id(), DAY, None).await.unwrap();
    let second_plane = Plane::start(config.clone()).await.unwrap_err();
    assert!(matches!(second_plane, PlaneError::State(StateError::InUse(_))), "{second_plane}");
    plane.shutdown().await;

    let gone = client.request_certificate(&id(), DAY, Some(&first)).await.unwrap_err();
    assert!(matches!(gone, CaError::Connect(_)), "{gone}");
    config.listen = address;
    let plane = Plane::start(config).await.unwrap();
    assert_eq!(plane.root_pem(), root);
    // Both the old token and the old certificate are still good.
    client.request_certificate(&id(), DAY, None).await.unwrap();
    client.request_certificate(&id(), DAY, Some(&first)).await.unwrap();
}

#[tokio::test]
async fn messages_above_the_limit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(config(&folder)).await.unwrap();
    let token = plane.issue_token("bookinfo", "ratings-vm").unwrap();
    let large = IstioCertificateRequest { csr: "x".repeat(100_000), ..message() };
    let status = call(&plane, None, &[bearer(&token)], large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(call(&plane, None, &[bearer(&token)], message()).await.is_ok());
}

#[tokio::test]
async fn silent_and_surplus_connections_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    config.limits.max_connections = 1;
    config.limits.handshake_timeout = Duration::from_millis(200);
    let plane = Plane::start(config).await.unwrap();
    // Never says hello: holds the only place until the handshake times out.
    let mut silent = TcpStream::connect(plane.address()).await.unwrap();
    let mut surplus = TcpStream::connect(plane.address()).await.unwrap();
    let closed = |read: std::io::Result<usize>| matches!(read, Ok(0) | Err(_));
    assert!(closed(surplus.read(&mut [0; 16]).await), "one too many");
    assert!(closed(silent.read(&mut [0; 16]).await), "silent");
    let client = client(&plane, plane.issue_token("bookinfo", "ratings-vm").unwrap());
    client.request_certificate(&id(), DAY, None).await.unwrap();
}

#[tokio::test]
async fn a_call_whose_message_never_comes_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    config.limits.request_timeout = Duration::from_millis(50);
    let plane = Plane::start(config).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(connector(&plane).connect(None).await.unwrap());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<IstioCertificateRequest, IstioCertificateRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/istio.v1.auth.IstioCertificateService/CreateCertificate");
    let status = grpc.client_streaming(Request::new(tokio_stream::pending()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    config.limits.max_connection_age = Duration::from_millis(100);
    let plane = Plane::start(config).await.unwrap();
    let token = plane.issue_token("bookinfo", "ratings-vm").unwrap();
    let mut client = IstioCertificateServiceClient::new(connector(&plane).connect(None).await.unwrap());
    let until_it_is_closed = async {
        let mut calls = 0;
        loop {
            let mut request = Request::new(message());
            request.metadata_mut().insert("authorization", bearer(&token).1.parse().unwrap());
            if client.create_certificate(request).await.is_err() {
                return calls;
            }
            calls += 1;
        }
    };
    let calls = tokio::time::timeout(Duration::from_secs(10), until_it_is_closed).await.unwrap();
    assert!(calls > 0);
}

#[tokio::test]
async fn what_is_no_tls_and_what_is_no_certificate_call_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start(config(&folder)).await.unwrap();
    let mut plaintext = TcpStream::connect(plane.address()).await.unwrap();
    plaintext.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plaintext.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(&[0, 0]), "HTTP/2 in plaintext");

    let channel = connector(&plane).connect(None).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<IstioCertificateRequest, IstioCertificateRequest>::default();
    let path =
        http::uri::PathAndQuery::from_static("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources");
    let status = grpc.unary(Request::new(message()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn bad_names_get_no_token_and_the_refusal_is_audited() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _guard) = Log::capture();
    let plane = Plane::start(config(&folder)).await.unwrap();
    assert!(matches!(plane.issue_token("a/sa/b", "c"), Err(TokenError::Subject(_))));
    let line = log.audit().pop().unwrap();
    assert!(line.contains(r#"event="token""#) && line.contains(r#"decision="denied""#), "{line}");
}

#[tokio::test]
async fn the_server_certificate_is_renewed_while_the_plane_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    let days = Arc::new(std::sync::atomic::AtomicU32::new(0));
    config.clock = crate::identity::Clock::new({
        let days = days.clone();
        move || std::time::SystemTime::now() + DAY * days.load(std::sync::atomic::Ordering::Relaxed)
    });
    let clock = config.clock.clone();
    let plane = Plane::start(config).await.unwrap();
    for day in [0, 3, 30] {
        days.store(day, std::sync::atomic::Ordering::Relaxed);
        let mut client = client(&plane, plane.issue_token("bookinfo", "ratings-vm").unwrap());
        client.connector.clock = clock.clone();
        client.request_certificate(&id(), DAY, None).await.unwrap();
    }
}
