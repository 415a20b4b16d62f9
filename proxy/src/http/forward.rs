//! Forwarding: attempts, retries, and the bodies of both directions at once.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};

use super::body::{BodySize, Frame};
use super::exchange::{Exchange, Outcome};
use super::forwarding::{Timeouts, set_upstream_service_time};
use super::h2::Reason;
use super::head::{HeaderName, Known, RequestHead, ResponseHead};
use super::pipe::{Pump, PumpError, Sink, Source};
use super::request_body::RequestBody;
use super::responder::Responder;
use super::retry::Retries;
use super::route::{ClusterChoice, ForwardRoute, RouteMatch};
use super::timers::Timers;
use super::upgrade::Tunnel;
use super::upstream::Upstream;
use super::{connect, hash, mirror};
use crate::error::{Error, ErrorKind, Retry, Side};
use crate::flags::ResponseFlags;
use crate::upstream::pool::{Lease, Protocol};
use crate::upstream::{Cluster, Endpoint, Outcome as Health, Permit, PickContext};

/// An endpoint that says so of itself is not used until an active check passes again.
static IMMEDIATE_FAIL: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::new("x-envoy-immediate-health-check-fail"));

/// Forwards a request to the route's cluster and streams the response back.
pub(super) async fn run(
    exchange: &mut Exchange,
    found: RouteMatch<'_>,
    action: &ForwardRoute,
    choice: &ClusterChoice,
    body: &mut RequestBody,
    out: &mut Responder,
) -> Outcome {
    let route = &**found.route;
    let Some(cluster) = choice.cluster.clone() else {
        return exchange.fail(body, out, ErrorKind::NoCluster(503), Some(route)).await;
    };
    let hash = hash::of_request(&action.hash_policy, &exchange.request, &exchange.info);
    let overrides = exchange.overrides.take();
    let wished = overrides.as_deref().and_then(|wish| wish.retry_policy(action.retry.as_deref()));
    let policy = wished.as_ref().or(action.retry.as_deref());
    let timeouts = Timeouts::new(action.timeout, policy.and_then(|policy| policy.per_try_timeout), overrides.as_deref());
    if let Some(expected) = timeouts.expected_ms() {
        let mut text = itoa::Buffer::new();
        exchange.request.headers.set_named(&HeaderName::new("x-envoy-expected-rq-timeout-ms"), text.format(expected).as_bytes());
    }
    if found.virtual_host.include_request_attempt_count {
        exchange.request.headers.set(Known::XEnvoyAttemptCount, b"1");
    }
    route.apply_request(&mut exchange.request, choice, &exchange.info);
    mirror::send(exchange, action, body);
    if exchange.request.method == Method::CONNECT {
        return connect::run(exchange, found, choice, &cluster, body, out).await;
    }
    let mut retries = Retries::new(policy);
    if retries.needs_replay() {
        body.keep();
    }
    let mut attempts = Attempts {
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
        hash,
        retry_permit: None,
        informed: false,
    };
    attempts.start_timers();
    attempts.run(&mut retries).await
}

/// Writes a body that is there already and ends the message.
pub(super) async fn send_all(sink: &mut Sink, body: Cow<'static, [u8]>) {
    let mut next = match body {
        Cow::Borrowed(b"") => None,
        Cow::Borrowed(text) => Some(Bytes::from_static(text)),
        Cow::Owned(text) => Some(Bytes::from(text)),
    };
    let mut pump = Pump::new(if next.is_some() { BodySize::Unknown } else { BodySize::Empty });
    // The caller may be gone; there is nobody left to tell.
    let _ = poll_fn(|cx| pump.poll(cx, sink, |_| Poll::Ready(next.take().map(|data| Ok(Frame::Data(data)))))).await;
}

/// The attempts of one request.
struct Attempts<'a> {
    exchange: &'a mut Exchange,
    found: RouteMatch<'a>,
    action: &'a ForwardRoute,
    choice: &'a ClusterChoice,
    cluster: Arc<Cluster>,
    out: &'a mut Responder,
    body: &'a mut RequestBody,
    timers: Timers,
    timeouts: Timeouts,
    /// Endpoints that have failed already.
    tried: Vec<Arc<Endpoint>>,
    hash: Option<u64>,
    /// Held from the first retry on.
    retry_permit: Option<Permit>,
    /// The caller has had an informational head, after which Envoy repeats nothing.
    informed: bool,
}

