//! Health, limits, subsets and balancing of clusters.

use std::collections::BTreeSet;
use std::time::Duration;

use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proxy::config::{
    self, ConsecutiveFailures, Fraction, HealthChecker, HealthStatus, LbValue, SelectorFallback, SubsetFallback,
};

use super::super::{cluster, listener, load_assignment};
use super::{message, shown};

fn translated(yaml: &str) -> config::Cluster {
    cluster(&message::<Cluster>(yaml)).unwrap_or_else(|rejected| panic!("{}", shown(&rejected).join("\n")))
}

fn refused(yaml: &str) -> String {
    shown(&cluster(&message::<Cluster>(yaml)).unwrap_err()).join("\n")
}

#[test]
fn an_outlier_detector_is_off_where_its_share_is_zero() {
    let outliers = translated("{name: c, outlier_detection: {consecutive_5xx: 3, enforcing_consecutive_5xx: 0}}");
    let outliers = outliers.outlier_detection.unwrap();
    assert_eq!((outliers.consecutive_5xx, outliers.consecutive_gateway_failure), (None, None));
    assert_eq!(outliers.consecutive_local_origin_failure, Some(ConsecutiveFailures::always(5)));
    assert_eq!(outliers.max_ejection_time, Duration::from_secs(300));
    assert!(!outliers.always_eject_one_host);
    assert_eq!(outliers.failure_percentage, None);
    let rate = outliers.success_rate.unwrap();
    assert_eq!((rate.minimum_hosts, rate.request_volume, rate.stdev_factor, rate.enforcing), (5, 100, 1900, 100));
    assert_eq!(rate.enforcing_local_origin, 0, "only when failures of our own making are counted apart");
    let istio = "{name: c, outlier_detection: {enforcing_success_rate: 0, enforcing_consecutive_5xx: 30}}";
    let outliers = translated(istio).outlier_detection.unwrap();
    assert_eq!(outliers.success_rate, None);
    assert_eq!(outliers.consecutive_5xx, Some(ConsecutiveFailures { count: 5, enforcing: 30 }));
    let short = "{name: c, outlier_detection: {base_ejection_time: 30s, max_ejection_time: 10s}}";
    assert!(refused(short).contains("outlier_detection.max_ejection_time: expected no less than base_ejection_time"));
}

#[test]
fn an_assignment_has_a_policy() {
    let yaml = "{cluster_name: c, policy: {overprovisioning_factor: 100, weighted_priority_health: true,
        drop_overloads: [{category: a, drop_percentage: {numerator: 50}}]}}";
    let policy = load_assignment(&message::<ClusterLoadAssignment>(yaml)).unwrap().policy;
    assert_eq!(policy.drop_overload, Fraction::from_millionths(500_000));
    assert_eq!((policy.overprovisioning_percent, policy.weighted_priority_health), (100, true));
    let two = "{cluster_name: c, policy: {drop_overloads: [{category: a}, {category: b}]}}";
    let rejected = load_assignment(&message::<ClusterLoadAssignment>(two)).unwrap_err();
    assert!(shown(&rejected)[0].contains("policy.drop_overloads: expected no more than one"));
}

#[test]
fn hosts_and_listeners_may_have_addresses_of_both_families() {
    let address = |ip: &str| format!("address: {{socket_address: {{address: '{ip}', port_value: 80}}}}");
    let yaml = format!(
        "{{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{{}, additional_addresses: [{{{}}}]}}}}]}}]}}",
        address("10.0.0.1"),
        address("fd00::1")
    );
    let assignment = load_assignment(&message::<ClusterLoadAssignment>(&yaml)).unwrap();
    let more = assignment.localities[0].endpoints[0].additional_addresses.clone();
    assert_eq!(more.as_deref(), Some(&["[fd00::1]:80".parse().unwrap()][..]));
    let named = yaml.replace("fd00::1", "localhost");
    let rejected = shown(&load_assignment(&message::<ClusterLoadAssignment>(&named)).unwrap_err());
    let path = "endpoints[0].lb_endpoints[0].endpoint.additional_addresses[0].address.socket_address.address";
    assert!(rejected[0].contains(&format!("{path}: expected an IP address")), "{rejected:?}");

    let filter = "{name: tcp, typed_config: {'@type': \
                  type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: a}}";
    let yaml = format!(
        "{{name: l, {}, additional_addresses: [{{{}}}], filter_chains: [{{filters: [{filter}]}}]}}",
        address("0.0.0.0"),
        address("::")
    );
    let translated = listener(&message::<Listener>(&yaml)).unwrap();
    assert_eq!(translated.additional_addresses, ["[::]:80".parse().unwrap()]);
    let options = yaml.replace("}], filter_chains", ", socket_options: {}}], filter_chains");
    let rejected = shown(&listener(&message::<Listener>(&options)).unwrap_err());
    assert!(rejected[0].contains("AdditionalAddress.socket_options is not supported"), "{rejected:?}");
}

