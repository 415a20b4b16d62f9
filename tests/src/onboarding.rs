//! A fake onboarding plane: over TLS, it says what a test makes it say and notes what it hears.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_server::{OnboardingService, OnboardingServiceServer};
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Said;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Tell;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::tls::{Authority, acceptor};
use crate::wait::within;

/// The name that its certificate carries.
pub const NAME: &str = "onboarding-endpoint.example";

/// What an agent said.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// It asks who the plane is.
    Discover,
    /// It proves who it is.
    Authorize(proto::AuthorizeRequest),
    /// It registers.
    Register(proto::Registration),
    /// It says how its application is; empty is healthy.
    Health(String),
    /// It leaves.
    Unregister,
}

/// The fake. Dropping it closes everything.
pub struct FakePlane {
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    state: Arc<State>,
    serving: Option<JoinHandle<()>>,
}

struct State {
    boot: proto::Boot,
    heard: watch::Sender<Vec<Heard>>,
    /// Answers to Authorize before it lets anybody in.
    refusals: Mutex<VecDeque<Status>>,
    /// To those who hold a registration.
    tells: Mutex<Vec<mpsc::Sender<Result<proto::RegisterResponse, Status>>>>,
}

impl FakePlane {
    /// Starts it; `boot` is what it says to everybody.
    pub async fn start(address: SocketAddr, authority: &Authority, boot: proto::Boot) -> Self {
        let state = State { boot, heard: watch::Sender::new(Vec::new()), refusals: Mutex::default(), tells: Mutex::default() };
        let tls = acceptor(authority.issue_for_name(NAME), &["h2"]);
        let mut plane = Self { address, tls, state: Arc::new(state), serving: None };
        plane.resume().await;
        plane
    }

    /// Takes it away: its port is closed and every stream breaks.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Brings it back.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let acceptor = TlsAcceptor::from(self.tls.clone());
        let service = TowerToHyperService::new(OnboardingServiceServer::new(Service(self.state.clone())));
        self.serving = Some(tokio::spawn(async move {
            // Aborted with this task, so that stopping breaks every connection.
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move {
                    let tls = acceptor.accept(tcp).await?;
                    let http2 = http2::Builder::new(TokioExecutor::new());
                    http2.serve_connection(TokioIo::new(tls), service).await.map_err(io::Error::other)
                });
            }
        }));
    }

    /// Tells it to everybody who holds a registration.
    pub fn tell(&self, message: &Tell) {
        let response = || proto::RegisterResponse { message: Some(message.clone()) };
        self.state.tells.lock().unwrap().retain(|tells| tells.try_send(Ok(response())).is_ok());
    }

    /// Refuses the next credential.
    pub fn refuse(&self, status: Status) {
        self.state.refusals.lock().unwrap().push_back(status);
    }

    /// Waits for something that an agent says.
    pub async fn hears(&self, what: &str, matches: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = self.state.heard.subscribe();
        let all = within(what, heard.wait_for(|all| all.iter().any(&matches))).await.unwrap();
        all.iter().rev().find(|one| matches(one)).cloned().unwrap()
    }

    /// Everything that was said.
    pub fn heard(&self) -> Vec<Heard> {
        self.state.heard.borrow().clone()
    }
}

impl Drop for FakePlane {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

struct Service(Arc<State>);

impl State {
    fn note(&self, heard: Heard) {
        self.heard.send_modify(|all| all.push(heard));
    }
}

/// A token that ends in an hour.
pub fn token(text: &str) -> proto::Token {
    proto::Token { token: text.to_owned(), expires_at: in_an_hour() }
}

fn in_an_hour() -> Option<prost_types::Timestamp> {
    Some((SystemTime::now() + Duration::from_secs(3600)).into())
}

#[tonic::async_trait]
impl OnboardingService for Service {
    type RegisterStream = ReceiverStream<Result<proto::RegisterResponse, Status>>;

    async fn discover(&self, _: Request<proto::DiscoverRequest>) -> Result<Response<proto::DiscoverResponse>, Status> {
        self.0.note(Heard::Discover);
        let (plane_uid, nonce) = ("the-plane".to_owned(), "the-nonce".to_owned());
        Ok(Response::new(proto::DiscoverResponse { plane_uid, nonce, nonce_expires_at: in_an_hour() }))
    }

    async fn authorize(&self, request: Request<proto::AuthorizeRequest>) -> Result<Response<proto::AuthorizeResponse>, Status> {
        self.0.note(Heard::Authorize(request.into_inner()));
        match self.0.refusals.lock().unwrap().pop_front() {
            Some(status) => Err(status),
            None => Ok(Response::new(proto::AuthorizeResponse { token: "session".to_owned(), expires_at: in_an_hour() })),
        }
    }

    async fn register(
        &self,
        request: Request<Streaming<proto::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let (tells, responses) = mpsc::channel(8);
        let boot = proto::RegisterResponse { message: Some(Tell::Boot(self.0.boot.clone())) };
        tells.try_send(Ok(boot)).unwrap();
        self.0.tells.lock().unwrap().push(tells.clone());
        let (state, mut requests) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                match request.message.unwrap() {
                    Said::Registration(registration) => state.note(Heard::Register(registration)),
                    Said::Health(health) => state.note(Heard::Health(health.error)),
                    Said::Heartbeat(_) => {}
                }
            }
            drop(tells);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn unregister(&self, _: Request<proto::UnregisterRequest>) -> Result<Response<proto::UnregisterResponse>, Status> {
        self.0.note(Heard::Unregister);
        Ok(Response::new(proto::UnregisterResponse { propagation_delay: self.0.boot.propagation_delay }))
    }
}
