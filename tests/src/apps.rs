//! Applications behind a sidecar. They can be stopped and started again, and remember what reached them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::http::{Connection, Message};
use crate::http2;
use crate::wait::within;

/// What an application speaks.
#[derive(Clone, Copy, Debug)]
pub enum Speaks {
    /// HTTP/1.1; the path says how, see [`App`].
    Http,
    /// HTTP/2: a gRPC method that echoes message and trailers.
    Grpc,
    /// Greets first, then echoes, and says goodbye when the caller has said everything.
    Tcp,
}

/// What a [`Speaks::Tcp`] application says first.
pub const GREETING: &[u8] = b"220 ready\r\n";
/// What it says last.
pub const GOODBYE: &[u8] = b"221 bye\r\n";

/// An application. Over HTTP/1 it echoes the body of every request, and
/// `/hold` waits for [`App::release`] first, `/hints` as well but sends 103 before, `/chunked` answers in chunks with a trailer, `/upgrade`
/// becomes an echo of bytes, `/close` closes without an answer.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    speaks: Speaks,
    state: Arc<State>,
    running: Option<JoinSet<()>>,
}

#[derive(Debug)]
struct State {
    heads: watch::Sender<Vec<Message>>,
    requests: watch::Sender<Vec<Message>>,
    released: watch::Sender<bool>,
}

impl App {
    /// Starts it.
    pub fn start(address: SocketAddr, speaks: Speaks) -> Self {
        let state = State {
            heads: watch::Sender::new(Vec::new()),
            requests: watch::Sender::new(Vec::new()),
            released: watch::Sender::new(false),
        };
        let mut app = Self { address, speaks, state: Arc::new(state), running: None };
        app.restart();
        app
    }

    /// Closes its port and all its connections.
    pub async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap_or_else(|error| panic!("{}: {error}", self.address));
        let listener = socket.listen(128).unwrap();
        self.running.insert(JoinSet::new()).spawn(serve(self.speaks, listener, Arc::clone(&self.state)));
    }

    /// Requests that arrived completely.
    pub fn requests(&self) -> Vec<Message> {
        self.state.requests.borrow().clone()
    }

    /// The last request that arrived completely.
    pub fn last_request(&self) -> Message {
        self.state.requests.borrow().last().cloned().expect("a request")
    }

    /// Waits for the head of a request with this path.
    pub async fn arrived(&self, path: &str) {
        let mut heads = self.state.heads.subscribe();
        let arrived = heads.wait_for(|heads| heads.iter().any(|head| head.second_word() == path));
        within("the request reaches the application", arrived).await.unwrap();
    }

    /// Lets the requests to `/hold` and `/hints` be answered, now and from now on.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }
}

impl State {
    async fn release(&self) {
        let _ = self.released.subscribe().wait_for(|released| *released).await;
    }
}

async fn serve(speaks: Speaks, listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    // A caller that breaks off is what some tests are about.
                    let _ = match speaks {
                        Speaks::Http => http(stream, &state).await,
                        Speaks::Grpc => http2::serve_echo(stream).await,
                        Speaks::Tcp => tcp(stream).await,
                    };
                });
            }
        }
    }
}

async fn tcp(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(GREETING).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.write_all(GOODBYE).await?;
    write.shutdown().await
}

async fn http(stream: TcpStream, state: &State) -> io::Result<()> {
    let mut connection = Connection::over(stream);
    while let Some(mut request) = connection.head().await? {
        state.heads.send_modify(|heads| heads.push(request.clone()));
        if request.header("expect").is_some() {
            connection.send("HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        connection.body(&mut request, false).await?;
        state.requests.send_modify(|requests| requests.push(request.clone()));
        match request.second_word() {
            "/upgrade" => return upgrade(connection).await,
            "/close" => return Ok(()),
            "/hold" => state.release().await,
            "/hints" => {
                connection.send("HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n").await?;
                state.release().await;
            }
            _ => {}
        }
        connection.send(answer(&request)).await?;
    }
    Ok(())
}

fn answer(request: &Message) -> Vec<u8> {
    let Message { body, .. } = request;
    let chunked = request.second_word() == "/chunked";
    let framing = if chunked {
        "transfer-encoding: chunked\r\ntrailer: x-checksum".to_owned()
    } else {
        format!("content-length: {}", body.len())
    };
    let mut answer = format!("HTTP/1.1 200 OK\r\nserver: app\r\n{framing}\r\n\r\n").into_bytes();
    if request.start.starts_with("HEAD ") {
        return answer;
    }
    if chunked {
        let checksum = request.trailer("x-checksum").unwrap_or("none");
        answer.extend(format!("{:x}\r\n", body.len()).bytes().chain(body.iter().copied()));
        answer.extend(format!("\r\n0\r\nx-checksum: {checksum}\r\n\r\n").bytes());
    } else {
        answer.extend(body);
    }
    answer
}

async fn upgrade(mut connection: Connection) -> io::Result<()> {
    connection.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await?;
    let mut chunk = [0; 4096];
    loop {
        match connection.0.read(&mut chunk).await? {
            0 => return Ok(()),
            length => connection.send(&chunk[..length]).await?,
        }
    }
}