#[test]
fn endpoints_have_health_and_labels() {
    let yaml = "
cluster_name: c
endpoints:
- lb_endpoints:
  - health_status: DEGRADED
    metadata: {filter_metadata: {envoy.lb: {version: [v1, v2], canary: true}}}
    endpoint:
      address: {socket_address: {address: 10.0.0.1, port_value: 80}}
      health_check_config: {port_value: 8081, hostname: probe, disable_active_health_check: true}
";
    let assignment = load_assignment(&message::<ClusterLoadAssignment>(yaml)).unwrap();
    let endpoint = &assignment.localities[0].endpoints[0];
    assert_eq!(endpoint.health, HealthStatus::Degraded);
    assert_eq!(endpoint.lb_metadata["version"], LbValue::List(vec!["v1".to_owned(), "v2".to_owned()]));
    assert_eq!(endpoint.lb_metadata["canary"], LbValue::One("true".to_owned()));
    let check = endpoint.health_check.as_ref().unwrap();
    assert_eq!((check.port, check.hostname.as_str(), check.disable_active_health_check), (8081, "probe", true));
}

fn check(what: &str) -> String {
    format!("{{name: c, health_checks: [{{timeout: 1s, interval: 5s, unhealthy_threshold: 3, healthy_threshold: 2, {what}}}]}}")
}

#[test]
fn a_health_check_has_envoys_defaults() {
    let health = translated(&check("http_health_check: {path: /healthz}")).health_check.unwrap();
    assert_eq!((health.timeout, health.unhealthy_threshold, health.healthy_threshold), (Duration::from_secs(1), 3, 2));
    let intervals = config::HealthCheckIntervals::every(Duration::from_secs(5));
    assert_eq!((&health.intervals, health.reuse_connection), (&intervals, true));
    let HealthChecker::Http(http) = &health.checker else { unreachable!("it is HTTP") };
    assert_eq!((http.path.as_str(), http.method.as_str(), http.host.as_str(), http.http2), ("/healthz", "GET", "", false));
    assert_eq!((&http.expected_statuses[..], &http.retriable_statuses[..]), (&config::HttpHealthCheck::only(200)[..], &[][..]));
    let tuned =
        "unhealthy_interval: 1s, no_traffic_interval: 2s, reuse_connection: false, http_health_check: {path: /, method: POST,
        send: {text: '6162'}, receive: [{binary: eA==}], expected_statuses: [{start: 200, end: 300}], codec_client_type: HTTP2,
        request_headers_to_add: [{header: {key: X-A, value: 100%%}}]}";
    let health = translated(&check(tuned)).health_check.unwrap();
    assert_eq!(health.intervals.unhealthy_edge, Duration::from_secs(1));
    assert_eq!(health.intervals.no_traffic_healthy, Duration::from_secs(2));
    let HealthChecker::Http(http) = &health.checker else { unreachable!("it is HTTP") };
    assert_eq!((&http.send[..], &http.receive[0][..], http.http2), (&b"ab"[..], &b"x"[..], true));
    assert_eq!((http.headers_to_add[0].name.as_str(), http.headers_to_add[0].value.as_str()), ("x-a", "100%"));
    let HealthChecker::Tcp(tcp) =
        &translated(&check("tcp_health_check: {receive: [{text: '01fF'}]}")).health_check.unwrap().checker
    else {
        unreachable!("it is TCP")
    };
    assert_eq!((&tcp.send[..], &tcp.receive[0][..]), (&b""[..], &[1, 255][..]));
    let grpc = translated(&check("grpc_health_check: {service_name: a.B}")).health_check.unwrap();
    assert!(matches!(&grpc.checker, HealthChecker::Grpc(grpc) if grpc.service_name == "a.B"));
}

#[test]
fn what_a_health_check_cannot_mean_is_refused_by_name() {
    for (what, expected) in [
        ("http_health_check: {path: /, send: {text: '61'}}", "http_health_check.method: expected a method that has a body"),
        ("http_health_check: {path: ''}", "http_health_check.path: is empty"),
        ("http_health_check: {path: /, expected_statuses: [{start: 300, end: 200}]}", "expected 100 <= start < end <= 600"),
        ("http_health_check: {path: /, codec_client_type: HTTP3}", "codec_client_type: expected HTTP1 or HTTP2"),
        ("http_health_check: {path: /, request_headers_to_add: [{header: {key: a, value: '%X%'}}]}", "expected a literal value"),
        ("tcp_health_check: {send: {text: '0'}}", "expected pairs of hexadecimal digits"),
        ("event_service: {}, tcp_health_check: {}", "event_service"),
    ] {
        assert!(refused(&check(what)).contains(expected), "{what}: {}", refused(&check(what)));
    }
    assert!(refused("{name: c, health_checks: [{tcp_health_check: {}}]}").contains("health_checks[0].timeout: is missing"));
}

