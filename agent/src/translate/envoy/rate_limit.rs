//! Local rate limits.

use std::num::NonZeroU32;
use std::time::Duration;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::route::v3::rate_limit::{Action, action};
use skiff_proto::envoy::extensions::common::ratelimit::v3 as common;
use skiff_proto::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use skiff_proto::envoy::r#type::v3 as kind;
use skiff_proxy::config::{self, Fraction, RateLimitAction};

use super::basic;
use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::route::{header_value_option, query_parameter};

/// Envoy takes no shorter interval.
const MIN_FILL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn filter(name: &str, message: &pb::LocalRateLimit) -> Outcome<config::LocalRateLimit> {
    use common::XRateLimitHeadersRfcVersion as Headers;
    if message.stat_prefix.is_empty() {
        return invalid("is empty").at("stat_prefix");
    }
    let ratelimit_headers = match Headers::try_from(message.enable_x_ratelimit_headers) {
        Ok(version) => version == Headers::DraftVersion03,
        Err(_) => return invalid("unknown value").at("enable_x_ratelimit_headers"),
    };
    // Without a share of requests Envoy counts and refuses none.
    let share = |value: Option<&core::RuntimeFractionalPercent>, field| basic::runtime_fraction(value, Fraction::NONE).at(field);
    let bucket = maybe(message.token_bucket.as_ref(), "token_bucket", token_bucket)?;
    let descriptors = each(&message.descriptors, "descriptors", descriptor)?;
    if !descriptors.is_empty() && message.rate_limits.is_empty() {
        return invalid("expected rules here: those of routes and virtual hosts are not supported").at("rate_limits");
    }
    Ok(config::LocalRateLimit {
        name: name.to_owned(),
        stat_prefix: message.stat_prefix.clone(),
        bucket,
        enabled: share(message.filter_enabled.as_ref(), "filter_enabled")?,
        enforced: share(message.filter_enforced.as_ref(), "filter_enforced")?,
        status: status(message.status.as_ref()),
        resource_exhausted: message.rate_limited_as_resource_exhausted,
        request_headers_not_enforced: each(
            &message.request_headers_to_add_when_not_enforced,
            "request_headers_to_add_when_not_enforced",
            header_value_option,
        )?,
        response_headers: each(&message.response_headers_to_add, "response_headers_to_add", header_value_option)?,
        ratelimit_headers,
        retry_after: message.enable_retry_after_header,
        descriptors,
        rules: each(&message.rate_limits, "rate_limits", |rule| {
            Ok(config::RateLimitRule { actions: each(&rule.actions, "actions", rate_limit_action)? })
        })?,
        always_take_default: basic::flag(message.always_consume_default_token_bucket.as_ref(), true),
    })
}

/// As in Envoy, what is no error status becomes 429.
fn status(message: Option<&kind::HttpStatus>) -> u16 {
    let code = message.and_then(|status| u16::try_from(status.code).ok());
    code.filter(|code| (400..600).contains(code)).unwrap_or(429)
}

fn token_bucket(message: &kind::TokenBucket) -> Outcome<config::TokenBucket> {
    let Some(max_tokens) = NonZeroU32::new(message.max_tokens) else { return invalid("expected more than 0").at("max_tokens") };
    let Some(tokens_per_fill) = NonZeroU32::new(basic::count(message.tokens_per_fill.as_ref(), 1)) else {
        return invalid("expected more than 0").at("tokens_per_fill");
    };
    let fill_interval = required(message.fill_interval.as_ref(), "fill_interval")?;
    let fill_interval = basic::duration(fill_interval).at("fill_interval")?;
    if fill_interval < MIN_FILL_INTERVAL {
        return invalid("expected at least 0.05s").at("fill_interval");
    }
    Ok(config::TokenBucket { max_tokens, tokens_per_fill, fill_interval })
}

fn descriptor(message: &common::LocalRateLimitDescriptor) -> Outcome<config::RateLimitDescriptor> {
    let entries = each(&message.entries, "entries", |entry| match (entry.key.as_str(), entry.value.as_str()) {
        ("", _) => invalid("is empty").at("key"),
        (_, "") => invalid("is empty: descriptors for any value are not supported").at("value"),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    })?;
    let bucket = token_bucket(required(message.token_bucket.as_ref(), "token_bucket")?).at("token_bucket")?;
    Ok(config::RateLimitDescriptor { entries, bucket })
}

fn rate_limit_action(message: &Action) -> Outcome<RateLimitAction> {
    use action::ActionSpecifier as Specifier;
    let or = |key: &str, default: &str| if key.is_empty() { default.to_owned() } else { key.to_owned() };
    Ok(match required(message.action_specifier.as_ref(), "action_specifier")? {
        Specifier::GenericKey(inner) => RateLimitAction::GenericKey {
            key: or(&inner.descriptor_key, "generic_key"),
            value: plain(&inner.descriptor_value).at("generic_key")?,
        },
        Specifier::DestinationCluster(_) => RateLimitAction::DestinationCluster,
        Specifier::RequestHeaders(inner) => RateLimitAction::RequestHeader {
            name: inner.header_name.to_ascii_lowercase(),
            key: inner.descriptor_key.clone(),
            skip_if_absent: inner.skip_if_absent,
        },
        Specifier::RemoteAddress(_) => RateLimitAction::RemoteAddress,
        Specifier::MaskedRemoteAddress(inner) => {
            let length = |value: u32, max: u8, field: &str| match u8::try_from(value) {
                Ok(length) if length <= max => Ok(length),
                _ => invalid(format!("expected at most {max}")).at(field),
            };
            RateLimitAction::MaskedRemoteAddress {
                v4: length(basic::count(inner.v4_prefix_mask_len.as_ref(), 32), 32, "v4_prefix_mask_len")?,
                v6: length(basic::count(inner.v6_prefix_mask_len.as_ref(), 128), 128, "v6_prefix_mask_len")?,
            }
        }
        Specifier::HeaderValueMatch(inner) => RateLimitAction::HeaderMatch {
            key: or(&inner.descriptor_key, "header_match"),
            value: plain(&inner.descriptor_value).at("header_value_match")?,
            headers: each(&inner.headers, "headers", basic::header_matcher).at("header_value_match")?,
            expect: basic::flag(inner.expect_match.as_ref(), true),
        },
        Specifier::QueryParameterValueMatch(inner) => RateLimitAction::QueryMatch {
            key: or(&inner.descriptor_key, "query_match"),
            value: plain(&inner.descriptor_value).at("query_parameter_value_match")?,
            parameters: each(&inner.query_parameters, "query_parameters", query_parameter).at("query_parameter_value_match")?,
            expect: basic::flag(inner.expect_match.as_ref(), true),
        },
        _ => {
            return invalid(
                "expected generic_key, destination_cluster, request_headers, remote_address, masked_remote_address, header_value_match or query_parameter_value_match",
            );
        }
    })
}

fn plain(value: &str) -> Outcome<String> {
    if value.contains('%') {
        return invalid("expected a plain text: formats are not supported").at("descriptor_value");
    }
    Ok(value.to_owned())
}
