//! The client of the onboarding plane: a connection and its four calls, each with an end.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, SystemTime};

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_client::OnboardingServiceClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::config::{Endpoint, GroupName, TransportSecurity};
use super::plugin::{AddressKind, HostAddress};
use crate::identity::{ConnectError, ControlPlaneConnector, RootSource, Security, Token, authenticated};

/// How long a call may take. The plane asks AWS twice before it answers.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A plane's documents are bounded by 32 MiB.
const MAX_RESPONSE_BYTES: usize = 33 * 1024 * 1024;
/// A session whose token ends within this is not begun with it.
const LEAST_LEFT: Duration = Duration::from_secs(10);
/// How much of a server's message we repeat.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why there is no registration. Every one is worth another try: policies, networks and clocks get repaired.
#[derive(Debug, thiserror::Error)]
pub enum OnboardingError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No proof of who we are.
    #[error("no credential: {0}")]
    Credential(String),
    /// The plane says no, in gRPC's words.
    #[error("RPC failed: rpc error: code = {code:?} desc = {message}")]
    Refused {
        /// gRPC status.
        code: Code,
        /// Its message.
        message: String,
    },
    /// It took too long.
    #[error("the onboarding plane did not answer to {0} within {CALL_TIMEOUT:?}")]
    Timeout(&'static str),
    /// What it said cannot be used.
    #[error("the onboarding plane sent something that cannot be used: {0}")]
    Invalid(String),
    /// It ended the stream without a word.
    #[error("the onboarding plane closed the stream")]
    Closed,
    /// It does not read what we send.
    #[error("the onboarding plane does not read our messages")]
    Stuck,
}

impl OnboardingError {
    /// Whether the session token is the reason, or may be.
    pub(super) fn is_about_the_session(&self) -> bool {
        matches!(self, Self::Refused { code: Code::Unauthenticated | Code::PermissionDenied, .. })
    }

    /// Whether another replica of the plane has made the nonce of the credential: it is to be begun anew with Discover.
    pub(super) fn is_of_another_replica(&self) -> bool {
        matches!(self, Self::Refused { code: Code::FailedPrecondition, .. })
    }

    /// Whether this identity has registered from elsewhere.
    pub(super) fn is_superseded(&self) -> bool {
        matches!(self, Self::Refused { code: Code::Aborted, .. })
    }
}

impl From<Status> for OnboardingError {
    fn from(status: Status) -> Self {
        let message = status.message().chars().take(MAX_MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self::Refused { code: status.code(), message }
    }
}

/// A token of the plane, and until when it counts.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) token: Token,
    pub(super) expires_at: SystemTime,
}

impl Session {
    pub(super) fn new(token: &str, expires_at: Option<prost_types::Timestamp>) -> Result<Self, OnboardingError> {
        let token = Token::new(token);
        if token.expose().is_empty() {
            return Err(OnboardingError::Invalid("an empty token".to_owned()));
        }
        let expires_at = expires_at.and_then(|time| SystemTime::try_from(time).ok());
        let missing = || OnboardingError::Invalid("a token without an end".to_owned());
        Ok(Self { token, expires_at: expires_at.ok_or_else(missing)? })
    }

    /// Whether something can be begun with it.
    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        self.expires_at.duration_since(now).is_ok_and(|left| left > LEAST_LEFT)
    }
}

/// Where the plane is.
#[derive(Clone, Debug)]
pub(super) struct PlaneClient {
    connector: ControlPlaneConnector,
}

/// What a credential is bound to.
#[derive(Clone, Debug)]
pub(super) struct Challenge {
    pub(super) plane_uid: String,
    pub(super) nonce: String,
}

/// One connection to the plane.
#[derive(Clone, Debug)]
pub(super) struct Connection(OnboardingServiceClient<Channel>);

impl PlaneClient {
    pub(super) fn new(endpoint: &Endpoint, roots: Option<&[u8]>) -> Self {
        let roots = roots.map_or(RootSource::System, |pem| RootSource::Pem(pem.to_vec()));
        let (security, name) = match &endpoint.security {
            TransportSecurity::None => (Security::Plaintext, None),
            TransportSecurity::Tls { insecure_skip_verify: true, sni } => (Security::UnverifiedTls, sni.clone()),
            TransportSecurity::Tls { insecure_skip_verify: false, sni } => (Security::Tls(roots), sni.clone()),
        };
        let mut connector = ControlPlaneConnector::new(dial_address(&endpoint.host, endpoint.port), security);
        connector.authority = name.unwrap_or_else(|| endpoint.host.clone());
        Self { connector }
    }

    /// Where it is, for log lines.
    pub(super) fn address(&self) -> &str {
        &self.connector.address
    }

    /// How it is reached.
    pub(super) fn connector(&self) -> &ControlPlaneConnector {
        &self.connector
    }

