//! One HTTP exchange, from the downstream request to the downstream response.
//!
//! [`handle`] holds the decisions only. The exchange is its own guard: when it is finished or dropped, even because the
//! request was cancelled, it writes the access log line and records the metrics.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};

use super::body::BodySize;
use super::ext_authz::HeaderWrite;
use super::filter::Verdict;
use super::forward;
use super::forwarding::Overrides;
use super::h2::Reason;
use super::head::{Headers, RequestHead, ResponseHead, Version};
use super::local_reply::{LocalReply, Mutations};
use super::manager::Connection;
use super::pipe::send_all;
use super::request_body::RequestBody;
use super::responder::Responder;
use super::route::{Action, ClusterChoice, HeaderMutations, Route};
use super::upgrade::Tunnel;
use crate::config::Reporter;
use crate::error::{ErrorKind, Reply};
use crate::peer::{Asked, PeerMetadata};
use crate::stream_info::{FormatContext, StreamInfo};
use crate::telemetry::grpc_status;
use crate::telemetry::metrics::{Destination, HttpSample};
use crate::telemetry::trace::ActiveSpan;
use crate::tls::PeerCertificate;
use crate::upstream::{Cluster, Endpoint};

/// Everything known about one request.
pub struct Exchange {
    /// The downstream connection.
    pub connection: Rc<Connection>,
    /// What logs and metrics are made of.
    pub info: StreamInfo,
    /// The request, as it goes upstream.
    pub request: RequestHead,
    /// The response, as it goes downstream.
    pub response: ResponseHead,
    /// Response trailers.
    pub trailers: Option<Box<Headers>>,
    /// The cluster that was chosen.
    pub cluster: Option<Arc<Cluster>>,
    /// The endpoint that was tried last.
    pub endpoint: Option<Arc<Endpoint>>,
    /// What a trusted caller asks for with x-envoy-* headers.
    pub overrides: Option<Box<Overrides>>,
    /// What the chosen cluster's share of the route does to headers.
    pub choice_mutations: Option<Arc<HeaderMutations>>,
    /// Routes may be looked for.
    pub routable: bool,
    /// The request asks for an upgrade.
    pub wants_upgrade: bool,
    /// The response carries the request's id (`x-envoy-force-trace`).
    pub tells_request_id: bool,
    /// The HTTP/1 connection must be closed after this response.
    pub close: bool,
    /// The head broke the protocol: like Envoy, the log tells nothing of it.
    pub malformed: bool,
    /// What filters, by their number in the chain, want of the response.
    pub(super) pending: Vec<(usize, Vec<HeaderWrite>)>,
    /// Whether the caller wants to know who we are.
    asked: Asked,
    /// gRPC messages up and down.
    pub(super) grpc_messages: (u64, u64),
    /// The request, in a trace.
    pub span: Option<Box<ActiveSpan>>,
    /// The attempt upstream, where those have spans of their own.
    pub(super) attempt_span: Option<Box<ActiveSpan>>,
    is_grpc: bool,
    recorded: bool,
}

/// What the server does after an exchange.
pub enum Outcome {
    /// The response was sent, as far as that was possible.
    Done,
    /// The connection is a byte tunnel from now on.
    Tunnel(Box<Tunnel>),
}

/// Serves one request.
pub async fn handle(exchange: &mut Exchange, mut body: RequestBody, out: &mut Responder) -> Outcome {
    let connection = exchange.connection.clone();
    let manager = &connection.manager;
    if let Err(refusal) = manager.admit(exchange) {
        return exchange.reply(&body, out, refusal, None).await;
    }
    let routes = manager.routes();
    let mut from = 0;
    let (found, route, chosen) = loop {
        // Chosen before the filters: what they refuse is logged with the cluster that it would have gone to.
        let found = if exchange.routable { routes.find(&exchange.request) } else { None };
        let route = found.map(|found| &**found.route);
        let chosen = exchange.choose(route);
        if from == 0 {
            exchange.start_span(route);
        }
        match manager.filters.request(exchange, route, &mut body, from).await {
            Verdict::Continue => break (found, route, chosen),
            Verdict::Reply(reply) => return exchange.reply(&body, out, reply, route).await,
            Verdict::Reroute(next) => from = next,
            Verdict::Gone(kind) => return exchange.gone(&body, out, kind, route).await,
        }
    };
    let Some(found) = found else {
        return exchange.fail(&body, out, ErrorKind::NoRoute, None).await;
    };
    match &found.route.action {
        Action::Redirect(redirect) => {
            let location = found.route.redirect_location(&exchange.request).unwrap_or_default();
            let status = StatusCode::from_u16(redirect.status()).unwrap_or(StatusCode::MOVED_PERMANENTLY);
            let reply = LocalReply::redirect(status, &location, "direct_response");
            exchange.reply(&body, out, LocalReply { mutations: Mutations::Last, ..reply }, route).await
        }
        Action::DirectResponse(direct) => exchange.reply(&body, out, LocalReply::direct(direct), route).await,
        Action::Forward(action) if !manager.allows(exchange, action) => {
            exchange.reply(&body, out, LocalReply::empty(StatusCode::FORBIDDEN, "upgrade_failed"), route).await
        }
        Action::Forward(action) => match chosen {
            Some(Ok(choice)) => forward::run(exchange, found, action, choice, &mut body, out).await,
            Some(Err(kind)) => exchange.fail(&body, out, kind, route).await,
            None => exchange.fail(&body, out, ErrorKind::NoRoute, route).await,
        },
    }
}

