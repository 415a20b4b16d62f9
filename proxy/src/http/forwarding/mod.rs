//! What the connection manager does to heads on their way through: who the caller is, which headers are believed,
//! which stay on this hop (Envoy `ConnectionManagerUtility`).
//!
//! [`prepare_request`] runs after [`super::path::normalize`] and before routing, [`prepare_response`] on everything that goes
//! downstream. A plain request costs two walks over its headers and no allocation.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers>

mod client_address;
mod client_cert;
mod hop_by_hop;
mod internal;
mod overrides;
mod request_id;
mod response;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use internal::{mirror_request, own_request};
pub use overrides::Overrides;
pub use response::{Asked, prepare_response, set_upstream_service_time};

use crate::config::{ForwardClientCert, HttpConnectionManager, ServerHeaderTransformation, TrafficDirection};
use crate::flags::ResponseFlags;
use crate::http::head::{Known, RequestHead, Scheme, Version};
use crate::stream_info::ConnectionInfo;

/// The rules of a connection manager, compiled.
#[derive(Clone, Debug)]
pub struct Forwarding {
    use_remote_address: bool,
    xff_num_trusted_hops: usize,
    skip_xff_append: bool,
    append_x_forwarded_port: bool,
    internal_ranges: Box<[ipnet::IpNet]>,
    generate_request_id: bool,
    preserve_external_request_id: bool,
    always_set_request_id_in_response: bool,
    forward_client_cert: ForwardClientCert,
    /// The caller names the span of its request, where there are spans.
    believes_decorator: bool,
    server_name: Box<[u8]>,
    server_header: ServerHeaderTransformation,
}

impl From<&HttpConnectionManager> for Forwarding {
    fn from(hcm: &HttpConnectionManager) -> Self {
        Self {
            use_remote_address: hcm.use_remote_address,
            xff_num_trusted_hops: hcm.xff_num_trusted_hops as usize,
            skip_xff_append: hcm.skip_xff_append,
            append_x_forwarded_port: hcm.append_x_forwarded_port,
            internal_ranges: hcm.internal_ranges.as_slice().into(),
            generate_request_id: hcm.generate_request_id,
            preserve_external_request_id: hcm.preserve_external_request_id,
            always_set_request_id_in_response: hcm.always_set_request_id_in_response,
            forward_client_cert: hcm.forward_client_cert,
            believes_decorator: hcm.tracing.is_some() && hcm.direction == TrafficDirection::Inbound && !hcm.use_remote_address,
            server_name: hcm.server_name.as_bytes().into(),
            server_header: hcm.server_header,
        }
    }
}

impl Forwarding {
    fn is_internal(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.internal_ranges.iter().any(|range| range.contains(&address))
    }
}

/// What is known of a request once its head is prepared.
#[derive(Debug)]
pub struct Prepared {
    /// The client: from x-forwarded-for where that is trusted, else the peer (`%DOWNSTREAM_REMOTE_ADDRESS%`).
    pub remote: SocketAddr,
    /// The caller is trusted: its x-envoy-* control headers count.
    pub internal: bool,
    /// The request asks for an upgrade. Its Connection and Upgrade are still there; whether it may pass is for the route
    /// to say ([`super::route::ForwardRoute::allows_upgrade`]).
    pub upgrade: bool,
    /// What an internal caller asks for; the headers are gone from the head.
    pub overrides: Option<Box<Overrides>>,
    /// Routes may be looked for: Envoy has none for a request with an empty x-forwarded-proto.
    pub routable: bool,
    /// An internal caller wants to know the request's id (`x-envoy-force-trace`).
    pub tells_request_id: bool,
}

/// A request that is answered without being routed. The connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status.
    pub status: u16,
    /// Response flag. With [`ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR`] the log shows nothing of the head, as for a head
    /// that could not be parsed.
    pub flag: ResponseFlags,
    /// Response code details.
    pub details: &'static str,
    /// Body, `text/plain`.
    pub body: &'static str,
}

impl Refusal {
    pub(super) const MISSING_HOST: Self =
        Self { status: 400, flag: ResponseFlags::NONE, details: "missing_host_header", body: "" };
    const CONNECTION_HEADER: Self = Self {
        status: 400,
        flag: ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
        details: "http1.connection_header_rejected",
        body: "Bad Request",
    };
}

