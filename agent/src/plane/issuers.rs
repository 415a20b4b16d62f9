//! Configuration of a plane in files: the issuers of tokens that it knows; and what is wrong with any of it, for `skiff check`.

use std::path::PathBuf;

use serde::Deserialize;

use super::objects;
use crate::onboarding::config::{AgentConfiguration, OnboardingConfiguration};
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
    let read = yaml::parse(text).and_then(|nodes| match nodes.as_slice() {
        [node] => from_node::<Issuers>(node, "").map(|read| read.issuers),
        _ => Err(FieldError::at(1, String::new(), format!("{} documents: expected one with issuers", nodes.len()))),
    });
    read.map_err(|error| DocumentError { file, line: error.line.max(1), path: error.path, reason: error.reason })
}

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// A line for everything that is wrong.
    pub faults: Vec<String>,
    /// Files that hold no resources: the issuers of a plane, the configuration of an agent.
    pub without_resources: Vec<PathBuf>,
}

/// Reads everything of onboarding in files: resources, the issuers of a plane, the configuration of an agent.
pub fn check(files: &[(PathBuf, String)], default_namespace: &str) -> Checked {
    let mut checked = Checked::default();
    let mut resources = Vec::new();
    for (file, text) in files {
        let origin = file.display().to_string();
        let fault = match kind(text) {
            Some(Kind::Issuers) => read_issuers(file.clone(), text).err().map(|error| error.to_string()),
            Some(Kind::Onboarding) => OnboardingConfiguration::parse(&origin, text).err().map(|error| error.to_string()),
            Some(Kind::Agent) => AgentConfiguration::parse(&origin, text).err().map(|error| error.to_string()),
            None => {
                resources.push((file.clone(), text.clone()));
                continue;
            }
        };
        checked.faults.extend(fault);
        checked.without_resources.push(file.clone());
    }
    let errors = objects::read(&resources, default_namespace).err().unwrap_or_default();
    checked.faults.extend(errors.iter().map(ToString::to_string));
    checked
}

/// What a file without resources holds.
enum Kind {
    Issuers,
    Onboarding,
    Agent,
}

fn kind(text: &str) -> Option<Kind> {
    let nodes = yaml::parse(text).unwrap_or_default();
    let [node] = nodes.as_slice() else { return None };
    match node.get("kind").and_then(Node::as_str) {
        Some("OnboardingConfiguration") => Some(Kind::Onboarding),
        Some("AgentConfiguration") => Some(Kind::Agent),
        None if node.get("issuers").is_some() => Some(Kind::Issuers),
        _ => None,
    }
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
        let agent = "apiVersion: config.agent.onboarding.tetrate.io/v1alpha1\nkind: AgentConfiguration\nsidecars: {}\n";
        let files = [("a.yaml", good), ("b.yaml", "kind: A"), ("c.yaml", agent)];
        let checked = check(&files.map(|(file, text)| (PathBuf::from(file), text.to_owned())), "default");
        assert_eq!(checked.without_resources, ["a.yaml", "c.yaml"].map(PathBuf::from));
        assert!(checked.faults.len() == 1 && checked.faults[0].contains("c.yaml:3: sidecars"), "{checked:?}");
    }
}
