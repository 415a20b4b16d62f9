//! Tracing and logs of OpenTelemetry: what the caller gets, what the log says, what the metrics count, what a collector is sent.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::apps::{App, Speaks};
use skiff_tests::bootstrap::Bootstrap;
use skiff_tests::collector::{Collector, hex};
use skiff_tests::http::{exchange, get_request};
use skiff_tests::mesh::{DETAILS, Mesh, Running};
use skiff_tests::skiff::Skiff;
use skiff_tests::wait::eventually;

/// An egress and an ingress side with an application behind them, and a collector. `RANDOM` is the share of traces.
const BOOTSTRAP: &str = r#"
  clusters:
  - &cluster
    name: ingress
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: ingress
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.3, port_value: 9080}}}}]}]
  - name: app
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.4, port_value: 8080}}}}]}]
  - name: dead
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: dead
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.9, port_value: 9}}}}]}]
  - name: otel
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: otel
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.81, port_value: 4317}}}}]}]
  listeners:
  - name: egress
    address: {socket_address: {address: 127.0.0.2, port_value: 9080}}
    traffic_direction: OUTBOUND
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: egress
          access_log:
          - name: bad-ones
            filter: &bad
              extension_filter:
                name: cel
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter
                  expression: "response.code >= 400 || request.headers['x-log'] == 'yes'"
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {text_format_source: {inline_string: "bad %REQ(:PATH)% %RESPONSE_CODE% %CEL(request.url_path)% %TRACE_ID%\n"}}
          - name: all
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {text_format_source: {inline_string: "all %REQ(:PATH)% %RESPONSE_CODE% %TRACE_ID%\n"}}
          - name: otel
            filter: *bad
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig
              common_config: {log_name: lines, transport_api_version: V3, grpc_service: &otel {envoy_grpc: {cluster_name: otel}}}
              body: {string_value: "%REQ(:METHOD)% %RESPONSE_CODE%"}
              attributes: {values: [{key: path, value: {string_value: "%REQ(:PATH)%"}}]}
              resource_attributes: {values: [{key: team, value: {string_value: shop}}]}
          tracing:
            random_sampling: {value: RANDOM}
            spawn_upstream_span: SPAWN
            custom_tags:
            - {tag: env, literal: {value: lab}}
            - {tag: hdr, request_header: {name: x-id, default_value: none}}
            - {tag: empty, request_header: {name: x-none}}
            provider: &provider
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                grpc_service: *otel
                service_name: shop.bookinfo
          http_filters: &filters
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {path: /teapot}
                direct_response: {status: 418}
              - match: {prefix: /dead}
                route: {cluster: dead, retry_policy: {retry_on: connect-failure, num_retries: 1}}
              - match: {prefix: /plain}
                route: {cluster: ingress}
              - match: {prefix: /}
                route: {cluster: ingress}
                decorator: {operation: "reviews:9080/*"}
  - name: ingress
    address: {socket_address: {address: 127.0.0.3, port_value: 9080}}
    traffic_direction: INBOUND
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          tracing: {random_sampling: {value: 0}, provider: *provider}
          http_filters: *filters
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: app}
                decorator: {operation: "app.bookinfo:9080/*"}
"#;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

struct Scene {
    bootstrap: Bootstrap,
    skiff: Skiff,
    app: App,
}

impl Scene {
    async fn open(random: u32, spawn: bool) -> Self {
        let bootstrap = Bootstrap::new();
        let app = App::start(bootstrap.network.at(4, 8080), Speaks::Http);
        let text = BOOTSTRAP.replace("RANDOM", &random.to_string()).replace("SPAWN", &spawn.to_string());
        let skiff = bootstrap.run(&text).await;
        Self { bootstrap, skiff, app }
    }

    async fn collector(&self) -> Collector {
        Collector::start(self.bootstrap.network.at(81, 4317)).await
    }

    /// GETs a path; the status.
    async fn get(&self, path: &str, headers: &str) -> u16 {
        exchange(self.bootstrap.network.at(2, 9080), &get_request("reviews:9080", path, headers)).await.status
    }

    /// Waits for a counter.
    async fn counted(&self, name: &str, value: f64) {
        eventually(name, async || (self.skiff.metrics().await.sum(name, &[]) == value).then_some(())).await;
    }

    async fn count(&self, name: &str) -> f64 {
        self.skiff.metrics().await.sum(name, &[])
    }
}

