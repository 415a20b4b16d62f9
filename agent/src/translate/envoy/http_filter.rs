//! HTTP filters and what routes say about them.
//!
//! A filter that is not known rejects its listener: it could be the one that keeps callers out.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use prost::Message;
use skiff_proto::envoy::config::route::v3::FilterConfig;
use skiff_proto::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use skiff_proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use skiff_proto::envoy::extensions::filters::http::ext_authz::v3::{ExtAuthz, ExtAuthzPerRoute};
use skiff_proto::envoy::extensions::filters::http::fault::v3 as fault;
use skiff_proto::envoy::extensions::filters::http::jwt_authn::v3::{JwtAuthentication, PerRouteConfig};
use skiff_proto::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use skiff_proto::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use skiff_proto::envoy::extensions::filters::http::router::v3::Router;
use skiff_proto::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use skiff_proto::filters::stats::PluginConfig;
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config::{self, FilterOverride, Fraction};

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic, ext_authz, jwt, peer, rate_limit, rbac};

/// The filters before the router, and the router's own settings.
pub(super) struct Filters {
    pub(super) chain: Vec<config::HttpFilter>,
    pub(super) router: Router,
    pub(super) stats: Option<PluginConfig>,
}

enum Filter {
    Chained(config::HttpFilter),
    Router(Router),
    Stats(PluginConfig),
    Nothing,
}

pub(super) fn filters(messages: &[pb::HttpFilter]) -> Outcome<Filters> {
    let (mut chain, mut router, mut stats) = (Vec::new(), None, None);
    each(messages, "http_filters", |message| {
        let Some(pb::http_filter::ConfigType::TypedConfig(config)) = &message.config_type else {
            return invalid(format!("HTTP filter {}: only typed_config is supported", message.name));
        };
        if router.is_some() {
            return invalid(format!("HTTP filter {} comes after the router", message.name));
        }
        match filter(&message.name, config).at("typed_config")? {
            Filter::Chained(filter) => chain.push(filter),
            Filter::Router(found) => router = Some(found),
            Filter::Stats(_) if stats.is_some() => {
                return invalid(format!("HTTP filter {}: expected one of its type", message.name));
            }
            Filter::Stats(found) => stats = Some(found),
            Filter::Nothing => {}
        }
        Ok(())
    })?;
    match router {
        Some(router) => Ok(Filters { chain, router, stats }),
        None => invalid("expected envoy.filters.http.router at the end").at("http_filters"),
    }
}

fn filter(name: &str, config: &Any) -> Outcome<Filter> {
    Ok(match any::type_name(config).as_str() {
        "envoy.extensions.filters.http.router.v3.Router" => Filter::Router(any::unpack(config)?),
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => {
            let message: JwtAuthentication = any::unpack(config)?;
            Filter::Chained(config::HttpFilter::JwtAuthn(Arc::new(jwt::filter(name, &message)?)))
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            let message: Rbac = any::unpack(config)?;
            Filter::Chained(config::HttpFilter::Rbac(Arc::new(rbac::http_filter(name, &message)?)))
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
            let message: ExtAuthz = any::unpack(config)?;
            Filter::Chained(config::HttpFilter::ExtAuthz(Arc::new(ext_authz::filter(name, &message)?)))
        }
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            let message: LocalRateLimit = any::unpack(config)?;
            Filter::Chained(config::HttpFilter::LocalRateLimit(Arc::new(rate_limit::filter(name, &message)?)))
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            let message: fault::HttpFault = any::unpack(config)?;
            if message.delay.is_some() || message.abort.is_some() {
                return invalid("faults are supported on routes only (typed_per_filter_config)");
            }
            Filter::Chained(config::HttpFilter::Fault)
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => Filter::Chained(config::HttpFilter::Cors),
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => Filter::Chained(config::HttpFilter::Alpn(alpn(config)?)),
        "io.istio.http.peer_metadata.Config" => {
            Filter::Chained(config::HttpFilter::PeerMetadata(Arc::new(peer::http_filter(name, &any::unpack(config)?)?)))
        }
        "stats.PluginConfig" => Filter::Stats(any::unpack(config)?),
        // Istio's metrics count messages without being asked.
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => Filter::Nothing,
        other => return invalid(format!("HTTP filter {name} ({other}) is not supported")),
    })
}

/// `istio.alpn`, whose types no published crate has.
#[derive(Clone, PartialEq, Message)]
struct AlpnFilterConfig {
    #[prost(message, repeated, tag = "1")]
    alpn_override: Vec<AlpnOverride>,
}

#[derive(Clone, PartialEq, Message)]
struct AlpnOverride {
    /// 0: HTTP/1.0, 1: HTTP/1.1, 2: HTTP/2.
    #[prost(int32, tag = "1")]
    upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    alpn_override: Vec<String>,
}

fn alpn(config: &Any) -> Outcome<config::AlpnOverride> {
    let Ok(message) = AlpnFilterConfig::decode(config.value.as_slice()) else { return invalid("cannot be decoded") };
    let offer = |protocol: i32| {
        let found = message.alpn_override.iter().find(|entry| entry.upstream_protocol == protocol);
        found.map(|entry| entry.alpn_override.clone()).unwrap_or_default()
    };
    Ok(config::AlpnOverride { http1: offer(1), http2: offer(2) })
}

