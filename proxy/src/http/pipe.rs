//! Bodies on their way through: one source, one sink and one pump for both directions and both HTTP versions.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::body::{BodySize, Frame};
use super::h1;
use super::h1::server::BodyError;
use super::h2::{Failure, Incoming, Outgoing, Reason};
use super::head::Headers;
use super::messages::MessageCounter;
use crate::error::{Error, ErrorKind, Retry};

/// Where frames come from.
#[derive(Debug)]
pub enum Source {
    /// There are none.
    Empty,
    /// A request on HTTP/1.
    H1Server(h1::server::ServerConnection),
    /// A response on HTTP/1.
    H1Client(h1::client::ClientConnection),
    /// Either on HTTP/2; the flag says that it is a request.
    H2(Incoming, bool),
    /// A copy of another message's frames. The body ends when the channel closes.
    Channel(mpsc::Receiver<Frame>),
}

impl Source {
    /// The next frame; `None` at the end of the message.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Channel(frames) => frames.poll_recv(cx).map(|frame| frame.map(Ok)),
            Self::H1Server(connection) => connection.poll_frame(cx).map_err(downstream_error),
            Self::H1Client(connection) => connection.poll_frame(cx).map_err(Into::into),
            Self::H2(stream, is_request) => {
                let is_request = *is_request;
                stream.poll_frame(cx).map(|frame| frame.map(|f| f.map_err(|e| h2_error(e, is_request))))
            }
        }
    }

    /// Whether it is known that nothing more comes.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Channel(frames) => frames.is_closed() && frames.is_empty(),
            Self::H1Server(connection) => connection.request_complete(),
            Self::H1Client(connection) => connection.response_complete(),
            Self::H2(stream, _) => stream.is_end(),
        }
    }
}

fn downstream_error(error: BodyError) -> Error {
    Error::with_source(error.downstream_kind(), io::Error::other(error))
}

fn write_error(error: io::Error) -> Error {
    Error::with_source(ErrorKind::DownstreamClosed, error)
}

/// What a failed HTTP/2 stream means.
pub fn h2_error(failure: Failure, is_request: bool) -> Error {
    let kind = match (is_request, failure) {
        (true, Failure::Reset(_)) => ErrorKind::DownstreamReset,
        (true, Failure::Violation(details)) => ErrorKind::DownstreamViolation(details),
        (true, Failure::Closed | Failure::Refused | Failure::Aborted) => ErrorKind::DownstreamClosed,
        (false, Failure::Refused | Failure::Reset(Reason::REFUSED_STREAM)) => ErrorKind::UpstreamRefused,
        (false, Failure::Reset(_) | Failure::Aborted) => ErrorKind::UpstreamReset,
        (false, Failure::Violation(_)) => ErrorKind::UpstreamProtocol,
        (false, Failure::Closed) => ErrorKind::UpstreamClosed,
    };
    // A stream beyond a GOAWAY has not been looked at.
    Error::new(kind).retry(if failure == Failure::Refused { Retry::Yes } else { Retry::No })
}

/// Where frames go.
#[derive(Debug)]
pub enum Sink {
    /// A response on HTTP/1.
    H1Server(h1::server::ServerConnection),
    /// A request on HTTP/1.
    H1Client(h1::client::ClientConnection),
    /// Either on HTTP/2; the flag says that it is a request.
    H2(Outgoing, bool),
}

impl Sink {
    /// Ready for one more frame; the bound on what is buffered.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::H1Server(connection) => connection.poll_ready(cx).map_err(write_error),
            Self::H1Client(connection) => connection.poll_ready(cx).map_err(Into::into),
            Self::H2(stream, is_request) => {
                let upstream = *is_request;
                stream.poll_ready(cx).map_err(|e| h2_error(e, !upstream))
            }
        }
    }

    /// Everything written has been handed to the kernel, or to the HTTP/2 connection.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::H1Server(connection) => connection.poll_flush(cx).map_err(write_error),
            Self::H1Client(connection) => connection.poll_flush(cx).map_err(Into::into),
            Self::H2(..) => self.poll_ready(cx),
        }
    }

    fn write(&mut self, frame: Frame) {
        match (self, frame) {
            (Self::H1Server(connection), Frame::Data(data)) => connection.write_bytes(data),
            (Self::H1Client(connection), Frame::Data(data)) => connection.write_bytes(data),
            (Self::H2(stream, _), Frame::Data(data)) => stream.write_data(data),
            (Self::H1Server(connection), Frame::Trailers(trailers)) => connection.write_trailers(&trailers),
            (Self::H1Client(connection), Frame::Trailers(trailers)) => connection.write_trailers(&trailers),
            (Self::H2(stream, _), Frame::Trailers(trailers)) => stream.write_trailers(trailers),
        }
    }

    /// Ends the message.
    pub fn finish(&mut self) {
        match self {
            Self::H1Server(connection) => connection.finish(),
            Self::H1Client(connection) => connection.finish(),
            Self::H2(stream, _) => stream.finish(),
        }
    }
}

