//! Static Envoy v3 bootstraps, YAML or JSON: the data plane without any control plane.
//!
//! `skiff proxy -c FILE` runs one ([`run`]), `skiff check bootstrap FILE` says offline what is not supported ([`check`]).
//! Only `static_resources`, `node` and the admin address matter; what else a bootstrap holds is Envoy's own business and is
//! reported as ignored. Relative paths are relative to the working directory, as with Envoy.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::{Message, Name};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::core::v3::{Address, Node, address, socket_address::PortSpecifier};
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use skiff_proxy::config::{self, Snapshot};
use skiff_proxy::{ListenerState, Options, Proxy};

use crate::translate::envoy::{self, At as _, Rejected};

const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

/// Files above this are refused: a bootstrap of thousands of endpoints is a few MiB.
const MAX_BYTES: u64 = 32 << 20;

/// Runtime keys that Istio sets and that say what the data plane does anyway.
const RUNTIME: &[(&str, Json)] = &[
    // The fragment of a path is cut off, not answered 400.
    ("envoy.reloadable_features.http_reject_path_with_fragment", Json::Bool(false)),
];

/// Parts of a bootstrap beside `static_resources`, `admin` and `layered_runtime` that change nothing here.
const IGNORED: &[&str] = &[
    "stats_config",
    "stats_sinks",
    "stats_flush_interval",
    "cluster_manager",
    "overload_manager",
    "watchdogs",
    "tracing",
    "default_regex_engine",
    "typed_dns_resolver_config",
    "bootstrap_extensions",
    "deferred_stat_options",
    "header_prefix",
];

/// Why a bootstrap cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is neither YAML nor JSON, or not an object.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        reason: String,
    },
    /// Parts are not supported. To run the rest could let through what they were to stop.
    #[error("{} parts of the bootstrap are not supported, the first: {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Rejected(Vec<Rejected>),
    /// A listener could not be bound, or a resource could not be compiled.
    #[error("{0}")]
    Apply(String),
    /// The data plane could not be started.
    #[error("starting the data plane: {0}")]
    Start(#[from] std::io::Error),
}

/// A bootstrap as far as it could be translated.
#[derive(Default)]
pub struct Bootstrap {
    /// Listeners, routes and clusters.
    pub snapshot: Snapshot,
    /// Static secrets by name.
    pub secrets: Vec<(String, config::Secret)>,
    /// Who we are.
    pub node: config::Node,
    /// Address of the admin page.
    pub admin: Option<SocketAddr>,
    /// What was left out, and what was ignored.
    pub report: Report,
}

/// What `skiff check bootstrap` prints.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Resources that were taken over.
    pub listeners: usize,
    /// Resources that were taken over.
    pub clusters: usize,
    /// What is not supported, with paths.
    pub rejected: Vec<Rejected>,
    /// Files that are named and not there.
    pub missing: BTreeSet<PathBuf>,
    /// What is set and changes nothing in skiff.
    pub ignored: BTreeSet<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rejected in &self.rejected {
            writeln!(f, "not supported: {rejected}")?;
        }
        for missing in &self.missing {
            writeln!(f, "missing file: {}", missing.display())?;
        }
        for ignored in &self.ignored {
            writeln!(f, "ignored: {ignored}")?;
        }
        let Self { listeners, clusters, rejected, .. } = self;
        write!(f, "{listeners} listeners and {clusters} clusters can be served, {} problems", rejected.len())
    }
}

/// Reads and translates a bootstrap and says what is not supported; files that it names are looked for, not read.
///
/// # Errors
/// When the file cannot be read or is neither YAML nor JSON.
pub fn check(path: &Path) -> Result<Report, BootstrapError> {
    Ok(load(path)?.report)
}

/// Reads and translates a bootstrap.
///
/// # Errors
/// When the file cannot be read or is neither YAML nor JSON. What is not supported is in the report.
pub fn load(path: &Path) -> Result<Bootstrap, BootstrapError> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    read.map_err(|source| BootstrapError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > MAX_BYTES {
        return Err(BootstrapError::Syntax { path: path.to_owned(), reason: format!("expected at most {MAX_BYTES} bytes") });
    }
    parse(path, &text)
}

/// Translates the text of a bootstrap; `path` only names it in errors.
///
/// # Errors
/// When the text is neither YAML nor JSON. What is not supported is in the report.
pub fn parse(path: &Path, text: &str) -> Result<Bootstrap, BootstrapError> {
    // JSON is YAML.
    let json = serde_saphyr::from_str(text)
        .map_err(|error| BootstrapError::Syntax { path: path.to_owned(), reason: error.to_string() })?;
    match json {
        Json::Object(bootstrap) => Ok(translate(&bootstrap)),
        _ => Err(BootstrapError::Syntax { path: path.to_owned(), reason: "expected an object".to_owned() }),
    }
}

