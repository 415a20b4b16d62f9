//! One HTTP/1.1 request to an address, bounded in time and size: for `skiff health` and the checks of the quickstart.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A larger answer is an error.
const MAX_BODY: usize = 1024 * 1024;

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
    send_bounded(address, request, deadline, MAX_BODY).await
}

/// As [`send`], for an answer of up to `max_body` bytes.
///
/// # Errors
/// When there is no complete answer in time.
pub async fn send_bounded(
    address: SocketAddr,
    request: Request<Bytes>,
    deadline: Duration,
    max_body: usize,
) -> Result<Response<Bytes>, ClientError> {
    let exchanged = tokio::time::timeout(deadline, exchange(address, request, max_body)).await;
    exchanged.unwrap_or(Err(ClientError::TimedOut(address, deadline)))
}

async fn exchange(address: SocketAddr, request: Request<Bytes>, max_body: usize) -> Result<Response<Bytes>, ClientError> {
    let failed = |error: hyper::Error| ClientError::Exchange(address, error.into());
    let stream = TcpStream::connect(address).await.map_err(|error| ClientError::Connect(address, error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async {
        let (head, body) = sender.send_request(request.map(Full::new)).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, max_body).collect().await.map_err(|error| ClientError::Exchange(address, error))?;
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
