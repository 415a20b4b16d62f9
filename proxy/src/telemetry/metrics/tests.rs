mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::{Destination, HISTOGRAM_BUCKETS, HttpSample, IstioHttpMetrics, IstioTcpMetrics, ProxyMetrics, Registry, TcpSample};
use crate::config::{IstioStats, Node, Reporter, Service, Workload};
use crate::flags::ResponseFlags;

fn registry(max_series: usize) -> (Arc<Registry>, PrometheusHandle) {
    let builder = HISTOGRAM_BUCKETS.iter().fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets).unwrap()
    });
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    (Arc::new(Registry::new(Arc::new(recorder), max_series)), handle)
}

fn node() -> Node {
    let labels = [("app", "productpage"), ("version", "v1")];
    let text = |text: &str| text.to_owned();
    Node {
        cluster: text("productpage.bookinfo"),
        istio_version: text("1.32.0"),
        workload: Workload {
            name: text("productpage-v1"),
            namespace: text("bookinfo"),
            canonical_service: text("productpage"),
            canonical_revision: text("v1"),
            labels: labels.map(|(name, value)| (text(name), text(value))).into(),
            ..Workload::default()
        },
        ..Node::default()
    }
}

const SOURCE: Reporter = Reporter::Source;
const DESTINATION: Reporter = Reporter::Destination;
const OURS: Option<&str> = Some("spiffe://cluster.local/ns/bookinfo/sa/productpage");

fn http(registry: &Arc<Registry>, reporter: Reporter) -> IstioHttpMetrics {
    IstioHttpMetrics::new(registry, &node(), &IstioStats::new(reporter))
}

fn service() -> Arc<Service> {
    Arc::new(Service {
        host: "reviews.bookinfo.svc.cluster.local".to_owned(),
        name: "reviews".to_owned(),
        namespace: "bookinfo".to_owned(),
    })
}

fn of(service: &Arc<Service>) -> Destination<'_> {
    Destination { service: Some(service), ..Destination::default() }
}

fn workload() -> Arc<Workload> {
    Arc::new(Workload {
        name: "reviews-v2".to_owned(),
        namespace: "bookinfo".to_owned(),
        canonical_service: "reviews".to_owned(),
        canonical_revision: "v2".to_owned(),
        cluster: "Kubernetes".to_owned(),
        ..Workload::default()
    })
}

/// The labels of the one series of `metric`, and its value.
fn series(rendered: &str, metric: &str) -> (BTreeMap<String, String>, String) {
    let all: Vec<_> = rendered.lines().filter(|line| line.starts_with(&format!("{metric}{{"))).collect();
    assert_eq!(all.len(), 1, "{metric} in {rendered}");
    let (labels, value) = all[0][metric.len() + 1..].split_once("} ").unwrap();
    let pairs = labels.split("\",").map(|pair| pair.split_once("=\"").unwrap());
    (pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect(), value.to_owned())
}

/// The label names of `istio_metrics.json`: what Istio's dashboards select by.
const COMMON: &str = "reporter source_workload source_workload_namespace source_principal source_app source_version source_cluster \
    source_canonical_service source_canonical_revision destination_workload destination_workload_namespace destination_principal \
    destination_app destination_version destination_service destination_service_name destination_service_namespace \
    destination_cluster destination_canonical_service destination_canonical_revision request_protocol response_flags \
    connection_security_policy";

