//! HTTP/2 frame by frame: a client that may break every rule.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::within;

/// Frame types.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// The stream's last frame.
pub const END_STREAM: u8 = 1;
/// The header block's last frame.
pub const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream.
    pub stream: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals that no table keeps, so that blocks don't depend on each other.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The length of a string that is not Huffman coded.
pub fn length(block: &mut Vec<u8>, mut length: usize) {
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
        return;
    }
    block.push(127);
    length -= 127;
    while length >= 128 {
        block.push(u8::try_from(length % 128).unwrap() | 128);
        length /= 128;
    }
    block.push(u8::try_from(length).unwrap());
}

/// A whole request head.
pub fn headers(stream: u32, end: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end), stream, &block(fields))
}

/// A connection that has said its preface and settings.
#[derive(Debug)]
pub struct Wire(TcpStream);

impl Wire {
    /// Connects without TLS.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> Self {
        let mut wire = Self(within("a connection", TcpStream::connect(address)).await.unwrap());
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        wire.send(&frame(SETTINGS, 0, 0, b"")).await;
        wire
    }

    /// Sends bytes; a peer that has closed already is told by what is read next.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.try_send(bytes).await;
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the peer has closed.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        within("the peer's reading", self.0.write_all(bytes)).await
    }

    /// The next frame; `None` once the peer has closed.
    pub async fn next(&mut self) -> Option<Frame> {
        within("a frame or the end of the connection", async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        })
        .await
    }

    /// Everything that comes until the peer closes.
    ///
    /// # Panics
    /// When it does not close.
    pub async fn until_closed(&mut self) -> Vec<Frame> {
        within("the end of the connection", async {
            let mut frames = Vec::new();
            while let Some(frame) = self.next().await {
                frames.push(frame);
            }
            frames
        })
        .await
    }

    /// Everything that comes until a PING of ours is answered: the connection lives.
    ///
    /// # Panics
    /// When it does not.
    pub async fn until_answered(&mut self) -> Vec<Frame> {
        self.send(&frame(PING, 0, 0, b"alive?!?")).await;
        let mut frames = Vec::new();
        loop {
            let next = self.next().await.unwrap_or_else(|| panic!("closed after {frames:?}"));
            if next.kind == PING && next.payload == b"alive?!?" {
                return frames;
            }
            frames.push(next);
        }
    }
}
