//! What a service is told about a request.

use std::collections::BTreeMap;

use super::super::exchange::Exchange;
use super::super::head::Known;
use super::super::request_body::RequestBody;
use crate::config::{self, AuthzBody, ExtAuthzOverride, StringMatcher};

/// Says whether the body was cut.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// One request to be decided about.
pub(super) struct Check<'a> {
    pub(super) exchange: &'a Exchange,
    pub(super) body: &'a RequestBody,
    pub(super) buffer: Option<AuthzBody>,
    pub(super) config: &'a config::ExtAuthz,
    pub(super) told: Option<&'a ExtAuthzOverride>,
}

impl Check<'_> {
    /// The body, cut to its limit; empty when none goes along.
    pub(super) fn body(&self) -> Vec<u8> {
        let Some(buffer) = self.buffer else { return Vec::new() };
        let max = buffer.max_bytes as usize;
        let mut bytes = Vec::with_capacity(self.body.held_bytes().min(max));
        for piece in self.body.held() {
            bytes.extend_from_slice(&piece[..piece.len().min(max - bytes.len())]);
        }
        bytes
    }

    /// The value of [`PARTIAL_BODY`], where a body goes along.
    pub(super) fn partial(&self) -> Option<&'static str> {
        let buffer = self.buffer?;
        Some(if self.body.held_bytes() > buffer.max_bytes as usize { "true" } else { "false" })
    }

    /// Whether a service may see this header. `default` is for filters that do not say.
    pub(super) fn tells(&self, name: &[u8], default: bool) -> bool {
        let allowed = self.config.allowed_headers.as_ref().map_or(default, |patterns| matches(patterns, name));
        allowed && !matches(&self.config.disallowed_headers, name)
    }

    /// Headers that `tells` lets through, repeated ones joined; a map as it goes to a service.
    pub(super) fn headers(&self, tells: impl Fn(Known, &[u8]) -> bool) -> BTreeMap<&[u8], Vec<u8>> {
        let mut map: BTreeMap<&[u8], Vec<u8>> = BTreeMap::new();
        for (name, value) in self.exchange.request.headers.iter() {
            if tells(Known::of(name), name) {
                let all = map.entry(name);
                all.and_modify(|all| {
                    all.push(b',');
                    all.extend_from_slice(value);
                })
                .or_insert_with(|| value.to_vec());
            }
        }
        map
    }
}

pub(super) fn matches(patterns: &[StringMatcher], name: &[u8]) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}
