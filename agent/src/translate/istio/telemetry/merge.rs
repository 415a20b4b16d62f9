//! How Telemetry resources of several levels are put together, as istiod does it.

use std::collections::{BTreeMap, BTreeSet};

use skiff_proxy::config::Fraction;

use super::super::schema::telemetry::{self as schema, LogFilter, Mode};

/// What the resources say of the spans of one side.
pub(super) struct TracingSpec<'a> {
    pub(super) provider: Option<&'a str>,
    pub(super) disabled: bool,
    pub(super) sampling: Option<Fraction>,
    pub(super) custom_tags: Option<&'a BTreeMap<String, schema::CustomTag>>,
    pub(super) use_request_id: bool,
    pub(super) istio_tags: bool,
    pub(super) no_context_propagation: bool,
}

pub(super) fn merge_tracing<'a>(entries: &[&'a schema::Tracing], default: Option<&'a str>, mode: Mode) -> TracingSpec<'a> {
    let mut spec = TracingSpec {
        provider: default,
        disabled: false,
        sampling: None,
        custom_tags: None,
        use_request_id: true,
        istio_tags: true,
        no_context_propagation: false,
    };
    for entry in entries.iter().filter(|entry| entry.matches.holds(mode)) {
        // One tracer at a time, so the first of a list.
        spec.provider = entry.providers.first().map(|provider| provider.name.as_str()).or(spec.provider);
        spec.disabled = entry.disable_span_reporting.unwrap_or(spec.disabled);
        spec.sampling = entry.random_sampling_percentage.map(|share| share.0).or(spec.sampling);
        spec.custom_tags = entry.custom_tags.as_ref().or(spec.custom_tags);
        spec.use_request_id = entry.use_request_id_for_trace_sampling.unwrap_or(spec.use_request_id);
        spec.istio_tags = entry.enable_istio_tags.unwrap_or(spec.istio_tags);
        spec.no_context_propagation = entry.disable_context_propagation.unwrap_or(spec.no_context_propagation);
    }
    spec
}

/// What the resources say of one provider of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logging<'a> {
    On(Option<&'a LogFilter>),
    Off,
}

/// The providers of one side, by name. The last level that names any replaces those of the levels before; an entry without
/// providers means those of the entry before it.
pub(super) fn merge_logs<'a>(
    levels: &[&'a [schema::AccessLogging]],
    defaults: &'a [String],
    mode: Mode,
) -> BTreeMap<&'a str, Logging<'a>> {
    let defaults: Vec<&str> = defaults.iter().map(String::as_str).collect();
    if levels.is_empty() {
        return defaults.into_iter().map(|name| (name, Logging::On(None))).collect();
    }
    let names = |entry: &'a schema::AccessLogging| entry.providers.iter().map(|provider| provider.name.as_str());
    let mut in_scope: BTreeSet<&str> = defaults.iter().copied().collect();
    let mut filters: BTreeMap<&str, Option<&LogFilter>> = BTreeMap::new();
    for level in levels {
        let concerned = || level.iter().filter(|entry| entry.matches.holds(mode));
        filters.extend(concerned().flat_map(|entry| names(entry).map(|name| (name, entry.filter.as_ref()))));
        let named: BTreeSet<&str> = concerned().flat_map(names).collect();
        if !named.is_empty() {
            in_scope = named;
        }
    }
    let mut merged = BTreeMap::new();
    let mut before = defaults;
    for entry in levels.iter().copied().flatten() {
        if !entry.providers.is_empty() {
            before = names(entry).collect();
        }
        if !entry.matches.holds(mode) {
            continue;
        }
        for name in before.iter().filter(|name| in_scope.contains(*name)) {
            let off = entry.disabled == Some(true);
            merged.insert(*name, if off { Logging::Off } else { Logging::On(filters.get(name).copied().flatten()) });
        }
    }
    merged
}
