//! What a listener does with connections before they are HTTP.

use std::time::Duration;

use skiff_proxy::config::{
    self, CertificatePin, CertificateSource, InlinePem, Revocation, SanMatcher, SourceType, StringMatcher,
};

use super::super::listener;
use super::{message, shown};

/// A listener with one TCP chain: what its match, its filters before the proxy, the proxy, and the chain say besides.
fn tcp_listener(matches: &str, filters: &str, proxy: &str, chain: &str) -> Result<config::FilterChain, Vec<String>> {
    let yaml = format!(
        r#"
name: l
address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
filter_chains:
- filter_chain_match: {{{matches}}}
  filters:
{filters}
  - name: tcp
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: s
      {proxy}
{chain}
"#
    );
    let listener = listener(&message(&yaml)).map_err(|rejected| shown(&rejected))?;
    Ok(listener.filter_chains[0].clone())
}

fn proxy(options: &str) -> Result<config::TcpProxy, Vec<String>> {
    match tcp_listener("", "", options, "")?.filter {
        config::NetworkFilter::Tcp(proxy) => Ok((*proxy).clone()),
        config::NetworkFilter::Http(_) => unreachable!("the chain is a TCP one"),
    }
}

#[test]
fn a_tcp_proxy_has_envoys_defaults() {
    let plain = proxy("cluster: a").unwrap();
    assert_eq!((plain.idle_timeout, plain.max_connect_attempts), (Some(Duration::from_secs(3600)), 1));
    assert_eq!(proxy("cluster: a\n      idle_timeout: 0s").unwrap().idle_timeout, None);
    assert!((plain.backoff, plain.log_interval, plain.hash_source_ip) == (None, None, false));
}

#[test]
fn a_tcp_proxy_is_what_its_fields_say() {
    let full = proxy(
        "weighted_clusters: {clusters: [{name: a, weight: 3, metadata_match: {filter_metadata: {envoy.lb: {v: one}}}}, {name: b, weight: 1}]}
      metadata_match: {filter_metadata: {envoy.lb: {v: all, w: all}}}
      max_connect_attempts: 3
      backoff_options: {base_interval: 0.1s}
      hash_policy: [{source_ip: {}}]
      max_downstream_connection_duration: 10s
      max_downstream_connection_duration_jitter_percentage: {value: 25}
      access_log_options: {access_log_flush_interval: 5s, flush_access_log_on_start: true}
      flush_access_log_on_connected: true",
    )
    .unwrap();
    let found: Vec<_> =
        full.clusters.iter().map(|c| (&*c.name, c.weight, &*c.metadata_match["v"], &*c.metadata_match["w"])).collect();
    assert_eq!(found, [("a", 3, "one", "all"), ("b", 1, "all", "all")]);
    assert_eq!(full.backoff, Some(config::Backoff { base: Duration::from_millis(100), max: Duration::from_secs(1) }));
    assert_eq!((full.max_connection_duration, full.max_connection_duration_jitter), (Some(Duration::from_secs(10)), 0.25));
    assert_eq!((full.log_interval, full.log_on_start, full.log_on_connected), (Some(Duration::from_secs(5)), true, true));
    assert!(full.hash_source_ip);
}

#[test]
fn values_that_cannot_be_meant_are_refused_by_name() {
    for (options, reason) in [
        ("cluster: a\n      max_connect_attempts: 0", "max_connect_attempts: expected at least 1"),
        ("cluster: a\n      hash_policy: [{filter_state: {key: k}}]", "filter_state is not supported"),
        ("weighted_clusters: {clusters: [{name: a, weight: 0}]}", "clusters[0].weight: expected at least 1"),
        (
            "cluster: a\n      backoff_options: {base_interval: 1s, max_interval: 0.5s}",
            "max_interval: expected at least base_interval",
        ),
        ("cluster: a\n      tunneling_config: {hostname: 'h:1'}", "tunneling_config is not supported"),
    ] {
        let rejected = proxy(options).unwrap_err();
        assert!(rejected.iter().any(|text| text.contains(reason)), "{reason}: {rejected:?}");
    }
    let chain = tcp_listener("server_names: ['a*.example']", "", "cluster: a", "").unwrap_err();
    assert!(chain[0].contains("server_names[0]: expected a name or *.name"), "{chain:?}");
}