/// How an attempt ended that did not send a response downstream.
enum Failed {
    /// The upstream failed before a response.
    Upstream { error: Error, head_sent: bool },
    /// The response is one that the policy wants repeated.
    Response,
    /// The caller failed.
    Downstream(ErrorKind),
    /// A deadline passed that no retry can mend.
    Deadline(ErrorKind),
}

impl Attempts<'_> {
    fn start_timers(&mut self) {
        let config = &self.exchange.connection.manager.config;
        let start = self.exchange.info.start;
        self.timers.start_idle(self.action.idle_timeout.or(config.stream_idle_timeout), start);
        self.timers
            .start_max_duration(max_stream_duration(self.action, &self.exchange.request).or(config.max_stream_duration), start);
        self.timers.start_request(config.request_timeout, start);
        self.note_progress();
    }

    /// Once the request is complete the route's time-out runs.
    fn note_progress(&mut self) {
        if self.body.is_complete() && self.exchange.info.request_end.is_none() {
            self.exchange.note_request_end(self.body);
            if let Some(end) = self.exchange.info.request_end {
                self.timers.request_complete(self.timeouts.request, end);
            }
        }
    }

    async fn run(&mut self, retries: &mut Retries<'_>) -> Outcome {
        // A connection that the upstream closed while it was idle gets one free repeat, if nothing can have been executed.
        let mut stale_repeats = 1;
        loop {
            self.exchange.info.attempts += 1;
            let failed = match self.attempt(retries).await {
                Ok(outcome) => return outcome,
                Err(failed) => failed,
            };
            match failed {
                Failed::Downstream(kind) => return self.downstream_failed(kind),
                Failed::Deadline(kind) => return self.give_up(&Error::new(kind), retries).await,
                Failed::Response => {}
                Failed::Upstream { error, head_sent } => {
                    if self.informed {
                        return self.give_up(&error, retries).await;
                    }
                    if error.side() == Side::Upstream {
                        self.body.prefetch().await;
                    }
                    if stale_repeats > 0 && self.may_repeat_unasked(&error) && self.body.restart() {
                        stale_repeats -= 1;
                        continue;
                    }
                    if !retries.covers_failure(error.kind, head_sent) {
                        return self.give_up(&error, retries).await;
                    }
                    if retries.exhausted() {
                        self.exchange.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
                        return self.give_up(&error, retries).await;
                    }
                    if !self.body.can_restart() {
                        return self.give_up(&error, retries).await;
                    }
                    if !self.may_retry(retries) {
                        self.exchange.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
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
        }
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

    async fn back_off(&mut self, retries: &Retries<'_>) -> Result<(), Failed> {
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
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
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
        let reply = self.exchange.local_reply(reply);
        self.exchange.reply(self.body, self.out, reply, Some(&**self.found.route)).await
    }

    fn pick(&mut self, retries: &Retries<'_>) -> Result<Arc<Endpoint>, Failed> {
        let exclude_attempts = retries.policy().map_or(0, |p| p.host_selection_attempts);
        let context = PickContext {
            hash: self.hash,
            subset: Some(&self.choice.metadata_match),
            attempt: self.exchange.info.attempts - 1,
            exclude: &self.tried,
            exclude_attempts,
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

    /// One attempt, up to the end of the response if there is one.
    async fn attempt(&mut self, retries: &mut Retries<'_>) -> Result<Outcome, Failed> {
        let endpoint = self.pick(retries)?;
        let _active = endpoint.start_request();
        self.action.apply_endpoint_host(&mut self.exchange.request, endpoint.hostname());
        if self.exchange.info.attempts > 1 && self.found.virtual_host.include_request_attempt_count {
            let mut text = itoa::Buffer::new();
            let count = text.format(self.exchange.info.attempts).as_bytes();
            self.exchange.request.headers.set(Known::XEnvoyAttemptCount, count);
        }
        let idle = retries.policy().and_then(|policy| policy.per_try_idle_timeout);
        self.timers.start_try(self.timeouts.per_try, idle);
        let result = self.exchange_with(&endpoint, retries).await;
        match &result {
            Err(Failed::Upstream { error, .. }) if error.side() == Side::Upstream => {
                self.cluster.report(&endpoint, health_of(error.kind));
            }
            Err(Failed::Deadline(ErrorKind::Timeout)) => self.cluster.report(&endpoint, Health::LocalOriginTimeout),
            _ => {}
        }
        result
    }

    async fn exchange_with(&mut self, endpoint: &Arc<Endpoint>, retries: &mut Retries<'_>) -> Result<Outcome, Failed> {
        let mut lease = self.lease(endpoint).await?;
        // Envoy counts a request once it has its connection.
        let _request = self.cluster.breakers().requests.acquire().map_err(|kind| {
            self.cluster.metrics(self.exchange.connection.worker.metrics()).pending_overflow.increment(1);
            Failed::Upstream { error: Error::new(kind), head_sent: false }
        })?;
        self.exchange.info.upstream_start.get_or_insert_with(Instant::now);
        self.exchange.info.upstream = Some(lease.info());
        let sent = Upstream::send(&mut lease, &self.exchange.request, self.body.size()).await;
        let mut upstream = sent.map_err(|error| Failed::Upstream { error, head_sent: false })?;
        let mut upload = Pump::new(self.body.size());
        loop {
            self.await_head(&mut upstream, &mut upload).await?;
            let status = self.exchange.response.status;
            if status == StatusCode::SWITCHING_PROTOCOLS {
                drop(upstream);
                return self.switch(lease).await;
            }
            if !status.is_informational() {
                break;
            }
            self.out.informational(&self.exchange.response);
            self.informed = true;
        }
        self.exchange.info.response_start = Some(Instant::now());
        self.cluster.report(endpoint, Health::Response(health_status(&self.exchange.response)));
        if endpoint.is_actively_checked() && self.exchange.response.headers.find(&IMMEDIATE_FAIL).is_some() {
            self.cluster.fail_immediately(endpoint);
        }
        if !self.informed && retries.covers_response(&self.exchange.response) {
            if retries.exhausted() {
                self.exchange.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
            } else if self.body.can_restart() {
                if self.may_retry(retries) {
                    return Err(Failed::Response);
                }
                self.exchange.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
            }
        }
        self.timers.end_try();
        self.stream_response(&mut upstream, &mut upload).await;
        Ok(Outcome::Done)
    }

    async fn lease(&mut self, endpoint: &Arc<Endpoint>) -> Result<Lease, Failed> {
        let connection = self.exchange.connection.clone();
        let protocol = Protocol::of(self.cluster.current().config().protocol, self.exchange.request.version);
        let alpn = connection.manager.filters.alpn.as_ref();
        let cluster = self.cluster.clone();
        let get = connection.worker.pool.get(&cluster, endpoint, protocol, alpn);
        let mut get = std::pin::pin!(get);
        poll_fn(|cx| {
            if let Poll::Ready(result) = get.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(|error| {
                    if error.kind == ErrorKind::Overflow {
                        // Envoy has no host before there is a place to wait for one.
                        self.exchange.info.upstream_host = None;
                    }
                    Failed::Upstream { error, head_sent: false }
                }));
            }
            self.body.poll_prefetch(cx);
            self.note_progress();
            if let Poll::Ready(kind) = self.timers.poll(cx) {
                return Poll::Ready(Err(self.deadline(kind, false)));
            }
            self.poll_gone(cx).map(|kind| Err(Failed::Downstream(kind)))
        })
        .await
    }

    /// A time-out of one attempt may be repeated; any other deadline ends the request.
    fn deadline(&self, kind: ErrorKind, head_sent: bool) -> Failed {
        if kind == ErrorKind::PerTryTimeout {
            Failed::Upstream { error: Error::new(kind), head_sent }
        } else {
            Failed::Deadline(kind)
        }
    }

    /// Sends the request body and waits for a response head, whichever comes first. An informational head that was written
    /// before leaves now: a caller that expects `100 Continue` sends nothing until it has it.
    async fn await_head(&mut self, upstream: &mut Upstream, upload: &mut Pump) -> Result<(), Failed> {
        poll_fn(|cx| {
            if self.informed {
                let _ = self.out.poll_flush(cx);
            }
            if let Poll::Ready(Err(failed)) = self.poll_upload(cx, upstream, upload) {
                return Poll::Ready(Err(failed));
            }
            if let Poll::Ready(result) = upstream.poll_head(cx, &mut self.exchange.response) {
                return Poll::Ready(result.map_err(|error| Failed::Upstream { error, head_sent: true }));
            }
            if let Poll::Ready(kind) = self.timers.poll(cx) {
                return Poll::Ready(Err(self.deadline(kind, true)));
            }
            self.poll_gone(cx).map(|kind| Err(Failed::Downstream(kind)))
        })
        .await
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>, upstream: &mut Upstream, upload: &mut Pump) -> Poll<Result<(), Failed>> {
        if upload.done() || upstream.upload_failed {
            return Poll::Ready(Ok(()));
        }
        let before = upload.bytes;
        let polled = upload.poll(cx, &mut upstream.sink, |cx| self.body.poll_frame(cx));
        if upload.bytes != before {
            self.timers.touch();
        }
        self.note_progress();
        match polled {
            Poll::Ready(Err(PumpError::Source(error))) => Poll::Ready(Err(self.request_broken(&error))),
            Poll::Ready(Err(PumpError::Sink(_))) => {
                // The upstream stopped reading; it may have answered all the same, and its answer says more than the write error.
                upstream.upload_failed = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn request_broken(&mut self, error: &Error) -> Failed {
        match error.kind {
            ErrorKind::DownstreamProtocol | ErrorKind::DownstreamTooLarge => {
                self.exchange.close = true;
                // What had been sent of the request is thrown away with its connection, which the log therefore leaves out.
                self.exchange.info.upstream = None;
                self.exchange.info.details = error.source.as_ref().map(|s| s.to_string().into()).unwrap_or_default();
                Failed::Deadline(error.kind)
            }
            kind => Failed::Downstream(kind),
        }
    }

    /// The upstream agreed to an upgrade: both connections become a tunnel.
    async fn switch(&mut self, lease: Lease) -> Result<Outcome, Failed> {
        let unasked = || Failed::Upstream { error: Error::new(ErrorKind::UpstreamProtocol), head_sent: true };
        let Lease::Http1(lease) = lease else { return Err(unasked()) };
        if self.out.is_multiplexed() || !self.exchange.wants_upgrade {
            return Err(unasked());
        }
        self.finish_head();
        self.exchange.info.bytes_received = self.body.received();
        if let Ok(mut sink) = self.out.head(&self.exchange.response, BodySize::Empty, false) {
            send_all(&mut sink, Cow::Borrowed(b"")).await;
        }
        let idle = self.action.idle_timeout.or(self.exchange.connection.manager.config.stream_idle_timeout);
        Ok(Outcome::Tunnel(Box::new(Tunnel::upgraded(lease, idle))))
    }

    /// Sends the response downstream while the rest of the request may still go up.
    async fn stream_response(&mut self, upstream: &mut Upstream, upload: &mut Pump) {
        let (mut source, mut size) =
            upstream.take_response(self.exchange.request.method == Method::HEAD, &self.exchange.response);
        let refused = self.exchange.refuse_handshake();
        if refused {
            (source, size) = (Source::Empty, BodySize::Known(0));
        }
        self.finish_head();
        if refused {
            self.exchange.info.details = Cow::Borrowed("websocket_handshake_unsuccessful");
        }
        let close = self.exchange.must_close(self.body, self.out);
        let mut download = Pump::new(size);
        let failure = match self.out.head(&self.exchange.response, size, close) {
            Ok(mut sink) => {
                poll_fn(|cx| {
                    let _ = self.poll_upload(cx, upstream, upload);
                    let before = download.bytes;
                    let polled = download.poll(cx, &mut sink, |cx| source.poll_frame(cx));
                    if download.bytes != before {
                        self.timers.touch();
                    }
                    match polled {
                        Poll::Ready(result) => Poll::Ready(result.err()),
                        // On HTTP/2 the sink itself notices a reset.
                        Poll::Pending if !self.out.is_multiplexed() && self.poll_gone(cx).is_ready() => {
                            Poll::Ready(Some(PumpError::Sink(Error::new(ErrorKind::DownstreamClosed))))
                        }
                        Poll::Pending => self.timers.poll(cx).map(|kind| Some(PumpError::Source(Error::new(kind)))),
                    }
                })
                .await
            }
            Err(error) => Some(PumpError::Sink(error)),
        };
        self.exchange.info.bytes_sent = download.bytes;
        self.exchange.info.bytes_received = self.body.received();
        self.exchange.trailers = download.trailers.take();
        match failure {
            None => self.exchange.info.response_end = Some(Instant::now()),
            Some(PumpError::Sink(error)) => self.cut_off(&Error::new(match error.kind {
                kind @ (ErrorKind::DownstreamReset | ErrorKind::DownstreamViolation(_)) => kind,
                _ => ErrorKind::DownstreamClosed,
            })),
            Some(PumpError::Source(error)) => self.cut_off(&error),
        }
    }

    fn finish_head(&mut self) {
        let exchange = &mut *self.exchange;
        // Envoy leaves the time out where there is none to tell: of upgrades, and of answers that came before the request's end.
        let told = !exchange.wants_upgrade && !exchange.connection.manager.config.suppress_envoy_headers;
        if let (Some(end), Some(start), true) = (exchange.info.request_end, exchange.info.response_start, told) {
            set_upstream_service_time(&mut exchange.response, start.duration_since(end));
        }
        let (route, choice) = (&**self.found.route, Some(self.choice));
        route.apply_response(&mut exchange.response, Some(&exchange.request), choice, &exchange.info);
        if self.found.virtual_host.include_attempt_count_in_response {
            let mut text = itoa::Buffer::new();
            exchange.response.headers.set(Known::XEnvoyAttemptCount, text.format(exchange.info.attempts).as_bytes());
        }
        exchange.connection.clone().manager.finish_response(exchange, Some(route));
        exchange.info.response_code = exchange.response.status.as_u16();
        exchange.info.details = Cow::Borrowed("via_upstream");
    }

    /// A response that has begun can only be broken off, so that nobody takes what there is for the whole.
    fn cut_off(&mut self, error: &Error) {
        let reply = error.kind.reply(None, false);
        let info = &mut self.exchange.info;
        info.flags |= reply.flag;
        info.details = match error.kind.reset_reason() {
            Some(reason) => format!("upstream_reset_after_response_started{{{}}}", reason.replace(' ', "_")).into(),
            None => reply.details,
        };
        self.exchange.close = true;
        self.out.abort(Reason::INTERNAL_ERROR);
    }
}

/// What outlier detection makes of a failure.
pub(super) fn health_of(kind: ErrorKind) -> Health {
    match kind {
        ErrorKind::ConnectTimeout | ErrorKind::Timeout | ErrorKind::PerTryTimeout => Health::LocalOriginTimeout,
        _ => Health::LocalOriginFailure,
    }
}

/// The status that outlier detection counts: a gRPC failure in the head counts as the HTTP status it stands for.
pub(super) fn health_status(head: &ResponseHead) -> u16 {
    let grpc = head.headers.get(Known::GrpcStatus).and_then(|status| std::str::from_utf8(status).ok()?.parse::<u16>().ok());
    match grpc {
        Some(0) | None => head.status.as_u16(),
        Some(12) => 501,
        Some(14) => 503,
        Some(4) => 504,
        Some(2 | 13 | 15) => 500,
        Some(_) => head.status.as_u16(),
    }
}

/// The route's limit on a stream's life; where it says so, `grpc-timeout` up to that limit.
fn max_stream_duration(action: &ForwardRoute, request: &RequestHead) -> Option<Duration> {
    let Some(max) = action.grpc_timeout_header_max else { return action.max_stream_duration };
    let asked = request.headers.get(Known::GrpcTimeout).and_then(grpc_timeout);
    match asked {
        Some(asked) if max.is_zero() => Some(asked),
        Some(asked) => Some(asked.min(max)),
        None => action.max_stream_duration,
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let number: u64 =
        std::str::from_utf8(digits).ok().filter(|d| d.len() <= 8 && d.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}
