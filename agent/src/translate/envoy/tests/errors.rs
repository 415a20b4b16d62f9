//! What is refused, in the words that people read.

use prost::Message as _;
use serde_json::Value as Json;
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;

use super::super::{cluster, from_json, ignored, listener, route_configuration};
use super::{ROUTER, http_listener, message, shown};

/// What is wrong with the JSON form of a message.
fn mistakes<T: prost::Message + prost::Name + Default>(yaml: &str) -> Vec<String> {
    let json: Json = serde_saphyr::from_str(yaml).unwrap();
    from_json::<T>(&json).err().unwrap().into_iter().map(|one| format!("{}: {}", one.path, one.reason)).collect()
}

#[test]
fn every_mistake_in_the_json_form_is_reported_with_its_path() {
    let yaml = "
nam: c
connect_timeout: 5
lb_policy: SHORTEST_QUEUE
load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {port_value: -1}}}}]}]}
transport_socket: {typed_config: {sni: x}}
";
    let mut found = mistakes::<Cluster>(yaml);
    found.sort();
    assert_eq!(
        found,
        [
            "connect_timeout: expected a duration such as 1.5s, found 5",
            "lb_policy: expected one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, \
             LOAD_BALANCING_POLICY_CONFIG, found \"SHORTEST_QUEUE\"",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: \
             expected an unsigned 32-bit number, found -1",
            "nam: unknown field of envoy.config.cluster.v3.Cluster",
            "transport_socket.typed_config.@type: is missing",
        ]
    );
}

#[test]
fn two_fields_of_one_choice_are_refused() {
    let found = mistakes::<RouteConfiguration>("{virtual_hosts: [{routes: [{match: {prefix: /, path: /a}}]}]}");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("virtual_hosts[0].routes[0].match.p"), "{found:?}");
    assert!(found[0].ends_with("excludes another field that is set"), "{found:?}");
}

#[test]
fn an_unknown_http_filter_rejects_the_listener() {
    let yaml = r#"
      route_config: {name: r}
      http_filters:
      - name: gate
        typed_config: {"@type": type.googleapis.com/my.Gate, key: 1}
      - name: mine
        typed_config: {"@type": type.googleapis.com/my.Filter, key: 1}
"#;
    let at = "Listener \"l\": filter_chains[0].filters[0].typed_config";
    assert_eq!(
        shown(&http_listener(yaml).unwrap_err()),
        [
            format!("{at}.http_filters[0].typed_config: HTTP filter gate (my.Gate) is not supported"),
            format!("{at}.http_filters[1].typed_config: HTTP filter mine (my.Filter) is not supported"),
        ]
    );
}

#[test]
fn filters_of_istio_are_read_in_each_of_their_wrappings() {
    let yaml = format!(
        "      route_config: {{name: r}}{}",
        ROUTER.replace(
            "      - name: router",
            r#"      - name: istio.stats
        typed_config: {"@type": type.googleapis.com/stats.PluginConfig, disable_host_header_fallback: true}
      - name: istio.metadata_exchange
        typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {}}
      - name: router"#
        )
    );
    let manager = http_listener(&yaml).unwrap();
    assert!(matches!(&*manager.filters, [skiff_proxy::config::HttpFilter::PeerMetadata(_)]), "{:?}", manager.filters);
    assert!(manager.stats.unwrap().disable_host_header_fallback);
}

#[test]
fn istiods_filter_of_mongo_ports_counts_and_must_not_delay() {
    use skiff_proto::envoy::config::listener::v3::filter::ConfigType;
    use skiff_proto::envoy::extensions::filters::common::fault::v3::FaultDelay;
    use skiff_proto::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
    let with = |delay| {
        let mut message: Listener = message(
            "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 27017}}, filter_chains: [{filters: [\
             {name: mongo, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy}},\
             {name: tcp, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,\
             stat_prefix: s, cluster: c}}]}]}",
        );
        let Some(ConfigType::TypedConfig(any)) = &mut message.filter_chains[0].filters[0].config_type else { panic!() };
        any.type_url = "type.googleapis.com/envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy".to_owned();
        any.value = MongoProxy { stat_prefix: "s".to_owned(), delay, ..MongoProxy::default() }.encode_to_vec();
        listener(&message).map_err(|all| shown(&all))
    };
    assert!(with(None).is_ok());
    let refused = with(Some(FaultDelay::default())).unwrap_err();
    assert_eq!(refused, ["Listener \"l\": filter_chains[0].filters[0].typed_config.delay: is not supported"]);
}

