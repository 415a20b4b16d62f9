//! The plane's own page: health, metrics, and the registrations for `skiff plane get war`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::objects::WorkloadAutoRegistration;
use super::store::Store;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

const MAX_CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a connection; each carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_HEAD: usize = 16 * 1024;
/// Of the list of registrations.
const MAX_LIST: usize = 64 * 1024 * 1024;

/// What the page shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The plane's objects.
    pub store: Arc<dyn Store>,
    /// Its metrics.
    pub metrics: Metrics,
    /// Who has been asked to stop is not ready.
    pub shutdown: Shutdown,
}

/// `kubectl get -o json` of several objects.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    api_version: String,
    kind: String,
    items: Vec<WorkloadAutoRegistration>,
}

impl Admin {
    /// Serves until the future is dropped; open connections end with it.
    pub async fn serve(self, listener: TcpListener) {
        let (admin, permits) = (Arc::new(self), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = admin.clone();
                    connections.spawn(async move {
                        let _permit = permit;
                        let _ = timeout(CONNECTION_TIMEOUT, admin.serve_connection(stream)).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "the plane's page cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve_connection(&self, stream: TcpStream) -> Result<(), hyper::Error> {
        let service = service_fn(|request: Request<Incoming>| async move {
            let (head, _) = request.into_parts();
            Ok::<_, Infallible>(self.answer(&head.method, &head.uri).await)
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
    }

    async fn answer(&self, method: &Method, uri: &Uri) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if !matches!(*method, Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".to_owned());
        }
        match uri.path() {
            "/healthz/live" => reply(StatusCode::OK, TEXT, "LIVE\n".to_owned()),
            "/healthz/ready" => match self.ready().await {
                Ok(()) => reply(StatusCode::OK, TEXT, "READY\n".to_owned()),
                Err(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason + "\n"),
            },
            "/metrics" | "/stats/prometheus" => {
                reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            "/registrations" => {
                let query = uri.query().unwrap_or_default();
                let namespace = query.split('&').find_map(|pair| pair.strip_prefix("namespace="));
                match self.list(namespace).await {
                    Ok(list) => reply(StatusCode::OK, "application/json", list),
                    Err(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason + "\n"),
                }
            }
            _ => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                "/healthz/live /healthz/ready /metrics /registrations?namespace=NS\n".to_owned(),
            ),
        }
    }

    async fn ready(&self) -> Result<(), String> {
        if self.shutdown.is_requested() {
            return Err("the plane stops".to_owned());
        }
        // What is asked for matters less than that it is answered.
        let answered = self.store.policies("default").await;
        answered.map(drop).map_err(|error| format!("the store does not answer: {error}"))
    }

    async fn list(&self, namespace: Option<&str>) -> Result<String, String> {
        let items = self.store.registrations(namespace).await.map_err(|error| error.to_string())?;
        let list = List { api_version: "v1".to_owned(), kind: "List".to_owned(), items };
        serde_json::to_string(&list).map_err(|error| error.to_string())
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The registrations of the plane whose page is at `address`, of one namespace or of all.
///
/// # Errors
/// When it does not answer, in words.
pub async fn fetch_registrations(address: SocketAddr, namespace: Option<&str>) -> Result<Vec<WorkloadAutoRegistration>, String> {
    let path = namespace.map_or_else(|| "/registrations".to_owned(), |namespace| format!("/registrations?namespace={namespace}"));
    let request =
        Request::get(path).header(header::HOST, address.to_string()).body(Bytes::new()).map_err(|error| error.to_string())?;
    let answer =
        crate::client::send_bounded(address, request, CONNECTION_TIMEOUT, MAX_LIST).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(format!("the plane at {address} says: {}", String::from_utf8_lossy(answer.body()).trim_end()));
    }
    let list: List = serde_json::from_slice(answer.body()).map_err(|error| format!("the plane at {address}: {error}"))?;
    Ok(list.items)
}
