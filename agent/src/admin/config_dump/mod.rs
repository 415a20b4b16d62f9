//! `/config_dump` in Envoy's shape ([`admin.v3.ConfigDump`](https://www.envoyproxy.io/docs/envoy/latest/api-v3/admin/v3/config_dump.proto)),
//! for `istioctl proxy-config` and those who know it from Envoy.
//!
//! In a mesh it holds the resources as istiod sent them, each with its version, and beside it what was refused since. Other
//! sidecars have no such resources: theirs holds skiff's own model. The dump is made one resource at a time while it is sent, so
//! that ten thousand services do not have to fit into memory as text.

mod mask;
mod text;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use pem::Pem;
use prost_reflect::DescriptorPool;
use regex::Regex;
use serde_json::{Map, Value, json};
use skiff_proto::envoy::config::core::v3::{BuildVersion, node::UserAgentVersionType};
use skiff_proto::envoy::r#type::v3::SemanticVersion;
use skiff_proxy::config::Snapshot;
use skiff_proxy::{ClusterStatus, Proxy, PublicCertificates};

use self::mask::Mask;
use self::text::Dump;
use super::{Admin, FromIstiod, dump};
use crate::page::Body;
use crate::translate::envoy::{any_to_json, descriptors, message_to_json};
use crate::xds::{Content, Kind, Refusal, Shown};

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// The type of skiff's own model in a dump; tools that read Envoy's dumps pass over it.
const MODEL: &str = "type.googleapis.com/skiff.v1.ConfigDump";
/// Field of the endpoints.
const ENDPOINTS: &str = "dynamic_endpoint_configs";
/// What Envoy shows instead of a private key.
const REDACTED: &str = "[redacted]";

/// What is asked for.
pub(super) struct Wanted<'a> {
    /// A repeated field of one of the dumps, whose elements are the configs then.
    pub(super) resource: Option<&'a str>,
    /// Paths of fields to show, separated by commas.
    pub(super) mask: Option<&'a str>,
    /// Of resources to show.
    pub(super) names: Option<Regex>,
    /// Endpoints too.
    pub(super) include_endpoints: bool,
}

/// A part of the dump: a message with fields that are made one element at a time.
struct Section {
    type_name: &'static str,
    fixed: Map<String, Value>,
    lists: Vec<List>,
}

/// A repeated field.
struct List {
    field: &'static str,
    /// The message type of its elements, inside that of the section.
    element: &'static str,
    source: Source,
}

/// Where the elements come from.
enum Source {
    /// Resources of a kind: those that are served, or those that wait for others.
    Resources { kind: Kind, warm: bool, last: Option<String> },
    /// Made already; few. By name.
    Ready(VecDeque<(String, Value)>),
}

/// The body of the answer.
///
/// # Errors
/// With what could have been asked for, when there is no such resource.
pub(super) fn body(admin: &Admin, wanted: Wanted<'_>) -> Result<Body, String> {
    let mask = wanted.mask.map(Mask::parse).transpose()?;
    let includes_endpoints = wanted.include_endpoints || wanted.resource == Some(ENDPOINTS);
    let mut sections = sections(admin, includes_endpoints || wanted.resource.is_some());
    let only = wanted.resource.map(str::to_owned);
    if let Some(resource) = &only {
        let known = sections.iter().flat_map(|section| &section.lists).map(|list| list.field);
        let known: Vec<&str> = known.collect();
        if !known.contains(&resource.as_str()) {
            return Err(format!("{resource} not found in config dump: expected {}", known.join(", ")));
        }
        for section in &mut sections {
            section.lists.retain(|list| list.field == resource);
        }
        sections.retain(|section| !section.lists.is_empty());
    }
    let view = View {
        mesh: admin.mesh.clone(),
        snapshot: admin.proxy.snapshot(),
        unhealthy: if includes_endpoints { unhealthy(&admin.proxy) } else { HashMap::new() },
        names: wanted.names,
        _descriptors: descriptors(),
    };
    let dump = Dump::new(view, mask, sections, only.is_some());
    let pieces = stream::unfold(dump, async |mut dump| {
        let piece = dump.next()?;
        // One resource after the other must not keep everything else of the agent waiting.
        tokio::task::yield_now().await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(piece))), dump))
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}

