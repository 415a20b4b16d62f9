//! Clusters as Envoy has them: active health checks, subsets, overload; each seen in the response, the log line and the metric.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::SocketAddr;

use skiff_tests::apps::{App, Speaks};
use skiff_tests::http;
use skiff_tests::network::Network;
use skiff_tests::skiff::{Skiff, command};
use skiff_tests::wait::eventually;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpListener;
use tokio::sync::watch;

const LISTENER: (u8, u16) = (1, 8080);
const ADMIN: (u8, u16) = (1, 15000);

/// A proxy with one listener, whose routes lead to one cluster.
struct Proxy {
    skiff: Skiff,
    listener: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    /// `route`: more of the only route's action; `cluster`: more of the cluster; `endpoints`: its `lb_endpoints`.
    async fn start(network: &Network, route: &str, cluster: &str, endpoints: &[String], policy: &str) -> Self {
        let localities = format!("{{lb_endpoints: [{}]}}", endpoints.join(", "));
        Self::over(network, route, cluster, &localities, policy).await
    }

    /// The same with whole localities.
    async fn over(network: &Network, route: &str, cluster: &str, localities: &str, policy: &str) -> Self {
        let (listener, admin) = (network.at(LISTENER.0, LISTENER.1), network.at(ADMIN.0, ADMIN.1));
        let address = |at: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port());
        let text = format!(
            r#"
admin: {{address: {admin}}}
static_resources:
  listeners:
  - name: l
    address: {listener}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: s
          access_log:
          - name: log
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/stdout
              log_format:
                text_format_source: {{inline_string: "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n"}}
          route_config:
            name: r
            virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: c{route}}}}}]}}]
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: c
    type: STATIC
    connect_timeout: 5s
    common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}
    load_assignment: {{cluster_name: c, endpoints: [{localities}]{policy}}}
{cluster}
"#,
            admin = address(admin),
            listener = address(listener),
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bootstrap.yaml");
        std::fs::write(&path, text).unwrap();
        let skiff = Skiff::spawn(command(&["proxy", "-c", path.to_str().unwrap()]), admin);
        skiff.ready().await;
        Self { skiff, listener, _folder: folder }
    }

    async fn status(&self, path: &str) -> u16 {
        http::get(self.listener, "app", path).await.status
    }

    /// A number of this cluster.
    async fn metric(&self, name: &str) -> f64 {
        self.skiff.metrics().await.sum(name, &[("cluster_name", "c")])
    }
}

fn endpoint(at: SocketAddr, more: &str) -> String {
    format!("{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}{more}}}", at.ip(), at.port())
}

#[tokio::test]
async fn an_endpoint_that_fails_its_checks_gets_no_requests_until_it_passes() {
    let network = Network::claim();
    let (one, two) = (network.at(11, 9080), network.at(12, 9080));
    let (mut first, second) = (App::start(one, Speaks::Http), App::start(two, Speaks::Http));
    let check = "    health_checks: [{timeout: 2s, interval: 0.02s, no_traffic_interval: 0.02s, unhealthy_threshold: 2,
      healthy_threshold: 1, http_health_check: {path: /healthz, host: probe}}]";
    let proxy = Proxy::start(&network, "", check, &[endpoint(one, ""), endpoint(two, "")], "").await;
    let healthy = async |count: f64| {
        eventually("the checks notice", async || {
            (proxy.metric("envoy_cluster_health_check_healthy").await == count).then_some(())
        })
        .await;
    };
    healthy(2.0).await;
    assert_eq!(proxy.status("/both").await, 200);
    let probe = first.requests().into_iter().find(|request| request.second_word() == "/healthz").unwrap();
    assert_eq!((probe.header("host"), probe.header("user-agent")), (Some("probe"), Some("Envoy/HC")));

    first.stop().await;
    healthy(1.0).await;
    for _ in 0..4 {
        assert_eq!(proxy.status("/one-left").await, 200);
    }
    let line = format!("/one-left 200 - via_upstream {two}");
    proxy.skiff.stdout.nth_line_with(&line, 4).await;
    assert_eq!(proxy.metric("envoy_cluster_membership_healthy").await, 1.0);
    assert_eq!(proxy.metric("envoy_cluster_membership_total").await, 2.0);
    assert!(proxy.metric("envoy_cluster_health_check_network_failure").await >= 2.0);

    first.restart();
    healthy(2.0).await;
    for _ in 0..2 {
        assert_eq!(proxy.status("/back").await, 200);
    }
    proxy.skiff.stdout.line_with(&format!("/back 200 - via_upstream {one}")).await;
    drop(second);
}

