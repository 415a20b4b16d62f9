//! Connections that stop being HTTP: WebSocket upgrades and CONNECT.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::exchange::Exchange;
use super::h1::server::ServerConnection;
use super::h2;
use super::head::Known;
use crate::error::{ErrorKind, Side};
use crate::flags::ResponseFlags;
use crate::net::Stream;
use crate::tcp::copy::{Copying, End, Limits};
use crate::upstream::OpenConnection;
use crate::upstream::connect::Connected;
use crate::upstream::pool::Http1Lease;

/// A byte tunnel that takes the place of an HTTP/1 connection.
pub struct Tunnel {
    upstream: Upstream,
    idle: Option<Duration>,
}

enum Upstream {
    /// After `101 Switching Protocols`.
    Upgraded(Http1Lease),
    /// After `200` to CONNECT, with what the endpoint is told first where it takes part in the exchange of peer metadata.
    Dialled(Connected, OpenConnection, Option<Arc<[u8]>>),
    /// After `200` to a CONNECT with `:protocol`.
    Stream(h2::Tunnel),
}

impl Tunnel {
    /// A tunnel over an upgraded upstream connection.
    pub fn upgraded(upstream: Http1Lease, idle: Option<Duration>) -> Self {
        Self { upstream: Upstream::Upgraded(upstream), idle: idle.filter(|idle| !idle.is_zero()) }
    }

    /// A tunnel over a stream of an HTTP/2 connection.
    pub fn over_stream(upstream: h2::Tunnel, idle: Option<Duration>) -> Self {
        Self { upstream: Upstream::Stream(upstream), idle: idle.filter(|idle| !idle.is_zero()) }
    }

    /// A tunnel over a fresh connection.
    pub fn dialled(upstream: Connected, permit: OpenConnection, introduction: Option<Arc<[u8]>>, idle: Option<Duration>) -> Self {
        Self { upstream: Upstream::Dialled(upstream, permit, introduction), idle: idle.filter(|idle| !idle.is_zero()) }
    }

    /// Copies until both sides have finished; the exchange counts the bytes. `downstream` must be the last handle of its connection.
    pub async fn run(self, downstream: ServerConnection, exchange: &mut Exchange) {
        let Ok((down, early_up)) = downstream.into_parts() else { return };
        self.copy(down, early_up, exchange).await;
    }

    /// As [`Self::run`], over a stream of an HTTP/2 connection.
    pub async fn run_over(self, downstream: h2::Tunnel, exchange: &mut Exchange) {
        self.copy(Stream::Http2(Box::new(downstream)), BytesMut::new(), exchange).await;
    }

    async fn copy(self, mut down: Stream, early_up: BytesMut, exchange: &mut Exchange) {
        let dialled = matches!(self.upstream, Upstream::Dialled(..));
        let mut introduction = None;
        let (mut up, early_down, _permit) = match self.upstream {
            Upstream::Upgraded(lease) => match lease.into_parts() {
                Some((stream, early, permit)) => (stream, early, Some(permit)),
                None => return,
            },
            Upstream::Dialled(connected, permit, told) => {
                introduction = told;
                (connected.stream, BytesMut::new(), Some(permit))
            }
            Upstream::Stream(stream) => (Stream::Http2(Box::new(stream)), BytesMut::new(), None),
        };
        let limits = Limits { idle: self.idle, max_duration: None };
        let info = &mut exchange.info;
        info.bytes_received += early_up.len() as u64;
        info.bytes_sent += early_down.len() as u64;
        let mut first = introduction.as_deref().map_or_else(BytesMut::new, BytesMut::from);
        first.unsplit(early_up);
        let mut copying = Copying::new((first, early_down));
        if introduction.is_some() {
            copying.expect_preamble(Side::Upstream);
        }
        let end = loop {
            let end = copying.run(&mut down, &mut up, limits, None, &mut info.bytes_received, &mut info.bytes_sent).await;
            if let Some(said) = copying.introduced(Side::Upstream) {
                info.upstream_peer = said.and_then(|said| exchange.connection.worker.peers.by_preamble(&said));
            }
            if !matches!(end, End::Introduced) {
                break end;
            }
        };
        // Envoy's words for who hung up first. The end of what a CONNECT dialled is an end like any other.
        let closed = ErrorKind::DownstreamClosed.reply(None, false);
        match (end, copying.first_ended()) {
            (End::Finished, Some(Side::Upstream)) if dialled => {}
            (End::Finished, None) | (End::MaxDuration | End::Paused | End::Introduced, _) => {}
            (End::Downstream(_), _) | (End::Finished, Some(Side::Downstream | Side::Local)) => {
                info.flags |= closed.flag;
                info.details = closed.details;
            }
            (End::Upstream(_), _) | (End::Finished, Some(Side::Upstream)) => {
                info.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
                info.details = "upstream_reset_after_response_started{connection_termination}".into();
            }
            (End::Idle, _) => {
                let idle = ErrorKind::StreamIdle { request_complete: true }.reply(None, false);
                info.flags |= idle.flag;
                info.details = idle.details;
            }
        }
    }
}

impl Exchange {
    /// Whether the response refuses an upgrade with a status that is no error. As Envoy, its body is left out then: what follows
    /// could be taken for the tunnel.
    pub(super) fn refuse_handshake(&mut self) -> bool {
        let refused = self.wants_upgrade && self.response.status.as_u16() < 400;
        if refused {
            self.response.headers.retain(|id, _, _| !matches!(id, Known::ContentLength | Known::ContentType));
        }
        refused
    }
}
