//! Has ECS confirm what STS cannot: that the session of a role is a task that runs, in which cluster and zone, and under which
//! addresses. Anybody whom a role's trust policy lets assume it can call a session by the id of a task; nobody can make ECS say
//! that this task has this role.
//!
//! <https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeTasks.html>

mod answer;
mod client;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Mutex;

use self::answer::Task;
use self::client::EcsClient;
pub use self::client::EcsError;
use super::arn::{Region, RoleArn, cluster_name, is_cluster, is_task_id};
use super::credentials::{AssumeRole, CredentialProvider, CredentialSource};
use super::metadata::LaunchType;
use super::verifier::CallerIdentity;
use crate::fetch::{Client, Endpoint};
use crate::identity::Clock;
use crate::onboarding::identity::{AwsIdentity, AwsKind, EXTERNAL_ZONE, EcsIdentity, IamRole};

/// Roles of task definitions that are remembered; a definition never changes. Beyond that all are forgotten.
const MAX_DEFINITIONS: usize = 1024;
/// Accounts and regions whose credentials are kept. Beyond that all are asked for anew.
const MAX_ACCOUNTS: usize = 256;

/// How ECS is asked.
#[derive(Clone, Debug, Default)]
pub struct EcsOptions {
    /// Asked instead of the region's ECS.
    pub ecs_endpoint: Option<Endpoint>,
    /// Asked instead of the region's STS for credentials of `role_arn`.
    pub sts_endpoint: Option<Endpoint>,
    /// The role in whose name tasks of an account are asked for; `{partition}` and `{account}` stand for those of the task. Our own
    /// credentials, which have to be of the task's account then, where there is none.
    pub role_arn: Option<String>,
}

/// A task that ECS has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedTask {
    /// Who it is.
    pub identity: AwsIdentity,
    /// What it runs on.
    pub launch_type: LaunchType,
    /// Addresses of its network interfaces. Empty for a task without any of its own (host and bridge mode), about whose addresses ECS
    /// says nothing.
    pub addresses: Vec<IpAddr>,
}

/// The rule that a task breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The claim itself is none.
    #[error("cluster {0:?}: expected the name or ARN of an ECS cluster")]
    Cluster(String),
    /// The session's name.
    #[error("the role's session is no ECS task: its name is not a task's id")]
    Session,
    /// ECS does not know it.
    #[error("there is no such task in the cluster {0:?}")]
    NoTask(String),
    /// ECS has answered for another.
    #[error("ECS describes another task, cluster, account or region than was asked for")]
    OtherTask,
    /// It has ended, or is about to.
    #[error("the task is {last}, and to become {desired}")]
    Status {
        /// `lastStatus`.
        last: String,
        /// `desiredStatus`.
        desired: String,
    },
    /// What it runs on.
    #[error("unknown launch type {0:?}")]
    LaunchType(String),
    /// No role at all.
    #[error("the task has no role")]
    NoRole,
    /// Another role: the session is somebody else's who calls himself by the task's id.
    #[error("the task's role is {task:?}, the proof is of {proof:?}")]
    OtherRole {
        /// As ECS says.
        task: String,
        /// As STS says.
        proof: String,
    },
    /// No zone.
    #[error("ECS does not say the task's availability zone")]
    NoZone,
    /// An address that is none of the task's.
    #[error("{0} is no address of the task's network interfaces")]
    Address(IpAddr),
}

/// Why a task is not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It is not what it says.
    #[error("the task is refused: {0}")]
    Denied(#[from] Denied),
    /// ECS could not be asked.
    #[error(transparent)]
    Ecs(#[from] EcsError),
}

impl TaskError {
    /// Whether another try may have more luck.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Ecs(error) if error.is_retryable())
    }
}

/// Asks ECS.
#[derive(Debug)]
pub struct EcsVerifier {
    client: EcsClient,
    credentials: Arc<CredentialProvider>,
    options: EcsOptions,
    clock: Clock,
    /// By ARN of the definition; `None` for one without a role.
    roles: Mutex<HashMap<String, Option<String>>>,
    /// By role and region.
    assumed: Mutex<HashMap<(String, String), Arc<CredentialProvider>>>,
}

impl EcsVerifier {
    /// A verifier that asks with these credentials, which need `ecs:DescribeTasks` and `ecs:DescribeTaskDefinition`, or
    /// `sts:AssumeRole` for a role that has them.
    pub fn new(client: Client, credentials: Arc<CredentialProvider>, options: EcsOptions, clock: Clock) -> Self {
        let client = EcsClient { client, endpoint: options.ecs_endpoint.clone(), clock: clock.clone() };
        Self { client, credentials, options, clock, roles: Mutex::default(), assumed: Mutex::default() }
    }

