//! The downstream side of the codec: one connection, one request after the other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::body::{DecodeError, Decoded, Decoder, Encoder};
pub use super::encode::WriteHead;
use super::encode::{HeaderCase, encode_response};
use super::head::{HeadError, HeadLimits, parse_request};
use super::io::{HeadFault, Io, MAX_AHEAD};
use super::probe::Probe;
use crate::config::HttpConnectionManager;
use crate::error::ErrorKind;
use crate::http::body::{BodySize, Frame};
use crate::http::head::{Headers, RequestHead, ResponseHead, Scheme, Version};
use crate::net::Stream;

/// Bytes that are read and dropped after our FIN so that the peer gets to read the last answer.
const MAX_LINGER_BYTES: usize = 256 * 1024;

/// What a listener's connections share.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What a request head may look like.
    pub limits: HeadLimits,
    /// Pass trailers on instead of dropping them.
    pub enable_trailers: bool,
    /// How header names are written.
    pub case: HeaderCase,
    /// Host of an HTTP/1.0 request that has none.
    pub default_host_for_http_10: Option<String>,
    /// How long [`ServerConnection::shutdown`] waits for the peer's FIN (Envoy's delayed close: 1 s).
    pub linger: Duration,
}

impl ServerOptions {
    /// From an HTTP connection manager; `tls` says that the connections are encrypted.
    pub fn new(manager: &HttpConnectionManager, tls: bool) -> Self {
        let http1 = &manager.http1;
        Self {
            limits: HeadLimits {
                max_bytes: manager.max_request_headers_bytes as usize,
                max_headers: manager.max_headers_count as usize,
                accept_http_10: http1.accept_http_10,
                allow_chunked_length: http1.allow_chunked_length,
                allow_https_target: tls,
                preserve_case: http1.preserve_case,
                underscores: manager.headers_with_underscores,
            },
            enable_trailers: http1.enable_trailers,
            case: match (http1.preserve_case, http1.proper_case) {
                (true, _) => HeaderCase::Preserve,
                (false, true) => HeaderCase::Proper,
                (false, false) => HeaderCase::Lower,
            },
            default_host_for_http_10: http1.default_host_for_http_10.clone(),
            linger: manager.delayed_close_timeout,
        }
    }
}

/// What a request is, beside its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStart {
    /// Length of the body.
    pub body: BodySize,
    /// Whether the caller wants to keep the connection; never after an upgrade that fails.
    pub keep_alive: bool,
    /// Upgrade or CONNECT: see [`ServerConnection::into_parts`].
    pub upgrade: bool,
    /// The caller waits for `100 Continue`.
    pub expect_continue: bool,
    /// Scheme of an absolute-form target; never a reason to believe that the connection is secure.
    pub target_scheme: Option<Scheme>,
}

/// Why there is no further request.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A head that must be answered with [`HeadError::reply`].
    #[error("{0}")]
    Head(HeadError),
    /// The caller went away inside a head.
    #[error("connection closed inside a request head")]
    Truncated,
    /// The socket failed; `received` says that part of a head had arrived.
    #[error("{source}")]
    Io {
        /// What the transport said.
        source: io::Error,
        /// Whether part of a head had arrived.
        received: bool,
    },
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is malformed.
    #[error("{0}")]
    Malformed(DecodeError),
    /// The peer closed the connection.
    #[error("connection closed inside a body")]
    Truncated,
    /// The socket failed.
    #[error("{0}")]
    Io(io::Error),
}

impl BodyError {
    /// What it means when it was the caller's body.
    pub fn downstream_kind(&self) -> ErrorKind {
        match self {
            Self::Malformed(DecodeError::TrailersTooLarge) => ErrorKind::DownstreamTooLarge,
            Self::Malformed(_) => ErrorKind::DownstreamProtocol,
            Self::Truncated | Self::Io(_) => ErrorKind::DownstreamClosed,
        }
    }
}

