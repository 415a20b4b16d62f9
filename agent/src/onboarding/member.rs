//! A workload's membership: the registration is held for as long as the workload runs, whatever happens to the plane, and given
//! up before it ends.
//!
//! Losing the plane changes nothing that serves: configuration, certificates and listeners stay. What comes with a new stream
//! (tokens, roots, documents) is taken over by what runs.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Say;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Told;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::Streaming;

use super::boot::{Boot, Volatile};
use super::client::{self, Connection, OnboardingError, PlaneClient, Registration, Session, request};
use super::config::GroupName;
use super::credential::CredentialOrigin;
use super::documents::Assembly;
use super::proof;
use crate::identity::{Backoff, ControlPlaneConnector, Token};
use crate::metrics::Metrics;
use crate::sidecar::PushedDocuments;
use crate::xds::HealthReport;

/// Messages that wait to be sent. More are waiting only when the stream does not move: it is given up then.
const QUEUE: usize = 16;
/// How long giving up the registration may take of the time that a task has to stop.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts to give it up.
const LEAVE_PAUSE: Duration = Duration::from_millis(250);

/// What a stream keeps up to date, and the sidecar reads.
pub(super) struct Live {
    pub(super) mesh_token: watch::Sender<Option<Token>>,
    pub(super) roots: watch::Sender<Arc<[u8]>>,
    pub(super) documents: watch::Sender<PushedDocuments>,
}

/// How a workload joins.
pub(super) struct Joining {
    pub(super) plane: PlaneClient,
    pub(super) group: GroupName,
    pub(super) credentials: CredentialOrigin,
    pub(super) registration: Registration,
    pub(super) first_retry: Duration,
    pub(super) retry_cap: Duration,
}

/// The registration of this workload.
pub(super) struct Member {
    joining: Joining,
    pub(super) live: Live,
    /// What the plane said first.
    pub(super) boot: watch::Sender<Option<Boot>>,
    pub(super) health: watch::Sender<HealthReport>,
    leaving: watch::Sender<bool>,
    state: Mutex<State>,
    numbers: Mutex<Option<Numbers>>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// Of the stream that is open.
    connection: Option<Connection>,
    propagation_delay: Duration,
    documents: Assembly,
}

struct Numbers {
    connected: Gauge,
    failures: Counter,
}

/// An open registration.
struct Stream {
    requests: mpsc::Sender<proto::RegisterRequest>,
    responses: Streaming<proto::RegisterResponse>,
    heartbeat: Duration,
}

impl Member {
    pub(super) fn new(joining: Joining) -> Self {
        let live = Live {
            mesh_token: watch::Sender::new(None),
            roots: watch::Sender::new(Arc::from([])),
            documents: watch::Sender::new(None),
        };
        Self {
            joining,
            live,
            boot: watch::Sender::new(None),
            health: watch::Sender::new(None),
            leaving: watch::Sender::new(false),
            state: Mutex::default(),
            numbers: Mutex::new(None),
        }
    }

    /// How the plane is reached.
    pub(super) fn plane(&self) -> &ControlPlaneConnector {
        self.joining.plane.connector()
    }

    /// From now on it is counted.
    pub(super) fn count(&self, metrics: &Metrics) {
        let numbers = Numbers {
            connected: metrics.gauge("skiff_onboarding_connected", "1 while the registration's stream is open, otherwise 0."),
            failures: metrics.counter("skiff_onboarding_failures_total", "Registrations that ended or were refused."),
        };
        numbers.connected.set(if self.state().connection.is_some() { 1.0 } else { 0.0 });
        *self.numbers.lock().unwrap_or_else(PoisonError::into_inner) = Some(numbers);
    }

