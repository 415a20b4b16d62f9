//! The HTTP connection manager.

use std::sync::Arc;
use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use skiff_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use skiff_proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use skiff_proxy::config;

use super::http_filter::{self, Filters};
use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{access_log, any, basic, route, stats, tracing};

pub(super) fn http_connection_manager(
    message: &pb::HttpConnectionManager,
    direction: config::TrafficDirection,
) -> Outcome<config::HttpConnectionManager> {
    let routes = routes(message);
    let filters = http_filter::filters(&message.http_filters);
    let (routes, Filters { chain, router, stats }) = match (routes, filters) {
        (Ok(routes), Ok(filters)) => (routes, filters),
        (routes, filters) => return Err([routes.err(), filters.err()].into_iter().flatten().flatten().collect()),
    };
    let mut manager = config::HttpConnectionManager {
        codec: codec(message.codec_type)?,
        server_header: server_header(message.server_header_transformation)?,
        filters: chain,
        stats: maybe(stats.as_ref(), "http_filters", |message| stats::stats(message, direction))?.map(Arc::new),
        access_log: each(&message.access_log, "access_log", access_log::access_log)?,
        upgrades: upgrades(&message.upgrade_configs)?,
        proxy_100_continue: message.proxy_100_continue,
        suppress_envoy_headers: router.suppress_envoy_headers,
        strict_check_headers: router.strict_check_headers,
        ..config::HttpConnectionManager::new(&message.stat_prefix, direction, routes)
    };
    if !message.server_name.is_empty() {
        manager.server_name.clone_from(&message.server_name);
    }
    if let Some(hcm::RouteSpecifier::Rds(rds)) = &message.route_specifier {
        manager.initial_fetch_timeout = basic::fetch_timeout(rds.config_source.as_ref()).at("rds.config_source")?;
    }
    paths(message, &mut manager)?;
    let request_id = identity(message, &mut manager)?;
    let tracing = maybe(message.tracing.as_ref(), "tracing", |block| tracing::tracing(block, request_id.as_ref()))?;
    manager.tracing = tracing.flatten().map(Arc::new);
    timeouts(message, &mut manager)?;
    protocols(message, &mut manager)?;
    Ok(manager)
}

fn routes(message: &pb::HttpConnectionManager) -> Outcome<config::RouteSource> {
    match required(message.route_specifier.as_ref(), "route_config")? {
        hcm::RouteSpecifier::Rds(rds) => Ok(config::RouteSource::Named(rds.route_config_name.clone())),
        hcm::RouteSpecifier::RouteConfig(routes) => {
            Ok(config::RouteSource::Inline(Arc::new(route::route_configuration(routes).at("route_config")?)))
        }
        hcm::RouteSpecifier::ScopedRoutes(_) => invalid("is not supported").at("scoped_routes"),
    }
}

fn codec(value: i32) -> Outcome<config::Codec> {
    match hcm::CodecType::try_from(value) {
        Ok(hcm::CodecType::Auto) => Ok(config::Codec::Auto),
        Ok(hcm::CodecType::Http1) => Ok(config::Codec::Http1),
        Ok(hcm::CodecType::Http2) => Ok(config::Codec::Http2),
        _ => invalid("expected AUTO, HTTP1 or HTTP2").at("codec_type"),
    }
}

fn server_header(value: i32) -> Outcome<config::ServerHeaderTransformation> {
    match hcm::ServerHeaderTransformation::try_from(value) {
        Ok(hcm::ServerHeaderTransformation::Overwrite) => Ok(config::ServerHeaderTransformation::Overwrite),
        Ok(hcm::ServerHeaderTransformation::AppendIfAbsent) => Ok(config::ServerHeaderTransformation::AppendIfAbsent),
        Ok(hcm::ServerHeaderTransformation::PassThrough) => Ok(config::ServerHeaderTransformation::PassThrough),
        Err(_) => invalid("unknown value").at("server_header_transformation"),
    }
}

pub(super) fn upgrade_type(name: &str) -> config::UpgradeType {
    match name.to_ascii_lowercase().as_str() {
        "websocket" => config::UpgradeType::WebSocket,
        "connect" => config::UpgradeType::Connect,
        other => config::UpgradeType::Other(other.to_owned()),
    }
}

