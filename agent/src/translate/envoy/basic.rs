//! Durations, shares, matchers and addresses: the words that all resources are made of.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use skiff_proto::envoy::config::core::v3::{self as core, ConfigSource};
use skiff_proto::envoy::config::route::v3 as route;
use skiff_proto::envoy::r#type::matcher::v3 as matcher;
use skiff_proto::envoy::r#type::v3 as kind;
use skiff_proto::google::protobuf as pb;
use skiff_proxy::config::{Fraction, HeaderMatch, HeaderMatcher, Regex, StringMatch, StringMatcher};

use super::outcome::{At, Outcome, invalid, required};

/// Negative durations are refused.
pub(super) fn duration(value: &pb::Duration) -> Outcome<Duration> {
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => invalid("expected a duration that is not negative"),
    }
}

/// A duration that is `default` when unset and off when zero.
pub(super) fn limit(value: Option<&pb::Duration>, default: Option<Duration>, field: &str) -> Outcome<Option<Duration>> {
    let Some(value) = value else { return Ok(default) };
    Ok(Some(duration(value).at(field)?).filter(|limit| !limit.is_zero()))
}

/// How long the first answer is waited for. For Envoy zero is no limit; there is always one here.
pub(super) fn fetch_timeout(source: Option<&ConfigSource>) -> Outcome<Option<Duration>> {
    limit(source.and_then(|source| source.initial_fetch_timeout.as_ref()), None, "initial_fetch_timeout")
}

/// A duration that is `default` when unset.
pub(super) fn duration_or(value: Option<&pb::Duration>, default: Duration, field: &str) -> Outcome<Duration> {
    value.map_or(Ok(default), duration).at(field)
}

/// A duration that overrides another one only when it is set; zero stays zero.
pub(super) fn override_(value: Option<&pb::Duration>, field: &str) -> Outcome<Option<Duration>> {
    value.map(duration).transpose().at(field)
}

pub(super) fn flag(value: Option<&pb::BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

pub(super) fn count(value: Option<&pb::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// A number that is off when zero.
pub(super) fn nonzero(value: Option<&pb::UInt32Value>) -> Option<u32> {
    value.map(|value| value.value).filter(|&value| value != 0)
}

pub(super) fn fractional_percent(value: &kind::FractionalPercent) -> Outcome<Fraction> {
    use kind::fractional_percent::DenominatorType;
    let parts = match DenominatorType::try_from(value.denominator) {
        Ok(DenominatorType::Hundred) => 10_000,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Million) => 1,
        Err(_) => return invalid("unknown denominator").at("denominator"),
    };
    Ok(Fraction::from_millionths(value.numerator.saturating_mul(parts)))
}

/// Runtime overrides do not exist here: the default value is the value.
pub(super) fn runtime_fraction(value: Option<&core::RuntimeFractionalPercent>, default: Fraction) -> Outcome<Fraction> {
    match value.and_then(|value| value.default_value.as_ref()) {
        Some(percent) => fractional_percent(percent).at("default_value"),
        None => Ok(default),
    }
}

pub(super) fn percent(value: &kind::Percent) -> Outcome<Fraction> {
    Fraction::from_percent(value.value).map_or_else(|| invalid("expected 0 to 100").at("value"), Ok)
}

pub(super) fn regex(value: &matcher::RegexMatcher) -> Outcome<Regex> {
    Regex::new(&value.regex).or_else(|error| invalid(error.to_string()).at("regex"))
}

pub(super) fn string_matcher(value: &matcher::StringMatcher) -> Outcome<StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match required(value.match_pattern.as_ref(), "match_pattern")? {
        MatchPattern::Exact(text) => StringMatch::Exact(text.clone()),
        MatchPattern::Prefix(text) => StringMatch::Prefix(text.clone()),
        MatchPattern::Suffix(text) => StringMatch::Suffix(text.clone()),
        MatchPattern::Contains(text) => StringMatch::Contains(text.clone()),
        MatchPattern::SafeRegex(pattern) => StringMatch::Regex(regex(pattern).at("safe_regex")?),
        MatchPattern::Custom(_) => return invalid("custom string matchers are not supported").at("custom"),
    };
    // Envoy: "This has no effect for the safe_regex match".
    let ignore_case = value.ignore_case && !matches!(pattern, StringMatch::Regex(_));
    Ok(StringMatcher { pattern, ignore_case })
}

