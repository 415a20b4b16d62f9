//! JSON Web Tokens (Envoy `extensions.filters.http.jwt_authn.v3`), the form that RequestAuthentication takes.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{RouteMatch, StringMatcher};

/// One `envoy.filters.http.jwt_authn` filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JwtAuthn {
    /// Its name in the chain, by which routes mean it.
    pub name: String,
    /// Who issues tokens, by the name that requirements use.
    pub providers: BTreeMap<String, JwtProvider>,
    /// The first one that matches decides; a request that none matches needs no token.
    pub rules: Vec<JwtRule>,
    /// Requirements that routes and rules name.
    pub requirement_map: BTreeMap<String, JwtRequirement>,
    /// CORS preflights, which never carry credentials, pass.
    pub bypass_cors_preflight: bool,
    /// Refusals have neither body nor `www-authenticate`.
    pub strip_failure_response: bool,
    /// Label of the filter's metrics, to tell several filters of a listener apart.
    pub stat_prefix: String,
}

/// Who issues tokens, where they are found, what is made of them (`JwtProvider`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JwtProvider {
    /// What `iss` must be; empty allows any.
    pub issuer: String,
    /// One of these must be in `aud`; empty allows any. `http://`, `https://` and a final slash do not count.
    pub audiences: Vec<String>,
    /// What `sub` must be.
    pub subjects: Option<StringMatcher>,
    /// `exp` must be there.
    pub require_expiration: bool,
    /// `exp` must be there and nearer than this.
    pub max_lifetime: Option<Duration>,
    /// The keys.
    pub jwks: Jwks,
    /// Headers that hold tokens. Without any location: `authorization: Bearer ` and the query parameter `access_token`.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that hold tokens.
    pub from_params: Vec<String>,
    /// Cookies that hold tokens.
    pub from_cookies: Vec<String>,
    /// A verified token stays in the request (cookies always stay).
    pub forward: bool,
    /// Lower-case name of the header that gets the payload, as it is in the token.
    pub forward_payload_header: Option<String>,
    /// That payload is padded with `=`.
    pub pad_forward_payload_header: bool,
    /// Key of the payload in the dynamic metadata.
    pub payload_in_metadata: Option<String>,
    /// Claims that become a list of words there.
    pub space_delimited_claims: Vec<String>,
    /// Key of the token's header in the dynamic metadata.
    pub header_in_metadata: Option<String>,
    /// Key of the reason of a failure in the dynamic metadata.
    pub failed_status_in_metadata: Option<String>,
    /// Claims that become headers.
    pub claim_to_headers: Vec<ClaimToHeader>,
    /// How far the clocks may differ (Envoy: 60 s).
    pub clock_skew: Duration,
    /// The route is chosen anew when claims were put into headers or metadata.
    pub clear_route_cache: bool,
    /// Remembers verified tokens.
    pub cache: Option<JwtCache>,
}

impl JwtProvider {
    /// A provider with Envoy's defaults for everything else.
    pub fn new(issuer: impl Into<String>, jwks: Jwks) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: Vec::new(),
            subjects: None,
            require_expiration: false,
            max_lifetime: None,
            jwks,
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            forward: false,
            forward_payload_header: None,
            pad_forward_payload_header: false,
            payload_in_metadata: None,
            space_delimited_claims: Vec::new(),
            header_in_metadata: None,
            failed_status_in_metadata: None,
            claim_to_headers: Vec::new(),
            clock_skew: Duration::from_secs(60),
            clear_route_cache: false,
            cache: None,
        }
    }
}

/// A header that holds a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JwtHeader {
    /// Lower-case name.
    pub name: String,
    /// What stands before the token (`Bearer `); may be empty.
    pub value_prefix: String,
}

/// A claim and the header that gets it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimToHeader {
    /// Lower-case name of the header.
    pub header: String,
    /// Keys of the claim from the root of the payload.
    pub claim: Vec<String>,
}

/// Bounds of the memory of verified tokens (`JwtCacheConfig`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct JwtCache {
    /// Tokens that are remembered.
    pub size: u32,
    /// Bytes of the longest token that is.
    pub max_token_size: u32,
}

/// Where the keys are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Jwks {
    /// Here.
    Local(LocalJwks),
    /// In a file, which is read when the listener is published.
    File(PathBuf),
    /// At an HTTP server.
    Remote(RemoteJwks),
}

/// A JSON Web Key Set. Keys may be secrets (`oct`): neither logs nor dumps show them.
#[derive(Clone, PartialEq)]
pub struct LocalJwks(pub String);

impl LocalJwks {
    fn fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        format!("JWKS {:016x}", hasher.finish())
    }
}

impl fmt::Debug for LocalJwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl Serialize for LocalJwks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.fingerprint())
    }
}

/// Keys that are fetched (`RemoteJwks`). The cluster decides where the request goes; the authority is only what it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemoteJwks {
    /// The request is said to be about `https`.
    pub https: bool,
    /// Host header.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// Cluster that is asked.
    pub cluster: String,
    /// Deadline of one fetch, its retries included.
    pub timeout: Duration,
    /// How long keys are used (Envoy: 10 minutes).
    pub cache_duration: Duration,
    /// How often a failed fetch is repeated within the deadline.
    pub retries: u32,
    /// First interval of the full-jitter back-off of retries (Envoy: 1 s).
    pub base_interval: Duration,
    /// Cap of the interval.
    pub max_interval: Duration,
    /// Keys are fetched before they are needed, and used until others have come.
    pub async_fetch: Option<JwksAsyncFetch>,
}

/// Fetches in the background (`JwksAsyncFetch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct JwksAsyncFetch {
    /// From a failure to the next attempt (Envoy: 1 s).
    pub failed_refetch_duration: Duration,
}

/// What the requests of some routes need.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JwtRule {
    /// Which requests.
    pub matches: RouteMatch,
    /// What they need; `None` is nothing.
    pub requires: JwtRuleRequirement,
}

/// What a rule asks for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum JwtRuleRequirement {
    /// Nothing: requests pass.
    None,
    /// This.
    Inline(JwtRequirement),
    /// The one of this name in [`JwtAuthn::requirement_map`].
    Named(String),
}

/// What a request needs (`JwtRequirement`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum JwtRequirement {
    /// A valid token of this provider.
    Provider {
        /// Its name.
        name: String,
        /// Takes the place of the provider's audiences, unless empty.
        audiences: Vec<String>,
    },
    /// One of them.
    Any(Vec<JwtRequirement>),
    /// All of them.
    All(Vec<JwtRequirement>),
    /// No token, or valid ones.
    AllowMissing,
    /// Everything passes; what is verified is passed on.
    AllowMissingOrFailed,
    /// Nothing.
    Nothing,
}

/// What a route says in place of the rules (`PerRouteConfig`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum JwtPerRoute {
    /// No token is needed.
    Disabled,
    /// The requirement of this name. One that the filter does not have refuses every request.
    Requirement(String),
}
