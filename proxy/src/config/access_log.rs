//! Access logs (Envoy `config.accesslog.v3`, `extensions.access_loggers.{file,stream,open_telemetry}.v3`).

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::{Fraction, HeaderMatcher, MetadataMatcher, OtelLog};

/// One access logger.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccessLog {
    /// Which requests are logged; `None` is all.
    pub filter: Option<AccessLogFilter>,
    /// How a line looks.
    pub format: LogFormat,
    /// Where it goes.
    pub sink: AccessLogSink,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum AccessLogSink {
    /// Standard output (`/dev/stdout`).
    Stdout,
    /// Standard error (`/dev/stderr`).
    Stderr,
    /// A file, appended to.
    File(PathBuf),
    /// A collector of OpenTelemetry.
    OpenTelemetry(Arc<OtelLog>),
}

/// How a line looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum LogFormat {
    /// Envoy's format language; the text holds its own line feed.
    Text(String),
    /// A JSON object a line; each value is a format. Keys are written in this order.
    Json {
        /// Key and format.
        fields: Vec<(String, String)>,
        /// Keys without a value are left out instead of being null.
        omit_empty_values: bool,
        /// Keys are sorted before writing, as Envoy does.
        sort: bool,
    },
}

impl LogFormat {
    /// Istio's default line, trailing line feed included.
    pub const ISTIO: &'static str = concat!(
        "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
        "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% ",
        "%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
        "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ",
        "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
    );

    /// Envoy's own default line.
    pub const ENVOY: &'static str = concat!(
        "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% ",
        "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" ",
        "\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
    );
}

/// Which requests are logged (Envoy `AccessLogFilter`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum AccessLogFilter {
    /// Any of these flags (`NR`); an empty list: any flag at all.
    ResponseFlags(Vec<String>),
    /// Status at least this.
    StatusAtLeast(u16),
    /// Status exactly this.
    StatusEquals(u16),
    /// Status at most this.
    StatusAtMost(u16),
    /// Any status but this.
    StatusNot(u16),
    /// Duration at least this, in milliseconds.
    DurationAtLeast(u64),
    /// Duration exactly this, in milliseconds.
    DurationEquals(u64),
    /// Duration at most this, in milliseconds.
    DurationAtMost(u64),
    /// Any duration but this, in milliseconds.
    DurationNot(u64),
    /// A share of requests, drawn by chance.
    Share(Fraction),
    /// Requests with this header; nothing on TCP.
    Header(HeaderMatcher),
    /// Requests whose gRPC status is one of these, or none of them. What is not gRPC counts by its HTTP status.
    GrpcStatus {
        /// Numbers.
        statuses: Vec<u32>,
        /// None of them.
        exclude: bool,
    },
    /// Requests with this dynamic metadata, or without any there.
    Metadata {
        /// What must hold.
        matcher: MetadataMatcher,
        /// A stream without such metadata is logged.
        if_absent: bool,
    },
    /// Requests for which this expression of CEL holds; what cannot be evaluated is not logged.
    Cel(String),
    /// Lines of requests (`true`) or of TCP connections (`false`), for filters on the type of a line.
    Http(bool),
    /// Not from health checkers.
    NotHealthCheck,
    /// All of them.
    And(Vec<AccessLogFilter>),
    /// One of them.
    Or(Vec<AccessLogFilter>),
}
