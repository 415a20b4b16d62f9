//! One byte stream type for every transport, so that nothing above it is generic over I/O.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::http::h2;

/// A connection: TCP or Unix, in plaintext or under TLS.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// Unix domain socket.
    Unix(UnixStream),
    /// TLS that we terminate.
    TlsServer(Box<tokio_rustls::server::TlsStream<Prefixed>>),
    /// TLS that we originate.
    TlsClient(Box<tokio_rustls::client::TlsStream<Transport>>),
    /// Bytes already read by sniffing, then the socket.
    Prefixed(Prefixed),
    /// Any of the others, with bytes to be read again first.
    Rewound(Box<Rewound>),
    /// One stream of an HTTP/2 connection.
    Http2(Box<h2::Tunnel>),
    /// In memory, for tests and benches.
    Memory(tokio::io::DuplexStream),
}

/// A connection whose first bytes have been looked at.
#[derive(Debug)]
pub struct Rewound {
    prefix: Vec<u8>,
    at: usize,
    inner: Stream,
}

/// What TLS is originated over.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// Unix domain socket.
    Unix(UnixStream),
}

/// A TCP connection whose first bytes have been read already.
#[derive(Debug)]
pub struct Prefixed {
    prefix: Vec<u8>,
    at: usize,
    /// Whether TLS is terminated on it.
    tls: bool,
    inner: TcpStream,
}

/// TLS 1.3's `certificate_required` in the clear, which is how rustls tells a TLS 1.2 client too; TLS 1.2 does not know it.
const CERTIFICATE_REQUIRED: [u8; 7] = [21, 3, 3, 0, 2, 2, 116];
/// What such a client is told instead, as by BoringSSL: `handshake_failure`.
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

impl Prefixed {
    /// Gives `prefix` back to the reader before anything else.
    pub fn new(prefix: Vec<u8>, inner: TcpStream) -> Self {
        Self { prefix, at: 0, tls: false, inner }
    }

    /// The same as the transport of a TLS server.
    #[must_use]
    pub fn for_tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// What to write in place of these bytes.
    fn translated(tls: bool, buf: &[u8]) -> &[u8] {
        if tls && buf == CERTIFICATE_REQUIRED { &HANDSHAKE_FAILURE } else { buf }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.inner
    }
}

impl Stream {
    /// Gives `prefix` to the reader before anything else.
    #[must_use]
    pub fn rewound(self, prefix: Vec<u8>) -> Self {
        if prefix.is_empty() { self } else { Self::Rewound(Box::new(Rewound { prefix, at: 0, inner: self })) }
    }

    /// Our address; `None` for Unix sockets and memory.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket().and_then(|s| s.local_addr().ok())
    }

    /// Makes the end of the connection a reset rather than a farewell.
    pub fn reset_on_close(&self) {
        if let Some(socket) = self.socket() {
            reset_on_close(socket);
        }
    }

    /// The socket below, for its options.
    pub fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(s) => Some(s),
            Self::Prefixed(s) => Some(&s.inner),
            Self::TlsServer(s) => Some(&s.get_ref().0.inner),
            Self::TlsClient(s) => match s.get_ref().0 {
                Transport::Tcp(s) => Some(s),
                Transport::Unix(_) => None,
            },
            Self::Rewound(s) => s.inner.socket(),
            Self::Unix(_) | Self::Http2(_) | Self::Memory(_) => None,
        }
    }
}

impl Drop for Prefixed {
    /// The kernel resets a connection that is closed with unread bytes. Those that sniffing took are unread just as well.
    fn drop(&mut self) {
        if self.at < self.prefix.len() {
            reset_on_close(&self.inner);
        }
    }
}

fn reset_on_close(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Hands out what is left of `prefix`; whether there was anything.
fn read_prefix(prefix: &mut Vec<u8>, at: &mut usize, buf: &mut ReadBuf<'_>) -> bool {
    if *at >= prefix.len() {
        return false;
    }
    let rest = &prefix[*at..];
    let n = rest.len().min(buf.remaining());
    buf.put_slice(&rest[..n]);
    *at += n;
    if *at == prefix.len() {
        *prefix = Vec::new();
        *at = 0;
    }
    true
}

macro_rules! delegate {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this {
            Self::Tcp($stream) => $call,
            Self::Unix($stream) => $call,
            Self::TlsServer($stream) => $call,
            Self::TlsClient($stream) => $call,
            Self::Prefixed($stream) => $call,
            Self::Http2($stream) => $call,
            Self::Memory($stream) => $call,
            Self::Rewound($stream) => {
                let $stream = &mut $stream.inner;
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Self::Rewound(s) = this
            && read_prefix(&mut s.prefix, &mut s.at, buf)
        {
            return Poll::Ready(Ok(()));
        }
        delegate!(this, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self.get_mut(), s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        delegate!(self.get_mut(), s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(s) => s.is_write_vectored(),
            Self::Unix(s) => s.is_write_vectored(),
            Self::TlsServer(s) => s.is_write_vectored(),
            Self::TlsClient(s) => s.is_write_vectored(),
            Self::Prefixed(s) => s.inner.is_write_vectored(),
            Self::Http2(s) => s.is_write_vectored(),
            Self::Memory(s) => s.is_write_vectored(),
            Self::Rewound(s) => s.inner.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.get_mut(), s => Pin::new(s).poll_shutdown(cx))
    }
}

impl Transport {
    /// Our address and the peer's; `None` for Unix sockets.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Self::Tcp(stream) => Some((stream.local_addr().ok()?, stream.peer_addr().ok()?)),
            Self::Unix(_) => None,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if read_prefix(&mut this.prefix, &mut this.at, buf) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let buf = Self::translated(this.tls, buf);
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match bufs {
            [one] => Pin::new(&mut this.inner).poll_write(cx, Self::translated(this.tls, one)),
            _ => Pin::new(&mut this.inner).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