#[tokio::test]
async fn nobody_healthy_is_nobody_at_all() {
    let network = Network::claim();
    let dead = network.at(11, 9080);
    let check =
        "    health_checks: [{timeout: 2s, interval: 60s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}]";
    let proxy = Proxy::start(&network, "", check, &[endpoint(dead, "")], "").await;
    assert_eq!(proxy.status("/nobody").await, 503);
    proxy.skiff.stdout.line_with("/nobody 503 UH no_healthy_upstream -").await;
    eventually("the check fails", async || (proxy.metric("envoy_cluster_health_check_failure").await == 1.0).then_some(())).await;
    assert_eq!(proxy.metric("envoy_cluster_membership_healthy").await, 0.0);
}

#[tokio::test]
async fn a_route_leads_to_a_subset() {
    let network = Network::claim();
    let (one, two) = (network.at(11, 9080), network.at(12, 9080));
    let _apps = (App::start(one, Speaks::Http), App::start(two, Speaks::Http));
    let labelled =
        |at, version: &str| endpoint(at, &format!(", metadata: {{filter_metadata: {{envoy.lb: {{version: {version}}}}}}}"));
    let endpoints = [labelled(one, "v1"), labelled(two, "v2")];
    let route = ", metadata_match: {filter_metadata: {envoy.lb: {version: v2}}}";
    let cluster = "    lb_subset_config: {fallback_policy: NO_FALLBACK, subset_selectors: [{keys: [version]}]}";
    let proxy = Proxy::start(&network, route, cluster, &endpoints, "").await;
    for _ in 0..4 {
        assert_eq!(proxy.status("/subset").await, 200);
    }
    proxy.skiff.stdout.nth_line_with(&format!("/subset 200 - via_upstream {two}"), 4).await;
    assert_eq!(proxy.skiff.stdout.count(&one.to_string()), 0);
    assert_eq!(proxy.metric("envoy_cluster_membership_total").await, 2.0);
}

#[tokio::test]
async fn overload_is_told_in_envoys_words() {
    let network = Network::claim();
    let app = network.at(11, 9080);
    let running = App::start(app, Speaks::Http);
    let policy = ", policy: {drop_overloads: [{category: all, drop_percentage: {numerator: 100}}]}";
    let proxy = Proxy::start(&network, "", "", &[endpoint(app, "")], policy).await;
    let answer = http::get(proxy.listener, "app", "/dropped").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "unconditional drop overload"));
    assert_eq!(answer.header("x-envoy-unconditional-drop-overload"), Some("true"));
    proxy.skiff.stdout.line_with("/dropped 503 UDO unconditional_drop_overload -").await;
    assert_eq!(proxy.metric("envoy_cluster_upstream_rq_drop_overload").await, 1.0);
    assert!(running.requests().is_empty());
}

#[tokio::test]
async fn an_open_breaker_is_told_in_envoys_words() {
    let network = Network::claim();
    let app = network.at(11, 9080);
    let running = App::start(app, Speaks::Http);
    let cluster = "    circuit_breakers: {thresholds: [{max_requests: 1}]}";
    let proxy = Proxy::start(&network, "", cluster, &[endpoint(app, "")], "").await;
    let listener = proxy.listener;
    let held = tokio::spawn(async move { http::get(listener, "app", "/hold").await.status });
    running.arrived("/hold").await;
    let answer = http::get(proxy.listener, "app", "/second").await;
    assert_eq!((answer.status, answer.header("x-envoy-overloaded")), (503, Some("true")));
    // The second has a connection of its own, as Envoy counts requests once they have one: its host is known.
    let line = format!("/second 503 UO upstream_reset_before_response_started{{overflow}} {app}");
    proxy.skiff.stdout.line_with(&line).await;
    assert_eq!(proxy.metric("envoy_cluster_upstream_rq_pending_overflow").await, 1.0);
    running.release();
    assert_eq!(held.await.unwrap(), 200);
}

