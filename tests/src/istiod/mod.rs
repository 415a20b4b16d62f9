//! A fake istiod: aggregated discovery, certificates and registration over TLS on one port, as a real one has them, with what a
//! real one sent, and misbehaviour on demand.
//!
//! It says what a test makes it say and notes what it hears. Its resources were recorded from a real istiod: those of
//! `data/istiod` for a workload with the addresses of [`crate::mesh`], or those of a scenario of `agent/testdata/istio`.

mod certificates;
mod discovery;
mod oddities;
mod registry;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::{Message, Name};
use rustls::ServerConfig;
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3::address::Address as Place;
use skiff_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, lb_endpoint::HostIdentifier};
use skiff_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use skiff_proto::google::protobuf::Any;
use skiff_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::Service as _;

use self::certificates::{Certificates, Peer};
use self::discovery::{Discovery, Stream};
pub use self::oddities::Oddity;
pub use self::registry::Entry;
use self::registry::Registry;
pub use self::scenario::Scenario;
use crate::network::Network;
use crate::tls::{Authority, Identity, mutual_acceptor};
use crate::wait::within;

/// The name that its certificate carries.
pub const NAME: &str = "istiod.istio-system.svc";
/// Type of health reports.
pub const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// What a sidecar said: a request of either protocol.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The type it is about.
    pub type_url: String,
    /// Names that it asks for.
    pub names: BTreeSet<String>,
    /// Names that it has already.
    pub known: BTreeSet<String>,
    /// Answers a response.
    pub nonce: String,
    /// Says why a response is not taken, or the application not healthy.
    pub error: Option<String>,
    /// The node's metadata keys, in the first request of a stream.
    pub metadata: BTreeSet<String>,
}

/// The fake. Dropping it closes everything.
#[derive(Debug)]
pub struct Istiod {
    address: SocketAddr,
    authority: Arc<Authority>,
    state: Arc<State>,
    /// Endpoints by cluster, all of them.
    recorded: BTreeMap<String, ClusterLoadAssignment>,
    serving: Option<JoinHandle<()>>,
}

/// What its services share.
#[derive(Debug, Default)]
struct State {
    /// Resources by type and name.
    resources: Mutex<BTreeMap<(String, String), Any>>,
    heard: watch::Sender<Vec<Heard>>,
    streams: Mutex<Vec<Stream>>,
    oddities: Mutex<Vec<Oddity>>,
    registry: Registry,
    certificates: Certificates,
    /// Its side of TLS, changed by [`Istiod::show`].
    tls: Mutex<Option<Arc<ServerConfig>>>,
}

