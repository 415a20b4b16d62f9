//! The operators: what each appends, given a stream.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::clock::TimeFormat;
use super::grpc::{GrpcStatusStyle, grpc_status};
use super::lookup::{Lookup, query_param, query_params, without_query};
use super::output::Output;
use crate::cel::Expression;
use crate::http::head::Version;
use crate::jwt::json;
use crate::stream_info::{FormatContext, LogMoment, StreamInfo};
use crate::tls::PeerCertificate;

/// An operator with the limit that `:N` sets.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) operator: Operator,
    /// Bytes kept of the value; `usize::MAX` without `:N`.
    pub(super) limit: usize,
}

/// What an operator names. Each is Envoy's operator of that name.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    /// Has no value in this proxy, ever.
    Missing,
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    RequestHeader(Lookup),
    RequestHeaderWithoutQuery(Lookup),
    ResponseHeader(Lookup),
    ResponseTrailer(Lookup),
    Path {
        source: Lookup,
        query: bool,
    },
    QueryParam(Box<str>),
    QueryParams {
        decoded: bool,
    },
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseFlagsLong,
    ResponseCodeDetails {
        allow_whitespace: bool,
    },
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration {
        from: TimePoint,
        to: TimePoint,
        unit: TimeUnit,
    },
    UpstreamHost,
    UpstreamCluster,
    Address(Address, AddressPart),
    Peer(Side, PeerFact),
    Own(Side, PeerFact),
    DownstreamTransportFailureReason,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    RequestedServerName {
        first: ServerName,
        host: Lookup,
    },
    RouteName,
    ConnectionId,
    UpstreamRequestAttemptCount,
    GrpcStatus(GrpcStatusStyle),
    AccessLogType,
    UniqueId,
    TraceId,
    SpanId,
    /// Typed in JSON where the second is set.
    Cel(Arc<Expression>, bool),
    DynamicMetadata {
        filter: Box<str>,
        keys: Box<[String]>,
    },
}

