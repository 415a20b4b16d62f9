//! Responses of a control plane, whatever is in them: nothing panics, what is refused keeps its last good version, every response is
//! answered, and no half of a configuration is published.

use std::time::Instant;

use prost::Message;
use skiff_agent::xds::{Handled, Kind, Protocol, Request, Resources, Response, Session};
use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config::{NetworkFilter, RouteSource, Snapshot};

use crate::input::Input;
use crate::translate::publish;

/// What a real istiod sent: where every input begins.
const RECORDED: &[u8] = include_bytes!("../../../agent/testdata/istio/02-strict/delta.bin");

/// The first byte: protocol, and whether a whole response follows or a recorded resource with some bytes changed.
pub fn discovery(data: &[u8]) {
    let mut input = Input::new(data);
    let first = input.byte();
    let protocol = if first & 1 == 0 { Protocol::Delta } else { Protocol::StateOfTheWorld };
    let recorded = recorded();
    let (mut session, mut resources) = (Session::new(protocol, Node::default()), Resources::default());
    session.open(&mut resources, Instant::now());
    for (kind, all) in &recorded {
        let handled = answered(&mut session, &mut resources, response(protocol, *kind, all.clone()));
        assert!(handled.rejected.is_empty() && handled.about.is_some());
    }
    let before = resources.publish("", Instant::now()).snapshot;
    complete(&before);
    if first & 2 == 0 {
        let Some(response) = whole(protocol, input.rest()) else { return };
        answered(&mut session, &mut resources, response);
        publish(&resources.publish("", Instant::now()).snapshot);
        return;
    }
    let (kind, all) = &recorded[input.below(recorded.len())];
    let at = input.below(all.len());
    let mut changed = all.clone();
    change(changed[at].resource.as_mut().unwrap(), &mut input);
    let handled = answered(&mut session, &mut resources, response(protocol, *kind, changed));
    let after = resources.publish("", Instant::now()).snapshot;
    if !handled.rejected.is_empty() {
        // One resource is refused: it and all others are as they were.
        let same = match kind {
            Kind::Cluster => before.clusters == after.clusters,
            Kind::Endpoints => before.endpoints == after.endpoints,
            Kind::Listener => before.listeners == after.listeners,
            Kind::Routes => before.routes == after.routes,
        };
        assert!(same, "what is refused changed something: {:?}", handled.rejected);
    }
    complete(&after);
    publish(&after);
}

/// Handles and answers, as the client does.
fn answered(session: &mut Session, resources: &mut Resources, response: Response) -> Handled {
    let handled = session.handle(response, resources, Instant::now());
    let answer = session.acknowledge(&handled);
    assert_eq!(answer.is_some(), handled.about.is_some(), "every response that was asked for is answered");
    let refusal = answer.and_then(|answer| match answer {
        Request::Delta(delta) => delta.error_detail,
        Request::StateOfTheWorld(world) => world.error_detail,
    });
    assert_eq!(refusal.is_some(), !handled.rejected.is_empty());
    for rejected in &handled.rejected {
        assert!(!rejected.reason.is_empty(), "{rejected:?}");
    }
    handled
}

/// No listener is served before its routes.
fn complete(snapshot: &Snapshot) {
    for listener in snapshot.listeners.values() {
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            if let NetworkFilter::Http(manager) = &chain.filter
                && let RouteSource::Named(name) = &manager.routes
            {
                assert!(snapshot.routes.contains_key(name), "{} without {name}", listener.name);
            }
        }
    }
}

/// Bytes are overwritten, inserted or left out where the input says.
fn change(any: &mut Any, input: &mut Input<'_>) {
    for _ in 0..=input.below(4) {
        let at = usize::from(input.byte()) << 8 | usize::from(input.byte());
        let at = at % any.value.len().max(1);
        let byte = input.byte();
        match byte % 3 {
            _ if any.value.is_empty() => any.value.push(byte),
            0 => any.value[at] = input.byte(),
            1 => any.value.insert(at, input.byte()),
            _ => drop(any.value.remove(at)),
        }
    }
}

fn whole(protocol: Protocol, bytes: &[u8]) -> Option<Response> {
    match protocol {
        Protocol::Delta => DeltaDiscoveryResponse::decode(bytes).ok().map(Response::Delta),
        Protocol::StateOfTheWorld => DiscoveryResponse::decode(bytes).ok().map(Response::StateOfTheWorld),
    }
}

fn response(protocol: Protocol, kind: Kind, resources: Vec<Resource>) -> Response {
    let (type_url, nonce) = (kind.type_url(), "n".to_owned());
    match protocol {
        Protocol::Delta => Response::Delta(DeltaDiscoveryResponse { type_url, nonce, resources, ..Default::default() }),
        Protocol::StateOfTheWorld => {
            let resources = resources.into_iter().filter_map(|resource| resource.resource).collect();
            Response::StateOfTheWorld(DiscoveryResponse { type_url, nonce, resources, ..Default::default() })
        }
    }
}

fn recorded() -> Vec<(Kind, Vec<Resource>)> {
    let mut rest = RECORDED;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        all.push((Kind::of(&response.type_url).unwrap(), response.resources));
    }
    all
}
