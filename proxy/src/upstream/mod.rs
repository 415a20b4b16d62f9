//! Upstreams: live clusters, balancing, circuit breakers, passive health.

use std::sync::Arc;

/// A live cluster: what [`crate::config::Cluster`] is compiled into. Shared by all workers.
#[derive(Debug)]
pub struct Cluster {
    name: Arc<str>,
}

impl Cluster {
    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }
}
