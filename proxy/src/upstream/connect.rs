//! Making a connection to an endpoint: socket options, TLS, one deadline for all of it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::{Cluster, Endpoint, happy_eyeballs, proxy_protocol};
use crate::config;
use crate::config::{EndpointAddress, TransportSocket};
use crate::error::{Error, ErrorKind, Retry};
use crate::net;
use crate::stream_info::UpstreamConnectionInfo;
use crate::tls::{self, ClientContext};

/// A fresh connection and its facts.
pub struct Connected {
    /// The byte stream.
    pub stream: net::Stream,
    /// For logs and metrics.
    pub info: UpstreamConnectionInfo,
    /// ALPN that was agreed on.
    pub alpn: Option<Box<[u8]>>,
}

/// What a connection is made for, beside its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Purpose<'a> {
    /// Replaces the cluster's own ALPN.
    pub alpn: Option<&'a [String]>,
    /// The host that is asked for, without a port; only looked at where the cluster's TLS wants it ([`config::UpstreamTls::auto_sni`]).
    pub host: Option<&'a str>,
    /// The caller's address and the one that it connected to, where the connection is made for this caller alone.
    pub caller: Option<(SocketAddr, SocketAddr)>,
}

/// Connects to `endpoint` within the cluster's connect time-out, TLS included.
///
/// # Errors
/// [`ErrorKind::ConnectFailure`], [`ErrorKind::ConnectTimeout`] or [`ErrorKind::TlsFailure`], all of which may be repeated: nothing was sent.
pub async fn connect(cluster: &Cluster, endpoint: &Endpoint, purpose: Purpose<'_>) -> Result<Connected, Error> {
    let config = cluster.config();
    let dialled = async {
        match (endpoint.address(), endpoint.additional_addresses()) {
            (EndpointAddress::Socket(first), more @ [_, ..]) => {
                happy_eyeballs::first(*first, more, |address| dial_tcp(address, &config)).await.map(net::Transport::Tcp)
            }
            (address, _) => dial(address, &config).await,
        }
    };
    secured(cluster, &config, dialled, endpoint.transport(), purpose).await
}

/// As [`connect`], to any address and over one of the cluster's transport sockets.
pub(super) async fn connect_to(
    cluster: &Cluster,
    address: &EndpointAddress,
    transport: &TransportSocket,
    purpose: Purpose<'_>,
) -> Result<Connected, Error> {
    let config = cluster.config();
    secured(cluster, &config, dial(address, &config), transport, purpose).await
}

async fn secured(
    cluster: &Cluster,
    config: &config::Cluster,
    dialled: impl Future<Output = Result<net::Transport, Error>>,
    transport: &TransportSocket,
    mut purpose: Purpose<'_>,
) -> Result<Connected, Error> {
    purpose.host = purpose.host.or_else(|| service_host(config));
    let attempt = async {
        let context = cluster.tls_context(transport).map_err(|error| tls_failure(&io::Error::other(error)))?;
        let mut transport = dialled.await?;
        if let Some(version) = config.proxy_protocol {
            let own = transport.ends();
            let header = proxy_protocol::header(version, purpose.caller, own);
            transport.write_all(&header).await.map_err(|error| connect_failure(&error))?;
        }
        secure(transport, context, purpose).await
    };
    match tokio::time::timeout(config.connect_timeout, attempt).await {
        Ok(result) => result.map_err(|error| error.retry(Retry::Yes)),
        Err(_) => Err(Error::new(ErrorKind::ConnectTimeout).retry(Retry::Yes)),
    }
}

/// The service's own host stands for that of who has none.
fn service_host(cluster: &config::Cluster) -> Option<&str> {
    cluster.service.as_ref().map(|service| service.host.as_str()).filter(|host| !host.starts_with('*'))
}

async fn dial(address: &EndpointAddress, cluster: &config::Cluster) -> Result<net::Transport, Error> {
    match address {
        EndpointAddress::Socket(address) => dial_tcp(*address, cluster).await.map(net::Transport::Tcp),
        EndpointAddress::Pipe(path) => {
            UnixStream::connect(path).await.map(net::Transport::Unix).map_err(|error| connect_failure(&error))
        }
        EndpointAddress::Name(name, _) => {
            Err(connect_failure(&io::Error::new(io::ErrorKind::NotFound, format!("{name} has not been resolved"))))
        }
    }
}

async fn dial_tcp(address: SocketAddr, cluster: &config::Cluster) -> Result<TcpStream, Error> {
    let source = cluster.source_addresses.iter().find(|source| source.is_ipv4() == address.is_ipv4());
    let stream = match source {
        None => TcpStream::connect(address).await,
        Some(source) => connect_from(*source, address).await,
    };
    let stream = stream.map_err(|error| connect_failure(&error))?;
    // Small writes are coalesced here already; Nagle would only add a delay.
    let _ = stream.set_nodelay(true);
    if let Some(keepalive) = cluster.tcp_keepalive {
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive_options(keepalive));
    }
    Ok(stream)
}

async fn connect_from(source: SocketAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if source.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(source)?;
    socket.connect(address).await
}

/// `delayed connect error: Connection refused`: Envoy's words, which people search for.
fn connect_failure(error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => "Connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "No route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "Network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "Connection timed out".to_owned(),
        io::ErrorKind::NotFound => "No such file or directory".to_owned(),
        _ => error.to_string(),
    };
    Error::with_source(ErrorKind::ConnectFailure, io::Error::new(error.kind(), format!("delayed connect error: {reason}")))
}

fn keepalive_options(keepalive: config::TcpKeepalive) -> TcpKeepalive {
    let mut options = TcpKeepalive::new().with_time(keepalive.time.unwrap_or(Duration::from_secs(7200)));
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        options = options.with_retries(probes);
    }
    options
}

fn tls_failure(error: &io::Error) -> Error {
    match tls::failure_reason(error) {
        nothing if nothing.is_empty() => Error::new(ErrorKind::TlsFailure),
        reason => Error::with_source(ErrorKind::TlsFailure, io::Error::new(error.kind(), reason)),
    }
}

async fn secure(transport: net::Transport, context: Option<ClientContext>, purpose: Purpose<'_>) -> Result<Connected, Error> {
    let local = match &transport {
        net::Transport::Tcp(stream) => stream.local_addr().ok(),
        net::Transport::Unix(_) => None,
    };
    let Some(context) = context else {
        let stream = match transport {
            net::Transport::Tcp(stream) => net::Stream::Tcp(stream),
            net::Transport::Unix(stream) => net::Stream::Unix(stream),
        };
        return Ok(Connected { stream, info: UpstreamConnectionInfo { local, ..UpstreamConnectionInfo::default() }, alpn: None });
    };
    let (stream, handshake) =
        context.connect(transport, purpose.alpn, purpose.host).await.map_err(|error| tls_failure(&error))?;
    let info = UpstreamConnectionInfo {
        local,
        peer: handshake.peer,
        local_certificate: handshake.local,
        tls_version: Some(handshake.version),
        tls_cipher: Some(handshake.cipher),
    };
    Ok(Connected { stream: net::Stream::TlsClient(Box::new(stream)), info, alpn: handshake.alpn })
}