pub(super) fn header_matcher(value: &route::HeaderMatcher) -> Outcome<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    let string = |pattern: StringMatch| HeaderMatch::String(pattern.into());
    let asked = match &value.header_match_specifier {
        None => HeaderMatch::Present(true),
        Some(Specifier::PresentMatch(present)) => HeaderMatch::Present(*present),
        Some(Specifier::StringMatch(inner)) => HeaderMatch::String(string_matcher(inner).at("string_match")?),
        Some(Specifier::RangeMatch(range)) => HeaderMatch::Range { start: range.start, end: range.end },
        Some(Specifier::ExactMatch(text)) => string(StringMatch::Exact(text.clone())),
        Some(Specifier::PrefixMatch(text)) => string(StringMatch::Prefix(text.clone())),
        Some(Specifier::SuffixMatch(text)) => string(StringMatch::Suffix(text.clone())),
        Some(Specifier::ContainsMatch(text)) => string(StringMatch::Contains(text.clone())),
        Some(Specifier::SafeRegexMatch(pattern)) => string(StringMatch::Regex(regex(pattern).at("safe_regex_match")?)),
    };
    if value.name.is_empty() {
        return invalid("is empty").at("name");
    }
    Ok(HeaderMatcher {
        name: value.name.to_ascii_lowercase(),
        value: asked,
        invert: value.invert_match,
        treat_missing_as_empty: value.treat_missing_header_as_empty,
    })
}

/// Host bits are cleared, as Envoy does; no length means 0.
pub(super) fn cidr(value: &core::CidrRange) -> Outcome<IpNet> {
    let Ok(address) = value.address_prefix.parse::<IpAddr>() else {
        return invalid(format!("expected an IP address, found {:?}", value.address_prefix)).at("address_prefix");
    };
    let Some(length) = u8::try_from(count(value.prefix_len.as_ref(), 0)).ok().and_then(|len| IpNet::new(address, len).ok())
    else {
        return invalid("is too long for the address").at("prefix_len");
    };
    Ok(length.trunc())
}

pub(super) fn port(value: u32) -> Outcome<u16> {
    u16::try_from(value).or_else(|_| invalid(format!("expected a port up to 65535, found {value}")))
}

/// Host and port of a TCP address, the host as it is written.
pub(super) fn host_and_port(value: &core::SocketAddress) -> Outcome<(&str, u16)> {
    use core::socket_address::PortSpecifier;
    if value.protocol != core::socket_address::Protocol::Tcp as i32 {
        return invalid("expected TCP").at("protocol");
    }
    match &value.port_specifier {
        Some(PortSpecifier::PortValue(number)) => Ok((&value.address, port(*number).at("port_value")?)),
        Some(PortSpecifier::NamedPort(_)) => invalid("named ports are not supported").at("named_port"),
        None => invalid("is missing").at("port_value"),
    }
}

/// An address whose host is an IP address.
pub(super) fn socket_address(value: &core::Address) -> Outcome<SocketAddr> {
    let Some(core::address::Address::SocketAddress(socket)) = &value.address else {
        return invalid("expected a socket_address");
    };
    let (host, port) = host_and_port(socket).at("socket_address")?;
    let Ok(ip) = host.parse::<IpAddr>() else {
        return invalid(format!("expected an IP address, found {host:?}")).at("socket_address.address");
    };
    Ok(SocketAddr::new(ip, port))
}
