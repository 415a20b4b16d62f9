//! The scalar types of Istio's resources: parsed once, valid from then on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use skiff_proxy::config::{Fraction, Locality, Regex, StringMatch, StringMatcher};

/// Reads a type from a YAML string through `FromStr`; the error is the reason shown to people.
macro_rules! from_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(GoDuration, Protocol, HostFilter, HostName, InboundEndpoint, Block, RegexText, LocalityText);

/// A port number, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(NonZeroU16);

impl Port {
    pub(super) fn get(self) -> u16 {
        self.0.get()
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.map(Self).ok_or_else(|| serde::de::Error::custom(format_args!("{number}: expected a port from 1 to 65535")))
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?}: expected a port from 1 to 65535"))
    }
}

/// A duration in Go's notation, which is what Kubernetes and protobuf JSON have in common: `1.5s`, `100ms`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GoDuration(pub(super) Duration);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected a duration such as 1.5s, 100ms or 1h");
        let mut rest = text;
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
            let unit = match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
            let part = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = &rest[unit_end..];
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(total)) }
    }
}

/// Istio's `Percent` message.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Percent {
    #[serde(default)]
    value: Share,
}

impl Percent {
    pub(super) fn fraction(self) -> Fraction {
        self.value.0
    }
}

/// A number from 0 to 100 as a share of requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share(pub(super) Fraction);

impl Default for Share {
    fn default() -> Self {
        Self(Fraction::NONE)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        Fraction::from_percent(percent)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format_args!("{percent}: expected a percentage from 0 to 100")))
    }
}

/// The protocol of a port, in the groups that matter to a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Http2,
    Grpc,
    /// Absolute-form and CONNECT requests of applications that set `http_proxy`.
    HttpProxy,
    /// TCP and everything that Istio forwards as bytes (MONGO, MYSQL, REDIS).
    Tcp,
    /// TLS and HTTPS: bytes with an SNI.
    Tls,
}

impl Protocol {
    const NAMES: &'static str = "HTTP, HTTP2, GRPC, GRPC-WEB, HTTP_PROXY, HTTPS, TLS, TCP, MONGO, MYSQL, REDIS";

    pub(super) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::HttpProxy)
    }

    pub(super) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "HTTP" => Self::Http,
            "HTTP2" => Self::Http2,
            "GRPC" | "GRPC-WEB" => Self::Grpc,
            "HTTP_PROXY" => Self::HttpProxy,
            "TCP" | "MONGO" | "MYSQL" | "REDIS" => Self::Tcp,
            "TLS" | "HTTPS" => Self::Tls,
            _ => return Err(format!("{text:?}: expected one of {}", Self::NAMES)),
        })
    }
}

/// A host as resources name it: a DNS name, perhaps short, or one that begins with `*.`, or `*`; lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HostName(String);

impl HostName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Istio's rule for short names: without a dot it is a Service of the resource's own namespace.
    pub(super) fn resolve(&self, namespace: &str) -> String {
        if self.0.contains('.') || self.is_wildcard() {
            self.0.clone()
        } else {
            format!("{}.{namespace}.svc.cluster.local", self.0)
        }
    }

    /// Whether every host that `host` stands for is one that this one stands for.
    pub(super) fn covers(&self, host: &str) -> bool {
        covers(&self.0, host)
    }
}

