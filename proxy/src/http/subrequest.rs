//! Requests that this proxy makes on its own account, through the worker's pool: authorisation checks, key sets, health
//! checks and mirrored copies (Envoy `AsyncClient`).
//!
//! One deadline covers choosing the endpoint, connecting and the whole response, and the response body is bounded, so that no
//! service that is asked can hold a request for ever or fill the memory. A call that is dropped frees what it used.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::body::{BodySize, Frame};
use super::forward::{health_of, health_status};
use super::forwarding::own_request;
use super::head::{HeaderName, Headers, Known, RequestHead, ResponseHead};
use super::pipe::Pump;
use super::upstream::Upstream;
use crate::error::{Error, ErrorKind, Retry, Side};
use crate::upstream::pool::{Lease, Pool, Protocol};
use crate::upstream::{Cluster, Endpoint, Outcome as Health, PickContext};

/// What one call may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The whole exchange: endpoint, connection, request and response.
    pub timeout: Duration,
    /// Bytes of the response body. A longer one is an error, never cut short: half an answer is none.
    pub max_body: usize,
}

/// A complete response.
#[derive(Debug, Default)]
pub struct Answer {
    /// Status and headers.
    pub head: ResponseHead,
    /// Body.
    pub body: Vec<u8>,
    /// Trailers, where gRPC keeps its status.
    pub trailers: Option<Box<Headers>>,
}

/// Asks a cluster, with the marks of a request of this proxy's own (`x-envoy-internal`, `x-envoy-expected-rq-timeout-ms`) and the
/// cluster's circuit breakers. On HTTP/2 a `content-length` in the head must be right; on HTTP/1 it is made so. Statuses are the caller's business: a `500` is an answer.
///
/// # Errors
/// [`ErrorKind::Timeout`] after [`Limits::timeout`]; [`ErrorKind::UpstreamProtocol`] for a body over [`Limits::max_body`]; else what
/// choosing an endpoint, connecting and talking to it gives.
pub async fn send(
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    mut head: RequestHead,
    body: Bytes,
    limits: Limits,
) -> Result<Answer, Error> {
    own_request(&mut head, None);
    let timeout = u64::try_from(limits.timeout.as_millis()).unwrap_or(u64::MAX);
    head.headers.set_named(&HeaderName::new("x-envoy-expected-rq-timeout-ms"), itoa::Buffer::new().format(timeout).as_bytes());
    let exchange = async {
        let _request = cluster.breakers().requests.acquire().map_err(Error::new)?;
        let mut fresh = false;
        loop {
            let endpoint = cluster.pick(&PickContext::default()).map_err(Error::new)?;
            match asked(pool, cluster, &endpoint, &head, &body, limits.max_body).await {
                // A connection that closed while it was idle says nothing about the service: once, another one is tried.
                Err(error) if !fresh && may_repeat(&error, &head, &body) => fresh = true,
                result => return result,
            }
        }
    };
    within(limits.timeout, exchange).await
}

/// Asks one endpoint, whatever the balancer and the breakers think of it; nothing is added to the head.
/// What comes of it is not reported to outlier detection.
///
/// # Errors
/// As [`send`].
pub async fn send_to(
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    head: &RequestHead,
    body: Bytes,
    limits: Limits,
) -> Result<Answer, Error> {
    within(limits.timeout, ask(pool, cluster, endpoint, head, &body, limits.max_body)).await
}

async fn within(timeout: Duration, exchange: impl Future<Output = Result<Answer, Error>>) -> Result<Answer, Error> {
    tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout)))
}

fn may_repeat(error: &Error, head: &RequestHead, body: &Bytes) -> bool {
    match error.retry {
        Retry::No => false,
        Retry::IfReused => body.is_empty() && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS),
        Retry::Yes => !matches!(error.kind, ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout | ErrorKind::TlsFailure),
    }
}

/// As [`ask`]; outlier detection learns what came of it.
async fn asked(
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    head: &RequestHead,
    body: &Bytes,
    max_body: usize,
) -> Result<Answer, Error> {
    let _active = endpoint.start_request();
    let result = ask(pool, cluster, endpoint, head, body, max_body).await;
    match &result {
        Ok(answer) => cluster.report(endpoint, Health::Response(health_status(&answer.head))),
        Err(error) if error.side() == Side::Upstream => cluster.report(endpoint, health_of(error.kind)),
        Err(_) => {}
    }
    result
}

async fn ask(
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    head: &RequestHead,
    body: &Bytes,
    max_body: usize,
) -> Result<Answer, Error> {
    // As in Envoy, a request without a body says so only where the caller wants it said.
    let announced = head.headers.contains(Known::ContentLength);
    let size = if body.is_empty() && !announced { BodySize::Empty } else { BodySize::Known(body.len() as u64) };
    let protocol = Protocol::of(cluster.current().config().protocol, head.version);
    let mut lease = pool.get(cluster, endpoint, protocol, None, head.host(), None).await?;
    let mut answer = Answer::default();
    let mut rest = Some(body.clone()).filter(|body| !body.is_empty());
    let next = |_: &mut Context<'_>| Poll::Ready(rest.take().map(|data| Ok(Frame::Data(data))));
    let Answer { head: response, body, trailers } = &mut answer;
    converse(&mut lease, head, size, next, response, |frame| {
        match frame {
            Frame::Data(data) if body.len() + data.len() > max_body => {
                let long = io::Error::other(format!("response body of more than {max_body} bytes"));
                return Err(Error::with_source(ErrorKind::UpstreamProtocol, long));
            }
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(fields) => *trailers = Some(fields),
        }
        Ok(())
    })
    .await?;
    Ok(answer)
}

/// One request and its whole response on a connection: sends `head` and the frames of `next`, fills `response` with the final
/// head and gives every frame of the body to `take`.
pub(crate) async fn converse(
    lease: &mut Lease,
    head: &RequestHead,
    size: BodySize,
    mut next: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame, Error>>>,
    response: &mut ResponseHead,
    mut take: impl FnMut(Frame) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut upstream = Upstream::send(lease, head, size).await?;
    let mut upload = Pump::new(if size.is_empty() { BodySize::Empty } else { size });
    loop {
        poll_fn(|cx| {
            if !upload.done()
                && !upstream.upload_failed
                && let Poll::Ready(Err(_)) = upload.poll(cx, &mut upstream.sink, &mut next)
            {
                // Who stops reading may have answered all the same; who has not closes the connection, which is the error then.
                upstream.upload_failed = true;
            }
            upstream.poll_head(cx, response)
        })
        .await?;
        if !response.status.is_informational() {
            break;
        }
    }
    let (mut body, _) = upstream.take_response(head.method == Method::HEAD, response);
    while let Some(frame) = poll_fn(|cx| {
        if !upload.done() && !upstream.upload_failed {
            upstream.upload_failed = matches!(upload.poll(cx, &mut upstream.sink, &mut next), Poll::Ready(Err(_)));
        }
        body.poll_frame(cx)
    })
    .await
    {
        take(frame?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
