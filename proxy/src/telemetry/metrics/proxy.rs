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
const CLUSTER_RETRY_OVERFLOW: &str = "envoy_cluster_upstream_rq_retry_overflow";
const CLUSTER_DROP_OVERLOAD: &str = "envoy_cluster_upstream_rq_drop_overload";
const CLUSTER_MEMBERS: &str = "envoy_cluster_membership_total";
const CLUSTER_MEMBERS_HEALTHY: &str = "envoy_cluster_membership_healthy";
const CLUSTER_MEMBERS_DEGRADED: &str = "envoy_cluster_membership_degraded";
const CLUSTER_MEMBERS_EXCLUDED: &str = "envoy_cluster_membership_excluded";
const CLUSTER_EJECTIONS_ACTIVE: &str = "envoy_cluster_outlier_detection_ejections_active";
const CLUSTER_EJECTIONS_ENFORCED: &str = "envoy_cluster_outlier_detection_ejections_enforced_total";
const CLUSTER_EJECTIONS_OVERFLOW: &str = "envoy_cluster_outlier_detection_ejections_overflow";
const CLUSTER_CHECK_ATTEMPTS: &str = "envoy_cluster_health_check_attempt";
const CLUSTER_CHECK_SUCCESSES: &str = "envoy_cluster_health_check_success";
const CLUSTER_CHECK_FAILURES: &str = "envoy_cluster_health_check_failure";
const CLUSTER_CHECK_NETWORK_FAILURES: &str = "envoy_cluster_health_check_network_failure";
const CLUSTER_CHECK_PASSIVE_FAILURES: &str = "envoy_cluster_health_check_passive_failure";
const CLUSTER_CHECK_HEALTHY: &str = "envoy_cluster_health_check_healthy";
const CONFIG_VERSION: &str = "skiff_config_version";
const CONFIG_UPDATES: &str = "skiff_config_updates_total";
const CONFIG_REJECTED: &str = "skiff_config_rejected_resources_total";
const CERTIFICATE_EXPIRATION: &str = "skiff_certificate_expiration_timestamp_seconds";
const ACCESS_LOG_DROPPED: &str = "skiff_access_log_dropped_total";
const SPANS_EXPORTED: &str = "skiff_trace_spans_exported_total";
const SPANS_DROPPED: &str = "skiff_trace_spans_dropped_total";
const OTEL_LOGS_EXPORTED: &str = "skiff_otel_logs_exported_total";
const OTEL_LOGS_DROPPED: &str = "skiff_otel_logs_dropped_total";
const DRAINING: &str = "skiff_draining";
const DRAINED: &str = "skiff_drained_connections_total";

