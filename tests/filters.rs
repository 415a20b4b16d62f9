//! Filters that decide by other services or by counts: what the caller gets, what the log says, what the metrics count.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::{Arc, Mutex};

use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{self, Connection, Message};
use skiff_tests::network::Network;
use skiff_tests::skiff::{Skiff, command};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const BOOTSTRAP: &str = r#"
node: {id: policies, cluster: policies}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
static_resources:
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.2, port_value: 8080}}}}]}]
  - name: authz
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: authz
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.3, port_value: 8080}}}}]}]
  listeners:
  - name: authz
    address: {socket_address: {address: 127.0.0.1, port_value: 9001}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: authz
          access_log: &log
            - name: stdout
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
                log_format: {text_format_source: {inline_string: "%REQ(X-REQUEST-ID)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %ROUTE_NAME%\n"}}
          http_filters:
          - name: authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              clear_route_cache: true
              with_request_body: {max_request_bytes: 8, allow_partial_message: true}
              http_service:
                server_uri: {uri: "http://authz", cluster: authz, timeout: 5s}
                authorization_response:
                  allowed_upstream_headers: {patterns: [{exact: x-user}]}
                  allowed_client_headers: {patterns: [{exact: x-why}]}
          - &router
            name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - name: open
                match: {prefix: /open}
                route: {cluster: app}
                typed_per_filter_config:
                  authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    disabled: true
              - name: other-name
                match: {prefix: /other}
                route: {cluster: app}
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    disabled: true
              - name: known-user
                match: {prefix: /, headers: [{name: x-user, string_match: {exact: alice}}]}
                route: {cluster: app}
              - name: anybody
                match: {prefix: /}
                route: {cluster: app}
  - name: limit
    address: {socket_address: {address: 127.0.0.1, port_value: 9002}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: limit
          access_log: *log
          http_filters:
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: limit
              token_bucket: {max_tokens: 3, fill_interval: 3600s}
              filter_enabled: {default_value: {numerator: 100}}
              filter_enforced: {default_value: {numerator: 100}}
              enable_x_ratelimit_headers: DRAFT_VERSION_03
              response_headers_to_add: [{header: {key: x-limited, value: "%REQ(:path)%"}}]
              descriptors:
              - entries: [{key: user, value: bob}]
                token_bucket: {max_tokens: 1, fill_interval: 3600s}
              rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}]
          - *router
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - name: free
                match: {prefix: /free}
                route: {cluster: app}
                typed_per_filter_config:
                  envoy.filters.http.local_ratelimit:
                    "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
                    disabled: true
              - name: limited
                match: {prefix: /}
                route: {cluster: app}
"#;

/// A proxy, its application and an authorisation service that decides by the path.
struct Scene {
    network: Network,
    proxy: Skiff,
    app: App,
    asked: Arc<Mutex<Vec<Message>>>,
    service: JoinSet<()>,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn open() -> Self {
        let (network, folder) = (Network::claim(), tempfile::tempdir().unwrap());
        let path = folder.path().join("bootstrap.yaml");
        std::fs::write(&path, network.localise(BOOTSTRAP)).unwrap();
        let app = App::start(network.at(2, 8080), Speaks::Http);
        let (asked, mut service) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
        let listener = TcpListener::bind(network.at(3, 8080)).await.unwrap();
        service.spawn(decide(listener, Arc::clone(&asked)));
        let mut command = command(&["proxy", "-c", path.to_str().unwrap()]);
        command.env("SKIFF_WORKERS", "1");
        let proxy = Skiff::spawn(command, network.at(1, 15000));
        proxy.ready().await;
        Self { network, proxy, app, asked, service, _folder: folder }
    }

    /// Sends a request to this port; the answer, and what the log says after the request id.
    async fn ask(&self, port: u16, method: &str, path: &str, id: &str, headers: &str, body: &str) -> (http::Answer, String) {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: h\r\nx-request-id: {id}\r\ncontent-length: {length}\r\n");
        let answer = http::exchange(self.network.at(1, port), &format!("{head}{headers}\r\n{body}")).await;
        let line = self.proxy.stdout.line_with(id).await;
        (answer, line.split_once(' ').unwrap().1.to_owned())
    }

    fn last_asked(&self) -> Message {
        self.asked.lock().unwrap().last().cloned().expect("a check")
    }
}

