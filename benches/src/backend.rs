//! An upstream that costs next to nothing: every HTTP/1 request without a body gets the same 1 KiB.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

const BODY: usize = 1024;
const END: &[u8] = b"\r\n\r\n";
const MAX_HEAD: usize = 16 * 1024;

/// Starts the backend on a free port of 127.0.0.1, for as long as the process lives, and returns its address.
///
/// # Errors
/// When there is no free port.
pub fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ncontent-length: {BODY}");
    let response: &'static [u8] = Vec::leak([head.as_bytes(), END, &[b'x'; BODY]].concat());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that fails concerns its caller only.
            thread::spawn(move || drop(serve(stream, response)));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream, response: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(MAX_HEAD);
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 || head.len() > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..count]);
        while let Some(at) = head.windows(END.len()).position(|window| window == END) {
            head.drain(..at + END.len());
            stream.write_all(response)?;
        }
    }
}
