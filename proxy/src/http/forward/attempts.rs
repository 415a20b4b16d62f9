//! The attempts of one request: what is tried again, and how a request ends that nobody answered.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::timeouts::Timeouts;
use crate::error::{Error, ErrorKind, Retry, Side};
use crate::flags::ResponseFlags;
use crate::http::exchange::{Exchange, Outcome};
use crate::http::h2::Reason;
use crate::http::hash::Hashed;
use crate::http::head::{HeaderName, Known};
use crate::http::request_body::RequestBody;
use crate::http::responder::Responder;
use crate::http::retry::Retries;
use crate::http::route::{ClusterChoice, ForwardRoute, RouteMatch};
use crate::http::timers::Timers;
use crate::upstream::{Cluster, Endpoint, Permit, PickContext, PreviousPriorities};

/// The attempts of one request.
pub(super) struct Attempts<'a> {
    pub(super) exchange: &'a mut Exchange,
    pub(super) found: RouteMatch<'a>,
    pub(super) action: &'a ForwardRoute,
    pub(super) choice: &'a ClusterChoice,
    pub(super) cluster: Arc<Cluster>,
    pub(super) out: &'a mut Responder,
    pub(super) body: &'a mut RequestBody,
    pub(super) timers: Timers,
    pub(super) timeouts: Timeouts,
    /// Endpoints that have failed already.
    tried: Vec<Arc<Endpoint>>,
    /// Their priorities, where retries leave these alone.
    previous_priorities: Option<PreviousPriorities>,
    pub(super) hashed: Hashed,
    /// What the caller asked for, where the cluster's TLS wants to know it.
    pub(super) host: Option<Rc<str>>,
    /// Held from the first retry on.
    retry_permit: Option<Permit>,
    /// The caller has had an informational head, after which Envoy repeats nothing.
    pub(super) informed: bool,
}

/// How an attempt ended that did not send a response downstream.
pub(super) enum Failed {
    /// The upstream failed before a response.
    Upstream { error: Error, head_sent: bool },
    /// The response is one that the policy wants repeated.
    Response,
    /// The caller failed.
    Downstream(ErrorKind),
    /// A deadline passed that no retry can mend.
    Deadline(ErrorKind),
}

impl<'a> Attempts<'a> {
    #[expect(clippy::too_many_arguments, reason = "they are the fields")]
    pub(super) fn new(
        exchange: &'a mut Exchange,
        found: RouteMatch<'a>,
        action: &'a ForwardRoute,
        choice: &'a ClusterChoice,
        cluster: Arc<Cluster>,
        body: &'a mut RequestBody,
        out: &'a mut Responder,
        timeouts: Timeouts,
        hashed: Hashed,
        host: Option<Rc<str>>,
    ) -> Self {
        Self {
            exchange,
            found,
            action,
            choice,
            cluster,
            out,
            body,
            timers: Timers::new(),
            timeouts,
            tried: Vec::new(),
            previous_priorities: None,
            hashed,
            host,
            retry_permit: None,
            informed: false,
        }
    }

    /// `stream`: the life of the stream, where it is limited.
    pub(super) fn start_timers(&mut self, stream: Option<Duration>) {
        let config = &self.exchange.connection.manager.config;
        let start = self.exchange.info.start;
        self.timers.start_idle(self.action.idle_timeout.or(config.stream_idle_timeout), start);
        self.timers.start_max_duration(stream, start);
        self.timers.start_request(config.request_timeout, start);
        self.note_progress();
    }

    /// Once the request is complete the route's time-out runs.
    pub(super) fn note_progress(&mut self) {
        if self.body.is_complete() && self.exchange.info.request_end.is_none() {
            self.exchange.note_request_end(self.body);
        }
        if let Some(end) = self.exchange.info.request_end {
            self.timers.request_complete(self.timeouts.request, end);
        }
    }

