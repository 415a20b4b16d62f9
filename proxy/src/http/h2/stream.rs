//! The two halves of an HTTP/2 stream as a bounded source and sink.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::super::body::Frame;
use super::super::head::Headers;
use super::{read_trailers, write_trailers};

/// Bytes that come in. Flow-control credit goes back only when the next frame is asked for, so a slow reader slows the sender.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    unreleased: usize,
    data_done: bool,
}

impl Incoming {
    /// Takes over the receiving half.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, unreleased: 0, data_done: false }
    }

    /// Whether the last frame has been seen.
    pub fn is_end(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// The next frame; `None` at the end of the message.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, h2::Error>>> {
        if self.unreleased > 0 {
            // Fails only when the stream is gone, which the next poll reports.
            let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.unreleased));
        }
        while !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.unreleased = data.len();
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                // RFC 9113 §8.1: NO_ERROR after a complete response only says that the rest of the request is not wanted.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(map)) => Poll::Ready(Some(Ok(Frame::Trailers(Box::new(read_trailers(&map)))))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

#[derive(Debug)]
enum End {
    Open,
    Finish,
    Trailers(Box<Headers>),
    Sent,
}

/// Bytes that go out. At most one frame waits here for flow-control credit.
#[derive(Debug)]
pub struct Outgoing {
    stream: SendStream<Bytes>,
    pending: Bytes,
    end: End,
}

impl Outgoing {
    /// Takes over the sending half; `ended` when the head was the whole message.
    pub fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Self { stream, pending: Bytes::new(), end: if ended { End::Sent } else { End::Open } }
    }

    /// Queues one frame. Call only after [`Self::poll_ready`].
    pub fn write_data(&mut self, data: Bytes) {
        debug_assert!(self.pending.is_empty(), "poll_ready comes before every frame");
        self.stream.reserve_capacity(data.len());
        self.pending = data;
    }

    /// Queues trailers, which end the message.
    pub fn write_trailers(&mut self, trailers: Box<Headers>) {
        self.end = End::Trailers(trailers);
    }

    /// Ends the message.
    pub fn finish(&mut self) {
        if matches!(self.end, End::Open) {
            self.end = End::Finish;
        }
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Ready once everything queued has been handed to the connection.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.pending.is_empty() {
            if self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Err(Reason::CANCEL.into())),
                }
            }
            let chunk = self.pending.split_to(self.stream.capacity().min(self.pending.len()));
            let last = self.pending.is_empty() && matches!(self.end, End::Finish);
            self.stream.send_data(chunk, last)?;
            if last {
                self.end = End::Sent;
            }
        }
        match std::mem::replace(&mut self.end, End::Sent) {
            End::Open => self.end = End::Open,
            End::Finish => self.stream.send_data(Bytes::new(), true)?,
            End::Trailers(trailers) => self.stream.send_trailers(write_trailers(&trailers))?,
            End::Sent => {}
        }
        // A reset must be noticed even when there is nothing to send.
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) if reason != Reason::NO_ERROR => Poll::Ready(Err(reason.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Resolves when the peer has reset the stream or the connection is gone.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(|_| ())
    }
}
