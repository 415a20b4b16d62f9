//! The stream of one workload: its registration is written when it begins, and kept up to date while it is held.

use std::sync::Arc;
use std::time::Duration;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Said;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Say;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::admission::{Admitted, Denial, reason, token, unavailable};
use super::{Onboarding, SENDING_KIB};
use crate::plane::service::Peer;
use crate::plane::session::Session;
use crate::plane::store::{MeshToken, StoreError};
use crate::plane::streams::{End, Handle};
use crate::plane::workload::{self, Origin};

/// After a token could not be renewed.
const RETRY: Duration = Duration::from_secs(10);
/// Messages to a workload that wait to be sent.
pub(super) const QUEUE: usize = 4;
/// Heartbeats that may be missing.
const MISSED_HEARTBEATS: u32 = 3;

/// A stream on which nothing has been said yet.
pub(super) struct WorkloadStream {
    pub(super) onboarding: Arc<Onboarding>,
    pub(super) peer: Peer,
    pub(super) session: Session,
    pub(super) requests: Streaming<proto::RegisterRequest>,
    pub(super) responses: mpsc::Sender<Result<proto::RegisterResponse, Status>>,
}

/// A stream of a registered workload.
struct Registered {
    admitted: Admitted,
    handle: Arc<Handle>,
    ended: watch::Receiver<Option<End>>,
    mesh_token: MeshToken,
}

/// Why a stream is over.
enum Over {
    /// From the other side, or by silence. Whether the workload serves is another question.
    Lost(String),
    /// From here.
    Ended(End),
    /// The plane stops; the workload is to hold its stream to another replica.
    Stopping,
}

impl WorkloadStream {
    pub(super) async fn run(mut self) {
        // While a stream is held, its connection is not asked to go.
        let _held = self.peer.hold();
        match self.establish().await {
            Ok(registered) => {
                let over = self.follow(&registered).await;
                self.finish(&registered, over).await;
            }
            Err(status) => {
                self.onboarding.numbers.registrations_refused.increment(1);
                self.audit("denied", status.message());
                self.send(Err(status)).await;
            }
        }
    }

    fn audit(&self, decision: &'static str, reason: &str) {
        let Self { peer, session, .. } = self;
        tracing::info!(
            target: "audit", event = "register", decision, peer = %peer.address, identity = %session.subject.identity,
            group = %session.group, name = %session.name, reason
        );
    }

    /// False when the other side does not take it.
    async fn send(&self, message: Result<proto::RegisterResponse, Status>) -> bool {
        timeout(self.onboarding.settings.limits.message_timeout, self.responses.send(message))
            .await
            .is_ok_and(|sent| sent.is_ok())
    }

    async fn say(&self, message: Say) -> bool {
        self.send(Ok(proto::RegisterResponse { message: Some(message) })).await
    }