const AUTHZ_OK: &str = "envoy_http_ext_authz_ok";
const AUTHZ_DENIED: &str = "envoy_http_ext_authz_denied";
const AUTHZ_ERROR: &str = "envoy_http_ext_authz_error";
const AUTHZ_DISABLED: &str = "envoy_http_ext_authz_disabled";
const AUTHZ_FAILURE_ALLOWED: &str = "envoy_http_ext_authz_failure_mode_allowed";
const LIMIT_ENABLED: &str = "envoy_http_local_rate_limit_enabled";
const LIMIT_OK: &str = "envoy_http_local_rate_limit_ok";
const LIMIT_LIMITED: &str = "envoy_http_local_rate_limit_rate_limited";
const LIMIT_ENFORCED: &str = "envoy_http_local_rate_limit_enforced";

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
    (Kind::Counter, CLUSTER_RETRY_OVERFLOW, "Requests not sent again because the circuit breaker of retries was open."),
    (Kind::Counter, CLUSTER_DROP_OVERLOAD, "Requests dropped on the cluster's drop_overload."),
    (Kind::Gauge, CLUSTER_MEMBERS, "Endpoints."),
    (Kind::Gauge, CLUSTER_MEMBERS_HEALTHY, "Endpoints that may get requests."),
    (Kind::Gauge, CLUSTER_MEMBERS_DEGRADED, "Endpoints that get requests where there are not enough healthy ones."),
    (Kind::Gauge, CLUSTER_MEMBERS_EXCLUDED, "Endpoints that count neither as healthy nor as unhealthy."),
    (Kind::Gauge, CLUSTER_EJECTIONS_ACTIVE, "Endpoints that outlier detection has taken out."),
    (Kind::Counter, CLUSTER_EJECTIONS_ENFORCED, "Ejections by outlier detection."),
    (Kind::Counter, CLUSTER_EJECTIONS_OVERFLOW, "Ejections left out because too many endpoints were ejected already."),
    (Kind::Counter, CLUSTER_CHECK_ATTEMPTS, "Active health checks."),
    (Kind::Counter, CLUSTER_CHECK_SUCCESSES, "Active health checks that succeeded."),
    (Kind::Counter, CLUSTER_CHECK_FAILURES, "Active health checks that failed, and responses that asked to be taken for one."),
    (Kind::Counter, CLUSTER_CHECK_NETWORK_FAILURES, "Active health checks that failed for want of a connection or of time."),
    (Kind::Counter, CLUSTER_CHECK_PASSIVE_FAILURES, "Responses with x-envoy-immediate-health-check-fail."),
    (Kind::Gauge, CLUSTER_CHECK_HEALTHY, "Endpoints that pass their active health checks."),
    (Kind::Counter, AUTHZ_OK, "Requests that the authorisation service let pass."),
    (Kind::Counter, AUTHZ_DENIED, "Requests that the authorisation service refused."),
    (Kind::Counter, AUTHZ_ERROR, "Requests about which the authorisation service could not be asked."),
    (Kind::Counter, AUTHZ_DISABLED, "Requests about which the authorisation service was not to be asked."),
    (Kind::Counter, AUTHZ_FAILURE_ALLOWED, "Requests that passed because the authorisation service could not be asked."),
    (Kind::Counter, LIMIT_ENABLED, "Requests that a local rate limit counted."),
    (Kind::Counter, LIMIT_OK, "Requests within a local rate limit."),
    (Kind::Counter, LIMIT_LIMITED, "Requests over a local rate limit."),
    (Kind::Counter, LIMIT_ENFORCED, "Requests refused by a local rate limit."),
    (Kind::Gauge, CONFIG_VERSION, "Hash of the version of the configuration in force."),
    (Kind::Counter, CONFIG_UPDATES, "Configurations applied."),
    (Kind::Counter, CONFIG_REJECTED, "Resources of configurations that were refused."),
    (Kind::Gauge, CERTIFICATE_EXPIRATION, "End of validity of a secret's certificate, in seconds since 1970."),
    (Kind::Counter, ACCESS_LOG_DROPPED, "Access log lines that were lost because they could not be written in time."),
    (Kind::Counter, SPANS_EXPORTED, "Spans that a collector has taken."),
    (Kind::Counter, SPANS_DROPPED, "Spans that were lost because too many waited or the collector did not take them."),
    (Kind::Counter, OTEL_LOGS_EXPORTED, "Log records that a collector has taken."),
    (Kind::Counter, OTEL_LOGS_DROPPED, "Log records that were lost because too many waited or the collector did not take them."),
    (Kind::Gauge, DRAINING, "1 while the proxy drains."),
    (Kind::Counter, DRAINED, "Connections that ended because of a drain."),
];

/// What came of the requests that an external authorisation filter saw.
#[derive(Debug)]
pub struct AuthzCounters {
    /// Passed.
    pub ok: Counter,
    /// Refused.
    pub denied: Counter,
    /// Not decided.
    pub error: Counter,
    /// Not asked about.
    pub disabled: Counter,
    /// Passed without a decision.
    pub failure_mode_allowed: Counter,
}

/// What came of the requests that a local rate limit filter saw, those included that a route has other limits for.
#[derive(Debug)]
pub struct LimitCounters {
    /// Counted.
    pub enabled: Counter,
    /// Within the limit.
    pub ok: Counter,
    /// Over the limit.
    pub rate_limited: Counter,
    /// Refused.
    pub enforced: Counter,
}

/// What came of the records of one kind that go to collectors.
#[derive(Clone, Debug)]
pub struct ExportCounters {
    /// Taken by the collector.
    pub exported: Counter,
    /// Lost: the queue was full, the collector away, or it did not want them.
    pub dropped: Counter,
}

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
    /// Of spans.
    pub trace_spans: ExportCounters,
    /// Of log records for collectors.
    pub otel_logs: ExportCounters,
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
    /// Requests not sent again because the breaker `max_retries` was open.
    pub retry_overflow: Counter,
    /// Requests dropped on `drop_overload`.
    pub drop_overload: Counter,
    /// Endpoints.
    pub membership_total: Gauge,
    /// Endpoints that may get requests.
    pub membership_healthy: Gauge,
    /// Endpoints that get requests where there are not enough healthy ones.
    pub membership_degraded: Gauge,
    /// Endpoints that count neither as healthy nor as unhealthy.
    pub membership_excluded: Gauge,
    /// Endpoints that outlier detection has taken out.
    pub ejections_active: Gauge,
    /// Ejections.
    pub ejections_enforced: Counter,
    /// Ejections left out because too many endpoints were ejected already.
    pub ejections_overflow: Counter,
}

