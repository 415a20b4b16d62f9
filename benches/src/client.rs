//! A client that sends requests one after the other on a kept-alive HTTP/1 connection and checks every answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// What it sends: about the head that curl would.
pub const REQUEST: &[u8] = b"GET /details/0 HTTP/1.1\r\nhost: details.bookinfo:9080\r\nuser-agent: load/1\r\naccept: */*\r\n\r\n";

const START_DEADLINE: Duration = Duration::from_secs(60);
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 1024 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects, and tries again for up to a minute where nothing listens yet.
    ///
    /// # Errors
    /// When nothing does after that.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match TcpStream::connect_timeout(&address, ANSWER_DEADLINE) {
                Ok(stream) => break stream,
                Err(error) => ensure!(start.elapsed() < START_DEADLINE, "{address}: {error}"),
            }
            thread::sleep(Duration::from_millis(50));
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends [`REQUEST`] and reads the answer whole.
    ///
    /// # Errors
    /// When it is not a 200 of the length it announces, or takes more than ten seconds.
    pub fn get(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(REQUEST)?;
        self.buffer.clear();
        let mut chunk = [0; 4096];
        let mut wanted = None;
        while wanted.is_none_or(|wanted| self.buffer.len() < wanted) {
            let count = self.stream.read(&mut chunk)?;
            ensure!(count > 0, "closed in the middle of an answer");
            self.buffer.extend_from_slice(&chunk[..count]);
            if wanted.is_none()
                && let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n")
            {
                wanted = Some(end + 4 + content_length(&self.buffer[..end])?);
            }
            ensure!(self.buffer.len() < MAX_ANSWER, "an answer without end");
        }
        ensure!(wanted == Some(self.buffer.len()), "more than one answer");
        Ok(())
    }
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = std::str::from_utf8(head)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{}", head.lines().next().unwrap_or_default());
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, length) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length")).context("no content-length")?;
    Ok(length.trim().parse()?)
}
