//! The plane of a quickstart: what `skiff plane` runs, with an issuer of tokens that vouches for the two workloads.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use skiff_proxy::config::TrustDomain;

use super::bookinfo::{self, DETAILS, Member, RATINGS};
use super::folder::Folder;
use crate::exit::Failure;
use crate::fetch::{Client, TrustedRoots};
use crate::identity::Clock;
use crate::metrics::Metrics;
use crate::onboarding::jwt::JwtVerifier;
use crate::plane::store::EmbeddedStore;
use crate::plane::{
    Authority, HISTOGRAMS, MeshSettings, OnboardingConfig, OnboardingSettings, Plane, PlaneConfig, PlaneSecrets, StateFolder,
    Verifiers, read_issuers,
};

/// What the tokens are for.
const UID: &str = "skiff-quickstart";
/// Who vouches, in `onboarding.yaml`.
const ISSUER: &str = "https://quickstart.skiff.example";
/// Nobody leaves a quickstart running for longer.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Starts the plane, and writes the token of each member into the folder.
pub(super) async fn start(folder: &Folder) -> Result<Plane, Failure> {
    let internal = |error: &dyn std::fmt::Display| Failure::Internal(error.to_string());
    let trust_domain = bookinfo::TRUST_DOMAIN.parse::<TrustDomain>().map_err(|error| internal(&error))?;
    let config = PlaneConfig::new((Ipv4Addr::LOCALHOST, 0).into(), folder.plane(), trust_domain.clone());
    let clock = Clock::system();
    let state = StateFolder::open(&config.state).map_err(|error| internal(&error))?;
    let authority = Authority::load_or_create(&config, &state).map_err(|error| internal(&error))?;
    let secrets = PlaneSecrets::generate(Some(UID)).map_err(|error| internal(&error))?;
    let store = EmbeddedStore::open(&state, folder.configuration(), authority.tokens.clone(), clock.clone())?;
    let store = Arc::new(store);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| internal(&error))?;
    for member in [&RATINGS, &DETAILS] {
        let token = token(&key, member, &clock).map_err(|error| internal(&error))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.token(member));
        file.and_then(|mut file| file.write_all(token.as_bytes())).map_err(|error| Failure::Unavailable(error.to_string()))?;
    }
    let issuers = read_issuers("quickstart".into(), &issuers(&key)).map_err(|error| internal(&error))?;
    let jwt = JwtVerifier::new(issuers, UID.to_owned(), &Client::new(TrustedRoots::System), clock.clone());
    let mesh = MeshSettings::embedded(trust_domain, "Kubernetes", authority.ca.root_pem());
    // Both workloads end with the plane: nobody is left to hear of it.
    let settings = OnboardingSettings { propagation_delay: Duration::ZERO, ..OnboardingSettings::new(UID, mesh) };
    let onboarding = OnboardingConfig {
        settings,
        secrets,
        store: store.clone(),
        documents: Some(store.clone()),
        verifiers: Verifiers { aws: None, jwt: Some(jwt) },
        metrics: Metrics::new(&HISTOGRAMS).map_err(|error| internal(&error))?,
        clock,
    };
    let mut plane = Plane::serve(config, Some(authority), Some(onboarding), Some(state)).await?;
    plane.run_beside(async move {
        let Err(error) = store.follow().await;
        tracing::error!(%error, "edits of the Istio YAML are not noticed");
    });
    Ok(plane)
}

fn issuers(key: &KeyPair) -> String {
    // An uncompressed point: 4, x, y.
    let coordinates = key.der_bytes().get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": UID, "alg": "ES256", "use": "sig", "x": x, "y": y}]});
    json!({"issuers": [{"issuer": ISSUER, "shortName": "quickstart", "jwks": jwks.to_string()}]}).to_string()
}

fn token(key: &KeyPair, member: &Member, clock: &Clock) -> Result<String, jsonwebtoken::errors::Error> {
    let now = clock.since_epoch().as_secs();
    let claims =
        json!({"iss": ISSUER, "aud": UID, "sub": member.name, "iat": now, "exp": now.saturating_add(TOKEN_LIFETIME.as_secs())});
    let header = Header { kid: Some(UID.to_owned()), ..Header::new(Algorithm::ES256) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(key.serialized_der()))
}
