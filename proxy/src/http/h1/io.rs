//! Buffers between the codec and a stream: none is held by a connection that waits.
//!
//! Reads go through one scratch buffer per thread, from which a head is parsed in place; only what is left of it is kept.
//! Writes gather in one vector that is handed from connection to connection, with large pieces of a body queued beside it
//! and written without being copied.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::head::{HeadError, HeadLimits, Progress};
use crate::net::Stream;

/// Bytes of the per-thread read buffer.
const SCRATCH: usize = 16 * 1024;
/// Bytes read at once when a body is known to be larger than the scratch buffer.
const BULK: usize = 64 * 1024;
/// Up to here copying costs less than another slice in the system call.
const COPY: usize = 4 * 1024;
/// A write buffer larger than this is not kept for the next connection.
const KEEP: usize = 32 * 1024;
/// Slices per system call.
const SLICES: usize = 16;
/// Unsent bytes from which a writer has to wait.
pub(super) const HIGH_WATER: usize = 64 * 1024;
/// Bytes that a peer may send ahead of what is being read.
pub(super) const MAX_AHEAD: usize = 64 * 1024;

thread_local! {
    static READ: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
    static WRITE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes just read, in the thread's buffer, which goes back when this is dropped.
pub(super) struct Scratch {
    buf: Box<[u8]>,
    filled: usize,
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[..self.filled]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        READ.set(Some(std::mem::take(&mut self.buf)));
    }
}

/// A stream with what was read ahead of it and what is not written yet.
pub(super) struct Io {
    pub(super) stream: Stream,
    pub(super) input: BytesMut,
    pub(super) output: Output,
    /// The peer has sent its last byte.
    pub(super) eof: bool,
    progress: Progress,
    /// The last read filled the scratch buffer: a large body is coming in.
    flooding: bool,
}

/// Why no head could be read.
pub(super) enum HeadFault {
    Head(HeadError),
    /// The end came inside a head.
    Truncated,
    Io(io::Error),
}

