//! From format text to pieces.

use std::sync::Arc;

use super::Piece;
use super::clock::TimeFormat;
use super::grpc::GrpcStatusStyle;
use super::lookup::{Lookup, Source};
use super::operator::{Address, AddressPart, Command, Operator, PeerFact, ServerName, Side, TimePoint, TimeUnit};
use super::output::StaticText;
use crate::cel::Expression;

/// Envoy documents these, and nothing in this proxy knows their value: they render as missing, as they do in Envoy for
/// streams without one. Metadata of hosts and routes and filter state belong here because no filter of ours sets any.
const WITHOUT_VALUE: &[&str] = &[
    "CLUSTER_METADATA",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_TLS_GROUP",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "FILTER_CHAIN_NAME",
    "FILTER_STATE",
    "LOCAL_REPLY_BODY",
    "METADATA",
    "REQUEST_HEADERS_BYTES",
    "REQUEST_TX_DURATION",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "ROUNDTRIP_DURATION",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_METADATA",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_SERVER_NAME",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "VIRTUAL_CLUSTER_NAME",
];

/// One `%NAME(params):length%`.
struct Token<'a> {
    name: &'a str,
    params: Option<&'a str>,
    length: Option<usize>,
}

/// What a token is resolved to.
enum Resolved {
    Text(String),
    Operator(Operator),
}

/// Compiles `source`; the error says what is wrong and at which byte.
pub(super) fn parse(source: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(offset) = source[at..].find('%') {
        push_text(&mut pieces, &source[at..at + offset]);
        at += offset;
        let rest = &source[at + 1..];
        if rest.starts_with('%') {
            push_text(&mut pieces, "%");
            at += 2;
            continue;
        }
        let (token, length) = Token::read(rest).map_err(|reason| format!("{reason} at byte {at}"))?;
        match token.resolve() {
            Ok(Resolved::Text(text)) => push_text(&mut pieces, &text),
            Ok(Resolved::Operator(operator)) => {
                pieces.push(Piece::Command(Command { operator, limit: token.length.unwrap_or(usize::MAX) }));
            }
            Err(reason) => return Err(format!("%{}% at byte {at}: {reason}", token.name)),
        }
        at += 1 + length;
    }
    push_text(&mut pieces, &source[at..]);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => *last = StaticText::new(&format!("{}{text}", last.as_str())),
        _ => pieces.push(Piece::Text(StaticText::new(text))),
    }
}

