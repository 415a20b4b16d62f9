//! Credentials of a role that STS gives to whom its trust policy names: for a token of Kubernetes, or for other credentials.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use serde::Deserialize;

use super::{CredentialError, CredentialProvider, Credentials, RawCredentials};
use crate::aws::arn::Region;
use crate::aws::sigv4::{self, Scope};
use crate::aws::variable;
use crate::aws::verifier::error_code;
use crate::fetch::{Client, Endpoint, Limits, quiet};
use crate::identity::TokenSource;

const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), max_body: 64 * 1024 };
/// How STS and CloudTrail call us.
const SESSION_NAME: &str = "skiff-onboarding-plane";

/// A role for a service account of Kubernetes (EKS: IAM roles for service accounts).
pub struct WebIdentity {
    client: Client,
    endpoint: Endpoint,
    role_arn: String,
    session_name: String,
    token: TokenSource,
}

impl fmt::Debug for WebIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebIdentity").field("role_arn", &self.role_arn).finish_non_exhaustive()
    }
}

impl WebIdentity {
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_ROLE_SESSION_NAME`, `AWS_REGION` and `AWS_ENDPOINT_URL_STS`; `None`
    /// without the first.
    ///
    /// # Errors
    /// When one of them is missing or wrong.
    pub fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
        client: &Client,
    ) -> Result<Option<Self>, CredentialError> {
        let Some(file) = variable(environment, "AWS_WEB_IDENTITY_TOKEN_FILE") else { return Ok(None) };
        let role_arn = variable(environment, "AWS_ROLE_ARN")
            .ok_or_else(|| wrong("AWS_ROLE_ARN", "not set, while AWS_WEB_IDENTITY_TOKEN_FILE is"))?;
        let endpoint = match sts_endpoint(environment)? {
            Some(endpoint) => endpoint,
            None => Endpoint::https(&region(environment)?.host("sts")),
        };
        let session_name = variable(environment, "AWS_ROLE_SESSION_NAME").unwrap_or_else(|| SESSION_NAME.to_owned());
        let token = TokenSource::File(PathBuf::from(file));
        Ok(Some(Self { client: client.clone(), endpoint, role_arn, session_name, token }))
    }

    pub(super) async fn fetch(&self) -> Result<Credentials, CredentialError> {
        let token = self
            .token
            .current()
            .await
            .map_err(|error| CredentialError::Variable { variable: "AWS_WEB_IDENTITY_TOKEN_FILE", reason: error.to_string() })?;
        let parameters = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", &self.role_arn),
            ("RoleSessionName", &self.session_name),
            ("WebIdentityToken", token.expose()),
        ];
        let request = form(&self.endpoint, &parameters)?;
        ask_sts(&self.client, &self.endpoint, request, &self.role_arn).await
    }
}

/// A role for credentials that there are already: tasks of other accounts are asked for in its name.
#[derive(Debug)]
pub struct AssumeRole {
    /// Sends the requests.
    pub client: Client,
    /// Whose trust the role's policy has.
    pub base: Arc<CredentialProvider>,
    /// Whose STS is asked.
    pub region: Region,
    /// Asked instead of the region's STS.
    pub endpoint: Option<Endpoint>,
    /// The role.
    pub role_arn: String,
}

impl AssumeRole {
    pub(super) async fn fetch(&self, now: SystemTime) -> Result<Credentials, CredentialError> {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| Endpoint::https(&self.region.host("sts")));
        let parameters = [
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", &*self.role_arn),
            ("RoleSessionName", SESSION_NAME),
        ];
        let mut request = form(&endpoint, &parameters)?;
        let base = self.base.credentials().await?;
        let scope = Scope { region: self.region.name(), service: "sts", time: now };
        sigv4::sign(&mut request, &base, &scope)
            .map_err(|error| CredentialError::Answer { origin: "base of a role", reason: error.to_string() })?;
        ask_sts(&self.client, &endpoint, request, &self.role_arn).await
    }
}

fn wrong(variable: &'static str, reason: &str) -> CredentialError {
    CredentialError::Variable { variable, reason: reason.to_owned() }
}

/// `AWS_REGION`, else `AWS_DEFAULT_REGION`.
pub(in crate::aws) fn region(environment: &dyn Fn(&str) -> Option<String>) -> Result<Region, CredentialError> {
    let region = variable(environment, "AWS_REGION").or_else(|| variable(environment, "AWS_DEFAULT_REGION"));
    let region = region.and_then(|region| region.parse::<Region>().ok());
    region.ok_or_else(|| wrong("AWS_REGION", "not set to a known region"))
}

/// `AWS_ENDPOINT_URL_STS`: asked instead of the region's STS.
pub(in crate::aws) fn sts_endpoint(environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<Endpoint>, CredentialError> {
    let url = variable(environment, "AWS_ENDPOINT_URL_STS");
    url.map(|url| url.parse().map_err(|_| wrong("AWS_ENDPOINT_URL_STS", "no URL of a server"))).transpose()
}

/// A request to STS, not yet signed.
pub(in crate::aws) fn form(endpoint: &Endpoint, parameters: &[(&str, &str)]) -> Result<Request<Bytes>, CredentialError> {
    let parameters: Vec<_> = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Request::post("/")
        .header(HOST, endpoint.authority())
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::from(sigv4::query_string(&parameters)))
        .map_err(|error| CredentialError::Answer { origin: "STS", reason: error.to_string() })
}

async fn ask_sts(
    client: &Client,
    endpoint: &Endpoint,
    request: Request<Bytes>,
    role_arn: &str,
) -> Result<Credentials, CredentialError> {
    let answer = client.send(endpoint, request, LIMITS).await?;
    if answer.status() != StatusCode::OK {
        let (status, code, role) = (answer.status().as_u16(), error_code(answer.body()), role_arn.to_owned());
        return Err(CredentialError::Refused { status, code, role });
    }
    let answer: AnyResponse = serde_json::from_slice(answer.body())
        .map_err(|error| CredentialError::Answer { origin: "STS", reason: quiet(&error) })?;
    let (AnyResponse::AssumeRoleResponse(Response { result })
    | AnyResponse::AssumeRoleWithWebIdentityResponse(Response { result })) = answer;
    result.credentials.parse("STS")
}

#[derive(Deserialize)]
enum AnyResponse {
    AssumeRoleResponse(Response),
    AssumeRoleWithWebIdentityResponse(Response),
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "AssumeRoleResult", alias = "AssumeRoleWithWebIdentityResult")]
    result: AssumeResult,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssumeResult {
    credentials: RawCredentials,
}
