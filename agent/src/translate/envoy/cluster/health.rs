//! Active health checks.

use std::ops::Range;
use std::time::Duration;

use skiff_proto::envoy::config::core::v3::{self as core, health_check as pb};
use skiff_proto::envoy::r#type::v3::{CodecClientType, Int64Range};
use skiff_proxy::config::{
    GrpcHealthCheck, HeaderValueOption, HealthCheck, HealthCheckIntervals, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};

use super::super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::super::{basic, endpoint, route};

/// Envoy looks at so much of an answer.
const RESPONSE_BUFFER: u64 = 1024;
/// Longer than any probe needs: what is sent and expected is held for every cluster.
const MAX_PAYLOAD: usize = 64 * 1024;

/// Envoy, too, takes no more than one.
pub(super) fn checks(messages: &[core::HealthCheck]) -> Outcome<Option<HealthCheck>> {
    match messages {
        [] => Ok(None),
        [message] => health_check(message).at("[0]").map(Some),
        _ => invalid("expected no more than one"),
    }
}

fn health_check(message: &core::HealthCheck) -> Outcome<HealthCheck> {
    let time = |value: &Option<_>, field| basic::duration(required(value.as_ref(), field)?).at(field);
    let threshold = |value: &Option<_>, field| match required(value.as_ref(), field).map(|value| basic::count(Some(value), 0))? {
        0 => invalid("expected at least 1").at(field),
        count => Ok(count),
    };
    Ok(HealthCheck {
        timeout: time(&message.timeout, "timeout")?,
        unhealthy_threshold: threshold(&message.unhealthy_threshold, "unhealthy_threshold")?,
        healthy_threshold: threshold(&message.healthy_threshold, "healthy_threshold")?,
        intervals: intervals(message, time(&message.interval, "interval")?)?,
        reuse_connection: basic::flag(message.reuse_connection.as_ref(), true),
        alpn: message.tls_options.as_ref().map_or_else(Vec::new, |options| options.alpn_protocols.clone()),
        transport_match: maybe(
            message.transport_socket_match_criteria.as_ref(),
            "transport_socket_match_criteria",
            endpoint::strings,
        )?,
        checker: match required(message.health_checker.as_ref(), "health_checker")? {
            pb::HealthChecker::HttpHealthCheck(ask) => HealthChecker::Http(Box::new(http(ask).at("http_health_check")?)),
            pb::HealthChecker::GrpcHealthCheck(ask) => HealthChecker::Grpc(grpc(ask).at("grpc_health_check")?),
            pb::HealthChecker::TcpHealthCheck(ask) => HealthChecker::Tcp(TcpHealthCheck {
                send: maybe(ask.send.as_ref(), "tcp_health_check.send", hex)?.unwrap_or_default(),
                receive: each(&ask.receive, "tcp_health_check.receive", hex)?,
            }),
            pb::HealthChecker::CustomHealthCheck(custom) => {
                return invalid(format!("{} is not supported", custom.name)).at("custom_health_check");
            }
        },
    })
}

fn intervals(message: &core::HealthCheck, interval: Duration) -> Outcome<HealthCheckIntervals> {
    let or = basic::duration_or;
    let defaults = HealthCheckIntervals::every(interval);
    let unhealthy = or(message.unhealthy_interval.as_ref(), interval, "unhealthy_interval")?;
    let no_traffic = or(message.no_traffic_interval.as_ref(), defaults.no_traffic, "no_traffic_interval")?;
    Ok(HealthCheckIntervals {
        interval,
        unhealthy,
        unhealthy_edge: or(message.unhealthy_edge_interval.as_ref(), unhealthy, "unhealthy_edge_interval")?,
        healthy_edge: or(message.healthy_edge_interval.as_ref(), interval, "healthy_edge_interval")?,
        no_traffic,
        no_traffic_healthy: or(message.no_traffic_healthy_interval.as_ref(), no_traffic, "no_traffic_healthy_interval")?,
        initial_jitter: or(message.initial_jitter.as_ref(), Duration::ZERO, "initial_jitter")?,
        jitter: or(message.interval_jitter.as_ref(), Duration::ZERO, "interval_jitter")?,
        jitter_percent: message.interval_jitter_percent,
    })
}

