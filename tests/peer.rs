//! How sidecars tell each other who they are, over HTTP and over TCP: what goes over the wire, what the application sees of it, and
//! the labels that Istio's metrics get from it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::io;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use skiff_proto::google::protobuf::value::Kind;
use skiff_proto::google::protobuf::{Any, Struct, Value};
use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, GREETING, Speaks};
use skiff_tests::http::{self, Connection};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS, Running};
use skiff_tests::tls::{self, Validity};
use skiff_tests::wait::within;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, client, server};

const VALUE: &str = "x-envoy-peer-metadata";
const ID: &str = "x-envoy-peer-metadata-id";
const EXCHANGE: &str = "istio-peer-exchange";
const MAGIC: [u8; 4] = [0x3d, 0x23, 0x04, 0x67];

async fn bookinfo() -> Running {
    Mesh::prepare().await.run().await
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn object(fields: &[(&str, Value)]) -> Struct {
    Struct { fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect() }
}

/// What a pod of reviews, beside which Envoy runs, says of itself.
fn reviews() -> Struct {
    let labels = object(&[
        ("app", text("reviews")),
        ("version", text("v3")),
        ("service.istio.io/canonical-name", text("reviews-canonical")),
        ("service.istio.io/canonical-revision", text("latest")),
    ]);
    object(&[
        ("NAME", text("reviews-v3-7d99fd7978-abcde")),
        ("NAMESPACE", text("elsewhere")),
        ("CLUSTER_ID", text("eks")),
        ("WORKLOAD_NAME", text("reviews-v3")),
        ("OWNER", text("kubernetes://apis/apps/v1/namespaces/elsewhere/deployments/reviews-v3")),
        ("LABELS", Value { kind: Some(Kind::StructValue(labels)) }),
    ])
}

fn header(metadata: &Struct) -> String {
    BASE64_STANDARD.encode(metadata.encode_to_vec())
}

/// Texts and, below `LABELS.`, labels.
fn facts(metadata: &Struct) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, value) in &metadata.fields {
        match value.kind.as_ref().unwrap() {
            Kind::StringValue(text) => drop(all.insert(name.clone(), text.clone())),
            Kind::StructValue(inner) => {
                all.extend(facts(inner).into_iter().map(|(label, value)| (format!("{name}.{label}"), value)));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    all
}

/// Facts of a workload of these tests.
fn facts_of(name: &str) -> BTreeMap<String, String> {
    let all = [
        ("NAME", format!("{name}-v1")),
        ("NAMESPACE", "bookinfo".to_owned()),
        ("CLUSTER_ID", "Kubernetes".to_owned()),
        ("WORKLOAD_NAME", format!("{name}-v1")),
        ("LABELS.app", name.to_owned()),
        ("LABELS.version", "v1".to_owned()),
        ("LABELS.service.istio.io/canonical-name", name.to_owned()),
        ("LABELS.service.istio.io/canonical-revision", "v1".to_owned()),
    ];
    all.map(|(name, value)| (name.to_owned(), value)).into()
}

fn id_of(mesh: &Mesh, name: &str, address: u8) -> String {
    format!("sidecar~{}~{name}-v1.bookinfo~bookinfo.svc.cluster.local", mesh.network.ip(address))
}

/// A connection of the mesh to the sidecar of details, as its sidecar makes it.
async fn caller(mesh: &Mesh, port: u16, alpn: &str) -> client::TlsStream<TcpStream> {
    tls::connect(mesh.ingress(DETAILS_V1, port), Some(&mesh.identity()), &[alpn]).await.unwrap()
}

#[tokio::test]
async fn requests_carry_who_is_on_either_side_and_nobody_else_sees_it() {
    let bookinfo = bookinfo().await;
    // What an application makes up is no more than that.
    let forged = format!("x-request-id: id-peers\r\n{VALUE}: {}\r\n{ID}: forged\r\n", header(&reviews()));
    let answer = http::exchange(bookinfo.egress(), &http::get_request(DETAILS, "/", &forged)).await;
    assert_eq!(answer.status, 200);
    assert_eq!((answer.header(VALUE), answer.header(ID)), (None, None));
    let seen = bookinfo.app.last_request();
    assert_eq!((seen.header(VALUE), seen.header(ID)), (None, None));
    let (ratings, details) = bookinfo.lines("id-peers").await;
    for line in [ratings, details] {
        line.assert(&[("response_code", "200"), ("response_flags", "-")]);
    }

    let (source, destination) = (RATINGS.spiffe_id(), DETAILS_V1.spiffe_id());
    let mut expected = BTreeMap::from([
        ("source_workload", "ratings-v1"),
        ("source_workload_namespace", "bookinfo"),
        ("source_principal", source.as_str()),
        ("source_app", "ratings"),
        ("source_version", "v1"),
        ("source_cluster", "Kubernetes"),
        ("source_canonical_service", "ratings"),
        ("source_canonical_revision", "v1"),
        ("destination_workload", "details-v1"),
        ("destination_workload_namespace", "bookinfo"),
        ("destination_principal", destination.as_str()),
        ("destination_app", "details"),
        ("destination_version", "v1"),
        ("destination_cluster", "Kubernetes"),
        ("destination_canonical_service", "details"),
        ("destination_canonical_revision", "v1"),
        ("destination_service", "details.bookinfo.svc.cluster.local"),
        ("destination_service_name", "details.bookinfo.svc.cluster.local"),
        ("destination_service_namespace", "bookinfo"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
    ]);
    for (sidecar, reporter, policy) in
        [(&bookinfo.ratings, "source", "unknown"), (&bookinfo.details, "destination", "mutual_tls")]
    {
        expected.extend([("reporter", reporter), ("connection_security_policy", policy)]);
        let metrics = sidecar.metrics().await;
        let series = metrics.only("istio_requests_total", &[]);
        let labels: BTreeMap<_, _> = series.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!((labels, series.value), (expected.clone(), 1.0), "{reporter}");
        assert_eq!(metrics.only("istio_build", &[("component", "proxy"), ("tag", "1.32.0")]).value, 1.0);
    }
}

#[tokio::test]
async fn a_caller_that_asks_is_answered_in_kind() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::over(caller(&bookinfo.mesh, 9080, "http/1.1").await);
    let pair = format!("x-request-id: id-asks\r\n{VALUE}: {}\r\n{ID}: sidecar~10.0.0.9~reviews\r\n", header(&reviews()));
    let answer = caller.ask(&http::get_request(DETAILS, "/", &pair)).await.unwrap();
    assert_eq!((answer.status, answer.header(ID)), (200, Some(id_of(&bookinfo.mesh, "details", 31).as_str())));
    let told = BASE64_STANDARD.decode(answer.header(VALUE).unwrap()).unwrap();
    assert_eq!(facts(&Struct::decode(told.as_slice()).unwrap()), facts_of("details"));
    let answer = caller.ask(&http::get_request(DETAILS, "/", &format!("x-request-id: id-half\r\n{ID}: x\r\n"))).await.unwrap();
    assert!(answer.header(ID).is_some() && answer.header(VALUE).is_none(), "{answer:?}");
    let answer = caller.ask(&http::get_request(DETAILS, "/", "x-request-id: id-silent\r\n")).await.unwrap();
    assert_eq!((answer.status, answer.header(VALUE), answer.header(ID)), (200, None, None));
    bookinfo.details.stdout.line_with("id-silent").await;

    let metrics = bookinfo.details.metrics().await;
    let principal = RATINGS.spiffe_id();
    // The certificate proves a namespace; for the rest a peer is believed, as in Istio.
    let told = [
        ("source_principal", principal.as_str()),
        ("source_workload", "reviews-v3"),
        ("source_workload_namespace", "bookinfo"),
        ("source_app", "reviews"),
        ("source_version", "v3"),
        ("source_cluster", "eks"),
        ("source_canonical_service", "reviews-canonical"),
        ("source_canonical_revision", "latest"),
    ];
    assert_eq!(metrics.only("istio_requests_total", &told).value, 1.0);
    let untold = [
        ("source_workload", "unknown"),
        ("source_workload_namespace", "bookinfo"),
        ("source_app", "unknown"),
        ("source_cluster", "unknown"),
        ("source_canonical_service", "unknown"),
        ("source_canonical_revision", "latest"),
    ];
    assert_eq!(metrics.only("istio_requests_total", &untold).value, 2.0);
}

#[tokio::test]
async fn metadata_that_cannot_be_read_fails_nothing() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::over(caller(&bookinfo.mesh, 9080, "http/1.1").await);
    let oversized = object(&[("WORKLOAD_NAME", text(&"x".repeat(20_000)))]);
    for (number, bad) in ["%%%", "AAAA", "Cg==", "", &header(&oversized)].into_iter().enumerate() {
        let request =
            http::get_request(DETAILS, "/", &format!("x-request-id: id-bad-{number}\r\n{VALUE}: {bad}\r\n{ID}: {bad}\r\n"));
        let answer = caller.ask(&request).await.unwrap();
        assert_eq!(answer.status, 200, "{bad}");
        let seen = bookinfo.app.last_request();
        assert_eq!((seen.header(VALUE), seen.header(ID)), (None, None), "{bad}");
        let line = AccessLogLine::parse(&bookinfo.details.stdout.line_with(&format!("id-bad-{number}")).await);
        line.assert(&[("response_code", "200"), ("response_flags", "-")]);
    }
    let unknown = [("source_workload", "unknown"), ("response_code", "200")];
    assert_eq!(bookinfo.details.metrics().await.only("istio_requests_total", &unknown).value, 5.0);
}

fn preamble(metadata: &Struct) -> Vec<u8> {
    let fields =
        object(&[(VALUE, Value { kind: Some(Kind::StructValue(metadata.clone())) }), (ID, text("sidecar~10.0.0.9~reviews"))]);
    let any = Any { type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(), value: fields.encode_to_vec() };
    framed(&any.encode_to_vec())
}

fn framed(metadata: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &u32::try_from(metadata.len()).unwrap().to_be_bytes(), metadata].concat()
}

