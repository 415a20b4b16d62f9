//! What Telemetry resources change about Istio's metrics, in the words of `istio.stats`.

use std::collections::BTreeMap;
use std::time::Duration;

use skiff_proto::filters::stats::MetricConfig;
use skiff_proxy::config::{IstioStats, Reporter};

use super::super::documents::Resource;
use super::super::schema::telemetry::{self as schema, Metric, MetricSelector, Mode, Operation};
use super::Telemetry;
use crate::translate::envoy;

/// In the order of their names, as istiod writes them.
const METRICS: [(Metric, &str); 10] = [
    (Metric::GrpcRequestMessages, "request_messages_total"),
    (Metric::GrpcResponseMessages, "response_messages_total"),
    (Metric::RequestCount, "requests_total"),
    (Metric::RequestDuration, "request_duration_milliseconds"),
    (Metric::RequestSize, "request_bytes"),
    (Metric::ResponseSize, "response_bytes"),
    (Metric::TcpClosedConnections, "tcp_connections_closed_total"),
    (Metric::TcpOpenedConnections, "tcp_connections_opened_total"),
    (Metric::TcpReceivedBytes, "tcp_received_bytes_total"),
    (Metric::TcpSentBytes, "tcp_sent_bytes_total"),
];

/// What is changed, by place in [`METRICS`].
#[derive(Default)]
struct Merged<'a> {
    disabled: bool,
    interval: Option<Duration>,
    overrides: BTreeMap<usize, Override<'a>>,
}

#[derive(Default)]
struct Override<'a> {
    disabled: bool,
    tags: BTreeMap<&'a str, &'a schema::TagOverride>,
}

impl<'a> Telemetry<'a, '_> {
    /// The metrics of one side; `None` where there are none.
    pub(super) fn stats(&mut self, applicable: &[&'a Resource<schema::Telemetry>], mode: Mode) -> Option<IstioStats> {
        let (reporter, inbound) = if mode == Mode::Server { (Reporter::Destination, true) } else { (Reporter::Source, false) };
        let merged = self.merge_metrics(applicable, mode)?;
        if merged.disabled {
            return None;
        }
        // The host header of a caller is no name for a series.
        let mut stats = IstioStats { disable_host_header_fallback: inbound, ..IstioStats::new(reporter) };
        if let Some(interval) = merged.interval {
            stats.tcp_reporting_duration = Some(interval).filter(|interval| !interval.is_zero());
        }
        for (place, change) in merged.overrides {
            let message = change.message(METRICS[place].1);
            match envoy::metric_override(&message, &[]) {
                Ok(change) => stats.overrides.extend(change),
                Err(all) => {
                    for one in all {
                        self.output.warn(format!("Telemetry: metric {}: {}: {}", message.name, one.path, one.reason));
                    }
                }
            }
        }
        Some(stats)
    }

    /// `None` when another provider than Prometheus is to have them.
    fn merge_metrics(&mut self, applicable: &[&'a Resource<schema::Telemetry>], mode: Mode) -> Option<Merged<'a>> {
        let entries = || applicable.iter().flat_map(|resource| resource.spec.metrics.iter().map(move |entry| (resource, entry)));
        let named = |entry: &'a schema::Metrics| entry.providers.iter().any(|provider| self.is_prometheus(&provider.name));
        let default = self.mesh.default_providers.metrics.as_ref();
        let default = default.is_none_or(|names| names.iter().any(|name| self.is_prometheus(name)));
        let last = entries().map(|(_, entry)| &entry.value).rfind(|entry| !entry.providers.is_empty());
        if !last.map_or(default, named) {
            return None;
        }
        let (mut merged, mut concerned, mut custom) = (Merged::default(), default, Vec::new());
        for (resource, entry) in entries() {
            if !entry.value.providers.is_empty() {
                concerned = named(&entry.value);
            }
            if !concerned {
                continue;
            }
            merged.interval = entry.value.reporting_interval.map(|interval| interval.0).or(merged.interval);
            for one in entry.value.overrides.iter().filter(|one| one.value.matches.mode.holds(mode)) {
                if let Some(name) = &one.value.matches.custom_metric {
                    custom.push(resource.remark(format_args!("{}: metric {name:?} is none of Istio's, left out", one.path)));
                } else {
                    merged.add(&one.value);
                }
            }
        }
        custom.into_iter().for_each(|warning| self.output.warn(warning));
        Some(merged)
    }

    fn is_prometheus(&self, name: &str) -> bool {
        match self.provider(name) {
            Some(provider) => provider.other.contains_key("prometheus"),
            // The provider that every mesh has.
            None => name == "prometheus",
        }
    }
}

impl<'a> Merged<'a> {
    fn add(&mut self, change: &'a schema::MetricsOverride) {
        let MetricSelector { metric, .. } = change.matches;
        let metric = metric.filter(|metric| *metric != Metric::AllMetrics);
        if metric.is_none() && change.disabled == Some(true) {
            self.disabled = true;
            return;
        }
        self.disabled = false;
        for (place, _) in METRICS.iter().enumerate().filter(|(_, (known, _))| metric.is_none_or(|metric| metric == *known)) {
            let merged = self.overrides.entry(place).or_default();
            merged.disabled = change.disabled.unwrap_or(merged.disabled);
            merged.tags.extend(change.tag_overrides.iter().map(|(name, tag)| (name.as_str(), tag)));
        }
    }
}

impl Override<'_> {
    fn message(&self, name: &str) -> MetricConfig {
        let removes = |operation: Operation| operation == Operation::Remove;
        let kept = self.tags.iter().filter(|(_, tag)| !removes(tag.operation));
        let removed = self.tags.iter().filter(|(_, tag)| removes(tag.operation));
        MetricConfig {
            name: name.to_owned(),
            drop: self.disabled,
            dimensions: kept.map(|(name, tag)| ((*name).to_owned(), tag.value.clone())).collect(),
            tags_to_remove: removed.map(|(name, _)| (*name).to_owned()).collect(),
            ..MetricConfig::default()
        }
    }
}