impl<'a> Token<'a> {
    /// Reads a token behind its opening percent sign; also the length that was read, the closing sign included.
    fn read(rest: &'a str) -> Result<(Self, usize), String> {
        let name_end = rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).unwrap_or(rest.len());
        let (name, after_name) = rest.split_at(name_end);
        if name.is_empty() {
            return Err("an operator or %% is expected behind %".to_owned());
        }
        if let Some(inner) = after_name.strip_prefix('(') {
            // Parameters may hold percent signs and even brackets: the bracket that ends them is followed by % or :N%.
            for (close, _) in inner.match_indices(')') {
                if let Some((length, read)) = read_tail(&inner[close + 1..]) {
                    return Ok((Self { name, params: Some(&inner[..close]), length }, name_end + 1 + close + 1 + read));
                }
            }
            return Err(format!("%{name}(… has no closing )%"));
        }
        match read_tail(after_name) {
            Some((length, read)) => Ok((Self { name, params: None, length }, name_end + read)),
            None => Err(format!("%{name} has no closing %")),
        }
    }

    fn resolve(&self) -> Result<Resolved, String> {
        let operator = match (self.name, self.params) {
            ("HOSTNAME", None) => return Ok(Resolved::Text(host_name())),
            ("CUSTOM_FLAGS", None) => return Ok(Resolved::Text(String::new())),
            ("ENVIRONMENT", Some(variable)) => return Ok(Resolved::Text(self.environment(variable))),
            (_, params) => match (self.plain(), params) {
                (Some(_), Some(_)) => return Err("takes no parameters".to_owned()),
                (Some(operator), None) => operator,
                (None, _) => self.parametrised()?,
            },
        };
        let truncates = matches!(
            operator,
            Operator::Missing
                | Operator::RequestHeader(_)
                | Operator::RequestHeaderWithoutQuery(_)
                | Operator::ResponseHeader(_)
                | Operator::ResponseTrailer(_)
                | Operator::Path { .. }
                | Operator::QueryParam(_)
                | Operator::QueryParams { .. }
                | Operator::DynamicMetadata { .. }
                | Operator::Cel(..)
        );
        match self.length {
            Some(_) if !truncates => Err("takes no length".to_owned()),
            _ => Ok(Resolved::Operator(operator)),
        }
    }

    fn environment(&self, variable: &str) -> String {
        let value = std::env::var(variable).unwrap_or_else(|_| "-".to_owned());
        value.chars().filter(|c| !c.is_control()).take(self.length.unwrap_or(usize::MAX)).collect()
    }

    /// Operators that take no parameters.
    fn plain(&self) -> Option<Operator> {
        let duration = |from, to| Operator::Duration { from, to, unit: TimeUnit::Milliseconds };
        Some(match self.name {
            "PROTOCOL" => Operator::Protocol,
            "RESPONSE_CODE" => Operator::ResponseCode,
            "RESPONSE_FLAGS" => Operator::ResponseFlags,
            "RESPONSE_FLAGS_LONG" => Operator::ResponseFlagsLong,
            "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
            "BYTES_RECEIVED" => Operator::BytesReceived,
            "BYTES_SENT" => Operator::BytesSent,
            "DURATION" => duration(TimePoint::Start, TimePoint::End),
            "REQUEST_DURATION" => duration(TimePoint::Start, TimePoint::RequestEnd),
            "RESPONSE_DURATION" => duration(TimePoint::Start, TimePoint::ResponseStart),
            "RESPONSE_TX_DURATION" => duration(TimePoint::ResponseStart, TimePoint::End),
            // Envoy falls back to the address where an endpoint has no name.
            "UPSTREAM_HOST" | "UPSTREAM_HOST_NAME" => Operator::UpstreamHost,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::UpstreamRequestAttemptCount,
            "UPSTREAM_TLS_VERSION" => Operator::UpstreamTlsVersion,
            "UPSTREAM_TLS_CIPHER" => Operator::UpstreamTlsCipher,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Operator::DownstreamTransportFailureReason,
            "DOWNSTREAM_TLS_VERSION" => Operator::DownstreamTlsVersion,
            "DOWNSTREAM_TLS_CIPHER" => Operator::DownstreamTlsCipher,
            "ROUTE_NAME" => Operator::RouteName,
            "CONNECTION_ID" => Operator::ConnectionId,
            // Envoy's stream id is the request id.
            "STREAM_ID" => Operator::RequestHeader(Lookup { main: Source::named("x-request-id"), alternative: None }),
            "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(GrpcStatusStyle::Number),
            "ACCESS_LOG_TYPE" => Operator::AccessLogType,
            "UNIQUE_ID" => Operator::UniqueId,
            "TRACE_ID" => Operator::TraceId,
            "SPAN_ID" => Operator::SpanId,
            name => return certificate(name).or_else(|| self.address(name)),
        })
    }

    /// The address family, where only `_WITHOUT_PORT` takes a parameter.
    fn address(&self, name: &str) -> Option<Operator> {
        const FAMILIES: [(&str, Address); 6] = [
            ("DOWNSTREAM_LOCAL_", Address::DownstreamLocal),
            ("DOWNSTREAM_DIRECT_LOCAL_", Address::DownstreamLocal),
            ("DOWNSTREAM_REMOTE_", Address::DownstreamRemote),
            ("DOWNSTREAM_DIRECT_REMOTE_", Address::DownstreamDirectRemote),
            ("UPSTREAM_LOCAL_", Address::UpstreamLocal),
            ("UPSTREAM_REMOTE_", Address::UpstreamRemote),
        ];
        let (address, part) = FAMILIES.iter().find_map(|(prefix, address)| Some((*address, name.strip_prefix(prefix)?)))?;
        let part = match (part, self.params) {
            ("ADDRESS", _) => AddressPart::Whole,
            ("PORT", _) => AddressPart::Port,
            ("ADDRESS_WITHOUT_PORT", None) => AddressPart::Ip,
            _ => return None,
        };
        Some(Operator::Address(address, part))
    }

    /// Operators that take parameters, or may.
    fn parametrised(&self) -> Result<Operator, String> {
        let params = self.params;
        match (self.name, params) {
            ("START_TIME", _) => Ok(Operator::StartTime(time_format(params)?)),
            ("EMIT_TIME", _) => Ok(Operator::EmitTime(time_format(params)?)),
            ("START_TIME_LOCAL" | "EMIT_TIME_LOCAL", _) => Err("local time is not supported, logs are in UTC".to_owned()),
            ("REQ" | "REQUEST_HEADER", Some(names)) => Ok(Operator::RequestHeader(lookup(names)?)),
            ("REQ_WITHOUT_QUERY", Some(names)) => Ok(Operator::RequestHeaderWithoutQuery(lookup(names)?)),
            ("RESP" | "RESPONSE_HEADER", Some(names)) => Ok(Operator::ResponseHeader(lookup(names)?)),
            ("TRAILER" | "RESPONSE_TRAILER", Some(names)) => Ok(Operator::ResponseTrailer(lookup(names)?)),
            ("QUERY_PARAM", Some(name)) if !name.is_empty() => Ok(Operator::QueryParam(name.into())),
            ("QUERY_PARAMS", None | Some("" | "ORIG")) => Ok(Operator::QueryParams { decoded: false }),
            ("QUERY_PARAMS", Some("DECODED")) => Ok(Operator::QueryParams { decoded: true }),
            (name, _) if name.ends_with("_PEER_CERT_V_START") || name.ends_with("_PEER_CERT_V_END") => validity(name, params),
            ("PATH", _) => path(params.unwrap_or_default()),
            ("REQUESTED_SERVER_NAME", _) => server_name(params.unwrap_or_default()),
            ("RESPONSE_CODE_DETAILS", _) => {
                Ok(Operator::ResponseCodeDetails { allow_whitespace: params == Some("ALLOW_WHITESPACES") })
            }
            ("COMMON_DURATION", Some(points)) => common_duration(points),
            ("GRPC_STATUS", _) => grpc_status(params.unwrap_or_default()),
            ("DYNAMIC_METADATA", Some(path)) => dynamic_metadata(path),
            ("CEL", Some(expression)) => cel(expression, false),
            ("TYPED_CEL", Some(expression)) => cel(expression, true),
            (name, Some(bits)) if name.ends_with("_ADDRESS_WITHOUT_PORT") => self.network(bits),
            (name, _) if WITHOUT_VALUE.contains(&name) => Ok(Operator::Missing),
            ("REQ" | "RESP" | "TRAILER" | "QUERY_PARAM" | "COMMON_DURATION" | "ENVIRONMENT" | "DYNAMIC_METADATA", _) => {
                Err("needs a parameter".to_owned())
            }
            _ => Err("unknown operator, or one that does not take this parameter".to_owned()),
        }
    }

    fn network(&self, bits: &str) -> Result<Operator, String> {
        let bits = bits.parse().ok().filter(|bits| *bits <= 128);
        let bits: u8 = bits.ok_or("the parameter must be a prefix length")?;
        let whole = Token { name: self.name, params: None, length: None };
        match whole.address(self.name) {
            Some(Operator::Address(address, _)) => Ok(Operator::Address(address, AddressPart::Network(bits))),
            _ => Err("unknown operator".to_owned()),
        }
    }
}

