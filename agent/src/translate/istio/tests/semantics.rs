//! Rules that the captured scenarios do not show.

use std::net::IpAddr;
use std::path::PathBuf;

use skiff_proxy::config::*;

use super::super::{Documents, Translation, translate};
use super::{files, workload};

/// The base configuration, where a file of the same name is replaced.
fn with(changes: &[(&str, &str)]) -> Translation {
    let mut files = files("01-default");
    for (name, text) in changes {
        files.retain(|(file, _)| file.as_os_str() != *name);
        files.push((PathBuf::from(name), (*text).to_owned()));
    }
    let documents = Documents::parse(&files, "bookinfo").unwrap();
    translate(&documents, &workload()).unwrap()
}

const NETWORKING: &str = "apiVersion: networking.istio.io/v1\n";
const SECURITY: &str = "apiVersion: security.istio.io/v1\n";

fn sidecar(spec: &str) -> String {
    format!("{NETWORKING}kind: Sidecar\nmetadata: {{name: s}}\nspec:\n{spec}\n")
}

fn listener_names(translation: &Translation) -> Vec<&str> {
    translation.snapshot.listeners.keys().map(String::as_str).collect()
}

fn http(listener: &Listener) -> &HttpConnectionManager {
    match &listener.filter_chains[0].filter {
        NetworkFilter::Http(http) => http,
        NetworkFilter::Tcp(_) => panic!("{listener:?}"),
    }
}

#[test]
fn an_ingress_without_bind_takes_each_own_address_and_never_the_wildcard() {
    let documents = Documents::parse(&files("01-default"), "bookinfo").unwrap();
    let mut task = workload();
    task.addresses.push("fd00::21".parse::<IpAddr>().unwrap());
    let built = translate(&documents, &task).unwrap();
    assert_eq!(listener_names(&built), ["127.0.0.21_9080", "127.0.0.2_9080", "fd00::21_9080"]);
    assert!(built.snapshot.listeners.values().all(|listener| !listener.address.ip().is_unspecified()));

    task.addresses.clear();
    let errors = translate(&documents, &task).unwrap_err();
    let expected = "sidecar.yaml:9: spec.ingress[0]: expected a bind, because the workload has no address of its own";
    assert_eq!(errors[0].to_string(), expected);
}

#[test]
fn paths_are_normalised_as_the_mesh_says_on_both_sides() {
    use EscapedSlashesAction::{KeepUnchanged, UnescapeAndForward};
    for (setting, normalize, merge, escaped) in [
        ("{}", true, false, KeepUnchanged),
        ("{normalization: DEFAULT}", true, false, KeepUnchanged),
        ("{normalization: NONE}", false, false, KeepUnchanged),
        ("{normalization: BASE}", true, false, KeepUnchanged),
        ("{normalization: MERGE_SLASHES}", true, true, KeepUnchanged),
        ("{normalization: DECODE_AND_MERGE_SLASHES}", true, true, UnescapeAndForward),
    ] {
        let built = with(&[("mesh.yaml", &format!("pathNormalization: {setting}\n"))]);
        for name in ["127.0.0.21_9080", "127.0.0.2_9080"] {
            let http = http(&built.snapshot.listeners[name]);
            assert_eq!((http.normalize_path, http.merge_slashes, http.escaped_slashes), (normalize, merge, escaped), "{setting}");
        }
    }
}

#[test]
fn the_same_documents_give_the_same_version_and_others_another() {
    let first = with(&[]);
    assert_eq!(first.snapshot, with(&[]).snapshot);
    let service = format!(
        "{NETWORKING}kind: ServiceEntry\nmetadata: {{name: extra}}\nspec: {{hosts: [extra.bookinfo.svc.cluster.local], location: \
         MESH_INTERNAL, resolution: STATIC, ports: [{{number: 9080, name: http, protocol: HTTP}}]}}"
    );
    assert_ne!(first.snapshot.version, with(&[("extra.yaml", &service)]).snapshot.version);
}

