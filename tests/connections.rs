//! Connections before anybody has said anything in HTTP: whom the TCP proxy lets in, what TLS accepts, and what the log says.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType};
use rustls::HandshakeKind;
use skiff_tests::apps::{App, GOODBYE, GREETING, Speaks};
use skiff_tests::bootstrap::Bootstrap;
use skiff_tests::http;
use skiff_tests::skiff::Skiff;
use skiff_tests::tls::{self, Authority, Identity, Validity};
use skiff_tests::wait::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CLIENT: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings";

/// What every access log of this file writes.
const FORMAT: &str = r#"%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_HOST%" %BYTES_RECEIVED% %BYTES_SENT% %REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_TRANSPORT_FAILURE_REASON% %ACCESS_LOG_TYPE%"#;

fn access_log() -> String {
    format!(
        "[{{name: log, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog, \
         log_format: {{text_format_source: {{inline_string: '{FORMAT}\n\n'}}}}}}}}]"
    )
}

/// The cluster `app` at port 9000 of the network's second address.
const CLUSTERS: &str = "  clusters:\n  - {name: app, type: STATIC, connect_timeout: 5s, load_assignment: {cluster_name: app, endpoints: \
     [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.2, port_value: 9000}}}}]}]}}\n";

/// A listener on port 9000 of the network's first address: filters before the TCP proxy, options of the proxy, the rest of the chain.
fn listener(filters: &str, options: &str, chain: &str) -> String {
    let log = access_log();
    format!(
        "  listeners:\n  - name: door\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 9000}}}}\n    \
         access_log: {log}\n    filter_chains:\n    - filters:\n{filters}      - name: tcp\n        typed_config: \
         {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: app, \
         access_log: {log}{options}}}\n{chain}{CLUSTERS}"
    )
}

/// Mutual TLS as Istio has it, for clients of `cluster.local`.
const MUTUAL: &str = "      transport_socket: {name: tls, typed_config: \
     {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, \
     common_tls_context: {tls_certificates: [{certificate_chain: {filename: DIR/server.pem}, private_key: {filename: DIR/server.key}}], \
     validation_context: {trusted_ca: {filename: DIR/root.pem}, \
     match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: 'spiffe://cluster.local/'}}]}}}}\n";

/// A TCP application behind a proxy.
struct Door {
    bootstrap: Bootstrap,
    skiff: Skiff,
    _app: App,
}

impl Door {
    async fn open(bootstrap: Bootstrap, resources: &str) -> Self {
        let app = App::start(bootstrap.network.at(2, 9000), Speaks::Tcp);
        let skiff = bootstrap.run(resources).await;
        Self { bootstrap, skiff, _app: app }
    }

    fn address(&self) -> SocketAddr {
        self.bootstrap.network.at(1, 9000)
    }

    fn host(&self) -> String {
        self.bootstrap.network.at(2, 9000).to_string()
    }

    async fn closed(&self, connections: f64) {
        eventually("the connection is counted as closed", async || {
            let metrics = self.skiff.metrics().await;
            let total = metrics.sum("envoy_listener_downstream_cx_total", &[]);
            (total == connections && metrics.sum("envoy_listener_downstream_cx_active", &[]) == 0.0).then_some(())
        })
        .await;
    }
}

async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    within("the end of the connection", stream.read_to_end(&mut all)).await?;
    Ok(all)
}

#[tokio::test]
async fn network_rbac_answers_the_first_byte_and_lets_no_greeting_out() {
    let rbac = "      - {name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, \
                stat_prefix: tcp., rules: {action: ALLOW, policies: {p: {permissions: [{any: true}], \
                principals: [{direct_remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]}}}}}\n";
    let door = Door::open(Bootstrap::new(), &listener(rbac, "", "")).await;
    let mut caller = TcpStream::connect(door.address()).await.unwrap();
    // The endpoint has been reached, and greets; what counts is that nothing of it gets here.
    eventually("the endpoint is connected", async || {
        let metrics = door.skiff.metrics().await;
        (metrics.sum("envoy_cluster_upstream_cx_active", &[]) == 1.0).then_some(())
    })
    .await;
    caller.write_all(b"x").await.unwrap();
    assert_eq!(rest(&mut caller).await.unwrap(), b"");
    let line = door.skiff.stdout.line_with("rbac_access_denied").await;
    let host = door.host();
    assert_eq!(line, format!("- rbac_access_denied_matched_policy[none] \"{host}\" 1 0 - - - - TcpConnectionEnd"));
    door.closed(1.0).await;
}

