//! The deadlines of one exchange, on one timer.
//!
//! A route without time-outs, Istio's default, arms nothing. Idle deadlines move with every frame by a store; only when
//! the timer fires too early is it armed again.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::error::ErrorKind;

#[derive(Clone, Copy, Debug, Default)]
struct Deadline {
    after: Option<Duration>,
    at: Option<Instant>,
}

impl Deadline {
    /// Whether there is a deadline now.
    fn start(&mut self, after: Option<Duration>, now: Instant) -> bool {
        // A time-out of zero is off, as in Envoy.
        self.after = after.filter(|d| !d.is_zero());
        self.at = self.after.and_then(|d| now.checked_add(d));
        self.at.is_some()
    }

    fn touch(&mut self, now: Instant) {
        if let Some(after) = self.after {
            self.at = now.checked_add(after);
        }
    }

    fn passed(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

/// Which deadlines run; see [`ErrorKind`] for what each means.
#[derive(Debug, Default)]
pub struct Timers {
    route: Deadline,
    per_try: Deadline,
    per_try_idle: Deadline,
    upstream_stream: Deadline,
    idle: Deadline,
    max_duration: Deadline,
    request: Deadline,
    /// The request has been received in full: idle then means 504, before it means 408.
    request_complete: bool,
    /// Time-outs of an attempt that has its connection while the request is still on its way: they start with its end.
    waiting: Option<(Option<Duration>, Option<Duration>)>,
    /// A deadline has been set since the start: without one there is nothing to look at.
    armed: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timers {
    /// Nothing runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stream may be idle for this long.
    pub fn start_idle(&mut self, after: Option<Duration>, now: Instant) {
        self.armed |= self.idle.start(after, now);
    }

    /// The stream may live this long.
    pub fn start_max_duration(&mut self, after: Option<Duration>, now: Instant) {
        self.armed |= self.max_duration.start(after, now);
    }

    /// The request must have been received within this time.
    pub fn start_request(&mut self, after: Option<Duration>, now: Instant) {
        self.armed |= self.request.start(after, now);
    }

    /// The request is complete: from now on the route's time-out runs, and those of the attempt.
    pub fn request_complete(&mut self, route_timeout: Option<Duration>, now: Instant) {
        if !self.request_complete {
            self.request_complete = true;
            self.request.start(None, now);
            self.armed |= self.route.start(route_timeout, now);
            self.idle.touch(now);
            if let Some((per_try, idle)) = self.waiting.take() {
                self.start_try(per_try, idle);
            }
        }
    }

    /// An attempt has its connection. `life` counts at once, the others as soon as the request is complete.
    pub fn start_attempt(&mut self, per_try: Option<Duration>, idle: Option<Duration>, life: Option<Duration>) {
        if life.is_some() {
            self.armed |= self.upstream_stream.start(life, Instant::now());
        }
        if per_try.is_some() || idle.is_some() {
            if self.request_complete {
                self.start_try(per_try, idle);
            } else {
                self.waiting = Some((per_try, idle));
            }
        }
    }

    fn start_try(&mut self, per_try: Option<Duration>, idle: Option<Duration>) {
        let now = Instant::now();
        self.armed |= self.per_try.start(per_try, now) | self.per_try_idle.start(idle, now);
    }

    /// The response has begun: the attempt's time-out no longer applies.
    pub fn response_started(&mut self) {
        self.per_try = Deadline::default();
        if let Some((per_try, _)) = &mut self.waiting {
            *per_try = None;
        }
    }

    /// The attempt has failed: none of its deadlines applies to what comes next.
    pub fn end_attempt(&mut self) {
        (self.per_try, self.per_try_idle, self.upstream_stream) = <(Deadline, Deadline, Deadline)>::default();
        self.waiting = None;
    }

    /// Something happened on the stream.
    pub fn touch(&mut self) {
        if self.idle.after.is_some() || self.per_try_idle.after.is_some() {
            let now = Instant::now();
            self.idle.touch(now);
            self.per_try_idle.touch(now);
        }
    }

    fn earliest(&self) -> Option<Instant> {
        [self.route, self.per_try, self.per_try_idle, self.upstream_stream, self.idle, self.max_duration, self.request]
            .iter()
            .filter_map(|d| d.at)
            .min()
    }

    fn expired(&self, now: Instant) -> Option<ErrorKind> {
        let request_complete = self.request_complete;
        if self.route.passed(now) {
            Some(ErrorKind::Timeout)
        } else if self.per_try.passed(now) {
            Some(ErrorKind::PerTryTimeout)
        } else if self.per_try_idle.passed(now) {
            Some(ErrorKind::PerTryIdleTimeout)
        } else if self.upstream_stream.passed(now) {
            Some(ErrorKind::UpstreamMaxStreamDuration { request_complete })
        } else if self.max_duration.passed(now) {
            Some(ErrorKind::MaxStreamDuration { request_complete })
        } else if self.request.passed(now) {
            Some(ErrorKind::RequestTimeout)
        } else if self.idle.passed(now) {
            Some(ErrorKind::StreamIdle { request_complete })
        } else {
            None
        }
    }

    /// Resolves with the first deadline that passes.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        loop {
            if !self.armed {
                return Poll::Pending;
            }
            let Some(earliest) = self.earliest() else { return Poll::Pending };
            let earliest = tokio::time::Instant::from_std(earliest);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(earliest)));
            // A later deadline than the armed one costs nothing until the timer fires; an earlier one must be armed now.
            if earliest < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(earliest);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(kind) = self.expired(tokio::time::Instant::now().into_std()) {
                return Poll::Ready(kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_deadline_wins_and_activity_moves_only_the_idle_one() {
        let now = tokio::time::Instant::now().into_std();
        let mut timers = Timers::new();
        timers.start_idle(Some(Duration::from_secs(2)), now);
        timers.start_max_duration(Some(Duration::from_secs(3)), now);
        timers.idle.touch(now + Duration::from_millis(1500));
        assert_eq!(poll_fn(|cx| timers.poll(cx)).await, ErrorKind::MaxStreamDuration { request_complete: false });
    }

    #[tokio::test(start_paused = true)]
    async fn the_route_timeout_counts_from_the_end_of_the_request() {
        let now = tokio::time::Instant::now();
        let mut timers = Timers::new();
        timers.start_idle(Some(Duration::ZERO), now.into_std());
        tokio::time::advance(Duration::from_secs(5)).await;
        timers.request_complete(Some(Duration::from_secs(1)), now.into_std() + Duration::from_secs(5));
        assert_eq!(poll_fn(|cx| timers.poll(cx)).await, ErrorKind::Timeout);
        assert_eq!(now.elapsed(), Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempts_time_counts_from_the_end_of_the_request_and_not_beyond_the_attempt() {
        let mut timers = Timers::new();
        timers.start_attempt(Some(Duration::from_millis(100)), None, None);
        let early = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| timers.poll(cx))).await;
        assert!(early.is_err(), "the request is not complete");
        timers.request_complete(None, Instant::now());
        assert_eq!(poll_fn(|cx| timers.poll(cx)).await, ErrorKind::PerTryTimeout);
        timers.end_attempt();
        let between = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| timers.poll(cx))).await;
        assert!(between.is_err(), "the back-off has no time-out of an attempt");
        timers.start_attempt(None, None, Some(Duration::from_millis(50)));
        let kind = poll_fn(|cx| timers.poll(cx)).await;
        assert_eq!(kind, ErrorKind::UpstreamMaxStreamDuration { request_complete: true });
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_runs_by_default() {
        let mut timers = Timers::new();
        let never = tokio::time::timeout(Duration::from_secs(86_400), poll_fn(|cx| timers.poll(cx))).await;
        assert!(never.is_err());
    }
}
