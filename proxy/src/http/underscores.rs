//! Request headers with an underscore in their name, which applications take for one with a dash.

use super::head::Headers;
use crate::config::HeadersWithUnderscores;

/// Applies `rule`; `false` when the request must be refused.
///
/// <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/core/v3/protocol.proto#envoy-v3-api-enum-config-core-v3-httpprotocoloptions-headerswithunderscoresaction>
pub(super) fn apply(rule: HeadersWithUnderscores, headers: &mut Headers) -> bool {
    match rule {
        HeadersWithUnderscores::Allow => true,
        HeadersWithUnderscores::RejectRequest => !headers.iter().any(|(name, _)| name.contains(&b'_')),
        HeadersWithUnderscores::DropHeader => {
            headers.retain(|_, name, _| !name.contains(&b'_'));
            true
        }
    }
}
