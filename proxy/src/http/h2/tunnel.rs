//! A stream that is no HTTP any more, as one byte stream: CONNECT (RFC 9113 §8.5) and what is an upgrade on HTTP/1 (RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::MAX_FRAME;
use super::{Failure, Incoming, Outgoing};
use crate::http::body::Frame;

/// Both halves of a stream.
#[derive(Debug)]
pub struct Tunnel {
    incoming: Incoming,
    outgoing: Outgoing,
    /// What the reader had no room for.
    rest: Bytes,
}

impl Tunnel {
    /// A tunnel over a stream whose heads have been exchanged.
    pub fn new(incoming: Incoming, outgoing: Outgoing) -> Self {
        Self { incoming, outgoing, rest: Bytes::new() }
    }
}

fn reset(failure: Failure) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("{failure:?}"))
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(this.incoming.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => this.rest = data,
                Some(Ok(Frame::Trailers(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(reset(failure))),
            }
        }
        let n = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..n]);
        this.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outgoing = &mut self.get_mut().outgoing;
        ready!(outgoing.poll_ready(cx)).map_err(reset)?;
        let n = buf.len().min(MAX_FRAME);
        outgoing.write_data(Bytes::copy_from_slice(&buf[..n]));
        match outgoing.poll_ready(cx) {
            Poll::Ready(Err(failure)) => Poll::Ready(Err(reset(failure))),
            // Taken, whether or not there is credit for it already.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().outgoing.poll_ready(cx).map_err(reset)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outgoing = &mut self.get_mut().outgoing;
        outgoing.finish();
        outgoing.poll_ready(cx).map_err(reset)
    }
}
