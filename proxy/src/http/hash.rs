//! What a request is hashed by, for ring hash and Maglev.

use std::net::IpAddr;
use std::time::Duration;

use super::head::{Known, RequestHead};
use super::route::HashPolicy;
use crate::stream_info::StreamInfo;
use crate::upstream::balance;

/// What a request is hashed to.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    /// `None` when no policy finds anything.
    pub(super) hash: Option<u64>,
    /// Values of `set-cookie` for the response, of cookies that the caller did not have yet.
    pub(super) cookies: Vec<String>,
}

/// The hash of a request. Several policies are combined in their order, as Envoy does.
pub(super) fn of_request(policies: &[HashPolicy], request: &RequestHead, info: &StreamInfo) -> Hashed {
    let (mut all, mut cookies) = (None, Vec::new());
    for policy in policies {
        let hash = match policy {
            HashPolicy::Header(name) => request.value(name).map(|value| balance::hash(&value)),
            HashPolicy::Cookie { name, ttl, path } => match (cookie(request, name.as_bytes()), ttl) {
                (Some(value), _) => Some(balance::hash(value)),
                (None, Some(ttl)) => {
                    let value = new_cookie(info);
                    cookies.push(set_cookie(name, &value, path, *ttl));
                    Some(balance::hash(value.as_bytes()))
                }
                (None, None) => None,
            },
            HashPolicy::SourceIp => Some(of_address(info.remote.ip())),
            HashPolicy::QueryParameter(name) => query_parameter(request, name.as_bytes()).map(balance::hash),
        };
        if let Some(hash) = hash {
            all = Some(all.map_or(0, |old: u64| old.rotate_left(1)) ^ hash);
        }
    }
    Hashed { hash: all, cookies }
}

/// The same for all requests of a connection, so that those which race get the same.
fn new_cookie(info: &StreamInfo) -> String {
    format!("{:016x}", balance::hash(format!("{}{}", info.remote, info.connection.local).as_bytes()))
}

/// In Envoy's form; no age where the cookie lives as long as the caller's session.
fn set_cookie(name: &str, value: &str, path: &str, ttl: Duration) -> String {
    let age = if ttl.is_zero() { String::new() } else { format!("; Max-Age={}", ttl.as_secs()) };
    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
    format!("{name}=\"{value}\"{age}{path}; HttpOnly")
}

/// The hash of a caller's address.
pub(crate) fn of_address(ip: IpAddr) -> u64 {
    balance::hash(ip.to_string().as_bytes())
}

/// The value of a cookie, without quotes.
pub(super) fn cookie<'a>(request: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = request.headers.get_all(Known::Cookie).flat_map(|line| line.split(|b| *b == b';'));
    pairs
        .map(<[u8]>::trim_ascii)
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
        .map(|value| unquoted(value.trim_ascii()))
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

fn query_parameter<'a>(request: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    request.query()?.split(|b| *b == b'&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}
