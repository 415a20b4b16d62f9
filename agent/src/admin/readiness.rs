//! Whether the sidecar may get traffic, and if not, why.

use std::fmt;

use tokio::sync::watch;

/// What has to hold before a sidecar is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A workload certificate is there, if configuration asks for one.
    Certificate,
    /// A first configuration was applied.
    Configuration,
    /// Its listeners are bound.
    Listeners,
}

impl Condition {
    const ALL: [Self; 3] = [Self::Certificate, Self::Configuration, Self::Listeners];
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Configuration => "configuration",
            Self::Listeners => "listeners",
        })
    }
}

/// The readiness of one sidecar: others report to it, the admin page shows it. Cheap to clone.
///
/// A condition that was met once stays met: losing the control plane must not take a working sidecar out of service. Draining
/// is for good.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<State>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// By the order of [`Condition::ALL`].
    conditions: [Progress; 3],
    draining: bool,
    /// An operator has said so, and may take it back.
    failed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// With what is known about the cause.
    Waiting(String),
    Met,
}

impl Default for Progress {
    fn default() -> Self {
        Self::Waiting(String::new())
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self(watch::Sender::new(State::default()))
    }
}

impl Readiness {
    /// From now on the condition holds.
    pub fn met(&self, condition: Condition) {
        self.0.send_if_modified(|state| {
            let progress = &mut state.conditions[condition as usize];
            std::mem::replace(progress, Progress::Met) != Progress::Met
        });
    }

    /// Says why a condition does not hold yet; without effect on one that was met.
    pub fn waiting(&self, condition: Condition, reason: impl Into<String>) {
        let reason = Progress::Waiting(reason.into());
        self.0.send_if_modified(|state| {
            let progress = &mut state.conditions[condition as usize];
            let differs = *progress != Progress::Met && *progress != reason;
            if differs {
                *progress = reason;
            }
            differs
        });
    }

    /// From now on it is not ready any more.
    pub fn draining(&self) {
        self.0.send_if_modified(|state| !std::mem::replace(&mut state.draining, true));
    }

    /// It is not ready as long as its health checks are to fail.
    pub fn fail_health_checks(&self, failed: bool) {
        self.0.send_if_modified(|state| std::mem::replace(&mut state.failed, failed) != failed);
    }

    /// Whether [`Self::draining`] was said: nothing that serves is taken away any more.
    pub fn is_leaving(&self) -> bool {
        self.0.borrow().draining
    }

    /// Whether [`Self::draining`] was said, or health checks are to fail.
    pub fn is_draining(&self) -> bool {
        let state = self.0.borrow();
        state.draining || state.failed
    }

    /// Why it is not ready; `None` when it is.
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().reason()
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let mut state = self.0.subscribe();
        // The sender lives in `self`, so the channel cannot be closed while this waits.
        let _ = state.wait_for(|state| state.reason().is_none()).await;
    }
}

impl State {
    fn reason(&self) -> Option<String> {
        if self.draining {
            return Some("draining".to_owned());
        }
        if self.failed {
            return Some("health checks are to fail (/healthcheck/ok ends it)".to_owned());
        }
        Condition::ALL.into_iter().zip(&self.conditions).find_map(|(condition, progress)| match progress {
            Progress::Met => None,
            Progress::Waiting(reason) if reason.is_empty() => Some(format!("waiting for {condition}")),
            Progress::Waiting(reason) => Some(format!("waiting for {condition}: {reason}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_what_is_missing_until_everything_holds() {
        let readiness = Readiness::default();
        assert_eq!(readiness.reason().unwrap(), "waiting for certificate");
        readiness.waiting(Condition::Certificate, "the CA does not answer");
        assert_eq!(readiness.reason().unwrap(), "waiting for certificate: the CA does not answer");
        readiness.met(Condition::Certificate);
        readiness.met(Condition::Configuration);
        readiness.waiting(Condition::Certificate, "the CA went away");
        assert_eq!(readiness.reason().unwrap(), "waiting for listeners");
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        readiness.met(Condition::Listeners);
        waiter.await.unwrap();
        assert_eq!(readiness.reason(), None);
    }

    #[test]
    fn draining_is_for_good() {
        let readiness = Readiness::default();
        Condition::ALL.into_iter().for_each(|condition| readiness.met(condition));
        readiness.draining();
        assert_eq!(readiness.reason().unwrap(), "draining");
        readiness.met(Condition::Listeners);
        assert!(readiness.is_draining());
    }
}