impl Exchange {
    /// An exchange that starts now; `response` is only memory to be used again.
    pub fn new(connection: Rc<Connection>, request: RequestHead, response: ResponseHead) -> Self {
        let mut info = StreamInfo::new(connection.info.clone());
        info.protocol = Some(request.version);
        let is_grpc = request.is_grpc();
        Self {
            connection,
            info,
            request,
            response,
            trailers: None,
            cluster: None,
            endpoint: None,
            overrides: None,
            choice_mutations: None,
            routable: true,
            wants_upgrade: false,
            tells_request_id: false,
            close: false,
            malformed: false,
            pending: Vec::new(),
            asked: Asked::default(),
            grpc_messages: (0, 0),
            span: None,
            attempt_span: None,
            is_grpc,
            recorded: false,
        }
    }

    /// Notes the route and the cluster that it chooses.
    fn choose<'r>(&mut self, route: Option<&'r Route>) -> Option<Result<&'r ClusterChoice, ErrorKind>> {
        self.info.route_name = route.map(|route| route.name.clone());
        let Some(Action::Forward(action)) = route.map(|route| &route.action) else {
            (self.info.upstream_cluster, self.cluster, self.choice_mutations) = (None, None, None);
            return None;
        };
        let chosen = action.choose(&self.request);
        if let Ok(choice) = &chosen {
            self.info.upstream_cluster = Some(choice.name.clone());
            self.cluster.clone_from(&choice.cluster);
            self.choice_mutations.clone_from(&choice.mutations);
        }
        Some(chosen)
    }

    /// The form of a log line at this moment.
    pub fn format_context(&self) -> FormatContext<'_> {
        FormatContext {
            info: &self.info,
            request: (!self.malformed).then_some(&self.request),
            response: (self.info.response_code != 0).then_some(&self.response),
            trailers: self.trailers.as_deref(),
            now: self.info.response_end.unwrap_or_else(Instant::now),
        }
    }

    /// Whether the caller speaks gRPC.
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// Answers with what `kind` means.
    pub async fn fail(&mut self, body: &RequestBody, out: &mut Responder, kind: ErrorKind, route: Option<&Route>) -> Outcome {
        let reply = self.local_reply(kind.reply(None, false));
        self.reply(body, out, reply, route).await
    }

    /// What the caller gets for a failure; without Envoy's header where the router is to add none.
    pub fn local_reply(&self, mut failure: Reply) -> LocalReply {
        if self.connection.manager.config.suppress_envoy_headers {
            failure.header = None;
        }
        failure.into()
    }

    /// The caller failed before its request went anywhere: a broken body is answered, nobody else waits for an answer.
    async fn gone(&mut self, body: &RequestBody, out: &mut Responder, kind: ErrorKind, route: Option<&Route>) -> Outcome {
        self.close = true;
        let mut reply = kind.reply(None, false);
        if kind == ErrorKind::DownstreamProtocol {
            if let Some(source) = body.failure().and_then(|error| error.source.as_ref()) {
                reply.details = source.to_string().into();
            }
            return self.reply(body, out, reply.into(), route).await;
        }
        self.info.flags |= reply.flag;
        self.info.details = reply.details;
        self.info.bytes_received = body.received();
        out.abort(Reason::CANCEL);
        Outcome::Done
    }

    /// Answers here, with the response headers that the route adds.
    pub async fn reply(
        &mut self,
        body: &RequestBody,
        out: &mut Responder,
        mut reply: LocalReply,
        route: Option<&Route>,
    ) -> Outcome {
        self.info.flags |= reply.flag;
        self.info.details = std::mem::take(&mut reply.details);
        self.info.bytes_received = body.received();
        self.note_request_end(body);
        // What could not be parsed was no HEAD request.
        let is_head = self.request.method == Method::HEAD && !self.malformed;
        // Only the answers of the route itself carry the mutations of a route that does not forward.
        let mutating = route.filter(|route| reply.mutations == Mutations::Last || matches!(route.action, Action::Forward(_)));
        let (request, info, chosen) = (&self.request, &self.info, self.choice_mutations.as_deref());
        reply.write(self.is_grpc, is_head, &mut self.response, |head| {
            if let Some(route) = mutating {
                route.apply_response(head, request, chosen, info);
            }
        });
        self.connection.clone().manager.finish_response(self, route);
        self.info.response_code = self.response.status.as_u16();
        let size =
            if reply.body.is_empty() { reply.size(self.is_http2(), is_head) } else { BodySize::Known(reply.body.len() as u64) };
        // As Envoy does: who was told so by a 400 of ours is not listened to any longer.
        self.close |= !out.is_multiplexed() && reply.status == StatusCode::BAD_REQUEST;
        let close = self.must_close(body, out);
        // A caller that is gone by now has had its answer decided all the same: that is what is logged.
        if let Ok(mut sink) = out.head(&self.response, size, close) {
            self.info.bytes_sent = reply.body.len() as u64;
            send_all(&mut sink, reply.body).await;
        }
        Outcome::Done
    }

    /// Whether this response is the connection's last. On HTTP/1 an answer before the end of the request is: what is left
    /// of the request could not be told from the next one.
    pub fn must_close(&mut self, body: &RequestBody, out: &Responder) -> bool {
        if !out.is_multiplexed() && (!body.is_complete() || self.connection.drain.is_draining()) {
            self.close = true;
        }
        self.close
    }

    /// Notes when the request was complete: at once, when it has no body.
    pub fn note_request_end(&mut self, body: &RequestBody) {
        if self.info.request_end.is_none() && body.is_complete() {
            self.info.request_end = Some(if body.received() == 0 { self.info.start } else { Instant::now() });
        }
    }

    /// Writes the log line, records the metrics and gives both heads back, whose memory serves the next exchange.
    pub fn finish(mut self) -> (RequestHead, ResponseHead) {
        self.record();
        (std::mem::take(&mut self.request), std::mem::take(&mut self.response))
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        self.finish_attempt_span(Some(ErrorKind::DownstreamClosed));
        let manager = &self.connection.manager;
        let context = self.format_context();
        manager.access_log.log(&context);
        if let (Some(tracer), Some(span)) = (&manager.tracer, &self.span) {
            tracer.finish(span, &context);
        }
        if let Some(metrics) = &manager.metrics {
            let current = self.cluster.as_ref().map(|cluster| cluster.current());
            let (peer, peer_principal, local_principal) = match metrics.reporter() {
                Reporter::Destination => {
                    let connection = &self.info.connection;
                    (self.info.downstream_peer.as_ref(), connection.peer.as_deref(), connection.local_certificate.as_deref())
                }
                Reporter::Source => {
                    let upstream = self.info.upstream.as_deref();
                    let certificates = upstream.map(|upstream| (upstream.peer.as_deref(), upstream.local_certificate.as_deref()));
                    let (theirs, ours) = certificates.unwrap_or_default();
                    let endpoint = || self.endpoint.as_ref().and_then(|endpoint| endpoint.workload());
                    (self.info.upstream_peer.as_ref().or_else(endpoint), theirs, ours)
                }
            };
            metrics.record(&HttpSample {
                destination: Destination {
                    service: current.as_ref().and_then(|current| current.config().service.as_ref()),
                    cluster: self.info.upstream_cluster.as_deref(),
                    route: self.info.route_name.as_deref(),
                    host: Some(self.request.authority()),
                },
                peer,
                peer_principal: peer_principal.and_then(PeerCertificate::uri_san),
                local_principal: local_principal.and_then(PeerCertificate::uri_san),
                is_grpc: self.is_grpc,
                grpc_messages: self.grpc_messages,
                response_code: self.info.response_code,
                grpc_status: if self.is_grpc { grpc_status(&context) } else { None },
                flags: self.info.flags,
                duration: context.now.duration_since(self.info.start),
                request_bytes: self.info.bytes_received,
                response_bytes: self.info.bytes_sent,
                custom: &metrics.attributes(&context),
            });
        }
    }

    /// The exchange of peer metadata on the way up.
    pub(super) fn meet_caller(&mut self, filter: &PeerMetadata) {
        let peers = &self.connection.worker.peers;
        (self.asked, self.info.downstream_peer) = filter.request(&mut self.request.headers, self.cluster.as_ref(), peers);
    }

    /// The exchange of peer metadata on the way down.
    pub(super) fn meet_endpoint(&mut self, filter: &PeerMetadata) {
        let peers = &self.connection.worker.peers;
        self.info.upstream_peer = filter.response(&mut self.response.headers, self.asked, peers);
    }

    /// Whether the downstream speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.info.protocol == Some(Version::Http2)
    }
}

impl Drop for Exchange {
    /// A cancelled exchange is one whose caller went away.
    fn drop(&mut self) {
        if !self.recorded {
            let reply = ErrorKind::DownstreamClosed.reply(None, false);
            if self.info.details.is_empty() || self.info.response_code == 0 {
                self.info.details = reply.details;
            }
            self.info.flags |= reply.flag;
            self.record();
        }
    }
}
