//! The spans of an exchange: begun, told to the next hop, ended.

use super::exchange::Exchange;
use super::head::Version;
use super::route::Route;
use crate::error::ErrorKind;
use crate::telemetry::trace::{AttemptEnd, DECORATOR};
use crate::upstream::pool::Protocol;

impl Exchange {
    /// Begins the request's span, if requests have some here.
    pub(super) fn start_span(&mut self, route: Option<&Route>) {
        let connection = self.connection.clone();
        let Some(tracer) = &connection.manager.tracer else { return };
        let decorator = route.and_then(|route| route.decorator.as_ref());
        self.span = tracer.start(&mut self.request, decorator, self.info.start_time);
        self.info.trace = self.span.as_ref().map(|span| span.ids());
    }

    /// Tells the next hop of the request's span.
    pub(super) fn inject_span(&mut self) {
        if let (Some(tracer), Some(span)) = (&self.connection.manager.tracer, &self.span) {
            tracer.inject(span, &mut self.request);
        }
    }

    /// Begins the span of an attempt, if attempts have some, and tells the next hop of it.
    pub(super) fn start_attempt_span(&mut self) {
        let connection = self.connection.clone();
        let Some(tracer) = connection.manager.tracer.as_ref().filter(|tracer| tracer.spawns_upstream_spans()) else { return };
        let Some(span) = &self.span else { return };
        let attempt = tracer.start_upstream(span, self.info.upstream_cluster.as_deref().unwrap_or_default());
        tracer.inject(&attempt, &mut self.request);
        self.attempt_span = Some(attempt);
    }

    /// Ends it; `failure` says why its whole response did not come.
    pub(super) fn finish_attempt_span(&mut self, failure: Option<ErrorKind>) {
        let Some(span) = self.attempt_span.take() else { return };
        let Some(tracer) = &self.connection.manager.tracer else { return };
        let configured = self.cluster.as_ref().map(|cluster| cluster.current().config().protocol);
        let protocol = configured.filter(|_| self.info.upstream.is_some()).map(|configured| {
            match Protocol::of(configured, self.request.version) {
                Protocol::Http1 => Version::Http11,
                Protocol::Http2 => Version::Http2,
            }
        });
        let code = if failure.is_some() { 0 } else { self.response.status.as_u16() };
        let end = AttemptEnd { code, failure, retries: self.info.attempts.saturating_sub(1), protocol };
        tracer.finish_upstream(&span, &self.format_context(), end);
    }

    /// A callee may name the call for its caller's span, in the response.
    pub(super) fn exchange_span_names(&mut self) {
        let Some(tracer) = &self.connection.manager.tracer else { return };
        if !tracer.is_egress() {
            if let Some(name) = self.span.as_ref().and_then(|span| span.told()) {
                self.response.headers.set_named(&DECORATOR, name.as_bytes());
            }
            return;
        }
        if let (Some(name), Some(span)) = (self.response.headers.find(&DECORATOR), &mut self.span)
            && !name.is_empty()
        {
            span.rename(name);
        }
        self.response.headers.remove_named(&DECORATOR);
    }
}
