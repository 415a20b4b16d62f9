//! Aggregated discovery, on both protocols.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use skiff_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::certificates::Peer;
use super::oddities::{self, Oddity};
use super::{HEALTH, Heard, State};

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// An open stream: what is sent here goes to the sidecar.
#[derive(Clone, Debug)]
pub(super) enum Stream {
    Delta(mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>),
    World(mpsc::Sender<Result<DiscoveryResponse, Status>>),
}

impl Stream {
    /// Sends what changed; of the state of the world, clusters and listeners are always sent completely.
    pub(super) async fn push(&self, state: &State, type_url: &str, resources: &[Resource], removed: &[String]) {
        match self {
            Self::Delta(stream) => {
                let response = DeltaDiscoveryResponse {
                    type_url: type_url.to_owned(),
                    nonce: "pushed".to_owned(),
                    resources: resources.to_vec(),
                    removed_resources: removed.to_vec(),
                    ..DeltaDiscoveryResponse::default()
                };
                let _ = stream.send(Ok(response)).await;
            }
            Self::World(stream) => {
                let all = match type_url {
                    CLUSTERS | LISTENERS => state.find(type_url, &BTreeSet::new()),
                    _ => resources.to_vec(),
                };
                let _ = stream.send(Ok(world(type_url, all, "pushed"))).await;
            }
        }
    }
}

fn world(type_url: &str, resources: Vec<Resource>, nonce: &str) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: "1".to_owned(),
        resources: resources.into_iter().filter_map(|resource| resource.resource).collect(),
        nonce: nonce.to_owned(),
        type_url: type_url.to_owned(),
        ..DiscoveryResponse::default()
    }
}

pub(super) struct Discovery(pub(super) Arc<State>);

/// Ends with its stream.
struct Guest {
    state: Arc<State>,
    entry: Option<String>,
}

impl Guest {
    /// Looks at the node of the first request.
    fn introduce(&mut self, node: Option<&Node>) -> Result<(), Status> {
        if let Some(node) = node {
            self.entry = self.state.registry.connect(node)?;
        }
        Ok(())
    }

    fn report(&self, heard: &Heard) {
        if let Some(entry) = self.entry.as_ref().filter(|_| heard.type_url == HEALTH) {
            self.state.registry.report(entry, heard.error.is_none());
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            self.state.registry.disconnect(entry);
        }
    }
}

impl Discovery {
    fn admit<T>(&self, request: &Request<T>) -> Result<Guest, Status> {
        let caller = self.0.certificates.authenticate(request.extensions().get::<Peer>(), request.metadata());
        match caller {
            Some(_) => Ok(Guest { state: self.0.clone(), entry: None }),
            None => Err(Status::unauthenticated("authentication failure")),
        }
    }
}

fn metadata(node: Option<&Node>) -> BTreeSet<String> {
    let metadata = node.and_then(|node| node.metadata.as_ref());
    metadata.map(|metadata| metadata.fields.keys().cloned().collect()).unwrap_or_default()
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let mut guest = self.admit(&request)?;
        let (mut requests, state) = (request.into_inner(), self.0.clone());
        let (sender, receiver) = mpsc::channel(64);
        state.streams.lock().unwrap().push(Stream::World(sender.clone()));
        tokio::spawn(async move {
            let mut answered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            while let Some(Ok(request)) = requests.next().await {
                if let Err(status) = guest.introduce(request.node.as_ref()) {
                    return drop(sender.send(Err(status)).await);
                }
                let names: BTreeSet<String> = request.resource_names.into_iter().collect();
                let heard = Heard {
                    type_url: request.type_url.clone(),
                    names: names.clone(),
                    nonce: request.response_nonce,
                    error: request.error_detail.map(|status| status.message),
                    metadata: metadata(request.node.as_ref()),
                    ..Heard::default()
                };
                guest.report(&heard);
                state.note(heard);
                if request.type_url == HEALTH || answered.get(&request.type_url) == Some(&names) {
                    continue;
                }
                let response = world(&request.type_url, state.find(&request.type_url, &names), "answer");
                answered.insert(request.type_url, names);
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut guest = self.admit(&request)?;
        let (mut requests, state) = (request.into_inner(), self.0.clone());
        let (sender, receiver) = mpsc::channel(64);
        state.streams.lock().unwrap().push(Stream::Delta(sender.clone()));
        tokio::spawn(async move {
            let mut asked = BTreeSet::new();
            while let Some(Ok(request)) = requests.next().await {
                if let Err(status) = guest.introduce(request.node.as_ref()) {
                    return drop(sender.send(Err(status)).await);
                }
                let names: BTreeSet<String> = request.resource_names_subscribe.into_iter().collect();
                let heard = Heard {
                    type_url: request.type_url.clone(),
                    names: names.clone(),
                    known: request.initial_resource_versions.into_keys().collect(),
                    nonce: request.response_nonce.clone(),
                    error: request.error_detail.map(|status| status.message),
                    metadata: metadata(request.node.as_ref()),
                };
                guest.report(&heard);
                state.note(heard);
                let first = asked.insert(request.type_url.clone());
                let wants = !names.is_empty() || first && request.response_nonce.is_empty();
                if request.type_url == HEALTH || !wants {
                    continue;
                }
                let mut response = DeltaDiscoveryResponse {
                    resources: state.find(&request.type_url, &names),
                    nonce: "answer".to_owned(),
                    type_url: request.type_url,
                    ..DeltaDiscoveryResponse::default()
                };
                for oddity in oddities::of_response(&state) {
                    if oddity == Oddity::Foreign {
                        let foreign = DeltaDiscoveryResponse {
                            type_url: "type.googleapis.com/no.such.Type".to_owned(),
                            ..response.clone()
                        };
                        let _ = sender.send(Ok(foreign)).await;
                    }
                    oddities::distort(oddity, &mut response);
                }
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
