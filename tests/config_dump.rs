//! `/config_dump` of a sidecar in a mesh: what istiod sent, in Envoy's shape.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::io::Write;

use base64::Engine;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use skiff_proto::ENVOY_DESCRIPTORS;
use skiff_proto::envoy::admin::v3::{
    BootstrapConfigDump, ClustersConfigDump, ConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump,
    SecretsConfigDump,
};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3::{HealthStatus, data_source::Specifier};
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use skiff_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use skiff_proto::google::protobuf::Any;
use skiff_tests::joined::Joined;
use skiff_tests::network::Network;
use skiff_tests::wait::eventually;

const DETAILS_CLUSTER: &str = "outbound|9080||details.bookinfo.svc.cluster.local";

/// A dump, decoded as strictly as protobuf's JSON form is. Types that are not known here give way to an empty one, by name.
fn decode(text: &str) -> (ConfigDump, BTreeSet<String>) {
    let pool = DescriptorPool::decode(ENVOY_DESCRIPTORS).unwrap();
    let (mut json, mut unknown) = (serde_json::from_str(text).unwrap(), BTreeSet::new());
    replace_unknown(&mut json, &pool, &mut unknown);
    let descriptor = pool.get_message_by_name("envoy.admin.v3.ConfigDump").unwrap();
    let dump = DynamicMessage::deserialize(descriptor, json).unwrap();
    (dump.transcode_to().unwrap(), unknown)
}

fn replace_unknown(json: &mut Value, pool: &DescriptorPool, unknown: &mut BTreeSet<String>) {
    if let Some(kind) = json.get("@type").and_then(Value::as_str) {
        let name = kind.rsplit('/').next().unwrap().to_owned();
        if pool.get_message_by_name(&name).is_none() {
            unknown.insert(name);
            *json = serde_json::json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}});
            return;
        }
    }
    match json {
        Value::Object(object) => object.values_mut().for_each(|value| replace_unknown(value, pool, unknown)),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_unknown(item, pool, unknown)),
        _ => {}
    }
}

fn section<T: Message + Name + Default>(dump: &ConfigDump) -> T {
    let found = dump.configs.iter().find(|any| any.type_url == format!("type.googleapis.com/{}", T::full_name()));
    T::decode(found.unwrap_or_else(|| panic!("no {}", T::full_name())).value.as_slice()).unwrap()
}

fn unpack<T: Message + Default>(any: Option<&Any>) -> T {
    T::decode(any.unwrap().value.as_slice()).unwrap()
}

/// What the fake istiod sent of a type, decoded.
fn sent<T: Message + Default>(network: &Network, kind: &str) -> Vec<T> {
    let file = format!("{}/data/istiod/{kind}.bin", env!("CARGO_MANIFEST_DIR"));
    let response = DeltaDiscoveryResponse::decode(network.localise_bytes(&std::fs::read(file).unwrap()).as_slice()).unwrap();
    response.resources.iter().map(|resource| unpack(resource.resource.as_ref())).collect()
}

#[tokio::test]
async fn the_dump_is_what_istiod_sent_in_envoys_shape() {
    let joined = Joined::with(&[]).await;
    let text = joined.ratings.page("/config_dump?include_eds").await.text();
    let (dump, unknown) = decode(&text);
    assert!(
        unknown.iter().all(|name| !name.starts_with("envoy.") || name.starts_with("envoy.tcp.metadataexchange")),
        "{unknown:?}"
    );

    let bootstrap: BootstrapConfigDump = section(&dump);
    let node = bootstrap.bootstrap.unwrap().node.unwrap();
    assert!(node.id.starts_with("sidecar~") && node.metadata.unwrap().fields.contains_key("ISTIO_VERSION"));

    let clusters: ClustersConfigDump = section(&dump);
    let shown = clusters.dynamic_active_clusters.iter().map(|one| unpack::<Cluster>(one.cluster.as_ref()).name);
    let names: BTreeSet<String> = sent::<Cluster>(&joined.mesh.network, "CDS").into_iter().map(|one| one.name).collect();
    assert_eq!(shown.collect::<BTreeSet<_>>(), names);
    assert!(clusters.dynamic_active_clusters.iter().all(|one| one.last_updated.is_some() && one.error_state.is_none()));
    assert!(clusters.dynamic_warming_clusters.is_empty());

    let endpoints: EndpointsConfigDump = section(&dump);
    let shown: Vec<ClusterLoadAssignment> =
        endpoints.dynamic_endpoint_configs.iter().map(|one| unpack(one.endpoint_config.as_ref())).collect();
    let all = sent::<ClusterLoadAssignment>(&joined.mesh.network, "EDS");
    for mut assignment in shown.clone() {
        // istiod says nothing of health; the dump says how they are.
        for endpoint in assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints) {
            assert_eq!(std::mem::take(&mut endpoint.health_status), HealthStatus::Healthy as i32);
        }
        assert_eq!(Some(&assignment), all.iter().find(|one| one.cluster_name == assignment.cluster_name));
    }
    assert!(!shown.is_empty());

    let listeners: ListenersConfigDump = section(&dump);
    for listener in &listeners.dynamic_listeners {
        let state = listener.active_state.as_ref().unwrap();
        assert_eq!(unpack::<Listener>(state.listener.as_ref()).name, listener.name);
    }
    assert_eq!(listeners.dynamic_listeners.len(), sent::<Listener>(&joined.mesh.network, "LDS").len());
    assert!(!section::<RoutesConfigDump>(&dump).dynamic_route_configs.is_empty());

    let without = joined.ratings.page("/config_dump").await.text();
    assert!(!without.contains("EndpointsConfigDump"));
    let model: Value = serde_json::from_str(&joined.ratings.page("/config_dump?format=skiff").await.text()).unwrap();
    assert!(model["clusters"][DETAILS_CLUSTER].is_object(), "skiff's own model is there too");
    istioctl_reads(&text, &joined.ratings.page("/clusters?format=json").await.text());
}