#[test]
fn a_chain_matches_by_source_too() {
    let matches = "source_type: EXTERNAL, source_ports: [1, 2], server_names: ['*.A.example'], \
                   direct_source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]";
    let chain = tcp_listener(matches, "", "cluster: a", "").unwrap();
    assert_eq!((chain.matches.source_type, chain.matches.source_ports), (SourceType::External, vec![1, 2]));
    assert_eq!(chain.matches.server_names, ["*.a.example"]);
    assert_eq!(chain.matches.direct_source_prefix_ranges, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn a_limit_of_connections_can_be_switched_off() {
    let limit = |rest: &str| {
        let filter = format!(
            "  - name: limit\n    typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.\
             ConnectionLimit, stat_prefix: l, {rest}}}"
        );
        tcp_listener("", &filter, "cluster: a", "").map(|chain| chain.connection_limit)
    };
    let expected = config::ConnectionLimit { max: 2, delay: Some(Duration::from_secs(1)) };
    assert_eq!(limit("max_connections: 2, delay: 1s"), Ok(Some(expected)));
    assert_eq!(limit("max_connections: 2, runtime_enabled: {default_value: false, runtime_key: k}"), Ok(None));
    assert!(limit("delay: 1s").unwrap_err()[0].contains("max_connections"));
}

#[test]
fn peers_are_known_by_names_of_every_type_by_hash_and_by_key() {
    let tls = |validation: &str| {
        let socket = format!(
            "  transport_socket:\n    name: tls\n    typed_config:\n      \"@type\": \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n      common_tls_context: \
             {{tls_certificates: [{{certificate_chain: {{filename: c}}, private_key: {{filename: k}}}}], \
             validation_context: {{trusted_ca: {{filename: r}}, {validation}}}}}"
        );
        tcp_listener("", "", "cluster: a", &socket).map(|chain| chain.tls.unwrap())
    };
    let sans = "match_typed_subject_alt_names: [{san_type: EMAIL, matcher: {exact: a@b}}, {san_type: IP_ADDRESS, matcher: {exact: '::1'}}]";
    let (mail, ip) = (SanMatcher::Email(StringMatcher::exact("a@b")), SanMatcher::Ip(StringMatcher::exact("::1")));
    assert_eq!(tls(sans).unwrap().sans, [mail, ip]);
    let colons = ["AB"; 32].join(":");
    let key = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
    let pinned = tls(&format!("verify_certificate_hash: ['{colons}'], verify_certificate_spki: ['{key}']")).unwrap();
    assert_eq!(pinned.pins, [CertificatePin::Certificate([0xab; 32]), CertificatePin::Key([0xab; 32])]);
    assert_eq!(pinned.revocation, None);
    let lists = |file: &str| CertificateSource::RevocationFile(file.into());
    let revocation = |text: &str| tls(text).unwrap().revocation.clone().unwrap();
    let expected = Revocation { lists: lists("/etc/crl.pem"), leaf_only: false };
    assert_eq!(revocation("crl: {filename: /etc/crl.pem}"), expected);
    let expected = Revocation { lists: CertificateSource::RevocationInline(InlinePem::new("pem")), leaf_only: true };
    assert_eq!(revocation("crl: {inline_string: pem}, only_verify_leaf_cert_crl: true"), expected);
    for (wrong, reason) in [
        ("crl: {}", "crl: expected filename"),
        ("verify_certificate_hash: [abc]", "verify_certificate_hash[0]: expected a SHA-256 of 64 hexadecimal digits"),
        ("verify_certificate_spki: [abc]", "verify_certificate_spki[0]: expected a SHA-256 in base64"),
        ("allow_expired_certificate: true", "allow_expired_certificate is not supported"),
        ("trust_chain_verification: ACCEPT_UNTRUSTED", "trust_chain_verification is not supported"),
    ] {
        let rejected = tls(wrong).unwrap_err();
        assert!(rejected.iter().any(|text| text.contains(reason)), "{reason}: {rejected:?}");
    }
}
