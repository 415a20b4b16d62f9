//! A server for unit tests: answers in order, one connection each, and remembers the heads of the requests.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The server; ends when dropped.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    heads: Arc<Mutex<Vec<String>>>,
    _running: JoinSet<()>,
}

impl FakeServer {
    /// Answers with these, complete with head, one after the other; closes without an answer after the last one.
    pub(crate) async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut running) = (Arc::clone(&heads), JoinSet::new());
        running.spawn(async move {
            let mut answers = answers.into_iter();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                seen.lock().unwrap().push(String::from_utf8(head).unwrap());
                if let Some(answer) = answers.next() {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        Self { url, heads, _running: running }
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// An answer with a body.
pub(crate) fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} status\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
