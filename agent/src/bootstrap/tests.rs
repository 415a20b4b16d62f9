use std::path::{Path, PathBuf};

use super::*;

fn golden(profile: &str) -> Bootstrap {
    load(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/envoy/golden/{profile}.yaml"))).unwrap()
}

fn shown(bootstrap: &Bootstrap) -> Vec<String> {
    bootstrap.report.rejected.iter().map(ToString::to_string).collect()
}

fn loaded(yaml: &str) -> Bootstrap {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    std::fs::write(&path, yaml).unwrap();
    load(&path).unwrap()
}

#[test]
fn the_profiles_of_the_golden_set_translate() {
    for profile in ["inbound", "mtls", "outbound", "policy", "resilience", "tcp", "tls"] {
        let bootstrap = golden(profile);
        assert_eq!(shown(&bootstrap), [""; 0], "{profile}");
        assert!(!bootstrap.snapshot.listeners.is_empty(), "{profile}");
        assert_eq!(bootstrap.admin, Some("127.0.0.1:28000".parse().unwrap()), "{profile}");
    }
}

#[test]
fn a_limit_of_connections_belongs_to_its_chain() {
    let bootstrap = golden("tcp");
    let limited = &bootstrap.snapshot.listeners["127.0.0.1_28492"].filter_chains[0];
    assert_eq!(limited.connection_limit.map(|limit| limit.max), Some(1));
    assert_eq!(bootstrap.snapshot.listeners["127.0.0.1_28484"].filter_chains[0].rbac.len(), 1);
}

#[test]
fn what_changes_nothing_is_listed_once() {
    let Bootstrap { report, node, .. } = golden("mtls");
    assert_eq!(node.id, "sidecar~127.0.0.1~details-v1.bookinfo~bookinfo.svc.cluster.local", "it is told to peers");
    for expected in ["Cluster.alt_stat_name", "TlsParameters.cipher_suites"] {
        assert!(report.ignored.contains(expected), "{expected}: {:?}", report.ignored);
    }
    assert!(report.missing.contains(Path::new("certs/server.key")), "{:?}", report.missing);
}

#[test]
fn mistakes_are_reported_beside_each_other() {
    let bootstrap = loaded(
        "
static_resources:
  clusters:
  - {name: good}
  - {name: good}
  - {name: bad, typo: 1}
  endpoints: []
dynamic_resources: {}
layered_runtime:
  layers:
  - {name: a, static_layer: {envoy: {reloadable_features: {http_reject_path_with_fragment: true}}, re2.max_program_size: 1}}
admin: {address: {socket_address: {address: localhost, port_value: 1}}}
",
    );
    let mut found = shown(&bootstrap);
    found.sort();
    assert_eq!(
        found,
        [
            "Bootstrap \"\": admin.address.socket_address: expected an IP address and a port",
            "Bootstrap \"\": dynamic_resources: is not supported",
            "Bootstrap \"\": layered_runtime.envoy.reloadable_features.http_reject_path_with_fragment: expected false, found true",
            "Bootstrap \"\": static_resources.endpoints: is not supported",
            "Cluster \"bad\": typo: unknown field of envoy.config.cluster.v3.Cluster",
            "Cluster \"good\": name: is used twice",
        ]
    );
    assert_eq!(bootstrap.report.ignored, BTreeSet::from(["layered_runtime.re2.max_program_size".to_owned()]));
}

#[test]
fn json_is_read_as_well() {
    let bootstrap = loaded(r#"{"staticResources": {"clusters": [{"name": "c", "connectTimeout": "1s"}]}}"#);
    assert_eq!(bootstrap.snapshot.clusters["c"].get().connect_timeout, std::time::Duration::from_secs(1));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let missing = check(Path::new("/nonexistent/bootstrap.yaml")).unwrap_err();
    assert_eq!(missing.to_string(), "/nonexistent/bootstrap.yaml: No such file or directory (os error 2)");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.yaml");
    std::fs::write(&path, "- a").unwrap();
    assert_eq!(check(&path).unwrap_err().to_string(), format!("{}: expected an object", path.display()));
}

#[test]
fn a_huge_or_deeply_nested_bootstrap_is_refused_without_harm() {
    let refused = |text: &str| parse(Path::new("b.yaml"), text).err().map(|error| error.to_string());
    for depth in [40, 100, 10_000, 1_000_000] {
        for (open, close) in [("[", "]"), ("{a: ", "}")] {
            for key in ["node", "static_resources", "layered_runtime", "x"] {
                let text = format!("{key}: {}{}", open.repeat(depth), close.repeat(depth));
                let expected = depth == 40;
                assert_eq!(refused(&text).is_none(), expected, "{key} at depth {depth}: {:?}", refused(&text));
                // Whatever can be read is not served: nobody asked for such a thing.
                let unsupported =
                    || parse(Path::new("b.yaml"), &text).is_ok_and(|bootstrap| !bootstrap.report.rejected.is_empty());
                assert!(!expected || matches!(key, "node" | "layered_runtime") || unsupported(), "{key} at depth {depth}");
            }
        }
    }
    let layers = format!("layered_runtime: {{layers: [{{static_layer: {}{}}}]}}", "{a: ".repeat(40), "}".repeat(40));
    assert_eq!(refused(&layers), None);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", format!("*a{}, ", level - 1).repeat(10)));
    }
    assert!(refused(&bomb).is_some());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.yaml");
    std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert_eq!(check(&path).unwrap_err().to_string(), format!("{}: expected at most 33554432 bytes", path.display()));
}

#[tokio::test]
async fn nothing_is_served_while_something_is_not_supported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/envoy/golden/policy.yaml")).unwrap();
    let filter = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
    assert!(text.contains(filter));
    std::fs::write(&path, text.replace(filter, "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua")).unwrap();
    let recorder = Arc::new(metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder());
    let Err(error) = run(&path, &Options::default(), recorder).await else { unreachable!("a Lua filter is not supported") };
    assert!(
        error.to_string().starts_with("1 parts of the bootstrap are not supported, the first: Listener \"127.0.0.1_28386\""),
        "{error}"
    );
}

#[tokio::test]
async fn a_bootstrap_is_served_when_run_returns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    let yaml = r#"
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}
  clusters: [{name: c}]
"#;
    std::fs::write(&path, yaml).unwrap();
    let recorder = Arc::new(metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder());
    let (proxy, bootstrap) = run(&path, &Options { workers: 1, ..Options::default() }, recorder).await.unwrap();
    assert_eq!((bootstrap.report.listeners, bootstrap.report.clusters), (1, 1));
    assert!(proxy.listeners().iter().all(|listener| listener.state == ListenerState::Active));
}
