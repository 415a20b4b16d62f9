//! The task that owns the socket: reads into the [`Core`], writes what has gathered there.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::{Event, Failure, Role, Shared};
use crate::net;

/// Bytes read at once, into a buffer that every connection of a thread shares.
const SCRATCH: usize = 16 * 1024;
/// Unsent bytes from which nothing more is read: a peer that does not read is not listened to.
const STALLED: usize = 256 * 1024;
/// Bytes that are thrown away while a connection of ours closes.
const DISCARD: usize = 1024 * 1024;

thread_local! {
    static READ: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// The socket of a connection.
pub(super) struct Driver {
    stream: net::Stream,
    core: Shared,
    needs_flush: bool,
}

impl Driver {
    pub(super) fn new(stream: net::Stream, core: Shared) -> Self {
        Self { stream, core, needs_flush: false }
    }

    /// Reads and writes until a server has something to do (client: never) or, `None`, the connection is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let broken = self.core.borrow().broken;
            if let Some(broken) = broken {
                let mut core = self.core.borrow_mut();
                core.refuse_open(broken.details);
                core.fail_all(Failure::Violation(broken.details), |_| true);
            }
            if let Some(event) = self.core.borrow_mut().events.pop_front() {
                return Poll::Ready(Some(event));
            }
            let flushed = match self.poll_flush(cx) {
                Poll::Ready(Err(_)) => return self.gone(),
                Poll::Ready(Ok(())) => {
                    self.core.borrow_mut().floods.answers = 0;
                    true
                }
                Poll::Pending => {
                    self.core.borrow_mut().check_answers();
                    false
                }
            };
            let (broken, finished) = {
                let core = self.core.borrow();
                let unused = core.active == 0 && (core.last_accepted.is_some() || core.abandoned());
                (core.broken.is_some() || core.closed, unused && flushed)
            };
            // Nobody waits until a peer that broke the protocol has read what is left.
            if broken || finished {
                return self.gone();
            }
            if self.core.borrow().out.len() >= STALLED {
                break;
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return self.gone(),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        let mut core = self.core.borrow_mut();
        core.driver = Some(cx.waker().clone());
        core.shrink();
        Poll::Pending
    }

    /// The connection is over.
    fn gone(&mut self) -> Poll<Option<Event>> {
        let mut core = self.core.borrow_mut();
        core.closed = true;
        core.going_away = true;
        core.fail_all(Failure::Closed, |_| true);
        for waker in core.openers.drain(..) {
            waker.wake();
        }
        Poll::Ready(core.events.pop_front())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.core.borrow_mut();
        while !core.out.is_empty() {
            self.needs_flush = true;
            let polled = core.out.poll_write(&mut self.stream, cx);
            core.wake_waiting();
            ready!(polled)?;
        }
        drop(core);
        if self.needs_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buf = READ.take().unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
        let mut read = ReadBuf::new(&mut buf);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut read);
        let polled = polled.map_ok(|()| {
            let bytes = read.filled();
            self.core.borrow_mut().receive(bytes);
            bytes.len()
        });
        READ.set(Some(buf));
        polled
    }

    /// Closes our half and waits until the peer has closed its own, so that it gets to read our last words. One that goes on
    /// talking does not read.
    pub(super) async fn linger(mut self, limit: Duration) {
        let wait = async {
            std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await?;
            let mut discard = [0; 4096];
            for _ in 0..DISCARD / discard.len() {
                let mut read = ReadBuf::new(&mut discard);
                std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_read(cx, &mut read)).await?;
                if read.filled().is_empty() {
                    break;
                }
            }
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }
}

impl super::core::Core {
    /// Whether a client's connection is of no use any more.
    fn abandoned(&self) -> bool {
        self.options.role == Role::Client && self.going_away
    }
}
