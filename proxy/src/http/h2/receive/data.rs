//! DATA: bytes of bodies, windows, and the length that a head has promised.

use bytes::Bytes;

use super::Step;
use crate::http::body::Frame;
use crate::http::h2::core::{Core, Failure, Payload};
use crate::http::h2::frame::{self, FrameHead, Reason, flag, kind};

impl Core {
    pub(super) fn data_head(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        let id = head.stream;
        if id == 0 {
            return self.goaway(Reason::PROTOCOL_ERROR, "DATA: stream_id == 0");
        }
        if self.is_idle(id) {
            return self.goaway(Reason::PROTOCOL_ERROR, "DATA: stream in idle");
        }
        if let Some(stream) = self.streams.get(&id).filter(|stream| !stream.is_closed()) {
            if stream.remote_end {
                return self.goaway(Reason::STREAM_CLOSED, "DATA: stream in half-closed(remote)");
            }
            if !stream.got_final_head {
                return self.goaway(Reason::PROTOCOL_ERROR, "DATA: stream not opened");
            }
        }
        let padding = match (head.has(flag::PADDED), payload.first()) {
            (false, _) => 0,
            (true, None) => return self.goaway(Reason::PROTOCOL_ERROR, "DATA: insufficient padding space"),
            (true, Some(padding)) => usize::from(*padding) + 1,
        };
        let Some(length) = head.length.checked_sub(padding) else {
            return self.goaway(Reason::PROTOCOL_ERROR, "DATA: invalid padding");
        };
        self.empty_frame(id, length == 0 && !head.has(flag::END_STREAM))?;
        self.spend(id, head.length)?;
        let padding = padding.saturating_sub(1);
        let payload = Payload { stream: id, left: length, padding, end: head.has(flag::END_STREAM) };
        // Padding and its length are nobody's to release.
        self.refund(id, head.length - length);
        self.begin_data(payload)
    }

    /// Takes the bytes of a frame out of the windows.
    fn spend(&mut self, id: u32, bytes: usize) -> Step {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.recv_window -= bytes;
        if self.recv_window < 0 {
            return self.goaway(Reason::FLOW_CONTROL_ERROR, "");
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.recv_window -= bytes;
            if stream.recv_window < 0 {
                self.floods.answers += 1;
                self.abort(id, Reason::FLOW_CONTROL_ERROR)?;
            }
        }
        Ok(())
    }

    /// Gives credit for bytes that no reader will ever take.
    fn refund(&mut self, id: u32, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(0);
        if self.streams.get(&id).is_some_and(|stream| !stream.is_closed()) {
            self.credit(id, bytes);
        } else {
            self.credit_connection(bytes);
        }
    }

    fn begin_data(&mut self, payload: Payload) -> Step {
        let id = payload.stream;
        // A length that is wrong shows before its bytes do.
        let wrong = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()).and_then(|stream| {
            let promised = stream.content_left.as_mut()?;
            let left = promised.checked_sub(payload.left as u64);
            *promised = left.unwrap_or(0);
            Some(left.is_none() || payload.end && left != Some(0))
        });
        if wrong == Some(true) {
            self.abort(id, Reason::PROTOCOL_ERROR)?;
        }
        if payload.left + payload.padding > 0 {
            self.payload = Some(payload);
        } else if payload.end {
            self.end_remote(id);
        }
        Ok(())
    }

    /// Resets a stream because of what the peer did on it.
    fn abort(&mut self, id: u32, reason: Reason) -> Step {
        self.count_reset(id)?;
        if self.streams.get(&id).is_some_and(|stream| !stream.is_closed()) {
            frame::number(self.out.tail(), kind::RST_STREAM, id, reason.0);
            // Envoy's words for its own reset, too.
            self.fail(id, Failure::Violation("http2.remote_reset"));
        }
        Ok(())
    }

    /// Passes on what has come of a DATA frame.
    pub(super) fn data<'a>(&mut self, mut payload: Payload, bytes: &'a [u8]) -> &'a [u8] {
        let n = payload.left.min(bytes.len());
        if n > 0 {
            payload.left -= n;
            if self.streams.get(&payload.stream).is_some_and(|stream| stream.failure.is_none()) {
                self.queue(payload.stream, Frame::Data(Bytes::copy_from_slice(&bytes[..n])));
            } else {
                self.refund(payload.stream, n);
            }
        }
        let skip = if payload.left == 0 { payload.padding.min(bytes.len() - n) } else { 0 };
        payload.padding -= skip;
        self.payload = (payload.left + payload.padding > 0).then_some(payload);
        if self.payload.is_none() && payload.end {
            self.end_remote(payload.stream);
        }
        &bytes[n + skip..]
    }
}