/// A downstream connection: a handle that one task may clone to read a request and write its response side by side.
///
/// Requests come one at a time: [`read_head`](Self::read_head), frames until `None`, the response, and again while
/// [`can_reuse`](Self::can_reuse). What is written is buffered until it is flushed, so a head and a small body leave in one
/// system call. Every method that waits is cancel safe.
#[derive(Clone)]
pub struct ServerConnection {
    inner: Rc<RefCell<Inner>>,
}

impl std::fmt::Debug for ServerConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConnection").finish_non_exhaustive()
    }
}

struct Inner {
    io: Io,
    options: Rc<ServerOptions>,
    decoder: Decoder,
    encoder: Encoder,
    http10: bool,
    keep_alive: bool,
    /// The response so far says that the connection closes after it, or must close because it is cut short.
    close: bool,
    /// The socket failed or the input stopped making sense.
    broken: bool,
    /// The head of the response has been written.
    answering: bool,
    /// Looks for a caller that has sent its FIN and may be gone altogether.
    probe: Option<Box<Probe>>,
}

impl ServerConnection {
    /// Takes over a connection on which nothing has been read.
    pub fn new(stream: Stream, options: Rc<ServerOptions>) -> Self {
        let inner = Inner {
            io: Io::new(stream),
            options,
            decoder: Decoder::Done,
            encoder: Encoder::Done,
            http10: false,
            keep_alive: true,
            close: false,
            broken: false,
            answering: false,
            probe: None,
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Waits for the first byte of a request without holding a buffer; `false` when the peer closed instead. Part of a
    /// request, or a pipelined one, counts as readable at once.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn wait_readable(&self) -> io::Result<bool> {
        poll_fn(|cx| self.inner.borrow_mut().poll_readable(cx)).await
    }

    /// Reads the head of the next request into `head`; `None` when the peer closed between two requests.
    ///
    /// # Errors
    /// There is no further request on this connection.
    pub async fn read_head(&self, head: &mut RequestHead) -> Result<Option<RequestStart>, ReadError> {
        poll_fn(|cx| self.inner.borrow_mut().poll_head(cx, head)).await
    }

    /// The next piece of the request's body; `None` at its end.
    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.inner.borrow_mut().poll_frame(cx)
    }

    /// Whether the request has been received to its end.
    pub fn request_complete(&self) -> bool {
        self.inner.borrow().decoder.is_done()
    }

    /// Whether the peer has sent its FIN. That is no abort (RFC 9112 9.6): it may be waiting for its answer.
    pub fn half_closed(&self) -> bool {
        self.inner.borrow().io.eof
    }

    /// Writes a 1xx head; the response proper comes later. HTTP/1.0 callers, who would take it for that, get none.
    pub fn write_informational(&self, head: &ResponseHead) {
        let mut inner = self.inner.borrow_mut();
        if inner.http10 {
            return;
        }
        let case = inner.options.case;
        encode_response(head, BodySize::Empty, WriteHead::default(), case, inner.io.output.tail());
    }

    /// Writes the head of the response, which also fixes how the body is framed. After a 101 or the 2xx of a CONNECT
    /// (`tunnel`) flush and take the [parts](Self::into_parts).
    pub fn write_head(&self, head: &ResponseHead, body: BodySize, write: WriteHead) {
        let mut inner = self.inner.borrow_mut();
        let case = inner.options.case;
        let framing = encode_response(head, body, write, case, inner.io.output.tail());
        inner.encoder = Encoder::new(framing);
        inner.answering = true;
        inner.close = write.close || framing == super::body::Framing::UntilClose;
    }

    /// Writes a piece of the response's body; large ones are not copied. More than the head announced is dropped, and the
    /// connection closes then.
    pub fn write_bytes(&self, data: Bytes) {
        let inner = &mut *self.inner.borrow_mut();
        inner.close |= !inner.encoder.write(data, &mut inner.io.output);
    }

