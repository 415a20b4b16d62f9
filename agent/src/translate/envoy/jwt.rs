//! JWT authentication. What would let a request pass unverified is refused by its name.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::route::v3 as route_pb;
use skiff_proto::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use skiff_proxy::config;

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{basic, route};
use crate::translate::uri::HttpUri;

pub(super) fn filter(name: &str, message: &pb::JwtAuthentication) -> Outcome<config::JwtAuthn> {
    if message.filter_state_rules.is_some() {
        return invalid("is not supported").at("filter_state_rules");
    }
    Ok(config::JwtAuthn {
        name: name.to_owned(),
        providers: named(&message.providers, "providers", provider)?,
        rules: each(&message.rules, "rules", rule)?,
        requirement_map: named(&message.requirement_map, "requirement_map", requirement)?,
        bypass_cors_preflight: message.bypass_cors_preflight,
        strip_failure_response: message.strip_failure_response,
        stat_prefix: message.stat_prefix.trim_end_matches('.').to_owned(),
    })
}

pub(super) fn per_route(message: &pb::PerRouteConfig) -> Outcome<config::JwtPerRoute> {
    use pb::per_route_config::RequirementSpecifier as Specifier;
    match required(message.requirement_specifier.as_ref(), "requirement_specifier")? {
        Specifier::Disabled(true) => Ok(config::JwtPerRoute::Disabled),
        Specifier::Disabled(false) => invalid("expected true").at("disabled"),
        Specifier::RequirementName(name) => Ok(config::JwtPerRoute::Requirement(name.clone())),
    }
}

fn named<A, B>(map: &HashMap<String, A>, field: &str, translate: fn(&A) -> Outcome<B>) -> Outcome<BTreeMap<String, B>> {
    let translate = |(name, message): (&String, &A)| Ok((name.clone(), translate(message).at(&format!("{field}[{name:?}]"))?));
    map.iter().map(translate).collect()
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

fn header(name: &str) -> Outcome<String> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => invalid(format!("expected a header name, found {name:?}")),
    }
}

fn provider(message: &pb::JwtProvider) -> Outcome<config::JwtProvider> {
    use pb::jwt_provider::JwksSourceSpecifier as Source;
    let jwks = match required(message.jwks_source_specifier.as_ref(), "jwks_source_specifier")? {
        Source::LocalJwks(source) => local_jwks(source).at("local_jwks")?,
        Source::RemoteJwks(remote) => config::Jwks::Remote(remote_jwks(remote).at("remote_jwks")?),
    };
    let normalize = message.normalize_payload_in_metadata.as_ref();
    let payload_header = text(&message.forward_payload_header);
    let mut provider = config::JwtProvider {
        audiences: message.audiences.clone(),
        subjects: maybe(message.subjects.as_ref(), "subjects", basic::string_matcher)?,
        require_expiration: message.require_expiration,
        max_lifetime: maybe(message.max_lifetime.as_ref(), "max_lifetime", basic::duration)?,
        from_headers: each(&message.from_headers, "from_headers", |from| {
            Ok(config::JwtHeader { name: header(&from.name).at("name")?, value_prefix: from.value_prefix.clone() })
        })?,
        from_params: message.from_params.clone(),
        from_cookies: message.from_cookies.clone(),
        forward: message.forward,
        forward_payload_header: maybe(payload_header.as_ref(), "forward_payload_header", |name| header(name))?,
        pad_forward_payload_header: message.pad_forward_payload_header,
        payload_in_metadata: text(&message.payload_in_metadata),
        space_delimited_claims: normalize.map(|normalize| normalize.space_delimited_claims.clone()).unwrap_or_default(),
        header_in_metadata: text(&message.header_in_metadata),
        failed_status_in_metadata: text(&message.failed_status_in_metadata),
        claim_to_headers: each(&message.claim_to_headers, "claim_to_headers", claim_to_header)?,
        clear_route_cache: message.clear_route_cache,
        cache: message.jwt_cache_config.as_ref().map(|cache| config::JwtCache {
            size: if cache.jwt_cache_size == 0 { 100 } else { cache.jwt_cache_size.min(MAX_CACHE) },
            max_token_size: if cache.jwt_max_token_size == 0 { 4096 } else { cache.jwt_max_token_size },
        }),
        ..config::JwtProvider::new(&message.issuer, jwks)
    };
    if message.clock_skew_seconds > 0 {
        provider.clock_skew = Duration::from_secs(message.clock_skew_seconds.into());
    }
    Ok(provider)
}

/// Tokens that a provider may remember.
const MAX_CACHE: u32 = 10_000;

fn claim_to_header(message: &pb::JwtClaimToHeader) -> Outcome<config::ClaimToHeader> {
    let claim = match (message.claim_name.as_str(), message.claim_path.as_slice()) {
        ("", []) => return invalid("expected claim_name or claim_path"),
        ("", path) => path.iter().map(|segment| segment.key.clone()).collect(),
        (name, []) => name.split('.').map(str::to_owned).collect(),
        _ => return invalid("expected either claim_name or claim_path"),
    };
    Ok(config::ClaimToHeader { header: header(&message.header_name).at("header_name")?, claim })
}

