//! The pages of the status ports.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::scrape::{Scraped, Scraper};
use super::{AppProbes, StatusConfig, exposition};
use crate::admin::Readiness;
use crate::metrics::Metrics;
use crate::page::{Answer, Body, JSON, PROMETHEUS, ok, text, whole};
use crate::shutdown::Shutdown;

/// What the pages show and act upon.
pub(super) struct Pages {
    readiness: Readiness,
    metrics: Metrics,
    shutdown: Shutdown,
    drain: Arc<dyn Fn() + Send + Sync>,
    scraper: Scraper,
    probes: AppProbes,
    port: u16,
    metrics_for_localhost_only: bool,
}

impl Pages {
    pub(super) fn new(
        config: &StatusConfig,
        metrics: Metrics,
        readiness: Readiness,
        shutdown: Shutdown,
        drain: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            readiness,
            shutdown,
            drain,
            scraper: Scraper::new(config.scrape.clone(), &metrics),
            metrics,
            probes: config.probes.clone(),
            port: config.ports.status,
            metrics_for_localhost_only: config.metrics_for_localhost_only,
        }
    }

    /// Port 15020.
    pub(super) async fn agent<B: Sync>(&self, request: &Request<B>, peer: SocketAddr) -> Response<Body> {
        let (path, is_local) = (request.uri().path(), peer.ip().to_canonical().is_loopback());
        match path {
            // The sidecar of a job whose work is done.
            "/quitquitquit" => change(request, is_local, || self.shutdown.request()).into(),
            "/drain" => change(request, is_local, || (self.drain)()).into(),
            "/debug/ndsz" if !is_local => local_only().into(),
            // There is no DNS proxy, so there are no names.
            "/debug/ndsz" => Answer { status: StatusCode::NOT_FOUND, content_type: JSON, body: whole(&b"{}"[..]) }.into(),
            path if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                self.probe(path, request.headers()).await.into()
            }
            _ if !is_read(request.method()) => not_allowed("GET, HEAD"),
            "/healthz/ready" => self.ready().into(),
            "/metrics" | "/stats/prometheus" if self.metrics_for_localhost_only && !is_local => local_only().into(),
            "/metrics" | "/stats/prometheus" => self.merged(request.headers()).await,
            _ => not_found().into(),
        }
    }

    /// Port 15021.
    pub(super) fn health<B>(&self, request: &Request<B>) -> Response<Body> {
        match request.uri().path() {
            _ if !is_read(request.method()) => not_allowed("GET, HEAD"),
            "/healthz/ready" => self.ready().into(),
            _ => not_found().into(),
        }
    }

    /// Port 15090.
    pub(super) fn metrics<B>(&self, request: &Request<B>) -> Response<Body> {
        match request.uri().path() {
            _ if !is_read(request.method()) => not_allowed("GET, HEAD"),
            "/stats/prometheus" => {
                let body = whole(self.metrics.render());
                Answer { status: StatusCode::OK, content_type: PROMETHEUS, body }.into()
            }
            _ => not_found().into(),
        }
    }

    fn ready(&self) -> Answer {
        match self.readiness.reason() {
            None => ok("LIVE\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }

    async fn probe(&self, path: &str, headers: &HeaderMap) -> Answer {
        match self.probes.ask(path, headers, self.port).await {
            Some(outcome) => text(outcome.status, outcome.body),
            None => text(StatusCode::BAD_REQUEST, "no such probe in ISTIO_KUBE_APP_PROBERS\n"),
        }
    }

    /// Ours first, then the application's: OpenMetrics ends with a line after which nothing may come.
    async fn merged(&self, headers: &HeaderMap) -> Response<Body> {
        let Scraped { bodies, open_metrics } = self.scraper.scrape(headers).await;
        let mut pieces = vec![Bytes::from(exposition::ours(&self.metrics.render()))];
        pieces.extend(bodies);
        let mut content_type = HeaderValue::from_static(PROMETHEUS);
        if let Some(version) = open_metrics {
            pieces.push(Bytes::from_static(b"# EOF\n"));
            let named = HeaderValue::try_from(format!("application/openmetrics-text; version={version}; charset=utf-8"));
            content_type = named.unwrap_or(content_type);
        }
        let pieces = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        let body = StreamBody::new(stream::iter(pieces)).boxed_unsync();
        let mut response: Response<Body> = Answer { status: StatusCode::OK, content_type: PROMETHEUS, body }.into();
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// What only the machine itself may do.
fn change<B>(request: &Request<B>, is_local: bool, act: impl FnOnce()) -> Answer {
    if !is_local {
        return local_only();
    }
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "expected POST\n");
    }
    // Browsers send Origin with every POST.
    if request.headers().contains_key(header::ORIGIN) {
        return text(StatusCode::FORBIDDEN, "requests from web pages change nothing here\n");
    }
    tracing::info!("asked by {}", request.uri().path());
    act();
    ok("OK")
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn local_only() -> Answer {
    text(StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n")
}

fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "")
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = Response::from(text(StatusCode::METHOD_NOT_ALLOWED, format!("expected {allowed}\n")));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::status::{DEFAULT_ADDRESS, Ports, ScrapeTargets};

    fn pages(metrics_for_localhost_only: bool) -> Pages {
        let config = StatusConfig {
            address: DEFAULT_ADDRESS,
            ports: Ports::ISTIO,
            scrape: ScrapeTargets::default(),
            probes: AppProbes::default(),
            metrics_for_localhost_only,
        };
        let shutdown = Shutdown::default();
        let drain = shutdown.clone();
        let drain = Arc::new(move || drain.skip_drain());
        Pages::new(&config, Metrics::new(&[]).unwrap(), Readiness::default(), shutdown, drain)
    }

    async fn status(pages: &Pages, method: Method, path: &str, peer: &str, origin: bool) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        if origin {
            request = request.header(header::ORIGIN, "http://evil.example");
        }
        pages.agent(&request.body(()).unwrap(), peer.parse().unwrap()).await.status().as_u16()
    }

    #[tokio::test]
    async fn only_the_machine_itself_ends_or_drains_the_sidecar() {
        let pages = pages(false);
        for (method, peer, origin, expected) in [
            (Method::POST, "10.0.0.9:1", false, 403),
            (Method::POST, "[2001:db8::1]:1", false, 403),
            (Method::GET, "127.0.0.1:1", false, 405),
            (Method::POST, "127.0.0.1:1", true, 403),
        ] {
            for path in ["/quitquitquit", "/drain"] {
                assert_eq!(status(&pages, method.clone(), path, peer, origin).await, expected, "{path} {peer}");
            }
        }
        assert!(pages.shutdown.requested().now_or_never().is_none());
        assert!(!pages.shutdown.skips_drain());
        assert_eq!(status(&pages, Method::POST, "/drain", "127.0.0.1:1", false).await, 200);
        assert!(pages.shutdown.skips_drain() && pages.shutdown.requested().now_or_never().is_none());
        // As a dual-stack socket names it.
        assert_eq!(status(&pages, Method::POST, "/quitquitquit", "[::ffff:127.0.0.1]:1", false).await, 200);
        assert!(pages.shutdown.requested().now_or_never().is_some());
        assert_eq!(status(&pages, Method::GET, "/debug/ndsz", "10.0.0.9:1", false).await, 403);
    }

    #[tokio::test]
    async fn metrics_may_be_kept_to_the_machine() {
        for (only, peer, expected) in [(false, "10.0.0.9:1", 200), (true, "10.0.0.9:1", 403), (true, "127.0.0.1:1", 200)] {
            assert_eq!(status(&pages(only), Method::GET, "/stats/prometheus", peer, false).await, expected, "{only} {peer}");
        }
        assert_eq!(status(&pages(true), Method::GET, "/healthz/ready", "10.0.0.9:1", false).await, 503);
        assert_eq!(status(&pages(true), Method::POST, "/healthz/ready", "10.0.0.9:1", false).await, 405);
    }
}