#[tokio::test]
async fn a_connection_above_the_limit_is_closed_logged_and_counted() {
    let limit = "      - {name: limit, typed_config: {'@type': \
                 type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: l, max_connections: 1}}\n";
    let door = Door::open(Bootstrap::new(), &listener(limit, "", "")).await;
    let mut first = TcpStream::connect(door.address()).await.unwrap();
    let mut greeting = vec![0; GREETING.len()];
    first.read_exact(&mut greeting).await.unwrap();
    let mut second = TcpStream::connect(door.address()).await.unwrap();
    assert_eq!(rest(&mut second).await.unwrap(), b"");
    assert_eq!(door.skiff.stdout.line_with("TcpConnectionEnd").await, "- - \"-\" 0 0 - - - - TcpConnectionEnd");
    assert_eq!(door.skiff.metrics().await.sum("envoy_listener_downstream_cx_overflow", &[]), 1.0);
    // Its end makes room.
    first.shutdown().await.unwrap();
    assert_eq!(rest(&mut first).await.unwrap(), GOODBYE);
    door.closed(2.0).await;
    let mut third = TcpStream::connect(door.address()).await.unwrap();
    third.shutdown().await.unwrap();
    assert_eq!(rest(&mut third).await.unwrap(), [GREETING, GOODBYE].concat());
}

