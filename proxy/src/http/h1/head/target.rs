//! Methods and request targets: the forms that Envoy's parser takes, and what it says of the others.

use http::Method;

use super::{HeadError, HeadLimits};
use crate::http::head::{RequestHead, Scheme};

/// The methods that Envoy's parser knows (it spells `MSEARCH` so).
pub(super) fn known_method(name: &[u8]) -> Option<Method> {
    const EXTENSIONS: [&[u8]; 26] = [
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"MSEARCH",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"QUERY",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
    ];
    Some(match name {
        b"GET" => Method::GET,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"HEAD" => Method::HEAD,
        b"DELETE" => Method::DELETE,
        b"OPTIONS" => Method::OPTIONS,
        b"PATCH" => Method::PATCH,
        b"CONNECT" => Method::CONNECT,
        b"TRACE" => Method::TRACE,
        _ if EXTENSIONS.contains(&name) => Method::from_bytes(name).ok()?,
        _ => return None,
    })
}

/// Sets path and, where the target carries one, authority; says the scheme of an absolute-form target.
pub(super) fn set_target(head: &mut RequestHead, target: &[u8], limits: &HeadLimits) -> Result<Option<Scheme>, HeadError> {
    match target.first() {
        Some(b'/') if head.method != Method::CONNECT && target.is_ascii() => {
            head.set_path(target);
            return Ok(None);
        }
        Some(b'*') if head.method == Method::OPTIONS && target.is_ascii() => {
            head.set_path(target);
            return Ok(None);
        }
        _ => {}
    }
    check_target(target, head.method == Method::CONNECT)?;
    if head.method == Method::CONNECT {
        let port = check_url_authority(target)?;
        if port.is_none() || target.contains(&b'@') {
            return Err(HeadError::InvalidUrl);
        }
        head.set_authority(target);
        return Ok(None);
    }
    let at = target.windows(3).position(|three| three == b"://").ok_or(HeadError::InvalidUrl)?;
    let (scheme, rest) = (&target[..at], &target[at + 3..]);
    let (authority, path) = rest.split_at(rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len()));
    check_url_authority(authority)?;
    let scheme = match scheme {
        scheme if scheme.eq_ignore_ascii_case(b"http") => Scheme::Http,
        // A caller's claim that nothing backs: whoever reads the scheme further on would take plaintext for TLS.
        scheme if scheme.eq_ignore_ascii_case(b"https") && !limits.allow_https_target => return Err(HeadError::Malformed),
        scheme if scheme.eq_ignore_ascii_case(b"https") => Scheme::Https,
        _ => return Err(HeadError::InvalidScheme),
    };
    head.set_authority(authority.iter().position(|b| *b == b'@').map_or(authority, |at| &authority[at + 1..]));
    // As Envoy: a query without a path stays what it is, which the path rules then refuse.
    head.set_path(if path.is_empty() { b"/" } else { path });
    Ok(Some(scheme))
}

/// Whether `target` can be one at all; Envoy's parser says no more than that.
pub(super) fn check_target(target: &[u8], connect: bool) -> Result<(), HeadError> {
    let in_path = |b: &u8| matches!(b, b'\t' | 0x0c | b'!'..=b'~');
    let in_host = |b: &u8| b.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(b);
    let valid = match target.first() {
        None => false,
        Some(b'/' | b'*') => target.iter().all(in_path),
        Some(first) => {
            let scheme = target.windows(3).position(|three| three == b"://").filter(|_| !connect);
            let rest = &target[scheme.map_or(0, |at| at + 3)..];
            let (host, path) = rest.split_at(rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len()));
            let in_scheme = |b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
            let scheme_fits = scheme.is_some_and(|at| first.is_ascii_alphabetic() && target[..at].iter().all(in_scheme));
            (connect || scheme_fits)
                && host.iter().all(in_host)
                && !host.windows(2).any(|two| two == b"@@")
                && path.iter().all(in_path)
        }
    };
    if valid { Ok(()) } else { Err(HeadError::Malformed) }
}

/// The authority of an absolute URL, which Envoy takes only in its plainest form; says the port, if there is one.
fn check_url_authority(authority: &[u8]) -> Result<Option<u16>, HeadError> {
    let host = match authority.iter().position(|b| *b == b'@') {
        Some(at) if authority[at + 1..].contains(&b'@') => return Err(HeadError::InvalidUrl),
        Some(at) => &authority[at + 1..],
        None => authority,
    };
    let (name, port) = if host.first() == Some(&b'[') {
        let end = host.iter().position(|b| *b == b']').ok_or(HeadError::InvalidUrl)?;
        (&host[1..end], &host[end + 1..])
    } else {
        host.split_at(host.iter().position(|b| *b == b':').unwrap_or(host.len()))
    };
    let literal = host.first() == Some(&b'[');
    let fits = |b: &u8| {
        if literal { b.is_ascii_hexdigit() || b":.".contains(b) } else { b.is_ascii_alphanumeric() || b".-".contains(b) }
    };
    if name.is_empty() || !name.iter().all(fits) {
        return Err(HeadError::InvalidUrl);
    }
    match port {
        [] => Ok(None),
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            let port = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            port.map(Some).ok_or(HeadError::InvalidUrl)
        }
        _ => Err(HeadError::InvalidUrl),
    }
}

/// The characters of RFC 3986's authority without `@`: user-info in Host lets a name look like another.
pub(super) fn check_authority(authority: &[u8]) -> Result<(), HeadError> {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(b);
    if authority.iter().all(fits) { Ok(()) } else { Err(HeadError::InvalidAuthority) }
}
