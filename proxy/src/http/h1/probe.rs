//! Has a caller that sent its FIN only finished its request, or closed?
//!
//! TCP shows both the same until something is sent: a closed socket answers with a RST. RFC 9112 §9.6 has servers answer a
//! half-closed caller, and Envoy, which takes every FIN for an abort, loses that answer; yet most callers that send a FIN while
//! they wait have given up, and the upstream should not work for nobody. So a caller that has waited [`PATIENCE`] is sent
//! `100 Continue`, which says what is true (the request is here, the answer will come) and which every HTTP/1.1 client has to
//! take unasked (RFC 9110 §15.2). Where that cannot be sent, TCP keep-alive finds out in a minute or two.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// From the FIN to the probe: answers that come sooner are not preceded by one.
const PATIENCE: Duration = Duration::from_millis(250);
/// From the last byte to the first keep-alive packet; a closed socket is forgotten by Linux, and answers with a RST, after 60 s.
const KEEPALIVE: Duration = Duration::from_secs(75);

/// Watches one half-closed connection.
pub(super) struct Probe {
    patience: Option<Pin<Box<Sleep>>>,
    /// Resolves when the socket fails; `None` where there is none.
    failed: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Probe {
    pub(super) fn new(socket: Option<&TcpStream>) -> Self {
        let failed = socket.and_then(|socket| watch(socket).ok());
        Self { patience: Some(Box::pin(tokio::time::sleep(PATIENCE))), failed }
    }

    /// Whether it is time to send something; true once.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.patience.as_mut().is_some_and(|patience| patience.as_mut().poll(cx).is_ready());
        if due {
            self.patience = None;
        }
        due && self.failed.is_some()
    }

    /// Resolves when the caller is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.failed.as_mut().map_or(Poll::Pending, |failed| failed.as_mut().poll(cx))
    }
}

/// Waits for an error of the socket. On a descriptor of its own, as readiness of the connection's is spoken for.
fn watch(socket: &TcpStream) -> io::Result<Pin<Box<dyn Future<Output = ()>>>> {
    SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 5))?;
    let watched = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
    let watched = TcpStream::from_std(watched)?;
    Ok(Box::pin(async move {
        let _ = watched.ready(Interest::ERROR).await;
    }))
}
