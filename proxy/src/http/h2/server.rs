//! A downstream HTTP/2 connection.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Connection as H2, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::sync::Notify;

use super::super::body::BodySize;
use super::super::exchange::{Exchange, handle};
use super::super::head::{RequestHead, ResponseHead};
use super::super::manager::Connection;
use super::super::pipe::Source;
use super::super::request_body::RequestBody;
use super::super::responder::Responder;
use super::super::underscores;
use super::{Incoming, read_request};
use crate::net;

/// The preface and the first settings must arrive within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that the caller may reset before their answer (CVE-2023-44487) until the connection is closed.
const MAX_PENDING_RESETS: usize = 100;

/// Streams in flight on one connection.
#[derive(Default)]
struct Streams {
    active: Cell<u32>,
    changed: Notify,
}

struct StreamGuard(Rc<Streams>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.changed.notify_one();
    }
}

/// Serves a connection until it closes; each stream is a task of its own on this worker.
pub async fn serve(connection: Rc<Connection>, stream: net::Stream) {
    let config = connection.manager.config.clone();
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(config.http2.max_concurrent_streams)
        .initial_window_size(config.http2.initial_stream_window_size)
        .initial_connection_window_size(config.http2.initial_connection_window_size)
        .max_header_list_size(config.max_request_headers_bytes)
        .max_send_buffer_size(config.http2.initial_stream_window_size as usize)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_PENDING_RESETS));
    if config.http2.allow_connect {
        builder.enable_connect_protocol();
    }
    let Ok(Ok(mut h2)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(stream)).await else { return };
    let streams = Rc::new(Streams::default());
    let opened = Instant::now();
    let mut served: u32 = 0;
    let mut draining = false;
    loop {
        let event = next_event(&mut h2, &connection, &streams, draining).await;
        match event {
            Event::Stream(stream) => {
                let (request, respond) = *stream;
                served += 1;
                spawn(&connection, &streams, request, respond);
                let worn = config.max_requests_per_connection.is_some_and(|max| served >= max)
                    || config.max_connection_duration.is_some_and(|max| opened.elapsed() >= max);
                if worn && !draining {
                    draining = true;
                    h2.graceful_shutdown();
                }
            }
            Event::Drain => {
                draining = true;
                h2.graceful_shutdown();
            }
            Event::StreamsChanged => {}
            Event::Closed => return,
        }
    }
}

enum Event {
    Stream(Box<(Request<RecvStream>, SendResponse<Bytes>)>),
    StreamsChanged,
    Drain,
    Closed,
}

async fn next_event(h2: &mut H2<net::Stream, Bytes>, connection: &Connection, streams: &Streams, draining: bool) -> Event {
    let config = &connection.manager.config;
    // Polling for the next stream also drives the ones in flight.
    let idle = async {
        match config.idle_timeout {
            Some(limit) if streams.active.get() == 0 => tokio::time::sleep(limit).await,
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        accepted = h2.accept() => match accepted {
            Some(Ok(stream)) => Event::Stream(Box::new(stream)),
            Some(Err(error)) => {
                tracing::debug!(%error, "downstream HTTP/2 connection failed");
                Event::Closed
            }
            None => Event::Closed,
        },
        () = connection.drain.wait(), if !draining => Event::Drain,
        () = streams.changed.notified() => Event::StreamsChanged,
        () = idle, if !draining => Event::Drain,
    }
}

fn spawn(connection: &Rc<Connection>, streams: &Rc<Streams>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    streams.active.set(streams.active.get() + 1);
    let guard = StreamGuard(streams.clone());
    let connection = connection.clone();
    tokio::task::spawn_local(async move {
        let _guard = guard;
        let (parts, body) = request.into_parts();
        let mut head = RequestHead::new();
        let config = &connection.manager.config;
        if read_request(&parts, config.max_headers_count, &mut head).is_err()
            || !underscores::apply(config.headers_with_underscores, &mut head.headers)
        {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return;
        }
        let (source, size) = if body.is_end_stream() {
            (Source::Empty, BodySize::Empty)
        } else {
            let size = content_length(&parts).map_or(BodySize::Unknown, BodySize::Known);
            (Source::H2(Incoming::new(body), true), size)
        };
        let mut out = Responder::Http2(respond);
        let mut exchange = Exchange::new(connection, head, ResponseHead::default());
        let _ = handle(&mut exchange, RequestBody::new(source, size), &mut out).await;
        exchange.finish();
    });
}

fn content_length(parts: &http::request::Parts) -> Option<u64> {
    parts.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