fn upgrades(configs: &[hcm::UpgradeConfig]) -> Outcome<Vec<config::UpgradeType>> {
    let enabled = configs.iter().filter(|config| basic::flag(config.enabled.as_ref(), true));
    Ok(enabled.map(|config| upgrade_type(&config.upgrade_type)).collect())
}

fn paths(message: &pb::HttpConnectionManager, to: &mut config::HttpConnectionManager) -> Outcome<()> {
    use hcm::PathWithEscapedSlashesAction as Action;
    to.normalize_path = basic::flag(message.normalize_path.as_ref(), false);
    to.merge_slashes = message.merge_slashes;
    to.escaped_slashes = match Action::try_from(message.path_with_escaped_slashes_action) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => config::EscapedSlashesAction::KeepUnchanged,
        Ok(Action::RejectRequest) => config::EscapedSlashesAction::RejectRequest,
        Ok(Action::UnescapeAndRedirect) => config::EscapedSlashesAction::UnescapeAndRedirect,
        Ok(Action::UnescapeAndForward) => config::EscapedSlashesAction::UnescapeAndForward,
        Err(_) => return invalid("unknown value").at("path_with_escaped_slashes_action"),
    };
    Ok(())
}

/// Who the caller is: addresses, request ids, certificates.
fn identity(message: &pb::HttpConnectionManager, to: &mut config::HttpConnectionManager) -> Outcome<Option<UuidRequestIdConfig>> {
    use hcm::ForwardClientCertDetails as Details;
    to.use_remote_address = basic::flag(message.use_remote_address.as_ref(), false);
    to.xff_num_trusted_hops = message.xff_num_trusted_hops;
    to.skip_xff_append = message.skip_xff_append;
    to.append_x_forwarded_port = message.append_x_forwarded_port;
    if let Some(internal) = &message.internal_address_config {
        to.internal_ranges = each(&internal.cidr_ranges, "cidr_ranges", basic::cidr).at("internal_address_config")?;
    }
    to.generate_request_id = basic::flag(message.generate_request_id.as_ref(), true);
    to.preserve_external_request_id = message.preserve_external_request_id;
    to.always_set_request_id_in_response = message.always_set_request_id_in_response;
    let request_id = maybe(message.request_id_extension.as_ref(), "request_id_extension", |extension| {
        let Some(config) = &extension.typed_config else { return Ok(None) };
        match any::type_name(config).as_str() {
            "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" => any::unpack(config).map(Some).at("typed_config"),
            other => invalid(format!("request id extension {other} is not supported")).at("typed_config"),
        }
    })?;
    to.forward_client_cert = match Details::try_from(message.forward_client_cert_details) {
        Ok(Details::Sanitize) => config::ForwardClientCert::Sanitize,
        Ok(Details::ForwardOnly) => config::ForwardClientCert::ForwardOnly,
        Ok(Details::AppendForward) => config::ForwardClientCert::AppendForward,
        Ok(Details::SanitizeSet) => config::ForwardClientCert::SanitizeSet,
        Ok(Details::AlwaysForwardOnly) => config::ForwardClientCert::AlwaysForwardOnly,
        Err(_) => return invalid("unknown value").at("forward_client_cert_details"),
    };
    if let Some(details) = &message.set_current_client_cert_details {
        to.client_cert_details = config::SetCurrentClientCertDetails {
            subject: basic::flag(details.subject.as_ref(), false),
            cert: details.cert,
            chain: details.chain,
            dns: details.dns,
            uri: details.uri,
        };
    }
    Ok(request_id.flatten())
}

fn timeouts(message: &pb::HttpConnectionManager, to: &mut config::HttpConnectionManager) -> Outcome<()> {
    to.stream_idle_timeout = basic::limit(message.stream_idle_timeout.as_ref(), to.stream_idle_timeout, "stream_idle_timeout")?;
    to.request_timeout = basic::limit(message.request_timeout.as_ref(), None, "request_timeout")?;
    to.request_headers_timeout = basic::limit(message.request_headers_timeout.as_ref(), None, "request_headers_timeout")?;
    to.drain_timeout = basic::duration_or(message.drain_timeout.as_ref(), to.drain_timeout, "drain_timeout")?;
    let delayed_close = message.delayed_close_timeout.as_ref();
    to.delayed_close_timeout = basic::duration_or(delayed_close, to.delayed_close_timeout, "delayed_close_timeout")?;
    if let Some(common) = &message.common_http_protocol_options {
        common_options(common, to).at("common_http_protocol_options")?;
    }
    Ok(())
}

