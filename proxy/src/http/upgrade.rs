//! Connections that stop being HTTP: WebSocket upgrades and CONNECT.

use std::time::Duration;

use super::exchange::Exchange;
use super::h1::client::ClientConnection;
use super::h1::server::ServerConnection;
use crate::error::ErrorKind;
use crate::flags::ResponseFlags;
use crate::tcp::copy::{End, Limits, copy_both_ways};
use crate::upstream::connect::Connected;
use crate::upstream::pool::Lease;

/// A byte tunnel that takes the place of an HTTP/1 connection.
pub struct Tunnel {
    downstream: ServerConnection,
    upstream: Upstream,
    idle: Option<Duration>,
}

enum Upstream {
    /// After `101 Switching Protocols`; the lease keeps its permits while the tunnel lives.
    Upgraded(ClientConnection, Lease),
    /// After `200` to CONNECT.
    Dialled(Connected),
}

impl Tunnel {
    /// A tunnel over an upgraded upstream connection.
    pub fn new(downstream: ServerConnection, upstream: ClientConnection, lease: Lease, idle: Option<Duration>) -> Self {
        Self { downstream, upstream: Upstream::Upgraded(upstream, lease), idle: idle.filter(|d| !d.is_zero()) }
    }

    /// A tunnel over a fresh connection.
    pub fn dialled(downstream: ServerConnection, upstream: Connected, idle: Option<Duration>) -> Self {
        Self { downstream, upstream: Upstream::Dialled(upstream), idle: idle.filter(|d| !d.is_zero()) }
    }

    /// Copies until both sides have finished; the exchange counts the bytes.
    pub async fn run(self, exchange: &mut Exchange) {
        let Some((mut down, early_up)) = self.downstream.into_parts() else { return };
        let (mut up, early_down, _lease) = match self.upstream {
            Upstream::Upgraded(client, lease) => {
                let Some((stream, early)) = client.into_parts() else { return };
                (stream, early, Some(lease))
            }
            Upstream::Dialled(connected) => (connected.stream, bytes::BytesMut::new(), None),
        };
        let limits = Limits { idle: self.idle, max_duration: None };
        let info = &mut exchange.info;
        let early = (early_up, early_down);
        match copy_both_ways(&mut down, &mut up, early, limits, &mut info.bytes_received, &mut info.bytes_sent).await {
            End::Finished | End::MaxDuration => {}
            End::Idle => info.flags |= ErrorKind::StreamIdle { request_complete: true }.reply(None, false).flag,
            End::Downstream(_) => info.flags |= ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            End::Upstream(_) => info.flags |= ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        }
    }
}
