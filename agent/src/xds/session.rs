//! The xDS protocol without I/O: what to send when a stream opens, and what to answer to each response.
//!
//! Both protocols of [aggregated discovery](https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol), incremental
//! ([`Protocol::Delta`], Istio's default) and state of the world, in the order in which istio-agent asks: clusters, their endpoints,
//! listeners once the clusters are warm, the listeners' routes. Resources outlive a stream; a [`Session`] does not.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use skiff_proto::google::rpc::Status;

use super::resources::{Kind, Resources};
use crate::translate::envoy::Rejected;

/// gRPC status of a NACK, as Envoy sends it.
const INVALID_ARGUMENT: i32 = 3;
/// A NACK names this many resources at most: istiod logs the text.
const MAX_NAMED: usize = 20;

/// How resources travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Incremental.
    Delta,
    /// State of the world.
    StateOfTheWorld,
}

/// A message to the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// On a delta stream.
    Delta(DeltaDiscoveryRequest),
    /// On a state-of-the-world stream.
    StateOfTheWorld(DiscoveryRequest),
}

/// A message from the control plane.
#[derive(Clone, Debug)]
pub enum Response {
    /// On a delta stream.
    Delta(DeltaDiscoveryResponse),
    /// On a state-of-the-world stream.
    StateOfTheWorld(DiscoveryResponse),
}

/// What became of a response.
#[derive(Debug, Default)]
pub struct Handled {
    /// To be sent, in this order.
    pub requests: Vec<Request>,
    /// What is not taken over, and why.
    pub rejected: Vec<Rejected>,
    /// Whether anything that was accepted says something new.
    pub changed: bool,
    /// Which type it was about and the version that it claims; `None` for a type that was not asked for.
    pub about: Option<(Kind, String)>,
}

/// One stream.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    /// Sent with the first request only.
    node: Option<Node>,
    types: [TypeState; 4],
}

#[derive(Debug, Default)]
struct TypeState {
    /// The first request was sent.
    asked: bool,
    /// Names that were asked for; empty for wildcard types.
    names: BTreeSet<Arc<str>>,
    /// Of the last accepted response.
    version: String,
    /// Of the last response.
    nonce: String,
}

impl Session {
    /// A stream that has just been opened.
    pub fn new(protocol: Protocol, node: Node) -> Self {
        Self { protocol, node: Some(node), types: <[TypeState; 4]>::default() }
    }

    /// The first requests: clusters, and everything else that earlier streams have asked for already.
    pub fn open(&mut self, resources: &mut Resources, now: Instant) -> Vec<Request> {
        let mut requests = vec![self.ask(Kind::Cluster, BTreeSet::new(), resources)];
        requests.extend(self.subscribe(resources, now));
        requests
    }

    /// Asks for what is wanted and has not been asked for; also to be called when a time of a publication has come.
    pub fn subscribe(&mut self, resources: &mut Resources, now: Instant) -> Vec<Request> {
        let mut requests = Vec::new();
        requests.extend(self.want(Kind::Endpoints, resources));
        let listeners = &self.types[Kind::Listener as usize];
        let had_before = !resources.names(Kind::Listener).is_empty();
        let clusters_came = had_before || !self.types[Kind::Cluster as usize].nonce.is_empty();
        if !listeners.asked && clusters_came && (had_before || resources.clusters_are_warm(now)) {
            requests.push(self.ask(Kind::Listener, BTreeSet::new(), resources));
        }
        requests.extend(self.want(Kind::Routes, resources));
        requests
    }

    /// Whether the listeners have been asked for: the moment from which istiod takes health reports.
    pub fn has_asked_for_listeners(&self) -> bool {
        self.types[Kind::Listener as usize].asked
    }

    /// A report of the application's health (`istio.v1.HealthInformation`); an error says why it is not healthy.
    pub fn health(&self, error: Option<String>) -> Request {
        let type_url = "type.googleapis.com/istio.v1.HealthInformation".to_owned();
        // The code is the one that istio-agent sends: INTERNAL.
        let error_detail = error.map(|message| Status { code: 13, message, details: Vec::new() });
        match self.protocol {
            Protocol::Delta => Request::Delta(DeltaDiscoveryRequest { type_url, error_detail, ..Default::default() }),
            Protocol::StateOfTheWorld => {
                Request::StateOfTheWorld(DiscoveryRequest { type_url, error_detail, ..Default::default() })
            }
        }
    }

