//! A workload and a plane that says what a test makes it say, over a real connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_server::{OnboardingService, OnboardingServiceServer};
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Said;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Tell;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use super::config::{AgentConfiguration, OnboardingConfiguration};
use super::plugin::{AddressKind, HostAddress};
use super::*;
use crate::identity::TokenSource;
use crate::sidecar::{ConfigurationSource, PushedDocuments};

const SOON: Duration = Duration::from_secs(20);

type Tells = mpsc::Sender<Result<proto::RegisterResponse, Status>>;

/// What the plane has heard, and what it is to answer.
#[derive(Default)]
struct Heard {
    nonces: AtomicUsize,
    /// Answers to Authorize and to Register before they are as they should be.
    refusals: Mutex<VecDeque<Status>>,
    register_refusals: Mutex<VecDeque<Status>>,
    authorized: watch::Sender<Vec<proto::AuthorizeRequest>>,
    sessions: watch::Sender<Vec<String>>,
    registrations: watch::Sender<Vec<proto::Registration>>,
    healths: watch::Sender<Vec<String>>,
    heartbeats: watch::Sender<usize>,
    unregistered: watch::Sender<usize>,
    streams: Mutex<Vec<Tells>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Heard>);

struct RunningPlane {
    fake: Fake,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl RunningPlane {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), Fake::default()).await
    }

    async fn start_at(address: SocketAddr, fake: Fake) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let service = OnboardingServiceServer::new(fake.clone());
        let server = tokio::spawn(async move {
            // Aborted with this task, so that stopping breaks every connection.
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let service = service.clone();
                let handler = service_fn(move |request| {
                    let mut service = service.clone();
                    async move { service.call(request).await }
                });
                let http2 = http2::Builder::new(TokioExecutor::new());
                connections.spawn(async move { http2.serve_connection(TokioIo::new(tcp), handler).await });
            }
        });
        Self { fake, address, server }
    }

    /// Ends all streams, and what listens.
    async fn stop(&mut self) {
        self.fake.0.streams.lock().unwrap().clear();
        self.server.abort();
        let _ = (&mut self.server).await;
    }

    fn heard(&self) -> &Heard {
        &self.fake.0
    }

    fn tell(&self, message: Tell) {
        let streams = self.heard().streams.lock().unwrap();
        let response = proto::RegisterResponse { message: Some(message) };
        streams.last().unwrap().try_send(Ok(response)).unwrap();
    }

    fn end_stream(&self, status: Status) {
        let stream = self.heard().streams.lock().unwrap().pop().unwrap();
        stream.try_send(Err(status)).unwrap();
    }

    /// A workload that joins here.
    fn onboarding(&self, token_file: PathBuf) -> Onboarding {
        self.onboarding_after(token_file, Duration::from_millis(5))
    }

    /// One that waits for so long after a failure.
    fn onboarding_after(&self, token_file: PathBuf, first_retry: Duration) -> Onboarding {
        let text = format!(
            "{{apiVersion: config.agent.onboarding.tetrate.io/v1alpha1, kind: OnboardingConfiguration, onboardingEndpoint: {{host: \
             127.0.0.1, port: {}, transportSecurity: {{none: {{}}}}}}, workload: {{labels: {{version: v5}}}}, workloadGroup: \
             {{namespace: bookinfo, name: ratings}}}}",
            self.address.port()
        );
        let settings = Settings {
            onboarding: OnboardingConfiguration::parse("ONBOARDING_CONFIG", &text).unwrap(),
            agent: AgentConfiguration { first_retry, retry_cap: first_retry * 4, ..AgentConfiguration::default() },
            roots: None,
        };
        let host = Host {
            own: vec!["10.0.0.7".parse().unwrap()],
            advertised: vec![HostAddress { ip: "192.0.2.7".parse().unwrap(), kind: AddressKind::Vpc }],
            application: Application::unknown(),
        };
        Onboarding::new(&settings, CredentialOrigin::Jwt(TokenSource::File(token_file)), host)
    }
}

