//! Reading files of Istio resources.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::de::{FieldError, from_node};
use super::schema::Metadata;
use super::schema::destination_rule::DestinationRule;
use super::schema::mesh::{HARMLESS_MESH_FIELDS, MeshConfig};
use super::schema::request_authentication::RequestAuthentication;
use super::schema::security::{AuthorizationPolicy, PeerAuthentication};
use super::schema::services::{ServiceEntry, WorkloadEntry, WorkloadGroup};
use super::schema::sidecar::Sidecar;
use super::schema::virtual_service::VirtualService;
use super::yaml::{self, Node};

/// What is wrong, where: `policy.yaml:12: spec.mtls.mode: "STRIC": expected one of STRICT, PERMISSIVE, DISABLE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DocumentError {
    /// The file as it was named to [`Documents::parse`].
    pub file: PathBuf,
    /// Line in the file, from 1.
    pub line: u64,
    /// Path of the field from the root of its document; empty for the document itself.
    pub path: String,
    /// What was found and what was expected.
    pub reason: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for DocumentError {}

/// A resource and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Resource<T> {
    pub(super) metadata: Metadata,
    /// Never missing, unlike [`Metadata::namespace`].
    pub(super) namespace: String,
    pub(super) spec: T,
    pub(super) file: PathBuf,
    pub(super) line: u64,
}

impl<T> Resource<T> {
    /// Puts a field's error into this resource's file.
    pub(super) fn error(&self, error: FieldError) -> DocumentError {
        DocumentError { file: self.file.clone(), line: error.line, path: error.path, reason: error.reason }
    }

    /// A message that points at the resource as a whole.
    pub(super) fn remark(&self, text: impl fmt::Display) -> String {
        format!("{}:{}: {}/{}: {text}", self.file.display(), self.line, self.namespace, self.metadata.name)
    }
}

/// Parsed resources, each kind in the order of files and documents, which stands for Istio's order of age.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    pub(super) sidecars: Vec<Resource<Sidecar>>,
    pub(super) service_entries: Vec<Resource<ServiceEntry>>,
    pub(super) workload_entries: Vec<Resource<WorkloadEntry>>,
    pub(super) workload_groups: Vec<Resource<WorkloadGroup>>,
    pub(super) destination_rules: Vec<Resource<DestinationRule>>,
    pub(super) virtual_services: Vec<Resource<VirtualService>>,
    pub(super) peer_authentications: Vec<Resource<PeerAuthentication>>,
    pub(super) request_authentications: Vec<Resource<RequestAuthentication>>,
    pub(super) authorization_policies: Vec<Resource<AuthorizationPolicy>>,
    pub(super) mesh: Option<MeshConfig>,
    pub(super) warnings: Vec<String>,
}

/// Kinds of Istio that change nothing for a local sidecar or that skiff does not serve.
const IGNORED_KINDS: [&str; 4] = ["Telemetry", "Gateway", "ProxyConfig", "ServiceExport"];

/// Kinds that guard a workload, or may: to leave them out would let requests pass that must not.
const REFUSED_KINDS: [&str; 2] = ["WasmPlugin", "EnvoyFilter"];

impl Documents {
    /// Reads every document of every file. A document without `metadata.namespace` belongs to `default_namespace`.
    ///
    /// # Errors
    /// All that is wrong with any of them, in the order of the files.
    pub fn parse(files: &[(PathBuf, String)], default_namespace: &str) -> Result<Self, Vec<DocumentError>> {
        let mut documents = Self::default();
        let mut errors = Vec::new();
        for (file, text) in files {
            let place = |error: FieldError| DocumentError {
                file: file.clone(),
                line: error.line.max(1),
                path: error.path,
                reason: error.reason,
            };
            match yaml::parse(text) {
                Ok(nodes) => {
                    errors.extend(nodes.iter().filter_map(|node| documents.add(node, file, default_namespace).err()).map(place));
                }
                Err(error) => errors.push(place(error)),
            }
        }
        if errors.is_empty() { Ok(documents) } else { Err(errors) }
    }

