//! HTTP/2 towards an upstream: one connection per worker and endpoint carries many streams.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::Method;

use super::core::{Core, Options, Role, Shared};
use super::driver::Driver;
use super::message::Limits;
use super::stream::Handle;
use super::{Incoming, Outgoing};
use crate::config::HeadersWithUnderscores;
use crate::error::{Error, ErrorKind, Retry};
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::pipe::h2_error;
use crate::net;

/// Window that an upstream may fill before we have passed it on: bounds memory per stream.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Response heads above this are refused.
const MAX_HEAD_BYTES: usize = 60 * 1024;
/// Fields of a response head or of trailers.
const MAX_FIELDS: usize = 100;
/// The last stream of a connection.
const LAST_STREAM: u32 = (1 << 31) - 1;

/// A connection that streams are opened on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct H2Connection {
    pub(super) core: Shared,
}

impl H2Connection {
    /// Says the preface and drives the connection on this worker until it closes; `on_close` runs then.
    pub fn open(stream: net::Stream, on_close: impl FnOnce() + 'static) -> Self {
        let underscores = HeadersWithUnderscores::Allow;
        let limits = Limits { bytes: MAX_HEAD_BYTES, fields: MAX_FIELDS, connect_protocol: false, underscores };
        let mut core = Core::new(Options {
            role: Role::Client,
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_streams: 0,
            limits,
            lenient: false,
        });
        core.greet();
        let core = Rc::new(RefCell::new(core));
        let mut driver = Driver::new(stream, core.clone());
        tokio::task::spawn_local(async move {
            while poll_fn(|cx| driver.poll(cx)).await.is_some() {}
            on_close();
        });
        Self { core }
    }

    /// Whether new streams may still be opened.
    pub fn is_open(&self) -> bool {
        let core = self.core.borrow();
        !core.closed && !core.going_away && core.broken.is_none() && core.next < LAST_STREAM
    }

    /// Streams in flight.
    pub fn active(&self) -> u32 {
        self.core.borrow().active
    }

    /// Streams opened since the handshake.
    pub fn opened(&self) -> u32 {
        u32::try_from(self.core.borrow().floods.opened).unwrap_or(u32::MAX)
    }

    /// Since when no stream is in flight.
    pub fn idle_since(&self) -> Instant {
        self.core.borrow().idle_since.into_std()
    }

    /// Closes the connection at once.
    pub fn close(&self) {
        let mut core = self.core.borrow_mut();
        core.closed = true;
        core.wake_driver();
    }

    /// Waits until the peer admits one more stream.
    ///
    /// # Errors
    /// When the connection is closing: nothing was sent, another connection may be tried.
    pub async fn ready(&self) -> Result<(), Error> {
        poll_fn(|cx| {
            if !self.is_open() {
                let kind =
                    if self.core.borrow().broken.is_some() { ErrorKind::UpstreamProtocol } else { ErrorKind::UpstreamClosed };
                return Poll::Ready(Err(Error::new(kind).retry(Retry::Yes)));
            }
            let mut core = self.core.borrow_mut();
            if core.may_open() {
                return Poll::Ready(Ok(()));
            }
            core.openers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Opens a stream; `end` when the request has no body.
    pub fn send(&self, head: &RequestHead, end: bool) -> (Outgoing, H2Response) {
        let mut core = self.core.borrow_mut();
        let id = core.next;
        core.next += 2;
        core.open(id, false, end, None, head.method == Method::HEAD);
        core.write_request(id, head, end);
        let stream = Rc::new(Handle { core: self.core.clone(), id });
        (Outgoing::new(stream.clone(), end), H2Response { stream, complete: false })
    }
}

/// A response that is awaited.
#[derive(Debug)]
pub struct H2Response {
    stream: Rc<Handle>,
    complete: bool,
}

impl H2Response {
    /// The next head: informational ones first, then the final one, after which [`Self::take_body`] has the body.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        let mut core = self.stream.core.borrow_mut();
        let Some(stream) = core.streams.get_mut(&self.stream.id) else {
            return Poll::Ready(Err(Error::new(ErrorKind::UpstreamClosed)));
        };
        if let Some(next) = stream.heads.pop_front() {
            self.complete = !next.status.is_informational();
            *head = next;
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = stream.failure {
            return Poll::Ready(Err(h2_error(failure, false)));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The body, once the final head has come.
    pub fn take_body(&mut self) -> Option<Incoming> {
        self.complete.then(|| Incoming::new(self.stream.clone()))
    }
}
