//! A `skiff` process: started, read, signalled, ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::wait::{DEADLINE, eventually, within};

/// The binary under test: `SKIFF_BINARY`, else the one that Cargo built beside the tests from the product's `main.rs`.
pub fn binary() -> PathBuf {
    std::env::var_os("SKIFF_BINARY").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            test.parent().and_then(|deps| deps.parent()).unwrap().join("skiff-under-test")
        },
        PathBuf::from,
    )
}

/// A command that runs it with nothing of our environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.env_clear().args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a command that ends by itself had to say.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end.
pub async fn run(mut command: Command) -> Said {
    let output = within("the command ends", command.output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A process that goes on; killed when dropped.
#[derive(Debug)]
pub struct Skiff {
    child: Child,
    /// Where its admin page is.
    pub admin: SocketAddr,
    /// Its access log.
    pub stdout: Lines,
    /// Its own log.
    pub stderr: Lines,
}

impl Skiff {
    /// Starts it; `admin` is where it was told to serve its admin page.
    pub fn spawn(mut command: Command, admin: SocketAddr) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self { child, admin, stdout, stderr }
    }

    /// Waits until its admin page says that it is ready.
    ///
    /// # Panics
    /// With its own log, when it is not in time.
    pub async fn ready(&self) {
        let ready = eventually("the sidecar is ready", async || self.is_ready().await.then_some(()));
        if tokio::time::timeout(DEADLINE * 9 / 10, ready).await.is_err() {
            panic!("the sidecar at {} is not ready; its log:\n{}", self.admin, self.stderr.all().join("\n"));
        }
    }

    /// Whether its admin page says that it is ready.
    pub async fn is_ready(&self) -> bool {
        matches!(http::try_get(self.admin, "admin", "/healthz/ready").await, Ok(answer) if answer.status == 200)
    }

    /// A page of its admin page.
    pub async fn page(&self, path: &str) -> Answer {
        http::get(self.admin, "admin", path).await
    }

    /// A POST to its admin page.
    pub async fn post(&self, path: &str) -> Answer {
        http::exchange(self.admin, &format!("POST {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n")).await
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.page("/stats/prometheus").await.text())
    }

    /// Sends SIGTERM.
    pub async fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub async fn kill(mut self) {
        within("the process is killed", self.child.kill()).await.unwrap();
    }

    /// Waits for its end.
    pub async fn exit_code(&mut self) -> i32 {
        within("the process ends", self.child.wait()).await.unwrap().code().unwrap_or(-1)
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// Lines that a process writes, from its start.
#[derive(Clone, Debug)]
pub struct Lines(Arc<watch::Sender<Vec<String>>>);

impl Lines {
    fn of(source: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let lines = Self(Arc::new(watch::Sender::new(Vec::new())));
        let written = Arc::clone(&lines.0);
        tokio::spawn(async move {
            let mut source = BufReader::new(source).lines();
            while let Ok(Some(line)) = source.next_line().await {
                written.send_modify(|lines| lines.push(line));
            }
        });
        lines
    }

    /// Waits for a line with this text in it.
    ///
    /// # Panics
    /// With what there is instead, when none comes in time.
    pub async fn line_with(&self, text: &str) -> String {
        self.nth_line_with(text, 1).await
    }

    /// Waits for the n-th line with this text in it, counted from 1.
    ///
    /// # Panics
    /// With what there is instead, when it does not come in time.
    pub async fn nth_line_with(&self, text: &str, n: usize) -> String {
        let mut lines = self.0.subscribe();
        let find = |lines: &[String]| lines.iter().filter(|line| line.contains(text)).nth(n - 1).cloned();
        let found = tokio::time::timeout(DEADLINE, lines.wait_for(|lines| find(lines).is_some())).await;
        let line = found.ok().and_then(|lines| find(&lines.ok()?));
        line.unwrap_or_else(|| panic!("no {n}. line with {text:?} in\n{}", self.all().join("\n")))
    }

    /// How many lines hold this text now.
    pub fn count(&self, text: &str) -> usize {
        self.0.borrow().iter().filter(|line| line.contains(text)).count()
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}