    pub(super) async fn run(&mut self, retries: &mut Retries<'_>) -> Outcome {
        // A connection that the upstream closed while it was idle gets one free repeat, if nothing can have been executed.
        let mut stale_repeats = 1;
        loop {
            let failed = match self.attempt(retries).await {
                Ok(outcome) => return outcome,
                Err(failed) => failed,
            };
            self.timers.end_attempt();
            let timed_out = matches!(&failed, Failed::Upstream { error, .. } if error.kind.is_try_timeout());
            match failed {
                Failed::Downstream(kind) => return self.downstream_failed(kind),
                Failed::Deadline(kind) => return self.give_up(&Error::new(kind), retries).await,
                Failed::Response => {}
                Failed::Upstream { error, head_sent } => {
                    if !self.informed && error.side() == Side::Upstream {
                        self.body.prefetch().await;
                        if stale_repeats > 0 && self.may_repeat_unasked(&error) && self.body.restart() {
                            stale_repeats -= 1;
                            self.prepare_retry(false);
                            continue;
                        }
                    }
                    if !self.wants_retry(&error, head_sent, retries) {
                        return self.give_up(&error, retries).await;
                    }
                }
            }
            self.body.restart();
            if let Err(failed) = self.back_off(retries).await {
                return match failed {
                    Failed::Downstream(kind) => self.downstream_failed(kind),
                    Failed::Deadline(kind) => self.give_up(&Error::new(kind), retries).await,
                    Failed::Upstream { error, .. } => self.give_up(&error, retries).await,
                    Failed::Response => Outcome::Done,
                };
            }
            self.note_priority(retries);
            self.prepare_retry(timed_out);
        }
    }

    fn note_priority(&mut self, retries: &Retries<'_>) {
        if let Some(frequency) = retries.policy().and_then(|policy| policy.previous_priorities)
            && let Some(endpoint) = &self.exchange.endpoint
        {
            self.previous_priorities.get_or_insert_with(|| PreviousPriorities::new(frequency)).add(endpoint);
        }
    }

    /// Whether a failure is followed by another attempt; takes one when it is.
    fn wants_retry(&mut self, error: &Error, head_sent: bool, retries: &mut Retries<'_>) -> bool {
        if self.informed || !retries.covers_failure(error.kind, head_sent) {
            return false;
        }
        if retries.exhausted() {
            self.exchange.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
            return false;
        }
        if !self.body.can_restart() {
            return false;
        }
        let granted = self.may_retry(retries);
        if !granted {
            self.exchange.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
        }
        granted
    }

    /// Whether the response that has come is followed by another attempt; takes one when it is.
    pub(super) fn wants_other_response(&mut self, retries: &mut Retries<'_>) -> bool {
        if self.informed || !retries.covers_response(&self.exchange.response) {
            return false;
        }
        if retries.exhausted() {
            self.exchange.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
            return false;
        }
        if !self.body.can_restart() {
            return false;
        }
        let granted = self.may_retry(retries);
        if granted {
            retries.learn_reset(&self.exchange.response);
        } else {
            self.exchange.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
        }
        granted
    }

    /// Takes one retry, if the cluster's limit of retries in flight allows. It counts until the request is done.
    fn may_retry(&mut self, retries: &mut Retries<'_>) -> bool {
        if self.retry_permit.is_none() {
            self.retry_permit = self.cluster.breakers().acquire_retry().ok();
        }
        let metrics = self.cluster.metrics(self.exchange.connection.worker.metrics());
        if self.retry_permit.is_none() || !retries.take() {
            metrics.retry_overflow.increment(1);
            return false;
        }
        metrics.retries.increment(1);
        true
    }

    /// What the headers say of the attempt that comes.
    fn prepare_retry(&mut self, timed_out: bool) {
        self.exchange.info.attempts += 1;
        let config = &self.exchange.connection.manager.config;
        let headers = &mut self.exchange.request.headers;
        if self.found.virtual_host.include_request_attempt_count {
            headers.set(Known::XEnvoyAttemptCount, itoa::Buffer::new().format(self.exchange.info.attempts).as_bytes());
        }
        if self.found.virtual_host.include_is_timeout_retry {
            let value: &[u8] = if timed_out { b"true" } else { b"false" };
            headers.set_named(&HeaderName::new("x-envoy-is-timeout-retry"), value);
        }
        let elapsed = self.exchange.info.request_end.map_or(Duration::ZERO, |end| end.elapsed());
        self.timeouts.announce(&mut self.exchange.request, elapsed, config.suppress_envoy_headers);
    }

    /// Whether a failure on a connection that had served before may be mended by another attempt, whatever the policy says.
    /// That no connection could be made is not such a failure: it is the policy's business.
    fn may_repeat_unasked(&self, error: &Error) -> bool {
        match error.retry {
            Retry::No => false,
            Retry::IfReused => self.is_replayable(),
            Retry::Yes => !matches!(error.kind, ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout | ErrorKind::TlsFailure),
        }
    }