/// Reads a preamble, as Envoy does.
async fn introduction(stream: &mut (impl AsyncRead + Unpin)) -> BTreeMap<String, String> {
    let mut head = [0; 8];
    within("the magic number", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[..4], MAGIC);
    let mut any = vec![0; u32::from_be_bytes(head[4..].try_into().unwrap()) as usize];
    within("the metadata", stream.read_exact(&mut any)).await.unwrap();
    let any = Any::decode(any.as_slice()).unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.Struct");
    facts(&Struct::decode(any.value.as_slice()).unwrap())
}

/// What a preamble of a workload of these tests says.
fn introduction_of(mesh: &Mesh, name: &str, address: u8) -> BTreeMap<String, String> {
    let mut all: BTreeMap<_, _> = facts_of(name).into_iter().map(|(fact, value)| (format!("{VALUE}.{fact}"), value)).collect();
    all.insert(ID.to_owned(), id_of(mesh, name, address));
    all
}

async fn expect(stream: &mut (impl AsyncRead + Unpin), expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    within("bytes", stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
}

/// Ends a connection to details and waits for its log line, which tells `received` bytes.
async fn ended(bookinfo: &Running, mut caller: client::TlsStream<TcpStream>, received: usize) {
    caller.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within("the rest", caller.read_to_end(&mut rest)).await.unwrap();
    let local = caller.get_ref().0.local_addr().unwrap().to_string();
    let line = AccessLogLine::parse(&bookinfo.details.stdout.line_with(&local).await);
    line.assert(&[("response_flags", "-"), ("bytes_received", &received.to_string())]);
}

#[tokio::test]
async fn a_tcp_caller_introduces_itself_before_or_after_the_greeting() {
    let bookinfo = bookinfo().await;
    let _tcp = App::start(bookinfo.mesh.network.at(31, 8100), Speaks::Tcp);
    let own = introduction_of(&bookinfo.mesh, "details", 31);
    let introduced = preamble(&reviews());

    let mut eager = caller(&bookinfo.mesh, 9100, EXCHANGE).await;
    // In two pieces, with the first bytes of the stream behind the second.
    eager.write_all(&introduced[..11]).await.unwrap();
    eager.write_all(&[&introduced[11..], b"hello"].concat()).await.unwrap();
    assert_eq!(introduction(&mut eager).await, own);
    expect(&mut eager, &[GREETING, b"hello"].concat()).await;
    ended(&bookinfo, eager, 5).await;

    // Envoy says nothing before it has something to send or has heard something.
    let mut patient = caller(&bookinfo.mesh, 9100, EXCHANGE).await;
    assert_eq!(introduction(&mut patient).await, own);
    expect(&mut patient, GREETING).await;
    patient.write_all(&[&introduced[..], b"hello"].concat()).await.unwrap();
    expect(&mut patient, b"hello").await;
    ended(&bookinfo, patient, 5).await;

    let principal = RATINGS.spiffe_id();
    let told = [
        ("reporter", "destination"),
        ("source_principal", principal.as_str()),
        ("source_workload", "reviews-v3"),
        ("source_app", "reviews"),
        ("source_cluster", "eks"),
        ("destination_workload", "details-v1"),
        ("destination_service", "details.bookinfo.svc.cluster.local"),
        ("connection_security_policy", "mutual_tls"),
        ("request_protocol", "tcp"),
    ];
    let metrics = bookinfo.details.metrics().await;
    for (metric, value) in [("connections_opened", 2.0), ("connections_closed", 2.0), ("received_bytes", 10.0)] {
        assert_eq!(metrics.only(&format!("istio_tcp_{metric}_total"), &told).value, value, "{metric}");
    }
}

#[tokio::test]
async fn a_tcp_caller_that_does_not_introduce_itself_is_served_all_the_same() {
    let bookinfo = bookinfo().await;
    let _tcp = App::start(bookinfo.mesh.network.at(31, 8100), Speaks::Tcp);
    let own = introduction_of(&bookinfo.mesh, "details", 31);
    // Something else; nonsense where metadata should be; too much of it.
    let nonsense = framed(b"nonsense");
    let oversized = framed(&vec![7; 20_000]);
    for (sent, passed) in [(&b"hello"[..], 5), (&nonsense, 0), (&oversized, 0)] {
        let mut caller = caller(&bookinfo.mesh, 9100, EXCHANGE).await;
        assert_eq!(introduction(&mut caller).await, own);
        caller.write_all(&[sent, b" world"].concat()).await.unwrap();
        expect(&mut caller, &[GREETING, &sent[..passed], b" world"].concat()).await;
        ended(&bookinfo, caller, passed + 6).await;
    }
    // Who did not agree on the exchange hears nothing of it, and what looks like it is data.
    let mut stranger = caller(&bookinfo.mesh, 9100, "http/1.1").await;
    stranger.write_all(&nonsense).await.unwrap();
    expect(&mut stranger, &[GREETING, &nonsense].concat()).await;
    ended(&bookinfo, stranger, nonsense.len()).await;
    let unknown = [("source_workload", "unknown"), ("source_workload_namespace", "bookinfo")];
    assert_eq!(bookinfo.details.metrics().await.only("istio_tcp_connections_closed_total", &unknown).value, 4.0);
}

/// A sidecar of details that takes one connection.
async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor) -> io::Result<server::TlsStream<TcpStream>> {
    let (stream, _) = within("a connection of ratings", listener.accept()).await?;
    within("its handshake", acceptor.accept(stream)).await
}