#[test]
fn the_sidecar_is_chosen_as_istio_does() {
    let one = |name: &str, namespace: &str, selector: &str, port: u16| {
        format!(
            "{NETWORKING}kind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {selector}\n  egress:\n  - {{bind: \
             127.0.0.9, port: {{number: {port}, protocol: HTTP}}, hosts: [\"./*\"]}}\n"
        )
    };
    let labels = "workloadSelector: {labels: {app: ratings}}";
    let other = "workloadSelector: {labels: {app: details}}";
    let cases = [
        (vec![("r", "istio-system", "{}", 1), ("d", "bookinfo", "{}", 2), ("w", "bookinfo", labels, 3)], "127.0.0.9_3"),
        (vec![("r", "istio-system", "{}", 1), ("d", "bookinfo", "{}", 2), ("w", "bookinfo", other, 3)], "127.0.0.9_2"),
        (vec![("r", "istio-system", "{}", 1), ("w", "bookinfo", other, 3), ("x", "default", "{}", 4)], "127.0.0.9_1"),
        (vec![("old", "bookinfo", labels, 5), ("new", "bookinfo", labels, 6)], "127.0.0.9_5"),
    ];
    for (sidecars, expected) in cases {
        let text = sidecars
            .into_iter()
            .map(|(name, namespace, selector, port)| one(name, namespace, selector, port).replace("  {}\n", ""))
            .collect::<Vec<_>>()
            .join("---\n");
        assert_eq!(listener_names(&with(&[("sidecar.yaml", &text)])), [expected]);
    }
    // Without any: a listener for every port of every service, and nothing inbound.
    let none = with(&[("sidecar.yaml", "")]);
    assert_eq!(listener_names(&none), ["127.0.0.1_9080"]);
    assert_eq!(none.warnings, ["no Sidecar selects this workload: it has no inbound listener"]);
}

fn authentication(name: &str, namespace: &str, spec: &str) -> String {
    format!("{SECURITY}kind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n")
}

/// How many chains the inbound listener has, and whether the first has TLS: 1, true is STRICT; 2, true is PERMISSIVE.
fn inbound_mode(policies: &[String]) -> (usize, bool) {
    let built = with(&[("policy.yaml", &policies.join("---\n"))]);
    let chains = &built.snapshot.listeners["127.0.0.21_9080"].filter_chains;
    (chains.len(), chains[0].tls.is_some())
}

#[test]
fn peer_authentication_is_inherited_from_mesh_to_port() {
    let mesh = || authentication("default", "istio-system", "{mtls: {mode: STRICT}}");
    let namespace = |mode: &str| authentication("ns", "bookinfo", &format!("{{mtls: {{mode: {mode}}}}}"));
    let own = |spec: &str| authentication("own", "bookinfo", &format!("{{selector: {{matchLabels: {{app: ratings}}}}, {spec}}}"));
    let (strict, permissive, disabled) = ((1, true), (2, true), (1, false));
    assert_eq!(inbound_mode(&[]), permissive);
    assert_eq!(inbound_mode(&[mesh()]), strict);
    assert_eq!(inbound_mode(&[mesh(), namespace("DISABLE")]), disabled);
    assert_eq!(inbound_mode(&[mesh(), namespace("UNSET")]), strict);
    assert_eq!(inbound_mode(&[mesh(), namespace("DISABLE"), own("mtls: {mode: PERMISSIVE}")]), permissive);
    assert_eq!(inbound_mode(&[mesh(), own("mtls: {mode: DISABLE}, portLevelMtls: {9080: {mode: STRICT}}")]), strict);
    assert_eq!(inbound_mode(&[mesh(), own("mtls: {mode: DISABLE}, portLevelMtls: {9081: {mode: STRICT}}")]), disabled);
    assert_eq!(inbound_mode(&[mesh(), own("portLevelMtls: {9080: {mode: UNSET}}")]), strict);
}

fn policy(spec: &str) -> String {
    format!("{SECURITY}kind: AuthorizationPolicy\nmetadata: {{name: p, namespace: bookinfo}}\nspec: {spec}\n")
}

