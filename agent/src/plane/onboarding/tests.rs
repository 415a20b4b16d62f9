//! The onboarding service over real TLS with a real client: every way in, every refusal, and every way out.

mod credentials;
mod lifecycle;
mod many;
mod registrations;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use skiff_proto::skiff::onboarding::v1alpha1 as proto;
use skiff_proto::skiff::onboarding::v1alpha1::authorize_request::Credential;
use skiff_proto::skiff::onboarding::v1alpha1::onboarding_service_client::OnboardingServiceClient;
use skiff_proto::skiff::onboarding::v1alpha1::register_request::Message as Say;
use skiff_proto::skiff::onboarding::v1alpha1::register_response::Message as Told;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::*;
use crate::fetch::{Client, TrustedRoots};
use crate::identity::{ControlPlaneConnector, RootSource, Security};
use crate::onboarding::Assembly;
use crate::onboarding::aws::AwsVerifier;
use crate::onboarding::jwt::JwtVerifier;
use crate::plane::objects::{ConditionStatus, ObjectKey, WorkloadAutoRegistration};
use crate::plane::store::EmbeddedStore;
use crate::plane::{Authority, Plane, PlaneConfig, StateFolder, read_issuers};

const ISSUER: &str = "https://issuer.example";
const SOON: Duration = Duration::from_secs(20);

const CONFIG: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: ratings, namespace: bookinfo, labels: {app: ratings}}
spec:
  template: {serviceAccount: bookinfo-ratings, labels: {app: ratings}, ports: {http: 9080}, network: vms}
  probe: {httpGet: {port: 9080, path: /health}}
