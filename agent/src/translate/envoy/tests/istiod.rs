//! istiod's own resources, as they were on the wire: nothing that it sent may be rejected.

use std::fs;
use std::path::{Path, PathBuf};

use prost::{Message, Name};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proto::envoy::service::discovery::v3::DiscoveryResponse;
use skiff_proxy::config;

use super::super::{Rejected, cluster, listener, load_assignment, route_configuration};

fn captures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/envoy/istiod")
}

/// The resources of one type in one captured response.
fn resources<T: Message + Name + Default>(path: &Path) -> Vec<T> {
    let response = DiscoveryResponse::decode(fs::read(path).unwrap().as_slice()).unwrap();
    response.resources.iter().map(|any| T::decode(any.value.as_slice()).unwrap()).collect()
}

/// Translates every captured resource of one type.
fn all<T: Message + Name + Default, B>(kind: &str, translate: impl Fn(&T) -> Result<B, Vec<Rejected>>) -> Vec<B> {
    let mut done = Vec::new();
    for file in fs::read_dir(captures()).unwrap() {
        let path = file.unwrap().path();
        if !path.file_name().unwrap().to_str().unwrap().ends_with(kind) {
            continue;
        }
        for resource in resources(&path) {
            match translate(&resource) {
                Ok(value) => done.push(value),
                Err(rejected) => panic!("{}:\n{}", path.display(), super::shown(&rejected).join("\n")),
            }
        }
    }
    done
}

#[test]
fn every_listener_of_istiod_translates() {
    let listeners = all::<Listener, _>("LDS.bin", listener);
    assert!(listeners.len() > 20);
    let chains = listeners.iter().flat_map(|listener| &listener.filter_chains);
    let managers: Vec<_> = chains
        .filter_map(|chain| match &chain.filter {
            config::NetworkFilter::Http(manager) => Some(manager),
            config::NetworkFilter::Tcp(_) => None,
        })
        .collect();
    let overrides: Vec<_> = managers
        .iter()
        .flat_map(|manager| &manager.filters)
        .filter_map(|filter| if let config::HttpFilter::Alpn(alpn) = filter { Some(alpn) } else { None })
        .collect();
    assert!(!overrides.is_empty());
    for alpn in overrides {
        assert_eq!(alpn.http1, ["istio-http/1.1", "istio", "http/1.1"]);
        assert_eq!(alpn.http2, ["istio-h2", "istio", "h2"]);
    }
    assert!(managers.iter().flat_map(|manager| &manager.filters).any(|filter| matches!(filter, config::HttpFilter::Rbac(_))));
}

#[test]
fn every_cluster_of_istiod_translates() {
    let clusters = all::<Cluster, _>("CDS.bin", cluster);
    assert!(clusters.len() > 20);
    let service = |cluster: &config::Cluster| cluster.service.as_ref().map(|service| service.host.clone());
    assert!(clusters.iter().any(|cluster| service(cluster).as_deref() == Some("details.bookinfo.svc.cluster.local")));
}

#[test]
fn every_route_configuration_of_istiod_translates() {
    assert!(all::<RouteConfiguration, _>("RDS.bin", route_configuration).len() > 5);
}

#[test]
fn every_endpoint_of_istiod_translates() {
    let assignments = all::<ClusterLoadAssignment, _>("EDS.bin", load_assignment);
    let endpoints = assignments.iter().flat_map(|assignment| &assignment.localities).flat_map(|locality| &locality.endpoints);
    let workloads: Vec<_> = endpoints.filter_map(|endpoint| endpoint.workload.as_ref()).collect();
    assert!(workloads.iter().any(|workload| workload.name == "details-0" && workload.namespace == "bookinfo"));
}

#[test]
fn request_authentication_comes_before_authorization() {
    let file = captures().join("09-jwt-008-LDS.bin");
    let listeners: Vec<_> = resources::<Listener>(&file).iter().map(|message| listener(message).unwrap()).collect();
    let inbound = listeners.iter().find(|listener| listener.name == "0.0.0.0_9080").unwrap();
    let config::NetworkFilter::Http(manager) = &inbound.filter_chains[0].filter else { panic!("{inbound:?}") };
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
