//! One strict YAML document that is no resource: what a variable or a file of the agent holds. JSON is YAML.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::DocumentError;
use super::de::{FieldError, from_node};
use super::values::GoDuration;
use super::yaml;

/// Reads `text`, which `origin` (a variable or a file) holds. Unknown fields are errors.
///
/// # Errors
/// With origin, line and field.
pub(crate) fn read<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, DocumentError> {
    let place = |error: FieldError| DocumentError {
        file: PathBuf::from(origin),
        line: error.line.max(1),
        path: error.path,
        reason: error.reason,
    };
    let documents = yaml::parse(text).map_err(place)?;
    match documents.as_slice() {
        [document] => from_node(document, "").map_err(place),
        [] => Err(place(FieldError::at(1, String::new(), "nothing in it: expected a YAML or JSON document"))),
        [_, second, ..] => Err(place(FieldError::at(second.line, String::new(), "a second document: expected one"))),
    }
}

/// A duration as protobuf's JSON and Go write it: `1.5s`, `100ms`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        GoDuration::deserialize(deserializer).map(|duration| Self(duration.0))
    }
}
