//! What AWS says about a workload, and how a workload proves through AWS who it is.
//!
//! On the workload's side: [`metadata`] (ECS) and [`imds`] (EC2) say where it runs, [`credentials`] are those of its role,
//! [`caller_identity`] makes a proof of them, signed by [`sigv4`], and [`web_identity`] has AWS make a token. On the side of who wants to know: [`verifier`] has STS confirm
//! the proof, [`ecs`] has ECS confirm the rest, [`instance`] verifies what AWS has signed about an instance. [`arn`] are the names.

pub mod arn;
pub mod caller_identity;
pub mod credentials;
pub mod ecs;
pub mod imds;
pub mod instance;
pub mod metadata;
pub mod sigv4;
pub mod verifier;
pub mod web_identity;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};

use crate::fetch::{Client, Endpoint, FetchError, Limits};

/// For endpoints on the same machine, as in AWS's own clients.
const LOCAL: Limits = Limits { timeout: Duration::from_secs(2), max_body: 1024 * 1024 };
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Why an endpoint on this machine has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Another answer than 200.
    #[error("{0} answered {1}")]
    Status(Endpoint, StatusCode),
}

/// Asks an endpoint on this machine, three times if need be: it may be busy or not up yet.
async fn ask(client: &Client, endpoint: &Endpoint, request: &Request<Bytes>) -> Result<Bytes, AskError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match client.send(endpoint, request.clone(), LOCAL).await {
            Ok(answer) if answer.status() == StatusCode::OK => return Ok(answer.into_body()),
            Ok(answer) => AskError::Status(endpoint.clone(), answer.status()),
            Err(error) => error.into(),
        };
        let passing = match &error {
            AskError::Fetch(_) => true,
            AskError::Status(_, status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
        };
        if tries == TRIES || !passing {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A variable of the environment, or of what a test has for one; an empty one counts as not set.
fn variable(environment: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    environment(name).filter(|value| !value.is_empty())
}
