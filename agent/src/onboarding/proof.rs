//! The proof of who a workload is, for one challenge of the plane.

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential as Shown;
use skiff_proto::skiff::onboarding::v1alpha1::aws_credential::Workload;

use super::config::{AgentConfiguration, Platform};
use super::credential::{
    AWS_TOKEN_VARIABLE, AwsWorkload, Credential, CredentialOrigin, JWT_FILE_VARIABLE, JWT_VARIABLE, ObtainError,
};
use crate::aws::imds::Imds;
use crate::fetch::Client;
use crate::identity::Clock;

/// Go before a task's role, unless it is the task that has to vouch.
const TOKENS: [&str; 3] = [JWT_FILE_VARIABLE, JWT_VARIABLE, AWS_TOKEN_VARIABLE];

/// Reads variables.
pub type Variables<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// Who vouches for this workload.
///
/// # Errors
/// When the platform is not there, or a variable cannot be used.
pub(super) async fn origin(
    agent: &AgentConfiguration,
    variables: Variables<'_>,
    client: &Client,
) -> Result<CredentialOrigin, ObtainError> {
    let clock = Clock::system();
    match &agent.platform {
        Platform::Auto => CredentialOrigin::auto(variables, client, clock).await,
        Platform::Ec2 => Ok(CredentialOrigin::ec2(Imds::from_environment(&variables, client)?, clock)),
        Platform::Ecs => {
            let of_task = |name: &str| (!TOKENS.contains(&name)).then(|| variables(name)).flatten();
            match CredentialOrigin::auto(&of_task, client, clock).await? {
                task @ CredentialOrigin::Ecs(_) => Ok(task),
                _ => Err(ObtainError::NoPlatform),
            }
        }
        Platform::Custom { credentials, .. } => {
            let plugins = credentials.iter().map(|plugin| plugin.program(agent.plugin_timeout));
            Ok(CredentialOrigin::Plugins(plugins.collect()))
        }
    }
}

/// A fresh credential, as the plane wants to see it.
pub(super) async fn procure(origin: &CredentialOrigin, plane_uid: &str, nonce: &str) -> Result<Shown, ObtainError> {
    Ok(match origin.obtain(plane_uid, nonce).await? {
        Credential::Jwt(token) => Shown::Jwt(proto::JwtCredential { token: token.expose().to_owned() }),
        Credential::Aws { presigned_url, nonce, workload } => {
            let workload = match workload {
                AwsWorkload::Ecs { task_arn, cluster } => Workload::Ecs(proto::EcsTask { task_arn, cluster }),
                AwsWorkload::Ec2 { document, signature } => Workload::Ec2(proto::Ec2Instance { document, signature }),
            };
            let presigned_url = presigned_url.expose().to_owned();
            Shown::Aws(proto::AwsCredential { presigned_url, nonce, workload: Some(workload) })
        }
    })
}
