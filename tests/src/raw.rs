//! An application that answers with given bytes, right or wrong, and remembers what reached it byte for byte.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::wait::within;

/// The application. The n-th head, over all connections, is answered with the n-th script; the last one repeats.
#[derive(Debug)]
pub struct Raw {
    seen: watch::Receiver<Vec<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

/// What follows a head that was read.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// These bytes, and the connection stays.
    Say(&'static [u8]),
    /// These bytes, and the connection closes.
    SayAndClose(&'static [u8]),
    /// Nothing, until the caller closes.
    Wait,
}

impl Raw {
    /// Starts it.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn start(address: SocketAddr, scripts: Vec<Script>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        let listener = socket.listen(16).unwrap();
        let (sender, seen) = watch::channel(Vec::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, sender, scripts));
        Self { seen, _tasks: tasks }
    }

    /// What has arrived on each connection so far; an empty piece follows when the caller has closed it.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        self.seen.borrow().clone()
    }

    /// What has arrived so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen().concat()).into_owned()
    }

    /// Waits until this text has arrived.
    pub async fn arrived(&self, text: &str) {
        let mut seen = self.seen.clone();
        let arrived = seen.wait_for(|seen| String::from_utf8_lossy(&seen.concat()).contains(text));
        within("bytes reach the application", arrived).await.unwrap();
    }

    /// Waits until a caller has closed its connection.
    pub async fn closed(&self) {
        let mut seen = self.seen.clone();
        within("the caller closes", seen.wait_for(|seen| seen.iter().any(Vec::is_empty))).await.unwrap();
    }
}

async fn serve(listener: TcpListener, seen: watch::Sender<Vec<Vec<u8>>>, scripts: Vec<Script>) {
    let mut connections = JoinSet::new();
    let next = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    while let Ok((stream, _)) = listener.accept().await {
        let (seen, scripts, next) = (seen.clone(), scripts.clone(), next.clone());
        connections.spawn(async move {
            // A caller that breaks off is what some tests are about.
            let _ = speak(stream, &seen, || {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                scripts[index.min(scripts.len() - 1)]
            })
            .await;
        });
    }
}

async fn speak(
    mut stream: TcpStream,
    seen: &watch::Sender<Vec<Vec<u8>>>,
    mut script: impl FnMut() -> Script,
) -> std::io::Result<()> {
    let mut input = Vec::new();
    loop {
        let mut piece = vec![0; 64 * 1024];
        let read = stream.read(&mut piece).await.unwrap_or(0);
        piece.truncate(read);
        input.extend_from_slice(&piece);
        seen.send_modify(|seen| seen.push(piece));
        if read == 0 {
            return Ok(());
        }
        while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            input.drain(..end + 4);
            match script() {
                Script::Say(bytes) => stream.write_all(bytes).await?,
                Script::SayAndClose(bytes) => return stream.write_all(bytes).await,
                Script::Wait => {}
            }
        }
    }
}
