//! Facts of a snapshot, in the same shape as [`super::captured`] gives for what istiod sent.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_proxy::config::*;

use super::captured::Facts;

fn seconds(duration: Duration) -> Value {
    let text = format!("{:.3}", duration.as_secs_f64());
    json!(format!("{}s", text.trim_end_matches('0').trim_end_matches('.')))
}

fn option(duration: Option<Duration>) -> Value {
    duration.map_or(Value::Null, seconds)
}

/// Envoy writes an absent limit as zero seconds.
fn zero_is_off(duration: Option<Duration>) -> Value {
    seconds(duration.unwrap_or(Duration::ZERO))
}

pub(super) fn listeners(snapshot: &Snapshot) -> Facts {
    let facts = |listener: &Listener| {
        json!({
            "address": listener.address.to_string(),
            "direction": format!("{:?}", listener.traffic_direction).to_uppercase(),
            "inspect_tls": listener.inspect_tls,
            "chains": listener.filter_chains.iter().map(chain).collect::<Vec<_>>(),
            "logs": listener.access_log.len(),
        })
    };
    snapshot.listeners.iter().map(|(name, listener)| (name.clone(), facts(listener))).collect()
}

fn chain(chain: &FilterChain) -> Value {
    let secret = |source: &CertificateSource| match source {
        CertificateSource::Secret(name) => json!(name),
        other => panic!("{other:?}"),
    };
    json!({
        "port": chain.matches.destination_port,
        "transport": chain.matches.transport_protocol.map(|transport| match transport {
            TransportProtocol::Tls => "tls",
            TransportProtocol::RawBuffer => "raw_buffer",
        }),
        "alpn": chain.matches.application_protocols,
        "tls": chain.tls.as_ref().map(|tls| json!({
            "certificate": secret(&tls.certificate),
            "trust": tls.trust.as_ref().map(secret),
            "sans": tls.sans.iter().map(san).collect::<Vec<_>>(),
            "alpn": tls.alpn,
            "require": tls.require_client_certificate,
        })),
        "exchange": chain.peer_exchange.as_ref().map(|exchange| &exchange.protocol),
        "filter": match &chain.filter {
            NetworkFilter::Tcp(tcp) => json!({
                "tcp": tcp.clusters[0].name, "stat_prefix": tcp.stat_prefix, "stats": stats(tcp.stats.as_ref().unwrap()),
            }),
            NetworkFilter::Http(http) => self::http(http),
        },
    })
}

/// The fields of `stats.PluginConfig` that are set.
fn stats(stats: &IstioStats) -> Value {
    assert_eq!((stats.tcp_reporting_duration, &stats.overrides), (Some(Duration::from_secs(5)), &Vec::new()));
    if stats.disable_host_header_fallback { json!({ "disable_host_header_fallback": true }) } else { json!({}) }
}

fn san(san: &SanMatcher) -> Value {
    match san {
        SanMatcher::Any(matcher)
        | SanMatcher::Uri(matcher)
        | SanMatcher::Dns(matcher)
        | SanMatcher::Email(matcher)
        | SanMatcher::Ip(matcher) => text(matcher),
    }
}

pub(super) fn text(matcher: &StringMatcher) -> Value {
    let mut value = match &matcher.pattern {
        StringMatch::Exact(text) => json!({ "exact": text }),
        StringMatch::Prefix(text) => json!({ "prefix": text }),
        StringMatch::Suffix(text) => json!({ "suffix": text }),
        StringMatch::Contains(text) => json!({ "contains": text }),
        StringMatch::Regex(regex) => json!({ "safe_regex": { "regex": regex.as_str() } }),
    };
    if matcher.ignore_case {
        value["ignore_case"] = json!(true);
    }
    value
}

