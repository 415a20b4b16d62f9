//! Istio's own filters: what istiod wrote, field by field, and what of it is refused.

use skiff_proto::envoy::config::core::v3::Node;
use skiff_proxy::config::*;

use super::super::{ignored, listener, load_assignment, local_node};
use super::*;

/// The HTTP filter with this configuration.
fn http_filter(value: &str) -> Result<HttpConnectionManager, Vec<String>> {
    let filters = format!("      - name: istio.filter\n        typed_config: {value}\n      - name: router");
    let yaml = format!("      route_config: {{name: r}}{}", ROUTER.replace("      - name: router", &filters));
    http_listener(&yaml).map_err(|rejected| shown(&rejected))
}

/// What a `TypedStruct` with this value is refused for.
#[track_caller]
fn refused(kind: &str, value: &str, expected: &[&str]) {
    for wrapped in [
        format!(r#"{{"@type": t/udpa.type.v1.TypedStruct, type_url: t/{kind}, value: {{{value}}}}}"#),
        format!(r#"{{"@type": t/{kind}, {value}}}"#),
    ] {
        let shown = match serde_saphyr::from_str::<Json>(&wrapped) {
            Ok(_) => http_filter(&wrapped).unwrap_err(),
            Err(error) => panic!("{wrapped}: {error}"),
        };
        for (found, expected) in shown.iter().zip(expected) {
            assert!(found.ends_with(expected), "{found} for {wrapped}");
        }
        assert_eq!(shown.len(), expected.len(), "{shown:?}");
    }
}

const PEER: &str = "io.istio.http.peer_metadata.Config";
const STATS: &str = "stats.PluginConfig";

#[test]
fn peer_metadata_of_both_directions() {
    let value = r#"{"@type": t/udpa.type.v1.TypedStruct, type_url: t/io.istio.http.peer_metadata.Config, value: {
        upstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}],
        upstream_propagation: [{istio_headers: {skip_external_clusters: true}}], additional_labels: [role]}}"#;
    let manager = http_filter(value).unwrap();
    let expected = PeerMetadata {
        name: "istio.filter".to_owned(),
        upstream_discovery: vec![PeerDiscovery::IstioHeaders, PeerDiscovery::WorkloadDiscovery],
        upstream_propagation: vec![PeerPropagation::IstioHeaders { skip_external_clusters: true }],
        additional_labels: vec!["role".to_owned()],
        ..PeerMetadata::default()
    };
    assert_eq!(manager.filters, [HttpFilter::PeerMetadata(expected.into())]);
    assert!(manager.stats.is_none());
}

#[test]
fn what_a_sidecar_cannot_do_is_refused_by_name() {
    let field = "typed_config.downstream_discovery[0].baggage: is not supported: only waypoints use it";
    refused(PEER, "downstream_discovery: [{baggage: {}}]", &[field]);
    let field = "upstream_discovery[0].upstream_filter_state: is not supported: only waypoints use it";
    refused(PEER, "upstream_discovery: [{upstream_filter_state: {peer_metadata_key: k}}]", &[field]);
    refused(PEER, "upstream_propagation: [{}]", &["upstream_propagation[0].istio_headers: is missing"]);
    refused(STATS, "reporter: SERVER_GATEWAY", &["reporter: expected UNSPECIFIED: a sidecar is no gateway"]);
    refused(STATS, "metrics: [{drop: true}]", &["metrics[0].name: expected the name of a metric beside drop"]);
    let unknown = "metrics[0].name: expected the name of a standard metric like requests_total, found \"nothing\"";
    refused(STATS, "metrics: [{name: nothing}]", &[unknown]);
    let cel = "metrics[0].dimensions[\"a\"]: expected a quoted text or an attribute like request.url_path, found \"a + b\"";
    refused(STATS, "metrics: [{dimensions: {a: a + b}}]", &[cel]);
}