/// Ends of a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimePoint {
    ConnectionStart,
    Start,
    RequestEnd,
    UpstreamStart,
    ResponseStart,
    ResponseEnd,
    End,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum TimeUnit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Address {
    DownstreamLocal,
    DownstreamRemote,
    DownstreamDirectRemote,
    UpstreamLocal,
    UpstreamRemote,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum AddressPart {
    Whole,
    Ip,
    /// In CIDR notation, masked to so many bits.
    Network(u8),
    Port,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// What an operator names of a certificate.
#[derive(Clone, Debug)]
pub(super) enum PeerFact {
    UriSan,
    DnsSan,
    EmailSan,
    IpSan,
    Subject,
    Issuer,
    Serial,
    Fingerprint256,
    Certificate,
    ValidFrom(TimeFormat),
    ValidUntil(TimeFormat),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ServerName {
    SniOnly,
    SniFirst,
    HostFirst,
}

impl Command {
    /// Whether a JSON log writes the value as a number.
    pub(super) fn is_number(&self) -> bool {
        matches!(
            self.operator,
            Operator::ResponseCode
                | Operator::BytesReceived
                | Operator::BytesSent
                | Operator::Duration { .. }
                | Operator::Address(_, AddressPart::Port)
                | Operator::ConnectionId
                | Operator::UpstreamRequestAttemptCount
                | Operator::GrpcStatus(GrpcStatusStyle::Number)
        )
    }

    /// What a JSON log writes as the JSON that it is.
    pub(super) fn json(&self, context: &FormatContext<'_>) -> Option<Vec<u8>> {
        if let Operator::Cel(expression, true) = &self.operator {
            let mut json = Vec::new();
            return expression.write(context, true, &mut json).then_some(json);
        }
        let Operator::DynamicMetadata { filter, keys } = &self.operator else { return None };
        let value = context.info.found_out(filter, keys).filter(|value| !value.is_string())?;
        let mut json = Vec::new();
        json::write(value, &mut json);
        Some(json)
    }

    /// Appends the value; false, and nothing appended, when there is none.
    pub(super) fn write(&self, context: &FormatContext<'_>, out: &mut Output<'_>) -> bool {
        out.limit = self.limit;
        let written = self.operator.write(context, out);
        out.limit = usize::MAX;
        written
    }
}

impl Operator {
    fn write(&self, context: &FormatContext<'_>, out: &mut Output<'_>) -> bool {
        let info = context.info;
        match self {
            Self::RequestHeader(lookup) => write_bytes(lookup.in_request(context.request), out),
            Self::ResponseHeader(lookup) => write_bytes(lookup.in_response(context.response), out),
            Self::StartTime(format) => format.write(info.start_time, out),
            Self::Protocol => out.text(info.protocol.map(Version::as_str)),
            Self::ResponseCode => out.number(info.response_code.into()),
            Self::ResponseFlags => write_flags(info, str::as_bytes, out),
            Self::ResponseCodeDetails { allow_whitespace: false } => out.one_word(Some(&info.details)),
            Self::ConnectionTerminationDetails => out.text(info.termination_details.as_deref()),
            Self::UpstreamTransportFailureReason => out.one_word(info.upstream_transport_failure.as_deref()),
            Self::BytesReceived => out.number(info.bytes_received),
            Self::BytesSent => out.number(info.bytes_sent),
            Self::Duration { from, to, unit } => write_duration(*from, *to, *unit, context, out),
            Self::UpstreamHost => out.text(info.upstream_host.as_deref()),
            Self::UpstreamCluster => out.text(info.upstream_cluster.as_deref()),
            Self::Address(address, part) => write_address(*address, *part, info, out),
            Self::RequestedServerName { first, host } => write_server_name(*first, host, context, out),
            Self::RouteName => out.text(info.route_name.as_deref()),
            Self::ResponseTrailer(lookup) => write_bytes(lookup.in_trailers(context.trailers), out),
            Self::RequestHeaderWithoutQuery(source) | Self::Path { source, query: false } => {
                write_bytes(source.in_request(context.request).map(without_query), out)
            }
            Self::Path { source, query: true } => write_bytes(source.in_request(context.request), out),
            Self::QueryParam(name) => write_bytes(context.request.and_then(|head| query_param(head, name)), out),
            Self::QueryParams { decoded } => write_bytes(context.request.and_then(|head| query_params(head, *decoded)), out),
            Self::EmitTime(format) => format.write(info.start_time + context.now.saturating_duration_since(info.start), out),
            Self::ConnectionId => out.number(info.connection.id),
            Self::UpstreamRequestAttemptCount => out.number(info.attempts.into()),
            Self::ResponseFlagsLong => write_flags(info, |short| long_name(short).as_bytes(), out),
            Self::GrpcStatus(style) => grpc_status(context).is_some_and(|status| style.write(status, out)),
            Self::Peer(side, fact) => side.certificate(info).is_some_and(|peer| fact.write(peer, out)),
            Self::UniqueId => write_uuid(out),
            Self::TraceId => info.trace.is_some_and(|ids| out.trusted(format!("{:032x}", ids.trace).as_bytes())),
            Self::SpanId => info.trace.is_some_and(|ids| out.trusted(format!("{:016x}", ids.span).as_bytes())),
            Self::AccessLogType => out.trusted(match info.moment {
                LogMoment::End if info.protocol.is_some() => b"DownstreamEnd",
                LogMoment::End => b"TcpConnectionEnd",
                LogMoment::TcpStart => b"TcpConnectionStart",
                LogMoment::TcpConnected => b"TcpUpstreamConnected",
                LogMoment::TcpPeriodic => b"TcpPeriodic",
            }),
            Self::ResponseCodeDetails { allow_whitespace: true } => out.text(Some(&info.details)),
            Self::Own(side, fact) => side.own(info).is_some_and(|own| fact.write(own, out)),
            Self::DownstreamTransportFailureReason => out.one_word(info.connection.transport_failure.as_deref()),
            Self::DownstreamTlsVersion => out.text(info.connection.tls_version),
            Self::DownstreamTlsCipher => out.text(info.connection.tls_cipher),
            Self::UpstreamTlsCipher => out.text(info.upstream.as_ref().and_then(|upstream| upstream.tls_cipher)),
            Self::UpstreamTlsVersion => out.text(info.upstream.as_ref().and_then(|upstream| upstream.tls_version)),
            Self::Cel(expression, _) => {
                let mut text = Vec::new();
                expression.write(context, false, &mut text) && out.untrusted(&text)
            }
            Self::DynamicMetadata { filter, keys } => info.found_out(filter, keys).is_some_and(|value| write_value(value, out)),
            Self::Missing => false,
        }
    }
}

fn write_bytes(value: Option<Cow<'_, [u8]>>, out: &mut Output<'_>) -> bool {
    value.is_some_and(|value| out.untrusted(&value))
}

/// A text as it is, anything else as JSON.
fn write_value(value: &Value, out: &mut Output<'_>) -> bool {
    match value {
        Value::String(text) => out.untrusted(text.as_bytes()),
        _ => {
            let mut json = Vec::new();
            json::write(value, &mut json);
            out.untrusted(&json)
        }
    }
}

fn write_duration(from: TimePoint, to: TimePoint, unit: TimeUnit, context: &FormatContext<'_>, out: &mut Output<'_>) -> bool {
    let (Some(from), Some(to)) = (from.of(context), to.of(context)) else { return false };
    let Some(duration) = to.checked_duration_since(from) else { return false };
    let count = match unit {
        TimeUnit::Milliseconds => duration.as_millis(),
        TimeUnit::Microseconds => duration.as_micros(),
        TimeUnit::Nanoseconds => duration.as_nanos(),
    };
    out.number(u64::try_from(count).unwrap_or(u64::MAX))
}

impl TimePoint {
    fn of(self, context: &FormatContext<'_>) -> Option<Instant> {
        let info = context.info;
        match self {
            Self::ConnectionStart => Some(info.connection.start),
            Self::Start => Some(info.start),
            Self::RequestEnd => info.request_end,
            Self::UpstreamStart => info.upstream_start,
            Self::ResponseStart => info.response_start,
            Self::ResponseEnd => info.response_end,
            Self::End => Some(context.now),
        }
    }
}

fn write_flags(info: &StreamInfo, name: impl Fn(&'static str) -> &'static [u8], out: &mut Output<'_>) -> bool {
    if info.flags.is_empty() {
        return out.trusted(b"-");
    }
    let mut write = |index: usize, short: &'static str| {
        if index > 0 {
            out.trusted(b",");
        }
        out.trusted(name(short));
    };
    if info.protocol.is_some() {
        info.flags.short_names().enumerate().for_each(|(index, short)| write(index, short));
    } else {
        info.flags.short_names_tcp().enumerate().for_each(|(index, short)| write(index, short));
    }
    true
}

/// Envoy's long name of a flag, from its short one.
fn long_name(short: &'static str) -> &'static str {
    match short {
        "LH" => "FailedLocalHealthCheck",
        "UH" => "NoHealthyUpstream",
        "UT" => "UpstreamRequestTimeout",
        "LR" => "LocalReset",
        "UR" => "UpstreamRemoteReset",
        "UF" => "UpstreamConnectionFailure",
        "UC" => "UpstreamConnectionTermination",
        "UO" => "UpstreamOverflow",
        "NR" => "NoRouteFound",
        "DI" => "DelayInjected",
        "FI" => "FaultInjected",
        "RL" => "RateLimited",
        "UAEX" => "UnauthorizedExternalService",
        "RLSE" => "RateLimitServiceError",
        "DC" => "DownstreamConnectionTermination",
        "URX" => "UpstreamRetryLimitExceeded",
        "SI" => "StreamIdleTimeout",
        "IH" => "InvalidEnvoyRequestHeaders",
        "DPE" => "DownstreamProtocolError",
        "UMSDR" => "UpstreamMaxStreamDurationReached",
        "RFCF" => "ResponseFromCacheFilter",
        "NFCF" => "NoFilterConfigFound",
        "DT" => "DurationTimeout",
        "UPE" => "UpstreamProtocolError",
        "NC" => "NoClusterFound",
        "OM" => "OverloadManagerTerminated",
        "DF" => "DnsResolutionFailed",
        "UDO" => "UnconditionalDropOverload",
        "DR" => "DownstreamRemoteReset",
        _ => short,
    }
}

fn write_address(address: Address, part: AddressPart, info: &StreamInfo, out: &mut Output<'_>) -> bool {
    let socket = match address {
        Address::DownstreamLocal => info.connection.local,
        Address::DownstreamRemote => info.remote,
        Address::DownstreamDirectRemote => info.connection.remote,
        Address::UpstreamLocal => match info.upstream.as_ref().and_then(|upstream| upstream.local) {
            Some(local) => local,
            None => return false,
        },
        Address::UpstreamRemote => {
            // The remote address is that of a connection, the host is what was tried.
            let Some(host) = info.upstream_host.as_deref().filter(|_| info.upstream.is_some()) else { return false };
            match host.parse() {
                Ok(socket) => socket,
                Err(_) if matches!(part, AddressPart::Port) => return false,
                Err(_) => return out.untrusted(host.as_bytes()),
            }
        }
    };
    write_socket(socket, part, out)
}

fn write_socket(socket: SocketAddr, part: AddressPart, out: &mut Output<'_>) -> bool {
    match part {
        AddressPart::Whole => out.address(socket),
        AddressPart::Ip => out.ip(socket.ip()),
        AddressPart::Port => out.number(socket.port().into()),
        AddressPart::Network(bits) => {
            let bits = bits.min(if socket.is_ipv4() { 32 } else { 128 });
            match ipnet::IpNet::new(socket.ip(), bits).map(|net| net.network()) {
                Ok(network) => write_cidr(network, bits, out),
                Err(_) => out.ip(socket.ip()),
            }
        }
    }
}

fn write_cidr(network: IpAddr, bits: u8, out: &mut Output<'_>) -> bool {
    out.ip(network);
    out.trusted(b"/");
    out.number(bits.into())
}

impl Side {
    fn certificate(self, info: &StreamInfo) -> Option<&PeerCertificate> {
        match self {
            Self::Downstream => info.connection.peer.as_deref(),
            Self::Upstream => info.upstream.as_ref()?.peer.as_deref(),
        }
    }

    fn own(self, info: &StreamInfo) -> Option<&PeerCertificate> {
        match self {
            Self::Downstream => info.connection.local_certificate.as_deref(),
            Self::Upstream => info.upstream.as_ref()?.local_certificate.as_deref(),
        }
    }
}

impl PeerFact {
    fn write(&self, peer: &PeerCertificate, out: &mut Output<'_>) -> bool {
        let text = match self {
            Self::UriSan => return out.list(&peer.uri_sans),
            Self::DnsSan => return out.list(&peer.dns_sans),
            Self::EmailSan => return out.list(&peer.email_sans),
            Self::IpSan => return out.list(&peer.ip_sans),
            Self::Certificate => return !peer.chain.is_empty() && out.untrusted(&peer.encoded()),
            Self::ValidFrom(format) => return peer.validity.is_some_and(|(from, _)| format.write(from, out)),
            Self::ValidUntil(format) => return peer.validity.is_some_and(|(_, until)| format.write(until, out)),
            Self::Subject => &peer.subject,
            Self::Issuer => &peer.issuer,
            Self::Serial => &peer.serial,
            Self::Fingerprint256 => &peer.sha256,
        };
        out.text(Some(text))
    }
}

fn write_server_name(first: ServerName, host: &Lookup, context: &FormatContext<'_>, out: &mut Output<'_>) -> bool {
    let sni = context.info.connection.server_name.as_deref().filter(|name| !name.is_empty());
    match (first, sni) {
        (ServerName::SniOnly | ServerName::SniFirst, Some(name)) => write_host_name(name, out),
        (ServerName::SniOnly, None) => false,
        (ServerName::SniFirst, None) | (ServerName::HostFirst, _) => write_bytes(host.in_request(context.request), out),
    }
}

/// A server name that no DNS name looks like is marked, and what does not belong into one is replaced: nobody can forge a
/// log line with it. Underscores do belong: Istio's own names are `outbound_.9080_._.host`, and Envoy logs them as they are.
fn write_host_name(name: &str, out: &mut Output<'_>) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.bytes().all(valid) {
        return out.trusted(name.as_bytes());
    }
    out.trusted(b"invalid:");
    let cleaned: Vec<u8> = name.bytes().map(|byte| if valid(byte) { byte } else { b'_' }).collect();
    out.trusted(&cleaned)
}

/// A random UUID (version 4).
fn write_uuid(out: &mut Output<'_>) -> bool {
    let version_and_variant = (0xf000 << 64) | (0xc000 << 48);
    let random = (fastrand::u128(..) & !version_and_variant) | (0x4000 << 64) | (0x8000 << 48);
    for (index, byte) in random.to_be_bytes().into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.trusted(b"-");
        }
        let hex = b"0123456789abcdef";
        out.trusted(&[hex[usize::from(byte >> 4)], hex[usize::from(byte & 15)]]);
    }
    true
}
