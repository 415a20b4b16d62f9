//! HTTP/1.1 by hand, so that tests can send what no well-behaved client would.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::wait::within;

/// A request or response as it was read.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Request or status line.
    pub start: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, decoded.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first trailer of this name.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The second word of the start line: path of a request, status of a response.
    pub fn second_word(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// The rest.
    pub message: Message,
}

impl std::ops::Deref for Answer {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Connection<S = TcpStream>(pub BufReader<S>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(within("a connection", TcpStream::connect(address)).await?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection over this stream.
    pub fn over(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref()).await?;
        self.0.flush().await
    }

    /// Reads a head without its body; `None` at the end of the connection.
    ///
    /// # Errors
    /// When the connection ends in the middle.
    pub async fn head(&mut self) -> io::Result<Option<Message>> {
        let start = self.line().await?;
        if start.is_empty() {
            return Ok(None);
        }
        Ok(Some(Message { start, headers: self.fields().await?, ..Message::default() }))
    }

    /// Reads the body that belongs to the head; up to the end of the connection when `until_close` and it has no length.
    ///
    /// # Errors
    /// When the connection ends in the middle.
    pub async fn body(&mut self, message: &mut Message, until_close: bool) -> io::Result<()> {
        if message.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            loop {
                let size = usize::from_str_radix(self.line().await?.trim(), 16).map_err(io::Error::other)?;
                if size == 0 {
                    message.trailers = self.fields().await?;
                    return Ok(());
                }
                let start = message.body.len();
                message.body.resize(start + size, 0);
                self.0.read_exact(&mut message.body[start..]).await?;
                self.line().await?;
            }
        }
        match message.header("content-length").map(str::parse) {
            Some(length) => {
                message.body.resize(length.map_err(io::Error::other)?, 0);
                self.0.read_exact(&mut message.body).await?;
            }
            None if until_close => {
                self.0.read_to_end(&mut message.body).await?;
            }
            None => {}
        }
        Ok(())
    }

    /// Reads a response; one without body when its status says so.
    ///
    /// # Errors
    /// When the connection ends before it is complete.
    pub async fn answer(&mut self) -> io::Result<Answer> {
        within("an answer", async {
            let mut message = self.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = message.second_word().parse().map_err(io::Error::other)?;
            if !matches!(status, 100..200 | 204 | 304) {
                self.body(&mut message, true).await?;
            }
            Ok(Answer { status, message })
        })
        .await
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// When the connection ends before it is complete.
    pub async fn ask(&mut self, request: &str) -> io::Result<Answer> {
        self.send(request).await?;
        self.answer().await
    }

    /// Waits for the end of the connection; what came before it.
    ///
    /// # Errors
    /// When it is reset.
    pub async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        within("the end of the connection", self.0.read_to_end(&mut rest)).await?;
        Ok(rest)
    }

    async fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { return Ok(fields) };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await?;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// Sends one request on a connection of its own.
///
/// # Panics
/// When there is no answer.
pub async fn exchange(address: SocketAddr, request: &str) -> Answer {
    try_exchange(address, request).await.unwrap_or_else(|error| panic!("{address}: {error} to {request}"))
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// When there is no answer.
pub async fn try_exchange(address: SocketAddr, request: &str) -> io::Result<Answer> {
    Connection::open(address).await?.ask(request).await
}

/// GETs a path.
///
/// # Panics
/// When there is no answer.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    exchange(address, &get_request(host, path, "")).await
}

/// GETs a path.
///
/// # Errors
/// When there is no answer.
pub async fn try_get(address: SocketAddr, host: &str, path: &str) -> io::Result<Answer> {
    try_exchange(address, &get_request(host, path, "")).await
}

/// GETs a path with this `x-request-id`, to find its log lines by.
///
/// # Panics
/// When there is no answer.
pub async fn get_as(address: SocketAddr, host: &str, path: &str, id: &str) -> Answer {
    exchange(address, &get_request(host, path, &format!("x-request-id: {id}\r\n"))).await
}

/// A GET with further header lines.
pub fn get_request(host: &str, path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n")
}
