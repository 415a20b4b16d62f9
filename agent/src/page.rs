//! HTTP/1.1 servers for operators and their tools, bounded in every direction: the admin page, the status ports, the
//! plane's page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections of a server at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// From the first byte of a request head to its end.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a connection; each carries one request.
pub(crate) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts to accept when the process is out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Head size.
pub(crate) const MAX_HEAD: usize = 16 * 1024;

pub(crate) const TEXT: &str = "text/plain; charset=UTF-8";
pub(crate) const JSON: &str = "application/json";
pub(crate) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The body of an answer, whole or made while it is sent.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is there already.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// Answers requests on `listener` until the future is dropped; open connections end with it. `answer` is told who asks.
pub(crate) async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send,
{
    let answer = Arc::new(answer);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    let _permit = permit;
                    // A peer that is too slow or breaks off is its own problem.
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve_connection(stream, peer, &*answer)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a page for operators cannot accept");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve_connection<F, A>(stream: TcpStream, peer: SocketAddr, answer: &F) -> Result<(), hyper::Error>
where
    F: Fn(Request<Incoming>, SocketAddr) -> A,
    A: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request, peer);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// A body and what it is.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Body,
}

/// 200 with text.
pub(crate) fn ok(body: impl Into<Bytes>) -> Answer {
    text(StatusCode::OK, body)
}

/// Text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    Answer { status, content_type: TEXT, body: whole(body) }
}

/// 200 with JSON, as Envoy lays it out.
pub(crate) fn json(value: &Value) -> Answer {
    Answer { status: StatusCode::OK, content_type: JSON, body: whole(format!("{value:#}\n")) }
}

impl From<Answer> for Response<Body> {
    fn from(answer: Answer) -> Self {
        let mut response = Self::new(answer.body);
        *response.status_mut() = answer.status;
        let fixed = [
            (header::CONTENT_TYPE, answer.content_type),
            (header::CACHE_CONTROL, "no-cache, max-age=0"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::SERVER, "envoy"),
        ];
        for (name, value) in fixed {
            response.headers_mut().insert(name, header::HeaderValue::from_static(value));
        }
        response
    }
}
