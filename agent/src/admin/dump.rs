//! The bodies of `/clusters`, `/listeners`, `/certs` and of skiff's own `/config_dump`: pure functions from status to text.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use skiff_proxy::config::{CircuitBreakers, Cluster, Snapshot};
use skiff_proxy::{CertificateStatus, ClusterStatus, EndpointStatus, ListenerStatus};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The parts that `/config_dump?resource=` can name.
pub(super) const RESOURCES: [&str; 5] = ["listeners", "routes", "clusters", "endpoints", "secrets"];

/// The configuration in force, or one part of it. Secrets are shown by their facts, without key.
pub(super) fn config(
    snapshot: &Snapshot,
    certificates: &[CertificateStatus],
    resource: Option<&str>,
) -> Result<Value, serde_json::Error> {
    let part = |name: &str| {
        Ok::<_, serde_json::Error>(match name {
            "listeners" => serde_json::to_value(&snapshot.listeners)?,
            "routes" => serde_json::to_value(&snapshot.routes)?,
            "clusters" => serde_json::to_value(&snapshot.clusters)?,
            "endpoints" => serde_json::to_value(&snapshot.endpoints)?,
            _ => Value::Object(certificates.iter().map(|status| (status.name.clone(), certificate(status))).collect()),
        })
    };
    let mut dump = Map::new();
    dump.insert("version".to_owned(), snapshot.version.clone().into());
    for name in RESOURCES {
        if resource.is_none_or(|wanted| wanted == name) {
            dump.insert(name.to_owned(), part(name)?);
        }
    }
    Ok(Value::Object(dump))
}

/// Leaves only the resources with these names.
pub(super) fn retain(dump: &mut Value, wanted: impl Fn(&str) -> bool) {
    for name in RESOURCES {
        if let Some(Value::Object(resources)) = dump.get_mut(name) {
            resources.retain(|name, _| wanted(name));
        }
    }
}

/// Envoy's `cluster::address::key::value` lines. `from_api` for clusters that a control plane sent.
pub(super) fn clusters_text(clusters: &[ClusterStatus], snapshot: &Snapshot, from_api: bool) -> String {
    let mut text = String::new();
    for ClusterStatus { name, endpoints } in clusters {
        let _ = writeln!(text, "{name}::observability_name::{name}");
        for (key, limit) in snapshot.clusters.get(name.as_str()).map(|cluster| thresholds(&cluster.get())).into_iter().flatten() {
            let _ = writeln!(text, "{name}::default_priority::{key}::{limit}");
        }
        let _ = writeln!(text, "{name}::added_via_api::{from_api}");
        for EndpointStatus { address, health, active, weight, locality, hostname, priority } in endpoints {
            let mut line = |key: &str, value: &dyn std::fmt::Display| {
                let _ = writeln!(text, "{name}::{address}::{key}::{value}");
            };
            let [region, zone, sub_zone] = split_locality(locality);
            line("rq_active", active);
            line("hostname", hostname);
            line("health_flags", health);
            line("weight", weight);
            line("region", &region);
            line("zone", &zone);
            line("sub_zone", &sub_zone);
            line("canary", &false);
            line("priority", priority);
        }
    }
    text
}

/// Envoy's `admin.v3.Clusters`.
pub(super) fn clusters_json(clusters: &[ClusterStatus], snapshot: &Snapshot, from_api: bool) -> Value {
    let cluster = |cluster: &ClusterStatus| {
        let limits = snapshot.clusters.get(cluster.name.as_str()).map(|cluster| thresholds(&cluster.get())).into_iter().flatten();
        let limits: Map<String, Value> = limits.map(|(key, limit)| (key.to_owned(), limit.into())).collect();
        json!({
            "name": cluster.name,
            "observability_name": cluster.name,
            "added_via_api": from_api,
            "circuit_breakers": {"thresholds": [limits]},
            "host_statuses": cluster.endpoints.iter().map(host).collect::<Vec<_>>(),
        })
    };
    json!({"cluster_statuses": clusters.iter().map(cluster).collect::<Vec<_>>()})
}

