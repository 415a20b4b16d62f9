//! What happens without anybody asking: registrations that are over are removed, streams that are no longer admitted end.
//!
//! Losing a stream says nothing about a workload: a plane that restarts loses all of them at once. A registration goes when the
//! workload has unregistered, when its platform says that it is gone, or when it has been without stream for the retention period
//! and the control plane does not see it either. For a full period after a start nothing is removed for being lost.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::Onboarding;
use super::admission::{Denial, connection_of, reason};
use crate::plane::objects::{ConditionStatus, ObjectKey, Timestamp, WorkloadAutoRegistration, WorkloadEntry};
use crate::plane::store::{CONNECTED_AT, ControlPlane, DISCONNECTED_AT, Expected, StoreError};
use crate::plane::streams::{End, Handle};

/// How often registrations that have left are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often all registrations are looked at, at most and at least.
const SWEEPS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Quiet time after a change of policies or registrations before streams are reviewed.
const REVIEW_PAUSE: Duration = Duration::from_millis(300);
/// Workloads whose platform is asked in one sweep whether they are gone.
const MAX_QUESTIONS: usize = 50;

/// Registrations whose workloads have unregistered, and when they go.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<BTreeMap<ObjectKey, (SystemTime, Expected)>>);

impl Departures {
    fn add(&self, name: ObjectKey, at: SystemTime, expected: Expected) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, (at, expected));
    }

    fn due(&self, now: SystemTime) -> Vec<(ObjectKey, Expected)> {
        let mut departures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        departures.extract_if(.., |_, (at, _)| *at <= now).map(|(name, (_, expected))| (name, expected)).collect()
    }
}

impl Onboarding {
    /// Runs what has to be done by itself; never returns.
    pub(in crate::plane) async fn run(&self) -> Infallible {
        let never = tokio::join!(self.keep_up(), self.keep_reviewing(), self.keep_telling()).0;
        match never {}
    }

    async fn keep_up(&self) -> Infallible {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pause = (self.settings.retention / 10).clamp(SWEEPS.0, SWEEPS.1);
        let mut next_sweep = Instant::now();
        loop {
            ticks.tick().await;
            self.see_off().await;
            if Instant::now() >= next_sweep {
                self.sweep().await;
                next_sweep = Instant::now() + pause;
            }
            let (held, lost) = self.streams.counts();
            // A gauge is a float; no count of workloads comes near where that loses a digit.
            self.numbers.streams.set(held as f64);
            self.numbers.without_stream.set(lost as f64);
        }
    }

    async fn keep_reviewing(&self) -> Infallible {
        let mut changes = self.store.changes();
        loop {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            sleep(REVIEW_PAUSE).await;
            changes.mark_unchanged();
            let started = Instant::now();
            self.review().await;
            // However many workloads there are, most of the time is left for them.
            sleep(started.elapsed() * 10).await;
        }
    }

    /// Takes the entry of a workload away, and later its registration.
    pub(super) async fn depart(&self, registration: &WorkloadAutoRegistration) -> Result<(), StoreError> {
        let name = registration.key();
        self.store.delete_entry(&name, &Expected::any()).await?;
        let noted = self.note_connection(&name, connection_of(registration), false, reason::UNREGISTERED).await?;
        self.streams.forget(&name, End::Unregistered);
        if let Some(noted) = noted {
            let at = self.clock.now() + self.settings.propagation_delay;
            self.departures.add(name, at, Expected::version_of(&noted.metadata));
        }
        Ok(())
    }

    /// Removes registrations that have left long enough ago, unless their workload has come back.
    pub(super) async fn see_off(&self) {
        for (name, expected) in self.departures.due(self.clock.now()) {
            match self.store.delete_registration(&name, &expected).await {
                Ok(true) => self.note_removal(&name, &self.numbers.removals.unregistered, "unregistered"),
                Ok(false) | Err(StoreError::Conflict(_)) => {}
                // The sweep finds it.
                Err(error) => tracing::warn!(%error, %name, "a registration could not be removed"),
            }
        }
    }

    fn note_removal(&self, name: &ObjectKey, counter: &metrics::Counter, reason: &'static str) {
        counter.increment(1);
        tracing::info!(target: "audit", event = "removal", decision = "removed", %name, reason);
    }

    /// Notes that a workload has lost its stream.
    pub(super) async fn lose(&self, handle: &Handle) {
        if !self.streams.lose(handle, self.clock.now()) {
            return;
        }
        let name = &handle.session.name;
        if let Err(error) = self.note_connection(name, handle.connection, false, reason::LOST).await {
            tracing::warn!(%error, %name, "a lost stream could not be noted");
        }
    }

    /// Removes the objects of a workload that no policy admits any longer.
    pub(super) async fn expel(&self, handle: &Handle) {
        let name = &handle.session.name;
        self.streams.lose(handle, self.clock.now());
        match self.remove(name).await {
            Ok(_) => {
                self.streams.forget(name, End::Denied);
                self.note_removal(name, &self.numbers.removals.policy, "not authorized by OnboardingPolicy");
            }
            Err(error) => tracing::warn!(%error, %name, "a registration could not be removed"),
        }
    }

