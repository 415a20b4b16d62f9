//! x-envoy-* control headers: honoured from internal callers, removed from others.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::OnceLock;

use super::client_address::{append_address, text};
use super::{Client, Overrides};
use crate::http::head::{Known, RequestHead};

/// Never believed from outside: what steers retries, time-outs and tracing, and what would forge the log's path or a span's
/// name (Envoy lets those two pass outside of edge mode; the latter passes here where there are spans, to be consumed).
const CONTROL: &[&str] = &[
    "x-envoy-decorator-operation",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-path",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
];

/// Further ones that clients of an edge proxy cannot know.
const EDGE: &[&str] = &["x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node", "x-envoy-original-host"];

/// Applies the trust rules; what an internal caller asks for is returned and gone from the head.
pub(super) fn apply(
    head: &mut RequestHead,
    client: &Client,
    edge: bool,
    has_envoy_headers: bool,
    believes_decorator: bool,
) -> Option<Box<Overrides>> {
    if client.internal {
        head.headers.push_known(Known::XEnvoyInternal, b"true");
        return if has_envoy_headers { Overrides::take(head) } else { None };
    }
    if has_envoy_headers {
        head.headers.retain(|id, name, _| {
            let control = matches!(
                id,
                Known::Other | Known::XEnvoyOriginalPath | Known::XEnvoyOriginalHost | Known::XEnvoyExpectedRqTimeoutMs
            ) && name.starts_with(b"x-envoy-")
                && (contains(CONTROL, name) || edge && contains(EDGE, name))
                && !(believes_decorator && name == b"x-envoy-decorator-operation");
            !control
        });
    }
    if edge {
        head.headers.set(Known::XEnvoyExternalAddress, &text(client.address.ip()));
    }
    None
}

/// Whether the caller wants its request traced; the response then tells the id.
pub(super) fn forces_trace(head: &RequestHead) -> bool {
    head.headers.iter().any(|(name, _)| name == b"x-envoy-force-trace")
}

fn contains(names: &[&str], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_bytes() == name)
}

/// Makes the head of a mirrored request from a copy of the primary one: `-shadow` in the host, unless that is to stay, and the
/// marks of a request that this proxy sends on its own account.
pub fn mirror_request(head: &mut RequestHead, keeps_host: bool) {
    if !keeps_host {
        let host = head.authority();
        let colon = host.iter().rposition(|b| *b == b':').filter(|colon| !host[*colon..].contains(&b']'));
        let port = colon.unwrap_or(host.len());
        let shadow = [&host[..port], b"-shadow", &host[port..]].concat();
        head.set_authority(&shadow);
    }
    own_request(head, Some(local_address()));
}

/// The address that this machine calls others from, which Envoy puts into x-forwarded-for of requests of its own.
fn local_address() -> IpAddr {
    static ADDRESS: OnceLock<IpAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        // Connecting a datagram socket asks the routing table and sends nothing; the address is one for documentation.
        let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        });
        routed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
    })
}

/// The marks of a request that this proxy sends on its own account; `local` is its address, for x-forwarded-for.
pub fn own_request(head: &mut RequestHead, local: Option<IpAddr>) {
    head.headers.set(Known::XEnvoyInternal, b"true");
    if let Some(local) = local {
        append_address(head, local);
    }
}
