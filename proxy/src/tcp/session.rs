//! A TCP connection in the log and in the metrics.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::TcpProxy;
use super::copy::End;
use crate::config::{self, Reporter};
use crate::error::{Error, Side};
use crate::flags::ResponseFlags;
use crate::stream_info::{ConnectionInfo, FormatContext, LogMoment, StreamInfo};
use crate::telemetry::metrics::{Destination, IstioTcpMetrics, TcpSample};
use crate::tls::PeerCertificate;
use crate::upstream::Endpoint;

/// A connection in the log: written and counted when dropped.
pub(super) struct Session<'a> {
    pub(super) proxy: &'a TcpProxy,
    pub(super) info: StreamInfo,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) service: Option<Arc<config::Service>>,
    established: bool,
    /// Counted as opened.
    opened: bool,
    /// Bytes from and to the caller that have been counted.
    counted: (u64, u64),
}

impl<'a> Session<'a> {
    pub(super) fn new(proxy: &'a TcpProxy, info: Rc<ConnectionInfo>) -> Self {
        let info = StreamInfo::new(info);
        Self { proxy, info, endpoint: None, service: None, established: false, opened: false, counted: (0, 0) }
    }

    fn count(&self, record: impl FnOnce(&IstioTcpMetrics, &TcpSample<'_>)) {
        let Some(metrics) = &self.proxy.metrics else { return };
        let custom = metrics.attributes(&self.format_context());
        let (connection, upstream) = (&self.info.connection, self.info.upstream.as_deref());
        let (peer, theirs, ours) = match metrics.reporter() {
            Reporter::Destination => {
                (self.info.downstream_peer.as_ref(), connection.peer.as_deref(), connection.local_certificate.as_deref())
            }
            Reporter::Source => {
                let peer = self.info.upstream_peer.as_ref();
                let (theirs, ours) = upstream.map(|up| (up.peer.as_deref(), up.local_certificate.as_deref())).unwrap_or_default();
                (peer.or_else(|| self.endpoint.as_ref().and_then(|endpoint| endpoint.workload())), theirs, ours)
            }
        };
        let sample = TcpSample {
            destination: Destination {
                service: self.service.as_ref(),
                cluster: self.info.upstream_cluster.as_deref(),
                ..Destination::default()
            },
            peer,
            peer_principal: theirs.and_then(PeerCertificate::uri_san),
            local_principal: ours.and_then(PeerCertificate::uri_san),
            flags: self.info.flags,
            custom: &custom,
        };
        record(metrics, &sample);
    }

    /// Both sides are connected.
    pub(super) fn established(&mut self) {
        self.established = true;
    }

    /// It is known who is at this side, or that nobody will say so. The connection is counted once the metrics' other side
    /// is known.
    pub(super) fn met(&mut self, side: Side, peer: Option<Arc<config::Workload>>) {
        let reported = match self.proxy.metrics.as_ref().map(IstioTcpMetrics::reporter) {
            Some(Reporter::Destination) => Side::Downstream,
            _ => Side::Upstream,
        };
        match side {
            Side::Upstream => self.info.upstream_peer = peer,
            Side::Downstream | Side::Local => self.info.downstream_peer = peer,
        }
        if side == reported {
            self.open();
        }
    }

    fn open(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            self.count(IstioTcpMetrics::opened);
        }
    }

    /// Counts the bytes since the last time, once the connection is counted.
    pub(super) fn report(&mut self) {
        if !self.opened {
            return;
        }
        let (received, sent) = (self.info.bytes_received - self.counted.0, self.info.bytes_sent - self.counted.1);
        self.counted = (self.info.bytes_received, self.info.bytes_sent);
        self.count(|metrics, sample| metrics.transferred(sample, received, sent));
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
        self.proxy.access_log.log(&self.format_context());
    }

    fn format_context(&self) -> FormatContext<'_> {
        FormatContext { info: &self.info, request: None, response: None, trailers: None, now: Instant::now() }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.established {
            self.open();
            self.report();
            self.count(IstioTcpMetrics::closed);
        }
        self.log(LogMoment::End);
    }
}
