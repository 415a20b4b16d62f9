//! Reading objects from files of YAML, with the file, the line and the path of the field in every error.

use std::path::{Path, PathBuf};

use super::{
    Object, OnboardingPolicy, OnboardingPolicySpec, RegistrationSpec, Spec, WorkloadAutoRegistration, WorkloadEntry,
    WorkloadGroup,
};
use crate::translate::istio::DocumentError;
use crate::translate::istio::de::{FieldError, from_node};
use crate::translate::istio::yaml::{self, Node};

/// What was found in files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// WorkloadGroups.
    pub groups: Vec<WorkloadGroup>,
    /// OnboardingPolicies.
    pub policies: Vec<OnboardingPolicy>,
    /// WorkloadAutoRegistrations.
    pub registrations: Vec<WorkloadAutoRegistration>,
    /// WorkloadEntries.
    pub entries: Vec<WorkloadEntry>,
}

/// Kinds of the onboarding API, which a sidecar has no use for.
pub const ONBOARDING_KINDS: [&str; 2] = [OnboardingPolicySpec::KIND, RegistrationSpec::KIND];

/// Reads the kinds of [`Objects`] from files and leaves others out. An object without namespace belongs to `default_namespace`.
///
/// # Errors
/// All that is wrong with any of them, in the order of the files.
pub fn read(files: &[(PathBuf, String)], default_namespace: &str) -> Result<Objects, Vec<DocumentError>> {
    let (mut objects, mut errors) = (Objects::default(), Vec::new());
    for (file, text) in files {
        let nodes = match yaml::parse(text) {
            Ok(nodes) => nodes,
            Err(error) => {
                errors.push(in_file(file, error));
                continue;
            }
        };
        let read = nodes.iter().filter_map(|node| objects.add(node, default_namespace).err());
        errors.extend(read.map(|error| in_file(file, error)));
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

fn in_file(file: &Path, error: FieldError) -> DocumentError {
    DocumentError { file: file.to_owned(), line: error.line.max(1), path: error.path, reason: error.reason }
}

impl Objects {
    fn add(&mut self, node: &Node, default_namespace: &str) -> Result<(), FieldError> {
        match node.get("kind").and_then(Node::as_str).unwrap_or_default() {
            "WorkloadGroup" => add(&mut self.groups, node, default_namespace),
            "OnboardingPolicy" => add(&mut self.policies, node, default_namespace),
            "WorkloadAutoRegistration" => add(&mut self.registrations, node, default_namespace),
            "WorkloadEntry" => add(&mut self.entries, node, default_namespace),
            _ => Ok(()),
        }
    }
}

fn add<S: Spec>(list: &mut Vec<Object<S>>, node: &Node, default_namespace: &str) -> Result<(), FieldError> {
    let api = node.get("apiVersion");
    let version = api.and_then(Node::as_str).unwrap_or_default();
    if !S::API_VERSIONS.contains(&version) {
        let line = api.map_or(node.line, |api| api.line);
        let reason = format!("{version:?}: expected {}", S::API_VERSIONS.join(" or "));
        return Err(FieldError::at(line, "apiVersion".to_owned(), reason));
    }
    let mut object: Object<S> = from_node(node, "")?;
    if object.metadata.namespace.is_empty() {
        default_namespace.clone_into(&mut object.metadata.namespace);
    }
    if list.iter().any(|other| other.key() == object.key()) {
        let reason = format!("{:?}: a second {} of this name in its namespace", object.metadata.name, S::KIND);
        return Err(FieldError::at(node.line, "metadata.name".to_owned(), reason));
    }
    list.push(object);
    Ok(())
}
