//! What the peer says: frames in, state changes and events out.
//!
//! A violation ends the connection in one of two ways, as in Envoy, whose library tells some of them to Envoy first: those
//! close it without a word ([`Core::silent`]), the others with a GOAWAY that says why ([`Core::goaway`]).

mod control;
mod data;
mod headers;

use super::core::{Broken, Core, Failure, Role};
use super::frame::{self, FrameHead, HEAD, MAX_FRAME, Reason, flag, kind};

/// Details of every stream of a connection that broke in a way that names none of them.
const CODEC_ERROR: &str = "codec_error:The_user_callback_function_failed";
/// Details of the stream whose frame broke the connection.
const STREAM_ERROR: &str = "http2.unknown.nghttp2.error";
const EMPTY_FLOOD: &str = "http2.inbound_empty_frames_flood";
/// Empty frames in a row that end nothing (`max_consecutive_inbound_frames_with_empty_payload`).
const MAX_EMPTY: u32 = 1;
/// Answers (PONG, SETTINGS ACK, RST_STREAM) that a peer may leave unread.
const MAX_ANSWERS: u32 = 1000;

/// The connection is broken; [`Core::broken`] says how.
pub(super) struct Break;

type Step = Result<(), Break>;

impl Core {
    /// Takes what was read. What is not a whole frame is kept, but for DATA, of which every byte is passed on at once.
    pub(in crate::http::h2) fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.broken.is_none() {
            if self.preface > 0 {
                let want = &frame::PREFACE[frame::PREFACE.len() - self.preface..];
                let n = want.len().min(bytes.len());
                if bytes[..n] != want[..n] {
                    self.broken = Some(Broken { details: CODEC_ERROR });
                    return;
                }
                self.preface -= n;
                bytes = &bytes[n..];
                if self.preface == 0 {
                    self.greet();
                }
            } else if let Some(payload) = self.payload {
                bytes = self.data(payload, bytes);
            } else if self.input.is_empty() {
                match whole_frame(bytes) {
                    Some((head, length)) if self.admit(head) => {
                        let stop = self.frame(head, &bytes[HEAD..length]).is_err();
                        bytes = if stop { &[] } else { &bytes[length..] };
                    }
                    Some(_) => return,
                    None => bytes = self.buffer(bytes),
                }
            } else {
                bytes = self.buffer(bytes);
            }
        }
    }

    /// Adds to the frame that is being gathered, and handles it once it is whole.
    fn buffer<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = HEAD.saturating_sub(self.input.len());
        let n = missing.min(bytes.len());
        self.input.extend_from_slice(&bytes[..n]);
        let bytes = &bytes[n..];
        let Some(head) = self.input.first_chunk().map(|head| FrameHead::parse(*head)) else { return bytes };
        if missing > 0 && !self.admit(head) {
            return &[];
        }
        let whole = HEAD + buffered(head);
        let n = (whole - self.input.len()).min(bytes.len());
        self.input.extend_from_slice(&bytes[..n]);
        if self.input.len() == whole {
            let input = std::mem::take(&mut self.input);
            let stop = self.frame(head, &input[HEAD..]).is_err();
            if self.active > 0 {
                self.input = input;
                self.input.clear();
            }
            return if stop { &[] } else { &bytes[n..] };
        }
        &bytes[n..]
    }

    /// What can be said of a frame before its payload is there.
    fn admit(&mut self, head: FrameHead) -> bool {
        let in_block = self.block.as_ref().map(|block| block.stream);
        let step = if !self.settled && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            self.goaway(Reason::PROTOCOL_ERROR, "SETTINGS expected")
        } else if head.length > MAX_FRAME {
            self.goaway(Reason::FRAME_SIZE_ERROR, "too large frame size")
        } else if in_block.is_some_and(|stream| head.kind != kind::CONTINUATION || head.stream != stream) {
            self.goaway(Reason::PROTOCOL_ERROR, "unexpected non-CONTINUATION frame or stream_id is invalid")
        } else if head.kind == kind::CONTINUATION && in_block.is_none() {
            self.goaway(Reason::PROTOCOL_ERROR, "CONTINUATION: unexpected")
        } else {
            Ok(())
        };
        step.is_ok()
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        match head.kind {
            kind::DATA => self.data_head(head, payload),
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PING => self.ping(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::GOAWAY => self.peer_goaway(head, payload),
            kind::PRIORITY => self.priority(payload),
            // We never allow pushes, and a client may not push at all.
            kind::PUSH_PROMISE => self.silent(head.stream, STREAM_ERROR),
            _ => Ok(()),
        }
    }

    /// Breaks the connection with a GOAWAY.
    pub(super) fn goaway(&mut self, reason: Reason, debug: &'static str) -> Step {
        frame::goaway(self.out.tail(), self.last_peer, reason, debug);
        self.broken = Some(Broken { details: CODEC_ERROR });
        Err(Break)
    }

    /// Breaks the connection without a word; `details` are those of the stream at fault, if it is one that lives.
    pub(super) fn silent(&mut self, stream: u32, details: &'static str) -> Step {
        self.fail(stream, Failure::Violation(details));
        self.out.clear();
        self.broken = Some(Broken { details: CODEC_ERROR });
        Err(Break)
    }

    /// Breaks the connection because of a flood.
    pub(super) fn flood(&mut self, stream: u32, details: &'static str) -> Step {
        tracing::debug!(details, "HTTP/2 flood");
        self.silent(stream, details)
    }

    /// Closes on a peer that asks for answers and never reads them. Called when the socket takes no more.
    pub(in crate::http::h2) fn check_answers(&mut self) {
        if self.floods.answers > MAX_ANSWERS {
            let _ = self.flood(0, "http2.outbound_control_flood");
        }
    }

    /// Whether the peer may not have said anything on this stream yet.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.options.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer,
            Role::Client => id.is_multiple_of(2) || id >= self.next,
        }
    }

    /// Counts empty frames that end nothing.
    pub(super) fn empty_frame(&mut self, stream: u32, empty: bool) -> Step {
        if !empty {
            self.floods.empty = 0;
            return Ok(());
        }
        self.floods.empty += 1;
        if self.floods.empty > MAX_EMPTY { self.flood(stream, EMPTY_FLOOD) } else { Ok(()) }
    }
}

/// The frame at the front, if enough of it is there.
fn whole_frame(bytes: &[u8]) -> Option<(FrameHead, usize)> {
    let head = FrameHead::parse(*bytes.first_chunk()?);
    let length = HEAD + buffered(head);
    // A frame that is too large is refused by its head alone.
    (head.length > MAX_FRAME || bytes.len() >= length).then_some((head, length))
}

/// Bytes of the payload that have to be there before a frame is handled.
fn buffered(head: FrameHead) -> usize {
    match head.kind {
        kind::DATA => usize::from(head.has(flag::PADDED) && head.length > 0),
        _ => head.length,
    }
}