#[tokio::test]
async fn a_reset_endpoint_resets_its_caller() {
    let bootstrap = Bootstrap::new();
    let listening = TcpListener::bind(bootstrap.network.at(2, 9000)).await.unwrap();
    let skiff = bootstrap.run(&listener("", "", "")).await;
    let mut caller = TcpStream::connect(bootstrap.network.at(1, 9000)).await.unwrap();
    caller.write_all(b"x").await.unwrap();
    let (mut endpoint, _) = within("the endpoint is reached", listening.accept()).await.unwrap();
    endpoint.read_exact(&mut [0]).await.unwrap();
    endpoint.set_zero_linger().unwrap();
    drop(endpoint);
    assert_eq!(rest(&mut caller).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let host = bootstrap.network.at(2, 9000);
    assert_eq!(skiff.stdout.line_with("UR").await, format!("UR - \"{host}\" 1 0 - - - - TcpConnectionEnd"));
}

#[tokio::test]
async fn a_long_connection_is_logged_as_often_as_it_is_asked_for() {
    let options = ", access_log_options: {access_log_flush_interval: 0.05s, flush_access_log_on_connected: true, \
                   flush_access_log_on_start: true}, max_downstream_connection_duration: 0.5s";
    let door = Door::open(Bootstrap::new(), &listener("", options, "")).await;
    let mut caller = TcpStream::connect(door.address()).await.unwrap();
    assert_eq!(rest(&mut caller).await.unwrap(), GREETING);
    let host = door.host();
    assert_eq!(door.skiff.stdout.line_with("DT").await, format!("DT - \"{host}\" 0 11 - - - - TcpConnectionEnd"));
    let lines = door.skiff.stdout.all();
    assert_eq!(lines[0], "- - \"-\" 0 0 - - - - TcpConnectionStart");
    assert_eq!(lines[1], format!("- - \"{host}\" 0 0 - - - - TcpUpstreamConnected"));
    assert!(lines[2..lines.len() - 1].iter().all(|line| line.ends_with(" 11 - - - - TcpPeriodic")), "{lines:?}");
    assert!(lines.len() > 5, "{lines:?}");
}

#[tokio::test]
async fn dead_endpoints_are_left_for_others_as_often_as_allowed() {
    let bootstrap = Bootstrap::new();
    let two = "  clusters:\n  - {name: app, type: STATIC, lb_policy: ROUND_ROBIN, connect_timeout: 5s, load_assignment: \
               {cluster_name: app, endpoints: [{lb_endpoints: [\
               {endpoint: {address: {socket_address: {address: 127.0.0.3, port_value: 9000}}}}, \
               {endpoint: {address: {socket_address: {address: 127.0.0.2, port_value: 9000}}}}]}]}}\n";
    let resources = listener("", ", max_connect_attempts: 2", "").replace(CLUSTERS, two);
    let door = Door::open(bootstrap, &resources).await;
    for _ in 0..4 {
        let mut caller = TcpStream::connect(door.address()).await.unwrap();
        caller.shutdown().await.unwrap();
        assert_eq!(rest(&mut caller).await.unwrap(), [GREETING, GOODBYE].concat());
    }
    door.closed(4.0).await;
    let host = door.host();
    assert!(door.skiff.stdout.all().iter().all(|line| line.contains(&host)), "{:?}", door.skiff.stdout.all());
    assert!(door.skiff.metrics().await.sum("envoy_cluster_upstream_cx_connect_fail", &[]) >= 1.0);
}

/// An authority with the server's certificate, in a bootstrap's folder.
fn mesh() -> (Bootstrap, Authority) {
    let bootstrap = Bootstrap::new();
    let authority = Authority::with_root(&bootstrap.path("root.pem"));
    let server = authority.issue("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details", Validity::Always);
    server.write(bootstrap.path("root.pem").parent().unwrap(), "server");
    (bootstrap, authority)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// Row 50 of the security cases: names that mean one thing to a signer and another to a proxy, and certificates of the wrong kind.
#[tokio::test]
async fn row_50_certificates_that_prove_nothing_are_refused() {
    let (bootstrap, authority) = mesh();
    let server_only = |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let odd = |sans| authority.issue_with(sans, |_| {});
    let cases: Vec<(&str, Identity)> = vec![
        ("illegal_character", odd(vec![uri(&format!("{CLIENT}\0.evil"))])),
        ("illegal_character", odd(vec![uri(CLIENT), dns("a.example\0.evil.test")])),
        ("illegal_character", odd(vec![dns(CLIENT)])),
        ("illegal_character", odd(vec![SanType::Rfc822Name(CLIENT.try_into().unwrap())])),
        ("exactly_one_URI_SAN", odd(vec![uri(CLIENT), uri("spiffe://cluster.local/ns/a/sa/admin")])),
        ("exactly_one_URI_SAN", odd(vec![uri("https://a.example"), uri(CLIENT)])),
        ("SAN_matcher", odd(vec![uri("spiffe://cluster.local.evil/ns/bookinfo/sa/bookinfo-ratings")])),
        ("SAN_matcher", odd(vec![uri("spiffe://other.domain/ns/bookinfo/sa/bookinfo-ratings")])),
        ("SAN_matcher", odd(vec![dns("cluster.local")])),
        ("SAN_matcher,_certificate_SANs_are_[]", odd(vec![])),
        ("unsupported_certificate_purpose", authority.issue_with(vec![uri(CLIENT)], server_only)),
        // Another authority of the same name: its signature is what does not fit.
        ("certificate_signature_failure", Authority::stranger().issue(CLIENT, Validity::Always)),
        ("certificate_has_expired", authority.issue(CLIENT, Validity::Expired)),
    ];
    let door = Door::open(bootstrap, &listener("", "", MUTUAL)).await;
    for (index, (expected, identity)) in cases.iter().enumerate() {
        // With TLS 1.3 a client is done before the server has judged it: the refusal comes with the first read.
        let refused = async || rest(&mut tls::connect(door.address(), Some(identity), &[]).await?).await;
        assert!(refused().await.is_err(), "{index}: {expected}");
        let line = door.skiff.stdout.nth_line_with("TcpConnectionEnd", index + 1).await;
        assert!(line.contains("CERTIFICATE_VERIFY_FAILED") && line.contains(expected), "{index}: {expected}: {line}");
        // Nothing went either way.
        assert!(line.contains("\" 0 0 - - - "), "{line}");
    }
    let refused = door.skiff.metrics().await.sum("envoy_listener_ssl_connection_error", &[]);
    assert_eq!(refused, f64::from(u32::try_from(cases.len()).unwrap()));
    let good = authority.issue(CLIENT, Validity::Always);
    let mut caller = tls::connect(door.address(), Some(&good), &[]).await.unwrap();
    caller.shutdown().await.unwrap();
    assert_eq!(rest(&mut caller).await.unwrap(), [GREETING, GOODBYE].concat());
    assert!(door.skiff.stdout.line_with(CLIENT).await.starts_with("- - "));
}

/// Certificates that are on a list, which is read again when its file changes.
#[tokio::test]
async fn revoked_certificates_are_refused() {
    let (bootstrap, authority) = mesh();
    fs::write(bootstrap.path("crl.pem"), authority.revoke(&[7])).unwrap();
    let lists = MUTUAL
        .replace("trusted_ca: {filename: DIR/root.pem}", "trusted_ca: {filename: DIR/root.pem}, crl: {filename: DIR/crl.pem}");
    let numbered = |serial: u64| authority.issue_with(vec![uri(CLIENT)], |params| params.serial_number = Some(serial.into()));
    let (seven, eight) = (numbered(7), numbered(8));
    let skiff = bootstrap.run(&listener("", "", &lists)).await;
    let door = Door { _app: App::start(bootstrap.network.at(2, 9000), Speaks::Tcp), skiff, bootstrap };
    let greeted = async |identity: &Identity| {
        let mut caller = tls::connect(door.address(), Some(identity), &[]).await.ok()?;
        caller.shutdown().await.ok()?;
        rest(&mut caller).await.ok().filter(|said| !said.is_empty())
    };
    assert!(greeted(&eight).await.is_some());
    assert!(greeted(&seven).await.is_none());
    let line = door.skiff.stdout.line_with("CERTIFICATE_VERIFY_FAILED").await;
    assert!(line.contains("revocation_check_against_provided_CRLs_failed:_certificate_revoked"), "{line}");
    assert_eq!(door.skiff.metrics().await.sum("envoy_listener_ssl_connection_error", &[]), 1.0);
    fs::write(door.bootstrap.path("crl.pem"), authority.revoke(&[7, 8])).unwrap();
    eventually("the new list counts", async || greeted(&eight).await.is_none().then_some(())).await;
}

/// Row 51: a session that could be resumed would outlive a change of trust, so there is none to resume.
#[tokio::test]
async fn row_51_no_session_resumes() {
    let (bootstrap, authority) = mesh();
    let door = Door::open(bootstrap, &listener("", "", MUTUAL)).await;
    let identity = authority.issue(CLIENT, Validity::Always);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = Arc::new(tls::client(Some(&identity), &[version]));
        for _ in 0..2 {
            let mut caller = tls::connect_as(door.address(), &client).await.unwrap();
            caller.shutdown().await.unwrap();
            // A ticket would have come by now.
            assert_eq!(rest(&mut caller).await.unwrap(), [GREETING, GOODBYE].concat());
            assert_eq!(caller.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
    door.skiff.stdout.nth_line_with(CLIENT, 4).await;
}

/// A `ClientHello` with nothing but this server name.
fn hello(server_name: &[u8]) -> Vec<u8> {
    let vector = |data: &[u8]| [&u16::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat();
    let name = [&[0], &vector(server_name)[..]].concat();
    let extensions = [&[0, 0], &vector(&vector(&name))[..]].concat();
    let body = [&[3, 3], &[7; 32][..], &[0], &vector(&[0x13, 1]), &[1, 0], &vector(&extensions)].concat();
    let message = [&[1, 0], &vector(&body)[..]].concat();
    [&[22, 3, 1], &vector(&message)[..]].concat()
}

/// Row 53: whatever a caller names itself or asks for stays in its field of its line.
#[tokio::test]
async fn row_53_no_name_writes_a_log_line_of_its_own() {
    let (bootstrap, authority) = mesh();
    let inspector = "    listener_filters: [{name: tls, typed_config: \
                     {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]\n    filter_chains:\n";
    let resources = listener("", "", MUTUAL).replace("    filter_chains:\n", inspector);
    let door = Door::open(bootstrap, &resources).await;
    for (at, name) in [&b"a\" 0 0 - - forged"[..], b"a\n- - forged", b"a\"forged", b"\xff\xfeforged"].iter().enumerate() {
        let mut caller = TcpStream::connect(door.address()).await.unwrap();
        caller.write_all(&hello(name)).await.unwrap();
        let _ = rest(&mut caller).await;
        let line = door.skiff.stdout.nth_line_with("TcpConnectionEnd", at + 1).await;
        assert!(!line.contains("forged") || line.contains(" invalid:"), "{line}");
        assert_eq!(line.matches('"').count(), 2, "{line}");
    }
    let forged = authority.issue_with(vec![uri(CLIENT)], |params| {
        params.distinguished_name.push(DnType::CommonName, "x\n- - \"forged\" 0 0");
    });
    let mut caller = tls::connect(door.address(), Some(&forged), &[]).await.unwrap();
    caller.shutdown().await.unwrap();
    rest(&mut caller).await.unwrap();
    let line = door.skiff.stdout.nth_line_with("TcpConnectionEnd", 5).await;
    assert!(line.contains(r"CN=x\0A- - "), "{line}");
    assert_eq!(door.skiff.stdout.all().len(), 5);
}

/// Row 53, the other half: operators that ask for what is missing (CVE-2026-47220).
#[tokio::test]
async fn row_53_a_missing_host_is_a_dash() {
    let bootstrap = Bootstrap::new();
    let format = "%REQ(:AUTHORITY)% %REQUESTED_SERVER_NAME(HOST_FIRST)% %REQUESTED_SERVER_NAME(SNI_FIRST:HOST)% %PATH(NQ:ORIG)% \
                  %QUERY_PARAM(a)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS%";
    let resources = format!(
        "  listeners:\n  - name: door\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 9000}}}}\n    filter_chains:\n    \
         - filters:\n      - name: http\n        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: http, access_log: [{{name: log, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog, log_format: {{text_format_source: \
         {{inline_string: '{format}\n\n'}}}}}}}}], route_config: {{name: r, virtual_hosts: []}}, http_filters: [{{name: \
         envoy.filters.http.router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}\n"
    );
    let skiff = bootstrap.run(&resources).await;
    let door = bootstrap.network.at(1, 9000);
    assert_eq!(http::exchange(door, "GET / HTTP/1.1\r\n\r\n").await.status, 400);
    assert_eq!(skiff.stdout.line_with("missing_host_header").await, "- - - - - 400 missing_host_header");
    assert!(http::try_exchange(door, "\r\n\x01\r\n\r\n").await.is_ok_and(|answer| answer.status == 400));
    assert_eq!(skiff.stdout.nth_line_with("- - - - - 400", 2).await, "- - - - - 400 http1.codec_error");
    assert_eq!(http::exchange(door, "GET /?a=1 HTTP/1.1\r\nhost: h\r\n\r\n").await.status, 404);
    assert_eq!(skiff.stdout.line_with("404").await, "h h h - 1 404 route_not_found");
}

/// Envoy drains an idle HTTP/1 connection before it closes it: a request that crosses with the time-out is answered.
#[tokio::test]
async fn an_idle_time_out_does_not_lose_a_request() {
    let bootstrap = Bootstrap::new();
    let skiff = bootstrap
        .run(
            "  listeners:
  - name: door
    address: {socket_address: {address: 127.0.0.1, port_value: 9000}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: s
          common_http_protocol_options: {idle_timeout: 0.001s}
          drain_timeout: 600s
          route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 204}}]}]}
          http_filters: [{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
",
        )
        .await;
    let mut connection = http::Connection::open(bootstrap.network.at(1, 9000)).await.unwrap();
    let told = async || {
        let answer = connection.ask(&http::get_request("app", "/", "")).await.unwrap();
        assert_eq!(answer.status, 204);
        (answer.header("connection") == Some("close")).then_some(())
    };
    eventually("the connection has been idle", told).await;
    assert!(connection.rest().await.unwrap().is_empty());
    drop(skiff);
}

/// In binary, ahead of what the caller says.
#[tokio::test]
async fn an_endpoint_is_told_whose_bytes_it_gets() {
    let bootstrap = Bootstrap::new();
    let endpoint = TcpListener::bind(bootstrap.network.at(2, 9000)).await.unwrap();
    let socket = "type: STATIC, transport_socket: {name: p, typed_config: {'@type': \
                  type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {version: V2}, \
                  transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}";
    let skiff = bootstrap.run(&listener("", "", "").replace("type: STATIC", socket)).await;
    let door = bootstrap.network.at(1, 9000);
    let mut caller = TcpStream::connect(door).await.unwrap();
    caller.write_all(b"hello").await.unwrap();
    caller.shutdown().await.unwrap();
    let (mut accepted, _) = within("the endpoint is reached", endpoint.accept()).await.unwrap();
    let heard = rest(&mut accepted).await.unwrap();
    let ends = [caller.local_addr().unwrap(), door];
    let addresses = ends.iter().flat_map(|end| match end.ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => unreachable!("a loopback address of IPv4"),
    });
    let ports = ends.iter().flat_map(|end| end.port().to_be_bytes());
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses.chain(ports).collect::<Vec<_>>()].concat();
    assert_eq!(heard, [header, b"hello".to_vec()].concat());
    drop(accepted);
    assert_eq!(
        skiff.stdout.line_with("TcpConnectionEnd").await.split(' ').nth(3),
        Some("5"),
        "the header is none of the caller's"
    );
}
