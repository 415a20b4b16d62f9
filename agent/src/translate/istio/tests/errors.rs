//! Every bad document is refused with one line that says where and why.

use std::path::PathBuf;

use super::super::{Documents, translate};
use super::{files, workload};

/// The errors of one file, as people see them.
fn errors(text: &str) -> Vec<String> {
    let file = [(PathBuf::from("policy.yaml"), text.to_owned())];
    let errors = Documents::parse(&file, "bookinfo").expect_err(text);
    errors.iter().map(ToString::to_string).collect()
}

fn document(kind: &str, spec: &str) -> String {
    let group = if kind.ends_with("Policy") || kind.ends_with("Authentication") { "security" } else { "networking" };
    format!("apiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n{spec}\n")
}

#[test]
fn bad_fields_are_named_with_file_line_and_path() {
    let table = [
        (
            "PeerAuthentication",
            "  mtls:\n    mode: STRIC",
            "policy.yaml:6: spec.mtls.mode: \"STRIC\": expected one of STRICT, PERMISSIVE, DISABLE, UNSET",
        ),
        ("PeerAuthentication", "  mtls: {mod: STRICT}", "policy.yaml:5: spec.mtls.mod: unknown field, expected one of mode"),
        (
            "PeerAuthentication",
            "  portLevelMtls: {70000: {mode: STRICT}}",
            "policy.yaml:5: spec.portLevelMtls.70000: \"70000\": expected a port from 1 to 65535",
        ),
        (
            "Sidecar",
            "  egress:\n  - hosts: [details]",
            "policy.yaml:6: spec.egress[0].hosts[0]: \"details\": expected namespace/host, such as ./* or */details",
        ),
        (
            "Sidecar",
            "  egress:\n  - {hosts: [\"./*\"], captureMode: IPTABLES}",
            "policy.yaml:6: spec.egress[0].captureMode: \"IPTABLES\": this sidecar works without iptables, expected NONE",
        ),
        (
            "Sidecar",
            "  ingress:\n  - port: {number: 0, protocol: HTTP, name: http}",
            "policy.yaml:6: spec.ingress[0].port.number: 0: expected a port from 1 to 65535",
        ),
        (
            "Sidecar",
            "  ingress:\n  - port: {number: 80, protocol: UDP}",
            "policy.yaml:6: spec.ingress[0].port.protocol: \"UDP\": expected one of HTTP, HTTP2, GRPC, GRPC-WEB, HTTP_PROXY, HTTPS, \
             TLS, TCP, MONGO, MYSQL, REDIS",
        ),
        (
            "Sidecar",
            "  ingress:\n  - port: {number: 80, protocol: HTTP}\n    defaultEndpoint: 10.0.0.1:80",
            "policy.yaml:7: spec.ingress[0].defaultEndpoint: \"10.0.0.1:80\": expected 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT or \
             unix:///path",
        ),
        (
            "Sidecar",
            "  ingress:\n  - port: {number: 80, protocol: HTTP}\n    tls: {mode: SIMPLE}",
            "policy.yaml:7: spec.ingress[0].tls: not supported by skiff",
        ),
        (
            "ServiceEntry",
            "  hosts: [\"a b\"]",
            "policy.yaml:5: spec.hosts[0]: \"a b\": expected a host such as details.bookinfo.svc.cluster.local, *.example.com or *",
        ),
        ("ServiceEntry", "  resolution: STATIC", "policy.yaml:5: spec.hosts: missing"),
        (
            "ServiceEntry",
            "  hosts: [a.b]\n  resolution: DYNAMIC_DNS",
            "policy.yaml:6: spec.resolution: \"DYNAMIC_DNS\": expected one of NONE, STATIC, DNS, DNS_ROUND_ROBIN",
        ),
        (
            "WorkloadEntry",
            "  address: 10.0.0.1\n  labels: {version: 1}",
            "policy.yaml:6: spec.labels.version: 1: expected a string",
        ),
        (
            "DestinationRule",
            "  host: a.b\n  trafficPolicy:\n    connectionPool: {tcp: {connectTimeout: 5}}",
            "policy.yaml:7: spec.trafficPolicy.connectionPool.tcp.connectTimeout: 5: expected a string",
        ),
        (
            "DestinationRule",
            "  host: a.b\n  trafficPolicy:\n    connectionPool: {tcp: {connectTimeout: 5x}}",
            "policy.yaml:7: spec.trafficPolicy.connectionPool.tcp.connectTimeout: \"5x\": expected a duration such as 1.5s, 100ms \
             or 1h",
        ),
        (
            "DestinationRule",
            "  host: a.b\n  trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}",
            "policy.yaml:6: spec.trafficPolicy.tls.credentialName: not supported by skiff",
        ),
        (
            "VirtualService",
            "  hosts: [a.b]\n  http:\n  - fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}",
            "policy.yaml:7: spec.http[0].fault.delay.percentage.value: 101: expected a percentage from 0 to 100",
        ),
        (
            "VirtualService",
            "  hosts: [a.b]\n  http:\n  - match: [{uri: {exact: /a, prefix: /b}}]",
            "policy.yaml:7: spec.http[0].match[0].uri: expected one of exact, prefix, regex, not several",
        ),
        (
            "VirtualService",
            "  hosts: [a.b]\n  http:\n  - delegate: {name: other}",
            "policy.yaml:7: spec.http[0].delegate: not supported by skiff",
        ),
        (
            "VirtualService",
            "  hosts: [a.b]\n  http:\n  - redirect: {redirectCode: 200}",
            "policy.yaml:7: spec.http[0].redirect.redirectCode: 200: expected one of 301, 302, 303, 307, 308",
        ),
        (
            "AuthorizationPolicy",
            "  action: AUTO",
            "policy.yaml:5: spec.action: \"AUTO\": expected one of ALLOW, DENY, AUDIT, CUSTOM",
        ),
        (
            "AuthorizationPolicy",
            "  rules:\n  - from: [{source: {ipBlocks: [10.0.0.0/33]}}]",
            "policy.yaml:6: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\": expected an address or a CIDR block",
        ),
        (
            "AuthorizationPolicy",
            "  rules:\n  - to: [{operation: {path: [/a]}}]",
            "policy.yaml:6: spec.rules[0].to[0].operation.path: unknown field, expected one of hosts, notHosts, ports, notPorts, \
             methods, notMethods, paths, notPaths",
        ),
        (
            "AuthorizationPolicy",
            "  rules:\n  - when: [{key: experimental.envoy.filters.a, values: [b]}]",
            "policy.yaml:6: spec.rules[0].when[0]: condition \"experimental.envoy.filters.a\": not supported by skiff",
        ),
    ];
    for (kind, spec, expected) in table {
        assert_eq!(errors(&document(kind, spec)), [expected], "{kind}\n{spec}");
    }
}