    /// Ends the response with trailers, which are dropped unless they are enabled and the body is chunked.
    pub fn write_trailers(&self, trailers: &Headers) {
        let inner = &mut *self.inner.borrow_mut();
        let trailers = inner.options.enable_trailers.then_some((trailers, inner.options.case));
        inner.close |= !inner.encoder.finish(trailers, &mut inner.io.output);
    }

    /// Ends the response. If bytes are owed the connection has to close, and the caller sees the response cut short.
    pub fn finish(&self) {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.encoder.is_done() {
            inner.close |= !inner.encoder.finish(None, &mut inner.io.output);
        }
    }

    /// Whether the response has been written to its end, flushed or not.
    pub fn response_complete(&self) -> bool {
        self.inner.borrow().encoder.is_done()
    }

    /// Sends everything written so far.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        let polled = inner.io.poll_flush(cx);
        inner.note_failure(polled)
    }

    /// As [`poll_flush`](Self::poll_flush).
    ///
    /// # Errors
    /// The socket failed.
    pub async fn flush(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Sends until less than 64 KiB is left: what a writer waits for before it brings more.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        let polled = inner.io.poll_ready(cx);
        inner.note_failure(polled)
    }

    /// As [`poll_ready`](Self::poll_ready).
    ///
    /// # Errors
    /// The socket failed.
    pub async fn ready(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Resolves when the caller is gone for sure: the connection was reset, or writing failed. A FIN alone does not say so; see
    /// `Probe`. At most 64 KiB are read ahead.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.borrow_mut().poll_closed(cx)
    }

    /// Whether another request may follow: both messages are complete and nobody asked to close.
    pub fn can_reuse(&self) -> bool {
        let inner = self.inner.borrow();
        inner.keep_alive && !inner.close && !inner.broken && inner.decoder.is_done() && inner.encoder.is_done()
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

    /// Closes: sends a FIN, then reads and drops what still comes, for [`ServerOptions::linger`] and up to a bound. Flush
    /// first, under a time-out of your own: what is unsent after the linger is lost. A plain close with unread input would make
    /// the kernel send a RST, and the caller might lose the last answer. A caller that is still sending its request is given
    /// that time before the FIN, as by Envoy: some give up on the answer when they see it.
    pub async fn shutdown(&self) {
        let (linger, sending) = {
            let inner = self.inner.borrow();
            (inner.options.linger, !inner.broken && !inner.decoder.is_done())
        };
        let mut dropped = 0;
        if sending {
            let drain = poll_fn(|cx| self.inner.borrow_mut().poll_drain(cx, &mut dropped));
            let _ = tokio::time::timeout(linger, drain).await;
        }
        let close = poll_fn(|cx| self.inner.borrow_mut().poll_shutdown(cx, &mut dropped));
        // The outcome does not matter: the connection ends either way.
        let _ = tokio::time::timeout(linger, close).await;
    }
}