/// Makes a request head ready for routing. `client_cert` is the x-forwarded-client-cert element of the peer
/// ([`crate::tls::forwarded_client_cert`]), made once per connection; it is not used on connections without a client certificate.
///
/// # Errors
/// When the request names no host, or its Connection header nominates what it must not.
pub fn prepare_request(
    head: &mut RequestHead,
    connection: &ConnectionInfo,
    client_cert: &[u8],
    forwarding: &Forwarding,
) -> Result<Prepared, Refusal> {
    if !head.has_authority() {
        return Err(Refusal::MISSING_HOST);
    }
    let mut seen = Seen::sweep(head);
    let upgrade = if seen.has(Known::Connection) || seen.has(Known::Upgrade) || seen.has(Known::Te) {
        let upgrade = hop_by_hop::sanitize(head)?;
        // Nominated headers may be gone.
        seen = Seen::sweep(head);
        upgrade
    } else {
        false
    };
    seen.join_repeated(head);

    let client = client_address::determine(head, connection, forwarding, &seen);
    if !seen.has(Known::XForwardedProto) && !forwarding.use_remote_address {
        head.headers.push_known(Known::XForwardedProto, own_scheme(connection).as_str().as_bytes());
    }
    let routable =
        !seen.has(Known::XForwardedProto) || head.headers.get(Known::XForwardedProto).is_some_and(|xfp| !xfp.is_empty());
    if head.version != Version::Http2 {
        head.scheme = forwarded_scheme(head).unwrap_or(own_scheme(connection));
    }
    let edge = forwarding.use_remote_address && !client.internal;
    let overrides = internal::apply(head, &client, edge, seen.envoy, forwarding.believes_decorator);
    let tells_request_id = client.internal && seen.envoy && internal::forces_trace(head);

    if forwarding.generate_request_id {
        let keep = forwarding.preserve_external_request_id || !edge;
        if !seen.has(Known::XRequestId) {
            head.headers.push_known(Known::XRequestId, &request_id::generate());
        } else if !keep || head.headers.get(Known::XRequestId).is_none_or(<[u8]>::is_empty) {
            head.headers.set(Known::XRequestId, &request_id::generate());
        }
    }
    client_cert::apply(head, connection, client_cert, forwarding.forward_client_cert, seen.has(Known::XForwardedClientCert));
    let (remote, internal) = (client.address, client.internal);
    Ok(Prepared { remote, internal, upgrade, overrides, routable, tells_request_id })
}

/// Who sent a request.
struct Client {
    address: SocketAddr,
    internal: bool,
}

fn own_scheme(connection: &ConnectionInfo) -> Scheme {
    if connection.tls_version.is_some() { Scheme::Https } else { Scheme::Http }
}

/// HTTP/1 has no scheme of its own: Envoy believes x-forwarded-proto where it is a valid one.
fn forwarded_scheme(head: &RequestHead) -> Option<Scheme> {
    match head.headers.get(Known::XForwardedProto)? {
        proto if proto.eq_ignore_ascii_case(b"https") => Some(Scheme::Https),
        proto if proto.eq_ignore_ascii_case(b"http") => Some(Scheme::Http),
        _ => None,
    }
}

/// Which headers a head has, learnt in one walk.
#[derive(Clone, Copy, Default)]
struct Seen {
    known: u64,
    repeated: u64,
    /// x-envoy-* headers beside those that have an id of their own.
    envoy: bool,
}

impl Seen {
    /// What Envoy keeps as one value each, as far as we know the names.
    const JOINED: [Known; 16] = [
        Known::Accept,
        Known::AccessControlRequestMethod,
        Known::Authorization,
        Known::ContentType,
        Known::Expect,
        Known::GrpcTimeout,
        Known::Origin,
        Known::UserAgent,
        Known::Via,
        Known::XForwardedFor,
        Known::XForwardedProto,
        Known::XForwardedHost,
        Known::XForwardedPort,
        Known::XForwardedClientCert,
        Known::XRequestId,
        Known::XEnvoyExternalAddress,
    ];

    /// Removes what never leaves this hop and notes what else is there.
    fn sweep(head: &mut RequestHead) -> Self {
        let mut seen = Self::default();
        head.headers.retain(|id, name, _| {
            let bit = Self::bit(id);
            match id {
                Known::KeepAlive | Known::ProxyConnection | Known::TransferEncoding | Known::XEnvoyInternal => return false,
                Known::XEnvoyOriginalPath | Known::XEnvoyOriginalHost | Known::XEnvoyExpectedRqTimeoutMs => seen.envoy = true,
                Known::Other => seen.envoy |= name.starts_with(b"x-envoy-"),
                _ => seen.repeated |= seen.known & bit,
            }
            seen.known |= bit;
            true
        });
        seen
    }

    fn bit(id: Known) -> u64 {
        1u64.checked_shl(id as u32).unwrap_or(0)
    }

    fn has(&self, id: Known) -> bool {
        self.known & Self::bit(id) != 0
    }

    /// Repeated headers of these names become one line with a comma, as everything that reads them expects.
    fn join_repeated(&self, head: &mut RequestHead) {
        if self.repeated == 0 {
            return;
        }
        for id in Self::JOINED {
            if self.repeated & Self::bit(id) != 0 {
                let joined = head.headers.get_all(id).collect::<Vec<_>>().join(&b","[..]);
                head.headers.set(id, &joined);
            }
        }
    }
}

const _: () = assert!((Known::Other as u32) < 64, "Seen has one bit for each known header");
