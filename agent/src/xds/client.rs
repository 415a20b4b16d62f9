//! Connections to istiod's aggregated discovery service: opened, kept, opened again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge};
use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use skiff_proxy::Proxy;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::health::HealthReport;
use super::originals::Originals;
use super::resources::{Kind, Resources};
use super::session::{Handled, Protocol, Request, Response, Session};
use crate::admin::{Condition, Readiness};
use crate::identity::{
    Backoff, ConnectError, ControlPlaneConnector, RootSource, Security, Token, TokenSource, WorkloadCertificate, authenticated,
};
use crate::metrics::Metrics;
use crate::sidecar::{departure, note_listeners};
use crate::translate::envoy::Rejected;
use crate::watch::Watcher;

/// A push for 10,000 services is some dozen MiB.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// Requests that wait to be sent. More are waiting only when the stream does not move: it is given up then.
const QUEUE: usize = 64;
/// From the first request to the response headers, which istiod sends with its first response.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds of the waits between attempts.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// A control plane that is back is noticed within this.
const RETRY_CAP: Duration = Duration::from_secs(10);
/// The same while the workload's entry is on its way from the plane to istiod, which is no fault.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LOOK_CAP: Duration = Duration::from_secs(5);
/// How istiod says so.
const NO_ENTRY: &str = "must correspond to an existing WorkloadEntry";
/// How often listeners that could not be bound are looked at.
const LISTENER_CHECK: Duration = Duration::from_secs(1);
/// Lines of the log that one response may cause.
const MAX_LOGGED: usize = 20;

/// How the control plane is reached, and as whom.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where to.
    pub connector: ControlPlaneConnector,
    /// Shown as bearer token.
    pub token: TokenSource,
    /// Our certificate: it says who we are when the token has expired.
    pub certificate: Option<watch::Receiver<Option<Arc<WorkloadCertificate>>>>,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// How resources travel.
    pub protocol: Protocol,
    /// Who we are.
    pub node: Node,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no token ({0}) and no certificate")]
    NoCredentials(String),
    #[error("the control plane did not answer within {OPEN_TIMEOUT:?}")]
    OpenTimeout,
    #[error("the control plane ended the stream: {:?}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane does not read our requests")]
    Stuck,
    #[error("the trust roots changed")]
    RootsChanged,
}

impl StreamError {
    /// Whether istiod does not know this workload yet.
    fn is_too_early(&self) -> bool {
        matches!(self, Self::Status(status) if status.message().contains(NO_ENTRY))
    }
}

/// Follows the control plane and keeps the data plane at what it says.
pub struct Xds {
    connection: Connection,
    resources: Resources,
    applier: Applier,
    health: Option<watch::Receiver<HealthReport>>,
    roots: Option<Watcher>,
    numbers: Numbers,
}

struct Numbers {
    connected: Gauge,
    streams: Counter,
    failures: Counter,
    accepted: [Counter; 4],
    rejected: [Counter; 4],
}

impl Xds {
    /// A client that has not connected yet. `health` reports the application's health once it is known.
    ///
    /// # Errors
    /// When the file of the trust roots cannot be watched.
    pub fn new(
        connection: Connection,
        health: Option<watch::Receiver<HealthReport>>,
        proxy: Proxy,
        readiness: Readiness,
        metrics: &Metrics,
    ) -> std::io::Result<Self> {
        let roots = match &connection.connector.security {
            Security::Tls(RootSource::File(path)) => Some(Watcher::new(vec![path.clone()])?),
            Security::Tls(RootSource::Pem(_) | RootSource::Watch(_) | RootSource::System)
            | Security::UnverifiedTls
            | Security::Plaintext => None,
        };
        let per_kind = |name: &'static str, help: &'static str| {
            Kind::ALL.map(|kind| metrics.labelled_counter(name, help, "type", kind.short()))
        };
        let numbers = Numbers {
            connected: metrics.gauge("skiff_xds_connected", "1 while a stream to the control plane is open, otherwise 0."),
            streams: metrics.counter("skiff_xds_streams_total", "Streams to the control plane that were opened."),
            failures: metrics.counter("skiff_xds_failures_total", "Streams that ended or could not be opened."),
            accepted: per_kind(
                "skiff_xds_responses_accepted_total",
                "Responses of the control plane that were accepted, by type.",
            ),
            rejected: per_kind("skiff_xds_responses_rejected_total", "Responses that were answered with a NACK, by type."),
        };
        let applier = Applier { proxy, readiness, next: None, has_listeners: false };
        Ok(Self { connection, resources: Resources::default(), applier, health, roots, numbers })
    }

    /// What the control plane sends, for those who want to see it.
    pub fn originals(&self) -> Originals {
        self.resources.originals().clone()
    }

