//! A one-way signal: what it concerns should come to its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// What an HTTP/1 connection without a request gets when a drain begins: one may be on its way.
pub(crate) const IDLE_GRACE: Duration = Duration::from_secs(1);

/// Tells tasks that they should end. Connections do after the request in flight on HTTP/1, by GOAWAY on HTTP/2.
#[derive(Debug, Default)]
pub struct Drain {
    draining: AtomicBool,
    begun: Notify,
}

impl Drain {
    /// Begins the drain; it never ends.
    pub fn begin(&self) {
        self.draining.store(true, Ordering::Release);
        self.begun.notify_waiters();
    }

    /// Whether it has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until it begins.
    pub async fn wait(&self) {
        let begun = self.begun.notified();
        // Registered first, looked at afterwards: a drain that begins in between is not missed.
        if !self.is_draining() {
            begun.await;
        }
    }

    /// Waits until a connection that has carried nothing yet should close.
    pub async fn wait_unused(&self) {
        self.wait().await;
        tokio::time::sleep(IDLE_GRACE).await;
    }
}