#[test]
fn kinds_that_guard_a_workload_are_refused_and_unknown_ones_are_errors() {
    assert_eq!(errors(&document("WasmPlugin", "  url: x")), ["policy.yaml:2: kind: \"WasmPlugin\": not supported by skiff"]);
    assert_eq!(
        errors(&document("PeerAuthentcation", "  {}")),
        ["policy.yaml:2: kind: \"PeerAuthentcation\": not a kind of Istio's"]
    );
    assert_eq!(errors("metadata: {name: x}"), ["policy.yaml:1: kind: missing"]);
    let old = document("Sidecar", "  {}").replace("/v1\n", "/v2\n");
    assert_eq!(
        errors(&old),
        [
            "policy.yaml:1: apiVersion: \"networking.istio.io/v2\": expected networking.istio.io/v1, networking.istio.io/v1beta1 or \
          networking.istio.io/v1alpha3"
        ]
    );
}

#[test]
fn every_document_is_looked_at_and_lines_count_from_the_start_of_the_file() {
    let bad = document("PeerAuthentication", "  mtls: {mode: ON}");
    let good = document("PeerAuthentication", "  mtls: {mode: STRICT}").replace("name: x", "name: y");
    let reason = "\"ON\": expected one of STRICT, PERMISSIVE, DISABLE, UNSET";
    assert_eq!(
        errors(&format!("{bad}---\n{good}---\n{}", bad.replace("name: x", "name: z"))),
        [format!("policy.yaml:5: spec.mtls.mode: {reason}"), format!("policy.yaml:17: spec.mtls.mode: {reason}")]
    );
    assert_eq!(errors("kind: Sidecar\na: ["), ["policy.yaml:2: unclosed bracket '['"]);
    assert_eq!(errors("a: 1\na: 2"), ["policy.yaml:2: duplicate mapping key: a"]);
    assert_eq!(
        errors(&format!("{good}---\n{good}")),
        ["policy.yaml:7: metadata.name: \"y\": a second resource of this kind and name in namespace bookinfo"]
    );
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let previous = format!("*a{}, ", level - 1).repeat(10);
        text.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
    }
    assert_eq!(errors(&text).len(), 1);
    assert_eq!(errors(&format!("a: {}", "[".repeat(10_000))).len(), 1);
}

