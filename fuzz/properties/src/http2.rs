//! HTTP/2 towards an upstream that says anything.

use std::future::poll_fn;

use http::Method;
use skiff_proxy::http::body::{BodySize, Frame};
use skiff_proxy::http::h1::encode::{HeaderCase, WriteHead, encode_response};
use skiff_proxy::http::h2::client::H2Connection;
use skiff_proxy::http::head::{RequestHead, ResponseHead};
use skiff_proxy::net::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local};

use crate::input::{Input, pieces};
use crate::strict::{self, Kind};

/// An empty SETTINGS frame, which every server begins with.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A server's bytes in pieces. What comes of them is a response that HTTP/1 callers can be told in one message.
pub fn upstream(data: &[u8]) {
    let mut input = Input::new(data);
    let (choice, size) = (input.byte(), input.byte());
    let mut text = if choice & 1 == 0 { SETTINGS.to_vec() } else { Vec::new() };
    text.extend_from_slice(input.rest());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    LocalSet::new().block_on(&runtime, async move {
        let (ours, theirs) = duplex(64 * 1024);
        spawn_local(play(theirs, text, size));
        let _ = exchange(ours, choice & 2 != 0).await;
    });
}

async fn play(mut stream: DuplexStream, text: Vec<u8>, size: u8) {
    let size = size.saturating_mul(u8::try_from(text.len() / 256 + 1).unwrap_or(u8::MAX));
    for piece in pieces(&text, &[size]) {
        if stream.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    // The end of the connection ends whatever is still awaited.
    let _ = stream.shutdown().await;
    let mut heard = vec![0; 16 * 1024];
    while stream.read(&mut heard).await.is_ok_and(|bytes| bytes > 0) {}
}

async fn exchange(stream: DuplexStream, is_head: bool) -> Option<()> {
    let connection = H2Connection::open(Stream::Memory(stream), || {});
    connection.ready().await.ok()?;
    let mut request = RequestHead::new();
    request.method = if is_head { Method::HEAD } else { Method::GET };
    request.set_authority(b"h");
    request.set_path(b"/");
    let (_outgoing, mut response) = connection.send(&request, true);
    let mut head = ResponseHead::default();
    let mut body = loop {
        poll_fn(|cx| response.poll_head(cx, &mut head)).await.ok()?;
        told_in_http1(&head, is_head);
        if let Some(body) = response.take_body() {
            break body;
        }
    };
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        match frame.ok()? {
            Frame::Data(data) => assert!(!data.is_empty()),
            Frame::Trailers(trailers) => assert!(trailers.iter().all(|(name, _)| !name.starts_with(b":"))),
        }
    }
    Some(())
}

fn told_in_http1(head: &ResponseHead, is_head: bool) {
    let mut out = Vec::new();
    let write = WriteHead { request_is_head: is_head, ..WriteHead::default() };
    encode_response(head, BodySize::Unknown, write, HeaderCase::Lower, &mut out);
    let (_, size) = strict::read_head(&out, Kind::Response { head: is_head, connect: false }).unwrap().expect("a whole head");
    assert_eq!(size, out.len(), "more than one message in one head");
}
