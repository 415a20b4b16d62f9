//! Whom a plane believes (`onboarding.workloads.authentication.jwt.issuers[]` of the ControlPlane's `meshExpansion`).

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fetch::Endpoint;

/// What the issuers end in that AWS has for its accounts (`sts:GetWebIdentityToken`).
const AWS_ISSUERS: &str = ".tokens.sts.global.api.aws";
/// The member of their tokens that whoever asks for one can fill.
const REQUEST_TAGS: &str = "request_tags";

/// An issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawIssuer")]
pub struct JwtIssuer {
    /// `iss` of its tokens, letter for letter: an https URL.
    pub issuer: String,
    /// Where its keys are.
    pub keys: KeySource,
    /// Part of the names of its workloads' objects.
    pub short_name: Option<String>,
    /// Where in a token the attributes are that policies match.
    pub attributes: Option<JsonPath>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// At this https URL.
    Remote(String),
    /// These, as JSON.
    Inline(String),
    /// Where its OpenID Connect document says.
    Discovery,
}

/// Why an issuer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// Not https.
    #[error("{field} {value:?}: expected an https URL without user, query and fragment")]
    Url {
        /// `issuer` or `jwksUri`.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// Both.
    #[error("jwksUri and jwks: expected at most one of them")]
    TwoKeySources,
    /// No keys in it.
    #[error("jwks: {0}")]
    Jwks(&'static str),
    /// Not a part of a name.
    #[error("shortName {0:?}: expected lower-case letters and digits, with single dashes between them")]
    ShortName(String),
    /// Not a path.
    #[error("tokenFields.attributes.jsonPath {0:?}: expected a path such as .claims.attributes or $['https://a.example/claims']")]
    JsonPath(String),
    /// AWS repeats in a token what the workload asks it to: that proves nothing.
    #[error("tokenFields.attributes.jsonPath {0:?}: {REQUEST_TAGS} are what a workload says of itself")]
    RequestTags(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawIssuer {
    issuer: String,
    #[serde(alias = "jwks_uri")]
    jwks_uri: Option<String>,
    jwks: Option<String>,
    #[serde(alias = "short_name")]
    short_name: Option<String>,
    #[serde(alias = "token_fields")]
    token_fields: Option<TokenFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFields {
    attributes: Option<TokenField>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenField {
    #[serde(alias = "json_path")]
    json_path: String,
}

impl TryFrom<RawIssuer> for JwtIssuer {
    type Error = IssuerError;

    fn try_from(raw: RawIssuer) -> Result<Self, IssuerError> {
        check_url("issuer", &raw.issuer)?;
        let keys = match (raw.jwks_uri, raw.jwks) {
            (Some(_), Some(_)) => return Err(IssuerError::TwoKeySources),
            (Some(uri), None) => {
                // Its query, if it has one, is part of where it is.
                check_url("jwksUri", uri.split('?').next().unwrap_or_default())?;
                KeySource::Remote(uri)
            }
            (None, Some(jwks)) => {
                skiff_proxy::jwt::check_jwks(&jwks).map_err(IssuerError::Jwks)?;
                KeySource::Inline(jwks)
            }
            (None, None) => KeySource::Discovery,
        };
        if let Some(name) = raw.short_name.as_ref().filter(|name| !is_short_name(name)) {
            return Err(IssuerError::ShortName(name.clone()));
        }
        let path = raw.token_fields.and_then(|fields| fields.attributes).map(|field| field.json_path);
        let is_of_aws = raw.issuer.trim_end_matches('/').ends_with(AWS_ISSUERS);
        let parse = |path: String| match JsonPath::parse(&path) {
            None => Err(IssuerError::JsonPath(path)),
            Some(parsed) if is_of_aws && parsed.0.iter().any(|name| name == REQUEST_TAGS) => Err(IssuerError::RequestTags(path)),
            Some(parsed) => Ok(parsed),
        };
        let attributes = path.map(parse).transpose()?;
        Ok(Self { issuer: raw.issuer, keys, short_name: raw.short_name, attributes })
    }
}

fn check_url(field: &'static str, value: &str) -> Result<(), IssuerError> {
    let is_https = value.parse::<Endpoint>().is_ok_and(|endpoint| endpoint.is_https());
    if is_https { Ok(()) } else { Err(IssuerError::Url { field, value: value.to_owned() }) }
}

fn is_short_name(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
    name.split('-').all(part)
}

/// The way to a member of a token: `.name`, `['name']`, after an optional `$`. No wildcards, no lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath(Vec<String>);

impl JsonPath {
    /// Reads a path; `None` for what is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut names = Vec::new();
        while !rest.is_empty() {
            let name;
            if let Some(after) = rest.strip_prefix("['") {
                (name, rest) = after.split_once("']")?;
            } else if let Some(after) = rest.strip_prefix("[\"") {
                (name, rest) = after.split_once("\"]")?;
            } else {
                let after = rest.strip_prefix('.')?;
                let end = after.find(['.', '[']).unwrap_or(after.len());
                (name, rest) = after.split_at(end);
                if name.contains(['*', ']', '?', '@', '\'', '"', ' ']) {
                    return None;
                }
            }
            if name.is_empty() {
                return None;
            }
            names.push(name.to_owned());
        }
        (!names.is_empty()).then_some(Self(names))
    }

    /// What is there.
    pub fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(claims.get(first)?, |value, name| value.get(name))
    }
}
