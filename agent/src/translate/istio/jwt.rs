//! RequestAuthentication into JWT authentication, with istiod's names and its requirement: who has a token must have a valid one,
//! who has none passes (an AuthorizationPolicy may ask for one).
//!
//! istiod fetches the keys of a `jwksUri` itself and sends them along. Here the data plane does, before they are needed, and
//! refuses tokens as long as it has none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{
    CertificateSource, CircuitBreakers, ClaimToHeader, Cluster, ClusterDiscovery, ClusterLoadAssignment, EndpointAddress,
    HttpFilter, Jwks, JwksAsyncFetch, JwtAuthn, JwtHeader, JwtProvider, JwtRequirement, JwtRule, JwtRuleRequirement, LocalJwks,
    RemoteJwks, RouteMatch, SanMatcher, StringMatcher, TlsVersion, TransportSocket, UpstreamTls,
};

use super::clusters;
use super::de::Located;
use super::documents::Resource;
use super::schema::request_authentication::{self as schema, RequestAuthentication};
use super::schema::selects;
use super::scope::Scope;
use super::{Output, Selection};
use crate::translate::uri::HttpUri;

/// Key of the claims in the metadata, which policies refer to.
const PAYLOAD: &str = "payload";
/// Claims that are lists of words in every rule.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];
/// Istio's time-out of a fetch where a rule has none.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// istiod fetches keys anew every 20 minutes.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// From a failed fetch to the next one in the background; requests with a token ask before.
const FAILED_REFETCH: Duration = Duration::from_secs(10);

/// The filter of inbound listeners and, in `selection`, the services of the mesh that are asked for keys.
pub(super) fn http_filter(scope: &Scope<'_>, selection: &mut Selection, output: &mut Output) -> Option<HttpFilter> {
    let mut rules: Vec<(&Resource<RequestAuthentication>, &Located<schema::JwtRule>)> =
        policies(scope).flat_map(|policy| policy.spec.jwt_rules.iter().map(move |rule| (policy, rule))).collect();
    rules.sort_by(|(_, a), (_, b)| a.value.issuer.cmp(&b.value.issuer));
    let mut providers = BTreeMap::new();
    for (index, (policy, rule)) in rules.iter().enumerate() {
        match jwks(scope, &rule.value, selection, output) {
            Ok(keys) => drop(providers.insert(format!("origins-{index}"), provider(&rule.value, keys))),
            Err(reason) => output.errors.push(policy.error(rule.error(reason))),
        }
    }
    let names: Vec<String> = (0..rules.len()).map(|index| format!("origins-{index}")).collect();
    let rule = JwtRule { matches: RouteMatch::any(), requires: JwtRuleRequirement::Inline(requirement(&names)?) };
    Some(HttpFilter::JwtAuthn(Arc::new(JwtAuthn {
        name: skiff_proxy::jwt::FILTER_NAME.to_owned(),
        providers,
        rules: vec![rule],
        bypass_cors_preflight: true,
        ..JwtAuthn::default()
    })))
}

/// Policies of the root namespace and of the workload's own that select the workload.
fn policies<'s>(scope: &'s Scope<'_>) -> impl Iterator<Item = &'s Resource<RequestAuthentication>> {
    scope.documents.request_authentications.iter().filter(move |policy| {
        let in_reach = policy.namespace == scope.workload.namespace || policy.namespace == scope.root_namespace;
        let selector = policy.spec.selector.as_ref();
        in_reach
            && selector.is_none_or(|selector| selects(&selector.match_labels, &scope.workload.labels))
            && policy.spec.target_ref.is_none()
            && policy.spec.target_refs.is_empty()
    })
}

/// One provider: its token or none. Several: the token of one of them, or of each its token or none, as providers may look for
/// their tokens at different places.
fn requirement(names: &[String]) -> Option<JwtRequirement> {
    let one = |name: &String| JwtRequirement::Provider { name: name.clone(), audiences: Vec::new() };
    let or_none = |name: &String| JwtRequirement::Any(vec![one(name), JwtRequirement::AllowMissing]);
    match names {
        [] => None,
        [name] => Some(or_none(name)),
        names => {
            let each = JwtRequirement::All(names.iter().map(or_none).collect());
            Some(JwtRequirement::Any(names.iter().map(one).chain([each]).collect()))
        }
    }
}

