//! A downstream connection over an in-memory pipe.

use std::future::Future;
use std::pin::pin;
use std::time::Instant;

use futures_util::future::{FutureExt, poll_immediate};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::config::{HttpConnectionManager, RouteSource, TrafficDirection};

const GET: &[u8] = b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n";

fn options() -> ServerOptions {
    let routes = RouteSource::Named(String::new());
    ServerOptions::new(&HttpConnectionManager::new("test", TrafficDirection::Inbound, routes), false)
}

fn pair(capacity: usize) -> (DuplexStream, ServerConnection) {
    pair_with(capacity, options())
}

fn pair_with(capacity: usize, options: ServerOptions) -> (DuplexStream, ServerConnection) {
    let (client, server) = duplex(capacity);
    (client, ServerConnection::new(Stream::Memory(server), Rc::new(options)))
}

async fn path(server: &ServerConnection) -> Option<String> {
    let mut head = RequestHead::new();
    server.read_head(&mut head).await.expect("head").map(|_| String::from_utf8_lossy(head.path()).into_owned())
}

async fn body(server: &ServerConnection) -> Result<String, BodyError> {
    let mut text = String::new();
    while let Some(frame) = poll_fn(|cx| server.poll_frame(cx)).await {
        match frame? {
            Frame::Data(data) => text.push_str(&String::from_utf8_lossy(&data)),
            Frame::Trailers(trailers) => text.push_str(&format!("{trailers:?}")),
        }
    }
    Ok(text)
}

fn answer(server: &ServerConnection, text: &'static str) {
    let size = BodySize::Known(text.len() as u64);
    server.write_head(&ResponseHead::new(StatusCode::OK), size, WriteHead::default());
    server.write_bytes(Bytes::copy_from_slice(text.as_bytes()));
    server.finish();
}

async fn available(client: &mut DuplexStream) -> String {
    let mut buf = vec![0; 256 * 1024];
    let bytes = client.read(&mut buf).await.expect("read");
    String::from_utf8_lossy(&buf[..bytes]).into_owned()
}

fn is_pending<T>(future: impl Future<Output = T>) -> bool {
    future.now_or_never().is_none()
}

