//! An upstream connection over an in-memory pipe.

use futures_util::future::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn pair() -> (ClientConnection, DuplexStream) {
    let (client, upstream) = duplex(4096);
    (ClientConnection::new(Stream::Memory(client), Rc::new(ClientOptions::default())), upstream)
}

fn request(method: Method) -> RequestHead {
    let mut head = RequestHead::new();
    head.method = method;
    head.set_authority(b"h");
    head.set_path(b"/");
    head
}

async fn send(client: &ClientConnection, method: Method) {
    client.write_head(&request(method), BodySize::Empty);
    client.flush().await.expect("flush");
}

async fn available(upstream: &mut DuplexStream) -> String {
    let mut buf = vec![0; 65536];
    let bytes = upstream.read(&mut buf).await.expect("read");
    String::from_utf8_lossy(&buf[..bytes]).into_owned()
}

async fn body(client: &ClientConnection) -> Result<String, ClientError> {
    let mut text = String::new();
    while let Some(frame) = poll_fn(|cx| client.poll_frame(cx)).await {
        if let Frame::Data(data) = frame? {
            text.push_str(&String::from_utf8_lossy(&data));
        }
    }
    Ok(text)
}

/// Sends a GET, lets the upstream say `text` and close if asked to, and reads the answer.
async fn exchange(text: &[u8], close: bool) -> Result<(ResponseHead, String, bool), ClientError> {
    let (client, mut upstream) = pair();
    send(&client, Method::GET).await;
    upstream.write_all(text).await.expect("write");
    if close {
        upstream.shutdown().await.expect("close");
    }
    let mut head = ResponseHead::default();
    client.read_head(&mut head).await?;
    let text = body(&client).await?;
    Ok((head, text, client.is_reusable()))
}

#[tokio::test]
async fn a_connection_serves_again_and_a_request_is_one_write() {
    let (client, mut upstream) = pair();
    for _ in 0..2 {
        client.write_head(&request(Method::POST), BodySize::Known(2));
        client.write_bytes(Bytes::from_static(b"hi"));
        client.finish();
        assert!(!client.is_reusable());
        client.flush().await.expect("flush");
        assert_eq!(available(&mut upstream).await, "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nhi");
        upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").await.expect("write");
        let mut head = ResponseHead::default();
        let start = client.read_head(&mut head).await.expect("head");
        assert_eq!((start.body, start.keep_alive), (BodySize::Known(3), true));
        assert_eq!(body(&client).await.expect("body"), "ok\n");
        assert!(client.response_complete() && client.is_reusable());
    }
    assert!(client.idle_closed().now_or_never().is_none());
    drop(upstream);
    client.idle_closed().await;
}

