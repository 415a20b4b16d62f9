//! The state of one HTTP/2 connection, for either side: streams, windows, tables, and what is to be written.
//!
//! One task owns the socket ([`super::driver`]) and feeds what it reads in here; the tasks of the streams take frames out and
//! put frames in, all on one thread. What they write gathers in one output, so that frames of many streams leave together.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use tokio::time::Instant;

use super::frame::{self, INITIAL_WINDOW, MAX_FRAME, Reason, kind};
use super::hpack::{Decoder, Encoder};
use super::message::{Builder, Limits};
use crate::http::body::{BodySize, Frame};
use crate::http::h1::io::Output;
use crate::http::head::{RequestHead, ResponseHead};

/// Unsent bytes from which a stream has to wait.
const HIGH_WATER: usize = 64 * 1024;
/// Unsent bytes below which waiting streams go on.
const LOW_WATER: usize = 32 * 1024;
/// Heads whose memory is kept for the next streams of a connection.
const SPARE_HEADS: usize = 4;

/// Why a stream ended before its messages did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer reset it.
    Reset(Reason),
    /// The peer said that it will never look at it (GOAWAY).
    Refused,
    /// The connection is gone.
    Closed,
    /// The peer broke the protocol; Envoy's response code details.
    Violation(&'static str),
    /// We reset it.
    Aborted,
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// What is ours to choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) role: Role,
    pub(super) stream_window: u32,
    pub(super) connection_window: u32,
    /// Streams that the peer may have open at once.
    pub(super) max_streams: u32,
    pub(super) limits: Limits,
    /// A malformed message ends its stream, not the connection.
    pub(super) lenient: bool,
}

/// What the peer has chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) initial_window: i64,
    pub(super) max_streams: u32,
}

/// One stream. It is here as long as a handle of it lives.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) send_window: i64,
    pub(super) recv_window: i64,
    /// Bytes that the reader has and may still be working on.
    unreleased: u32,
    /// Bytes that the reader is done with and the peer does not know of.
    credit: u32,
    pub(super) frames: VecDeque<Frame>,
    /// Bytes in `frames`.
    queued: u32,
    /// Response heads that have not been looked at.
    pub(super) heads: VecDeque<ResponseHead>,
    pub(super) got_final_head: bool,
    pub(super) remote_end: bool,
    pub(super) local_end: bool,
    /// What `content-length` still promises.
    pub(super) content_left: Option<u64>,
    /// The request was HEAD: the length of its response is not that of a body.
    pub(super) bodiless: bool,
    pub(super) failure: Option<Failure>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    waiting: bool,
    opened: Instant,
}

impl Stream {
    /// Whether nothing more will be said on the wire.
    pub(super) fn is_closed(&self) -> bool {
        self.failure.is_some() || self.remote_end && self.local_end
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// What a server has to do something about.
#[derive(Debug)]
pub(super) enum Event {
    /// A request.
    Request { stream: u32, head: RequestHead, size: BodySize },
    /// A request that was refused here: only its log line is left to write.
    Refused { details: &'static str, is_limit: bool },
}

/// A header block of which not all frames have come.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) builder: Builder,
    pub(super) end: bool,
    /// The beginning of a field.
    pub(super) rest: Vec<u8>,
    /// Bytes of the block so far.
    pub(super) bytes: usize,
    /// It breaks a rule, and the peer knows. It is decoded to its end for the table's sake.
    pub(super) refused: bool,
}

/// A DATA frame of which not all bytes have come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) stream: u32,
    pub(super) left: usize,
    pub(super) padding: usize,
    pub(super) end: bool,
}

/// How a connection ends that the peer has broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) details: &'static str,
}

