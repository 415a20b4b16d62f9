//! Failures of the data path, and the one table that says what the caller, the log and the metric get to see of each.

use std::borrow::Cow;

use crate::flags::ResponseFlags;

/// Who caused a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The endpoint.
    Upstream,
    /// This proxy or its configuration.
    Local,
}

/// Whether a request that failed so may be sent again without a retry policy saying so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Never: the application may have seen it.
    No,
    /// Only when the connection had served before and closed under the request, before any of it was sent.
    IfReused,
    /// Yes: nothing was sent.
    Yes,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No route matches.
    NoRoute,
    /// The route's cluster does not exist; carries the status the route asks for.
    NoCluster(u16),
    /// No endpoint is usable.
    NoHealthyUpstream,
    /// A circuit breaker is open.
    Overflow,
    /// Dropped on the cluster's drop_overload.
    DropOverload {
        /// All requests are.
        unconditional: bool,
    },
    /// The connection could not be made.
    ConnectFailure,
    /// The connection was not made in time.
    ConnectTimeout,
    /// The TLS handshake with the upstream failed.
    TlsFailure,
    /// The upstream closed the connection before a response.
    UpstreamClosed,
    /// The upstream reset the stream.
    UpstreamReset,
    /// The upstream refused the stream before it did anything (REFUSED_STREAM, GOAWAY).
    UpstreamRefused,
    /// The upstream broke the protocol.
    UpstreamProtocol,
    /// The route's time-out.
    Timeout,
    /// One attempt's time-out.
    PerTryTimeout,
    /// Nothing happened within an attempt for too long.
    PerTryIdleTimeout,
    /// The attempt took longer than the cluster allows (`max_stream_duration`), the request not finished (408) or finished (504).
    UpstreamMaxStreamDuration {
        /// Whether the request had been received.
        request_complete: bool,
    },
    /// The stream was idle too long, the request not finished (408) or finished (504).
    StreamIdle {
        /// Whether the request had been received.
        request_complete: bool,
    },
    /// The request was not received in time.
    RequestTimeout,
    /// The request head was not received in time.
    HeaderTimeout,
    /// The stream lived too long, the request not finished (408) or finished (504).
    MaxStreamDuration {
        /// Whether the request had been received.
        request_complete: bool,
    },
    /// The caller went away.
    DownstreamClosed,
    /// The caller reset the stream.
    DownstreamReset,
    /// The caller broke the protocol in the body.
    DownstreamProtocol,
    /// The caller sent more trailers than a head may hold.
    DownstreamTooLarge,
    /// The caller broke HTTP/2 on this stream or its connection; Envoy's response code details.
    DownstreamViolation(&'static str),
}

/// A failure of the data path.
#[derive(Debug, thiserror::Error)]
#[error("{kind:?}{}", source.as_ref().map(|s| format!(": {s}")).unwrap_or_default())]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Whether it may be repeated unasked.
    pub retry: Retry,
    /// What the transport said, for `%UPSTREAM_TRANSPORT_FAILURE_REASON%` and the log.
    #[source]
    pub source: Option<std::io::Error>,
}

impl Error {
    /// A failure that must not be repeated unasked.
    pub fn new(kind: ErrorKind) -> Self {
        Self { kind, retry: Retry::No, source: None }
    }

    /// With what the transport said.
    pub fn with_source(kind: ErrorKind, source: std::io::Error) -> Self {
        Self { kind, retry: Retry::No, source: Some(source) }
    }

    /// With another repeat rule.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Who caused it.
    pub fn side(&self) -> Side {
        use ErrorKind as K;
        match self.kind {
            K::NoRoute | K::NoCluster(_) | K::NoHealthyUpstream | K::Overflow | K::DropOverload { .. } => Side::Local,
            K::ConnectFailure
            | K::ConnectTimeout
            | K::TlsFailure
            | K::UpstreamClosed
            | K::UpstreamReset
            | K::UpstreamRefused
            | K::UpstreamProtocol
            | K::Timeout
            | K::PerTryTimeout
            | K::PerTryIdleTimeout
            | K::UpstreamMaxStreamDuration { .. } => Side::Upstream,
            K::StreamIdle { .. }
            | K::RequestTimeout
            | K::HeaderTimeout
            | K::MaxStreamDuration { .. }
            | K::DownstreamClosed
            | K::DownstreamReset
            | K::DownstreamProtocol
            | K::DownstreamTooLarge
            | K::DownstreamViolation(_) => Side::Downstream,
        }
    }
}

