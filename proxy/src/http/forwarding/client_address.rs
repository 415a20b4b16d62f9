//! Who the client is: x-forwarded-for and its companions.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use super::{Client, Forwarding, Seen, own_scheme};
use crate::http::head::{Known, RequestHead};
use crate::stream_info::ConnectionInfo;

/// Finds the client; in edge mode it also writes x-forwarded-for, -proto and -port for the next hop.
///
/// A caller counts as internal only when its address lies in the configured ranges and nobody else spoke for it: without an
/// x-forwarded-for in edge mode, with exactly one address in it otherwise.
pub(super) fn determine(head: &mut RequestHead, connection: &ConnectionInfo, forwarding: &Forwarding, seen: &Seen) -> Client {
    let hops = forwarding.xff_num_trusted_hops;
    let peer = connection.remote;
    if forwarding.use_remote_address {
        let trusted = hops.checked_sub(1).and_then(|skip| last_address(head, skip)).map(|(address, _)| address);
        let address = trusted.map_or(peer, |address| SocketAddr::new(address, 0));
        append_edge_headers(head, connection, forwarding, seen);
        return Client { address, internal: !seen.has(Known::XForwardedFor) && forwarding.is_internal(address.ip()) };
    }
    match seen.has(Known::XForwardedFor).then(|| last_address(head, hops)).flatten() {
        Some((address, alone)) => {
            Client { address: SocketAddr::new(address, 0), internal: alone && forwarding.is_internal(address) }
        }
        None => Client { address: peer, internal: false },
    }
}

/// The last address of x-forwarded-for after leaving out `skip` of them, and whether it is the only one.
fn last_address(head: &RequestHead, skip: usize) -> Option<(IpAddr, bool)> {
    let value = head.headers.get(Known::XForwardedFor)?;
    let mut addresses = value.rsplit(|b| *b == b',');
    let address = addresses.nth(skip)?.trim_ascii();
    let alone = skip == 0 && addresses.next().is_none();
    Some((std::str::from_utf8(address).ok()?.parse().ok()?, alone))
}

fn append_edge_headers(head: &mut RequestHead, connection: &ConnectionInfo, forwarding: &Forwarding, seen: &Seen) {
    let untrusted = forwarding.xff_num_trusted_hops == 0;
    if !forwarding.skip_xff_append {
        append_address(head, connection.remote.ip());
    }
    if untrusted || !seen.has(Known::XForwardedProto) {
        head.headers.set(Known::XForwardedProto, own_scheme(connection).as_str().as_bytes());
    }
    if forwarding.append_x_forwarded_port && (untrusted || !seen.has(Known::XForwardedPort)) {
        head.headers.set(Known::XForwardedPort, itoa::Buffer::new().format(connection.local.port()).as_bytes());
    }
}

/// Appends an address to x-forwarded-for.
pub(super) fn append_address(head: &mut RequestHead, address: IpAddr) {
    let mut value = SmallVec::<[u8; 128]>::new();
    if let Some(forwarded) = head.headers.get(Known::XForwardedFor).filter(|value| !value.is_empty()) {
        value.extend_from_slice(forwarded);
        value.push(b',');
    }
    let text = text(address);
    value.extend_from_slice(&text);
    head.headers.set(Known::XForwardedFor, &value);
}

/// An address as text. IPv4-mapped ones are shown as IPv4.
pub(super) fn text(address: IpAddr) -> SmallVec<[u8; 64]> {
    let mut buffer = [0; 64];
    let mut rest = &mut buffer[..];
    // No address takes more than 45 bytes.
    let _ = write!(rest, "{}", address.to_canonical());
    let free = rest.len();
    SmallVec::from_slice(&buffer[..buffer.len() - free])
}
