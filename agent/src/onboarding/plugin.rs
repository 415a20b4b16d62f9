//! Plugins of the onboarding agent: programs that know a platform that we don't. One run answers one question: JSON on standard
//! input, JSON on standard output, a `google.rpc.Status` when it ends with another code than 0.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::identity::Token;

/// How long a plugin may take unless configured.
pub const TIMEOUT: Duration = Duration::from_secs(30);

const CREDENTIAL_SERVICE: &str = "tetrateio.api.onboarding.private.component.agent.plugin.credential.v1alpha1.CredentialPlugin";
const HOSTINFO_SERVICE: &str = "tetrateio.api.onboarding.private.component.agent.plugin.hostinfo.v1alpha1.HostInfoPlugin";
/// Bytes of its answer; a longer one is an error.
const MAX_ANSWER: u64 = 1024 * 1024;
/// Bytes of its diagnostics that are logged; the rest is read and dropped.
const MAX_DIAGNOSTICS: usize = 4096;
const UNIMPLEMENTED: i64 = 12;
const UNAVAILABLE: i64 = 14;

/// A plugin (`host.custom.credential[].plugin` and `host.custom.hostinfo.plugin` of AgentConfiguration).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Its name, for it and for logs.
    pub name: String,
    /// The program; `onboarding-agent-<name>-plugin` of `PATH` unless given.
    pub path: Option<PathBuf>,
    /// Added to our environment.
    pub env: Vec<(String, String)>,
    /// Its arguments.
    pub args: Vec<String>,
    /// How long a run may take.
    pub timeout: Duration,
}

/// A credential from a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginCredential {
    /// The token in it: others than those with a token nobody but their maker knows.
    pub token: Token,
    /// When it ends, if the plugin says so.
    pub expires: Option<SystemTime>,
}

/// An address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub ip: IpAddr,
    /// Where it can be reached from.
    pub kind: AddressKind,
}

/// Where an address can be reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AddressKind {
    /// The private network.
    Vpc,
    /// Everywhere.
    Internet,
}

/// Why a plugin has no answer. Never holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// It cannot be run.
    #[error("plugin {plugin:?}: cannot run {program}: {source}")]
    Run {
        /// Its name.
        plugin: String,
        /// What was run.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long, and was killed.
    #[error("plugin {0:?} took longer than {1:?}")]
    TimedOut(String, Duration),
    /// It says no.
    #[error("plugin {plugin:?}, {method}: {message:?} (status {code})")]
    Status {
        /// Its name.
        plugin: String,
        /// What it was asked.
        method: &'static str,
        /// Of gRPC.
        code: i64,
        /// In its words.
        message: String,
    },
    /// It has answered something else.
    #[error("plugin {plugin:?}, {method}: {reason}")]
    Answer {
        /// Its name.
        plugin: String,
        /// What it was asked.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl PluginError {
    /// Whether it does not know the question (status 12).
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status { code: UNIMPLEMENTED, .. })
    }

    /// Whether it asks for another try (status 14), or had no time.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Status { code: UNAVAILABLE, .. } | Self::TimedOut(..))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GetCredentialResponse {
    credential: Value,
    expires_at: Option<String>,
}

#[derive(Deserialize)]
struct GetHostInfoResponse {
    host: Host,
}

#[derive(Deserialize)]
struct Host {
    #[serde(default)]
    addresses: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawAddress {
    ip: IpAddr,
    #[serde(rename = "type")]
    kind: AddressKind,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: i64,
    message: String,
}

impl Plugin {
    /// Asks for a credential for `audience`, the plane's id.
    ///
    /// # Errors
    /// When there is none.
    pub async fn get_credential(&self, audience: &str) -> Result<PluginCredential, PluginError> {
        const METHOD: &str = "GetCredential";
        let answer: GetCredentialResponse = self.call(CREDENTIAL_SERVICE, METHOD, &json!({ "audience": audience })).await?;
        let kind = answer.credential.get("@type").and_then(Value::as_str).unwrap_or_default();
        if kind.rsplit(['.', '/']).next() != Some("JwtCredential") {
            return Err(self.answer(METHOD, format!("credential.@type {kind:?}: expected one that ends in JwtCredential")));
        }
        let token = answer.credential.get("token").and_then(Value::as_str).map(Token::new);
        let token = token.filter(|token| !token.expose().is_empty());
        let token = token.ok_or_else(|| self.answer(METHOD, "credential.token is missing".to_owned()))?;
        let expires = match answer.expires_at {
            None => None,
            Some(text) => {
                let time = OffsetDateTime::parse(&text, &Rfc3339);
                Some(time.map_err(|_| self.answer(METHOD, format!("expiresAt {text:?} is no time")))?.into())
            }
        };
        Ok(PluginCredential { token, expires })
    }

