//! `skiff health`: asks the admin page whether the sidecar is ready, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};

use crate::client;

/// Everything included.
const DEADLINE: Duration = Duration::from_secs(2);

/// Whether the sidecar with its admin page on `address` is ready.
///
/// # Errors
/// With the reason, as one line.
pub async fn probe(address: SocketAddr) -> Result<(), String> {
    let address = reachable(address);
    let request = Request::get("/healthz/ready")
        .header(header::HOST, address.to_string())
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let answer = client::send(address, request, DEADLINE).await.map_err(|error| error.to_string())?;
    match answer.status() {
        StatusCode::OK => Ok(()),
        status => Err(format!("{}: {}", status.as_u16(), String::from_utf8_lossy(answer.body()).trim())),
    }
}

/// An admin page on a wildcard address is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