impl Io {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Output::default(),
            eof: false,
            progress: Progress::default(),
            flooding: false,
        }
    }

    /// Reads into the thread's buffer; empty at the end of input.
    pub(super) fn poll_scratch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Scratch>> {
        let buf = READ.take().unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
        let mut scratch = Scratch { buf, filled: 0 };
        let mut read = ReadBuf::new(&mut scratch.buf);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        scratch.filled = read.filled().len();
        self.eof |= scratch.is_empty();
        self.flooding = scratch.len() == SCRATCH;
        Poll::Ready(Ok(scratch))
    }

    /// Appends to the input; the number of bytes is zero at its end. `expected` bytes are sure to come.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, expected: u64) -> Poll<io::Result<usize>> {
        if expected <= SCRATCH as u64 && !self.flooding {
            let scratch = ready!(self.poll_scratch(cx))?;
            self.input.extend_from_slice(&scratch);
            return Poll::Ready(Ok(scratch.len()));
        }
        self.input.reserve(BULK);
        let polled = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
        match polled {
            Poll::Ready(Ok(bytes)) => {
                self.eof |= bytes == 0;
                self.flooding = bytes >= SCRATCH;
            }
            Poll::Pending if self.input.is_empty() => self.input = BytesMut::new(),
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
        polled
    }

    /// Reads until `parse` has a head, and removes it from the input. `None` when the input ends before a first byte.
    pub(super) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        limits: &HeadLimits,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(usize, T)>, HeadError>,
    ) -> Poll<Result<Option<T>, HeadFault>> {
        loop {
            if !self.input.is_empty() {
                if self.progress.is_due(&self.input, limits)
                    && let Some((consumed, parsed)) = parse(&self.input).map_err(HeadFault::Head)?
                {
                    self.input.advance(consumed);
                    self.release_input();
                    self.progress.reset();
                    return Poll::Ready(Ok(Some(parsed)));
                }
                self.progress.note(&self.input);
            }
            if self.eof {
                return Poll::Ready(if self.input.is_empty() { Ok(None) } else { Err(HeadFault::Truncated) });
            }
            let scratch = ready!(self.poll_scratch(cx)).map_err(HeadFault::Io)?;
            if !self.input.is_empty() || scratch.is_empty() {
                self.input.extend_from_slice(&scratch);
                continue;
            }
            let Some((consumed, parsed)) = parse(&scratch).map_err(HeadFault::Head)? else {
                self.input.extend_from_slice(&scratch);
                self.progress.note(&self.input);
                continue;
            };
            self.input.extend_from_slice(&scratch[consumed..]);
            return Poll::Ready(Ok(Some(parsed)));
        }
    }

    /// Gives an empty input's memory back.
    pub(super) fn release_input(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Writes everything.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            ready!(self.output.poll_write(&mut self.stream, cx))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Writes until less than [`HIGH_WATER`] is left.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output.len() >= HIGH_WATER {
            ready!(self.output.poll_write(&mut self.stream, cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Bytes on their way out: large pieces as they came, everything small in one vector behind them.
#[derive(Debug, Default)]
pub(in crate::http) struct Output {
    queue: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// How much of `tail` is written.
    at: usize,
    queued: usize,
    /// Bytes ever written.
    pub(in crate::http) written: u64,
}

impl Output {
    /// Unsent bytes.
    pub(in crate::http) fn len(&self) -> usize {
        self.queued + self.tail.len() - self.at
    }

    pub(in crate::http) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(in crate::http) fn capacity(&self) -> usize {
        self.tail.capacity() + self.queue.capacity()
    }

    /// The vector to append small pieces to.
    pub(in crate::http) fn tail(&mut self) -> &mut Vec<u8> {
        if self.tail.capacity() == 0 {
            self.tail = WRITE.take();
        }
        &mut self.tail
    }

    /// Appends a piece: copied when small, queued when large.
    pub(in crate::http) fn push(&mut self, data: Bytes) {
        if data.len() <= COPY {
            self.tail().extend_from_slice(&data);
            return;
        }
        if self.tail.len() > self.at {
            let mut before = Bytes::from(std::mem::take(&mut self.tail));
            before.advance(std::mem::take(&mut self.at));
            self.enqueue(before);
        }
        self.enqueue(data);
    }

    fn enqueue(&mut self, data: Bytes) {
        self.queued += data.len();
        self.queue.push_back(data);
    }

    /// Drops what is not written.
    pub(in crate::http) fn clear(&mut self) {
        *self = Self { written: self.written, ..Self::default() };
    }

    /// What one system call would write.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let rest = (self.tail.len() > self.at).then(|| &self.tail[self.at..]);
        let all = self.queue.iter().map(|piece| &piece[..]).chain(rest);
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// Writes once.
    pub(in crate::http) fn poll_write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = Pin::new(stream);
        let written = if self.queue.is_empty() {
            ready!(stream.poll_write(cx, &self.tail[self.at..]))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.slices(&mut slices);
            ready!(stream.poll_write_vectored(cx, &slices[..count]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.written += written as u64;
        while let Some(piece) = self.queue.front_mut() {
            let step = piece.len().min(written);
            piece.advance(step);
            self.queued -= step;
            written -= step;
            if !piece.is_empty() {
                return;
            }
            self.queue.pop_front();
        }
        self.at += written;
        if self.at == self.tail.len() {
            self.at = 0;
            self.tail.clear();
            self.release();
        }
    }

    /// Hands the empty vector to whoever writes next on this thread.
    fn release(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        if tail.capacity() > 0 && tail.capacity() <= KEEP {
            WRITE.set(tail);
        }
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            self.queue = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_and_a_small_body_are_one_slice_and_large_pieces_are_not_copied() {
        let mut output = Output::default();
        output.tail().extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
        output.push(Bytes::from_static(b"small"));
        let mut slices = [IoSlice::new(&[]); SLICES];
        assert_eq!(output.slices(&mut slices), 1);
        let large = Bytes::from(vec![b'x'; COPY + 1]);
        output.push(large.clone());
        output.tail().extend_from_slice(b"\r\n");
        assert_eq!(output.queue.back().map(|b| b.as_ptr()), Some(large.as_ptr()));
        let mut slices = [IoSlice::new(&[]); SLICES];
        assert_eq!(output.slices(&mut slices), 3);
        assert_eq!(output.len(), 19 + 5 + COPY + 1 + 2);
        output.advance(20);
        assert_eq!(&output.queue[0][..], b"mall");
        output.advance(4 + COPY + 1 + 1);
        assert_eq!((output.len(), output.queue.len()), (1, 0));
        output.advance(1);
        assert!(output.is_empty() && output.tail.capacity() == 0, "an idle connection holds no buffer");
    }
}
