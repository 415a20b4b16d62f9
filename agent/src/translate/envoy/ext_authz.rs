//! External authorisation.

use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::extensions::filters::http::ext_authz::v3 as pb;
use skiff_proto::envoy::r#type::matcher::v3::ListStringMatcher;
use skiff_proxy::config::{self, AuthzService, Fraction, GrpcAuthz, HttpAuthz, StringMatcher};

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::route::header_value_option;
use super::{basic, rbac};

/// Envoy's own deadline of a check.
const TIMEOUT: Duration = Duration::from_millis(200);

pub(super) fn filter(name: &str, message: &pb::ExtAuthz) -> Outcome<config::ExtAuthz> {
    let (service, timeout) = match required(message.services.as_ref(), "http_service")? {
        pb::ext_authz::Services::HttpService(service) => http(service).at("http_service")?,
        pb::ext_authz::Services::GrpcService(service) => grpc(service).at("grpc_service")?,
    };
    // Before v3 put it beside the service, the list stood inside of it.
    let deprecated = match &message.services {
        Some(pb::ext_authz::Services::HttpService(service)) => {
            service.authorization_request.as_ref().and_then(|request| request.allowed_headers.as_ref())
        }
        _ => None,
    };
    let allowed = message.allowed_headers.as_ref().or(deprecated);
    Ok(config::ExtAuthz {
        name: name.to_owned(),
        service,
        timeout,
        failure_mode_allow: message.failure_mode_allow,
        failure_mode_allow_header_add: message.failure_mode_allow_header_add,
        status_on_error: status(message.status_on_error.as_ref().map_or(0, |status| status.code)).at("status_on_error.code")?,
        request_body: maybe(message.with_request_body.as_ref(), "with_request_body", body)?,
        clear_route_cache: message.clear_route_cache,
        allowed_headers: maybe(allowed, "allowed_headers", patterns)?,
        disallowed_headers: list(message.disallowed_headers.as_ref(), "disallowed_headers")?,
        encode_raw_headers: message.encode_raw_headers,
        include_peer_certificate: message.include_peer_certificate,
        include_tls_session: message.include_tls_session,
        metadata_namespaces: message.metadata_context_namespaces.clone(),
        enabled_metadata: maybe(message.filter_enabled_metadata.as_ref(), "filter_enabled_metadata", rbac::metadata_matcher)?,
        enabled: basic::runtime_fraction(message.filter_enabled.as_ref(), Fraction::ALL).at("filter_enabled")?,
        deny_at_disable: message.deny_at_disable.as_ref().is_some_and(|flag| basic::flag(flag.default_value.as_ref(), false)),
        validate_mutations: message.validate_mutations,
    })
}

/// What a route says; `Ok(None)` switches the filter off.
pub(super) fn per_route(message: &pb::ExtAuthzPerRoute) -> Outcome<Option<config::ExtAuthzOverride>> {
    use pb::ext_authz_per_route::Override;
    match required(message.r#override.as_ref(), "disabled")? {
        Override::Disabled(true) => Ok(None),
        Override::Disabled(false) => invalid("expected true").at("disabled"),
        Override::CheckSettings(settings) => Ok(Some(config::ExtAuthzOverride {
            context_extensions: settings.context_extensions.clone().into_iter().collect(),
            disable_request_body: settings.disable_request_body_buffering,
            request_body: maybe(settings.with_request_body.as_ref(), "check_settings.with_request_body", body)?,
        })),
    }
}

fn status(code: i32) -> Outcome<u16> {
    match u16::try_from(code) {
        Ok(0) => Ok(403),
        Ok(code) if (200..600).contains(&code) => Ok(code),
        _ => invalid("expected 200 to 599"),
    }
}

fn body(message: &pb::BufferSettings) -> Outcome<config::AuthzBody> {
    if message.max_request_bytes == 0 {
        return invalid("expected more than 0").at("max_request_bytes");
    }
    Ok(config::AuthzBody {
        max_bytes: message.max_request_bytes,
        allow_partial: message.allow_partial_message,
        pack_as_bytes: message.pack_as_bytes,
    })
}

fn patterns(message: &ListStringMatcher) -> Outcome<Vec<StringMatcher>> {
    each(&message.patterns, "patterns", basic::string_matcher)
}

fn list(message: Option<&ListStringMatcher>, field: &str) -> Outcome<Vec<StringMatcher>> {
    Ok(maybe(message, field, patterns)?.unwrap_or_default())
}

fn http(message: &pb::HttpService) -> Outcome<(AuthzService, Duration)> {
    use core::http_uri::HttpUpstreamType;
    let uri = required(message.server_uri.as_ref(), "server_uri")?;
    let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return invalid("is missing").at("server_uri.cluster");
    };
    if !message.path_prefix.is_empty() && !message.path_override.is_empty() {
        return invalid("expected path_prefix or path_override, not both").at("path_override");
    }
    let request = message.authorization_request.clone().unwrap_or_default();
    let response = message.authorization_response.clone().unwrap_or_default();
    let add = |header: &core::HeaderValue| {
        // `headers_to_add` replaces what the caller sent under this name.
        let overwrite = core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32;
        header_value_option(&core::HeaderValueOption {
            header: Some(header.clone()),
            append_action: overwrite,
            ..core::HeaderValueOption::default()
        })
    };
    let at = "authorization_response";
    let service = HttpAuthz {
        cluster: cluster.clone(),
        path_prefix: message.path_prefix.clone(),
        path_override: message.path_override.clone(),
        headers_to_add: each(&request.headers_to_add, "headers_to_add", add).at("authorization_request")?,
        upstream_headers: list(response.allowed_upstream_headers.as_ref(), "allowed_upstream_headers").at(at)?,
        upstream_headers_to_append: list(
            response.allowed_upstream_headers_to_append.as_ref(),
            "allowed_upstream_headers_to_append",
        )
        .at(at)?,
        client_headers: list(response.allowed_client_headers.as_ref(), "allowed_client_headers").at(at)?,
        client_headers_on_success: list(response.allowed_client_headers_on_success.as_ref(), "allowed_client_headers_on_success")
            .at(at)?,
        metadata_headers: list(response.dynamic_metadata_from_headers.as_ref(), "dynamic_metadata_from_headers").at(at)?,
    };
    let timeout = uri.timeout.as_ref();
    Ok((AuthzService::Http(service), basic::duration_or(timeout, TIMEOUT, "server_uri.timeout")?))
}

fn grpc(message: &core::GrpcService) -> Outcome<(AuthzService, Duration)> {
    use core::grpc_service::TargetSpecifier;
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &message.target_specifier else {
        return invalid("expected envoy_grpc");
    };
    let metadata = grpc_metadata(&message.initial_metadata)?;
    let service =
        GrpcAuthz { cluster: target.cluster_name.clone(), authority: target.authority.clone(), initial_metadata: metadata };
    Ok((AuthzService::Grpc(service), basic::duration_or(message.timeout.as_ref(), TIMEOUT, "timeout")?))
}

/// Headers of calls of our own.
pub(super) fn grpc_metadata(headers: &[core::HeaderValue]) -> Outcome<Vec<(String, String)>> {
    each(headers, "initial_metadata", |header| {
        let name = header.key.to_ascii_lowercase();
        if header.value.contains('%') || !header.raw_value.is_empty() {
            return invalid("expected a plain value: formats and raw values are not supported");
        }
        if http_name(&name) && http_value(&header.value) {
            Ok((name, header.value.clone()))
        } else {
            invalid("is no valid header")
        }
    })
}

fn http_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

fn http_value(value: &str) -> bool {
    value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
}
