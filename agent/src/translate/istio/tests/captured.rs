//! Facts of what istiod sent, in the same shape as [`super::built`] gives for a snapshot.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Facts by resource name.
pub(super) type Facts = BTreeMap<String, Value>;

fn resources(scenario: &str, file: &str) -> Vec<Value> {
    let path = format!("{}/testdata/istio/{scenario}/{file}.json", env!("CARGO_MANIFEST_DIR"));
    // The one allowed difference: istiod's wildcard bind is the workload's own address here.
    let text = std::fs::read_to_string(path).unwrap().replace("\"0.0.0.0\"", "\"127.0.0.21\"").replace("0.0.0.0_", "127.0.0.21_");
    // Header names have no case.
    let text = text.replace("\"Authorization\"", "\"authorization\"");
    serde_json::from_str(&text).unwrap()
}

fn named(resources: &[Value], key: &str, facts: impl Fn(&Value) -> Value) -> Facts {
    resources.iter().map(|resource| (resource[key].as_str().unwrap().to_owned(), facts(resource))).collect()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn listeners(scenario: &str) -> Facts {
    named(&resources(scenario, "lds"), "name", |listener| {
        let socket = &listener["address"]["socket_address"];
        json!({
            "address": format!("{}:{}", socket["address"].as_str().unwrap(), socket["port_value"]),
            "direction": listener["traffic_direction"],
            "inspect_tls": list(&listener["listener_filters"]).iter().any(|f| f["name"] == "envoy.filters.listener.tls_inspector"),
            "chains": list(&listener["filter_chains"]).iter().map(chain).collect::<Vec<_>>(),
            "logs": list(&listener["access_log"]).len(),
        })
    })
}

fn chain(chain: &Value) -> Value {
    let matches = &chain["filter_chain_match"];
    let tls = &chain["transport_socket"]["typed_config"];
    let filter = list(&chain["filters"]).last().unwrap();
    let config = &filter["typed_config"];
    let common = &tls["common_tls_context"];
    json!({
        "port": matches["destination_port"],
        "transport": matches["transport_protocol"],
        "alpn": list(&matches["application_protocols"]),
        "tls": (!tls.is_null()).then(|| json!({
            "certificate": common["tls_certificate_sds_secret_configs"][0]["name"],
            "trust": common["combined_validation_context"]["validation_context_sds_secret_config"]["name"],
            "sans": common["combined_validation_context"]["default_validation_context"]["match_subject_alt_names"],
            "alpn": common["alpn_protocols"],
            "require": tls["require_client_certificate"],
        })),
        "exchange": exchange(list(&chain["filters"])),
        "filter": match filter["name"].as_str().unwrap() {
            "envoy.filters.network.tcp_proxy" => json!({
                "tcp": config["cluster"], "stat_prefix": config["stat_prefix"], "stats": stats(list(&chain["filters"])),
            }),
            _ => http(config),
        },
    })
}

/// The protocol of the exchange of peer metadata.
fn exchange(filters: &[Value]) -> Value {
    let filter = filters.iter().find(|filter| filter["name"] == "istio.metadata_exchange");
    filter.map_or(Value::Null, |filter| filter["typed_config"]["value"]["protocol"].clone())
}

fn stats(filters: &[Value]) -> Value {
    let filter = filters.iter().find(|filter| filter["name"] == "istio.stats").unwrap();
    filter["typed_config"].clone()
}

fn http(config: &Value) -> Value {
    json!({
        "stat_prefix": config["stat_prefix"],
        "rds": config["rds"]["route_config_name"],
        "inline": config.get("route_config").map(route_configuration),
        "filters": list(&config["http_filters"])
            .iter()
            .filter(|filter| !["envoy.filters.http.router", "istio.stats"].contains(&filter["name"].as_str().unwrap()))
            .map(|filter| match filter["name"].as_str().unwrap() {
                "envoy.filters.http.rbac" | "envoy.filters.http.jwt_authn" => filter["typed_config"].clone(),
                "istio.metadata_exchange" => filter["typed_config"]["value"].clone(),
                name => json!(name),
            })
            .collect::<Vec<_>>(),
        "stats": stats(list(&config["http_filters"])),
        "server_name": config["server_name"],
        "forward": config["forward_client_cert_details"],
        "details": config["set_current_client_cert_details"],
        "normalize": config["normalize_path"],
        "continue": config["proxy_100_continue"],
        "upgrades": config["upgrade_configs"],
        "idle": config["stream_idle_timeout"],
        "logs": list(&config["access_log"]).len(),
    })
}

pub(super) fn routes(scenario: &str) -> Facts {
    named(&resources(scenario, "rds"), "name", route_configuration)
}

fn route_configuration(config: &Value) -> Value {
    json!({
        "name": config["name"],
        "ignore_port": config["ignore_port_in_host_matching"] == true,
        "hosts": list(&config["virtual_hosts"]).iter().map(|host| json!({
            "name": host["name"],
            "domains": host["domains"],
            "attempts": host["include_request_attempt_count"] == true,
            "routes": list(&host["routes"]).iter().map(route).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn route(route: &Value) -> Value {
    let matches = &route["match"];
    let action = &route["route"];
    let retry = &action["retry_policy"];
    let fraction = |value: &Value| value["numerator"].clone();
    let fault = &route["typed_per_filter_config"]["envoy.filters.http.fault"];
    json!({
        "name": route["name"].as_str().unwrap_or_default(),
        "prefix": matches["prefix"], "path": matches["path"], "regex": matches["safe_regex"]["regex"],
        "ignore_case": matches["case_sensitive"] == false,
        "headers": list(&matches["headers"]),
        "query": list(&matches["query_parameters"]),
        "clusters": match list(&action["weighted_clusters"]["clusters"]) {
            [] => action.get("cluster").map(|name| json!([[name, 1]])).unwrap_or(json!([])),
            many => many.iter().map(|cluster| json!([cluster["name"], cluster["weight"]])).collect(),
        },
        "timeout": action["timeout"],
        "grpc_timeout": action["max_stream_duration"].get("grpc_timeout_header_max").unwrap_or(&action["max_grpc_timeout"]),
        "max_stream_duration": action["max_stream_duration"]["max_stream_duration"],
        "retry": (!retry.is_null()).then(|| json!({
            "on": retry["retry_on"].as_str().unwrap().split(',').filter(|word| *word != "retriable-status-codes")
                .collect::<std::collections::BTreeSet<_>>(),
            "codes": list(&retry["retriable_status_codes"]),
            "count": retry["num_retries"],
            "try_timeout": retry["per_try_timeout"],
            "hosts": retry["host_selection_retry_max_attempts"].as_str().unwrap_or("0"),
        })),
        "prefix_rewrite": action["prefix_rewrite"],
        "regex_rewrite": action.get("regex_rewrite").map(|r| json!([r["pattern"]["regex"], r["substitution"]])),
        "host_rewrite": action["host_rewrite_literal"],
        "mirrors": list(&action["request_mirror_policies"]).iter()
            .map(|m| json!([m["cluster"], fraction(&m["runtime_fraction"]["default_value"])])).collect::<Vec<_>>(),
        "hash": list(&action["hash_policy"]),
        "redirect": route["redirect"],
        "direct": route.get("direct_response")
            .map(|d| json!([d["status"], d["body"]["inline_string"].as_str().unwrap_or_default()])),
        "request_add": route["request_headers_to_add"], "request_remove": list(&route["request_headers_to_remove"]),
        "response_add": route["response_headers_to_add"],
        "fault": (!fault.is_null()).then(|| json!([
            fault["delay"]["fixed_delay"], fraction(&fault["delay"]["percentage"]),
            fault["abort"]["http_status"], fraction(&fault["abort"]["percentage"]),
        ])),
        "cors": route["typed_per_filter_config"].get("envoy.filters.http.cors").map(|cors| json!([
            cors["allow_origin_string_match"], cors["allow_methods"], cors["allow_headers"], cors["expose_headers"],
            cors["max_age"], cors["allow_credentials"], cors["forward_not_matching_preflights"],
        ])),
    })
}

pub(super) fn clusters(scenario: &str) -> Facts {
    named(&resources(scenario, "cds"), "name", |cluster| {
        let thresholds = &cluster["circuit_breakers"]["thresholds"][0];
        let options = &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        let socket = |socket: &Value| match socket["typed_config"].get("common_tls_context") {
            None => json!("plain"),
            Some(common) => {
                let validation = &common["combined_validation_context"];
                json!({
                    "sni": socket["typed_config"]["sni"],
                    "alpn": list(&common["alpn_protocols"]),
                    "sans": list(&validation["default_validation_context"]["match_subject_alt_names"]),
                    "certificate": common["tls_certificate_sds_secret_configs"][0]["name"],
                    "trust": validation["validation_context_sds_secret_config"]["name"],
                })
            }
        };
        json!({
            "type": cluster["type"],
            "connect_timeout": cluster["connect_timeout"],
            "lb": match cluster["lb_policy"].as_str() { None | Some("CLUSTER_PROVIDED") => "ROUND_ROBIN", Some(policy) => policy },
            "breakers": (!thresholds.is_null()).then(|| json!([
                thresholds["max_connections"], thresholds["max_pending_requests"], thresholds["max_requests"], thresholds["max_retries"],
            ])),
            "panic": cluster["common_lb_config"].get("healthy_panic_threshold").map(|p| p["value"].as_u64().unwrap_or(0)),
            "http2": !options["explicit_http_config"]["http2_protocol_options"].is_null(),
            "use_downstream": options.get("use_downstream_protocol_config").is_some(),
            "idle": options["common_http_protocol_options"]["idle_timeout"],
            "matches": list(&cluster["transport_socket_matches"]).iter()
                .map(|m| json!([m["name"], m["match"], socket(&m["transport_socket"])])).collect::<Vec<_>>(),
            "socket": socket(&cluster["transport_socket"]),
            "outlier": cluster.get("outlier_detection").map(|o| json!([
                o["consecutive_5xx"], o["consecutive_gateway_failure"], o["consecutive_local_origin_failure"],
                o["interval"].as_str().unwrap_or("10s"), o["base_ejection_time"].as_str().unwrap_or("30s"),
                o["max_ejection_percent"].as_u64().unwrap_or(10),
            ])),
            "service": cluster["metadata"]["filter_metadata"]["istio"]["services"][0]["host"],
            "external": cluster["metadata"]["filter_metadata"]["istio"]["external"] == true,
            "exchange": exchange(list(&cluster["filters"])),
            "load": cluster.get("load_assignment").map(load),
        })
    })
}

pub(super) fn endpoints(scenario: &str) -> Facts {
    named(&resources(scenario, "eds"), "cluster_name", load)
}

fn load(load: &Value) -> Value {
    let localities = list(&load["endpoints"]).iter().map(|group| {
        json!({
            "region": group["locality"]["region"].as_str().unwrap_or_default(),
            "zone": group["locality"]["zone"].as_str().unwrap_or_default(),
            "priority": group["priority"].as_u64().unwrap_or(0),
            "endpoints": list(&group["lb_endpoints"]).iter().map(|endpoint| {
                let metadata = &endpoint["metadata"]["filter_metadata"];
                let address = &endpoint["endpoint"]["address"];
                json!({
                    "address": match address.get("pipe") {
                        Some(pipe) => pipe["path"].as_str().unwrap().to_owned(),
                        None => format!("{}:{}", address["socket_address"]["address"].as_str().unwrap(),
                            address["socket_address"]["port_value"]),
                    },
                    "weight": endpoint["load_balancing_weight"].as_u64().unwrap_or(1),
                    "tls_mode": metadata["envoy.transport_socket_match"]["tlsMode"],
                    "workload": metadata["istio"]["workload"],
                })
            }).collect::<Vec<_>>(),
        })
    });
    json!(localities.collect::<Vec<_>>())
}
