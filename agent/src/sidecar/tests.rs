//! A sidecar with real files, a real admin page and a real data plane; translation is what the file says.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, header};
use tokio::sync::Notify;

use super::*;
use crate::client;
use crate::logging;

const SOON: Duration = Duration::from_secs(10);

/// Refuses documents that say `bad`; the others are the version of an otherwise empty configuration.
fn translate(applied: Arc<Notify>) -> Translate {
    Box::new(move |documents| {
        applied.notify_one();
        let bad = documents.iter().find(|(_, text)| text.contains("bad"));
        match bad {
            Some((path, _)) => Err(vec![format!("{}:1: kind: unknown kind bad", path.display())]),
            None => {
                Ok(Translation { snapshot: Snapshot::default(), warnings: vec!["a.yaml:2: spec.x: not supported".to_owned()] })
            }
        }
    })
}

fn sources(path: &Path, applied: Arc<Notify>, identity: Option<Identity>) -> Sources {
    let configuration = ConfigurationSource::Documents { path: path.to_owned(), translate: translate(applied) };
    Sources { configuration, identity, membership: None }
}

fn config() -> SidecarConfig {
    SidecarConfig {
        node: Node::default(),
        admin_address: "127.0.0.1:0".parse().unwrap(),
        status: None,
        drain_deadline: SOON,
        minimum_drain: Duration::ZERO,
        proxy: skiff_proxy::Options { workers: 1, ..skiff_proxy::Options::default() },
        histograms: &[],
    }
}

async fn metric(address: SocketAddr, name: &str) -> Option<f64> {
    let request = Request::get("/metrics").header(header::HOST, "localhost").body(Bytes::new()).unwrap();
    let answer = client::send(address, request, SOON).await.unwrap();
    let text = String::from_utf8(answer.body().to_vec()).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn follows_its_documents_and_keeps_the_last_good_ones() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    fs::write(&file, "one").unwrap();
    let applied = Arc::new(Notify::new());
    let (_log, control) = logging::detached();
    let shutdown = Shutdown::default();
    let sources = sources(folder.path(), Arc::clone(&applied), None);
    let sidecar = Sidecar::start(config(), sources, control, shutdown.clone()).await.unwrap();
    let (address, readiness) = (sidecar.admin.local_addr().unwrap(), sidecar.readiness());
    applied.notified().await;
    let running = tokio::spawn(sidecar.run());
    tokio::time::timeout(SOON, readiness.ready()).await.unwrap();
    assert_eq!(metric(address, "skiff_config_last_reload_successful").await, Some(1.0));
    assert_eq!(metric(address, "skiff_config_rejected_resources").await, Some(0.0));

    fs::write(&file, "bad").unwrap();
    tokio::time::timeout(SOON, applied.notified()).await.unwrap();
    assert_eq!(metric(address, "skiff_config_last_reload_successful").await, Some(0.0));
    assert_eq!(metric(address, "skiff_config_reload_failures_total").await, Some(1.0));
    admin::probe(address).await.unwrap();

    fs::write(&file, "good again").unwrap();
    tokio::time::timeout(SOON, applied.notified()).await.unwrap();
    assert_eq!(metric(address, "skiff_config_last_reload_successful").await, Some(1.0));

    shutdown.request();
    tokio::time::timeout(SOON, running).await.unwrap().unwrap().unwrap();
    assert_eq!(readiness.reason().unwrap(), "draining");
}

#[tokio::test]
async fn does_not_start_from_documents_that_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), "bad").unwrap();
    let (_log, control) = logging::detached();
    let sources = sources(folder.path(), Arc::default(), None);
    let failure = Sidecar::start(config(), sources, control, Shutdown::default()).await.err().unwrap();
    assert_eq!(failure.code(), 78);
    assert!(failure.to_string().ends_with("a.yaml:1: kind: unknown kind bad"), "{failure}");
}

#[tokio::test]
async fn is_not_ready_before_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), "good").unwrap();
    let (_log, control) = logging::detached();
    let identity: Identity = Box::new(|publisher| {
        publisher.waiting("no token");
        Box::pin(std::future::pending())
    });
    let sources = sources(folder.path(), Arc::default(), Some(identity));
    let shutdown = Shutdown::default();
    let sidecar = Sidecar::start(config(), sources, control, shutdown.clone()).await.unwrap();
    let (address, proxy, readiness) = (sidecar.admin.local_addr().unwrap(), sidecar.proxy.clone(), sidecar.readiness());
    let running = tokio::spawn(sidecar.run());
    assert!(admin::probe(address).await.unwrap_err().starts_with("503: waiting for certificate"));

    let publisher = SecretPublisher { proxy, readiness: readiness.clone() };
    let certified = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let key = Arc::new(rustls_pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into()));
    publisher.publish("default", Secret::Certificate { chain: vec![certified.cert.der().clone()], key }).unwrap();
    tokio::time::timeout(SOON, readiness.ready()).await.unwrap();

    shutdown.request();
    shutdown.request();
    tokio::time::timeout(SOON, running).await.unwrap().unwrap().unwrap();
}
