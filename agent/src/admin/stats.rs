//! `/stats`: the metrics of Prometheus' text format under the names that Envoy's own page gives them.
//!
//! `istioctl experimental envoy-stats`, `pilot-agent request GET stats` and health checks written for Envoy look for these. A name
//! is made of a metric that exists; what skiff does not count has no line.

use std::fmt::Write;

use serde_json::{Value, json};
use skiff_proxy::ListenerState;

use super::Admin;
use crate::xds::Kind;

/// Metrics with one label that is a part of Envoy's name: `envoy_cluster_x{cluster_name="a"}` is `cluster.a.x`.
const SCOPES: [(&str, &str, &str); 3] = [
    ("envoy_cluster_", "cluster_name", "cluster"),
    ("envoy_listener_", "listener_address", "listener"),
    ("envoy_http_", "http_conn_manager_prefix", "http"),
];

/// Parts of a name that Envoy sets off with a dot.
const GROUPS: [&str; 6] = ["outlier_detection", "health_check", "jwt_authn", "ext_authz", "rbac", "ssl"];

/// One stat: its name and what is written behind it.
pub(super) type Stat = (String, String);

/// All stats whose names are wanted, by name. `server` are those that only the page knows.
pub(super) fn lines(admin: &Admin, server: &[(&str, u64)], wanted: impl Fn(&str) -> bool) -> Vec<Stat> {
    let in_mesh = admin.mesh.is_some();
    let mut stats: Vec<Stat> = server.iter().map(|&(name, value)| (name.to_owned(), value.to_string())).collect();
    for line in admin.metrics.render().lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some((series, value)) = line.rsplit_once(' ') {
            stats.push((envoys_name(series, in_mesh).unwrap_or_else(|| series.to_owned()), value.to_owned()));
            stats.extend(of_the_control_plane(series).map(|name| (name, value.to_owned())));
        }
    }
    let listeners = admin.proxy.listeners();
    let count = |wanted: &dyn Fn(&ListenerState) -> bool| listeners.iter().filter(|listener| wanted(&listener.state)).count();
    let mut number = |name: &str, value: usize| stats.push((name.to_owned(), value.to_string()));
    number("listener_manager.workers_started", 1);
    number("listener_manager.total_listeners_active", count(&|state| *state == ListenerState::Active));
    number("listener_manager.total_listeners_draining", count(&|state| *state == ListenerState::Draining));
    number("cluster_manager.active_clusters", admin.proxy.snapshot().clusters.len());
    let connections: u64 = listeners.iter().map(|listener| listener.connections).sum();
    stats.push(("server.total_connections".to_owned(), connections.to_string()));
    for kind in [Kind::Cluster, Kind::Listener] {
        if let Some((version, _)) = admin.mesh.as_ref().and_then(|mesh| mesh.originals.version(kind)) {
            let name = format!("{}.version_text", scope(kind.short()).unwrap_or_default());
            stats.push((name, format!("\"{version}\"")));
        }
    }
    stats.retain(|(name, _)| wanted(name));
    stats.sort();
    stats
}

/// Envoy's text: `name: value` lines.
pub(super) fn text(stats: &[Stat]) -> String {
    stats.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}: {value}");
        text
    })
}

/// Envoy's JSON form of the same.
pub(super) fn json(stats: &[Stat]) -> Value {
    let value = |value: &str| match (value.parse::<u64>(), value.parse::<f64>()) {
        (Ok(whole), _) => Value::from(whole),
        (_, Ok(number)) => Value::from(number),
        _ => Value::from(value.trim_matches('"')),
    };
    json!({"stats": stats.iter().map(|(name, text)| json!({"name": name, "value": value(text)})).collect::<Vec<_>>()})
}

/// The families of Prometheus' text format whose names are wanted, with their comments.
pub(super) fn families(prometheus: &str, wanted: impl Fn(&str) -> bool) -> String {
    let name = |line: &str| -> String {
        let rest = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        rest.chars().take_while(|char| !matches!(char, '{' | ' ')).collect()
    };
    prometheus.lines().filter(|line| !line.is_empty() && wanted(&name(line))).fold(String::new(), |text, line| text + line + "\n")
}

