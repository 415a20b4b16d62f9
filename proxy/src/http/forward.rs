//! Forwarding: attempts, retries, and the bodies of both directions at once.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::Reason;
use http::{Method, StatusCode};

use super::body::{BodySize, Frame};
use super::exchange::{Exchange, Outcome};
use super::h1::client::ClientConnection;
use super::h2::client::H2Response;
use super::head::{Known, ResponseHead};
use super::pipe::{Pump, PumpError, Sink, Source};
use super::request_body::RequestBody;
use super::responder::Responder;
use super::retry::Retries;
use super::route::{ForwardRoute, Route};
use super::timers::Timers;
use super::upgrade::Tunnel;
use crate::error::{Error, ErrorKind, Retry};
use crate::flags::ResponseFlags;
use crate::upstream::outlier::Outcome as Health;
use crate::upstream::pool::{Http1Lease, Lease, Protocol};
use crate::upstream::{Cluster, Endpoint, PickContext};

/// Forwards a request to the route's cluster and streams the response back.
pub async fn run(
    exchange: &mut Exchange,
    route: &Arc<Route>,
    action: &ForwardRoute,
    body: &mut RequestBody,
    out: &mut Responder,
) -> Outcome {
    let choice = match action.choose(&exchange.request) {
        Ok(choice) => choice,
        Err(kind) => return exchange.fail(body, out, kind).await,
    };
    let cluster = choice.cluster.clone();
    exchange.info.upstream_cluster = Some(cluster.name().clone());
    exchange.cluster = Some(cluster.clone());
    let _request = match cluster.breaker().request() {
        Ok(permit) => permit,
        Err(kind) => return exchange.fail(body, out, kind).await,
    };
    let hash = action.hash(&mut exchange.request, &exchange.info);
    action.apply_request(exchange, route, choice);
    action.send_mirrors(exchange, body);

    let overrides = std::mem::take(&mut exchange.overrides);
    let policy = overrides.retry_policy(action.retry_policy());
    let mut retries = Retries::new(policy.as_deref());
    if retries.needs_replay() {
        body.keep();
    }
    let timeout = overrides.timeout(action.timeout());
    let mut attempt = Attempts {
        exchange,
        route,
        action,
        cluster,
        out,
        body,
        timers: Timers::new(),
        timeout,
        tried: Vec::new(),
        hash,
        subset: &choice.metadata_match,
    };
    attempt.start_timers();
    attempt.run(&mut retries).await
}

