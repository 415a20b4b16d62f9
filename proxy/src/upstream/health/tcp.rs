//! `tcp_health_check`: a connection, and perhaps bytes to and fro.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::probe::{Prober, contains_in_order};
use super::{CheckFailure, Success};
use crate::config::TcpHealthCheck;

/// Bytes of an answer that are searched.
const MAX_ANSWER: usize = 64 * 1024;

/// Every check makes a connection of its own: one that is kept says less about the endpoint.
pub(super) async fn check(prober: &Prober, ask: &TcpHealthCheck) -> Result<Success, CheckFailure> {
    let mut stream = prober.connect().await?.stream;
    if ask.receive.is_empty() {
        return Ok(Success::default());
    }
    stream.write_all(&ask.send).await.map_err(|_| CheckFailure::Network)?;
    stream.flush().await.map_err(|_| CheckFailure::Network)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !contains_in_order(&answer, &ask.receive) {
        let count = stream.read(&mut buffer).await.map_err(|_| CheckFailure::Network)?;
        if count == 0 || answer.len() > MAX_ANSWER {
            return Err(CheckFailure::Network);
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    Ok(Success::default())
}
