//! `security.istio.io` RequestAuthentication.

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{GoDuration, Ignored};
use super::Selector;
use crate::translate::uri::HttpUri;

/// [RequestAuthentication](https://istio.io/latest/docs/reference/config/security/request_authentication/).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct RequestAuthentication {
    pub(in super::super) selector: Option<Selector>,
    pub(in super::super) target_ref: Option<Ignored>,
    #[serde(default)]
    pub(in super::super) target_refs: Vec<Ignored>,
    #[serde(default)]
    pub(in super::super) jwt_rules: Vec<Located<JwtRule>>,
}

/// [JWTRule](https://istio.io/latest/docs/reference/config/security/jwt/).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct JwtRule {
    pub(in super::super) issuer: String,
    #[serde(default)]
    pub(in super::super) audiences: Vec<String>,
    #[serde(alias = "jwks_uri")]
    pub(in super::super) jwks_uri: Option<JwksUri>,
    pub(in super::super) jwks: Option<Jwks>,
    #[serde(default)]
    pub(in super::super) from_headers: Vec<FromHeader>,
    #[serde(default)]
    pub(in super::super) from_params: Vec<String>,
    #[serde(default)]
    pub(in super::super) from_cookies: Vec<String>,
    pub(in super::super) output_payload_to_header: Option<HeaderName>,
    #[serde(default)]
    pub(in super::super) output_claim_to_headers: Vec<ClaimToHeader>,
    #[serde(default)]
    pub(in super::super) forward_original_token: bool,
    pub(in super::super) timeout: Option<GoDuration>,
    #[serde(default)]
    pub(in super::super) space_delimited_claims: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct FromHeader {
    pub(in super::super) name: HeaderName,
    #[serde(default)]
    pub(in super::super) prefix: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ClaimToHeader {
    pub(in super::super) header: HeaderName,
    pub(in super::super) claim: String,
}

/// Lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct HeaderName(pub(in super::super) String);

impl<'de> Deserialize<'de> for HeaderName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match http::HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) => Ok(Self(name.as_str().to_owned())),
            Err(_) => Err(serde::de::Error::custom(format_args!("{text:?}: expected a header name"))),
        }
    }
}

/// Where keys are fetched.
#[derive(Clone, Debug)]
pub(in super::super) struct JwksUri(pub(in super::super) HttpUri);

impl<'de> Deserialize<'de> for JwksUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        HttpUri::parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Keys that stand here.
#[derive(Clone)]
pub(in super::super) struct Jwks(pub(in super::super) String);

// By hand, so that a key can never reach a log.
impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Jwks(..)")
    }
}

impl<'de> Deserialize<'de> for Jwks {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        skiff_proxy::jwt::check_jwks(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(text))
    }
}