#[test]
fn a_field_that_is_not_honoured_rejects_and_a_harmless_one_is_listed() {
    let yaml = format!("      route_config: {{name: r, vhost_header: x}}\n      strip_any_host_port: true\n{ROUTER}");
    let mut found = shown(&http_listener(&yaml).unwrap_err());
    found.sort();
    let at = "Listener \"l\": filter_chains[0].filters[0].typed_config";
    assert_eq!(
        found,
        [
            format!("{at}.route_config.vhost_header: envoy.config.route.v3.RouteConfiguration.vhost_header is not supported"),
            format!(
                "{at}.strip_any_host_port: envoy.extensions.filters.network.http_connection_manager.v3.\
                 HttpConnectionManager.strip_any_host_port is not supported"
            ),
        ]
    );
    let harmless: Cluster = message("{name: c, alt_stat_name: x, circuit_breakers: {thresholds: [{track_remaining: true}]}}");
    assert_eq!(ignored(&harmless), ["Cluster.alt_stat_name", "Thresholds.track_remaining"]);
    assert!(cluster(&harmless).is_ok());
}

#[test]
fn policies_are_never_weakened() {
    let with = |rules: &str| {
        let yaml = format!(
            "      route_config: {{name: r}}{}",
            ROUTER.replace(
                "      - name: router",
                &format!(
                    "      - name: rbac\n        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, \
                     rules: {rules}}}\n      - name: router"
                )
            )
        );
        shown(&http_listener(&yaml).unwrap_err()).join("\n")
    };
    let condition = with(
        "{policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {const_expr: {bool_value: true}}}}}",
    );
    assert!(
        condition.ends_with("rules.policies[\"p\"].condition: envoy.config.rbac.v3.Policy.condition is not supported"),
        "{condition}"
    );
    let custom = with("{policies: {p: {permissions: [{matcher: {name: m}}], principals: [{any: true}]}}}");
    assert!(custom.contains("permissions[0].matcher: RBAC matcher m is not supported"), "{custom}");
    let regex =
        with("{policies: {p: {permissions: [{url_path: {path: {safe_regex: {regex: '('}}}}], principals: [{any: true}]}}}");
    assert!(regex.contains("permissions[0].url_path.path.safe_regex.regex: regex parse error"), "{regex}");
}

#[test]
fn rules_nested_beyond_reason_are_refused() {
    use skiff_proto::envoy::config::listener::v3::filter::ConfigType;
    use skiff_proto::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac, permission, principal};
    use skiff_proto::envoy::extensions::filters::network::rbac::v3::Rbac as Filter;
    let yaml = "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [{filters: [\
                {name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC}},\
                {name: tcp, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,\
                stat_prefix: s, cluster: c}}]}]}";
    let nested = |depth: usize| {
        let any = Permission { rule: Some(permission::Rule::Any(true)) };
        let all = |inner, _| Permission { rule: Some(permission::Rule::AndRules(permission::Set { rules: vec![inner] })) };
        let principals = vec![Principal { identifier: Some(principal::Identifier::Any(true)) }];
        let policy = Policy { permissions: vec![(0..depth).fold(any, all)], principals, ..Policy::default() };
        let rules = Rbac { policies: [("p".to_owned(), policy)].into(), ..Rbac::default() };
        let filter = Filter { rules: Some(rules), stat_prefix: "s".to_owned(), ..Filter::default() };
        let mut message: Listener = message(yaml);
        let Some(ConfigType::TypedConfig(any)) = &mut message.filter_chains[0].filters[0].config_type else { panic!() };
        any.value = filter.encode_to_vec();
        listener(&message).map_err(|all| shown(&all).join("\n"))
    };
    assert!(nested(20).is_ok());
    for depth in [100, 2000] {
        let refused = nested(depth).unwrap_err();
        assert!(refused.contains("is nested more than 100 times"), "{refused}");
    }
}

#[test]
fn names_without_a_trust_anchor_would_accept_anybody() {
    let yaml = "
name: c
transport_socket:
  name: tls
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context: {validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: a}}]}}
";
    assert_eq!(
        shown(&cluster(&message::<Cluster>(yaml)).unwrap_err()),
        [
            "Cluster \"c\": transport_socket.typed_config.common_tls_context: expected trusted_ca beside subject alternative names: \
          without it any certificate would pass"
        ]
    );
}

