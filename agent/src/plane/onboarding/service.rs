//! The calls of the onboarding service: each says who is asking, decides, and leaves one line in the audit log.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::Map;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_server::OnboardingService;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Onboarding;
use super::admission::{Denial, check_owner, unavailable};
use super::stream::{QUEUE, ToSend, WorkloadStream};
use crate::plane::nonce::NonceError;
use crate::plane::objects::ObjectKey;
use crate::plane::policy::{Rule, Subject};
use crate::plane::service::Peer;
use crate::plane::session::Session;
use crate::plane::verify::{Proof, Unproved};

/// Longest namespace and name.
const MAX_NAME: usize = 253;

/// The service, shared by all connections.
#[derive(Clone, Debug)]
pub(in crate::plane) struct Service(pub(in crate::plane) Arc<Onboarding>);

/// A refusal: what the caller is told, what the audit log is told, and what is counted.
struct Refused {
    status: Status,
    reason: String,
    subject: Option<Box<Subject>>,
}

impl Refused {
    fn new(status: Status, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), subject: None }
    }
}

#[tonic::async_trait]
impl OnboardingService for Service {
    type RegisterStream = Map<ReceiverStream<ToSend>, fn(ToSend) -> Result<proto::RegisterResponse, Status>>;

    async fn discover(&self, request: Request<proto::DiscoverRequest>) -> Result<Response<proto::DiscoverResponse>, Status> {
        // Costs no more than any call that is refused, and nothing is kept: an agent that may not authorise now need not be stopped here.
        drop(request);
        let (nonce, end) = self.0.nonces.issue().map_err(Status::unavailable)?;
        let plane_uid = self.0.uid.clone();
        Ok(Response::new(proto::DiscoverResponse { plane_uid, nonce, nonce_expires_at: Some(end.into()) }))
    }

    async fn authorize(&self, request: Request<proto::AuthorizeRequest>) -> Result<Response<proto::AuthorizeResponse>, Status> {
        let peer = peer(request.extensions())?;
        let asked = group(request.get_ref());
        let group = asked.as_ref().map(ToString::to_string).unwrap_or_default();
        match self.0.authorize(&peer, request.into_inner()).await {
            Ok((response, session, rule)) => {
                tracing::info!(
                    target: "audit", event = "authorize", decision = "admitted", peer = %peer.address, identity = %session.subject.identity,
                    group, name = %session.name, rule = %rule
                );
                Ok(Response::new(response))
            }
            Err(Refused { status, reason, subject }) => {
                tracing::warn!(
                    target: "audit", event = "authorize", decision = "denied", peer = %peer.address,
                    identity = subject.map(|subject| tracing::field::display(subject.identity)), group, code = ?status.code(), reason
                );
                Err(status)
            }
        }
    }

    async fn register(
        &self,
        request: Request<Streaming<proto::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let peer = peer(request.extensions())?;
        let session = self.0.session("register", &peer, request.metadata())?;
        let Some(place) = self.0.streams.place() else {
            tracing::warn!(limit = self.0.settings.limits.streams, "too many workloads at this replica of the plane");
            return Err(Status::resource_exhausted("this replica of the plane has too many workloads"));
        };
        let (responses, receiver) = mpsc::channel(QUEUE);
        let stream = WorkloadStream { onboarding: self.0.clone(), peer, session, requests: request.into_inner(), responses };
        self.0.spawn(async move {
            stream.run().await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(receiver).map(|response| *response)))
    }

    async fn unregister(
        &self,
        request: Request<proto::UnregisterRequest>,
    ) -> Result<Response<proto::UnregisterResponse>, Status> {
        let peer = peer(request.extensions())?;
        let session = self.0.session("unregister", &peer, request.metadata())?;
        self.0.unregister(&session).await?;
        tracing::info!(
            target: "audit", event = "unregister", decision = "removed", peer = %peer.address, identity = %session.subject.identity,
            group = %session.group, name = %session.name
        );
        let propagation_delay = prost_types::Duration::try_from(self.0.settings.propagation_delay).ok();
        Ok(Response::new(proto::UnregisterResponse { propagation_delay }))
    }
}

