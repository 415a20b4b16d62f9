//! Route configurations, virtual hosts and the conditions of routes.

use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::route::v3 as pb;
use skiff_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use skiff_proto::google::protobuf as wkt;
use skiff_proxy::config::{self, Fraction, RouteTarget};

use super::http_filter::{self, PerRoute};
use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic, route_action};

pub(super) fn route_configuration(message: &pb::RouteConfiguration) -> Outcome<config::RouteConfiguration> {
    let PerRoute { cors, fault, filters } = http_filter::per_route(&message.typed_per_filter_config)?;
    if cors.is_some() || fault.is_some() {
        return invalid("CORS and faults are supported on virtual hosts and routes only").at("typed_per_filter_config");
    }
    Ok(config::RouteConfiguration {
        name: message.name.clone(),
        virtual_hosts: each(&message.virtual_hosts, "virtual_hosts", |host| virtual_host(host).map(Into::into))?,
        ignore_port_in_host_matching: message.ignore_port_in_host_matching,
        headers: Mutations {
            request_add: &message.request_headers_to_add,
            request_remove: &message.request_headers_to_remove,
            response_add: &message.response_headers_to_add,
            response_remove: &message.response_headers_to_remove,
        }
        .translate()?,
        filters,
    })
}

pub(super) fn virtual_host(message: &pb::VirtualHost) -> Outcome<config::VirtualHost> {
    use pb::virtual_host::TlsRequirementType;
    if message.domains.is_empty() {
        return invalid("is empty").at("domains");
    }
    if let Some(index) = message.domains.iter().position(|domain| domain.contains(|letter: char| letter.is_ascii_control())) {
        return invalid("holds a control character").at(&format!("domains[{index}]"));
    }
    let PerRoute { cors, fault, filters } = http_filter::per_route(&message.typed_per_filter_config)?;
    if fault.is_some() {
        return invalid("faults are supported on routes only").at("typed_per_filter_config");
    }
    let require_tls = match TlsRequirementType::try_from(message.require_tls) {
        Ok(TlsRequirementType::None) => false,
        Ok(TlsRequirementType::All) => true,
        _ => return invalid("expected NONE or ALL").at("require_tls"),
    };
    let kept = buffer_limit(message.per_request_buffer_limit_bytes.as_ref(), message.request_body_buffer_limit.as_ref())?;
    let mut routes = each(&message.routes, "routes", route)?;
    for route in &mut routes {
        if let RouteTarget::Forward(action) = &mut route.action {
            action.request_body_buffer_limit = action.request_body_buffer_limit.or(kept);
        }
    }
    Ok(config::VirtualHost {
        name: message.name.clone(),
        domains: message.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
        routes,
        include_request_attempt_count: message.include_request_attempt_count,
        include_attempt_count_in_response: message.include_attempt_count_in_response,
        include_is_timeout_retry: message.include_is_timeout_retry_header,
        require_tls,
        retry_policy: maybe(message.retry_policy.as_ref(), "retry_policy", route_action::retry_policy)?,
        cors,
        headers: Mutations {
            request_add: &message.request_headers_to_add,
            request_remove: &message.request_headers_to_remove,
            response_add: &message.response_headers_to_add,
            response_remove: &message.response_headers_to_remove,
        }
        .translate()?,
        filters,
    })
}

/// How much of a request body is kept for retries; the newer of the two fields counts.
fn buffer_limit(old: Option<&wkt::UInt32Value>, new: Option<&wkt::UInt64Value>) -> Outcome<Option<u64>> {
    const MAX: u64 = 1024 * 1024;
    let limit = new.map(|new| new.value).or(old.map(|old| old.value.into()));
    match limit.filter(|limit| *limit > MAX) {
        Some(limit) => invalid(format!("expected at most {MAX}, found {limit}")).at("request_body_buffer_limit"),
        None => Ok(limit),
    }
}

