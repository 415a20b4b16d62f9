//! Credentials of AWS: where they come from, and how they are kept fresh.
//!
//! - `container`: those of a task role, from the endpoint that ECS and EKS Pod Identity name in the environment;
//! - `assume`: those of another role, by a token of Kubernetes (IRSA) or by credentials that there are already;
//! - [`super::imds`]: those of an EC2 instance.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

pub use self::assume::{AssumeRole, WebIdentity};
pub(super) use self::assume::{form, region, sts_endpoint};
pub use self::container::ContainerCredentials;
use super::imds::Imds;
use super::{AskError, variable};
use crate::fetch::{Client, FetchError, quiet};
use crate::identity::Clock;

mod assume;
mod container;
#[cfg(test)]
mod tests;

/// Credentials are renewed when they are valid for less than this.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// Access key, secret and token. `Debug` shows the access key's id alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// No secret.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: String,
    /// There for all temporary credentials.
    pub session_token: Option<String>,
    /// `None` for those of a user, which end when somebody deletes them.
    pub expires: Option<SystemTime>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why there are no credentials. Never holds any.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A variable of the environment cannot be used.
    #[error("{variable}: {reason}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The endpoint does not answer, or says no.
    #[error("credentials endpoint: {0}")]
    Endpoint(#[from] AskError),
    /// STS does not answer.
    #[error("STS: {0}")]
    Sts(#[from] FetchError),
    /// STS says no.
    #[error("STS answered {status} {code} when asked for the role {role}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// Such as `AccessDenied`.
        code: String,
        /// The role's ARN.
        role: String,
    },
    /// STS gives no token.
    #[error(
        "STS answered {status} {code} when asked for a token: the role needs sts:GetWebIdentityToken, and the account outbound \
         web identity federation"
    )]
    NoToken {
        /// Of HTTP.
        status: u16,
        /// Such as `AccessDenied`.
        code: String,
    },
    /// Not what credentials look like.
    #[error("the answer of the {origin} holds no credentials: {reason}")]
    Answer {
        /// Such as `credentials endpoint`.
        origin: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// They were valid once.
    #[error("the {origin} gave credentials that have expired")]
    Expired {
        /// Such as `credentials endpoint`.
        origin: &'static str,
    },
}

/// Where credentials come from.
#[derive(Debug)]
pub enum CredentialSource {
    /// They are what they are.
    Static(Credentials),
    /// The endpoint of ECS or EKS Pod Identity.
    Container(ContainerCredentials),
    /// The instance's metadata service.
    Instance(Imds),
    /// A service account of Kubernetes.
    WebIdentity(WebIdentity),
    /// Other credentials.
    AssumeRole(AssumeRole),
}

/// Credentials that are renewed before they expire. Share it.
#[derive(Debug)]
pub struct CredentialProvider {
    source: CredentialSource,
    clock: Clock,
    current: Mutex<Option<Credentials>>,
}

impl CredentialProvider {
    /// A provider of what comes from `source`.
    pub fn new(source: CredentialSource, clock: Clock) -> Self {
        Self { source, clock, current: Mutex::new(None) }
    }