#[tokio::test]
async fn a_request_is_one_trace_through_all_proxies() {
    let scene = Scene::open(100, false).await;
    let collector = scene.collector().await;
    assert_eq!(scene.get("/reviews?x=1", "x-id: 7\r\nuser-agent: test\r\n").await, 200);
    let mut spans = collector.spans(2).await;
    spans.sort_by_key(|span| span.parent().len());
    let [client, server] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((client.parent(), server.parent()), (String::new(), client.id()));
    assert_eq!((client.trace().len(), server.trace()), (32, client.trace()));
    // The name of the caller's route is the call's on both sides; SPAN_KIND_CLIENT is 3, SPAN_KIND_SERVER 2.
    assert_eq!((&*client.span.name, client.span.kind), ("reviews:9080/*", 3));
    assert_eq!((&*server.span.name, server.span.kind), ("reviews:9080/*", 2));
    // Sampled, and whether the parent is in another process.
    assert_eq!((client.span.flags, server.span.flags), (0x101, 0x301));
    assert!(client.span.start_time_unix_nano <= server.span.start_time_unix_nano);
    assert!(client.span.end_time_unix_nano > client.span.start_time_unix_nano);
    assert_eq!(client.resource["service.name"], "shop.bookinfo");
    for (name, value) in [
        ("component", "proxy"),
        ("http.method", "GET"),
        ("http.url", "http://reviews:9080/reviews?x=1"),
        ("http.protocol", "HTTP/1.1"),
        ("http.status_code", "200"),
        ("request_size", "0"),
        ("response_flags", "-"),
        ("upstream_cluster", "ingress"),
        ("upstream_cluster.name", "ingress"),
        ("user_agent", "test"),
        ("downstream_cluster", "-"),
        ("env", "lab"),
        ("hdr", "7"),
    ] {
        assert_eq!(client.tag(name), value, "{name} of {:?}", client.tags);
    }
    assert!(!client.tags.contains_key("empty") && !client.tags.contains_key("error"), "{:?}", client.tags);
    assert_eq!((server.tag("upstream_cluster"), server.tag("env")), ("app", "-"));
    assert_eq!(server.tag("guid:x-request-id"), client.tag("guid:x-request-id"));
    assert_eq!(client.tag("guid:x-request-id").as_bytes()[14], b'9', "the decision is told in the id");
    // The application can go on with the trace, and sees nothing that is between the proxies.
    let request = scene.app.last_request();
    let told = format!("00-{}-{}-01", server.trace(), server.id());
    assert_eq!(request.header("traceparent"), Some(&*told));
    assert_eq!((request.header("tracestate"), request.header("x-envoy-decorator-operation")), (None, None));
    assert_eq!(scene.skiff.stdout.line_with("all ").await, format!("all /reviews?x=1 200 {}", client.trace()));
    scene.counted("skiff_trace_spans_exported_total", 2.0).await;
    assert_eq!(scene.count("skiff_trace_spans_dropped_total").await, 0.0);
}

#[tokio::test]
async fn attempts_upstream_may_have_spans_of_their_own() {
    let scene = Scene::open(100, true).await;
    let collector = scene.collector().await;
    let answer = exchange(scene.bootstrap.network.at(2, 9080), &get_request("reviews:9080", "/plain", "")).await;
    assert_eq!((answer.status, answer.header("x-envoy-decorator-operation")), (200, None));
    let spans = collector.spans(3).await;
    let child_of = |parent: &str| spans.iter().find(|span| span.parent() == parent).unwrap_or_else(|| panic!("{spans:?}"));
    let request = child_of("");
    let attempt = child_of(&request.id());
    let server = child_of(&attempt.id());
    // Where the caller's route has no name for the call, the callee's is told in the response, and stays between the proxies.
    assert_eq!((&*request.span.name, &*server.span.name), ("app.bookinfo:9080/*", "app.bookinfo:9080/*"));
    assert_eq!(attempt.span.name, "router ingress egress");
    assert_eq!((request.span.kind, attempt.span.kind, server.span.kind), (2, 3, 2));
    assert_eq!((attempt.tag("http.status_code"), attempt.tag("upstream_cluster")), ("200", "ingress"));
    assert_eq!(attempt.tag("upstream_address"), scene.bootstrap.network.at(3, 9080).to_string());
}

