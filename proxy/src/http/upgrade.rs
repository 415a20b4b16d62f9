//! Connections that stop being HTTP: WebSocket upgrades and CONNECT.

use std::time::Duration;

use bytes::BytesMut;

use super::exchange::Exchange;
use super::h1::server::ServerConnection;
use crate::flags::ResponseFlags;
use crate::tcp::copy::{End, Limits, copy_both_ways};
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
    /// After `200` to CONNECT.
    Dialled(Connected, OpenConnection),
}

impl Tunnel {
    /// A tunnel over an upgraded upstream connection.
    pub fn upgraded(upstream: Http1Lease, idle: Option<Duration>) -> Self {
        Self { upstream: Upstream::Upgraded(upstream), idle: idle.filter(|idle| !idle.is_zero()) }
    }

    /// A tunnel over a fresh connection.
    pub fn dialled(upstream: Connected, permit: OpenConnection, idle: Option<Duration>) -> Self {
        Self { upstream: Upstream::Dialled(upstream, permit), idle: idle.filter(|idle| !idle.is_zero()) }
    }

    /// Copies until both sides have finished; the exchange counts the bytes. `downstream` must be the last handle of its connection.
    pub async fn run(self, downstream: ServerConnection, exchange: &mut Exchange) {
        let Ok((mut down, early_up)) = downstream.into_parts() else { return };
        let (mut up, early_down, _permit) = match self.upstream {
            Upstream::Upgraded(lease) => match lease.into_parts() {
                Some(parts) => parts,
                None => return,
            },
            Upstream::Dialled(connected, permit) => (connected.stream, BytesMut::new(), permit),
        };
        let limits = Limits { idle: self.idle, max_duration: None };
        let info = &mut exchange.info;
        let early = (early_up, early_down);
        match copy_both_ways(&mut down, &mut up, early, limits, &mut info.bytes_received, &mut info.bytes_sent).await {
            End::Finished | End::MaxDuration | End::Paused => {}
            End::Idle => info.flags |= ResponseFlags::STREAM_IDLE_TIMEOUT,
            End::Downstream(_) => info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            End::Upstream(_) => info.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        }
    }
}
