//! Headers that must not leave this hop (RFC 9110 section 7.6.1), as Envoy's HTTP/1 codec and connection manager remove them.

use smallvec::SmallVec;

use super::Refusal;
use crate::http::head::{HeaderName, Known, RequestHead};

/// As many headers may Connection nominate; more are taken for an attack.
const MAX_NOMINATED: usize = 9;

/// Handles Connection, Upgrade and TE; whether the request is an upgrade, whose Connection and Upgrade then stay.
pub(super) fn sanitize(head: &mut RequestHead) -> Result<bool, Refusal> {
    let mut upgrade = is_upgrade(head);
    if upgrade && head.headers.get(Known::Upgrade).is_some_and(|token| token.eq_ignore_ascii_case(b"h2c")) {
        // Never served: the request goes on as HTTP/1.1, and its offer must not reach the upstream.
        head.headers.remove(Known::Http2Settings);
        upgrade = false;
    }
    nominated(head, upgrade)?;
    if !upgrade {
        head.headers.remove(Known::Connection);
        head.headers.remove(Known::Upgrade);
    }
    sanitize_te(head);
    Ok(upgrade)
}

/// The tokens of a list header, over all its lines.
fn tokens(head: &RequestHead, id: Known) -> impl Iterator<Item = &[u8]> {
    head.headers.get_all(id).flat_map(|value| value.split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

fn is_upgrade(head: &RequestHead) -> bool {
    head.headers.contains(Known::Upgrade) && tokens(head, Known::Connection).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Removes the headers that Connection nominates. Those that say where a request came from cannot be nominated away.
fn nominated(head: &mut RequestHead, upgrade: bool) -> Result<(), Refusal> {
    let mut names = SmallVec::<[HeaderName; 4]>::new();
    let mut count = 0;
    for token in tokens(head, Known::Connection) {
        count += 1;
        if count > MAX_NOMINATED || token.starts_with(b":") {
            return Err(Refusal::CONNECTION_HEADER);
        }
        if [&b""[..], b"close", b"keep-alive", b"upgrade"].iter().any(|option| token.eq_ignore_ascii_case(option)) {
            continue;
        }
        if token.eq_ignore_ascii_case(b"host") {
            return Err(Refusal::MISSING_HOST);
        }
        let name = HeaderName::new(&String::from_utf8_lossy(token));
        match Known::of(name.as_str().as_bytes()) {
            Known::XForwardedFor | Known::XForwardedHost | Known::XForwardedProto => return Err(Refusal::CONNECTION_HEADER),
            // The codec answers for the framing, the rules below for TE.
            Known::ContentLength | Known::Connection | Known::Te => {}
            _ => names.push(name),
        }
    }
    if !upgrade {
        for name in &names {
            head.headers.remove_named(name);
        }
    }
    Ok(())
}

/// TE says `trailers` or nothing; Envoy takes the word to the letter.
fn sanitize_te(head: &mut RequestHead) {
    let Some(te) = head.headers.get(Known::Te) else { return };
    if tokens(head, Known::Te).any(|token| token == b"trailers") {
        head.headers.set(Known::Te, b"trailers");
    } else if !te.is_empty() {
        head.headers.remove(Known::Te);
    }
}
