//! What a workload is given to join a mesh: variables of the process, and the folder that `istioctl experimental workload entry
//! configure` writes for a virtual machine (`cluster.env`, `mesh.yaml`, `istio-token`, `root-cert.pem`, `hosts`).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value as Json};

use crate::exit::Failure;

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// istiod's name in a mesh that says nothing else.
const DEFAULT_DISCOVERY: &str = "istiod.istio-system.svc:15012";
/// istio-agent's `MINIMUM_DRAIN_DURATION`.
const MINIMUM_DRAIN: Duration = Duration::from_secs(5);

/// Variables and the proxy configuration, of the process first, then of the folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    process: BTreeMap<String, String>,
    /// `proxyMetadata` of the proxy configuration, then `cluster.env`.
    folder: Vec<BTreeMap<String, String>>,
    /// `PROXY_CONFIG` over `defaultConfig` of `mesh.yaml`.
    pub(super) proxy_config: Map<String, Json>,
    hosts: BTreeMap<String, String>,
    path: PathBuf,
    joins: bool,
}

impl Environment {
    /// Of this process, in its working directory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn of_process() -> Result<Self, Failure> {
        Self::read(std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?))), ".")
    }

    /// Of `process`, in the folder `path`.
    ///
    /// # Errors
    /// When a file of the folder or `PROXY_CONFIG` cannot be read.
    pub(super) fn read(process: impl IntoIterator<Item = (String, String)>, path: impl Into<PathBuf>) -> Result<Self, Failure> {
        let path = path.into();
        let process: BTreeMap<_, _> = process.into_iter().collect();
        let mesh = file(&path.join("mesh.yaml"))?;
        let cluster_env = file(&path.join("cluster.env"))?;
        let mut proxy_config = match &mesh {
            Some(text) => {
                object(text, "mesh.yaml")?.remove("defaultConfig").map(|config| expect_object(config, "mesh.yaml: defaultConfig"))
            }
            None => None,
        }
        .transpose()?
        .unwrap_or_default();
        let given = process.get("PROXY_CONFIG").filter(|text| !text.trim().is_empty());
        if let Some(text) = given {
            proxy_config.extend(object(text, "PROXY_CONFIG")?);
        }
        let joins = mesh.is_some() || cluster_env.is_some() || given.is_some();
        let proxy_metadata = proxy_config.get("proxyMetadata").and_then(Json::as_object);
        let proxy_metadata =
            proxy_metadata.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        let folder = vec![proxy_metadata.collect(), variables(cluster_env.as_deref().unwrap_or_default())?];
        let hosts = hosts(file(&path.join("hosts"))?.as_deref().unwrap_or_default());
        Ok(Self { process, folder, proxy_config, hosts, path, joins })
    }

    /// Whether anything there is meant for a workload that joins a mesh.
    pub(super) fn joins(&self) -> bool {
        self.joins || ["SKIFF_DISCOVERY_ADDRESS", "CA_ADDR"].iter().any(|name| self.get(name).is_some())
    }

    /// A variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let layers = std::iter::once(&self.process).chain(&self.folder);
        layers.filter_map(|layer| layer.get(name)).map(String::as_str).find(|value| !value.is_empty())
    }

    /// A variable, parsed; `expected` completes the error.
    ///
    /// # Errors
    /// Names the variable, its value and what was expected.
    pub(super) fn parse<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong = || Failure::Configuration(format!("{name}: expected {expected}, found {text:?}"));
        parse(text).ok_or_else(wrong).map(Some)
    }

    /// `host:port` of istiod.
    pub(super) fn discovery_address(&self) -> &str {
        let configured = self.proxy_config.get("discoveryAddress").and_then(Json::as_str).filter(|address| !address.is_empty());
        self.get("SKIFF_DISCOVERY_ADDRESS").or(configured).or_else(|| self.get("CA_ADDR")).unwrap_or(DEFAULT_DISCOVERY)
    }

    /// A port of the proxy configuration.
    ///
    /// # Errors
    /// Names the field, its value and what was expected.
    pub(super) fn proxy_config_port(&self, field: &str) -> Result<Option<u16>, Failure> {
        let Some(value) = self.proxy_config.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
        port.map(Some).ok_or_else(|| Failure::Configuration(format!("PROXY_CONFIG.{field}: expected a port, found {value}")))
    }

    /// `terminationDrainDuration` of the proxy configuration, else `TERMINATION_DRAIN_DURATION_SECONDS` of older istio-agents: how
    /// long connections may go on after the request to stop.
    ///
    /// # Errors
    /// Names the field, its value and what was expected.
    pub(super) fn termination_drain_duration(&self) -> Result<Option<Duration>, Failure> {
        let field = "terminationDrainDuration";
        let Some(value) = self.proxy_config.get(field).filter(|value| !value.is_null()) else {
            let seconds = |text: &str| text.parse().ok().map(Duration::from_secs);
            return self.parse("TERMINATION_DRAIN_DURATION_SECONDS", "a number of seconds", seconds);
        };
        let seconds = value.as_str().and_then(|text| text.strip_suffix('s')?.parse().ok());
        let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let wrong = || Failure::Configuration(format!("PROXY_CONFIG.{field}: expected a duration such as 5s, found {value}"));
        duration.map(Some).ok_or_else(wrong)
    }

    /// `MINIMUM_DRAIN_DURATION`, where `EXIT_ON_ZERO_ACTIVE_CONNECTIONS` asks for that kind of end.
    ///
    /// # Errors
    /// Names the variable, its value and what was expected.
    pub(super) fn minimum_drain_duration(&self) -> Result<Option<Duration>, Failure> {
        let exits = self.parse("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true or false", |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })?;
        let minimum = self.parse("MINIMUM_DRAIN_DURATION", "a duration such as 5s", |text| super::parse_duration(text).ok())?;
        Ok(exits.unwrap_or_default().then(|| minimum.unwrap_or(MINIMUM_DRAIN)))
    }

    /// The address to dial for `host:port`: the folder's `hosts` file goes before DNS, as it would in `/etc/hosts`.
    pub(super) fn dial_address(&self, address: &str) -> String {
        let looked_up = address.rsplit_once(':').and_then(|(host, port)| Some(format!("{}:{port}", self.hosts.get(host)?)));
        looked_up.unwrap_or_else(|| address.to_owned())
    }

    /// The first of these that is there, in the folder or where Istio puts it, else the last.
    pub(super) fn file(&self, candidates: &[&str]) -> PathBuf {
        let paths = candidates.iter().map(|candidate| self.path.join(candidate));
        let fallback = self.path.join(candidates.last().copied().unwrap_or_default());
        paths.into_iter().find(|path| path.exists()).unwrap_or(fallback)
    }

    /// The node metadata that `ISTIO_META_*` and `ISTIO_METAJSON_*` make, as in istio-agent: the former are strings, the latter
    /// objects, whose keys become metadata; labels and annotations stay together.
    ///
    /// # Errors
    /// When an `ISTIO_METAJSON_*` is no JSON object.
    pub(super) fn node_metadata(&self) -> Result<Map<String, Json>, Failure> {
        let mut metadata = Map::new();
        // The process comes last, so that it wins.
        for (name, value) in self.folder.iter().rev().chain(std::iter::once(&self.process)).flatten() {
            if let Some(key) = name.strip_prefix("ISTIO_META_").filter(|_| !value.is_empty()) {
                metadata.insert(key.to_owned(), Json::String(value.clone()));
            } else if let Some(key) = name.strip_prefix("ISTIO_METAJSON_").filter(|key| *key != "LABELS" && !value.is_empty()) {
                let all = object(value, name)?;
                match key {
                    "ANNOTATIONS" => _ = metadata.insert(key.to_owned(), Json::Object(all)),
                    _ => metadata.extend(all),
                }
            }
        }
        Ok(metadata)
    }
}