    /// Registers, and registers again whenever the stream ends, until dropped. Who is leaving does not come back.
    pub(super) async fn hold(&self) -> Infallible {
        let mut backoff = Backoff::new(self.joining.first_retry, self.joining.retry_cap);
        loop {
            let established = tokio::select! {
                established = self.establish() => established,
                () = self.is_leaving() => std::future::pending().await,
            };
            let error = match established {
                Ok(stream) => {
                    backoff.reset();
                    self.note(|numbers| numbers.connected.set(1.0));
                    let Err(error) = self.follow(stream).await;
                    error
                }
                Err(error) => error,
            };
            self.state().connection = None;
            if *self.leaving.borrow() {
                std::future::pending::<()>().await;
            }
            self.note(|numbers| {
                numbers.connected.set(0.0);
                numbers.failures.increment(1);
            });
            let wait = if error.is_superseded() { self.joining.retry_cap } else { backoff.next_wait() };
            let registered = self.boot.borrow().is_some();
            match registered {
                true => tracing::warn!(%error, retry_in = ?wait, "no registration with the onboarding plane; what serves stays"),
                false => tracing::warn!(%error, retry_in = ?wait, "not onboarded yet"),
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.is_leaving() => std::future::pending().await,
            }
        }
    }

    /// Gives the registration up; how long others may still send requests. Ends in some seconds, whatever the plane does.
    pub(super) async fn leave(&self) -> Duration {
        self.leaving.send_replace(true);
        self.health.send_replace(Some(Err("the workload is being stopped".to_owned())));
        let unregistered = timeout(LEAVE_TIMEOUT, async {
            loop {
                match self.unregister().await {
                    Ok(delay) => return delay,
                    Err(error) => tracing::warn!(%error, "not unregistered yet"),
                }
                self.state().connection = None;
                sleep(LEAVE_PAUSE).await;
            }
        });
        match unregistered.await {
            Ok(delay) => {
                tracing::info!(propagation_delay = ?delay, "unregistered from the onboarding plane");
                delay
            }
            Err(_) => {
                tracing::error!("not unregistered: the onboarding plane has to find out by itself");
                self.state().propagation_delay
            }
        }
    }