#[tokio::test]
async fn a_tcp_endpoint_is_told_first_and_may_introduce_itself() {
    let mesh = Mesh::prepare().await;
    let identity = mesh.authority().issue(&DETAILS_V1.spiffe_id(), Validity::Always);
    let acceptor = TlsAcceptor::from(tls::acceptor(identity, &[EXCHANGE]));
    let listener = TcpListener::bind(mesh.ingress(DETAILS_V1, 9100)).await.unwrap();
    let ratings = mesh.spawn(RATINGS, &[]);
    ratings.ready().await;
    let own = introduction_of(&mesh, "ratings", 21);
    let cluster = "outbound|9100||details.bookinfo.svc.cluster.local";

    for (says, passed) in [(preamble(&reviews()), 0), (b"no preamble, ".to_vec(), 13)] {
        let mut application = TcpStream::connect(mesh.egress(RATINGS, 9100)).await.unwrap();
        let mut endpoint = accept(&listener, &acceptor).await.unwrap();
        application.write_all(b"hello").await.unwrap();
        assert_eq!(introduction(&mut endpoint).await, own);
        expect(&mut endpoint, b"hello").await;
        endpoint.write_all(&[&says[..], b"welcome"].concat()).await.unwrap();
        endpoint.shutdown().await.unwrap();
        expect(&mut application, &[&says[..passed], b"welcome"].concat()).await;
        application.shutdown().await.unwrap();
        let local = application.local_addr().unwrap().to_string();
        let line = AccessLogLine::parse(&ratings.stdout.line_with(&local).await);
        let sent = (passed + 7).to_string();
        line.assert(&[("upstream_cluster", cluster), ("bytes_received", "5"), ("bytes_sent", &sent)]);
    }
    let metrics = ratings.metrics().await;
    let common = [("reporter", "source"), ("source_workload", "ratings-v1"), ("source_app", "ratings")];
    let told = [("destination_workload", "reviews-v3"), ("destination_app", "reviews"), ("destination_cluster", "eks")];
    assert_eq!(metrics.only("istio_tcp_connections_closed_total", &[common, told].concat()).value, 1.0);
    // Who says nothing is who the control plane says.
    let known = [("destination_workload", "details-v1"), ("destination_app", "unknown"), ("destination_cluster", "Kubernetes")];
    assert_eq!(metrics.only("istio_tcp_connections_opened_total", &[common, known].concat()).value, 1.0);
}