const SUBSETS: &str = "fallback_policy: ANY_ENDPOINT, default_subset: {stage: prod}, list_as_any: true, subset_selectors: [
    {keys: [version, stage], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [stage]}, {keys: [stage], fallback_policy: NO_FALLBACK}]";

#[test]
fn subsets_are_the_same_in_both_forms() {
    let old = translated(&format!("{{name: c, lb_policy: RANDOM, lb_subset_config: {{{SUBSETS}}}}}"));
    let typed = format!(
        "{{name: c, load_balancing_policy: {{policies: [{{typed_extension_config: {{name: s, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.subset.v3.Subset, {SUBSETS}, allow_redundant_keys: true,
        subset_lb_policy: {{policies: [{{typed_extension_config: {{name: r, typed_config: {{
        '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}}}}]}}}}}}}}]}}}}"
    );
    let typed = translated(&typed);
    assert_eq!((&old.lb_policy, &typed.lb_policy), (&config::LbPolicy::Random, &config::LbPolicy::Random));
    let subset = old.lb_subset.unwrap();
    assert_eq!((subset.fallback, subset.list_as_any), (SubsetFallback::AnyEndpoint, true));
    assert_eq!(subset.selectors[0].keys, BTreeSet::from(["stage".to_owned(), "version".to_owned()]));
    assert_eq!(subset.selectors[0].fallback, Some(SelectorFallback::KeysSubset(["stage".to_owned()].into())));
    assert_eq!(subset.selectors[1].fallback, Some(SelectorFallback::Cluster(SubsetFallback::NoFallback)));
    let redundant = config::LbSubsetConfig { allow_redundant_keys: true, ..config::LbSubsetConfig::clone(&subset) };
    assert_eq!(**typed.lb_subset.as_ref().unwrap(), redundant);
    assert_eq!(
        translated("{name: c, lb_subset_config: {fallback_policy: ANY_ENDPOINT}}").lb_subset,
        None,
        "no selectors, no subsets"
    );
}

#[test]
fn limits_names_and_addresses() {
    let yaml = "
name: c
type: STRICT_DNS
dns_lookup_family: V6_ONLY
dns_jitter: 1s
dns_failure_refresh_rate: {base_interval: 2s}
circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 50}}}]}
upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}, extra_source_addresses: [{address: {address: '::6', port_value: 0}}]}
common_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true}, consistent_hashing_lb_config: {use_hostname_for_hashing: true}}
";
    let translated = translated(yaml);
    let config::ClusterDiscovery::StrictDns(dns) = &translated.discovery else { unreachable!("it is STRICT_DNS") };
    assert_eq!((dns.family, dns.jitter), (config::DnsFamily::V6Only, Duration::from_secs(1)));
    assert_eq!(dns.failure_refresh, Some((Duration::from_secs(2), Duration::from_secs(20))));
    let budget = config::RetryBudget { budget: Fraction::from_millionths(500_000), min_retry_concurrency: 3 };
    assert_eq!(translated.circuit_breakers.retry_budget, Some(budget));
    assert_eq!(translated.source_addresses, ["127.0.0.6:0".parse().unwrap(), "[::6]:0".parse().unwrap()]);
    assert!(translated.fail_traffic_on_panic && translated.use_hostname_for_hashing);
}

#[test]
fn the_proxy_protocol_is_around_every_transport_socket_or_none() {
    let around = |version: &str, inner: &str| {
        format!(
            "{{name: p, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, \
             config: {{version: {version}}}, transport_socket: {inner}}}}}"
        )
    };
    let raw =
        "{name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}";
    let tls =
        "{name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}";
    let of = |first: &str, second: &str| {
        format!("{{name: c, transport_socket_matches: [{{name: a, transport_socket: {first}}}], transport_socket: {second}}}")
    };
    let both = translated(&of(&around("V2", tls), &around("V2", raw)));
    assert_eq!(both.proxy_protocol, Some(config::ProxyProtocol::V2));
    assert!(matches!(both.transport_socket_matches[0].socket, config::TransportSocket::Tls(_)));
    assert_eq!(both.transport_socket, config::TransportSocket::RawBuffer);
    assert_eq!(translated(&of(tls, raw)).proxy_protocol, None);
    for (first, second) in [(around("V1", tls), around("V2", raw)), (tls.to_owned(), around("V1", raw))] {
        assert!(refused(&of(&first, &second)).contains("expected the same PROXY protocol for all transport sockets"));
    }
    let twice = format!("{{name: c, transport_socket: {}}}", around("V1", &around("V1", raw)));
    assert!(refused(&twice).contains("transport_socket.typed_config.transport_socket"), "{}", refused(&twice));
}
