//! Runs the data plane from a static Envoy bootstrap: `proxy-bootstrap -c FILE`.
//!
//! For laboratories: the admin address answers `/ready` only. With `SKIFF_LAB_PARTIAL=1` what is not supported is printed
//! and left out, where the product refuses to start.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use skiff_agent::bootstrap::{self, Bootstrap};
use skiff_proxy::{Options, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, path] = arguments.as_slice() else { bail!("usage: proxy-bootstrap -c FILE") };
    if flag != "-c" {
        bail!("usage: proxy-bootstrap -c FILE");
    }
    let (_proxy, bootstrap) = start(PathBuf::from(path)).await?;
    let address = bootstrap.admin.context("admin.address is missing")?;
    let admin = TcpListener::bind(address).await.with_context(|| format!("admin address {address}"))?;
    loop {
        let (connection, _) = admin.accept().await?;
        tokio::spawn(answer(connection));
    }
}

#[expect(clippy::print_stderr, reason = "a laboratory wants to see what was left out")]
async fn start(path: PathBuf) -> anyhow::Result<(Proxy, Bootstrap)> {
    let recorder = Arc::new(metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder());
    let options = Options { workers: 1, ..Options::default() };
    if std::env::var_os("SKIFF_LAB_PARTIAL").is_none_or(|value| value != "1") {
        return Ok(bootstrap::run(&path, &options, recorder).await?);
    }
    let bootstrap = bootstrap::load(&path)?;
    for rejected in &bootstrap.report.rejected {
        eprintln!("left out: {rejected}");
    }
    let proxy = bootstrap::start(&bootstrap, &options, recorder)?;
    Ok((proxy, bootstrap))
}

async fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let mut head = [0; 1024];
    let read = connection.read(&mut head).await?;
    let body = if head[..read].starts_with(b"GET /ready") { "LIVE\n" } else { "" };
    let status = if body.is_empty() { "404 Not Found" } else { "200 OK" };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    connection.write_all(answer.as_bytes()).await
}