fn common_options(message: &core::HttpProtocolOptions, to: &mut config::HttpConnectionManager) -> Outcome<()> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Underscores;
    let hour = Some(Duration::from_secs(3600));
    to.idle_timeout = basic::limit(message.idle_timeout.as_ref(), hour, "idle_timeout")?;
    to.max_connection_duration = basic::limit(message.max_connection_duration.as_ref(), None, "max_connection_duration")?;
    to.max_stream_duration = basic::limit(message.max_stream_duration.as_ref(), None, "max_stream_duration")?;
    to.max_requests_per_connection = basic::nonzero(message.max_requests_per_connection.as_ref());
    to.max_headers_count = basic::count(message.max_headers_count.as_ref(), to.max_headers_count);
    to.headers_with_underscores = match Underscores::try_from(message.headers_with_underscores_action) {
        Ok(Underscores::Allow) => config::HeadersWithUnderscores::Allow,
        Ok(Underscores::RejectRequest) => config::HeadersWithUnderscores::RejectRequest,
        Ok(Underscores::DropHeader) => config::HeadersWithUnderscores::DropHeader,
        Err(_) => return invalid("expected ALLOW, REJECT_REQUEST or DROP_HEADER").at("headers_with_underscores_action"),
    };
    Ok(())
}

fn protocols(message: &pb::HttpConnectionManager, to: &mut config::HttpConnectionManager) -> Outcome<()> {
    to.max_request_headers_bytes = basic::count(message.max_request_headers_kb.as_ref(), 60).saturating_mul(1024);
    let stream_error = message.stream_error_on_invalid_http_message.as_ref();
    if let Some(http1) = &message.http_protocol_options {
        to.http1 = http1_options(http1).at("http_protocol_options")?;
    }
    if let Some(http2) = &message.http2_protocol_options {
        let defaults = config::Http2Options::default();
        to.http2 = config::Http2Options {
            max_concurrent_streams: basic::count(http2.max_concurrent_streams.as_ref(), defaults.max_concurrent_streams),
            initial_stream_window_size: basic::count(
                http2.initial_stream_window_size.as_ref(),
                defaults.initial_stream_window_size,
            ),
            initial_connection_window_size: basic::count(
                http2.initial_connection_window_size.as_ref(),
                defaults.initial_connection_window_size,
            ),
            allow_connect: http2.allow_connect,
            override_stream_error_on_invalid_http_message: basic::flag(
                http2.override_stream_error_on_invalid_http_message.as_ref().or(stream_error),
                false,
            ),
        };
    } else {
        to.http2.override_stream_error_on_invalid_http_message = basic::flag(stream_error, false);
    }
    Ok(())
}

pub(super) fn http1_options(message: &core::Http1ProtocolOptions) -> Outcome<config::Http1Options> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let format = message.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    let (preserve_case, proper_case) = match format {
        None => (false, false),
        Some(HeaderFormat::ProperCaseWords(_)) => (false, true),
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            let config = required(extension.typed_config.as_ref(), "typed_config").at("header_key_format.stateful_formatter")?;
            match any::type_name(config).as_str() {
                "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig" => (true, false),
                other => {
                    return invalid(format!("header formatter {other} is not supported"))
                        .at("header_key_format.stateful_formatter");
                }
            }
        }
    };
    if !basic::flag(message.allow_absolute_url.as_ref(), true) {
        return invalid("expected true").at("allow_absolute_url");
    }
    Ok(config::Http1Options {
        accept_http_10: message.accept_http_10,
        default_host_for_http_10: Some(message.default_host_for_http_10.clone()).filter(|host| !host.is_empty()),
        enable_trailers: message.enable_trailers,
        preserve_case,
        proper_case,
        allow_chunked_length: message.allow_chunked_length,
    })
}