---
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata: {name: holders, namespace: bookinfo}
spec:
  allow:
  - workloads:
    - jwt: {issuer: 'https://issuer.example', attributes: [{name: team, values: [ratings]}]}
    - aws: {accounts: ['123456789012'], ecs: {iamRoleNames: [task]}}
    onboardTo: [{workloadGroupSelector: {matchLabels: {app: ratings}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ratings, namespace: bookinfo}
spec:
  hosts: [ratings.bookinfo.svc.cluster.local]
  ports: [{number: 9080, name: http, protocol: HTTP}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: ratings}}
";

/// A plane with everything around it.
struct Bed {
    folder: tempfile::TempDir,
    key: KeyPair,
    ahead: Arc<AtomicU64>,
    store: Arc<EmbeddedStore>,
    plane: Option<Plane>,
    metrics: Metrics,
    uid: String,
}

/// What differs from the usual plane.
#[derive(Default)]
struct Change {
    settings: Option<fn(&mut OnboardingSettings)>,
    aws: Option<AwsVerifier>,
    transport: Option<crate::plane::Transport>,
    mesh_token_lifetime: Option<Duration>,
}

impl Bed {
    async fn new(change: Change) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        std::fs::write(folder.path().join("config/plane.yaml"), CONFIG).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self::start(folder, key, Arc::default(), change).await
    }

    async fn usual() -> Self {
        Self::new(Change::default()).await
    }

    /// As after a restart, on the same state and the same clock.
    async fn restarted(mut self, change: Change) -> Self {
        self.plane.take().unwrap().shutdown().await;
        let Self { folder, key, ahead, store, .. } = self;
        drop(store);
        Self::start(folder, key, ahead, change).await
    }

    async fn start(folder: tempfile::TempDir, key: KeyPair, ahead: Arc<AtomicU64>, change: Change) -> Self {
        let clock = {
            let ahead = ahead.clone();
            Clock::new(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::Relaxed)))
        };
        let mut config =
            PlaneConfig::new((Ipv4Addr::LOCALHOST, 0).into(), folder.path().join("state"), "cluster.local".parse().unwrap());
        config.clock = clock.clone();
        config.token_lifetime = change.mesh_token_lifetime.unwrap_or(config.token_lifetime);
        config.transport = change.transport.unwrap_or(crate::plane::Transport::Own);
        let state = StateFolder::open(&config.state).unwrap();
        let authority = Authority::load_or_create(&config, &state).unwrap();
        let secrets = PlaneSecrets::load_or_create(&state, None).unwrap();
        let store = open_store(&state, folder.path(), &authority, &clock).await;
        let mesh = MeshSettings::embedded(config.trust_domain.clone(), "Kubernetes", authority.ca.root_pem());
        let mut settings = OnboardingSettings::new("plane-0", mesh);
        if let Some(change) = change.settings {
            change(&mut settings);
        }
        let metrics = Metrics::new(&crate::plane::HISTOGRAMS).unwrap();
        let issuers = read_issuers("issuers.yaml".into(), &issuers(&key)).unwrap();
        let client = Client::new(TrustedRoots::System);
        let uid = secrets.uid().to_owned();
        let verifiers = Verifiers { aws: change.aws, jwt: Some(JwtVerifier::new(issuers, uid.clone(), &client, clock.clone())) };
        let onboarding = OnboardingConfig {
            settings,
            secrets,
            store: store.clone(),
            documents: Some(store.clone()),
            verifiers,
            metrics: metrics.clone(),
            clock,
        };
        let plane = Plane::serve(config, Some(authority), Some(onboarding), Some(state)).await.unwrap();
        Self { folder, key, ahead, store, plane: Some(plane), metrics, uid }
    }

    fn plane(&self) -> &Plane {
        self.plane.as_ref().unwrap()
    }

    fn advance(&self, seconds: u64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    /// A token of the issuer for this plane.
    fn token(&self, subject: &str) -> String {
        self.token_with(&json!({"sub": subject}))
    }

    fn token_with(&self, changes: &serde_json::Value) -> String {
        let now =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + self.ahead.load(Ordering::Relaxed);
        let mut claims = json!({
            "iss": ISSUER, "aud": self.uid, "sub": "vm", "iat": now, "exp": now + 600, "attributes": {"team": "ratings"},
        });
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let header = Header { kid: Some("key".to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(self.key.serialized_der())).unwrap()
    }

    async fn agent(&self) -> Agent {
        let roots = RootSource::Pem(self.plane().root_pem().as_bytes().to_vec());
        let connector = ControlPlaneConnector::new(self.plane().address().to_string(), Security::Tls(roots));
        Agent(OnboardingServiceClient::new(connector.connect(None).await.unwrap()).max_decoding_message_size(1 << 25))
    }

    /// A certificate for the mesh.
    async fn certificate(&self, token: &str) -> Result<crate::identity::WorkloadCertificate, crate::identity::CaError> {
        let roots = RootSource::Pem(self.plane().root_pem().as_bytes().to_vec());
        let (_, token) = watch::channel(Some(crate::identity::Token::new(token)));
        let client = crate::identity::CaClient {
            connector: ControlPlaneConnector::new(self.plane().address().to_string(), Security::Tls(roots)),
            token: crate::identity::TokenSource::Watch(token),
            cluster_id: "Kubernetes".to_owned(),
            request_timeout: SOON,
        };
        let id = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings".parse().unwrap();
        client.request_certificate(&id, Duration::from_secs(3600), None).await
    }

    /// A session token for `subject`.
    async fn session(&self, agent: &mut Agent, subject: &str) -> String {
        agent.authorize(jwt(self.token(subject))).await.unwrap().token
    }

    async fn registration(&self, subject: &str) -> Option<WorkloadAutoRegistration> {
        self.store.registration(&name_of(subject)).await.unwrap()
    }

    /// Waits until what is stored is as expected.
    async fn until(&self, what: &str, expected: impl AsyncFn() -> bool) {
        let mut changes = self.store.changes();
        let wait = async {
            while !expected().await {
                // A part of what is waited for is no change of the store.
                let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
    }

    async fn is_connected(&self, subject: &str) -> Option<(ConditionStatus, String)> {
        let registration = self.registration(subject).await?;
        registration.status.agent_connected().map(|condition| (condition.status, condition.reason.clone()))
    }

    fn count(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok()).unwrap_or(0.0) as u64
    }
}

/// The thread that writes the database lets go of it a moment later than its owner.
async fn open_store(state: &StateFolder, folder: &Path, authority: &Authority, clock: &Clock) -> Arc<EmbeddedStore> {
    let deadline = SystemTime::now() + SOON;
    loop {
        match EmbeddedStore::open(state, folder.join("config"), authority.tokens.clone(), clock.clone()) {
            Ok(store) => return Arc::new(store),
            Err(error) if SystemTime::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn issuers(key: &KeyPair) -> String {
    // An uncompressed point: 4, x, y.
    let point = key.der_bytes();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]));
    let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "key", "alg": "ES256", "use": "sig", "x": x, "y": y}]});
    let issuer = json!({
        "issuer": ISSUER, "shortName": "a", "jwks": jwks.to_string(), "tokenFields": {"attributes": {"jsonPath": ".attributes"}},
    });
    json!({"issuers": [issuer]}).to_string()
}