/// Three priorities, of which only the last one lives; with Istio's frequency each is tried twice (seen on Envoy 1.40).
#[tokio::test]
async fn retries_go_to_other_priorities() {
    let network = Network::claim();
    let dead = [network.at(11, 9080), network.at(12, 9080)];
    let alive = network.at(13, 9080);
    let app = App::start(alive, Speaks::Http);
    let locality =
        |(priority, at): (usize, &SocketAddr)| format!("{{priority: {priority}, lb_endpoints: [{}]}}", endpoint(*at, ""));
    let localities: Vec<_> = [dead[0], dead[1], alive].iter().enumerate().map(locality).collect();
    let route = |retries: u32| {
        format!(
            r#", retry_policy: {{retry_on: connect-failure, num_retries: {retries}, retry_back_off: {{base_interval: 0.001s}},
            retry_priority: {{name: p, typed_config: {{
              "@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig,
              update_frequency: 2}}}}}}"#
        )
    };
    let proxy = Proxy::over(&network, &route(4), "", &localities.join(", "), "").await;
    assert_eq!(proxy.status("/far").await, 200);
    proxy.skiff.stdout.line_with(&format!("/far 200 - via_upstream {alive} 5")).await;
    assert_eq!(proxy.metric("envoy_cluster_upstream_rq_retry").await, 4.0);
    assert_eq!(proxy.metric("envoy_cluster_upstream_cx_connect_fail").await, 4.0);
    assert_eq!(app.requests().len(), 1);
    drop(proxy);

    let proxy = Proxy::over(&network, &route(2), "", &localities.join(", "), "").await;
    assert_eq!(proxy.status("/near").await, 503);
    let line = proxy.skiff.stdout.line_with("/near 503 ").await;
    assert!(line.ends_with(&format!("{} 3", dead[1])), "{line}");
}

/// The first address is where nobody is, as of a host that lacks one of its families.
#[tokio::test]
async fn a_host_is_reached_at_another_of_its_addresses() {
    let network = Network::claim();
    let (dead, alive) = (network.at(11, 9080), network.at(12, 9080));
    let app = App::start(alive, Speaks::Http);
    let more = format!(
        "{{endpoint: {{address: {}, additional_addresses: [{{address: {}}}]}}}}",
        socket_address(dead),
        socket_address(alive)
    );
    let proxy = Proxy::start(&network, "", "", &[more], "").await;
    assert_eq!(proxy.status("/other").await, 200);
    // It is known by its first address, as in Envoy.
    proxy.skiff.stdout.line_with(&format!("/other 200 - via_upstream {dead} 1")).await;
    assert_eq!(proxy.metric("envoy_cluster_upstream_cx_total").await, 1.0);
    assert_eq!(proxy.metric("envoy_cluster_upstream_cx_connect_fail").await, 0.0);
    assert_eq!(proxy.metric("envoy_cluster_membership_total").await, 1.0);
    assert_eq!(app.requests().len(), 1);
}

fn socket_address(at: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port())
}

/// Takes HTTP requests behind a PROXY header of version 1; what each connection began with.
async fn told(at: SocketAddr) -> watch::Receiver<Vec<String>> {
    let listener = TcpListener::bind(at).await.unwrap();
    let (heard, told) = watch::channel(Vec::new());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = http::Connection::over(stream);
            let mut line = String::new();
            connection.0.read_line(&mut line).await.unwrap();
            heard.send_modify(|heard| heard.push(line));
            tokio::spawn(async move {
                while let Ok(Some(_)) = connection.head().await {
                    connection.send("HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    told
}

/// The words are those of Envoy 1.40. A connection that has named one caller serves no other.
#[tokio::test]
async fn an_upstream_is_told_who_calls_it() {
    let network = Network::claim();
    let at = network.at(11, 9080);
    let told = told(at).await;
    let cluster = r#"    transport_socket:
      name: p
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport
        transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}"#;
    let proxy = Proxy::start(&network, "", cluster, &[endpoint(at, "")], "").await;
    let mut expected = Vec::new();
    for _ in 0..2 {
        let mut caller = http::Connection::open(proxy.listener).await.unwrap();
        let own = caller.0.get_ref().local_addr().unwrap();
        for _ in 0..2 {
            assert_eq!(caller.ask(&http::get_request("app", "/told", "")).await.unwrap().status, 204);
        }
        let door = proxy.listener;
        expected.push(format!("PROXY TCP4 {} {} {} {}\r\n", own.ip(), door.ip(), own.port(), door.port()));
    }
    assert_eq!(*told.borrow(), expected);
    proxy.skiff.stdout.nth_line_with(&format!("/told 204 - via_upstream {at} 1"), 4).await;
    assert_eq!(proxy.metric("envoy_cluster_upstream_cx_total").await, 2.0);
}
