//! Talking to the API server: where objects are, how long an answer may take, which failures are worth another try.

use std::path::Path;
use std::time::Duration;

use futures_util::Stream;
use kube::api::{ListParams, Preconditions, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::response::StatusSummary;
use kube::core::{Request, Status, WatchEvent};
use kube::{Client, Config};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::exit::Failure;
use crate::identity::Backoff;
use crate::plane::objects::{ObjectKey, OnboardingPolicySpec, RegistrationSpec, Spec, WorkloadEntrySpec, WorkloadGroupSpec};
use crate::plane::store::{Expected, StoreError};

/// How long one answer may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a write may take with all of its attempts.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Socket and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between attempts of a write.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Longest message of an API server that is passed on.
const MAX_MESSAGE: usize = 512;

/// Where an API server has the objects of a kind.
pub(super) trait Kind: Spec {
    /// The last part of the path.
    const PLURAL: &'static str;
}

impl Kind for WorkloadGroupSpec {
    const PLURAL: &'static str = "workloadgroups";
}

impl Kind for OnboardingPolicySpec {
    const PLURAL: &'static str = "onboardingpolicies";
}

impl Kind for RegistrationSpec {
    const PLURAL: &'static str = "workloadautoregistrations";
}

impl Kind for WorkloadEntrySpec {
    const PLURAL: &'static str = "workloadentries";
}

/// The objects of `S` in one namespace or in all.
pub(super) fn custom<S: Kind>(namespace: Option<&str>) -> Request {
    let api_version = S::API_VERSIONS.first().copied().unwrap_or_default();
    match namespace {
        Some(namespace) => Request::new(format!("/apis/{api_version}/namespaces/{}/{}", segment(namespace), S::PLURAL)),
        None => Request::new(format!("/apis/{api_version}/{}", S::PLURAL)),
    }
}

/// Objects of the group without a name.
pub(super) fn core(namespace: &str, plural: &str) -> Request {
    Request::new(format!("/api/v1/namespaces/{}/{plural}", segment(namespace)))
}

/// What is no name of an object cannot lead elsewhere: the API server has nothing under `_`.
pub(super) fn segment(name: &str) -> &str {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.bytes().all(plain) { name } else { "_" }
}

/// An API server.
#[derive(Clone)]
pub(super) struct ApiServer {
    client: Client,
    /// The namespace of the kubeconfig's context or of the pod.
    pub(super) namespace: String,
}

/// Why a call came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CallError {
    /// What the API server says.
    #[error("the API server answers {}: {}", .0.code, message(.0))]
    Status(Box<Status>),
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server has not answered within {CALL_TIMEOUT:?}")]
    Timeout,
    /// An answer that is not understood, or a request that cannot be made.
    #[error("{0}")]
    Malformed(String),
}

/// An answer to a write.
pub(super) struct Written<T> {
    pub(super) result: Result<T, CallError>,
    /// An earlier attempt may have come through although its answer did not.
    pub(super) perhaps_twice: bool,
}

/// A list, page by page.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Page<T> {
    metadata: PageMetadata,
    items: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

