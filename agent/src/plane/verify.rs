//! Credentials: what a workload shows for who it is, and what of it is believed.

use std::net::IpAddr;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;

use super::policy::Subject;
use crate::aws::caller_identity::Binding;
use crate::onboarding::aws::{AwsVerifier, Claim};
use crate::onboarding::identity::WorkloadIdentity;
use crate::onboarding::jwt::JwtVerifier;

/// Whom the plane believes. Without a verifier, no credential of its kind holds.
#[derive(Debug, Default)]
pub struct Verifiers {
    /// For AWS.
    pub aws: Option<AwsVerifier>,
    /// For the issuers of tokens.
    pub jwt: Option<JwtVerifier>,
}

/// What a credential has proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) subject: Subject,
    /// Of the issuer of its token, for names of objects.
    pub(super) issuer_short_name: Option<String>,
    /// Its addresses, where AWS was asked for them.
    pub(super) addresses: Option<Vec<IpAddr>>,
    /// The same for the same credential, where it must not be shown twice.
    pub(super) signature: Option<String>,
}

/// Why a credential proves nothing. Never holds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unproved {
    /// It does not hold.
    #[error("{0}")]
    Refused(String),
    /// Nobody can say now.
    #[error("{0}")]
    Unavailable(String),
}

impl Verifiers {
    /// Verifies a credential for the plane `uid`. The nonce of an AWS credential has been taken before.
    pub(super) async fn verify(&self, uid: &str, credential: &Credential) -> Result<Proof, Unproved> {
        match credential {
            Credential::Aws(credential) => self.verify_aws(uid, credential).await,
            Credential::Jwt(credential) => self.verify_jwt(credential).await,
        }
    }

    async fn verify_aws(&self, uid: &str, credential: &proto::AwsCredential) -> Result<Proof, Unproved> {
        let off = || Unproved::Refused("credentials of AWS are not accepted by this plane".to_owned());
        let verifier = self.aws.as_ref().ok_or_else(off)?;
        let refused = |reason: &dyn std::fmt::Display| Unproved::Refused(reason.to_string());
        let binding = Binding::new(uid, &credential.nonce).map_err(|error| refused(&error))?;
        let claim = match credential.workload.as_ref().ok_or_else(|| refused(&"neither a task nor an instance is claimed"))? {
            proto::aws_credential::Workload::Ecs(task) => {
                Claim::Ecs { task_arn: task.task_arn.clone(), cluster: task.cluster.clone() }
            }
            proto::aws_credential::Workload::Ec2(instance) => {
                Claim::Ec2 { document: instance.document.clone(), signature: instance.signature.clone() }
            }
        };
        let verified = verifier
            .verify(&credential.presigned_url, &binding, &claim)
            .await
            .map_err(|error| if error.is_retryable() { Unproved::Unavailable(error.to_string()) } else { refused(&error) })?;
        let of_instance = verified.instance.map(|instance| vec![instance.private_ip]);
        let addresses = verified.task.map(|task| task.addresses).or(of_instance);
        Ok(Proof {
            subject: Subject { identity: WorkloadIdentity::Aws(verified.identity), placement_verified: verified.located },
            issuer_short_name: None,
            addresses: addresses.filter(|addresses| !addresses.is_empty()),
            signature: Some(verified.signature),
        })
    }

    async fn verify_jwt(&self, credential: &proto::JwtCredential) -> Result<Proof, Unproved> {
        let off = || Unproved::Refused("tokens are not accepted by this plane: it knows no issuer".to_owned());
        let verified = self.jwt.as_ref().ok_or_else(off)?.verify(&credential.token).await.map_err(|error| {
            let reason = error.to_string();
            if error.is_retryable() { Unproved::Unavailable(reason) } else { Unproved::Refused(reason) }
        })?;
        Ok(Proof {
            subject: Subject { identity: WorkloadIdentity::Jwt(verified.identity), placement_verified: true },
            issuer_short_name: verified.issuer_short_name,
            addresses: None,
            signature: None,
        })
    }

    /// Whether the platform says that the workload is no more. What cannot be asked, or has no answer, is there.
    pub(super) async fn is_gone(&self, identity: &WorkloadIdentity) -> bool {
        let WorkloadIdentity::Aws(identity) = identity else { return false };
        let Some(ecs) = self.aws.as_ref().and_then(AwsVerifier::ecs) else { return false };
        match ecs.is_gone(identity).await {
            Ok(gone) => gone,
            Err(error) => {
                tracing::debug!(%error, "AWS does not say whether a workload is gone");
                false
            }
        }
    }
}