fn provider(rule: &schema::JwtRule, keys: Jwks) -> JwtProvider {
    let header = |from: &schema::FromHeader| JwtHeader { name: from.name.0.clone(), value_prefix: from.prefix.clone() };
    let claim = |to: &schema::ClaimToHeader| ClaimToHeader {
        header: to.header.0.clone(),
        claim: to.claim.split('.').map(str::to_owned).collect(),
    };
    let words: BTreeSet<&str> =
        SPACE_DELIMITED.into_iter().chain(rule.space_delimited_claims.iter().map(String::as_str)).collect();
    JwtProvider {
        audiences: rule.audiences.clone(),
        from_headers: rule.from_headers.iter().map(header).collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        forward: rule.forward_original_token,
        forward_payload_header: rule.output_payload_to_header.as_ref().map(|header| header.0.clone()),
        payload_in_metadata: Some(PAYLOAD.to_owned()),
        space_delimited_claims: words.into_iter().map(str::to_owned).collect(),
        claim_to_headers: rule.output_claim_to_headers.iter().map(claim).collect(),
        ..JwtProvider::new(&rule.issuer, keys)
    }
}

/// Where the keys of a rule come from; the error says what it should say.
fn jwks(scope: &Scope<'_>, rule: &schema::JwtRule, selection: &mut Selection, output: &mut Output) -> Result<Jwks, &'static str> {
    if rule.issuer.is_empty() {
        return Err("issuer: expected one");
    }
    match (&rule.jwks, &rule.jwks_uri) {
        (Some(keys), None) => Ok(Jwks::Local(LocalJwks(keys.0.clone()))),
        (None, Some(uri)) => {
            let cluster = cluster(scope, &uri.0, selection, output);
            Ok(Jwks::Remote(RemoteJwks {
                https: uri.0.https,
                authority: uri.0.authority.clone(),
                path: uri.0.path.clone(),
                cluster,
                timeout: rule.timeout.map_or(FETCH_TIMEOUT, |timeout| timeout.0),
                cache_duration: REFRESH,
                retries: 1,
                base_interval: Duration::from_millis(250),
                max_interval: Duration::from_secs(1),
                async_fetch: Some(JwksAsyncFetch { failed_refetch_duration: FAILED_REFETCH }),
            }))
        }
        (Some(_), Some(_)) => Err("expected either jwks or jwksUri"),
        (None, None) => Err("expected jwks or jwksUri: keys are not looked for by OpenID discovery"),
    }
}

/// The cluster that is asked for keys: that of a service of the mesh, with its mutual TLS, when one is meant, else the host.
fn cluster(scope: &Scope<'_>, uri: &HttpUri, selection: &mut Selection, output: &mut Output) -> String {
    let is_port = |service: &super::registry::Service<'_>| service.ports.iter().any(|port| port.number.get() == uri.port);
    if !uri.https && scope.service(&uri.host).is_some_and(is_port) {
        selection.insert((uri.host.clone(), uri.port));
        return clusters::name(uri.port, "", &uri.host);
    }
    let scheme = if uri.https { "https" } else { "http" };
    let name = format!("jwks|{}|{scheme}|{}", uri.port, uri.host);
    let discovery = match uri.host.parse::<IpAddr>() {
        Ok(ip) => {
            let address = EndpointAddress::Socket((ip, uri.port).into());
            ClusterDiscovery::Static(Arc::new(ClusterLoadAssignment::single(address)))
        }
        Err(_) => {
            let endpoints = Arc::new(ClusterLoadAssignment::single(EndpointAddress::Name(uri.host.clone(), uri.port)));
            ClusterDiscovery::StrictDns(clusters::dns(scope, endpoints))
        }
    };
    let mut cluster = Cluster::new(name.clone(), discovery);
    cluster.connect_timeout = clusters::connect_timeout(scope);
    cluster.circuit_breakers = CircuitBreakers::UNLIMITED;
    if uri.https {
        cluster.transport_socket = tls(&uri.host);
    }
    output.add_cluster(cluster);
    name
}

/// TLS to a server that any issuer which the system trusts vouches for.
fn tls(host: &str) -> TransportSocket {
    let is_ip = host.parse::<IpAddr>().is_ok();
    let name = StringMatcher::exact(host);
    TransportSocket::Tls(Arc::new(UpstreamTls {
        certificate: None,
        trust: Some(CertificateSource::System),
        sans: vec![if is_ip { SanMatcher::Ip(name) } else { SanMatcher::Dns(name) }],
        pins: Vec::new(),
        revocation: None,
        sni: if is_ip { String::new() } else { host.to_owned() },
        auto_sni: false,
        auto_san_validation: false,
        alpn: Vec::new(),
        versions: (TlsVersion::Tls12, TlsVersion::Tls13),
    }))
}