impl Onboarding {
    async fn authorize(
        &self,
        peer: &Peer,
        request: proto::AuthorizeRequest,
    ) -> Result<(proto::AuthorizeResponse, Session, Rule), Refused> {
        let counted = &self.numbers.authorizations;
        if !self.rates.admit(peer.address.ip(), Instant::now()) {
            counted.rate.increment(1);
            return Err(Refused::new(too_many(), "too many calls from this address"));
        }
        let invalid = |reason: &str| {
            counted.invalid.increment(1);
            Refused::new(Status::invalid_argument(reason), reason)
        };
        let group = group(&request).ok_or_else(|| invalid("workload_group: expected a namespace and a name"))?;
        let credential = request.credential.ok_or_else(|| invalid("credential: missing"))?;
        let proof = self.prove(&credential).await?;
        let about = |mut refused: Refused| {
            refused.subject = Some(Box::new(proof.subject.clone()));
            refused
        };
        let (_, rule) = self.decide(&proof.subject, &group).await.map_err(|denial| {
            match denial {
                Denial::NoGroup | Denial::Policy(_) => counted.policy.increment(1),
                Denial::Store(_) => counted.unavailable.increment(1),
            }
            about(Refused::new(denial.status(), denial.to_string()))
        })?;
        let name = proof.subject.identity.object_name(&group.name, proof.issuer_short_name.as_deref());
        let session = Session {
            name: ObjectKey::new(&group.namespace, name),
            group,
            subject: proof.subject.clone(),
            addresses: proof.addresses.clone(),
            expires_at: self.sessions.expiry(),
        };
        let token = self.sessions.issue(&session).map_err(|reason| about(Refused::new(Status::internal(&reason), reason)))?;
        self.numbers.session_tokens.increment(1);
        counted.admitted.increment(1);
        let expires_at = Some(session.expires_at.into());
        Ok((proto::AuthorizeResponse { token: token.expose().to_owned(), expires_at }, session, rule))
    }

    /// Takes the nonce of a credential, then has it verified.
    async fn prove(&self, credential: &Credential) -> Result<Proof, Refused> {
        let counted = &self.numbers.authorizations;
        if let Credential::Aws(aws) = credential {
            self.nonces.take(&aws.nonce).map_err(|error| {
                counted.nonce.increment(1);
                // Says nothing about the credential, and what to do about it.
                let code = match error {
                    NonceError::AnotherReplica => Code::FailedPrecondition,
                    _ => Code::Unauthenticated,
                };
                Refused::new(Status::new(code, error.to_string()), error.to_string())
            })?;
        }
        let busy = || {
            counted.unavailable.increment(1);
            Refused::new(Status::unavailable("the credential could not be verified in time"), "not verified in time")
        };
        let verified = timeout(self.settings.limits.verification_timeout, async {
            let _place = self.verifications.acquire().await;
            let started = Instant::now();
            let verified = self.verifiers.verify(&self.uid, credential).await;
            self.numbers.verification.record(started.elapsed());
            verified
        });
        let proof = verified.await.map_err(|_| busy())?.map_err(|error| match error {
            Unproved::Refused(reason) => {
                counted.credential.increment(1);
                Refused::new(Status::unauthenticated("the credential does not hold; the plane's audit log says why"), reason)
            }
            Unproved::Unavailable(reason) => {
                counted.unavailable.increment(1);
                Refused::new(Status::unavailable("the credential cannot be verified now"), reason)
            }
        })?;
        if proof.signature.as_ref().is_some_and(|signature| !self.signatures.first(signature, self.clock.now())) {
            counted.replay.increment(1);
            let mut refused =
                Refused::new(Status::unauthenticated("the credential was used before"), "the credential was used before");
            refused.subject = Some(Box::new(proof.subject));
            return Err(refused);
        }
        Ok(proof)
    }

    /// Who calls, by their session token.
    fn session(&self, event: &'static str, peer: &Peer, metadata: &MetadataMap) -> Result<Session, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let verified = token.ok_or_else(|| "no bearer token".to_owned());
        let verified = verified.and_then(|token| self.sessions.verify(token).map_err(|error| error.to_string()));
        verified.map_err(|reason| {
            tracing::warn!(target: "audit", event, decision = "denied", peer = %peer.address, reason);
            Status::unauthenticated("the session token does not hold")
        })
    }

    /// Takes the entry away at once, so that others hear of it; the registration goes after the propagation delay.
    async fn unregister(&self, session: &Session) -> Result<(), Status> {
        let name = &session.name;
        let Some(registration) = self.store.registration(name).await.map_err(|error| unavailable(&error))? else { return Ok(()) };
        check_owner(&registration, session)?;
        self.depart(&registration).await.map_err(|error| unavailable(&error))
    }
}

fn group(request: &proto::AuthorizeRequest) -> Option<ObjectKey> {
    let proto::WorkloadGroup { namespace, name } = request.workload_group.as_ref()?;
    let good = |text: &str| {
        (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
    };
    (good(namespace) && good(name)).then(|| ObjectKey::new(namespace, name))
}

fn peer(extensions: &tonic::Extensions) -> Result<Peer, Status> {
    extensions.get::<Peer>().cloned().ok_or_else(|| Status::internal("unknown peer"))
}

fn too_many() -> Status {
    Status::resource_exhausted("too many calls from this address")
}