    /// The wall clock that tokens are judged by.
    pub(super) fn now(&self) -> SystemTime {
        self.connector.clock.now()
    }

    pub(super) async fn connect(&self) -> Result<Connection, OnboardingError> {
        let channel = self.connector.connect(None).await?;
        Ok(Connection(OnboardingServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES)))
    }
}

impl Connection {
    /// Who the plane is, and what a credential for it has to be bound to.
    pub(super) async fn discover(&mut self) -> Result<Challenge, OnboardingError> {
        let request = proto::DiscoverRequest { agent_version: env!("CARGO_PKG_VERSION").to_owned() };
        let answer = within("Discover", self.0.discover(request)).await?;
        if answer.plane_uid.is_empty() {
            return Err(OnboardingError::Invalid("DiscoverResponse.plane_uid is empty".to_owned()));
        }
        Ok(Challenge { plane_uid: answer.plane_uid, nonce: answer.nonce })
    }

    /// A credential for a session token.
    pub(super) async fn authorize(&mut self, group: &GroupName, credential: Credential) -> Result<Session, OnboardingError> {
        let workload_group = proto::WorkloadGroup { namespace: group.namespace.clone(), name: group.name.clone() };
        let request = proto::AuthorizeRequest { workload_group: Some(workload_group), credential: Some(credential) };
        let answer = within("Authorize", self.0.authorize(request)).await?;
        Session::new(&answer.token, answer.expires_at)
    }

    /// The stream of a registration, whose first request has to be in `requests`.
    pub(super) async fn register(
        &mut self,
        session: &Session,
        requests: mpsc::Receiver<proto::RegisterRequest>,
    ) -> Result<Streaming<proto::RegisterResponse>, OnboardingError> {
        let request = authenticated(ReceiverStream::new(requests), Some(&session.token), "");
        within("Register", self.0.register(request)).await
    }

    /// Ends the registration; how long others may still send requests.
    pub(super) async fn unregister(&mut self, session: &Session) -> Result<Duration, OnboardingError> {
        let request = authenticated(proto::UnregisterRequest {}, Some(&session.token), "");
        let answer = within("Unregister", self.0.unregister(request)).await?;
        Ok(duration(answer.propagation_delay).unwrap_or_default())
    }
}

/// The next message of a registration, whenever it comes.
pub(super) async fn next(
    stream: &mut Streaming<proto::RegisterResponse>,
) -> Result<proto::register_response::Message, OnboardingError> {
    let response = stream.message().await?.ok_or(OnboardingError::Closed)?;
    response.message.ok_or_else(|| OnboardingError::Invalid("RegisterResponse without a message".to_owned()))
}

/// The next message, which is due.
pub(super) async fn first(
    stream: &mut Streaming<proto::RegisterResponse>,
) -> Result<proto::register_response::Message, OnboardingError> {
    timeout(CALL_TIMEOUT, next(stream)).await.map_err(|_| OnboardingError::Timeout("Register"))?
}

async fn within<T>(
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, OnboardingError> {
    let answer = timeout(CALL_TIMEOUT, answer).await.map_err(|_| OnboardingError::Timeout(call))?;
    Ok(answer?.into_inner())
}

/// What is not negative, and not absurd.
pub(super) fn duration(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| Duration::try_from(duration).ok()).filter(|duration| *duration <= Duration::from_secs(3600))
}

/// `host:port`, with brackets where they are needed.
fn dial_address(host: &str, port: u16) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// What a workload says of itself.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    pub(super) revision: String,
    pub(super) addresses: Vec<HostAddress>,
    pub(super) labels: HashMap<String, String>,
    pub(super) over_internet: bool,
}

impl Registration {
    /// `documents_version`: of what it has been told before.
    pub(super) fn message(&self, documents_version: &str) -> proto::RegisterRequest {
        let over = match self.over_internet {
            true => proto::ConnectedOver::Internet,
            false => proto::ConnectedOver::Vpc,
        };
        let addresses = self.addresses.iter().map(|HostAddress { ip, kind }| {
            let kind = match kind {
                AddressKind::Vpc => proto::AddressType::Vpc,
                AddressKind::Internet => proto::AddressType::Internet,
            };
            proto::Address { ip: ip.to_string(), r#type: kind.into() }
        });
        let registration = proto::Registration {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            istio_version: crate::xds::ISTIO_VERSION.to_owned(),
            istio_revision: self.revision.clone(),
            addresses: addresses.collect(),
            labels: self.labels.clone(),
            connected_over: over.into(),
            documents_version: documents_version.to_owned(),
        };
        request(proto::register_request::Message::Registration(registration))
    }
}

/// A message to the plane.
pub(super) fn request(message: proto::register_request::Message) -> proto::RegisterRequest {
    proto::RegisterRequest { message: Some(message) }
}
