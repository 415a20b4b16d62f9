//! A compiled HTTP connection manager, and one downstream connection that it serves.

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::exchange::Exchange;
use super::filter::Filters;
use super::forwarding::{Forwarding, Refusal};
use super::local_reply::LocalReply;
use super::path::{self, PathOutcome};
use super::route::RouteTable;
use crate::config::{HttpConnectionManager, TrafficDirection};
use crate::flags::ResponseFlags;
use crate::listener::Drain;
use crate::proxy::Worker;
use crate::stream_info::ConnectionInfo;
use crate::telemetry::access_log::AccessLogs;
use crate::telemetry::metrics::IstioHttpMetrics;

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
    /// Lines per request.
    pub access_log: AccessLogs,
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
    pub fn routes(&self) -> Guard<Arc<RouteTable>> {
        self.routes.load()
    }

    /// Whether it serves the application, not its calls.
    pub fn is_inbound(&self) -> bool {
        self.config.direction == TrafficDirection::Inbound
    }

    /// Brings a request into the form that routing and filters rely on, or says why it is refused.
    pub fn admit(&self, exchange: &mut Exchange) -> Result<(), LocalReply> {
        let connection = exchange.connection.clone();
        let prepared = self.forwarding.prepare_request(&mut exchange.request, &connection.info, &connection.client_cert)?;
        exchange.info.remote = prepared.remote;
        exchange.internal = prepared.internal;
        exchange.overrides = prepared.overrides;
        exchange.wants_upgrade = prepared.upgrade;
        match path::normalize(exchange.request.path(), self.forwarding.path_options()) {
            PathOutcome::Unchanged => Ok(()),
            PathOutcome::Rewritten(path) => {
                exchange.request.set_path(&path);
                Ok(())
            }
            PathOutcome::Reject(details) => {
                Err(LocalReply::new(http::StatusCode::BAD_REQUEST, &b""[..], ResponseFlags::NONE, details))
            }
            PathOutcome::Redirect { path, details } => Err(LocalReply::redirect(path, details)),
        }
    }

    /// Headers that every response made here gets.
    pub fn finish_local(&self, exchange: &mut Exchange) {
        self.filters.response(exchange, None);
        self.forwarding.prepare_local_response(&mut exchange.response, &exchange.request);
    }

    /// Headers that every response from upstream gets.
    pub fn finish_response(&self, exchange: &mut Exchange) {
        self.forwarding.prepare_response(&mut exchange.response, &exchange.request, exchange.service_time());
    }

    /// Headers of a `101`.
    pub fn finish_upgrade(&self, exchange: &mut Exchange) {
        self.forwarding.prepare_upgrade_response(&mut exchange.response, &exchange.request);
    }
}

impl From<Refusal> for LocalReply {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.status, refusal.body.as_bytes(), refusal.flag, refusal.details)
    }
}
