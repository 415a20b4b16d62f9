//! Mirrored requests: copies whose responses are thrown away (Envoy `request_mirror_policies`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::body::{BodySize, Frame};
use super::exchange::Exchange;
use super::forwarding::mirror_request;
use super::head::{RequestHead, ResponseHead};
use super::pipe::Source;
use super::request_body::RequestBody;
use super::route::ForwardRoute;
use super::subrequest::converse;
use crate::error::Error;
use crate::proxy::Worker;
use crate::upstream::pool::Protocol;
use crate::upstream::{Cluster, PickContext};

/// Body frames that may wait for a slow mirror; then the copy is given up, never the request.
const QUEUE: usize = 64;
/// A mirror that takes longer is given up, where the route has no time-out of its own.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends the route's copies, each for its share of the requests. A copy has as much time as the request itself.
pub(super) fn send(exchange: &Exchange, action: &ForwardRoute, timeout: Option<Duration>, body: &mut RequestBody) {
    for mirror in action.mirrors.iter().filter(|mirror| mirror.fraction.draw()) {
        let Some(cluster) = mirror.cluster.clone() else { continue };
        let mut head = exchange.request.clone();
        mirror_request(&mut head, mirror.keeps_host);
        let size = body.size();
        let frames = if size.is_empty() { None } else { Some(mpsc::channel(QUEUE)) };
        let (tee, frames) = frames.unzip();
        body.tee(tee);
        let worker = exchange.connection.worker.clone();
        let timeout = timeout.unwrap_or(TIMEOUT);
        tokio::task::spawn_local(async move {
            let copy = tokio::time::timeout(timeout, copy(worker, cluster.clone(), head, size, frames)).await;
            if let Ok(Err(error)) = copy {
                tracing::debug!(cluster = %cluster.name(), %error, "mirrored request failed");
            }
        });
    }
}

async fn copy(
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    head: RequestHead,
    size: BodySize,
    frames: Option<mpsc::Receiver<Frame>>,
) -> Result<(), Error> {
    let endpoint = cluster.pick(&PickContext::default()).map_err(Error::new)?;
    let _active = endpoint.start_request();
    let protocol = Protocol::of(cluster.current().config().protocol, head.version);
    let mut lease = worker.pool.get(&cluster, &endpoint, protocol, None, head.host(), None).await?;
    let mut source = frames.map_or(Source::Empty, Source::Channel);
    converse(&mut lease, &head, size, |cx| source.poll_frame(cx), &mut ResponseHead::default(), |_| Ok(())).await
}