    /// Who we say we are.
    pub fn node(&self) -> &Node {
        &self.connection.node
    }

    /// Runs until dropped.
    pub async fn run(mut self) -> Infallible {
        let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
        let mut looks = Backoff::new(FIRST_LOOK, LOOK_CAP);
        loop {
            let mut progressed = false;
            let error = match self.stream(&mut progressed).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.numbers.connected.set(0.0);
            if error.is_too_early() && !self.applier.readiness.is_leaving() {
                let wait = looks.next_wait();
                tracing::info!(retry_in = ?wait, "the control plane does not see our WorkloadEntry yet");
                self.applier.readiness.waiting(Condition::Configuration, "istiod does not see our WorkloadEntry yet");
                self.idle(wait).await;
                continue;
            }
            self.numbers.failures.increment(1);
            if progressed {
                backoff.reset();
                looks.reset();
            }
            let wait = backoff.next_wait();
            tracing::warn!(%error, retry_in = ?wait, "no connection to the control plane; what is configured stays in force");
            self.applier.readiness.waiting(Condition::Configuration, error.to_string());
            self.idle(wait).await;
        }
    }

    /// Waits, while what is due without the control plane still happens.
    async fn idle(&mut self, wait: Duration) {
        let end = Instant::now() + wait;
        while let Some(next) = self.applier.next.filter(|next| *next < end) {
            sleep_until(next.into()).await;
            self.applier.apply(&mut self.resources, "");
        }
        sleep_until(end.into()).await;
    }

    /// One stream, for as long as it lasts. `progressed` is set when the control plane has answered.
    async fn stream(&mut self, progressed: &mut bool) -> Result<Infallible, StreamError> {
        let mut session = Session::new(self.connection.protocol, self.connection.node.clone());
        let (requests, receiver) = mpsc::channel(QUEUE);
        send(&requests, session.open(&mut self.resources, Instant::now()))?;
        let mut responses = self.connection.open(receiver).await?;
        self.numbers.connected.set(1.0);
        self.numbers.streams.increment(1);
        tracing::info!(address = self.connection.connector.address, "connected to the control plane");
        let mut reported = None;
        loop {
            self.report_health(&session, &requests, &mut reported)?;
            tokio::select! {
                response = responses.next() => {
                    let response = response?;
                    *progressed = true;
                    self.take(&mut session, response, &requests)?;
                }
                () = due(self.applier.next) => {
                    self.applier.apply(&mut self.resources, "");
                    send(&requests, session.subscribe(&mut self.resources, Instant::now()))?;
                }
                () = health_changed(self.health.as_mut()) => {}
                () = roots_changed(self.roots.as_mut()) => return Err(StreamError::RootsChanged),
                () = sleep(LISTENER_CHECK), if !self.applier.all_bound() => {}
            }
        }
    }

    /// Takes one response over, applies it and answers it.
    fn take(&mut self, session: &mut Session, response: Response, requests: &mpsc::Sender<Request>) -> Result<(), StreamError> {
        let mut handled = session.handle(response, &mut self.resources, Instant::now());
        send(requests, std::mem::take(&mut handled.requests))?;
        let Some((kind, version)) = handled.about.clone() else { return Ok(()) };
        let first_listeners = kind == Kind::Listener && !std::mem::replace(&mut self.applier.has_listeners, true);
        if handled.changed || first_listeners || self.applier.next.is_some() {
            let refused = self.applier.apply(&mut self.resources, &version);
            for rejected in &refused {
                if let Some(kind) = Kind::of(&rejected.type_url) {
                    self.resources.originals().refuse(kind, &rejected.name, &[], rejected.reason.clone());
                }
            }
            handled.rejected.extend(refused.into_iter().filter(|rejected| rejected.type_url == kind.type_url()));
        }
        self.note(kind, &handled);
        send(requests, session.subscribe(&mut self.resources, Instant::now()))?;
        send(requests, session.acknowledge(&handled))
    }

    fn note(&self, kind: Kind, handled: &Handled) {
        if handled.rejected.is_empty() {
            self.numbers.accepted[kind as usize].increment(1);
            tracing::debug!(kind = kind.short(), changed = handled.changed, "response accepted");
            return;
        }
        self.numbers.rejected[kind as usize].increment(1);
        for rejected in handled.rejected.iter().take(MAX_LOGGED) {
            tracing::error!("{} rejected, the last good version stays: {rejected}", kind.short());
        }
    }