#[tokio::test]
async fn attempts_that_fail_say_why() {
    let scene = Scene::open(100, true).await;
    let collector = scene.collector().await;
    assert_eq!(scene.get("/dead", "").await, 503);
    let spans = collector.spans(3).await;
    let (mut attempts, request): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.span.name == "router dead egress");
    attempts.sort_by_key(|span| span.span.start_time_unix_nano);
    assert_eq!((request[0].tag("response_flags"), request[0].tag("http.status_code")), ("URX,UF", "503"));
    for (attempt, retries) in attempts.iter().zip(["-", "1"]) {
        assert_eq!(attempt.parent(), request[0].id());
        assert_eq!(attempt.tag("retry.count"), retries);
        let said = ["error", "error.reason", "http.protocol", "http.status_code", "response_flags"].map(|name| attempt.tag(name));
        assert_eq!(said, ["true", "remote connection failure", "-", "0", "UF"]);
    }
    assert!(scene.skiff.stdout.line_with("bad /dead").await.starts_with("bad /dead 503 /dead "));
    scene.counted("skiff_trace_spans_exported_total", 3.0).await;
}

#[tokio::test]
async fn a_caller_decides_with_its_own_span() {
    let scene = Scene::open(0, false).await;
    let collector = scene.collector().await;
    let header = |flags: &str| format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: vendor=1\r\n");
    assert_eq!(scene.get("/unsampled", &header("00")).await, 200);
    let request = scene.app.last_request();
    let parent = request.header("traceparent").unwrap().to_owned();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00") && !parent.contains(PARENT), "{parent}");
    assert_eq!(scene.get("/nobody-asked", "").await, 200);
    assert!(scene.app.last_request().header("traceparent").unwrap().ends_with("-00"));
    // What cannot be read is nobody's parent, and stays.
    assert_eq!(scene.get("/unreadable", "traceparent: nonsense\r\n").await, 200);
    assert_eq!(scene.app.last_request().header("traceparent"), Some("nonsense"));
    assert_eq!(scene.get("/sampled", &header("01")).await, 200);
    let spans = collector.spans(2).await;
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert!(spans.iter().all(|span| span.trace() == TRACE && span.span.trace_state == "vendor=1"));
    assert!(spans.iter().any(|span| span.parent() == PARENT));
    assert!(spans.iter().all(|span| span.tag("http.url").ends_with("/sampled")), "{spans:?}");
    assert_eq!(scene.app.last_request().header("tracestate"), Some("vendor=1"));
    scene.counted("skiff_trace_spans_exported_total", 2.0).await;
}

#[tokio::test]
async fn without_a_collector_only_spans_are_lost() {
    let scene = Scene::open(100, false).await;
    for path in ["/a", "/b"] {
        assert_eq!(scene.get(path, "x-log: yes\r\n").await, 200);
        assert!(scene.skiff.stdout.line_with(&format!("all {path} ")).await.starts_with(&format!("all {path} 200 ")));
    }
    scene.counted("skiff_trace_spans_dropped_total", 4.0).await;
    scene.counted("skiff_otel_logs_dropped_total", 2.0).await;
    assert_eq!(scene.count("skiff_trace_spans_exported_total").await, 0.0);
    // It comes back, and so do spans.
    let collector = scene.collector().await;
    assert_eq!(scene.get("/c", "").await, 200);
    let spans = collector.spans(2).await;
    assert!(spans.iter().all(|span| span.tag("http.url").ends_with("/c")), "{spans:?}");
}

#[tokio::test]
async fn an_expression_chooses_lines_and_records() {
    let scene = Scene::open(0, false).await;
    let collector = scene.collector().await;
    assert_eq!(scene.get("/good", "").await, 200);
    assert_eq!(scene.get("/teapot?x", "").await, 418);
    assert_eq!(scene.get("/asked", "x-log: yes\r\n").await, 200);
    let line = scene.skiff.stdout.line_with("bad /asked").await;
    assert!(line.starts_with("bad /asked 200 /asked "), "{line}");
    let teapot = scene.skiff.stdout.line_with("bad /teapot").await;
    assert!(teapot.starts_with("bad /teapot?x 418 /teapot "), "{teapot}");
    assert_eq!((scene.skiff.stdout.count("all /good"), scene.skiff.stdout.count("bad /good")), (1, 0));
    let logs = collector.logs(2).await;
    let told: Vec<_> = logs.iter().map(|log| (&*log.body, &*log.attributes["path"])).collect();
    assert_eq!(told, [("GET 418", "/teapot?x"), ("GET 200", "/asked")]);
    let resource: Vec<_> = logs[0].resource.iter().map(|(key, value)| (&**key, &**value)).collect();
    let labels = [("cluster_name", ""), ("log_name", "lines"), ("node_name", ""), ("team", "shop"), ("zone_name", "")];
    assert_eq!(resource, labels);
    assert!(line.ends_with(&hex(&logs[1].record.trace_id)), "{line}");
    assert!(logs[0].record.time_unix_nano <= logs[1].record.time_unix_nano);
    scene.counted("skiff_otel_logs_exported_total", 2.0).await;
}

