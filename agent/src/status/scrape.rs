//! The application's metrics, fetched for those who ask for ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, StatusCode, header};
use metrics::Counter;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::sync::Semaphore;

use super::{accept, exposition};
use crate::client::{self, Limit};
use crate::metrics::Metrics;

/// A larger answer is left out, as in istio-agent.
const MAX_BODY: usize = 10 * 1024 * 1024;
/// Of one scrape, all included: an application that hangs must not cost the scraper our own metrics as well.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Part of the scraper's own time-out that the application may take.
const SHARE: f64 = 0.8;
/// Scrapes at once; further ones wait, within their time.
const MAX_AT_ONCE: usize = 2;
/// Targets of a workload.
const MAX_TARGETS: usize = 16;
/// The scraper's own time-out, in seconds (Prometheus sends it).
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";
/// Ports of the data plane: to scrape them would be to scrape ourselves.
const RESERVED: [u16; 9] = [15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// Where the application has metrics: Istio's `ISTIO_PROMETHEUS_ANNOTATIONS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrapeTargets(Vec<Target>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    address: SocketAddr,
    path: String,
}

/// Annotations are strings; who writes a number means the same.
#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    scrape: Json,
    #[serde(default)]
    port: Json,
    #[serde(default)]
    path: String,
    #[serde(default)]
    targets: Vec<TargetAnnotation>,
}

#[derive(Deserialize)]
struct TargetAnnotation {
    port: Json,
    #[serde(default)]
    path: String,
}

impl ScrapeTargets {
    /// Reads the annotations: `{"scrape": "true", "port": "9080", "path": "/metrics"}`, or with several `targets`. `own` are the
    /// ports that would lead back here.
    ///
    /// # Errors
    /// Names the field, its value and what was expected.
    pub fn parse(text: &str, own: &[u16]) -> Result<Self, String> {
        let annotations: Annotations = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if word(&annotations.scrape) == "false" {
            return Ok(Self::default());
        }
        if annotations.targets.len() > MAX_TARGETS {
            return Err(format!("targets: expected at most {MAX_TARGETS}, found {}", annotations.targets.len()));
        }
        let targets: Result<Vec<_>, _> = if annotations.targets.is_empty() {
            let port = if word(&annotations.port).is_empty() { "80".to_owned() } else { word(&annotations.port) };
            vec![Target::new(&port, &annotations.path, own)].into_iter().collect()
        } else {
            annotations.targets.iter().map(|target| Target::new(&word(&target.port), &target.path, own)).collect()
        };
        targets.map(Self)
    }
}

fn word(json: &Json) -> String {
    match json {
        Json::Null => String::new(),
        Json::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    }
}

impl Target {
    fn new(port: &str, path: &str, own: &[u16]) -> Result<Self, String> {
        let number = port.parse().ok().filter(|&port: &u16| port != 0);
        let number = number.ok_or_else(|| format!("port: expected 1 to 65535, found {port:?}"))?;
        if RESERVED.contains(&number) || own.contains(&number) {
            return Err(format!("port: expected one of the application, found {number}, which is the sidecar's own"));
        }
        let path = if path.is_empty() { "/metrics".to_owned() } else { format!("/{}", path.trim_start_matches('/')) };
        Request::get(&path).body(()).map_err(|_| format!("path: expected a path, found {path:?}"))?;
        Ok(Self { address: (Ipv4Addr::LOCALHOST, number).into(), path })
    }
}

/// Fetches what the targets say.
pub(super) struct Scraper {
    targets: Vec<Target>,
    permits: Arc<Semaphore>,
    scrapes: Counter,
    failures: Counter,
}

/// What the application said, checked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scraped {
    /// Each ends with a new line, none with `# EOF`.
    pub(super) bodies: Vec<Bytes>,
    /// They are in OpenMetrics of this version.
    pub(super) open_metrics: Option<&'static str>,
}

impl Scraper {
    pub(super) fn new(ScrapeTargets(targets): ScrapeTargets, metrics: &Metrics) -> Self {
        let failures = "Scrapes of the application that failed and were left out.";
        Self {
            targets,
            permits: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            scrapes: metrics.counter("istio_agent_scrapes_total", "Scrapes of the merged metrics."),
            failures: metrics.labelled_counter("istio_agent_scrape_failures_total", failures, "type", "application"),
        }
    }