fn http(message: &pb::HttpHealthCheck) -> Outcome<HttpHealthCheck> {
    use core::RequestMethod as Method;
    let method = match Method::try_from(message.method) {
        Ok(Method::MethodUnspecified) => Method::Get,
        Ok(Method::Connect) | Err(_) => return invalid("expected a method other than CONNECT").at("method"),
        Ok(method) => method,
    };
    let send = maybe(message.send.as_ref(), "send", hex)?.unwrap_or_default();
    if !send.is_empty() && matches!(method, Method::Get | Method::Head | Method::Delete | Method::Trace) {
        return invalid(format!("expected a method that has a body, found {}", method.as_str_name())).at("method");
    }
    let http2 = match CodecClientType::try_from(message.codec_client_type) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        Ok(CodecClientType::Http3) | Err(_) => return invalid("expected HTTP1 or HTTP2").at("codec_client_type"),
    };
    if message.path.is_empty() {
        return invalid("is empty").at("path");
    }
    let expected_statuses = each(&message.expected_statuses, "expected_statuses", statuses)?;
    Ok(HttpHealthCheck {
        host: message.host.clone(),
        path: message.path.clone(),
        method: method.as_str_name().to_owned(),
        send,
        receive: each(&message.receive, "receive", hex)?,
        response_buffer_size: match message.response_buffer_size.map_or(RESPONSE_BUFFER, |size| size.value) {
            0 => u64::MAX,
            size => size,
        },
        headers_to_add: each(&message.request_headers_to_add, "request_headers_to_add", literal)?,
        headers_to_remove: message.request_headers_to_remove.clone(),
        // An end is exclusive.
        expected_statuses: if expected_statuses.is_empty() { HttpHealthCheck::only(200) } else { expected_statuses },
        retriable_statuses: each(&message.retriable_statuses, "retriable_statuses", statuses)?,
        http2,
        service_name: maybe(message.service_name_matcher.as_ref(), "service_name_matcher", basic::string_matcher)?,
    })
}

fn grpc(message: &pb::GrpcHealthCheck) -> Outcome<GrpcHealthCheck> {
    Ok(GrpcHealthCheck {
        service_name: message.service_name.clone(),
        authority: message.authority.clone(),
        initial_metadata: each(&message.initial_metadata, "initial_metadata", literal)?,
    })
}

fn statuses(range: &Int64Range) -> Outcome<Range<u16>> {
    match (u16::try_from(range.start), u16::try_from(range.end)) {
        (Ok(start), Ok(end)) if (100..end).contains(&start) && end <= 600 => Ok(start..end),
        _ => invalid(format!("expected 100 <= start < end <= 600, found {} and {}", range.start, range.end)),
    }
}

/// There is no request whose properties a format could name.
fn literal(message: &core::HeaderValueOption) -> Outcome<HeaderValueOption> {
    let option = route::header_value_option(message)?;
    if option.value.replace("%%", "").contains('%') {
        return invalid("expected a literal value").at("header.value");
    }
    Ok(HeaderValueOption { value: option.value.replace("%%", "%"), ..option })
}

/// Hexadecimal text, or bytes.
fn hex(message: &pb::Payload) -> Outcome<Vec<u8>> {
    let bytes = match required(message.payload.as_ref(), "payload")? {
        pb::payload::Payload::Binary(bytes) => bytes.clone(),
        pb::payload::Payload::Text(text) => {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let pair = |pair: &[u8]| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            };
            match text.as_bytes().chunks(2).map(pair).collect::<Option<Vec<u8>>>() {
                Some(bytes) => bytes,
                None => return invalid("expected pairs of hexadecimal digits").at("text"),
            }
        }
    };
    if bytes.len() > MAX_PAYLOAD { invalid(format!("expected at most {MAX_PAYLOAD} bytes")) } else { Ok(bytes) }
}
