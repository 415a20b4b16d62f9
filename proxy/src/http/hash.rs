//! What a request is hashed by, for ring hash and Maglev.

use std::net::IpAddr;

use super::head::{Known, RequestHead};
use super::route::HashPolicy;
use crate::stream_info::StreamInfo;
use crate::upstream::balance;

/// The hash of a request; `None` when no policy finds anything. Several policies are combined in their order, as Envoy does.
pub(super) fn of_request(policies: &[HashPolicy], request: &RequestHead, info: &StreamInfo) -> Option<u64> {
    let mut all = None;
    for policy in policies {
        let hash = match policy {
            HashPolicy::Header(name) => request.value(name).map(|value| balance::hash(&value)),
            HashPolicy::Cookie { name, .. } => cookie(request, name.as_bytes()).map(balance::hash),
            HashPolicy::SourceIp => Some(of_address(info.remote.ip())),
            HashPolicy::QueryParameter(name) => query_parameter(request, name.as_bytes()).map(balance::hash),
        };
        if let Some(hash) = hash {
            all = Some(all.map_or(0, |old: u64| old.rotate_left(1)) ^ hash);
        }
    }
    all
}

/// The hash of a caller's address.
pub(crate) fn of_address(ip: IpAddr) -> u64 {
    balance::hash(ip.to_string().as_bytes())
}

/// The value of a cookie.
pub(super) fn cookie<'a>(request: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = request.headers.get_all(Known::Cookie).flat_map(|line| line.split(|b| *b == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"=")).map(<[u8]>::trim_ascii)
}

fn query_parameter<'a>(request: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    request.query()?.split(|b| *b == b'&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}
