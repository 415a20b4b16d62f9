//! What a workload shows to a plane to prove who it is, and where it has it from.

use std::path::PathBuf;

use super::plugin::{AddressKind, HostAddress, Plugin, PluginError};
use crate::aws::caller_identity::{Binding, BindingError, prove};
use crate::aws::credentials::{ContainerCredentials, CredentialError, CredentialProvider, CredentialSource};
use crate::aws::imds::{Imds, ImdsError};
use crate::aws::metadata::{MetadataClient, MetadataError};
use crate::aws::sigv4::PresignedUrl;
use crate::aws::web_identity::WebIdentityTokens;
use crate::fetch::Client;
use crate::identity::{Clock, Token, TokenSource, TokenSourceError};

/// Names a file with a JSON Web Token for the plane; read each time.
pub const JWT_FILE_VARIABLE: &str = "ONBOARDING_JWT_FILE";
/// Holds a JSON Web Token for the plane.
pub const JWT_VARIABLE: &str = "ONBOARDING_JWT";

/// `true`: AWS is asked for a JSON Web Token about the role, instead of a proof that the plane has AWS confirm.
pub const AWS_TOKEN_VARIABLE: &str = "ONBOARDING_AWS_WEB_IDENTITY";

/// What is shown, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The proof of an AWS role.
    Aws {
        /// A bearer credential for a quarter of an hour: never to be logged, sent over TLS alone.
        presigned_url: PresignedUrl,
        /// The nonce in it.
        nonce: String,
        /// Whose role it is.
        workload: AwsWorkload,
    },
    /// A token of an issuer that the plane knows.
    Jwt(Token),
}

/// Claims that go with a proof of an AWS role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsWorkload {
    /// A task.
    Ecs {
        /// Its ARN.
        task_arn: String,
        /// Its cluster's name.
        cluster: String,
    },
    /// An instance.
    Ec2 {
        /// Its identity document, as it was served.
        document: Vec<u8>,
        /// AWS's signature of it (`rsa2048`), as it was served.
        signature: String,
    },
}

