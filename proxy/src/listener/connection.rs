//! One accepted connection on its way to a filter: sniff, choose the chain, TLS, network RBAC.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{Filter, FilterChain, ListenerRuntime, Seen};
use crate::config::TransportProtocol;
use crate::flags::ResponseFlags;
use crate::http::manager::Connection;
use crate::net::{Prefixed, Stream};
use crate::proxy::Worker;
use crate::rbac::RequestContext;
use crate::stream_info::{ConnectionInfo, FormatContext, StreamInfo};
use crate::tls::{self, HttpSniff, Sniff};
use crate::{http, tcp};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Serves a connection that `listener` has accepted until it closes.
pub async fn serve(stream: TcpStream, remote: SocketAddr, listener: Arc<ListenerRuntime>, worker: Rc<Worker>) {
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let mut incoming = Incoming { stream, local, remote, seen: Vec::new(), start: Instant::now() };
    let sniffed = tokio::select! {
        biased;
        sniffed = incoming.sniff(&listener) => sniffed,
        // Whoever says nothing must not hold up a drain.
        () = listener.drain.wait_unused() => None,
    };
    let Some(sniffed) = sniffed else { return };
    let seen = Seen {
        local,
        remote,
        transport: sniffed.transport,
        server_name: sniffed.server_name.as_deref(),
        application_protocols: &sniffed.protocols,
    };
    let Some(chain) = listener.find_chain(&seen).cloned() else {
        incoming.refuse(&listener, sniffed, "filter_chain_not_found", ResponseFlags::NO_ROUTE_FOUND);
        return;
    };
    let Some((stream, info, alpn)) = incoming.secure(&listener, &chain, sniffed).await else { return };
    let info = Rc::new(info);
    if let Filter::Http(_) = &chain.filter
        && let Some(details) = denied(&chain, &info)
    {
        log_connection(&listener, info, details, ResponseFlags::NONE);
        return;
    }
    match &chain.filter {
        Filter::Http(manager) => {
            let mut client_cert = Vec::new();
            if let Some(peer) = &info.peer {
                let details = manager.config.client_cert_details;
                tls::forwarded_client_cert(peer, info.local_uri_san.as_deref(), details, &mut client_cert);
            }
            let connection = Connection { info, manager: manager.clone(), worker, drain: listener.drain.clone(), client_cert };
            http::server::serve(Rc::new(connection), stream, alpn.as_deref()).await;
        }
        Filter::Tcp(proxy) => {
            let denied = denied(&chain, &info);
            tcp::serve(proxy, stream, info, denied, &worker).await;
        }
    }
}

/// The details of a denial by network RBAC.
fn denied(chain: &FilterChain, info: &ConnectionInfo) -> Option<Cow<'static, str>> {
    let context = RequestContext { request: None, connection: info, remote: info.remote.ip(), metadata: None };
    chain
        .rbac
        .iter()
        .map(|engine| engine.evaluate(&context))
        .find(|verdict| !verdict.allowed)
        .map(|verdict| verdict.denied_details())
}

fn log_connection(listener: &ListenerRuntime, info: Rc<ConnectionInfo>, details: Cow<'static, str>, flags: ResponseFlags) {
    let mut stream = StreamInfo::new(info);
    stream.flags = flags;
    stream.details = details;
    listener.access_log.log(&FormatContext { info: &stream, request: None, response: None, trailers: None, now: Instant::now() });
}

/// A connection before its chain is known.
struct Incoming {
    stream: TcpStream,
    local: SocketAddr,
    remote: SocketAddr,
    /// Bytes read while sniffing.
    seen: Vec<u8>,
    start: Instant,
}

struct Sniffed {
    transport: TransportProtocol,
    server_name: Option<String>,
    protocols: Vec<Vec<u8>>,
}

