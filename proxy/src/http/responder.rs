//! The way back to the caller: HTTP/1 or HTTP/2, until the head is written; then it is a [`Sink`].

use std::borrow::Cow;
use std::task::{Context, Poll};

use super::body::BodySize;
use super::h1::server::{ServerConnection, WriteHead};
use super::h2::{Reason, Respond};
use super::head::ResponseHead;
use super::pipe::send_all;
use super::pipe::{Sink, h2_error};
use crate::error::{Error, ErrorKind};

/// Where the response goes.
pub enum Responder {
    /// HTTP/1.
    Http1 {
        /// The connection.
        connection: ServerConnection,
        /// The request was HEAD: no body follows whatever the head says.
        request_is_head: bool,
        /// The caller speaks HTTP/1.0.
        http10: bool,
    },
    /// HTTP/2.
    Http2(Respond),
}

impl Responder {
    /// Whether several requests share the connection.
    pub fn is_multiplexed(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Sends a 1xx head.
    pub fn informational(&mut self, head: &ResponseHead) {
        match self {
            Self::Http1 { connection, .. } => connection.write_informational(head),
            Self::Http2(respond) => respond.informational(head),
        }
    }

    /// Sends what has been written so far.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            // A failure is remembered by the connection, and `poll_closed` tells it.
            Self::Http1 { connection, .. } => connection.poll_flush(cx).map(drop),
            Self::Http2(_) => Poll::Ready(()),
        }
    }

    /// Writes the final head. The body, if there is one, goes into the sink that comes back.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn head(&mut self, head: &ResponseHead, size: BodySize, close: bool) -> Result<Sink, Error> {
        match self {
            Self::Http1 { connection, request_is_head, http10 } => {
                connection.write_head(
                    head,
                    size,
                    WriteHead { close, request_is_head: *request_is_head, http10: *http10, ..WriteHead::default() },
                );
                Ok(Sink::H1Server(connection.clone()))
            }
            Self::Http2(respond) => {
                let out = respond.head(head, size.is_empty()).map_err(|failure| h2_error(failure, true))?;
                Ok(Sink::H2(out, false))
            }
        }
    }

    /// Writes the head after which the connection or stream is a tunnel. That the caller is gone shows there.
    pub async fn switch(&mut self, head: &ResponseHead) {
        match self {
            Self::Http1 { .. } => {
                if let Ok(mut sink) = self.head(head, BodySize::Empty, false) {
                    send_all(&mut sink, Cow::Borrowed(b"")).await;
                }
            }
            Self::Http2(respond) => drop(respond.head(head, false)),
        }
    }

    /// Writes the `200` to a CONNECT: what follows is no HTTP any more.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn tunnel_head(&mut self, head: &ResponseHead) -> Result<Sink, Error> {
        match self {
            Self::Http1 { connection, http10, .. } => {
                connection.write_head(head, BodySize::Empty, WriteHead { tunnel: true, http10: *http10, ..WriteHead::default() });
                Ok(Sink::H1Server(connection.clone()))
            }
            Self::Http2(_) => self.head(head, BodySize::Unknown, false),
        }
    }

    /// Resolves when the caller is gone: nobody waits for the answer any more.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        match self {
            Self::Http1 { connection, .. } => connection.poll_closed(cx).map(|()| ErrorKind::DownstreamClosed),
            Self::Http2(respond) => respond.poll_closed(cx).map(|failure| h2_error(failure, true).kind),
        }
    }

    /// Gives up on the response: closes the connection, or resets the stream.
    pub fn abort(&mut self, reason: Reason) {
        match self {
            // The server closes a connection whose exchange asks for it.
            Self::Http1 { .. } => {}
            Self::Http2(respond) => respond.reset(reason),
        }
    }
}
