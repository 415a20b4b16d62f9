//! What is known about one request or one TCP connection: what access logs and metrics are made of (Envoy `StreamInfo`).

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::Value;

use crate::config::{Node, Workload};
use crate::flags::ResponseFlags;
use crate::http::head::{Headers, RequestHead, ResponseHead, Version};
use crate::rbac::Metadata;
use crate::telemetry::trace::SpanIds;
use crate::tls::PeerCertificate;

/// Who this proxy is (Envoy `LocalInfo`): tags of spans, labels of log records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalInfo {
    /// Id of the node.
    pub node: String,
    /// Its cluster, in Istio `<canonical service>.<namespace>`.
    pub cluster: String,
    /// The zone that it runs in.
    pub zone: String,
}

impl From<&Node> for LocalInfo {
    fn from(node: &Node) -> Self {
        Self { node: node.id.clone(), cluster: node.cluster.clone(), zone: node.workload.zone.clone() }
    }
}

/// Facts of a downstream connection, shared by its requests.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Unique in the process, for logs.
    pub id: u64,
    /// The address that the caller connected to.
    pub local: SocketAddr,
    /// The caller's own address (`%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`).
    pub remote: SocketAddr,
    /// SNI of the `ClientHello`, as the caller sent it.
    pub server_name: Option<Box<str>>,
    /// `TLSv1.3` and so on; `None` in plaintext.
    pub tls_version: Option<&'static str>,
    /// OpenSSL's name of the cipher suite.
    pub tls_cipher: Option<&'static str>,
    /// The verified client certificate.
    pub peer: Option<Arc<PeerCertificate>>,
    /// Our own certificate on this connection.
    pub local_certificate: Option<Arc<PeerCertificate>>,
    /// Why the TLS handshake failed (`%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub transport_failure: Option<Arc<str>>,
    /// When it was accepted.
    pub start: Instant,
}

impl ConnectionInfo {
    /// A connection that has just been accepted.
    pub fn new(id: u64, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            id,
            local,
            remote,
            server_name: None,
            tls_version: None,
            tls_cipher: None,
            peer: None,
            local_certificate: None,
            transport_failure: None,
            start: Instant::now(),
        }
    }

    /// URI SAN of our own certificate, for `By=` and `%DOWNSTREAM_LOCAL_URI_SAN%`.
    pub fn local_uri_san(&self) -> Option<&str> {
        self.local_certificate.as_ref()?.uri_sans.first().map(String::as_str)
    }

    /// Whether the caller proved an identity.
    pub fn is_mtls(&self) -> bool {
        self.peer.is_some()
    }
}

/// Facts of an upstream connection, as its requests' logs show them.
#[derive(Debug, Default)]
pub struct UpstreamConnectionInfo {
    /// `%UPSTREAM_LOCAL_ADDRESS%`; `None` for Unix sockets.
    pub local: Option<SocketAddr>,
    /// The verified server certificate.
    pub peer: Option<Arc<PeerCertificate>>,
    /// Our own certificate on this connection.
    pub local_certificate: Option<Arc<PeerCertificate>>,
    /// TLS version; `None` in plaintext.
    pub tls_version: Option<&'static str>,
    /// OpenSSL's name of the cipher suite.
    pub tls_cipher: Option<&'static str>,
}

/// One request, or one TCP connection.
#[derive(Debug)]
pub struct StreamInfo {
    /// The downstream connection.
    pub connection: Rc<ConnectionInfo>,
    /// Wall clock at the start (`%START_TIME%`).
    pub start_time: SystemTime,
    /// Monotonic clock at the start; every duration is counted from it.
    pub start: Instant,
    /// The client, from x-forwarded-for where that is trusted (`%DOWNSTREAM_REMOTE_ADDRESS%`).
    pub remote: SocketAddr,
    /// Downstream HTTP version; `None` on TCP.
    pub protocol: Option<Version>,
    /// Status sent downstream; 0 when none was.
    pub response_code: u16,
    /// What went wrong.
    pub flags: ResponseFlags,
    /// `%RESPONSE_CODE_DETAILS%`; empty is logged as `-`.
    pub details: Cow<'static, str>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<Cow<'static, str>>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub upstream_transport_failure: Option<Rc<str>>,
    /// Body bytes from the caller (all bytes on TCP).
    pub bytes_received: u64,
    /// Body bytes to the caller (all bytes on TCP).
    pub bytes_sent: u64,
    /// The last byte of the request was received.
    pub request_end: Option<Instant>,
    /// The first byte went to the upstream.
    pub upstream_start: Option<Instant>,
    /// The response head came from the upstream.
    pub response_start: Option<Instant>,
    /// The last byte of the response came from the upstream.
    pub response_end: Option<Instant>,
    /// Display form of the endpoint that was tried last (`%UPSTREAM_HOST%`).
    pub upstream_host: Option<Arc<str>>,
    /// `%UPSTREAM_CLUSTER_RAW%`.
    pub upstream_cluster: Option<Arc<str>>,
    /// The upstream connection.
    pub upstream: Option<Rc<UpstreamConnectionInfo>>,
    /// `%ROUTE_NAME%`.
    pub route_name: Option<Arc<str>>,
    /// Upstream attempts made.
    pub attempts: u32,
    /// Which of the lines of a stream is being written.
    pub moment: LogMoment,
    /// Who calls, as it says itself.
    pub downstream_peer: Option<Arc<Workload>>,
    /// Who answers, as it says itself.
    pub upstream_peer: Option<Arc<Workload>>,
    /// What filters have found out (`%DYNAMIC_METADATA(filter:key)%`).
    pub metadata: Option<Box<Metadata>>,
    /// The span of the request, if it has one, exported or not (`%TRACE_ID%`).
    pub trace: Option<SpanIds>,
}

/// When a log line is written (`%ACCESS_LOG_TYPE%`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogMoment {
    /// The stream has ended.
    #[default]
    End,
    /// A TCP connection begins.
    TcpStart,
    /// The endpoint of a TCP connection has been reached.
    TcpConnected,
    /// A TCP connection goes on.
    TcpPeriodic,
}

impl StreamInfo {
    /// A stream that starts now.
    pub fn new(connection: Rc<ConnectionInfo>) -> Self {
        Self {
            start_time: SystemTime::now(),
            start: Instant::now(),
            remote: connection.remote,
            connection,
            protocol: None,
            response_code: 0,
            flags: ResponseFlags::NONE,
            details: Cow::Borrowed(""),
            termination_details: None,
            upstream_transport_failure: None,
            bytes_received: 0,
            bytes_sent: 0,
            request_end: None,
            upstream_start: None,
            response_start: None,
            response_end: None,
            upstream_host: None,
            upstream_cluster: None,
            upstream: None,
            route_name: None,
            attempts: 0,
            moment: LogMoment::End,
            downstream_peer: None,
            upstream_peer: None,
            metadata: None,
            trace: None,
        }
    }

    /// What a filter has found out, at these keys.
    pub fn found_out(&self, filter: &str, keys: &[String]) -> Option<&Value> {
        self.metadata.as_ref()?.get(filter, keys)
    }
}

/// Everything that a format can name.
#[derive(Clone, Copy)]
pub struct FormatContext<'a> {
    /// The stream.
    pub info: &'a StreamInfo,
    /// Request head as it went upstream; `None` on TCP and for heads that could not be parsed.
    pub request: Option<&'a RequestHead>,
    /// Response head as it went downstream.
    pub response: Option<&'a ResponseHead>,
    /// Response trailers.
    pub trailers: Option<&'a Headers>,
    /// When the stream ended, for durations.
    pub now: Instant,
}