impl Inner {
    fn note_failure(&mut self, polled: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(_)) = polled {
            self.broken = true;
            self.io.output.clear();
        }
        polled
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.io.input.is_empty() && !self.io.eof {
            ready!(self.io.poll_fill(cx, 0))?;
        }
        Poll::Ready(Ok(!self.io.input.is_empty()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut RequestHead) -> Poll<Result<Option<RequestStart>, ReadError>> {
        let options = &*self.options;
        let parse = |buf: &[u8]| Ok(parse_request(buf, &options.limits, head)?.map(|parsed| (parsed.consumed, parsed)));
        let parsed = match ready!(self.io.poll_head(cx, &options.limits, parse)) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Poll::Ready(Ok(None)),
            Err(fault) => {
                self.broken = true;
                return Poll::Ready(Err(match fault {
                    HeadFault::Head(error) => ReadError::Head(error),
                    HeadFault::Truncated => ReadError::Truncated,
                    HeadFault::Io(source) => ReadError::Io { source, received: !self.io.input.is_empty() },
                }));
            }
        };
        if head.version == Version::Http10
            && !head.has_authority()
            && let Some(host) = &options.default_host_for_http_10
        {
            head.set_authority(host.as_bytes());
        }
        self.decoder = Decoder::new(parsed.framing, options.enable_trailers, options.limits.max_bytes);
        self.encoder = Encoder::Nothing;
        self.http10 = head.version == Version::Http10;
        // What follows an upgrade that fails may be meant for the tunnel: it must never be taken for a request.
        self.keep_alive = parsed.keep_alive && !parsed.upgrade;
        self.close = false;
        self.answering = false;
        self.probe = None;
        Poll::Ready(Ok(Some(RequestStart {
            body: parsed.framing.size(),
            keep_alive: self.keep_alive,
            upgrade: parsed.upgrade,
            expect_continue: parsed.expect_continue,
            target_scheme: parsed.target_scheme,
        })))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let error = match ready!(poll_body(&mut self.io, &mut self.decoder, cx)) {
            Ok(frame) => return Poll::Ready(frame.map(Ok)),
            Err(error) => error,
        };
        self.broken = true;
        Poll::Ready(Some(Err(error)))
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.broken {
                return Poll::Ready(());
            }
            if self.io.eof {
                return self.poll_probe(cx);
            }
            if self.io.input.len() >= MAX_AHEAD {
                return Poll::Pending;
            }
            if ready!(self.io.poll_fill(cx, 0)).is_err() {
                self.broken = true;
            }
        }
    }

    fn poll_probe(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let probe = self.probe.get_or_insert_with(|| Box::new(Probe::new(self.io.stream.socket())));
        if probe.poll_due(cx) && !self.answering && !self.http10 && self.io.output.is_empty() {
            let head = ResponseHead::new(http::StatusCode::CONTINUE);
            encode_response(&head, BodySize::Empty, WriteHead::default(), self.options.case, self.io.output.tail());
        }
        let flushed = if self.answering { Poll::Pending } else { self.io.poll_flush(cx) };
        let gone = probe.poll_gone(cx).is_ready();
        if gone || matches!(self.note_failure(flushed), Poll::Ready(Err(_))) {
            self.broken = true;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, dropped: &mut usize) -> Poll<io::Result<()>> {
        use tokio::io::AsyncWrite;
        if self.broken && !self.io.output.is_empty() {
            self.io.output.clear();
        }
        ready!(self.io.poll_flush(cx))?;
        ready!(std::pin::Pin::new(&mut self.io.stream).poll_shutdown(cx))?;
        self.poll_drain(cx, dropped)
    }

    /// Reads and drops until the peer has closed, or enough is enough.
    fn poll_drain(&mut self, cx: &mut Context<'_>, dropped: &mut usize) -> Poll<io::Result<()>> {
        ready!(self.io.poll_flush(cx))?;
        while !self.io.eof && *dropped < MAX_LINGER_BYTES {
            *dropped += ready!(self.io.poll_scratch(cx))?.len();
        }
        Poll::Ready(Ok(()))
    }
}

/// The next frame of a body of either direction.
pub(super) fn poll_body(io: &mut Io, decoder: &mut Decoder, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
    loop {
        match decoder.decode(&mut io.input).map_err(BodyError::Malformed)? {
            Decoded::Data(data) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
            Decoded::Trailers(trailers) => return Poll::Ready(Ok(Some(Frame::Trailers(trailers)))),
            Decoded::End => {
                io.release_input();
                return Poll::Ready(Ok(None));
            }
            Decoded::NeedMore if io.eof => {
                return Poll::Ready(if decoder.end_of_input() { Ok(None) } else { Err(BodyError::Truncated) });
            }
            Decoded::NeedMore => {
                ready!(io.poll_fill(cx, decoder.expected())).map_err(BodyError::Io)?;
            }
        }
    }
}

#[cfg(test)]
mod tests;