fn http(http: &HttpConnectionManager) -> Value {
    let inbound = http.direction == TrafficDirection::Inbound;
    let (rds, inline) = match &http.routes {
        RouteSource::Named(name) => (json!(name), None),
        RouteSource::Inline(config) => (Value::Null, Some(route_configuration(config))),
    };
    let details = &http.client_cert_details;
    json!({
        "stat_prefix": http.stat_prefix,
        "rds": rds,
        "inline": inline,
        "filters": http.filters.iter().map(|filter| match filter {
            HttpFilter::JwtAuthn(jwt) => super::jwt::filter(jwt),
            HttpFilter::Rbac(rbac) => super::rbac::filter(rbac),
            HttpFilter::ExtAuthz(authz) => json!(authz.name),
            HttpFilter::LocalRateLimit(limit) => json!(limit.name),
            HttpFilter::PeerMetadata(peer) => super::peer::filter(peer),
            HttpFilter::Fault => json!("envoy.filters.http.fault"),
            HttpFilter::Cors => json!("envoy.filters.http.cors"),
            HttpFilter::Alpn(alpn) => {
                assert_eq!(alpn.http1, ["istio-http/1.1", "istio", "http/1.1"]);
                assert_eq!(alpn.http2, ["istio-h2", "istio", "h2"]);
                json!("istio.alpn")
            }
        }).collect::<Vec<_>>(),
        "stats": stats(http.stats.as_ref().unwrap()),
        "server_name": inbound.then_some(&http.server_name),
        "forward": (http.forward_client_cert == ForwardClientCert::AppendForward).then_some("APPEND_FORWARD"),
        "details": inbound.then(|| json!({ "subject": details.subject, "dns": details.dns, "uri": details.uri })),
        "normalize": http.normalize_path,
        "continue": http.proxy_100_continue,
        "upgrades": http.upgrades.iter().map(|upgrade| {
            assert_eq!(*upgrade, UpgradeType::WebSocket);
            json!({ "upgrade_type": "websocket" })
        }).collect::<Vec<_>>(),
        "idle": zero_is_off(http.stream_idle_timeout),
        "logs": http.access_log.len(),
    })
}

pub(super) fn routes(snapshot: &Snapshot) -> Facts {
    snapshot.routes.iter().map(|(name, config)| (name.clone(), route_configuration(config))).collect()
}