/// Why there is no credential. Never holds one.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// There is nothing to take one from.
    #[error(
        "this is no ECS task ({} is not set) and no EC2 instance (its metadata service does not answer); \
         set {JWT_FILE_VARIABLE} or {JWT_VARIABLE}, or configure host.custom.credential",
        crate::aws::metadata::ENDPOINT_VARIABLE
    )]
    NoPlatform,
    /// ECS gives no credentials to this task.
    #[error("the task has no role: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is not set; give its definition a taskRoleArn")]
    NoTaskRole,
    /// Of the role.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Of the task.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Of the instance.
    #[error(transparent)]
    Instance(#[from] ImdsError),
    /// Of the token.
    #[error(transparent)]
    Token(#[from] TokenSourceError),
    /// Of the plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plane asks for something that cannot be signed.
    #[error("the plane's answer: {0}")]
    Binding(#[from] BindingError),
}

/// Where credentials are taken from (`host` of AgentConfiguration).
#[derive(Debug)]
pub enum CredentialOrigin {
    /// The role of an ECS task.
    Ecs(Box<EcsOrigin>),
    /// The role of an EC2 instance.
    Ec2(Box<Ec2Origin>),
    /// A token that somebody else keeps fresh.
    Jwt(TokenSource),
    /// A token that was there at the start.
    FixedJwt(Token),
    /// A token that AWS makes for each time.
    AwsJwt(Box<WebIdentityTokens>),
    /// Plugins, asked in order until one knows the question.
    Plugins(Vec<Plugin>),
}

/// A task, and the credentials of its role.
#[derive(Debug)]
pub struct EcsOrigin {
    /// Where the task runs.
    pub metadata: MetadataClient,
    /// The role's.
    pub credentials: CredentialProvider,
    clock: Clock,
}

/// An instance, and the credentials of its role.
#[derive(Debug)]
pub struct Ec2Origin {
    /// Where it runs.
    pub imds: Imds,
    /// The role's.
    pub credentials: CredentialProvider,
    clock: Clock,
}

impl CredentialOrigin {
    /// `host.auto`: a token that is named in the environment or that AWS makes, the task that this is, the instance that this is.
    ///
    /// # Errors
    /// When it is none of them, or a variable cannot be used.
    pub async fn auto(
        environment: &(dyn Fn(&str) -> Option<String> + Sync),
        client: &Client,
        clock: Clock,
    ) -> Result<Self, ObtainError> {
        if let Some(path) = environment(JWT_FILE_VARIABLE).filter(|path| !path.is_empty()) {
            return Ok(Self::Jwt(TokenSource::File(PathBuf::from(path))));
        }
        if let Some(token) = environment(JWT_VARIABLE).filter(|token| !token.is_empty()) {
            return Ok(Self::FixedJwt(Token::new(&token)));
        }
        match environment(AWS_TOKEN_VARIABLE).as_deref() {
            None | Some("" | "false") => {}
            Some("true") => return Ok(Self::AwsJwt(Box::new(WebIdentityTokens::from_environment(environment, client, clock)?))),
            Some(other) => {
                let reason = format!("{other:?}: expected true or false");
                return Err(CredentialError::Variable { variable: AWS_TOKEN_VARIABLE, reason }.into());
            }
        }
        if let Some(metadata) = MetadataClient::from_environment(&environment, client)? {
            return Self::ecs(metadata, environment, client, clock);
        }
        let imds = Imds::from_environment(&environment, client)?;
        if imds.is_available().await {
            return Ok(Self::ec2(imds, clock));
        }
        Err(ObtainError::NoPlatform)
    }

    /// The task that this has to be.
    ///
    /// # Errors
    /// When it has no role, or a variable cannot be used.
    pub fn ecs(
        metadata: MetadataClient,
        environment: &dyn Fn(&str) -> Option<String>,
        client: &Client,
        clock: Clock,
    ) -> Result<Self, ObtainError> {
        let container = ContainerCredentials::from_environment(environment, client)?.ok_or(ObtainError::NoTaskRole)?;
        let credentials = CredentialProvider::new(CredentialSource::Container(container), clock.clone());
        Ok(Self::Ecs(Box::new(EcsOrigin { metadata, credentials, clock })))
    }

    /// `host.aws.ec2`: the instance that this has to be.
    pub fn ec2(imds: Imds, clock: Clock) -> Self {
        let credentials = CredentialProvider::new(CredentialSource::Instance(imds.clone()), clock.clone());
        Self::Ec2(Box::new(Ec2Origin { imds, credentials, clock }))
    }

    /// A name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ecs(_) => "aws-ecs",
            Self::Ec2(_) => "aws-ec2",
            Self::Jwt(_) | Self::FixedJwt(_) => "jwt",
            Self::AwsJwt(_) => "aws-web-identity",
            Self::Plugins(_) => "plugin",
        }
    }

    /// A credential for a plane, made anew each time: its nonce is good for once, and AWS's credentials change.
    ///
    /// # Errors
    /// When there is none. All but [`ObtainError::NoTaskRole`] and [`ObtainError::NoPlatform`] may be over with another try.
    pub async fn obtain(&self, plane: &str, nonce: &str) -> Result<Credential, ObtainError> {
        match self {
            Self::Ecs(ecs) => {
                let task = ecs.metadata.task().await?;
                let credentials = ecs.credentials.credentials().await?;
                let url = prove(&credentials, &task.arn.region, &Binding::new(plane, nonce)?, ecs.clock.now());
                let workload = AwsWorkload::Ecs { task_arn: task.arn.to_string(), cluster: task.cluster };
                Ok(Credential::Aws { presigned_url: url, nonce: nonce.to_owned(), workload })
            }
            Self::Ec2(ec2) => {
                let identity = ec2.imds.document().await?;
                let credentials = ec2.credentials.credentials().await?;
                let url = prove(&credentials, &identity.document.region, &Binding::new(plane, nonce)?, ec2.clock.now());
                let workload = AwsWorkload::Ec2 { document: identity.text, signature: identity.signature };
                Ok(Credential::Aws { presigned_url: url, nonce: nonce.to_owned(), workload })
            }
            Self::Jwt(source) => Ok(Credential::Jwt(source.current().await?)),
            Self::FixedJwt(token) => Ok(Credential::Jwt(token.clone())),
            Self::AwsJwt(tokens) => Ok(Credential::Jwt(tokens.token(plane).await?)),
            Self::Plugins(plugins) => from_plugins(plugins, plane).await,
        }
    }

    /// The host's addresses, as far as the platform knows them: those of a task in awsvpc mode, or of an instance. Empty where it knows
    /// none: in host mode they are the machine's, and those of bridge mode lead nowhere from outside.
    ///
    /// # Errors
    /// When the platform does not answer.
    pub async fn addresses(&self) -> Result<Vec<HostAddress>, ObtainError> {
        let addresses = match self {
            Self::Ecs(ecs) => {
                let own = ecs.metadata.container().await?;
                if own.network_mode() == Some("awsvpc") { own.addresses() } else { Vec::new() }
            }
            Self::Ec2(ec2) => vec![ec2.imds.document().await?.document.private_ip],
            Self::Jwt(_) | Self::FixedJwt(_) | Self::AwsJwt(_) | Self::Plugins(_) => Vec::new(),
        };
        Ok(addresses.into_iter().map(|ip| HostAddress { ip, kind: AddressKind::Vpc }).collect())
    }
}

async fn from_plugins(plugins: &[Plugin], plane: &str) -> Result<Credential, ObtainError> {
    let mut last = ObtainError::NoPlatform;
    for plugin in plugins {
        match plugin.get_credential(plane).await {
            Ok(credential) => return Ok(Credential::Jwt(credential.token)),
            Err(error) if error.is_unimplemented() => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests;