fn route(message: &pb::Route) -> Outcome<config::Route> {
    let PerRoute { cors, fault, filters } = http_filter::per_route(&message.typed_per_filter_config)?;
    let kept = buffer_limit(message.per_request_buffer_limit_bytes.as_ref(), message.request_body_buffer_limit.as_ref())?;
    let action = match required(message.action.as_ref(), "action")? {
        pb::route::Action::Route(action) => {
            let action = route_action::route_action(action).at("route")?;
            RouteTarget::Forward(Box::new(config::RouteAction { request_body_buffer_limit: kept, ..action }))
        }
        pb::route::Action::Redirect(action) => RouteTarget::Redirect(redirect(action).at("redirect")?),
        pb::route::Action::DirectResponse(action) => RouteTarget::DirectResponse(direct_response(action).at("direct_response")?),
        pb::route::Action::FilterAction(_) => return invalid("is not supported").at("filter_action"),
        pb::route::Action::NonForwardingAction(_) => return invalid("is not supported").at("non_forwarding_action"),
    };
    Ok(config::Route {
        name: message.name.clone(),
        matches: route_match(required(message.r#match.as_ref(), "match")?).at("match")?,
        action,
        headers: Mutations {
            request_add: &message.request_headers_to_add,
            request_remove: &message.request_headers_to_remove,
            response_add: &message.response_headers_to_add,
            response_remove: &message.response_headers_to_remove,
        }
        .translate()?,
        cors,
        fault,
        filters,
        decorator: message.decorator.as_ref().map(|decorator| config::Decorator {
            operation: decorator.operation.clone(),
            propagate: basic::flag(decorator.propagate.as_ref(), true),
        }),
    })
}

pub(super) fn route_match(message: &pb::RouteMatch) -> Outcome<config::RouteMatch> {
    use pb::route_match::PathSpecifier;
    let path = match required(message.path_specifier.as_ref(), "path_specifier")? {
        PathSpecifier::Prefix(prefix) => config::PathMatch::Prefix(prefix.clone()),
        PathSpecifier::Path(path) => config::PathMatch::Exact(path.clone()),
        PathSpecifier::PathSeparatedPrefix(prefix) => config::PathMatch::SeparatedPrefix(prefix.clone()),
        PathSpecifier::SafeRegex(regex) => config::PathMatch::Regex(basic::regex(regex).at("safe_regex")?),
        PathSpecifier::ConnectMatcher(_) => config::PathMatch::Connect,
        PathSpecifier::PathMatchPolicy(extension) => {
            let config = required(extension.typed_config.as_ref(), "typed_config").at("path_match_policy")?;
            let template: UriTemplateMatchConfig = any::unpack(config).at("path_match_policy.typed_config")?;
            config::PathMatch::UriTemplate(template.path_template)
        }
    };
    Ok(config::RouteMatch {
        path,
        ignore_case: !basic::flag(message.case_sensitive.as_ref(), true),
        headers: each(&message.headers, "headers", basic::header_matcher)?,
        query_parameters: each(&message.query_parameters, "query_parameters", query_parameter)?,
        grpc: message.grpc.is_some(),
        fraction: basic::runtime_fraction(message.runtime_fraction.as_ref(), Fraction::ALL).at("runtime_fraction")?,
    })
}

pub(super) fn query_parameter(message: &pb::QueryParameterMatcher) -> Outcome<config::QueryParameterMatcher> {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let value = match &message.query_parameter_match_specifier {
        None | Some(Specifier::PresentMatch(true)) => None,
        Some(Specifier::PresentMatch(false)) => return invalid("expected true").at("present_match"),
        Some(Specifier::StringMatch(string)) => Some(basic::string_matcher(string).at("string_match")?),
    };
    Ok(config::QueryParameterMatcher { name: message.name.clone(), value })
}

fn redirect(message: &pb::RedirectAction) -> Outcome<config::Redirect> {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let scheme = match &message.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.clone()),
    };
    let path = match &message.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => Some(config::RedirectPath::Full(path.clone())),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => Some(config::RedirectPath::Prefix(prefix.clone())),
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            let pattern = required(rewrite.pattern.as_ref(), "pattern").at("regex_rewrite")?;
            let pattern = basic::regex(pattern).at("regex_rewrite.pattern")?;
            Some(config::RedirectPath::Regex { pattern, substitution: rewrite.substitution.clone() })
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return invalid("is not supported").at("path_rewrite"),
    };
    let status = match RedirectResponseCode::try_from(message.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return invalid("unknown value").at("response_code"),
    };
    Ok(config::Redirect {
        scheme,
        host: Some(message.host_redirect.clone()).filter(|host| !host.is_empty()),
        port: Some(basic::port(message.port_redirect).at("port_redirect")?).filter(|&port| port != 0),
        path,
        strip_query: message.strip_query,
        status,
    })
}

fn direct_response(message: &pb::DirectResponseAction) -> Outcome<config::DirectResponse> {
    use core::data_source::Specifier;
    let Some(status) = u16::try_from(message.status).ok().filter(|status| (200..600).contains(status)) else {
        return invalid("expected 200 to 599").at("status");
    };
    let body = match message.body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => Vec::new(),
        Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(_) => return invalid("expected inline_string or inline_bytes").at("body"),
    };
    Ok(config::DirectResponse { status, body })
}

/// The four lists of header changes that several messages have.
pub(super) struct Mutations<'a> {
    pub(super) request_add: &'a [core::HeaderValueOption],
    pub(super) request_remove: &'a [String],
    pub(super) response_add: &'a [core::HeaderValueOption],
    pub(super) response_remove: &'a [String],
}

impl Mutations<'_> {
    pub(super) fn translate(&self) -> Outcome<config::HeaderMutations> {
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Ok(config::HeaderMutations {
            request_add: each(self.request_add, "request_headers_to_add", header_value_option)?,
            request_remove: lower(self.request_remove),
            response_add: each(self.response_add, "response_headers_to_add", header_value_option)?,
            response_remove: lower(self.response_remove),
        })
    }
}

pub(super) fn header_value_option(message: &core::HeaderValueOption) -> Outcome<config::HeaderValueOption> {
    use config::AppendAction;
    use core::header_value_option::HeaderAppendAction as Action;
    let header = required(message.header.as_ref(), "header")?;
    let action = match (&message.append, Action::try_from(message.append_action)) {
        // The deprecated `append` says replace or append.
        (Some(append), _) if !append.value => AppendAction::OverwriteIfExistsOrAdd,
        (Some(_), _) | (None, Ok(Action::AppendIfExistsOrAdd)) => AppendAction::AppendIfExistsOrAdd,
        (None, Ok(Action::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(Action::OverwriteIfExistsOrAdd)) => AppendAction::OverwriteIfExistsOrAdd,
        (None, Ok(Action::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (None, Err(_)) => return invalid("unknown value").at("append_action"),
    };
    let value = match String::from_utf8(header.raw_value.clone()) {
        Ok(raw) if !raw.is_empty() => raw,
        Ok(_) => header.value.clone(),
        Err(_) => return invalid("expected UTF-8").at("header.raw_value"),
    };
    Ok(config::HeaderValueOption {
        name: header.key.to_ascii_lowercase(),
        value,
        action,
        keep_empty_value: message.keep_empty_value,
    })
}

/// Envoy's own limit on a whole response where a route says nothing.
pub(super) const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);
