//! HTTP/2 towards an upstream: one connection per worker and endpoint carries many streams.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::sync::Notify;

use super::super::head::{RequestHead, ResponseHead};
use super::{Incoming, Outgoing, read_response, write_request};
use crate::error::{Error, ErrorKind, Retry};
use crate::http::pipe::h2_error;
use crate::net;

/// Window that an upstream may fill before we have passed it on: bounds memory per stream.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Response heads above this are refused.
const MAX_HEADER_LIST: u32 = 60 * 1024;

/// A connection that streams are opened on. Cheap to clone.
#[derive(Clone)]
pub struct H2Connection {
    send: SendRequest<Bytes>,
    state: Rc<State>,
}

struct State {
    closed: Cell<bool>,
    active: Cell<u32>,
    opened: Cell<u32>,
    idle_since: Cell<Instant>,
    close: Notify,
}

impl H2Connection {
    /// Performs the handshake and drives the connection on this worker until it closes; `on_close` runs then.
    ///
    /// # Errors
    /// When the peer does not speak HTTP/2.
    pub async fn handshake(stream: net::Stream, on_close: impl FnOnce() + 'static) -> Result<Self, Error> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .enable_push(false)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|error| h2_error(error, false))?;
        let state = Rc::new(State {
            closed: Cell::new(false),
            active: Cell::new(0),
            opened: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            close: Notify::new(),
        });
        let driver = state.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "upstream HTTP/2 connection failed");
                },
                () = driver.close.notified() => {}
            }
            driver.closed.set(true);
            on_close();
        });
        Ok(Self { send, state })
    }

    /// Whether new streams may still be opened.
    pub fn is_open(&self) -> bool {
        !self.state.closed.get()
    }

    /// Streams in flight.
    pub fn active(&self) -> u32 {
        self.state.active.get()
    }

    /// Streams opened since the handshake.
    pub fn opened(&self) -> u32 {
        self.state.opened.get()
    }

    /// Since when no stream is in flight.
    pub fn idle_since(&self) -> Instant {
        self.state.idle_since.get()
    }

    /// Closes the connection at once.
    pub fn close(&self) {
        self.state.closed.set(true);
        self.state.close.notify_one();
    }

    /// Waits until the peer admits one more stream.
    ///
    /// # Errors
    /// When the connection is closing: nothing was sent, another connection may be tried.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let send = self.send.clone();
        match send.ready().await {
            Ok(send) => {
                self.send = send;
                Ok(())
            }
            Err(error) => {
                self.state.closed.set(true);
                Err(h2_error(error, false).retry(Retry::Yes))
            }
        }
    }

    /// Opens a stream; `end` when the request has no body.
    ///
    /// # Errors
    /// When the head cannot be said in HTTP/2, or the connection is closing.
    pub fn send(&mut self, head: &RequestHead, end: bool) -> Result<(Outgoing, H2Response), Error> {
        let request = write_request(head).ok_or_else(|| {
            Error::with_source(
                ErrorKind::UpstreamProtocol,
                io::Error::new(io::ErrorKind::InvalidInput, "request is not valid in HTTP/2"),
            )
        })?;
        let (response, stream) = self.send.send_request(request, end).map_err(|error| {
            self.state.closed.set(true);
            h2_error(error, false).retry(Retry::Yes)
        })?;
        self.state.active.set(self.state.active.get() + 1);
        self.state.opened.set(self.state.opened.get().saturating_add(1));
        let guard = StreamGuard(self.state.clone());
        Ok((Outgoing::new(stream, end), H2Response { response, incoming: None, _guard: guard }))
    }
}

impl std::fmt::Debug for H2Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Connection").field("active", &self.active()).field("open", &self.is_open()).finish_non_exhaustive()
    }
}

/// Counts a stream as active while it lives.
#[derive(Debug)]
struct StreamGuard(Rc<State>);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} active", self.active.get())
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

/// A response that is awaited.
#[derive(Debug)]
pub struct H2Response {
    response: ResponseFuture,
    incoming: Option<Incoming>,
    _guard: StreamGuard,
}

impl H2Response {
    /// The next head: informational ones first, then the final one, after which [`Self::take_body`] has the body.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        if let Poll::Ready(Some(informational)) = self.response.poll_informational(cx) {
            let informational = informational.map_err(|error| h2_error(error, false))?;
            read_response(&informational.into_parts().0, head);
            return Poll::Ready(Ok(()));
        }
        let response = ready!(std::pin::Pin::new(&mut self.response).poll(cx)).map_err(|error| h2_error(error, false))?;
        let (parts, body) = response.into_parts();
        read_response(&parts, head);
        self.incoming = Some(Incoming::new(body));
        Poll::Ready(Ok(()))
    }

    /// The body, once the final head has come.
    pub fn take_body(&mut self) -> Option<Incoming> {
        self.incoming.take()
    }
}
