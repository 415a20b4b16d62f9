//! The conversions in which a default or a unit is easily got wrong.

use std::time::Duration;

use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3::{CidrRange, HeaderValueOption};
use skiff_proto::envoy::config::rbac::v3::Rbac;
use skiff_proto::envoy::config::route::v3::{HeaderMatcher, RetryPolicy, RouteAction, RouteConfiguration};
use skiff_proto::envoy::r#type::matcher::v3::StringMatcher;
use skiff_proto::envoy::r#type::v3::FractionalPercent;
use skiff_proto::google::protobuf;
use skiff_proxy::config::{self, AppendAction, Fraction, HeaderMatch, StringMatch};

use super::super::{basic, cluster, jwt, rbac, route, route_action, route_configuration};
use super::{ROUTER, http_listener, message};

#[test]
fn durations_are_seconds_with_decimals() {
    for (text, expected) in [("0.250s", 250), ("10s", 10_000), ("0s", 0), ("0.000001s", 0), ("3600s", 3_600_000)] {
        let duration: protobuf::Duration = message(text);
        assert_eq!(basic::duration(&duration).unwrap().as_millis(), expected, "{text}");
    }
    let negative: protobuf::Duration = message("-1.5s");
    assert_eq!((negative.seconds, negative.nanos), (-1, -500_000_000));
    assert!(basic::duration(&negative).is_err());
}

#[test]
fn shares_keep_their_denominator() {
    for (yaml, millionths) in [
        ("{numerator: 12}", 120_000),
        ("{numerator: 12, denominator: TEN_THOUSAND}", 1_200),
        ("{numerator: 12, denominator: MILLION}", 12),
        ("{numerator: 250}", 1_000_000),
    ] {
        let percent: FractionalPercent = message(yaml);
        assert_eq!(basic::fractional_percent(&percent).unwrap(), Fraction::from_millionths(millionths), "{yaml}");
    }
}

#[test]
fn string_matchers_ignore_case_but_for_regexes() {
    let folded: StringMatcher = message("{prefix: /A, ignore_case: true}");
    let folded = basic::string_matcher(&folded).unwrap();
    assert_eq!((&folded.pattern, folded.ignore_case), (&StringMatch::Prefix("/A".to_owned()), true));
    let regex: StringMatcher = message("{safe_regex: {regex: 'a.*'}, ignore_case: true}");
    assert!(!basic::string_matcher(&regex).unwrap().ignore_case);
}

#[test]
fn header_matchers_have_an_old_and_a_new_form() {
    let old: HeaderMatcher = message("{name: X-A, exact_match: v, invert_match: true}");
    let new: HeaderMatcher = message("{name: x-a, string_match: {exact: v}, invert_match: true}");
    assert_eq!(basic::header_matcher(&old).unwrap(), basic::header_matcher(&new).unwrap());
    let bare: HeaderMatcher = message("{name: x-a}");
    assert_eq!(basic::header_matcher(&bare).unwrap().value, HeaderMatch::Present(true));
    let absent: HeaderMatcher = message("{name: x-a, present_match: false}");
    assert_eq!(basic::header_matcher(&absent).unwrap().value, HeaderMatch::Present(false));
}

#[test]
fn ranges_lose_their_host_bits() {
    for (yaml, expected) in [
        ("{address_prefix: 10.1.2.3, prefix_len: 16}", "10.1.0.0/16"),
        ("{address_prefix: 10.1.2.3}", "0.0.0.0/0"),
        ("{address_prefix: 'fd00::1', prefix_len: 64}", "fd00::/64"),
    ] {
        let range: CidrRange = message(yaml);
        assert_eq!(basic::cidr(&range).unwrap().to_string(), expected);
    }
}

#[test]
fn headers_are_appended_unless_said_otherwise() {
    for (yaml, expected) in [
        ("{header: {key: X-A, value: v}}", AppendAction::AppendIfExistsOrAdd),
        ("{header: {key: X-A, value: v}, append: true}", AppendAction::AppendIfExistsOrAdd),
        ("{header: {key: X-A, value: v}, append: false}", AppendAction::OverwriteIfExistsOrAdd),
        ("{header: {key: X-A, value: v}, append_action: ADD_IF_ABSENT}", AppendAction::AddIfAbsent),
        ("{header: {key: X-A, value: v}, append_action: OVERWRITE_IF_EXISTS}", AppendAction::OverwriteIfExists),
    ] {
        let option: HeaderValueOption = message(yaml);
        let option = route::header_value_option(&option).unwrap();
        assert_eq!((option.name.as_str(), option.action), ("x-a", expected), "{yaml}");
    }
}

