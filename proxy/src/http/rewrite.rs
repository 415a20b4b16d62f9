//! What routes do to path and host: rewrites on the way upstream, and the Location of redirects.

use crate::config::{PathRewrite, Redirect, RedirectPath, Regex};
use crate::http::head::{Known, RequestHead, Scheme};
use crate::http::route::MatchedPath;

/// Rewrites the path as the route asks; where asked, keeps the old one in x-envoy-original-path.
pub(super) fn rewrite_path(head: &mut RequestHead, rewrite: &PathRewrite, matched: MatchedPath, keep_original: bool) {
    let path = match rewrite {
        PathRewrite::Prefix(prefix) => replace_matched(head, prefix, matched),
        PathRewrite::Regex { pattern, substitution } => replace_regex(head, pattern, substitution),
    };
    if keep_original {
        let original = head.path().to_vec();
        head.headers.set(Known::XEnvoyOriginalPath, &original);
    }
    head.set_path(&path);
}

fn replace_matched(head: &RequestHead, replacement: &str, matched: MatchedPath) -> Vec<u8> {
    let len = match matched {
        MatchedPath::Prefix(len) => len,
        MatchedPath::Whole => head.path_without_query().len(),
    };
    [replacement.as_bytes(), head.path().get(len..).unwrap_or_default()].concat()
}

fn replace_regex(head: &RequestHead, pattern: &Regex, substitution: &str) -> Vec<u8> {
    let path = head.path_without_query();
    let mut replaced = pattern.replace_all(path, substitution);
    replaced.extend_from_slice(&head.path()[path.len()..]);
    replaced
}

/// Rewrites the authority; where asked, keeps the old one in x-envoy-original-host and in x-forwarded-host.
pub(super) fn rewrite_host(head: &mut RequestHead, host: &[u8], append_x_forwarded_host: bool, keep_original: bool) {
    let old = head.authority().to_vec();
    if keep_original {
        head.headers.set(Known::XEnvoyOriginalHost, &old);
    }
    if append_x_forwarded_host && !old.is_empty() {
        let forwarded = head.headers.get(Known::XForwardedHost).unwrap_or_default();
        if forwarded.is_empty() {
            head.headers.set(Known::XForwardedHost, &old);
        } else if forwarded.rsplit(|b| *b == b',').next().map(<[u8]>::trim_ascii) != Some(&old) {
            let joined = [forwarded, b",", &old].concat();
            head.headers.set(Known::XForwardedHost, &joined);
        }
    }
    head.set_authority(host);
}

/// The Location of a redirect (Envoy `newUri`).
pub(super) fn redirect_location(redirect: &Redirect, head: &RequestHead, matched: MatchedPath) -> Vec<u8> {
    let scheme = redirect.scheme.as_deref().unwrap_or_else(|| head.scheme.as_str());
    let mut location = [scheme.as_bytes(), b"://"].concat();
    match &redirect.host {
        Some(host) => location.extend_from_slice(host.as_bytes()),
        None => location.extend_from_slice(redirect_host(head, scheme, redirect.port.is_some())),
    }
    if let Some(port) = redirect.port {
        location.push(b':');
        location.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    redirect_path(redirect, head, matched, &mut location);
    location
}

/// The Location that Envoy's `require_tls` gives: the same host and path.
pub(super) fn tls_location(head: &RequestHead) -> Vec<u8> {
    [b"https://", head.authority(), head.path()].concat()
}

/// The request's host, without its port when that is replaced, or was the default one of the scheme that changes.
fn redirect_host<'a>(head: &'a RequestHead, scheme: &str, new_port: bool) -> &'a [u8] {
    let host = head.authority();
    let colon = match host.iter().rposition(|b| *b == b':') {
        Some(colon) if host[0] != b'[' || host[colon - 1] == b']' => colon,
        _ => return host,
    };
    let forwarded_proto = head.headers.get(Known::XForwardedProto).unwrap_or_default();
    let default_port = match forwarded_proto {
        b"https" => &b":443"[..],
        b"http" => b":80",
        _ => b"",
    };
    let was_default = scheme.as_bytes() != forwarded_proto && host[colon..] == *default_port;
    if new_port || was_default { &host[..colon] } else { host }
}

fn redirect_path(redirect: &Redirect, head: &RequestHead, matched: MatchedPath, location: &mut Vec<u8>) {
    let query = &head.path()[head.path_without_query().len()..];
    let path = match &redirect.path {
        // Its own query takes precedence and is never stripped.
        Some(RedirectPath::Full(path)) if path.contains('?') => return location.extend_from_slice(path.as_bytes()),
        Some(RedirectPath::Full(path)) => [path.as_bytes(), query].concat(),
        Some(RedirectPath::Prefix(prefix)) => replace_matched(head, prefix, matched),
        Some(RedirectPath::Regex { pattern, substitution }) => replace_regex(head, pattern, substitution),
        None => head.path().to_vec(),
    };
    let end = path.iter().position(|b| *b == b'?').filter(|_| redirect.strip_query).unwrap_or(path.len());
    location.extend_from_slice(&path[..end]);
}

/// Whether the caller came by TLS, as far as x-forwarded-proto says (Envoy's `require_tls` asks that header, too).
pub(super) fn came_by_tls(head: &RequestHead) -> bool {
    match head.headers.get(Known::XForwardedProto) {
        Some(proto) => proto == b"https",
        None => head.scheme == Scheme::Https,
    }
}
