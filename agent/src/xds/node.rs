//! Who a sidecar says it is: the node of its first request (Istio's `model.NodeMetadata`).

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use skiff_proto::envoy::config::core::v3::{self as core, Node};
use skiff_proto::google::protobuf::{ListValue, Struct, Value, value};

use crate::translate::istio::Workload;

/// The Istio release whose configuration we ask for, unless `ISTIO_META_ISTIO_VERSION` names another.
pub(crate) const ISTIO_VERSION: &str = "1.32.0";

/// What istiod is told beside the workload itself.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// `ISTIO_META_*` and `ISTIO_METAJSON_*`, by name without the prefix; they win over what is derived here.
    pub metadata: Map<String, Json>,
    /// `PROXY_CONFIG`, as it was given: istiod reads the readiness probe from it.
    pub proxy_config: Map<String, Json>,
    /// Names that istiod's certificate is checked for.
    pub pilot_san: Vec<String>,
}

impl NodeConfig {
    /// The node of `workload`.
    pub fn node(&self, workload: &Workload, id: &str, cluster: &str) -> Node {
        let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
        let mut metadata = Map::new();
        let derived = [
            ("NAME", json!(workload.name)),
            ("NAMESPACE", json!(workload.namespace)),
            ("SERVICE_ACCOUNT", json!(workload.service_account)),
            ("INSTANCE_IPS", json!(addresses.join(","))),
            ("INTERCEPTION_MODE", json!("NONE")),
            ("CLUSTER_ID", json!(workload.cluster_id)),
            ("ISTIO_VERSION", json!(ISTIO_VERSION)),
            ("WORKLOAD_NAME", json!(workload.name)),
            ("MESH_ID", json!(workload.trust_domain.to_string())),
            ("LABELS", json!(labels(&workload.labels, &workload.name))),
            ("ANNOTATIONS", json!({})),
            ("PILOT_SAN", json!(self.pilot_san)),
            ("PROXY_CONFIG", Json::Object(self.proxy_config.clone())),
        ];
        metadata.extend(derived.into_iter().map(|(key, value)| (key.to_owned(), value)));
        metadata.extend(self.metadata.clone());
        let locality = &workload.locality;
        let has_locality = !locality.region.is_empty();
        Node {
            id: id.to_owned(),
            cluster: cluster.to_owned(),
            metadata: Some(to_struct(metadata)),
            locality: has_locality.then(|| core::Locality {
                region: locality.region.clone(),
                zone: locality.zone.clone(),
                sub_zone: locality.sub_zone.clone(),
            }),
            user_agent_name: "skiff".to_owned(),
            user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            ..Node::default()
        }
    }
}

/// The labels with Istio's canonical ones, which its metrics are made of.
fn labels(labels: &BTreeMap<String, String>, name: &str) -> BTreeMap<String, String> {
    let mut all = labels.clone();
    let first = |keys: &[&str]| keys.iter().find_map(|&key| labels.get(key)).cloned();
    let canonical = first(&["app.kubernetes.io/name", "app"]).unwrap_or_else(|| name.to_owned());
    let revision = first(&["app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".to_owned());
    all.entry("service.istio.io/canonical-name".to_owned()).or_insert(canonical);
    all.entry("service.istio.io/canonical-revision".to_owned()).or_insert(revision);
    all
}

fn to_struct(map: Map<String, Json>) -> Struct {
    Struct { fields: map.into_iter().map(|(key, value)| (key, to_value(value))).collect() }
}

fn to_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => value::Kind::NullValue(0),
        Json::Bool(flag) => value::Kind::BoolValue(flag),
        Json::Number(number) => value::Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => value::Kind::StringValue(text),
        Json::Array(items) => value::Kind::ListValue(ListValue { values: items.into_iter().map(to_value).collect() }),
        Json::Object(map) => value::Kind::StructValue(to_struct(map)),
    };
    Value { kind: Some(kind) }
}
