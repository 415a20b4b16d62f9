//! When the application of a task has stopped, as the task metadata endpoint tells.
//!
//! Without `SKIFF_APP_CONTAINERS` every container of the task but our own counts, and only once the task is being stopped: a
//! container that is done may be one that prepares others. Containers that are named end the sidecar with them, so that a task that
//! does one job ends when the job is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::task::{Own, TaskMetadata};

/// How often the endpoint is asked; Amazon's agent allows 40 questions a second.
const INTERVAL: Duration = Duration::from_millis(500);

/// The application beside the sidecar. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Application(Option<Arc<Task>>);

struct Task {
    metadata: TaskMetadata,
    own: Own,
    /// `SKIFF_APP_CONTAINERS`; empty when the user has named none.
    containers: Vec<String>,
}

impl Application {
    /// One that nothing is known about.
    pub(super) fn unknown() -> Self {
        Self(None)
    }

    /// That of a task.
    pub(super) fn of_task(metadata: TaskMetadata, own: Own, containers: Vec<String>) -> Self {
        Self(Some(Arc::new(Task { metadata, own, containers })))
    }

    /// Whether [`Self::stopped`] can return.
    pub(crate) fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until it has stopped; for ever when nothing is known about it.
    pub(crate) async fn stopped(&self) {
        match &self.0 {
            Some(task) => task.stopped().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until containers that the user has named have stopped by themselves; for ever when none is named.
    pub(crate) async fn ended(&self) {
        match &self.0 {
            Some(task) if !task.containers.is_empty() => task.stopped().await,
            _ => std::future::pending().await,
        }
    }
}

impl Task {
    async fn stopped(&self) {
        loop {
            match self.metadata.others_stopped(&self.own, &self.containers).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "the task metadata endpoint does not say how the application is"),
            }
            sleep(INTERVAL).await;
        }
    }
}
