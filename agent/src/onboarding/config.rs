//! What the agent is told: `OnboardingConfiguration` (where to join and what as) and the roots of the onboarding endpoint.
//!
//! The shapes are those of Tetrate's Workload Onboarding, read strictly: every fault names the variable or file, the line, the
//! field, what was found and what was expected.
//! <https://docs.tetrate.io/service-bridge/refs/onboarding/config/agent/v1alpha1/onboarding_configuration>
//!
//! | Variable | Instead of the file |
//! |---|---|
//! | `ONBOARDING_CONFIG` | `/etc/onboarding-agent/onboarding.config.yaml` |
//! | `AGENT_CONFIG` | `/etc/onboarding-agent/agent.config.yaml` |
//! | `ONBOARDING_AGENT_ROOT_CERTS` | none: the system's roots |

mod agent;
mod roots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Deserializer};

pub use agent::{AgentConfiguration, HostInfo, Interfaces, Platform, Plugin};
pub use roots::parse_root_certificates;

use crate::translate::istio::single;

/// Where the agent's files are.
pub const FOLDER: &str = "/etc/onboarding-agent";

/// The group and version of both configurations.
const API_VERSION: &str = "config.agent.onboarding.tetrate.io/v1alpha1";
/// The port of an onboarding endpoint that says nothing else.
const DEFAULT_PORT: u16 = 15443;
/// A configuration is some hundred bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// Labels of a workload.
const MAX_LABELS: usize = 64;

/// What a variable or file holds is wrong: `ONBOARDING_CONFIG:3: workloadGroup.name: missing`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Everything that the agent is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where to join, and what as.
    pub onboarding: OnboardingConfiguration,
    /// How.
    pub agent: AgentConfiguration,
    /// PEM roots of the onboarding endpoint; the system's when there are none.
    pub roots: Option<Vec<u8>>,
}

impl Settings {
    /// From the variables, else the files of `folder`. `None` when neither says that this workload is to be onboarded.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read<'a>(variable: impl Fn(&str) -> Option<&'a str>, folder: &Path) -> Result<Option<Self>, ConfigError> {
        let Some((origin, text)) = source(&variable, "ONBOARDING_CONFIG", &folder.join("onboarding.config.yaml"))? else {
            return Ok(None);
        };
        let onboarding = OnboardingConfiguration::parse(&origin, &text)?;
        let agent = match source(&variable, "AGENT_CONFIG", &folder.join("agent.config.yaml"))? {
            Some((origin, text)) => AgentConfiguration::parse(&origin, &text)?,
            None => AgentConfiguration::default(),
        };
        let roots =
            variable("ONBOARDING_AGENT_ROOT_CERTS").map(|text| parse_root_certificates("ONBOARDING_AGENT_ROOT_CERTS", text));
        Ok(Some(Self { onboarding, agent, roots: roots.transpose()? }))
    }
}

/// A variable, else a file: where it came from, and the text.
fn source<'a>(
    variable: impl Fn(&str) -> Option<&'a str>,
    name: &str,
    path: &Path,
) -> Result<Option<(String, String)>, ConfigError> {
    if let Some(text) = variable(name) {
        return Ok(Some((name.to_owned(), text.to_owned())));
    }
    let wrong = |reason: &dyn fmt::Display| ConfigError(format!("{}: {reason}", path.display()));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_BYTES => return Err(wrong(&format!("expected at most {MAX_BYTES} bytes"))),
        _ => {}
    }
    fs::read_to_string(path).map(|text| Some((path.display().to_string(), text))).map_err(|error| wrong(&error))
}

/// Where a workload joins, and what as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnboardingConfiguration {
    /// The onboarding plane.
    pub endpoint: Endpoint,
    /// What it becomes part of.
    pub workload_group: GroupName,
    /// Added to the group's labels, which they cannot override.
    pub labels: BTreeMap<String, String>,
    /// How it is connected to the rest of the mesh.
    pub connected_over: ConnectedOver,
}

/// The onboarding endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// DNS name or address.
    pub host: String,
    /// TCP port (15443).
    pub port: u16,
    /// TLS, unless said otherwise.
    pub security: TransportSecurity,
}

/// How the connection to the onboarding endpoint is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportSecurity {
    /// TLS.
    Tls {
        /// The name that is asked for and that the certificate must carry; the host when there is none.
        sni: Option<String>,
        /// The certificate is not looked at: anybody can be the plane.
        insecure_skip_verify: bool,
    },
    /// Nothing.
    None,
}

/// An Istio WorkloadGroup.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupName {
    /// Its namespace.
    #[serde(deserialize_with = "object_name")]
    pub namespace: String,
    /// Its name.
    #[serde(deserialize_with = "object_name")]
    pub name: String,
}

/// How a workload is connected to the rest of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ConnectedOver {
    /// By a private network.
    #[default]
    #[serde(rename = "VPC", alias = "UNSPECIFIED")]
    Vpc,
    /// By the Internet: its addresses are public ones.
    #[serde(rename = "INTERNET")]
    Internet,
}