#[tokio::test]
async fn bodies_end_as_their_head_says() {
    let (_, text, reusable) =
        exchange(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false).await.expect("chunked");
    assert!(text == "hello" && reusable);
    let (_, text, reusable) = exchange(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", true).await.expect("until close");
    assert!(text == "until the end" && !reusable);
    let (_, text, reusable) =
        exchange(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbye", false).await.expect("close");
    assert!(text == "bye" && !reusable);
    let (_, text, reusable) = exchange(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", false).await.expect("304");
    assert!(text.is_empty() && reusable);
}

#[tokio::test]
async fn extra_bytes_after_a_response_are_never_the_next_one() {
    let poison = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let (_, text, reusable) = exchange(poison, false).await.expect("response");
    assert!(text == "ok" && !reusable);

    let (client, mut upstream) = pair();
    upstream.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.expect("write");
    client.idle_closed().await;
    assert!(!client.is_reusable());
}

#[tokio::test]
async fn failures_map_to_envoys_kinds() {
    let table: &[(&[u8], ErrorKind, bool)] = &[
        (b"", ErrorKind::UpstreamClosed, false),
        (b"HTTP/1.1 200 OK\r\nConte", ErrorKind::UpstreamProtocol, true),
        (b"garbage\r\n\r\n", ErrorKind::UpstreamProtocol, true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf!", ErrorKind::UpstreamProtocol, true),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", ErrorKind::UpstreamProtocol, true),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ErrorKind::UpstreamProtocol, true),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", ErrorKind::UpstreamProtocol, true),
    ];
    for (text, kind, started) in table {
        let error = exchange(text, true).await.expect_err("failure");
        assert_eq!((error.response_started, error.request_sent), (*started, true), "{text:?}");
        let error = Error::from(error);
        assert_eq!((error.kind, error.retry), (*kind, Retry::No), "{text:?}");
    }
}

#[tokio::test]
async fn nothing_sent_may_be_sent_elsewhere() {
    let (client, upstream) = pair();
    drop(upstream);
    client.write_head(&request(Method::GET), BodySize::Empty);
    let error = client.flush().await.expect_err("closed");
    assert!(!error.request_sent && !error.response_started);
    assert_eq!(Error::from(error).retry, Retry::IfReused);
    assert!(!client.is_reusable());
}

#[tokio::test]
async fn informational_heads_come_one_by_one() {
    let (client, mut upstream) = pair();
    send(&client, Method::GET).await;
    upstream.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await.expect("write");
    let mut head = ResponseHead::default();
    for status in [100, 103] {
        let start = client.read_head(&mut head).await.expect("head");
        assert_eq!((head.status.as_u16(), start.informational), (status, true));
        assert!(!client.response_complete() && !client.is_reusable());
    }
    assert!(client.read_head(&mut head).now_or_never().is_none());
    drop(upstream);
    let error = client.read_head(&mut head).await.expect_err("closed");
    assert!(error.response_started && matches!(error.fault, ClientFault::Closed));
}

#[tokio::test]
async fn head_answers_have_no_body() {
    let (client, mut upstream) = pair();
    send(&client, Method::HEAD).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await.expect("write");
    let mut head = ResponseHead::default();
    assert_eq!(client.read_head(&mut head).await.expect("head").body, BodySize::Empty);
    assert!(poll_fn(|cx| client.poll_frame(cx)).await.is_none() && client.is_reusable());
}

#[tokio::test]
async fn an_upgrade_hands_over_the_stream_with_early_data() {
    let (client, mut upstream) = pair();
    let mut head = request(Method::GET);
    head.headers.push(b"connection", b"Upgrade");
    head.headers.push(b"upgrade", b"websocket");
    client.write_head(&head, BodySize::Empty);
    client.flush().await.expect("flush");
    upstream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        .await
        .expect("write");
    let mut head = ResponseHead::default();
    assert!(client.read_head(&mut head).await.expect("head").upgraded);
    assert!(head.headers.contains(crate::http::head::Known::Upgrade) && !client.is_reusable());
    let (_, early) = client.into_parts().expect("the only handle");
    assert_eq!(&early[..], b"hi");
}

#[tokio::test]
async fn an_early_answer_is_read_although_the_request_is_not_done() {
    let (client, mut upstream) = pair();
    client.write_head(&request(Method::POST), BodySize::Known(100));
    client.write_bytes(Bytes::from_static(b"partial"));
    client.flush().await.expect("flush");
    upstream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nstop").await.expect("write");
    let mut head = ResponseHead::default();
    client.read_head(&mut head).await.expect("head");
    assert_eq!(body(&client).await.expect("body"), "stop");
    assert!(client.response_complete() && !client.is_reusable(), "the upstream still waits for the rest");
}

#[tokio::test]
async fn a_response_head_is_bounded() {
    let (client, mut upstream) = pair();
    send(&client, Method::GET).await;
    let flood = async {
        upstream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await.expect("write");
        while upstream.write_all(&[b'x'; 1024]).await.is_ok() {}
    };
    let read = async {
        let mut head = ResponseHead::default();
        let error = client.read_head(&mut head).await.expect_err("too large");
        assert!(matches!(error.fault, ClientFault::Head(HeadError::HeadersTooLarge)));
        drop(client);
    };
    tokio::join!(flood, read);
}