const MESH: &str = "
trustDomain: cluster.local
rootNamespace: istio-system
extensionProviders:
- name: text
  envoyFileAccessLog: {logFormat: {text: \"%REQ(X-REQUEST-ID)% %RESPONSE_CODE% %TRACE_ID%\"}}
- name: records
  envoyOtelAls: {service: otel.bookinfo.svc.cluster.local, port: 4317, logFormat: {text: \"%RESPONSE_CODE%\", labels: {id: \"%REQ(X-REQUEST-ID)%\"}}}
- name: otel
  opentelemetry: {service: otel.bookinfo.svc.cluster.local, port: 4317}
- name: zipkin
  zipkin: {service: zipkin.bookinfo.svc.cluster.local, port: 9411, headers: [{name: x-team, value: shop}]}
defaultProviders: {tracing: [otel]}
";

const TELEMETRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: otel, namespace: bookinfo}
spec:
  hosts: [otel.bookinfo.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 4317, name: grpc-otlp, protocol: GRPC}]
  endpoints: [{address: 127.0.0.81}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: zipkin, namespace: bookinfo}
spec:
  hosts: [zipkin.bookinfo.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 9411, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.82}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  accessLogging:
  - providers: [{name: text}]
  - providers: [{name: records}]
    filter: {expression: \"response.code >= 400\"}
  tracing:
  - randomSamplingPercentage: 100
    customTags: {tenant: {header: {name: x-tenant, defaultValue: nobody}}}
";

/// Two sidecars that are told so in Istio's words.
async fn mesh(telemetry: &str) -> Running {
    let mesh = Mesh::prepare().await;
    mesh.write("mesh.yaml", MESH);
    mesh.write("telemetry.yaml", telemetry);
    mesh.run().await
}

#[tokio::test]
async fn a_call_through_two_sidecars_is_one_trace() {
    let running = mesh(TELEMETRY).await;
    let collector = Collector::start(running.mesh.network.at(81, 4317)).await;
    let ask = async |path: &str, id: &str| {
        let headers = format!("x-request-id: {id}\r\nx-tenant: acme\r\n");
        exchange(running.egress(), &get_request(DETAILS, path, &headers)).await
    };
    // A decision for 9998 of 10,000 that are all of them.
    const ID: &str = "0000270e-0000-4000-8000-000000000001";
    assert_eq!(ask("/details/0", ID).await.status, 200);
    let traced = ID.replace("-4000-", "-9000-");
    let mut spans = collector.spans(2).await;
    spans.sort_by_key(|span| span.parent().len());
    let [client, server] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((client.parent(), server.parent(), server.trace()), (String::new(), client.id(), client.trace()));
    let name = "details.bookinfo.svc.cluster.local:9080/*";
    assert_eq!((&*client.span.name, &*server.span.name), (name, name));
    assert_eq!((client.span.kind, server.span.kind), (3, 2));
    assert_eq!((&*client.resource["service.name"], &*server.resource["service.name"]), ("ratings.bookinfo", "details.bookinfo"));
    for (span, cluster, node, service) in [
        (client, format!("outbound|9080||{}", name.split_once(':').unwrap().0), "ratings-v1", "ratings"),
        (server, "inbound|9080||".to_owned(), "details-v1", "details"),
    ] {
        assert_eq!((span.tag("upstream_cluster"), span.tag("guid:x-request-id")), (&*cluster, &*traced));
        assert!(span.tag("node_id").starts_with("sidecar~") && span.tag("node_id").contains(node), "{:?}", span.tags);
        assert_eq!((span.tag("istio.canonical_service"), span.tag("istio.namespace")), (service, "bookinfo"));
        assert_eq!((span.tag("istio.mesh_id"), span.tag("tenant")), ("cluster.local", "acme"));
    }
    let parent = running.app.last_request().header("traceparent").unwrap().to_owned();
    assert_eq!(parent, format!("00-{}-{}-01", server.trace(), server.id()));
    for sidecar in [&running.ratings, &running.details] {
        let line = sidecar.stdout.line_with(&traced).await;
        assert_eq!(line, format!("{traced} 200 {}", client.trace()));
        let exported = async || (sidecar.metrics().await.sum("skiff_trace_spans_exported_total", &[]) == 1.0).then_some(());
        eventually("the span is counted", exported).await;
    }
    // Only what failed is a record, with the trace that it belongs to.
    const LOST: &str = "00000001-0000-4000-8000-000000000002";
    let answer =
        exchange(running.egress(), &get_request("reviews.bookinfo:9080", "/", &format!("x-request-id: {LOST}\r\n"))).await;
    assert_eq!(answer.status, 503);
    let logs = collector.logs(1).await;
    let [record] = &logs[..] else { panic!("{logs:?}") };
    assert_eq!((&*record.body, &*record.attributes["id"]), ("503", &*LOST.replace("-4000-", "-9000-")));
    let failed = collector.spans(3).await.pop().unwrap();
    assert_eq!((failed.trace(), failed.id()), (hex(&record.record.trace_id), hex(&record.record.span_id)));
    assert_eq!((failed.tag("http.status_code"), failed.tag("response_flags"), failed.tag("error")), ("503", "UH", "true"));
    assert_eq!(failed.span.status.as_ref().map(|status| status.code), Some(2));
    // What is in flight at the end is sent.
    assert_eq!(ask("/details/0", "00000001-0000-4000-8000-000000000003").await.status, 200);
    let Running { mut ratings, details: _details, .. } = running;
    ratings.terminate().await;
    assert_eq!(ratings.exit_code().await, 0);
    assert!(collector.spans(4).await.iter().any(|span| span.tag("guid:x-request-id").ends_with("3") && span.span.kind == 3));
}

#[tokio::test]
async fn zipkin_gets_json_and_applications_get_b3() {
    let telemetry =
        TELEMETRY.replace("  - randomSamplingPercentage", "  - providers: [{name: zipkin}]\n    randomSamplingPercentage");
    let running = mesh(&telemetry).await;
    let collector = App::start(running.mesh.network.at(82, 9411), Speaks::Http);
    assert_eq!(exchange(running.egress(), &get_request(DETAILS, "/details/0", "")).await.status, 200);
    let sent = eventually("both sidecars send their span", async || {
        let sent = collector.requests();
        (sent.len() == 2).then_some(sent)
    });
    let mut spans = Vec::new();
    for message in sent.await {
        assert_eq!((message.start.as_str(), message.header("x-team")), ("POST /api/v2/spans HTTP/1.1", Some("shop")));
        assert_eq!(message.header("content-type"), Some("application/json"));
        spans.extend(serde_json::from_slice::<Vec<serde_json::Value>>(&message.body).unwrap());
    }
    spans.sort_by_key(|span| span["kind"].to_string());
    let [client, server] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((client["kind"].as_str(), server["kind"].as_str()), (Some("CLIENT"), Some("SERVER")));
    assert_eq!((&client["parentId"], &server["parentId"]), (&serde_json::Value::Null, &client["id"]));
    assert_eq!((client["traceId"].as_str().unwrap().len(), &server["traceId"]), (32, &client["traceId"]));
    assert_eq!(server["name"], "details.bookinfo.svc.cluster.local:9080/*");
    assert_eq!(server["localEndpoint"]["serviceName"], "details.bookinfo");
    assert_eq!((&server["tags"]["http.status_code"], &server["tags"]["tenant"]), (&"200".into(), &"nobody".into()));
    assert!(client["timestamp"].as_u64().unwrap() > 1_000_000_000_000_000 && client["duration"].as_u64().unwrap() > 0);
    let request = running.app.last_request();
    let told = |name: &str| request.header(name).map(serde_json::Value::from);
    assert_eq!((told("x-b3-traceid"), told("x-b3-spanid")), (Some(server["traceId"].clone()), Some(server["id"].clone())));
    assert_eq!((told("x-b3-parentspanid"), told("x-b3-sampled")), (Some(client["id"].clone()), Some("1".into())));
    assert_eq!(request.header("traceparent"), None);
    let line = running.ratings.stdout.line_with(client["traceId"].as_str().unwrap()).await;
    assert!(line.contains(" 200 "), "{line}");
    let exported = async || (running.ratings.metrics().await.sum("skiff_trace_spans_exported_total", &[]) == 1.0).then_some(());
    eventually("the span is counted", exported).await;
}