/// The operators that name a fact of a certificate: the other side's, or our own.
fn certificate(name: &str) -> Option<Operator> {
    let (side, rest) = side(name)?;
    let (whose, fact): (fn(Side, PeerFact) -> Operator, _) = match rest.split_once('_')? {
        ("PEER", fact) => (Operator::Peer, fact),
        ("LOCAL", fact) => (Operator::Own, fact),
        _ => return None,
    };
    Some(whose(
        side,
        match fact {
            "SUBJECT" => PeerFact::Subject,
            "URI_SAN" => PeerFact::UriSan,
            "DNS_SAN" => PeerFact::DnsSan,
            "EMAIL_SAN" => PeerFact::EmailSan,
            "IP_SAN" => PeerFact::IpSan,
            "ISSUER" if rest.starts_with("PEER") => PeerFact::Issuer,
            "SERIAL" if rest.starts_with("PEER") => PeerFact::Serial,
            "FINGERPRINT_256" if rest.starts_with("PEER") => PeerFact::Fingerprint256,
            "CERT" if rest.starts_with("PEER") => PeerFact::Certificate,
            _ => return None,
        },
    ))
}

fn side(name: &str) -> Option<(Side, &str)> {
    let downstream = name.strip_prefix("DOWNSTREAM_").map(|rest| (Side::Downstream, rest));
    downstream.or_else(|| name.strip_prefix("UPSTREAM_").map(|rest| (Side::Upstream, rest)))
}

fn validity(name: &str, params: Option<&str>) -> Result<Operator, String> {
    let format = time_format(params)?;
    let (side, rest) = side(name).ok_or("unknown operator")?;
    Ok(Operator::Peer(side, if rest.ends_with("START") { PeerFact::ValidFrom(format) } else { PeerFact::ValidUntil(format) }))
}

/// Reads `%` or `:N%`: the length, and how much was read.
fn read_tail(rest: &str) -> Option<(Option<usize>, usize)> {
    if rest.starts_with('%') {
        return Some((None, 1));
    }
    let digits = rest.strip_prefix(':')?;
    let end = digits.find('%')?;
    Some((Some(digits[..end].parse().ok()?), end + 2))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "-".to_owned(),
        name => name.to_owned(),
    }
}

