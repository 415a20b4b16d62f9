//! What a mesh of many services costs a sidecar: memory after joining by xDS, and the time of its pushes on the main thread.
//!
//! `cargo bench -p skiff-benches --bench scale -- 1000 10000`. A service is a cluster with mutual TLS as istiod sends it, its load
//! assignment with 10 endpoints, and its virtual host with one route; recorded messages (`agent/testdata/istio`) are the templates.
//! Bytes are resident memory beyond that of the same process with one service.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot be set up has nothing to measure")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusBuilder;
use prost::{Message, Name};
use skiff_agent::xds::{Kind, Protocol, Resources, Response, Session};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3::transport_socket::ConfigType;
use skiff_proto::envoy::config::core::v3::{Address, Node, SocketAddress, address, socket_address};
use skiff_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::{RouteConfiguration, route::Action, route_action::ClusterSpecifier};
use skiff_proto::envoy::extensions::transport_sockets::tls::v3::{UpstreamTlsContext, common_tls_context::ValidationContextType};
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use skiff_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use skiff_proto::google::protobuf::{Any, value};
use skiff_proxy::{Options, Proxy};

#[global_allocator]
static ALLOCATOR: skiff_memory::Allocator = skiff_memory::ALLOCATOR;

/// Bytes that a service may take. An Envoy takes 58 KiB with two endpoints.
const BUDGET: usize = 4096;
/// Endpoints of a service.
const ENDPOINTS: usize = 10;
/// The service that all are made of.
const TEMPLATE: &str = "outbound|9080||reviews.bookinfo.svc.cluster.local";

fn main() {
    let sizes: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![1_000] } else { sizes };
    println!("services  bytes/service  push  the same again  one assignment");
    for size in sizes {
        measure(size);
    }
}

