//! A downstream HTTP connection: requests one after another on HTTP/1, many at once on HTTP/2.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::body::BodySize;
use super::exchange::{Exchange, Outcome, handle};
use super::h1::server::{ReadError, RequestStart, ServerConnection, ServerOptions};
use super::h2;
use super::head::{RequestHead, ResponseHead, Version};
use super::lifetime::Lifetime;
use super::manager::Connection;
use super::pipe::Source;
use super::request_body::RequestBody;
use super::responder::Responder;
use crate::config::{Codec, HttpConnectionManager};
use crate::drain::IDLE_GRACE;
use crate::error::{ErrorKind, Reply};
use crate::net;

/// How an HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// From here on it can be nothing else for Envoy, and what goes on differently is closed without a word.
const CERTAIN: usize = "PRI * HTTP/2".len();

/// Serves a connection until it closes.
pub async fn serve(connection: Rc<Connection>, stream: net::Stream, alpn: Option<&[u8]>) {
    let config = connection.manager.config.clone();
    let codec = match (config.codec, alpn) {
        (Codec::Http2, _) | (Codec::Auto, Some(b"h2" | b"istio-h2")) => Codec::Http2,
        // Who agreed on something else is held to it.
        (Codec::Http1, _) | (Codec::Auto, Some(_)) => Codec::Http1,
        (Codec::Auto, None) => Codec::Auto,
    };
    match codec {
        Codec::Http2 => h2::server::serve(connection, stream).await,
        Codec::Http1 => serve_http1(connection, stream).await,
        // The HTTP/2 preface tells: read on HTTP/1's own terms until it does.
        Codec::Auto => match detect(&connection, stream, config.idle_timeout).await {
            Some((Codec::Http2, stream)) => h2::server::serve(connection, stream).await,
            Some((_, stream)) => serve_http1(connection, stream).await,
            None => {}
        },
    }
}

/// Tells the two HTTP versions apart by the first bytes.
async fn detect(connection: &Connection, mut stream: net::Stream, idle: Option<Duration>) -> Option<(Codec, net::Stream)> {
    use tokio::io::AsyncReadExt;
    let mut seen = Vec::new();
    let read = async {
        loop {
            // No longer than the preface: what else has come stays in the kernel for the codec.
            let mut chunk = [0; PREFACE.len()];
            match stream.read(&mut chunk[seen.len()..]).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => seen.extend_from_slice(&chunk[seen.len()..][..n]),
            }
            if seen == PREFACE {
                return Some(Codec::Http2);
            }
            if !PREFACE.starts_with(&seen) {
                return (!seen.starts_with(&PREFACE[..CERTAIN])).then_some(Codec::Http1);
            }
        }
    };
    let codec = tokio::select! {
        codec = read => codec?,
        () = connection.drain.wait_unused() => return None,
        () = sleep(idle) => return None,
    };
    Some((codec, stream.rewound(seen)))
}

async fn serve_http1(connection: Rc<Connection>, stream: net::Stream) {
    let config = connection.manager.config.clone();
    let tls = connection.info.tls_version.is_some();
    let mut server = ServerConnection::new(stream, Rc::new(ServerOptions::new(&config, tls)));
    let mut heads = (RequestHead::new(), ResponseHead::default());
    let mut lifetime = Lifetime::new(&config);
    // One registration for the life of the connection. Once it is done the connection ends with the request in flight.
    let mut drain = std::pin::pin!(connection.drain.wait());
    let mut served: u32 = 0;
    loop {
        let next = wait(&config, &server, &mut heads.0, &mut lifetime, drain.as_mut()).await;
        match next {
            Next::Request(start) => {
                served += 1;
                let last = config.max_requests_per_connection.is_some_and(|max| served >= max) || lifetime.is_over();
                match exchange(&connection, server, heads, start, last).await {
                    Some((connection, memory, end)) => {
                        (server, heads) = (connection, memory);
                        lifetime.served(end);
                    }
                    None => return,
                }
            }
            Next::Refuse(reply) => {
                refuse(&connection, &server, heads, reply).await;
                break;
            }
            Next::Abandoned => {
                abandoned(&connection, heads);
                break;
            }
            Next::Close => break,
        }
    }
    server.shutdown().await;
}

enum Next {
    Request(RequestStart),
    Refuse(Reply),
    /// The caller went away inside a head.
    Abandoned,
    Close,
}

