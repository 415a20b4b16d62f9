//! Forwarding: attempts, retries, and the bodies of both directions at once (Envoy's router filter).
//!
//! [`run`] prepares the request; `attempts` repeats, `attempt` is one try up to the response head, `response` is the way back.

mod attempt;
mod attempts;
mod response;
mod timeouts;

use http::Method;

pub(super) use self::attempt::{health_of, health_status};
use self::attempts::Attempts;
use self::timeouts::Timeouts;
use super::exchange::{Exchange, Outcome};
use super::forwarding::Overrides;
use super::head::Known;
use super::local_reply::LocalReply;
use super::request_body::RequestBody;
use super::responder::Responder;
use super::retry::{Policy, Retries};
use super::route::{ClusterChoice, ForwardRoute, RouteMatch};
use super::{connect, hash, mirror};
use crate::error::ErrorKind;

/// Forwards a request to the route's cluster and streams the response back.
pub(super) async fn run(
    exchange: &mut Exchange,
    found: RouteMatch<'_>,
    action: &ForwardRoute,
    choice: &ClusterChoice,
    body: &mut RequestBody,
    out: &mut Responder,
) -> Outcome {
    let route = &**found.route;
    let Some(cluster) = choice.cluster.clone() else {
        return exchange.fail(body, out, ErrorKind::NoCluster(503), Some(route)).await;
    };
    if let Some(refusal) = strictly_checked(exchange) {
        return exchange.reply(body, out, refusal, Some(route)).await;
    }
    let hashed = hash::of_request(&action.hash_policy, &exchange.request, &exchange.info);
    let stream = timeouts::stream_duration(exchange, action);
    let overrides = exchange.overrides.take();
    let wished = overrides.as_deref().and_then(|wish| wish.retry_policy(action.retry.as_deref()));
    let policy = wished.as_ref().or(action.retry.as_deref());
    let timeouts = Timeouts::of(exchange, action, policy.map(Policy::config), overrides.as_deref());
    let suppress = exchange.connection.manager.config.suppress_envoy_headers;
    timeouts.announce(&mut exchange.request, std::time::Duration::ZERO, suppress);
    if found.virtual_host.include_request_attempt_count {
        exchange.request.headers.set(Known::XEnvoyAttemptCount, b"1");
    }
    exchange.info.attempts = 1;
    // As the caller wrote it: a rewritten host changes neither SNI nor what the certificate must say.
    let host = exchange.request.host().filter(|_| cluster.current().asks_for_host()).map(std::rc::Rc::from);
    route.apply_request(&mut exchange.request, choice, &exchange.info, !suppress);
    exchange.inject_span();
    if exchange.request.method == Method::CONNECT {
        return connect::run(exchange, found, choice, &cluster, body, out).await;
    }
    mirror::send(exchange, action, timeouts.request, body);
    let mut retries = Retries::new(policy, &exchange.request);
    if retries.needs_replay() {
        body.keep(action.request_body_buffer_limit);
    }
    let mut attempts = Attempts::new(exchange, found, action, choice, cluster, body, out, timeouts, hashed, host);
    attempts.start_timers(stream);
    attempts.run(&mut retries).await
}

/// The answer to a caller whose control headers do not hold what they must (`strict_check_headers`). Only internal callers get
/// one: the headers of others are gone by now.
fn strictly_checked(exchange: &Exchange) -> Option<LocalReply> {
    let config = &exchange.connection.manager.config;
    let overrides: &Overrides = exchange.overrides.as_deref()?;
    config.strict_check_headers.iter().find_map(|name| overrides.invalid_value(name)).map(|(name, value)| {
        LocalReply::new(
            http::StatusCode::BAD_REQUEST,
            [b"invalid header '", name.as_bytes(), b"' with value '", value, b"'"].concat(),
            crate::flags::ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS,
            format!("request_headers_failed_strict_check{{{name}}}"),
        )
    })
}
