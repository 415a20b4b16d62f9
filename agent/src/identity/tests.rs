//! The manager against the real plane, over a pipe in memory and with tokio's paused time: hours pass in milliseconds.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skiff_proxy::config::{Secret, SpiffeId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::*;
use crate::plane::{PlaneConfig, StateFolder, TestPlane};

const START: u64 = 1_800_000_000;

/// A plane behind a pipe, a wall clock that follows tokio's, and the workload's settings.
struct Lab {
    plane: TestPlane,
    reachable: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    clock: Clock,
    connector: ControlPlaneConnector,
    token: watch::Sender<Option<Token>>,
    _accepting: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Lab {
    fn new(token_lifetime: Duration) -> Self {
        let started = Instant::now();
        let clock = Clock::new(move || UNIX_EPOCH + Duration::from_secs(START) + started.elapsed());
        let folder = tempfile::tempdir().unwrap();
        let mut config = PlaneConfig::new((Ipv4Addr::LOCALHOST, 0).into(), folder.path(), "cluster.local".parse().unwrap());
        config.token_lifetime = token_lifetime;
        config.clock = clock.clone();
        let plane = TestPlane::new(&config, &StateFolder::open(folder.path()).unwrap());

        let (dialer, mut dialed) = mpsc::channel(1);
        let reachable = Arc::new(AtomicBool::new(true));
        let connections = Arc::new(AtomicU64::new(0));
        let accepting = tokio::spawn({
            let (plane, reachable, connections) = (plane.clone(), reachable.clone(), connections.clone());
            async move {
                while let Some(stream) = dialed.recv().await {
                    connections.fetch_add(1, Ordering::Relaxed);
                    // An unreachable authority: the stream is dropped.
                    if reachable.load(Ordering::Relaxed) {
                        tokio::spawn(plane.serve(stream, SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
                    }
                }
            }
        });
        let roots = Security::Tls(RootSource::Pem(plane.root_pem().as_bytes().to_vec()));
        let mut connector = ControlPlaneConnector::new("in memory", roots);
        connector.clock = clock.clone();
        connector.memory = Some(dialer);
        let token = watch::Sender::new(Some(plane.token("bookinfo", "ratings-vm")));
        Self { plane, reachable, connections, clock, connector, token, _accepting: accepting, _folder: folder }
    }

    fn client(&self) -> CaClient {
        CaClient {
            connector: self.connector.clone(),
            token: TokenSource::Watch(self.token.subscribe()),
            cluster_id: "Kubernetes".to_owned(),
            request_timeout: Duration::from_secs(10),
        }
    }

    fn start(&self, lifetime: Duration) -> Workload {
        let mut config = IdentityConfig::new(id());
        config.lifetime = lifetime;
        Workload::start(config, self.client(), self.clock.clone())
    }
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm".parse().unwrap()
}

/// A running manager and everything that it published.
struct Workload {
    published: Arc<Mutex<Vec<(String, SystemTime, Secret)>>>,
    refuse: Arc<AtomicBool>,
    status: watch::Receiver<IdentityStatus>,
    running: JoinHandle<()>,
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Workload {
    fn start(config: IdentityConfig, ca: CaClient, clock: Clock) -> Self {
        let published: Arc<Mutex<Vec<_>>> = Arc::default();
        let refuse = Arc::new(AtomicBool::new(false));
        let manager = IdentityManager::new(config, ca);
        let status = manager.status();
        let publish = {
            let (published, refuse) = (published.clone(), refuse.clone());
            move |name: &str, secret: Secret| {
                if refuse.load(Ordering::Relaxed) {
                    return Err("the proxy says no".to_owned());
                }
                published.lock().unwrap().push((name.to_owned(), clock.now(), secret));
                Ok(())
            }
        };
        let running = tokio::spawn(async move {
            manager.run(publish).await;
        });
        Self { published, refuse, status, running }
    }

    async fn issued(&mut self, count: u64) -> IdentityStatus {
        self.reached(|status| status.issued >= count).await
    }

    async fn failed(&mut self, count: u64) -> IdentityStatus {
        self.reached(|status| status.failures >= count).await
    }

    /// Bounded, because paused time would run on for ever.
    async fn reached(&mut self, condition: impl FnMut(&IdentityStatus) -> bool) -> IdentityStatus {
        let reached = tokio::time::timeout(Duration::from_secs(7 * 24 * 3600), self.status.wait_for(condition)).await;
        reached.expect("not within a week").unwrap().clone()
    }

    fn names(&self) -> Vec<String> {
        self.published.lock().unwrap().iter().map(|(name, ..)| name.clone()).collect()
    }

    /// When each certificate was published, and until when it was good.
    fn certificates(&self) -> Vec<(SystemTime, SystemTime)> {
        let published = self.published.lock().unwrap();
        let certificates = published.iter().filter_map(|(_, at, secret)| match secret {
            Secret::Certificate { chain, .. } => {
                let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
                let ends = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
                Some((*at, UNIX_EPOCH + Duration::from_secs(ends)))
            }
            Secret::Trust { .. } => None,
        });
        certificates.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_certificate_comes_at_once_with_the_roots_before_it() {
    let lab = Lab::new(Duration::from_secs(3600));
    let mut workload = lab.start(Duration::from_secs(24 * 3600));
    let status = workload.issued(1).await;
    assert_eq!(workload.names(), [ROOT_SECRET, WORKLOAD_SECRET]);
    assert!(status.is_valid_at(lab.clock.now()) && status.last_error.is_none() && status.serial.is_some());
    let now = UNIX_EPOCH + Duration::from_secs(START);
    assert_eq!(status.not_after, Some(now + Duration::from_secs(24 * 3600)));
    let half = status.rotates_at.unwrap().duration_since(now).unwrap().as_secs_f64() / (24.0 * 3600.0);
    assert!((0.4899..=0.5101).contains(&half), "{half}");

    workload.issued(3).await;
    assert_eq!(workload.names()[2..], [WORKLOAD_SECRET, WORKLOAD_SECRET], "unchanged roots are not published again");
    assert_eq!(lab.connections.load(Ordering::Relaxed), 3);
}

/// user-needs.md row 2: certificates outlive the token.
#[tokio::test(start_paused = true)]
async fn ten_rotations_with_an_expired_token_and_an_outage_of_half_a_lifetime() {
    let lab = Lab::new(Duration::from_secs(30));
    let lifetime = Duration::from_secs(120);
    let mut workload = lab.start(lifetime);
    workload.issued(2).await;

    // From shortly before the next rotation to shortly before the end of the certificate.
    let rotates_at = workload.issued(2).await.rotates_at.unwrap();
    let until_outage = rotates_at.duration_since(lab.clock.now()).unwrap() - Duration::from_secs(8);
    tokio::time::sleep(until_outage).await;
    lab.reachable.store(false, Ordering::Relaxed);
    tokio::time::sleep(lifetime / 2).await;
    let during = workload.status.borrow().clone();
    assert!(during.failures > 0 && during.is_valid_at(lab.clock.now()), "{during:?}");
    lab.reachable.store(true, Ordering::Relaxed);

    workload.issued(11).await;
    let certificates = workload.certificates();
    for pair in certificates.windows(2) {
        assert!(pair[1].0 < pair[0].1, "a gap between {:?} and {:?}", pair[0], pair[1]);
    }
    assert_eq!(certificates.len(), 11);
}

#[tokio::test(start_paused = true)]
async fn an_ended_certificate_is_not_shown_so_that_a_fresh_token_helps() {
    let lab = Lab::new(Duration::from_secs(45));
    let mut workload = lab.start(Duration::from_secs(60));
    workload.issued(1).await;
    lab.reachable.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!workload.status.borrow().is_valid_at(lab.clock.now()));
    assert_eq!(workload.names().len(), 2, "the last certificate stays published");

    lab.reachable.store(true, Ordering::Relaxed);
    let (failures, back) = (workload.status.borrow().failures, Instant::now());
    let status = workload.failed(failures + 1).await;
    assert!(back.elapsed() <= Duration::from_secs(5), "nothing can be connected meanwhile: {:?}", back.elapsed());
    assert!(status.last_error.unwrap().contains("does not accept our credentials: request authenticate failure"));
    lab.token.send_replace(Some(lab.plane.token("bookinfo", "ratings-vm")));
    let status = workload.issued(2).await;
    assert!(status.is_valid_at(lab.clock.now()) && status.failures == 0 && status.last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn attempts_wait_for_a_token_and_thin_out() {
    let lab = Lab::new(Duration::from_secs(3600));
    lab.token.send_replace(None);
    let mut workload = lab.start(Duration::from_secs(3600));
    let status = workload.failed(1).await;
    assert!(status.last_error.unwrap().contains("the token channel holds no usable token"));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let failures = workload.status.borrow().failures;
    // On average one in 16.5 s once the cap of 30 s is reached.
    assert!((150..400).contains(&failures), "{failures} attempts in an hour");
    assert_eq!(lab.connections.load(Ordering::Relaxed), 0);
    lab.token.send_replace(Some(lab.plane.token("bookinfo", "ratings-vm")));
    workload.issued(1).await;
}

/// user-needs.md row 25: a Raspberry Pi starts in 1970.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_not_set_gives_a_clear_error_and_joins_later() {
    let mut lab = Lab::new(Duration::from_secs(3600));
    let (set, real) = (Arc::new(AtomicBool::new(false)), lab.clock.clone());
    lab.connector.clock = Clock::new({
        let set = set.clone();
        move || if set.load(Ordering::Relaxed) { real.now() } else { UNIX_EPOCH + Duration::from_secs(20) }
    });
    let mut workload = lab.start(Duration::from_secs(3600));
    let error = workload.failed(3).await.last_error.unwrap();
    assert!(error.contains("not yet valid") && error.contains("clock") && error.contains("20 s after 1970"), "{error}");
    assert!(workload.names().is_empty());
    set.store(true, Ordering::Relaxed);
    workload.issued(1).await;
}

#[tokio::test(start_paused = true)]
async fn thirty_seconds_of_skew_do_not_matter() {
    for (ahead, skew) in [(true, 30), (false, 30)] {
        let mut lab = Lab::new(Duration::from_secs(3600));
        let real = lab.clock.clone();
        let skew = Duration::from_secs(skew);
        lab.connector.clock = Clock::new(move || if ahead { real.now() + skew } else { real.now() - skew });
        let mut workload = lab.start(Duration::from_secs(3600));
        assert_eq!(workload.issued(1).await.failures, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_verified_is_never_published() {
    let lab = Lab::new(Duration::from_secs(3600));
    // The token of somebody else: the authority issues somebody else's certificate.
    lab.token.send_replace(Some(lab.plane.token("bookinfo", "reviews")));
    let mut workload = lab.start(Duration::from_secs(3600));
    let error = workload.failed(3).await.last_error.unwrap();
    assert!(
        error.contains("sa/reviews") && error.contains("expected spiffe://cluster.local/ns/bookinfo/sa/ratings-vm"),
        "{error}"
    );
    assert!(workload.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refusing_proxy_is_asked_again_with_a_new_certificate() {
    let lab = Lab::new(Duration::from_secs(3600));
    let mut workload = lab.start(Duration::from_secs(3600));
    workload.refuse.store(true, Ordering::Relaxed);
    let status = workload.failed(2).await;
    assert_eq!((status.last_error.as_deref(), status.issued), (Some("the proxy says no"), 0));
    workload.refuse.store(false, Ordering::Relaxed);
    workload.issued(1).await;
    assert_eq!(workload.names(), [ROOT_SECRET, WORKLOAD_SECRET]);
}

#[tokio::test(start_paused = true)]
async fn an_authority_with_another_root_is_not_talked_to() {
    let lab = Lab::new(Duration::from_secs(3600));
    let stranger = Lab::new(Duration::from_secs(3600));
    let mut client = lab.client();
    client.connector.security = stranger.connector.security.clone();
    let error = client.request_certificate(&id(), Duration::from_secs(60), None).await.unwrap_err();
    assert!(matches!(&error, CaError::Connect(ConnectError::Io { .. })), "{error}");

    let mut client = lab.client();
    client.connector.authority = "istiod.evil.svc".to_owned();
    assert!(matches!(
        client.request_certificate(&id(), Duration::from_secs(60), None).await,
        Err(CaError::Connect(ConnectError::Io { .. }))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_silent_authority_times_out() {
    let lab = Lab::new(Duration::from_secs(3600));
    let mut client = lab.client();
    // The pipe stays open, and nobody answers.
    let (dialer, mut dialed) = mpsc::channel(1);
    client.connector.memory = Some(dialer);
    let error = client.request_certificate(&id(), Duration::from_secs(60), None).await.unwrap_err();
    assert!(matches!(error, CaError::Connect(ConnectError::Timeout { .. })), "{error}");
    assert!(dialed.try_recv().is_ok());
}