impl Istiod {
    /// Starts it with what was recorded, on an address of the network.
    pub async fn start(network: &Network, address: SocketAddr, authority: Authority) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/istiod");
        let files = ["CDS", "EDS", "LDS", "RDS"].map(|kind| fs::read(folder.join(format!("{kind}.bin"))).unwrap());
        let responses = files.map(|bytes| DeltaDiscoveryResponse::decode(network.localise_bytes(&bytes).as_slice()).unwrap());
        Self::with(responses, address, authority).await
    }

    async fn with(
        responses: impl IntoIterator<Item = DeltaDiscoveryResponse>,
        address: SocketAddr,
        authority: Authority,
    ) -> Self {
        let state = Arc::new(State::default());
        let mut recorded = BTreeMap::new();
        for resource in responses.into_iter().flat_map(|response| response.resources) {
            let any = resource.resource.unwrap();
            if any.type_url == ClusterLoadAssignment::type_url() {
                recorded.insert(resource.name.clone(), ClusterLoadAssignment::decode(any.value.as_slice()).unwrap());
            }
            state.resources.lock().unwrap().insert((any.type_url.clone(), resource.name), any);
        }
        let mut istiod = Self { address, authority: Arc::new(authority), state, recorded, serving: None };
        istiod.show(istiod.authority.issue_for_name(NAME));
        istiod.resume().await;
        istiod
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows this certificate to whoever connects from now on.
    pub fn show(&self, identity: Identity) {
        *self.state.tls.lock().unwrap() = Some(mutual_acceptor(identity, &self.authority, &["h2"]));
    }

    /// Takes it away: its port is closed and every stream breaks.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
        self.state.streams.lock().unwrap().clear();
    }

    /// Brings it back.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let (state, authority) = (self.state.clone(), self.authority.clone());
        self.serving = Some(tokio::spawn(async move {
            // Aborted with this task, so that stopping breaks every connection.
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                // How a handshake or a connection fails is the sidecar's business.
                connections.spawn(serve(tcp, state.clone(), authority.clone()));
            }
        }));
    }

    /// Does something odd at the next occasion.
    pub fn misbehave(&self, oddity: Oddity) {
        self.state.oddities.lock().unwrap().push(oddity);
    }

    /// Whether every oddity has had its occasion.
    pub fn has_misbehaved(&self) -> bool {
        self.state.oddities.lock().unwrap().is_empty()
    }

    /// Believes this token no more.
    pub fn revoke(&self, token: &str) {
        self.state.certificates.revoke(token);
    }

    /// The token that was shown last.
    pub fn token_shown(&self) -> Option<String> {
        self.state.certificates.shown()
    }

    /// How many certificates it has issued.
    pub fn certificates_issued(&self) -> usize {
        self.state.certificates.issued()
    }

    /// The WorkloadGroups that exist; without this call every one does.
    pub fn groups(&self, names: &[&str]) {
        self.state.registry.groups(names);
    }

    /// Waits until its WorkloadEntries are as wished.
    pub async fn registered(&self, what: &str, matches: impl Fn(&[Entry]) -> bool) {
        let mut entries = self.state.registry.entries();
        within(what, entries.wait_for(|entries| matches(entries))).await.unwrap();
    }

    /// Changes one resource and pushes it; `None` removes it.
    pub async fn push<M: Message + Name + Default>(&self, name: &str, edit: impl FnOnce(M) -> Option<M>) {
        let key = (M::type_url(), name.to_owned());
        let current = self.state.resources.lock().unwrap().get(&key).map(|any| M::decode(any.value.as_slice()).unwrap());
        let changed =
            edit(current.unwrap_or_default()).map(|message| Any { type_url: M::type_url(), value: message.encode_to_vec() });
        match changed.clone() {
            Some(any) => self.state.resources.lock().unwrap().insert(key, any),
            None => self.state.resources.lock().unwrap().remove(&key),
        };
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        match changed {
            Some(any) => resources.push(Resource { name: name.to_owned(), resource: Some(any), ..Resource::default() }),
            None => removed.push(name.to_owned()),
        }
        self.send(&M::type_url(), resources, removed).await;
    }

    /// Sends all resources of a type again, as they are.
    pub async fn repeat(&self, type_url: &str) {
        self.send(type_url, self.state.find(type_url, &BTreeSet::new()), Vec::new()).await;
    }

    /// Sends resources as they are given, without keeping them.
    pub async fn send(&self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) {
        let streams = self.state.streams.lock().unwrap().clone();
        for stream in streams {
            stream.push(&self.state, type_url, &resources, &removed).await;
        }
    }

    /// Gives a cluster only those of its recorded endpoints that are at these addresses, and pushes that.
    pub async fn endpoints(&self, cluster: &str, addresses: &[SocketAddr]) {
        let recorded = self.recorded.get(cluster).cloned().unwrap_or_default();
        self.push::<ClusterLoadAssignment>(cluster, |_| {
            let mut assignment = recorded;
            for locality in &mut assignment.endpoints {
                locality.lb_endpoints.retain(|endpoint| match &endpoint.host_identifier {
                    Some(HostIdentifier::Endpoint(endpoint)) => addresses.iter().any(|address| is_at(endpoint, *address)),
                    _ => false,
                });
            }
            Some(assignment)
        })
        .await;
    }

    /// Adds so many services that are like the one of `cluster`, and pushes their clusters at once.
    pub async fn multiply(&self, cluster: &str, count: usize) {
        let key = |name: &str| (Cluster::type_url(), name.to_owned());
        let template = self.state.resources.lock().unwrap()[&key(cluster)].clone();
        let template = Cluster::decode(template.value.as_slice()).unwrap();
        let mut resources = Vec::new();
        for number in 0..count {
            let name = format!("outbound|9080||service-{number}.bookinfo.svc.cluster.local");
            let mut cluster_of_it = template.clone();
            cluster_of_it.name.clone_from(&name);
            cluster_of_it.eds_cluster_config.as_mut().unwrap().service_name.clone_from(&name);
            let any = Any { type_url: Cluster::type_url(), value: cluster_of_it.encode_to_vec() };
            let mut assignment = self.recorded[cluster].clone();
            assignment.cluster_name.clone_from(&name);
            let endpoints = &mut assignment.endpoints[0].lb_endpoints;
            let one = endpoints[0].clone();
            endpoints.resize(10, one);
            let of_it = Any { type_url: ClusterLoadAssignment::type_url(), value: assignment.encode_to_vec() };
            let mut all = self.state.resources.lock().unwrap();
            all.insert(key(&name), any.clone());
            all.insert((ClusterLoadAssignment::type_url(), name.clone()), of_it);
            resources.push(Resource { name, resource: Some(any), ..Resource::default() });
        }
        self.send(&Cluster::type_url(), resources, Vec::new()).await;
    }

    /// Waits for something that a sidecar says.
    pub async fn hears(&self, what: &str, matches: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.state.heard.subscribe();
        let all = within(what, heard.wait_for(|all| all.iter().any(&matches))).await.unwrap();
        all.iter().rev().find(|one| matches(one)).cloned().unwrap()
    }

    /// What it has heard since it was started or [`Self::forget`] was called.
    pub fn heard(&self) -> Vec<Heard> {
        self.state.heard.borrow().clone()
    }

    /// Forgets what it has heard.
    pub fn forget(&self) {
        self.state.heard.send_replace(Vec::new());
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl State {
    fn note(&self, heard: Heard) {
        self.heard.send_modify(|all| all.push(heard));
    }

    /// Resources of a type: the named ones, or all.
    fn find(&self, type_url: &str, names: &BTreeSet<String>) -> Vec<Resource> {
        let resources = self.resources.lock().unwrap();
        let wanted = resources.iter().filter(|((kind, name), _)| kind == type_url && (names.is_empty() || names.contains(name)));
        wanted
            .map(|((_, name), any)| Resource { name: name.clone(), resource: Some(any.clone()), ..Resource::default() })
            .collect()
    }
}

fn is_at(endpoint: &Endpoint, address: SocketAddr) -> bool {
    match endpoint.address.as_ref().and_then(|found| found.address.as_ref()) {
        Some(Place::SocketAddress(socket)) => socket.address == address.ip().to_string(),
        _ => false,
    }
}

/// One connection, for as long as it lasts.
async fn serve(tcp: TcpStream, state: Arc<State>, authority: Arc<Authority>) -> io::Result<()> {
    let config = state.tls.lock().unwrap().clone().unwrap();
    let tls = TlsAcceptor::from(config).accept(tcp).await?;
    let peer = Peer::of(tls.get_ref().1);
    let going = Arc::new(tokio::sync::Notify::new());
    let service = service_fn({
        let (state, going) = (state.clone(), going.clone());
        move |request| answer(request, peer.clone(), state.clone(), authority.clone(), going.clone())
    });
    let mut connection = std::pin::pin!(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service));
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        () = going.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(io::Error::other)
}

async fn answer(
    mut request: http::Request<Incoming>,
    peer: Peer,
    state: Arc<State>,
    authority: Arc<Authority>,
    going: Arc<tokio::sync::Notify>,
) -> Result<http::Response<Body>, Infallible> {
    request.extensions_mut().insert(peer);
    if request.uri().path().starts_with("/istio.v1.auth.") {
        let service = certificates::Service { state, authority };
        return IstioCertificateServiceServer::new(service).call(request).await;
    }
    let oddity = oddities::of_transport(&state);
    let answered = match oddity {
        None => AggregatedDiscoveryServiceServer::new(Discovery(state)).call(request).await?,
        Some(oddity) => oddities::answer(oddity, request, state, &going).await?,
    };
    Ok(answered)
}
