//! What goes through two sidecars unchanged: protocols and their corners.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use ::http::{HeaderMap, HeaderValue, Request};
use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, GOODBYE, GREETING, Speaks};
use skiff_tests::http::{self, Connection};
use skiff_tests::http2::Client;
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS, Running};
use skiff_tests::tls;
use skiff_tests::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MEBIBYTE: usize = 1 << 20;

async fn bookinfo() -> Running {
    Mesh::prepare().await.run().await
}

/// Bytes in which a lost, doubled or moved piece shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn http1_connections_are_kept_on_every_hop() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    for number in 1..=3 {
        let request = http::get_request(DETAILS, "/", &format!("x-request-id: id-alive-{number}\r\n"));
        assert_eq!(caller.ask(&request).await.unwrap().status, 200);
    }
    let (first, _) = bookinfo.lines("id-alive-1").await;
    let (last, behind) = bookinfo.lines("id-alive-3").await;
    let (_, before) = bookinfo.lines("id-alive-1").await;
    assert_eq!(first.get("upstream_local_address"), last.get("upstream_local_address"));
    assert_eq!(before.get("upstream_local_address"), behind.get("upstream_local_address"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    let request = |body: &str| format!("POST / HTTP/1.1\r\nhost: {DETAILS}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    caller.send([request("one"), request("three"), request("fourteen")].concat()).await.unwrap();
    for body in ["one", "three", "fourteen"] {
        assert_eq!(caller.answer().await.unwrap().text(), body);
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_taken_on_both_doors() {
    let bookinfo = bookinfo().await;
    let request = |id: &str| {
        let request = Request::post(format!("http://{DETAILS}/two")).header("x-request-id", id);
        request.body(()).unwrap()
    };
    let mut caller = Client::open(bookinfo.egress()).await;
    let answer = caller.ask(request("id-egress"), b"hello", HeaderMap::new()).await.unwrap();
    assert_eq!((answer.head.status.as_u16(), answer.body.as_slice()), (200, &b"hello"[..]));
    let (ratings, details) = bookinfo.lines("id-egress").await;
    ratings.assert(&[("request", "POST /two HTTP/2"), ("response_code", "200")]);
    details.assert(&[("response_code", "200")]);

    let stream = tls::connect(bookinfo.mesh.ingress(DETAILS_V1, 9080), Some(&bookinfo.mesh.identity()), &["h2"]).await.unwrap();
    let mut caller = Client::over(stream).await.unwrap();
    let answer = caller.ask(request("id-ingress"), b"hello", HeaderMap::new()).await.unwrap();
    assert_eq!((answer.head.status.as_u16(), answer.body.as_slice()), (200, &b"hello"[..]));
    let line = AccessLogLine::parse(&bookinfo.details.stdout.line_with("id-ingress").await);
    line.assert(&[("request", "POST /two HTTP/2"), ("upstream_cluster", "inbound|9080||")]);
    assert_eq!(bookinfo.app.last_request().start, "POST /two HTTP/1.1");
}

#[tokio::test]
async fn grpc_trailers_go_both_ways() {
    let bookinfo = bookinfo().await;
    let _grpc = App::start(bookinfo.mesh.network.at(31, 8090), Speaks::Grpc);
    let mut caller = Client::open(bookinfo.mesh.egress(RATINGS, 9090)).await;
    let request = Request::post("http://details.bookinfo:9090/bookinfo.Details/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-request-id", "id-grpc");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("c0ffee"));
    let message = b"\0\0\0\0\x05hello";
    let answer = caller.ask(request.body(()).unwrap(), message, trailers).await.unwrap();
    assert_eq!((answer.head.status.as_u16(), answer.body.as_slice()), (200, &message[..]));
    assert_eq!(answer.trailers["grpc-status"], "0");
    assert_eq!(answer.trailers["x-checksum"], "c0ffee");

    let (ratings, details) = bookinfo.lines("id-grpc").await;
    for line in [&ratings, &details] {
        line.assert(&[("request", "POST /bookinfo.Details/Get HTTP/2"), ("response_code", "200"), ("bytes_sent", "10")]);
    }
    let counted = [("request_protocol", "grpc"), ("grpc_response_status", "0"), ("response_code", "200")];
    for sidecar in [&bookinfo.ratings, &bookinfo.details] {
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.only("istio_requests_total", &counted).value, 1.0);
        assert_eq!(metrics.only("istio_request_messages_total", &[("destination_workload", "details-v1")]).value, 1.0);
        assert_eq!(metrics.only("istio_response_messages_total", &[("source_workload", "ratings-v1")]).value, 1.0);
    }
}

#[tokio::test]
async fn a_grpc_caller_of_a_stopped_application_gets_a_grpc_status() {
    let bookinfo = bookinfo().await;
    let mut caller = Client::open(bookinfo.mesh.egress(RATINGS, 9090)).await;
    let request = Request::post("http://details.bookinfo:9090/bookinfo.Details/Get")
        .header("content-type", "application/grpc")
        .header("x-request-id", "id-grpc-down");
    let answer = caller.ask(request.body(()).unwrap(), b"", HeaderMap::new()).await.unwrap();
    assert_eq!((answer.head.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(answer.head.headers["grpc-status"], "14");
    let (_, details) = bookinfo.lines("id-grpc-down").await;
    details.assert(&[("response_code", "200"), ("response_flags", "UF")]);
}

#[tokio::test]
async fn a_websocket_carries_bytes_both_ways_until_one_side_ends() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nx-request-id: id-socket\r\n";
    let answer = caller.ask(&http::get_request(DETAILS, "/upgrade", upgrade)).await.unwrap();
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    let message = noise(MEBIBYTE / 4);
    let mut echo = vec![0; message.len()];
    let (mut read, mut write) = tokio::io::split(&mut caller.0);
    within("the echo", async { tokio::try_join!(write.write_all(&message), read.read_exact(&mut echo)) }).await.unwrap();
    assert!(echo == message);
    drop(caller);
    let (ratings, details) = bookinfo.lines("id-socket").await;
    for line in [ratings, details] {
        line.assert(&[("response_code", "101"), ("bytes_received", "262144"), ("bytes_sent", "262144")]);
    }
}

#[tokio::test]
async fn an_upgrade_that_is_no_websocket_makes_no_tunnel() {
    let bookinfo = bookinfo().await;
    let upgrade = "connection: Upgrade\r\nupgrade: foo\r\nx-request-id: id-foo\r\n";
    let answer = http::exchange(bookinfo.egress(), &http::get_request(DETAILS, "/upgrade", upgrade)).await;
    assert_eq!(answer.status, 403);
    let line = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with("id-foo").await);
    line.assert(&[("response_code", "403"), ("response_code_details", "upgrade_failed")]);
    assert!(bookinfo.app.requests().is_empty());
}

#[tokio::test]
async fn early_hints_come_before_the_answer() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    let hints = caller.ask(&http::get_request(DETAILS, "/hints", "")).await.unwrap();
    assert_eq!((hints.status, hints.header("link")), (103, Some("</style.css>; rel=preload")));
    bookinfo.app.release();
    assert_eq!(caller.answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn the_application_decides_about_100_continue() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    let head = format!("POST /expect HTTP/1.1\r\nhost: {DETAILS}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    caller.send(head).await.unwrap();
    bookinfo.app.arrived("/expect").await;
    assert_eq!(caller.answer().await.unwrap().status, 100);
    caller.send("hello").await.unwrap();
    let answer = caller.answer().await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "hello".to_owned()));
}

#[tokio::test]
async fn a_mebibyte_goes_both_ways_whole() {
    let bookinfo = bookinfo().await;
    let body = noise(MEBIBYTE);
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    caller
        .send(format!("POST / HTTP/1.1\r\nhost: {DETAILS}\r\nx-request-id: id-large\r\ncontent-length: {MEBIBYTE}\r\n\r\n"))
        .await
        .unwrap();
    caller.send(&body).await.unwrap();
    assert!(caller.answer().await.unwrap().body == body);
    let (ratings, details) = bookinfo.lines("id-large").await;
    for line in [ratings, details] {
        line.assert(&[("bytes_received", "1048576"), ("bytes_sent", "1048576")]);
    }
    let mut caller = Client::open(bookinfo.egress()).await;
    let request = Request::post(format!("http://{DETAILS}/")).body(()).unwrap();
    assert!(caller.ask(request, &body, HeaderMap::new()).await.unwrap().body == body);
}

#[tokio::test]
async fn chunks_stay_chunks_without_trailers_and_a_head_has_no_body() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    let body = "2\r\nhe\r\n3\r\nllo\r\n0\r\nx-checksum: c0ffee\r\n\r\n";
    let request = format!("POST /chunked HTTP/1.1\r\nhost: {DETAILS}\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    let answer = caller.ask(&request).await.unwrap();
    assert_eq!((answer.header("transfer-encoding"), answer.text()), (Some("chunked"), "hello".to_owned()));
    let request = bookinfo.app.last_request();
    assert_eq!((request.header("transfer-encoding"), request.text()), (Some("chunked"), "hello".to_owned()));
    // As Envoy has it unless `enable_trailers` is set, which Istio does not do.
    assert!(answer.trailers.is_empty() && request.trailers.is_empty());
    caller.send(format!("HEAD / HTTP/1.1\r\nhost: {DETAILS}\r\nconnection: close\r\n\r\n")).await.unwrap();
    let head = caller.head().await.unwrap().unwrap();
    assert_eq!((head.second_word(), head.header("content-length")), ("200", Some("0")));
    assert!(caller.rest().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_tcp_protocol_may_greet_first_and_each_side_may_end_on_its_own() {
    let bookinfo = bookinfo().await;
    let _tcp = App::start(bookinfo.mesh.network.at(31, 8100), Speaks::Tcp);
    let mut caller = TcpStream::connect(bookinfo.mesh.egress(RATINGS, 9100)).await.unwrap();
    let mut greeting = vec![0; GREETING.len()];
    // Nothing has been sent yet: whoever waits for the caller's first byte waits for ever.
    within("the greeting", caller.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(greeting, GREETING);
    let message = noise(MEBIBYTE);
    let mut rest = Vec::new();
    let (mut read, mut write) = caller.split();
    let send = async {
        write.write_all(&message).await?;
        write.shutdown().await
    };
    // The goodbye comes after the end of the caller's side.
    within("the rest", async { tokio::try_join!(send, read.read_to_end(&mut rest)) }).await.unwrap();
    assert!(rest == [&message, GOODBYE].concat());

    let received = MEBIBYTE.to_string();
    let sent = (GREETING.len() + MEBIBYTE + GOODBYE.len()).to_string();
    let cluster = "outbound|9100||details.bookinfo.svc.cluster.local";
    let ratings = AccessLogLine::parse(&bookinfo.ratings.stdout.line_with(cluster).await);
    let details = AccessLogLine::parse(&bookinfo.details.stdout.line_with("inbound|9100||").await);
    for line in [ratings, details] {
        line.assert(&[("request", "- - -"), ("response_flags", "-"), ("bytes_received", &received), ("bytes_sent", &sent)]);
    }
    let both = [("source_principal", RATINGS.spiffe_id()), ("destination_principal", DETAILS_V1.spiffe_id())];
    let both = both.each_ref().map(|(name, id)| (*name, id.as_str()));
    for sidecar in [&bookinfo.ratings, &bookinfo.details] {
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.only("istio_tcp_connections_opened_total", &both).value, 1.0);
        assert_eq!(metrics.only("istio_tcp_connections_closed_total", &both).value, 1.0);
        assert_eq!(metrics.only("istio_tcp_received_bytes_total", &both).value, MEBIBYTE as f64);
    }
}

#[tokio::test]
async fn a_caller_that_resets_its_connection_is_logged_as_dc() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    caller.send(http::get_request(DETAILS, "/hold", "x-request-id: id-left\r\n")).await.unwrap();
    bookinfo.app.arrived("/hold").await;
    caller.0.get_ref().set_zero_linger().unwrap();
    drop(caller);
    let (ratings, details) = bookinfo.lines("id-left").await;
    for line in [ratings, details] {
        line.assert(&[
            ("response_code", "0"),
            ("response_flags", "DC"),
            ("response_code_details", "downstream_remote_disconnect"),
        ]);
    }
}

#[tokio::test]
async fn a_caller_that_has_said_everything_still_gets_its_answer() {
    let bookinfo = bookinfo().await;
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    caller.send(http::get_request(DETAILS, "/hold", "x-request-id: id-half\r\n")).await.unwrap();
    caller.0.shutdown().await.unwrap();
    bookinfo.app.arrived("/hold").await;
    bookinfo.app.release();
    let mut answer = caller.answer().await.unwrap();
    if answer.status == 100 {
        // Took longer than the sidecar waits before it asks whether the caller is still there.
        answer = caller.answer().await.unwrap();
    }
    assert_eq!(answer.status, 200);
    let (ratings, details) = bookinfo.lines("id-half").await;
    for line in [ratings, details] {
        line.assert(&[("response_code", "200"), ("response_flags", "-")]);
    }
}

#[tokio::test]
async fn a_cancelled_http2_request_is_cancelled_all_the_way() {
    let bookinfo = bookinfo().await;
    let mut caller = Client::open(bookinfo.egress()).await;
    let request = Request::get(format!("http://{DETAILS}/hold")).header("x-request-id", "id-cancelled").body(()).unwrap();
    tokio::select! {
        _ = caller.ask(request, b"", HeaderMap::new()) => panic!("nobody has released it"),
        () = bookinfo.app.arrived("/hold") => {}
    }
    let (ratings, details) = bookinfo.lines("id-cancelled").await;
    ratings.assert(&[("response_code", "0"), ("response_flags", "DR"), ("response_code_details", "http2.remote_reset")]);
    // HTTP/1.1 between the sidecars knows no reset of a request.
    details.assert(&[("response_code", "0"), ("response_flags", "DC")]);
}
