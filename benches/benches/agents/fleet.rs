//! Agents: each holds a registration, and comes back when it loses it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skiff_agent::identity::{Backoff, ConnectError, ControlPlaneConnector, RootSource, Security};
use skiff_agent::onboarding::Assembly;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_client::OnboardingServiceClient;
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Say;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Told;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::plane::Plane;

/// As the agent's.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_RESPONSE_BYTES: usize = 33 * 1024 * 1024;

/// All of them; gone when dropped.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    size: usize,
    _agents: JoinSet<()>,
}

struct Shared {
    connector: ControlPlaneConnector,
    /// That hold a registration now.
    held: AtomicUsize,
    /// What was tried and what went wrong, since it was last forgotten.
    counts: Mutex<BTreeMap<String, usize>>,
    /// Entries in the documents that came last.
    entries: AtomicUsize,
}

struct Agent {
    number: usize,
    token: String,
    session: Option<String>,
    /// Of the documents that it was told.
    version: String,
    /// These themselves; the first agent's alone, as a fleet's would be gigabytes.
    documents: Option<Assembly>,
    shared: Arc<Shared>,
}

impl Fleet {
    pub(crate) fn start(size: usize, plane: &Plane) -> Self {
        let connector = ControlPlaneConnector::new(plane.listen.to_string(), Security::Tls(RootSource::Pem(plane.root())));
        let shared = Shared { connector, held: AtomicUsize::new(0), counts: Mutex::default(), entries: AtomicUsize::new(0) };
        let (shared, mut agents) = (Arc::new(shared), JoinSet::new());
        for (number, token) in plane.tokens(size).into_iter().enumerate() {
            let documents = (number == 0).then(Assembly::default);
            let agent = Agent { number, token, session: None, version: String::new(), documents, shared: shared.clone() };
            agents.spawn(agent.run());
        }
        Self { shared, size, _agents: agents }
    }

    /// Waits until every agent holds its registration.
    pub(crate) async fn is_there(&self, patience: Duration) {
        let started = Instant::now();
        loop {
            let held = self.shared.held.load(Ordering::SeqCst);
            if held == self.size {
                return;
            }
            assert!(started.elapsed() < patience, "{held} of {}; {}", self.size, self.counts());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn counts(&self) -> String {
        let counts = self.shared.counts.lock().unwrap();
        counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn forget(&self) {
        self.shared.counts.lock().unwrap().clear();
    }

    pub(crate) fn entries_told(&self) -> usize {
        self.shared.entries.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn count(&self, what: impl Into<String>) {
        *self.counts.lock().unwrap().entry(what.into()).or_default() += 1;
    }
}

impl Agent {
    async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let Err(why) = self.hold(&mut backoff).await;
            self.shared.count(why);
            sleep(backoff.next_wait()).await;
        }
    }

    /// Until it is lost; why.
    async fn hold(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, String> {
        let channel = self.shared.connector.connect(None).await.map_err(|error| match error {
            ConnectError::Timeout { .. } => "no connection in time".to_owned(),
            ConnectError::Io { source, .. } => format!("no connection ({:?})", source.kind()),
            _ => "no connection".to_owned(),
        })?;
        let mut client = OnboardingServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let session = match self.session.clone() {
            Some(session) => session,
            None => self.authorize(&mut client).await?,
        };
        self.session = Some(session.clone());
        let (requests, receiver) = mpsc::channel(16);
        let send = |message| {
            let sent = requests.try_send(proto::RegisterRequest { message: Some(message) });
            sent.map_err(|_| "not read".to_owned())
        };
        if let Some(documents) = &mut self.documents {
            documents.interrupt();
        }
        send(Say::Registration(self.registration()))?;
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {session}").parse().unwrap());
        let mut responses = within("Register", client.register(request)).await?;
        let first = within_message(responses.message()).await?;
        let Some(Told::Boot(_)) = first else { return Err("no Boot".to_owned()) };
        backoff.reset();
        self.shared.held.fetch_add(1, Ordering::SeqCst);
        let shared = self.shared.clone();
        let _held = Held(&shared);
        send(Say::Health(proto::Health::default()))?;
        let mut beats = interval(Duration::from_secs(10));
        loop {
            tokio::select! {
                told = responses.message() => match told.map_err(|status| lost(&status))?.ok_or("closed")?.message {
                    Some(Told::SessionToken(token)) => self.session = Some(token.token),
                    Some(Told::Documents(documents)) => self.take(documents)?,
                    _ => {}
                },
                _ = beats.tick() => send(Say::Heartbeat(proto::Heartbeat {}))?,
            }
        }
    }

    async fn authorize(&self, client: &mut OnboardingServiceClient<Channel>) -> Result<String, String> {
        within("Discover", client.discover(proto::DiscoverRequest::default())).await?;
        let workload_group = proto::WorkloadGroup { namespace: "bookinfo".to_owned(), name: "ratings".to_owned() };
        let credential = Credential::Jwt(proto::JwtCredential { token: self.token.clone() });
        let request = proto::AuthorizeRequest { workload_group: Some(workload_group), credential: Some(credential) };
        Ok(within("Authorize", client.authorize(request)).await?.token)
    }

    fn take(&mut self, told: proto::Documents) -> Result<(), String> {
        if !told.since.is_empty() && told.since != self.version {
            return Err("told the difference to something else".to_owned());
        }
        if !told.more {
            self.version.clone_from(&told.version);
        }
        let complete = self.documents.as_mut().map(|documents| documents.take(told)).transpose()?;
        if let Some(all) = complete.flatten() {
            let entries = all.iter().map(|(_, yaml)| yaml.matches("\"WorkloadEntry\"").count()).sum();
            self.shared.entries.store(entries, Ordering::SeqCst);
        }
        Ok(())
    }

    fn registration(&self) -> proto::Registration {
        let [_, a, b, c] = u32::try_from(self.number + 1).unwrap().to_be_bytes();
        proto::Registration {
            agent_version: "0.1.0".to_owned(),
            istio_version: "1.28.0".to_owned(),
            addresses: vec![proto::Address { ip: format!("10.{a}.{b}.{c}"), r#type: proto::AddressType::Vpc.into() }],
            documents_version: self.version.clone(),
            ..proto::Registration::default()
        }
    }
}

/// A registration that is held.
struct Held<'a>(&'a Shared);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lost(status: &Status) -> String {
    format!("lost ({:?})", status.code())
}

async fn within<T>(call: &str, answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, String> {
    let answer = timeout(CALL_TIMEOUT, answer).await.map_err(|_| format!("{call} timed out"))?;
    answer.map(tonic::Response::into_inner).map_err(|status| format!("{call} {:?}", status.code()))
}

async fn within_message(
    message: impl Future<Output = Result<Option<proto::RegisterResponse>, Status>>,
) -> Result<Option<Told>, String> {
    let answer = timeout(CALL_TIMEOUT, message).await.map_err(|_| "Boot timed out".to_owned())?;
    Ok(answer.map_err(|status| format!("Boot {:?}", status.code()))?.and_then(|response| response.message))
}
