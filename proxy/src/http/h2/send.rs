//! What we say: heads, bodies and the frames that begin and end a connection.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::core::{Core, Role};
use super::frame::{self, HEAD, INITIAL_WINDOW, MAX_FRAME, Reason, flag, kind, setting};
use crate::http::head::{Headers, Known, Pseudo, RequestHead, ResponseHead};

/// The PING whose answer ends the first phase of a drain.
pub(super) const DRAIN_PING: [u8; 8] = *b"draining";

impl Core {
    /// Says the first words of a connection.
    pub(super) fn greet(&mut self) {
        let options = self.options;
        let out = self.out.tail();
        match options.role {
            Role::Server => frame::settings(
                out,
                &[
                    (setting::HEADER_TABLE_SIZE, 4096),
                    (setting::ENABLE_CONNECT_PROTOCOL, u32::from(options.limits.connect_protocol)),
                    (setting::MAX_CONCURRENT_STREAMS, options.max_streams),
                    (setting::INITIAL_WINDOW_SIZE, options.stream_window),
                ],
            ),
            Role::Client => {
                out.extend_from_slice(frame::PREFACE);
                frame::settings(
                    out,
                    &[
                        (setting::HEADER_TABLE_SIZE, 4096),
                        (setting::ENABLE_PUSH, 0),
                        (setting::MAX_CONCURRENT_STREAMS, 100),
                        (setting::INITIAL_WINDOW_SIZE, options.stream_window),
                    ],
                );
                self.widen();
            }
        }
        self.settings_unanswered += 1;
    }

    /// Opens the connection's window as far as it is meant to be.
    pub(super) fn widen(&mut self) {
        let more = i64::from(self.options.connection_window) - INITIAL_WINDOW;
        if let Ok(credit @ 1..) = u32::try_from(more) {
            self.recv_window += more;
            frame::number(self.out.tail(), kind::WINDOW_UPDATE, 0, credit);
        }
    }

    /// Writes a header block. Whoever writes fields into it must not touch the connection.
    fn block(&mut self, id: u32, end: bool, fields: impl FnOnce(&mut super::hpack::Encoder, &mut Vec<u8>)) {
        let out = self.out.tail();
        let start = out.len();
        frame::head(out, 0, kind::HEADERS, 0, id);
        self.encoder.begin(out);
        fields(&mut self.encoder, out);
        let length = out.len() - start - HEAD;
        let flags = if end { flag::END_STREAM } else { 0 };
        if length <= MAX_FRAME {
            let mut head = Vec::with_capacity(HEAD);
            frame::head(&mut head, length, kind::HEADERS, flags | flag::END_HEADERS, id);
            out[start..start + HEAD].copy_from_slice(&head);
        } else {
            let block = out.split_off(start + HEAD);
            out.truncate(start);
            let pieces = block.len().div_ceil(MAX_FRAME);
            for (at, piece) in block.chunks(MAX_FRAME).enumerate() {
                let last = if at + 1 == pieces { flag::END_HEADERS } else { 0 };
                let (kind, flags) = if at == 0 { (kind::HEADERS, flags) } else { (kind::CONTINUATION, 0) };
                frame::head(out, piece.len(), kind, flags | last, id);
                out.extend_from_slice(piece);
            }
        }
        self.wake_driver();
    }

    /// Writes the head of a request.
    pub(super) fn write_request(&mut self, id: u32, head: &RequestHead, end: bool) {
        // An upgrade is a CONNECT with `:protocol` here (RFC 8441 §5).
        let upgrade = head.headers.get(Known::Upgrade);
        let connect = head.method == Method::CONNECT;
        self.block(id, end, |encoder, out| {
            for pseudo in head.pseudo_order {
                match pseudo {
                    Pseudo::Authority => encoder.field(out, b":authority", head.authority()),
                    Pseudo::Path if connect => {}
                    Pseudo::Path if head.path().is_empty() => encoder.field(out, b":path", b"/"),
                    Pseudo::Path => encoder.field(out, b":path", head.path()),
                    Pseudo::Method if upgrade.is_some() => encoder.field(out, b":method", b"CONNECT"),
                    Pseudo::Method => encoder.field(out, b":method", head.method.as_str().as_bytes()),
                    Pseudo::Scheme if connect => {}
                    Pseudo::Scheme => encoder.field(out, b":scheme", head.scheme.as_str().as_bytes()),
                }
            }
            if let Some(protocol) = upgrade {
                encoder.field(out, b":protocol", protocol);
            }
            encode(&head.headers, encoder, out);
        });
    }

    /// Writes the head of a response.
    pub(super) fn write_response(&mut self, id: u32, head: &ResponseHead, end: bool) {
        // What an upgrade is answered with on HTTP/1 is a success here.
        let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let status = if switched { StatusCode::OK } else { head.status };
        self.block(id, end, |encoder, out| {
            encoder.field(out, b":status", status.as_str().as_bytes());
            encode(&head.headers, encoder, out);
        });
        if end {
            self.end_local(id);
        }
    }

    /// Writes trailers, which end the message.
    pub(super) fn write_trailers(&mut self, id: u32, trailers: &Headers) {
        self.block(id, true, |encoder, out| encode(trailers, encoder, out));
        self.end_local(id);
    }

    /// Writes a piece of a body for which there is room.
    pub(super) fn write_data(&mut self, id: u32, data: Bytes, end: bool) {
        let length = data.len();
        let bytes = i64::try_from(length).unwrap_or(0);
        self.send_window -= bytes;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send_window -= bytes;
        }
        self.floods.data_sent += 1;
        frame::head(self.out.tail(), length, kind::DATA, if end { flag::END_STREAM } else { 0 }, id);
        self.out.push(data);
        if end {
            self.end_local(id);
        }
        self.wake_driver();
    }

    /// Announces the end of the connection: streams that are on their way are still accepted.
    pub(super) fn notify_shutdown(&mut self) {
        let out = self.out.tail();
        frame::goaway(out, 0x7fff_ffff, Reason::NO_ERROR, "");
        frame::ping(out, 0, DRAIN_PING);
        self.wake_driver();
    }

    /// Ends the connection once its streams are done: those that come now are never looked at.
    pub(super) fn shut_down(&mut self) {
        if self.last_accepted.is_none() {
            self.last_accepted = Some(self.last_peer);
            frame::goaway(self.out.tail(), self.last_peer, Reason::NO_ERROR, "");
            self.wake_driver();
        }
    }
}

fn encode(headers: &Headers, encoder: &mut super::hpack::Encoder, out: &mut Vec<u8>) {
    for (id, name, value) in headers.iter_known() {
        // They belong to HTTP/1 connections (RFC 9113 §8.2.2).
        if matches!(id, Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::TransferEncoding | Known::Upgrade)
        {
            continue;
        }
        encoder.field(out, name, value);
    }
}