/// Waits for the next request; a connection without one ends by its own time, by a drain or by the caller.
async fn wait(
    config: &HttpConnectionManager,
    server: &ServerConnection,
    head: &mut RequestHead,
    lifetime: &mut Lifetime,
    drain: Pin<&mut impl Future<Output = ()>>,
) -> Next {
    // Most requests of a busy connection are there already: no timer is armed for those.
    let readable = {
        let mut readable = std::pin::pin!(server.wait_readable());
        match poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx))).await {
            Poll::Ready(result) => result,
            Poll::Pending => {
                tokio::select! {
                    biased;
                    result = readable => result,
                    () = drained(drain) => return Next::Close,
                    () = lifetime.expired() => return Next::Close,
                }
            }
        }
    };
    if !matches!(readable, Ok(true)) {
        return Next::Close;
    }
    let read = tokio::select! {
        biased;
        read = server.read_head(head) => read,
        kind = head_deadline(config) => return Next::Refuse(kind.reply(None, false)),
    };
    match read {
        Ok(Some(start)) => Next::Request(start),
        Err(ReadError::Head(error)) => Next::Refuse(error.reply()),
        Err(ReadError::Truncated | ReadError::Io { received: true, .. }) => Next::Abandoned,
        Ok(None) | Err(ReadError::Io { received: false, .. }) => Next::Close,
    }
}

/// Waits until a head that has begun must be complete: for Envoy the stream begins with its first byte.
async fn head_deadline(config: &HttpConnectionManager) -> ErrorKind {
    let on = |limit: Option<Duration>| limit.filter(|limit| !limit.is_zero());
    tokio::select! {
        () = sleep(on(config.request_headers_timeout)) => ErrorKind::HeaderTimeout,
        () = sleep(on(config.stream_idle_timeout)) => ErrorKind::StreamIdle { request_complete: false },
        () = sleep(on(config.request_timeout)) => ErrorKind::RequestTimeout,
        () = sleep(on(config.max_stream_duration)) => ErrorKind::MaxStreamDuration { request_complete: false },
    }
}

/// Waits until a connection without a request should close because of a drain. Closed at once, it would lose one that is on its
/// way; that one is answered with `connection: close`.
async fn drained(drain: Pin<&mut impl Future<Output = ()>>) {
    drain.await;
    tokio::time::sleep(IDLE_GRACE).await;
}

/// Memory of the heads of one exchange, handed on to the next.
type Heads = (RequestHead, ResponseHead);

async fn sleep(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Serves one request; connection and head come back to be used again, `None` when the connection is done.
async fn exchange(
    connection: &Rc<Connection>,
    server: ServerConnection,
    (head, response): Heads,
    start: RequestStart,
    last: bool,
) -> Option<(ServerConnection, Heads, Instant)> {
    let mut out = Responder::Http1 {
        connection: server.clone(),
        request_is_head: head.method == Method::HEAD,
        http10: head.version == Version::Http10,
    };
    let source = if start.body.is_empty() { Source::Empty } else { Source::H1Server(server.clone()) };
    let body = RequestBody::new(source, start.body);
    let mut exchange = Exchange::new(connection.clone(), head, response);
    exchange.close = last || !start.keep_alive;
    let outcome = handle(&mut exchange, body, &mut out).await;
    drop(out);
    if let Outcome::Tunnel(tunnel) = outcome {
        tunnel.run(server, &mut exchange).await;
        exchange.finish();
        return None;
    }
    let close = exchange.close;
    let end = exchange.info.response_end.map_or_else(Instant::now, Instant::from_std);
    let heads = exchange.finish();
    if close || !server.can_reuse() {
        server.shutdown().await;
        return None;
    }
    Some((server, heads, end))
}

/// An exchange about a head that could not be read: nothing of it may be used, and nothing of the one before either, whose
/// memory it has.
fn unread(connection: &Rc<Connection>, (mut head, response): Heads) -> Exchange {
    head.clear();
    let mut exchange = Exchange::new(connection.clone(), head, response);
    exchange.close = true;
    exchange.malformed = true;
    exchange.info.protocol = Some(Version::Http11);
    exchange
}

/// Logs a request whose caller went away before its head was complete.
fn abandoned(connection: &Rc<Connection>, heads: Heads) {
    let mut exchange = unread(connection, heads);
    let gone = ErrorKind::DownstreamClosed.reply(None, false);
    exchange.info.flags |= gone.flag;
    exchange.info.details = gone.details;
    exchange.finish();
}

/// Answers a head that could not be read, with a log line of its own.
async fn refuse(connection: &Rc<Connection>, server: &ServerConnection, heads: Heads, reply: Reply) {
    let mut out = Responder::Http1 { connection: server.clone(), request_is_head: false, http10: false };
    let mut exchange = unread(connection, heads);
    let body = RequestBody::new(Source::Empty, BodySize::Empty);
    exchange.reply(&body, &mut out, reply.into(), None).await;
    exchange.finish();
}