fn local_jwks(message: &core::DataSource) -> Outcome<config::Jwks> {
    use core::data_source::Specifier;
    let text = match required(message.specifier.as_ref(), "inline_string")? {
        Specifier::InlineString(text) => text.clone(),
        Specifier::InlineBytes(bytes) => match String::from_utf8(bytes.clone()) {
            Ok(text) => text,
            Err(_) => return invalid("expected UTF-8").at("inline_bytes"),
        },
        Specifier::Filename(path) => return Ok(config::Jwks::File(path.into())),
        Specifier::EnvironmentVariable(_) => return invalid("is not supported").at("environment_variable"),
    };
    Ok(config::Jwks::Local(config::LocalJwks(text)))
}

fn remote_jwks(message: &pb::RemoteJwks) -> Outcome<config::RemoteJwks> {
    const DEFAULT_CACHE: Duration = Duration::from_secs(600);
    let http = required(message.http_uri.as_ref(), "http_uri")?;
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &http.http_upstream_type else {
        return invalid("is missing").at("http_uri.cluster");
    };
    let uri = HttpUri::parse(&http.uri).or_else(invalid).at("http_uri.uri")?;
    let timeout = basic::duration(required(http.timeout.as_ref(), "timeout").at("http_uri")?).at("http_uri.timeout")?;
    let cache_duration = basic::duration_or(message.cache_duration.as_ref(), DEFAULT_CACHE, "cache_duration")?;
    if cache_duration < Duration::from_millis(1) {
        return invalid("expected 1 ms at least").at("cache_duration");
    }
    let retry = message.retry_policy.as_ref();
    let (base_interval, max_interval) = back_off(retry.and_then(|retry| retry.retry_back_off.as_ref())).at("retry_policy")?;
    let second = Duration::from_secs(1);
    Ok(config::RemoteJwks {
        https: uri.https,
        authority: uri.authority,
        path: uri.path,
        cluster: cluster.clone(),
        timeout,
        cache_duration,
        retries: retry.map_or(0, |retry| basic::count(retry.num_retries.as_ref(), 1)),
        base_interval,
        max_interval,
        async_fetch: maybe(message.async_fetch.as_ref(), "async_fetch", |fetch| {
            let again = basic::duration_or(fetch.failed_refetch_duration.as_ref(), second, "failed_refetch_duration")?;
            Ok(config::JwksAsyncFetch { failed_refetch_duration: again })
        })?,
    })
}

/// First and longest interval between attempts.
fn back_off(message: Option<&core::BackoffStrategy>) -> Outcome<(Duration, Duration)> {
    let second = Duration::from_secs(1);
    let Some(message) = message else { return Ok((second, second * 10)) };
    let base = basic::duration_or(message.base_interval.as_ref(), second, "retry_back_off.base_interval")?;
    let max = basic::duration_or(message.max_interval.as_ref(), base * 10, "retry_back_off.max_interval")?;
    Ok((base, max))
}

fn rule(message: &pb::RequirementRule) -> Outcome<config::JwtRule> {
    use pb::requirement_rule::RequirementType as Type;
    let requires = match &message.requirement_type {
        None => config::JwtRuleRequirement::None,
        Some(Type::Requires(inline)) => config::JwtRuleRequirement::Inline(requirement(inline).at("requires")?),
        Some(Type::RequirementName(name)) => config::JwtRuleRequirement::Named(name.clone()),
    };
    let matches = required(message.r#match.as_ref(), "match")?;
    // Envoy's filter looks at path, headers and query parameters only: a rule that seems to ask for more would apply to more.
    let known = route_pb::RouteMatch {
        path_specifier: matches.path_specifier.clone(),
        case_sensitive: matches.case_sensitive,
        headers: matches.headers.clone(),
        query_parameters: matches.query_parameters.clone(),
        ..route_pb::RouteMatch::default()
    };
    if *matches != known {
        return invalid("expected a path, headers and query_parameters only").at("match");
    }
    Ok(config::JwtRule { matches: route::route_match(matches).at("match")?, requires })
}

fn requirement(message: &pb::JwtRequirement) -> Outcome<config::JwtRequirement> {
    use config::JwtRequirement as To;
    use pb::jwt_requirement::RequiresType as Type;
    let list = |requirements: &[pb::JwtRequirement]| {
        if requirements.len() < 2 {
            return invalid("expected two at least").at("requirements");
        }
        each(requirements, "requirements", requirement)
    };
    Ok(match &message.requires_type {
        None => To::Nothing,
        Some(Type::ProviderName(name)) => To::Provider { name: name.clone(), audiences: Vec::new() },
        Some(Type::ProviderAndAudiences(with)) => {
            To::Provider { name: with.provider_name.clone(), audiences: with.audiences.clone() }
        }
        Some(Type::RequiresAny(any)) => To::Any(list(&any.requirements).at("requires_any")?),
        Some(Type::RequiresAll(all)) => To::All(list(&all.requirements).at("requires_all")?),
        Some(Type::AllowMissing(_)) => To::AllowMissing,
        Some(Type::AllowMissingOrFailed(_)) => To::AllowMissingOrFailed,
        Some(Type::ExtractOnlyWithoutValidation(_)) => {
            return invalid("is not supported: it believes tokens that nobody has verified")
                .at("extract_only_without_validation");
        }
    })
}
