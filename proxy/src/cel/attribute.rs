//! Envoy's attributes: their names, resolved when an expression is compiled, and their values.

use std::net::SocketAddr;
use std::time::Instant;

use super::value::{Failure, Outcome, Value};
use crate::http::head::{Known, Version};
use crate::stream_info::FormatContext;
use crate::telemetry::grpc_status;
use crate::tls::PeerCertificate;

/// An attribute that streams may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    /// Envoy has it, nothing here knows its value.
    Unknown,
    RequestHeaders,
    RequestPath,
    RequestUrlPath,
    RequestHost,
    RequestScheme,
    RequestMethod,
    RequestReferer,
    RequestUserAgent,
    RequestTime,
    RequestId,
    RequestProtocol,
    RequestQuery,
    RequestDuration,
    RequestSize,
    RequestTotalSize,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseGrpcStatus,
    ResponseHeaders,
    ResponseTrailers,
    ResponseSize,
    ResponseTotalSize,
    ResponseBackendLatency,
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    ConnectionId,
    ConnectionMtls,
    ConnectionRequestedServerName,
    ConnectionTlsVersion,
    ConnectionTerminationDetails,
    ConnectionTransportFailure,
    Certificate(Side, Fact),
    UpstreamAddress,
    UpstreamPort,
    UpstreamTlsVersion,
    UpstreamLocalAddress,
    UpstreamTransportFailure,
    UpstreamAttempts,
    Metadata,
    ClusterName,
    RouteName,
}

/// Whose certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Own,
    Endpoint,
    OwnUpstream,
}

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Subject,
    UriSan,
    DnsSan,
    Digest,
}

/// The variables that have members.
pub(super) const ROOTS: [&str; 10] = [
    "request",
    "response",
    "source",
    "destination",
    "connection",
    "upstream",
    "xds",
    "metadata",
    "filter_state",
    "upstream_filter_state",
];

impl Attribute {
    /// A variable that is an attribute by itself.
    pub(super) fn root(name: &str) -> Option<Self> {
        match name {
            "metadata" => Some(Self::Metadata),
            "filter_state" | "upstream_filter_state" => Some(Self::Unknown),
            _ => None,
        }
    }

    /// A member of a variable.
    pub(super) fn member(root: &str, name: &str) -> Option<Self> {
        match root {
            "request" => request(name),
            "response" => response(name),
            "source" => match name {
                "address" => Some(Self::SourceAddress),
                "port" => Some(Self::SourcePort),
                _ => None,
            },
            "destination" => match name {
                "address" => Some(Self::DestinationAddress),
                "port" => Some(Self::DestinationPort),
                _ => None,
            },
            "connection" => connection(name),
            "upstream" => upstream(name),
            "xds" => xds(name),
            _ => None,
        }
    }
}

fn request(name: &str) -> Option<Attribute> {
    use Attribute::*;
    Some(match name {
        "headers" => RequestHeaders,
        "path" => RequestPath,
        "url_path" => RequestUrlPath,
        "host" => RequestHost,
        "scheme" => RequestScheme,
        "method" => RequestMethod,
        "referer" => RequestReferer,
        "useragent" => RequestUserAgent,
        "time" => RequestTime,
        "id" => RequestId,
        "protocol" => RequestProtocol,
        "query" => RequestQuery,
        "duration" => RequestDuration,
        "size" => RequestSize,
        "total_size" => RequestTotalSize,
        "headers_bytes" => Unknown,
        _ => return None,
    })
}

fn response(name: &str) -> Option<Attribute> {
    use Attribute::*;
    Some(match name {
        "code" => ResponseCode,
        "code_details" => ResponseCodeDetails,
        "flags" => ResponseFlags,
        "grpc_status" => ResponseGrpcStatus,
        "headers" => ResponseHeaders,
        "trailers" => ResponseTrailers,
        "size" => ResponseSize,
        "total_size" => ResponseTotalSize,
        "backend_latency" => ResponseBackendLatency,
        "headers_bytes" => Unknown,
        _ => return None,
    })
}

fn connection(name: &str) -> Option<Attribute> {
    use Attribute::*;
    Some(match name {
        "id" => ConnectionId,
        "mtls" => ConnectionMtls,
        "requested_server_name" => ConnectionRequestedServerName,
        "tls_version" => ConnectionTlsVersion,
        "termination_details" => ConnectionTerminationDetails,
        "transport_failure_reason" => ConnectionTransportFailure,
        _ => Certificate(if name.contains("_local_") { Side::Own } else { Side::Caller }, fact(name)?),
    })
}

