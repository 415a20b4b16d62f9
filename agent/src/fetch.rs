//! One HTTP/1.1 request to a server outside of the mesh: AWS, metadata endpoints, issuers of tokens.
//!
//! Always direct: `http_proxy` and its like are not looked at, because users set them to the sidecar itself. No redirect is
//! followed. Time and size are bounded, and no error holds a path or a query, which may be secret.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::crypto_provider;

/// Files with the system's trusted roots: Debian and distroless, Fedora and Amazon Linux, Alpine.
const ROOT_FILES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Names another file with roots, as for OpenSSL.
const ROOT_FILE_VARIABLE: &str = "SSL_CERT_FILE";

/// A server: `http://host[:port]` or `https://host[:port]`, perhaps with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    https: bool,
    host: String,
    port: u16,
    path: String,
}

/// This is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected http://host[:port][/path] or https://host[:port][/path], without user, query and fragment")]
pub struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: http::Uri = text.parse().map_err(|_| EndpointError)?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(EndpointError),
        };
        let authority = uri.authority().ok_or(EndpointError)?;
        if authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') || authority.host().is_empty() {
            return Err(EndpointError);
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") if https => 443,
            Some("") => 80,
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or(EndpointError)?,
            None => return Err(EndpointError),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { https, host, port, path: uri.path().to_owned() })
    }
}

impl Endpoint {
    /// Port 443 of a host.
    pub fn https(host: &str) -> Self {
        Self { https: true, host: host.to_owned(), port: 443, path: "/".to_owned() }
    }

    /// Whether it speaks TLS.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path, at least `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the Host header says: without the port that goes without saying.
    pub fn authority(&self) -> String {
        let host = if self.host.parse::<Ipv6Addr>().is_ok() { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = if self.https { 443 } else { 80 };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }
}

/// What an exchange may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From dialling to the last byte.
    pub timeout: Duration,
    /// Bytes of the answer's body; a longer one is an error.
    pub max_body: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(Endpoint, io::Error),
    /// No TLS.
    #[error("no TLS with {0}: {1}")]
    Tls(Endpoint, io::Error),
    /// There are no roots to verify a server by, or they cannot be used.
    #[error("trusted roots: {0}")]
    Roots(String),
    /// The connection ended, or what came was not HTTP.
    #[error("no answer from {0}: {1}")]
    Exchange(Endpoint, hyper::Error),
    /// The answer has too long a body.
    #[error("the answer of {0} is longer than {1} bytes")]
    TooLarge(Endpoint, usize),
    /// It took too long.
    #[error("no answer from {0} within {1:?}")]
    TimedOut(Endpoint, Duration),
    /// The request could not be put together.
    #[error("no request to {0}: {1}")]
    Request(Endpoint, String),
}

/// Whom servers are verified by.
#[derive(Clone, Debug)]
pub enum TrustedRoots {
    /// `SSL_CERT_FILE`, else where distributions keep them.
    System,
    /// These.
    Given(Arc<RootCertStore>),
}

/// Sends requests, each on a connection of its own. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    roots: TrustedRoots,
    /// Made for the first server that speaks TLS: most agents meet none.
    tls: OnceLock<Arc<ClientConfig>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("roots", &self.0.roots).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that trusts these roots.
    pub fn new(roots: TrustedRoots) -> Self {
        Self(Arc::new(Inner { roots, tls: OnceLock::new() }))
    }

    /// Sends one request. Its URI has to be a path with a query; the Host header is set unless it is there.
    ///
    /// # Errors
    /// When there is no complete answer within the limits.
    pub async fn send(&self, to: &Endpoint, request: Request<Bytes>, limits: Limits) -> Result<Response<Bytes>, FetchError> {
        let exchange = Box::pin(self.exchange(to, request, limits.max_body));
        let answer = tokio::time::timeout(limits.timeout, exchange).await;
        answer.unwrap_or_else(|_| Err(FetchError::TimedOut(to.clone(), limits.timeout)))
    }

    async fn exchange(&self, to: &Endpoint, mut request: Request<Bytes>, max_body: usize) -> Result<Response<Bytes>, FetchError> {
        let headers = request.headers_mut();
        if !headers.contains_key(HOST) {
            let host = HeaderValue::from_str(&to.authority());
            headers.insert(HOST, host.map_err(|error| FetchError::Request(to.clone(), error.to_string()))?);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("skiff/", env!("CARGO_PKG_VERSION"))));
        let connect = |error| FetchError::Connect(to.clone(), error);
        let tcp = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(connect)?;
        if !to.https {
            return converse(to, TokioIo::new(tcp), request, max_body).await;
        }
        let name = ServerName::try_from(to.host.clone());
        let name = name.map_err(|error| FetchError::Request(to.clone(), error.to_string()))?;
        let tls = TlsConnector::from(self.tls()?).connect(name, tcp).await.map_err(|error| FetchError::Tls(to.clone(), error))?;
        converse(to, TokioIo::new(tls), request, max_body).await
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, FetchError> {
        if let Some(tls) = self.0.tls.get() {
            return Ok(tls.clone());
        }
        let roots = match &self.0.roots {
            TrustedRoots::System => Arc::new(system_roots().map_err(FetchError::Roots)?),
            TrustedRoots::Given(roots) => roots.clone(),
        };
        let builder = ClientConfig::builder_with_provider(crypto_provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| FetchError::Roots(error.to_string()))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(self.0.tls.get_or_init(|| Arc::new(config)).clone())
    }
}

