//! One attempt: an endpoint, a connection, the request up and the response head down.

use std::future::poll_fn;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;

use http::StatusCode;

use super::attempts::{Attempts, Failed};
use crate::error::{Error, ErrorKind, Side};
use crate::http::exchange::Outcome;
use crate::http::head::{HeaderName, Known, ResponseHead};
use crate::http::pipe::{Pump, PumpError};
use crate::http::retry::Retries;
use crate::http::upstream::Upstream;
use crate::upstream::pool::{Lease, Protocol};
use crate::upstream::{Endpoint, Outcome as Health};

/// An endpoint that says so of itself is not used until an active check passes again.
static IMMEDIATE_FAIL: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::new("x-envoy-immediate-health-check-fail"));

impl Attempts<'_> {
    /// One attempt, up to the end of the response if there is one.
    pub(super) async fn attempt(&mut self, retries: &mut Retries<'_>) -> Result<Outcome, Failed> {
        let endpoint = self.pick(retries)?;
        let _active = endpoint.start_request();
        let keep_original = !self.exchange.connection.manager.config.suppress_envoy_headers;
        self.action.apply_endpoint_host(&mut self.exchange.request, endpoint.hostname(), keep_original);
        self.exchange.start_attempt_span();
        let result = self.exchange_with(&endpoint, retries).await;
        self.exchange.finish_attempt_span(match &result {
            Ok(_) | Err(Failed::Response) => None,
            Err(Failed::Upstream { error, .. }) => Some(error.kind),
            Err(Failed::Downstream(kind) | Failed::Deadline(kind)) => Some(*kind),
        });
        match &result {
            // That a stream lives too long says nothing about the endpoint.
            Err(Failed::Upstream { error, .. }) if matches!(error.kind, ErrorKind::UpstreamMaxStreamDuration { .. }) => {}
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
        self.note_connected();
        self.exchange.info.upstream = Some(lease.info());
        let sent = Upstream::send(&mut lease, &self.exchange.request, self.body.size()).await;
        let mut upstream = sent.map_err(|error| Failed::Upstream { error, head_sent: false })?;
        let mut upload =
            if upstream.awaits_tunnel() { Pump::idle() } else { Pump::new(self.body.size()).counting(self.exchange.is_grpc()) };
        loop {
            self.await_head(&mut upstream, &mut upload).await?;
            let status = self.exchange.response.status;
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return self.switch(lease, upstream).await;
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
        if self.wants_other_response(retries) {
            return Err(Failed::Response);
        }
        self.timers.response_started();
        self.stream_response(&mut upstream, &mut upload).await;
        Ok(Outcome::Done)
    }

    async fn lease(&mut self, endpoint: &Arc<Endpoint>) -> Result<Lease, Failed> {
        let connection = self.exchange.connection.clone();
        let (protocol, caller) = {
            let current = self.cluster.current();
            let is_told = current.config().proxy_protocol.is_some();
            let caller = is_told.then_some((connection.info.remote, connection.info.local));
            (Protocol::of(current.config().protocol, self.exchange.request.version), caller)
        };
        let alpn = connection.manager.filters.alpn.as_ref();
        let (cluster, host) = (self.cluster.clone(), self.host.clone());
        let get = connection.worker.pool.get(&cluster, endpoint, protocol, alpn, host.as_deref(), caller);
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
                return Poll::Ready(Err(deadline(kind, false)));
            }
            self.poll_gone(cx).map(|kind| Err(Failed::Downstream(kind)))
        })
        .await
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
                return Poll::Ready(Err(deadline(kind, true)));
            }
            self.poll_gone(cx).map(|kind| Err(Failed::Downstream(kind)))
        })
        .await
    }

    pub(super) fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Upstream,
        upload: &mut Pump,
    ) -> Poll<Result<(), Failed>> {
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
}

/// A time-out of one attempt may be repeated; any other deadline ends the request.
fn deadline(kind: ErrorKind, head_sent: bool) -> Failed {
    if kind.is_of_attempt() { Failed::Upstream { error: Error::new(kind), head_sent } } else { Failed::Deadline(kind) }
}

/// What outlier detection makes of a failure.
pub(in crate::http) fn health_of(kind: ErrorKind) -> Health {
    match kind {
        ErrorKind::ConnectTimeout | ErrorKind::Timeout | ErrorKind::PerTryTimeout | ErrorKind::PerTryIdleTimeout => {
            Health::LocalOriginTimeout
        }
        _ => Health::LocalOriginFailure,
    }
}

/// The status that outlier detection counts: a gRPC failure in the head counts as the HTTP status it stands for.
pub(in crate::http) fn health_status(head: &ResponseHead) -> u16 {
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