/// The network RBAC of a TCP ingress under one policy.
fn tcp_rules(spec: &str) -> RbacRules {
    let ingress = sidecar("  ingress:\n  - port: {number: 9090, protocol: TCP}");
    let built = with(&[("sidecar.yaml", &ingress), ("policy.yaml", &policy(spec))]);
    let chains = &built.snapshot.listeners["127.0.0.21_9090"].filter_chains;
    // PERMISSIVE: mTLS, the application's own TLS, plaintext; all of them guarded.
    assert_eq!(chains.len(), 3);
    assert!(chains.iter().all(|chain| chain.rbac.len() == 1 && chain.rbac == chains[0].rbac));
    RbacRules::clone(&chains[0].rbac[0])
}

#[test]
fn on_tcp_a_rule_that_needs_http_allows_nothing_and_denies_more() {
    let allow = tcp_rules("{action: ALLOW, rules: [{to: [{operation: {methods: [GET], ports: [\"9090\"]}}]}]}");
    assert_eq!((allow.action, allow.policies.len()), (RbacAction::Allow, 0));

    let deny = tcp_rules("{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: [\"9090\"]}}]}]}");
    let built = &deny.policies["ns[bookinfo]-policy[p]-rule[0]"];
    assert_eq!(built.permissions, [Permission::And(vec![Permission::Or(vec![Permission::DestinationPort(9090)])])]);
    assert_eq!(built.principals, [Principal::And(vec![Principal::Any])]);

    let when = tcp_rules("{action: DENY, rules: [{when: [{key: \"request.headers[x]\", values: [a]}]}]}");
    let built = &when.policies["ns[bookinfo]-policy[p]-rule[0]"];
    assert_eq!(built.principals, [Principal::And(vec![Principal::Any])]);
}

#[test]
fn a_policy_without_rules_allows_nothing() {
    let built = &tcp_rules("{}").policies["ns[bookinfo]-policy[p]-rule[0]"];
    assert_eq!(built.permissions, [Permission::Not(Box::new(Permission::Any))]);
    assert_eq!(built.principals, [Principal::Not(Box::new(Principal::Any))]);
}

#[test]
fn principals_hold_in_every_trust_domain_of_the_mesh() {
    let mesh = "trustDomain: cluster.local\ntrustDomainAliases: [old.domain]\n";
    let rule = "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, other/ns/a/sa/b]}}]}]}";
    let built = with(&[("mesh.yaml", mesh), ("policy.yaml", &policy(rule))]);
    let listener = &built.snapshot.listeners["127.0.0.21_9080"];
    let HttpFilter::Rbac(rbac) = &http(listener).filters[1] else { panic!("{:?}", http(listener).filters) };
    let name = |name: &str| Principal::Authenticated(Some(StringMatcher::exact(name)));
    let expected = Principal::And(vec![Principal::Or(vec![
        name("spiffe://cluster.local/ns/a/sa/b"),
        name("spiffe://old.domain/ns/a/sa/b"),
        name("spiffe://other/ns/a/sa/b"),
    ])]);
    assert_eq!(rbac.rules.as_ref().unwrap().policies["ns[bookinfo]-policy[p]-rule[0]"].principals, [expected]);
    let tls = listener.filter_chains[0].tls.as_ref().unwrap();
    let prefix = |domain: &str| SanMatcher::Any(StringMatcher::prefix(format!("spiffe://{domain}/")));
    assert_eq!(tls.sans, [prefix("cluster.local"), prefix("old.domain")]);
}