/// What `typed_per_filter_config` of a route says.
#[derive(Default)]
pub(super) struct PerRoute {
    pub(super) cors: Option<config::CorsPolicy>,
    pub(super) fault: Option<config::Fault>,
    pub(super) filters: config::FilterOverrides,
}

pub(super) fn per_route(configs: &HashMap<String, Any>) -> Outcome<PerRoute> {
    let mut all = PerRoute::default();
    for (name, config) in configs {
        let at = format!("typed_per_filter_config[{name:?}]");
        match any::type_name(config).as_str() {
            "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
                all.cors = Some(cors(&any::unpack(config).at(&at)?).at(&at)?);
            }
            "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
                all.fault = Some(http_fault(&any::unpack(config).at(&at)?).at(&at)?);
            }
            "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
                let message: RbacPerRoute = any::unpack(config).at(&at)?;
                let rules = maybe(message.rbac.as_ref(), "rbac", |message| rbac::http_filter(name, message)).at(&at)?;
                // Without rules the filter is off here.
                let told = rules.map_or(FilterOverride::Disabled, |rules| FilterOverride::Rbac(Arc::new(rules)));
                all.filters.push((name.clone(), told));
            }
            "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => {
                let message: ExtAuthzPerRoute = any::unpack(config).at(&at)?;
                let told = ext_authz::per_route(&message).at(&at)?;
                let told = told.map_or(FilterOverride::Disabled, |told| FilterOverride::ExtAuthz(Arc::new(told)));
                all.filters.push((name.clone(), told));
            }
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
                let message: LocalRateLimit = any::unpack(config).at(&at)?;
                let limit = Arc::new(rate_limit::filter(name, &message).at(&at)?);
                all.filters.push((name.clone(), FilterOverride::LocalRateLimit(limit)));
            }
            "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" => {
                let message: PerRouteConfig = any::unpack(config).at(&at)?;
                all.filters.push((name.clone(), FilterOverride::Jwt(jwt::per_route(&message).at(&at)?)));
            }
            "envoy.config.route.v3.FilterConfig" => {
                let message: FilterConfig = any::unpack(config).at(&at)?;
                if !message.disabled || message.config.is_some() {
                    return invalid("expected disabled: true and no config; other settings stand here without the wrapper")
                        .at(&at);
                }
                all.filters.push((name.clone(), FilterOverride::Disabled));
            }
            other => return invalid(format!("{other} is not supported")).at(&at),
        }
    }
    Ok(all)
}

fn cors(message: &CorsPolicy) -> Outcome<config::CorsPolicy> {
    if basic::runtime_fraction(message.filter_enabled.as_ref(), Fraction::ALL).at("filter_enabled")? != Fraction::ALL {
        return invalid("expected 100 percent").at("filter_enabled");
    }
    let text = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
    Ok(config::CorsPolicy {
        allow_origins: each(&message.allow_origin_string_match, "allow_origin_string_match", basic::string_matcher)?,
        allow_methods: text(&message.allow_methods),
        allow_headers: text(&message.allow_headers),
        expose_headers: text(&message.expose_headers),
        max_age: text(&message.max_age),
        allow_credentials: basic::flag(message.allow_credentials.as_ref(), false),
        forward_not_matching_preflights: basic::flag(message.forward_not_matching_preflights.as_ref(), true),
    })
}

fn http_fault(message: &fault::HttpFault) -> Outcome<config::Fault> {
    let delay = maybe(message.delay.as_ref(), "delay", |delay| {
        let fraction = required(delay.percentage.as_ref(), "percentage")?;
        let fraction = basic::fractional_percent(fraction).at("percentage")?;
        match required(delay.fault_delay_secifier.as_ref(), "fixed_delay")? {
            FaultDelaySecifier::FixedDelay(fixed) => {
                Ok(config::FaultDelay { fixed: basic::duration(fixed).at("fixed_delay")?, fraction })
            }
            FaultDelaySecifier::HeaderDelay(_) => invalid("is not supported").at("header_delay"),
        }
    })?;
    let abort = maybe(message.abort.as_ref(), "abort", |abort| {
        let fraction = maybe(abort.percentage.as_ref(), "percentage", basic::fractional_percent)?.unwrap_or(Fraction::NONE);
        match required(abort.error_type.as_ref(), "http_status")? {
            fault::fault_abort::ErrorType::HttpStatus(status) => match NonZeroU32::new(*status) {
                Some(status) if (200..600).contains(&status.get()) => {
                    Ok(config::FaultAbort { http_status: Some(status), grpc_status: None, fraction })
                }
                _ => invalid("expected 200 to 599").at("http_status"),
            },
            fault::fault_abort::ErrorType::GrpcStatus(status) => {
                Ok(config::FaultAbort { http_status: None, grpc_status: Some(*status), fraction })
            }
            fault::fault_abort::ErrorType::HeaderAbort(_) => invalid("is not supported").at("header_abort"),
        }
    })?;
    Ok(config::Fault { delay, abort })
}
