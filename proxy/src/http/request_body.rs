//! The body of a request on its way to one or more attempts.

use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::body::{BodySize, Frame};
use super::pipe::Source;
use crate::error::Error;

/// Bytes of a request body that are kept for retries; a longer body switches them off, as in Envoy.
pub const REPLAY_LIMIT: usize = 1024 * 1024;

/// Reads a request body once and hands it to every attempt.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    size: BodySize,
    received: u64,
    complete: bool,
    replay: Replay,
    /// Where in the kept frames the current attempt stands.
    at: usize,
    /// Mirrors that get a copy of every frame.
    tees: Vec<mpsc::Sender<Frame>>,
}

#[derive(Debug)]
enum Replay {
    Off,
    Keep { frames: Vec<Frame>, bytes: usize },
    Overflowed,
}

impl RequestBody {
    /// A body of this size.
    pub fn new(source: Source, size: BodySize) -> Self {
        let complete = matches!(size, BodySize::Empty) || matches!(source, Source::Empty);
        Self { source, size, received: 0, complete, replay: Replay::Off, at: 0, tees: Vec::new() }
    }

    /// Its size, as the head says.
    pub fn size(&self) -> BodySize {
        self.size
    }

    /// Body bytes received from the caller.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the caller has sent all of it.
    pub fn is_complete(&self) -> bool {
        self.complete || self.source.is_end()
    }

    /// Copies every frame that is read from now on to a mirror.
    pub fn tee(&mut self, mirror: Option<mpsc::Sender<Frame>>) {
        self.tees.extend(mirror);
    }

    /// Keeps what is read from now on, so that [`Self::restart`] can give it again.
    pub fn keep(&mut self) {
        if !self.complete {
            self.replay = Replay::Keep { frames: Vec::new(), bytes: 0 };
        }
    }

    /// Starts again for another attempt; false when that is impossible because too much has been sent.
    pub fn restart(&mut self) -> bool {
        self.at = 0;
        self.can_restart()
    }

    /// Whether [`Self::restart`] would work.
    pub fn can_restart(&self) -> bool {
        match self.replay {
            Replay::Off => self.received == 0,
            Replay::Keep { .. } => true,
            Replay::Overflowed => false,
        }
    }

    /// The next frame of this attempt.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        if let Replay::Keep { frames, .. } = &self.replay
            && let Some(frame) = frames.get(self.at)
        {
            self.at += 1;
            return Poll::Ready(Some(Ok(frame.clone())));
        }
        if self.complete {
            return Poll::Ready(None);
        }
        let polled = self.source.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.note(frame),
            Poll::Ready(None) => {
                self.complete = true;
                self.tees.clear();
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn note(&mut self, frame: &Frame) {
        let len = match frame {
            Frame::Data(data) => data.len(),
            Frame::Trailers(_) => {
                self.complete = true;
                0
            }
        };
        self.received += len as u64;
        // A mirror that does not keep up loses its copy: its channel closes early and its content-length is not reached.
        self.tees.retain(|mirror| mirror.try_send(frame.clone()).is_ok());
        if let Replay::Keep { frames, bytes } = &mut self.replay {
            *bytes += len;
            if *bytes > REPLAY_LIMIT {
                self.replay = Replay::Overflowed;
            } else {
                frames.push(frame.clone());
                self.at = frames.len();
            }
        }
    }
}