impl ApiServer {
    /// The API server of the kubeconfig; without one, of the pod this runs in.
    pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Configuration(format!("API server: {error}"));
        let mut config = match kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
                let is_proxied = read.clusters.iter().filter_map(|named| named.cluster.as_ref()).any(|to| to.proxy_url.is_some());
                let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
                let mut config = config.map_err(|error| wrong(&error))?;
                // It falls back on HTTPS_PROXY, which is meant for applications.
                if !is_proxied {
                    config.proxy_url = None;
                }
                config
            }
            None => Config::incluster().map_err(|error| wrong(&format!("{error}; outside of a pod name a kubeconfig")))?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| wrong(&error))?;
        Ok(Self { client, namespace })
    }

    /// One attempt.
    pub(super) async fn call<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>) -> Result<T, CallError> {
        self.call_until(request, Instant::now() + CALL_TIMEOUT).await
    }

    async fn call_until<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>, end: Instant) -> Result<T, CallError> {
        // Not `Client::request`: that logs what it cannot read, and it may be a token or a Secret.
        let text = timeout_at(end, self.client.request_text(request)).await.map_err(|_| CallError::Timeout)??;
        serde_json::from_str(&text).map_err(|error| CallError::Malformed(format!("the API server's answer: {error}")))
    }

    /// As often as it takes, within [`WRITE_TIMEOUT`].
    pub(super) async fn write<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>) -> Written<T> {
        let end = Instant::now() + WRITE_TIMEOUT;
        let (mut backoff, mut perhaps_twice) = (Backoff::new(FIRST_WAIT, LONGEST_WAIT), false);
        loop {
            let result = self.call_until(request.clone(), end.min(Instant::now() + CALL_TIMEOUT)).await;
            let wait = backoff.next_wait();
            match &result {
                Err(error) if error.is_transient() && Instant::now() + wait < end => {
                    perhaps_twice |= error.may_have_happened();
                    sleep(wait).await;
                }
                _ => return Written { result, perhaps_twice },
            }
        }
    }

    /// An object, or `None`.
    pub(super) async fn get<T: DeserializeOwned>(&self, place: &Request, name: &str) -> Result<Option<T>, CallError> {
        match self.call(place.get(segment(name), &Default::default())?).await {
            Ok(object) => Ok(Some(object)),
            Err(CallError::Status(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects, at most `limit`, and the version of the list.
    pub(super) async fn list<T: DeserializeOwned>(&self, place: &Request, limit: usize) -> Result<(Vec<T>, String), CallError> {
        let (mut items, mut next) = (Vec::new(), None);
        loop {
            let parameters = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
            let Page::<T> { metadata, items: page } = self.call(place.list(&parameters)?).await?;
            items.extend(page);
            if items.len() > limit {
                return Err(CallError::Malformed(format!("{}: more than {limit} objects", place.url_path)));
            }
            if metadata.next.is_empty() {
                return Ok((items, metadata.resource_version));
            }
            next = Some(metadata.next);
        }
    }

    /// What changes after `version`.
    pub(super) async fn watch<T: Clone + DeserializeOwned>(
        &self,
        place: &Request,
        version: &str,
        seconds: u32,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>, CallError>> + use<T>, CallError> {
        use futures_util::StreamExt as _;
        let parameters = WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let request = place.watch(&parameters, version)?;
        match timeout(CALL_TIMEOUT, self.client.request_events(request)).await {
            Ok(Ok(events)) => Ok(events.map(|event| event.map_err(CallError::from))),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(CallError::Timeout),
        }
    }

    /// Removes an object; the uid of what has gone, or `None` when there was none.
    pub(super) async fn delete(&self, place: &Request, name: &str, expected: &Expected) -> Written<Option<String>> {
        let Expected { uid, resource_version } = expected.clone();
        let preconditions = Some(Preconditions { resource_version, uid });
        let parameters = kube::api::DeleteParams { preconditions, ..kube::api::DeleteParams::background() };
        let request = match place.delete(segment(name), &parameters) {
            Ok(request) => request,
            Err(error) => return Written { result: Err(CallError::from(error)), perhaps_twice: false },
        };
        let Written { result, perhaps_twice } = self.write::<Json>(request).await;
        let result = match result {
            // A Status, or the object while somebody has to agree to its end.
            Ok(answer) => {
                let uid = answer.pointer("/details/uid").or_else(|| answer.pointer("/metadata/uid")).and_then(Json::as_str);
                Ok(Some(uid.unwrap_or_default().to_owned()))
            }
            Err(CallError::Status(status)) if status.code == 404 => Ok(perhaps_twice.then(String::new)),
            Err(error) => Err(error),
        };
        Written { result, perhaps_twice }
    }
}

impl CallError {
    /// 0 when there was no answer.
    pub(super) fn code(&self) -> u16 {
        if let Self::Status(status) = self { status.code } else { 0 }
    }

    /// Whether the same request may do better a little later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Status(status) => matches!(status.code, 429 | 500 | 502..=504),
            Self::Unreachable(_) | Self::Timeout => true,
            Self::Malformed(_) => false,
        }
    }

    fn may_have_happened(&self) -> bool {
        match self {
            Self::Status(status) => matches!(status.code, 500 | 504),
            Self::Unreachable(_) | Self::Timeout => true,
            Self::Malformed(_) => false,
        }
    }

    /// As the store says it of the object `key`.
    pub(super) fn of(self, key: &ObjectKey) -> StoreError {
        match &self {
            Self::Status(status) => match (status.code, status.reason.as_str()) {
                (404, _) => StoreError::NotFound(key.clone()),
                (409, "AlreadyExists") => StoreError::Exists(key.clone()),
                (409, _) => StoreError::Conflict(key.clone()),
                // A token that is renewed under way is 401.
                (400 | 403 | 405 | 413 | 422, _) => StoreError::Refused(self.to_string()),
                _ => StoreError::Unavailable(self.to_string()),
            },
            Self::Malformed(_) => StoreError::Refused(self.to_string()),
            Self::Unreachable(_) | Self::Timeout => StoreError::Unavailable(self.to_string()),
        }
    }
}

impl From<kube::core::request::Error> for CallError {
    fn from(error: kube::core::request::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Status(status),
            kube::Error::SerdeError(error) => Self::Malformed(format!("the API server's answer: {error}")),
            kube::Error::BuildRequest(error) => error.into(),
            // The last cause says what is the matter: connection refused, unknown authority.
            error => {
                let mut cause: &dyn std::error::Error = &error;
                while let Some(next) = cause.source() {
                    cause = next;
                }
                Self::Unreachable(cause.to_string())
            }
        }
    }
}

/// Its message, in bounds and on one line.
fn message(status: &Status) -> String {
    let text = if status.message.is_empty() { status.reason.as_str() } else { status.message.as_str() };
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(MAX_MESSAGE).collect()
}

/// A token for `service_account`, and when it ends, as the API server writes it.
pub(super) async fn token_request(
    server: &ApiServer,
    namespace: &str,
    service_account: &str,
    lifetime: Duration,
) -> Result<(String, String), CallError> {
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": ["istio-ca"], "expirationSeconds": lifetime.as_secs()},
    });
    let place = core(namespace, "serviceaccounts");
    let request = place.create_subresource("token", segment(service_account), &Default::default(), body.to_string().into_bytes());
    // Repeated, because a token more does no harm; read as JSON, whose errors cannot quote it.
    let answer: Json = server.write(request?).await.result?;
    let text = |name: &str| answer["status"][name].as_str().map(str::to_owned);
    let incomplete = || CallError::Malformed("the API server's answer to a TokenRequest: no token or no end".to_owned());
    text("token").zip(text("expirationTimestamp")).ok_or_else(incomplete)
}

