//! Telemetry resources: as istiod sends them, and how they are merged.

use std::path::PathBuf;
use std::sync::Arc;

use prost::{Message, Name};
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proxy::config::{
    self, AccessLog, AccessLogFilter, AccessLogSink, CustomTag, Fraction, HttpConnectionManager, NetworkFilter, TagValue,
    Tracing, TracingProvider,
};

use super::super::{Documents, Translation, translate};
use super::{files, translated, workload};
use crate::translate::envoy;
use crate::xds::recorded;
use crate::xds::{Protocol, Response};

fn captured<T: Message + Name + Default>(scenario: &str) -> Vec<T> {
    let responses = recorded::responses(scenario, Protocol::StateOfTheWorld).into_iter().filter_map(|response| match response {
        Response::StateOfTheWorld(world) if world.type_url == T::type_url() => Some(world.resources),
        _ => None,
    });
    responses.flatten().map(|any| T::decode(any.value.as_slice()).unwrap()).collect()
}

fn managers(listener: &config::Listener) -> Vec<&HttpConnectionManager> {
    let chains = listener.filter_chains.iter().filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(&**manager),
        NetworkFilter::Tcp(_) => None,
    });
    chains.collect()
}

/// istiod takes the canonical names from the labels of the WorkloadEntry alone, which has none here; ours are the workload's own.
fn with_own_names(tracing: &Tracing) -> Tracing {
    let own = |tag: &CustomTag| match tag.name.as_str() {
        "istio.canonical_service" => CustomTag { value: TagValue::Literal("ratings".to_owned()), ..tag.clone() },
        "istio.canonical_revision" => CustomTag { value: TagValue::Literal("v1".to_owned()), ..tag.clone() },
        _ => tag.clone(),
    };
    Tracing { custom_tags: tracing.custom_tags.iter().map(own).collect(), ..tracing.clone() }
}

