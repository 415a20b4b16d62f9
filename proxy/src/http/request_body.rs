//! The body of a request on its way to one or more attempts.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::body::{BodySize, Frame};
use super::pipe::Source;
use crate::error::Error;

/// Bytes of a request body that are kept for retries; a longer body switches them off, as in Envoy.
pub const REPLAY_LIMIT: usize = 1024 * 1024;

/// Bytes that are read ahead while no upstream takes them yet.
const AHEAD_LIMIT: usize = 64 * 1024;

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
    /// Read while no upstream took it, and what failed then.
    ahead: VecDeque<Result<Frame, Error>>,
    ahead_bytes: usize,
    /// Mirrors that get a copy of every frame.
    tees: Vec<mpsc::Sender<Frame>>,
}

#[derive(Debug)]
enum Replay {
    Off,
    Keep { frames: Vec<Frame>, bytes: usize, limit: usize },
    Overflowed,
}

impl RequestBody {
    /// A body of this size.
    pub fn new(source: Source, size: BodySize) -> Self {
        let complete = matches!(size, BodySize::Empty) || matches!(source, Source::Empty);
        Self {
            source,
            size,
            received: 0,
            complete,
            replay: Replay::Off,
            at: 0,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            tees: Vec::new(),
        }
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
    /// [`REPLAY_LIMIT`] bytes, or fewer where the route says so.
    pub fn keep(&mut self, limit: Option<u64>) {
        if !self.complete || !self.ahead.is_empty() {
            let limit = limit.and_then(|limit| usize::try_from(limit).ok()).map_or(REPLAY_LIMIT, |limit| limit.min(REPLAY_LIMIT));
            self.replay = Replay::Keep { frames: Vec::new(), bytes: 0, limit };
        }
    }

    /// Starts again for another attempt; false when that is impossible because too much has been sent.
    pub fn restart(&mut self) -> bool {
        let can = self.can_restart();
        if can {
            self.at = 0;
        }
        can
    }

    /// Whether [`Self::restart`] would work.
    pub fn can_restart(&self) -> bool {
        match self.replay {
            Replay::Off => self.at == 0,
            Replay::Keep { .. } => true,
            Replay::Overflowed => false,
        }
    }

    /// Reads what has arrived while no upstream takes it, as Envoy does: an answer of ours then comes after the request's end.
    pub fn poll_prefetch(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_hold(cx, AHEAD_LIMIT);
    }

    /// Reads ahead for a filter that holds the request: ready when `limit` bytes are here, which the last frame may exceed, when
    /// the body is complete, or when it failed.
    pub fn poll_hold(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        while !self.complete && self.ahead_bytes < limit && self.failure().is_none() {
            let Some(frame) = ready!(self.poll_source(cx)) else { break };
            if let Ok(Frame::Data(data)) = &frame {
                self.ahead_bytes += data.len();
            }
            self.ahead.push_back(frame);
        }
        Poll::Ready(())
    }

    /// What was read ahead and not yet sent.
    pub fn held(&self) -> impl Iterator<Item = &Bytes> {
        self.ahead.iter().filter_map(|frame| if let Ok(Frame::Data(data)) = frame { Some(data) } else { None })
    }

    /// How many bytes those are.
    pub fn held_bytes(&self) -> usize {
        self.ahead_bytes
    }

    /// Why no more can be read ahead.
    pub fn failure(&self) -> Option<&Error> {
        self.ahead.back().and_then(|frame| frame.as_ref().err())
    }

    /// [`Self::poll_prefetch`] without waiting.
    pub async fn prefetch(&mut self) {
        poll_fn(|cx| {
            self.poll_prefetch(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// The next frame of this attempt.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        if let Replay::Keep { frames, .. } = &self.replay
            && let Some(frame) = frames.get(self.at)
        {
            self.at += 1;
            return Poll::Ready(Some(Ok(frame.clone())));
        }
        let next = match self.ahead.pop_front() {
            Some(frame) => {
                if let Ok(Frame::Data(data)) = &frame {
                    self.ahead_bytes -= data.len();
                }
                Some(frame)
            }
            None if self.complete => None,
            None => ready!(self.poll_source(cx)),
        };
        match &next {
            Some(Ok(frame)) => self.keep_frame(frame),
            Some(Err(_)) => {}
            None => self.tees.clear(),
        }
        Poll::Ready(next)
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let polled = self.source.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.note(frame),
            Poll::Ready(None) => self.complete = true,
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
    }

    fn keep_frame(&mut self, frame: &Frame) {
        self.at += 1;
        // A mirror that does not keep up loses its copy: its channel closes early and its content-length is not reached.
        self.tees.retain(|mirror| mirror.try_send(frame.clone()).is_ok());
        let len = if let Frame::Data(data) = frame { data.len() } else { 0 };
        if let Replay::Keep { frames, bytes, limit } = &mut self.replay {
            *bytes += len;
            if *bytes > *limit {
                self.replay = Replay::Overflowed;
            } else {
                frames.push(frame.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frames: &[&'static [u8]]) -> RequestBody {
        let (sender, receiver) = mpsc::channel(8);
        for frame in frames {
            sender.try_send(Frame::Data(Bytes::from_static(frame))).unwrap();
        }
        RequestBody::new(Source::Channel(receiver), BodySize::Unknown)
    }

    async fn all(body: &mut RequestBody) -> Vec<u8> {
        let mut read = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
            if let Frame::Data(data) = frame.unwrap() {
                read.extend_from_slice(&data);
            }
        }
        read
    }

    #[tokio::test]
    async fn what_was_read_ahead_counts_as_received_and_is_still_sent() {
        let mut body = body(&[b"ab", b"c"]);
        body.prefetch().await;
        assert!(body.is_complete());
        assert_eq!(body.received(), 3);
        assert!(body.restart(), "nothing has been sent yet");
        assert_eq!(all(&mut body).await, b"abc");
        assert!(!body.restart(), "what was sent and not kept is gone");
    }

    #[tokio::test]
    async fn a_kept_body_can_be_sent_again_whoever_read_it() {
        let mut body = body(&[b"ab", b"c"]);
        body.keep(None);
        body.prefetch().await;
        assert_eq!(all(&mut body).await, b"abc");
        assert!(body.restart());
        assert_eq!(all(&mut body).await, b"abc");
    }

    #[tokio::test]
    async fn a_body_that_a_filter_has_held_is_kept_and_mirrored_all_the_same() {
        let mut body = body(&[b"ab", b"cd", b"ef"]);
        poll_fn(|cx| body.poll_hold(cx, 3)).await;
        assert_eq!((body.held_bytes(), body.is_complete()), (4, false));
        poll_fn(|cx| body.poll_hold(cx, 100)).await;
        assert_eq!((body.held().map(Bytes::len).sum::<usize>(), body.is_complete()), (6, true));
        let (mirror, mut copy) = mpsc::channel(8);
        body.tee(Some(mirror));
        body.keep(None);
        assert_eq!(all(&mut body).await, b"abcdef");
        assert!(body.restart());
        assert_eq!(all(&mut body).await, b"abcdef");
        let mut copied = Vec::new();
        while let Some(Frame::Data(data)) = copy.recv().await {
            copied.extend_from_slice(&data);
        }
        assert_eq!(copied, b"abcdef");
    }

    #[tokio::test]
    async fn reading_ahead_has_a_limit() {
        static LARGE: [u8; AHEAD_LIMIT] = [b'x'; AHEAD_LIMIT];
        let mut body = body(&[&LARGE, b"rest"]);
        body.prefetch().await;
        assert!(!body.is_complete());
        assert_eq!(body.received(), AHEAD_LIMIT as u64);
        assert_eq!(all(&mut body).await.len(), AHEAD_LIMIT + 4);
    }

    #[tokio::test]
    async fn a_route_may_keep_less_of_a_body() {
        for (limit, again) in [(3, true), (2, false)] {
            let mut body = body(&[b"ab", b"c"]);
            body.keep(Some(limit));
            assert_eq!(all(&mut body).await, b"abc");
            assert_eq!(body.restart(), again, "{limit}");
        }
    }
}