impl Incoming {
    /// Looks at the first bytes, if the listener asks for it. `None` when the connection closed before anything came.
    async fn sniff(&mut self, listener: &ListenerRuntime) -> Option<Sniffed> {
        let plaintext = Sniffed { transport: TransportProtocol::RawBuffer, server_name: None, protocols: Vec::new() };
        let config = &listener.config;
        if !config.inspect_tls && !config.inspect_http {
            return Some(plaintext);
        }
        let inspect = self.inspect(config.inspect_tls, config.inspect_http);
        match config.inspect_timeout {
            // A server-first protocol: nothing came, so it goes on as plaintext.
            Some(limit) => tokio::time::timeout(limit, inspect).await.unwrap_or(Some(plaintext)),
            None => inspect.await,
        }
    }

    async fn inspect(&mut self, tls: bool, http: bool) -> Option<Sniffed> {
        let mut is_plaintext = !tls;
        loop {
            if !is_plaintext {
                match tls::sniff(&self.seen) {
                    Sniff::NeedMore => {}
                    Sniff::Plaintext => is_plaintext = true,
                    Sniff::Tls { server_name, alpn } => {
                        return Some(Sniffed { transport: TransportProtocol::Tls, server_name, protocols: alpn });
                    }
                }
            }
            if is_plaintext {
                let protocols = match if http { tls::sniff_http(&self.seen) } else { HttpSniff::NotHttp } {
                    HttpSniff::NeedMore => None,
                    HttpSniff::Http1 => Some(vec![b"http/1.1".to_vec()]),
                    HttpSniff::Http2Preface => Some(vec![b"h2c".to_vec()]),
                    HttpSniff::NotHttp => Some(Vec::new()),
                };
                if let Some(protocols) = protocols {
                    return Some(Sniffed { transport: TransportProtocol::RawBuffer, server_name: None, protocols });
                }
            }
            if self.stream.read_buf(&mut self.seen).await.ok()? == 0 {
                return None;
            }
        }
    }

    fn info(&self, server_name: Option<String>) -> ConnectionInfo {
        ConnectionInfo {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            local: self.local,
            remote: self.remote,
            server_name: server_name.map(String::into_boxed_str),
            tls_version: None,
            tls_cipher: None,
            peer: None,
            local_uri_san: None,
            start: self.start,
        }
    }

    fn refuse(&self, listener: &ListenerRuntime, sniffed: Sniffed, details: &'static str, flags: ResponseFlags) {
        tracing::debug!(listener = listener.config.name, remote = %self.remote, details, "connection refused");
        log_connection(listener, Rc::new(self.info(sniffed.server_name)), details.into(), flags);
    }

    /// Terminates TLS where the chain asks for it.
    async fn secure(
        mut self,
        listener: &ListenerRuntime,
        chain: &FilterChain,
        sniffed: Sniffed,
    ) -> Option<(Stream, ConnectionInfo, Option<Box<[u8]>>)> {
        let mut info = self.info(sniffed.server_name);
        let seen = std::mem::take(&mut self.seen);
        let Some(context) = &chain.tls else {
            let plain =
                if seen.is_empty() { Stream::Tcp(self.stream) } else { Stream::Prefixed(Prefixed::new(seen, self.stream)) };
            return Some((
                plain,
                info,
                sniffed.protocols.into_iter().next().filter(|p| p == b"h2c").map(|_| Box::from(&b"h2"[..])),
            ));
        };
        let failed = |reason: String| {
            // The one place where a refused certificate shows on this side: Envoy has no access log line for it.
            listener.metrics.tls_handshake_failures.increment(1);
            tracing::info!(listener = listener.config.name, remote = %self.remote, reason, "TLS handshake failed");
        };
        let accept = Box::pin(context.accept(Prefixed::new(seen, self.stream)));
        let (stream, handshake) = match tokio::time::timeout(chain.handshake_timeout, accept).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                failed(tls::failure_reason(&error));
                return None;
            }
            Err(_) => {
                failed("handshake timeout".to_owned());
                return None;
            }
        };
        info.tls_version = Some(handshake.version);
        info.tls_cipher = Some(handshake.cipher);
        info.peer = handshake.peer;
        info.local_uri_san = handshake.local_uri_san;
        Some((Stream::TlsServer(Box::new(stream)), info, handshake.alpn))
    }
}
