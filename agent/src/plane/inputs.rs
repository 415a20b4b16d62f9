//! What people write for a plane without Kubernetes: WorkloadGroups and OnboardingPolicies, and the Istio YAML that it sends to its
//! workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;

use super::objects::{self, ONBOARDING_KINDS, ObjectKey, OnboardingPolicy, WorkloadGroup};
use crate::sidecar::{Document, read_documents};
use crate::translate::istio::{Documents, yaml};

/// What is without a namespace belongs to it, as for `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

/// A folder of YAML, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// By name.
    pub groups: BTreeMap<ObjectKey, Arc<WorkloadGroup>>,
    /// Names of the WorkloadEntries that are written there.
    pub entries: BTreeSet<ObjectKey>,
    /// What workloads are sent: all but the kinds of the onboarding API.
    pub documents: Vec<proto::Document>,
    policies: BTreeMap<String, Vec<Arc<OnboardingPolicy>>>,
}

impl Inputs {
    /// Reads a folder, or one file.
    ///
    /// # Errors
    /// With a line for everything that is wrong in it.
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let documents = read_documents(path).map_err(|error| vec![error.to_string()])?;
        Self::parse(&documents)
    }

    fn parse(documents: &[Document]) -> Result<Self, Vec<String>> {
        let lines =
            |errors: Vec<crate::translate::istio::DocumentError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let read = objects::read(documents, DEFAULT_NAMESPACE);
        // What a sidecar could not read must not be sent to one.
        let istio = Documents::parse(documents, DEFAULT_NAMESPACE);
        let read = match (read, istio) {
            (Ok(read), Ok(_)) => read,
            (read, istio) => {
                let mut faults: Vec<_> = read.err().map(lines).into_iter().chain(istio.err().map(lines)).flatten().collect();
                faults.sort();
                faults.dedup();
                return Err(faults);
            }
        };
        let mut inputs = Self { documents: documents.iter().map(to_send).collect(), ..Self::default() };
        for mut group in read.groups {
            let key = group.key();
            group.metadata.uid = Some(uid_of(&key));
            inputs.groups.insert(key, Arc::new(group));
        }
        for policy in read.policies {
            inputs.policies.entry(policy.metadata.namespace.clone()).or_default().push(Arc::new(policy));
        }
        inputs.entries = read.entries.iter().map(objects::Object::key).collect();
        Ok(inputs)
    }

    /// The policies of a namespace.
    pub fn policies_of(&self, namespace: &str) -> &[Arc<OnboardingPolicy>] {
        self.policies.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// How many policies there are.
    pub fn policies(&self) -> usize {
        self.policies.values().map(Vec::len).sum()
    }
}

/// A group has no life of its own: who has its name is it.
fn uid_of(key: &ObjectKey) -> String {
    HEXLOWER.encode(&digest(&SHA256, format!("WorkloadGroup {key}").as_bytes()).as_ref()[..16])
}

/// The file without what is not for workloads. Lines stay where they are, so that messages point at the file.
fn to_send((path, text): &Document) -> proto::Document {
    let mut yaml = String::with_capacity(text.len());
    for part in parts(text) {
        if is_for_workloads(part) {
            yaml.push_str(part);
        } else {
            yaml.extend(part.split_inclusive('\n').map(|line| if line.starts_with("---") { "---\n" } else { "\n" }));
        }
    }
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
    proto::Document { name: name.into_owned(), yaml }
}

fn is_for_workloads(document: &str) -> bool {
    let kind = |node: &yaml::Node| node.get("kind").and_then(yaml::Node::as_str).unwrap_or_default().to_owned();
    let nodes = yaml::parse(document).unwrap_or_default();
    // What cannot be read by itself (an alias of another document) is no policy: those were read strictly.
    !nodes.iter().any(|node| ONBOARDING_KINDS.contains(&kind(node).as_str()))
}

/// The documents of a file, each with the line that begins it. `---` in the first column begins a document whatever stands before.
fn parts(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let begins = line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if begins && at > 0 {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(&start, end)| &text[start..end]).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const TEXT: &str = "\
# Who may join.
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata: {name: any, namespace: bookinfo}
spec:
  allow:
  - workloads: [{jwt: {issuer: 'https://a.example'}}]
    onboardTo: [{workloadGroupSelector: {}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: ratings, namespace: bookinfo}
spec: {template: {serviceAccount: ratings}}
--- # another
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: static, namespace: bookinfo}
spec: {address: 10.0.0.9}
";

    fn parse(text: &str) -> Result<Inputs, Vec<String>> {
        Inputs::parse(&[(PathBuf::from("/config/a.yaml"), text.to_owned())])
    }

    #[test]
    fn policies_stay_here_and_the_rest_is_sent() {
        let inputs = parse(TEXT).unwrap();
        let key = |name: &str| ObjectKey::new("bookinfo", name);
        assert!(inputs.groups[&key("ratings")].metadata.uid.is_some() && inputs.entries.contains(&key("static")));
        assert_eq!((inputs.policies(), inputs.policies_of("bookinfo").len(), inputs.policies_of("default").len()), (1, 1, 0));
        let sent = &inputs.documents[0];
        assert_eq!(sent.name, "a.yaml");
        assert!(!sent.yaml.contains("OnboardingPolicy") && !sent.yaml.contains("a.example"));
        let line = |text: &str| text.lines().position(|line| line.contains("name: static"));
        assert_eq!(line(&sent.yaml), line(TEXT));
        assert!(Documents::parse(&[(PathBuf::from("a.yaml"), sent.yaml.clone())], "default").is_ok());
    }

    #[test]
    fn any_fault_is_told_and_nothing_is_taken_over() {
        for (from, to, fault) in [
            ("issuer:", "issuers:", "/config/a.yaml:7: spec.allow[0].workloads[0].jwt.issuers: unknown field"),
            ("serviceAccount:", "account:", "/config/a.yaml:13: spec.template.account: unknown field"),
            ("address: 10.0.0.9", "adress: 10.0.0.9", "spec.adress: unknown field"),
        ] {
            let faults = parse(&TEXT.replace(from, to)).unwrap_err();
            assert!(faults[0].contains(fault), "{faults:?}");
        }
    }
}