#[test]
fn outbound_request_has_istios_labels() {
    let (registry, handle) = registry(100);
    let metrics = http(&registry, SOURCE);
    let (service, workload) = (service(), workload());
    let sample = HttpSample {
        destination: of(&service),
        peer: Some(&workload),
        peer_principal: Some("spiffe://cluster.local/ns/bookinfo/sa/reviews"),
        local_principal: OURS,
        response_code: 503,
        flags: ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED,
        duration: Duration::from_micros(1500),
        request_bytes: 7,
        response_bytes: 121,
        ..HttpSample::default()
    };
    metrics.record(&sample);
    metrics.record(&sample);
    let rendered = handle.render();
    let (labels, value) = series(&rendered, "istio_requests_total");
    assert_eq!(value, "2");
    let names: BTreeSet<_> = COMMON.split_whitespace().chain(["response_code", "grpc_response_status"]).collect();
    assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    let expected = [
        ("reporter", "source"),
        ("source_workload", "productpage-v1"),
        ("source_principal", "spiffe://cluster.local/ns/bookinfo/sa/productpage"),
        ("source_app", "productpage"),
        ("source_cluster", ""),
        ("destination_workload", "reviews-v2"),
        ("destination_principal", "spiffe://cluster.local/ns/bookinfo/sa/reviews"),
        ("destination_app", "unknown"),
        ("destination_cluster", "Kubernetes"),
        ("destination_canonical_revision", "v2"),
        ("destination_service", "reviews.bookinfo.svc.cluster.local"),
        ("destination_service_name", "reviews"),
        ("destination_service_namespace", "bookinfo"),
        ("request_protocol", "http"),
        ("response_code", "503"),
        ("grpc_response_status", ""),
        ("response_flags", "URX,UF"),
        ("connection_security_policy", "unknown"),
    ];
    for (name, value) in expected {
        assert_eq!(labels[name], value, "{name}");
    }
    assert_eq!(series(&rendered, "istio_request_duration_milliseconds_sum").1, "3");
    assert_eq!(series(&rendered, "istio_request_bytes_sum").1, "14");
    assert_eq!(series(&rendered, "istio_response_bytes_count").1, "2");
    assert!(rendered.contains("le=\"5\"} 2") && rendered.contains("le=\"3600000\""), "{rendered}");
    assert!(rendered.contains("# HELP istio_requests_total "), "{rendered}");
}

#[test]
fn inbound_request_tells_how_it_was_secured() {
    let principal = Some("spiffe://cluster.local/ns/bookinfo/sa/reviews");
    for (mtls, policy, source, destination) in [
        (
            true,
            "mutual_tls",
            "spiffe://cluster.local/ns/bookinfo/sa/reviews",
            "spiffe://cluster.local/ns/bookinfo/sa/productpage",
        ),
        (false, "none", "unknown", "unknown"),
    ] {
        let (registry, handle) = registry(100);
        let metrics = http(&registry, DESTINATION);
        let grpc = HttpSample { is_grpc: true, grpc_status: Some(14), ..HttpSample::default() };
        let (theirs, ours) = if mtls { (principal, OURS) } else { (None, None) };
        metrics.record(&HttpSample { peer_principal: theirs, local_principal: ours, response_code: 200, ..grpc });
        let (labels, _) = series(&handle.render(), "istio_requests_total");
        let expected = [
            ("reporter", "destination"),
            ("connection_security_policy", policy),
            ("source_principal", source),
            ("destination_principal", destination),
            ("source_workload", "unknown"),
            ("source_workload_namespace", if mtls { "bookinfo" } else { "unknown" }),
            ("source_canonical_revision", "latest"),
            ("destination_workload", "productpage-v1"),
            ("destination_service", "productpage"),
            ("destination_service_name", "productpage"),
            ("destination_service_namespace", "bookinfo"),
            ("request_protocol", "grpc"),
            ("grpc_response_status", "14"),
            ("response_flags", "-"),
        ];
        for (name, value) in expected {
            assert_eq!(labels[name], value, "{name}");
        }
    }
}

#[test]
fn tcp_connections_are_counted() {
    let (registry, handle) = registry(100);
    let metrics = IstioTcpMetrics::new(&registry, &node(), &IstioStats::new(SOURCE));
    let service = service();
    let sample = TcpSample { destination: of(&service), ..TcpSample::default() };
    metrics.opened(&sample);
    metrics.transferred(&sample, 10, 300);
    metrics.transferred(&sample, 1, 0);
    metrics.closed(&sample);
    let rendered = handle.render();
    for (metric, expected) in [
        ("istio_tcp_connections_opened_total", "1"),
        ("istio_tcp_connections_closed_total", "1"),
        ("istio_tcp_received_bytes_total", "11"),
        ("istio_tcp_sent_bytes_total", "300"),
    ] {
        let (labels, value) = series(&rendered, metric);
        assert_eq!(value, expected, "{metric}");
        assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), COMMON.split_whitespace().collect());
        assert_eq!((labels["request_protocol"].as_str(), labels["response_flags"].as_str()), ("tcp", "-"));
    }
}