#[test]
fn an_http_proxy_port_serves_every_http_service_by_host_and_port() {
    let egress = "  egress:\n  - {bind: 127.0.0.1, port: {number: 15080, protocol: HTTP_PROXY}, hosts: [\"./*\"]}";
    let built = with(&[("sidecar.yaml", &sidecar(egress))]);
    let listener = &built.snapshot.listeners["127.0.0.1_15080"];
    assert!(http(listener).http_proxy);
    assert_eq!(http(listener).routes, RouteSource::Named("http_proxy".to_owned()));
    let routes = &built.snapshot.routes["http_proxy"];
    assert!(!routes.ignore_port_in_host_matching);
    let domains = ["details.bookinfo.svc.cluster.local:9080", "details.bookinfo.svc.cluster.local.:9080", "details:9080"];
    assert_eq!(routes.virtual_hosts[0].host().get().domains[..3], domains);
    assert!(built.snapshot.clusters.contains_key("outbound|9080||details.bookinfo.svc.cluster.local"));
}

#[test]
fn listeners_of_one_port_with_different_hosts_have_routes_of_their_own() {
    let egress = "  egress:\n  - {bind: 127.0.0.2, port: {number: 9080, protocol: HTTP}, hosts: [./details.bookinfo.svc.cluster.local]}\n  \
                  - {bind: 127.0.0.3, port: {number: 9080, protocol: HTTP}, hosts: [./reviews.bookinfo.svc.cluster.local]}";
    let built = with(&[("sidecar.yaml", &sidecar(egress))]);
    let hosts = |name: &str| built.snapshot.routes[name].virtual_hosts[0].host().get().name.clone();
    assert_eq!(hosts("9080"), "details.bookinfo.svc.cluster.local:9080");
    assert_eq!(hosts("127.0.0.3_9080"), "reviews.bookinfo.svc.cluster.local:9080");
    assert!(!built.snapshot.clusters.contains_key("outbound|9080||ratings.bookinfo.svc.cluster.local"));
}

#[test]
fn what_looks_unintended_is_warned_of() {
    let egress = "  ingress:\n  - {port: {number: 8080, protocol: HTTP}, defaultEndpoint: \"127.0.0.1:9080\"}\n  egress:\n  - {port: \
                  {number: 9080, protocol: HTTP}, hosts: [\"./*\"]}\n  - {port: {number: 5432, protocol: TCP}, hosts: [\"./*\"]}";
    let routes = format!(
        "{NETWORKING}kind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: [details]\n  http:\n  - route: [{{destination: {{host: \
         details, subset: v9}}}}]\n"
    );
    let built = with(&[("sidecar.yaml", &sidecar(egress)), ("vs.yaml", &routes)]);
    assert_eq!(
        built.warnings,
        [
            "vs.yaml:1: bookinfo/v: no DestinationRule has subset v9 of details.bookinfo.svc.cluster.local: 503",
            "listener 127.0.0.1_5432: no imported service has TCP port 5432, so there is no such listener",
            "listener 127.0.0.1_9080 takes the address 127.0.0.1:9080 where inbound|8080|| expects the application: set bind of the \
             egress listener to another address",
        ]
    );
}

fn tcp(chain: &FilterChain) -> Vec<(&str, u32)> {
    match &chain.filter {
        NetworkFilter::Tcp(tcp) => tcp.clusters.iter().map(|cluster| (cluster.name.as_str(), cluster.weight)).collect(),
        NetworkFilter::Http(_) => panic!("{chain:?}"),
    }
}