/// Whether the pattern (`*`, `*.suffix` or a name) covers the host, which may be a pattern too.
pub(super) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => pattern == host || host.trim_start_matches('*').ends_with(suffix),
        None => pattern == host,
    }
}

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let legal = |label: &str| {
            !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if text == "*" || (name.len() <= 253 && name.split('.').all(legal)) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err(format!("{text:?}: expected a host such as details.bookinfo.svc.cluster.local, *.example.com or *"))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One entry of a Sidecar's `egress[].hosts`: `namespace/host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostFilter {
    namespace: NamespaceFilter,
    host: HostName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NamespaceFilter {
    /// `*`
    Any,
    /// `.`
    Own,
    /// `~`
    None,
    Named(String),
}

impl HostFilter {
    /// Whether a host that `host_namespace` declares is imported by a Sidecar of `own_namespace`.
    pub(super) fn imports(&self, host: &str, host_namespace: &str, own_namespace: &str) -> bool {
        let namespace = match &self.namespace {
            NamespaceFilter::Any => true,
            NamespaceFilter::Own => host_namespace == own_namespace,
            NamespaceFilter::None => false,
            NamespaceFilter::Named(name) => host_namespace == name,
        };
        namespace && self.host.covers(host)
    }

    /// The host, when it is a single one of a namespace that may hold it.
    pub(super) fn single(&self) -> Option<&str> {
        (self.namespace != NamespaceFilter::None && !self.host.is_wildcard()).then(|| self.host.as_str())
    }

    /// `*/*`
    pub(super) fn everything() -> Self {
        Self { namespace: NamespaceFilter::Any, host: HostName("*".to_owned()) }
    }
}

impl FromStr for HostFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, host) =
            text.split_once('/').ok_or_else(|| format!("{text:?}: expected namespace/host, such as ./* or */details"))?;
        let namespace = match namespace {
            "*" => NamespaceFilter::Any,
            "." => NamespaceFilter::Own,
            "~" => NamespaceFilter::None,
            "" => return Err(format!("{text:?}: expected a namespace, *, . or ~ before the slash")),
            name => NamespaceFilter::Named(name.to_owned()),
        };
        Ok(Self { namespace, host: host.parse()? })
    }
}

/// Where a Sidecar's ingress listener forwards to (`defaultEndpoint`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InboundEndpoint {
    /// `127.0.0.1:PORT` or `[::1]:PORT`
    Loopback(SocketAddr),
    /// `0.0.0.0:PORT`: the workload's own address.
    Own(u16),
    /// `unix:///path`
    Pipe(PathBuf),
}

impl FromStr for InboundEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            return Ok(Self::Pipe(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => {}
            Ok(address) if address.ip().is_unspecified() => return Ok(Self::Own(address.port())),
            Ok(address) if address.ip().is_loopback() => return Ok(Self::Loopback(address)),
            _ => {}
        }
        Err(format!("{text:?}: expected 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT or unix:///path"))
    }
}

/// An address or CIDR block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block(pub(super) IpNet);

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| format!("{text:?}: expected an address or a CIDR block"))
    }
}

/// A regular expression that compiles.
#[derive(Clone, Debug)]
pub(super) struct RegexText(pub(super) Regex);

impl FromStr for RegexText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Regex::new(text).map(Self).map_err(|error| {
            let reason = error.to_string();
            format!(
                "{text:?}: not a regular expression: {}",
                reason.lines().last().unwrap_or_default().trim_start_matches("error: ")
            )
        })
    }
}

/// `region/zone/sub-zone`, of which later parts may be missing.
#[derive(Clone, Debug, Default)]
pub(super) struct LocalityText(pub(super) Locality);

impl FromStr for LocalityText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let locality = Locality { region: next(), zone: next(), sub_zone: next() };
        if parts.next().is_some() { Err(format!("{text:?}: expected region/zone/sub-zone")) } else { Ok(Self(locality)) }
    }
}

/// Istio's `StringMatch` as a VirtualService writes it; an empty one asks only for presence.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "StringMatchFields")]
pub(super) enum TextMatch {
    Present,
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StringMatchFields {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<RegexText>,
}

impl TryFrom<StringMatchFields> for TextMatch {
    type Error = &'static str;

    fn try_from(fields: StringMatchFields) -> Result<Self, Self::Error> {
        match (fields.exact, fields.prefix, fields.regex) {
            (None, None, None) => Ok(Self::Present),
            (Some(exact), None, None) => Ok(Self::Exact(exact)),
            (None, Some(prefix), None) => Ok(Self::Prefix(prefix)),
            (None, None, Some(regex)) => Ok(Self::Regex(regex.0)),
            _ => Err("expected one of exact, prefix, regex, not several"),
        }
    }
}

impl TextMatch {
    /// The data plane's matcher; `None` when presence is enough.
    pub(super) fn matcher(&self) -> Option<StringMatcher> {
        Some(match self {
            Self::Present => return None,
            Self::Exact(text) => StringMatcher::exact(text),
            Self::Prefix(text) => StringMatcher::prefix(text),
            Self::Regex(regex) => StringMatch::Regex(regex.clone()).into(),
        })
    }
}

/// A field that skiff refuses by name: leaving it out silently would change what the resource means.
#[derive(Clone, Debug)]
pub(super) enum Refused {}

impl<'de> Deserialize<'de> for Refused {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("not supported by skiff"))
    }
}

/// A field that skiff reads over because it means nothing to a sidecar.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}
