//! AWS as far as a task and an onboarding plane see it, on one address: STS, ECS, and for each task its metadata and its credentials;
//! EC2's metadata service as well. Signatures are really verified, with the secrets of the sessions that it has given out.
//!
//! A task's process gets [`FakeAws::task_environment`], a plane's [`FakeAws::plane_environment`]. One of its APIs has an address of its
//! own, and can be taken away, by [`FakeAws::outlet`].

mod answers;
mod signature;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Where everything is.
pub const REGION: &str = "us-east-1";
/// Whose it is.
pub const ACCOUNT: &str = "123456789012";
/// The key of the plane.
pub const PLANE_KEY: &str = "AKIAPLANE00000000000";
const PLANE_SECRET: &str = "secret/of+the=plane";
/// What the credentials endpoint wants to see.
const ENDPOINT_TOKEN: &str = "token-of-the-endpoint";

/// A task, as ECS sees it.
#[derive(Clone, Debug)]
pub struct FakeTask {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Its cluster's name.
    pub cluster: String,
    /// ARN of the role that its definition names.
    pub role_arn: Option<String>,
    /// ARN of the role that it was started with instead.
    pub overridden_role_arn: Option<String>,
    /// `RUNNING` and the like.
    pub last_status: String,
    /// `RUNNING` or `STOPPED`.
    pub desired_status: String,
    /// `FARGATE`, `EC2` or `EXTERNAL`.
    pub launch_type: String,
    /// `None` outside of AWS.
    pub zone: Option<String>,
    /// Of its network interface; none in host mode.
    pub address: Option<IpAddr>,
    /// Statuses of the containers but for our own, by name.
    pub applications: Vec<(String, String)>,
}

impl FakeTask {
    /// A task of Fargate that runs in the cluster `bookinfo` with the role `bookinfoECSTaskRole`.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            cluster: "bookinfo".to_owned(),
            role_arn: Some(format!("arn:aws:iam::{ACCOUNT}:role/some/path/bookinfoECSTaskRole")),
            overridden_role_arn: None,
            last_status: "RUNNING".to_owned(),
            desired_status: "RUNNING".to_owned(),
            launch_type: "FARGATE".to_owned(),
            zone: Some("us-east-1a".to_owned()),
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            applications: vec![("ratings".to_owned(), "RUNNING".to_owned())],
        }
    }

    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{}/{}", self.cluster, self.id)
    }

    fn definition_arn(&self) -> String {
        format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/{}:1", self.id)
    }

    fn role_name(&self) -> String {
        let role = self.overridden_role_arn.as_ref().or(self.role_arn.as_ref());
        role.and_then(|arn| arn.rsplit('/').next()).unwrap_or("none").to_owned()
    }
}

/// Somebody whom STS knows.
#[derive(Clone, Debug)]
pub struct Session {
    /// The id of the access key.
    pub access_key_id: String,
    /// Signs.
    pub secret: String,
    /// `None` for a user's.
    pub token: Option<String>,
    /// What STS says about it.
    pub arn: String,
}

/// An answer: status, headers, body.
pub type Instead = (u16, Vec<(String, String)>, String);

/// What is asked and what is there.
#[derive(Debug, Default)]
pub struct State {
    /// The tasks of the account.
    pub tasks: Vec<FakeTask>,
    /// By id of the access key.
    pub sessions: HashMap<String, Session>,
    /// Answers given instead of ours, by action. An action is `GetCallerIdentity`, `DescribeTasks` and so on,
    /// `metadata`, `credentials`.
    pub instead: HashMap<String, Instead>,
    /// What was asked, in order, whatever the answer.
    pub calls: Vec<String>,
}

/// AWS.
#[derive(Debug)]
pub struct FakeAws {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _running: JoinSet<()>,
}

impl FakeAws {
    /// Starts it; port 0 is any.
    pub async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let mut running = JoinSet::new();
        running.spawn(serve(listener, Arc::clone(&state)));
        let aws = Self { address, state, _running: running };
        let arn = format!("arn:aws:sts::{ACCOUNT}:assumed-role/plane/plane");
        aws.add_session(Session { access_key_id: PLANE_KEY.to_owned(), secret: PLANE_SECRET.to_owned(), token: None, arn });
        aws
    }

    /// Starts a task.
    pub fn add_task(&self, task: FakeTask) {
        self.add_session(Session::of(&task.role_name(), &task.id));
        self.update(|state| state.tasks.push(task));
    }

    /// Makes somebody known to STS.
    pub fn add_session(&self, session: Session) {
        self.update(|state| drop(state.sessions.insert(session.access_key_id.clone(), session)));
    }

    /// Changes what there is.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// Changes a task.
    pub fn update_task(&self, id: &str, change: impl FnOnce(&mut FakeTask)) {
        self.update(|state| change(state.tasks.iter_mut().find(|task| task.id == id).expect("a task")));
    }

    /// How often this was asked.
    pub fn calls(&self, action: &str) -> usize {
        self.update(|state| state.calls.iter().filter(|call| *call == action).count())
    }

    /// `http://<address>`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What ECS sets in the containers of a task.
    pub fn task_environment(&self, task_id: &str) -> Vec<(String, String)> {
        let url = self.url();
        environment([
            ("ECS_CONTAINER_METADATA_URI_V4", format!("{url}/v4/{task_id}")),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{url}/credentials/{task_id}")),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", ENDPOINT_TOKEN.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ])
    }

    /// What a plane needs to ask this AWS, as a user of its own.
    pub fn plane_environment(&self) -> Vec<(String, String)> {
        environment([
            ("AWS_ENDPOINT_URL_STS", self.url()),
            ("AWS_ENDPOINT_URL_ECS", self.url()),
            ("AWS_ACCESS_KEY_ID", PLANE_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", PLANE_SECRET.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ])
    }
}

/// A further address of the same AWS, which can be taken away alone.
#[derive(Debug)]
pub struct Outlet {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    running: Option<JoinSet<()>>,
}

impl FakeAws {
    /// Opens one.
    pub async fn outlet(&self, address: SocketAddr) -> Outlet {
        let mut outlet = Outlet { address, state: Arc::clone(&self.state), running: None };
        outlet.resume().await;
        outlet
    }
}

impl Outlet {
    /// `http://<address>`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes it away: its port is closed and every connection breaks.
    pub async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
    }

    /// Brings it back.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.running.insert(JoinSet::new()).spawn(serve(listener, Arc::clone(&self.state)));
    }
}

impl Session {
    /// Credentials of a role; their parts follow from its name and the session's.
    pub fn of(role: &str, session: &str) -> Self {
        let letters = |text: &str| text.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
        let id = letters(&format!("{session}{role}"));
        Self {
            access_key_id: format!("ASIA{}", &id[..id.len().min(120)]),
            secret: format!("secret/of+{role}={session}"),
            token: Some(format!("IQoJb3JpZ2luX2VjE//+{role}/{session}==")),
            arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"),
        }
    }
}

fn environment<const N: usize>(variables: [(&str, String); N]) -> Vec<(String, String)> {
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let state = Arc::clone(&state);
                let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                connections.spawn(async move {
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
        }
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let request = Request::from_parts(head, body);
    Ok(answers::to(&request, &mut state.lock().unwrap()).map(Full::new))
}