#[test]
fn tls_and_tcp_routes_of_a_virtual_service_choose_among_clusters() {
    let service = |name: &str, port: u16, protocol: &str| {
        format!(
            "{NETWORKING}kind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: [{name}.example], location: MESH_EXTERNAL, \
             resolution: DNS, ports: [{{number: {port}, name: p, protocol: {protocol}}}]}}\n"
        )
    };
    let services = [service("a", 443, "TLS"), service("b", 443, "TLS"), service("db", 5432, "TCP"), service("db2", 5432, "TCP")];
    let routes = format!(
        "{NETWORKING}kind: VirtualService\nmetadata: {{name: tls}}\nspec:\n  hosts: [a.example]\n  tls:\n  - match: [{{sniHosts: \
         [a.example, www.a.example]}}]\n    route: [{{destination: {{host: a.example}}}}]\n---\n{NETWORKING}kind: VirtualService\nmetadata: \
         {{name: tcp}}\nspec:\n  hosts: [db.example]\n  tcp:\n  - route: [{{destination: {{host: db.example}}, weight: 90}}, \
         {{destination: {{host: db2.example}}, weight: 10}}]\n"
    );
    let egress = "  outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n  egress:\n  - {bind: 127.0.0.5, port: {number: 443, protocol: TLS}, \
                  hosts: [\"./*\"]}\n  - {bind: 127.0.0.5, port: {number: 5432, protocol: TCP}, hosts: [\"./db.example\"]}";
    let built = with(&[("sidecar.yaml", &sidecar(egress)), ("se.yaml", &services.join("---\n")), ("vs.yaml", &routes)]);

    let tls = &built.snapshot.listeners["127.0.0.5_443"];
    assert!(tls.inspect_tls);
    let by_name: Vec<_> = tls.filter_chains.iter().map(|chain| (chain.matches.server_names.join(","), tcp(chain))).collect();
    let (a, b) = ("outbound|443||a.example", "outbound|443||b.example");
    assert_eq!(by_name, [("a.example,www.a.example".to_owned(), vec![(a, 1)]), ("b.example".to_owned(), vec![(b, 1)])]);
    assert_eq!(tcp(tls.default_filter_chain.as_ref().unwrap()), [("BlackHoleCluster", 1)]);

    // db2 is not imported by the listener, but the route needs its cluster.
    let db = &built.snapshot.listeners["127.0.0.5_5432"];
    assert!(!db.inspect_tls);
    assert_eq!(tcp(&db.filter_chains[0]), [("outbound|5432||db.example", 90), ("outbound|5432||db2.example", 10)]);
    assert!(built.snapshot.clusters.contains_key("outbound|5432||db2.example"));
    assert_eq!(built.warnings, Vec::<String>::new());
}

#[test]
fn an_endpoint_takes_part_in_mtls_by_its_label_and_its_own_mode() {
    let entry = |name: &str, address: &str, labels: &str| {
        format!(
            "{NETWORKING}kind: WorkloadEntry\nmetadata: {{name: {name}, labels: {{app: reviews}}}}\nspec: {{address: {address}, labels: \
             {labels}, serviceAccount: sa}}\n"
        )
    };
    let entries = [
        entry("plain", "127.0.1.1", "{security.istio.io/tlsMode: disabled}"),
        entry("off", "127.0.1.2", "{legacy: \"yes\"}"),
        entry("mesh", "127.0.1.3", "{}"),
    ];
    let off = authentication("off", "bookinfo", "{selector: {matchLabels: {legacy: \"yes\"}}, mtls: {mode: DISABLE}}");
    let built = with(&[("workloads.yaml", &entries.join("---\n")), ("policy.yaml", &off)]);
    let load = built.snapshot.endpoints["outbound|9080||reviews.bookinfo.svc.cluster.local"].get();
    let modes: Vec<_> = load.localities[0]
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.workload.as_ref().unwrap().name.as_str(), endpoint.transport_match.contains_key("tlsMode")))
        .collect();
    assert_eq!(modes, [("plain", false), ("off", false), ("mesh", true)]);
}

fn jwt_filter(translation: &Translation) -> Option<&JwtAuthn> {
    http(&translation.snapshot.listeners["127.0.0.21_9080"]).filters.iter().find_map(|filter| match filter {
        HttpFilter::JwtAuthn(jwt) => Some(&**jwt),
        _ => None,
    })
}

fn request_authentication(spec: &str) -> String {
    format!("{SECURITY}kind: RequestAuthentication\nmetadata: {{name: jwt, namespace: bookinfo}}\nspec: {spec}\n")
}

