//! x-envoy-* control headers: honoured from internal callers, removed from others.

use std::net::IpAddr;

use super::client_address::{append_address, text};
use super::{Client, Overrides};
use crate::http::head::{Known, RequestHead};

/// Never believed from outside: what steers retries, time-outs and tracing, and what would forge the log's path or a span's
/// name (Envoy lets those two pass outside of edge mode).
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
];

/// Further ones that clients of an edge proxy cannot know.
const EDGE: &[&str] = &["x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node", "x-envoy-original-host"];

/// Applies the trust rules; what an internal caller asks for is returned and gone from the head.
pub(super) fn apply(head: &mut RequestHead, client: &Client, edge: bool, has_envoy_headers: bool) -> Option<Box<Overrides>> {
    if client.internal {
        head.headers.push_known(Known::XEnvoyInternal, b"true");
        return if has_envoy_headers { Overrides::take(head) } else { None };
    }
    if has_envoy_headers {
        head.headers.retain(|id, name, _| {
            let control = matches!(id, Known::Other | Known::XEnvoyOriginalPath | Known::XEnvoyOriginalHost)
                && name.starts_with(b"x-envoy-")
                && (contains(CONTROL, name) || edge && contains(EDGE, name));
            !control
        });
    }
    if edge {
        head.headers.set(Known::XEnvoyExternalAddress, &text(client.address.ip()));
    }
    None
}

fn contains(names: &[&str], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_bytes() == name)
}

/// Makes the head of a mirrored request from a copy of the primary one: `-shadow` in the host, and the marks of a request that
/// this proxy sends on its own account. `local` is this proxy's address.
pub fn mirror_request(head: &mut RequestHead, local: IpAddr) {
    let host = head.authority();
    let port = host.iter().rposition(|b| *b == b':').filter(|colon| !host[*colon..].contains(&b']')).unwrap_or(host.len());
    let shadow = [&host[..port], b"-shadow", &host[port..]].concat();
    head.set_authority(&shadow);
    own_request(head, Some(local));
}

/// The marks of a request that this proxy sends on its own account; `local` is its address, for x-forwarded-for.
pub fn own_request(head: &mut RequestHead, local: Option<IpAddr>) {
    head.headers.set(Known::XEnvoyInternal, b"true");
    if let Some(local) = local {
        append_address(head, local);
    }
}
