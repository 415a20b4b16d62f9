//! What routes, virtual hosts and route configurations say to filters (Envoy `typed_per_filter_config`).

use std::sync::Arc;

use serde::Serialize;

use super::{ExtAuthzOverride, JwtPerRoute, LocalRateLimit, Rbac};

/// By the name that the filter has in its chain; another filter of the same type is not meant.
pub type FilterOverrides = Vec<(String, FilterOverride)>;

/// What one filter is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum FilterOverride {
    /// It is passed over (`envoy.config.route.v3.FilterConfig`).
    Disabled,
    /// Replaces the rules of a JWT filter (`PerRouteConfig`).
    Jwt(JwtPerRoute),
    /// Replaces the rules of an RBAC filter (`RBACPerRoute`).
    Rbac(Arc<Rbac>),
    /// What an external authorisation filter does here.
    ExtAuthz(Arc<ExtAuthzOverride>),
    /// Replaces a local rate limit filter, buckets included.
    LocalRateLimit(Arc<LocalRateLimit>),
}