    async fn unregister(&self) -> Result<Duration, OnboardingError> {
        let connection = self.state().connection.clone();
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.joining.plane.connect().await?,
        };
        let session = self.session(&mut connection).await?;
        let answer = connection.unregister(&session).await;
        if answer.as_ref().is_err_and(OnboardingError::is_about_the_session) {
            self.state().session = None;
        }
        answer
    }

    async fn is_leaving(&self) {
        // The sender lives in `self`, so the channel cannot be closed while this waits.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    /// A stream whose Boot has come.
    async fn establish(&self) -> Result<Stream, OnboardingError> {
        let mut connection = self.joining.plane.connect().await?;
        let had_session = self.state().session.is_some();
        let session = self.session(&mut connection).await?;
        let stream = match self.register(&mut connection, &session).await {
            // A token that the plane does not take any more: our own clock may have misjudged it, or the plane has new keys.
            Err(error) if had_session && error.is_about_the_session() => {
                self.state().session = None;
                let session = self.session(&mut connection).await?;
                self.register(&mut connection, &session).await
            }
            stream => stream,
        };
        if stream.as_ref().is_err_and(OnboardingError::is_about_the_session) {
            self.state().session = None;
        }
        let stream = stream?;
        self.state().connection = Some(connection);
        Ok(stream)
    }

    /// The session in force, or a new one for a fresh credential.
    async fn session(&self, connection: &mut Connection) -> Result<Session, OnboardingError> {
        let current = self.state().session.clone();
        if let Some(session) = current.filter(|session| session.is_fresh(self.joining.plane.now())) {
            return Ok(session);
        }
        let session = match self.authorize(connection).await {
            // Between the two calls the plane was restarted, or the connection was made anew and led elsewhere. Twice in a row is a
            // balancer that spreads calls instead of connections: that is worth a pause.
            Err(error) if error.is_of_another_replica() => {
                tracing::info!(%error, "beginning anew");
                self.authorize(connection).await?
            }
            session => session?,
        };
        self.state().session = Some(session.clone());
        Ok(session)
    }

    async fn authorize(&self, connection: &mut Connection) -> Result<Session, OnboardingError> {
        let Joining { plane, group, credentials, .. } = &self.joining;
        tracing::info!(address = plane.address(), "obtaining discovery information from the Workload Onboarding Plane ...");
        let challenge = connection.discover().await?;
        let procured = proof::procure(credentials, &challenge.plane_uid, &challenge.nonce).await;
        let credential = procured.map_err(|error| OnboardingError::Credential(error.to_string()))?;
        tracing::info!(
            plane = challenge.plane_uid,
            workload_group = format_args!("{}/{}", group.namespace, group.name),
            "agent using platform-specific credential procured by \"{}-credential\" to request authorization for onboarding ...",
            credentials.name()
        );
        connection.authorize(group, credential).await
    }

    async fn register(&self, connection: &mut Connection, session: &Session) -> Result<Stream, OnboardingError> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let message = {
            let documents = &mut self.state().documents;
            documents.interrupt();
            self.joining.registration.message(documents.version())
        };
        send(&requests, message)?;
        let mut responses = connection.register(session, receiver).await?;
        let Told::Boot(boot) = client::first(&mut responses).await? else {
            return Err(OnboardingError::Invalid("the first message is no Boot".to_owned()));
        };
        let (boot, volatile) = Boot::read(boot)?;
        let heartbeat = volatile.heartbeat;
        self.take(boot, volatile);
        Ok(Stream { requests, responses, heartbeat })
    }

    /// Takes over what a Boot says.
    fn take(&self, boot: Boot, volatile: Volatile) {
        let Volatile { roots, mesh_token, propagation_delay, .. } = volatile;
        self.live.roots.send_if_modified(|current| {
            let differs = **current != *roots;
            if differs {
                *current = roots.into();
            }
            differs
        });
        self.live.mesh_token.send_replace(Some(mesh_token.token));
        self.state().propagation_delay = propagation_delay;
        tracing::info!(name = boot.name, namespace = boot.namespace, "registered with the onboarding plane");
        let before = self.boot.borrow().clone();
        match before {
            None => _ = self.boot.send_replace(Some(boot)),
            Some(before) if before == boot => {}
            Some(_) => tracing::warn!("the onboarding plane describes this workload anew; it takes effect with the next start"),
        }
    }

    /// One stream, for as long as it lasts.
    async fn follow(&self, stream: Stream) -> Result<Infallible, OnboardingError> {
        let Stream { requests, mut responses, heartbeat } = stream;
        let mut beats = interval(heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = self.health.subscribe();
        health.mark_changed();
        loop {
            tokio::select! {
                told = client::next(&mut responses) => self.told(told?)?,
                _ = beats.tick() => send(&requests, request(Say::Heartbeat(proto::Heartbeat {})))?,
                Ok(()) = health.changed() => {
                    let report = health.borrow_and_update().clone();
                    if let Some(report) = report {
                        let error = report.err().unwrap_or_default();
                        send(&requests, request(Say::Health(proto::Health { error })))?;
                    }
                }
            }
        }
    }

    fn told(&self, told: Told) -> Result<(), OnboardingError> {
        match told {
            Told::Boot(_) => return Err(OnboardingError::Invalid("a second Boot".to_owned())),
            Told::MeshToken(token) => {
                let token = Session::new(&token.token, token.expires_at)?;
                tracing::info!("mesh token renewed");
                self.live.mesh_token.send_replace(Some(token.token));
            }
            Told::SessionToken(token) => {
                let session = Session::new(&token.token, token.expires_at)?;
                tracing::info!("onboarding token renewed");
                self.state().session = Some(session);
            }
            Told::Documents(documents) => self.take_documents(documents)?,
        }
        Ok(())
    }

    fn take_documents(&self, told: proto::Documents) -> Result<(), OnboardingError> {
        let complete = self.state().documents.take(told).map_err(OnboardingError::Invalid)?;
        if complete.is_some() {
            self.live.documents.send_if_modified(|current| {
                let differs = *current != complete;
                if differs {
                    *current = complete;
                }
                differs
            });
        }
        Ok(())
    }

    fn note(&self, note: impl FnOnce(&Numbers)) {
        if let Some(numbers) = &*self.numbers.lock().unwrap_or_else(PoisonError::into_inner) {
            note(numbers);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(requests: &mpsc::Sender<proto::RegisterRequest>, message: proto::RegisterRequest) -> Result<(), OnboardingError> {
    requests.try_send(message).map_err(|error| match error {
        TrySendError::Full(_) => OnboardingError::Stuck,
        TrySendError::Closed(_) => OnboardingError::Closed,
    })
}
