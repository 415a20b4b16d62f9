//! The HTTP connection manager (Envoy `extensions.filters.network.http_connection_manager.v3`).

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{
    AccessLog, ExtAuthz, IstioStats, Jwks, JwtAuthn, LocalRateLimit, PeerMetadata, Rbac, RouteConfiguration, Tracing,
    TrafficDirection, UpgradeType,
};

/// Which HTTP version the downstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Codec {
    /// ALPN under TLS; the HTTP/2 preface in plaintext.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only (prior knowledge in plaintext).
    Http2,
}

/// Where the routes come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RouteSource {
    /// Written in the listener.
    Inline(Arc<RouteConfiguration>),
    /// By name from [`super::Snapshot::routes`] (RDS). While it is missing every request gets `404 NR`.
    Named(String),
}

/// What happens to the `server` response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ServerHeaderTransformation {
    /// Always ours.
    Overwrite,
    /// Ours when the upstream sent none.
    AppendIfAbsent,
    /// The upstream's, or none.
    PassThrough,
}

/// Envoy `path_with_escaped_slashes_action` (`%2F`, `%5C`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum EscapedSlashesAction {
    /// Forward as they are.
    KeepUnchanged,
    /// 400.
    RejectRequest,
    /// Decode and answer 307 to the decoded path.
    UnescapeAndRedirect,
    /// Decode and go on.
    UnescapeAndForward,
}

/// Envoy `headers_with_underscores_action`: applications that fold `_` and `-` take `x_user` for `x-user`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum HeadersWithUnderscores {
    /// Forward them.
    Allow,
    /// 400 on HTTP/1, a stream reset on HTTP/2.
    RejectRequest,
    /// Remove them before filters see the request.
    DropHeader,
}

/// What happens to `x-forwarded-client-cert` on mTLS connections; it is always removed on others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ForwardClientCert {
    /// Remove it.
    Sanitize,
    /// Keep the caller's as it is.
    ForwardOnly,
    /// Keep the caller's and append an element for the peer.
    AppendForward,
    /// Replace the caller's with an element for the peer.
    SanitizeSet,
    /// Keep it even on connections without a client certificate.
    AlwaysForwardOnly,
}

/// Which facts of the peer certificate an `x-forwarded-client-cert` element carries besides By, Hash and URI-of-By.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SetCurrentClientCertDetails {
    /// `Subject="…"`, quoted even when empty.
    pub subject: bool,
    /// `Cert="…"`: the leaf, PEM, percent-encoded.
    pub cert: bool,
    /// `Chain="…"`: the whole chain.
    pub chain: bool,
    /// One `DNS=` for each DNS SAN.
    pub dns: bool,
    /// One `URI=` for each URI SAN.
    pub uri: bool,
}

/// Options of the HTTP/1 codec.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Http1Options {
    /// Accept HTTP/1.0 (otherwise 426).
    pub accept_http_10: bool,
    /// Host of an HTTP/1.0 request that has none.
    pub default_host_for_http_10: Option<String>,
    /// Forward trailers of chunked bodies.
    pub enable_trailers: bool,
    /// Keep the spelling of header names.
    pub preserve_case: bool,
    /// Title-Case header names.
    pub proper_case: bool,
    /// Accept CL together with TE: chunked (TE wins). Never a mesh default.
    pub allow_chunked_length: bool,
}

/// Options of the HTTP/2 codec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Http2Options {
    /// Streams a peer may have open on one connection (Envoy 1.40 advertises 1024).
    pub max_concurrent_streams: u32,
    /// Bytes a peer may send on one stream before we read (Envoy 16 MiB; ours bounds memory).
    pub initial_stream_window_size: u32,
    /// The same for the connection.
    pub initial_connection_window_size: u32,
    /// Accept CONNECT with `:protocol` (RFC 8441).
    pub allow_connect: bool,
    /// Answer a bad request with a stream reset instead of closing the connection.
    pub override_stream_error_on_invalid_http_message: bool,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window_size: 256 * 1024,
            initial_connection_window_size: 1024 * 1024,
            allow_connect: false,
            override_stream_error_on_invalid_http_message: false,
        }
    }
}

/// Effect of Istio's `istio.alpn` filter: the ALPN offered upstream by HTTP version, where the cluster's own offer says `istio`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlpnOverride {
    /// For HTTP/1.1 upstream.
    pub http1: Vec<String>,
    /// For HTTP/2 upstream.
    pub http2: Vec<String>,
}

/// One HTTP filter, in the order of the chain. The router is implied at the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum HttpFilter {
    /// `envoy.filters.http.rbac`.
    Rbac(Arc<Rbac>),
    /// `envoy.filters.http.ext_authz`.
    ExtAuthz(Arc<ExtAuthz>),
    /// `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `envoy.filters.http.jwt_authn`.
    JwtAuthn(Arc<JwtAuthn>),
    /// `envoy.filters.http.fault`: makes the routes' faults effective.
    Fault,
    /// `envoy.filters.http.cors`: makes the routes' policies effective.
    Cors,
    /// `istio.alpn`.
    Alpn(AlpnOverride),
    /// `istio.metadata_exchange`.
    PeerMetadata(Arc<PeerMetadata>),
}

impl HttpFilter {
    /// Whether it calls a cluster itself.
    pub fn names_cluster(&self) -> bool {
        match self {
            Self::ExtAuthz(_) => true,
            Self::JwtAuthn(jwt) => jwt.providers.values().any(|provider| matches!(provider.jwks, Jwks::Remote(_))),
            Self::Rbac(_) | Self::LocalRateLimit(_) | Self::Fault | Self::Cors | Self::Alpn(_) | Self::PeerMetadata(_) => false,
        }
    }
}

