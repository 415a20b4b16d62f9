//! External authorisation (Envoy `envoy.filters.http.ext_authz`): another service decides about every request.
//!
//! Whatever keeps the service from deciding refuses the request, unless `failure_mode_allow` is set. What the service wants
//! changed is checked before any of it is done.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/ext_authz_filter>

mod answer;
mod check;
mod grpc;
mod http_service;
mod message;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;

use self::answer::{Answer, Changes};
pub(super) use self::answer::{HeaderWrite, Write, write_response};
use self::check::Check;
use super::exchange::Exchange;
use super::head::Headers;
use super::local_reply::LocalReply;
use super::request_body::RequestBody;
use super::route::{HeaderMutations, Resolve, RouteError};
use crate::config::{self, AuthzBody, AuthzService, ExtAuthzOverride};
use crate::error::ErrorKind;
use crate::flags::ResponseFlags;
use crate::rbac::metadata_matches;
use crate::telemetry::metrics::AuthzCounters;
use crate::upstream::Cluster;

/// The filter, compiled.
#[derive(Debug)]
pub(super) struct ExtAuthz {
    config: Arc<config::ExtAuthz>,
    /// `None` where the cluster does not exist: then nothing can be asked.
    cluster: Option<Arc<Cluster>>,
    /// Headers that an HTTP service gets beside the request's.
    headers_to_add: HeaderMutations,
    counters: AuthzCounters,
}

/// What a service says for later filters and the log.
type Facts = serde_json::Map<String, serde_json::Value>;

/// Where they find it, whatever the filter is called.
const METADATA: &str = "envoy.filters.http.ext_authz";

/// What came of a request.
pub(super) enum Decision {
    /// It passes.
    Pass,
    /// It passes, and another route may fit now.
    Reroute,
    /// It is answered here.
    Reply(LocalReply),
    /// The caller failed meanwhile.
    Gone(ErrorKind),
}

impl ExtAuthz {
    pub(super) fn compile(
        config: &Arc<config::ExtAuthz>,
        resolve: Resolve<'_>,
        counters: AuthzCounters,
    ) -> Result<Self, RouteError> {
        let headers_to_add = match &config.service {
            AuthzService::Http(service) => {
                let mutations = config::HeaderMutations { request_add: service.headers_to_add.clone(), ..Default::default() };
                HeaderMutations::compile(&mutations)?
            }
            AuthzService::Grpc(_) => HeaderMutations::default(),
        };
        Ok(Self { config: config.clone(), cluster: resolve(config.service.cluster()), headers_to_add, counters })
    }

    /// Asks about the request, and does to it what the service wants. What it wants of the response is left in the exchange for
    /// the filter numbered `index`.
    pub(super) async fn decide(
        &self,
        exchange: &mut Exchange,
        body: &mut RequestBody,
        told: Option<&ExtAuthzOverride>,
        index: usize,
    ) -> Decision {
        if !self.is_enabled(exchange) {
            self.counters.disabled.increment(1);
            return if self.config.deny_at_disable { Decision::Reply(self.error_reply()) } else { Decision::Pass };
        }
        let buffer = self.buffer(exchange, body, told);
        if let Some(buffer) = buffer
            && let Err(decision) = hold(exchange, body, buffer).await
        {
            return decision;
        }
        let start = Instant::now();
        let (answer, mut facts) = {
            let check = Check { exchange, body, buffer, config: &self.config, told };
            Box::pin(self.ask(check)).await
        };
        // While the service was asked, what came of the body was taken in: an answer of ours is then one to a whole request.
        body.prefetch().await;
        if let Some(error) = body.failure() {
            return Decision::Gone(error.kind);
        }
        if !facts.is_empty() {
            if matches!(answer, Answer::Allowed(_)) {
                let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                facts.insert("ext_authz_duration".to_owned(), elapsed.into());
            }
            exchange.info.metadata.get_or_insert_default().merge(METADATA, facts);
        }
        self.act(exchange, answer, index)
    }

    async fn ask(&self, check: Check<'_>) -> (Answer, Facts) {
        let Some(cluster) = &self.cluster else { return (Answer::unreachable(), Facts::new()) };
        let pool = &check.exchange.connection.worker.pool;
        let answer = match &self.config.service {
            AuthzService::Http(service) => {
                http_service::ask(&check, service, &self.headers_to_add, pool, cluster, self.config.timeout).await
            }
            AuthzService::Grpc(service) => grpc::ask(&check, service, pool, cluster, self.config.timeout).await,
        };
        answer.unwrap_or_else(|error| {
            tracing::debug!(cluster = %cluster.name(), %error, "authorisation service cannot be asked");
            (Answer::unreachable(), Facts::new())
        })
    }

