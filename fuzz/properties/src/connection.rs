//! Two HTTP/1 connections with a proxy between them, in memory: what leaves on either side is counted by the strict reader.

use std::future::poll_fn;
use std::rc::Rc;

use skiff_proxy::config::{HttpConnectionManager, RouteSource, TrafficDirection};
use skiff_proxy::http::body::Frame;
use skiff_proxy::http::h1::client::{ClientConnection, ClientOptions, ResponseStart};
use skiff_proxy::http::h1::server::{RequestStart, ServerConnection, ServerOptions, WriteHead};
use skiff_proxy::http::head::{RequestHead, ResponseHead, Version};
use skiff_proxy::net::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::input::{Input, pieces};
use crate::strict::{self, Framing, Kind, Message};

/// One exchange as the proxy saw it.
struct Exchange {
    request: RequestHead,
    body: Vec<u8>,
    /// The request went upstream to its end.
    sent: bool,
    /// Statuses that went downstream, the last one with its body to the end.
    statuses: Vec<u16>,
    answer: Vec<u8>,
    answered: bool,
}

/// Requests from one side, responses from the other, both in pieces: each request that was taken is one message upstream, each
/// response one message downstream, and what was cut short never looks whole.
pub fn connection(data: &[u8]) {
    let mut input = Input::new(data);
    let (choice, sizes) = (input.byte(), [input.byte(), input.byte(), input.byte()]);
    let (requests, responses) = (input.part().to_vec(), input.rest().to_vec());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    LocalSet::new().block_on(&runtime, async move {
        let (downstream, client_side) = duplex(64 * 1024);
        let (upstream, server_side) = duplex(64 * 1024);
        let client = play(client_side, requests, sizes.to_vec());
        let server = play(server_side, responses, sizes.to_vec());
        let (server_options, client_options) = options(choice);
        let server_connection = ServerConnection::new(Stream::Memory(downstream), Rc::new(server_options));
        let client_connection = ClientConnection::new(Stream::Memory(upstream), Rc::new(client_options));
        let mut exchanges = Vec::new();
        while exchanges.len() < 16 && exchange(&server_connection, &client_connection, &mut exchanges).await.is_some() {}
        let _ = server_connection.flush().await;
        drop((server_connection, client_connection));
        check_upstream(&server.await.unwrap(), &exchanges);
        check_downstream(&client.await.unwrap(), &exchanges);
    });
}

fn options(choice: u8) -> (ServerOptions, ClientOptions) {
    let routes = RouteSource::Named(String::new());
    let mut manager = HttpConnectionManager::new("fuzz", TrafficDirection::Inbound, routes);
    manager.http1.enable_trailers = choice & 1 != 0;
    manager.http1.accept_http_10 = choice & 2 != 0;
    manager.http1.preserve_case = choice & 4 != 0;
    manager.http1.default_host_for_http_10 = (choice & 8 != 0).then(|| "h".to_owned());
    let server = ServerOptions::new(&manager, false);
    let client = ClientOptions { enable_trailers: choice & 1 != 0, case: server.case, ..ClientOptions::default() };
    (server, client)
}