fn file(path: &Path) -> Result<Option<String>, Failure> {
    let wrong = |reason: String| Failure::Configuration(format!("{}: {reason}", path.display()));
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => return Err(wrong(format!("expected at most {MAX_FILE_BYTES} bytes"))),
        _ => {}
    }
    fs::read_to_string(path).map(Some).map_err(|error| wrong(error.to_string()))
}

/// JSON is YAML.
fn object(text: &str, origin: &str) -> Result<Map<String, Json>, Failure> {
    let value = serde_saphyr::from_str(text).map_err(|error| Failure::Configuration(format!("{origin}: {error}")))?;
    expect_object(value, origin)
}

fn expect_object(value: Json, origin: &str) -> Result<Map<String, Json>, Failure> {
    match value {
        Json::Object(map) => Ok(map),
        Json::Null => Ok(Map::new()),
        other => Err(Failure::Configuration(format!("{origin}: expected an object, found {other}"))),
    }
}

/// `NAME='value'` lines, as systemd and shells read them.
fn variables(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    lines
        .map(|(index, line)| {
            let (name, value) = line.trim().trim_start_matches("export ").split_once('=').ok_or_else(|| {
                Failure::Configuration(format!("cluster.env:{}: expected NAME='value', found {line:?}", index + 1))
            })?;
            let unquoted = ['\'', '"'].iter().find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote));
            Ok((name.to_owned(), unquoted.unwrap_or(value).to_owned()))
        })
        .collect()
}

