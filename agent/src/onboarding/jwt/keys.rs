//! The keys of an issuer: given, fetched, or found out by OpenID Connect discovery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use serde::Deserialize;
use skiff_proxy::jwt::Jwks;
use tokio::sync::Mutex;

use super::issuer::{JwtIssuer, KeySource};
use crate::fetch::{Client, Endpoint, Limits};

const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), max_body: 1024 * 1024 };
/// Keys are fetched again when they are older.
const FRESH: Duration = Duration::from_secs(5 * 60);
/// Keys that cannot be fetched again serve so long.
const STALE: Duration = Duration::from_secs(60 * 60);
/// Between two fetches, however many tokens ask for keys that are not there.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// The keys of an issuer.
#[derive(Debug)]
pub(super) struct Keys {
    issuer: String,
    source: KeySource,
    client: Client,
    /// Held by who fetches: one at a time, the others take what comes of it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Option<(Arc<Jwks>, Instant)>,
    /// When the last fetch began that failed, and why.
    failed: Option<(Instant, String)>,
}

impl Keys {
    pub(super) fn new(issuer: &JwtIssuer, client: Client) -> Self {
        Self { issuer: issuer.issuer.clone(), source: issuer.keys.clone(), client, state: Mutex::default() }
    }

    /// The keys.
    pub(super) async fn current(&self) -> Result<Arc<Jwks>, String> {
        let mut state = self.state.lock().await;
        match &state.keys {
            Some((keys, at)) if at.elapsed() < FRESH || matches!(self.source, KeySource::Inline(_)) => Ok(keys.clone()),
            _ => self.refresh(&mut state).await,
        }
    }

    /// Other keys than these if there are any by now.
    pub(super) async fn newer(&self, than: &Arc<Jwks>) -> Result<Arc<Jwks>, String> {
        let mut state = self.state.lock().await;
        match &state.keys {
            Some((keys, _)) if !Arc::ptr_eq(keys, than) => Ok(keys.clone()),
            Some((keys, at)) if at.elapsed() < PAUSE || matches!(self.source, KeySource::Inline(_)) => Ok(keys.clone()),
            _ => self.refresh(&mut state).await,
        }
    }

    async fn refresh(&self, state: &mut State) -> Result<Arc<Jwks>, String> {
        let waiting = state.failed.as_ref().filter(|(at, _)| at.elapsed() < PAUSE).map(|(_, reason)| reason.clone());
        let fetched = match waiting {
            Some(reason) => Err(reason),
            None => Box::pin(self.fetch()).await,
        };
        match fetched {
            Ok(keys) => {
                let keys = Arc::new(keys);
                *state = State { keys: Some((keys.clone(), Instant::now())), failed: None };
                Ok(keys)
            }
            Err(reason) => {
                if state.failed.as_ref().is_none_or(|(at, _)| at.elapsed() >= PAUSE) {
                    tracing::warn!(issuer = self.issuer, reason, "JWKS cannot be fetched");
                    state.failed = Some((Instant::now(), reason.clone()));
                }
                let kept = state.keys.as_ref().filter(|(_, at)| at.elapsed() < STALE);
                kept.map(|(keys, _)| keys.clone()).ok_or(reason)
            }
        }
    }

    async fn fetch(&self) -> Result<Jwks, String> {
        let text = match &self.source {
            KeySource::Inline(jwks) => return Jwks::parse(jwks.as_bytes()).map_err(str::to_owned),
            KeySource::Remote(uri) => self.get(uri).await?,
            KeySource::Discovery => self.get(&self.discover().await?).await?,
        };
        Jwks::parse(&text).map_err(str::to_owned)
    }

    /// Where the keys are, as the issuer itself says.
    ///
    /// <https://openid.net/specs/openid-connect-discovery-1_0.html>
    async fn discover(&self) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let uri = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document: Document =
            serde_json::from_slice(&self.get(&uri).await?).map_err(|error| format!("{uri}: {}", crate::fetch::quiet(&error)))?;
        if document.issuer != self.issuer {
            return Err(format!("{uri} is of another issuer, {:?}", document.issuer));
        }
        Ok(document.jwks_uri)
    }

    async fn get(&self, uri: &str) -> Result<Bytes, String> {
        let (place, query) = uri.split_once('?').map_or((uri, String::new()), |(place, query)| (place, format!("?{query}")));
        let endpoint = place.parse::<Endpoint>().ok().filter(Endpoint::is_https);
        // Over http anybody on the way could say what the keys are.
        let endpoint = endpoint.ok_or_else(|| format!("{place:?}: expected an https URL without user and fragment"))?;
        let request = Request::get(format!("{}{query}", endpoint.path())).header(ACCEPT, "application/json").body(Bytes::new());
        let request = request.map_err(|error| format!("{place:?}: {error}"))?;
        let answer = self.client.send(&endpoint, request, LIMITS).await.map_err(|error| error.to_string())?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(format!("{endpoint} answered {status}")),
        }
    }
}
