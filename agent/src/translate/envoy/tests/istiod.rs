//! What becomes of istiod's own resources, as they were on the wire.

use std::sync::Arc;

use skiff_proxy::config;

use crate::xds::Protocol;
use crate::xds::recorded::join;

fn snapshot(scenario: &str) -> config::Snapshot {
    join(scenario, Protocol::Delta).0
}

fn managers(snapshot: &config::Snapshot) -> Vec<Arc<config::HttpConnectionManager>> {
    let chains = snapshot.listeners.values().flat_map(|listener| &listener.filter_chains);
    let managers = chains.filter_map(|chain| match &chain.filter {
        config::NetworkFilter::Http(manager) => Some(manager.clone()),
        config::NetworkFilter::Tcp(_) => None,
    });
    managers.collect()
}

#[test]
fn the_alpn_filter_says_what_is_offered_upstream() {
    let managers = managers(&snapshot("01-default"));
    let mut overrides = managers
        .iter()
        .flat_map(|manager| &manager.filters)
        .filter_map(|filter| if let config::HttpFilter::Alpn(alpn) = filter { Some(alpn) } else { None });
    let alpn = overrides.next().unwrap();
    assert_eq!(alpn.http1, ["istio-http/1.1", "istio", "http/1.1"]);
    assert_eq!(alpn.http2, ["istio-h2", "istio", "h2"]);
    assert!(overrides.next().is_none(), "on the egress listener alone");
}

#[test]
fn metadata_says_which_service_and_which_workload() {
    let snapshot = snapshot("01-default");
    let details = "details.bookinfo.svc.cluster.local";
    let name = format!("outbound|9080||{details}");
    let cluster = snapshot.clusters[name.as_str()].get();
    assert_eq!(cluster.service.as_ref().unwrap().host, details);
    let assignment = snapshot.endpoints[name.as_str()].get();
    let workload = assignment.localities[0].endpoints[0].workload.as_ref().unwrap();
    assert_eq!((&*workload.name, &*workload.namespace), ("details-0", "bookinfo"));
}

#[test]
fn request_authentication_comes_before_authorization() {
    let snapshot = snapshot("09-jwt");
    let config::NetworkFilter::Http(manager) = &snapshot.listeners["0.0.0.0_9080"].filter_chains[0].filter else { panic!() };
    let [config::HttpFilter::PeerMetadata(_), config::HttpFilter::JwtAuthn(jwt), config::HttpFilter::Rbac(_), ..] =
        manager.filters.as_slice()
    else {
        panic!("{:?}", manager.filters)
    };
    let provider = &jwt.providers["origins-0"];
    assert_eq!((&*provider.issuer, provider.forward), ("https://issuer.example", true));
    assert_eq!(
        (provider.from_params.as_slice(), provider.from_cookies.as_slice()),
        (&["access_token".to_owned()][..], &["jwt".to_owned()][..])
    );
    assert_eq!(provider.space_delimited_claims, ["permission", "scope"]);
    assert!(
        matches!(&jwt.rules[0].requires, config::JwtRuleRequirement::Inline(config::JwtRequirement::Any(list)) if list.len() == 3)
    );
}