fn sections(admin: &Admin, include_endpoints: bool) -> Vec<Section> {
    let mut sections = vec![bootstrap(admin)];
    match &admin.mesh {
        Some(mesh) => {
            let list = |field, element, kind, warm| List { field, element, source: Source::Resources { kind, warm, last: None } };
            let section = |type_name, kind: Option<Kind>, lists| {
                let version = kind.and_then(|kind| mesh.originals.version(kind));
                let fixed = version.map(|(version, _)| ("version_info".to_owned(), Value::from(&*version))).into_iter().collect();
                Section { type_name, fixed, lists }
            };
            sections.push(section(
                "ClustersConfigDump",
                Some(Kind::Cluster),
                vec![
                    list("dynamic_active_clusters", "DynamicCluster", Kind::Cluster, true),
                    list("dynamic_warming_clusters", "DynamicCluster", Kind::Cluster, false),
                ],
            ));
            if include_endpoints {
                let endpoints = list(ENDPOINTS, "DynamicEndpointConfig", Kind::Endpoints, true);
                sections.push(section("EndpointsConfigDump", None, vec![endpoints]));
            }
            let listeners = list("dynamic_listeners", "DynamicListener", Kind::Listener, true);
            sections.push(section("ListenersConfigDump", Some(Kind::Listener), vec![listeners]));
            let routes = list("dynamic_route_configs", "DynamicRouteConfig", Kind::Routes, true);
            sections.push(section("RoutesConfigDump", None, vec![routes]));
        }
        None => sections.push(model(admin)),
    }
    let secrets = admin.proxy.public_certificates().iter().map(|secret| (secret.name.clone(), dynamic_secret(secret))).collect();
    let list = List { field: "dynamic_active_secrets", element: "DynamicSecret", source: Source::Ready(secrets) };
    sections.push(Section { type_name: "SecretsConfigDump", fixed: Map::new(), lists: vec![list] });
    sections
}

fn bootstrap(admin: &Admin) -> Section {
    let node = match &admin.mesh {
        Some(mesh) => {
            let mut node = (*mesh.node).clone();
            // istioctl makes "Envoy Version" of it.
            node.user_agent_version_type =
                Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version: Some(own_version()), metadata: None }));
            message_to_json(&node)
        }
        None => json!({"id": admin.node.id, "cluster": admin.node.cluster, "user_agent_name": "skiff"}),
    };
    let fixed = Map::from_iter([("bootstrap".to_owned(), json!({"node": node}))]);
    Section { type_name: "BootstrapConfigDump", fixed, lists: Vec::new() }
}

fn own_version() -> SemanticVersion {
    let number = |text: &str| text.parse().unwrap_or_default();
    SemanticVersion {
        major_number: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor_number: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
    }
}

/// skiff's own model of the configuration.
fn model(admin: &Admin) -> Section {
    let dump = dump::config(&admin.proxy.snapshot(), &admin.proxy.certificates(), None);
    let fixed = match dump {
        Ok(Value::Object(dump)) => dump,
        Ok(_) | Err(_) => Map::new(),
    };
    Section { type_name: MODEL, fixed, lists: Vec::new() }
}

