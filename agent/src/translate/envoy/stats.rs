//! Istio's standard metrics.

use std::time::Duration;

use skiff_proto::filters::stats::{MetricConfig, PluginConfig, Reporter};
use skiff_proxy::config;

use super::basic;
use super::outcome::{At, Outcome, each, invalid};

/// Labels that every metric of Istio may have, without those of a Telemetry resource.
const TAGS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "response_code",
    "grpc_response_status",
];

pub(super) fn stats(message: &PluginConfig, direction: config::TrafficDirection) -> Outcome<config::IstioStats> {
    if message.reporter != Reporter::Unspecified as i32 {
        return invalid("expected UNSPECIFIED: a sidecar is no gateway").at("reporter");
    }
    let defined: Vec<&str> = message.definitions.iter().map(|definition| definition.name.as_str()).collect();
    let overrides = each(&message.metrics, "metrics", |metric| metric_override(metric, &defined))?;
    let duration = message.tcp_reporting_duration.as_ref();
    Ok(config::IstioStats {
        disable_host_header_fallback: message.disable_host_header_fallback,
        tcp_reporting_duration: basic::limit(duration, Some(Duration::from_secs(5)), "tcp_reporting_duration")?,
        overrides: overrides.into_iter().flatten().collect(),
        ..config::IstioStats::new(config::Reporter::of(direction))
    })
}

/// `None` for what changes a metric of [`PluginConfig::definitions`], which do not exist here.
pub(crate) fn metric_override(message: &MetricConfig, defined: &[&str]) -> Outcome<Option<config::MetricOverride>> {
    let metric = match message.name.as_str() {
        "" if message.drop => return invalid("expected the name of a metric beside drop").at("name"),
        "" => None,
        name => match config::IstioMetric::of(name) {
            Some(metric) => Some(metric),
            None if defined.contains(&name) => return Ok(None),
            None => {
                return invalid(format!("expected the name of a standard metric like requests_total, found {name:?}")).at("name");
            }
        },
    };
    let mut dimensions = std::collections::BTreeMap::new();
    for (tag, expression) in &message.dimensions {
        let at = format!("dimensions[{tag:?}]");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        if tag.is_empty() || !tag.bytes().all(plain) {
            return invalid("expected a label's name").at(&at);
        }
        dimensions.insert(tag.clone(), dimension(expression).at(&at)?);
    }
    Ok(Some(config::MetricOverride {
        metric,
        drop: message.drop,
        // As in Istio, a label that is not there is not missed.
        tags_to_remove: message.tags_to_remove.iter().filter(|tag| TAGS.contains(&tag.as_str())).cloned().collect(),
        dimensions,
    }))
}

/// CEL, of which names of attributes and constants are understood.
fn dimension(expression: &str) -> Outcome<config::Dimension> {
    let expression = expression.trim();
    let constant = ['\'', '"'].iter().find_map(|&quote| {
        let inner = expression.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains(quote) && !inner.contains('\\')).then(|| config::Dimension::Constant(inner.to_owned()))
    });
    let attribute = || config::Attribute::of(expression).map(config::Dimension::Attribute);
    match constant.or_else(attribute) {
        Some(dimension) => Ok(dimension),
        None => invalid(format!("expected a quoted text or an attribute like request.url_path, found {expression:?}")),
    }
}