    /// Takes a response over, resource by resource. As istio-agent does, what it makes us want is asked for before it is answered
    /// with [`Session::acknowledge`].
    pub fn handle(&mut self, response: Response, resources: &mut Resources, now: Instant) -> Handled {
        let (type_url, nonce, version) = match &response {
            Response::Delta(delta) => (&delta.type_url, delta.nonce.clone(), delta.system_version_info.clone()),
            Response::StateOfTheWorld(world) => (&world.type_url, world.nonce.clone(), world.version_info.clone()),
        };
        let Some(kind) = Kind::of(type_url).filter(|&kind| self.types[kind as usize].asked) else {
            return Handled::default();
        };
        resources.originals().begin(kind, &version);
        let mut handled = Handled { about: Some((kind, version)), ..Handled::default() };
        self.types[kind as usize].nonce = nonce;
        let mut accepted = BTreeSet::new();
        match response {
            Response::Delta(delta) => {
                for resource in &delta.resources {
                    let outcome = match &resource.resource {
                        Some(any) => resources.take(kind, any, Some(resource.name.as_str()).filter(|name| !name.is_empty())),
                        None => Err(vec![missing_body(kind, &resource.name)]),
                    };
                    note(outcome, &mut handled, &mut accepted);
                }
                for name in &delta.removed_resources {
                    handled.changed |= resources.remove(kind, name, now);
                }
            }
            Response::StateOfTheWorld(world) => {
                for any in &world.resources {
                    note(resources.take(kind, any, None), &mut handled, &mut accepted);
                }
                // Only the wildcard types are complete; istiod sends the endpoints and routes that changed. What was rejected
                // keeps its last good version, so nothing is concluded from a response that could not be read.
                if kind.is_wildcard() && handled.rejected.is_empty() {
                    for name in resources.names(kind).difference(&accepted) {
                        handled.changed |= resources.remove(kind, name, now);
                    }
                }
            }
        }
        handled.requests = self.subscribe(resources, now);
        handled
    }

    /// Adjusts the subscription of a named type.
    fn want(&mut self, kind: Kind, resources: &mut Resources) -> Option<Request> {
        let wanted = resources.wanted(kind);
        let state = &self.types[kind as usize];
        if wanted == state.names && (state.asked || wanted.is_empty()) {
            return None;
        }
        resources.retain_wanted(kind, &wanted);
        Some(self.ask(kind, wanted, resources))
    }

    fn ask(&mut self, kind: Kind, names: BTreeSet<Arc<str>>, resources: &Resources) -> Request {
        let node = self.node.take();
        let state = &mut self.types[kind as usize];
        let first = !std::mem::replace(&mut state.asked, true);
        let before = std::mem::replace(&mut state.names, names);
        let type_url = kind.type_url();
        match self.protocol {
            Protocol::Delta => {
                // istiod's versions are empty: the names alone tell it what we have.
                let known = if first { resources.names(kind) } else { BTreeSet::new() };
                let initial_resource_versions: HashMap<String, String> =
                    known.into_iter().map(|name| (name.to_string(), String::new())).collect();
                Request::Delta(DeltaDiscoveryRequest {
                    node,
                    type_url,
                    resource_names_subscribe: state.names.difference(&before).map(ToString::to_string).collect(),
                    resource_names_unsubscribe: before.difference(&state.names).map(ToString::to_string).collect(),
                    initial_resource_versions,
                    ..Default::default()
                })
            }
            Protocol::StateOfTheWorld => Request::StateOfTheWorld(DiscoveryRequest {
                node,
                type_url,
                version_info: state.version.clone(),
                response_nonce: state.nonce.clone(),
                resource_names: state.names.iter().map(ToString::to_string).collect(),
                ..Default::default()
            }),
        }
    }

    /// ACK, or NACK with what was rejected, here or by the data plane. Nothing for a type that was not asked for.
    pub fn acknowledge(&mut self, handled: &Handled) -> Option<Request> {
        let (kind, version) = handled.about.as_ref()?;
        let (state, rejected) = (&mut self.types[*kind as usize], &handled.rejected);
        let error_detail =
            (!rejected.is_empty()).then(|| Status { code: INVALID_ARGUMENT, message: complaint(rejected), details: Vec::new() });
        if error_detail.is_none() {
            state.version.clone_from(version);
        }
        let (type_url, response_nonce) = (kind.type_url(), state.nonce.clone());
        Some(match self.protocol {
            Protocol::Delta => {
                Request::Delta(DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() })
            }
            Protocol::StateOfTheWorld => Request::StateOfTheWorld(DiscoveryRequest {
                type_url,
                response_nonce,
                error_detail,
                version_info: state.version.clone(),
                resource_names: state.names.iter().map(ToString::to_string).collect(),
                ..Default::default()
            }),
        })
    }
}

fn note(outcome: Result<(Arc<str>, bool), Vec<Rejected>>, handled: &mut Handled, accepted: &mut BTreeSet<Arc<str>>) {
    match outcome {
        Ok((name, changed)) => {
            handled.changed |= changed;
            accepted.insert(name);
        }
        Err(all) => handled.rejected.extend(all),
    }
}

fn missing_body(kind: Kind, name: &str) -> Rejected {
    Rejected { type_url: kind.type_url(), name: name.to_owned(), path: "resource".to_owned(), reason: "is missing".to_owned() }
}

/// The text of a NACK: one line for each resource, as Envoy writes its own.
fn complaint(rejected: &[Rejected]) -> String {
    let mut lines: Vec<String> = rejected.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    if rejected.len() > MAX_NAMED {
        lines.push(format!("and {} more", rejected.len() - MAX_NAMED));
    }
    lines.join("\n")
}