#[test]
fn what_no_version_of_the_message_knows_is_refused_in_a_typed_struct_too() {
    let value =
        r#"{"@type": t/udpa.type.v1.TypedStruct, type_url: t/stats.PluginConfig, value: {surprise: 1, metrics: [{nmae: a}]}}"#;
    let filters = format!("      - name: istio.stats\n        typed_config: {value}\n      - name: router");
    let yaml = format!("      route_config: {{name: r}}{}", ROUTER.replace("      - name: router", &filters));
    let yaml = format!(
        "name: l\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}\nfilter_chains:\n- filters:\n  - name: hcm\n    \
         typed_config:\n      \"@type\": t/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n      \
         stat_prefix: s\n{yaml}"
    );
    let json = serde_saphyr::from_str::<Json>(&yaml).unwrap();
    let error = super::super::from_json::<skiff_proto::envoy::config::listener::v3::Listener>(&json).unwrap_err();
    let found: Vec<String> = error.iter().map(|one| format!("{}: {}", one.path, one.reason)).collect();
    assert!(found.iter().any(|one| one.ends_with("value.surprise: unknown field of stats.PluginConfig")), "{found:?}");
    assert!(found.iter().any(|one| one.ends_with("value.metrics[0].nmae: unknown field of stats.MetricConfig")), "{found:?}");
}

#[test]
fn metrics_as_a_telemetry_resource_wants_them() {
    let value = r#"{"@type": t/stats.PluginConfig, disable_host_header_fallback: true, tcp_reporting_duration: 15s,
        definitions: [{name: own, value: "1"}], metrics: [
        {name: requests_total, tags_to_remove: [source_app, nonsense], dimensions: {path: request.url_path, zone: "'a'"}},
        {name: request_bytes, drop: true}, {name: own, dimensions: {a: "'b'"}}]}"#;
    let stats = http_filter(value).unwrap().stats.unwrap();
    let requests = MetricOverride {
        metric: Some(IstioMetric::RequestsTotal),
        drop: false,
        tags_to_remove: vec!["source_app".to_owned()],
        dimensions: [
            ("path".to_owned(), Dimension::Attribute(Attribute::RequestUrlPath)),
            ("zone".to_owned(), Dimension::Constant("a".to_owned())),
        ]
        .into(),
    };
    let bytes = MetricOverride { metric: Some(IstioMetric::RequestBytes), drop: true, ..MetricOverride::default() };
    let expected = IstioStats {
        reporter: Reporter::Source,
        disable_host_header_fallback: true,
        tcp_reporting_duration: Some(std::time::Duration::from_secs(15)),
        overrides: vec![requests, bytes],
    };
    assert_eq!(*stats, expected);
}

/// A TCP listener whose TLS offers the exchange.
fn tcp_listener(terminal: &str) -> String {
    format!(
        r#"
name: l
traffic_direction: INBOUND
address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
filter_chains:
- transport_socket:
    name: tls
    typed_config:
      "@type": t/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      common_tls_context:
        alpn_protocols: [istio-peer-exchange, h2]
        tls_certificate_sds_secret_configs: [{{name: default}}]
  filters:
  - name: istio.metadata_exchange
    typed_config: {{"@type": t/udpa.type.v1.TypedStruct, type_url: t/envoy.tcp.metadataexchange.config.MetadataExchange, value: {{protocol: istio-peer-exchange, enable_discovery: true}}}}
{terminal}
"#
    )
}

#[test]
fn connections_exchange_metadata_and_are_counted() {
    let stats = r#"  - name: istio.stats
    typed_config: {"@type": t/stats.PluginConfig}
  - name: tcp
    typed_config: {"@type": t/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: c}"#;
    let message = message(&tcp_listener(stats));
    assert!(ignored(&message).contains(&"MetadataExchange.enable_discovery".to_owned()), "{:?}", ignored(&message));
    let chain = &listener(&message).map_err(|all| shown(&all)).unwrap().filter_chains[0];
    assert_eq!(chain.peer_exchange.as_ref().unwrap().protocol, "istio-peer-exchange");
    let NetworkFilter::Tcp(proxy) = &chain.filter else { panic!("{:?}", chain.filter) };
    assert_eq!(proxy.stats.as_ref().unwrap().reporter, Reporter::Destination);
}

