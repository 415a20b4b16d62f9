//! Istio's standard metrics (`stats.PluginConfig` of the filter `istio.stats`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::TrafficDirection;

/// Which of Istio's metrics are recorded, and with which labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IstioStats {
    /// Which side we are.
    pub reporter: Reporter,
    /// The host that was asked for does not stand in for a service that is not known.
    pub disable_host_header_fallback: bool,
    /// How often the bytes of an open TCP connection are reported; `None` only at its end.
    pub tcp_reporting_duration: Option<Duration>,
    /// In order; later ones win.
    pub overrides: Vec<MetricOverride>,
}

impl IstioStats {
    /// As Istio has it where no Telemetry resource says otherwise.
    pub fn new(reporter: Reporter) -> Self {
        Self {
            reporter,
            disable_host_header_fallback: false,
            tcp_reporting_duration: Some(Duration::from_secs(5)),
            overrides: Vec::new(),
        }
    }
}

/// Which side a metric is reported from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Reporter {
    /// The caller's sidecar.
    Source,
    /// The application's sidecar.
    Destination,
}

impl Reporter {
    /// The reporter of a listener: who does not take calls makes them.
    pub fn of(direction: TrafficDirection) -> Self {
        match direction {
            TrafficDirection::Inbound => Self::Destination,
            TrafficDirection::Outbound | TrafficDirection::Unspecified => Self::Source,
        }
    }

    /// The value of the label `reporter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// What a Telemetry resource changes about a metric (`stats.MetricConfig`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MetricOverride {
    /// The metric; `None` is all of them.
    pub metric: Option<IstioMetric>,
    /// It is not recorded.
    pub drop: bool,
    /// Labels that are left out.
    pub tags_to_remove: Vec<String>,
    /// Labels that are replaced or added.
    pub dimensions: BTreeMap<String, Dimension>,
}

macro_rules! metrics {
    ($($name:ident $text:literal,)*) => {
        /// One of Istio's standard metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        #[expect(missing_docs, reason = "each is the metric of its name")]
        pub enum IstioMetric {
            $($name,)*
        }

        impl IstioMetric {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name with `istio_` before it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("istio_", $text),)*
                }
            }

            /// The metric that a configuration means.
            pub fn of(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

metrics! {
    RequestsTotal "requests_total",
    RequestDurationMilliseconds "request_duration_milliseconds",
    RequestBytes "request_bytes",
    ResponseBytes "response_bytes",
    RequestMessagesTotal "request_messages_total",
    ResponseMessagesTotal "response_messages_total",
    TcpConnectionsOpenedTotal "tcp_connections_opened_total",
    TcpConnectionsClosedTotal "tcp_connections_closed_total",
    TcpSentBytesTotal "tcp_sent_bytes_total",
    TcpReceivedBytesTotal "tcp_received_bytes_total",
}

/// The value of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Dimension {
    /// Always this.
    Constant(String),
    /// A fact of the stream.
    Attribute(Attribute),
}

/// A fact of a request or a connection ([Envoy's attributes](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each is the attribute of its name")]
pub enum Attribute {
    RequestPath,
    RequestUrlPath,
    RequestQuery,
    RequestHost,
    RequestScheme,
    RequestMethod,
    RequestProtocol,
    RequestId,
    RequestUseragent,
    RequestReferer,
    /// `request.headers['name']`, in lower case.
    RequestHeader(String),
    ResponseCode,
    ResponseCodeDetails,
    ResponseGrpcStatus,
    /// `response.headers['name']`, in lower case.
    ResponseHeader(String),
    SourceAddress,
    DestinationAddress,
    ConnectionMtls,
    ConnectionRequestedServerName,
    ConnectionTlsVersion,
    ConnectionUriSanPeerCertificate,
    ConnectionUriSanLocalCertificate,
    UpstreamAddress,
    XdsClusterName,
    XdsRouteName,
}

impl Attribute {
    /// The attribute of this name.
    pub fn of(name: &str) -> Option<Self> {
        let header = |object: &str| {
            let rest = name.strip_prefix(object)?.strip_prefix('[')?.strip_suffix(']')?;
            let quoted = ['\'', '"'].iter().find_map(|&quote| rest.strip_prefix(quote)?.strip_suffix(quote))?;
            let plain = !quoted.is_empty() && quoted.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            plain.then(|| quoted.to_ascii_lowercase())
        };
        Some(match name {
            "request.path" => Self::RequestPath,
            "request.url_path" => Self::RequestUrlPath,
            "request.query" => Self::RequestQuery,
            "request.host" => Self::RequestHost,
            "request.scheme" => Self::RequestScheme,
            "request.method" => Self::RequestMethod,
            "request.protocol" => Self::RequestProtocol,
            "request.id" => Self::RequestId,
            "request.useragent" => Self::RequestUseragent,
            "request.referer" => Self::RequestReferer,
            "response.code" => Self::ResponseCode,
            "response.code_details" => Self::ResponseCodeDetails,
            "response.grpc_status" => Self::ResponseGrpcStatus,
            "source.address" => Self::SourceAddress,
            "destination.address" => Self::DestinationAddress,
            "connection.mtls" => Self::ConnectionMtls,
            "connection.requested_server_name" => Self::ConnectionRequestedServerName,
            "connection.tls_version" => Self::ConnectionTlsVersion,
            "connection.uri_san_peer_certificate" => Self::ConnectionUriSanPeerCertificate,
            "connection.uri_san_local_certificate" => Self::ConnectionUriSanLocalCertificate,
            "upstream.address" => Self::UpstreamAddress,
            "xds.cluster_name" => Self::XdsClusterName,
            "xds.route_name" => Self::XdsRouteName,
            _ => {
                return header("request.headers")
                    .map(Self::RequestHeader)
                    .or_else(|| header("response.headers").map(Self::ResponseHeader));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_known_by_name() {
        assert_eq!(Attribute::of("request.url_path"), Some(Attribute::RequestUrlPath));
        assert_eq!(Attribute::of("request.headers['X-Tenant']"), Some(Attribute::RequestHeader("x-tenant".to_owned())));
        assert_eq!(Attribute::of("response.headers[\"x-a\"]"), Some(Attribute::ResponseHeader("x-a".to_owned())));
        for unknown in ["request.headers['']", "request.headers[x]", "request.headers['a'] + ''", "request.time", ""] {
            assert_eq!(Attribute::of(unknown), None, "{unknown}");
        }
        assert_eq!(IstioMetric::of("request_bytes").map(IstioMetric::name), Some("istio_request_bytes"));
        assert_eq!(IstioMetric::of("istio_request_bytes"), None);
    }
}
