//! A compiled HTTP connection manager, and one downstream connection that it serves.

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Method, StatusCode};

use super::exchange::Exchange;
use super::filter::Filters;
use super::forwarding::{Asked, Forwarding, Refusal, prepare_request, prepare_response};
use super::head::Known;
use super::local_reply::LocalReply;
use super::path::{self, PathOptions, PathOutcome};
use super::route::{ForwardRoute, Route, RouteTable};
use crate::config::{HttpConnectionManager, TrafficDirection};
use crate::drain::Drain;
use crate::flags::ResponseFlags;
use crate::proxy::Worker;
use crate::stream_info::ConnectionInfo;
use crate::telemetry::access_log::AccessLogs;
use crate::telemetry::metrics::IstioHttpMetrics;
use crate::telemetry::trace::Tracer;

/// What [`HttpConnectionManager`] is compiled into; shared by all workers.
pub struct ConnectionManager {
    /// As it was configured.
    pub config: Arc<HttpConnectionManager>,
    /// Published on its own: a route change touches no connection.
    pub routes: Arc<ArcSwap<RouteTable>>,
    /// In order.
    pub filters: Filters,
    /// Rules for forwarded and hop-by-hop headers.
    pub forwarding: Forwarding,
    /// How paths are normalised.
    pub path_options: PathOptions,
    /// Lines per request.
    pub access_log: AccessLogs,
    /// Spans of requests.
    pub tracer: Option<Tracer>,
    /// Istio's metrics.
    pub metrics: Option<IstioHttpMetrics>,
}

/// One downstream connection.
pub struct Connection {
    /// Its facts.
    pub info: Rc<ConnectionInfo>,
    /// What serves it.
    pub manager: Arc<ConnectionManager>,
    /// The worker that it lives on.
    pub worker: Rc<Worker>,
    /// Set when its listener goes away or the process stops.
    pub drain: Arc<Drain>,
    /// The caller's x-forwarded-client-cert element.
    pub client_cert: Vec<u8>,
}

impl ConnectionManager {
    /// The routes in force.
    pub fn routes(&self) -> Arc<RouteTable> {
        self.routes.load_full()
    }

    /// Whether it serves the application, not its calls.
    pub fn is_inbound(&self) -> bool {
        self.config.direction == TrafficDirection::Inbound
    }

    /// Brings a request into the form that routing and filters rely on, or says why it is refused.
    pub fn admit(&self, exchange: &mut Exchange) -> Result<(), LocalReply> {
        // In Envoy's order: who names no host hears of that first.
        if !exchange.request.has_authority() {
            exchange.close = true;
            return Err(Refusal::MISSING_HOST.into());
        }
        if exchange.request.method.as_str() == "QUERY" && !exchange.request.headers.contains(Known::ContentType) {
            exchange.close = true;
            return Err(LocalReply::empty(StatusCode::BAD_REQUEST, "query_missing_content_type"));
        }
        if exchange.request.method != Method::CONNECT {
            self.normalize_path(exchange)?;
        }
        let connection = exchange.connection.clone();
        let prepared = prepare_request(&mut exchange.request, &connection.info, &connection.client_cert, &self.forwarding);
        let prepared = prepared.inspect_err(|refusal| {
            exchange.close = true;
            exchange.malformed = refusal.flag == ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
        })?;
        exchange.info.remote = prepared.remote;
        exchange.overrides = prepared.overrides;
        exchange.wants_upgrade = prepared.upgrade;
        exchange.tells_request_id = prepared.tells_request_id;
        exchange.routable = prepared.routable;
        Ok(())
    }

    fn normalize_path(&self, exchange: &mut Exchange) -> Result<(), LocalReply> {
        match path::normalize(exchange.request.path(), self.path_options) {
            PathOutcome::Unchanged => Ok(()),
            PathOutcome::Rewritten(path) => {
                exchange.request.set_path(&path);
                Ok(())
            }
            PathOutcome::Redirect(location) => {
                exchange.request.set_path(&location);
                Err(LocalReply::redirect(StatusCode::TEMPORARY_REDIRECT, &location, path::NORMALIZATION_FAILED))
            }
            PathOutcome::Reject { status, details, path } => {
                if let Some(path) = path {
                    exchange.request.set_path(&path);
                }
                exchange.close |= status == StatusCode::BAD_REQUEST.as_u16();
                Err(LocalReply::empty(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), details))
            }
        }
    }

    /// Whether an upgrade or CONNECT, if the request is one, may pass.
    pub fn allows(&self, exchange: &Exchange, action: &ForwardRoute) -> bool {
        if exchange.request.method == Method::CONNECT {
            return self.config.http_proxy || action.allows_connect(&self.config.upgrades);
        }
        let token = exchange.request.headers.get(Known::Upgrade);
        !exchange.wants_upgrade || token.is_some_and(|token| action.allows_upgrade(token, &self.config.upgrades))
    }

    /// Filters and headers that every response passes on its way down.
    pub fn finish_response(&self, exchange: &mut Exchange, route: Option<&Route>) {
        self.filters.response(exchange, route);
        exchange.exchange_span_names();
        let asked = Asked { upgrade: exchange.wants_upgrade, request_id: exchange.tells_request_id };
        prepare_response(&mut exchange.response, Some(&exchange.request), asked, &self.forwarding);
    }
}

impl From<Refusal> for LocalReply {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(status, refusal.body.as_bytes(), refusal.flag, refusal.details)
    }
}
