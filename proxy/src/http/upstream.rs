//! One attempt's conversation with an upstream, on either HTTP version.

use std::task::{Context, Poll, ready};

use http::StatusCode;

use super::body::BodySize;
use super::h1::client::{ClientConnection, ClientFault};
use super::h2;
use super::h2::client::H2Response;
use super::head::{Known, RequestHead, ResponseHead};
use super::pipe::{Sink, Source};
use crate::error::{Error, Retry};
use crate::upstream::pool::Lease;

/// Both halves of an attempt.
pub(super) struct Upstream {
    pub(super) sink: Sink,
    /// The upstream stopped reading the request.
    pub(super) upload_failed: bool,
    response: Response,
    /// Body of an HTTP/1 response, once its head is there.
    size: BodySize,
}

enum Response {
    Http1 {
        connection: ClientConnection,
        reused: bool,
    },
    /// With what the request asks to switch to, if it does.
    Http2(H2Response, Option<Box<[u8]>>),
}

impl Upstream {
    /// Writes the request head.
    pub(super) async fn send(lease: &mut Lease, head: &RequestHead, size: BodySize) -> Result<Self, Error> {
        let (sink, response) = match lease {
            Lease::Http1(lease) => {
                let connection = lease.connection();
                connection.write_head(head, size);
                (Sink::H1Client(connection.clone()), Response::Http1 { connection, reused: lease.reused() })
            }
            Lease::Own(connection, _) => {
                connection.write_head(head, size);
                (Sink::H1Client(connection.clone()), Response::Http1 { connection: connection.clone(), reused: false })
            }
            Lease::Http2(connection, _) => {
                connection.ready().await?;
                // An upgrade stays open: what follows its head is a tunnel.
                let upgrade = head.headers.get(Known::Upgrade).map(Box::from);
                let (out, response) = connection.send(head, size.is_empty() && upgrade.is_none());
                (Sink::H2(out, true), Response::Http2(response, upgrade))
            }
        };
        Ok(Self { sink, upload_failed: false, response, size: BodySize::Unknown })
    }

    /// The next response head, informational ones included.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        match &mut self.response {
            Response::Http1 { connection, reused } => connection.poll_head(cx, head).map(|result| match result {
                Ok(start) => {
                    self.size = start.body;
                    Ok(())
                }
                // Nothing of a response and a connection that has served before: it was closed while it was idle.
                Err(error)
                    if *reused && !error.response_started && matches!(error.fault, ClientFault::Closed | ClientFault::Io(_)) =>
                {
                    Err(Error::from(error).retry(Retry::IfReused))
                }
                Err(error) => Err(error.into()),
            }),
            Response::Http2(response, upgrade) => {
                ready!(response.poll_head(cx, head))?;
                if let Some(protocol) = upgrade
                    && head.status == StatusCode::OK
                {
                    // In the words of HTTP/1 (RFC 8441 §5).
                    head.status = StatusCode::SWITCHING_PROTOCOLS;
                    head.headers.push_known(Known::Upgrade, protocol);
                    head.headers.push_known(Known::Connection, b"upgrade");
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Whether the request's body is not to be sent, since its stream becomes a tunnel.
    pub(super) fn awaits_tunnel(&self) -> bool {
        matches!(self.response, Response::Http2(_, Some(_)))
    }

    /// The stream as a tunnel, once the upstream has agreed to one. HTTP/1 hands out its connection instead.
    pub(super) fn into_tunnel(self) -> Option<h2::Tunnel> {
        match (self.response, self.sink) {
            (Response::Http2(mut response, Some(_)), Sink::H2(out, _)) => Some(h2::Tunnel::new(response.take_body()?, out)),
            _ => None,
        }
    }

    /// The response body, once its head is there.
    pub(super) fn take_response(&mut self, request_is_head: bool, head: &ResponseHead) -> (Source, BodySize) {
        match &mut self.response {
            Response::Http1 { .. } if self.size.is_empty() => (Source::Empty, self.size),
            Response::Http1 { connection, .. } => (Source::H1Client(connection.clone()), self.size),
            Response::Http2(response, _) => match response.take_body() {
                Some(incoming) if !incoming.is_end() && !request_is_head => {
                    (Source::H2(incoming, false), content_length(head).map_or(BodySize::Unknown, BodySize::Known))
                }
                _ => (Source::Empty, BodySize::Empty),
            },
        }
    }
}

/// The `content-length` of a head, for framing on HTTP/1.
fn content_length(head: &ResponseHead) -> Option<u64> {
    std::str::from_utf8(head.headers.get(Known::ContentLength)?).ok()?.parse().ok()
}
