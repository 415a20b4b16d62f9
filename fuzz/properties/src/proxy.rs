//! A whole proxy on loopback sockets, with a policy and an application that reads strictly.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use skiff_agent::bootstrap;
use skiff_proxy::config::Snapshot;
use skiff_proxy::{Options, Proxy};

use crate::input::{Input, pieces};
use crate::strict::{self, Kind, Message};

/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the application or a thread of the proxy found wrong.
static FAULT: Mutex<Option<String>> = Mutex::new(None);

fn fault(reason: String) {
    FAULT.lock().unwrap().get_or_insert(reason);
}

/// A caller's bytes, HTTP/1 or HTTP/2: the application gets whole and unambiguous requests only, and never one that the policy
/// denies; the connection comes to an end.
pub fn proxy(data: &[u8]) {
    static PROXY: OnceLock<SocketAddr> = OnceLock::new();
    let address = *PROXY.get_or_init(start);
    let mut input = Input::new(data);
    let sizes = [input.byte(), input.byte()];
    let bytes = &input.rest()[..input.rest().len().min(100_000)];
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let few = u8::try_from(bytes.len() / 8 + 1).unwrap_or(u8::MAX);
    for piece in pieces(bytes, &sizes.map(|size| size.max(few))) {
        // The proxy may have had enough.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let waited = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!waited, "no end of the connection after {} bytes of answer", answer.len());
    }
    if answer.starts_with(b"HTTP/1") {
        let kind = Kind::Response { head: true, connect: false };
        strict::read_head(&answer, kind).unwrap_or_else(|reason| panic!("{reason} in the answer"));
    }
    if let Some(reason) = FAULT.lock().unwrap().take() {
        panic!("{reason}");
    }
}

fn start() -> SocketAddr {
    // A panic of a worker ends one connection only; here it has to end the run.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            fault(format!("{panic}"));
            before(panic);
        }));
    });
    let backend = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let upstream = backend.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in backend.incoming().flatten() {
            std::thread::spawn(move || application(stream));
        }
    });
    let address = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr()).unwrap();
    let recorder = Arc::new(PrometheusBuilder::new().build_recorder());
    let proxy = Proxy::start(&Options { workers: 1, ..Options::default() }, recorder).unwrap();
    let report = proxy.apply(snapshot(address, upstream));
    assert!(report.rejected.is_empty(), "{:?}", report.rejected);
    // It serves until the process ends.
    std::mem::forget(proxy);
    address
}

/// Answers every request, and looks at it as a naive application would.
fn application(mut stream: TcpStream) -> Option<()> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let read = stream.read(&mut buffer).ok()?;
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&buffer[..read]);
        while !bytes.is_empty() {
            match strict::read(&bytes, Kind::Request) {
                Ok(Some(message)) => {
                    check(&message);
                    bytes.drain(..message.size);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
                }
                Ok(None) => break,
                Err(reason) => {
                    fault(format!("{reason} in {:?}", String::from_utf8_lossy(&bytes)));
                    return None;
                }
            }
        }
    }
}

fn check(message: &Message) {
    let path = as_an_application_sees_it(&message.start[1]);
    if path == "/admin" || path.starts_with("/admin/") {
        fault(format!("denied, but it reached the application: {:?}", String::from_utf8_lossy(&message.start[1])));
    }
    for name in ["x-envoy-internal", "x-forwarded-client-cert", "connection", "keep-alive", "proxy-connection", "upgrade"] {
        if message.values(name).next().is_some() {
            fault(format!("{name} reached the application"));
        }
    }
}

/// Escapes decoded once, slashes merged, dots resolved.
fn as_an_application_sees_it(path: &[u8]) -> String {
    let path = path.split(|b| *b == b'?').next().unwrap_or_default();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let escaped = path.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match escaped.filter(|_| path[at] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(path[at]);
                at += 1;
            }
        }
    }
    let text = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let mut segments = Vec::new();
    for segment in text.split('/').filter(|segment| !segment.is_empty() && *segment != ".") {
        if segment == ".." {
            segments.pop();
        } else {
            segments.push(segment);
        }
    }
    format!("/{}", segments.join("/"))
}

/// The mesh setting `DECODE_AND_MERGE_SLASHES`, and nothing below `/admin`.
const BOOTSTRAP: &str = r#"
static_resources:
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: UPSTREAM}}}}]}]
  listeners:
  - name: app
    address: {socket_address: {address: 127.0.0.1, port_value: LISTENER}}
    traffic_direction: INBOUND
    listener_filters:
    - name: tls
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: app
          codec_type: AUTO
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD
          delayed_close_timeout: 0.05s
          stream_idle_timeout: 5s
          access_log:
          - name: file
            typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null}
          route_config:
            name: app
            virtual_hosts:
            - name: any
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: app, timeout: 5s, max_stream_duration: {grpc_timeout_header_max: 5s}}
          http_filters:
          - name: rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: DENY
                policies:
                  no-admin:
                    permissions: [{url_path: {path: {exact: /admin}}}, {url_path: {path: {prefix: /admin/}}}]
                    principals: [{any: true}]
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;

fn snapshot(address: SocketAddr, upstream: SocketAddr) -> Snapshot {
    let ports = [("LISTENER", address), ("UPSTREAM", upstream)];
    let yaml = ports.iter().fold(BOOTSTRAP.to_owned(), |yaml, (name, at)| yaml.replace(name, &at.port().to_string()));
    let bootstrap = bootstrap::parse(Path::new("proxy.yaml"), &yaml).unwrap();
    assert!(bootstrap.report.rejected.is_empty(), "{}", bootstrap.report);
    bootstrap.snapshot
}
