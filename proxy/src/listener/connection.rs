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
use crate::config::{ConnectionLimit, TransportProtocol};
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
    let info = ConnectionInfo::new(NEXT_ID.fetch_add(1, Ordering::Relaxed), local, remote);
    let mut incoming = Incoming { stream, seen: Vec::new(), info };
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
        server_name: incoming.info.server_name.as_deref(),
        application_protocols: &sniffed.protocols,
    };
    let Some(chain) = listener.find_chain(&seen).cloned() else {
        let (stream, info) = incoming.into_parts();
        drop(stream);
        tracing::debug!(listener = listener.config.name, %remote, "no filter chain matches");
        log_connection(&listener, info, "filter_chain_not_found".into(), ResponseFlags::NO_ROUTE_FOUND);
        return;
    };
    let _place = match chain.connection_limit.map(|limit| chain.place(limit).ok_or(limit)) {
        None => None,
        Some(Ok(place)) => Some(place),
        Some(Err(limit)) => return over_limit(&listener, &chain, limit, incoming).await,
    };
    let (stream, info) = incoming.into_parts();
    let secured = secure(stream, info.clone(), &listener, &chain, sniffed.protocols);
    match &chain.filter {
        Filter::Http(manager) => {
            let Ok((stream, info, alpn)) = secured.await else { return };
            if let Some(details) = denied(&chain, &info) {
                log_connection(&listener, info, details, ResponseFlags::NONE);
                return;
            }
            let mut client_cert = Vec::new();
            if let Some(peer) = &info.peer {
                let details = manager.config.client_cert_details;
                tls::forwarded_client_cert(peer, info.local_uri_san(), details, &mut client_cert);
            }
            let connection = Connection { info, manager: manager.clone(), worker, drain: listener.drain.clone(), client_cert };
            http::server::serve(Rc::new(connection), stream, alpn.as_deref()).await;
        }
        Filter::Tcp(proxy) => {
            let secured = async {
                let (stream, info, alpn) = secured.await?;
                let denied = denied(&chain, &info);
                let exchange = chain.peer_exchange.as_deref().filter(|exchange| exchange.is_agreed(alpn.as_deref()));
                let introduction = exchange.map(|exchange| worker.local().preamble(&exchange.additional_labels));
                Ok(tcp::Secured { stream, info, denied, introduction })
            };
            tcp::serve(proxy, info, secured, &worker).await;
        }
    }
}

/// Ends a connection above the limit of its chain.
async fn over_limit(listener: &ListenerRuntime, chain: &FilterChain, limit: ConnectionLimit, incoming: Incoming) {
    listener.metrics.connections_overflow.increment(1);
    if let Some(delay) = limit.delay {
        tokio::time::sleep(delay).await;
    }
    let (stream, info) = incoming.into_parts();
    drop(stream);
    if let Filter::Tcp(proxy) = &chain.filter {
        tcp::refuse(proxy, info);
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
    /// Bytes read while sniffing.
    seen: Vec<u8>,
    info: ConnectionInfo,
}

struct Sniffed {
    transport: TransportProtocol,
    protocols: Vec<Vec<u8>>,
}

impl Incoming {
    /// Looks at the first bytes, if the listener asks for it. `None` when the connection closed before anything came, or when
    /// too little came in time.
    async fn sniff(&mut self, listener: &ListenerRuntime) -> Option<Sniffed> {
        let plaintext = Sniffed { transport: TransportProtocol::RawBuffer, protocols: Vec::new() };
        let config = &listener.config;
        if !config.inspect_tls && !config.inspect_http {
            return Some(plaintext);
        }
        let inspect = self.inspect(config.inspect_tls, config.inspect_http);
        match config.inspect_timeout {
            // A server-first protocol: nothing came, so it goes on as plaintext.
            Some(limit) => match tokio::time::timeout(limit, inspect).await {
                Ok(sniffed) => sniffed,
                Err(_) => config.continue_on_inspect_timeout.then_some(plaintext),
            },
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
                        self.info.server_name = server_name.map(String::into_boxed_str);
                        return Some(Sniffed { transport: TransportProtocol::Tls, protocols: alpn });
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
                    return Some(Sniffed { transport: TransportProtocol::RawBuffer, protocols });
                }
            }
            if self.stream.read_buf(&mut self.seen).await.ok()? == 0 {
                return None;
            }
        }
    }

    fn into_parts(self) -> (Plain, Rc<ConnectionInfo>) {
        let stream =
            if self.seen.is_empty() { Plain::Fresh(self.stream) } else { Plain::Seen(Prefixed::new(self.seen, self.stream)) };
        (stream, Rc::new(self.info))
    }
}

/// A connection as it was accepted, with or without bytes that sniffing took.
enum Plain {
    Fresh(TcpStream),
    Seen(Prefixed),
}

impl Plain {
    fn for_tls(self) -> Prefixed {
        match self {
            Self::Fresh(stream) => Prefixed::new(Vec::new(), stream),
            Self::Seen(stream) => stream,
        }
        .for_tls()
    }
}

/// Terminates TLS where the chain asks for it; a handshake that fails gives the facts of the connection with the reason.
async fn secure(
    stream: Plain,
    info: Rc<ConnectionInfo>,
    listener: &ListenerRuntime,
    chain: &FilterChain,
    protocols: Vec<Vec<u8>>,
) -> Result<(Stream, Rc<ConnectionInfo>, Option<Box<[u8]>>), Rc<ConnectionInfo>> {
    let Some(context) = &chain.tls else {
        let http2 = protocols.iter().any(|protocol| protocol == b"h2c").then(|| Box::from(&b"h2"[..]));
        let stream = match stream {
            Plain::Fresh(stream) => Stream::Tcp(stream),
            Plain::Seen(stream) => Stream::Prefixed(stream),
        };
        return Ok((stream, info, http2));
    };
    let accept = Box::pin(context.accept(stream.for_tls()));
    let reason = match tokio::time::timeout(chain.handshake_timeout, accept).await {
        Ok(Ok((stream, handshake))) => {
            let info = ConnectionInfo {
                tls_version: Some(handshake.version),
                tls_cipher: Some(handshake.cipher),
                peer: handshake.peer,
                local_certificate: handshake.local,
                ..(*info).clone()
            };
            return Ok((Stream::TlsServer(Box::new(stream)), Rc::new(info), handshake.alpn));
        }
        Ok(Err(error)) => tls::failure_reason(&error),
        Err(_) => "handshake timeout".to_owned(),
    };
    // For HTTP the one place where a refused certificate shows on this side: Envoy has no access log line for it.
    listener.metrics.tls_handshake_failures.increment(1);
    tracing::info!(listener = listener.config.name, remote = %info.remote, reason, "TLS handshake failed");
    Err(Rc::new(ConnectionInfo { transport_failure: Some(reason.into()), ..(*info).clone() }))
}
