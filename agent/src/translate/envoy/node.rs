//! Who we are: Envoy's node, as Istio fills it.

use std::collections::BTreeMap;

use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::google::protobuf::{Struct, value::Kind};
use skiff_proxy::config;

/// What the data plane tells of itself. Metadata that is not there stays empty.
pub fn local_node(message: &core::Node) -> config::Node {
    let metadata = message.metadata.clone().unwrap_or_default();
    let labels: BTreeMap<String, String> = match metadata.fields.get("LABELS").and_then(|value| value.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => labels.fields.keys().map(|name| (name.clone(), text(labels, name))).collect(),
        _ => BTreeMap::new(),
    };
    let label = |names: &[&str]| {
        names.iter().find_map(|&name| labels.get(name).filter(|value| !value.is_empty())).cloned().unwrap_or_default()
    };
    let locality = message.locality.clone().unwrap_or_default();
    let or = |said: String, otherwise: &str| if said.is_empty() { otherwise.to_owned() } else { said };
    config::Node {
        id: message.id.clone(),
        cluster: message.cluster.clone(),
        istio_version: text(&metadata, "ISTIO_VERSION"),
        workload: config::Workload {
            name: text(&metadata, "WORKLOAD_NAME"),
            namespace: text(&metadata, "NAMESPACE"),
            canonical_service: label(&["service.istio.io/canonical-name"]),
            canonical_revision: label(&["service.istio.io/canonical-revision"]),
            cluster: text(&metadata, "CLUSTER_ID"),
            app: label(&["app.kubernetes.io/name", "app"]),
            version: label(&["app.kubernetes.io/version", "version"]),
            instance: text(&metadata, "NAME"),
            owner: text(&metadata, "OWNER"),
            identity: text(&metadata, "IDENTITY"),
            region: or(text(&metadata, "REGION"), &locality.region),
            zone: or(text(&metadata, "AVAILABILITY_ZONE"), &locality.zone),
            labels,
        },
    }
}

fn text(message: &Struct, name: &str) -> String {
    match message.fields.get(name).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}
