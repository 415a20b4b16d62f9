//! The two halves of a stream as a bounded source and sink.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::core::{Failure, Shared};
use super::frame::Reason;
use crate::http::body::Frame;
use crate::http::head::{Headers, RequestHead, ResponseHead};

/// A stream. When the last handle goes, a stream that is not over is reset.
pub(super) struct Handle {
    pub(super) core: Shared,
    pub(super) id: u32,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.borrow_mut().release(self.id);
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.id)
    }
}

impl Handle {
    /// Why the stream ended early, if it did.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.core.borrow().streams.get(&self.id).map_or(Some(Failure::Closed), |stream| stream.failure)
    }

    /// Resolves when the stream has ended early.
    pub(super) fn poll_failure(&self, cx: &mut Context<'_>) -> Poll<Failure> {
        let mut core = self.core.borrow_mut();
        let Some(stream) = core.streams.get_mut(&self.id) else { return Poll::Ready(Failure::Closed) };
        match stream.failure {
            Some(failure) => Poll::Ready(failure),
            None => {
                stream.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Bytes that come in. Flow-control credit goes back only when the next frame is asked for, so a slow reader slows the sender.
#[derive(Debug)]
pub struct Incoming {
    stream: Rc<Handle>,
}

impl Incoming {
    pub(super) fn new(stream: Rc<Handle>) -> Self {
        Self { stream }
    }

    /// Whether the last frame has been taken.
    pub fn is_end(&self) -> bool {
        let core = self.stream.core.borrow();
        core.streams.get(&self.stream.id).is_none_or(|stream| stream.remote_end && stream.frames.is_empty())
    }

    /// The next frame; `None` at the end of the message.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Failure>>> {
        let mut core = self.stream.core.borrow_mut();
        if let Some(frame) = core.take_frame(self.stream.id) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(stream) = core.streams.get_mut(&self.stream.id) else { return Poll::Ready(Some(Err(Failure::Closed))) };
        if stream.remote_end {
            return Poll::Ready(None);
        }
        if let Some(failure) = stream.failure {
            return Poll::Ready(Some(Err(failure)));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
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
    stream: Rc<Handle>,
    pending: Bytes,
    end: End,
}

impl Outgoing {
    /// The sending half; `ended` when the head was the whole message.
    pub(super) fn new(stream: Rc<Handle>, ended: bool) -> Self {
        Self { stream, pending: Bytes::new(), end: if ended { End::Sent } else { End::Open } }
    }

    /// Queues one frame. Call only after [`Self::poll_ready`].
    pub fn write_data(&mut self, data: Bytes) {
        debug_assert!(self.pending.is_empty(), "poll_ready comes before every frame");
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

    /// Ready once everything queued has been handed to the connection.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let id = self.stream.id;
        let mut core = self.stream.core.borrow_mut();
        let Some(stream) = core.streams.get_mut(&id) else { return Poll::Ready(Err(Failure::Closed)) };
        match stream.failure {
            // The peer has had enough of the message, which was all said.
            Some(_) if self.pending.is_empty() && matches!(self.end, End::Sent) => return Poll::Ready(Ok(())),
            Some(failure) => return Poll::Ready(Err(failure)),
            // A reset must be noticed even when there is nothing to send.
            None => stream.writer = Some(cx.waker().clone()),
        }
        while !self.pending.is_empty() {
            let room = core.room(id, cx.waker());
            if room == 0 {
                return Poll::Pending;
            }
            let piece = self.pending.split_to(room.min(self.pending.len()));
            let last = self.pending.is_empty() && matches!(self.end, End::Finish);
            core.write_data(id, piece, last);
            if last {
                self.end = End::Sent;
            }
        }
        match std::mem::replace(&mut self.end, End::Sent) {
            End::Open => self.end = End::Open,
            End::Finish => core.write_data(id, Bytes::new(), true),
            End::Trailers(trailers) => core.write_trailers(id, &trailers),
            End::Sent => {}
        }
        Poll::Ready(Ok(()))
    }
}

/// The way back to a caller.
#[derive(Debug)]
pub struct Respond {
    stream: Rc<Handle>,
}

impl Respond {
    pub(super) fn new(stream: Rc<Handle>) -> Self {
        Self { stream }
    }

    /// Sends an informational head.
    pub fn informational(&mut self, head: &ResponseHead) {
        if self.stream.failure().is_none() {
            self.stream.core.borrow_mut().write_response(self.stream.id, head, false);
        }
    }

    /// Sends the final head; `end` when it is the whole response.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn head(&mut self, head: &ResponseHead, end: bool) -> Result<Outgoing, Failure> {
        if let Some(failure) = self.stream.failure() {
            return Err(failure);
        }
        self.stream.core.borrow_mut().write_response(self.stream.id, head, end);
        Ok(Outgoing::new(self.stream.clone(), end))
    }

    /// Resolves when the caller is gone.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        self.stream.poll_failure(cx)
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.core.borrow_mut().reset(self.stream.id, reason);
    }

    /// Memory that the next streams may use.
    pub fn recycle(&self, heads: (RequestHead, ResponseHead)) {
        self.stream.core.borrow_mut().keep_heads(heads);
    }
}