    fn is_enabled(&self, exchange: &Exchange) -> bool {
        let by_metadata = self.config.enabled_metadata.as_ref();
        let metadata = exchange.info.metadata.as_deref();
        self.config.enabled.draw() && by_metadata.is_none_or(|wanted| metadata_matches(wanted, metadata))
    }

    /// How much of the body goes along. An upgrade has none that could be waited for.
    fn buffer(&self, exchange: &Exchange, body: &RequestBody, told: Option<&ExtAuthzOverride>) -> Option<AuthzBody> {
        if body.size().is_empty() || exchange.wants_upgrade {
            return None;
        }
        match told {
            Some(told) if told.disable_request_body => None,
            Some(told) => told.request_body.or(self.config.request_body),
            None => self.config.request_body,
        }
    }

    fn act(&self, exchange: &mut Exchange, answer: Answer, index: usize) -> Decision {
        match &answer {
            Answer::Allowed(_) => self.counters.ok.increment(1),
            Answer::Denied(_) => self.counters.denied.increment(1),
            Answer::Failed(_) => self.counters.error.increment(1),
        }
        match answer {
            Answer::Allowed(changes) => self.allow(exchange, *changes, index),
            Answer::Denied(refusal) => match refusal.reply(StatusCode::FORBIDDEN, "ext_authz_denied") {
                Some(reply) => Decision::Reply(reply),
                None => Decision::Reply(invalid()),
            },
            Answer::Failed(_) if self.config.failure_mode_allow => {
                self.counters.failure_mode_allowed.increment(1);
                if self.config.failure_mode_allow_header_add {
                    let headers: &mut Headers = &mut exchange.request.headers;
                    headers.push(b"x-envoy-auth-failure-mode-allowed", b"true");
                }
                Decision::Pass
            }
            Answer::Failed(Some(refusal)) => match refusal.reply(self.status_on_error(), "ext_authz_error") {
                Some(reply) => Decision::Reply(reply),
                None => Decision::Reply(invalid()),
            },
            Answer::Failed(None) => Decision::Reply(self.error_reply()),
        }
    }

    fn allow(&self, exchange: &mut Exchange, changes: Changes, index: usize) -> Decision {
        if let Err(fault) = changes.check() {
            return Decision::Reply(if self.config.validate_mutations { invalid() } else { fault.reply() });
        }
        let changed = changes.apply(&mut exchange.request);
        if !changes.response.is_empty() {
            exchange.pending.push((index, changes.response));
        }
        if changed && self.config.clear_route_cache { Decision::Reroute } else { Decision::Pass }
    }

    fn status_on_error(&self) -> StatusCode {
        StatusCode::from_u16(self.config.status_on_error).unwrap_or(StatusCode::FORBIDDEN)
    }

    fn error_reply(&self) -> LocalReply {
        refusal(self.status_on_error(), "ext_authz_error")
    }
}

fn refusal(status: StatusCode, details: &'static str) -> LocalReply {
    LocalReply::new(status, &b""[..], ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE, details)
}

/// The service wants a header that cannot be.
fn invalid() -> LocalReply {
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "ext_authz_invalid")
}

/// Waits for as much of the body as the service is to be told. Every piece may take as long as a stream may be idle.
async fn hold(exchange: &mut Exchange, body: &mut RequestBody, buffer: AuthzBody) -> Result<(), Decision> {
    let max = buffer.max_bytes as usize;
    // One byte more tells whether it is too long.
    let limit = if buffer.allow_partial { max } else { max.saturating_add(1) };
    let idle = exchange.connection.manager.config.stream_idle_timeout.filter(|idle| !idle.is_zero());
    while !body.is_complete() && body.held_bytes() < limit && body.failure().is_none() {
        let next = body.held_bytes() + 1;
        let piece = poll_fn(|cx| body.poll_hold(cx, next));
        let in_time = match idle {
            Some(idle) => tokio::time::timeout(idle, piece).await.is_ok(),
            None => {
                piece.await;
                true
            }
        };
        if !in_time {
            exchange.close = true;
            let kind = ErrorKind::StreamIdle { request_complete: false };
            return Err(Decision::Reply(kind.reply(None, false).into()));
        }
    }
    body.prefetch().await;
    if let Some(error) = body.failure() {
        return Err(Decision::Gone(error.kind));
    }
    if !buffer.allow_partial && body.held_bytes() > max {
        exchange.close = true;
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let reply = LocalReply::new(status, &b"Payload Too Large"[..], ResponseFlags::NONE, "request_payload_too_large");
        return Err(Decision::Reply(reply));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
