//! The way a process ends: drain first, then exit, at once when asked twice.

use std::convert::Infallible;
use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Draining,
    Exiting,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    skips_drain: bool,
}

/// Asks for the end and is waited for by everything that has to end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<State>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(State { phase: Phase::Running, skips_drain: false }))
    }
}

impl Shutdown {
    /// Asks for the end: the first request drains, a second one exits at once.
    pub fn request(&self) {
        self.0.send_modify(|State { phase, skips_drain }| {
            *phase = if *phase == Phase::Running && !*skips_drain { Phase::Draining } else { Phase::Exiting };
        });
    }

    /// Who asks for the end has drained before: the first request exits.
    pub fn skip_drain(&self) {
        self.0.send_modify(|state| state.skips_drain = true);
    }

    /// Whether [`Self::skip_drain`] was said.
    pub fn skips_drain(&self) -> bool {
        self.0.borrow().skips_drain
    }

    /// Whether it has been requested.
    pub fn is_requested(&self) -> bool {
        self.0.borrow().phase >= Phase::Draining
    }

    /// Waits for the first request.
    pub async fn requested(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits for the second request, or for the first one where the drain is skipped.
    pub async fn insisted(&self) {
        self.reached(Phase::Exiting).await;
    }

    /// Makes SIGTERM and SIGINT request the end, for as long as the returned future is polled.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(&self) -> io::Result<impl Future<Output = Infallible> + Send + use<>> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = self.clone();
        Ok(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "asked to stop");
                shutdown.request();
            }
        })
    }

    async fn reached(&self, wanted: Phase) {
        let mut state = self.0.subscribe();
        // The sender lives in `self`, so the channel cannot be closed while this waits.
        let _ = state.wait_for(|state| state.phase >= wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_request_drains_and_two_exit() {
        let shutdown = Shutdown::default();
        let waiting = shutdown.clone();
        let drained = tokio::spawn(async move { waiting.requested().await });
        shutdown.request();
        drained.await.unwrap();
        assert_eq!(shutdown.0.borrow().phase, Phase::Draining);
        shutdown.request();
        shutdown.insisted().await;
        shutdown.request();
        assert_eq!(shutdown.0.borrow().phase, Phase::Exiting);
    }

    #[tokio::test]
    async fn who_has_drained_before_exits_at_once() {
        let shutdown = Shutdown::default();
        shutdown.skip_drain();
        assert!(shutdown.skips_drain() && !shutdown.is_requested());
        shutdown.request();
        shutdown.insisted().await;
    }
}
