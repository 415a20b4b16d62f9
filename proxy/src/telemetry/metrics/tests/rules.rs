//! Istio's rules for labels, and what a Telemetry resource changes about them.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use super::*;
use crate::config::{Attribute, Dimension, IstioMetric, MetricOverride};
use crate::http::head::RequestHead;
use crate::stream_info::{ConnectionInfo, FormatContext, StreamInfo};

fn labels_of(metrics: &IstioHttpMetrics, handle: &PrometheusHandle, sample: &HttpSample<'_>) -> BTreeMap<String, String> {
    metrics.record(sample);
    series(&handle.render(), "istio_requests_total").0
}

#[track_caller]
fn assert_labels(labels: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(labels.get(*name).map(String::as_str), Some(*value), "{name}");
    }
}

#[test]
fn what_stands_in_for_a_service_that_is_not_known() {
    let asked =
        |route, cluster| Destination { service: None, cluster: Some(cluster), route: Some(route), host: Some(b"x.example") };
    let cases = [
        (SOURCE, asked("default", "outbound|80||x"), true, ("x.example", "x.example", "unknown")),
        (SOURCE, asked("default", "outbound|80||x"), false, ("unknown", "unknown", "unknown")),
        (SOURCE, asked("allow_any", "PassthroughCluster"), true, ("x.example", "PassthroughCluster", "unknown")),
        (SOURCE, asked("block_all", "BlackHoleCluster"), false, ("unknown", "BlackHoleCluster", "unknown")),
        (SOURCE, asked("", "PassthroughCluster"), false, ("unknown", "PassthroughCluster", "unknown")),
        (
            DESTINATION,
            asked("default", "InboundPassthroughCluster"),
            false,
            ("productpage", "InboundPassthroughCluster", "bookinfo"),
        ),
        (DESTINATION, asked("default", "inbound|80||"), true, ("x.example", "x.example", "bookinfo")),
    ];
    for (reporter, destination, fallback, (service, name, namespace)) in cases {
        let (registry, handle) = registry(100);
        let stats = IstioStats { disable_host_header_fallback: !fallback, ..IstioStats::new(reporter) };
        let metrics = IstioHttpMetrics::new(&registry, &node(), &stats);
        let labels = labels_of(&metrics, &handle, &HttpSample { destination, ..HttpSample::default() });
        assert_labels(
            &labels,
            &[("destination_service", service), ("destination_service_name", name), ("destination_service_namespace", namespace)],
        );
    }
}

#[test]
fn a_peer_is_what_it_proves_before_what_it_says() {
    let says = Arc::new(Workload {
        name: "reviews-v2".to_owned(),
        namespace: "other".to_owned(),
        app: "reviews".to_owned(),
        version: "v2".to_owned(),
        identity: "spiffe://cluster.local/ns/told/sa/reviews".to_owned(),
        ..Workload::default()
    });
    let sample = HttpSample { peer: Some(&says), ..HttpSample::default() };
    let proven =
        HttpSample { peer_principal: Some("spiffe://cluster.local/ns/proven/sa/reviews"), local_principal: OURS, ..sample };
    let (registry, handle) = registry(100);
    let labels = labels_of(&http(&registry, DESTINATION), &handle, &proven);
    assert_labels(
        &labels,
        &[
            ("source_workload", "reviews-v2"),
            ("source_workload_namespace", "proven"),
            ("source_principal", "spiffe://cluster.local/ns/proven/sa/reviews"),
            ("source_app", "reviews"),
            ("source_version", "v2"),
            ("source_canonical_service", "unknown"),
            ("source_canonical_revision", "latest"),
            ("connection_security_policy", "mutual_tls"),
        ],
    );
    let (registry, handle) = super::registry(100);
    let labels = labels_of(&http(&registry, DESTINATION), &handle, &sample);
    assert_labels(&labels, &[("source_workload_namespace", "other"), ("source_principal", "unknown")]);
    // An endpoint that is asked in plaintext may tell its identity; there is no namespace but that one then.
    let (registry, handle) = super::registry(100);
    let labels = labels_of(&http(&registry, SOURCE), &handle, &sample);
    assert_labels(
        &labels,
        &[
            ("destination_principal", "spiffe://cluster.local/ns/told/sa/reviews"),
            ("destination_workload_namespace", "told"),
            ("destination_service_namespace", "told"),
        ],
    );
}

