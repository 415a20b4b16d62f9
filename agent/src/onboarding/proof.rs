//! The proof of who a workload is, for one challenge of the plane.

use std::path::PathBuf;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;

use super::config::AgentConfiguration;
use crate::identity::TokenSource;

/// What the environment says about who we are.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `SKIFF_ONBOARDING_TOKEN_FILE`: a JSON Web Token of an issuer that the plane knows.
    pub token_file: Option<PathBuf>,
}

/// Makes credentials, a fresh one for each challenge.
pub(super) struct Credentials {
    token: Option<TokenSource>,
}

/// A credential, and what has made it.
pub(super) struct Procured {
    pub(super) by: &'static str,
    pub(super) credential: Credential,
}

impl Credentials {
    pub(super) fn new(_agent: &AgentConfiguration, environment: &Environment) -> Self {
        Self { token: environment.token_file.clone().map(TokenSource::File) }
    }

    pub(super) async fn procure(&self, _plane_uid: &str, _nonce: &str) -> Result<Procured, String> {
        let Some(token) = &self.token else { return Err("no platform".to_owned()) };
        let token = token.current().await.map_err(|error| error.to_string())?.expose().to_owned();
        Ok(Procured { by: "jwt-credential", credential: Credential::Jwt(proto::JwtCredential { token }) })
    }
}
