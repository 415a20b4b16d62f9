//! Peer metadata on the wire: `google.protobuf.Struct`, as far as it is used.
//!
//! Tags are protobuf's own. Unlike a Struct these messages end after the labels: deeper values are skipped, not built.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message;

use super::MAX_METADATA;
use super::preamble::MAGIC;
use crate::config::{Node, Workload};

const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";
const HEADER: &str = "x-envoy-peer-metadata";
const HEADER_ID: &str = "x-envoy-peer-metadata-id";

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// The Struct of a preamble.
#[derive(Clone, PartialEq, Message)]
struct Exchange {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Part>,
}

#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
    #[prost(message, optional, tag = "5")]
    object: Option<Metadata>,
}

/// The Struct of a header.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Fact>,
}

#[derive(Clone, PartialEq, Message)]
struct Fact {
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
    #[prost(message, optional, tag = "5")]
    object: Option<Labels>,
}

#[derive(Clone, PartialEq, Message)]
struct Labels {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
}

/// Peers write with and without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What a header says; `None` where it says nothing that can be read.
pub(super) fn from_header(value: &[u8]) -> Option<Workload> {
    if value.is_empty() || value.len() > MAX_METADATA {
        return None;
    }
    Metadata::decode(BASE64.decode(value).ok()?.as_slice()).ok().map(workload)
}

/// What the metadata of a preamble says.
pub(super) fn from_preamble(value: &[u8]) -> Option<Workload> {
    let any = Any::decode(value).ok().filter(|any| any.type_url == STRUCT)?;
    let mut exchange = Exchange::decode(any.value.as_slice()).ok()?;
    exchange.fields.remove(HEADER)?.object.map(workload)
}

/// The Struct that tells who `workload` is, fields in order.
pub(super) fn metadata(workload: &Workload, additional_labels: &[String]) -> Vec<u8> {
    describe(workload, additional_labels).encode_to_vec()
}

/// Magic number, length and metadata.
pub(super) fn preamble(node: &Node, additional_labels: &[String]) -> Vec<u8> {
    let object = describe(&node.workload, additional_labels);
    let mut fields = BTreeMap::from([(HEADER.to_owned(), Part { object: Some(object), text: None })]);
    if !node.id.is_empty() {
        fields.insert(HEADER_ID.to_owned(), Part { text: Some(node.id.clone()), object: None });
    }
    let any = Any { type_url: STRUCT.to_owned(), value: Exchange { fields }.encode_to_vec() }.encode_to_vec();
    let length = u32::try_from(any.len()).unwrap_or_default();
    [&MAGIC[..], &length.to_be_bytes(), &any].concat()
}

fn describe(workload: &Workload, additional_labels: &[String]) -> Metadata {
    let label = |text: &str| Label { text: Some(text.to_owned()) };
    let mut labels = BTreeMap::new();
    for (name, value) in [
        ("service.istio.io/canonical-name", &workload.canonical_service),
        ("service.istio.io/canonical-revision", &workload.canonical_revision),
        ("app", &workload.app),
        ("version", &workload.version),
    ] {
        if !value.is_empty() {
            labels.insert(name.to_owned(), label(value));
        }
    }
    for name in additional_labels {
        if let Some(value) = workload.labels.get(name) {
            labels.insert(name.clone(), label(value));
        }
    }
    let mut fields = BTreeMap::from([("LABELS".to_owned(), Fact { object: Some(Labels { fields: labels }), text: None })]);
    for (name, value) in [
        ("NAME", &workload.instance),
        ("NAMESPACE", &workload.namespace),
        ("WORKLOAD_NAME", &workload.name),
        ("CLUSTER_ID", &workload.cluster),
        ("IDENTITY", &workload.identity),
        ("OWNER", &owner(workload)),
        ("REGION", &workload.region),
        ("AVAILABILITY_ZONE", &workload.zone),
    ] {
        if !value.is_empty() {
            fields.insert(name.to_owned(), Fact { text: Some(value.clone()), object: None });
        }
    }
    Metadata { fields }
}

/// Istio tells the owner of a workload whose kind it knows, and in its own words.
fn owner(workload: &Workload) -> String {
    let kind = workload.owner.strip_suffix(&workload.name).and_then(|rest| rest.strip_suffix("s/"));
    match kind.and_then(|rest| rest.rsplit_once('/')) {
        Some((_, kind @ ("pod" | "deployment" | "job" | "cronjob"))) => {
            format!("kubernetes://apis/apps/v1/namespaces/{}/{kind}s/{}", workload.namespace, workload.name)
        }
        _ => String::new(),
    }
}

fn workload(mut metadata: Metadata) -> Workload {
    let labels = metadata.fields.remove("LABELS").and_then(|fact| fact.object).unwrap_or_default().fields;
    let label = |names: &[&str]| {
        names.iter().find_map(|&name| labels.get(name)?.text.clone().filter(|text| !text.is_empty())).unwrap_or_default()
    };
    let mut text = |name: &str| metadata.fields.remove(name).and_then(|fact| fact.text).unwrap_or_default();
    Workload {
        name: text("WORKLOAD_NAME"),
        namespace: text("NAMESPACE"),
        canonical_service: label(&["service.istio.io/canonical-name"]),
        canonical_revision: label(&["service.istio.io/canonical-revision"]),
        cluster: text("CLUSTER_ID"),
        app: label(&["app.kubernetes.io/name", "app"]),
        version: label(&["app.kubernetes.io/version", "version"]),
        instance: text("NAME"),
        owner: text("OWNER"),
        identity: text("IDENTITY"),
        region: text("REGION"),
        zone: text("AVAILABILITY_ZONE"),
        labels: BTreeMap::new(),
    }
}