#[test]
fn a_route_without_timeout_has_envoys() {
    let action = |yaml: &str| route_action::route_action(&message::<RouteAction>(yaml)).unwrap();
    assert_eq!(action("{cluster: c}").timeout, Some(Duration::from_secs(15)));
    assert_eq!(action("{cluster: c, timeout: 0s}").timeout, None);
    assert_eq!(action("{cluster: c}").idle_timeout, None);
    assert_eq!(action("{cluster: c, idle_timeout: 0s}").idle_timeout, Some(Duration::ZERO));
    let life = action("{cluster: c, max_stream_duration: {grpc_timeout_header_max: 0s}, max_grpc_timeout: 5s}");
    assert_eq!((life.max_stream_duration, life.grpc_timeout_header_max), (None, Some(Duration::ZERO)));
    assert_eq!((life.timeout, life.max_grpc_timeout), (None, None), "the new limits take the place of the old ones");
    let old = action("{cluster: c, max_grpc_timeout: 5s, grpc_timeout_offset: 0.1s}");
    assert_eq!((old.max_grpc_timeout, old.grpc_timeout_offset), (Some(Duration::from_secs(5)), Some(Duration::from_millis(100))));
}

#[test]
fn a_route_keeps_as_much_of_a_body_as_it_or_its_host_says() {
    let configuration = |limit: u32| {
        let yaml = format!(
            "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], per_request_buffer_limit_bytes: {limit}, routes: [
            {{match: {{prefix: /a}}, route: {{cluster: c}}, request_body_buffer_limit: 5}}, {{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]}}"
        );
        route::route_configuration(&message::<RouteConfiguration>(&yaml))
    };
    let kept: Vec<_> = configuration(7).unwrap().virtual_hosts[0]
        .host()
        .get()
        .routes
        .iter()
        .map(|route| match &route.action {
            config::RouteTarget::Forward(action) => action.request_body_buffer_limit,
            _ => None,
        })
        .collect();
    assert_eq!(kept, [Some(5), Some(7)]);
    let refused = configuration(2_000_000).unwrap_err();
    assert_eq!(refused[0].path, "virtual_hosts[0].request_body_buffer_limit");
}

#[test]
fn mirrors_and_retries_keep_their_finer_points() {
    let yaml = "{cluster: c, request_mirror_policies: [{cluster: m, disable_shadow_host_suffix_append: true}], retry_policy: {
        retry_on: 'retriable-headers,envoy-ratelimited', retriable_headers: [{name: X-Again}], retriable_request_headers: [{name: x-may}],
        rate_limited_retry_back_off: {reset_headers: [{name: Retry-After}, {name: x-reset, format: UNIX_TIMESTAMP}]}}}";
    let action = route_action::route_action(&message::<RouteAction>(yaml)).unwrap();
    assert!(action.mirrors[0].keeps_host);
    let retry = action.retry.unwrap();
    assert!(retry.retry_on.retriable_headers && retry.retry_on.envoy_ratelimited);
    assert_eq!((&*retry.retriable_headers[0].name, &*retry.retriable_request_headers[0].name), ("x-again", "x-may"));
    let back_off = retry.rate_limited.unwrap();
    let formats: Vec<_> = back_off.reset_headers.iter().map(|header| (header.name.as_str(), header.format)).collect();
    assert_eq!(formats, [("retry-after", config::ResetFormat::Seconds), ("x-reset", config::ResetFormat::UnixTimestamp)]);
    assert_eq!(back_off.max_interval, Duration::from_secs(300));
    let pseudo = "{retriable_headers: [{name: ':status'}]}";
    assert!(route_action::retry_policy(&message::<RetryPolicy>(pseudo)).is_err());
}