/// Handles of one cluster's active health checks; only clusters that have some have these.
#[derive(Clone, Debug)]
pub struct HealthCheckMetrics {
    /// Active health checks.
    pub attempts: Counter,
    /// Those that succeeded.
    pub successes: Counter,
    /// Those that failed.
    pub failures: Counter,
    /// Those that failed for want of a connection or of time.
    pub network_failures: Counter,
    /// Responses with `x-envoy-immediate-health-check-fail`.
    pub passive_failures: Counter,
    /// Endpoints that pass their checks.
    pub healthy: Gauge,
}

impl ProxyMetrics {
    /// Registers what does not depend on configuration.
    pub fn new(registry: &Arc<Registry>) -> Self {
        Self {
            config_version: registry.gauge(CONFIG_VERSION, Vec::new()),
            config_updates: registry.counter(CONFIG_UPDATES, Vec::new()),
            config_rejected: registry.counter(CONFIG_REJECTED, Vec::new()),
            access_log_dropped: registry.counter(ACCESS_LOG_DROPPED, Vec::new()),
            trace_spans: exported(registry, SPANS_EXPORTED, SPANS_DROPPED),
            otel_logs: exported(registry, OTEL_LOGS_EXPORTED, OTEL_LOGS_DROPPED),
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
        let gauge = |metric| self.registry.gauge(metric, vec![label.clone()]);
        ClusterMetrics {
            connections_active: gauge(CLUSTER_CONNECTIONS_ACTIVE),
            connections_total: counter(CLUSTER_CONNECTIONS_TOTAL),
            connect_failures: counter(CLUSTER_CONNECT_FAILURES),
            connection_overflow: counter(CLUSTER_CONNECTION_OVERFLOW),
            pending_overflow: counter(CLUSTER_PENDING_OVERFLOW),
            retries: counter(CLUSTER_RETRIES),
            retry_overflow: counter(CLUSTER_RETRY_OVERFLOW),
            drop_overload: counter(CLUSTER_DROP_OVERLOAD),
            membership_total: gauge(CLUSTER_MEMBERS),
            membership_healthy: gauge(CLUSTER_MEMBERS_HEALTHY),
            membership_degraded: gauge(CLUSTER_MEMBERS_DEGRADED),
            membership_excluded: gauge(CLUSTER_MEMBERS_EXCLUDED),
            ejections_active: gauge(CLUSTER_EJECTIONS_ACTIVE),
            ejections_enforced: counter(CLUSTER_EJECTIONS_ENFORCED),
            ejections_overflow: counter(CLUSTER_EJECTIONS_OVERFLOW),
        }
    }

    /// The handles of a cluster's active health checks, by its name.
    pub fn health_checks(&self, name: &str) -> HealthCheckMetrics {
        let label = Label::new("cluster_name", name.to_owned());
        let counter = |metric| self.registry.counter(metric, vec![label.clone()]);
        HealthCheckMetrics {
            attempts: counter(CLUSTER_CHECK_ATTEMPTS),
            successes: counter(CLUSTER_CHECK_SUCCESSES),
            failures: counter(CLUSTER_CHECK_FAILURES),
            network_failures: counter(CLUSTER_CHECK_NETWORK_FAILURES),
            passive_failures: counter(CLUSTER_CHECK_PASSIVE_FAILURES),
            healthy: self.registry.gauge(CLUSTER_CHECK_HEALTHY, vec![label.clone()]),
        }
    }

    /// The handles of an external authorisation filter: Envoy's `http.<stat_prefix>.ext_authz.*`.
    pub fn ext_authz(&self, stat_prefix: &str) -> AuthzCounters {
        let counter =
            |metric| self.registry.counter(metric, vec![Label::new("http_conn_manager_prefix", stat_prefix.to_owned())]);
        AuthzCounters {
            ok: counter(AUTHZ_OK),
            denied: counter(AUTHZ_DENIED),
            error: counter(AUTHZ_ERROR),
            disabled: counter(AUTHZ_DISABLED),
            failure_mode_allowed: counter(AUTHZ_FAILURE_ALLOWED),
        }
    }

    /// The handles of a local rate limit filter: Envoy's `<stat_prefix>.http_local_rate_limit.*`.
    pub fn local_rate_limit(&self, stat_prefix: &str) -> LimitCounters {
        let counter =
            |metric| self.registry.counter(metric, vec![Label::new("local_http_ratelimit_prefix", stat_prefix.to_owned())]);
        LimitCounters {
            enabled: counter(LIMIT_ENABLED),
            ok: counter(LIMIT_OK),
            rate_limited: counter(LIMIT_LIMITED),
            enforced: counter(LIMIT_ENFORCED),
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

fn exported(registry: &Registry, exported: &'static str, dropped: &'static str) -> ExportCounters {
    let counter = |metric| registry.counter(metric, Vec::new());
    ExportCounters { exported: counter(exported), dropped: counter(dropped) }
}
