//! What an operator wants to know about the proxy itself.
//!
//! Each fact has one series. Where Envoy has it too, it has the name that Envoy's `/stats/prometheus` gives it (labels as
//! Istio's bootstrap names them), because dashboards and alerts ask for that name: all of `envoy_listener_*`
//! (`listener_address`) and `envoy_cluster_*` (`cluster_name`) below. Everything else is `skiff_*`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Label};

use super::{Description, Kind, Registry};
use crate::jwt;

const LISTENER_CONNECTIONS_ACTIVE: &str = "envoy_listener_downstream_cx_active";
const LISTENER_CONNECTIONS_TOTAL: &str = "envoy_listener_downstream_cx_total";
const LISTENER_OVERFLOW: &str = "envoy_listener_downstream_cx_overflow";
const LISTENER_TLS_ERRORS: &str = "envoy_listener_ssl_connection_error";
const CLUSTER_CONNECTIONS_ACTIVE: &str = "envoy_cluster_upstream_cx_active";
const CLUSTER_CONNECTIONS_TOTAL: &str = "envoy_cluster_upstream_cx_total";
const CLUSTER_CONNECT_FAILURES: &str = "envoy_cluster_upstream_cx_connect_fail";
const CLUSTER_CONNECTION_OVERFLOW: &str = "envoy_cluster_upstream_cx_overflow";
const CLUSTER_PENDING_OVERFLOW: &str = "envoy_cluster_upstream_rq_pending_overflow";
const CLUSTER_RETRIES: &str = "envoy_cluster_upstream_rq_retry";
const JWT_ALLOWED: &str = "envoy_http_jwt_authn_allowed";
const JWT_DENIED: &str = "envoy_http_jwt_authn_denied";
const JWT_PREFLIGHTS: &str = "envoy_http_jwt_authn_cors_preflight_bypassed";
const JWT_FETCHED: &str = "envoy_http_jwt_authn_jwks_fetch_success";
const JWT_FETCH_FAILED: &str = "envoy_http_jwt_authn_jwks_fetch_failed";
const JWT_CACHE_HIT: &str = "envoy_http_jwt_authn_jwt_cache_hit";
const JWT_CACHE_MISS: &str = "envoy_http_jwt_authn_jwt_cache_miss";
const CONFIG_VERSION: &str = "skiff_config_version";
const CONFIG_UPDATES: &str = "skiff_config_updates_total";
const CONFIG_REJECTED: &str = "skiff_config_rejected_resources_total";
const CERTIFICATE_EXPIRATION: &str = "skiff_certificate_expiration_timestamp_seconds";
const ACCESS_LOG_DROPPED: &str = "skiff_access_log_dropped_total";
const DRAINING: &str = "skiff_draining";
const DRAINED: &str = "skiff_drained_connections_total";

pub(super) const DESCRIPTIONS: &[Description] = &[
    (Kind::Gauge, LISTENER_CONNECTIONS_ACTIVE, "Open downstream connections."),
    (Kind::Counter, LISTENER_CONNECTIONS_TOTAL, "Downstream connections accepted."),
    (Kind::Counter, LISTENER_OVERFLOW, "Downstream connections closed because of a connection limit."),
    (Kind::Counter, LISTENER_TLS_ERRORS, "Downstream TLS handshakes that failed."),
    (Kind::Gauge, CLUSTER_CONNECTIONS_ACTIVE, "Open upstream connections."),
    (Kind::Counter, CLUSTER_CONNECTIONS_TOTAL, "Upstream connections made."),
    (Kind::Counter, CLUSTER_CONNECT_FAILURES, "Upstream connections that could not be made."),
    (Kind::Counter, CLUSTER_CONNECTION_OVERFLOW, "Times that the circuit breaker of connections was open."),
    (Kind::Counter, CLUSTER_PENDING_OVERFLOW, "Requests failed because the circuit breaker of requests was open."),
    (Kind::Counter, CLUSTER_RETRIES, "Requests sent again."),
    (Kind::Counter, JWT_ALLOWED, "Requests that JWT authentication let pass."),
    (Kind::Counter, JWT_DENIED, "Requests that JWT authentication refused."),
    (Kind::Counter, JWT_PREFLIGHTS, "CORS preflights that needed no token."),
    (Kind::Counter, JWT_FETCHED, "Key sets fetched."),
    (Kind::Counter, JWT_FETCH_FAILED, "Key sets that could not be fetched."),
    (Kind::Counter, JWT_CACHE_HIT, "Tokens that were known to be valid."),
    (Kind::Counter, JWT_CACHE_MISS, "Tokens that had to be verified."),
    (Kind::Gauge, CONFIG_VERSION, "Hash of the version of the configuration in force."),
    (Kind::Counter, CONFIG_UPDATES, "Configurations applied."),
    (Kind::Counter, CONFIG_REJECTED, "Resources of configurations that were refused."),
    (Kind::Gauge, CERTIFICATE_EXPIRATION, "End of validity of a secret's certificate, in seconds since 1970."),
    (Kind::Counter, ACCESS_LOG_DROPPED, "Access log lines that were lost because they could not be written in time."),
    (Kind::Gauge, DRAINING, "1 while the proxy drains."),
    (Kind::Counter, DRAINED, "Connections that ended because of a drain."),
];