fn name_of(subject: &str) -> ObjectKey {
    ObjectKey::new("bookinfo", format!("ratings-jwt-a-{subject}"))
}

fn jwt(token: String) -> Credential {
    Credential::Jwt(proto::JwtCredential { token })
}

/// The other side.
#[derive(Clone)]
struct Agent(OnboardingServiceClient<Channel>);

/// A stream that is held.
struct Held {
    requests: mpsc::Sender<proto::RegisterRequest>,
    responses: Streaming<proto::RegisterResponse>,
    documents: Assembly,
}

impl Agent {
    async fn authorize(&mut self, credential: Credential) -> Result<proto::AuthorizeResponse, Status> {
        self.authorize_for("ratings", Some(credential)).await
    }

    async fn authorize_for(&mut self, group: &str, credential: Option<Credential>) -> Result<proto::AuthorizeResponse, Status> {
        let workload_group = Some(proto::WorkloadGroup { namespace: "bookinfo".to_owned(), name: group.to_owned() });
        Ok(self.0.authorize(proto::AuthorizeRequest { workload_group, credential }).await?.into_inner())
    }

    async fn open(&mut self, session: &str) -> Result<Held, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let responses = self.0.register(bearer(session, ReceiverStream::new(receiver))).await?.into_inner();
        Ok(Held { requests, responses, documents: Assembly::default() })
    }

    /// A stream whose Boot has come.
    async fn register(&mut self, session: &str, registration: proto::Registration) -> Result<(Held, proto::Boot), Status> {
        let mut held = self.open(session).await?;
        held.say(Say::Registration(registration)).await;
        match held.next().await? {
            Told::Boot(boot) => Ok((held, boot)),
            other => panic!("{other:?}"),
        }
    }

    async fn unregister(&mut self, session: &str) -> Result<Duration, Status> {
        let answer = self.0.unregister(bearer(session, proto::UnregisterRequest {})).await?.into_inner();
        Ok(answer.propagation_delay.unwrap().try_into().unwrap())
    }
}

impl Held {
    async fn say(&self, message: Say) {
        self.requests.send(proto::RegisterRequest { message: Some(message) }).await.unwrap();
    }

    async fn healthy(&self, error: &str) {
        self.say(Say::Health(proto::Health { error: error.to_owned() })).await;
    }

    async fn next(&mut self) -> Result<Told, Status> {
        let next = tokio::time::timeout(SOON, self.responses.message()).await.expect("nothing was said");
        next?.and_then(|response| response.message).ok_or_else(|| Status::unknown("the stream ended without status"))
    }

    /// The next message for which `wanted` has an answer.
    async fn find<T>(&mut self, wanted: impl Fn(&Told) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.next().await.unwrap()) {
                return found;
            }
        }
    }

    /// Until the YAML that is told holds all of `present` and none of `absent`.
    async fn until_told(&mut self, present: &[&str], absent: &[&str]) {
        loop {
            let Told::Documents(documents) = self.next().await.unwrap() else { continue };
            let Some(all) = self.documents.take(documents).unwrap() else { continue };
            let yaml: String = all.iter().map(|(_, yaml)| yaml.as_str()).collect();
            if present.iter().all(|text| yaml.contains(text)) && !absent.iter().any(|text| yaml.contains(text)) {
                return;
            }
        }
    }

    /// How the stream ends.
    async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

fn bearer<T>(session: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {session}").parse().unwrap());
    request
}

fn registration(ip: &str) -> proto::Registration {
    proto::Registration {
        agent_version: "0.1.0".to_owned(),
        istio_version: "1.28.0".to_owned(),
        istio_revision: String::new(),
        addresses: vec![proto::Address { ip: ip.to_owned(), r#type: proto::AddressType::Vpc.into() }],
        labels: [("version".to_owned(), "v5".to_owned())].into(),
        connected_over: proto::ConnectedOver::Unspecified.into(),
        documents_version: String::new(),
    }
}

fn rewrite(folder: &Path, from: &str, to: &str) {
    let file = folder.join("config/plane.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn codes<T>(result: &Result<T, Status>) -> Option<Code> {
    result.as_ref().err().map(Status::code)
}