/// Which end of a pump failed.
#[derive(Debug)]
pub enum PumpError {
    /// Reading.
    Source(Error),
    /// Writing.
    Sink(Error),
}

impl From<PumpError> for Error {
    fn from(error: PumpError) -> Self {
        match error {
            PumpError::Source(error) | PumpError::Sink(error) => error,
        }
    }
}

/// Moves one body. Frames that are ready together leave in one write: the sink is flushed only when the source has to wait.
#[derive(Debug, Default)]
pub struct Pump {
    /// Data bytes moved so far.
    pub bytes: u64,
    /// Trailers, kept for the access log.
    pub trailers: Option<Box<Headers>>,
    messages: Option<MessageCounter>,
    source_done: bool,
    finished: bool,
    done: bool,
}

impl Pump {
    /// A pump for a body of this size: an empty one only has to be flushed.
    pub fn new(size: BodySize) -> Self {
        Self { source_done: matches!(size, BodySize::Empty), ..Self::default() }
    }

    /// The same, counting the messages of gRPC where it `is_grpc`.
    #[must_use]
    pub fn counting(self, is_grpc: bool) -> Self {
        Self { messages: is_grpc.then(MessageCounter::default), ..self }
    }

    /// Messages of gRPC moved so far.
    pub fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.count)
    }

    /// A pump that moves nothing and ends nothing.
    pub fn idle() -> Self {
        Self { source_done: true, finished: true, done: true, ..Self::default() }
    }

    /// Whether everything has been read.
    pub fn source_done(&self) -> bool {
        self.source_done
    }

    /// Whether everything has been written.
    pub fn done(&self) -> bool {
        self.done
    }

    /// Moves what can be moved from `next` to `sink`.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Sink,
        mut next: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame, Error>>>,
    ) -> Poll<Result<(), PumpError>> {
        while !self.source_done {
            ready!(sink.poll_ready(cx)).map_err(PumpError::Sink)?;
            match next(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    match &frame {
                        Frame::Data(data) => {
                            self.bytes += data.len() as u64;
                            if let Some(messages) = &mut self.messages {
                                messages.feed(data);
                            }
                        }
                        Frame::Trailers(trailers) => {
                            self.trailers = Some(trailers.clone());
                            self.source_done = true;
                        }
                    }
                    sink.write(frame);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(PumpError::Source(error))),
                Poll::Ready(None) => self.source_done = true,
                Poll::Pending => {
                    // Ready or not, the flush has seen this context and goes on by itself.
                    if let Poll::Ready(Err(error)) = sink.poll_flush(cx) {
                        return Poll::Ready(Err(PumpError::Sink(error)));
                    }
                    return Poll::Pending;
                }
            }
        }
        if !std::mem::replace(&mut self.finished, true) {
            sink.finish();
        }
        if !self.done {
            ready!(sink.poll_flush(cx)).map_err(PumpError::Sink)?;
            self.done = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes a body that is there already and ends the message.
pub async fn send_all(sink: &mut Sink, body: Cow<'static, [u8]>) {
    let mut next = match body {
        Cow::Borrowed(b"") => None,
        Cow::Borrowed(text) => Some(Bytes::from_static(text)),
        Cow::Owned(text) => Some(Bytes::from(text)),
    };
    let mut pump = Pump::new(if next.is_some() { BodySize::Unknown } else { BodySize::Empty });
    // The caller may be gone; there is nobody left to tell.
    let _ = poll_fn(|cx| pump.poll(cx, sink, |_| Poll::Ready(next.take().map(|data| Ok(Frame::Data(data)))))).await;
}
