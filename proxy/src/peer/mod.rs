//! Who calls and who answers: Istio's exchange of peer metadata.
//!
//! Over HTTP it is a pair of headers ([`PeerMetadata`]), over TCP a preamble that both sides send first ([`preamble`]). Both
//! carry a `google.protobuf.Struct`. That is what peers say on the wire, not a form of configuration: as with the authorisation
//! service, the few messages are written down here (`message`), with the fields that matter and nothing that nests without end,
//! and the model in [`crate::config`] stays plain data.
//!
//! What a peer says is only ever a label of a metric. Whatever is malformed or too long is taken for nothing said.

mod headers;
mod known;
mod message;
pub mod preamble;

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

pub use self::headers::{Asked, PeerMetadata};
pub use self::known::Known;
use crate::config::Node;

/// Longest metadata that is read, as it stands on the wire. Istio's own is below 1 KiB.
pub const MAX_METADATA: usize = 16 * 1024;

/// Who we are, in every form that peers are told it in.
#[derive(Debug)]
pub struct Local {
    node: Node,
    header: Arc<[u8]>,
    preamble: Arc<[u8]>,
}

impl Local {
    /// Prepares what is told.
    pub fn new(node: Node) -> Self {
        let (header, preamble) = (header(&node, &[]), message::preamble(&node, &[]));
        Self { node, header, preamble: preamble.into() }
    }

    /// As it was configured.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The value of `x-envoy-peer-metadata`, with these labels beside the usual ones.
    pub fn header(&self, additional_labels: &[String]) -> Arc<[u8]> {
        if additional_labels.is_empty() { self.header.clone() } else { header(&self.node, additional_labels) }
    }

    /// The preamble of a TCP connection.
    pub fn preamble(&self, additional_labels: &[String]) -> Arc<[u8]> {
        if additional_labels.is_empty() { self.preamble.clone() } else { message::preamble(&self.node, additional_labels).into() }
    }
}

fn header(node: &Node, additional_labels: &[String]) -> Arc<[u8]> {
    BASE64_STANDARD.encode(message::metadata(&node.workload, additional_labels)).into_bytes().into()
}

#[cfg(test)]
mod tests;
