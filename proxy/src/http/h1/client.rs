//! The upstream side of the codec: one connection of a pool, one request after the other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Method;

use super::body::{Decoder, Encoder, Framing};
use super::encode::{HeaderCase, encode_request};
use super::head::{HeadError, HeadLimits, RequestKind, offers_upgrade, parse_response};
use super::io::{HeadFault, Io};
use super::server::{BodyError, poll_body};
use crate::error::{Error, ErrorKind, Retry};
use crate::http::body::{BodySize, Frame};
use crate::http::head::{Headers, RequestHead, ResponseHead};
use crate::net::Stream;

/// What a cluster's connections share.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// What a response head may look like.
    pub limits: HeadLimits,
    /// Pass trailers on instead of dropping them.
    pub enable_trailers: bool,
    /// How header names are written.
    pub case: HeaderCase,
}

impl Default for ClientOptions {
    /// Envoy's defaults. Its 60 KiB for a response head are checked loosely (70 KB were seen to pass); here they are 80 KiB
    /// to the byte.
    fn default() -> Self {
        let limits = HeadLimits { max_bytes: 80 * 1024, ..HeadLimits::default() };
        Self { limits, enable_trailers: false, case: HeaderCase::Lower }
    }
}

/// What a response is, beside its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseStart {
    /// Length of the body.
    pub body: BodySize,
    /// Whether the connection may serve again afterwards.
    pub keep_alive: bool,
    /// A 1xx other than 101: the response proper is still to be read.
    pub informational: bool,
    /// The connection is a tunnel now: see [`ClientConnection::into_parts`].
    pub upgraded: bool,
}

/// How an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientFault {
    /// A head that is not HTTP/1, or not allowed here.
    #[error("{0}")]
    Head(HeadError),
    /// A body that is not what its head says, or ends early.
    #[error("{0}")]
    Body(BodyError),
    /// The connection closed before a response.
    #[error("connection closed before a response")]
    Closed,
    /// The connection closed inside a response head.
    #[error("connection closed inside a response head")]
    Truncated,
    /// The socket failed before a response.
    #[error("{0}")]
    Io(io::Error),
}

/// A failed exchange, with what decides about repeating it.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct ClientError {
    /// What happened.
    pub fault: ClientFault,
    /// Whether a byte of a response had arrived, informational ones included.
    pub response_started: bool,
    /// Whether a byte of the request had been handed to the kernel: the application may have seen it.
    pub request_sent: bool,
}

impl From<ClientError> for Error {
    /// Envoy's view: closed or reset before a response is a termination, anything odd after its first byte a protocol error.
    fn from(error: ClientError) -> Self {
        let retry = if error.request_sent { Retry::No } else { Retry::IfReused };
        let failed = match error.fault {
            ClientFault::Head(_) | ClientFault::Body(_) | ClientFault::Truncated => Self::new(ErrorKind::UpstreamProtocol),
            ClientFault::Closed => Self::new(ErrorKind::UpstreamClosed),
            ClientFault::Io(source) => Self::with_source(ErrorKind::UpstreamClosed, source),
        };
        failed.retry(retry)
    }
}

/// An upstream connection: a handle that one task may clone to send a request and read its response side by side.
///
/// One request at a time: [`write_head`](Self::write_head), the body, [`read_head`](Self::read_head), frames until `None`,
/// and again while [`is_reusable`](Self::is_reusable). Every method that waits is cancel safe.
#[derive(Clone)]
pub struct ClientConnection {
    inner: Rc<RefCell<Inner>>,
}

impl std::fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConnection").finish_non_exhaustive()
    }
}

struct Inner {
    io: Io,
    options: Rc<ClientOptions>,
    encoder: Encoder,
    decoder: Decoder,
    request: RequestKind,
    /// `io.output.written` when the request began.
    written_before: u64,
    /// The head of the response proper is still to come.
    awaiting_head: bool,
    response_started: bool,
    keep_alive: bool,
    broken: bool,
}

impl ClientConnection {
    /// Takes over a connection on which nothing has been sent.
    pub fn new(stream: Stream, options: Rc<ClientOptions>) -> Self {
        let inner = Inner {
            io: Io::new(stream),
            options,
            encoder: Encoder::Done,
            decoder: Decoder::Done,
            request: RequestKind::default(),
            written_before: 0,
            awaiting_head: false,
            response_started: false,
            keep_alive: true,
            broken: false,
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Begins an exchange with the head of its request, which also fixes how the body is framed.
    pub fn write_head(&self, head: &RequestHead, body: BodySize) {
        let inner = &mut *self.inner.borrow_mut();
        let framing = encode_request(head, body, inner.options.case, inner.io.output.tail());
        inner.encoder = Encoder::new(framing);
        if body.is_empty() {
            inner.encoder = Encoder::Done;
        }
        inner.request = RequestKind {
            head: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            upgrade: offers_upgrade(&head.headers),
        };
        inner.written_before = inner.io.output.written;
        inner.awaiting_head = true;
        inner.response_started = false;
    }

    /// Writes a piece of the request's body; large ones are not copied. More than the head announced is dropped, and the
    /// connection is not used again then.
    pub fn write_bytes(&self, data: Bytes) {
        let inner = &mut *self.inner.borrow_mut();
        inner.broken |= !inner.encoder.write(data, &mut inner.io.output);
    }

    /// Ends the request with trailers, which are dropped unless they are enabled and the body is chunked.
    pub fn write_trailers(&self, trailers: &Headers) {
        let inner = &mut *self.inner.borrow_mut();
        let trailers = inner.options.enable_trailers.then_some((trailers, inner.options.case));
        inner.broken |= !inner.encoder.finish(trailers, &mut inner.io.output);
    }

    /// Ends the request; not needed when it has no body.
    pub fn finish(&self) {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.encoder.is_done() {
            inner.broken |= !inner.encoder.finish(None, &mut inner.io.output);
        }
    }

    /// Sends everything written so far. After a failure a response may still be there to be read: an upstream that refuses a
    /// body answers and closes.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        let mut inner = self.inner.borrow_mut();
        let polled = inner.io.poll_flush(cx);
        inner.after_write(polled)
    }

    /// As [`poll_flush`](Self::poll_flush).
    ///
    /// # Errors
    /// The socket failed.
    pub async fn flush(&self) -> Result<(), ClientError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Sends until less than 64 KiB is left: what a writer waits for before it brings more.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        let mut inner = self.inner.borrow_mut();
        let polled = inner.io.poll_ready(cx);
        inner.after_write(polled)
    }