fn upstream(name: &str) -> Option<Attribute> {
    use Attribute::*;
    Some(match name {
        "address" => UpstreamAddress,
        "port" => UpstreamPort,
        "tls_version" => UpstreamTlsVersion,
        "local_address" => UpstreamLocalAddress,
        "transport_failure_reason" => UpstreamTransportFailure,
        "request_attempt_count" => UpstreamAttempts,
        "cx_pool_ready_duration" | "locality" | "num_endpoints" => Unknown,
        _ => Certificate(if name.contains("_local_") { Side::OwnUpstream } else { Side::Endpoint }, fact(name)?),
    })
}

fn fact(name: &str) -> Option<Fact> {
    Some(match name {
        "subject_local_certificate" | "subject_peer_certificate" => Fact::Subject,
        "uri_san_local_certificate" | "uri_san_peer_certificate" => Fact::UriSan,
        "dns_san_local_certificate" | "dns_san_peer_certificate" => Fact::DnsSan,
        "sha256_peer_certificate_digest" => Fact::Digest,
        _ => return None,
    })
}

fn xds(name: &str) -> Option<Attribute> {
    Some(match name {
        "cluster_name" => Attribute::ClusterName,
        "route_name" => Attribute::RouteName,
        "node"
        | "cluster_metadata"
        | "route_metadata"
        | "virtual_host_name"
        | "virtual_host_metadata"
        | "upstream_host_metadata"
        | "upstream_host_locality_metadata"
        | "filter_chain_name"
        | "listener_metadata"
        | "listener_direction" => Attribute::Unknown,
        _ => return None,
    })
}