    /// Safe methods without a body may be sent again unasked (RFC 9110 §9.2.2).
    fn is_replayable(&self) -> bool {
        matches!(self.exchange.request.method, Method::GET | Method::HEAD | Method::OPTIONS) && self.body.size().is_empty()
    }

    async fn back_off(&mut self, retries: &mut Retries<'_>) -> Result<(), Failed> {
        let pause = retries.back_off();
        if pause.is_zero() {
            return Ok(());
        }
        let mut sleep = std::pin::pin!(tokio::time::sleep(pause));
        poll_fn(|cx| {
            if let Poll::Ready(kind) = self.timers.poll(cx) {
                return Poll::Ready(Err(Failed::Deadline(kind)));
            }
            self.body.poll_prefetch(cx);
            if let Poll::Ready(kind) = self.poll_gone(cx) {
                return Poll::Ready(Err(Failed::Downstream(kind)));
            }
            sleep.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Whether the caller has gone away; only looked at once it has sent everything.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        if self.body.is_complete() || self.out.is_multiplexed() { self.out.poll_closed(cx) } else { Poll::Pending }
    }

    fn downstream_failed(&mut self, kind: ErrorKind) -> Outcome {
        let reply = kind.reply(None, false);
        self.exchange.info.flags |= reply.flag;
        self.exchange.info.details = reply.details;
        self.exchange.info.bytes_received = self.body.received();
        self.exchange.close = true;
        self.out.abort(Reason::CANCEL);
        Outcome::Done
    }

    async fn give_up(&mut self, error: &Error, retries: &Retries<'_>) -> Outcome {
        let told = matches!(error.kind, ErrorKind::ConnectFailure | ErrorKind::TlsFailure);
        let transport = error.source.as_ref().filter(|_| told).map(ToString::to_string);
        let mut reply = error.kind.reply(transport.as_deref(), retries.any_made());
        if let Some(transport) = transport {
            self.exchange.info.upstream_transport_failure = Some(Rc::from(transport));
        }
        if error.kind == ErrorKind::DownstreamProtocol
            && let Some(source) = &error.source
        {
            reply.details = source.to_string().into();
        }
        if self.informed && error.kind.reset_reason().is_some() {
            reply.details = reply.details.replacen("before_response_started", "after_response_started", 1).into();
        }
        let mut reply = self.exchange.local_reply(reply);
        if self.timeouts.alt_response && error.kind.is_upstream_timeout() {
            reply.status = StatusCode::NO_CONTENT;
            reply.body = (&b""[..]).into();
        }
        if self.found.virtual_host.include_attempt_count_in_response {
            let mut text = itoa::Buffer::new();
            reply.headers.set(Known::XEnvoyAttemptCount, text.format(self.exchange.info.attempts).as_bytes());
        }
        self.exchange.reply(self.body, self.out, reply, Some(&**self.found.route)).await
    }

    pub(super) fn pick(&mut self, retries: &Retries<'_>) -> Result<Arc<Endpoint>, Failed> {
        let exclude_attempts = retries.policy().map_or(0, |p| p.host_selection_attempts);
        let context = PickContext {
            hash: self.hashed.hash,
            subset: Some(&self.choice.metadata_match),
            attempt: self.exchange.info.attempts - 1,
            exclude: &self.tried,
            exclude_attempts,
            previous_priorities: self.previous_priorities.as_ref(),
        };
        let endpoint = self.cluster.pick(&context).map_err(|kind| {
            if matches!(kind, ErrorKind::DropOverload { .. }) {
                self.cluster.metrics(self.exchange.connection.worker.metrics()).drop_overload.increment(1);
            }
            Failed::Upstream { error: Error::new(kind), head_sent: false }
        })?;
        self.exchange.info.upstream_host = Some(endpoint.host().clone());
        self.exchange.info.upstream = None;
        self.exchange.endpoint = Some(endpoint.clone());
        if retries.needs_replay() && exclude_attempts > 0 {
            self.tried.push(endpoint.clone());
        }
        Ok(endpoint)
    }

    /// When the attempt that has its connection began.
    pub(super) fn note_connected(&mut self) {
        self.exchange.info.upstream_start.get_or_insert_with(Instant::now);
        let cluster = self.cluster.current();
        let life = self.timeouts.upstream_stream.or(cluster.config().http.max_stream_duration);
        self.timers.start_attempt(self.timeouts.per_try, self.timeouts.per_try_idle, life);
    }
}
