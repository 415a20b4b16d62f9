//! Small stand-ins for two applications of Istio's Bookinfo, in process, for `skiff quickstart`.
//!
//! They speak plain HTTP on a loopback port, as an application behind a sidecar does, and remember the last
//! `x-forwarded-client-cert` that the sidecar put on a request: the identities as they were on the wire.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 128;

/// Which application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bookinfo {
    /// `GET /details/{id}`: a book.
    Details,
    /// `GET /ratings/{id}`: what two reviewers think of it.
    Ratings,
}

/// A stand-in that can be stopped and started again on the same port.
#[derive(Debug)]
pub struct StandIn {
    app: Bookinfo,
    address: SocketAddr,
    client_cert: Arc<watch::Sender<Option<String>>>,
    running: Option<JoinSet<()>>,
}

impl StandIn {
    /// Starts it on `127.0.0.1:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(app: Bookinfo, port: u16) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stand_in = Self { app, address, client_cert: Arc::new(watch::Sender::new(None)), running: None };
        stand_in.restart().await?;
        Ok(stand_in)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `x-forwarded-client-cert` of the last request.
    pub fn last_client_cert(&self) -> Option<String> {
        self.client_cert.borrow().clone()
    }

    /// Stops it: the port is closed and so is every connection when this returns.
    pub async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        self.running.insert(JoinSet::new()).spawn(serve(self.app, listener, Arc::clone(&self.client_cert)));
        Ok(())
    }
}

async fn serve(app: Bookinfo, listener: TcpListener, client_cert: Arc<watch::Sender<Option<String>>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve_connection(app, stream, Arc::clone(&client_cert)));
                }
            }
        }
    }
}

async fn serve_connection(app: Bookinfo, stream: TcpStream, client_cert: Arc<watch::Sender<Option<String>>>) {
    let service = service_fn(|request: Request<Incoming>| {
        let seen = request.headers().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
        client_cert.send_replace(seen.map(str::to_owned));
        let (status, body) = answer(app, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response(status, body)) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    // A caller that breaks off is its own problem.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

fn response(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn answer(app: Bookinfo, method: &Method, path: &str) -> (StatusCode, String) {
    let id = |prefix: &str| path.strip_prefix(prefix)?.parse::<u32>().ok();
    let found = match (app, path) {
        (Bookinfo::Details, "/health") => Some(r#"{"status":"Details is healthy"}"#.to_owned()),
        (Bookinfo::Ratings, "/health") => Some(r#"{"status":"Ratings is healthy"}"#.to_owned()),
        (Bookinfo::Details, _) => id("/details/").map(book),
        (Bookinfo::Ratings, _) => id("/ratings/").map(ratings),
    };
    match found {
        None => (StatusCode::NOT_FOUND, r#"{"error":"not found"}"#.to_owned()),
        Some(_) if method != Method::GET => (StatusCode::METHOD_NOT_ALLOWED, r#"{"error":"only GET"}"#.to_owned()),
        Some(body) => (StatusCode::OK, body),
    }
}

// Written out, so that the keys come in the order of the real applications.

/// The book of Istio's Bookinfo.
fn book(id: u32) -> String {
    format!(
        r#"{{"id":{id},"author":"William Shakespeare","year":1595,"type":"paperback","pages":200,"publisher":"PublisherA","language":"English","ISBN-10":"1234567890","ISBN-13":"123-1234567890"}}"#
    )
}

fn ratings(id: u32) -> String {
    format!(r#"{{"id":{id},"ratings":{{"Reviewer1":5,"Reviewer2":4}}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{self, ClientError};

    const SOON: Duration = Duration::from_secs(5);

    async fn ask(address: SocketAddr, request: http::request::Builder) -> Result<Response<Bytes>, ClientError> {
        client::send(address, request.header(header::HOST, "app").body(Bytes::new()).unwrap(), SOON).await
    }

    #[tokio::test]
    async fn answers_as_bookinfo_does_and_remembers_who_called() {
        let details = StandIn::start(Bookinfo::Details, 0).await.unwrap();
        let cert = "By=spiffe://a/ns/b/sa/c;URI=spiffe://a/ns/b/sa/d";
        let answer = ask(details.address(), Request::get("/details/7").header("x-forwarded-client-cert", cert)).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()[header::CONTENT_TYPE]),
            (200, &"application/json".parse().unwrap())
        );
        let book: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!((&book["id"], &book["ISBN-13"]), (&7.into(), &"123-1234567890".into()));
        assert_eq!(details.last_client_cert().as_deref(), Some(cert));
        for (request, status) in [
            (Request::get("/health"), 200),
            (Request::get("/ratings/0"), 404),
            (Request::get("/details/x"), 404),
            (Request::post("/details/0"), 405),
        ] {
            assert_eq!(ask(details.address(), request).await.unwrap().status(), status);
        }
        assert_eq!(details.last_client_cert(), None);
    }

    #[tokio::test]
    async fn stops_and_starts_on_the_same_port() {
        let mut ratings = StandIn::start(Bookinfo::Ratings, 0).await.unwrap();
        let address = ratings.address();
        ratings.stop().await;
        assert!(matches!(ask(address, Request::get("/ratings/0")).await, Err(ClientError::Connect(..))));
        ratings.restart().await.unwrap();
        let answer = ask(address, Request::get("/ratings/0")).await.unwrap();
        assert_eq!(answer.body().as_ref(), br#"{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}"#);
    }
}