async fn decide(listener: TcpListener, asked: Arc<Mutex<Vec<Message>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut connection = Connection::over(stream);
        while let Ok(Some(mut request)) = connection.head().await {
            connection.body(&mut request, false).await.unwrap();
            let answer = match request.second_word() {
                path if path.contains("deny") => "401 no\r\nx-why: policy\r\nx-secret: 1\r\ncontent-length: 3\r\n\r\nno!",
                path if path.contains("broken") => "503 no\r\ncontent-length: 0\r\n\r\n",
                _ => "200 yes\r\nx-user: alice\r\ncontent-length: 0\r\n\r\n",
            };
            asked.lock().unwrap().push(request);
            connection.send(format!("HTTP/1.1 {answer}")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn another_service_decides_about_every_request() {
    let mut scene = Scene::open().await;
    // Allowed: the service's word replaces the caller's, and another route fits.
    let (answer, log) = scene.ask(9001, "POST", "/ok?q=1", "id-allowed", "x-user: mallory\r\n", "0123456789").await;
    assert_eq!((answer.status, log.as_str()), (200, "200 - via_upstream known-user"));
    assert_eq!(scene.app.last_request().header("x-user"), Some("alice"));
    assert_eq!(scene.app.last_request().text(), "0123456789");
    let asked = scene.last_asked();
    assert_eq!((asked.second_word(), asked.text().as_str()), ("/ok?q=1", "01234567"));
    assert_eq!((asked.header("x-envoy-auth-partial-body"), asked.header("x-user")), (Some("true"), None));

    // Refused: as the service says it, without what it keeps to itself.
    let (answer, log) = scene.ask(9001, "GET", "/deny", "id-denied", "", "").await;
    assert_eq!((answer.status, log.as_str()), (401, "401 UAEX ext_authz_denied anybody"));
    assert_eq!((answer.text().as_str(), answer.header("x-why"), answer.header("x-secret")), ("no!", Some("policy"), None));

    // No decision is a refusal.
    let (answer, log) = scene.ask(9001, "GET", "/broken", "id-broken", "", "").await;
    assert_eq!((answer.status, log.as_str()), (403, "403 UAEX ext_authz_error anybody"));

    // A route switches off the filter that it names, and no other one.
    let asked = scene.asked.lock().unwrap().len();
    let (answer, log) = scene.ask(9001, "GET", "/open/deny", "id-open", "", "").await;
    assert_eq!((answer.status, log.as_str()), (200, "200 - via_upstream open"));
    assert_eq!(scene.asked.lock().unwrap().len(), asked);
    let (answer, log) = scene.ask(9001, "GET", "/other/deny", "id-other", "", "").await;
    assert_eq!((answer.status, log.as_str()), (401, "401 UAEX ext_authz_denied other-name"));

    // All checks went over one connection, which the cluster's metrics count.
    let metrics = scene.proxy.metrics().await;
    let count = |what: &str| metrics.sum(&format!("envoy_http_ext_authz_{what}"), &[("http_conn_manager_prefix", "authz")]);
    assert_eq!(["ok", "denied", "error", "disabled"].map(count), [1.0, 2.0, 1.0, 0.0]);
    assert_eq!(metrics.sum("envoy_cluster_upstream_cx_total", &[("cluster_name", "authz")]), 1.0);
    scene.service.shutdown().await;
    let (answer, log) = scene.ask(9001, "GET", "/ok", "id-gone", "", "").await;
    assert_eq!((answer.status, log.as_str()), (403, "403 UAEX ext_authz_error anybody"));
    assert_eq!(scene.proxy.metrics().await.sum("envoy_cluster_upstream_cx_connect_fail", &[("cluster_name", "authz")]), 1.0);
}

#[tokio::test]
async fn a_bucket_limits_what_it_is_for() {
    let scene = Scene::open().await;
    let told = |answer: &http::Answer| {
        ["x-ratelimit-limit", "x-ratelimit-remaining"].map(|name| answer.header(name).map(str::to_owned).unwrap_or_default())
    };
    let (answer, log) = scene.ask(9002, "GET", "/a", "id-bob-1", "x-user: bob\r\n", "").await;
    assert_eq!((answer.status, log.as_str(), told(&answer)), (200, "200 - via_upstream limited", ["1", "0"].map(str::to_owned)));
    let (answer, log) = scene.ask(9002, "GET", "/b", "id-bob-2", "x-user: bob\r\n", "").await;
    assert_eq!((answer.status, log.as_str()), (429, "429 RL local_rate_limited limited"));
    assert_eq!((answer.text().as_str(), answer.header("x-limited")), ("local_rate_limited", Some("/b")));
    // Bob's first request took from the common bucket too, his second did not get there.
    for (id, status, left) in [("id-any-1", 200, "1"), ("id-any-2", 200, "0"), ("id-any-3", 429, "0")] {
        let (answer, _) = scene.ask(9002, "GET", "/c", id, "", "").await;
        assert_eq!((answer.status, told(&answer)), (status, ["3", left].map(str::to_owned)), "{id}");
    }
    let (answer, log) = scene.ask(9002, "GET", "/free", "id-free", "x-user: bob\r\n", "").await;
    assert_eq!((answer.status, log.as_str(), told(&answer)), (200, "200 - via_upstream free", [const { String::new() }; 2]));
    // What was refused never reached the application.
    assert_eq!(scene.app.requests().len(), 4);
    let metrics = scene.proxy.metrics().await;
    let count =
        |what: &str| metrics.sum(&format!("envoy_http_local_rate_limit_{what}"), &[("local_http_ratelimit_prefix", "limit")]);
    assert_eq!(["enabled", "ok", "rate_limited", "enforced"].map(count), [5.0, 3.0, 2.0, 2.0]);
}