#[test]
fn samples_that_differ_get_series_of_their_own() {
    let (registry, handle) = registry(1000);
    let metrics = http(&registry, DESTINATION);
    let (service, other_service, workload) = (service(), Arc::new(Service::default()), workload());
    let samples = [
        HttpSample::default(),
        HttpSample { response_code: 200, ..HttpSample::default() },
        HttpSample { flags: ResponseFlags::NO_ROUTE_FOUND, ..HttpSample::default() },
        HttpSample { is_grpc: true, ..HttpSample::default() },
        HttpSample { is_grpc: true, grpc_status: Some(0), ..HttpSample::default() },
        HttpSample { local_principal: OURS, ..HttpSample::default() },
        HttpSample { local_principal: OURS, peer_principal: Some("spiffe://a"), ..HttpSample::default() },
        HttpSample { local_principal: OURS, peer_principal: Some("spiffe://b"), ..HttpSample::default() },
        HttpSample { destination: of(&service), ..HttpSample::default() },
        HttpSample { peer: Some(&workload), ..HttpSample::default() },
    ];
    for sample in samples.iter().chain(&samples) {
        metrics.record(sample);
    }
    let counts = |rendered: &str| {
        let lines = rendered.lines().filter(|line| line.starts_with("istio_requests_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(counts(&handle.render()), vec!["2"; samples.len()]);
    assert_eq!(metrics.cached(), samples.len());
    // Equal labels behind another address (configuration was pushed again): another entry, the same series.
    metrics.record(&HttpSample { destination: of(&other_service), ..HttpSample::default() });
    assert_eq!(metrics.cached(), samples.len() + 1);
    assert_eq!(counts(&handle.render()).len(), samples.len());
}

#[test]
fn cache_is_bounded_and_forgets_nothing_that_was_counted() {
    let (registry, handle) = registry(100_000);
    let metrics = http(&registry, DESTINATION);
    for round in 0..2 {
        for response_code in 0..3000 {
            metrics.record(&HttpSample { response_code, ..HttpSample::default() });
            // A label set in constant use stays.
            metrics.record(&HttpSample { response_code: 200, ..HttpSample::default() });
        }
        assert!(metrics.cached() <= 1024, "{round}: {}", metrics.cached());
    }
    let rendered = handle.render();
    let total: u64 = rendered
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 12_000);
}

#[test]
fn series_beyond_the_cap_collapse() {
    // The release of the proxy is a series too.
    let (registry, handle) = registry(9);
    let metrics = http(&registry, DESTINATION);
    // Four metrics each: two label sets fit.
    for response_code in [200, 404, 500, 503, 500] {
        metrics.record(&HttpSample { response_code, ..HttpSample::default() });
    }
    let rendered = handle.render();
    let requests: Vec<_> = rendered.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(requests.len(), 3, "{requests:#?}");
    let collapsed = requests.iter().find(|line| line.contains("response_code=\"overflow\"")).unwrap();
    assert!(collapsed.contains("reporter=\"overflow\"") && collapsed.ends_with(" 3"), "{collapsed}");
    assert!(rendered.contains("skiff_metric_series_overflow_total 8"), "{rendered}");
}

#[test]
fn proxy_metrics_have_the_names_operators_ask_for() {
    let (registry, handle) = registry(100);
    let metrics = ProxyMetrics::new(&registry);
    let listener = metrics.listener("0.0.0.0_9080");
    listener.connections_active.increment(2.0);
    listener.connections_active.decrement(1.0);
    listener.tls_handshake_failures.increment(1);
    let cluster = metrics.cluster("outbound|9080||reviews");
    cluster.retries.increment(3);
    cluster.pending_overflow.increment(1);
    metrics.certificate_expires("default", UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    metrics.config_version("2024-01-01/1");
    metrics.config_updates.increment(1);
    metrics.draining.set(1.0);
    let rendered = handle.render();
    for line in [
        "envoy_listener_downstream_cx_active{listener_address=\"0.0.0.0_9080\"} 1",
        "envoy_listener_ssl_connection_error{listener_address=\"0.0.0.0_9080\"} 1",
        "envoy_cluster_upstream_rq_retry{cluster_name=\"outbound|9080||reviews\"} 3",
        "envoy_cluster_upstream_rq_pending_overflow{cluster_name=\"outbound|9080||reviews\"} 1",
        "skiff_certificate_expiration_timestamp_seconds{secret=\"default\"} 1800000000",
        "skiff_config_updates_total 1",
        "skiff_access_log_dropped_total 0",
        "skiff_draining 1",
    ] {
        assert!(rendered.lines().any(|rendered| rendered == line), "{line} in {rendered}");
    }
    let version = |rendered: &str| rendered.lines().find(|line| line.starts_with("skiff_config_version ")).unwrap().to_owned();
    let before = version(&rendered);
    metrics.config_version("2024-01-01/2");
    assert_ne!(version(&handle.render()), before);
    metrics.config_version("2024-01-01/1");
    assert_eq!(version(&handle.render()), before);
}