/// The roots that this machine trusts: those of `SSL_CERT_FILE`, else of the first file where distributions keep them. What is
/// no root in it is left out.
///
/// # Errors
/// When there is no such file, or no root in it.
pub fn system_roots() -> Result<RootCertStore, String> {
    let named = std::env::var(ROOT_FILE_VARIABLE).ok().filter(|path| !path.is_empty());
    let found = || ROOT_FILES.iter().find(|path| std::path::Path::new(path).exists()).map(|path| (*path).to_owned());
    let path = named.or_else(found).ok_or_else(|| {
        format!("none of {} is there; install ca-certificates or set {ROOT_FILE_VARIABLE}", ROOT_FILES.join(", "))
    })?;
    let pem = std::fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_pki_types::CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if roots.is_empty() { Err(format!("{path} holds no certificate")) } else { Ok(roots) }
}

/// What is wrong with JSON, without what it holds.
pub(crate) fn quiet(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let kind = match error.classify() {
        Category::Io | Category::Eof => "JSON ends too early",
        Category::Syntax => "no JSON",
        Category::Data => "a field is missing or of another type",
    };
    format!("{kind} at line {}, column {}", error.line(), error.column())
}

async fn converse(
    to: &Endpoint,
    stream: impl Read + Write + Unpin + Send + 'static,
    request: Request<Bytes>,
    max_body: usize,
) -> Result<Response<Bytes>, FetchError> {
    let failed = |error| FetchError::Exchange(to.clone(), error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Full<Bytes>>(stream).await.map_err(failed)?;
    let exchange = async {
        let (head, body) = sender.send_request(request.map(Full::new)).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, max_body).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => failed(*error),
            Err(error) => {
                debug_assert!(error.is::<LengthLimitError>(), "{error}");
                FetchError::TooLarge(to.clone(), max_body)
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // A close right behind the answer ends the connection first; the answer is there all the same.
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::fake::{FakeServer, answer};
    use super::*;

    const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), max_body: 100 };

    #[test]
    fn endpoints_are_what_they_look_like() {
        let endpoint: Endpoint = "http://169.254.170.2/v2/x".parse().unwrap();
        assert_eq!((endpoint.authority().as_str(), endpoint.path()), ("169.254.170.2", "/v2/x"));
        let endpoint: Endpoint = "https://[fd00:ec2::23]:8443".parse().unwrap();
        assert_eq!((endpoint.host(), endpoint.authority().as_str()), ("fd00:ec2::23", "[fd00:ec2::23]:8443"));
        for bad in ["", "a", "ftp://a", "http://", "http://a@b", "http://a/?b", "http://a/#b", "http://a:b", "//a"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError), "{bad}");
        }
    }

    async fn answer_with(answer: &str) -> Result<Response<Bytes>, FetchError> {
        let server = FakeServer::start(vec![answer.to_owned()]).await;
        let endpoint: Endpoint = server.url.parse().unwrap();
        let request = Request::get("/secret?key=secret").body(Bytes::new()).unwrap();
        let answer = Client::new(TrustedRoots::System).send(&endpoint, request, LIMITS).await;
        let head = server.heads()[0].to_ascii_lowercase();
        assert!(head.contains(&format!("host: {}\r\n", endpoint.authority())), "{head}");
        answer
    }

    #[tokio::test]
    async fn an_answer_is_complete_and_not_too_long() {
        let short = answer_with(&answer(200, "ok")).await.unwrap();
        assert_eq!(&short.body()[..], b"ok");
        let error = answer_with(&answer(200, &"x".repeat(101))).await.unwrap_err();
        assert!(matches!(error, FetchError::TooLarge(_, 100)), "{error}");
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(101));
        assert!(matches!(answer_with(&endless).await, Err(FetchError::TooLarge(_, 100))));
        let cut = answer_with("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok").await.unwrap_err();
        assert!(matches!(cut, FetchError::Exchange(..)), "{cut}");
        assert!(!cut.to_string().contains("secret"), "{cut}");
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for() {
        // Connections wait in the kernel, and nobody takes them.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Endpoint = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        let limits = Limits { timeout: Duration::from_millis(50), ..LIMITS };
        let client = Client::new(TrustedRoots::System);
        let asked = client.send(&endpoint, Request::new(Bytes::new()), limits);
        let answer = tokio::time::timeout(Duration::from_secs(20), asked).await.expect("an end");
        assert!(matches!(answer, Err(FetchError::TimedOut(..))));
    }

    #[tokio::test]
    async fn a_redirect_is_the_answer() {
        let answer =
            answer_with("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(answer.status(), 302);
    }
}