#[test]
fn keys_of_a_uri_are_fetched_through_a_cluster_of_their_own() {
    let rule = |uri: &str| request_authentication(&format!("{{jwtRules: [{{issuer: i, jwksUri: '{uri}', timeout: 2s}}]}}"));
    let built = with(&[("jwt.yaml", &rule("https://issuer.example/keys?v=1"))]);
    let jwt = jwt_filter(&built).unwrap();
    let Jwks::Remote(remote) = &jwt.providers["origins-0"].jwks else { panic!("{jwt:?}") };
    assert_eq!((&*remote.authority, &*remote.path, remote.timeout.as_secs()), ("issuer.example", "/keys?v=1", 2));
    assert!(remote.async_fetch.is_some(), "fetched before they are needed");
    let cluster = built.snapshot.clusters[remote.cluster.as_str()].get();
    assert!(matches!(&cluster.discovery, ClusterDiscovery::StrictDns(_)));
    let TransportSocket::Tls(tls) = &cluster.transport_socket else { panic!("{cluster:?}") };
    assert_eq!((&*tls.sni, &tls.trust), ("issuer.example", &Some(CertificateSource::System)));
    assert_eq!(tls.sans, [SanMatcher::Dns(StringMatcher::exact("issuer.example"))]);

    let plain = with(&[("jwt.yaml", &rule("http://127.0.0.9:8090/keys"))]);
    let cluster = plain.snapshot.clusters["jwks|8090|http|127.0.0.9"].get();
    assert_eq!(cluster.transport_socket, TransportSocket::RawBuffer);

    // A service of the mesh is asked as the mesh asks it.
    let mesh = with(&[("jwt.yaml", &rule("http://details.bookinfo.svc.cluster.local:9080/keys"))]);
    let Jwks::Remote(remote) = &jwt_filter(&mesh).unwrap().providers["origins-0"].jwks else { panic!("{mesh:?}") };
    assert_eq!(remote.cluster, "outbound|9080||details.bookinfo.svc.cluster.local");
    assert!(mesh.snapshot.clusters.contains_key(remote.cluster.as_str()));
}

#[test]
fn a_token_is_optional_and_policies_for_others_do_not_count() {
    let keys = r#"jwks: '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'"#;
    let one = with(&[("jwt.yaml", &request_authentication(&format!("{{jwtRules: [{{issuer: i, {keys}}}]}}")))]);
    let jwt = jwt_filter(&one).unwrap();
    let provider = JwtRequirement::Provider { name: "origins-0".into(), audiences: Vec::new() };
    let expected = JwtRequirement::Any(vec![provider, JwtRequirement::AllowMissing]);
    assert_eq!(jwt.rules[0].requires, JwtRuleRequirement::Inline(expected));
    assert_eq!(jwt.providers["origins-0"].payload_in_metadata.as_deref(), Some("payload"));
    for spec in [
        format!("{{selector: {{matchLabels: {{app: details}}}}, jwtRules: [{{issuer: i, {keys}}}]}}"),
        "{jwtRules: []}".to_owned(),
    ] {
        assert!(jwt_filter(&with(&[("jwt.yaml", &request_authentication(&spec))])).is_none(), "{spec}");
    }
    let elsewhere = request_authentication(&format!("{{jwtRules: [{{issuer: i, {keys}}}]}}"))
        .replace("namespace: bookinfo", "namespace: other");
    assert!(jwt_filter(&with(&[("jwt.yaml", &elsewhere)])).is_none());
}

