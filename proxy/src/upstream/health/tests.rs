use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::*;
use crate::config::{
    self, ClusterDiscovery, ClusterLoadAssignment, EndpointAddress, EndpointHealthCheck, Fraction, GrpcHealthCheck,
    HealthChecker, HttpHealthCheck, LocalityEndpoints, TcpHealthCheck,
};
use crate::telemetry::metrics::Registry;
use crate::tls::Secrets;

const SOON: Duration = Duration::from_millis(2);
const DEADLINE: Duration = Duration::from_secs(20);

fn check(checker: HealthChecker) -> HealthCheck {
    let intervals = HealthCheckIntervals { no_traffic: SOON, no_traffic_healthy: SOON, ..HealthCheckIntervals::every(SOON) };
    HealthCheck {
        timeout: Duration::from_secs(10),
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        intervals,
        reuse_connection: true,
        alpn: Vec::new(),
        transport_match: None,
        checker,
    }
}

fn http() -> HttpHealthCheck {
    HttpHealthCheck {
        host: String::new(),
        path: "/healthz".to_owned(),
        method: "GET".to_owned(),
        send: Vec::new(),
        receive: Vec::new(),
        response_buffer_size: 1024,
        headers_to_add: Vec::new(),
        headers_to_remove: Vec::new(),
        expected_statuses: HttpHealthCheck::only(200),
        retriable_statuses: Vec::new(),
        http2: false,
        service_name: None,
    }
}

fn cluster(check: HealthCheck, endpoint: config::Endpoint) -> Arc<Cluster> {
    let locality = LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() };
    let discovery = ClusterDiscovery::Static(Arc::new(ClusterLoadAssignment::of(vec![locality])));
    let config = config::Cluster {
        health_check: Some(Arc::new(check)),
        panic_threshold: Fraction::NONE,
        ..config::Cluster::new("c", discovery)
    };
    Arc::new(Cluster::new(Arc::new(config), &Secrets::new()).unwrap())
}

fn at(address: SocketAddr) -> config::Endpoint {
    config::Endpoint::new(EndpointAddress::Socket(address))
}

/// Runs the checker of `cluster` beside `test`.
async fn checked(cluster: &Arc<Cluster>, test: impl Future<Output = ()>) {
    let registry = Arc::new(Registry::new(Arc::new(::metrics::NoopRecorder), 100));
    let metrics = Arc::new(ProxyMetrics::new(&registry));
    let local = LocalSet::new();
    local.spawn_local(run(Arc::clone(cluster), metrics));
    tokio::time::timeout(DEADLINE, local.run_until(test)).await.expect("the health never changed");
}

/// Waits until the only endpoint is called this.
async fn becomes(cluster: &Cluster, words: &str) {
    loop {
        let mut published = pin!(cluster.published());
        published.as_mut().enable();
        if cluster.status().endpoints[0].health == words {
            return;
        }
        published.await;
    }
}

/// What an application answers, and the request heads that it has had, with the number of their connection.
struct App {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    heads: Arc<Mutex<Vec<(usize, String)>>>,
}

impl App {
    async fn start(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(answer.to_owned()));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let app = Self { address, answer: answer.clone(), heads: heads.clone() };
        tokio::spawn(async move {
            for connection in 1.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, connection, answer.clone(), heads.clone()));
            }
        });
        app
    }

    fn answer(&self, answer: &str) {
        answer.clone_into(&mut self.answer.lock().unwrap());
    }
}