#[test]
fn weights_default_to_nothing_and_metadata_is_inherited() {
    let yaml = "{metadata_match: {filter_metadata: {envoy.lb: {version: v1}}}, weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b}]}}";
    let action = route_action::route_action(&message::<RouteAction>(yaml)).unwrap();
    let weights: Vec<_> = action.clusters.iter().map(|cluster| (cluster.name.as_str(), cluster.weight)).collect();
    assert_eq!(weights, [("a", 1), ("b", 0)]);
    assert!(action.clusters.iter().all(|cluster| cluster.metadata_match["version"] == "v1"));
}

#[test]
fn retry_words_become_conditions() {
    let yaml = "
retry_on: connect-failure, refused-stream,unavailable,cancelled,retriable-status-codes
retriable_status_codes: [503]
num_retries: 2
retry_host_predicate:
- name: previous
  typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}
host_selection_retry_max_attempts: 5
";
    let policy = route_action::retry_policy(&message::<RetryPolicy>(yaml)).unwrap();
    let mut expected = config::RetryPolicy::istio_default();
    expected.retry_on.status_codes = vec![503];
    assert_eq!(policy, expected);
    let plain =
        route_action::retry_policy(&message::<RetryPolicy>("{retry_on: 5xx, retry_back_off: {base_interval: 0.1s}}")).unwrap();
    assert_eq!((plain.num_retries, plain.max_interval, plain.host_selection_attempts), (1, Duration::from_secs(1), 0));
}

#[test]
fn retries_may_leave_priorities_alone() {
    let policy = |frequency: i32| {
        let kind = "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";
        let config = format!("{{'@type': {kind}, update_frequency: {frequency}}}");
        let yaml = format!("{{retry_on: 5xx, retry_priority: {{name: p, typed_config: {config}}}}}");
        route_action::retry_policy(&message::<RetryPolicy>(&yaml))
    };
    assert_eq!(policy(2).unwrap().previous_priorities.map(usize::from), Some(2));
    let error = policy(0).unwrap_err();
    assert_eq!(error[0].path, "retry_priority.typed_config.update_frequency");
    let other = "{retry_on: 5xx, retry_priority: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}}";
    assert!(route_action::retry_policy(&message::<RetryPolicy>(other)).is_err());
}

#[test]
fn status_codes_of_a_retry_count_only_when_a_word_asks() {
    let policy = route_action::retry_policy(&message::<RetryPolicy>("{retry_on: 5xx, retriable_status_codes: [409]}")).unwrap();
    assert_eq!((policy.retry_on.retriable_status_codes, policy.retry_on.status_codes), (false, vec![409]));
}