    /// Reads the registration, decides, writes, and says what the sidecar needs.
    async fn establish(&mut self) -> Result<Registered, Status> {
        let (onboarding, session) = (self.onboarding.clone(), self.session.clone());
        let first = timeout(onboarding.settings.limits.message_timeout, self.requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Registration in time"))??;
        let Some(Said::Registration(message)) = first.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("expected a Registration first"));
        };
        let origin = Origin { peer: self.peer.address.ip(), verified: session.addresses.as_deref() };
        let registration = workload::read(message, origin).map_err(Status::invalid_argument)?;
        // The session may be older than the policies.
        let (group, _) = onboarding.decide(&session.subject, &session.group).await.map_err(|denial| denial.status())?;
        let mesh_token = onboarding.mesh_token(&group).await.map_err(|error| match error {
            StoreError::NotFound(_) | StoreError::Refused(_) => {
                Status::failed_precondition(format!("the service account of {} is of no use: {error}", session.group))
            }
            error => unavailable(&error),
        })?;
        let admitted = onboarding.admit(&session, group, &registration).await?;
        let held = onboarding.streams.hold(admitted.connection, session);
        let (handle, ended) = held.ok_or_else(superseded)?;
        let registered = Registered { admitted, handle, ended, mesh_token };
        if let Err(status) = self.enter(&registered).await {
            onboarding.lose(&registered.handle).await;
            return Err(status);
        }
        onboarding.numbers.registrations.increment(1);
        self.audit("registered", "");
        Ok(registered)
    }

    /// Writes what others see of the workload, then says what its sidecar needs.
    async fn enter(&self, registered: &Registered) -> Result<(), Status> {
        let onboarding = &self.onboarding;
        let Registered { admitted, mesh_token, .. } = registered;
        let name = &self.session.name;
        let locality = onboarding.enter(admitted, self.session.subject.placement_verified).await?;
        onboarding
            .note_connection(name, admitted.connection, true, reason::ESTABLISHED)
            .await
            .map_err(|error| unavailable(&error))?;
        let boot = onboarding.boot(admitted, locality, mesh_token);
        if self.say(Say::Boot(boot)).await { Ok(()) } else { Err(Status::cancelled("the agent went away")) }
    }

    /// Until it is over.
    async fn follow(&mut self, registered: &Registered) -> Over {
        let onboarding = self.onboarding.clone();
        let silence = onboarding.settings.heartbeat_interval * MISSED_HEARTBEATS;
        let mut deadline = Instant::now() + silence;
        let mut allowance = Allowance::new(onboarding.settings.limits.messages, onboarding.settings.heartbeat_interval);
        let mut documents = onboarding.documents.subscribe();
        documents.mark_changed();
        let (mut ended, mut stopping) = (registered.ended.clone(), onboarding.stopping.subscribe());
        let mut mesh_at = self.renew_at(registered.mesh_token.expires_at);
        let mut session_at = self.renew_at(self.session.expires_at);
        loop {
            tokio::select! {
                said = self.requests.message() => match said {
                    Ok(Some(request)) => {
                        deadline = Instant::now() + silence;
                        if !allowance.take() {
                            return Over::Lost("too many messages".to_owned());
                        }
                        if let Some(over) = self.hear(request).await {
                            return over;
                        }
                    }
                    Ok(None) => return Over::Lost("the agent closed the stream".to_owned()),
                    Err(status) => return Over::Lost(status.message().to_owned()),
                },
                () = sleep_until(deadline) => return Over::Lost(format!("nothing was heard for {silence:?}")),
                () = self.responses.closed() => return Over::Lost("the connection ended".to_owned()),
                end = asked_to_end(&mut ended) => return Over::Ended(end),
                () = asked_to_stop(&mut stopping) => return Over::Stopping,
                () = sleep_until(mesh_at) => match self.renew_mesh_token().await {
                    Ok(at) => mesh_at = at,
                    Err(over) => return over,
                },
                () = sleep_until(session_at) => match self.renew_session().await {
                    Ok(at) => session_at = at,
                    Err(over) => return over,
                },
                Ok(()) = documents.changed() => {
                    let current = documents.borrow_and_update().clone();
                    if let Some(current) = current
                        && !self.tell(&current).await
                    {
                        return stuck();
                    }
                }
            }
        }
    }

    /// Sends documents, which may be large: not to everybody at once. False when the other side does not take them.
    async fn tell(&self, documents: &proto::Documents) -> bool {
        let bytes: usize = documents.documents.iter().map(|document| document.yaml.len()).sum();
        let kibibytes = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(SENDING_KIB);
        let Ok(_room) = self.onboarding.sending.acquire_many(kibibytes).await else { return false };
        self.onboarding.numbers.documents.increment(1);
        let timeout_after = self.onboarding.settings.limits.message_timeout;
        self.say(Say::Documents(documents.clone())).await
            // All places are free again once it was taken.
            && timeout(timeout_after, self.responses.reserve_many(QUEUE)).await.is_ok_and(|taken| taken.is_ok())
    }

    async fn hear(&self, request: proto::RegisterRequest) -> Option<Over> {
        match request.message {
            Some(Said::Health(proto::Health { error })) => {
                if let Err(error) = self.onboarding.note_health(&self.session.name, &error).await {
                    tracing::warn!(%error, name = %self.session.name, "the health of a workload could not be noted");
                }
                None
            }
            Some(Said::Registration(_)) => {
                self.send(Err(Status::invalid_argument("a second Registration"))).await;
                Some(Over::Lost("a second Registration".to_owned()))
            }
            // What a newer agent says is read over.
            Some(Said::Heartbeat(_)) | None => None,
        }
    }

    async fn renew_mesh_token(&self) -> Result<Instant, Over> {
        let Session { name, group, .. } = &self.session;
        let renewed = match self.onboarding.store.workload_group(group).await {
            Ok(Some(group)) => self.onboarding.mesh_token(&group).await,
            Ok(None) => Err(StoreError::NotFound(group.clone())),
            Err(error) => Err(error),
        };
        match renewed {
            Ok(renewed) => {
                let at = self.renew_at(renewed.expires_at);
                if self.say(Say::MeshToken(token(&renewed))).await { Ok(at) } else { Err(stuck()) }
            }
            Err(error) => {
                tracing::warn!(%error, %name, "the mesh token of a workload could not be renewed");
                Ok(Instant::now() + RETRY)
            }
        }
    }

    /// The same session for longer, if the policies still say so.
    async fn renew_session(&mut self) -> Result<Instant, Over> {
        match self.onboarding.decide(&self.session.subject, &self.session.group).await {
            Ok(_) => {}
            Err(Denial::NoGroup | Denial::Policy(_)) => return Err(Over::Ended(End::Denied)),
            Err(Denial::Store(error)) => {
                tracing::warn!(%error, name = %self.session.name, "the session of a workload could not be renewed");
                return Ok(Instant::now() + RETRY);
            }
        }
        let renewed = Session { expires_at: self.onboarding.sessions.expiry(), ..self.session.clone() };
        let Ok(issued) = self.onboarding.sessions.issue(&renewed) else { return Ok(Instant::now() + RETRY) };
        self.onboarding.numbers.session_tokens.increment(1);
        self.session = renewed;
        let (token, expires_at) = (issued.expose().to_owned(), Some(self.session.expires_at.into()));
        let sent = self.say(Say::SessionToken(proto::Token { token, expires_at })).await;
        if sent { Ok(self.renew_at(self.session.expires_at)) } else { Err(stuck()) }
    }

    /// At two thirds of what is left, a little earlier or later, so that workloads that came together do not stay together.
    fn renew_at(&self, expires_at: std::time::SystemTime) -> Instant {
        let left = expires_at.duration_since(self.onboarding.clock.now()).unwrap_or_default();
        let wait = left.mul_f64(0.6 + 0.1 * fastrand::f64());
        Instant::now() + wait.max(Duration::from_millis(100))
    }

    async fn finish(self, registered: &Registered, over: Over) {
        match over {
            Over::Lost(reason) => {
                self.audit("lost", &reason);
                self.onboarding.lose(&registered.handle).await;
            }
            Over::Stopping => {
                // Nothing is noted: the replica that the agent goes to will, and until then nobody knows better.
                self.send(Err(Status::unavailable("this replica of the plane stops"))).await;
            }
            Over::Ended(end) => {
                let status = match end {
                    End::Superseded => superseded(),
                    End::Removed => Status::aborted("the registration was removed"),
                    End::Unregistered => Status::cancelled("the workload has unregistered"),
                    End::Denied => {
                        self.onboarding.expel(&registered.handle).await;
                        Status::permission_denied("Not authorized by OnboardingPolicy")
                    }
                };
                self.onboarding.streams.release(&registered.handle);
                self.audit("ended", status.message());
                self.send(Err(status)).await;
            }
        }
    }
}

// Functions of their own, because a guard of the channel must not live in a future that crosses threads.
async fn asked_to_end(ended: &mut watch::Receiver<Option<End>>) -> End {
    let end = ended.wait_for(Option::is_some).await;
    end.ok().and_then(|end| end.clone()).unwrap_or(End::Removed)
}

async fn asked_to_stop(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn superseded() -> Status {
    Status::aborted("the workload has registered anew")
}

fn stuck() -> Over {
    Over::Lost("the agent does not take what it is sent".to_owned())
}

/// Messages that a workload may send within an interval.
struct Allowance {
    limit: u32,
    interval: Duration,
    left: u32,
    until: Instant,
}

impl Allowance {
    fn new(limit: u32, interval: Duration) -> Self {
        Self { limit, interval, left: limit, until: Instant::now() + interval }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            (self.left, self.until) = (self.limit, now + self.interval);
        }
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}