/// Writes a body that is there already and ends the message.
pub async fn send_all(sink: &mut Sink, body: Cow<'static, [u8]>) {
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
    route: &'a Arc<Route>,
    action: &'a ForwardRoute,
    cluster: Arc<Cluster>,
    out: &'a mut Responder,
    body: &'a mut RequestBody,
    timers: Timers,
    timeout: Option<std::time::Duration>,
    /// Endpoints that have failed already.
    tried: Vec<Arc<Endpoint>>,
    hash: Option<u64>,
    subset: &'a std::collections::BTreeMap<String, String>,
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
        self.timers.start_idle(self.action.idle_timeout().or(config.stream_idle_timeout), start);
        let max = self.action.max_stream_duration(&self.exchange.request).or(config.max_stream_duration);
        self.timers.start_max_duration(max, start);
        self.timers.start_request(config.request_timeout, start);
        self.note_progress();
    }

    /// Once the request is complete the route's time-out runs.
    fn note_progress(&mut self) {
        if self.body.is_complete() && self.exchange.info.request_end.is_none() {
            self.exchange.note_request_end(self.body);
            self.timers.request_complete(self.timeout, Instant::now());
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
                    if error.retry == Retry::IfReused && stale_repeats > 0 && self.is_replayable() && self.body.restart() {
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
                    let Ok(_permit) = self.cluster.breaker().retry() else {
                        self.exchange.info.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
                        return self.give_up(&error, retries).await;
                    };
                    retries.take();
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
            if let Poll::Ready(kind) = self.poll_gone(cx) {
                return Poll::Ready(Err(Failed::Downstream(kind)));
            }
            sleep.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Whether the caller has gone away; only looked at once it has sent everything.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        if self.body.is_complete() { self.out.poll_closed(cx) } else { Poll::Pending }
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
        let transport = error.source.as_ref().filter(|_| error.kind.carries_transport_failure()).map(ToString::to_string);
        let mut reply = error.kind.reply(transport.as_deref(), retries.any_made());
        if let Some(transport) = transport {
            self.exchange.info.upstream_transport_failure = Some(Rc::from(transport));
        }
        if error.kind == ErrorKind::DownstreamProtocol
            && let Some(source) = &error.source
        {
            reply.details = source.to_string().into();
        }
        self.exchange.reply_on_route(self.body, self.out, reply.into(), self.route).await
    }

    fn pick(&mut self, retries: &Retries<'_>) -> Result<Arc<Endpoint>, Failed> {
        let exclude_attempts = retries.policy().map_or(0, |p| p.host_selection_attempts);
        let context = PickContext { hash: self.hash, exclude: &self.tried, exclude_attempts, subset: self.subset };
        let endpoint =
            self.cluster.pick(&context).map_err(|kind| Failed::Upstream { error: Error::new(kind), head_sent: false })?;
        self.exchange.info.upstream_host = Some(endpoint.host().clone());
        self.exchange.endpoint = Some(endpoint.clone());
        if retries.needs_replay() && exclude_attempts > 0 {
            self.tried.push(endpoint.clone());
        }
        Ok(endpoint)
    }

    /// One attempt, up to the end of the response if there is one.
    async fn attempt(&mut self, retries: &mut Retries<'_>) -> Result<Outcome, Failed> {
        let endpoint = self.pick(retries)?;
        let active = endpoint.begin_request();
        self.action.prepare_attempt(self.exchange, &endpoint);
        let policy = retries.policy();
        self.timers.start_try(policy.and_then(|p| p.per_try_timeout), policy.and_then(|p| p.per_try_idle_timeout), Instant::now());
        let result = self.exchange_with(&endpoint, retries).await;
        drop(active);
        if let Err(Failed::Upstream { error, .. }) = &result {
            self.cluster.report(&endpoint, Health::of_error(error.kind));
        }
        result
    }

    async fn exchange_with(&mut self, endpoint: &Arc<Endpoint>, retries: &mut Retries<'_>) -> Result<Outcome, Failed> {
        let mut lease = self.lease(endpoint).await?;
        self.exchange.info.upstream_start.get_or_insert_with(Instant::now);
        let mut upstream = Upstream::send(&mut lease, self.exchange, self.body.size()).await?;
        let mut upload = Pump::new(self.body.size());
        loop {
            self.await_head(&mut upstream, &mut upload).await?;
            let status = self.exchange.response.status;
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return self.switch(upstream, lease).await;
            }
            if !status.is_informational() {
                break;
            }
            self.out.informational(&self.exchange.response);
        }
        self.exchange.info.response_start = Some(Instant::now());
        self.cluster.report(endpoint, Health::of_response(self.exchange.response.status));
        if retries.covers_response(&self.exchange.response) {
            if retries.exhausted() {
                self.exchange.info.flags |= ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
            } else if self.body.can_restart()
                && let Ok(_permit) = self.cluster.breaker().retry()
            {
                retries.take();
                return Err(Failed::Response);
            }
        }
        self.timers.end_try();
        self.stream_response(&mut upstream, &mut upload).await;
        Ok(Outcome::Done)
    }

    async fn lease(&mut self, endpoint: &Arc<Endpoint>) -> Result<Lease, Failed> {
        let connection = self.exchange.connection.clone();
        let protocol = match self.cluster.config().protocol {
            crate::config::UpstreamProtocol::Http1 => Protocol::Http1,
            crate::config::UpstreamProtocol::Http2 => Protocol::Http2,
            crate::config::UpstreamProtocol::UseDownstream if self.exchange.is_http2() => Protocol::Http2,
            crate::config::UpstreamProtocol::UseDownstream => Protocol::Http1,
        };
        let alpn = connection.manager.filters.alpn.as_ref();
        let get = connection.worker.pool.get(&self.cluster, endpoint, protocol, alpn);
        let mut get = std::pin::pin!(get);
        poll_fn(|cx| {
            if let Poll::Ready(result) = get.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(|error| Failed::Upstream { error, head_sent: false }));
            }
            if let Poll::Ready(kind) = self.timers.poll(cx) {
                return Poll::Ready(Err(self.deadline(kind, false)));
            }
            self.poll_gone(cx).map(|kind| Err(Failed::Downstream(kind)))
        })
        .await
    }

    /// A time-out of one attempt may be repeated; any other deadline ends the request.
    fn deadline(&self, kind: ErrorKind, head_sent: bool) -> Failed {
        if kind == ErrorKind::PerTryTimeout { Failed::Upstream { error: Error::new(kind), head_sent } } else { Failed::Deadline(kind) }
    }

    /// Sends the request body and waits for a response head, whichever comes first.
    async fn await_head(&mut self, upstream: &mut Upstream, upload: &mut Pump) -> Result<(), Failed> {
        poll_fn(|cx| {
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
            Poll::Ready(Err(PumpError::Source(error))) => Poll::Ready(Err(self.request_broken(error))),
            Poll::Ready(Err(PumpError::Sink(_))) => {
                // The upstream stopped reading; it may have answered all the same, and its answer says more than the write error.
                upstream.upload_failed = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn request_broken(&mut self, error: Error) -> Failed {
        match error.kind {
            ErrorKind::DownstreamProtocol => {
                self.exchange.close = true;
                self.exchange.info.details = error.source.as_ref().map(|s| s.to_string().into()).unwrap_or_default();
                Failed::Deadline(error.kind)
            }
            kind => Failed::Downstream(kind),
        }
    }

    async fn switch(&mut self, upstream: Upstream, lease: Lease) -> Result<Outcome, Failed> {
        let refused = || Failed::Upstream { error: Error::new(ErrorKind::UpstreamProtocol), head_sent: true };
        let (Some(client), Responder::Http1 { connection, .. }) = (upstream.http1, &*self.out) else { return Err(refused()) };
        if !self.exchange.wants_upgrade {
            return Err(refused());
        }
        let server = connection.clone();
        self.exchange.connection.clone().manager.finish_upgrade(self.exchange);
        self.exchange.info.response_code = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        if let Ok(mut sink) = self.out.head(&self.exchange.response, BodySize::Empty, false) {
            send_all(&mut sink, Cow::Borrowed(b"")).await;
        }
        let idle = self.action.idle_timeout().or(self.exchange.connection.manager.config.stream_idle_timeout);
        Ok(Outcome::Tunnel(Box::new(Tunnel::new(server, client, lease, idle))))
    }

    /// Sends the response downstream while the rest of the request may still go up.
    async fn stream_response(&mut self, upstream: &mut Upstream, upload: &mut Pump) {
        let (mut source, size) = upstream.take_response(self.exchange.request.method == Method::HEAD);
        self.finish_head();
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
                ErrorKind::DownstreamReset => ErrorKind::DownstreamReset,
                _ => ErrorKind::DownstreamClosed,
            })),
            Some(PumpError::Source(error)) => self.cut_off(&error),
        }
    }

    fn finish_head(&mut self) {
        let exchange = &mut *self.exchange;
        exchange.connection.clone().manager.finish_response(exchange);
        exchange.apply_response_headers(self.route);
        exchange.info.response_code = exchange.response.status.as_u16();
        if exchange.info.details.is_empty() {
            exchange.info.details = Cow::Borrowed("via_upstream");
        }
    }

    /// A response that has begun can only be broken off, so that nobody takes what there is for the whole.
    fn cut_off(&mut self, error: &Error) {
        let reply = error.kind.reply(None, false);
        let info = &mut self.exchange.info;
        info.flags |= error.kind.flag_after_response();
        info.details = match error.kind.reset_reason() {
            Some(reason) => format!("upstream_reset_after_response_started{{{}}}", reason.replace(' ', "_")).into(),
            None => reply.details,
        };
        self.exchange.close = true;
        self.out.abort(Reason::INTERNAL_ERROR);
    }
}

