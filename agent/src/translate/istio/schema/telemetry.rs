//! `telemetry.istio.io` Telemetry.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{GoDuration, Refused, Share};
use super::Selector;

/// [Telemetry](https://istio.io/latest/docs/reference/config/telemetry/).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "what is refused is named so that the error can say why")]
pub(in super::super) struct Telemetry {
    pub(in super::super) selector: Option<Selector>,
    /// A sidecar is chosen by labels; these mean gateways and waypoints.
    target_ref: Option<Refused>,
    target_refs: Option<Refused>,
    #[serde(default)]
    pub(in super::super) tracing: Vec<Tracing>,
    #[serde(default)]
    pub(in super::super) metrics: Vec<Located<Metrics>>,
    #[serde(default)]
    pub(in super::super) access_logging: Vec<AccessLogging>,
}

impl Telemetry {
    /// Whether it is for all workloads of its namespace.
    pub(in super::super) fn is_namespace_wide(&self) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
    }
}

impl Mode {
    /// Whether a resource for this mode concerns a side.
    pub(in super::super) fn holds(self, side: Self) -> bool {
        self == Self::ClientAndServer || self == side
    }
}

/// Which of its two sides a sidecar is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum Mode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ModeMatch {
    #[serde(default)]
    pub(in super::super) mode: Mode,
}

impl ModeMatch {
    /// Whether it holds for a side.
    pub(in super::super) fn holds(self, side: Mode) -> bool {
        self.mode.holds(side)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ProviderRef {
    pub(in super::super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Tracing {
    #[serde(default, rename = "match")]
    pub(in super::super) matches: ModeMatch,
    #[serde(default)]
    pub(in super::super) providers: Vec<ProviderRef>,
    pub(in super::super) random_sampling_percentage: Option<Share>,
    pub(in super::super) disable_span_reporting: Option<bool>,
    pub(in super::super) custom_tags: Option<BTreeMap<String, CustomTag>>,
    pub(in super::super) use_request_id_for_trace_sampling: Option<bool>,
    pub(in super::super) enable_istio_tags: Option<bool>,
    pub(in super::super) disable_context_propagation: Option<bool>,
}

/// Exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) enum CustomTag {
    Literal(Value),
    Environment(Named),
    Header(Named),
    Formatter(Value),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Value {
    pub(in super::super) value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Named {
    pub(in super::super) name: String,
    #[serde(default)]
    pub(in super::super) default_value: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct AccessLogging {
    #[serde(default, rename = "match")]
    pub(in super::super) matches: ModeMatch,
    #[serde(default)]
    pub(in super::super) providers: Vec<ProviderRef>,
    pub(in super::super) disabled: Option<bool>,
    pub(in super::super) filter: Option<LogFilter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct LogFilter {
    pub(in super::super) expression: Expression,
}

/// An expression of CEL that compiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Expression(pub(in super::super) String);

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        skiff_proxy::cel::Expression::compile(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(text))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Metrics {
    #[serde(default)]
    pub(in super::super) providers: Vec<ProviderRef>,
    #[serde(default)]
    pub(in super::super) overrides: Vec<Located<MetricsOverride>>,
    pub(in super::super) reporting_interval: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct MetricsOverride {
    #[serde(default, rename = "match")]
    pub(in super::super) matches: MetricSelector,
    pub(in super::super) disabled: Option<bool>,
    #[serde(default)]
    pub(in super::super) tag_overrides: BTreeMap<String, TagOverride>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct MetricSelector {
    pub(in super::super) metric: Option<Metric>,
    pub(in super::super) custom_metric: Option<String>,
    #[serde(default)]
    pub(in super::super) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum Metric {
    AllMetrics,
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
    GrpcRequestMessages,
    GrpcResponseMessages,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TagOverride {
    #[serde(default)]
    pub(in super::super) operation: Operation,
    #[serde(default)]
    pub(in super::super) value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum Operation {
    #[default]
    Upsert,
    Remove,
}
