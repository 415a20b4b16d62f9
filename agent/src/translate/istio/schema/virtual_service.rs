//! `networking.istio.io` VirtualService.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{Block, GoDuration, HostName, Ignored, Percent, Port, Refused, RegexText, TextMatch};
use super::Labels;

/// [VirtualService](https://istio.io/latest/docs/reference/config/networking/virtual-service/).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct VirtualService {
    pub(in super::super) hosts: Vec<HostName>,
    #[serde(default)]
    pub(in super::super) gateways: Vec<String>,
    #[serde(default)]
    pub(in super::super) http: Vec<Located<HttpRoute>>,
    #[serde(default)]
    pub(in super::super) tls: Vec<Located<TlsRoute>>,
    #[serde(default)]
    pub(in super::super) tcp: Vec<Located<TcpRoute>>,
    #[serde(default)]
    pub(in super::super) export_to: Vec<String>,
}

/// Gateways `mesh` stands for every sidecar, and is meant when none is named.
pub(in super::super) fn for_sidecars(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct HttpRoute {
    #[serde(default)]
    pub(in super::super) name: String,
    #[serde(default, rename = "match")]
    pub(in super::super) matches: Vec<HttpMatch>,
    #[serde(default)]
    pub(in super::super) route: Vec<HttpDestination>,
    pub(in super::super) redirect: Option<Redirect>,
    pub(in super::super) direct_response: Option<DirectResponse>,
    pub(in super::super) rewrite: Option<Rewrite>,
    pub(in super::super) timeout: Option<GoDuration>,
    pub(in super::super) retries: Option<Retries>,
    pub(in super::super) fault: Option<Fault>,
    pub(in super::super) mirror: Option<Destination>,
    pub(in super::super) mirror_percentage: Option<Percent>,
    #[serde(default)]
    pub(in super::super) mirrors: Vec<Mirror>,
    pub(in super::super) cors_policy: Option<CorsPolicy>,
    pub(in super::super) headers: Option<Headers>,
    delegate: Option<Refused>,
    mirror_percent: Option<Refused>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a prefix of statistics changes nothing for requests")]
pub(in super::super) struct HttpMatch {
    #[serde(default)]
    pub(in super::super) name: String,
    pub(in super::super) uri: Option<TextMatch>,
    pub(in super::super) scheme: Option<TextMatch>,
    pub(in super::super) method: Option<TextMatch>,
    pub(in super::super) authority: Option<TextMatch>,
    #[serde(default)]
    pub(in super::super) headers: BTreeMap<String, TextMatch>,
    #[serde(default)]
    pub(in super::super) without_headers: BTreeMap<String, TextMatch>,
    #[serde(default)]
    pub(in super::super) query_params: BTreeMap<String, TextMatch>,
    pub(in super::super) port: Option<Port>,
    #[serde(default)]
    pub(in super::super) source_labels: Labels,
    pub(in super::super) source_namespace: Option<String>,
    #[serde(default)]
    pub(in super::super) gateways: Vec<String>,
    #[serde(default)]
    pub(in super::super) ignore_uri_case: bool,
    #[serde(default)]
    stat_prefix: Ignored,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct HttpDestination {
    pub(in super::super) destination: Destination,
    pub(in super::super) weight: Option<u32>,
    pub(in super::super) headers: Option<Headers>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Destination {
    pub(in super::super) host: HostName,
    #[serde(default)]
    pub(in super::super) subset: String,
    pub(in super::super) port: Option<DestinationPort>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct DestinationPort {
    pub(in super::super) number: Port,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Redirect {
    pub(in super::super) uri: Option<String>,
    pub(in super::super) authority: Option<String>,
    pub(in super::super) port: Option<Port>,
    pub(in super::super) derive_port: Option<DerivePort>,
    pub(in super::super) scheme: Option<Scheme>,
    #[serde(default)]
    pub(in super::super) redirect_code: RedirectCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum DerivePort {
    FromProtocolDefault,
    FromRequestPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Scheme {
    Http,
    Https,
}

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RedirectCode(pub(in super::super) u16);

impl Default for RedirectCode {
    fn default() -> Self {
        Self(301)
    }
}

impl<'de> Deserialize<'de> for RedirectCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer)? {
            code @ (301 | 302 | 303 | 307 | 308) => Ok(Self(code)),
            other => Err(serde::de::Error::custom(format_args!("{other}: expected one of 301, 302, 303, 307, 308"))),
        }
    }
}

/// A status code, 200 to 599.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Status(pub(in super::super) u16);

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer)? {
            code @ 200..=599 => Ok(Self(code)),
            other => Err(serde::de::Error::custom(format_args!("{other}: expected a status from 200 to 599"))),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct DirectResponse {
    pub(in super::super) status: Status,
    pub(in super::super) body: Option<Body>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) enum Body {
    String(String),
    Bytes(Base64),
}

#[derive(Clone, Debug)]
pub(in super::super) struct Base64(pub(in super::super) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = String::deserialize(deserializer)?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        decoded.map(Self).map_err(|_| serde::de::Error::custom("expected base64"))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Rewrite {
    pub(in super::super) uri: Option<String>,
    pub(in super::super) authority: Option<String>,
    pub(in super::super) uri_regex_rewrite: Option<RegexRewrite>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct RegexRewrite {
    #[serde(rename = "match")]
    pub(in super::super) pattern: RegexText,
    pub(in super::super) rewrite: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Retries {
    #[serde(default)]
    pub(in super::super) attempts: u32,
    pub(in super::super) per_try_timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) retry_on: RetryOnText,
    pub(in super::super) retry_remote_localities: Option<bool>,
    pub(in super::super) retry_ignore_previous_hosts: Option<bool>,
    pub(in super::super) backoff: Option<GoDuration>,
}

/// `retryOn`, read into the data plane's form; `None` is Istio's default.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct RetryOnText(pub(in super::super) Option<skiff_proxy::config::RetryOn>);

impl<'de> Deserialize<'de> for RetryOnText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.trim().is_empty() {
            return Ok(Self(None));
        }
        let mut on = skiff_proxy::config::RetryOn::default();
        for word in text.split(',').map(str::trim) {
            match word {
                word if on.add_word(word) || on.add_grpc_word(word) => {}
                // The codes are words of their own in Istio's list.
                code => match code.parse() {
                    Ok(code @ 100..=599) => {
                        on.retriable_status_codes = true;
                        on.status_codes.push(code);
                    }
                    _ => {
                        return Err(serde::de::Error::custom(format_args!(
                            "{code:?}: expected a status code or one of 5xx, gateway-error, reset, reset-before-request, \
                             connect-failure, refused-stream, retriable-4xx, retriable-status-codes, envoy-ratelimited, cancelled, \
                             deadline-exceeded, internal, resource-exhausted, unavailable"
                        )));
                    }
                },
            }
        }
        Ok(Self(Some(on)))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Fault {
    pub(in super::super) delay: Option<Delay>,
    pub(in super::super) abort: Option<Abort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct Delay {
    pub(in super::super) percentage: Option<Percent>,
    pub(in super::super) fixed_delay: GoDuration,
    percent: Option<Refused>,
    exponential_delay: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct Abort {
    pub(in super::super) percentage: Option<Percent>,
    pub(in super::super) http_status: Option<NonZeroU32>,
    pub(in super::super) grpc_status: Option<GrpcStatus>,
    #[serde(rename = "http2Error")]
    http2_error: Option<Refused>,
}

/// A gRPC status by name or number.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct GrpcStatus(pub(in super::super) u32);

impl<'de> Deserialize<'de> for GrpcStatus {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        let text = String::deserialize(deserializer)?;
        let by_name = NAMES.iter().position(|name| *name == text).and_then(|code| u32::try_from(code).ok());
        let code = by_name.or_else(|| text.parse().ok().filter(|code| *code <= 16));
        code.map(Self).ok_or_else(|| serde::de::Error::custom(format_args!("{text:?}: expected one of {}", NAMES.join(", "))))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Mirror {
    pub(in super::super) destination: Destination,
    pub(in super::super) percentage: Option<Percent>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct CorsPolicy {
    #[serde(default)]
    pub(in super::super) allow_origins: Vec<TextMatch>,
    #[serde(default)]
    pub(in super::super) allow_methods: Vec<String>,
    #[serde(default)]
    pub(in super::super) allow_headers: Vec<String>,
    #[serde(default)]
    pub(in super::super) expose_headers: Vec<String>,
    pub(in super::super) max_age: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) allow_credentials: bool,
    #[serde(default)]
    pub(in super::super) unmatched_preflights: UnmatchedPreflights,
    allow_origin: Option<Refused>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum UnmatchedPreflights {
    #[default]
    Unspecified,
    Forward,
    Ignore,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Headers {
    #[serde(default)]
    pub(in super::super) request: HeaderOperations,
    #[serde(default)]
    pub(in super::super) response: HeaderOperations,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct HeaderOperations {
    #[serde(default)]
    pub(in super::super) set: BTreeMap<String, String>,
    #[serde(default)]
    pub(in super::super) add: BTreeMap<String, String>,
    #[serde(default)]
    pub(in super::super) remove: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TlsRoute {
    #[serde(rename = "match")]
    pub(in super::super) matches: Vec<TlsMatch>,
    #[serde(default)]
    pub(in super::super) route: Vec<TcpDestination>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct TlsMatch {
    pub(in super::super) sni_hosts: Vec<HostName>,
    #[serde(default)]
    pub(in super::super) destination_subnets: Vec<Block>,
    pub(in super::super) port: Option<Port>,
    #[serde(default)]
    pub(in super::super) source_labels: Labels,
    pub(in super::super) source_namespace: Option<String>,
    #[serde(default)]
    pub(in super::super) gateways: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TcpRoute {
    #[serde(default, rename = "match")]
    pub(in super::super) matches: Vec<TcpMatch>,
    #[serde(default)]
    pub(in super::super) route: Vec<TcpDestination>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct TcpMatch {
    #[serde(default)]
    pub(in super::super) destination_subnets: Vec<Block>,
    pub(in super::super) port: Option<Port>,
    #[serde(default)]
    pub(in super::super) source_labels: Labels,
    pub(in super::super) source_namespace: Option<String>,
    #[serde(default)]
    pub(in super::super) gateways: Vec<String>,
    source_subnet: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TcpDestination {
    pub(in super::super) destination: Destination,
    pub(in super::super) weight: Option<u32>,
}