/// A peer that says its text in pieces and then nothing more, and hears everything.
fn play(stream: DuplexStream, text: Vec<u8>, sizes: Vec<u8>) -> JoinHandle<Vec<u8>> {
    let (mut read, mut write) = tokio::io::split(stream);
    spawn_local(async move {
        let heard = spawn_local(async move {
            let mut heard = Vec::new();
            let _ = read.read_to_end(&mut heard).await;
            heard
        });
        // A few large pieces instead of many small ones where the text is long.
        let factor = text.len() / 512 + 1;
        let sizes: Vec<u8> = sizes.iter().map(|size| size.saturating_mul(u8::try_from(factor).unwrap_or(u8::MAX))).collect();
        for piece in pieces(&text, &sizes) {
            if write.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = write.shutdown().await;
        heard.await.unwrap()
    })
}

/// One request and its response; `None` when there can be no further one.
async fn exchange(server: &ServerConnection, client: &ClientConnection, exchanges: &mut Vec<Exchange>) -> Option<()> {
    let mut head = RequestHead::new();
    let start: RequestStart = server.read_head(&mut head).await.ok()??;
    if !head.has_authority() || start.upgrade || crate::http1::is_tunnel(&head.method) {
        return None;
    }
    client.write_head(&head, start.body);
    let (is_head, http10) = (head.method == http::Method::HEAD, head.version == Version::Http10);
    exchanges.push(Exchange {
        request: head,
        body: Vec::new(),
        sent: false,
        statuses: Vec::new(),
        answer: Vec::new(),
        answered: false,
    });
    let exchange = exchanges.last_mut()?;
    if send_body(server, client, exchange).await.is_none() {
        let _ = client.flush().await;
        return None;
    }
    exchange.sent = true;
    client.flush().await.ok()?;

    let mut response = ResponseHead::default();
    let start: ResponseStart = loop {
        let start = client.read_head(&mut response).await.ok()?;
        if !start.informational {
            break start;
        }
        server.write_informational(&response);
        if !http10 {
            exchange.statuses.push(response.status.as_u16());
        }
    };
    assert!(!start.upgraded, "an upgrade that nobody asked for");
    let close = !server_keeps_alive(server);
    server.write_head(&response, start.body, WriteHead { close, request_is_head: is_head, http10, tunnel: false });
    exchange.statuses.push(response.status.as_u16());
    while let Some(frame) = poll_fn(|cx| client.poll_frame(cx)).await {
        match frame.ok()? {
            Frame::Data(data) => {
                exchange.answer.extend_from_slice(&data);
                server.write_bytes(data);
                server.ready().await.ok()?;
            }
            Frame::Trailers(trailers) => server.write_trailers(&trailers),
        }
    }
    server.finish();
    exchange.answered = true;
    server.flush().await.ok()?;
    (server.can_reuse() && client.is_reusable()).then_some(())
}

fn server_keeps_alive(server: &ServerConnection) -> bool {
    !server.half_closed()
}

async fn send_body(server: &ServerConnection, client: &ClientConnection, exchange: &mut Exchange) -> Option<()> {
    while let Some(frame) = poll_fn(|cx| server.poll_frame(cx)).await {
        match frame.ok()? {
            Frame::Data(data) => {
                exchange.body.extend_from_slice(&data);
                client.write_bytes(data);
                client.ready().await.ok()?;
            }
            Frame::Trailers(trailers) => client.write_trailers(&trailers),
        }
    }
    client.finish();
    Some(())
}

/// The messages in `bytes` that are whole, and what is left behind them.
fn messages(mut bytes: &[u8], kind: impl Fn(usize) -> Option<Kind>) -> (Vec<Message>, &[u8]) {
    let mut all = Vec::new();
    while !bytes.is_empty()
        && let Some(kind) = kind(all.len())
    {
        match strict::read(bytes, kind).unwrap_or_else(|reason| panic!("{reason} in {:?}", String::from_utf8_lossy(bytes))) {
            Some(message) => {
                bytes = &bytes[message.size..];
                all.push(message);
            }
            None => break,
        }
    }
    (all, bytes)
}

fn check_upstream(heard: &[u8], exchanges: &[Exchange]) {
    let (seen, rest) = messages(heard, |_| Some(Kind::Request));
    let sent: Vec<_> = exchanges.iter().filter(|exchange| exchange.sent).collect();
    // The last ones may not have been flushed when the upstream failed.
    assert!(
        seen.len() <= sent.len(),
        "{} requests upstream, {} taken in: {:?}",
        seen.len(),
        sent.len(),
        String::from_utf8_lossy(heard)
    );
    for (message, exchange) in seen.iter().zip(&sent) {
        assert_eq!(message.start[0], exchange.request.method.as_str().as_bytes());
        assert_eq!(message.start[1], exchange.request.path());
        assert_eq!(message.values("host").next(), Some(exchange.request.authority()));
        assert_eq!(message.body, exchange.body);
    }
    assert!(rest.is_empty() || seen.len() < exchanges.len(), "{:?} after the last request", String::from_utf8_lossy(rest));
}

fn check_downstream(heard: &[u8], exchanges: &[Exchange]) {
    let expected: Vec<_> =
        exchanges.iter().flat_map(|exchange| exchange.statuses.iter().map(move |status| (exchange, *status))).collect();
    let kind = |index: usize| {
        let (exchange, _) = expected.get(index)?;
        Some(Kind::Response { head: exchange.request.method == http::Method::HEAD, connect: false })
    };
    let (seen, rest) = messages(heard, kind);
    for (message, (exchange, status)) in seen.iter().zip(&expected) {
        assert_eq!(message.start[1], status.to_string().into_bytes());
        if *status < 200 {
            continue;
        }
        let close = message.framing == Framing::Close;
        assert!(exchange.answered || close, "cut short upstream, whole downstream: {:?}", String::from_utf8_lossy(heard));
        if message.framing != Framing::None {
            assert_eq!(message.body, exchange.answer);
        }
    }
    assert!(rest.is_empty() || seen.len() < expected.len(), "{:?} after the last response", String::from_utf8_lossy(rest));
}
