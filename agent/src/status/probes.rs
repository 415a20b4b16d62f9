//! Kubernetes' probes of the application, which Istio's injector sends through the sidecar: `ISTIO_KUBE_APP_PROBERS`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::grpc;
use crate::client::{self, Limit};
use crate::page::CONNECTION_TIMEOUT;

/// Of an answer's body that is passed on, as in istio-agent.
const MAX_BODY: usize = 10 * 1024;
/// Probes that can be configured.
const MAX_PROBES: usize = 256;
/// Headers of a connection, not of the request.
const HOP_BY_HOP: [&str; 9] =
    ["connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Probes by path: `/app-health/<container>/readyz`, `livez`, `startupz`, `/app-lifecycle/<container>/prestopz`, `poststartz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppProbes(BTreeMap<String, AppProbe>);

/// One probe of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AppProbe {
    action: Action,
    timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Http { port: u16, path: String, tls: bool },
    Tcp { port: u16 },
    Grpc { port: u16, service: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prober {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    #[serde(default)]
    timeout_seconds: u32,
}

#[derive(Deserialize)]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
}

#[derive(Deserialize)]
struct TcpSocket {
    port: u16,
}

#[derive(Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: Option<String>,
}

impl AppProbes {
    /// Reads what the injector writes.
    ///
    /// # Errors
    /// Names the path or field, its value and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let probers: BTreeMap<String, Prober> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if probers.len() > MAX_PROBES {
            return Err(format!("expected at most {MAX_PROBES} probes, found {}", probers.len()));
        }
        let probes = probers.into_iter().map(|(path, prober)| {
            if !is_probe_path(&path) {
                return Err(format!(
                    "expected /app-health/<container>/ and readyz, livez or startupz, or /app-lifecycle/<container>/ and prestopz or poststartz, found {path:?}"
                ));
            }
            let probe = AppProbe::of(prober).map_err(|reason| format!("{path}: {reason}"))?;
            Ok((path, probe))
        });
        probes.collect::<Result<_, _>>().map(Self)
    }

    /// What the application says to the probe of this path; `None` when there is none. `status_port` is where the probe came in.
    pub(super) async fn ask(&self, path: &str, headers: &HeaderMap, status_port: u16) -> Option<Outcome> {
        let AppProbe { action, timeout: limit } = self.0.get(path)?;
        let outcome = timeout(*limit, action.run(headers, status_port, *limit)).await;
        Some(outcome.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))).unwrap_or_else(|reason| {
            tracing::debug!(path, reason, "probe of the application failed");
            Outcome { status: StatusCode::INTERNAL_SERVER_ERROR, body: format!("{reason}\n").into() }
        }))
    }
}

/// What a probe is answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

fn is_probe_path(path: &str) -> bool {
    let mut parts = path.split('/');
    let parts = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
    let [Some(""), Some(kind), Some(container), Some(what), None] = parts else { return false };
    !container.is_empty()
        && matches!(kind, "app-health" | "app-lifecycle")
        && matches!(what, "readyz" | "livez" | "startupz" | "prestopz" | "poststartz")
}

impl AppProbe {
    fn of(prober: Prober) -> Result<Self, String> {
        let action = match (prober.http_get, prober.tcp_socket, prober.grpc) {
            (Some(HttpGet { path, port, scheme }), None, None) => {
                let tls = scheme.eq_ignore_ascii_case("https");
                if !tls && !scheme.is_empty() && !scheme.eq_ignore_ascii_case("http") {
                    return Err(format!("httpGet.scheme: expected HTTP or HTTPS, found {scheme:?}"));
                }
                let path = format!("/{}", path.trim_start_matches('/'));
                Request::get(&path).body(()).map_err(|_| format!("httpGet.path: expected a path, found {path:?}"))?;
                Action::Http { port, path, tls }
            }
            (None, Some(TcpSocket { port }), None) => Action::Tcp { port },
            (None, None, Some(Grpc { port, service })) => Action::Grpc { port, service: service.unwrap_or_default() },
            _ => return Err("expected one of httpGet, tcpSocket and grpc".to_owned()),
        };
        // Kubernetes' own default is a second. The connection that the probe came on does not live longer.
        let timeout = Duration::from_secs(prober.timeout_seconds.max(1).into()).min(CONNECTION_TIMEOUT);
        Ok(Self { action, timeout })
    }
}