#[test]
fn revocation_lists_are_part_of_a_verification() {
    let context = "{common_tls_context: {validation_context: {crl: {filename: a}}}}";
    let yaml = format!(
        "{{name: c, transport_socket: {{name: tls, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {}}}}}",
        &context[1..]
    );
    let rejected = shown(&cluster(&message::<Cluster>(&yaml)).unwrap_err());
    assert!(rejected[0].contains("common_tls_context: expected trusted_ca beside crl"), "{rejected:?}");
}

#[test]
fn a_listener_needs_an_address_and_a_terminal_filter() {
    assert_eq!(shown(&listener(&message::<Listener>("{name: l}")).unwrap_err()), ["Listener \"l\": address: is missing"]);
    let named = "{name: l, address: {socket_address: {address: localhost, port_value: 80}}}";
    assert_eq!(
        shown(&listener(&message::<Listener>(named)).unwrap_err()),
        ["Listener \"l\": address.socket_address.address: expected an IP address, found \"localhost\""]
    );
    let bare = "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [{}]}";
    assert_eq!(
        shown(&listener(&message::<Listener>(bare)).unwrap_err()),
        ["Listener \"l\": filter_chains[0].filters: expected a terminal filter: http_connection_manager or tcp_proxy"]
    );
}

#[test]
fn unknown_retry_conditions_and_hosts_without_domains_are_named() {
    let yaml = "{name: r, virtual_hosts: [{name: v, domains: ['*'], retry_policy: {retry_on: '5xx,on-a-whim'}}, {name: w}]}";
    assert_eq!(
        shown(&route_configuration(&message::<RouteConfiguration>(yaml)).unwrap_err()),
        [
            "RouteConfiguration \"r\": virtual_hosts[0].retry_policy.retry_on: condition \"on-a-whim\" is not supported",
            "RouteConfiguration \"r\": virtual_hosts[1].domains: is empty",
        ]
    );
}

/// A listener with this JWT filter; `provider` is the provider `p`, `rest` what stands beside the providers.
fn jwt_listener(provider: &str, rest: &str) -> String {
    format!(
        r#"
      route_config: {{name: r}}
      http_filters:
      - name: jwt
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
          providers:
            p: {{issuer: i, {provider}}}
          {rest}
      - name: router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}

#[test]
fn what_would_let_unverified_tokens_pass_rejects_the_listener() {
    let at = "Listener \"l\": filter_chains[0].filters[0].typed_config.http_filters[0].typed_config";
    let keys = "local_jwks: {inline_string: '{}'}";
    let remote = |uri: &str| format!("remote_jwks: {{http_uri: {{uri: '{uri}', cluster: c, timeout: 1s}}}}");
    for (provider, rest, expected) in [
        ("forward: true", "", "providers[\"p\"].jwks_source_specifier: is missing"),
        ("local_jwks: {environment_variable: X}", "", "providers[\"p\"].local_jwks.environment_variable: is not supported"),
        (
            &remote("ftp://host/keys"),
            "",
            "providers[\"p\"].remote_jwks.http_uri.uri: \"ftp://host/keys\": expected http or https",
        ),
        (
            &remote("http://169.254.169.254/keys"),
            "",
            "providers[\"p\"].remote_jwks.http_uri.uri: \"http://169.254.169.254/keys\": expected no link-local address",
        ),
        (
            "remote_jwks: {http_uri: {uri: 'http://h/', cluster: c}}",
            "",
            "providers[\"p\"].remote_jwks.http_uri.timeout: is missing",
        ),
        (
            &format!("{keys}, forward_payload_header: 'x y'"),
            "",
            "providers[\"p\"].forward_payload_header: expected a header name, found \"x y\"",
        ),
        (
            &format!("{keys}, claim_to_headers: [{{header_name: x}}]"),
            "",
            "providers[\"p\"].claim_to_headers[0]: expected claim_name or claim_path",
        ),
        (
            keys,
            "rules: [{match: {prefix: /}, requires: {extract_only_without_validation: {}}}]",
            "rules[0].requires.extract_only_without_validation: is not supported: it believes tokens that nobody has verified",
        ),
        (
            keys,
            "rules: [{match: {prefix: /, grpc: {}}, requires: {provider_name: p}}]",
            "rules[0].match: expected a path, headers and query_parameters only",
        ),
        (
            keys,
            "rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: p}]}}}]",
            "rules[0].requires.requires_any.requirements: expected two at least",
        ),
    ] {
        assert_eq!(shown(&http_listener(&jwt_listener(provider, rest)).unwrap_err()), [format!("{at}.{expected}")]);
    }
}
