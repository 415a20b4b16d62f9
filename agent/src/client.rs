//! One HTTP/1.1 request to an address, bounded in time and size: for `skiff health`, the checks of the quickstart and what the
//! status server asks of the application.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::unverified_tls;

/// A larger answer is an error, unless the caller says otherwise.
const MAX_BODY: usize = 1024 * 1024;

/// How much of an answer's body is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A longer one is an error.
    Refuse(usize),
    /// Of a longer one only the beginning.
    Cut(usize),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// The connection ended or what came was not HTTP.
    #[error("no answer from {0}: {1}")]
    Exchange(SocketAddr, Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("no answer from {0} within {1:?}")]
    TimedOut(SocketAddr, Duration),
}

/// Sends one request on a connection of its own; `deadline` covers everything. `host` has to be set by the caller.
///
/// # Errors
/// When there is no complete answer in time.
pub async fn send(address: SocketAddr, request: Request<Bytes>, deadline: Duration) -> Result<Response<Bytes>, ClientError> {
    send_limited(address, request, deadline, Limit::Refuse(MAX_BODY)).await
}

/// The same with a limit of the caller's.
///
/// # Errors
/// As [`send`].
pub async fn send_limited(
    address: SocketAddr,
    request: Request<Bytes>,
    deadline: Duration,
    limit: Limit,
) -> Result<Response<Bytes>, ClientError> {
    let exchange = async { exchange(address, connect(address).await?, request, limit).await };
    tokio::time::timeout(deadline, exchange).await.unwrap_or(Err(ClientError::TimedOut(address, deadline)))
}

/// The same over TLS, with whoever answers: for the probes of Kubernetes, which verify no certificate.
///
/// # Errors
/// As [`send`].
pub async fn send_unverified(
    address: SocketAddr,
    request: Request<Bytes>,
    deadline: Duration,
    limit: Limit,
) -> Result<Response<Bytes>, ClientError> {
    let exchange = async {
        let mut config = unverified_tls().map_err(|error| ClientError::Exchange(address, error.into()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = connect(address).await?;
        // No name is sent: it is asked by its address.
        let stream = TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await;
        exchange(address, stream.map_err(|error| ClientError::Exchange(address, error.into()))?, request, limit).await
    };
    tokio::time::timeout(deadline, exchange).await.unwrap_or(Err(ClientError::TimedOut(address, deadline)))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, ClientError> {
    TcpStream::connect(address).await.map_err(|error| ClientError::Connect(address, error))
}

async fn exchange(
    address: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Bytes>,
    limit: Limit,
) -> Result<Response<Bytes>, ClientError> {
    let failed = |error: hyper::Error| ClientError::Exchange(address, error.into());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async {
        let (head, body) = sender.send_request(request.map(Full::new)).await.map_err(failed)?.into_parts();
        let body = collect(body, limit).await.map_err(|error| ClientError::Exchange(address, error))?;
        Ok(Response::from_parts(head, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // A close right behind the answer ends the connection first; the answer is there all the same.
        _ = connection => exchange.await,
    }
}

async fn collect(mut body: Incoming, limit: Limit) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let (Limit::Refuse(most) | Limit::Cut(most)) = limit;
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = most - all.len();
        if data.len() > room {
            return match limit {
                Limit::Refuse(_) => Err(format!("more than {most} bytes").into()),
                Limit::Cut(_) => {
                    all.extend_from_slice(&data[..room]);
                    Ok(all.freeze())
                }
            };
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}