    /// As [`poll_ready`](Self::poll_ready).
    ///
    /// # Errors
    /// The socket failed.
    pub async fn ready(&self) -> Result<(), ClientError> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Reads the next head into `head`; after an informational one call again.
    pub fn poll_head(&self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<ResponseStart, ClientError>> {
        self.inner.borrow_mut().poll_head(cx, head)
    }

    /// As [`poll_head`](Self::poll_head).
    ///
    /// # Errors
    /// There is no response; the connection is useless.
    pub async fn read_head(&self, head: &mut ResponseHead) -> Result<ResponseStart, ClientError> {
        poll_fn(|cx| self.poll_head(cx, head)).await
    }

    /// The next piece of the response's body; `None` at its end.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ClientError>>> {
        self.inner.borrow_mut().poll_frame(cx)
    }

    /// Whether the response has been read to its end.
    pub fn response_complete(&self) -> bool {
        let inner = self.inner.borrow();
        !inner.awaiting_head && inner.decoder.is_done()
    }

    /// Whether the connection may serve another request: both messages are complete, the upstream keeps it open, and it has
    /// not sent a byte more than its response.
    pub fn is_reusable(&self) -> bool {
        let inner = self.inner.borrow();
        let idle = !inner.awaiting_head && inner.decoder.is_done() && inner.encoder.is_done() && inner.io.output.is_empty();
        idle && inner.keep_alive && !inner.broken && !inner.io.eof && inner.io.input.is_empty()
    }

    /// Resolves when a pooled connection must be dropped: it closed, failed, or sent bytes that nobody asked for.
    pub fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.inner.borrow_mut();
        if inner.broken || inner.io.eof || !inner.io.input.is_empty() {
            return Poll::Ready(());
        }
        // Whatever the read says, silence was the only thing that would have been right.
        let _ = ready!(inner.io.poll_scratch(cx));
        inner.broken = true;
        Poll::Ready(())
    }

    /// As [`poll_idle`](Self::poll_idle).
    pub async fn idle_closed(&self) {
        poll_fn(|cx| self.poll_idle(cx)).await;
    }

    /// The stream and what was read ahead of it, for a tunnel. Flush first.
    ///
    /// # Errors
    /// Another clone of the handle is alive; it gets the connection back.
    pub fn into_parts(self) -> Result<(Stream, BytesMut), Self> {
        let inner = Rc::try_unwrap(self.inner).map_err(|inner| Self { inner })?;
        let io = inner.into_inner().io;
        Ok((io.stream, io.input))
    }
}

impl Inner {
    fn error(&mut self, fault: ClientFault) -> ClientError {
        self.broken = true;
        ClientError { fault, response_started: self.response_started, request_sent: self.io.output.written > self.written_before }
    }

    fn after_write(&mut self, polled: Poll<io::Result<()>>) -> Poll<Result<(), ClientError>> {
        polled.map(|written| {
            written.map_err(|error| {
                self.io.output.clear();
                self.error(ClientFault::Io(error))
            })
        })
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<ResponseStart, ClientError>> {
        let (options, request) = (&*self.options, self.request);
        let parse = |buf: &[u8]| Ok(parse_response(buf, &options.limits, request, head)?.map(|parsed| (parsed.consumed, parsed)));
        let read = ready!(self.io.poll_head(cx, &options.limits, parse));
        let parsed = match read {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Poll::Ready(Err(self.error(ClientFault::Closed))),
            Err(fault) => {
                let partial = !self.io.input.is_empty();
                self.response_started |= partial || matches!(fault, HeadFault::Head(_));
                let fault = match fault {
                    HeadFault::Head(error) => ClientFault::Head(error),
                    HeadFault::Io(_) if partial => ClientFault::Truncated,
                    HeadFault::Truncated => ClientFault::Truncated,
                    HeadFault::Io(error) => ClientFault::Io(error),
                };
                return Poll::Ready(Err(self.error(fault)));
            }
        };
        self.response_started = true;
        let informational = head.status.is_informational() && !parsed.upgraded;
        if !informational {
            self.awaiting_head = false;
            self.decoder = Decoder::new(parsed.framing, options.enable_trailers, options.limits.max_bytes);
            self.keep_alive = parsed.keep_alive && !parsed.upgraded;
        }
        Poll::Ready(Ok(ResponseStart {
            body: if informational { BodySize::Empty } else { parsed.framing.size() },
            keep_alive: parsed.keep_alive && parsed.framing != Framing::UntilClose,
            informational,
            upgraded: parsed.upgraded,
        }))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ClientError>>> {
        match ready!(poll_body(&mut self.io, &mut self.decoder, cx)) {
            Ok(frame) => Poll::Ready(frame.map(Ok)),
            Err(error) => Poll::Ready(Some(Err(self.error(ClientFault::Body(error))))),
        }
    }
}

#[cfg(test)]
mod tests;