#[test]
fn http_does_not_begin_with_a_preamble() {
    let http = r#"  - name: hcm
    typed_config:
      "@type": t/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: s
      route_config: {name: r}
      http_filters: [{name: router, typed_config: {"@type": t/envoy.extensions.filters.http.router.v3.Router}}]"#;
    let found = shown(&listener(&message(&tcp_listener(http))).unwrap_err());
    let expected = "filter_chains[0].transport_socket: offers istio-peer-exchange, which is only supported before tcp_proxy";
    assert_eq!(found, [format!("Listener \"l\": {expected}")]);
}

#[test]
fn clusters_tell_whether_they_take_part() {
    let cluster = |more: &str| {
        let yaml = format!("name: c\ntype: STATIC\n{more}");
        super::super::cluster(&message(&yaml)).map_err(|all| shown(&all))
    };
    let exchange = r#"{"@type": t/udpa.type.v1.TypedStruct, type_url: t/envoy.tcp.metadataexchange.config.MetadataExchange, value: {protocol: p}}"#;
    let metadata =
        "metadata: {filter_metadata: {istio: {external: true, disable_mx: true, services: [{host: a.b.svc, namespace: b}]}}}";
    let found = cluster(&format!("filters: [{{name: mx, typed_config: {exchange}}}]\n{metadata}")).unwrap();
    assert_eq!(found.peer_exchange.unwrap().protocol, "p");
    assert!(found.external && found.disable_mx);
    assert_eq!(found.service.unwrap().name, "a", "the first label, as in Istio");
    let other = cluster(r#"filters: [{name: x, typed_config: {"@type": t/x.Y}}]"#).unwrap_err();
    assert_eq!(other, ["Cluster \"c\": filters[0].typed_config: cluster filter x (x.Y) is not supported"]);
}

#[test]
fn endpoints_tell_five_facts_or_none() {
    let workload = |text: &str| {
        let yaml = format!(
            "cluster_name: c\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, \
             port_value: 1}}}}}}, metadata: {{filter_metadata: {{istio: {{workload: {text:?}}}}}}}}}]}}]"
        );
        load_assignment(&message(&yaml)).unwrap().localities[0].endpoints[0].workload.clone()
    };
    let found = workload("details-0;bookinfo;details;v1;Kubernetes").unwrap();
    assert_eq!(
        (found.name.as_str(), found.canonical_service.as_str(), found.cluster.as_str()),
        ("details-0", "details", "Kubernetes")
    );
    assert_eq!(found.app, "");
    assert!(workload("details-0;bookinfo").is_none());
}

#[test]
fn a_node_is_who_istio_says() {
    let yaml = r#"
id: sidecar~127.0.0.21~ratings-vm.bookinfo~bookinfo.svc.cluster.local
metadata:
  NAME: ratings-vm
  NAMESPACE: bookinfo
  CLUSTER_ID: Kubernetes
  ISTIO_VERSION: 1.32.0
  WORKLOAD_NAME: ratings-vm
  OWNER: ""
  LABELS: {app: ratings, app.kubernetes.io/name: ratings-app, version: v1, service.istio.io/canonical-name: ratings}
locality: {region: us-east-1, zone: us-east-1a}
"#;
    let node = local_node(&message::<Node>(yaml));
    assert_eq!((node.istio_version.as_str(), node.workload.namespace.as_str()), ("1.32.0", "bookinfo"));
    assert_eq!((node.workload.app.as_str(), node.workload.version.as_str()), ("ratings-app", "v1"));
    assert_eq!((node.workload.canonical_service.as_str(), node.workload.canonical_revision.as_str()), ("ratings", ""));
    assert_eq!((node.workload.region.as_str(), node.workload.zone.as_str()), ("us-east-1", "us-east-1a"));
    assert_eq!(node.workload.labels["app"], "ratings");
}
