//! SETTINGS, PING, RST_STREAM, WINDOW_UPDATE, PRIORITY and GOAWAY.

use super::{STREAM_ERROR, Step};
use crate::http::h2::core::{Core, Failure, Role};
use crate::http::h2::frame::{self, FrameHead, MAX_FRAME, MAX_WINDOW, Reason, flag, kind, number_at, setting};
use crate::http::h2::send::DRAIN_PING;

/// Streams of which half may be reset by the caller soon after their beginning (`premature_reset_total_stream_count`).
const PREMATURE_RESET_STREAMS: u64 = 500;
/// PRIORITY frames for each stream (`max_inbound_priority_frames_per_stream`).
const MAX_PRIORITY_PER_STREAM: u64 = 100;
/// WINDOW_UPDATE frames for each DATA frame of ours (`max_inbound_window_update_frames_per_data_frame_sent`).
const MAX_WINDOW_UPDATES_PER_DATA: u64 = 10;

impl Core {
    pub(super) fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        if !payload.len().is_multiple_of(6) || head.has(flag::ACK) && !payload.is_empty() {
            return self.goaway(Reason::FRAME_SIZE_ERROR, "");
        }
        if head.stream != 0 {
            return self.silent(0, STREAM_ERROR);
        }
        if head.has(flag::ACK) {
            if self.settings_unanswered == 0 {
                return self.silent(0, STREAM_ERROR);
            }
            self.settings_unanswered -= 1;
            return Ok(());
        }
        for entry in payload.chunks_exact(6) {
            let (id, value) = (u16::from_be_bytes([entry[0], entry[1]]), number_at(entry, 2));
            self.setting(id, value)?;
        }
        let first = !std::mem::replace(&mut self.settled, true);
        self.floods.answers += 1;
        frame::head(self.out.tail(), 0, kind::SETTINGS, flag::ACK, 0);
        if first && self.options.role == Role::Server {
            self.widen();
        }
        self.wake_waiting();
        Ok(())
    }

    fn setting(&mut self, id: u16, value: u32) -> Step {
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.resize(value as usize),
            setting::ENABLE_PUSH if value > 1 || value == 1 && self.options.role == Role::Client => {
                return self.silent(0, STREAM_ERROR);
            }
            setting::ENABLE_CONNECT_PROTOCOL if value > 1 => return self.silent(0, STREAM_ERROR),
            setting::MAX_FRAME_SIZE if !(MAX_FRAME..1 << 24).contains(&(value as usize)) => return self.silent(0, STREAM_ERROR),
            setting::MAX_CONCURRENT_STREAMS if self.options.role == Role::Client => {
                self.peer.max_streams = value;
                for waker in self.openers.drain(..) {
                    waker.wake();
                }
            }
            setting::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                if window > MAX_WINDOW {
                    return self.silent(0, STREAM_ERROR);
                }
                let change = window - self.peer.initial_window;
                self.peer.initial_window = window;
                let mut overflown = Vec::new();
                for (id, stream) in &mut self.streams {
                    stream.send_window += change;
                    if stream.send_window > MAX_WINDOW {
                        overflown.push(*id);
                    } else if stream.send_window > 0
                        && let Some(waker) = stream.writer.take()
                    {
                        waker.wake();
                    }
                }
                for id in overflown {
                    frame::number(self.out.tail(), kind::RST_STREAM, id, Reason::FLOW_CONTROL_ERROR.0);
                    self.fail(id, Failure::Reset(Reason::FLOW_CONTROL_ERROR));
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn ping(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        let Ok(payload) = <[u8; 8]>::try_from(payload) else { return self.goaway(Reason::FRAME_SIZE_ERROR, "") };
        if head.stream != 0 {
            return self.silent(0, STREAM_ERROR);
        }
        if head.has(flag::ACK) {
            self.drain_answered |= payload == DRAIN_PING;
            return Ok(());
        }
        self.floods.answers += 1;
        frame::ping(self.out.tail(), flag::ACK, payload);
        Ok(())
    }

    pub(super) fn rst_stream(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        if payload.len() != 4 {
            return self.goaway(Reason::FRAME_SIZE_ERROR, "");
        }
        if head.stream == 0 || self.is_idle(head.stream) {
            return self.silent(0, STREAM_ERROR);
        }
        self.count_reset(head.stream)?;
        // A response that is complete stays readable: only the rest of the request is not wanted.
        self.fail(head.stream, Failure::Reset(Reason(number_at(payload, 0))));
        Ok(())
    }

    /// Counts a reset that is the caller's doing, whichever side says it (CVE-2023-44487, CVE-2025-8671). Too many end the
    /// connection, as soon as no number of good streams could make up for them.
    pub(super) fn count_reset(&mut self, id: u32) -> Step {
        if self.options.role == Role::Server && self.is_young(id) {
            self.floods.premature += 1;
            if self.floods.premature * 2 >= self.floods.closed.max(PREMATURE_RESET_STREAMS) {
                return self.goaway(Reason::NO_ERROR, "");
            }
        }
        Ok(())
    }

    pub(super) fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        if payload.len() != 4 {
            return self.goaway(Reason::FRAME_SIZE_ERROR, "");
        }
        let id = head.stream;
        let increment = i64::from(number_at(payload, 0) & 0x7fff_ffff);
        self.floods.window_updates += 1;
        let allowed = 5 + 2 * (self.floods.opened + MAX_WINDOW_UPDATES_PER_DATA * self.floods.data_sent);
        if self.floods.window_updates > allowed {
            return self.flood(id, "http2.inbound_window_update_frames_flood");
        }
        if id != 0 && self.is_idle(id) || increment == 0 {
            return self.silent(id, STREAM_ERROR);
        }
        if id == 0 {
            self.send_window += increment;
            if self.send_window > MAX_WINDOW {
                return self.silent(0, STREAM_ERROR);
            }
            self.wake_waiting();
        } else if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) {
            stream.send_window += increment;
            if stream.send_window > MAX_WINDOW {
                return self.silent(id, STREAM_ERROR);
            }
            if let Some(waker) = stream.writer.take() {
                waker.wake();
            }
        }
        Ok(())
    }

    pub(super) fn priority(&mut self, payload: &[u8]) -> Step {
        if payload.len() != 5 {
            return self.goaway(Reason::FRAME_SIZE_ERROR, "");
        }
        self.floods.priority += 1;
        if self.floods.priority > MAX_PRIORITY_PER_STREAM * (1 + self.floods.opened) {
            return self.flood(0, "http2.inbound_priority_frames_flood");
        }
        Ok(())
    }

    pub(super) fn peer_goaway(&mut self, head: FrameHead, payload: &[u8]) -> Step {
        if payload.len() < 8 {
            return self.goaway(Reason::FRAME_SIZE_ERROR, "");
        }
        if head.stream != 0 {
            return self.silent(0, STREAM_ERROR);
        }
        self.going_away = true;
        let last = number_at(payload, 0) & 0x7fff_ffff;
        if self.options.role == Role::Client {
            self.fail_all(Failure::Refused, |id| id > last);
            for waker in self.openers.drain(..) {
                waker.wake();
            }
        }
        Ok(())
    }
}
