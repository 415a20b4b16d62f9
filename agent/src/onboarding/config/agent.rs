//! `AgentConfiguration`: where the agent's proof of identity and its addresses come from, and how it retries.
//!
//! <https://docs.tetrate.io/service-bridge/refs/onboarding/config/agent/v1alpha1/agent_configuration>

use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Deserializer};

use super::{ConfigError, Empty, read};
use crate::onboarding::plugin;
use crate::translate::istio::single::Span;

/// A credential that takes longer than this to make is none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds of the waits between attempts.
const DEFAULT_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// The least that can be set.
const SHORTEST: Duration = Duration::from_millis(1);

/// How the agent works. The default is what an absent `AGENT_CONFIG` means.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfiguration {
    /// Who vouches for the workload, and where it is.
    pub platform: Platform,
    /// Istio revision to connect to; empty is the default one.
    pub revision: String,
    /// How long a plugin may take (30 s).
    pub plugin_timeout: Duration,
    /// Bound of the first wait after a failure (1 s).
    pub first_retry: Duration,
    /// Bound of any wait after a failure (15 s).
    pub retry_cap: Duration,
}

/// Who vouches for a workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Platform {
    /// What the environment shows: a task's metadata endpoint, else a virtual machine's.
    #[default]
    Auto,
    /// A virtual machine of AWS.
    Ec2,
    /// A task of AWS.
    Ecs,
    /// Programs of the user.
    Custom {
        /// Tried in this order; at least one.
        credentials: Vec<Plugin>,
        /// Where the addresses come from.
        host: HostInfo,
    },
}

/// Where the addresses of a workload come from.
#[derive(Clone, Debug, PartialEq)]
pub enum HostInfo {
    /// A program.
    Plugin(Plugin),
    /// The interfaces of this machine.
    Basic(Interfaces),
}

impl Default for HostInfo {
    fn default() -> Self {
        Self::Basic(Interfaces::default())
    }
}

/// Which interfaces count, by name.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    /// One of these has to match; all do when there are none.
    pub include: Vec<Regex>,
    /// None of these may.
    pub exclude: Vec<Regex>,
}

impl PartialEq for Interfaces {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &[Regex], b: &[Regex]| a.iter().map(Regex::as_str).eq(b.iter().map(Regex::as_str));
        same(&self.include, &other.include) && same(&self.exclude, &other.exclude)
    }
}

/// A program that is run for an answer: a JSON request on its standard input, the answer on its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// What it is called, `PLUGIN_NAME` for it.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Where it is; `onboarding-agent-<name>-plugin` on the `PATH` when empty.
    #[serde(default)]
    pub path: String,
    /// Variables for it.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// Arguments for it.
    #[serde(default)]
    pub args: Vec<String>,
}

impl Plugin {
    /// The program that is run, for `timeout` at the most.
    pub(in super::super) fn program(&self, timeout: Duration) -> plugin::Plugin {
        plugin::Plugin {
            name: self.name.clone(),
            path: Some(self.path.as_str()).filter(|path| !path.is_empty()).map(Into::into),
            env: self.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())).collect(),
            args: self.args.clone(),
            timeout,
        }
    }
}

/// A variable of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

impl Default for AgentConfiguration {
    fn default() -> Self {
        Self {
            platform: Platform::Auto,
            revision: String::new(),
            plugin_timeout: DEFAULT_TIMEOUT,
            first_retry: DEFAULT_RETRY.0,
            retry_cap: DEFAULT_RETRY.1,
        }
    }
}