/// Starts the data plane with a bootstrap; returns when all of its listeners are bound.
///
/// # Errors
/// When anything is not supported, a file is missing or a listener cannot be bound: nothing is served then.
pub async fn run(
    path: &Path,
    options: &Options,
    recorder: Arc<dyn metrics::Recorder + Send + Sync>,
) -> Result<(Proxy, Bootstrap), BootstrapError> {
    let mut bootstrap = load(path)?;
    if !bootstrap.report.rejected.is_empty() {
        return Err(BootstrapError::Rejected(std::mem::take(&mut bootstrap.report.rejected)));
    }
    for ignored in &bootstrap.report.ignored {
        tracing::warn!(field = %ignored, "ignored: no effect in skiff");
    }
    let proxy = start(&bootstrap, options, recorder)?;
    Ok((proxy, bootstrap))
}

/// Starts the data plane with what was translated, whatever was rejected.
///
/// # Errors
/// When a secret or a resource cannot be compiled or a listener cannot be bound.
pub fn start(
    bootstrap: &Bootstrap,
    options: &Options,
    recorder: Arc<dyn metrics::Recorder + Send + Sync>,
) -> Result<Proxy, BootstrapError> {
    let proxy = Proxy::start(&Options { node: bootstrap.node.clone(), ..options.clone() }, recorder)?;
    for (name, secret) in &bootstrap.secrets {
        proxy.set_secret(name, secret.clone()).map_err(|error| BootstrapError::Apply(format!("secret {name:?}: {error}")))?;
    }
    let report = proxy.apply(bootstrap.snapshot.clone());
    let refused = report.rejected.iter().map(|rejected| format!("{} {:?}: {}", rejected.kind, rejected.name, rejected.reason));
    let unbound = proxy.listeners().into_iter().filter_map(|listener| match listener.state {
        ListenerState::Failed(reason) => Some(format!("listener {:?} on {}: {reason}", listener.name, listener.address)),
        ListenerState::Active | ListenerState::Draining => None,
    });
    let failed: Vec<String> = refused.chain(unbound).collect();
    if failed.is_empty() { Ok(proxy) } else { Err(BootstrapError::Apply(failed.join("; "))) }
}

fn translate(json: &Map<String, Json>) -> Bootstrap {
    let _descriptors = envoy::descriptors();
    let mut bootstrap = Bootstrap::default();
    for (key, value) in json {
        match key.as_str() {
            "static_resources" | "staticResources" => static_resources(value, &mut bootstrap),
            "admin" => admin(value, &mut bootstrap),
            "node" => node(value, &mut bootstrap),
            "layered_runtime" | "layeredRuntime" => layered_runtime(value, &mut bootstrap),
            ignored if IGNORED.contains(&ignored) => {
                bootstrap.report.ignored.insert(ignored.to_owned());
            }
            other => bootstrap.reject(BOOTSTRAP, "", other, "is not supported"),
        }
    }
    bootstrap.snapshot.version = "bootstrap".to_owned();
    bootstrap.report.listeners = bootstrap.snapshot.listeners.len();
    bootstrap.report.clusters = bootstrap.snapshot.clusters.len();
    bootstrap.report.missing = named_files(&bootstrap.snapshot).filter(|path| !path.exists()).map(Path::to_owned).collect();
    bootstrap
}

/// Certificates and keys; the data plane reads them when the snapshot is applied.
fn named_files(snapshot: &Snapshot) -> impl Iterator<Item = &Path> {
    let chains =
        snapshot.listeners.values().flat_map(|listener| listener.filter_chains.iter().chain(&listener.default_filter_chain));
    let downstream = chains.filter_map(|chain| chain.tls.as_deref()).flat_map(|tls| [Some(&tls.certificate), tls.trust.as_ref()]);
    let clusters = snapshot.clusters.values().filter_map(config::Resource::whole);
    let sockets = clusters.flat_map(|cluster| cluster.transport_sockets());
    let upstream = sockets.flat_map(|socket| match socket {
        config::TransportSocket::Tls(tls) => [tls.certificate.as_ref(), tls.trust.as_ref()],
        config::TransportSocket::RawBuffer => [None, None],
    });
    downstream
        .chain(upstream)
        .flatten()
        .flat_map(|source| match source {
            config::CertificateSource::Files { certificates, key } => [Some(certificates.as_path()), key.as_deref()],
            config::CertificateSource::RevocationFile(path) => [Some(path.as_path()), None],
            config::CertificateSource::Secret(_)
            | config::CertificateSource::Inline { .. }
            | config::CertificateSource::RevocationInline(_)
            | config::CertificateSource::System => [None, None],
        })
        .flatten()
}

impl Bootstrap {
    fn reject(&mut self, type_url: &str, name: &str, path: &str, reason: &str) {
        let [type_url, name, path, reason] = [type_url, name, path, reason].map(str::to_owned);
        self.report.rejected.push(Rejected { type_url, name, path, reason });
    }