    fn add(&mut self, node: &Node, file: &Path, default_namespace: &str) -> Result<(), FieldError> {
        let Some(kind) = node.get("kind") else {
            if node.get("apiVersion").is_none() && file.file_stem().is_some_and(|stem| stem.to_string_lossy().contains("mesh")) {
                return self.add_mesh(node, file);
            }
            return Err(FieldError::at(node.line, "kind".to_owned(), "missing"));
        };
        let name = kind.as_str().unwrap_or_default();
        let api = node.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
        let wrong_version = |expected: &str| {
            let line = node.get("apiVersion").map_or(node.line, |node| node.line);
            Err(FieldError::at(line, "apiVersion".to_owned(), format!("{api:?}: expected {expected}")))
        };
        let networking = "networking.istio.io/v1, networking.istio.io/v1beta1 or networking.istio.io/v1alpha3";
        let security = "security.istio.io/v1 or security.istio.io/v1beta1";
        let (expected, read): (&str, Read) = match name {
            "Sidecar" => (networking, |all, reader| reader.read(&mut all.sidecars)),
            "ServiceEntry" => (networking, |all, reader| reader.read(&mut all.service_entries)),
            "WorkloadEntry" => (networking, |all, reader| reader.read(&mut all.workload_entries)),
            "WorkloadGroup" => (networking, |all, reader| reader.read(&mut all.workload_groups)),
            "DestinationRule" => (networking, |all, reader| reader.read(&mut all.destination_rules)),
            "VirtualService" => (networking, |all, reader| reader.read(&mut all.virtual_services)),
            "PeerAuthentication" => (security, |all, reader| reader.read(&mut all.peer_authentications)),
            "RequestAuthentication" => (security, |all, reader| reader.read(&mut all.request_authentications)),
            "AuthorizationPolicy" => (security, |all, reader| reader.read(&mut all.authorization_policies)),
            // Of the onboarding plane, which may have the same folder; it reads them strictly.
            _ if api.split('/').next().is_some_and(|group| group.ends_with("onboarding.tetrate.io")) => return Ok(()),
            _ if REFUSED_KINDS.contains(&name) => {
                return Err(FieldError::at(kind.line, "kind".to_owned(), format!("{name:?}: not supported by skiff")));
            }
            _ if IGNORED_KINDS.contains(&name) || !api.contains("istio.io") && !name.is_empty() && !api.is_empty() => {
                self.warnings.push(format!("{}:{}: {name} is not served by skiff and left out", file.display(), node.line));
                return Ok(());
            }
            _ => return Err(FieldError::at(kind.line, "kind".to_owned(), format!("{name:?}: not a kind of Istio's"))),
        };
        let (group, versions) = if expected == security {
            ("security.istio.io/", ["v1", "v1beta1", "v1"])
        } else {
            ("networking.istio.io/", ["v1", "v1beta1", "v1alpha3"])
        };
        if !api.strip_prefix(group).is_some_and(|version| versions.contains(&version)) {
            return wrong_version(expected);
        }
        read(self, &Reader { node, file, default_namespace })
    }

    fn add_mesh(&mut self, node: &Node, file: &Path) -> Result<(), FieldError> {
        let mesh: MeshConfig = from_node(node, "")?;
        mesh.log_format()?;
        for field in mesh.other.keys().filter(|field| !HARMLESS_MESH_FIELDS.contains(&field.as_str())) {
            self.warnings.push(format!("{}:{}: {field}: not used by skiff", file.display(), node.line));
        }
        if self.mesh.replace(mesh).is_some() {
            return Err(FieldError::at(node.line, String::new(), "a second MeshConfig"));
        }
        Ok(())
    }
}

/// Reads one document into the list of its kind.
type Read = fn(&mut Documents, &Reader<'_>) -> Result<(), FieldError>;

/// One document on its way into a list of resources.
struct Reader<'a> {
    node: &'a Node,
    file: &'a Path,
    default_namespace: &'a str,
}

impl Reader<'_> {
    fn read<T: DeserializeOwned>(&self, list: &mut Vec<Resource<T>>) -> Result<(), FieldError> {
        let field = |name: &str| self.node.get(name).ok_or_else(|| FieldError::at(self.node.line, name.to_owned(), "missing"));
        if let yaml::Value::Mapping(entries) = &self.node.value {
            let known = ["apiVersion", "kind", "metadata", "spec", "status"];
            if let Some((key, _)) = entries.iter().find(|(key, _)| !known.contains(&key.name.as_str())) {
                let reason = format!("unknown field, expected one of {}", known.join(", "));
                return Err(FieldError::at(key.line, key.name.clone(), reason));
            }
        }
        let metadata: Metadata = from_node(field("metadata")?, "metadata")?;
        let spec = from_node(field("spec")?, "spec")?;
        let namespace = metadata.namespace.clone().unwrap_or_else(|| self.default_namespace.to_owned());
        if list.iter().any(|other| other.metadata.name == metadata.name && other.namespace == namespace) {
            let reason = format!("{:?}: a second resource of this kind and name in namespace {namespace}", metadata.name);
            return Err(FieldError::at(self.node.line, "metadata.name".to_owned(), reason));
        }
        list.push(Resource { metadata, namespace, spec, file: self.file.to_owned(), line: self.node.line });
        Ok(())
    }
}