    /// Fetches from all targets at once. What fails is counted, said in the log and left out.
    pub(super) async fn scrape(&self, headers: &HeaderMap) -> Scraped {
        self.scrapes.increment(1);
        let outcomes = join_all(self.targets.iter().map(|target| self.one(target, headers))).await;
        let mut scraped = Scraped::default();
        for (target, outcome) in self.targets.iter().zip(outcomes) {
            match outcome {
                Ok((body, open_metrics)) => {
                    scraped.bodies.push(body);
                    scraped.open_metrics = open_metrics;
                }
                Err(reason) => {
                    self.failures.increment(1);
                    tracing::warn!(address = %target.address, path = target.path, reason, "metrics of the application left out");
                }
            }
        }
        scraped
    }

    async fn one(&self, target: &Target, headers: &HeaderMap) -> Result<(Bytes, Option<&'static str>), String> {
        let deadline = deadline(headers);
        let fetch = async {
            let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
            self.fetch(target, headers, deadline).await
        };
        tokio::time::timeout(deadline, fetch).await.unwrap_or_else(|_| Err(format!("no answer within {deadline:?}")))
    }

    async fn fetch(
        &self,
        target: &Target,
        headers: &HeaderMap,
        deadline: Duration,
    ) -> Result<(Bytes, Option<&'static str>), String> {
        let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let mut request = Request::get(&target.path)
            .header(header::HOST, target.address.to_string())
            .header(header::ACCEPT, accept::for_application(accepted, self.targets.len() == 1));
        for name in [header::USER_AGENT.as_str(), SCRAPE_TIMEOUT] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
        let answer = client::send_limited(target.address, request, deadline, Limit::Refuse(MAX_BODY)).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("answered {}", answer.status()));
        }
        let content_type = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let open_metrics = accept::open_metrics_version(content_type.unwrap_or_default());
        if open_metrics.is_some() && self.targets.len() > 1 {
            return Err("answered in OpenMetrics, which was not asked for".to_owned());
        }
        let body = answer.into_body();
        let length = exposition::checked(&body, open_metrics.is_some())?.len();
        Ok((body.slice(..length), open_metrics))
    }
}

/// How long the application has, by what the scraper says of its own patience.
fn deadline(headers: &HeaderMap) -> Duration {
    let given = headers.get(SCRAPE_TIMEOUT).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let given = given.and_then(|seconds| Duration::try_from_secs_f64(seconds * SHARE).ok());
    given.map_or(TIMEOUT, |given| given.min(2 * TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_read_as_istio_agent_reads_them() {
        let target = |port: u16, path: &str| Target { address: (Ipv4Addr::LOCALHOST, port).into(), path: path.to_owned() };
        for (text, targets) in [
            (r#"{"scrape":"true","path":"/stats","port":"9090"}"#, vec![target(9090, "/stats")]),
            (r#"{"scrape":"","path":"","port":""}"#, vec![target(80, "/metrics")]),
            (r#"{"scrape":true,"port":9090,"path":"metrics"}"#, vec![target(9090, "/metrics")]),
            (r#"{"scrape":"false","path":"","port":"15020"}"#, vec![]),
            (r#"{"scrape":false}"#, vec![]),
            (r#"{"targets":[{"port":"1","path":"/a"},{"port":"2"}]}"#, vec![target(1, "/a"), target(2, "/metrics")]),
        ] {
            assert_eq!(ScrapeTargets::parse(text, &[]), Ok(ScrapeTargets(targets)), "{text}");
        }
        for (text, reason) in [
            (r#"{"port":"http"}"#, "port: expected 1 to 65535, found \"http\""),
            (r#"{"port":"015020"}"#, "found 15020"),
            (r#"{"port":"7000"}"#, "found 7000, which is the sidecar's own"),
            (r#"{"port":"0"}"#, "found \"0\""),
            (r#"{"port":"9090","path":"a b"}"#, "path: expected a path"),
            ("nonsense", "line 1"),
        ] {
            let error = ScrapeTargets::parse(text, &[7000]).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_scrapers_patience_is_not_used_up() {
        let of = |value: &str| deadline(&HeaderMap::from_iter([(SCRAPE_TIMEOUT.parse().unwrap(), value.parse().unwrap())]));
        assert_eq!(deadline(&HeaderMap::new()), TIMEOUT);
        assert_eq!(of("1"), Duration::from_millis(800));
        assert_eq!(of("3600"), 2 * TIMEOUT);
        for nonsense in ["soon", "-1", "NaN", "1e400"] {
            assert_eq!(of(nonsense), TIMEOUT, "{nonsense}");
        }
    }
}
