//! A plane's view of an AWS credential: STS says whose it is, ECS whether that is the task that it claims to be, a signature of AWS
//! where an instance is.

use super::identity::{AwsIdentity, AwsKind, Ec2Identity, EcsIdentity, IamRole};
use crate::aws::arn::{TaskArn, cluster_name};
use crate::aws::caller_identity::Binding;
use crate::aws::ecs::{EcsVerifier, TaskError, VerifiedTask};
use crate::aws::imds::{InstanceDocument, is_instance_id};
use crate::aws::instance::{DocumentError, InstanceCertificates};
use crate::aws::verifier::{CallerIdentity, Proof, StsVerifier, VerifyError};
use crate::identity::Clock;

/// Stands for a zone or cluster that nobody has confirmed.
pub const UNVERIFIED: &str = "unverified";

/// What a workload claims besides its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// To be a task.
    Ecs {
        /// Its ARN.
        task_arn: String,
        /// Name or ARN of its cluster.
        cluster: String,
    },
    /// To be an instance.
    Ec2 {
        /// Its identity document, as the metadata service has served it; may be empty.
        document: Vec<u8>,
        /// AWS's signature of it (`rsa2048`), as served.
        signature: String,
    },
}

/// Who a workload is, as far as AWS has confirmed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedAws {
    /// Who it is.
    pub identity: AwsIdentity,
    /// Whether region, zone and cluster are what AWS says. Otherwise they are claims or [`UNVERIFIED`]: rules about them must not
    /// match.
    pub located: bool,
    /// What ECS says about the task; `None` where it has not been asked.
    pub task: Option<VerifiedTask>,
    /// What AWS has signed about the instance; `None` where that has not been verified.
    pub instance: Option<InstanceDocument>,
    /// The same for the same proof: who remembers it for 15 minutes notices one that is shown twice.
    pub signature: String,
}

/// Why a workload is not who it says it is.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// The proof does not hold, or STS cannot be asked.
    #[error(transparent)]
    Proof(#[from] VerifyError),
    /// The task does not hold, or ECS cannot be asked.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The claim is not about who has signed the proof.
    #[error("the claimed task {claimed:?} is not the one of the proof, {region}/{account}/{session}")]
    OtherTask {
        /// As claimed, or `no ARN of a task`.
        claimed: String,
        /// Of the proof.
        region: String,
        /// Of the proof.
        account: String,
        /// Of the proof.
        session: String,
    },
    /// The identity document is not AWS's.
    #[error("the instance identity document is refused: {0}")]
    Document(#[source] DocumentError),
    /// It is, but somebody else's.
    #[error("the instance identity document is of {document}, the proof of {proof}")]
    OtherInstance {
        /// Region, account and instance.
        document: String,
        /// The same of the proof.
        proof: String,
    },
    /// An instance's role names its session by the instance's id.
    #[error("the role's session is no EC2 instance: its name is not an instance's id")]
    Instance,
}

impl AwsError {
    /// Whether it could not be decided, so that another try may have more luck.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Proof(error) => error.is_retryable(),
            Self::Task(error) => error.is_retryable(),
            Self::OtherTask { .. } | Self::Document(_) | Self::OtherInstance { .. } | Self::Instance => false,
        }
    }
}

/// Verifies credentials of AWS.
#[derive(Debug)]
pub struct AwsVerifier {
    sts: StsVerifier,
    ecs: Option<EcsVerifier>,
    certificates: Option<InstanceCertificates>,
    clock: Clock,
}

impl AwsVerifier {
    /// A verifier that believes STS, and, for tasks, ECS. Without `ecs` (mode `off`) nothing but account, role and session is
    /// confirmed.
    pub fn new(sts: StsVerifier, ecs: Option<EcsVerifier>, clock: Clock) -> Self {
        Self { sts, ecs, certificates: None, clock }
    }

    /// The same that verifies identity documents of instances. Without certificates nothing but an instance's account, role and id
    /// is confirmed.
    #[must_use]
    pub fn with_certificates(self, certificates: Option<InstanceCertificates>) -> Self {
        Self { certificates, ..self }
    }

    /// What looks after tasks that have gone.
    pub fn ecs(&self) -> Option<&EcsVerifier> {
        self.ecs.as_ref()
    }