#[test]
fn a_connection_manager_has_envoys_defaults() {
    let manager = http_listener(&format!("      route_config: {{name: r}}\n{ROUTER}")).unwrap();
    assert_eq!(manager.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!((manager.max_headers_count, manager.max_request_headers_bytes), (100, 61_440));
    assert_eq!((manager.server_name.as_str(), manager.generate_request_id), ("envoy", true));
    let off = http_listener(&format!(
        "      stream_idle_timeout: 0s\n      common_http_protocol_options: {{idle_timeout: 0s}}\n      rds: {{route_config_name: r}}\n{ROUTER}"
    ))
    .unwrap();
    assert_eq!((off.stream_idle_timeout, off.idle_timeout), (None, None));
    assert_eq!(off.routes, config::RouteSource::Named("r".to_owned()));
}

#[test]
fn empty_allow_rules_stay_rules_that_nothing_passes() {
    let rules = rbac::rules(&message::<Rbac>("{action: ALLOW}")).unwrap();
    assert_eq!((rules.action, rules.policies.len()), (config::RbacAction::Allow, 0));
}

#[test]
fn clusters_have_envoys_defaults_and_zero_is_not_unset() {
    let translated = cluster(&message::<Cluster>("{name: c}")).unwrap();
    assert_eq!(translated.circuit_breakers, config::CircuitBreakers::default());
    assert_eq!(translated.lb_policy, config::LbPolicy::RoundRobin(None));
    assert_eq!(translated.panic_threshold, Fraction::from_millionths(500_000));
    let tuned = "
name: c
circuit_breakers: {thresholds: [{max_connections: 0, max_retries: 4294967295}]}
common_lb_config: {healthy_panic_threshold: {value: 0}}
load_balancing_policy:
  policies:
  - typed_extension_config:
      name: lr
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest
        choice_count: 3
";
    let translated = cluster(&message::<Cluster>(tuned)).unwrap();
    let breakers = translated.circuit_breakers;
    assert_eq!((breakers.max_connections, breakers.max_requests, breakers.max_retries), (0, 1024, u32::MAX));
    assert_eq!(translated.panic_threshold, Fraction::NONE);
    let config::LbPolicy::LeastRequest(policy) = translated.lb_policy else { unreachable!("the list names least_request") };
    assert_eq!(policy.choice_count.get(), 3);
}

#[test]
fn direct_responses_and_redirects_are_spelled_out() {
    let yaml = "
name: r
virtual_hosts:
- name: v
  domains: ['Example.COM']
  routes:
  - {match: {prefix: /}, redirect: {https_redirect: true, response_code: PERMANENT_REDIRECT, path_redirect: /x}}
  - {match: {path: /A, case_sensitive: false}, direct_response: {status: 204, body: {inline_string: hi}}}
";
    let routes = route_configuration(&message::<RouteConfiguration>(yaml)).unwrap();
    let host = routes.virtual_hosts[0].host().get();
    assert_eq!(host.domains, ["example.com"]);
    let config::RouteTarget::Redirect(redirect) = &host.routes[0].action else { unreachable!("the first is a redirect") };
    assert_eq!((redirect.scheme.as_deref(), redirect.status, redirect.port), (Some("https"), 308, None));
    assert!(host.routes[1].matches.ignore_case);
    let expected = config::DirectResponse { status: 204, body: b"hi".to_vec() };
    assert_eq!(host.routes[1].action, config::RouteTarget::DirectResponse(expected));
}

#[test]
fn remote_keys_have_envoys_defaults() {
    let remote = |yaml: &str| match jwt::filter("jwt", &message(&format!("{{providers: {{p: {{{yaml}}}}}}}"))).unwrap().providers
        ["p"]
        .jwks
    {
        config::Jwks::Remote(ref remote) => remote.clone(),
        ref other => panic!("{other:?}"),
    };
    let plain = remote("remote_jwks: {http_uri: {uri: 'https://issuer.example/keys?v=1', cluster: c, timeout: 2s}}");
    let second = Duration::from_secs(1);
    assert_eq!((plain.https, &*plain.authority, &*plain.path), (true, "issuer.example", "/keys?v=1"));
    assert_eq!((&*plain.cluster, plain.timeout, plain.cache_duration), ("c", second * 2, second * 600));
    assert_eq!((plain.retries, plain.async_fetch), (0, None));
    let more = remote(
        "remote_jwks: {http_uri: {uri: 'http://h:8080', cluster: c, timeout: 2s}, cache_duration: 5s, retry_policy: {}, async_fetch: {}}",
    );
    assert_eq!((&*more.authority, &*more.path, more.cache_duration), ("h:8080", "/", second * 5));
    assert_eq!((more.retries, more.base_interval, more.max_interval), (1, second, second * 10));
    assert_eq!(more.async_fetch, Some(config::JwksAsyncFetch { failed_refetch_duration: second }));
}

#[test]
fn claims_are_matched_as_text_or_as_an_element_of_a_list() {
    let form = |value: &str| {
        let yaml = format!(
            "{{policies: {{p: {{permissions: [{{any: true}}], principals: [{{metadata: {{filter: f, path: [{{key: a}}], value: {value}}}}}]}}}}}}"
        );
        let rules: Rbac = message(&yaml);
        match &rbac::rules(&rules).unwrap().policies["p"].principals[0] {
            config::Principal::Metadata(matcher) => matcher.form,
            other => panic!("{other:?}"),
        }
    };
    let (text, element) = ("{string_match: {exact: x}}", "{list_match: {one_of: {string_match: {exact: x}}}}");
    assert_eq!(form(text), config::MetadataForm::Text);
    assert_eq!(form(element), config::MetadataForm::Element);
    assert_eq!(form(&format!("{{or_match: {{value_matchers: [{element}, {text}]}}}}")), config::MetadataForm::TextOrElement);
    assert_eq!(form(&format!("{{or_match: {{value_matchers: [{text}, {text}]}}}}")), config::MetadataForm::Text);
}
