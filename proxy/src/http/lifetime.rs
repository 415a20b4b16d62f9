//! How long an HTTP/1 connection lives by itself.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::config::HttpConnectionManager;

/// The time-out of an idle connection and the end of its life. Both begin a drain, as in Envoy: a request that is on its way is
/// answered yet, with `connection: close`, and the connection ends `drain_timeout` later at the latest. HTTP/2 has GOAWAY for
/// that.
///
/// One timer for the whole life: a request moves the deadline by a store, and only when the timer fires too early is it armed
/// again.
pub(super) struct Lifetime {
    idle: Option<Duration>,
    end: Option<Instant>,
    drain_timeout: Duration,
    last: Instant,
    has_served: bool,
    /// When the drain that has begun is over.
    closes_at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Lifetime {
    /// Of a connection that is opened now.
    pub(super) fn new(config: &HttpConnectionManager) -> Self {
        let now = Instant::now();
        Self {
            idle: config.idle_timeout.filter(|limit| !limit.is_zero()),
            end: config.max_connection_duration.map(|limit| now + limit),
            drain_timeout: config.drain_timeout,
            last: now,
            has_served: false,
            closes_at: None,
            sleep: None,
        }
    }

    /// A request was answered.
    pub(super) fn served(&mut self, now: Instant) {
        self.last = now;
        self.has_served = true;
    }

    /// Whether the next answer is the last one.
    pub(super) fn is_over(&self) -> bool {
        self.closes_at.is_some() || self.end.is_some_and(|end| end <= Instant::now())
    }

    /// Waits until a connection without a request should close. May be dropped and called again.
    pub(super) async fn expired(&mut self) {
        loop {
            let idle = self.idle.map(|limit| self.last + limit);
            let Some(deadline) = self.closes_at.or_else(|| idle.into_iter().chain(self.end).min()) else {
                return std::future::pending().await;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            sleep.as_mut().await;
            if deadline > Instant::now() {
                sleep.as_mut().reset(deadline);
                continue;
            }
            // Who has not said a word has nothing on its way.
            if !self.has_served || self.closes_at.is_some() {
                return;
            }
            let closes_at = deadline + self.drain_timeout;
            self.closes_at = Some(closes_at);
            sleep.as_mut().reset(closes_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RouteConfiguration, RouteSource, TrafficDirection};

    fn lifetime(idle: u64, life: Option<u64>) -> Lifetime {
        let routes = RouteSource::Inline(RouteConfiguration::default().into());
        let mut config = HttpConnectionManager::new("s", TrafficDirection::Inbound, routes);
        config.idle_timeout = Some(Duration::from_secs(idle));
        config.max_connection_duration = life.map(Duration::from_secs);
        config.drain_timeout = Duration::from_secs(5);
        Lifetime::new(&config)
    }

    async fn lasts(lifetime: &mut Lifetime) -> u64 {
        let begun = Instant::now();
        lifetime.expired().await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_drains_before_it_closes() {
        let mut lifetime = lifetime(10, None);
        lifetime.served(Instant::now());
        assert_eq!(lasts(&mut lifetime).await, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_closes_at_once() {
        assert_eq!(lasts(&mut lifetime(10, None)).await, 10);
        assert_eq!(lasts(&mut lifetime(10, Some(3))).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_during_the_drain_is_the_last_one() {
        let mut lifetime = lifetime(10, None);
        lifetime.served(Instant::now());
        assert!(tokio::time::timeout(Duration::from_secs(9), lifetime.expired()).await.is_err());
        assert!(!lifetime.is_over(), "it is not idle long enough");
        lifetime.served(Instant::now());
        assert!(tokio::time::timeout(Duration::from_secs(12), lifetime.expired()).await.is_err());
        assert!(lifetime.is_over(), "it drains");
        assert_eq!(lasts(&mut lifetime).await, 3, "asked anew, it waits for the rest");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_its_life_drains_it_though_it_is_busy() {
        let mut lifetime = lifetime(10, Some(12));
        for _ in 0..3 {
            lifetime.served(Instant::now());
            assert!(!lifetime.is_over());
            assert!(tokio::time::timeout(Duration::from_secs(4), lifetime.expired()).await.is_err());
        }
        lifetime.served(Instant::now());
        assert!(lifetime.is_over());
        assert_eq!(lasts(&mut lifetime).await, 5);
    }
}