/// Both halves of an attempt.
struct Upstream {
    sink: Sink,
    upload_failed: bool,
    http1: Option<ClientConnection>,
    http2: Option<H2Response>,
    body: Source,
    size: BodySize,
    reused: bool,
}

impl Upstream {
    /// Writes the request head.
    async fn send(lease: &mut Lease, exchange: &mut Exchange, size: BodySize) -> Result<Self, Failed> {
        match lease {
            Lease::Http1(lease) => Ok(Self::send_http1(lease, exchange, size)),
            Lease::Http2(connection, info) => {
                let failed = |error| Failed::Upstream { error, head_sent: false };
                connection.ready().await.map_err(failed)?;
                exchange.info.upstream = Some(info.clone());
                let (out, response) = connection.send(&exchange.request, size.is_empty()).map_err(failed)?;
                Ok(Self {
                    sink: Sink::H2(out, true),
                    upload_failed: false,
                    http1: None,
                    http2: Some(response),
                    body: Source::Empty,
                    size: BodySize::Unknown,
                    reused: false,
                })
            }
        }
    }

    fn send_http1(lease: &Http1Lease, exchange: &mut Exchange, size: BodySize) -> Self {
        let connection = lease.connection();
        exchange.info.upstream = Some(lease.info());
        connection.write_head(&exchange.request, size);
        Self {
            sink: Sink::H1Client(connection.clone()),
            upload_failed: false,
            http1: Some(connection),
            http2: None,
            body: Source::Empty,
            size: BodySize::Unknown,
            reused: lease.reused(),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        if let Some(connection) = &self.http1 {
            let reused = self.reused;
            return connection.poll_head(cx, head).map(|result| match result {
                Ok(start) => {
                    self.size = start.body;
                    Ok(())
                }
                // Nothing of a response and a connection that has served before: it was closed while it was idle.
                Err(error) if reused && error.is_stale() => Err(Error::from(error).retry(Retry::IfReused)),
                Err(error) => Err(error.into()),
            });
        }
        match &mut self.http2 {
            Some(response) => response.poll_head(cx, head),
            None => Poll::Ready(Err(Error::new(ErrorKind::UpstreamClosed))),
        }
    }

    /// The response body, once its head is there.
    fn take_response(&mut self, request_is_head: bool) -> (Source, BodySize) {
        if let Some(connection) = &self.http1 {
            let source = if self.size.is_empty() { Source::Empty } else { Source::H1Client(connection.clone()) };
            return (source, self.size);
        }
        match self.http2.as_mut().and_then(H2Response::take_body) {
            Some(incoming) if incoming.is_end() || request_is_head => (Source::Empty, BodySize::Empty),
            Some(incoming) => (Source::H2(incoming, false), BodySize::Unknown),
            None => (std::mem::replace(&mut self.body, Source::Empty), BodySize::Empty),
        }
    }
}

/// The `content-length` of a head, for framing on HTTP/1.
pub fn content_length(head: &ResponseHead) -> Option<u64> {
    std::str::from_utf8(head.headers.get(Known::ContentLength)?).ok()?.parse().ok()
}
