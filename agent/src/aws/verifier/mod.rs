//! Has STS confirm a proof ([`super::caller_identity`]).
//!
//! A proof is a URL from somebody who is not trusted yet, and asking it is a request in our name: [`Proof::parse`] takes nothing
//! but what [`super::caller_identity::prove`] makes, and what is sent is put together anew from its parts. Where it is sent to follows from
//! its region, and the headers are ours.

mod proof;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, StatusCode};
use serde::Deserialize;

pub use self::proof::{Proof, ProofError};
use super::arn::{AssumedRoleArn, Region};
use super::caller_identity::{Binding, NONCE_HEADER, PLANE_HEADER};
use crate::fetch::{Client, Endpoint, FetchError, Limits, quiet};

const LIMITS: Limits = Limits { timeout: std::time::Duration::from_secs(10), max_body: 64 * 1024 };
/// Characters of an error code that reach a log.
const MAX_CODE: usize = 64;

/// Who has signed a proof, as STS says. That the session is the id of a task or an instance holds as long as the role's trust policy
/// lets nobody else assume it; cluster, zone and address are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerIdentity {
    /// Such as `aws`.
    pub partition: String,
    /// 12 digits.
    pub account: String,
    /// The role's name, without path.
    pub role: String,
    /// The session's name.
    pub session: String,
    /// Whose STS was asked. The workload has chosen it.
    pub region: Region,
}

/// Why there is no identity. Never holds the proof.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The proof breaks a rule; nobody was asked.
    #[error("the proof is refused: {0}")]
    Proof(#[from] ProofError),
    /// STS says no: another signature, nonce or plane, expired credentials, or no credentials at all.
    #[error("STS answered {status} {code} to the proof")]
    Denied {
        /// Of HTTP.
        status: u16,
        /// Such as `SignatureDoesNotMatch`.
        code: String,
    },
    /// It is somebody, but no role's session.
    #[error("the proof is of {0:?}, expected the session of an IAM role")]
    NoRole(String),
    /// STS is asked too much. Worth another try.
    #[error("STS throttles requests")]
    Throttled,
    /// No answer, or none that makes sense. Worth another try.
    #[error("STS: {0}")]
    Unavailable(String),
}

impl VerifyError {
    /// Whether the same proof may do later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable(_))
    }
}

impl From<FetchError> for VerifyError {
    fn from(error: FetchError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Asks STS.
#[derive(Clone, Debug)]
pub struct StsVerifier {
    client: Client,
    endpoint: Option<Endpoint>,
}

impl StsVerifier {
    /// Asks the STS of the proof's region, or, where there is an `endpoint`, that instead: a VPC endpoint or a stand-in. The Host
    /// header, which is signed, names the region's STS all the same.
    pub fn new(client: Client, endpoint: Option<Endpoint>) -> Self {
        Self { client, endpoint }
    }

    /// Who has signed the proof, if it is bound to `binding`, which is never taken from the client: the plane's own name, and a nonce
    /// that it has given out and that it takes once.
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub async fn verify(&self, proof: &Proof, binding: &Binding) -> Result<CallerIdentity, VerifyError> {
        let host = proof.region().host(super::caller_identity::SERVICE);
        let endpoint = self.endpoint.clone().unwrap_or_else(|| Endpoint::https(&host));
        let request = Request::get(proof.path_and_query())
            .header(HOST, host)
            .header(ACCEPT, "application/json")
            .header(PLANE_HEADER, binding.plane())
            .header(NONCE_HEADER, binding.nonce())
            .body(Bytes::new())
            .map_err(|_| VerifyError::Unavailable("no request can be made of the proof".to_owned()))?;
        let answer = self.client.send(&endpoint, request, LIMITS).await?;
        match answer.status() {
            StatusCode::OK => identity(answer.body(), proof.region()),
            _ if is_throttling(answer.status(), answer.body()) => Err(VerifyError::Throttled),
            status if status.is_client_error() => {
                Err(VerifyError::Denied { status: status.as_u16(), code: error_code(answer.body()) })
            }
            status => Err(VerifyError::Unavailable(format!("status {status}"))),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "GetCallerIdentityResponse")]
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "GetCallerIdentityResult")]
    result: CallerResult,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CallerResult {
    account: String,
    arn: String,
    user_id: String,
}

fn identity(body: &[u8], region: &Region) -> Result<CallerIdentity, VerifyError> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| VerifyError::Unavailable(quiet(&error)))?;
    let CallerResult { account, arn, user_id } = answer.response.result;
    let caller: AssumedRoleArn = arn.parse().map_err(|error: super::arn::ArnError| VerifyError::NoRole(error.text))?;
    // What cannot be would mean that this is not STS.
    let coherent = caller.account == account
        && caller.partition == region.partition().id
        && user_id.rsplit_once(':').is_some_and(|(_, session)| session == caller.session);
    if !coherent {
        return Err(VerifyError::Unavailable("an answer that contradicts itself".to_owned()));
    }
    let AssumedRoleArn { partition, account, role, session } = caller;
    Ok(CallerIdentity { partition, account, role, session, region: region.clone() })
}

/// Whether AWS asks for fewer requests.
pub(super) fn is_throttling(status: StatusCode, body: &[u8]) -> bool {
    let code = error_code(body);
    status == StatusCode::TOO_MANY_REQUESTS
        || code.starts_with("Throttl")
        || matches!(code.as_str(), "RequestLimitExceeded" | "TooManyRequestsException" | "SlowDown")
}

/// The code of an error, in any of AWS's JSON forms, else `unknown`. Its message is left out: it may repeat what was sent.
pub(super) fn error_code(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "Error")]
        error: Option<Inner>,
        #[serde(rename = "__type")]
        kind: Option<String>,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(rename = "Code")]
        code: String,
    }
    let body = serde_json::from_slice::<Body>(body).ok();
    let code = body.and_then(|body| body.error.map(|error| error.code).or(body.kind)).unwrap_or_default();
    // `com.amazonaws.ecs#AccessDeniedException`
    let code: String = code.rsplit('#').next().unwrap_or_default().chars().take(MAX_CODE).collect();
    let is_code = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
    if is_code { code } else { "unknown".to_owned() }
}
