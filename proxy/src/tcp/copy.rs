//! Bytes both ways, with half-close, one idle deadline and no buffer while nothing flows.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::error::Side;
use crate::net::Stream;
use crate::peer::preamble::Reader;

const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// Every connection of a worker reads through this one buffer: an idle connection holds none.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Why copying ended.
#[derive(Debug)]
pub enum End {
    /// Both sides have finished, or a TLS peer went away without a farewell, which ends both directions.
    Finished,
    /// Nothing flowed for too long.
    Idle,
    /// It lived too long.
    MaxDuration,
    /// [`Copying::run`] was asked to come back at this time; it may go on.
    Paused,
    /// A side has introduced itself, or will not: [`Copying::introduced`] tells. It may go on.
    Introduced,
    /// The caller's side failed.
    Downstream(io::Error),
    /// The endpoint's side failed.
    Upstream(io::Error),
}

/// When copying must end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// No byte in either direction for this long.
    pub idle: Option<Duration>,
    /// Life at the most.
    pub max_duration: Option<Duration>,
}

#[derive(Debug, Default)]
struct Direction {
    /// What the writer has not taken yet.
    rest: BytesMut,
    read_done: bool,
    /// The reader ended without TLS's close_notify: nobody is there for the other direction either.
    truncated: bool,
    shut: bool,
    needs_flush: bool,
    /// Takes the preamble off what is read.
    preamble: Option<Box<Reader>>,
    /// What the preamble said, once it is known.
    introduced: Option<Option<Vec<u8>>>,
    /// Bytes read and bytes written, to tell whether anything happened.
    activity: u64,
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

impl Direction {
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream, bytes: &mut u64) -> Poll<Result<(), Failure>> {
        loop {
            while !self.rest.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest)).map_err(Failure::Write)?;
                if n == 0 {
                    return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero.into())));
                }
                self.rest.advance(n);
                self.activity += n as u64;
                self.needs_flush = true;
            }
            if self.read_done {
                break;
            }
            match self.poll_pass(cx, from, to, bytes) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    self.rest = BytesMut::new();
                    if self.needs_flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Failure::Write)?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        if !self.shut {
            // The other side may have gone already: then there is nobody left to tell.
            let _ = ready!(Pin::new(to).poll_shutdown(cx));
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once into the worker's buffer and writes at once; only what the writer does not take is kept.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        bytes: &mut u64,
    ) -> Poll<Result<(), Failure>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match ready!(Pin::new(from).poll_read(cx, &mut read)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.truncated = true,
                Err(error) => return Poll::Ready(Err(Failure::Read(error))),
            }
            let mut data = read.filled();
            self.activity += data.len() as u64;
            if data.is_empty() {
                self.read_done = true;
                if let Some(reader) = self.preamble.take() {
                    self.rest.extend_from_slice(&reader.end());
                    *bytes += self.rest.len() as u64;
                    self.introduced = Some(None);
                }
                return Poll::Ready(Ok(()));
            }
            let after;
            if let Some(reader) = &mut self.preamble {
                let Some(read) = reader.feed(data) else { return Poll::Ready(Ok(())) };
                self.preamble = None;
                self.introduced = Some(read.metadata);
                after = read.rest;
                data = &after;
                if data.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            *bytes += data.len() as u64;
            if let Poll::Ready(result) = Pin::new(to).poll_write(cx, data) {
                data = &data[result.map_err(Failure::Write)?..];
                self.needs_flush = true;
            }
            self.rest.extend_from_slice(data);
            Poll::Ready(Ok(()))
        })
    }
}

/// Copies until both sides have finished; a side that finishes first is passed on as a half-close. `received` and `sent` count
/// bytes from and to the caller while it goes on, so that a cancelled copy is still accounted for.
pub async fn copy_both_ways(
    downstream: &mut Stream,
    upstream: &mut Stream,
    early: (BytesMut, BytesMut),
    limits: Limits,
    received: &mut u64,
    sent: &mut u64,
) -> End {
    *received += early.0.len() as u64;
    *sent += early.1.len() as u64;
    Copying::new(early).run(downstream, upstream, limits, None, received, sent).await
}

