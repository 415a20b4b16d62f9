//! HEADERS and CONTINUATION: requests, responses and trailers.

use http::{Method, StatusCode};

use super::{Break, CODEC_ERROR, EMPTY_FLOOD, STREAM_ERROR, Step};
use crate::http::body::{BodySize, Frame};
use crate::http::h2::core::{Block, Core, Event, Failure, Role, Stream};
use crate::http::h2::frame::{self, FrameHead, Reason, flag, kind, number_at};
use crate::http::h2::message::{Builder, Fault, Head};
use crate::http::head::{Headers, RequestHead, ResponseHead};

/// Bytes of one header block, decoded or not.
const MAX_BLOCK: usize = 1024 * 1024;

impl Core {
    pub(super) fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        let id = head.stream;
        let mut skip = 0;
        let mut padding = 0;
        if head.has(flag::PADDED) {
            padding = payload.first().map_or(usize::MAX, |padding| usize::from(*padding));
            skip = 1;
        }
        if head.has(flag::PRIORITY) {
            if payload.len() < skip + 5 {
                return self.goaway(Reason::FRAME_SIZE_ERROR, "");
            }
            if number_at(payload, skip) & 0x7fff_ffff == id {
                return self.silent(id, STREAM_ERROR);
            }
            skip += 5;
        }
        let Some(block) = payload.len().checked_sub(padding).and_then(|end| payload.get(skip..end)) else {
            return self.goaway(Reason::PROTOCOL_ERROR, "HEADERS: invalid padding");
        };
        let builder = self.builder_of(id)?;
        self.empty_frame(id, block.is_empty() && !head.has(flag::END_STREAM) && !head.has(flag::END_HEADERS))?;
        self.decoder.begin();
        let entry = Block { stream: id, builder, end: head.has(flag::END_STREAM), rest: Vec::new(), bytes: 0, refused: false };
        self.fragment(entry, block, head.has(flag::END_HEADERS))
    }

    /// What a header block on this stream will be. Blocks of streams that are over are decoded for the table's sake only.
    fn builder_of(&mut self, id: u32) -> Result<Builder, Break> {
        let limits = self.options.limits;
        let trailers = || Head::Trailers(Headers::new());
        if id.is_multiple_of(2) {
            return self.silent(0, STREAM_ERROR).map(|()| Builder::new(trailers(), limits));
        }
        let state = self.streams.get(&id).filter(|stream| !stream.is_closed()).map(|s| (s.remote_end, s.got_final_head));
        let head = match (state, self.options.role) {
            (Some((true, _)), _) => return self.silent(id, STREAM_ERROR).map(|()| Builder::new(trailers(), limits)),
            (Some((false, true)), _) => trailers(),
            (Some((false, false)), _) => Head::Response(ResponseHead::default()),
            (None, Role::Server) if id > self.last_peer => {
                self.last_peer = id;
                Head::Request(self.spare.last_mut().map(|(head, _)| std::mem::take(head)).unwrap_or_default())
            }
            (None, Role::Client) if id >= self.next => {
                return self.silent(0, STREAM_ERROR).map(|()| Builder::new(trailers(), limits));
            }
            (None, _) => trailers(),
        };
        Ok(Builder::new(head, limits))
    }

    pub(super) fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        let Some(block) = self.block.take() else { return Ok(()) };
        if payload.is_empty() && !head.has(flag::END_HEADERS) {
            self.block = Some(block);
            return match self.empty_frame(head.stream, true) {
                Err(Break) => {
                    self.refuse_open(EMPTY_FLOOD);
                    Err(Break)
                }
                step => step,
            };
        }
        self.fragment(block, payload, head.has(flag::END_HEADERS))
    }

    /// Decodes one piece of a block.
    fn fragment(&mut self, mut block: Block, piece: &[u8], last: bool) -> Step {
        block.bytes += piece.len();
        let joined = !block.rest.is_empty();
        if joined {
            block.rest.extend_from_slice(piece);
        }
        let bytes = if joined { &block.rest[..] } else { piece };
        let builder = &mut block.builder;
        let decoded = self.decoder.decode(bytes, |field| builder.field(field));
        let is_request = matches!(block.builder.head, Head::Request(_));
        match decoded {
            Ok(taken) if (taken == bytes.len() || !last) && block.bytes <= MAX_BLOCK => {
                if joined {
                    block.rest.drain(..taken);
                } else {
                    block.rest = bytes[taken..].to_vec();
                }
            }
            _ => {
                self.note_refused(is_request && !block.refused, CODEC_ERROR, false);
                return self.goaway(Reason::COMPRESSION_ERROR, "");
            }
        }
        // A fault shows as soon as it is there: the rest of the block may never come.
        if let Some(fault) = block.builder.fault.filter(|_| !block.refused) {
            self.faulty(block.stream, is_request, fault)?;
            block.refused = true;
        }
        if last {
            if block.refused { Ok(()) } else { self.complete(block) }
        } else {
            self.block = Some(block);
            Ok(())
        }
    }

    /// The connection broke while a request was coming in.
    pub(in crate::http::h2) fn refuse_open(&mut self, details: &'static str) {
        if let Some(block) = self.block.take() {
            self.note_refused(matches!(block.builder.head, Head::Request(_)) && !block.refused, details, false);
        }
    }

    fn note_refused(&mut self, is_request: bool, details: &'static str, is_limit: bool) {
        if is_request {
            self.events.push_back(Event::Refused { details, is_limit });
        }
    }

    /// A header block that breaks the rules.
    fn faulty(&mut self, id: u32, is_request: bool, fault: Fault) -> Step {
        if !is_request && self.streams.get(&id).is_none_or(Stream::is_closed) {
            return Ok(());
        }
        self.note_refused(is_request, fault.details(), fault.is_limit());
        if fault.is_limit() || self.options.lenient {
            let reason = if fault.is_limit() { Reason::INTERNAL_ERROR } else { Reason::PROTOCOL_ERROR };
            self.floods.answers += 1;
            frame::number(self.out.tail(), kind::RST_STREAM, id, reason.0);
            self.fail(id, Failure::Violation(fault.details()));
            return Ok(());
        }
        self.silent(id, fault.details())
    }

    /// A whole header block.
    fn complete(&mut self, block: Block) -> Step {
        let (id, end) = (block.stream, block.end);
        let is_request = matches!(block.builder.head, Head::Request(_));
        match block.builder.finish(end) {
            Err(fault) => self.faulty(id, is_request, fault),
            Ok((Head::Request(head), length)) => self.request(id, head, length, end),
            Ok((Head::Response(head), length)) => self.response(id, head, length, end),
            Ok((Head::Trailers(trailers), _)) => self.trailers(id, trailers),
        }
    }

    fn request(&mut self, id: u32, head: RequestHead, length: Option<u64>, end: bool) -> Step {
        if self.last_accepted.is_some_and(|last| id > last) {
            return Ok(());
        }
        // Streams that are over but still held by a task count as well: resetting makes no room.
        let held = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        if self.active >= self.options.max_streams || held >= self.options.max_streams.saturating_mul(2) {
            self.floods.answers += 1;
            frame::number(self.out.tail(), kind::RST_STREAM, id, Reason::REFUSED_STREAM.0);
            return Ok(());
        }
        let size = match length {
            _ if end => BodySize::Empty,
            Some(length) if head.method != Method::CONNECT => BodySize::Known(length),
            _ => BodySize::Unknown,
        };
        let left = length.filter(|_| head.method != Method::CONNECT);
        self.open(id, end, false, left, false);
        self.events.push_back(Event::Request { stream: id, head, size });
        Ok(())
    }

    fn response(&mut self, id: u32, head: ResponseHead, length: Option<u64>, end: bool) -> Step {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if !head.status.is_informational() {
            stream.got_final_head = true;
            let empty = stream.bodiless || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            stream.content_left = length.filter(|_| !empty);
        }
        let short = end && stream.content_left.is_some_and(|left| left > 0);
        stream.heads.push_back(head);
        if let Some(waker) = stream.reader.take() {
            waker.wake();
        }
        if short {
            return self.faulty(id, false, Fault::Messaging);
        }
        if end {
            self.end_remote(id);
        }
        Ok(())
    }

    fn trailers(&mut self, id: u32, trailers: Headers) -> Step {
        let Some(stream) = self.streams.get(&id).filter(|stream| !stream.is_closed()) else { return Ok(()) };
        if stream.content_left.is_some_and(|left| left > 0) {
            return self.faulty(id, false, Fault::Messaging);
        }
        if !trailers.is_empty() {
            self.queue(id, Frame::Trailers(Box::new(trailers)));
        }
        self.end_remote(id);
        Ok(())
    }
}