#[test]
fn kinds_that_are_not_served_are_left_out_by_name() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec: {anything: 1}\n";
    let mut files = files("01-default");
    files.push((PathBuf::from("gateway.yaml"), gateway.to_owned()));
    let documents = Documents::parse(&files, "default").unwrap();
    let warnings = translate(&documents, &workload()).unwrap().warnings;
    assert_eq!(warnings, ["gateway.yaml:1: Gateway is not served by skiff and left out"]);
}

/// The errors of the base configuration with one more or another file.
fn translation_errors(name: &str, text: &str) -> Vec<String> {
    let mut files = files("01-default");
    files.retain(|(file, _)| file.as_os_str() != name);
    files.push((PathBuf::from(name), text.to_owned()));
    let documents = Documents::parse(&files, "bookinfo").unwrap();
    translate(&documents, &workload()).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn resources_that_do_not_fit_together_are_refused() {
    let sidecar = "  ingress:\n  - port: {number: 9080, protocol: HTTP}\n  egress:\n  - bind: 127.0.0.21\n    port: {number: 9080, \
                   protocol: HTTP}\n    hosts: [\"./*\"]";
    assert_eq!(
        translation_errors("sidecar.yaml", &document("Sidecar", sidecar)),
        ["sidecar.yaml:8: spec.egress[0]: 127.0.0.21:9080: the address of listener 127.0.0.21_9080 again"]
    );
    assert_eq!(
        translation_errors("vs.yaml", &document("VirtualService", "  hosts: [details]\n  http:\n  - timeout: 1s")),
        ["vs.yaml:7: spec.http[0]: expected exactly one of route, redirect, directResponse"]
    );
    let none =
        "  hosts: [details]\n  http:\n  - route: [{destination: {host: details}, weight: 0}, {destination: {host: reviews}}]";
    assert_eq!(
        translation_errors("vs.yaml", &document("VirtualService", none)),
        ["vs.yaml:7: spec.http[0]: expected a destination with a weight above zero"]
    );
    let service = "  hosts: [a.b]\n  resolution: STATIC\n  endpoints: [{address: a.example}]";
    assert_eq!(
        translation_errors("se.yaml", &document("ServiceEntry", service)),
        [
            "se.yaml:7: spec.endpoints[0].address: \"a.example\": expected an address or unix:///path, because the resolution is STATIC"
        ]
    );
    let mutual = "  host: details\n  trafficPolicy: {tls: {mode: MUTUAL}}";
    assert_eq!(
        translation_errors("dr.yaml", &document("DestinationRule", mutual)),
        ["dr.yaml:6: spec.trafficPolicy.tls: MUTUAL: expected clientCertificate and privateKey"]
    );
}

#[test]
fn a_mesh_config_is_checked_too() {
    let errors = |text: &str| {
        let errors = Documents::parse(&[(PathBuf::from("mesh.yaml"), text.to_owned())], "bookinfo").unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        errors("accessLogEncoding: JSON\naccessLogFormat: nonsense\n"),
        ["mesh.yaml:2: accessLogFormat: \"nonsense\": expected a JSON object of strings for encoding JSON"]
    );
    assert_eq!(
        errors("pathNormalization: {normalization: ALL}\n"),
        ["mesh.yaml:1: pathNormalization.normalization: \"ALL\": expected one of DEFAULT, NONE, BASE, MERGE_SLASHES, \
             DECODE_AND_MERGE_SLASHES"]
    );
    assert_eq!(
        errors("trustDomain: A B\n"),
        ["mesh.yaml:1: trustDomain: trust domain \"A B\": expected 1 to 255 characters of a-z, 0-9, '.', '-', '_'"]
    );
}
