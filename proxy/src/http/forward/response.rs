//! The way back: the response head and body, upgrades, and responses that break off.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use http::Method;

use super::attempts::{Attempts, Failed};
use crate::error::{Error, ErrorKind};
use crate::http::body::BodySize;
use crate::http::exchange::Outcome;
use crate::http::forwarding::set_upstream_service_time;
use crate::http::h2::Reason;
use crate::http::head::Known;
use crate::http::pipe::{Pump, PumpError, Source};
use crate::http::upgrade::Tunnel;
use crate::http::upstream::Upstream;
use crate::upstream::pool::Lease;

impl Attempts<'_> {
    /// The upstream agreed to an upgrade: both connections become a tunnel.
    pub(super) async fn switch(&mut self, lease: Lease, upstream: Upstream) -> Result<Outcome, Failed> {
        let unasked = || Failed::Upstream { error: Error::new(ErrorKind::UpstreamProtocol), head_sent: true };
        if !self.exchange.wants_upgrade {
            return Err(unasked());
        }
        let idle = self.action.idle_timeout.or(self.exchange.connection.manager.config.stream_idle_timeout);
        let tunnel = match lease {
            Lease::Http1(lease) => {
                drop(upstream);
                Tunnel::upgraded(lease, idle)
            }
            Lease::Own(..) => return Err(unasked()),
            Lease::Http2(..) => Tunnel::over_stream(upstream.into_tunnel().ok_or_else(unasked)?, idle),
        };
        self.finish_head();
        self.exchange.info.bytes_received = self.body.received();
        self.out.switch(&self.exchange.response).await;
        Ok(Outcome::Tunnel(Box::new(tunnel)))
    }

    /// Sends the response downstream while the rest of the request may still go up.
    pub(super) async fn stream_response(&mut self, upstream: &mut Upstream, upload: &mut Pump) {
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
        let mut download = Pump::new(size).counting(self.exchange.is_grpc());
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
        self.exchange.grpc_messages = (upload.messages(), download.messages());
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

    /// Envoy's order: the number of attempts, the time that the upstream took, what the route wants, what every response gets.
    fn finish_head(&mut self) {
        let exchange = &mut *self.exchange;
        let connection = exchange.connection.clone();
        if self.found.virtual_host.include_attempt_count_in_response {
            let mut text = itoa::Buffer::new();
            exchange.response.headers.set(Known::XEnvoyAttemptCount, text.format(exchange.info.attempts).as_bytes());
        }
        // Left out where there is none to tell: of upgrades, and of answers that came before the request's end.
        let told = !exchange.wants_upgrade && !connection.manager.config.suppress_envoy_headers;
        if let (Some(end), Some(start), true) = (exchange.info.request_end, exchange.info.response_start, told) {
            set_upstream_service_time(&mut exchange.response, start.duration_since(end));
        }
        for cookie in &self.hashed.cookies {
            exchange.response.headers.push_known(Known::SetCookie, cookie.as_bytes());
        }
        // The mutations see the status that is sent.
        exchange.info.response_code = exchange.response.status.as_u16();
        exchange.info.details = Cow::Borrowed("via_upstream");
        let route = &**self.found.route;
        route.apply_response(&mut exchange.response, &exchange.request, exchange.choice_mutations.as_deref(), &exchange.info);
        connection.manager.finish_response(exchange, Some(route));
        exchange.info.response_code = exchange.response.status.as_u16();
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
