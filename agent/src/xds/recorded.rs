//! What a real istiod sent, for the tests of every layer: `testdata/istio/<scenario>/{delta,sotw}.bin` holds the responses of one
//! stream about clusters, endpoints, listeners and routes, in order, each after its length.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use skiff_proxy::config::Snapshot;

use super::resources::REMOVAL_DELAY;
use super::{Protocol, Resources, Response, Session};
use crate::translate::envoy::Rejected;

/// Both protocols.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Delta, Protocol::StateOfTheWorld];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/istio")
}

/// The scenarios that were recorded, by name.
pub(crate) fn scenarios() -> Vec<String> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let recorded = entries.filter(|path| path.join("delta.bin").is_file());
    let mut names: Vec<_> = recorded.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// What istiod answered in a scenario, in order.
pub(crate) fn responses(scenario: &str, protocol: Protocol) -> Vec<Response> {
    let file = match protocol {
        Protocol::Delta => "delta.bin",
        Protocol::StateOfTheWorld => "sotw.bin",
    };
    let mut bytes = Bytes::from(fs::read(folder().join(scenario).join(file)).unwrap());
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(match protocol {
            Protocol::Delta => Response::Delta(DeltaDiscoveryResponse::decode_length_delimited(&mut bytes).unwrap()),
            Protocol::StateOfTheWorld => {
                Response::StateOfTheWorld(DiscoveryResponse::decode_length_delimited(&mut bytes).unwrap())
            }
        });
    }
    all
}

/// Joins as a sidecar does: what is configured after the last response, and what was refused on the way.
pub(crate) fn join(scenario: &str, protocol: Protocol) -> (Snapshot, Vec<Rejected>) {
    let (mut session, mut resources, now) = (Session::new(protocol, Node::default()), Resources::default(), Instant::now());
    session.open(&mut resources, now);
    let mut rejected = Vec::new();
    for response in responses(scenario, protocol) {
        rejected.extend(session.handle(response, &mut resources, now).rejected);
    }
    (Arc::unwrap_or_clone(resources.publish("", now).snapshot), rejected)
}

/// The recorded messages of one stream of `testdata/xds`, by name and in order.
pub(crate) fn stream(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/xds").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
}

/// The response that a recorded message is, if it is one.
pub(crate) fn response(name: &str, bytes: &[u8]) -> Option<Response> {
    if name.ends_with("dresp") {
        return Some(Response::Delta(DeltaDiscoveryResponse::decode(bytes).unwrap()));
    }
    name.ends_with("resp").then(|| Response::StateOfTheWorld(DiscoveryResponse::decode(bytes).unwrap()))
}

/// A delta stream of `testdata/xds`, replayed in parts.
pub(crate) struct Replay {
    session: Session,
    resources: Resources,
    rest: std::vec::IntoIter<(String, Vec<u8>)>,
}

impl Replay {
    pub(crate) fn of(name: &str) -> Self {
        let (mut session, mut resources) = (Session::new(Protocol::Delta, Node::default()), Resources::default());
        session.open(&mut resources, Instant::now());
        Self { session, resources, rest: stream(name).into_iter() }
    }

    /// What is configured after the messages whose number is not greater than this one.
    pub(crate) fn up_to(&mut self, number: &str) -> Snapshot {
        while let Some((name, bytes)) = self.rest.as_slice().first().filter(|(name, _)| &name[..3] <= number).cloned() {
            self.rest.next();
            if let Some(response) = response(&name, &bytes) {
                let handled = self.session.handle(response, &mut self.resources, Instant::now());
                assert!(handled.rejected.is_empty(), "{name}: {:?}", handled.rejected);
            }
        }
        Arc::unwrap_or_clone(self.resources.publish("", Instant::now() + REMOVAL_DELAY).snapshot)
    }
}