/// `filter:key:key`. The name of a filter is followed by any number of keys.
fn dynamic_metadata(path: &str) -> Result<Operator, String> {
    let (filter, keys) = path.split_once(':').unwrap_or((path, ""));
    if filter.is_empty() {
        return Err("the parameter must begin with the name of a filter".to_owned());
    }
    let keys = keys.split(':').filter(|key| !key.is_empty()).map(str::to_owned).collect();
    Ok(Operator::DynamicMetadata { filter: filter.into(), keys })
}

fn time_format(params: Option<&str>) -> Result<TimeFormat, String> {
    match params {
        None | Some("") => Ok(TimeFormat::Default),
        Some(format) => TimeFormat::compile(format),
    }
}

fn lookup(names: &str) -> Result<Lookup, String> {
    let (main, alternative) = match names.split_once('?') {
        Some((_, alternative)) if alternative.contains('?') => return Err("takes one alternative header at most".to_owned()),
        Some((main, alternative)) => (main, Some(alternative)),
        None => (names, None),
    };
    for name in [Some(main), alternative].into_iter().flatten() {
        if name.is_empty() || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(format!("{name:?} is no header name"));
        }
    }
    Ok(Lookup { main: Source::named(main), alternative: alternative.map(Source::named) })
}

fn path(params: &str) -> Result<Operator, String> {
    let (query, source) = params.split_once(':').unwrap_or((params, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err("the first parameter must be WQ or NQ".to_owned()),
    };
    let original = Source::named("x-envoy-original-path");
    let source = match source {
        "" | "ORIG_OR_PATH" => Lookup { main: original, alternative: Some(Source::Path) },
        "ORIG" => Lookup { main: original, alternative: None },
        "PATH" => Lookup { main: Source::Path, alternative: None },
        _ => return Err("the second parameter must be ORIG, PATH or ORIG_OR_PATH".to_owned()),
    };
    Ok(Operator::Path { source, query })
}

fn server_name(params: &str) -> Result<Operator, String> {
    let (first, source) = params.split_once(':').unwrap_or((params, ""));
    let first = match first {
        "" | "SNI_ONLY" => ServerName::SniOnly,
        "SNI_FIRST" => ServerName::SniFirst,
        "HOST_FIRST" => ServerName::HostFirst,
        _ => return Err("the first parameter must be SNI_ONLY, SNI_FIRST or HOST_FIRST".to_owned()),
    };
    let original = Source::named("x-envoy-original-host");
    let host = match source {
        "" | "ORIG_OR_HOST" => Lookup { main: original, alternative: Some(Source::Authority) },
        "ORIG" => Lookup { main: original, alternative: None },
        "HOST" => Lookup { main: Source::Authority, alternative: None },
        _ => return Err("the second parameter must be ORIG, HOST or ORIG_OR_HOST".to_owned()),
    };
    Ok(Operator::RequestedServerName { first, host })
}

fn common_duration(params: &str) -> Result<Operator, String> {
    let mut parts = params.split(':');
    let (from, to, unit) = (parts.next(), parts.next(), parts.next());
    let (Some(from), Some(to), None) = (from, to, parts.next()) else {
        return Err("the parameters must be START:END:PRECISION".to_owned());
    };
    let unit = match unit {
        None | Some("ms") => TimeUnit::Milliseconds,
        Some("us") => TimeUnit::Microseconds,
        Some("ns") => TimeUnit::Nanoseconds,
        Some(_) => return Err("the precision must be ms, us or ns".to_owned()),
    };
    // Envoy takes other names for time points that a filter may set; none of ours does.
    let (Some(from), Some(to)) = (time_point(from), time_point(to)) else { return Ok(Operator::Missing) };
    Ok(Operator::Duration { from, to, unit })
}

fn time_point(name: &str) -> Option<TimePoint> {
    Some(match name {
        "DS_CX_BEG" => TimePoint::ConnectionStart,
        "DS_RX_BEG" => TimePoint::Start,
        "DS_RX_END" => TimePoint::RequestEnd,
        "US_TX_BEG" => TimePoint::UpstreamStart,
        "US_RX_BEG" => TimePoint::ResponseStart,
        "US_RX_END" => TimePoint::ResponseEnd,
        "DS_TX_END" | "DS_CX_END" => TimePoint::End,
        _ => return None,
    })
}

fn grpc_status(params: &str) -> Result<Operator, String> {
    Ok(Operator::GrpcStatus(match params {
        "" | "CAMEL_STRING" => GrpcStatusStyle::Camel,
        "SNAKE_STRING" => GrpcStatusStyle::Snake,
        "NUMBER" => GrpcStatusStyle::Number,
        _ => return Err("the parameter must be CAMEL_STRING, SNAKE_STRING or NUMBER".to_owned()),
    }))
}

fn cel(expression: &str, typed: bool) -> Result<Operator, String> {
    Expression::compile(expression).map(|expression| Operator::Cel(Arc::new(expression), typed)).map_err(|error| error.reason)
}