#[test]
fn grpc_messages_are_counted_by_the_two_sides_alone() {
    let (registry, handle) = registry(100);
    let metrics = http(&registry, DESTINATION);
    metrics.record(&HttpSample { is_grpc: true, grpc_messages: (1, 3), response_code: 200, ..HttpSample::default() });
    metrics.record(&HttpSample { is_grpc: true, grpc_messages: (2, 0), response_code: 503, ..HttpSample::default() });
    let rendered = handle.render();
    let (labels, value) = series(&rendered, "istio_request_messages_total");
    assert_eq!((value.as_str(), labels.len()), ("3", 20), "{labels:?}");
    assert_eq!(series(&rendered, "istio_response_messages_total").1, "3");
    assert!(!labels.contains_key("response_code"));
    assert!(rendered.contains("istio_build{component=\"proxy\",tag=\"1.32.0\"} 1"), "{rendered}");
}

/// What the Telemetry resource of scenario 11 makes of an inbound listener.
fn telemetry() -> IstioStats {
    let path = Dimension::Attribute(Attribute::RequestUrlPath);
    let requests = MetricOverride {
        metric: Some(IstioMetric::RequestsTotal),
        tags_to_remove: vec!["source_app".to_owned()],
        dimensions: [("path".to_owned(), path)].into(),
        ..MetricOverride::default()
    };
    let bytes = MetricOverride { metric: Some(IstioMetric::RequestBytes), drop: true, ..MetricOverride::default() };
    let all = MetricOverride {
        dimensions: [
            ("source_version".to_owned(), Dimension::Constant("fixed".to_owned())),
            ("agent".to_owned(), Dimension::Attribute(Attribute::RequestUseragent)),
        ]
        .into(),
        ..MetricOverride::default()
    };
    IstioStats { overrides: vec![requests, bytes, all], ..IstioStats::new(DESTINATION) }
}

#[test]
fn a_telemetry_resource_drops_metrics_and_changes_labels() {
    let (registry, handle) = registry(100);
    let metrics = IstioHttpMetrics::new(&registry, &node(), &telemetry());
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let info = StreamInfo::new(Rc::new(ConnectionInfo::new(1, address, address)));
    for path in ["/a?b=c", "/a", "/b"] {
        let mut request = RequestHead::new();
        request.set_path(path.as_bytes());
        let context = FormatContext { info: &info, request: Some(&request), response: None, trailers: None, now: Instant::now() };
        metrics.record(&HttpSample { custom: &metrics.attributes(&context), ..HttpSample::default() });
    }
    let rendered = handle.render();
    let requests: Vec<&str> = rendered.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(requests.len(), 2, "{requests:#?}");
    let a = requests.iter().find(|line| line.contains("path=\"/a\"")).unwrap();
    assert!(a.ends_with(" 2") && a.contains("source_version=\"fixed\"") && a.contains("agent=\"unknown\""), "{a}");
    assert!(!a.contains("source_app="), "{a}");
    assert!(!rendered.contains("istio_request_bytes_sum"), "dropped");
    assert!(rendered.contains("istio_response_bytes_sum"));
    // Only requests have a label for the path, and still their app.
    let (labels, value) = series(&rendered, "istio_response_bytes_count");
    assert_eq!((value.as_str(), labels.contains_key("path"), labels["source_app"].as_str()), ("3", false, "unknown"));
    assert_eq!(metrics.cached(), 2);
}