/// Frames that cost the peer nothing, counted as Envoy does.
#[derive(Debug, Default)]
pub(super) struct Floods {
    pub(super) empty: u32,
    pub(super) priority: u64,
    pub(super) window_updates: u64,
    pub(super) data_sent: u64,
    /// Answers written since the output was last empty: PONG, SETTINGS ACK, RST_STREAM.
    pub(super) answers: u32,
    pub(super) opened: u64,
    /// Streams that are over, and those of them that the peer reset soon.
    pub(super) closed: u64,
    pub(super) premature: u64,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) options: Options,
    pub(super) peer: Peer,
    pub(super) streams: HashMap<u32, Stream, foldhash::fast::RandomState>,
    pub(super) out: Output,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    /// A frame of which not all bytes have come.
    pub(super) input: Vec<u8>,
    pub(super) payload: Option<Payload>,
    pub(super) block: Option<Block>,
    pub(super) send_window: i64,
    pub(super) recv_window: i64,
    /// Bytes that the peer does not know it may send again.
    credit: u32,
    /// Bytes of the preface that a server still has to see.
    pub(super) preface: usize,
    pub(super) settled: bool,
    pub(super) settings_unanswered: u32,
    /// The last stream that the peer opened.
    pub(super) last_peer: u32,
    /// The next stream that we open.
    pub(super) next: u32,
    /// Streams in flight.
    pub(super) active: u32,
    /// Since when there is none.
    pub(super) idle_since: Instant,
    pub(super) events: VecDeque<Event>,
    pub(super) spare: Vec<(RequestHead, ResponseHead)>,
    pub(super) driver: Option<Waker>,
    /// Streams that wait for credit of the connection or for room in the output.
    waiting: VecDeque<u32>,
    /// Tasks that wait until one more stream may be opened.
    pub(super) openers: Vec<Waker>,
    pub(super) broken: Option<Broken>,
    /// No stream is accepted any more beyond this one.
    pub(super) last_accepted: Option<u32>,
    /// The peer answered the PING of a drain.
    pub(super) drain_answered: bool,
    /// The peer takes no more streams.
    pub(super) going_away: bool,
    pub(super) closed: bool,
    pub(super) floods: Floods,
}

/// How streams and driver share it.
pub(super) type Shared = Rc<RefCell<Core>>;

impl Core {
    /// A connection of which nothing has been said.
    pub(super) fn new(options: Options) -> Self {
        let server = options.role == Role::Server;
        Self {
            options,
            peer: Peer { initial_window: INITIAL_WINDOW, max_streams: if server { 0 } else { 100 } },
            streams: HashMap::default(),
            out: Output::default(),
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            input: Vec::new(),
            payload: None,
            block: None,
            send_window: INITIAL_WINDOW,
            recv_window: INITIAL_WINDOW,
            credit: 0,
            preface: if server { frame::PREFACE.len() } else { 0 },
            settled: false,
            settings_unanswered: 0,
            last_peer: 0,
            next: 1,
            active: 0,
            idle_since: Instant::now(),
            events: VecDeque::new(),
            spare: Vec::new(),
            driver: None,
            waiting: VecDeque::new(),
            openers: Vec::new(),
            broken: None,
            last_accepted: None,
            drain_answered: false,
            going_away: false,
            closed: false,
            floods: Floods::default(),
        }
    }

    /// Adds a stream.
    pub(super) fn open(&mut self, id: u32, remote_end: bool, local_end: bool, content_left: Option<u64>, bodiless: bool) {
        let stream = Stream {
            send_window: self.peer.initial_window,
            recv_window: i64::from(self.options.stream_window),
            unreleased: 0,
            credit: 0,
            frames: VecDeque::new(),
            queued: 0,
            heads: VecDeque::new(),
            got_final_head: self.options.role == Role::Server,
            remote_end,
            local_end,
            content_left,
            bodiless,
            failure: None,
            reader: None,
            writer: None,
            waiting: false,
            opened: Instant::now(),
        };
        self.streams.insert(id, stream);
        self.active += 1;
        self.floods.opened += 1;
    }

    /// The stream is over on the wire.
    fn note_closed(&mut self) {
        self.active -= 1;
        if self.active == 0 {
            self.idle_since = Instant::now();
        }
        self.floods.closed += 1;
        for waker in self.openers.drain(..) {
            waker.wake();
        }
        self.wake_driver();
    }