/// Envoy's `DynamicSecret`: what is public of it.
fn dynamic_secret(secret: &PublicCertificates) -> Value {
    let pem: String = secret.certificates.iter().map(|der| pem::encode(&Pem::new("CERTIFICATE", der.to_vec()))).collect();
    let certificates = json!({"inline_bytes": STANDARD.encode(pem.replace("\r\n", "\n"))});
    let mut content = json!({"@type": SECRET, "name": secret.name});
    if secret.is_trust {
        content["validation_context"] = json!({"trusted_ca": certificates});
    } else {
        content["tls_certificate"] =
            json!({"certificate_chain": certificates, "private_key": {"inline_bytes": STANDARD.encode(REDACTED)}});
    }
    json!({"name": secret.name, "secret": content})
}

/// Makes the elements.
struct View {
    mesh: Option<FromIstiod>,
    snapshot: Arc<Snapshot>,
    /// Endpoints that are not healthy, by cluster and address, in the words of `core.v3.HealthStatus`.
    unhealthy: HashMap<(String, String), &'static str>,
    names: Option<Regex>,
    /// Held until the dump is written.
    _descriptors: Arc<DescriptorPool>,
}

/// As Envoy's, a dump says how endpoints are, not how they were sent.
fn unhealthy(proxy: &Proxy) -> HashMap<(String, String), &'static str> {
    let of_cluster = |cluster: ClusterStatus| {
        let unhealthy = cluster.endpoints.into_iter().filter(|endpoint| endpoint.health != "healthy");
        unhealthy.map(move |endpoint| ((cluster.name.clone(), endpoint.address), health_status(&endpoint.health)))
    };
    proxy.clusters().into_iter().flat_map(of_cluster).collect()
}

/// The coarse form of the flags of `/clusters`.
fn health_status(flags: &str) -> &'static str {
    let has = |wanted: &[&str]| flags.split('/').any(|flag| wanted.contains(&flag));
    if has(&["eds_status_draining"]) {
        "DRAINING"
    } else if has(&["failed_active_hc", "failed_outlier_check", "failed_eds_health"]) {
        "UNHEALTHY"
    } else if has(&["degraded_active_hc", "degraded_eds_health"]) {
        "DEGRADED"
    } else {
        "HEALTHY"
    }
}

impl View {
    fn wants(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_match(name))
    }

    fn next(&self, source: &mut Source) -> Option<Value> {
        match source {
            Source::Ready(ready) => loop {
                let (name, value) = ready.pop_front()?;
                if self.wants(&name) {
                    return Some(value);
                }
            },
            Source::Resources { kind, warm, last } => loop {
                let shown = self.mesh.as_ref()?.originals.after(*kind, last.as_deref())?;
                *last = Some(shown.name.clone());
                if self.wants(&shown.name) && self.is_warm(*kind, &shown) == *warm {
                    let mut resource = resource(*kind, &shown);
                    if *kind == Kind::Endpoints {
                        self.put_health(&shown.name, &mut resource["endpoint_config"]);
                    }
                    return Some(resource);
                }
            },
        }
    }

    fn put_health(&self, cluster: &str, assignment: &mut Value) {
        let localities = assignment.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten();
        let endpoints = localities.filter_map(|locality| locality.get_mut("lb_endpoints")?.as_array_mut()).flatten();
        for endpoint in endpoints {
            let address = &endpoint["endpoint"]["address"]["socket_address"];
            let (Some(ip), Some(port)) = (address["address"].as_str(), address["port_value"].as_u64()) else { continue };
            let address = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
            let status = self.unhealthy.get(&(cluster.to_owned(), address));
            endpoint["health_status"] = (*status.unwrap_or(&"HEALTHY")).into();
        }
    }

    /// Only clusters are told apart: Envoy shows the others in one list.
    fn is_warm(&self, kind: Kind, shown: &Shown) -> bool {
        kind != Kind::Cluster || shown.accepted.is_some() && self.snapshot.clusters.contains_key(shown.name.as_str())
    }
}

