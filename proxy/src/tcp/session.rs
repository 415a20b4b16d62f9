//! A TCP connection in the log and in the metrics.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::TcpProxy;
use super::copy::End;
use crate::config;
use crate::error::Error;
use crate::flags::ResponseFlags;
use crate::stream_info::{ConnectionInfo, FormatContext, LogMoment, StreamInfo};
use crate::telemetry::metrics::TcpSample;
use crate::upstream::Endpoint;

/// A connection in the log: written and counted when dropped.
pub(super) struct Session<'a> {
    pub(super) proxy: &'a TcpProxy,
    pub(super) info: StreamInfo,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) service: Option<Arc<config::Service>>,
    opened: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(proxy: &'a TcpProxy, info: Rc<ConnectionInfo>) -> Self {
        Self { proxy, info: StreamInfo::new(info), endpoint: None, service: None, opened: false }
    }

    fn sample(&self) -> TcpSample<'_> {
        let inbound = self.info.connection.peer.as_ref();
        let outbound = self.info.upstream.as_ref().and_then(|upstream| upstream.peer.as_ref());
        let peer_principal = inbound.or(outbound).map(|peer| peer.principal());
        TcpSample {
            service: self.service.as_ref(),
            peer: self.endpoint.as_ref().and_then(|e| e.workload()),
            peer_principal,
            mtls: peer_principal.is_some(),
            flags: self.info.flags,
        }
    }

    /// Counts the connection as opened.
    pub(super) fn open(&mut self) {
        self.opened = true;
        if let Some(metrics) = &self.proxy.metrics {
            metrics.opened(&self.sample());
        }
    }

    /// Notes why there is no connection to an endpoint.
    pub(super) fn fail(&mut self, error: &Error) {
        let reply = error.kind.reply(None, false);
        self.info.flags |= reply.flag;
        if let Some(source) = &error.source {
            self.info.upstream_transport_failure = Some(Rc::from(source.to_string()));
        }
    }

    /// Notes why it ended. Envoy has a flag for a life that was too long and for an endpoint's reset, for nothing else.
    pub(super) fn ended(&mut self, end: &End) {
        match end {
            End::MaxDuration => self.info.flags |= ResponseFlags::DURATION_TIMEOUT,
            End::Upstream(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.info.flags |= ResponseFlags::UPSTREAM_REMOTE_RESET;
            }
            _ => {}
        }
    }

    /// Writes a log line about the connection as it is now.
    pub(super) fn log(&mut self, moment: LogMoment) {
        self.info.moment = moment;
        let context = FormatContext { info: &self.info, request: None, response: None, trailers: None, now: Instant::now() };
        self.proxy.access_log.log(&context);
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.proxy.metrics.as_ref().filter(|_| self.opened) {
            let sample = self.sample();
            metrics.transferred(&sample, self.info.bytes_received, self.info.bytes_sent);
            metrics.closed(&sample);
        }
        self.log(LogMoment::End);
    }
}