/// `cluster.<name>;.upstream_cx_total`: istiod ends the names of clusters with `;` (`alt_stat_name`).
fn envoys_name(series: &str, in_mesh: bool) -> Option<String> {
    let (metric, labels) = series.split_once('{')?;
    let (_, label, scope) = SCOPES.iter().find(|(prefix, ..)| metric.starts_with(prefix))?;
    let value = labels.strip_suffix('}')?.strip_prefix(label)?.strip_prefix("=\"")?.strip_suffix('"')?;
    // Another label behind it: no name of Envoy's says that.
    if value.contains("\",") {
        return None;
    }
    let stat = metric.strip_prefix("envoy_")?.strip_prefix(scope)?.strip_prefix('_')?;
    let group = GROUPS.iter().find_map(|group| Some((group, stat.strip_prefix(group)?.strip_prefix('_')?)));
    let stat = group.map_or_else(|| stat.to_owned(), |(group, rest)| format!("{group}.{rest}"));
    let end = if in_mesh && *scope == "cluster" { ";" } else { "" };
    Some(format!("{scope}.{value}{end}.{stat}"))
}

/// What Envoy counts of its control plane.
fn of_the_control_plane(series: &str) -> Option<String> {
    let of = |metric: &str| series.strip_prefix(metric)?.strip_prefix("{type=\"")?.strip_suffix("\"}");
    if series == "skiff_xds_connected" {
        return Some("control_plane.connected_state".to_owned());
    }
    if let Some(kind) = of("skiff_xds_responses_accepted_total") {
        return Some(format!("{}.update_success", scope(kind)?));
    }
    Some(format!("{}.update_rejected", scope(of("skiff_xds_responses_rejected_total")?)?))
}

fn scope(kind: &str) -> Option<&'static str> {
    match kind {
        "CDS" => Some("cluster_manager.cds"),
        "LDS" => Some("listener_manager.lds"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_get_envoys_names() {
        for (series, in_mesh, name) in [
            (
                r#"envoy_cluster_upstream_cx_total{cluster_name="outbound|9080||a.b"}"#,
                true,
                Some("cluster.outbound|9080||a.b;.upstream_cx_total"),
            ),
            (r#"envoy_cluster_upstream_cx_total{cluster_name="a"}"#, false, Some("cluster.a.upstream_cx_total")),
            (
                r#"envoy_cluster_outlier_detection_ejections_active{cluster_name="a"}"#,
                false,
                Some("cluster.a.outlier_detection.ejections_active"),
            ),
            (
                r#"envoy_listener_downstream_cx_active{listener_address="127.0.0.2_9080"}"#,
                true,
                Some("listener.127.0.0.2_9080.downstream_cx_active"),
            ),
            (r#"envoy_http_jwt_authn_allowed{http_conn_manager_prefix="in"}"#, true, Some("http.in.jwt_authn.allowed")),
            (r#"envoy_http_jwt_authn_allowed{http_conn_manager_prefix="in",jwt_authn_prefix="x"}"#, true, None),
            (r#"istio_requests_total{reporter="source"}"#, true, None),
            ("skiff_draining", true, None),
        ] {
            assert_eq!(envoys_name(series, in_mesh).as_deref(), name, "{series}");
        }
    }

    #[test]
    fn the_control_planes_counters_are_those_that_pilot_agent_asks_for() {
        for (series, name) in [
            (r#"skiff_xds_responses_accepted_total{type="CDS"}"#, Some("cluster_manager.cds.update_success")),
            (r#"skiff_xds_responses_rejected_total{type="LDS"}"#, Some("listener_manager.lds.update_rejected")),
            (r#"skiff_xds_responses_rejected_total{type="EDS"}"#, None),
            ("skiff_xds_connected", Some("control_plane.connected_state")),
        ] {
            assert_eq!(of_the_control_plane(series).as_deref(), name, "{series}");
        }
    }

    #[test]
    fn families_keep_their_comments() {
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"b c\"} 1\n\n# TYPE b gauge\nb 2\n";
        assert_eq!(families(text, |name| name == "a_total"), "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"b c\"} 1\n");
        assert_eq!(
            json(&[("a".to_owned(), "1".to_owned()), ("b".to_owned(), "0.5".to_owned()), ("c".to_owned(), "\"x\"".to_owned())]),
            json!({"stats": [{"name": "a", "value": 1}, {"name": "b", "value": 0.5}, {"name": "c", "value": "x"}]})
        );
    }
}