impl Action {
    async fn run(&self, headers: &HeaderMap, status_port: u16, limit: Duration) -> Result<Outcome, String> {
        match self {
            Self::Http { port, path, tls } => {
                let request = request(*port, path, headers, status_port)?;
                let (address, cut) = (application(*port), Limit::Cut(MAX_BODY));
                let answer = match tls {
                    false => client::send_limited(address, request, limit, cut).await,
                    true => client::send_unverified(address, request, limit, cut).await,
                };
                answer.map(outcome).map_err(|error| error.to_string())
            }
            Self::Tcp { port } => {
                let address = application(*port);
                let connected = TcpStream::connect(address).await;
                connected.map(|_| fine()).map_err(|error| format!("cannot connect to {address}: {error}"))
            }
            Self::Grpc { port, service } => grpc::is_serving(application(*port), service).await.map(|()| fine()),
        }
    }
}

fn fine() -> Outcome {
    Outcome { status: StatusCode::OK, body: Bytes::new() }
}

/// The application is behind the sidecar, on the same machine.
fn application(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn request(port: u16, path: &str, headers: &HeaderMap, status_port: u16) -> Result<Request<Bytes>, String> {
    let mut request = Request::get(path).body(Bytes::new()).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers.clone();
    for name in HOP_BY_HOP {
        request.headers_mut().remove(name);
    }
    let host = host(headers.get(header::HOST), port, status_port);
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(host).map_err(|error| error.to_string())?);
    Ok(request)
}

/// A redirect without its location is none; Kubernetes takes it as a success.
fn outcome(answer: Response<Bytes>) -> Outcome {
    let status = if answer.status().is_redirection() { StatusCode::OK } else { answer.status() };
    Outcome { status, body: answer.into_body() }
}

/// What the prober calls the application: the port is its own, not ours.
fn host(asked: Option<&HeaderValue>, port: u16, status_port: u16) -> String {
    let asked = asked.and_then(|host| host.to_str().ok()).unwrap_or_default();
    match asked.rsplit_once(':') {
        Some((host, asked_port)) if asked_port == status_port.to_string() => format!("{host}:{port}"),
        _ if asked.is_empty() => application(port).to_string(),
        _ => asked.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_injectors_probes_are_read() {
        let text = r#"{
            "/app-health/ratings/readyz": {"httpGet": {"path": "ready", "port": 9080, "scheme": "HTTP"}, "timeoutSeconds": 3},
            "/app-health/ratings/livez": {"tcpSocket": {"port": 9080}},
            "/app-health/ratings/startupz": {"grpc": {"port": 9081, "service": "a.B"}, "timeoutSeconds": 3600},
            "/app-lifecycle/ratings/prestopz": {"httpGet": {"port": 9443, "scheme": "HTTPS"}}
        }"#;
        let probes = AppProbes::parse(text).unwrap().0;
        let probe = |action, seconds| AppProbe { action, timeout: Duration::from_secs(seconds) };
        assert_eq!(
            probes["/app-health/ratings/readyz"],
            probe(Action::Http { port: 9080, path: "/ready".to_owned(), tls: false }, 3)
        );
        let secured = Action::Http { port: 9443, path: "/".to_owned(), tls: true };
        assert_eq!(probes["/app-lifecycle/ratings/prestopz"], probe(secured, 1));
        assert_eq!(probes["/app-health/ratings/livez"], probe(Action::Tcp { port: 9080 }, 1));
        assert_eq!(probes["/app-health/ratings/startupz"], probe(Action::Grpc { port: 9081, service: "a.B".to_owned() }, 30));
        for (text, reason) in [
            (r#"{"/app-health/ratings": {"tcpSocket": {"port": 1}}}"#, "found \"/app-health/ratings\""),
            (r#"{"/app-health//readyz": {"tcpSocket": {"port": 1}}}"#, "expected /app-health/"),
            (r#"{"/app-health/a/readyz": {}}"#, "/app-health/a/readyz: expected one of"),
            (r#"{"/app-health/a/readyz": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}"#, "expected one of"),
            (
                r#"{"/app-health/a/readyz": {"httpGet": {"port": 1, "scheme": "FTP"}}}"#,
                "scheme: expected HTTP or HTTPS, found \"FTP\"",
            ),
            (r#"{"/app-health/a/readyz": {"httpGet": {"port": "http"}}}"#, "port"),
            ("[]", "expected a map"),
        ] {
            let error = AppProbes::parse(text).unwrap_err();
            assert!(error.contains(reason) || error.contains("invalid"), "{text}: {error}");
        }
    }

    #[test]
    fn the_application_is_called_by_its_own_port() {
        let host = |asked: &'static str| host(Some(&HeaderValue::from_static(asked)), 9080, 15020);
        assert_eq!(host("10.0.0.4:15020"), "10.0.0.4:9080");
        assert_eq!(host("ratings.example"), "ratings.example");
        assert_eq!(host("ratings.example:80"), "ratings.example:80");
        assert_eq!(super::host(None, 9080, 15020), "127.0.0.1:9080");
    }
}
