//! PeerAuthentication: which mTLS mode a port has, and the filter chains that follow from it.

use std::sync::Arc;

use skiff_proxy::config::{
    CertificateSource, DownstreamTls, FilterChainMatch, SanMatcher, StringMatcher, TlsVersion, TransportProtocol,
};

use super::documents::Resource;
use super::schema::security::{MtlsMode, PeerAuthentication};
use super::schema::{Labels, selects};
use super::scope::Scope;

/// Name of the workload certificate and of the mesh's trust bundle in istiod's SDS.
pub(super) const WORKLOAD_CERTIFICATE: &str = "default";
pub(super) const MESH_ROOTS: &str = "ROOTCA";

/// ALPN by which a client says that it is an Istio sidecar.
const ISTIO_ALPN: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// The mode of one port of a workload: port, workload, namespace, mesh, PERMISSIVE, the first that says something.
pub(super) fn mode(scope: &Scope<'_>, namespace: &str, labels: &Labels, port: u16) -> MtlsMode {
    let policies = &scope.documents.peer_authentications;
    let selector = |policy: &'_ Resource<PeerAuthentication>| {
        policy.spec.selector.as_ref().map(|selector| selector.match_labels.clone()).filter(|labels| !labels.is_empty())
    };
    let root = scope.root_namespace.as_str();
    let in_reach = |policy: &&Resource<PeerAuthentication>| policy.namespace == namespace || policy.namespace == root;
    let workload =
        policies.iter().filter(in_reach).find(|policy| selector(policy).is_some_and(|wanted| selects(&wanted, labels)));
    let of_namespace = |namespace: &str| {
        policies
            .iter()
            .find(|policy| policy.namespace == namespace && selector(policy).is_none())
            .and_then(|policy| policy.spec.mtls.mode())
    };
    let of_port = |policy: &Resource<PeerAuthentication>| {
        let entry = policy.spec.port_level_mtls.iter().find(|(key, _)| key.0.get() == port);
        entry.and_then(|(_, mtls)| mtls.mode())
    };
    workload
        .and_then(|policy| of_port(policy).or_else(|| policy.spec.mtls.mode()))
        .or_else(|| of_namespace(namespace))
        .or_else(|| of_namespace(root))
        .unwrap_or(MtlsMode::Permissive)
}

/// When a chain applies, and its TLS.
pub(super) struct ChainShape {
    pub(super) matches: FilterChainMatch,
    pub(super) tls: Option<Arc<DownstreamTls>>,
}

/// The chains of an inbound port, as istiod builds them.
pub(super) fn chains(scope: &Scope<'_>, mode: MtlsMode, port: u16, http: bool) -> Vec<ChainShape> {
    let matches = |transport: TransportProtocol, alpn: &[&str]| FilterChainMatch {
        destination_port: Some(port),
        transport_protocol: Some(transport),
        application_protocols: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        ..FilterChainMatch::default()
    };
    let mtls =
        |alpn: &[&str]| ChainShape { matches: matches(TransportProtocol::Tls, alpn), tls: Some(downstream_tls(scope, http)) };
    let plain = |transport| ChainShape { matches: matches(transport, &[]), tls: None };
    match mode {
        MtlsMode::Strict => vec![mtls(&[])],
        MtlsMode::Disable => vec![plain(TransportProtocol::RawBuffer)],
        MtlsMode::Permissive | MtlsMode::Unset if http => vec![mtls(&ISTIO_ALPN), plain(TransportProtocol::RawBuffer)],
        // TLS of the application's own passes through to it.
        MtlsMode::Permissive | MtlsMode::Unset => {
            vec![mtls(&ISTIO_ALPN), plain(TransportProtocol::Tls), plain(TransportProtocol::RawBuffer)]
        }
    }
}

fn downstream_tls(scope: &Scope<'_>, http: bool) -> Arc<DownstreamTls> {
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    Arc::new(DownstreamTls {
        certificate: CertificateSource::Secret(WORKLOAD_CERTIFICATE.to_owned()),
        trust: Some(CertificateSource::Secret(MESH_ROOTS.to_owned())),
        require_client_certificate: true,
        sans: scope
            .trust_domains()
            .iter()
            .map(|domain| SanMatcher::Any(StringMatcher::prefix(format!("spiffe://{domain}/"))))
            .collect(),
        pins: Vec::new(),
        revocation: None,
        alpn: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        versions: (TlsVersion::Tls12, TlsVersion::Tls13),
    })
}