#[test]
fn logs_and_spans_are_those_that_istiod_sends() {
    let snapshot = translated("11-telemetry").snapshot;
    let mut seen = 0;
    for message in captured::<Listener>("11-telemetry") {
        let theirs = envoy::listener(&message).unwrap();
        let ours = &snapshot.listeners[&theirs.name.replace("0.0.0.0_", "127.0.0.21_")];
        assert_eq!(ours.access_log, theirs.access_log, "{}", theirs.name);
        let (ours, theirs) = (managers(ours), managers(&theirs));
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            assert_eq!(ours.access_log, theirs.access_log);
            assert_eq!(ours.stats, theirs.stats);
            assert_eq!(ours.tracing.as_deref().cloned(), theirs.tracing.as_deref().map(with_own_names));
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
    // Unlike istiod's, our collector can be reached whatever the Sidecar imports; a provider that nobody uses cannot.
    assert!(snapshot.clusters.contains_key("outbound|4317||otel.bookinfo.svc.cluster.local"));
    assert!(!snapshot.clusters.contains_key("outbound|9411||zipkin.bookinfo.svc.cluster.local"));
}

#[test]
fn spans_are_called_as_istiod_calls_them() {
    for scenario in ["01-default", "06-virtualservice", "11-telemetry"] {
        let snapshot = translated(scenario).snapshot;
        for message in captured::<RouteConfiguration>(scenario) {
            let theirs = envoy::route_configuration(&message).unwrap();
            let ours = &snapshot.routes[&theirs.name];
            let names = |config: &config::RouteConfiguration| {
                let hosts = config.virtual_hosts.iter().map(|entry| entry.host().get());
                let named = |host: Arc<config::VirtualHost>| {
                    host.routes.iter().map(|route| (route.name.clone(), route.decorator.clone())).collect::<Vec<_>>()
                };
                hosts.flat_map(named).collect::<Vec<_>>()
            };
            assert_eq!(names(ours), names(&theirs), "{scenario}");
        }
    }
}

/// The scenario with other Telemetry resources, and further lines of MeshConfig.
fn with(telemetry: &str, mesh: &str) -> Translation {
    let mut files = files("11-telemetry");
    for (file, text) in &mut files {
        match file.to_str().unwrap() {
            "telemetry.yaml" => {
                let entries = text.split("---").filter(|document| document.contains("ServiceEntry"));
                *text = entries.chain([telemetry]).collect::<Vec<_>>().join("---\n");
            }
            "mesh.yaml" => {
                *text = text.replace("defaultProviders:\n  metrics: [prometheus]\n", "");
                text.push_str(mesh);
            }
            _ => {}
        }
    }
    translate(&Documents::parse(&files, "default").unwrap(), &workload()).unwrap()
}

fn resource(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Inbound, outbound.
fn sides(translation: &Translation) -> [&HttpConnectionManager; 2] {
    ["127.0.0.21_9080", "127.0.0.2_9080"].map(|name| managers(&translation.snapshot.listeners[name])[0])
}

fn sinks(logs: &[AccessLog]) -> Vec<&'static str> {
    let name = |log: &AccessLog| match &log.sink {
        AccessLogSink::Stdout => "stdout",
        AccessLogSink::Stderr => "stderr",
        AccessLogSink::OpenTelemetry(_) => "otel",
        AccessLogSink::File(_) => "file",
    };
    logs.iter().map(name).collect()
}

#[test]
fn logs_are_merged_from_mesh_to_workload() {
    let logs = |telemetry: &str, mesh: &str| {
        let translation = with(telemetry, mesh);
        sides(&translation).map(|manager| sinks(&manager.access_log).join(","))
    };
    let root = resource("mesh", "istio-system", "{accessLogging: [{providers: [{name: json-log}, {name: text-log}]}]}");
    // Where nothing is said the mesh's own log is written; a default provider takes its place.
    assert_eq!(logs("", ""), ["stdout", "stdout"]);
    assert_eq!(logs("", "defaultProviders: {accessLogging: [otel-log]}\n"), ["otel", "otel"]);
    assert_eq!(logs(&root, ""), ["stdout,stderr", "stdout,stderr"]);
    let side = |mode: &str| {
        resource("own", "bookinfo", &format!("{{accessLogging: [{{providers: [{{name: otel-log}}], match: {{mode: {mode}}}}}]}}"))
    };
    assert_eq!(logs(&format!("{root}{}", side("SERVER")), ""), ["otel", "stdout,stderr"]);
    assert_eq!(logs(&format!("{root}{}", side("CLIENT")), ""), ["stdout,stderr", "otel"]);
    // An entry without providers means those of the level above; other namespaces and other labels do not count.
    let off = resource("own", "bookinfo", "{accessLogging: [{disabled: true, match: {mode: SERVER}}]}");
    assert_eq!(logs(&format!("{root}{off}"), ""), ["", "stdout,stderr"]);
    let others = resource("x", "default", "{accessLogging: [{disabled: true}]}")
        + &resource("y", "bookinfo", "{selector: {matchLabels: {app: other}}, accessLogging: [{disabled: true}]}");
    assert_eq!(logs(&format!("{root}{others}"), ""), ["stdout,stderr", "stdout,stderr"]);
    let selected = resource("z", "bookinfo", "{selector: {matchLabels: {app: ratings}}, accessLogging: [{disabled: true}]}");
    assert_eq!(logs(&format!("{root}{others}{selected}"), ""), ["", ""]);
    // The provider that every mesh has.
    assert_eq!(logs(&resource("m", "istio-system", "{accessLogging: [{providers: [{name: envoy}]}]}"), ""), ["stdout", "stdout"]);
}

#[test]
fn a_log_has_the_filter_of_its_provider() {
    let spec = "{accessLogging: [{providers: [{name: json-log}], filter: {expression: response.code > 1}}, {providers: [{name: text-log}]}]}";
    let translation = with(&resource("mesh", "istio-system", spec), "");
    let [inbound, _] = sides(&translation);
    let cel = AccessLogFilter::Cel("response.code > 1".to_owned());
    assert_eq!(inbound.access_log.iter().map(|log| log.filter.clone()).collect::<Vec<_>>(), [Some(cel.clone()), None]);
    let unmatched = AccessLogFilter::ResponseFlags(vec!["NR".to_owned()]);
    let listener = &translation.snapshot.listeners["127.0.0.21_9080"].access_log;
    let both = AccessLogFilter::And(vec![unmatched.clone(), cel]);
    assert_eq!(listener.iter().map(|log| log.filter.clone()).collect::<Vec<_>>(), [Some(both), Some(unmatched)]);
}

#[test]
fn spans_are_merged_from_mesh_to_workload() {
    let tracing = |telemetry: &str, mesh: &str| {
        let translation = with(telemetry, mesh);
        sides(&translation).map(|manager| manager.tracing.clone())
    };
    let share = |tracing: &Option<Arc<Tracing>>| tracing.as_ref().map(|tracing| tracing.random_sampling.millionths());
    assert_eq!(tracing("", ""), [None, None]);
    // One per cent unless somebody says otherwise, the nearest last.
    let mesh = "defaultProviders: {tracing: [otel-trace]}\n";
    assert_eq!(tracing("", mesh).each_ref().map(share), [Some(10_000); 2]);
    let root =
        resource("mesh", "istio-system", "{tracing: [{randomSamplingPercentage: 50, customTags: {a: {literal: {value: b}}}}]}");
    let own = resource(
        "own",
        "bookinfo",
        "{tracing: [{match: {mode: SERVER}, randomSamplingPercentage: 0.5, enableIstioTags: false}]}",
    );
    let [server, client] = tracing(&format!("{root}{own}"), mesh);
    assert_eq!([&server, &client].map(share), [Some(5_000), Some(500_000)]);
    let tag = CustomTag { name: "a".to_owned(), value: TagValue::Literal("b".to_owned()) };
    assert_eq!(server.unwrap().custom_tags, std::slice::from_ref(&tag));
    assert!(client.unwrap().custom_tags.len() == 10);
    let off = resource("own", "bookinfo", "{tracing: [{match: {mode: CLIENT}, disableSpanReporting: true}]}");
    assert!(matches!(tracing(&off, mesh), [Some(_), None]));
    let zipkin = "{tracing: [{providers: [{name: zipkin}], useRequestIdForTraceSampling: false}]}";
    let [server, _] = tracing(&resource("own", "bookinfo", zipkin), mesh).map(Option::unwrap);
    assert!(!server.use_request_id);
    let TracingProvider::Zipkin(zipkin) = &server.provider else { panic!("{server:?}") };
    assert_eq!((zipkin.service.http_path.as_deref(), zipkin.trace_id_128bit), (Some("/api/v2/spans"), true));
    assert_eq!(zipkin.service.authority, "zipkin.bookinfo.svc.cluster.local");
    let config = "defaultProviders: {tracing: [otel-trace]}\n";
    let config = with("", &config.replace("otel-trace]}", "otel-trace]}\nenableTracing: true"));
    assert_eq!(sides(&config)[0].tracing.as_ref().unwrap().random_sampling, Fraction::from_millionths(10_000));
}

#[test]
fn metrics_are_merged_from_mesh_to_workload() {
    let stats = |telemetry: &str| {
        let translation = with(telemetry, "");
        sides(&translation).map(|manager| manager.stats.clone())
    };
    assert!(stats("").iter().all(|stats| stats.as_ref().is_some_and(|stats| stats.overrides.is_empty())));
    let off = resource("m", "istio-system", "{metrics: [{overrides: [{match: {mode: SERVER}, disabled: true}]}]}");
    assert!(matches!(stats(&off), [None, Some(_)]));
    let one = resource(
        "own",
        "bookinfo",
        "{metrics: [{reportingInterval: 10s, overrides: [{match: {metric: REQUEST_SIZE, mode: SERVER}, disabled: true}, {match: {metric: ALL_METRICS, mode: CLIENT}, tagOverrides: {a: {value: \"'b'\"}}}]}]}",
    );
    let [server, client] = stats(&format!("{off}{one}")).map(Option::unwrap);
    let dropped: Vec<_> =
        server.overrides.iter().map(|change| (change.metric.map(config::IstioMetric::name), change.drop)).collect();
    assert_eq!(dropped, [(Some("istio_request_bytes"), true)]);
    assert_eq!(client.overrides.len(), 10);
    let constant = config::Dimension::Constant("b".to_owned());
    assert!(client.overrides.iter().all(|change| change.dimensions.get("a") == Some(&constant) && !change.drop));
    assert_eq!(client.tcp_reporting_duration, Some(std::time::Duration::from_secs(10)));
    // Who has metrics elsewhere has none here.
    assert_eq!(stats(&resource("m", "istio-system", "{metrics: [{providers: [{name: stackdriver}]}]}")), [None, None]);
}

#[test]
fn what_cannot_be_served_is_said_by_name() {
    let warned = |telemetry: &str, mesh: &str, expected: &str| {
        let warnings = with(telemetry, mesh).warnings;
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{expected}: {warnings:?}");
    };
    let spec = "{metrics: [{overrides: [{match: {customMetric: my_metric}, disabled: true}]}]}";
    warned(&resource("m", "istio-system", spec), "", "spec.metrics[0].overrides[0]: metric \"my_metric\" is none of Istio's");
    let spec = "{metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {a: {value: size(request.path)}}}]}]}";
    warned(&resource("m", "istio-system", spec), "", "metric requests_total: dimensions[\"a\"]: expected a quoted text");
    let spec = "{accessLogging: [{providers: [{name: nobody}]}]}";
    warned(&resource("m", "istio-system", spec), "", "\"nobody\": MeshConfig has none that skiff can use");
    let spec = "{tracing: [{providers: [{name: json-log}]}]}";
    warned(&resource("m", "istio-system", spec), "", "\"json-log\": MeshConfig has none that skiff can use");
    warned("", "enableTracing: true\n", "enableTracing: without a tracing provider");
    let mut files = files("11-telemetry");
    files.retain(|(file, _)| file.as_os_str() != "telemetry.yaml");
    let mesh = files.iter_mut().find(|(file, _)| file.as_os_str() == "mesh.yaml").unwrap();
    mesh.1 = mesh.1.replace("metrics: [prometheus]", "tracing: [otel-trace]");
    let warnings = translate(&Documents::parse(&files, "default").unwrap(), &workload()).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("no ServiceEntry declares otel.bookinfo")), "{warnings:?}");
}

#[test]
fn mistakes_are_errors_of_their_field() {
    let refused = |spec: &str| {
        let text = resource("m", "istio-system", spec);
        let files = [(PathBuf::from("t.yaml"), text)];
        Documents::parse(&files, "default").unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (spec, expected) in [
        ("{targetRefs: [{kind: Gateway, name: x}]}", "spec.targetRefs: not supported by skiff"),
        ("{accessLogging: [{filter: {expression: response.cod > 1}}]}", "accessLogging[0].filter.expression: CEL expression"),
        ("{tracing: [{randomSamplingPercentage: 101}]}", "randomSamplingPercentage: 101: expected a percentage"),
        ("{tracing: [{customTags: {a: {literal: {value: b}, header: {name: c}}}}]}", "expected exactly one of"),
        ("{tracing: [{match: {mode: BOTH}}]}", "expected one of CLIENT_AND_SERVER, CLIENT, SERVER"),
        ("{metrics: [{overrides: [{match: {metric: REQUESTS}}]}]}", "expected one of ALL_METRICS"),
        ("{logging: []}", "spec.logging: unknown field"),
    ] {
        assert!(refused(spec).contains(expected), "{spec}: {}", refused(spec));
    }
}