/// What the caller and the log get to see of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status; 0 when the caller gets none.
    pub status: u16,
    /// Body, `text/plain`.
    pub body: Cow<'static, str>,
    /// Response flag.
    pub flag: ResponseFlags,
    /// Response code details.
    pub details: Cow<'static, str>,
    /// An `x-envoy-*` header that tells the caller more; its value is `true`.
    pub header: Option<&'static str>,
    /// gRPC status, when it is not the one that follows from the HTTP status.
    pub grpc_status: Option<u32>,
}

impl ErrorKind {
    /// A time-out of one attempt.
    pub fn is_try_timeout(self) -> bool {
        matches!(self, Self::PerTryTimeout | Self::PerTryIdleTimeout)
    }

    /// A deadline that ends one attempt only.
    pub fn is_of_attempt(self) -> bool {
        self.is_try_timeout() || matches!(self, Self::UpstreamMaxStreamDuration { .. })
    }

    /// The upstream did not answer in the time that the router gives it.
    pub fn is_upstream_timeout(self) -> bool {
        self.is_try_timeout() || self == Self::Timeout
    }

    /// Envoy's reason inside `upstream_reset_before_response_started{…}` and in the body of a 503.
    pub fn reset_reason(self) -> Option<&'static str> {
        match self {
            Self::ConnectFailure | Self::TlsFailure => Some("remote connection failure"),
            Self::ConnectTimeout => Some("connection timeout"),
            Self::UpstreamClosed => Some("connection termination"),
            Self::UpstreamReset => Some("remote reset"),
            Self::UpstreamRefused => Some("remote refused stream reset"),
            Self::UpstreamProtocol => Some("protocol error"),
            Self::Overflow => Some("overflow"),
            Self::NoRoute
            | Self::NoCluster(_)
            | Self::NoHealthyUpstream
            | Self::DropOverload { .. }
            | Self::Timeout
            | Self::PerTryTimeout
            | Self::PerTryIdleTimeout
            | Self::UpstreamMaxStreamDuration { .. }
            | Self::StreamIdle { .. }
            | Self::RequestTimeout
            | Self::HeaderTimeout
            | Self::MaxStreamDuration { .. }
            | Self::DownstreamClosed
            | Self::DownstreamReset
            | Self::DownstreamProtocol
            | Self::DownstreamTooLarge
            | Self::DownstreamViolation(_) => None,
        }
    }

    /// The table. `transport` is what the transport said, which Envoy appends to the details of connection failures;
    /// `retried` says that at least one retry was made.
    pub fn reply(self, transport: Option<&str>, retried: bool) -> Reply {
        use ResponseFlags as F;
        let fixed = |status, body: &'static str, flag, details: &'static str| Reply {
            status,
            body: body.into(),
            flag,
            details: details.into(),
            header: None,
            grpc_status: None,
        };
        let reset = |status, flag| upstream_reset(status, flag, self.reset_reason().unwrap_or_default(), transport, retried);
        match self {
            Self::NoRoute => fixed(404, "", F::NO_ROUTE_FOUND, "route_not_found"),
            Self::NoCluster(status) => fixed(status, "", F::NO_CLUSTER_FOUND, "cluster_not_found"),
            Self::NoHealthyUpstream => fixed(503, "no healthy upstream", F::NO_HEALTHY_UPSTREAM, "no_healthy_upstream"),
            Self::DropOverload { unconditional: false } => {
                Reply { header: Some("x-envoy-drop-overload"), ..fixed(503, "drop overload", F::DROP_OVERLOAD, "drop_overload") }
            }
            Self::DropOverload { unconditional: true } => Reply {
                header: Some("x-envoy-unconditional-drop-overload"),
                ..fixed(503, "unconditional drop overload", F::DROP_OVERLOAD, "unconditional_drop_overload")
            },
            Self::Overflow => Reply { header: Some("x-envoy-overloaded"), ..reset(503, F::UPSTREAM_OVERFLOW) },
            Self::ConnectFailure | Self::ConnectTimeout | Self::TlsFailure => reset(503, F::UPSTREAM_CONNECTION_FAILURE),
            Self::UpstreamClosed => reset(503, F::UPSTREAM_CONNECTION_TERMINATION),
            Self::UpstreamReset | Self::UpstreamRefused => reset(503, F::UPSTREAM_REMOTE_RESET),
            Self::UpstreamProtocol => reset(502, F::UPSTREAM_PROTOCOL_ERROR),
            Self::Timeout => fixed(504, "upstream request timeout", F::UPSTREAM_REQUEST_TIMEOUT, "response_timeout"),
            Self::PerTryTimeout => {
                fixed(504, "upstream request timeout", F::UPSTREAM_REQUEST_TIMEOUT, "upstream_per_try_timeout")
            }
            Self::PerTryIdleTimeout => {
                fixed(504, "upstream request timeout", F::UPSTREAM_REQUEST_TIMEOUT, "upstream_per_try_idle_timeout")
            }
            Self::UpstreamMaxStreamDuration { request_complete } => fixed(
                if request_complete { 504 } else { 408 },
                "upstream max stream duration reached",
                F::UPSTREAM_MAX_STREAM_DURATION,
                "upstream_max_stream_duration_reached",
            ),
            Self::StreamIdle { request_complete } => {
                fixed(if request_complete { 504 } else { 408 }, "stream timeout", F::STREAM_IDLE_TIMEOUT, "stream_idle_timeout")
            }
            Self::RequestTimeout => fixed(408, "request timeout", F::NONE, "request_overall_timeout"),
            Self::HeaderTimeout => fixed(408, "request header timeout", F::NONE, "request_header_timeout"),
            Self::MaxStreamDuration { request_complete } => Reply {
                // DEADLINE_EXCEEDED: the only local reply that Envoy gives it to.
                grpc_status: Some(4),
                ..fixed(if request_complete { 504 } else { 408 }, "downstream duration timeout", F::NONE, "max_duration_timeout")
            },
            Self::DownstreamClosed => fixed(0, "", F::DOWNSTREAM_CONNECTION_TERMINATION, "downstream_remote_disconnect"),
            Self::DownstreamReset => fixed(0, "", F::DOWNSTREAM_REMOTE_RESET, "http2.remote_reset"),
            Self::DownstreamProtocol => fixed(400, "Bad Request", F::DOWNSTREAM_PROTOCOL_ERROR, "http1.codec_error"),
            Self::DownstreamTooLarge => {
                fixed(431, "Request Header Fields Too Large", F::DOWNSTREAM_PROTOCOL_ERROR, "http1.headers_too_large")
            }
            Self::DownstreamViolation(details) => fixed(0, "", F::DOWNSTREAM_PROTOCOL_ERROR, details),
        }
    }
}

/// `upstream connect error or disconnect/reset before headers. …`, the text that operators search for.
fn upstream_reset(status: u16, flag: ResponseFlags, reason: &str, transport: Option<&str>, retried: bool) -> Reply {
    let which = if retried { "retried and the latest reset reason" } else { "reset reason" };
    let body = format!("upstream connect error or disconnect/reset before headers. {which}: {reason}");
    let mut details = format!("upstream_reset_before_response_started{{{}", reason.replace(' ', "_"));
    if let Some(transport) = transport {
        details.push('|');
        // Details are one word of a log line.
        details.extend(transport.chars().map(|c| if c.is_whitespace() { '_' } else { c }));
    }
    details.push('}');
    Reply { status, body: body.into(), flag, details: details.into(), header: None, grpc_status: None }
}

/// HTTP status to gRPC status, for local replies to gRPC callers (Envoy's mapping).
pub fn grpc_status(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_reads_as_envoy_says_it() {
        let reply = ErrorKind::ConnectFailure.reply(Some("delayed connect error: Connection refused"), false);
        assert_eq!(reply.status, 503);
        assert_eq!(reply.flag, ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(
            reply.body,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
        );
        assert_eq!(
            reply.details,
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
    }
}
