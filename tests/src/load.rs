//! Requests that go on while something happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinHandle;

use crate::http::{self, Connection};

/// Requests, one after the other, until it is stopped; how many there were and how many of them failed.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    running: JoinHandle<usize>,
}

impl Load {
    /// Starts it: a GET of `/` on one connection.
    pub fn start(egress: SocketAddr, host: &'static str) -> Self {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let running = tokio::spawn({
            let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
            async move {
                let mut count = 0;
                let mut connection = Connection::open(egress).await.unwrap();
                while !stop.load(Ordering::SeqCst) {
                    let answer = connection.ask(&http::get_request(host, "/", "")).await;
                    if !matches!(answer, Ok(ref answer) if answer.status == 200) {
                        failed.fetch_add(1, Ordering::SeqCst);
                        connection = Connection::open(egress).await.unwrap();
                    }
                    count += 1;
                }
                count
            }
        });
        Self { stop, failed, running }
    }

    /// Stops it.
    ///
    /// # Panics
    /// When a request has failed, or there were next to none.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        let count = self.running.await.unwrap();
        assert!(count > 10, "only {count} requests");
        assert_eq!(self.failed.load(Ordering::SeqCst), 0, "of {count} requests");
    }
}