    fn report_health(
        &mut self,
        session: &Session,
        requests: &mpsc::Sender<Request>,
        reported: &mut HealthReport,
    ) -> Result<(), StreamError> {
        let Some(health) = &mut self.health else { return Ok(()) };
        let current = health.borrow_and_update().clone();
        if !session.has_asked_for_listeners() || current.is_none() || current == *reported {
            return Ok(());
        }
        reported.clone_from(&current);
        let error = current.and_then(Result::err);
        send(requests, [session.health(error)])
    }
}

impl Connection {
    async fn open(&self, requests: mpsc::Receiver<Request>) -> Result<Responses, StreamError> {
        let certificate = self.certificate.as_ref().and_then(|certificate| certificate.borrow().clone());
        let token = match self.token.current().await {
            Ok(token) => Some(token),
            Err(_) if certificate.is_some() => None,
            Err(error) => return Err(StreamError::NoCredentials(error.to_string())),
        };
        let channel = self.connector.connect(certificate.as_deref()).await?;
        let opened = timeout(OPEN_TIMEOUT, self.open_stream(channel, token.as_ref(), requests)).await;
        opened.map_err(|_| StreamError::OpenTimeout)?.map_err(|status| StreamError::Status(Box::new(status)))
    }

    async fn open_stream(
        &self,
        channel: Channel,
        token: Option<&Token>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Responses, Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let requests = ReceiverStream::new(requests);
        match self.protocol {
            Protocol::Delta => {
                let requests = requests.filter_map(|request| match request {
                    Request::Delta(delta) => Some(delta),
                    Request::StateOfTheWorld(_) => None,
                });
                let request = authenticated(requests, token, &self.cluster_id);
                Ok(Responses::Delta(client.delta_aggregated_resources(request).await?.into_inner()))
            }
            Protocol::StateOfTheWorld => {
                let requests = requests.filter_map(|request| match request {
                    Request::StateOfTheWorld(world) => Some(world),
                    Request::Delta(_) => None,
                });
                let request = authenticated(requests, token, &self.cluster_id);
                Ok(Responses::StateOfTheWorld(client.stream_aggregated_resources(request).await?.into_inner()))
            }
        }
    }
}

/// What the control plane sends.
enum Responses {
    Delta(Streaming<DeltaDiscoveryResponse>),
    StateOfTheWorld(Streaming<DiscoveryResponse>),
}

impl Responses {
    /// The next response. Cancel safe, as tonic's streams are.
    async fn next(&mut self) -> Result<Response, StreamError> {
        let next = match self {
            Self::Delta(stream) => stream.message().await.map(|message| message.map(Response::Delta)),
            Self::StateOfTheWorld(stream) => stream.message().await.map(|message| message.map(Response::StateOfTheWorld)),
        };
        next.map_err(|status| StreamError::Status(Box::new(status)))?.ok_or(StreamError::Closed)
    }
}

/// Puts what is accepted into the data plane.
struct Applier {
    proxy: Proxy,
    readiness: Readiness,
    /// When something is due although nothing came.
    next: Option<Instant>,
    /// Listeners have come, so that the configuration may be complete.
    has_listeners: bool,
}

impl Applier {
    /// Applies what is warm. Returns what the data plane does not take over.
    fn apply(&mut self, resources: &mut Resources, version: &str) -> Vec<Rejected> {
        let mut publication = resources.publish(version, Instant::now());
        self.next = publication.next;
        if self.readiness.is_leaving() {
            departure::keep(Arc::make_mut(&mut publication.snapshot), &self.proxy.snapshot());
        }
        let report = self.proxy.apply(publication.snapshot);
        if self.has_listeners && publication.is_complete {
            self.readiness.met(Condition::Configuration);
        }
        self.all_bound();
        let refused = report.rejected.into_iter().filter_map(|rejected| {
            let kind = match rejected.kind {
                "listener" => Kind::Listener,
                "cluster" => Kind::Cluster,
                "route" => Kind::Routes,
                _ => return None,
            };
            Some(Rejected { type_url: kind.type_url(), name: rejected.name, path: String::new(), reason: rejected.reason })
        });
        refused.collect()
    }

    /// Whether every listener is bound.
    fn all_bound(&self) -> bool {
        note_listeners(&self.proxy, &self.readiness)
    }
}

fn send(requests: &mpsc::Sender<Request>, all: impl IntoIterator<Item = Request>) -> Result<(), StreamError> {
    all.into_iter().try_for_each(|request| {
        requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => StreamError::Stuck,
            TrySendError::Closed(_) => StreamError::Closed,
        })
    })
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn health_changed(health: Option<&mut watch::Receiver<HealthReport>>) {
    let ended = match health {
        Some(health) => health.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}

async fn roots_changed(roots: Option<&mut Watcher>) {
    match roots {
        Some(roots) => roots.changed().await,
        None => std::future::pending().await,
    }
}