async fn until<T>(watched: &watch::Sender<T>, holds: impl FnMut(&T) -> bool) {
    let mut watched = watched.subscribe();
    tokio::time::timeout(SOON, watched.wait_for(holds)).await.expect("in time").unwrap();
}

fn timestamp(after: Duration) -> Option<prost_types::Timestamp> {
    Some((SystemTime::now() + after).into())
}

fn token(text: &str) -> proto::Token {
    proto::Token { token: text.to_owned(), expires_at: timestamp(Duration::from_secs(3600)) }
}

fn root() -> String {
    rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap().cert.pem()
}

fn boot() -> proto::Boot {
    proto::Boot {
        name: "ratings-jwt-a-b".to_owned(),
        namespace: "bookinfo".to_owned(),
        labels: [("app".to_owned(), "ratings".to_owned())].into(),
        service_account: "ratings-vm".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        network: "ecs".to_owned(),
        locality: "us-east-1/us-east-1a".to_owned(),
        root_certificates: root(),
        ca_address: "127.0.0.1:15012".to_owned(),
        proxy_config: r#"{"readinessProbe": {"tcpSocket": {"port": 9080}}}"#.to_owned(),
        mesh_token: Some(token("mesh-1")),
        heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        propagation_delay: Some(prost_types::Duration { seconds: 7, nanos: 0 }),
        ..proto::Boot::default()
    }
}

#[tonic::async_trait]
impl OnboardingService for Fake {
    type RegisterStream = ReceiverStream<Result<proto::RegisterResponse, Status>>;

    async fn discover(&self, _: Request<proto::DiscoverRequest>) -> Result<Response<proto::DiscoverResponse>, Status> {
        let nonce = format!("nonce-{}", self.0.nonces.fetch_add(1, Ordering::SeqCst) + 1);
        let nonce_expires_at = timestamp(Duration::from_secs(60));
        Ok(Response::new(proto::DiscoverResponse { plane_uid: "plane".to_owned(), nonce, nonce_expires_at }))
    }

    async fn authorize(&self, request: Request<proto::AuthorizeRequest>) -> Result<Response<proto::AuthorizeResponse>, Status> {
        let refusal = self.0.refusals.lock().unwrap().pop_front();
        let mut count = 0;
        self.0.authorized.send_modify(|all| {
            all.push(request.into_inner());
            count = all.len();
        });
        if let Some(status) = refusal {
            return Err(status);
        }
        let expires_at = timestamp(Duration::from_secs(3600));
        Ok(Response::new(proto::AuthorizeResponse { token: format!("session-{count}"), expires_at }))
    }