impl AgentConfiguration {
    /// Reads YAML or JSON; `origin` is where it came from.
    ///
    /// # Errors
    /// Names origin, line, field, and what was expected.
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let RawAgent { host, sidecar, settings, .. } = read(origin, text, "AgentConfiguration")?;
        let RawConnection { timeout, retry_policy } = settings.connection;
        let backoff = retry_policy.exponential_backoff;
        let (first_retry, retry_cap) = match (backoff.initial_interval, backoff.max_interval) {
            (None, None) => DEFAULT_RETRY,
            (Some(first), None) => (first.0, DEFAULT_RETRY.1.max(first.0)),
            (None, Some(cap)) => (DEFAULT_RETRY.0.min(cap.0), cap.0),
            (Some(first), Some(cap)) if first.0 <= cap.0 => (first.0, cap.0),
            (Some(first), Some(cap)) => {
                return Err(ConfigError(format!(
                    "{origin}: settings.connection.retryPolicy.exponentialBackoff: initialInterval {:?} is longer than maxInterval {:?}",
                    first.0, cap.0
                )));
            }
        };
        Ok(Self {
            platform: host.0,
            revision: sidecar.istio.revision.0,
            plugin_timeout: timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0),
            first_retry,
            retry_cap,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawAgent {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    host: RawHost,
    #[serde(default)]
    sidecar: RawSidecar,
    #[serde(default)]
    settings: RawSettings,
}

#[derive(Default, Deserialize)]
#[serde(try_from = "RawHostFields")]
struct RawHost(Platform);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHostFields {
    auto: Option<Empty>,
    custom: Option<RawCustom>,
    aws: Option<RawAws>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCustom {
    credential: Vec<RawCredential>,
    #[serde(default)]
    hostinfo: Option<RawHostInfo>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredential {
    plugin: Plugin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHostInfo {
    plugin: Option<Plugin>,
    basic: Option<RawBasic>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawBasic {
    #[serde(default)]
    network_interfaces: RawInterfaces,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInterfaces {
    #[serde(default)]
    include: Vec<Pattern>,
    #[serde(default)]
    exclude: Vec<Pattern>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAws {
    ec2: Option<Empty>,
    ecs: Option<Empty>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSidecar {
    #[serde(default)]
    istio: RawIstio,
    /// Read for its rule only: there is one process, and it writes where it is told to.
    #[serde(default, rename = "stdout")]
    _stdout: RawStream<true>,
    #[serde(default, rename = "stderr")]
    _stderr: RawStream<false>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIstio {
    #[serde(default)]
    revision: Revision,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStream<const OUT: bool> {
    #[serde(default, rename = "filename")]
    _filename: FileName<OUT>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    #[serde(default)]
    connection: RawConnection,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawConnection {
    timeout: Option<Positive>,
    #[serde(default)]
    retry_policy: RawRetry,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRetry {
    #[serde(default)]
    exponential_backoff: RawBackoff,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawBackoff {
    initial_interval: Option<Positive>,
    max_interval: Option<Positive>,
}

impl TryFrom<RawHostFields> for RawHost {
    type Error = &'static str;

    fn try_from(fields: RawHostFields) -> Result<Self, Self::Error> {
        Ok(Self(match fields {
            RawHostFields { custom: None, aws: None, .. } => Platform::Auto,
            RawHostFields { auto: None, custom: Some(custom), aws: None } => custom.try_into()?,
            RawHostFields { auto: None, custom: None, aws: Some(aws) } => match (aws.ec2, aws.ecs) {
                (Some(_), None) => Platform::Ec2,
                (None, Some(_)) => Platform::Ecs,
                _ => return Err("aws: expected exactly one of ec2, ecs"),
            },
            _ => return Err("expected one of auto, custom, aws, not several"),
        }))
    }
}

impl TryFrom<RawCustom> for Platform {
    type Error = &'static str;

    fn try_from(RawCustom { credential, hostinfo }: RawCustom) -> Result<Self, Self::Error> {
        if credential.is_empty() {
            return Err("custom.credential: expected at least one");
        }
        let host = match hostinfo {
            None | Some(RawHostInfo { plugin: None, basic: None }) => HostInfo::default(),
            Some(RawHostInfo { plugin: Some(plugin), basic: None }) => HostInfo::Plugin(plugin),
            Some(RawHostInfo {
                plugin: None,
                basic: Some(RawBasic { network_interfaces: RawInterfaces { include, exclude } }),
            }) => {
                let regexes = |patterns: Vec<Pattern>| patterns.into_iter().map(|pattern| pattern.0).collect();
                HostInfo::Basic(Interfaces { include: regexes(include), exclude: regexes(exclude) })
            }
            Some(_) => return Err("custom.hostinfo: expected one of plugin, basic, not both"),
        };
        Ok(Self::Custom { credentials: credential.into_iter().map(|credential| credential.plugin).collect(), host })
    }
}

/// A regular expression that compiles.
struct Pattern(Regex);

/// At least a millisecond.
struct Positive(Duration);

/// An Istio revision, or nothing.
#[derive(Default)]
struct Revision(String);

/// `/dev/stdout` or `/dev/stderr`.
#[derive(Default)]
struct FileName<const OUT: bool>;

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Regex::new(&text).map(Self).map_err(|_| serde::de::Error::custom(format_args!("{text:?}: expected a regular expression")))
    }
}

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Span(duration) = Span::deserialize(deserializer)?;
        if duration < SHORTEST {
            return Err(serde::de::Error::custom(format_args!("{duration:?}: expected at least {SHORTEST:?}")));
        }
        Ok(Self(duration))
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = [text.bytes().next(), text.bytes().last()];
        let is_revision = text.len() <= 56
            && ends.iter().all(|end| end.is_none_or(inner))
            && text.bytes().all(|byte| inner(byte) || byte == b'-');
        if is_revision {
            return Ok(Self(text));
        }
        let reason = format_args!("{text:?}: expected at most 56 lower-case letters, digits and dashes");
        Err(serde::de::Error::custom(reason))
    }
}

impl<'de, const OUT: bool> Deserialize<'de> for FileName<OUT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = if OUT { "/dev/stdout" } else { "/dev/stderr" };
        if text.is_empty() || text == expected {
            return Ok(Self);
        }
        Err(serde::de::Error::custom(format_args!("{text:?}: skiff writes to {expected} only")))
    }
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() || text.contains(['/', '\0', '=']) {
        return Err(serde::de::Error::custom(format_args!("{text:?}: expected a name")));
    }
    Ok(text)
}