    /// Ends the streams of workloads that are no longer admitted, whose registration is gone, or that hold a newer one elsewhere.
    pub(super) async fn review(&self) {
        for handle in self.streams.all() {
            let session = &handle.session;
            match self.store.registration(&session.name).await {
                Ok(None) => {
                    handle.end(End::Removed);
                    continue;
                }
                Ok(Some(registration)) if connection_of(&registration) > handle.connection => {
                    handle.end(End::Superseded);
                    continue;
                }
                // What cannot be read changes nothing.
                Ok(Some(_)) | Err(_) => {}
            }
            if let Err(Denial::NoGroup | Denial::Policy(_)) = self.decide(&session.subject, &session.group).await {
                handle.end(End::Denied);
            }
        }
    }

    /// Looks at every registration once, where no other replica does.
    pub(super) async fn sweep(&self) {
        if !self.store.collects() {
            return;
        }
        let read = async { Ok::<_, StoreError>((self.store.registrations(None).await?, self.store.entries(None).await?)) };
        let (registrations, entries) = match read.await {
            Ok(read) => read,
            Err(error) => return tracing::warn!(%error, "registrations cannot be looked through"),
        };
        let entries: BTreeMap<_, _> = entries.iter().map(|entry| (entry.key(), entry)).collect();
        let mut questions = MAX_QUESTIONS;
        for registration in &registrations {
            let name = registration.key();
            let removals = &self.numbers.removals;
            let over = if self.has_left(registration) {
                Some((&removals.unregistered, "unregistered"))
            } else if self.is_without_group(registration).await {
                Some((&removals.group, "its WorkloadGroup is gone"))
            } else if self.is_overdue(registration, entries.get(&name).copied()) {
                Some((&removals.lost, "lost"))
            } else if self.is_stopped(registration, &mut questions).await {
                Some((&removals.stopped, "its platform says that it is gone"))
            } else {
                None
            };
            let Some((counter, why)) = over else {
                self.correct(registration).await;
                continue;
            };
            match self.store.delete_registration(&name, &Expected::version_of(&registration.metadata)).await {
                Ok(_) => {
                    // Kubernetes removes what is owned as well, but later.
                    let _ = self.store.delete_entry(&name, &Expected::any()).await;
                    self.streams.forget(&name, End::Removed);
                    self.note_removal(&name, counter, why);
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => tracing::warn!(%error, %name, "a registration could not be removed"),
            }
        }
    }

    /// Takes back that an agent is connected to us who was so before our start and has not come back.
    async fn correct(&self, registration: &WorkloadAutoRegistration) {
        let name = registration.key();
        let status = &registration.status;
        let claims = status.active_agent_connection.as_ref().is_some_and(|to| to.connected_to == self.settings.instance);
        let grace_is_over = self.clock.now() >= self.streams.started() + self.settings.start_grace;
        if claims && grace_is_over && self.streams.lost_since(&name) == Some(self.streams.started()) {
            let noted = self.note_connection(&name, connection_of(registration), false, reason::LOST).await;
            if let Err(error) = noted {
                tracing::warn!(%error, %name, "a lost stream could not be noted");
            }
        }
    }

    /// Of a plane that was stopped before it could remove it.
    fn has_left(&self, registration: &WorkloadAutoRegistration) -> bool {
        let condition = registration.status.agent_connected();
        let since = condition.filter(|condition| condition.reason == reason::UNREGISTERED);
        since
            .and_then(|condition| condition.last_transition_time)
            .is_some_and(|since| since.time() + self.settings.propagation_delay + TICK <= self.clock.now())
    }

    async fn is_without_group(&self, registration: &WorkloadAutoRegistration) -> bool {
        let namespace = &registration.metadata.namespace;
        let Some(owner) = registration.metadata.owner_references.first() else { return false };
        matches!(self.store.workload_group(&ObjectKey::new(namespace, &owner.name)).await, Ok(None))
    }

    fn is_overdue(&self, registration: &WorkloadAutoRegistration, entry: Option<&WorkloadEntry>) -> bool {
        let (now, retention) = (self.clock.now(), self.settings.retention);
        let Some(lost) = self.streams.lost_since(&registration.key()) else { return false };
        if now < self.streams.started() + retention {
            return false;
        }
        let connection = registration.status.active_agent_connection.as_ref();
        let is_connected =
            |_: &_| registration.status.agent_connected().is_some_and(|condition| condition.status == ConditionStatus::True);
        // Another replica may have the stream, and end before it has noted that it lost it.
        let elsewhere = connection.filter(is_connected).is_some_and(|other| other.connected_to != self.settings.instance);
        match self.store.control_plane() {
            ControlPlane::Plane => lost + retention <= now,
            ControlPlane::Istiod => {
                let wait = if elsewhere { 2 * retention } else { retention };
                let annotation = |name: &str| entry.and_then(|entry| entry.metadata.annotations.get(name));
                if annotation(CONNECTED_AT).is_some() {
                    return false;
                }
                let unseen =
                    annotation(DISCONNECTED_AT).and_then(|at| at.parse::<Timestamp>().ok()).map_or(lost, Timestamp::time);
                unseen + wait <= now && (elsewhere || lost + retention <= now)
            }
        }
    }

    async fn is_stopped(&self, registration: &WorkloadAutoRegistration, questions: &mut usize) -> bool {
        let Some(lost) = self.streams.lost_since(&registration.key()) else { return false };
        if lost + self.settings.disconnect_grace > self.clock.now() || *questions == 0 {
            return false;
        }
        *questions -= 1;
        self.verifiers.is_gone(&registration.spec.identity).await
    }
}
