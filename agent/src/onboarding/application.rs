//! When the application of a task has stopped, as the task metadata endpoint tells.
//!
//! Without `SKIFF_APP_CONTAINERS` every container of the task but our own counts, and only once the task is being stopped: a
//! container that is done may be one that prepares others. Containers that are named end the sidecar with them, so that a task that
//! does one job ends when the job is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::aws::metadata::{ContainerMetadata, MetadataClient, TaskMetadata};

/// How often the endpoint is asked, only by those who have to know.
const INTERVAL: Duration = Duration::from_millis(500);

/// The application beside the sidecar. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Application(Option<Arc<Task>>);

struct Task {
    metadata: MetadataClient,
    own: ContainerMetadata,
    /// `SKIFF_APP_CONTAINERS`; empty when the user has named none.
    names: Vec<String>,
}

impl Application {
    /// One that nothing is known about.
    pub(super) fn unknown() -> Self {
        Self(None)
    }

    /// That of a task.
    pub(super) fn of_task(metadata: MetadataClient, own: ContainerMetadata, names: Vec<String>) -> Self {
        Self(Some(Arc::new(Task { metadata, own, names })))
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
            Some(task) if !task.names.is_empty() => task.stopped().await,
            _ => std::future::pending().await,
        }
    }
}

impl Task {
    async fn stopped(&self) {
        loop {
            match self.metadata.task().await {
                Ok(task) if have_stopped(&task, &self.own, &self.names) => return,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the task does not say how the application is"),
            }
            sleep(INTERVAL).await;
        }
    }
}

/// Whether the containers of these names, or all but `own` when there are none, are there and have stopped.
fn have_stopped(task: &TaskMetadata, own: &ContainerMetadata, names: &[String]) -> bool {
    let counts = |container: &&ContainerMetadata| names.is_empty() || names.contains(&container.name);
    let applications: Vec<_> = task.applications(own).filter(counts).collect();
    let all_there = names.iter().all(|name| applications.iter().any(|container| container.name == *name));
    // One that has ended by itself, and that ECS has not noticed, has ended all the same.
    !applications.is_empty() && all_there && applications.iter().all(|container| container.known_status == "STOPPED")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, kind: &str, status: &str) -> String {
        format!(
            r#"{{"DockerId": "id-{name}", "Name": "{name}", "Type": "{kind}", "DesiredStatus": "{status}", "KnownStatus": "{status}"}}"#
        )
    }

    fn task(containers: &[(&str, &str, &str)]) -> TaskMetadata {
        let containers: Vec<_> = containers.iter().map(|(name, kind, status)| container(name, kind, status)).collect();
        let arn = "arn:aws:ecs:us-east-1:123456789012:task/bookinfo/3a151358f03a4e32bf8cd401c1c74653";
        let json = format!(r#"{{"Cluster": "bookinfo", "TaskARN": "{arn}", "Containers": [{}]}}"#, containers.join(","));
        TaskMetadata::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn it_has_stopped_when_all_that_count_have() {
        let own = ContainerMetadata::parse(container("skiff", "NORMAL", "RUNNING").as_bytes()).unwrap();
        let us = ("skiff", "NORMAL", "RUNNING");
        let pause = ("~internal~ecs~pause", "CNI_PAUSE", "RESOURCES_PROVISIONED");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (others, named, expected) in [
            (vec![("app", "NORMAL", "STOPPED")], names(&[]), true),
            (vec![("app", "NORMAL", "RUNNING")], names(&[]), false),
            (vec![("app", "NORMAL", "STOPPED"), ("log", "NORMAL", "RUNNING")], names(&[]), false),
            (vec![("app", "NORMAL", "STOPPED"), ("log", "NORMAL", "RUNNING")], names(&["app"]), true),
            // It waits for one that has not been made yet.
            (vec![("init", "NORMAL", "STOPPED")], names(&["init", "app"]), false),
            (vec![], names(&[]), false),
        ] {
            let all: Vec<_> = others.iter().copied().chain([us, pause]).collect();
            assert_eq!(have_stopped(&task(&all), &own, &named), expected, "{others:?} {named:?}");
        }
    }
}