#[test]
fn keys_that_cannot_be_had_are_errors_of_the_rule() {
    let errors = |rule: &str| {
        let mut files = files("01-default");
        files.push((PathBuf::from("jwt.yaml"), request_authentication(&format!("\n  jwtRules:\n  - {rule}"))));
        let documents = match Documents::parse(&files, "bookinfo") {
            Ok(documents) => documents,
            Err(errors) => return errors[0].to_string(),
        };
        translate(&documents, &workload()).unwrap_err()[0].to_string()
    };
    let at = "jwt.yaml:6: spec.jwtRules[0]";
    for (rule, expected) in [
        ("{issuer: i}", "expected jwks or jwksUri: keys are not looked for by OpenID discovery"),
        (
            r#"{issuer: i, jwksUri: 'http://h/', jwks: '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'}"#,
            "expected either jwks or jwksUri",
        ),
        (r#"{issuer: "", jwksUri: 'http://h/'}"#, "issuer: expected one"),
    ] {
        assert_eq!(errors(rule), format!("{at}: {expected}"));
    }
    for (rule, expected) in [
        ("{issuer: i, jwksUri: 'file:///keys'}", "\"file:///keys\": expected an absolute http or https URI"),
        ("{issuer: i, jwksUri: 'http://169.254.169.254/'}", "\"http://169.254.169.254/\": expected no link-local address"),
    ] {
        assert_eq!(errors(rule), format!("{at}.jwksUri: {expected}"));
    }
    assert_eq!(errors("{issuer: i, jwks: junk}"), format!("{at}.jwks: Jwks is an invalid JSON"));
}

const PROVIDERS: &str = "extensionProviders:\n\
    - name: http\n  envoyExtAuthzHttp: {service: bookinfo/reviews.bookinfo.svc.cluster.local, port: 9080, timeout: 1s, pathPrefix: /check, \
      failOpen: true, statusOnError: '503', includeRequestHeadersInCheck: [cookie, x-b-*], \
      includeAdditionalHeadersInCheck: {X-By: skiff}, headersToDownstreamOnDeny: ['*-why'], \
      includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}\n\
    - name: grpc\n  envoyExtAuthzGrpc: {service: reviews.bookinfo.svc.cluster.local, port: 9080}\n\
    - name: traces\n  zipkin: {service: z, port: 9411}\n";

fn custom(provider: &str) -> String {
    policy(&format!("{{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]}}"))
}

#[test]
fn a_custom_policy_asks_its_provider_about_what_it_matches() {
    let built = with(&[("mesh.yaml", PROVIDERS), ("policy.yaml", &custom("http"))]);
    let filters = &http(&built.snapshot.listeners["127.0.0.21_9080"]).filters;
    let [HttpFilter::PeerMetadata(_), HttpFilter::Rbac(rbac), HttpFilter::ExtAuthz(authz), ..] = &filters[..] else {
        panic!("{filters:?}")
    };
    assert!(rbac.rules.is_none() && rbac.shadow_stat_prefix == "istio_ext_authz_");
    let shadow = rbac.shadow_rules.as_ref().unwrap();
    assert_eq!(shadow.action, RbacAction::Deny);
    assert_eq!(shadow.policies.keys().collect::<Vec<_>>(), ["istio-ext-authz-ns[bookinfo]-policy[p]-rule[0]"]);
    let enabled = authz.enabled_metadata.as_ref().unwrap();
    assert_eq!(
        (enabled.filter.as_str(), enabled.path.join(".").as_str()),
        ("envoy.filters.http.rbac", "istio_ext_authz_shadow_effective_policy_id")
    );
    assert_eq!(enabled.value, StringMatcher::prefix("istio-ext-authz"));
    let AuthzService::Http(service) = &authz.service else { panic!("{:?}", authz.service) };
    let cluster = "outbound|9080||reviews.bookinfo.svc.cluster.local";
    assert_eq!((service.cluster.as_str(), service.path_prefix.as_str()), (cluster, "/check"));
    assert!(built.snapshot.clusters.contains_key(cluster));
    assert_eq!((authz.timeout.as_secs(), authz.failure_mode_allow, authz.status_on_error), (1, true, 503));
    let body = AuthzBody { max_bytes: 10, allow_partial: true, pack_as_bytes: false };
    assert_eq!(authz.request_body, Some(body));
    let told = |name: &[u8]| authz.allowed_headers.as_ref().unwrap().iter().any(|pattern| pattern.matches(name));
    assert!(told(b"cookie") && told(b"x-b-1") && !told(b"x-c"));
    assert!(service.client_headers[0].matches(b"x-why"));
    assert_eq!((service.headers_to_add[0].name.as_str(), service.headers_to_add[0].value.as_str()), ("x-by", "skiff"));

    let built = with(&[("mesh.yaml", PROVIDERS), ("policy.yaml", &custom("grpc"))]);
    let filters = &http(&built.snapshot.listeners["127.0.0.21_9080"]).filters;
    let [HttpFilter::PeerMetadata(_), HttpFilter::Rbac(_), HttpFilter::ExtAuthz(authz), ..] = &filters[..] else {
        panic!("{filters:?}")
    };
    let AuthzService::Grpc(service) = &authz.service else { panic!("{:?}", authz.service) };
    assert_eq!(service.authority, "outbound_.9080_._.reviews.bookinfo.svc.cluster.local");
    assert_eq!((authz.timeout.as_secs(), authz.failure_mode_allow, authz.status_on_error), (600, false, 403));
}

#[test]
fn a_custom_policy_without_its_provider_is_an_error() {
    let fails = |mesh: &str, policy: &str| {
        let mut files = files("01-default");
        for (name, text) in [("mesh.yaml", mesh), ("policy.yaml", policy)] {
            files.retain(|(file, _)| file.as_os_str() != name);
            files.push((PathBuf::from(name), text.to_owned()));
        }
        translate(&Documents::parse(&files, "bookinfo").unwrap(), &workload()).unwrap_err()[0].reason.clone()
    };
    let reason = fails(PROVIDERS, &custom("other"));
    assert_eq!(reason, "\"other\": no such extension provider, expected one of http, grpc");
    assert_eq!(
        fails("{}", &custom("http")),
        "\"http\": no such extension provider, MeshConfig has none with envoyExtAuthzHttp or envoyExtAuthzGrpc"
    );
    let nowhere = "extensionProviders: [{name: http, envoyExtAuthzHttp: {service: no.where, port: 1}}]";
    assert_eq!(fails(nowhere, &custom("http")), "http: no ServiceEntry declares no.where with port 1");
    let second = custom("grpc").replace("name: p", "name: q");
    let reason = fails(PROVIDERS, &format!("{}\n---\n{second}", custom("http")));
    assert_eq!(reason, "grpc: http decides about this workload already");
}

#[test]
fn lists_of_revoked_servers_come_from_a_file() {
    let rule = |tls: &str| {
        let text = format!(
            "{NETWORKING}kind: DestinationRule\nmetadata: {{name: d}}\nspec:\n  host: details\n  trafficPolicy: {{tls: {tls}}}\n"
        );
        let built = with(&[("dr.yaml", &text)]);
        let cluster = built.snapshot.clusters["outbound|9080||details.bookinfo.svc.cluster.local"].get();
        let TransportSocket::Tls(tls) = &cluster.transport_socket else { panic!("{cluster:?}") };
        tls.revocation.clone()
    };
    let lists = CertificateSource::RevocationFile("/etc/crl.pem".into());
    assert_eq!(rule("{mode: SIMPLE, caCrl: /etc/crl.pem}"), Some(Revocation { lists, leaf_only: false }));
    assert_eq!(rule("{mode: SIMPLE, insecureSkipVerify: true, caCrl: /etc/crl.pem}"), None);
    assert_eq!(rule("{mode: SIMPLE}"), None);
}

#[test]
fn the_proxy_protocol_is_told_by_rule_and_subset() {
    let text = format!(
        "{NETWORKING}kind: DestinationRule\nmetadata: {{name: d}}\nspec:\n  host: details\n  trafficPolicy:\n    proxyProtocol: {{version: V2}}\n    \
         portLevelSettings: [{{port: {{number: 9080}}}}]\n  subsets:\n  - {{name: v1, labels: {{version: v1}}, trafficPolicy: {{proxyProtocol: {{}}}}}}\n"
    );
    let built = with(&[("dr.yaml", &text)]);
    let of = |subset: &str| {
        let name = format!("outbound|9080|{subset}|details.bookinfo.svc.cluster.local");
        built.snapshot.clusters[name.as_str()].get().proxy_protocol
    };
    assert_eq!((of(""), of("v1")), (Some(ProxyProtocol::V2), Some(ProxyProtocol::V1)));
}
