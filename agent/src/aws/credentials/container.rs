//! The credentials of a task role, from the endpoint that ECS and EKS Pod Identity name in the environment.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderValue, Request};
use tokio::io::AsyncReadExt;

use super::{CredentialError, Credentials, RawCredentials};
use crate::aws::{ask, variable};
use crate::fetch::{Client, Endpoint};

const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const ECS: &str = "http://169.254.170.2";
/// Where http, which anybody on the way could read, never leaves the machine: ECS and EKS Pod Identity.
const LOCAL_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
const MAX_TOKEN: u64 = 16 * 1024;

/// The endpoint, and what it wants to see.
pub struct ContainerCredentials {
    client: Client,
    endpoint: Endpoint,
    path: String,
    authorization: Authorization,
}

enum Authorization {
    None,
    Value(String),
    /// Read each time: EKS renews it.
    File(PathBuf),
}

impl fmt::Debug for ContainerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The path may be what protects the credentials.
        f.debug_struct("ContainerCredentials").field("endpoint", &self.endpoint.to_string()).finish_non_exhaustive()
    }
}

impl ContainerCredentials {
    /// What the environment names; `None` when it names nothing. The relative URI wins over the full one.
    ///
    /// # Errors
    /// When it names something that credentials must not be asked of.
    pub fn from_environment(
        environment: &dyn Fn(&str) -> Option<String>,
        client: &Client,
    ) -> Result<Option<Self>, CredentialError> {
        let (endpoint, path) = if let Some(relative) = variable(environment, RELATIVE) {
            let wrong = |reason: &str| CredentialError::Variable { variable: RELATIVE, reason: reason.to_owned() };
            if !relative.starts_with('/') {
                return Err(wrong("expected a path"));
            }
            (ECS.parse().map_err(|_| wrong("no endpoint"))?, relative)
        } else if let Some(full) = variable(environment, FULL) {
            full_uri(&full).map_err(|reason| CredentialError::Variable { variable: FULL, reason })?
        } else {
            return Ok(None);
        };
        let authorization = match (variable(environment, TOKEN_FILE), variable(environment, TOKEN)) {
            (Some(path), _) => Authorization::File(path.into()),
            (None, Some(token)) => Authorization::Value(token),
            (None, None) => Authorization::None,
        };
        Ok(Some(Self { client: client.clone(), endpoint, path, authorization }))
    }

    pub(super) async fn fetch(&self) -> Result<Credentials, CredentialError> {
        let request = Request::get(&self.path).header(ACCEPT, "application/json").body(Bytes::new());
        let mut request = request.map_err(|error| CredentialError::Variable { variable: RELATIVE, reason: error.to_string() })?;
        if let Some(authorization) = self.authorization().await? {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        RawCredentials::from_json(&ask(&self.client, &self.endpoint, &request).await?, "credentials endpoint")
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, CredentialError> {
        let (variable, token) = match &self.authorization {
            Authorization::None => return Ok(None),
            Authorization::Value(token) => (TOKEN, token.clone()),
            Authorization::File(path) => {
                let failed = |error: std::io::Error| CredentialError::Variable {
                    variable: TOKEN_FILE,
                    reason: format!("{}: {error}", path.display()),
                };
                let mut token = String::new();
                let file = tokio::fs::File::open(path).await.map_err(failed)?;
                file.take(MAX_TOKEN).read_to_string(&mut token).await.map_err(failed)?;
                (TOKEN_FILE, token)
            }
        };
        // Line breaks would make more headers of it.
        let mut value = HeaderValue::from_str(&token).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
            let reason = "the token is empty or holds line breaks or other control characters".to_owned();
            CredentialError::Variable { variable, reason }
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Server and path of a full URI, if credentials may be asked of it.
fn full_uri(text: &str) -> Result<(Endpoint, String), String> {
    let (place, query) = match text.split_once('?') {
        Some((place, query)) => (place, format!("?{query}")),
        None => (text, String::new()),
    };
    let endpoint: Endpoint = place.parse().map_err(|error: crate::fetch::EndpointError| error.to_string())?;
    let address = endpoint.host().parse::<IpAddr>();
    let is_local = endpoint.host().eq_ignore_ascii_case("localhost")
        || address
            .is_ok_and(|address| address.is_loopback() || LOCAL_HOSTS.iter().any(|host| host.parse::<IpAddr>() == Ok(address)));
    if !endpoint.is_https() && !is_local {
        return Err(format!("{endpoint}: http is for this machine alone ({}, loopback); use https", LOCAL_HOSTS.join(", ")));
    }
    let path = format!("{}{query}", endpoint.path());
    Ok((endpoint, path))
}