fn host(endpoint: &EndpointStatus) -> Value {
    let [region, zone, sub_zone] = split_locality(&endpoint.locality);
    let mut health = json!({"eds_health_status": "HEALTHY"});
    for flag in endpoint.health.split('/') {
        match flag {
            "failed_eds_health" => health["eds_health_status"] = "UNHEALTHY".into(),
            "degraded_eds_health" => health["eds_health_status"] = "DEGRADED".into(),
            "eds_status_draining" => health["eds_health_status"] = "DRAINING".into(),
            "failed_active_hc" => health["failed_active_health_check"] = true.into(),
            "degraded_active_hc" => health["failed_active_degraded_check"] = true.into(),
            "failed_outlier_check"
            | "pending_dynamic_removal"
            | "pending_active_hc"
            | "excluded_via_immediate_hc_fail"
            | "active_hc_timeout" => health[flag] = true.into(),
            _ => {}
        }
    }
    let mut host = json!({
        "address": address(&endpoint.address),
        "stats": [{"name": "rq_active", "type": "GAUGE", "value": endpoint.active.to_string()}],
        "health_status": health,
        "weight": endpoint.weight,
        "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
    });
    if !endpoint.hostname.is_empty() {
        host["hostname"] = endpoint.hostname.as_str().into();
    }
    if endpoint.priority > 0 {
        host["priority"] = endpoint.priority.into();
    }
    host
}

fn thresholds(cluster: &Cluster) -> [(&'static str, u32); 4] {
    let CircuitBreakers { max_connections, max_pending_requests, max_requests, max_retries, .. } = cluster.circuit_breakers;
    [
        ("max_connections", max_connections),
        ("max_pending_requests", max_pending_requests),
        ("max_requests", max_requests),
        ("max_retries", max_retries),
    ]
}

/// Envoy's `name::address` lines.
pub(super) fn listeners_text(listeners: &[ListenerStatus]) -> String {
    listeners.iter().fold(String::new(), |mut text, listener| {
        let _ = writeln!(text, "{}::{}", listener.name, listener.address);
        text
    })
}

/// Envoy's `admin.v3.Listeners`, with the state and the open connections that Envoy shows elsewhere.
pub(super) fn listeners_json(listeners: &[ListenerStatus]) -> Value {
    let status = |listener: &ListenerStatus| {
        let mut status = json!({
            "name": listener.name,
            "local_address": socket_address(listener.address),
            "state": listener.state,
            "connections": listener.connections,
        });
        if !listener.additional_addresses.is_empty() {
            let addresses: Vec<_> = listener.additional_addresses.iter().map(|address| socket_address(*address)).collect();
            status["additional_local_addresses"] = addresses.into();
        }
        status
    };
    json!({"listener_statuses": listeners.iter().map(status).collect::<Vec<_>>()})
}

/// Envoy's `admin.v3.Certificates`.
pub(super) fn certificates(certificates: &[CertificateStatus]) -> Value {
    let entry = |status: &CertificateStatus| {
        let (mut ca, mut chain) = (Vec::new(), Vec::new());
        if is_trust_bundle(&status.name) { &mut ca } else { &mut chain }.push(certificate(status));
        json!({"ca_cert": ca, "cert_chain": chain})
    };
    json!({"certificates": certificates.iter().map(entry).collect::<Vec<_>>()})
}

/// Istio's names for trust bundles.
fn is_trust_bundle(name: &str) -> bool {
    name == "ROOTCA" || name.starts_with("file-root:")
}

fn certificate(status: &CertificateStatus) -> Value {
    let left = status.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let name = |identity: &String| {
        let kind = if identity.contains("://") { "uri" } else { "dns" };
        json!({kind: identity})
    };
    json!({
        "path": status.name,
        "serial_number": status.serial,
        "subject_alt_names": status.identities.iter().map(name).collect::<Vec<_>>(),
        "days_until_expiration": (left.as_secs() / DAY.as_secs()).to_string(),
        "valid_from": rfc3339(status.not_before),
        "expiration_time": rfc3339(status.not_after),
    })
}

pub(super) fn rfc3339(moment: SystemTime) -> String {
    OffsetDateTime::from(moment).format(&Rfc3339).unwrap_or_default()
}

fn split_locality(locality: &str) -> [&str; 3] {
    let mut parts = locality.splitn(3, '/');
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

fn address(address: &str) -> Value {
    address.parse().map_or_else(|_| json!({"pipe": {"path": address}}), socket_address)
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}
