//! Outbound clusters: a service, a port and perhaps a subset, with the DestinationRule that applies.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{
    CertificateSource, CircuitBreakers, Cluster, ClusterDiscovery, ClusterLoadAssignment, ConsecutiveFailures, DnsCluster,
    DnsFamily, Fraction, HashConfig, HashPolicy, LbPolicy, LeastRequest, OutlierDetection, ProxyProtocol, RetryBudget,
    Revocation, SanMatcher, SlowStart, StringMatcher, TcpKeepalive, TlsVersion, TransportSocket, TransportSocketMatch,
    UpstreamProtocol, UpstreamTls,
};

use super::documents::Resource;
use super::endpoints;
use super::mtls::{MESH_ROOTS, WORKLOAD_CERTIFICATE};
use super::peer;
use super::policy::{self, Policy};
use super::registry::Service;
use super::schema::destination_rule::{
    ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, DestinationRule, H2Upgrade, LoadBalancer, ProxyProtocolVersion,
    SimpleLb, Subset,
};
use super::schema::services::{Resolution, ServicePort};
use super::scope::Scope;
use super::{Output, Selection};

/// istiod's default of `connectTimeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// istiod's DNS refresh rate.
const DNS_REFRESH: Duration = Duration::from_secs(60);
/// istiod's `PILOT_DNS_JITTER_DURATION`.
const DNS_JITTER: Duration = Duration::from_millis(100);
const RING_SIZE: u64 = 1024;
const MAX_RING_SIZE: u64 = 8 << 20;
const MAGLEV_SIZE: u64 = 65_537;