    /// Asks for the addresses of the host.
    ///
    /// # Errors
    /// When there are none.
    pub async fn get_host_info(&self) -> Result<Vec<HostAddress>, PluginError> {
        const METHOD: &str = "GetHostInfo";
        let answer: GetHostInfoResponse = self.call(HOSTINFO_SERVICE, METHOD, &json!({})).await?;
        if answer.host.addresses.is_empty() {
            return Err(self.answer(METHOD, "host.addresses is empty".to_owned()));
        }
        Ok(answer.host.addresses.into_iter().map(|RawAddress { ip, kind }| HostAddress { ip, kind }).collect())
    }

    async fn call<T: DeserializeOwned>(&self, service: &str, method: &'static str, question: &Value) -> Result<T, PluginError> {
        let program = self.path.clone().unwrap_or_else(|| format!("onboarding-agent-{}-plugin", self.name).into());
        let failed = |source| PluginError::Run { plugin: self.name.clone(), program: program.display().to_string(), source };
        let mut command = Command::new(&program);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.env("PLUGIN_NAME", &self.name).env("RPC_SERVICE_NAME", service).env("RPC_METHOD_NAME", method);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(failed)?;
        let run = tokio::time::timeout(self.timeout, converse(child, question.to_string())).await;
        let run = run.map_err(|_| PluginError::TimedOut(self.name.clone(), self.timeout))?;
        let Said { succeeded, answer, diagnostics } = run.map_err(failed)?;
        if !diagnostics.is_empty() {
            tracing::info!(plugin = self.name, method, diagnostics, "a plugin has something to say");
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(self.answer(method, format!("its answer is longer than {MAX_ANSWER} bytes")));
        }
        if !succeeded {
            // One that does not say why has failed in a way of its own (status 2, unknown).
            let status =
                serde_json::from_slice(&answer).unwrap_or(Status { code: 2, message: "no google.rpc.Status".to_owned() });
            return Err(PluginError::Status { plugin: self.name.clone(), method, code: status.code, message: status.message });
        }
        serde_json::from_slice(&answer).map_err(|error| self.answer(method, crate::fetch::quiet(&error)))
    }

    fn answer(&self, method: &'static str, reason: String) -> PluginError {
        PluginError::Answer { plugin: self.name.clone(), method, reason }
    }
}

struct Said {
    succeeded: bool,
    answer: Vec<u8>,
    diagnostics: String,
}

async fn converse(mut child: Child, question: String) -> std::io::Result<Said> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // It may answer without having read the question.
            drop(stdin.write_all(question.as_bytes()).await);
        }
    };
    let answer = async {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            // One byte more than allowed, so that a longer answer is refused rather than cut.
            stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
        }
        Ok::<_, std::io::Error>(answer)
    };
    // An answer that is too long is not waited for: the plugin is killed when it is dropped.
    let (answer, diagnostics, ()) = tokio::join!(answer, diagnostics(stderr), ask);
    let answer = answer?;
    if answer.len() as u64 > MAX_ANSWER {
        child.start_kill()?;
    }
    let succeeded = child.wait().await?.success();
    Ok(Said { succeeded, answer, diagnostics })
}

async fn diagnostics(stderr: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut kept, mut chunk) = (Vec::new(), [0; 1024]);
    while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
        let room = MAX_DIAGNOSTICS.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&chunk[..room]);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[cfg(test)]
mod tests;