fn measure(services: usize) {
    let templates = Templates::recorded();
    let recorder = PrometheusBuilder::new().build_recorder();
    let proxy = Proxy::start(&Options { workers: 1, ..Options::default() }, Arc::new(recorder)).unwrap();
    let (mut session, mut resources) = (Session::new(Protocol::Delta, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    // What there is without any service.
    join(&templates, 1, &mut session, &mut resources, &proxy);
    skiff_memory::give_back();
    let before = resident();
    let push = join(&templates, services + 1, &mut session, &mut resources, &proxy);
    let again = join(&templates, services + 1, &mut session, &mut resources, &proxy);
    let one = templates.assignment(services / 2, ENDPOINTS - 1);
    let response = push_of(Kind::Endpoints, vec![one]);
    let one = timed(|| take(response, &mut session, &mut resources, &proxy));
    // As a sidecar does when no push has come for a while.
    skiff_memory::give_back();
    let grown = resident().saturating_sub(before);
    println!("{services:8}  {:13}  {push:?}  {again:?}  {one:?}", grown / services);
    assert!(grown / services < BUDGET, "a service may take {BUDGET} bytes");
}

/// Takes everything over, type by type as istiod sends it; how long the main thread worked.
fn join(templates: &Templates, services: usize, session: &mut Session, resources: &mut Resources, proxy: &Proxy) -> Duration {
    let all = |make: &dyn Fn(usize) -> Resource| (0..services).map(make).collect::<Vec<_>>();
    let mut took = Duration::ZERO;
    let responses: [&dyn Fn() -> Response; 4] = [
        &|| push_of(Kind::Cluster, all(&|index| templates.cluster(index))),
        &|| push_of(Kind::Endpoints, all(&|index| templates.assignment(index, ENDPOINTS))),
        &|| push_of(Kind::Listener, vec![templates.listener()]),
        &|| push_of(Kind::Routes, vec![templates.routes(services)]),
    ];
    for response in responses {
        let response = response();
        took += timed(|| take(response, session, resources, proxy));
    }
    took
}

/// As the client of the control plane does.
fn take(response: Response, session: &mut Session, resources: &mut Resources, proxy: &Proxy) {
    let handled = session.handle(response, resources, Instant::now());
    assert!(handled.rejected.is_empty(), "{:?}", handled.rejected);
    let publication = resources.publish("", Instant::now());
    let report = proxy.apply(publication.snapshot);
    assert!(report.rejected.is_empty(), "{:?}", report.rejected);
    session.subscribe(resources, Instant::now());
    session.acknowledge(&handled);
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn push_of(kind: Kind, resources: Vec<Resource>) -> Response {
    Response::Delta(DeltaDiscoveryResponse { type_url: kind.type_url(), resources, ..DeltaDiscoveryResponse::default() })
}

fn resource<M: Message + Name>(name: &str, message: &M) -> Resource {
    let any = Any { type_url: M::type_url(), value: message.encode_to_vec() };
    Resource { name: name.to_owned(), resource: Some(any), ..Resource::default() }
}

/// Recorded messages that services are made of.
struct Templates {
    cluster: Cluster,
    assignment: ClusterLoadAssignment,
    listener: Listener,
    routes: RouteConfiguration,
}

impl Templates {
    fn recorded() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/testdata/istio/02-strict/delta.bin");
        let bytes = std::fs::read(file).unwrap();
        let mut rest = bytes.as_slice();
        let mut all = Vec::new();
        while !rest.is_empty() {
            all.extend(DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap().resources);
        }
        fn find<M: Message + Name + Default>(all: &[Resource], name: &str) -> M {
            let found = all.iter().find(|one| one.name == name && one.resource.as_ref().unwrap().type_url == M::type_url());
            M::decode(found.unwrap().resource.as_ref().unwrap().value.as_slice()).unwrap()
        }
        let mut listener: Listener = find(&all, "127.0.0.2_9080");
        // Any free port will do.
        if let Some(Address { address: Some(address::Address::SocketAddress(SocketAddress { port_specifier, .. })) }) =
            &mut listener.address
        {
            *port_specifier = Some(socket_address::PortSpecifier::PortValue(0));
        }
        Self { cluster: find(&all, TEMPLATE), assignment: find(&all, TEMPLATE), listener, routes: find(&all, "9080") }
    }

    fn host(index: usize) -> String {
        format!("service-{index}.namespace-{}.svc.cluster.local", index / 50)
    }

    fn name(index: usize) -> String {
        format!("outbound|9080||{}", Self::host(index))
    }

    fn cluster(&self, index: usize) -> Resource {
        let (name, host) = (Self::name(index), Self::host(index));
        let mut cluster = self.cluster.clone();
        cluster.name.clone_from(&name);
        cluster.eds_cluster_config.as_mut().unwrap().service_name.clone_from(&name);
        for matched in &mut cluster.transport_socket_matches {
            let Some(ConfigType::TypedConfig(any)) = matched.transport_socket.as_mut().and_then(|s| s.config_type.as_mut())
            else {
                continue;
            };
            if any.type_url == UpstreamTlsContext::type_url() {
                let mut tls = UpstreamTlsContext::decode(any.value.as_slice()).unwrap();
                tls.sni = format!("outbound_.9080_._.{host}");
                let common = tls.common_tls_context.as_mut().unwrap();
                if let Some(ValidationContextType::CombinedValidationContext(both)) = &mut common.validation_context_type {
                    #[expect(deprecated, reason = "what istiod sends")]
                    let sans = &mut both.default_validation_context.as_mut().unwrap().match_subject_alt_names;
                    let account = format!("spiffe://cluster.local/ns/namespace-{}/sa/service-{index}", index / 50);
                    sans[0].match_pattern = Some(MatchPattern::Exact(account));
                }
                any.value = tls.encode_to_vec();
            }
        }
        let services = cluster.metadata.as_mut().unwrap().filter_metadata.get_mut("istio").unwrap();
        let Some(value::Kind::ListValue(list)) = &mut services.fields.get_mut("services").unwrap().kind else { unreachable!() };
        let Some(value::Kind::StructValue(service)) = &mut list.values[0].kind else { unreachable!() };
        for key in ["host", "name"] {
            service.fields.get_mut(key).unwrap().kind = Some(value::Kind::StringValue(host.clone()));
        }
        resource(&name, &cluster)
    }

    fn assignment(&self, index: usize, endpoints: usize) -> Resource {
        let mut assignment = self.assignment.clone();
        assignment.cluster_name = Self::name(index);
        assignment.endpoints.truncate(1);
        let locality = &mut assignment.endpoints[0];
        let template = locality.lb_endpoints[0].clone();
        locality.lb_endpoints = (0..endpoints)
            .map(|number| {
                let mut endpoint = template.clone();
                let Some(HostIdentifier::Endpoint(at)) = &mut endpoint.host_identifier else { unreachable!() };
                let Some(address::Address::SocketAddress(socket)) = &mut at.address.as_mut().unwrap().address else {
                    unreachable!()
                };
                let [_, a, b, c] = u32::try_from(index * ENDPOINTS + number + 1).unwrap().to_be_bytes();
                socket.address = format!("10.{a}.{b}.{c}");
                let workload = format!("service-{index}-{number};namespace-{};service-{index};v1;Kubernetes", index / 50);
                let istio = endpoint.metadata.as_mut().unwrap().filter_metadata.get_mut("istio").unwrap();
                istio.fields.get_mut("workload").unwrap().kind = Some(value::Kind::StringValue(workload));
                endpoint
            })
            .collect();
        resource(&Self::name(index), &assignment)
    }

    fn listener(&self) -> Resource {
        resource(&self.listener.name, &self.listener)
    }

    fn routes(&self, services: usize) -> Resource {
        let mut routes = self.routes.clone();
        let template = routes.virtual_hosts.iter().find(|host| host.name.starts_with("reviews")).unwrap().clone();
        routes.virtual_hosts = (0..services)
            .map(|index| {
                let (mut host, name) = (template.clone(), Self::host(index));
                host.name = format!("{name}:9080");
                let short = format!("service-{index}.namespace-{}", index / 50);
                host.domains = vec![name.clone(), format!("{name}."), format!("{short}.svc"), short];
                if let Some(Action::Route(route)) = &mut host.routes[0].action {
                    route.cluster_specifier = Some(ClusterSpecifier::Cluster(Self::name(index)));
                }
                host
            })
            .collect();
        resource("9080", &routes)
    }
}