pub(super) const BLACK_HOLE: &str = "BlackHoleCluster";
pub(super) const PASSTHROUGH: &str = "PassthroughCluster";
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// Where connections to the application come from, unless it is at the loopback address: iptables leave these alone.
pub(super) const INBOUND_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// `outbound|9080|v1|reviews.bookinfo.svc.cluster.local`
pub(super) fn name(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// Clusters and endpoints of everything in `selection`, and the three that istiod always sends.
pub(super) fn translate(scope: &Scope<'_>, selection: &Selection, output: &mut Output) {
    for service in &scope.services {
        for port in service.ports.iter().filter(|port| selection.contains(&(service.host.clone(), port.number.get()))) {
            let rule = policy::destination_rule(scope, service);
            cluster(scope, service, port, rule, None, output);
            for subset in rule.iter().flat_map(|rule| &rule.spec.subsets) {
                cluster(scope, service, port, rule, Some(subset), output);
            }
        }
    }
    let mut black_hole = Cluster::new(BLACK_HOLE, ClusterDiscovery::Static(Arc::default()));
    black_hole.connect_timeout = connect_timeout(scope);
    output.add_cluster(black_hole);
    for name in [PASSTHROUGH, INBOUND_PASSTHROUGH] {
        let mut passthrough = Cluster::new(name, ClusterDiscovery::OriginalDst);
        passthrough.connect_timeout = connect_timeout(scope);
        passthrough.circuit_breakers = CircuitBreakers::UNLIMITED;
        passthrough.protocol = UpstreamProtocol::UseDownstream;
        passthrough.http.idle_timeout = Some(Duration::from_secs(300));
        passthrough.peer_exchange = (name == PASSTHROUGH).then(peer::exchange);
        if name == INBOUND_PASSTHROUGH {
            passthrough.source_addresses = vec![SocketAddr::from((INBOUND_SOURCE, 0))];
        }
        output.add_cluster(passthrough);
    }
}

pub(super) fn connect_timeout(scope: &Scope<'_>) -> Duration {
    scope.mesh.connect_timeout.map_or(CONNECT_TIMEOUT, |timeout| timeout.0)
}

/// For the destination labels of Istio's metrics; istiod's name is the host too.
pub(super) fn service_metadata(service: &Service<'_>) -> skiff_proxy::config::Service {
    skiff_proxy::config::Service {
        host: service.host.clone(),
        name: service.host.clone(),
        namespace: service.namespace.to_owned(),
    }
}

fn cluster(
    scope: &Scope<'_>,
    service: &Service<'_>,
    port: &ServicePort,
    rule: Option<&Resource<DestinationRule>>,
    subset: Option<&Subset>,
    output: &mut Output,
) {
    let number = port.number.get();
    let subset_name = subset.map_or("", |subset| subset.name.as_str());
    let name = name(number, subset_name, &service.host);
    let policy = Policy::of(rule, subset, number);
    let auto_mtls = policy.tls.is_none() && !service.external && scope.mesh.enable_auto_mtls != Some(false);
    let labelled = auto_mtls || policy.tls.is_some_and(|tls| tls.value.mode == ClientTlsMode::IstioMutual);
    let load = Arc::new(endpoints::load_assignment(scope, service, port, subset.map(|subset| &subset.labels), &policy, labelled));
    let discovery = match service.resolution {
        _ if policy.is_passthrough() => ClusterDiscovery::OriginalDst,
        Resolution::None => ClusterDiscovery::OriginalDst,
        Resolution::Static => {
            output.snapshot.endpoints.insert(name.as_str().into(), load.into());
            ClusterDiscovery::Eds(name.clone())
        }
        Resolution::Dns => ClusterDiscovery::StrictDns(dns(scope, load)),
        Resolution::DnsRoundRobin => ClusterDiscovery::LogicalDns(dns(scope, load)),
    };
    let original_dst = discovery == ClusterDiscovery::OriginalDst;
    let mut cluster = Cluster::new(name, discovery);
    cluster.connect_timeout = connect_timeout(scope);
    cluster.lb_policy = if original_dst { LbPolicy::RoundRobin(None) } else { lb_policy(policy.load_balancer) };
    cluster.circuit_breakers = CircuitBreakers::UNLIMITED;
    cluster.panic_threshold = Fraction::NONE;
    cluster.service = Some(Arc::new(service_metadata(service)));
    cluster.peer_exchange = Some(peer::exchange());
    cluster.external = service.external;
    if port.protocol().is_http2() {
        cluster.protocol = UpstreamProtocol::Http2;
    }
    if let Some(pool) = policy.connection_pool {
        apply_connection_pool(&mut cluster, pool, port.protocol().is_http());
    }
    cluster.circuit_breakers.retry_budget = policy.retry_budget.map(|budget| RetryBudget {
        budget: budget.percent.and_then(Fraction::from_percent).unwrap_or(Fraction::from_millionths(200_000)),
        min_retry_concurrency: budget.min_retry_concurrency.unwrap_or(3),
    });
    apply_outlier_detection(&mut cluster, &policy);
    let mesh_tls = MeshTls { scope, service, port: number, subset: subset_name };
    match policy.tls {
        Some(tls) => cluster.transport_socket = transport_socket(&mesh_tls, &tls.value, cluster.protocol),
        None if auto_mtls => cluster.transport_socket_matches = auto_mtls_matches(&mesh_tls, cluster.protocol),
        None => {}
    }
    cluster.proxy_protocol = policy.proxy_protocol.map(|proxy| match proxy.version {
        ProxyProtocolVersion::V1 => ProxyProtocol::V1,
        ProxyProtocolVersion::V2 => ProxyProtocol::V2,
    });
    if let (Some(rule), Some(tls)) = (rule, policy.tls) {
        let incomplete = tls.value.client_certificate.is_none() || tls.value.private_key.is_none();
        if tls.value.mode == ClientTlsMode::Mutual && incomplete {
            output.errors.push(rule.error(tls.error("MUTUAL: expected clientCertificate and privateKey")));
        }
        if tls.value.mode == ClientTlsMode::Simple && tls.value.subject_alt_names.is_empty() && !tls.value.sni.is_empty() {
            output.warn(
                rule.remark(format_args!(
                    "{}: without subjectAltNames any certificate of a trusted issuer is accepted",
                    tls.path
                )),
            );
        }
    }
    output.add_cluster(cluster);
}

/// Names to resolve, to addresses of the workload's own family: IPv4 unless it has IPv6 alone.
pub(super) fn dns(scope: &Scope<'_>, load: Arc<ClusterLoadAssignment>) -> DnsCluster {
    let addresses = &scope.workload.addresses;
    let only_v6 = !addresses.is_empty() && addresses.iter().all(IpAddr::is_ipv6);
    let family = if only_v6 { DnsFamily::V6Only } else { DnsFamily::V4Only };
    DnsCluster { family, jitter: DNS_JITTER, ..DnsCluster::new(load, DNS_REFRESH) }
}

fn lb_policy(load_balancer: Option<&LoadBalancer>) -> LbPolicy {
    let slow_start = load_balancer.and_then(|lb| {
        let warmup = |window: Duration, percent: Option<f64>, aggression: Option<f64>| SlowStart {
            window,
            aggression: aggression.unwrap_or(1.0),
            min_weight: percent.and_then(Fraction::from_percent).unwrap_or(Fraction::from_millionths(100_000)),
        };
        let new = lb.warmup.map(|w| warmup(w.duration.0, w.minimum_percent, w.aggression));
        new.or_else(|| lb.warmup_duration_secs.map(|window| warmup(window.0, None, None)))
    });
    if let Some(hash) = load_balancer.and_then(|lb| lb.consistent_hash.as_ref()) {
        return match hash.maglev {
            Some(maglev) => {
                let size = maglev.table_size.unwrap_or(MAGLEV_SIZE);
                LbPolicy::Maglev(HashConfig { size, max_size: size })
            }
            None => {
                let ring = hash.ring_hash.and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
                LbPolicy::RingHash(HashConfig { size: ring.unwrap_or(RING_SIZE), max_size: MAX_RING_SIZE })
            }
        };
    }
    match load_balancer.and_then(|lb| lb.simple).unwrap_or(SimpleLb::Unspecified) {
        SimpleLb::RoundRobin => LbPolicy::RoundRobin(slow_start),
        SimpleLb::Random => LbPolicy::Random,
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest | SimpleLb::Passthrough => {
            const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
            LbPolicy::LeastRequest(LeastRequest { choice_count: TWO, slow_start })
        }
    }
}

/// What the routes to a cluster hash requests by.
pub(super) fn hash_policies(hash: &ConsistentHash) -> Vec<HashPolicy> {
    let cookie = hash.http_cookie.as_ref().map(|cookie| HashPolicy::Cookie {
        name: cookie.name.clone(),
        ttl: cookie.ttl.map(|ttl| ttl.0),
        path: cookie.path.clone(),
    });
    let header = hash.http_header_name.as_ref().map(|name| HashPolicy::Header(name.to_ascii_lowercase()));
    let source = hash.use_source_ip.filter(|yes| *yes).map(|_| HashPolicy::SourceIp);
    let query = hash.http_query_parameter_name.clone().map(HashPolicy::QueryParameter);
    [header, cookie, source, query].into_iter().flatten().collect()
}

/// `connectionPool`; a field that is not set leaves the default.
pub(super) fn apply_connection_pool(cluster: &mut Cluster, pool: &ConnectionPool, http_port: bool) {
    let (tcp, http) = (&pool.tcp, &pool.http);
    let breakers = &mut cluster.circuit_breakers;
    breakers.max_connections = tcp.max_connections.unwrap_or(breakers.max_connections);
    breakers.max_pending_requests = http.http1_max_pending_requests.unwrap_or(breakers.max_pending_requests);
    breakers.max_requests = http.http2_max_requests.unwrap_or(breakers.max_requests);
    breakers.max_retries = http.max_retries.unwrap_or(breakers.max_retries);
    if let Some(timeout) = tcp.connect_timeout {
        cluster.connect_timeout = timeout.0;
    }
    cluster.tcp_keepalive = tcp.tcp_keepalive.as_ref().map(|keepalive| TcpKeepalive {
        time: keepalive.time.map(|time| time.0),
        interval: keepalive.interval.map(|interval| interval.0),
        probes: keepalive.probes,
    });
    if let Some(idle) = http.idle_timeout {
        cluster.http.idle_timeout = Some(idle.0).filter(|idle| !idle.is_zero());
    }
    cluster.http.max_requests_per_connection = http.max_requests_per_connection.filter(|max| *max > 0);
    cluster.http.max_connection_duration = tcp.max_connection_duration.map(|duration| duration.0);
    cluster.http.max_concurrent_streams = http.max_concurrent_streams.filter(|max| *max > 0);
    if http_port && http.h2_upgrade_policy == H2Upgrade::Upgrade {
        cluster.protocol = UpstreamProtocol::Http2;
    }
    if http.use_client_protocol {
        cluster.protocol = UpstreamProtocol::UseDownstream;
    }
}

/// `outlierDetection`, with Envoy's defaults where a field is not set.
fn apply_outlier_detection(cluster: &mut Cluster, policy: &Policy<'_>) {
    let Some(outlier) = policy.outlier_detection else { return };
    let split = outlier.split_external_local_origin_errors;
    let seconds = Duration::from_secs;
    let positive = |count: u32| (count > 0).then(|| ConsecutiveFailures::always(count));
    let base = outlier.base_ejection_time.map_or(seconds(30), |time| time.0);
    cluster.outlier_detection = Some(OutlierDetection {
        consecutive_5xx: positive(outlier.consecutive_5xx_errors.unwrap_or(5)),
        consecutive_gateway_failure: outlier.consecutive_gateway_errors.and_then(positive),
        // Counted only where they are told apart.
        consecutive_local_origin_failure: match outlier.consecutive_local_origin_failures.filter(|count| split && *count > 0) {
            Some(count) => positive(count),
            None => positive(5),
        },
        split_external_local_origin_errors: split,
        interval: outlier.interval.map_or(seconds(10), |interval| interval.0),
        base_ejection_time: base,
        max_ejection_time: seconds(300).max(base),
        max_ejection_percent: outlier.max_ejection_percent.unwrap_or(10).min(100),
        ..OutlierDetection::default()
    });
    let locality = policy.load_balancer.and_then(|lb| lb.locality_lb_setting.as_ref());
    cluster.locality_weighted = locality.is_some_and(|setting| setting.enabled != Some(false) && !setting.failover.is_empty());
    if let Some(percent) = outlier.min_health_percent {
        cluster.panic_threshold = Fraction::from_millionths(percent.saturating_mul(10_000));
    }
}

/// What mutual TLS inside the mesh is made of.
struct MeshTls<'m> {
    scope: &'m Scope<'m>,
    service: &'m Service<'m>,
    port: u16,
    subset: &'m str,
}

