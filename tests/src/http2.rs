//! HTTP/2 with prior knowledge: a client, and an application that echoes as a gRPC method would.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::wait::within;

/// A response with everything that came.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: http::response::Parts,
    /// Body.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: HeaderMap,
}

/// An HTTP/2 connection; closed when dropped.
pub struct Client {
    requests: SendRequest<Bytes>,
    _driver: JoinSet<()>,
}

impl Client {
    /// Connects without TLS.
    pub async fn open(address: SocketAddr) -> Self {
        Self::over(within("a connection", TcpStream::connect(address)).await.unwrap()).await.unwrap()
    }

    /// Speaks HTTP/2 over this stream.
    ///
    /// # Errors
    /// When the peer does not.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, h2::Error> {
        let (requests, connection) = within("an HTTP/2 handshake", h2::client::handshake(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { requests, _driver: driver })
    }

    /// Sends a request with a body and trailers, both left out when empty, and reads everything of the answer.
    ///
    /// # Errors
    /// When the stream or the connection is reset.
    pub async fn ask(&mut self, request: Request<()>, body: &[u8], trailers: HeaderMap) -> Result<Answer, h2::Error> {
        within("an answer", async {
            let mut requests = self.requests.clone().ready().await?;
            let is_empty = body.is_empty() && trailers.is_empty();
            let (response, mut stream) = requests.send_request(request, is_empty)?;
            let send = async {
                if !is_empty {
                    send_all(&mut stream, Bytes::copy_from_slice(body), trailers).await?;
                }
                Ok(())
            };
            let receive = async {
                let (head, mut stream) = response.await?.into_parts();
                let (body, trailers) = receive_all(&mut stream).await?;
                Ok(Answer { head, body, trailers })
            };
            tokio::try_join!(send, receive).map(|((), answer)| answer)
        })
        .await
    }
}

/// Serves a connection: every request is answered with its own body, its own trailers and `grpc-status: 0`.
///
/// # Errors
/// When the connection breaks.
pub async fn serve_echo(stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
    let mut streams = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted.map_err(io::Error::other)?;
        streams.spawn(async move {
            let (body, mut trailers) = receive_all(&mut request.into_body()).await?;
            let mut response = Response::new(());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let mut stream = respond.send_response(response, false)?;
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            send_all(&mut stream, body.into(), trailers).await
        });
    }
    Ok(())
}

/// Sends body and trailers as fast as the peer takes them.
async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes, trailers: HeaderMap) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(capacity) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()? else { break };
        stream.send_data(body.split_to(capacity.min(body.len())), false)?;
    }
    if trailers.is_empty() { stream.send_data(Bytes::new(), true) } else { stream.send_trailers(trailers) }
}

async fn receive_all(stream: &mut RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await.transpose()? {
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok((body, stream.trailers().await?.unwrap_or_default()))
}