/// With `SKIFF_ISTIOCTL` the real tool reads the dump, and what it asks about endpoints, as well.
fn istioctl_reads(dump: &str, clusters: &str) {
    let Some(istioctl) = std::env::var_os("SKIFF_ISTIOCTL") else { return };
    for (what, page, says) in [
        ("cluster", dump, "details.bookinfo.svc.cluster.local"),
        ("listener", dump, "9080"),
        ("route", dump, "9080"),
        ("eds", dump, DETAILS_CLUSTER),
        ("secret", dump, "ACTIVE"),
        ("bootstrap", dump, "ISTIO_VERSION"),
        ("all", dump, "ROOTCA"),
        ("endpoint", clusters, "HEALTHY"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(page.as_bytes()).unwrap();
        let mut command = std::process::Command::new(&istioctl);
        let output = command.args(["proxy-config", what, "--file"]).arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains(says), "{what}: {complaint}{text}");
    }
}

#[tokio::test]
async fn the_dump_shows_certificates_and_no_key() {
    let joined = Joined::with(&[]).await;
    let (dump, _) = decode(&joined.ratings.page("/config_dump").await.text());
    let secrets: SecretsConfigDump = section(&dump);
    let inline = |source: Option<&Specifier>| match source {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("expected inline bytes, found {other:?}"),
    };
    let mut seen = BTreeSet::new();
    for one in &secrets.dynamic_active_secrets {
        let content: Secret = unpack(one.secret.as_ref());
        assert_eq!(content.name, one.name);
        match content.r#type.unwrap() {
            secret::Type::TlsCertificate(certificate) => {
                let chain = inline(certificate.certificate_chain.unwrap().specifier.as_ref());
                let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
                let leaf = pem.parse_x509().unwrap();
                let san = leaf.subject_alternative_name().unwrap().unwrap();
                assert!(format!("{:?}", san.value).contains("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"));
                assert_eq!(inline(certificate.private_key.unwrap().specifier.as_ref()), "[redacted]");
            }
            secret::Type::ValidationContext(context) => {
                let roots = inline(context.trusted_ca.unwrap().specifier.as_ref());
                assert!(x509_parser::pem::parse_x509_pem(roots.as_bytes()).unwrap().1.parse_x509().unwrap().is_ca());
            }
            other => panic!("{other:?}"),
        }
        seen.insert(one.name.as_str());
    }
    assert_eq!(seen, BTreeSet::from(["ROOTCA", "default"]));
    let key = base64::engine::general_purpose::STANDARD.encode("PRIVATE KEY");
    for path in ["/config_dump?include_eds", "/config_dump?format=skiff", "/config_dump?resource=dynamic_active_secrets"] {
        let text = joined.ratings.page(path).await.text();
        assert!(!text.contains("PRIVATE KEY") && !text.contains(&key[..12]), "{path}");
    }
}

#[tokio::test]
async fn parts_of_the_dump_and_what_was_refused() {
    let joined = Joined::with(&[]).await;
    let json = async |path: &str| -> Value { serde_json::from_str(&joined.ratings.page(path).await.text()).unwrap() };
    let part =
        json("/config_dump?resource=dynamic_active_clusters&mask=cluster.name,version_info&name_regex=^outbound.*details").await;
    let configs = part["configs"].as_array().unwrap();
    assert!(configs.iter().any(|one| one["cluster"]["name"] == DETAILS_CLUSTER), "{part:#}");
    for one in configs {
        assert_eq!(one["@type"], "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster");
        assert_eq!(one["cluster"].as_object().unwrap().keys().collect::<Vec<_>>(), ["@type", "name"]);
        assert!(one["cluster"]["name"].as_str().unwrap().contains("details") && one.get("last_updated").is_none(), "{one:#}");
    }
    let answer = joined.ratings.page("/config_dump?resource=nothing").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("nothing not found in config dump"), "{}", answer.text());

    joined
        .istiod
        .push::<Cluster>(DETAILS_CLUSTER, |mut cluster| {
            cluster.connect_timeout.as_mut().unwrap().seconds = -1;
            Some(cluster)
        })
        .await;
    joined.istiod.hears("a NACK", |heard| heard.error.is_some()).await;
    let (dump, _) = decode(&joined.ratings.page("/config_dump").await.text());
    let clusters: ClustersConfigDump = section(&dump);
    let refused: Vec<_> = clusters.dynamic_active_clusters.iter().filter(|one| one.error_state.is_some()).collect();
    let [refused] = refused.as_slice() else { panic!("expected one, found {}", refused.len()) };
    let state = refused.error_state.as_ref().unwrap();
    assert!(state.details.contains("connect_timeout"), "{}", state.details);
    let bad: Cluster = unpack(state.failed_configuration.as_ref());
    let good: Cluster = unpack(refused.cluster.as_ref());
    assert_eq!((good.name.as_str(), bad.name.as_str()), (DETAILS_CLUSTER, DETAILS_CLUSTER));
    assert!(bad.connect_timeout.unwrap().seconds < 0 && good.connect_timeout.unwrap().seconds > 0);

    joined.istiod.push::<Cluster>(DETAILS_CLUSTER, |_| None).await;
    eventually("the cluster is gone", async || {
        let dump = json("/config_dump?resource=dynamic_active_clusters").await;
        (!dump.to_string().contains(DETAILS_CLUSTER)).then_some(())
    })
    .await;
}