    /// The task whose role's session `caller` is, in the cluster that it says it is in (name or ARN).
    ///
    /// # Errors
    /// When ECS cannot be asked, or says otherwise.
    pub async fn verify(&self, caller: &CallerIdentity, cluster: &str) -> Result<VerifiedTask, TaskError> {
        let cluster = cluster_name(cluster).map_err(|error| Denied::Cluster(error.text))?;
        let task = self.describe(caller, cluster).await?;
        let live = matches!(task.last_status.as_str(), "PENDING" | "ACTIVATING" | "RUNNING") && task.desired_status == "RUNNING";
        if !live {
            return Err(Denied::Status { last: task.last_status, desired: task.desired_status }.into());
        }
        self.check_role(caller, &task).await?;
        let launch_type = match LaunchType::parse(&task.launch_type) {
            Some(launch_type) => launch_type,
            // Tasks of a capacity provider may have none.
            None if task.launch_type.is_empty() && !task.availability_zone.is_empty() => LaunchType::Ec2,
            None => return Err(Denied::LaunchType(task.launch_type).into()),
        };
        let zone = match launch_type {
            LaunchType::External => EXTERNAL_ZONE.to_owned(),
            _ if task.availability_zone.is_empty() => return Err(Denied::NoZone.into()),
            _ => task.availability_zone.clone(),
        };
        let identity = AwsIdentity {
            partition: caller.partition.clone(),
            account: caller.account.clone(),
            region: caller.region.name().to_owned(),
            zone,
            kind: AwsKind::Ecs(EcsIdentity {
                task_id: caller.session.clone(),
                cluster: cluster.to_owned(),
                iam_role: IamRole { name: caller.role.clone() },
            }),
        };
        Ok(VerifiedTask { identity, launch_type, addresses: task.addresses() })
    }

    /// Whether ECS has stopped the task or forgotten it, which it does an hour after: for who looks after objects of tasks that have
    /// gone.
    ///
    /// # Errors
    /// When ECS cannot be asked.
    pub async fn is_gone(&self, identity: &AwsIdentity) -> Result<bool, TaskError> {
        let AwsKind::Ecs(EcsIdentity { task_id, cluster, iam_role }) = &identity.kind else { return Ok(false) };
        let region: Region = identity.region.parse().map_err(|_| Denied::OtherTask)?;
        let caller = CallerIdentity {
            partition: identity.partition.clone(),
            account: identity.account.clone(),
            role: iam_role.name.clone(),
            session: task_id.clone(),
            region,
        };
        match self.describe(&caller, cluster).await {
            Ok(task) => Ok(task.last_status == "STOPPED"),
            Err(TaskError::Denied(Denied::NoTask(_))) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn describe(&self, caller: &CallerIdentity, cluster: &str) -> Result<Task, TaskError> {
        if !is_task_id(&caller.session) {
            return Err(Denied::Session.into());
        }
        if !is_cluster(cluster) {
            return Err(Denied::Cluster(cluster.chars().take(256).collect()).into());
        }
        let credentials = self.credentials_for(caller).await.credentials().await.map_err(EcsError::Credentials)?;
        let found = self.client.describe_task(&credentials, &caller.region, cluster, &caller.session).await?;
        let task = found.ok_or_else(|| Denied::NoTask(cluster.to_owned()))?;
        if !task.is(caller, cluster) {
            return Err(Denied::OtherTask.into());
        }
        Ok(task)
    }

    async fn check_role(&self, caller: &CallerIdentity, task: &Task) -> Result<(), TaskError> {
        let overridden = task.overrides.task_role_arn.clone().filter(|role| !role.is_empty());
        let role = match overridden {
            Some(role) => Some(role),
            None => self.role_of(caller, &task.task_definition_arn).await?,
        };
        let role: RoleArn = role.and_then(|role| role.parse().ok()).ok_or(Denied::NoRole)?;
        if role.name == caller.role && role.account == caller.account {
            return Ok(());
        }
        let task = format!("{}/{}", role.account, role.name);
        Err(Denied::OtherRole { task, proof: format!("{}/{}", caller.account, caller.role) }.into())
    }

    async fn role_of(&self, caller: &CallerIdentity, definition: &str) -> Result<Option<String>, TaskError> {
        if let Some(role) = self.roles.lock().await.get(definition) {
            return Ok(role.clone());
        }
        let credentials = self.credentials_for(caller).await.credentials().await.map_err(EcsError::Credentials)?;
        let role = self.client.describe_task_definition(&credentials, &caller.region, definition).await?;
        let mut roles = self.roles.lock().await;
        if roles.len() >= MAX_DEFINITIONS {
            roles.clear();
        }
        roles.insert(definition.to_owned(), role.clone());
        Ok(role)
    }

    /// Credentials for the caller's account.
    async fn credentials_for(&self, caller: &CallerIdentity) -> Arc<CredentialProvider> {
        let Some(template) = &self.options.role_arn else { return self.credentials.clone() };
        let role_arn = template.replace("{partition}", &caller.partition).replace("{account}", &caller.account);
        let key = (role_arn.clone(), caller.region.name().to_owned());
        let mut assumed = self.assumed.lock().await;
        if assumed.len() >= MAX_ACCOUNTS && !assumed.contains_key(&key) {
            assumed.clear();
        }
        let provider = assumed.entry(key).or_insert_with(|| {
            let assume = AssumeRole {
                client: self.client.client.clone(),
                base: self.credentials.clone(),
                region: caller.region.clone(),
                endpoint: self.options.sts_endpoint.clone(),
                role_arn,
            };
            Arc::new(CredentialProvider::new(CredentialSource::AssumeRole(assume), self.clock.clone()))
        });
        provider.clone()
    }
}

impl VerifiedTask {
    /// Whether all these are addresses of the task's network interfaces. A task without any of its own may say what it likes: it speaks
    /// for the machine that it runs on, whose addresses ECS does not say.
    ///
    /// # Errors
    /// The first that is none of them.
    pub fn check_addresses(&self, addresses: &[IpAddr]) -> Result<(), Denied> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        let other = addresses.iter().find(|address| !self.addresses.contains(address));
        other.map_or(Ok(()), |address| Err(Denied::Address(*address)))
    }
}
