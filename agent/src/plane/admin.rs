//! The plane's own page: health, metrics, and the registrations for `skiff plane get war`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::objects::WorkloadAutoRegistration;
use super::store::Store;
use crate::client::{Limit, send_limited};
use crate::metrics::Metrics;
use crate::page::{self, Body, CONNECTION_TIMEOUT, whole};
use crate::shutdown::Shutdown;

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
        let admin = Arc::new(self);
        let answer = move |request: Request<Incoming>, _| {
            let (admin, (head, _)) = (admin.clone(), request.into_parts());
            async move { admin.answer(&head.method, &head.uri).await }
        };
        page::serve(listener, answer).await;
    }

    async fn answer(&self, method: &Method, uri: &Uri) -> Response<Body> {
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

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(whole(body));
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
        send_limited(address, request, CONNECTION_TIMEOUT, Limit::Refuse(MAX_LIST)).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(format!("the plane at {address} says: {}", String::from_utf8_lossy(answer.body()).trim_end()));
    }
    let list: List = serde_json::from_slice(answer.body()).map_err(|error| format!("the plane at {address}: {error}"))?;
    Ok(list.items)
}
