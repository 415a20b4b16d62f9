//! External authorisation (Envoy `extensions.filters.http.ext_authz.v3`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{Fraction, HeaderValueOption, MetadataMatcher, StringMatcher};

/// One `envoy.filters.http.ext_authz` filter: a service is asked about every request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent field of Envoy's message")]
pub struct ExtAuthz {
    /// Name of the filter in its chain, by which routes override it.
    pub name: String,
    /// Who is asked.
    pub service: AuthzService,
    /// How long a check may take (Envoy: 200 ms).
    pub timeout: Duration,
    /// A request passes when the service cannot be asked or answers 5xx.
    pub failure_mode_allow: bool,
    /// Such a request carries `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_mode_allow_header_add: bool,
    /// Status of a request that is refused for an error of the service (Envoy: 403).
    pub status_on_error: u16,
    /// The body goes along, up to a limit.
    pub request_body: Option<AuthzBody>,
    /// The route is chosen again after the service has changed the request.
    pub clear_route_cache: bool,
    /// Headers whose name matches are told; `None` tells all to a gRPC service and none to an HTTP one.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers whose name matches are not told, whatever else says so.
    pub disallowed_headers: Vec<StringMatcher>,
    /// A gRPC service gets headers as a list of bytes instead of a map of text.
    pub encode_raw_headers: bool,
    /// A gRPC service is told the caller's certificate.
    pub include_peer_certificate: bool,
    /// A gRPC service is told the server name that the caller asked for.
    pub include_tls_session: bool,
    /// Filters whose dynamic metadata a gRPC service is told.
    pub metadata_namespaces: Vec<String>,
    /// Share of requests that are checked.
    pub enabled: Fraction,
    /// Only requests with this dynamic metadata are checked; Istio's CUSTOM policies say so.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// What is not checked is refused.
    pub deny_at_disable: bool,
    /// An answer with an invalid header is refused with 500, instead of 503 as what it makes of the request.
    pub validate_mutations: bool,
}

/// How much of the body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AuthzBody {
    /// At most this many bytes are held.
    pub max_bytes: u32,
    /// A longer body is cut for the check; otherwise it is answered 413.
    pub allow_partial: bool,
    /// A gRPC service gets bytes instead of text.
    pub pack_as_bytes: bool,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum AuthzService {
    /// A service that answers 200 or not.
    Http(HttpAuthz),
    /// `envoy.service.auth.v3.Authorization`.
    Grpc(GrpcAuthz),
}

impl AuthzService {
    /// The cluster that is asked.
    pub fn cluster(&self) -> &str {
        match self {
            Self::Http(service) => &service.cluster,
            Self::Grpc(service) => &service.cluster,
        }
    }
}

/// An HTTP authorisation service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HttpAuthz {
    /// The cluster.
    pub cluster: String,
    /// Put before the path of the request.
    pub path_prefix: String,
    /// Replaces the path of the request.
    pub path_override: String,
    /// Set on the check; values are formats.
    pub headers_to_add: Vec<HeaderValueOption>,
    /// Headers of a 200 that replace the request's.
    pub upstream_headers: Vec<StringMatcher>,
    /// Headers of a 200 that are added to the request's.
    pub upstream_headers_to_append: Vec<StringMatcher>,
    /// Headers of a refusal that the caller gets, beside `location` and `www-authenticate`; empty is all of them.
    pub client_headers: Vec<StringMatcher>,
    /// Headers of a 200 that are added to the response.
    pub client_headers_on_success: Vec<StringMatcher>,
    /// Headers of an answer that become dynamic metadata.
    pub metadata_headers: Vec<StringMatcher>,
}

/// A gRPC authorisation service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GrpcAuthz {
    /// The cluster.
    pub cluster: String,
    /// `:authority` of the check; empty is the cluster's name.
    pub authority: String,
    /// Headers of the check.
    pub initial_metadata: Vec<(String, String)>,
}

/// What a route says to the filter (`ExtAuthzPerRoute`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExtAuthzOverride {
    /// Told to a gRPC service. Keys of a virtual host or a configuration add to those of the route.
    pub context_extensions: BTreeMap<String, String>,
    /// The body does not go along.
    pub disable_request_body: bool,
    /// Replaces the filter's own limit.
    pub request_body: Option<AuthzBody>,
}
