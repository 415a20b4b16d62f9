//! Reads the `ClientHello`, so that the configuration can depend on it.
//!
//! By hand rather than with tokio-rustls's lazy acceptor, because a client of TLS 1.1 or older must hear
//! `protocol_version`, as from Envoy: rustls trips over what such a hello lacks and says `handshake_failure`.

use std::io;

use rustls::server::{Accepted, Acceptor};
use rustls::{AlertDescription, Error, PeerIncompatible};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// No more than rustls takes at once.
const CHUNK: usize = 4096;
/// Record header, message header, and the version that the client names as its highest (TLS 1.3 names 1.2 here).
const VERSION_AT: usize = 5 + 4;
const TLS_1_2: [u8; 2] = [3, 3];

/// Reads from `io` until the `ClientHello` is complete. On failure the alert has been written.
pub(super) async fn read_client_hello<IO>(io: &mut IO) -> io::Result<Accepted>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut start = Vec::with_capacity(VERSION_AT + 2);
    // On the heap: on the stack it would stay part of the connection's task for good.
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = io.read(&mut chunk).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut unread = &chunk[..len];
        start.extend(unread.iter().take(VERSION_AT + 2 - start.len()));
        while !unread.is_empty() {
            if acceptor.read_tls(&mut unread)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let (error, alert) = match outdated(&start, &error) {
                    Some(alert) => (PeerIncompatible::Tls12NotOffered.into(), alert.to_vec()),
                    None => {
                        let mut bytes = Vec::new();
                        alert.write_all(&mut bytes)?;
                        (error, bytes)
                    }
                };
                // The client is told if it still listens; the failure to report is the handshake's.
                let _ = io.write_all(&alert).await;
                let _ = io.flush().await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// The alert for a client that speaks nothing newer than TLS 1.1.
fn outdated(start: &[u8], error: &Error) -> Option<[u8; 7]> {
    let version = <[u8; 2]>::try_from(start.get(VERSION_AT..)?).ok()?;
    let refused = matches!(error, Error::PeerIncompatible(_)) && version < TLS_1_2;
    const FATAL: u8 = 2;
    refused.then(|| [21, version[0], version[1], 0, 2, FATAL, AlertDescription::ProtocolVersion.into()])
}