/// A copy that can be paused.
#[derive(Debug)]
pub struct Copying {
    up: Direction,
    down: Direction,
    start: Instant,
    last: Instant,
    first_ended: Option<Side>,
}

impl Copying {
    /// A copy that begins with these bytes: from the caller, and from the endpoint.
    pub fn new(early: (BytesMut, BytesMut)) -> Self {
        let now = Instant::now();
        let up = Direction { rest: early.0, ..Direction::default() };
        let down = Direction { rest: early.1, ..Direction::default() };
        Self { up, down, start: now, last: now, first_ended: None }
    }

    /// Expects a preamble of `side`, which is taken off.
    pub fn expect_preamble(&mut self, side: Side) {
        self.direction(side).preamble = Some(Box::default());
    }

    /// What `side` said in its preamble, once: the outer is `None` while it is not known.
    pub fn introduced(&mut self, side: Side) -> Option<Option<Vec<u8>>> {
        self.direction(side).introduced.take()
    }

    /// What comes from `side`.
    fn direction(&mut self, side: Side) -> &mut Direction {
        if side == Side::Upstream { &mut self.down } else { &mut self.up }
    }

    /// Which side finished first, if one has.
    pub fn first_ended(&self) -> Option<Side> {
        self.first_ended
    }

    /// As [`copy_both_ways`], and comes back with [`End::Paused`] at `pause`.
    pub async fn run(
        &mut self,
        downstream: &mut Stream,
        upstream: &mut Stream,
        limits: Limits,
        pause: Option<Instant>,
        received: &mut u64,
        sent: &mut u64,
    ) -> End {
        let start = self.start;
        let until = |last: Instant| -> Option<(Instant, fn() -> End)> {
            let idle = limits.idle.map(|d| (last + d, (|| End::Idle) as fn() -> End));
            let max = limits.max_duration.map(|d| (start + d, (|| End::MaxDuration) as fn() -> End));
            let pause = pause.map(|at| (at, (|| End::Paused) as fn() -> End));
            [idle, max, pause].into_iter().flatten().min_by_key(|(at, _)| *at)
        };
        let mut sleep = until(self.last).map(|(at, _)| Box::pin(tokio::time::sleep_until(at)));
        let (up, down, last) = (&mut self.up, &mut self.down, &mut self.last);
        let first = &mut self.first_ended;
        poll_fn(|cx| {
            let before = up.activity + down.activity;
            let up_end = up.poll(cx, downstream, upstream, received);
            let down_end = down.poll(cx, upstream, downstream, sent);
            match up_end {
                Poll::Ready(Err(Failure::Read(error))) => return Poll::Ready(End::Downstream(error)),
                Poll::Ready(Err(Failure::Write(error))) => return Poll::Ready(End::Upstream(error)),
                _ => {}
            }
            match down_end {
                Poll::Ready(Err(Failure::Read(error))) => return Poll::Ready(End::Upstream(error)),
                Poll::Ready(Err(Failure::Write(error))) => return Poll::Ready(End::Downstream(error)),
                _ => {}
            }
            let (up_done, down_done) = (up_end.is_ready(), down_end.is_ready());
            if first.is_none() && (up_done || down_done) {
                *first = Some(if up_done { Side::Downstream } else { Side::Upstream });
            }
            if up_done && (down_done || up.truncated) || down_done && down.truncated {
                return Poll::Ready(End::Finished);
            }
            if up.introduced.is_some() || down.introduced.is_some() {
                return Poll::Ready(End::Introduced);
            }
            let Some(sleep) = sleep.as_mut() else { return Poll::Pending };
            if up.activity + down.activity != before {
                *last = Instant::now();
            }
            while sleep.as_mut().poll(cx).is_ready() {
                // Only when the timer fires is the deadline moved to where the last byte put it.
                match until(*last) {
                    Some((at, end)) if at <= Instant::now() => return Poll::Ready(end()),
                    Some((at, _)) => sleep.as_mut().reset(at),
                    None => return Poll::Pending,
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::LocalSet;

    use super::*;

    fn pair() -> (DuplexStream, Stream) {
        let (near, far) = tokio::io::duplex(4096);
        (near, Stream::Memory(far))
    }

    #[tokio::test]
    async fn a_half_close_is_passed_on_and_the_answer_still_arrives() {
        // A tunnel over HTTP/2 stays on its thread.
        LocalSet::new()
            .run_until(async {
                let (mut client, mut downstream) = pair();
                let (mut server, mut upstream) = pair();
                let copy = tokio::task::spawn_local(async move {
                    let (mut received, mut sent) = (0, 0);
                    let early = (BytesMut::from(&b"early "[..]), BytesMut::new());
                    let end =
                        copy_both_ways(&mut downstream, &mut upstream, early, Limits::default(), &mut received, &mut sent).await;
                    (matches!(end, End::Finished), received, sent)
                });
                client.write_all(b"request").await.unwrap();
                client.shutdown().await.unwrap();
                let mut request = String::new();
                server.read_to_string(&mut request).await.unwrap();
                assert_eq!(request, "early request");
                let answer = vec![7; 300_000];
                let expected = answer.clone();
                tokio::spawn(async move { server.write_all(&answer).await });
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, expected);
                assert_eq!(copy.await.unwrap(), (true, 13, 300_000));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_pair_is_closed() {
        let (_client, mut downstream) = pair();
        let (_server, mut upstream) = pair();
        let limits = Limits { idle: Some(Duration::from_secs(5)), max_duration: Some(Duration::from_secs(60)) };
        let early = (BytesMut::new(), BytesMut::new());
        let start = Instant::now();
        let (mut received, mut sent) = (0, 0);
        let end = copy_both_ways(&mut downstream, &mut upstream, early, limits, &mut received, &mut sent);
        assert!(matches!(end.await, End::Idle));
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_copy_goes_on_where_it_was() {
        let (mut client, mut downstream) = pair();
        let (mut server, mut upstream) = pair();
        let limits = Limits { idle: Some(Duration::from_secs(5)), max_duration: None };
        let mut copying = Copying::new((BytesMut::from(&b"one "[..]), BytesMut::new()));
        let (mut received, mut sent) = (0, 0);
        let pause = Some(Instant::now() + Duration::from_secs(1));
        let end = copying.run(&mut downstream, &mut upstream, limits, pause, &mut received, &mut sent).await;
        assert!(matches!(end, End::Paused), "{end:?}");
        client.write_all(b"two").await.unwrap();
        let start = Instant::now();
        let end = copying.run(&mut downstream, &mut upstream, limits, None, &mut received, &mut sent).await;
        assert!(matches!(end, End::Idle), "{end:?}");
        assert_eq!((start.elapsed(), received), (Duration::from_secs(5), 3));
        let mut got = [0; 7];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"one two");
    }

    #[tokio::test]
    async fn a_preamble_is_taken_off_and_told_while_the_other_side_is_heard() {
        let (mut client, mut downstream) = pair();
        let (mut server, mut upstream) = pair();
        let mut copying = Copying::new((BytesMut::from(&b"ours, "[..]), BytesMut::new()));
        copying.expect_preamble(Side::Upstream);
        let (mut received, mut sent) = (0, 0);
        let preamble = [&[0x3d, 0x23, 0x04, 0x67, 0, 0, 0, 5], &b"theirs"[..]].concat();
        server.write_all(&preamble[..9]).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut heard = [0; 11];
        {
            let mut run =
                std::pin::pin!(copying.run(&mut downstream, &mut upstream, Limits::default(), None, &mut received, &mut sent));
            tokio::select! {
                end = &mut run => panic!("half a preamble is none: {end:?}"),
                read = server.read_exact(&mut heard) => drop(read.unwrap()),
            }
            assert_eq!(&heard, b"ours, hello");
            server.write_all(&preamble[9..]).await.unwrap();
            assert!(matches!(run.await, End::Introduced));
        }
        assert_eq!(copying.introduced(Side::Upstream), Some(Some(b"their".to_vec())));
        assert_eq!((copying.introduced(Side::Upstream), copying.introduced(Side::Downstream)), (None, None));
        drop((client, server));
        let end = copying.run(&mut downstream, &mut upstream, Limits::default(), None, &mut received, &mut sent).await;
        assert!(matches!(end, End::Finished | End::Downstream(_)), "{end:?}");
        assert_eq!((received, sent), (5, 1), "only what is passed on counts");
    }
}
