//! Configuration of a plane in files: the issuers of tokens that it knows; and what is wrong with any of it, for `skiff check`.

use std::path::PathBuf;

use serde::Deserialize;

use super::objects;
use crate::onboarding::jwt::JwtIssuer;
use crate::translate::istio::DocumentError;
use crate::translate::istio::de::{FieldError, from_node};
use crate::translate::istio::yaml::{self, Node};

/// `--jwt-issuers`: the list that Tetrate's ControlPlane has in `workloads.authentication.jwt`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuers {
    issuers: Vec<JwtIssuer>,
}

/// Reads a file of issuers: one document, `issuers: [{issuer: …}]`.
///
/// # Errors
/// With file, line and field.
pub fn read_issuers(file: PathBuf, text: &str) -> Result<Vec<JwtIssuer>, DocumentError> {
    let place =
        |error: FieldError| DocumentError { file: file.clone(), line: error.line.max(1), path: error.path, reason: error.reason };
    let nodes = yaml::parse(text).map_err(place)?;
    match nodes.as_slice() {
        [node] => from_node::<Issuers>(node, "").map(|read| read.issuers).map_err(place),
        _ => Err(place(FieldError::at(1, String::new(), format!("{} documents: expected one with issuers", nodes.len())))),
    }
}

/// All that is wrong with the onboarding objects in files, and whether any of the files is one of issuers, which holds no resources.
pub fn find_faults(files: &[(PathBuf, String)], default_namespace: &str) -> (Vec<DocumentError>, Vec<PathBuf>) {
    let is_issuers = |text: &str| {
        let nodes = yaml::parse(text).unwrap_or_default();
        matches!(nodes.as_slice(), [node] if node.get("issuers").is_some() && node.get("kind").and_then(Node::as_str).is_none())
    };
    let (of_issuers, resources): (Vec<_>, Vec<_>) = files.iter().cloned().partition(|(_, text)| is_issuers(text));
    let mut faults = objects::read(&resources, default_namespace).err().unwrap_or_default();
    faults.extend(of_issuers.iter().filter_map(|(file, text)| read_issuers(file.clone(), text).err()));
    (faults, of_issuers.into_iter().map(|(file, _)| file).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_are_read_strictly() {
        let good = "issuers:\n- issuer: https://a.example\n  shortName: a\n  tokenFields: {attributes: {jsonPath: .claims}}\n";
        let read = |text: &str| read_issuers("issuers.yaml".into(), text).map_err(|error| error.to_string());
        assert_eq!(read(good).unwrap()[0].short_name.as_deref(), Some("a"));
        for (from, to, fault) in [
            ("https://a", "http://a", "issuers.yaml:2: issuers[0]: issuer \"http://a.example\": expected an https URL"),
            ("shortName: a", "shortName: A", "shortName \"A\""),
            ("shortName", "short", "issuers[0].short: unknown field"),
            ("issuers:\n", "issuer:\n", "unknown field"),
        ] {
            let error = read(&good.replace(from, to)).unwrap_err();
            assert!(error.contains(fault), "{error}");
        }
        let (faults, files) =
            find_faults(&[("a.yaml".into(), good.to_owned()), ("b.yaml".into(), "kind: A".to_owned())], "default");
        assert_eq!((faults.len(), files), (0, vec![PathBuf::from("a.yaml")]));
    }
}