impl Attribute {
    /// The attribute of a stream.
    pub(super) fn of<'a>(self, stream: &FormatContext<'a>) -> Outcome<'a> {
        let info = stream.info;
        let some = |value: Option<Value<'a>>| value.ok_or(Failure::Missing);
        match self {
            Self::RequestHeaders | Self::RequestPath | Self::RequestUrlPath | Self::RequestHost | Self::RequestScheme => {
                self.of_request(stream)
            }
            Self::RequestMethod | Self::RequestReferer | Self::RequestUserAgent | Self::RequestId | Self::RequestQuery => {
                self.of_request(stream)
            }
            Self::RequestTime => Ok(Value::timestamp(info.start_time)),
            Self::RequestProtocol => some(info.protocol.map(Version::as_str).map(text)),
            Self::RequestDuration => some(span(Some(info.start), info.response_end.or(Some(stream.now)))),
            Self::RequestSize => Ok(self.size(stream)),
            Self::RequestTotalSize => Ok(int(info.bytes_received + stream.request.map_or(0, |head| bytes(head.headers.iter())))),
            Self::ResponseCode => some((info.response_code != 0).then(|| Value::Int(info.response_code.into()))),
            Self::ResponseCodeDetails => some((!info.details.is_empty()).then(|| text(&info.details))),
            Self::ResponseFlags => Ok(int(info.flags.bits().into())),
            Self::ResponseGrpcStatus => some(grpc_status(stream).map(|status| Value::Int(status.into()))),
            Self::ResponseHeaders => some(stream.response.map(|head| Value::Headers(&head.headers))),
            Self::ResponseTrailers => some(stream.trailers.map(Value::Headers)),
            Self::ResponseSize => Ok(int(info.bytes_sent)),
            Self::ResponseTotalSize => {
                let heads = stream.response.map(|head| &head.headers).into_iter().chain(stream.trailers);
                Ok(int(info.bytes_sent + heads.map(|headers| bytes(headers.iter())).sum::<u64>()))
            }
            Self::ResponseBackendLatency => some(span(info.upstream_start, info.response_end)),
            Self::SourceAddress => Ok(address(info.remote)),
            Self::SourcePort => Ok(Value::Int(info.remote.port().into())),
            Self::DestinationAddress => Ok(address(info.connection.local)),
            Self::DestinationPort => Ok(Value::Int(info.connection.local.port().into())),
            Self::ConnectionId => Ok(Value::Uint(info.connection.id)),
            Self::ConnectionMtls => Ok(Value::Bool(info.connection.is_mtls())),
            Self::ConnectionRequestedServerName => Ok(text(info.connection.server_name.as_deref().unwrap_or_default())),
            Self::ConnectionTlsVersion => some(info.connection.tls_version.map(text)),
            Self::ConnectionTerminationDetails => some(info.termination_details.as_deref().map(text)),
            Self::ConnectionTransportFailure => some(info.connection.transport_failure.as_deref().map(text)),
            Self::Certificate(side, fact) => some(side.of(stream).and_then(|certificate| fact.of(certificate))),
            Self::UpstreamAddress => some(info.upstream_host.as_deref().map(text)),
            Self::UpstreamPort => {
                let port = info.upstream_host.as_deref().and_then(|host| host.parse::<SocketAddr>().ok()).map(|host| host.port());
                some(port.map(|port| Value::Int(port.into())))
            }
            Self::UpstreamTlsVersion => some(info.upstream.as_ref().and_then(|upstream| upstream.tls_version).map(text)),
            Self::UpstreamLocalAddress => some(info.upstream.as_ref().and_then(|upstream| upstream.local).map(address)),
            Self::UpstreamTransportFailure => some(info.upstream_transport_failure.as_deref().map(text)),
            Self::UpstreamAttempts => Ok(Value::Uint(info.attempts.into())),
            Self::Metadata => some(info.metadata.as_deref().map(Value::Metadata)),
            Self::ClusterName => some(info.upstream_cluster.as_deref().map(text)),
            Self::RouteName => some(info.route_name.as_deref().map(text)),
            Self::Unknown => Err(Failure::Missing),
        }
    }

    fn of_request<'a>(self, stream: &FormatContext<'a>) -> Outcome<'a> {
        let head = stream.request.ok_or(Failure::Missing)?;
        let header = |name: &str| Value::Request(head).entry(&Value::Text(name.to_owned().into()));
        match self {
            Self::RequestHeaders => Ok(Value::Request(head)),
            Self::RequestPath => Ok(Value::bytes(head.path())),
            Self::RequestUrlPath => Ok(Value::bytes(head.path_without_query())),
            Self::RequestHost => Ok(Value::bytes(head.authority())),
            Self::RequestScheme => Ok(text(head.scheme.as_str())),
            Self::RequestMethod => Ok(text(head.method.as_str())),
            Self::RequestReferer => header("referer"),
            Self::RequestUserAgent => header("user-agent"),
            Self::RequestId => header("x-request-id"),
            _ => Ok(Value::bytes(head.query().unwrap_or_default())),
        }
    }

    fn size<'a>(self, stream: &FormatContext<'a>) -> Value<'a> {
        let announced = stream.request.and_then(|head| head.headers.get(Known::ContentLength));
        let announced = announced.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        announced.map_or_else(|| int(stream.info.bytes_received), Value::Int)
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(text.into())
}

fn int<'a>(number: u64) -> Value<'a> {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn address<'a>(address: SocketAddr) -> Value<'a> {
    Value::Text(address.to_string().into())
}

fn span<'a>(from: Option<Instant>, to: Option<Instant>) -> Option<Value<'a>> {
    Some(Value::duration(to?.saturating_duration_since(from?)))
}

fn bytes<'h>(fields: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> u64 {
    fields.map(|(name, value)| (name.len() + value.len()) as u64).sum()
}

impl Side {
    fn of<'a>(self, stream: &FormatContext<'a>) -> Option<&'a PeerCertificate> {
        let (connection, upstream) = (&stream.info.connection, stream.info.upstream.as_ref());
        match self {
            Self::Caller => connection.peer.as_deref(),
            Self::Own => connection.local_certificate.as_deref(),
            Self::Endpoint => upstream?.peer.as_deref(),
            Self::OwnUpstream => upstream?.local_certificate.as_deref(),
        }
    }
}

impl Fact {
    fn of(self, certificate: &PeerCertificate) -> Option<Value<'_>> {
        match self {
            Self::Subject => Some(text(&certificate.subject)),
            Self::UriSan => certificate.uri_sans.first().map(|san| text(san)),
            Self::DnsSan => certificate.dns_sans.first().map(|san| text(san)),
            Self::Digest => Some(text(&certificate.sha256)),
        }
    }
}