async fn serve(mut stream: TcpStream, connection: usize, answer: Arc<Mutex<String>>, heads: Arc<Mutex<Vec<(usize, String)>>>) {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        heads.lock().unwrap().push((connection, String::from_utf8(std::mem::take(&mut head)).unwrap()));
        let answer = answer.lock().unwrap().clone();
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_tells_how_an_endpoint_is() {
    let app = App::start(OK).await;
    let retriable_statuses = HttpHealthCheck::only(503);
    let check =
        check(HealthChecker::Http(Box::new(HttpHealthCheck { retriable_statuses, receive: vec![b"ok".to_vec()], ..http() })));
    let cluster = cluster(check, at(app.address));
    assert_eq!(cluster.status().endpoints[0].health, "/failed_active_hc");
    checked(&cluster, async {
        becomes(&cluster, "healthy").await;
        app.answer("HTTP/1.1 200 OK\r\nx-envoy-degraded: true\r\ncontent-length: 2\r\n\r\nok");
        becomes(&cluster, "/degraded_active_hc").await;
        app.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno");
        becomes(&cluster, "/failed_active_hc/degraded_active_hc").await;
        app.answer(OK);
        becomes(&cluster, "healthy").await;
        app.answer("HTTP/1.1 503 No\r\nx-envoy-immediate-health-check-fail: true\r\ncontent-length: 0\r\n\r\n");
        becomes(&cluster, "/failed_active_hc/excluded_via_immediate_hc_fail").await;
    })
    .await;
    let heads = app.heads.lock().unwrap();
    assert_eq!(heads[0].1, "GET /healthz HTTP/1.1\r\nhost: c\r\nuser-agent: Envoy/HC\r\n\r\n");
    assert!(heads.iter().all(|(connection, _)| *connection == 1), "the connection is used again");
}

#[tokio::test]
async fn the_endpoint_says_where_it_is_checked() {
    let app = App::start("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    let check = check(HealthChecker::Http(Box::new(HttpHealthCheck { host: "asked".to_owned(), ..http() })));
    let own = EndpointHealthCheck { port: app.address.port(), hostname: "own".to_owned(), ..EndpointHealthCheck::default() };
    let endpoint = config::Endpoint { health_check: Some(Arc::new(own)), ..at(([127, 0, 0, 1], 1).into()) };
    let cluster = cluster(check, endpoint);
    checked(&cluster, becomes(&cluster, "healthy")).await;
    assert!(app.heads.lock().unwrap()[0].1.contains("\r\nhost: own\r\n"));
}

#[tokio::test]
async fn an_endpoint_may_refuse_to_be_checked() {
    let own = EndpointHealthCheck { disable_active_health_check: true, ..EndpointHealthCheck::default() };
    let endpoint = config::Endpoint { health_check: Some(Arc::new(own)), ..at(([127, 0, 0, 1], 1).into()) };
    let cluster = cluster(check(HealthChecker::Http(Box::new(http()))), endpoint);
    assert_eq!(cluster.status().endpoints[0].health, "healthy");
}

#[tokio::test]
async fn silence_is_a_failure_of_its_own() {
    let app = App::start("").await;
    let cluster = cluster(HealthCheck { timeout: SOON, ..check(HealthChecker::Http(Box::new(http()))) }, at(app.address));
    checked(&cluster, async {
        // The first check changes nothing that is published; the second finds the connection closed and makes another.
        while app.heads.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(cluster.status().endpoints[0].health, "/failed_active_hc/active_hc_timeout");
        app.answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        becomes(&cluster, "healthy").await;
    })
    .await;
    assert_ne!(app.heads.lock().unwrap()[1].0, 1, "a connection with an answer outstanding is not used again");
}

#[tokio::test]
async fn bytes_tell_too() {
    let app = App::start("+PONG and so on").await;
    let ask = TcpHealthCheck { send: b"PING\r\n\r\n".to_vec(), receive: vec![b"PO".to_vec(), b"on".to_vec()] };
    let cluster = cluster(check(HealthChecker::Tcp(ask)), at(app.address));
    checked(&cluster, async {
        becomes(&cluster, "healthy").await;
        app.answer("-ERR");
    })
    .await;
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = self::cluster(check(HealthChecker::Tcp(TcpHealthCheck::default())), at(refused));
    assert_eq!(dead.status().endpoints[0].health, "/failed_active_hc");
    let open = self::cluster(check(HealthChecker::Tcp(TcpHealthCheck::default())), at(app.address));
    checked(&open, becomes(&open, "healthy")).await;
}

/// Answers every gRPC request with this message and status.
async fn grpc_server(message: &'static [u8], status: &'static str) -> (SocketAddr, Arc<Mutex<Vec<(String, Vec<u8>)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                    let mut body = Vec::new();
                    let uri = request.uri().to_string();
                    // The body follows the head at once; the connection is polled by the next accept.
                    let seen = seen.clone();
                    tokio::spawn(async move {
                        while let Some(Ok(data)) = request.body_mut().data().await {
                            body.extend_from_slice(&data);
                        }
                        seen.lock().unwrap().push((uri, body));
                        let head = ::http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                        let mut out = respond.send_response(head, false).unwrap();
                        out.send_data(Bytes::from_static(message), false).unwrap();
                        let mut trailers = ::http::HeaderMap::new();
                        trailers.insert("grpc-status", ::http::HeaderValue::from_static(status));
                        out.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn grpc_services_are_asked_in_their_own_words() {
    let (address, asked) = grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
    let ask = GrpcHealthCheck { service_name: "a.B".to_owned(), ..GrpcHealthCheck::default() };
    let cluster = cluster(check(HealthChecker::Grpc(ask.clone())), at(address));
    checked(&cluster, becomes(&cluster, "healthy")).await;
    let (uri, body) = asked.lock().unwrap()[0].clone();
    assert_eq!(
        (uri.as_str(), &body[..]),
        ("http://c/grpc.health.v1.Health/Check", &[0, 0, 0, 0, 5, 10, 3, b'a', b'.', b'B'][..])
    );

    for (message, status) in [(&[0, 0, 0, 0, 2, 8, 2][..], "0"), (&[0, 0, 0, 0, 2, 8, 1], "12")] {
        let (address, asked) = grpc_server(message, status).await;
        let sick = self::cluster(check(HealthChecker::Grpc(ask.clone())), at(address));
        checked(&sick, async {
            while asked.lock().unwrap().len() < 3 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(sick.status().endpoints[0].health, "/failed_active_hc");
    }
}

#[test]
fn pauses_follow_the_state_of_the_endpoint() {
    let ms = Duration::from_millis;
    let intervals = HealthCheckIntervals {
        interval: ms(1),
        unhealthy: ms(2),
        unhealthy_edge: ms(3),
        healthy_edge: ms(4),
        no_traffic: ms(5),
        no_traffic_healthy: ms(6),
        ..HealthCheckIntervals::every(ms(1))
    };
    let (edge, none) = (Transition::Pending, Transition::Unchanged);
    assert_eq!(pause(&intervals, true, none, true), ms(1));
    assert_eq!(pause(&intervals, false, none, true), ms(2));
    assert_eq!(pause(&intervals, false, edge, true), ms(3));
    assert_eq!(pause(&intervals, true, edge, true), ms(4));
    assert_eq!(pause(&intervals, false, none, false), ms(5));
    assert_eq!(pause(&intervals, true, none, false), ms(6));
    assert_eq!(pause(&intervals, true, edge, false), ms(5));
    let jittered = HealthCheckIntervals { jitter: ms(10), jitter_percent: 50, interval: ms(10), ..intervals };
    for _ in 0..100 {
        assert!((ms(10)..=ms(25)).contains(&pause(&jittered, true, none, true)));
    }
}
