//! The metadata service of an EC2 instance, version 2: a session first, so that no confused proxy can be made to ask it.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderValue, Request};
use serde::Deserialize;

use super::arn::Region;
use super::credentials::{CredentialError, Credentials, RawCredentials};
use super::{AskError, ask, variable};
use crate::fetch::{Client, Endpoint, Limits, quiet};
use crate::onboarding::identity::is_account;

const DEFAULT: &str = "http://169.254.169.254";
const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";
const SESSION_SECONDS: &str = "300";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// Whether this is EC2 at all is asked once, with less patience.
const PROBE: Limits = Limits { timeout: std::time::Duration::from_secs(1), max_body: 64 * 1024 };

/// The metadata service.
#[derive(Clone, Debug)]
pub struct Imds {
    client: Client,
    endpoint: Endpoint,
    disabled: bool,
}

/// Why the metadata service says nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImdsError {
    /// `AWS_EC2_METADATA_DISABLED`.
    #[error("{DISABLED} is true")]
    Disabled,
    /// No answer, or no.
    #[error("instance metadata: {0}; in a container it is out of reach while the instance's hop limit is 1")]
    Ask(#[from] AskError),
    /// Not what was expected.
    #[error("instance metadata {path}: {reason}")]
    Answer {
        /// What was asked for.
        path: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// The instance identity document with AWS's signature, for others to verify. It has no nonce: it proves where an instance is, not
/// that who shows it is that instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDocument {
    /// What it says.
    pub document: InstanceDocument,
    /// As it was served.
    pub text: Vec<u8>,
    /// PKCS #7 with RSA 2048 (`rsa2048`), base64 as it was served.
    pub signature: String,
}

/// The instance identity document, as far as it is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceDocument {
    /// 12 digits.
    pub account: String,
    /// Such as `i-1234567890abcdef0`.
    pub instance_id: String,
    /// Where it runs.
    pub region: Region,
    /// Such as `us-east-1a`.
    pub zone: String,
    /// Of its first interface.
    pub private_ip: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    account_id: String,
    instance_id: String,
    region: String,
    availability_zone: String,
    private_ip: IpAddr,
}

impl InstanceDocument {
    /// From its text.
    ///
    /// # Errors
    /// When it does not say which instance it is about.
    pub fn parse(text: &[u8]) -> Result<Self, ImdsError> {
        let wrong = |reason: String| ImdsError::Answer { path: DOCUMENT, reason };
        let raw: RawDocument = serde_json::from_slice(text).map_err(|error| wrong(quiet(&error)))?;
        let region: Region = raw.region.parse().map_err(|error: super::arn::ArnError| wrong(error.to_string()))?;
        if !is_account(&raw.account_id) || !is_instance_id(&raw.instance_id) || !raw.availability_zone.starts_with(region.name())
        {
            return Err(wrong("accountId, instanceId or availabilityZone is not what it should be".to_owned()));
        }
        Ok(Self {
            account: raw.account_id,
            instance_id: raw.instance_id,
            region,
            zone: raw.availability_zone,
            private_ip: raw.private_ip,
        })
    }
}