    /// Decodes and translates each element of a list; resources are independent of each other.
    fn resources<T: Message + Name + Default, B>(
        &mut self,
        json: &Json,
        path: &str,
        translate: impl Fn(&T) -> Result<B, Vec<Rejected>>,
        mut take: impl FnMut(&mut Self, String, B),
    ) {
        let Json::Array(items) = json else { return self.reject(BOOTSTRAP, "", path, "expected a list") };
        for (index, item) in items.iter().enumerate() {
            let name = item.get("name").and_then(Json::as_str).map_or_else(|| format!("{path}[{index}]"), str::to_owned);
            let message: T = match envoy::from_json(item) {
                Ok(message) => message,
                Err(all) => {
                    self.report.rejected.extend(envoy::rejected(&T::type_url(), &name, all));
                    continue;
                }
            };
            self.report.ignored.extend(envoy::ignored(&message));
            match translate(&message) {
                Ok(value) => take(self, name, value),
                Err(all) => self.report.rejected.extend(all),
            }
        }
    }
}

fn static_resources(json: &Json, bootstrap: &mut Bootstrap) {
    let Json::Object(resources) = json else { return bootstrap.reject(BOOTSTRAP, "", "static_resources", "expected an object") };
    for (key, items) in resources {
        let path = format!("static_resources.{key}");
        match key.as_str() {
            "listeners" => bootstrap.resources(
                items,
                &path,
                |message: &Listener| envoy::listener(message),
                |to, name, listener| {
                    if to.snapshot.listeners.insert(name.clone(), Arc::new(listener)).is_some() {
                        to.reject(&Listener::type_url(), &name, "name", "is used twice");
                    }
                },
            ),
            "clusters" => bootstrap.resources(
                items,
                &path,
                |message: &Cluster| envoy::cluster(message),
                |to, name, cluster| {
                    if to.snapshot.clusters.insert(name.as_str().into(), cluster.into()).is_some() {
                        to.reject(&Cluster::type_url(), &name, "name", "is used twice");
                    }
                },
            ),
            "secrets" => bootstrap.resources(
                items,
                &path,
                |message: &Secret| envoy::secret(message),
                |to, name, secret| {
                    to.secrets.push((name, secret));
                },
            ),
            _ => bootstrap.reject(BOOTSTRAP, "", &path, "is not supported"),
        }
    }
}

fn admin(json: &Json, bootstrap: &mut Bootstrap) {
    let Some(address) = json.get("address") else { return };
    let socket = match envoy::from_json::<Address>(address) {
        Ok(Address { address: Some(address::Address::SocketAddress(socket)) }) => socket,
        Ok(_) => return bootstrap.reject(BOOTSTRAP, "", "admin.address", "expected a socket_address"),
        Err(all) => return bootstrap.report.rejected.extend(envoy::rejected(BOOTSTRAP, "", all)),
    };
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    };
    match (socket.address.parse(), port) {
        (Ok(ip), Some(port)) => bootstrap.admin = Some(SocketAddr::new(ip, port)),
        _ => bootstrap.reject(BOOTSTRAP, "", "admin.address.socket_address", "expected an IP address and a port"),
    }
}

/// Who we are. What is not about identity in there describes Envoy and changes nothing.
fn node(json: &Json, bootstrap: &mut Bootstrap) {
    match envoy::from_json::<Node>(json) {
        Ok(message) => bootstrap.node = envoy::local_node(&message),
        Err(all) => {
            let all = all.into_iter().map(|one| one.at("node")).collect();
            bootstrap.report.rejected.extend(envoy::rejected(BOOTSTRAP, "", all));
        }
    }
}

/// Feature flags that ask for another behaviour than ours are refused; other keys name knobs that do not exist here.
fn layered_runtime(json: &Json, bootstrap: &mut Bootstrap) {
    let layers = json.get("layers").and_then(Json::as_array).into_iter().flatten();
    for (key, value) in layers.filter_map(|layer| layer.get("static_layer")?.as_object()).flat_map(|layer| flatten("", layer)) {
        match RUNTIME.iter().find(|(known, _)| *known == key) {
            Some((_, ours)) if *ours == value => {}
            Some((_, ours)) => {
                let reason = format!("expected {ours}, found {value}");
                bootstrap.reject(BOOTSTRAP, "", &format!("layered_runtime.{key}"), &reason);
            }
            None => {
                bootstrap.report.ignored.insert(format!("layered_runtime.{key}"));
            }
        }
    }
}

/// Keys may be nested or dotted: `{a: {b: 1}}` is `{a.b: 1}`.
fn flatten(prefix: &str, object: &Map<String, Json>) -> Vec<(String, Json)> {
    let mut all = Vec::new();
    for (key, value) in object {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Json::Object(inner) => all.extend(flatten(&key, inner)),
            value => all.push((key, value.clone())),
        }
    }
    all
}

#[cfg(test)]
mod tests;