#[tokio::test]
async fn requests_follow_each_other_and_a_head_leaves_with_its_body() {
    let (mut client, server) = pair(4096);
    for _ in 0..2 {
        client.write_all(b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi").await.expect("write");
        assert!(server.wait_readable().await.expect("readable"));
        assert_eq!(path(&server).await.as_deref(), Some("/1"));
        assert!(!server.request_complete());
        assert_eq!(body(&server).await.expect("body"), "hi");
        answer(&server, "ok\n");
        assert!(server.request_complete() && server.response_complete() && server.can_reuse());
        server.flush().await.expect("flush");
        assert_eq!(available(&mut client).await, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n");
    }
    drop(client);
    assert!(!server.wait_readable().await.expect("closed"));
    assert_eq!(path(&server).await, None);
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let (mut client, server) = pair(1);
    let text = b"\r\nPOST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;e\r\nhello\r\n0\r\nX-T: 1\r\n\r\n";
    let send = async {
        client.write_all(text).await.expect("write");
        client
    };
    let receive = async {
        assert_eq!(path(&server).await.as_deref(), Some("/x"));
        body(&server).await.expect("body")
    };
    let (_client, text) = tokio::join!(send, receive);
    assert_eq!(text, "hello");
    assert!(server.inner.borrow().io.input.is_empty());
}

#[tokio::test]
async fn pipelined_requests_are_served_in_order_and_not_after_a_close() {
    let (mut client, server) = pair(4096);
    client
        .write_all(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /3")
        .await
        .expect("write");
    assert_eq!(path(&server).await.as_deref(), Some("/1"));
    answer(&server, "1");
    assert!(server.can_reuse());
    assert_eq!(path(&server).await.as_deref(), Some("/2"));
    answer(&server, "2");
    assert!(!server.can_reuse());
    server.flush().await.expect("flush");
    let text = available(&mut client).await;
    assert!(text.ends_with("\r\n\r\n1HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2"), "{text}");
}

#[tokio::test]
async fn reading_a_head_can_be_given_up_and_taken_up_again() {
    let (mut client, server) = pair(4096);
    client.write_all(&GET[..10]).await.expect("write");
    let mut head = RequestHead::new();
    assert!(is_pending(server.read_head(&mut head)));
    assert!(is_pending(server.read_head(&mut head)));
    client.write_all(&GET[10..]).await.expect("write");
    assert_eq!(path(&server).await.as_deref(), Some("/1"));
}

#[tokio::test]
async fn bad_heads_and_bodies_are_told_apart_from_disconnects() {
    let (mut client, server) = pair(4096);
    let mut head = RequestHead::new();
    client.write_all(b"BAD\r\n\r\n").await.expect("write");
    let error = server.read_head(&mut head).await.expect_err("bad");
    assert!(matches!(error, ReadError::Head(HeadError::Malformed)));

    let (mut client, server) = pair(4096);
    client.write_all(&GET[..10]).await.expect("write");
    drop(client);
    assert!(matches!(server.read_head(&mut head).await, Err(ReadError::Truncated)));

    let chunked = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut client, server) = pair(4096);
    client.write_all(&[&chunked[..], b"0x3\r\nabc"].concat()).await.expect("write");
    server.read_head(&mut head).await.expect("head");
    let error = body(&server).await.expect_err("bad chunk");
    assert_eq!(error.downstream_kind(), ErrorKind::DownstreamProtocol);
    assert!(!server.can_reuse());

    let (mut client, server) = pair(4096);
    client.write_all(&[&chunked[..], b"3\r\nab"].concat()).await.expect("write");
    drop(client);
    server.read_head(&mut head).await.expect("head");
    let error = body(&server).await.expect_err("cut short");
    assert_eq!(error.downstream_kind(), ErrorKind::DownstreamClosed);
}

#[tokio::test]
async fn a_half_close_after_the_request_is_no_abort() {
    let (mut client, server) = pair(4096);
    client.write_all(GET).await.expect("write");
    client.shutdown().await.expect("half close");
    assert_eq!(path(&server).await.as_deref(), Some("/1"));
    assert!(is_pending(poll_fn(|cx| server.poll_closed(cx))));
    assert!(server.half_closed());
    answer(&server, "ok");
    server.flush().await.expect("flush");
    assert!(available(&mut client).await.ends_with("ok"));
    assert_eq!(path(&server).await, None);
}

#[tokio::test]
async fn what_is_read_ahead_while_waiting_is_bounded_and_kept() {
    let (mut client, server) = pair(1024 * 1024);
    client.write_all(GET).await.expect("write");
    assert_eq!(path(&server).await.as_deref(), Some("/1"));
    let ahead = GET.repeat(20_000);
    client.write_all(&ahead).await.expect("write");
    assert!(is_pending(poll_fn(|cx| server.poll_closed(cx))));
    assert!(server.inner.borrow().io.input.len() <= 2 * MAX_AHEAD);
    for _ in 0..20_000 {
        answer(&server, "");
        server.inner.borrow_mut().io.output.clear();
        assert_eq!(path(&server).await.as_deref(), Some("/1"));
    }
}

#[tokio::test]
async fn a_failed_write_shows_that_the_caller_is_gone() {
    let (mut client, server) = pair(4096);
    client.write_all(GET).await.expect("write");
    assert_eq!(path(&server).await.as_deref(), Some("/1"));
    drop(client);
    answer(&server, "ok");
    assert!(server.flush().await.is_err());
    poll_fn(|cx| server.poll_closed(cx)).await;
    assert!(!server.can_reuse());
}

#[tokio::test]
async fn a_writer_waits_for_a_slow_reader() {
    let (mut client, server) = pair(1024);
    client.write_all(GET).await.expect("write");
    assert_eq!(path(&server).await.as_deref(), Some("/1"));
    server.write_head(&ResponseHead::new(StatusCode::OK), BodySize::Unknown, WriteHead::default());
    server.write_bytes(Bytes::from(vec![b'x'; 200_000]));
    server.finish();
    let mut ready = pin!(server.ready());
    assert!(poll_immediate(&mut ready).await.is_none());
    let mut got = Vec::new();
    let receive = async {
        while !got.ends_with(b"\r\n0\r\n\r\n") {
            client.read_buf(&mut got).await.expect("read");
        }
    };
    let send = async {
        ready.await.expect("ready");
        server.flush().await.expect("flush");
    };
    tokio::join!(send, receive);
    assert!(got.windows(9).any(|w| w == b"\r\n30d40\r\n"));
    assert_eq!(got.iter().filter(|b| **b == b'x').count(), 200_000);
}

#[tokio::test]
async fn one_task_reads_the_body_and_writes_the_response_side_by_side() {
    let (mut client, server) = pair(64);
    let writer = server.clone();
    let echo = async {
        assert_eq!(path(&server).await.as_deref(), Some("/echo"));
        writer.write_head(&ResponseHead::new(StatusCode::OK), BodySize::Known(100_000), WriteHead::default());
        while let Some(frame) = poll_fn(|cx| server.poll_frame(cx)).await {
            if let Frame::Data(data) = frame.expect("frame") {
                writer.write_bytes(data);
                writer.ready().await.expect("ready");
            }
        }
        writer.finish();
        writer.flush().await.expect("flush");
    };
    let caller = async {
        let (mut read, mut write) = tokio::io::split(&mut client);
        let send = async {
            write.write_all(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n").await.expect("write");
            write.write_all(&[b'y'; 100_000]).await.expect("write");
        };
        let receive = async {
            let mut got = Vec::new();
            while got.iter().filter(|b| **b == b'y').count() < 100_000 {
                read.read_buf(&mut got).await.expect("read");
            }
        };
        tokio::join!(send, receive);
    };
    tokio::join!(echo, caller);
    assert!(server.can_reuse());
}

#[tokio::test]
async fn informational_heads_go_before_the_response_but_not_to_http_10() {
    let (mut client, server) = pair(4096);
    client.write_all(GET).await.expect("write");
    path(&server).await;
    server.write_informational(&ResponseHead::new(StatusCode::CONTINUE));
    answer(&server, "");
    server.flush().await.expect("flush");
    assert!(available(&mut client).await.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));

    let mut http10 = options();
    http10.limits.accept_http_10 = true;
    http10.default_host_for_http_10 = Some("default.test".to_owned());
    let (mut client, server) = pair_with(4096, http10);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("write");
    let mut head = RequestHead::new();
    let start = server.read_head(&mut head).await.expect("head").expect("request");
    assert!(!start.keep_alive);
    assert_eq!(head.authority(), b"default.test");
    server.write_informational(&ResponseHead::new(StatusCode::CONTINUE));
    assert!(server.inner.borrow().io.output.is_empty());
}

#[tokio::test]
async fn an_upgrade_hands_over_the_stream_with_early_data() {
    let (mut client, server) = pair(4096);
    let text = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    client.write_all(text).await.expect("write");
    let mut head = RequestHead::new();
    let start = server.read_head(&mut head).await.expect("head").expect("request");
    assert!(start.upgrade && !start.keep_alive);
    server.write_head(&ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS), BodySize::Empty, WriteHead::default());
    server.finish();
    server.flush().await.expect("flush");
    assert!(!server.can_reuse(), "what follows is not HTTP");
    let clone = server.clone();
    let server = server.into_parts().expect_err("a clone is alive");
    drop(clone);
    let (mut stream, early) = server.into_parts().expect("the only handle");
    assert_eq!(&early[..], b"early");
    stream.write_all(b"pong").await.expect("write");
    assert!(available(&mut client).await.ends_with("\r\n\r\npong"));
}

#[tokio::test]
async fn a_response_cut_short_or_overlong_closes() {
    for text in ["ab", "abcd"] {
        let (mut client, server) = pair(4096);
        client.write_all(GET).await.expect("write");
        path(&server).await;
        server.write_head(&ResponseHead::new(StatusCode::OK), BodySize::Known(3), WriteHead::default());
        server.write_bytes(Bytes::copy_from_slice(text.as_bytes()));
        server.finish();
        assert!(!server.can_reuse());
        server.flush().await.expect("flush");
        assert!(available(&mut client).await.ends_with(&text[..text.len().min(3)]));
    }
}

#[tokio::test]
async fn shutdown_sends_fin_and_lingers_for_the_peer() {
    let linger = Duration::from_millis(20);
    let (mut client, server) = pair_with(4096, ServerOptions { linger, ..options() });
    client.write_all(&[GET, b"unread"].concat()).await.expect("write");
    path(&server).await;
    answer(&server, "last");
    let begin = Instant::now();
    server.shutdown().await;
    assert!(begin.elapsed() >= linger, "the peer has not closed");
    let mut got = String::new();
    client.read_to_string(&mut got).await.expect("read to the end");
    assert!(got.ends_with("last"));

    let (client, server) = pair_with(4096, ServerOptions { linger: Duration::from_secs(3600), ..options() });
    drop(client);
    server.shutdown().await;
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (mut client, server) = pair(256 * 1024);
    let large =
        [&b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n"[..], &[b'z'; 200_000], b"\r\n0\r\n\r\n"]
            .concat();
    client.write_all(&large).await.expect("write");
    path(&server).await;
    body(&server).await.expect("body");
    answer(&server, "ok");
    server.flush().await.expect("flush");
    assert!(is_pending(server.wait_readable()));
    let inner = server.inner.borrow();
    assert_eq!((inner.io.input.capacity(), inner.io.output.capacity()), (0, 0));
    assert!(size_of::<Inner>() < 512, "{}", size_of::<Inner>());
}