impl MeshTls<'_> {
    fn context(&self, sni: &str, sans: &[String], protocol: UpstreamProtocol) -> TransportSocket {
        let mut alpn = vec!["istio-peer-exchange".to_owned(), "istio".to_owned()];
        if protocol == UpstreamProtocol::Http2 {
            alpn.push("h2".to_owned());
        }
        let own_sni = || format!("outbound_.{}_.{}_.{}", self.port, self.subset, self.service.host);
        let accounts = || self.service.subject_alt_names(self.scope.workload.trust_domain.as_str());
        let sans = if sans.is_empty() { accounts() } else { sans.to_vec() };
        TransportSocket::Tls(Arc::new(UpstreamTls {
            certificate: Some(CertificateSource::Secret(WORKLOAD_CERTIFICATE.to_owned())),
            trust: Some(CertificateSource::Secret(MESH_ROOTS.to_owned())),
            sans: exact_sans(&sans),
            pins: Vec::new(),
            revocation: None,
            sni: if sni.is_empty() { own_sni() } else { sni.to_owned() },
            auto_sni: false,
            auto_san_validation: false,
            alpn,
            versions: (TlsVersion::Tls12, TlsVersion::Tls13),
        }))
    }
}

fn exact_sans(names: &[String]) -> Vec<SanMatcher> {
    names.iter().map(|name| SanMatcher::Any(StringMatcher::exact(name))).collect()
}

