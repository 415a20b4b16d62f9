//! `networking.istio.io` DestinationRule.

use std::path::PathBuf;

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{GoDuration, HostName, Port, Refused};
use super::{Labels, Selector};

/// [DestinationRule](https://istio.io/latest/docs/reference/config/networking/destination-rule/).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct DestinationRule {
    pub(in super::super) host: HostName,
    pub(in super::super) traffic_policy: Option<Located<TrafficPolicy>>,
    #[serde(default)]
    pub(in super::super) subsets: Vec<Subset>,
    #[serde(default)]
    pub(in super::super) export_to: Vec<String>,
    pub(in super::super) workload_selector: Option<Selector>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Subset {
    pub(in super::super) name: String,
    #[serde(default)]
    pub(in super::super) labels: Labels,
    pub(in super::super) traffic_policy: Option<Located<TrafficPolicy>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct TrafficPolicy {
    pub(in super::super) load_balancer: Option<LoadBalancer>,
    pub(in super::super) connection_pool: Option<ConnectionPool>,
    pub(in super::super) outlier_detection: Option<OutlierDetection>,
    pub(in super::super) tls: Option<Located<ClientTls>>,
    #[serde(default)]
    pub(in super::super) port_level_settings: Vec<PortPolicy>,
    tunnel: Option<Refused>,
    pub(in super::super) proxy_protocol: Option<ProxyProtocol>,
    pub(in super::super) retry_budget: Option<RetryBudget>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct ProxyProtocol {
    #[serde(default)]
    pub(in super::super) version: ProxyProtocolVersion,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(in super::super) enum ProxyProtocolVersion {
    #[default]
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct RetryBudget {
    /// Of 100 requests.
    pub(in super::super) percent: Option<f64>,
    pub(in super::super) min_retry_concurrency: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct PortPolicy {
    pub(in super::super) port: PortSelector,
    pub(in super::super) load_balancer: Option<LoadBalancer>,
    pub(in super::super) connection_pool: Option<ConnectionPool>,
    pub(in super::super) outlier_detection: Option<OutlierDetection>,
    pub(in super::super) tls: Option<Located<ClientTls>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct PortSelector {
    pub(in super::super) number: Port,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct LoadBalancer {
    pub(in super::super) simple: Option<SimpleLb>,
    pub(in super::super) consistent_hash: Option<ConsistentHash>,
    pub(in super::super) locality_lb_setting: Option<LocalityLb>,
    pub(in super::super) warmup: Option<Warmup>,
    pub(in super::super) warmup_duration_secs: Option<GoDuration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum SimpleLb {
    Unspecified,
    LeastConn,
    LeastRequest,
    Random,
    RoundRobin,
    Passthrough,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct ConsistentHash {
    pub(in super::super) http_header_name: Option<String>,
    pub(in super::super) http_cookie: Option<HashCookie>,
    pub(in super::super) use_source_ip: Option<bool>,
    pub(in super::super) http_query_parameter_name: Option<String>,
    pub(in super::super) ring_hash: Option<RingHash>,
    pub(in super::super) maglev: Option<Maglev>,
    pub(in super::super) minimum_ring_size: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct HashCookie {
    pub(in super::super) name: String,
    #[serde(default)]
    pub(in super::super) path: String,
    pub(in super::super) ttl: Option<GoDuration>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct RingHash {
    pub(in super::super) minimum_ring_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Maglev {
    pub(in super::super) table_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Warmup {
    pub(in super::super) duration: GoDuration,
    pub(in super::super) minimum_percent: Option<f64>,
    pub(in super::super) aggression: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct LocalityLb {
    pub(in super::super) enabled: Option<bool>,
    #[serde(default)]
    pub(in super::super) failover: Vec<Failover>,
    distribute: Option<Refused>,
    failover_priority: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Failover {
    pub(in super::super) from: String,
    pub(in super::super) to: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ConnectionPool {
    #[serde(default)]
    pub(in super::super) tcp: TcpPool,
    #[serde(default)]
    pub(in super::super) http: HttpPool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct TcpPool {
    pub(in super::super) max_connections: Option<u32>,
    pub(in super::super) connect_timeout: Option<GoDuration>,
    pub(in super::super) tcp_keepalive: Option<Keepalive>,
    pub(in super::super) max_connection_duration: Option<GoDuration>,
    pub(in super::super) idle_timeout: Option<GoDuration>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Keepalive {
    pub(in super::super) probes: Option<u32>,
    pub(in super::super) time: Option<GoDuration>,
    pub(in super::super) interval: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct HttpPool {
    pub(in super::super) http1_max_pending_requests: Option<u32>,
    pub(in super::super) http2_max_requests: Option<u32>,
    pub(in super::super) max_requests_per_connection: Option<u32>,
    pub(in super::super) max_retries: Option<u32>,
    pub(in super::super) idle_timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) h2_upgrade_policy: H2Upgrade,
    #[serde(default)]
    pub(in super::super) use_client_protocol: bool,
    pub(in super::super) max_concurrent_streams: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum H2Upgrade {
    #[default]
    Default,
    DoNotUpgrade,
    Upgrade,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct OutlierDetection {
    #[serde(rename = "consecutive5xxErrors")]
    pub(in super::super) consecutive_5xx_errors: Option<u32>,
    pub(in super::super) consecutive_gateway_errors: Option<u32>,
    pub(in super::super) consecutive_local_origin_failures: Option<u32>,
    #[serde(default)]
    pub(in super::super) split_external_local_origin_errors: bool,
    pub(in super::super) interval: Option<GoDuration>,
    pub(in super::super) base_ejection_time: Option<GoDuration>,
    pub(in super::super) max_ejection_percent: Option<u32>,
    pub(in super::super) min_health_percent: Option<u32>,
    consecutive_errors: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct ClientTls {
    pub(in super::super) mode: ClientTlsMode,
    pub(in super::super) client_certificate: Option<PathBuf>,
    pub(in super::super) private_key: Option<PathBuf>,
    pub(in super::super) ca_certificates: Option<PathBuf>,
    #[serde(default)]
    pub(in super::super) subject_alt_names: Vec<String>,
    #[serde(default)]
    pub(in super::super) sni: String,
    #[serde(default)]
    pub(in super::super) insecure_skip_verify: bool,
    credential_name: Option<Refused>,
    pub(in super::super) ca_crl: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum ClientTlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}