/// Whether a watch has to begin with a list again.
pub(super) fn is_too_old(status: &Status) -> bool {
    status.code == 410 && status.status != Some(StatusSummary::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_a_path() {
        assert_eq!(segment("bookinfo"), "bookinfo");
        for bad in ["", ".", "..", "../..", "a/b", "a?b", "a%2fb", "A", "a\nb", &"a".repeat(254)] {
            assert_eq!(segment(bad), "_", "{bad:?}");
        }
        assert_eq!(
            custom::<RegistrationSpec>(Some("a/../b")).url_path,
            "/apis/runtime.onboarding.tetrate.io/v1alpha1/namespaces/_/workloadautoregistrations"
        );
    }

    #[test]
    fn an_answer_says_what_may_be_done() {
        let key = ObjectKey::new("a", "b");
        let status = |code: u16, reason: &str| {
            CallError::Status(Box::new(Status {
                code,
                reason: reason.to_owned(),
                message: "line\none".to_owned(),
                ..Status::success()
            }))
        };
        assert_eq!(status(404, "NotFound").of(&key), StoreError::NotFound(key.clone()));
        assert_eq!(status(409, "AlreadyExists").of(&key), StoreError::Exists(key.clone()));
        assert_eq!(status(409, "Conflict").of(&key), StoreError::Conflict(key.clone()));
        for code in [401, 429, 500, 503] {
            assert!(matches!(status(code, "").of(&key), StoreError::Unavailable(_)), "{code}");
        }
        assert_eq!(status(403, "Forbidden").of(&key), StoreError::Refused("the API server answers 403: line one".to_owned()));
        assert!(status(503, "").is_transient() && CallError::Timeout.is_transient());
        assert!(!status(409, "Conflict").is_transient() && !status(403, "Forbidden").is_transient());
    }
}
