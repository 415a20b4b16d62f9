//! The stream of one workload: its registration is written when it begins, and kept up to date while it is held.

use std::sync::Arc;
use std::time::Duration;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Said;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Say;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::Onboarding;
use super::admission::{Admitted, Denial, reason, token, unavailable};
use super::catalog::Catalog;
use crate::plane::service::Peer;
use crate::plane::session::Session;
use crate::plane::store::{MeshToken, StoreError};
use crate::plane::streams::{End, Handle};
use crate::plane::workload::{self, Origin};

/// After a token could not be renewed.
const RETRY: Duration = Duration::from_secs(10);
/// Messages to a workload that wait to be sent.
pub(super) const QUEUE: usize = 4;
/// For everything that a workload is told at once, which may be some megabytes.
const TELLING: Duration = Duration::from_secs(60);
/// Heartbeats that may be missing.
const MISSED_HEARTBEATS: u32 = 3;

/// A message on its way. Boxed, because a channel has room for 32 of them from its start, which were 15 KiB a stream.
pub(super) type ToSend = Box<Result<proto::RegisterResponse, Status>>;

/// A stream on which nothing has been said yet.
pub(super) struct WorkloadStream {
    pub(super) onboarding: Arc<Onboarding>,
    pub(super) peer: Peer,
    pub(super) session: Session,
    pub(super) requests: Streaming<proto::RegisterRequest>,
    pub(super) responses: mpsc::Sender<ToSend>,
}

/// A stream of a registered workload.
struct Registered {
    admitted: Admitted,
    handle: Arc<Handle>,
    ended: watch::Receiver<Option<End>>,
    mesh_token: MeshToken,
    /// Of the documents that the workload has from before.
    documents_version: String,
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
        // What it takes to begin is more than what it takes to go on, and is given back.
        match Box::pin(self.establish()).await {
            Ok(registered) => {
                let over = self.follow(&registered).await;
                Box::pin(self.finish(&registered, over)).await;
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
        timeout(self.onboarding.settings.limits.message_timeout, self.responses.send(Box::new(message)))
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
        let documents_version = message.documents_version.clone();
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
        let registered = Registered { admitted, handle, ended, mesh_token, documents_version };
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
        let mut catalogs = onboarding.catalog.subscribe();
        catalogs.mark_changed();
        let mut known: Option<Arc<Catalog>> = None;
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
                        if let Some(over) = Box::pin(self.hear(request)).await {
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
                () = sleep_until(mesh_at) => match Box::pin(self.renew_mesh_token()).await {
                    Ok(at) => mesh_at = at,
                    Err(over) => return over,
                },
                () = sleep_until(session_at) => match Box::pin(self.renew_session()).await {
                    Ok(at) => session_at = at,
                    Err(over) => return over,
                },
                Ok(()) = catalogs.changed() => {
                    let Some(current) = catalogs.borrow_and_update().clone() else { continue };
                    let is_known = known.is_none() && current.version == registered.documents_version;
                    if !is_known && !Box::pin(self.tell(&current, known.as_deref())).await {
                        return stuck();
                    }
                    known = Some(current);
                    // While it was told, nobody listened to it.
                    deadline = Instant::now() + silence;
                }
            }
        }
    }

    /// Sends what is new to a workload that knows `known`: not to everybody at once. False when the other side does not take it.
    async fn tell(&self, catalog: &Catalog, known: Option<&Catalog>) -> bool {
        let Ok(_turn) = self.onboarding.telling.acquire().await else { return false };
        self.onboarding.numbers.documents.increment(1);
        let told = async {
            for message in catalog.messages(known) {
                if !self.say(Say::Documents(message)).await {
                    return false;
                }
            }
            // All places are free again once it was taken.
            self.responses.reserve_many(QUEUE).await.is_ok()
        };
        timeout(TELLING, told).await.unwrap_or(false)
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
