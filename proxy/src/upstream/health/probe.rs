//! One endpoint and the connection that it is checked over.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::{CheckFailure, Success, grpc, http, tcp};
use crate::config::{EndpointAddress, HealthCheck, HealthChecker, TransportSocket};
use crate::error::Error;
use crate::http::h1::client::{ClientConnection, ClientOptions};
use crate::http::h2::client::H2Connection;
use crate::http::head::{Headers, RequestHead, Scheme};
use crate::stream_info::UpstreamConnectionInfo;
use crate::upstream::connect::{Connected, Purpose, connect_to};
use crate::upstream::endpoint::is_subset;
use crate::upstream::pool::Lease;
use crate::upstream::{Cluster, Endpoint};

/// Asks one endpoint for its health.
pub(super) struct Prober {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: Arc<Endpoint>,
    check: Arc<HealthCheck>,
    /// Kept from the last check.
    http: Option<Http>,
}

/// A connection for requests.
enum Http {
    H1(ClientConnection, Rc<UpstreamConnectionInfo>),
    H2(H2Connection, Rc<UpstreamConnectionInfo>),
}

impl Http {
    fn is_usable(&self) -> bool {
        match self {
            Self::H1(connection, _) => {
                connection.is_reusable() && connection.poll_idle(&mut Context::from_waker(Waker::noop())).is_pending()
            }
            Self::H2(connection, _) => connection.is_open(),
        }
    }

    fn lease(&self) -> Lease {
        match self {
            Self::H1(connection, info) => Lease::Own(connection.clone(), info.clone()),
            Self::H2(connection, info) => Lease::Http2(connection.clone(), info.clone()),
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        if let Self::H2(connection, _) = self {
            connection.close();
        }
    }
}

impl Prober {
    pub(super) fn new(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>, check: Arc<HealthCheck>) -> Self {
        Self { cluster, endpoint, check, http: None }
    }

    /// One check. The caller bounds its time, and calls [`Self::disconnect`] when that is over.
    pub(super) async fn check(&mut self) -> Result<Success, CheckFailure> {
        let check = Arc::clone(&self.check);
        let result = match &check.checker {
            HealthChecker::Http(ask) => http::check(self, ask).await,
            HealthChecker::Grpc(ask) => grpc::check(self, ask, check.timeout).await,
            HealthChecker::Tcp(ask) => tcp::check(self, ask).await,
        };
        if !check.reuse_connection || result.is_err_and(CheckFailure::is_network) {
            self.disconnect();
        }
        result
    }

    /// Closes the connection: the next check makes another.
    pub(super) fn disconnect(&mut self) {
        self.http = None;
    }

    /// The connection of the last check, or a new one.
    pub(super) async fn lease(&mut self, http2: bool) -> Result<Lease, CheckFailure> {
        if let Some(http) = self.http.take_if(|http| http.is_usable()) {
            return Ok(self.http.insert(http).lease());
        }
        let connected = self.connect().await?;
        let info = Rc::new(connected.info);
        let http = if http2 {
            Http::H2(H2Connection::open(connected.stream, || ()), info)
        } else {
            Http::H1(ClientConnection::new(connected.stream, Rc::new(ClientOptions::default())), info)
        };
        Ok(self.http.insert(http).lease())
    }

    pub(super) async fn connect(&self) -> Result<Connected, CheckFailure> {
        let config = self.cluster.config();
        let transport = match &self.check.transport_match {
            None => self.endpoint.transport().clone(),
            Some(wanted) => {
                let mut matches = config.transport_socket_matches.iter();
                let found = matches.find(|candidate| is_subset(&candidate.matches, wanted));
                found.map_or_else(|| config.transport_socket.clone(), |found| found.socket.clone())
            }
        };
        let alpn = Some(self.check.alpn.as_slice()).filter(|alpn| !alpn.is_empty());
        connect_to(&self.cluster, &self.address(), &transport, Purpose { alpn, ..Purpose::default() })
            .await
            .map_err(|error| network(&error))
    }

    fn address(&self) -> EndpointAddress {
        let own = self.endpoint.health_check();
        let address = own.and_then(|check| check.address.as_ref()).unwrap_or(self.endpoint.address());
        match (address, own.map_or(0, |check| check.port)) {
            (EndpointAddress::Socket(address), port) if port != 0 => EndpointAddress::Socket(SocketAddr::new(address.ip(), port)),
            _ => address.clone(),
        }
    }

    /// The head that every check over HTTP begins with. `host`: what the checker is configured to ask for.
    pub(super) fn head(&self, path: &str, host: &str) -> RequestHead {
        let mut head = RequestHead::new();
        let own = self.endpoint.health_check().map_or("", |check| &check.hostname);
        let host = [own, host].into_iter().find(|host| !host.is_empty()).unwrap_or(self.cluster.name());
        head.set_authority(host.as_bytes());
        head.set_path(path.as_bytes());
        head.scheme = match self.endpoint.transport() {
            TransportSocket::RawBuffer => Scheme::Http,
            TransportSocket::Tls(_) => Scheme::Https,
        };
        head.headers.push(b"user-agent", b"Envoy/HC");
        head
    }
}

pub(super) fn network(error: &Error) -> CheckFailure {
    tracing::debug!(%error, "health check failed");
    CheckFailure::Network
}

/// Adds literal headers as a route would.
pub(super) fn add_headers(headers: &mut Headers, add: &[crate::config::HeaderValueOption]) {
    use crate::config::AppendAction as Action;
    use crate::http::head::HeaderName;
    for header in add.iter().filter(|header| header.keep_empty_value || !header.value.is_empty()) {
        let name = HeaderName::new(&header.name);
        let exists = headers.find(&name).is_some();
        match header.action {
            Action::AppendIfExistsOrAdd => drop(headers.push(header.name.as_bytes(), header.value.as_bytes())),
            Action::AddIfAbsent if exists => {}
            Action::OverwriteIfExists if !exists => {}
            Action::AddIfAbsent | Action::OverwriteIfExistsOrAdd | Action::OverwriteIfExists => {
                headers.set_named(&name, header.value.as_bytes());
            }
        }
    }
}

/// Whether `data` has all of these, one after the other.
pub(super) fn contains_in_order(mut data: &[u8], segments: &[Vec<u8>]) -> bool {
    segments.iter().all(|segment| {
        let found = data.windows(segment.len().max(1)).position(|window| window == segment.as_slice());
        match found {
            Some(at) => {
                data = &data[at + segment.len()..];
                true
            }
            None => segment.is_empty(),
        }
    })
}
