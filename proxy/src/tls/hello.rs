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
const TLS_1_0: [u8; 2] = [3, 1];
const HANDSHAKE: u8 = 22;
/// The methods by which BoringSSL knows HTTP; it answers none of them.
const HTTP: [&[u8]; 5] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"CONNE"];

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
                let mut theirs = Vec::new();
                alert.write_all(&mut theirs)?;
                if let Some(alert) = self::alert(&start, &error, theirs) {
                    // The client is told if it still listens; the failure to report is the handshake's.
                    let _ = io.write_all(&alert).await;
                    let _ = io.flush().await;
                }
                let error = outdated(&start, &error).map_or(error, |_| PeerIncompatible::Tls12NotOffered.into());
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// The alert that BoringSSL sends for what rustls refuses; `None` for a client that speaks HTTP. Before a version is agreed
/// on, alerts are marked as TLS 1.0.
fn alert(start: &[u8], error: &Error, theirs: Vec<u8>) -> Option<Vec<u8>> {
    const FATAL: u8 = 2;
    let said = |alert: AlertDescription, version: [u8; 2]| Some(vec![21, version[0], version[1], 0, 2, FATAL, alert.into()]);
    if HTTP.iter().any(|method| start.starts_with(method)) {
        return None;
    }
    if start.get(1).is_some_and(|major| *major != TLS_1_0[0]) {
        return said(AlertDescription::ProtocolVersion, TLS_1_0);
    }
    if start.first().is_some_and(|kind| *kind != HANDSHAKE) {
        return said(AlertDescription::UnexpectedMessage, TLS_1_0);
    }
    if let Some(version) = outdated(start, error) {
        return said(AlertDescription::ProtocolVersion, version);
    }
    let mut alert = theirs;
    if !matches!(error, Error::PeerIncompatible(_))
        && let Some(version) = alert.get_mut(1..3)
    {
        version.copy_from_slice(&TLS_1_0);
    }
    Some(alert)
}

/// The version of a client that speaks nothing newer than TLS 1.1.
fn outdated(start: &[u8], error: &Error) -> Option<[u8; 2]> {
    let version = <[u8; 2]>::try_from(start.get(VERSION_AT..)?).ok()?;
    (matches!(error, Error::PeerIncompatible(_)) && version < TLS_1_2).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(hello: &[u8]) -> Vec<u8> {
        let (mut client, mut server) = tokio::io::duplex(4096);
        client.write_all(hello).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(read_client_hello(&mut server).await.is_err());
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    }

    // Recorded with Envoy 1.40.
    #[tokio::test]
    async fn who_speaks_no_tls_hears_what_boringssl_says() {
        assert_eq!(told(b"GET / HTTP/1.1\r\n\r\n").await, b"");
        assert_eq!(told(b"POST / HTTP/1.1\r\n\r\n").await, b"");
        assert_eq!(told(b"CONNECT a:1 HTTP/1.1\r\n\r\n").await, b"");
        assert_eq!(told(b"hello world").await, [21, 3, 1, 0, 2, 2, 70]);
        assert_eq!(told(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").await, [21, 3, 1, 0, 2, 2, 50]);
    }
}