impl Imds {
    /// Where `AWS_EC2_METADATA_SERVICE_ENDPOINT` says, else where it always is.
    ///
    /// # Errors
    /// When that is no URL of a server.
    pub fn from_environment(environment: &dyn Fn(&str) -> Option<String>, client: &Client) -> Result<Self, CredentialError> {
        let endpoint = variable(environment, ENDPOINT).unwrap_or_else(|| DEFAULT.to_owned());
        let endpoint = endpoint.parse().map_err(|error: crate::fetch::EndpointError| CredentialError::Variable {
            variable: ENDPOINT,
            reason: error.to_string(),
        })?;
        let disabled = variable(environment, DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(Self { client: client.clone(), endpoint, disabled })
    }

    /// Whether there is such a service: whether this is EC2. Takes a second where it is not.
    pub async fn is_available(&self) -> bool {
        if self.disabled {
            return false;
        }
        match self.client.send(&self.endpoint, session_request(), PROBE).await {
            Ok(answer) => answer.status().is_success(),
            Err(_) => false,
        }
    }

    /// The instance's identity document.
    ///
    /// # Errors
    /// When the service does not answer, or with something else.
    pub async fn document(&self) -> Result<SignedDocument, ImdsError> {
        const SIGNATURE: &str = "/latest/dynamic/instance-identity/rsa2048";
        let text = self.get(DOCUMENT).await?.to_vec();
        let document = InstanceDocument::parse(&text)?;
        let signature = String::from_utf8(self.get(SIGNATURE).await?.to_vec());
        let signature = signature.map_err(|_| ImdsError::Answer { path: SIGNATURE, reason: "no base64".to_owned() })?;
        Ok(SignedDocument { document, text, signature })
    }

    /// The credentials of the role of its instance profile.
    pub(super) async fn role_credentials(&self) -> Result<Credentials, CredentialError> {
        const ORIGIN: &str = "instance metadata service";
        let wrong = |reason: String| CredentialError::Answer { origin: ORIGIN, reason };
        let ask = |error: ImdsError| match error {
            ImdsError::Ask(error) => error.into(),
            error => wrong(error.to_string()),
        };
        let roles = self.get(ROLES).await.map_err(ask)?;
        let role = std::str::from_utf8(&roles).ok().and_then(|roles| roles.lines().next()).map(str::trim);
        let role = role.filter(|role| !role.is_empty() && !role.contains('/')).ok_or_else(|| wrong("no role".to_owned()))?;
        RawCredentials::from_json(&self.get(&format!("{ROLES}{role}")).await.map_err(ask)?, ORIGIN)
    }

    async fn get(&self, path: &str) -> Result<Bytes, ImdsError> {
        if self.disabled {
            return Err(ImdsError::Disabled);
        }
        let session = ask(&self.client, &self.endpoint, &session_request()).await?;
        let wrong = |reason: &str| ImdsError::Answer { path: "/latest/api/token", reason: reason.to_owned() };
        let mut session = HeaderValue::from_maybe_shared(session).map_err(|_| wrong("no token"))?;
        session.set_sensitive(true);
        let request = Request::get(path).header("x-aws-ec2-metadata-token", session).body(Bytes::new());
        Ok(ask(&self.client, &self.endpoint, &request.map_err(|_| wrong("no path can be made of the role"))?).await?)
    }
}

fn session_request() -> Request<Bytes> {
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = http::Method::PUT;
    *request.uri_mut() = http::Uri::from_static("/latest/api/token");
    request.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from_static(SESSION_SECONDS));
    request
}

/// Whether this can be the id of an instance.
pub(crate) fn is_instance_id(text: &str) -> bool {
    let digits = text.strip_prefix("i-").unwrap_or_default();
    matches!(digits.len(), 8 | 17) && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"accountId": "123456789012", "instanceId": "i-0123456789abcdef0", "region": "us-east-1",
        "availabilityZone": "us-east-1b", "privateIp": "10.0.0.7", "imageId": null}"#;

    #[test]
    fn a_document_says_which_instance_it_is_about_and_where_that_is() {
        let document = InstanceDocument::parse(DOCUMENT.as_bytes()).unwrap();
        assert_eq!((document.region.name(), document.zone.as_str()), ("us-east-1", "us-east-1b"));
        for (from, to) in [
            ("\"123456789012\"", "\"12345678901\""),
            ("\"123456789012\"", "123456789012"),
            ("i-0123456789abcdef0", "mi-0123456789abcdef0"),
            ("i-0123456789abcdef0", "i-0123456789ABCDEF0"),
            ("\"region\": \"us-east-1\"", "\"region\": \"moon-base-1\""),
            // A zone of another region: policies name either.
            ("us-east-1b", "us-west-2b"),
            ("10.0.0.7", "here"),
            ("instanceId", "id"),
            ("\"imageId\"", "\"region\": \"us-west-2\", \"imageId\""),
        ] {
            assert_ne!(DOCUMENT.replace(from, to), DOCUMENT, "{from}");
            assert!(InstanceDocument::parse(DOCUMENT.replace(from, to).as_bytes()).is_err(), "{from} {to}");
        }
    }
}