/// One element: Envoy's `DynamicCluster`, `DynamicListener`, `DynamicRouteConfig`, `DynamicEndpointConfig`.
fn resource(kind: Kind, shown: &Shown) -> Value {
    let field = match kind {
        Kind::Cluster => "cluster",
        Kind::Endpoints => "endpoint_config",
        Kind::Listener => "listener",
        Kind::Routes => "route_config",
    };
    let state = |content: &Content| {
        let Content { version, at, bytes } = content;
        json!({"version_info": &**version, field: any_to_json(&kind.type_url(), bytes), "last_updated": dump::rfc3339(*at)})
    };
    let mut element = match (kind, &shown.accepted) {
        (Kind::Listener, Some(content)) => json!({"name": shown.name, "active_state": state(content)}),
        (Kind::Listener, None) => json!({"name": shown.name}),
        (_, Some(content)) => state(content),
        // istioctl takes it for granted that there is a resource, if only with a name.
        (_, None) => json!({field: named(kind, &shown.name)}),
    };
    if let Some(refusal) = &shown.refused {
        element["error_state"] = error_state(kind, refusal);
    }
    element
}

fn named(kind: Kind, name: &str) -> Value {
    let key = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
    json!({"@type": kind.type_url(), key: name})
}

/// Envoy's `UpdateFailureState`.
fn error_state(kind: Kind, refusal: &Refusal) -> Value {
    let Content { version, at, bytes } = &refusal.content;
    let mut state = json!({"details": refusal.reason, "version_info": &**version, "last_update_attempt": dump::rfc3339(*at)});
    if !bytes.is_empty() {
        state["failed_configuration"] = any_to_json(&kind.type_url(), bytes);
    }
    state
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn endpoints_are_shown_as_they_are() {
        for (flags, status) in [
            ("healthy", "HEALTHY"),
            ("/failed_outlier_check/degraded_eds_health", "UNHEALTHY"),
            ("/degraded_active_hc", "DEGRADED"),
            ("/failed_active_hc/eds_status_draining", "DRAINING"),
            ("/pending_active_hc", "HEALTHY"),
        ] {
            assert_eq!(health_status(flags), status, "{flags}");
        }
        let key = ("a".to_owned(), "[::1]:80".to_owned());
        let view = View {
            mesh: None,
            snapshot: Arc::default(),
            unhealthy: HashMap::from([(key, "UNHEALTHY")]),
            names: None,
            _descriptors: descriptors(),
        };
        let at = |ip: &str| json!({"endpoint": {"address": {"socket_address": {"address": ip, "port_value": 80}}}});
        let mut assignment = json!({"endpoints": [{"lb_endpoints": [at("::1"), at("127.0.0.1"), {"endpoint": {}}]}]});
        view.put_health("a", &mut assignment);
        let shown = &assignment["endpoints"][0]["lb_endpoints"];
        assert_eq!((&shown[0]["health_status"], &shown[1]["health_status"]), (&json!("UNHEALTHY"), &json!("HEALTHY")));
        assert_eq!(shown[2].get("health_status"), None);
    }

    #[test]
    fn a_refused_resource_shows_why() {
        let content = |bytes: &[u8]| Content { version: "7".into(), at: SystemTime::UNIX_EPOCH, bytes: bytes.to_vec() };
        let refused = Some(Refusal { reason: "no".to_owned(), content: content(b"") });
        let shown = Shown { name: "l".to_owned(), accepted: None, refused: refused.clone() };
        let state = json!({"details": "no", "version_info": "7", "last_update_attempt": "1970-01-01T00:00:00Z"});
        assert_eq!(resource(Kind::Listener, &shown), json!({"name": "l", "error_state": state}));
        let shown = Shown { name: "e".to_owned(), accepted: Some(content(b"\x0a\x01e")), refused };
        assert_eq!(
            resource(Kind::Endpoints, &shown),
            json!({
                "version_info": "7",
                "last_updated": "1970-01-01T00:00:00Z",
                "endpoint_config": {"@type": Kind::Endpoints.type_url(), "cluster_name": "e"},
                "error_state": state,
            })
        );
    }
}