    /// Who the workload is. `binding` is the plane's own name and a nonce that it has given out and not yet taken back.
    ///
    /// # Errors
    /// When anything in the credential is not as it must be, or AWS cannot be asked.
    pub async fn verify(&self, presigned_url: &str, binding: &Binding, claim: &Claim) -> Result<VerifiedAws, AwsError> {
        let proof = Proof::parse(presigned_url, self.clock.now()).map_err(VerifyError::from)?;
        let caller = self.sts.verify(&proof, binding).await?;
        let signature = proof.signature().to_owned();
        match claim {
            Claim::Ecs { task_arn, cluster } => {
                check_claim(task_arn, cluster, &caller)?;
                let Some(ecs) = &self.ecs else {
                    return Ok(VerifiedAws {
                        identity: unverified_task(&caller, cluster),
                        located: false,
                        task: None,
                        instance: None,
                        signature,
                    });
                };
                let task = ecs.verify(&caller, cluster).await?;
                Ok(VerifiedAws { identity: task.identity.clone(), located: true, task: Some(task), instance: None, signature })
            }
            Claim::Ec2 { document, signature: of_document } => {
                let mut identity = instance(&caller)?;
                let instance = self.locate(&caller, document, of_document)?;
                if let Some(instance) = &instance {
                    identity.zone.clone_from(&instance.zone);
                }
                Ok(VerifiedAws { identity, located: instance.is_some(), task: None, instance, signature })
            }
        }
    }

    /// What AWS has signed about the instance whose session `caller` is; `None` where the plane has nothing to verify it with.
    fn locate(&self, caller: &CallerIdentity, document: &[u8], signature: &str) -> Result<Option<InstanceDocument>, AwsError> {
        let unknown = |reason: &dyn std::fmt::Display| {
            tracing::info!(instance = caller.session, %reason, "policies that name regions or zones do not admit this instance");
            Ok(None)
        };
        let Some(certificates) = &self.certificates else {
            return unknown(&"the plane has no certificates of AWS (--aws-instance-certs)");
        };
        if document.is_empty() {
            return unknown(&"it shows no identity document");
        }
        let instance = match certificates.verify(document, signature, self.clock.now()) {
            Ok(instance) => instance,
            Err(error) if error.is_ours() => return unknown(&error),
            Err(error) => return Err(AwsError::Document(error)),
        };
        // Anybody on an instance can read its document, and show it elsewhere.
        let is_caller =
            instance.instance_id == caller.session && instance.account == caller.account && instance.region == caller.region;
        if is_caller {
            return Ok(Some(instance));
        }
        let InstanceDocument { account, instance_id, region, .. } = instance;
        Err(AwsError::OtherInstance {
            document: format!("{region}/{account}/{instance_id}"),
            proof: format!("{}/{}/{}", caller.region, caller.account, caller.session),
        })
    }
}

fn check_claim(task_arn: &str, cluster: &str, caller: &CallerIdentity) -> Result<(), AwsError> {
    let claimed: Option<TaskArn> = task_arn.parse().ok();
    let is_caller = claimed.as_ref().is_some_and(|arn| {
        arn.task_id == caller.session
            && arn.account == caller.account
            && arn.region == caller.region
            && arn.cluster.as_deref().is_none_or(|own| cluster_name(cluster).is_ok_and(|cluster| cluster == own))
    });
    if is_caller {
        return Ok(());
    }
    Err(AwsError::OtherTask {
        claimed: claimed.map_or_else(|| "no ARN of a task".to_owned(), |arn| arn.to_string()),
        region: caller.region.name().to_owned(),
        account: caller.account.clone(),
        session: caller.session.clone(),
    })
}

/// A task of which nobody but the role's trust policy says that it is one.
fn unverified_task(caller: &CallerIdentity, cluster: &str) -> AwsIdentity {
    let cluster = cluster_name(cluster).unwrap_or(UNVERIFIED).to_owned();
    let iam_role = IamRole { name: caller.role.clone() };
    located_nowhere(caller, AwsKind::Ecs(EcsIdentity { task_id: caller.session.clone(), cluster, iam_role }))
}

fn instance(caller: &CallerIdentity) -> Result<AwsIdentity, AwsError> {
    if !is_instance_id(&caller.session) {
        return Err(AwsError::Instance);
    }
    let iam_role = IamRole { name: caller.role.clone() };
    Ok(located_nowhere(caller, AwsKind::Ec2(Ec2Identity { instance_id: caller.session.clone(), iam_role })))
}

fn located_nowhere(caller: &CallerIdentity, kind: AwsKind) -> AwsIdentity {
    AwsIdentity {
        partition: caller.partition.clone(),
        account: caller.account.clone(),
        region: caller.region.name().to_owned(),
        zone: UNVERIFIED.to_owned(),
        kind,
    }
}
