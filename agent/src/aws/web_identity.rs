//! Tokens in which AWS says whose role somebody has (`sts:GetWebIdentityToken`), for a plane that is to ask nobody at AWS: it believes
//! the issuer that AWS runs for the account. They say the role, not the session, so that all who have a role are one to the plane.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html>

use std::fmt;

use http::StatusCode;
use serde::Deserialize;

use super::arn::Region;
use super::credentials::{CredentialError, CredentialProvider, form, region, sts_endpoint};
use super::sigv4::{self, Scope};
use super::verifier::error_code;
use crate::fetch::{Client, Endpoint, Limits, quiet};
use crate::identity::{Clock, Token};

const LIMITS: Limits = Limits { timeout: std::time::Duration::from_secs(10), max_body: 64 * 1024 };
const ORIGIN: &str = "STS";
/// The least that AWS gives: a token is shown at once.
const SECONDS: &str = "60";
/// Shorter than `RS256`, and as good.
const ALGORITHM: &str = "ES384";

/// Asks for tokens.
pub struct WebIdentityTokens {
    client: Client,
    credentials: CredentialProvider,
    region: Region,
    endpoint: Endpoint,
    clock: Clock,
}

impl fmt::Debug for WebIdentityTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebIdentityTokens").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl WebIdentityTokens {
    /// With the credentials that AWS's clients would take, of the STS of `AWS_REGION`, or of `AWS_ENDPOINT_URL_STS` instead.
    ///
    /// # Errors
    /// When a variable is missing or cannot be used.
    pub fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
        client: &Client,
        clock: Clock,
    ) -> Result<Self, CredentialError> {
        let region = region(environment)?;
        let endpoint = sts_endpoint(environment)?.unwrap_or_else(|| Endpoint::https(&region.host("sts")));
        let credentials = CredentialProvider::from_environment(environment, client, clock.clone())?;
        Ok(Self { client: client.clone(), credentials, region, endpoint, clock })
    }

    /// A token for `audience`.
    ///
    /// # Errors
    /// When there are no credentials, or STS does not give one.
    pub async fn token(&self, audience: &str) -> Result<Token, CredentialError> {
        let parameters = [
            ("Action", "GetWebIdentityToken"),
            ("Version", "2011-06-15"),
            ("Audience.member.1", audience),
            ("DurationSeconds", SECONDS),
            ("SigningAlgorithm", ALGORITHM),
        ];
        let mut request = form(&self.endpoint, &parameters)?;
        let credentials = self.credentials.credentials().await?;
        let scope = Scope { region: self.region.name(), service: "sts", time: self.clock.now() };
        let wrong = |reason: String| CredentialError::Answer { origin: ORIGIN, reason };
        sigv4::sign(&mut request, &credentials, &scope).map_err(|error| wrong(error.to_string()))?;
        let answer = self.client.send(&self.endpoint, request, LIMITS).await?;
        if answer.status() != StatusCode::OK {
            return Err(CredentialError::NoToken { status: answer.status().as_u16(), code: error_code(answer.body()) });
        }
        let answer: Answer = serde_json::from_slice(answer.body()).map_err(|error| wrong(quiet(&error)))?;
        Ok(Token::new(&answer.response.result.token))
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "GetWebIdentityTokenResponse")]
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "GetWebIdentityTokenResult")]
    result: Given,
}

#[derive(Deserialize)]
struct Given {
    #[serde(rename = "WebIdentityToken")]
    token: String,
}