    async fn register(
        &self,
        request: Request<Streaming<proto::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let bearer = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        self.0.sessions.send_modify(|all| all.push(bearer));
        if let Some(status) = self.0.register_refusals.lock().unwrap().pop_front() {
            return Err(status);
        }
        let (tells, responses) = mpsc::channel(16);
        let response = proto::RegisterResponse { message: Some(Tell::Boot(boot())) };
        tells.try_send(Ok(response)).unwrap();
        self.0.streams.lock().unwrap().push(tells);
        let (heard, mut requests) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                match request.message.unwrap() {
                    Said::Registration(registration) => heard.registrations.send_modify(|all| all.push(registration)),
                    Said::Health(health) => heard.healths.send_modify(|all| all.push(health.error)),
                    Said::Heartbeat(_) => heard.heartbeats.send_modify(|count| *count += 1),
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn unregister(&self, _: Request<proto::UnregisterRequest>) -> Result<Response<proto::UnregisterResponse>, Status> {
        self.0.unregistered.send_modify(|count| *count += 1);
        let propagation_delay = Some(prost_types::Duration { seconds: 3, nanos: 0 });
        Ok(Response::new(proto::UnregisterResponse { propagation_delay }))
    }
}

struct Running {
    node: Node,
    sources: Sources,
    _folder: tempfile::TempDir,
}

impl Running {
    fn member(&self) -> Arc<Member> {
        Arc::clone(&self.sources.membership.as_ref().unwrap().registered.member)
    }
}

async fn join(plane: &RunningPlane) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a-token").unwrap();
    let shutdown = Shutdown::default();
    let joining = plane.onboarding(file).join(Map::new(), &shutdown);
    let Joined { node, local, sources } = tokio::time::timeout(SOON, joining).await.expect("in time").unwrap();
    assert_eq!((local.id.as_str(), local.workload.name.as_str()), (node.id.as_str(), "ratings"));
    Running { node, sources, _folder: folder }
}

/// Holds the registration, as a sidecar does.
fn hold(joined: &mut Running) -> (Arc<Member>, watch::Receiver<PushedDocuments>, JoinHandle<Infallible>) {
    let member = joined.member();
    let documents = member.live.documents.subscribe();
    let hold = std::mem::replace(&mut joined.sources.membership.as_mut().unwrap().hold, Box::pin(std::future::pending()));
    (member, documents, tokio::spawn(hold))
}

#[tokio::test]
async fn a_workload_becomes_what_the_plane_says() {
    let plane = RunningPlane::start().await;
    let mut joined = join(&plane).await;
    let request = plane.heard().authorized.borrow()[0].clone();
    assert_eq!(request.workload_group.unwrap().name, "ratings");
    assert!(matches!(request.credential, Some(Credential::Jwt(jwt)) if jwt.token == "a-token"));
    until(&plane.heard().registrations, |all| !all.is_empty()).await;
    let registration = plane.heard().registrations.borrow()[0].clone();
    assert_eq!((registration.labels["version"].as_str(), registration.istio_version.is_empty()), ("v5", false));
    assert_eq!((registration.addresses[0].ip.as_str(), registration.addresses[0].r#type), ("192.0.2.7", 1));
    assert_eq!(*plane.heard().sessions.borrow(), ["Bearer session-1"]);
    assert_eq!(joined.node.id, "sidecar~10.0.0.7~ratings-jwt-a-b.bookinfo~bookinfo.svc.cluster.local");
    assert_eq!(joined.node.cluster, "ratings.bookinfo");
    assert!(matches!(joined.sources.configuration, ConfigurationSource::Pushed { .. }) && joined.sources.identity.is_some());
    assert!(joined.sources.membership.as_ref().unwrap().probe.is_some());

    let (member, mut documents, _held) = hold(&mut joined);
    until(&plane.heard().heartbeats, |count| *count > 1).await;
    member.health.send_replace(Some(Err("it sleeps".to_owned())));
    until(&plane.heard().healths, |all| *all == ["it sleeps"]).await;
    member.health.send_replace(Some(Ok(())));
    until(&plane.heard().healths, |all| *all == ["it sleeps", ""]).await;
    let document = |yaml: &str| proto::Document { name: "a.yaml".to_owned(), yaml: yaml.to_owned() };
    for (version, yaml) in [("1", "one"), ("1", "one"), ("2", "two")] {
        plane.tell(Tell::Documents(proto::Documents {
            version: version.to_owned(),
            documents: vec![document(yaml)],
            ..Default::default()
        }));
    }
    let is_two = |documents: &PushedDocuments| documents.as_ref().is_some_and(|all| all[0].1 == "two");
    tokio::time::timeout(SOON, documents.wait_for(is_two)).await.unwrap().unwrap();
    plane.tell(Tell::MeshToken(token("mesh-2")));
    until(&member.live.mesh_token, |token| token.as_ref().unwrap().expose() == "mesh-2").await;
}

#[tokio::test]
async fn refusals_are_retried_each_with_a_fresh_nonce() {
    let plane = RunningPlane::start().await;
    let refusals = [
        Status::permission_denied("Not authorized by OnboardingPolicy"),
        Status::unauthenticated("the proof does not hold"),
        Status::unavailable("STS does not answer"),
    ];
    plane.heard().refusals.lock().unwrap().extend(refusals);
    let _joined = join(&plane).await;
    assert_eq!((plane.heard().authorized.borrow().len(), plane.heard().nonces.load(Ordering::SeqCst)), (4, 4));
    let error = OnboardingError::from(Status::permission_denied("Not authorized by OnboardingPolicy"));
    assert_eq!(error.to_string(), "RPC failed: rpc error: code = PermissionDenied desc = Not authorized by OnboardingPolicy");
}

#[tokio::test]
async fn a_nonce_of_another_replica_is_begun_anew_at_once_and_once() {
    let elsewhere = || Status::failed_precondition("the nonce was issued by another replica");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a-token").unwrap();
    let hour = Duration::from_secs(3600);
    let plane = RunningPlane::start().await;
    plane.heard().refusals.lock().unwrap().push_back(elsewhere());
    let joining = plane.onboarding_after(file.clone(), hour);
    assert!(tokio::time::timeout(SOON, joining.join(Map::new(), &Shutdown::default())).await.expect("in time").is_some());
    assert_eq!((plane.heard().authorized.borrow().len(), plane.heard().nonces.load(Ordering::SeqCst)), (2, 2));

    // A balancer that spreads calls is not to be asked without end.
    let plane = RunningPlane::start().await;
    plane.heard().refusals.lock().unwrap().extend([elsewhere(), elsewhere()]);
    let shutdown = Shutdown::default();
    let joining = plane.onboarding_after(file, hour).join(Map::new(), &shutdown);
    tokio::pin!(joining);
    tokio::select! {
        _ = &mut joining => panic!("it has joined"),
        () = until(&plane.heard().authorized, |all| all.len() == 2) => {}
    }
    assert!(tokio::time::timeout(Duration::from_millis(60), joining).await.is_err());
    assert_eq!(plane.heard().authorized.borrow().len(), 2);
}

#[tokio::test]
async fn a_lost_stream_comes_back_and_takes_nothing_away() {
    let mut plane = RunningPlane::start().await;
    let mut joined = join(&plane).await;
    let (member, documents, _held) = hold(&mut joined);
    let document = proto::Document { name: "a.yaml".to_owned(), yaml: "one".to_owned() };
    plane.tell(Tell::Documents(proto::Documents {
        version: "1".to_owned(),
        documents: vec![document.clone()],
        ..Default::default()
    }));
    until(&member.live.documents, Option::is_some).await;
    let roots = member.live.roots.borrow().clone();
    member.health.send_replace(Some(Ok(())));
    until(&plane.heard().healths, |all| all.len() == 1).await;

    plane.stop().await;
    assert!(documents.borrow().is_some() && member.live.mesh_token.borrow().is_some());
    let plane = RunningPlane::start_at(plane.address, plane.fake.clone()).await;
    // The session still counts: no credential is made for it. Health is told again.
    until(&plane.heard().registrations, |all| all.len() == 2).await;
    assert_eq!(*plane.heard().sessions.borrow(), ["Bearer session-1", "Bearer session-1"]);
    until(&plane.heard().healths, |all| all.len() == 2).await;
    until(&member.live.roots, |now| **now != *roots).await;
    assert!(!documents.has_changed().unwrap() || documents.borrow().is_some());

    // A plane that does not know the session any more is shown a new credential at once.
    plane.heard().register_refusals.lock().unwrap().push_back(Status::unauthenticated("who?"));
    plane.end_stream(Status::unavailable("bye"));
    until(&plane.heard().registrations, |all| all.len() == 3).await;
    assert_eq!(plane.heard().sessions.borrow().last().unwrap(), "Bearer session-2");
    // A renewed session is the one that is used next.
    plane.tell(Tell::SessionToken(token("session-renewed")));
    assert_eq!(plane.heard().registrations.borrow().last().unwrap().documents_version, "1", "what it has need not be told again");
    let (version, since, removed) = ("2".to_owned(), "1".to_owned(), vec!["a.yaml".to_owned()]);
    plane.tell(Tell::Documents(proto::Documents { version, since, removed, ..Default::default() }));
    until(&member.live.documents, |documents| documents.as_ref().is_some_and(|all| all.is_empty())).await;
    plane.end_stream(Status::aborted("registered anew"));
    until(&plane.heard().sessions, |all| all.last().unwrap() == "Bearer session-renewed").await;
}

#[tokio::test]
async fn who_leaves_is_unregistered_and_does_not_come_back() {
    let plane = RunningPlane::start().await;
    let mut joined = join(&plane).await;
    let (member, _documents, held) = hold(&mut joined);
    until(&plane.heard().heartbeats, |count| *count > 0).await;
    assert_eq!(member.leave().await, Duration::from_secs(3));
    assert_eq!(*plane.heard().unregistered.borrow(), 1);
    until(&plane.heard().healths, |all| all.last().is_some_and(|error| error.contains("being stopped"))).await;
    plane.end_stream(Status::cancelled("unregistered"));
    // Three times the longest wait: it would have been back.
    assert!(tokio::time::timeout(Duration::from_millis(60), held).await.is_err());
    assert_eq!(plane.heard().registrations.borrow().len(), 1);
}

#[tokio::test]
async fn leaving_ends_although_the_plane_is_gone() {
    let mut plane = RunningPlane::start().await;
    let joined = join(&plane).await;
    plane.stop().await;
    tokio::time::pause();
    assert_eq!(joined.member().leave().await, Duration::from_secs(7));
}

#[tokio::test]
async fn a_process_that_is_asked_to_stop_does_not_wait_for_the_plane() {
    let plane = RunningPlane::start().await;
    plane.heard().refusals.lock().unwrap().extend((0..1000).map(|_| Status::permission_denied("no")));
    let shutdown = Shutdown::default();
    let joining = tokio::spawn({
        let (onboarding, shutdown) = (plane.onboarding("/nowhere".into()), shutdown.clone());
        async move { onboarding.join(Map::new(), &shutdown).await.is_none() }
    });
    shutdown.request();
    assert!(tokio::time::timeout(SOON, joining).await.unwrap().unwrap());
}

#[test]
fn a_boot_that_cannot_be_used_is_told_by_field() {
    for (change, expected) in [
        ((|boot| boot.name.clear()) as fn(&mut proto::Boot), "Boot.name: is empty"),
        (|boot| boot.namespace.clear(), "Boot.namespace: is empty"),
        (|boot| boot.trust_domain = "a b".to_owned(), "Boot.trust_domain: "),
        (|boot| boot.ca_address = "here".to_owned(), "Boot.ca_address: \"here\": expected host:port"),
        (|boot| boot.discovery_address = "here:0".to_owned(), "Boot.discovery_address: \"here:0\": expected host:port"),
        (|boot| boot.root_certificates = "PEM".to_owned(), "Boot.root_certificates: holds no certificate"),
        (|boot| boot.mesh_token = None, "Boot.mesh_token: is missing"),
        (|boot| boot.proxy_config = "[]".to_owned(), "Boot.proxy_config: expected a JSON object"),
        (|boot| boot.proxy_config = r#"{"readinessProbe": {"httpGet": {}}}"#.to_owned(), "Boot.proxy_config.readinessProbe: "),
    ] {
        let mut boot = boot();
        change(&mut boot);
        let error = Boot::read(boot).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    }
    let (read, volatile) = Boot::read(boot()).unwrap();
    assert_eq!((read.locality.region.as_str(), read.locality.zone.as_str()), ("us-east-1", "us-east-1a"));
    assert_eq!((volatile.heartbeat, volatile.propagation_delay), (Duration::from_millis(100), Duration::from_secs(7)));
}