impl OnboardingConfiguration {
    /// Reads YAML or JSON, with JSON's trailing commas as published examples have them; `origin` is where it came from.
    ///
    /// # Errors
    /// Names origin, line, field, and what was expected.
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let raw: RawOnboarding = read(origin, text, "OnboardingConfiguration")?;
        let RawOnboarding { onboarding_endpoint: endpoint, workload_group, workload, settings, .. } = raw;
        Ok(Self {
            endpoint: Endpoint {
                host: endpoint.host.0,
                port: endpoint.port.0,
                security: endpoint.transport_security.unwrap_or_default().into(),
            },
            workload_group,
            labels: workload.labels.0,
            connected_over: settings.connected_over,
        })
    }
}

/// Reads a document of [`API_VERSION`]; its type has to have the fields `apiVersion` and `kind`.
fn read<T: serde::de::DeserializeOwned>(origin: &str, text: &str, kind: &'static str) -> Result<T, ConfigError> {
    // The wrong kind is told before the fields that it does not have.
    let header: Header = single::read(origin, text).map_err(|error| ConfigError(error.to_string()))?;
    for (field, found, expected) in [("apiVersion", header.api_version, API_VERSION), ("kind", header.kind, kind)] {
        match found {
            Some(found) if found == expected => {}
            Some(found) => return Err(ConfigError(format!("{origin}: {field}: {found:?}: expected {expected}"))),
            None => return Err(ConfigError(format!("{origin}: {field}: missing: expected {expected}"))),
        }
    }
    single::read(origin, text).map_err(|error| ConfigError(error.to_string()))
}

/// Only what says what the rest is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawOnboarding {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    onboarding_endpoint: RawEndpoint,
    workload_group: GroupName,
    #[serde(default)]
    workload: RawWorkload,
    #[serde(default)]
    settings: RawSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawEndpoint {
    host: ServerText,
    #[serde(default)]
    port: RawPort,
    transport_security: Option<RawSecurity>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, try_from = "RawSecurityFields")]
struct RawSecurity(RawSecurityFields);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSecurityFields {
    tls: Option<RawTls>,
    none: Option<Empty>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawTls {
    #[serde(default)]
    sni: Option<OptionalServerText>,
    #[serde(default)]
    insecure_skip_verify: bool,
}

/// A message without fields.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    #[serde(default)]
    labels: Labels,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSettings {
    #[serde(default)]
    connected_over: ConnectedOver,
}

impl TryFrom<RawSecurityFields> for RawSecurity {
    type Error = &'static str;

    fn try_from(fields: RawSecurityFields) -> Result<Self, Self::Error> {
        match fields {
            RawSecurityFields { tls: Some(_), none: Some(_) } => Err("expected one of tls, none, not both"),
            fields => Ok(Self(fields)),
        }
    }
}

impl From<RawSecurity> for TransportSecurity {
    fn from(RawSecurity(fields): RawSecurity) -> Self {
        if fields.none.is_some() {
            return Self::None;
        }
        let RawTls { sni, insecure_skip_verify } = fields.tls.unwrap_or_default();
        Self::Tls { sni: sni.and_then(|sni| sni.0), insecure_skip_verify }
    }
}

/// A DNS name or an address.
struct ServerText(String);

/// The same; the empty text is none.
struct OptionalServerText(Option<String>);

/// 1 to 65535; 0, protobuf's way to say nothing, is the default.
struct RawPort(u16);

/// Kubernetes' labels.
#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for ServerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match ServerName::try_from(text.as_str()) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(serde::de::Error::custom(format_args!("{text:?}: expected a DNS name or an IP address"))),
        }
    }
}

impl<'de> Deserialize<'de> for OptionalServerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match ServerName::try_from(text.as_str()) {
            _ if text.is_empty() => Ok(Self(None)),
            Ok(_) => Ok(Self(Some(text))),
            Err(_) => Err(serde::de::Error::custom(format_args!("{text:?}: expected a DNS name or an IP address"))),
        }
    }
}

impl Default for RawPort {
    fn default() -> Self {
        Self(DEFAULT_PORT)
    }
}

impl<'de> Deserialize<'de> for RawPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match i64::deserialize(deserializer)? {
            0 => Ok(Self::default()),
            number => u16::try_from(number)
                .map(Self)
                .map_err(|_| serde::de::Error::custom(format_args!("{number}: expected a port from 1 to 65535"))),
        }
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let labels = BTreeMap::<String, String>::deserialize(deserializer)?;
        if labels.len() > MAX_LABELS {
            return Err(serde::de::Error::custom(format_args!("{} labels: expected at most {MAX_LABELS}", labels.len())));
        }
        for (key, value) in &labels {
            let (prefix, name) = key.rsplit_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
            if !is_label_word(name) || prefix.is_some_and(|prefix| !is_object_name(prefix)) {
                return Err(serde::de::Error::custom(format_args!("{key:?}: expected the key of a Kubernetes label")));
            }
            if !value.is_empty() && !is_label_word(value) {
                let reason = format_args!("{key}: {value:?}: expected at most 63 letters, digits, '-', '_' and '.'");
                return Err(serde::de::Error::custom(reason));
            }
        }
        Ok(Self(labels))
    }
}

fn object_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if is_object_name(&text) {
        return Ok(text);
    }
    Err(serde::de::Error::custom(format_args!("{text:?}: expected the name of a Kubernetes object")))
}

/// A name or value of a label: letters and digits, with `-`, `_` and `.` between them.
fn is_label_word(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// RFC 1123 subdomain.
fn is_object_name(text: &str) -> bool {
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().last()];
        let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        ends.iter().all(|end| end.is_some_and(lower)) && label.bytes().all(|byte| lower(byte) || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}