    /// What AWS's clients would take, the first that is configured: keys in the environment, a token of Kubernetes
    /// (`AWS_WEB_IDENTITY_TOKEN_FILE`), the endpoint of the container, the instance. No shared files, no single sign-on.
    ///
    /// # Errors
    /// When a variable cannot be used.
    pub fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
        client: &Client,
        clock: Clock,
    ) -> Result<Self, CredentialError> {
        let source = if let Some(credentials) = static_credentials(environment)? {
            CredentialSource::Static(credentials)
        } else if let Some(web_identity) = WebIdentity::from_environment(environment, client)? {
            CredentialSource::WebIdentity(web_identity)
        } else if let Some(container) = ContainerCredentials::from_environment(environment, client)? {
            CredentialSource::Container(container)
        } else {
            CredentialSource::Instance(Imds::from_environment(environment, client)?)
        };
        Ok(Self::new(source, clock))
    }

    /// Credentials that are valid now. When they cannot be renewed in time, those that there are serve until they expire.
    ///
    /// # Errors
    /// When there are none.
    pub async fn credentials(&self) -> Result<Credentials, CredentialError> {
        // One renewal at a time; who waits takes what comes of it.
        let mut current = self.current.lock().await;
        if let Some(credentials) = current.as_ref().filter(|credentials| self.outlive(credentials, MARGIN)) {
            return Ok(credentials.clone());
        }
        match self.fetch().await {
            Ok(credentials) => {
                *current = Some(credentials.clone());
                Ok(credentials)
            }
            Err(error) => match current.as_ref().filter(|credentials| self.outlive(credentials, Duration::ZERO)) {
                Some(credentials) => {
                    tracing::warn!(%error, "AWS credentials cannot be renewed yet");
                    Ok(credentials.clone())
                }
                None => Err(error),
            },
        }
    }

    async fn fetch(&self) -> Result<Credentials, CredentialError> {
        let (origin, credentials) = match &self.source {
            CredentialSource::Static(credentials) => return Ok(credentials.clone()),
            CredentialSource::Container(container) => ("credentials endpoint", container.fetch().await?),
            CredentialSource::Instance(imds) => ("instance metadata service", imds.role_credentials().await?),
            CredentialSource::WebIdentity(web_identity) => ("STS", web_identity.fetch().await?),
            CredentialSource::AssumeRole(assume) => ("STS", Box::pin(assume.fetch(self.clock.now())).await?),
        };
        if self.outlive(&credentials, Duration::ZERO) { Ok(credentials) } else { Err(CredentialError::Expired { origin }) }
    }

    fn outlive(&self, credentials: &Credentials, margin: Duration) -> bool {
        credentials.expires.is_none_or(|expires| self.clock.now() + margin < expires)
    }
}

fn static_credentials(environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Credentials>, CredentialError> {
    let Some(access_key_id) = variable(environment, "AWS_ACCESS_KEY_ID") else { return Ok(None) };
    let secret = variable(environment, "AWS_SECRET_ACCESS_KEY").ok_or_else(|| CredentialError::Variable {
        variable: "AWS_SECRET_ACCESS_KEY",
        reason: "not set, while AWS_ACCESS_KEY_ID is".to_owned(),
    })?;
    let session_token = variable(environment, "AWS_SESSION_TOKEN");
    Ok(Some(Credentials { access_key_id, secret_access_key: secret, session_token, expires: None }))
}

/// Credentials as endpoints and STS write them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawCredentials {
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "SessionToken")]
    token: String,
    expiration: RawTime,
}

/// A time as text, or in seconds since 1970, which STS writes as JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawTime {
    Text(String),
    Seconds(f64),
}

impl RawCredentials {
    pub(super) fn parse(self, origin: &'static str) -> Result<Credentials, CredentialError> {
        let wrong = |reason: &str| CredentialError::Answer { origin, reason: reason.to_owned() };
        let expires = match self.expiration {
            RawTime::Text(text) => OffsetDateTime::parse(&text, &Rfc3339).ok().map(SystemTime::from),
            RawTime::Seconds(seconds) => {
                Duration::try_from_secs_f64(seconds).ok().and_then(|age| SystemTime::UNIX_EPOCH.checked_add(age))
            }
        };
        let expires = expires.ok_or_else(|| wrong("Expiration is no time"))?;
        let parts = [&self.access_key_id, &self.secret_access_key, &self.token];
        if parts.iter().any(|part| part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(wrong("AccessKeyId, SecretAccessKey and Token have to be visible ASCII characters"));
        }
        Ok(Credentials {
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key,
            session_token: Some(self.token),
            expires: Some(expires),
        })
    }

    /// From JSON. The reason of a failure says where, never what.
    pub(super) fn from_json(text: &[u8], origin: &'static str) -> Result<Credentials, CredentialError> {
        let raw: Self =
            serde_json::from_slice(text).map_err(|error| CredentialError::Answer { origin, reason: quiet(&error) })?;
        raw.parse(origin)
    }
}