/// Names by address, turned around.
fn hosts(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .flat_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().unwrap_or_default().to_owned();
            words.map(move |name| (name.to_owned(), address.clone())).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `istioctl experimental workload entry configure` writes.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "cluster.env",
            "ISTIO_META_CLUSTER_ID='Kubernetes'\nPOD_NAMESPACE='bookinfo'\nSERVICE_ACCOUNT='ratings-vm'\nCANONICAL_SERVICE=''\n",
        );
        write(
            "mesh.yaml",
            "defaultConfig:\n  discoveryAddress: istiod-1-32.istio-system.svc:15012\n  proxyMetadata:\n    ISTIO_META_AUTO_REGISTER_GROUP: ratings\n    ISTIO_META_NETWORK: ecs\n",
        );
        write("hosts", "# added by istioctl\n203.0.113.7 istiod-1-32.istio-system.svc\n");
        write("istio-token", "token");
        folder
    }

    #[test]
    fn the_folder_of_istioctl_says_everything() {
        let folder = folder();
        let environment = Environment::read([], folder.path()).unwrap();
        assert!(environment.joins());
        assert_eq!(environment.get("POD_NAMESPACE"), Some("bookinfo"));
        assert_eq!(environment.get("CANONICAL_SERVICE"), None, "empty is not set");
        let address = environment.discovery_address();
        assert_eq!(
            (address, environment.dial_address(address)),
            ("istiod-1-32.istio-system.svc:15012", "203.0.113.7:15012".to_owned())
        );
        assert_eq!(environment.file(&["istio-token", "var/run/secrets/tokens/istio-token"]), folder.path().join("istio-token"));
        let metadata = environment.node_metadata().unwrap();
        assert_eq!(metadata["AUTO_REGISTER_GROUP"], "ratings");
        assert_eq!(metadata["CLUSTER_ID"], "Kubernetes");
    }

    #[test]
    fn the_process_goes_before_the_folder() {
        let folder = folder();
        let process = [
            ("POD_NAMESPACE", "other"),
            ("PROXY_CONFIG", r#"{"discoveryAddress": "10.0.0.1:15012", "readinessProbe": {"tcpSocket": {"port": 9080}}}"#),
            ("ISTIO_META_NETWORK", "pi"),
            ("ISTIO_METAJSON_LABELS", r#"{"app": "ratings"}"#),
            ("ISTIO_METAJSON_EXTRA", r#"{"OWNER": "me"}"#),
        ];
        let process = process.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::read(process, folder.path()).unwrap();
        assert_eq!(environment.get("POD_NAMESPACE"), Some("other"));
        assert_eq!(environment.discovery_address(), "10.0.0.1:15012");
        assert_eq!(environment.dial_address("10.0.0.1:15012"), "10.0.0.1:15012");
        let metadata = environment.node_metadata().unwrap();
        assert_eq!((&metadata["NETWORK"], &metadata["OWNER"]), (&Json::from("pi"), &Json::from("me")));
        assert!(!metadata.contains_key("app"), "labels stay together: {metadata:?}");
    }

    #[test]
    fn the_end_is_as_istio_agents_variables_have_it() {
        let read = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            Environment::read(variables, tempfile::tempdir().unwrap().path()).unwrap()
        };
        let seconds = |number| Some(Duration::from_secs(number));
        let old = ("TERMINATION_DRAIN_DURATION_SECONDS", "7");
        assert_eq!(read(&[old]).termination_drain_duration().unwrap(), seconds(7));
        let both = read(&[old, ("PROXY_CONFIG", r#"{"terminationDrainDuration": "9s"}"#)]);
        assert_eq!(both.termination_drain_duration().unwrap(), seconds(9));
        assert_eq!(read(&[]).termination_drain_duration().unwrap(), None);

        let minimum = ("MINIMUM_DRAIN_DURATION", "1m");
        assert_eq!(read(&[minimum]).minimum_drain_duration().unwrap(), None, "it belongs to the other one");
        assert_eq!(read(&[("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")]).minimum_drain_duration().unwrap(), seconds(5));
        assert_eq!(read(&[minimum, ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "1")]).minimum_drain_duration().unwrap(), seconds(60));
        assert_eq!(read(&[minimum, ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "false")]).minimum_drain_duration().unwrap(), None);
        for variable in [("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "yes"), ("MINIMUM_DRAIN_DURATION", "long")] {
            let error = read(&[variable]).minimum_drain_duration().unwrap_err().to_string();
            assert!(error.contains(variable.0) && error.contains(variable.1), "{error}");
        }
    }

    #[test]
    fn an_empty_folder_joins_nothing_and_a_bad_one_says_where() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Environment::read([], folder.path()).unwrap().joins());
        fs::write(folder.path().join("cluster.env"), "A='1'\nnonsense\n").unwrap();
        let failure = Environment::read([], folder.path()).unwrap_err();
        assert!(failure.to_string().contains("cluster.env:2: expected NAME='value', found \"nonsense\""), "{failure}");
        fs::write(folder.path().join("cluster.env"), "").unwrap();
        fs::write(folder.path().join("mesh.yaml"), "defaultConfig: 7").unwrap();
        let failure = Environment::read([], folder.path()).unwrap_err();
        assert!(failure.to_string().contains("mesh.yaml: defaultConfig: expected an object, found 7"), "{failure}");
    }
}
