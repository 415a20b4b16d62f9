//! CONNECT, as applications send it that set `http_proxy`: the connection becomes a byte tunnel to an endpoint.

use std::borrow::Cow;

use http::StatusCode;

use super::exchange::{Exchange, Outcome};
use super::pipe::send_all;
use super::request_body::RequestBody;
use super::responder::Responder;
use super::route::{ClusterChoice, RouteMatch};
use super::upgrade::Tunnel;
use crate::error::Error;
use crate::upstream::connect::{Connected, Purpose, connect};
use crate::upstream::{Cluster, OpenConnection, PickContext};

/// Dials an endpoint of the cluster, answers 200 and hands both sides to a tunnel.
pub(super) async fn run(
    exchange: &mut Exchange,
    found: RouteMatch<'_>,
    choice: &ClusterChoice,
    cluster: &Cluster,
    body: &RequestBody,
    out: &mut Responder,
) -> Outcome {
    let route = Some(&**found.route);
    let dialled = match dial(exchange, choice, cluster).await {
        Ok(dialled) => dialled,
        Err(error) => {
            let transport = error.source.as_ref().map(ToString::to_string);
            let reply = exchange.local_reply(error.kind.reply(transport.as_deref(), false));
            exchange.info.upstream_transport_failure = transport.map(Into::into);
            return exchange.reply(body, out, reply, route).await;
        }
    };
    exchange.response.clear();
    exchange.response.status = StatusCode::OK;
    exchange.connection.clone().manager.finish_response(exchange, route);
    exchange.info.response_code = StatusCode::OK.as_u16();
    exchange.info.details = "via_upstream".into();
    match out.tunnel_head(&exchange.response) {
        Ok(mut sink) if !out.is_multiplexed() => send_all(&mut sink, Cow::Borrowed(b"")).await,
        Ok(_) => {}
        Err(_) => return Outcome::Done,
    }
    let (connected, open) = dialled;
    let idle = exchange.connection.manager.config.stream_idle_timeout;
    let config = cluster.config();
    let agreed = config.peer_exchange.as_deref().filter(|exchange| exchange.is_agreed(connected.alpn.as_deref()));
    let introduction = agreed.map(|agreed| exchange.connection.worker.local().preamble(&agreed.additional_labels));
    Outcome::Tunnel(Box::new(Tunnel::dialled(connected, open, introduction, idle)))
}

async fn dial(exchange: &mut Exchange, choice: &ClusterChoice, cluster: &Cluster) -> Result<(Connected, OpenConnection), Error> {
    let permit = cluster.breakers().connections.acquire().map_err(Error::new)?;
    let context = PickContext { subset: Some(&choice.metadata_match), ..PickContext::default() };
    let endpoint = cluster.pick(&context).map_err(Error::new)?;
    exchange.info.upstream_host = Some(endpoint.host().clone());
    exchange.endpoint = Some(endpoint.clone());
    exchange.info.attempts = 1;
    let caller = Some((exchange.connection.info.remote, exchange.connection.info.local));
    let connected = connect(cluster, &endpoint, Purpose { caller, ..Purpose::default() }).await?;
    let metrics = cluster.metrics(exchange.connection.worker.metrics());
    Ok((connected, OpenConnection::new(permit, metrics)))
}
