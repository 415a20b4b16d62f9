//! Which replica removes what has ended: the one that holds a Lease. Times of other replicas are not compared with ours; a lease
//! is free when it has not changed for as long as it lasts.

use std::time::{Duration, SystemTime};

use kube::core::Request;
use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::client::{ApiServer, CallError, segment};

/// Name of the Lease.
const NAME: &str = "skiff-plane";
/// For how long it is held after it was renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(4);
/// Who could not renew it for so long lets go before others take it.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether `replica` holds the lease, and what has to run for it.
pub(super) fn hold(
    server: ApiServer,
    namespace: String,
    replica: String,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + use<>) {
    let (held, holds) = watch::channel(false);
    let place = Request::new(format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", segment(&namespace)));
    let holder = Holder { server, place, namespace, replica, held, seen: None, renewed: None };
    (holds, holder.run())
}

struct Holder {
    server: ApiServer,
    place: Request,
    namespace: String,
    replica: String,
    held: watch::Sender<bool>,
    /// The version of somebody else's lease, and since when it has been this one.
    seen: Option<(String, Instant)>,
    /// When ours was last written.
    renewed: Option<Instant>,
}

impl Holder {
    async fn run(mut self) {
        let mut failing = false;
        loop {
            match self.take_or_renew().await {
                Ok(holds) => {
                    failing = false;
                    self.set(holds);
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!("Lease {}/{NAME}: {error}", self.namespace);
                    }
                    failing = true;
                    if self.renewed.is_none_or(|renewed| renewed.elapsed() > LIMIT) {
                        self.set(false);
                    }
                }
            }
            sleep(RENEWAL).await;
        }
    }

    fn set(&self, holds: bool) {
        let changed = self.held.send_if_modified(|held| std::mem::replace(held, holds) != holds);
        if changed {
            tracing::info!(replica = self.replica, collects = holds, "who removes what has ended");
        }
    }

    async fn take_or_renew(&mut self) -> Result<bool, CallError> {
        let start = Instant::now();
        let lease: Option<Json> = self.server.get(&self.place, NAME).await?;
        let request = match &lease {
            None => self.place.create(&Default::default(), self.body(None).to_string().into_bytes()),
            Some(lease) if self.is_for_us(lease) => {
                self.place.replace(NAME, &Default::default(), self.body(Some(lease)).to_string().into_bytes())
            }
            Some(_) => return Ok(false),
        };
        match self.server.call::<Json>(request?).await {
            Ok(_) => {
                self.renewed = Some(start);
                Ok(true)
            }
            // Another one was faster.
            Err(error) if error.code() == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it is ours, or nobody has renewed it for as long as it lasts.
    fn is_for_us(&mut self, lease: &Json) -> bool {
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if holder == self.replica || holder.is_empty() {
            return true;
        }
        let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if seen == version => since.elapsed() > DURATION,
            _ => {
                self.seen = Some((version.to_owned(), Instant::now()));
                false
            }
        }
    }

    fn body(&self, known: Option<&Json>) -> Json {
        let now = micro_time(SystemTime::now());
        let ours = known.is_some_and(|lease| lease["spec"]["holderIdentity"] == self.replica);
        let transitions = known.and_then(|lease| lease["spec"]["leaseTransitions"].as_i64()).unwrap_or(0);
        let acquired =
            known.filter(|_| ours).map_or_else(|| Json::from(now.clone()), |lease| lease["spec"]["acquireTime"].clone());
        let mut metadata = json!({"name": NAME, "namespace": self.namespace});
        if let Some(lease) = known {
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"].clone();
        }
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.replica,
                "leaseDurationSeconds": DURATION.as_secs(),
                "acquireTime": acquired,
                "renewTime": now,
                "leaseTransitions": transitions + i64::from(known.is_some() && !ours),
            },
        })
    }
}

/// As Kubernetes' MicroTime is written.
fn micro_time(time: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    OffsetDateTime::from(time).format(format).unwrap_or_default()
}