    /// The driver has something to write, or to look at.
    pub(super) fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    /// Our half of the stream is complete.
    pub(super) fn end_local(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) {
            stream.local_end = true;
            if stream.is_closed() {
                self.note_closed();
            }
        }
    }

    /// The peer's half of the stream is complete.
    pub(super) fn end_remote(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) {
            stream.remote_end = true;
            if let Some(waker) = stream.reader.take() {
                waker.wake();
            }
            if stream.is_closed() {
                self.note_closed();
            }
        }
    }

    /// Ends one stream; nothing is written.
    pub(super) fn fail(&mut self, id: u32, failure: Failure) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.failure.is_none()
        {
            let was_open = !stream.is_closed();
            stream.failure = Some(failure);
            stream.wake();
            if was_open {
                self.note_closed();
            }
        }
    }

    /// Whether the stream began less than a second ago (a reset then counts as premature).
    pub(super) fn is_young(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| !stream.is_closed() && stream.opened.elapsed().as_secs() < 1)
    }

    /// Ends every stream, as the connection does.
    pub(super) fn fail_all(&mut self, failure: Failure, which: impl Fn(u32) -> bool) {
        let ids: Vec<u32> = self.streams.keys().copied().filter(|id| which(*id)).collect();
        for id in ids {
            self.fail(id, failure);
        }
    }

    /// Resets a stream that is not over.
    pub(super) fn reset(&mut self, id: u32, reason: Reason) {
        if self.streams.get(&id).is_some_and(|stream| !stream.is_closed()) {
            frame::number(self.out.tail(), kind::RST_STREAM, id, reason.0);
            self.fail(id, Failure::Aborted);
            self.wake_driver();
        }
    }

    /// Nobody holds the stream any more.
    pub(super) fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else { return };
        // What is not wanted of a request that was answered is no error.
        let done = if self.options.role == Role::Server { stream.local_end } else { stream.remote_end };
        let queued = stream.queued + stream.unreleased;
        self.reset(id, if done { Reason::NO_ERROR } else { Reason::INTERNAL_ERROR });
        self.streams.remove(&id);
        self.credit_connection(queued);
    }

    /// Queues a piece of a body for whoever reads it.
    pub(super) fn queue(&mut self, id: u32, frame: Frame) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Frame::Data(data) = &frame {
            stream.queued += u32::try_from(data.len()).unwrap_or(u32::MAX);
        }
        stream.frames.push_back(frame);
        if let Some(waker) = stream.reader.take() {
            waker.wake();
        }
    }

    /// The next frame of a stream. The credit of the one before goes back.
    pub(super) fn take_frame(&mut self, id: u32) -> Option<Frame> {
        let stream = self.streams.get_mut(&id)?;
        let credit = std::mem::take(&mut stream.unreleased);
        let next = stream.frames.pop_front();
        if let Some(Frame::Data(data)) = &next {
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            stream.queued -= length;
            stream.unreleased = length;
        }
        self.credit(id, credit);
        next
    }

    /// Gives credit to the peer; small amounts gather until they are worth a frame.
    pub(super) fn credit(&mut self, id: u32, bytes: u32) {
        if bytes == 0 {
            return;
        }
        let worth = self.options.stream_window / 2;
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.remote_end && stream.failure.is_none()) {
            stream.credit += bytes;
            if stream.credit >= worth {
                let credit = std::mem::take(&mut stream.credit);
                stream.recv_window += i64::from(credit);
                frame::number(self.out.tail(), kind::WINDOW_UPDATE, id, credit);
                self.wake_driver();
            }
        }
        self.credit_connection(bytes);
    }

    /// Gives credit for the connection alone: bytes of a stream that is over.
    pub(super) fn credit_connection(&mut self, bytes: u32) {
        self.credit += bytes;
        if self.credit >= self.options.connection_window / 2 {
            let credit = std::mem::take(&mut self.credit);
            self.recv_window += i64::from(credit);
            frame::number(self.out.tail(), kind::WINDOW_UPDATE, 0, credit);
            self.wake_driver();
        }
    }

    /// Bytes of DATA that a stream may write now; when there are none, `waker` is told once there may be.
    pub(super) fn room(&mut self, id: u32, waker: &Waker) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let shared = self.send_window.min(i64::try_from(HIGH_WATER.saturating_sub(self.out.len())).unwrap_or(0));
        let room = usize::try_from(stream.send_window.min(shared)).unwrap_or(0).min(MAX_FRAME);
        if room == 0 {
            stream.writer = Some(waker.clone());
            if stream.send_window > 0 && !std::mem::replace(&mut stream.waiting, true) {
                self.waiting.push_back(id);
            }
        }
        room
    }

    /// Lets the streams go on that wait for the connection, in the order in which they came.
    pub(super) fn wake_waiting(&mut self) {
        if self.send_window <= 0 || self.out.len() >= LOW_WATER {
            return;
        }
        for id in std::mem::take(&mut self.waiting) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.waiting = false;
                if let Some(waker) = stream.writer.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Whether a stream may be opened (client).
    pub(super) fn may_open(&self) -> bool {
        self.active < self.peer.max_streams
    }

    /// Memory for the heads of a stream.
    pub(super) fn take_heads(&mut self) -> (RequestHead, ResponseHead) {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes memory back.
    pub(super) fn keep_heads(&mut self, (mut request, mut response): (RequestHead, ResponseHead)) {
        if self.spare.len() < SPARE_HEADS {
            request.clear();
            response.clear();
            self.spare.push((request, response));
        }
    }

    /// Gives buffers back that a connection without streams needs no more.
    pub(super) fn shrink(&mut self) {
        if self.active == 0 {
            self.spare = Vec::new();
            if self.input.is_empty() {
                self.input = Vec::new();
            }
            if self.streams.is_empty() {
                self.streams = HashMap::default();
            }
        }
    }
}