/// Envoy `HttpConnectionManager`. Durations of `None` are off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpConnectionManager {
    /// Prefix for statistics.
    pub stat_prefix: String,
    /// Inbound or outbound, as the listener.
    pub direction: TrafficDirection,
    /// Which HTTP version is spoken.
    pub codec: Codec,
    /// The routes.
    pub routes: RouteSource,
    /// How long they are waited for (`initial_fetch_timeout` of RDS), where that is configured.
    pub initial_fetch_timeout: Option<Duration>,
    /// `server` header and `Via` identity; Envoy's default is `envoy`, Istio's inbound `istio-envoy`.
    pub server_name: String,
    /// What happens to the upstream's `server`.
    pub server_header: ServerHeaderTransformation,
    /// In order.
    pub filters: Vec<HttpFilter>,
    /// Lines per request.
    pub access_log: Vec<AccessLog>,
    /// Which requests are traced; `None` is none.
    pub tracing: Option<Arc<Tracing>>,
    /// Istio's metrics; `None` records none.
    pub stats: Option<Arc<IstioStats>>,
    /// Dot segments, backslashes and unreserved escapes are normalised (mesh BASE).
    pub normalize_path: bool,
    /// `//` becomes `/` (mesh MERGE_SLASHES).
    pub merge_slashes: bool,
    /// What is done about `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashesAction,
    /// The caller's address is trusted as the client (edge mode).
    pub use_remote_address: bool,
    /// Proxies in front whose x-forwarded-for entries are trusted.
    pub xff_num_trusted_hops: u32,
    /// Do not append the caller to x-forwarded-for in edge mode.
    pub skip_xff_append: bool,
    /// Set x-forwarded-port to the port that the caller connected to, in edge mode.
    pub append_x_forwarded_port: bool,
    /// Callers in these ranges are internal: their x-envoy-* control headers are honoured.
    pub internal_ranges: Vec<ipnet::IpNet>,
    /// Make an x-request-id where there is none.
    pub generate_request_id: bool,
    /// Keep an x-request-id from outside in edge mode.
    pub preserve_external_request_id: bool,
    /// Put x-request-id on responses.
    pub always_set_request_id_in_response: bool,
    /// Rule for x-forwarded-client-cert.
    pub forward_client_cert: ForwardClientCert,
    /// What its element carries.
    pub client_cert_details: SetCurrentClientCertDetails,
    /// No activity on a stream.
    pub stream_idle_timeout: Option<Duration>,
    /// From the first byte of a request to its end.
    pub request_timeout: Option<Duration>,
    /// From the first byte of a request to the end of its head.
    pub request_headers_timeout: Option<Duration>,
    /// Connection without a stream (Envoy's default: one hour).
    pub idle_timeout: Option<Duration>,
    /// Life of a connection before it drains.
    pub max_connection_duration: Option<Duration>,
    /// Life of a stream.
    pub max_stream_duration: Option<Duration>,
    /// Requests on a connection before it is closed.
    pub max_requests_per_connection: Option<u32>,
    /// From GOAWAY or `connection: close` to the close (Envoy: 5 s).
    pub drain_timeout: Duration,
    /// Linger after our close, so that the peer reads the last answer (Envoy: 1 s).
    pub delayed_close_timeout: Duration,
    /// Head size (Envoy: 60 KiB).
    pub max_request_headers_bytes: u32,
    /// Headers in a head (Envoy: 100).
    pub max_headers_count: u32,
    /// Request headers with an underscore in their name.
    pub headers_with_underscores: HeadersWithUnderscores,
    /// Upgrades that are allowed, beside those of a route.
    pub upgrades: Vec<UpgradeType>,
    /// Relay `100 Continue` from the upstream instead of answering it here.
    pub proxy_100_continue: bool,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// `x-envoy-*` response headers are left out (`suppress_envoy_headers` of the router).
    pub suppress_envoy_headers: bool,
    /// Requests whose value of one of these `x-envoy-*` headers cannot be read are answered 400 (`strict_check_headers`).
    pub strict_check_headers: Vec<String>,
    /// This is an HTTP proxy listener: absolute-form and CONNECT requests of applications that set `http_proxy`.
    pub http_proxy: bool,
}

impl HttpConnectionManager {
    /// Envoy's defaults for everything that Istio leaves alone, with the given routes.
    pub fn new(stat_prefix: impl Into<String>, direction: TrafficDirection, routes: RouteSource) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            direction,
            codec: Codec::Auto,
            routes,
            initial_fetch_timeout: None,
            server_name: "envoy".to_owned(),
            server_header: ServerHeaderTransformation::Overwrite,
            filters: Vec::new(),
            access_log: Vec::new(),
            tracing: None,
            stats: None,
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashesAction::KeepUnchanged,
            use_remote_address: false,
            xff_num_trusted_hops: 0,
            skip_xff_append: false,
            append_x_forwarded_port: false,
            internal_ranges: Vec::new(),
            generate_request_id: true,
            preserve_external_request_id: false,
            always_set_request_id_in_response: false,
            forward_client_cert: ForwardClientCert::Sanitize,
            client_cert_details: SetCurrentClientCertDetails::default(),
            stream_idle_timeout: Some(Duration::from_secs(300)),
            request_timeout: None,
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: None,
            drain_timeout: Duration::from_secs(5),
            delayed_close_timeout: Duration::from_secs(1),
            max_request_headers_bytes: 60 * 1024,
            max_headers_count: 100,
            headers_with_underscores: HeadersWithUnderscores::Allow,
            upgrades: Vec::new(),
            proxy_100_continue: false,
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            suppress_envoy_headers: false,
            strict_check_headers: Vec::new(),
            http_proxy: false,
        }
    }
}
