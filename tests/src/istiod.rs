//! A fake istiod: aggregated discovery over TLS, with the resources that a real one sent, and misbehaviour on demand.
//!
//! It says what a test makes it say and notes what it hears. Its resources are those of `data/istiod`, recorded from a real istiod
//! for a workload with the addresses of [`crate::mesh`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::{Message, Name};
use skiff_proto::envoy::config::core::v3::address::Address as Place;
use skiff_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, lb_endpoint::HostIdentifier};
use skiff_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use skiff_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use skiff_proto::google::protobuf::Any;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::network::Network;
use crate::tls::{Authority, acceptor};
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
    acceptor: Arc<rustls::ServerConfig>,
    state: Arc<State>,
    /// Endpoints by cluster, all of them.
    recorded: BTreeMap<String, ClusterLoadAssignment>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Resources by type and name.
    resources: Mutex<BTreeMap<(String, String), Any>>,
    heard: watch::Sender<Vec<Heard>>,
    /// Open streams: what is sent here goes to the sidecar.
    streams: Mutex<Vec<mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>>>,
    /// Ends of the next delta streams.
    refusals: Mutex<VecDeque<Status>>,
}

impl Istiod {
    /// Starts it with what was recorded, on an address of the network.
    pub async fn start(network: &Network, address: SocketAddr, authority: &Authority) -> Self {
        let state = Arc::new(State::default());
        let mut recorded = BTreeMap::new();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/istiod");
        for kind in ["CDS", "EDS", "LDS", "RDS"] {
            let bytes = network.localise_bytes(&fs::read(folder.join(format!("{kind}.bin"))).unwrap());
            let response = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
            for resource in response.resources {
                let any = resource.resource.unwrap();
                if kind == "EDS" {
                    recorded.insert(resource.name.clone(), ClusterLoadAssignment::decode(any.value.as_slice()).unwrap());
                }
                state.resources.lock().unwrap().insert((any.type_url.clone(), resource.name), any);
            }
        }
        let acceptor = acceptor(authority.issue_for_name(NAME), &["h2"]);
        let mut istiod = Self { address, acceptor, state, recorded, serving: None };
        istiod.resume().await;
        istiod
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
        let acceptor = TlsAcceptor::from(self.acceptor.clone());
        let service = TowerToHyperService::new(AggregatedDiscoveryServiceServer::new(Service(self.state.clone())));
        self.serving = Some(tokio::spawn(async move {
            // Aborted with this task, so that stopping breaks every connection.
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move {
                    // How a handshake or a connection fails is the sidecar's business.
                    let tls = acceptor.accept(tcp).await?;
                    let http2 = http2::Builder::new(TokioExecutor::new());
                    http2.serve_connection(TokioIo::new(tls), service).await.map_err(io::Error::other)
                });
            }
        }));
    }

    /// Ends the next incremental stream with this.
    pub fn refuse(&self, status: Status) {
        self.state.refusals.lock().unwrap().push_back(status);
    }

    /// Changes one resource and pushes it; `None` removes it.
    pub async fn push<M: Message + Name + Default>(&self, name: &str, edit: impl FnOnce(M) -> Option<M>) {
        let key = (M::type_url(), name.to_owned());
        let current = self.state.resources.lock().unwrap().get(&key).map(|any| M::decode(any.value.as_slice()).unwrap());
        let changed =
            edit(current.unwrap_or_default()).map(|message| Any { type_url: M::type_url(), value: message.encode_to_vec() });
        let mut response = DeltaDiscoveryResponse { type_url: M::type_url(), nonce: "pushed".to_owned(), ..Default::default() };
        match changed {
            Some(any) => {
                self.state.resources.lock().unwrap().insert(key, any.clone());
                response.resources = vec![Resource { name: name.to_owned(), resource: Some(any), ..Resource::default() }];
            }
            None => {
                self.state.resources.lock().unwrap().remove(&key);
                response.removed_resources = vec![name.to_owned()];
            }
        }
        let streams = self.state.streams.lock().unwrap().clone();
        for stream in streams {
            let _ = stream.send(Ok(response.clone())).await;
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

    /// Waits for something that a sidecar says.
    pub async fn hears(&self, what: &str, matches: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.state.heard.subscribe();
        let all = within(what, heard.wait_for(|all| all.iter().any(&matches))).await.unwrap();
        all.iter().rev().find(|one| matches(one)).cloned().unwrap()
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

fn is_at(endpoint: &Endpoint, address: SocketAddr) -> bool {
    match endpoint.address.as_ref().and_then(|found| found.address.as_ref()) {
        Some(Place::SocketAddress(found)) => found.address == address.ip().to_string(),
        _ => false,
    }
}

struct Service(Arc<State>);

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

fn metadata(node: Option<skiff_proto::envoy::config::core::v3::Node>) -> BTreeSet<String> {
    node.and_then(|node| node.metadata).map(|metadata| metadata.fields.into_keys().collect()).unwrap_or_default()
}

fn is_discovery(type_url: &str) -> bool {
    type_url != HEALTH
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (mut requests, state) = (request.into_inner(), self.0.clone());
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut answered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            while let Some(Ok(request)) = requests.next().await {
                let names: BTreeSet<String> = request.resource_names.into_iter().collect();
                state.note(Heard {
                    type_url: request.type_url.clone(),
                    names: names.clone(),
                    nonce: request.response_nonce,
                    error: request.error_detail.map(|status| status.message),
                    metadata: metadata(request.node),
                    ..Heard::default()
                });
                let news = answered.get(&request.type_url) != Some(&names);
                if is_discovery(&request.type_url) && news {
                    let resources = state.find(&request.type_url, &names).into_iter().filter_map(|resource| resource.resource);
                    let response = DiscoveryResponse {
                        version_info: "1".to_owned(),
                        resources: resources.collect(),
                        nonce: "answer".to_owned(),
                        type_url: request.type_url.clone(),
                        ..DiscoveryResponse::default()
                    };
                    answered.insert(request.type_url, names);
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut requests, state) = (request.into_inner(), self.0.clone());
        let (sender, receiver) = mpsc::channel(64);
        if let Some(status) = state.refusals.lock().unwrap().pop_front() {
            sender.try_send(Err(status)).unwrap();
            return Ok(Response::new(ReceiverStream::new(receiver)));
        }
        state.streams.lock().unwrap().push(sender.clone());
        tokio::spawn(async move {
            let mut asked = BTreeSet::new();
            while let Some(Ok(request)) = requests.next().await {
                let names: BTreeSet<String> = request.resource_names_subscribe.into_iter().collect();
                state.note(Heard {
                    type_url: request.type_url.clone(),
                    names: names.clone(),
                    known: request.initial_resource_versions.into_keys().collect(),
                    nonce: request.response_nonce.clone(),
                    error: request.error_detail.map(|status| status.message),
                    metadata: metadata(request.node),
                });
                let first = asked.insert(request.type_url.clone());
                let wants = !names.is_empty() || first && request.response_nonce.is_empty();
                if is_discovery(&request.type_url) && wants {
                    let response = DeltaDiscoveryResponse {
                        resources: state.find(&request.type_url, &names),
                        nonce: "answer".to_owned(),
                        type_url: request.type_url,
                        ..DeltaDiscoveryResponse::default()
                    };
                    if sender.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
