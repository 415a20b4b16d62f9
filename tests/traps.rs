//! Traps of AWS that only whole processes fall into; tests/TRAPS.md names the tests of the others.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use skiff_tests::ecs::{Bookinfo, RATINGS};
use skiff_tests::network::Network;
use skiff_tests::skiff::{Skiff, command};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A proxy that nobody should ask.
struct Proxy {
    url: String,
    asked: Arc<AtomicUsize>,
    _serving: JoinHandle<()>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (url, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { url, asked, _serving: serving }
    }

    /// Every variable that some client looks at.
    fn environment(&self) -> Vec<(&str, &str)> {
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "GRPC_PROXY", "grpc_proxy"]
            .map(|name| (name, self.url.as_str()))
            .into()
    }

    fn nobody_came(&self) {
        assert_eq!(self.asked.load(Ordering::SeqCst), 0, "connections to the proxy of the environment");
    }
}

#[tokio::test]
async fn trap_21_neither_task_nor_plane_asks_a_proxy_of_the_environment() {
    let proxy = Proxy::start().await;
    // The metadata and credentials of the task, STS, ECS, the plane, its certificate authority: each is a server of its own here.
    let bookinfo = Bookinfo::with(&proxy.environment()).await;
    let ratings = bookinfo.join(RATINGS, &proxy.environment());
    ratings.ready().await;
    for action in ["metadata", "credentials", "GetCallerIdentity", "DescribeTasks"] {
        assert!(bookinfo.aws.calls(action) > 0, "{action}");
    }
    proxy.nobody_came();
}

#[tokio::test]
async fn trap_21_the_plane_asks_the_api_server_itself() {
    let (proxy, network, folder) = (Proxy::start().await, Network::claim(), tempfile::tempdir().unwrap());
    let api_server = TcpListener::bind(network.at(1, 6443)).await.unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}],\n\
         clusters: [{{name: a, cluster: {{server: 'http://{}'}}}}], users: [{{name: a, user: {{}}}}]}}\n",
        api_server.local_addr().unwrap()
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let admin = network.at(1, 15014);
    let mut plane = command(&["plane", "--plaintext", "--aws-describe-tasks", "off"]);
    plane
        .env("SKIFF_PLANE_KUBECONFIG", kubeconfig)
        .env("SKIFF_PLANE_NAMESPACE", "skiff")
        .env("SKIFF_PLANE_LISTEN", network.at(1, 15443).to_string())
        .env("SKIFF_PLANE_ADMIN_ADDRESS", admin.to_string())
        .envs(proxy.environment());
    let plane = Skiff::spawn(plane, admin);
    let asked = tokio::time::timeout(skiff_tests::wait::DEADLINE, api_server.accept()).await;
    assert!(asked.is_ok_and(|asked| asked.is_ok()), "the API server is not asked:\n{}", plane.stderr.all().join("\n"));
    proxy.nobody_came();
}

#[tokio::test]
async fn trap_15_what_does_not_fit_into_the_time_to_stop_is_cut_short() {
    let bookinfo = Bookinfo::with(&[("SKIFF_PLANE_PROPAGATION_DELAY", "10m")]).await;
    let mut ratings = bookinfo.join(RATINGS, &[("SKIFF_STOP_TIMEOUT", "4s")]);
    ratings.ready().await;
    ratings.terminate().await;
    // Its application never stops, and others would be waited for for longer than a test may take.
    assert_eq!(ratings.exit_code().await, 0);
    ratings.stderr.line_with("the propagation delay does not fit").await;
    ratings.stderr.line_with("the application has not stopped before the deadline").await;
    assert!(bookinfo.line(RATINGS).await.is_none_or(|line| !line.contains(" True")), "it has unregistered");
}
