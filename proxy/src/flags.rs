//! Response flags: Envoy's two-letter words for what went wrong.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#response-flags>

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of response flags, rendered in Envoy's order, `-` when empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($bit:literal $name:ident $short:literal $doc:literal;)*) => {
        impl ResponseFlags {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*
            /// Every flag with its short name, in the order in which Envoy writes them.
            pub const TABLE: &'static [(Self, &'static str)] = &[$((Self::$name, $short),)*];
        }
    };
}

flags! {
    0 FAILED_LOCAL_HEALTH_CHECK "LH" "A health check of ours failed.";
    1 NO_HEALTHY_UPSTREAM "UH" "No endpoint of the cluster is usable.";
    2 UPSTREAM_REQUEST_TIMEOUT "UT" "The route's time-out ran out.";
    3 LOCAL_RESET "LR" "We reset the connection.";
    4 UPSTREAM_REMOTE_RESET "UR" "The upstream reset the stream.";
    5 UPSTREAM_CONNECTION_FAILURE "UF" "No connection to the upstream.";
    6 UPSTREAM_CONNECTION_TERMINATION "UC" "The upstream closed the connection.";
    7 UPSTREAM_OVERFLOW "UO" "A circuit breaker is open.";
    8 NO_ROUTE_FOUND "NR" "No route, or no filter chain.";
    9 DELAY_INJECTED "DI" "A fault delayed the request.";
    10 FAULT_INJECTED "FI" "A fault answered the request.";
    11 RATE_LIMITED "RL" "The rate limit is reached.";
    12 UNAUTHORIZED_EXTERNAL_SERVICE "UAEX" "The external authorisation service refused.";
    13 RATE_LIMIT_SERVICE_ERROR "RLSE" "The rate limit service failed.";
    14 DOWNSTREAM_CONNECTION_TERMINATION "DC" "The caller went away.";
    15 UPSTREAM_RETRY_LIMIT_EXCEEDED "URX" "All retries failed, or all TCP connect attempts.";
    16 STREAM_IDLE_TIMEOUT "SI" "Nothing happened on the stream for too long.";
    17 INVALID_ENVOY_REQUEST_HEADERS "IH" "A strictly checked x-envoy header is bad.";
    18 DOWNSTREAM_PROTOCOL_ERROR "DPE" "The caller broke the protocol.";
    19 UPSTREAM_MAX_STREAM_DURATION "UMSDR" "The stream lived too long.";
    20 RESPONSE_FROM_CACHE "RFCF" "Answered from a cache filter.";
    21 NO_FILTER_CONFIG "NFCF" "Filter configuration has not arrived.";
    22 DURATION_TIMEOUT "DT" "The connection lived too long.";
    23 UPSTREAM_PROTOCOL_ERROR "UPE" "The upstream broke the protocol.";
    24 NO_CLUSTER_FOUND "NC" "The route's cluster does not exist.";
    25 OVERLOAD_MANAGER "OM" "We are overloaded.";
    26 DNS_FAILURE "DF" "The name did not resolve.";
    27 DROP_OVERLOAD "UDO" "Dropped on the cluster's drop_overload.";
    28 DOWNSTREAM_REMOTE_RESET "DR" "The caller reset the stream.";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any flag of `other` is set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flag with this short name.
    pub fn from_short_name(name: &str) -> Option<Self> {
        Self::TABLE.iter().find(|(_, short)| *short == name).map(|(flag, _)| *flag)
    }

    /// The raw bits, as a compact key.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Short names in the order of an HTTP log: Envoy decides about a retry, URX or UO, before it notes the last failure.
    pub fn short_names(self) -> impl Iterator<Item = &'static str> {
        let early = Self(self.0 & (Self::UPSTREAM_RETRY_LIMIT_EXCEEDED | Self::UPSTREAM_OVERFLOW).0);
        let urx = early.intersects(Self::UPSTREAM_RETRY_LIMIT_EXCEEDED).then_some("URX");
        let uo = early.intersects(Self::UPSTREAM_OVERFLOW).then_some("UO");
        let rest = Self(self.0 & !early.0);
        let rest = Self::TABLE.iter().filter(move |(flag, _)| rest.intersects(*flag)).map(|(_, short)| *short);
        urx.into_iter().chain(uo).chain(rest)
    }

    /// Short names in the order of a TCP log, where URX comes after UF.
    pub fn short_names_tcp(self) -> impl Iterator<Item = &'static str> {
        Self::TABLE.iter().filter(move |(flag, _)| self.intersects(*flag)).map(|(_, short)| *short)
    }
}

impl BitOr for ResponseFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, name) in self.short_names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_render_in_the_order_of_their_layer() {
        let both = ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
        assert_eq!(both.to_string(), "URX,UF");
        assert_eq!(both.short_names_tcp().collect::<Vec<_>>(), ["UF", "URX"]);
        let refused = ResponseFlags::UPSTREAM_CONNECTION_TERMINATION | ResponseFlags::UPSTREAM_OVERFLOW;
        assert_eq!(refused.to_string(), "UO,UC", "a retry that the breaker refused");
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!(ResponseFlags::from_short_name("NR"), Some(ResponseFlags::NO_ROUTE_FOUND));
    }
}
