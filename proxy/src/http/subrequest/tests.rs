use std::cell::RefCell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;
use crate::config::{self, ClusterDiscovery, ClusterLoadAssignment, EndpointAddress};
use crate::telemetry::metrics::{ProxyMetrics, Registry};
use crate::tls::Secrets;

/// A service that answers every request on every connection with the same bytes and keeps what it was sent.
struct Service {
    cluster: Arc<Cluster>,
    pool: Rc<Pool>,
    seen: Rc<RefCell<Vec<String>>>,
}

impl Service {
    async fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = EndpointAddress::Socket(listener.local_addr().unwrap());
        let discovery = ClusterDiscovery::Static(Arc::new(ClusterLoadAssignment::single(address)));
        let cluster = Arc::new(Cluster::new(Arc::new(config::Cluster::new("own", discovery)), &Secrets::new()).unwrap());
        let registry = Arc::new(Registry::new(Arc::new(metrics::NoopRecorder), 10));
        let seen = Rc::new(RefCell::new(Vec::new()));
        let requests = seen.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let requests = requests.clone();
                tokio::task::spawn_local(async move {
                    let mut buffer = vec![0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                        requests.borrow_mut().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                        let _ = stream.write_all(answer).await;
                    }
                });
            }
        });
        Self { cluster, pool: Pool::new(Arc::new(ProxyMetrics::new(&registry))), seen }
    }

    async fn ask(&self, method: Method, body: &'static str, limits: Limits) -> Result<Answer, Error> {
        let mut head = RequestHead::new();
        head.method = method;
        head.set_authority(b"own.test");
        head.set_path(b"/keys");
        send(&self.pool, &self.cluster, head, Bytes::from_static(body.as_bytes()), limits).await
    }
}

const LIMITS: Limits = Limits { timeout: Duration::from_secs(5), max_body: 8 };

#[tokio::test]
async fn a_request_goes_out_with_its_marks_and_comes_back_whole() {
    let whole = async {
        let service =
            Service::answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 203 x\r\nx-a: 1\r\ncontent-length: 8\r\n\r\n12345678")
                .await;
        let answer = service.ask(Method::GET, "", LIMITS).await.unwrap();
        assert_eq!((answer.head.status.as_u16(), answer.body.as_slice()), (203, &b"12345678"[..]));
        assert_eq!(answer.head.headers.find(&HeaderName::new("x-a")), Some(&b"1"[..]));
        service.ask(Method::POST, "body", LIMITS).await.unwrap();
        assert_eq!(
            service.seen.borrow().as_slice(),
            [
                "GET /keys HTTP/1.1\r\nhost: own.test\r\nx-envoy-internal: true\r\nx-envoy-expected-rq-timeout-ms: 5000\r\n\r\n",
                "POST /keys HTTP/1.1\r\nhost: own.test\r\nx-envoy-internal: true\r\nx-envoy-expected-rq-timeout-ms: 5000\r\n\
                 content-length: 4\r\n\r\nbody",
            ]
        );
    };
    LocalSet::new().run_until(whole).await;
}

#[tokio::test]
async fn an_answer_over_the_bound_is_none() {
    let long = async {
        let service = Service::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n123456789").await;
        let error = service.ask(Method::GET, "", LIMITS).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::UpstreamProtocol);
        assert_eq!(error.source.unwrap().to_string(), "response body of more than 8 bytes");
    };
    LocalSet::new().run_until(long).await;
}

#[tokio::test]
async fn one_deadline_covers_everything() {
    let slow = async {
        let service = Service::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n1").await;
        let limits = Limits { timeout: Duration::from_millis(50), ..LIMITS };
        assert_eq!(service.ask(Method::GET, "", limits).await.unwrap_err().kind, ErrorKind::Timeout);
        // A call that was given up leaves nothing behind: the next one is served by a connection of its own.
        assert_eq!(service.ask(Method::GET, "", limits).await.unwrap_err().kind, ErrorKind::Timeout);
        assert_eq!(service.seen.borrow().len(), 2);
    };
    LocalSet::new().run_until(slow).await;
}

#[tokio::test]
async fn one_endpoint_can_be_asked_without_marks() {
    let one = async {
        let service = Service::answering(b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n").await;
        let endpoint = service.cluster.pick(&PickContext::default()).unwrap();
        let mut head = RequestHead::new();
        head.set_authority(b"own.test");
        head.set_path(b"/health");
        let answer = send_to(&service.pool, &service.cluster, &endpoint, &head, Bytes::new(), LIMITS).await.unwrap();
        assert_eq!(answer.head.status, 503);
        assert_eq!(service.seen.borrow().as_slice(), ["GET /health HTTP/1.1\r\nhost: own.test\r\n\r\n"]);
    };
    LocalSet::new().run_until(one).await;
}

#[tokio::test]
async fn a_refused_connection_is_an_error() {
    let refused = async {
        let service = Service::answering(b"").await;
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let discovery = ClusterDiscovery::Static(Arc::new(ClusterLoadAssignment::single(EndpointAddress::Socket(nobody))));
        let cluster = Arc::new(Cluster::new(Arc::new(config::Cluster::new("none", discovery)), &Secrets::new()).unwrap());
        let service = Service { cluster, ..service };
        assert_eq!(service.ask(Method::GET, "", LIMITS).await.unwrap_err().kind, ErrorKind::ConnectFailure);
    };
    LocalSet::new().run_until(refused).await;
}
