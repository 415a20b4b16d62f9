//! Telling an upstream who its caller is before anything else is said (the PROXY protocol of HAProxy).
//!
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto>.

use std::net::{IpAddr, SocketAddr};

use crate::config::ProxyProtocol;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, with the command LOCAL or PROXY.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// What a connection begins with. `caller`: the two ends of the connection that it is made for; `own`: its own two ends.
///
/// A connection that is made for nobody, as those of health checks are, names its own ends in version 1 and nobody in version 2.
pub(super) fn header(
    version: ProxyProtocol,
    caller: Option<(SocketAddr, SocketAddr)>,
    own: Option<(SocketAddr, SocketAddr)>,
) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => text(caller.or(own)).into_bytes(),
        ProxyProtocol::V2 => binary(caller),
    }
}

fn text(ends: Option<(SocketAddr, SocketAddr)>) -> String {
    match ends {
        Some((from, to)) if from.is_ipv4() == to.is_ipv4() => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
        }
        _ => "PROXY UNKNOWN\r\n".to_owned(),
    }
}

fn binary(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let Some((from, to)) = ends.filter(|(from, to)| from.is_ipv4() == to.is_ipv4()) else {
        out.extend([LOCAL, 0, 0, 0]);
        return out;
    };
    let (family, length) = if from.is_ipv4() { (TCP4, 12) } else { (TCP6, 36) };
    out.extend([PROXY, family, 0, length]);
    for end in [from, to] {
        match end.ip() {
            IpAddr::V4(ip) => out.extend(ip.octets()),
            IpAddr::V6(ip) => out.extend(ip.octets()),
        }
    }
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(from: &str, to: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn version_1_is_a_line() {
        let v1 = |caller, own| String::from_utf8(header(ProxyProtocol::V1, caller, own)).unwrap();
        let own = ends("10.0.0.9:4000", "10.0.0.2:80");
        assert_eq!(v1(ends("10.0.0.1:5000", "10.0.0.9:443"), own), "PROXY TCP4 10.0.0.1 10.0.0.9 5000 443\r\n");
        assert_eq!(v1(ends("[fd00::1]:5000", "[::1]:443"), own), "PROXY TCP6 fd00::1 ::1 5000 443\r\n");
        assert_eq!(v1(None, own), "PROXY TCP4 10.0.0.9 10.0.0.2 4000 80\r\n");
        assert_eq!(v1(None, None), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_binary_and_names_nobody_where_there_is_nobody() {
        let v2 = |caller| header(ProxyProtocol::V2, caller, ends("10.0.0.9:4000", "10.0.0.2:80"));
        let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        let expected = [&signature[..], &[0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 9, 0x13, 0x88, 0x01, 0xbb]].concat();
        assert_eq!(v2(ends("10.0.0.1:5000", "10.0.0.9:443")), expected);
        let six = v2(ends("[fd00::1]:5000", "[::1]:443"));
        assert_eq!((six.len(), &six[12..18]), (16 + 36, &[0x21, 0x21, 0, 36, 0xfd, 0][..]));
        assert_eq!(v2(None), [&signature[..], &[0x20, 0, 0, 0]].concat());
    }
}