fn route_configuration(config: &RouteConfiguration) -> Value {
    json!({
        "name": config.name,
        "ignore_port": config.ignore_port_in_host_matching,
        "hosts": config.virtual_hosts.iter().map(|host| json!({
            "name": host.name,
            "domains": host.domains,
            "attempts": host.include_request_attempt_count,
            "routes": host.routes.iter().map(route).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

pub(super) fn header(matcher: &HeaderMatcher) -> Value {
    let mut value = json!({ "name": matcher.name });
    match &matcher.value {
        HeaderMatch::Present(present) => value["present_match"] = json!(present),
        HeaderMatch::String(matcher) => value["string_match"] = text(matcher),
        HeaderMatch::Range { .. } => panic!("{matcher:?}"),
    }
    if matcher.invert {
        value["invert_match"] = json!(true);
        value["treat_missing_header_as_empty"] = json!(matcher.treat_missing_as_empty);
    }
    value
}

fn route(route: &Route) -> Value {
    let (prefix, path, regex) = match &route.matches.path {
        PathMatch::Prefix(text) => (json!(text), Value::Null, Value::Null),
        PathMatch::Exact(text) => (Value::Null, json!(text), Value::Null),
        PathMatch::Regex(regex) => (Value::Null, Value::Null, json!(regex.as_str())),
        other => panic!("{other:?}"),
    };
    let action = match &route.action {
        RouteTarget::Forward(action) => Some(action),
        _ => None,
    };
    let rewrite = action.and_then(|action| action.path_rewrite.as_ref());
    json!({
        "name": route.name,
        "prefix": prefix, "path": path, "regex": regex,
        "ignore_case": route.matches.ignore_case,
        "headers": route.matches.headers.iter().map(header).collect::<Vec<_>>(),
        "query": route.matches.query_parameters.iter()
            .map(|query| json!({ "name": query.name, "string_match": query.value.as_ref().map(text) })).collect::<Vec<_>>(),
        "clusters": action.map_or(json!([]), |action| {
            action.clusters.iter().map(|cluster| json!([cluster.name, cluster.weight])).collect()
        }),
        "timeout": action.map(|action| zero_is_off(action.timeout)),
        "grpc_timeout": action.map(|action| option(action.grpc_timeout_header_max)),
        "max_stream_duration": action.map(|action| option(action.max_stream_duration)),
        "retry": action.and_then(|action| action.retry.as_ref()).map(retry),
        "prefix_rewrite": match rewrite { Some(PathRewrite::Prefix(prefix)) => json!(prefix), _ => Value::Null },
        "regex_rewrite": match rewrite {
            Some(PathRewrite::Regex { pattern, substitution }) => json!([pattern.as_str(), substitution]),
            _ => Value::Null,
        },
        "host_rewrite": match action.and_then(|action| action.host_rewrite.as_ref()) {
            Some(HostRewrite::Literal(host)) => json!(host),
            _ => Value::Null,
        },
        "mirrors": action.map_or(Vec::new(), |action| {
            action.mirrors.iter().map(|mirror| json!([mirror.cluster, mirror.fraction.millionths()])).collect()
        }),
        "hash": action.map_or(Vec::new(), |action| action.hash_policy.iter().map(hash).collect()),
        "redirect": redirect(&route.action),
        "direct": match &route.action {
            RouteTarget::DirectResponse(direct) => json!([direct.status, String::from_utf8_lossy(&direct.body)]),
            _ => Value::Null,
        },
        "request_add": headers(&route.headers.request_add), "request_remove": route.headers.request_remove,
        "response_add": headers(&route.headers.response_add),
        "fault": route.fault.as_ref().map(|fault| {
            let (delay, abort) = (fault.delay.as_ref().unwrap(), fault.abort.as_ref().unwrap());
            json!([seconds(delay.fixed), delay.fraction.millionths(), abort.http_status, abort.fraction.millionths()])
        }),
        "cors": route.cors.as_ref().map(|cors| json!([
            cors.allow_origins.iter().map(text).collect::<Vec<_>>(), cors.allow_methods, cors.allow_headers, cors.expose_headers,
            cors.max_age, cors.allow_credentials, cors.forward_not_matching_preflights,
        ])),
    })
}

fn headers(options: &[HeaderValueOption]) -> Value {
    let one = |option: &HeaderValueOption| {
        let mut value = json!({ "header": { "key": option.name, "value": option.value } });
        if option.action == AppendAction::OverwriteIfExistsOrAdd {
            value["append_action"] = json!("OVERWRITE_IF_EXISTS_OR_ADD");
        }
        value
    };
    if options.is_empty() { Value::Null } else { options.iter().map(one).collect() }
}

fn hash(policy: &HashPolicy) -> Value {
    match policy {
        HashPolicy::Cookie { name, ttl, path } => json!({ "cookie": { "name": name, "ttl": option(*ttl), "path": path } }),
        HashPolicy::SourceIp => json!({ "connection_properties": { "source_ip": true } }),
        HashPolicy::Header(name) => json!({ "header": { "header_name": name } }),
        HashPolicy::QueryParameter(name) => json!({ "query_parameter": { "name": name } }),
    }
}

fn redirect(action: &RouteTarget) -> Value {
    let RouteTarget::Redirect(redirect) = action else { return Value::Null };
    let Some(RedirectPath::Full(path)) = &redirect.path else { panic!("{redirect:?}") };
    assert_eq!((redirect.status, redirect.port), (302, None));
    json!({
        "scheme_redirect": redirect.scheme, "host_redirect": redirect.host, "path_redirect": path, "response_code": "FOUND",
    })
}

fn retry(policy: &RetryPolicy) -> Value {
    let on = &policy.retry_on;
    let grpc = |code: &u16| match code {
        1 => "cancelled",
        14 => "unavailable",
        other => panic!("{other}"),
    };
    let mut words: std::collections::BTreeSet<&str> = on.grpc_statuses.iter().map(grpc).collect();
    let flags = [
        (on.connect_failure, "connect-failure"),
        (on.refused_stream, "refused-stream"),
        (on.reset_before_request, "reset-before-request"),
        (on.server_error, "5xx"),
        (on.gateway_error, "gateway-error"),
        (on.reset, "reset"),
    ];
    words.extend(flags.iter().filter(|(set, _)| *set).map(|(_, word)| word));
    json!({
        "on": words,
        "codes": on.status_codes,
        "count": policy.num_retries,
        "try_timeout": option(policy.per_try_timeout),
        "hosts": policy.host_selection_attempts.to_string(),
    })
}

pub(super) fn clusters(snapshot: &Snapshot) -> Facts {
    snapshot.clusters.iter().map(|(name, cluster)| (name.clone(), self::cluster(cluster))).collect()
}

fn cluster(cluster: &Cluster) -> Value {
    let (kind, assignment) = match &cluster.discovery {
        ClusterDiscovery::Static(assignment) if assignment.localities.is_empty() => ("STATIC", None),
        ClusterDiscovery::Static(assignment) => ("STATIC", Some(load(assignment))),
        ClusterDiscovery::Eds(name) => {
            assert_eq!(*name, cluster.name);
            ("EDS", None)
        }
        ClusterDiscovery::StrictDns(dns) => ("STRICT_DNS", Some(load(&dns.endpoints))),
        ClusterDiscovery::LogicalDns(dns) => ("LOGICAL_DNS", Some(load(&dns.endpoints))),
        ClusterDiscovery::OriginalDst => ("ORIGINAL_DST", None),
    };
    let breakers = &cluster.circuit_breakers;
    let panic = cluster.panic_threshold.millionths();
    json!({
        "type": kind,
        "connect_timeout": seconds(cluster.connect_timeout),
        "lb": match cluster.lb_policy {
            LbPolicy::RoundRobin(_) => "ROUND_ROBIN",
            LbPolicy::LeastRequest(_) => "LEAST_REQUEST",
            LbPolicy::Random => "RANDOM",
            LbPolicy::RingHash(_) => "RING_HASH",
            LbPolicy::Maglev(_) => "MAGLEV",
        },
        "breakers": (*breakers != CircuitBreakers::default()).then(|| json!([
            breakers.max_connections, breakers.max_pending_requests, breakers.max_requests, breakers.max_retries,
        ])),
        "panic": (panic != 500_000).then_some(panic / 10_000),
        "http2": cluster.protocol == UpstreamProtocol::Http2,
        "use_downstream": cluster.protocol == UpstreamProtocol::UseDownstream,
        "idle": option(cluster.http.idle_timeout.filter(|idle| *idle != Duration::from_secs(3600))),
        "matches": cluster.transport_socket_matches.iter()
            .map(|m| json!([m.name, m.matches, socket(&m.socket)])).collect::<Vec<_>>(),
        "socket": socket(&cluster.transport_socket),
        "outlier": cluster.outlier_detection.as_ref().map(|outlier| {
            let row = |row: Option<ConsecutiveFailures>| row.map(|row| row.count);
            json!([
                row(outlier.consecutive_5xx), row(outlier.consecutive_gateway_failure), row(outlier.consecutive_local_origin_failure),
                seconds(outlier.interval), seconds(outlier.base_ejection_time), outlier.max_ejection_percent,
            ])
        }),
        "service": cluster.service.as_ref().map(|service| &service.host),
        "external": cluster.external,
        "exchange": cluster.peer_exchange.as_ref().map(|exchange| &exchange.protocol),
        "load": assignment,
    })
}

fn socket(socket: &TransportSocket) -> Value {
    let TransportSocket::Tls(tls) = socket else { return json!("plain") };
    let source = |source: &CertificateSource| match source {
        CertificateSource::Secret(name) => name.clone(),
        CertificateSource::System => "file-root:system".to_owned(),
        CertificateSource::Files { certificates, .. } => format!("file-root:{}", certificates.display()),
        CertificateSource::Inline { .. } => panic!("istiod writes no certificates inline"),
    };
    json!({
        "sni": tls.sni,
        "alpn": tls.alpn,
        "sans": tls.sans.iter().map(san).collect::<Vec<_>>(),
        "certificate": tls.certificate.as_ref().map(source),
        "trust": tls.trust.as_ref().map(source),
    })
}

pub(super) fn endpoints(snapshot: &Snapshot) -> Facts {
    snapshot.endpoints.iter().map(|(name, assignment)| (name.clone(), load(assignment))).collect()
}

fn load(load: &ClusterLoadAssignment) -> Value {
    let address = |address: &EndpointAddress| match address {
        EndpointAddress::Socket(socket) => socket.to_string(),
        EndpointAddress::Pipe(path) => path.display().to_string(),
        EndpointAddress::Name(name, port) => format!("{name}:{port}"),
    };
    let endpoint = |endpoint: &Endpoint| {
        json!({
            "address": address(&endpoint.address),
            "weight": endpoint.weight,
            "tls_mode": endpoint.transport_match.get("tlsMode"),
            "workload": endpoint.workload.as_ref().map(|w| {
                format!("{};{};{};{};{}", w.name, w.namespace, w.canonical_service, w.canonical_revision, w.cluster)
            }),
        })
    };
    load.localities
        .iter()
        .map(|group| {
            json!({
                "region": group.locality.region, "zone": group.locality.zone, "priority": group.priority,
                "endpoints": group.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            })
        })
        .collect()
}