/// Handles that live as long as the proxy, and the makers of those that come and go with configuration.
pub struct ProxyMetrics {
    registry: Arc<Registry>,
    config_version: Gauge,
    /// Configurations applied.
    pub config_updates: Counter,
    /// Resources refused.
    pub config_rejected: Counter,
    /// For [`crate::telemetry::LogWriter::start`].
    pub access_log_dropped: Counter,
    /// 1 while the proxy drains.
    pub draining: Gauge,
    /// Connections that ended because of a drain.
    pub drained_connections: Counter,
}

/// Handles of one listener.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    /// Open connections.
    pub connections_active: Gauge,
    /// Connections accepted.
    pub connections_total: Counter,
    /// Connections closed because of a limit.
    pub connections_overflow: Counter,
    /// TLS handshakes that failed.
    pub tls_handshake_failures: Counter,
}

/// Handles of one cluster. A mesh has thousands of clusters and a sidecar talks to a few: make these when a cluster is
/// used for the first time, not when it is configured.
#[derive(Clone, Debug)]
pub struct ClusterMetrics {
    /// Open connections.
    pub connections_active: Gauge,
    /// Connections made.
    pub connections_total: Counter,
    /// Connections that could not be made, time-outs included.
    pub connect_failures: Counter,
    /// The breaker `max_connections` was open.
    pub connection_overflow: Counter,
    /// The breaker `max_pending_requests` or `max_requests` was open.
    pub pending_overflow: Counter,
    /// Requests sent again.
    pub retries: Counter,
}

impl ProxyMetrics {
    /// Registers what does not depend on configuration.
    pub fn new(registry: &Arc<Registry>) -> Self {
        Self {
            config_version: registry.gauge(CONFIG_VERSION, Vec::new()),
            config_updates: registry.counter(CONFIG_UPDATES, Vec::new()),
            config_rejected: registry.counter(CONFIG_REJECTED, Vec::new()),
            access_log_dropped: registry.counter(ACCESS_LOG_DROPPED, Vec::new()),
            draining: registry.gauge(DRAINING, Vec::new()),
            drained_connections: registry.counter(DRAINED, Vec::new()),
            registry: Arc::clone(registry),
        }
    }

    /// The registry, for Istio's metrics.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The handles of a listener, by its name.
    pub fn listener(&self, name: &str) -> ListenerMetrics {
        let label = Label::new("listener_address", name.to_owned());
        let counter = |metric| self.registry.counter(metric, vec![label.clone()]);
        ListenerMetrics {
            connections_active: self.registry.gauge(LISTENER_CONNECTIONS_ACTIVE, vec![label.clone()]),
            connections_total: counter(LISTENER_CONNECTIONS_TOTAL),
            connections_overflow: counter(LISTENER_OVERFLOW),
            tls_handshake_failures: counter(LISTENER_TLS_ERRORS),
        }
    }

    /// The handles of a cluster, by its name.
    pub fn cluster(&self, name: &str) -> ClusterMetrics {
        let label = Label::new("cluster_name", name.to_owned());
        let counter = |metric| self.registry.counter(metric, vec![label.clone()]);
        ClusterMetrics {
            connections_active: self.registry.gauge(CLUSTER_CONNECTIONS_ACTIVE, vec![label.clone()]),
            connections_total: counter(CLUSTER_CONNECTIONS_TOTAL),
            connect_failures: counter(CLUSTER_CONNECT_FAILURES),
            connection_overflow: counter(CLUSTER_CONNECTION_OVERFLOW),
            pending_overflow: counter(CLUSTER_PENDING_OVERFLOW),
            retries: counter(CLUSTER_RETRIES),
        }
    }

    /// The handles of a JWT filter: Envoy's `http.<stat_prefix>.jwt_authn.[<own prefix>.]*`.
    pub fn jwt_authn(&self, stat_prefix: &str, own_prefix: &str) -> jwt::Counters {
        let mut labels = vec![Label::new("http_conn_manager_prefix", stat_prefix.to_owned())];
        if !own_prefix.is_empty() {
            labels.push(Label::new("jwt_authn_prefix", own_prefix.to_owned()));
        }
        let counter = |metric| self.registry.counter(metric, labels.clone());
        jwt::Counters {
            allowed: counter(JWT_ALLOWED),
            denied: counter(JWT_DENIED),
            cors_preflight_bypassed: counter(JWT_PREFLIGHTS),
            jwks_fetch_success: counter(JWT_FETCHED),
            jwks_fetch_failed: counter(JWT_FETCH_FAILED),
            cache_hit: counter(JWT_CACHE_HIT),
            cache_miss: counter(JWT_CACHE_MISS),
        }
    }

    /// Notes when the certificate of a secret expires.
    pub fn certificate_expires(&self, secret: &str, not_after: SystemTime) {
        let seconds = not_after.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        self.registry.gauge(CERTIFICATE_EXPIRATION, vec![Label::new("secret", secret.to_owned())]).set(seconds);
    }

    /// Notes the version in force, as a hash like Envoy's `*.version` gauges: equal versions are equal numbers across a
    /// fleet, where a label would make a new series of every push.
    pub fn config_version(&self, version: &str) {
        let fnv =
            version.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        // A gauge is a double: 53 bits survive.
        self.config_version.set((fnv >> 11) as f64);
    }
}
