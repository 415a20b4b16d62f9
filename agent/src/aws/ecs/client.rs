//! The two questions, over AWS's JSON 1.1 protocol.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::{DescribeTaskDefinition, DescribeTasks, Task};
use crate::aws::arn::Region;
use crate::aws::credentials::{CredentialError, Credentials};
use crate::aws::sigv4::{self, Scope, SignError};
use crate::aws::verifier::{error_code, is_throttling};
use crate::fetch::{Client, Endpoint, FetchError, Limits, quiet};
use crate::identity::Clock;

const SERVICE: &str = "ecs";
const LIMITS: Limits = Limits { timeout: std::time::Duration::from_secs(10), max_body: 1024 * 1024 };

/// Why ECS could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum EcsError {
    /// There is nothing to ask with.
    #[error("no credentials to ask ECS with: {0}")]
    Credentials(#[source] CredentialError),
    /// They cannot be used.
    #[error("ECS: {0}")]
    Sign(#[from] SignError),
    /// No answer.
    #[error("ECS: {0}")]
    Fetch(#[from] FetchError),
    /// It is asked too much.
    #[error("ECS throttles requests")]
    Throttled,
    /// It says no to us, not to the task.
    #[error("ECS answered {status} {code} to {action}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// Such as `AccessDeniedException`.
        code: String,
        /// What was asked.
        action: &'static str,
    },
    /// Not what was expected.
    #[error("ECS: the answer to {action} cannot be read: {reason}")]
    Answer {
        /// What was asked.
        action: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl EcsError {
    /// Whether another try may have more luck.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Credentials(_) | Self::Fetch(_) | Self::Throttled => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Sign(_) | Self::Answer { .. } => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct EcsClient {
    pub(super) client: Client,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) clock: Clock,
}

impl EcsClient {
    /// A task; `None` when there is none of this id in this cluster, or no such cluster.
    pub(super) async fn describe_task(
        &self,
        credentials: &Credentials,
        region: &Region,
        cluster: &str,
        task_id: &str,
    ) -> Result<Option<Task>, EcsError> {
        let question = json!({ "cluster": cluster, "tasks": [task_id] });
        match self.ask::<DescribeTasks>(credentials, region, "DescribeTasks", &question).await {
            Ok(answer) => Ok(answer.tasks.into_iter().next()),
            Err(EcsError::Refused { code, .. }) if code == "ClusterNotFoundException" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The role of a task definition, if it has one.
    pub(super) async fn describe_task_definition(
        &self,
        credentials: &Credentials,
        region: &Region,
        arn: &str,
    ) -> Result<Option<String>, EcsError> {
        let question = json!({ "taskDefinition": arn });
        let answer: DescribeTaskDefinition = self.ask(credentials, region, "DescribeTaskDefinition", &question).await?;
        Ok(answer.task_definition.task_role_arn.filter(|role| !role.is_empty()))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        credentials: &Credentials,
        region: &Region,
        action: &'static str,
        question: &Value,
    ) -> Result<T, EcsError> {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| Endpoint::https(&region.host(SERVICE)));
        let mut request = Request::post("/")
            .header(HOST, endpoint.authority())
            .header(CONTENT_TYPE, "application/x-amz-json-1.1")
            .header("x-amz-target", format!("AmazonEC2ContainerServiceV20141113.{action}"))
            .body(Bytes::from(question.to_string()))
            .map_err(|_| SignError)?;
        sigv4::sign(&mut request, credentials, &Scope { region: region.name(), service: SERVICE, time: self.clock.now() })?;
        let answer = self.client.send(&endpoint, request, LIMITS).await?;
        match answer.status() {
            StatusCode::OK => {
                serde_json::from_slice(answer.body()).map_err(|error| EcsError::Answer { action, reason: quiet(&error) })
            }
            status if is_throttling(status, answer.body()) => Err(EcsError::Throttled),
            status => Err(EcsError::Refused { status: status.as_u16(), code: error_code(answer.body()), action }),
        }
    }
}