/// mTLS for endpoints that are in the mesh, plaintext for others.
fn auto_mtls_matches(mesh: &MeshTls<'_>, protocol: UpstreamProtocol) -> Vec<TransportSocketMatch> {
    vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            matches: Arc::new(BTreeMap::from([("tlsMode".to_owned(), "istio".to_owned())])),
            socket: mesh.context("", &[], protocol),
        },
        TransportSocketMatch { name: "tlsMode-disabled".to_owned(), matches: Arc::default(), socket: TransportSocket::RawBuffer },
    ]
}

/// The TLS that a DestinationRule asks for.
fn transport_socket(mesh: &MeshTls<'_>, tls: &ClientTls, protocol: UpstreamProtocol) -> TransportSocket {
    match tls.mode {
        ClientTlsMode::Disable => return TransportSocket::RawBuffer,
        ClientTlsMode::IstioMutual => return mesh.context(&tls.sni, &tls.subject_alt_names, protocol),
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {}
    }
    let certificate = match (&tls.client_certificate, &tls.private_key) {
        (Some(certificates), key) if tls.mode == ClientTlsMode::Mutual => {
            Some(CertificateSource::Files { certificates: certificates.clone(), key: key.clone() })
        }
        _ => None,
    };
    let trust = match &tls.ca_certificates {
        _ if tls.insecure_skip_verify => None,
        Some(path) => Some(CertificateSource::Files { certificates: path.clone(), key: None }),
        None => Some(CertificateSource::System),
    };
    let lists = tls.ca_crl.as_ref().filter(|_| trust.is_some());
    let lists = lists.map(|path| CertificateSource::RevocationFile(path.clone()));
    let revocation = lists.map(|lists| Revocation { lists, leaf_only: false });
    // Without a name of its own the server is known by the host that is asked for.
    let auto_sni = tls.sni.is_empty();
    let auto_san_validation = auto_sni && tls.subject_alt_names.is_empty() && trust.is_some();
    // Else by the names that its ServiceEntry declares.
    let declared =
        if tls.subject_alt_names.is_empty() { &mesh.service.resource.spec.subject_alt_names } else { &tls.subject_alt_names };
    let sans = if trust.is_some() { exact_sans(declared) } else { Vec::new() };
    let alpn = if protocol == UpstreamProtocol::Http2 { vec!["h2".to_owned()] } else { Vec::new() };
    TransportSocket::Tls(Arc::new(UpstreamTls {
        certificate,
        trust,
        sans,
        pins: Vec::new(),
        revocation,
        sni: tls.sni.clone(),
        auto_sni,
        auto_san_validation,
        alpn,
        versions: (TlsVersion::Tls12, TlsVersion::Tls13),
    }))
}
