//! What the fields of a head say about its connection and its body.

use std::ops::Range;

use http::Method;
use smallvec::SmallVec;

use super::{HeadError, HeadLimits, RequestKind};
use crate::http::h1::body::Framing;
use crate::http::head::{Headers, Known, RequestHead, Version};

/// Tokens from which on a `connection` header is refused (Envoy's bound).
const MAX_TOKENS: usize = 10;

/// What the fields say about framing and connection, gathered while they are copied.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) content_length: Option<u64>,
    pub(super) transfer_encodings: u8,
    chunked: bool,
    has_connection: bool,
    pub(super) upgrades: u8,
    has_private: bool,
    pub(super) expect_continue: bool,
}

/// What a request's `connection` header comes down to.
pub(super) struct Connection {
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    pub(super) nominates_host: bool,
}

impl Facts {
    /// Notes and keeps one field. `block` is the loaded text that it lies in, `None` when its spelling is to be kept.
    pub(super) fn add(
        &mut self,
        headers: &mut Headers,
        field: &httparse::Header<'_>,
        block: Option<&[u8]>,
    ) -> Result<(), HeadError> {
        let (name, value) = (field.name.as_bytes(), field.value);
        let id = match block {
            Some(block) => headers.push_within(range_in(block, name), range_in(block, value)),
            None => headers.push_spelled(name, value),
        };
        match id {
            Known::ContentLength => {
                let length = parse_length(value).ok_or(HeadError::Malformed)?;
                if self.content_length.replace(length).is_some() {
                    return Err(HeadError::Malformed);
                }
            }
            Known::TransferEncoding => {
                self.transfer_encodings = self.transfer_encodings.saturating_add(1);
                self.chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            Known::Connection => self.has_connection = true,
            Known::Upgrade => self.upgrades = self.upgrades.saturating_add(1),
            Known::KeepAlive | Known::ProxyConnection => self.has_private = true,
            Known::Expect => self.expect_continue = value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        Ok(())
    }

    /// Acts on a request's `connection` header as Envoy's codec does and removes what concerns this connection only.
    pub(super) fn connection(&self, headers: &mut Headers, version: Version) -> Result<Connection, HeadError> {
        let mut found = Connection { keep_alive: version != Version::Http10, upgrade: false, nominates_host: false };
        let mut h2c = false;
        if self.upgrades > 1 {
            // One list, as for every reader of the field: a second line must not hide behind the first.
            let joined = headers.get_all(Known::Upgrade).collect::<Vec<_>>().join(&b","[..]);
            headers.set(Known::Upgrade, &joined);
        }
        if self.has_connection {
            let upgrade = has_token(headers, Known::Connection, b"upgrade");
            h2c = upgrade && headers.get(Known::Upgrade).is_some_and(|value| value.eq_ignore_ascii_case(b"h2c"));
            found.upgrade = upgrade && self.upgrades > 0 && !h2c;
            found.keep_alive = keeps_alive(headers, version);
            found.nominates_host = remove_nominated(headers, found.upgrade)?;
        }
        // http-parser's quirk, which Envoy keeps.
        if self.has_private && version != Version::Http10 && has_token(headers, Known::ProxyConnection, b"close") {
            found.keep_alive = false;
        }
        if self.has_connection || self.upgrades > 0 || self.has_private || self.transfer_encodings > 0 {
            headers.retain(|id, _, _| match id {
                Known::TransferEncoding | Known::KeepAlive | Known::ProxyConnection => false,
                Known::Connection | Known::Upgrade => found.upgrade,
                Known::Http2Settings => !h2c,
                _ => true,
            });
        }
        Ok(found)
    }

    /// The same for a response, where Envoy honours no nominations.
    pub(super) fn response_connection(&self, headers: &mut Headers, version: Version, upgraded: bool) -> bool {
        let keep_alive = if self.has_connection { keeps_alive(headers, version) } else { version != Version::Http10 };
        if !upgraded && (self.has_connection || self.upgrades > 0 || self.has_private) {
            headers
                .retain(|id, _, _| !matches!(id, Known::Connection | Known::Upgrade | Known::KeepAlive | Known::ProxyConnection));
        }
        keep_alive
    }
}

/// Where `part` lies in the block that it is a slice of.
fn range_in(block: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - block.as_ptr().addr();
    start..start + part.len()
}

fn keeps_alive(headers: &Headers, version: Version) -> bool {
    if version == Version::Http10 {
        has_token(headers, Known::Connection, b"keep-alive")
    } else {
        !has_token(headers, Known::Connection, b"close")
    }
}

/// The elements of a comma-separated list.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn has_token(headers: &Headers, id: Known, token: &[u8]) -> bool {
    headers.get_all(id).flat_map(tokens).any(|t| t.eq_ignore_ascii_case(token))
}

/// Whether a head offers an upgrade: an `upgrade` header that `connection` speaks of.
pub(in crate::http::h1) fn offers_upgrade(headers: &Headers) -> bool {
    headers.contains(Known::Upgrade) && has_token(headers, Known::Connection, b"upgrade")
}

/// Removes the headers that `connection` nominates; whether `host` is one of them, which then counts as missing. Of an upgrade,
/// whose `connection` goes on as it is, Envoy removes nothing.
fn remove_nominated(headers: &mut Headers, upgrade: bool) -> Result<bool, HeadError> {
    const ORDINARY: [&[u8]; 4] = [b"close", b"keep-alive", b"upgrade", b"te"];
    const PROTECTED: [&[u8]; 4] = [b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-client-cert"];
    let same = |token: &[u8], names: &[&[u8]]| names.iter().any(|name| token.eq_ignore_ascii_case(name));
    let mut nominated = SmallVec::<[u8; 64]>::new();
    for (index, token) in headers.get_all(Known::Connection).flat_map(tokens).enumerate() {
        if same(token, &PROTECTED) || token[0] == b':' || index + 1 >= MAX_TOKENS {
            return Err(HeadError::ConnectionHeaderRejected);
        }
        if !same(token, &ORDINARY) {
            nominated.extend_from_slice(token);
            nominated.push(b',');
        }
    }
    if !nominated.is_empty() && !upgrade {
        headers.retain(|_, name, _| !tokens(&nominated).any(|token| token.eq_ignore_ascii_case(name)));
    }
    Ok(tokens(&nominated).any(|token| token.eq_ignore_ascii_case(b"host")))
}

pub(super) fn request_framing(facts: &Facts, head: &mut RequestHead, limits: &HeadLimits) -> Result<Framing, HeadError> {
    let has_length = facts.content_length.is_some();
    if facts.transfer_encodings > 0 {
        if has_length && !limits.allow_chunked_length {
            return Err(HeadError::ContentLengthAndChunked);
        }
        // HTTP/1.0 has no transfer codings: a peer that does not know them would take the chunks for the next request.
        if facts.transfer_encodings != 1 || !facts.chunked || head.version == Version::Http10 {
            return Err(HeadError::InvalidTransferEncoding);
        }
        if has_length {
            head.headers.remove(Known::ContentLength);
        }
    }
    if head.method == Method::CONNECT {
        return match facts.content_length {
            _ if facts.transfer_encodings > 0 => Err(HeadError::InvalidTransferEncoding),
            Some(1..) => Err(HeadError::BodyDisallowed),
            Some(0) | None => Ok(Framing::None),
        };
    }
    Ok(match facts.content_length {
        _ if facts.transfer_encodings > 0 => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::None,
    })
}

pub(super) fn response_framing(
    facts: &Facts,
    status: u16,
    request: RequestKind,
    limits: &HeadLimits,
) -> Result<Framing, HeadError> {
    if facts.transfer_encodings > 0 {
        if facts.content_length.is_some() && !limits.allow_chunked_length {
            return Err(HeadError::ContentLengthAndChunked);
        }
        if facts.transfer_encodings != 1 || !facts.chunked {
            return Err(HeadError::InvalidTransferEncoding);
        }
    }
    // RFC 9110 §9.3.6: what the answer to a CONNECT says of a body is to be ignored.
    if request.connect && (200..300).contains(&status) {
        return Ok(Framing::None);
    }
    if status < 200 || status == 204 {
        // A length or coding where no body can be is how a response is made to swallow the next one.
        let body = facts.transfer_encodings > 0 || facts.content_length.is_some_and(|n| n > 0);
        return if body { Err(HeadError::Malformed) } else { Ok(Framing::None) };
    }
    if request.head || status == 304 {
        return Ok(Framing::None);
    }
    Ok(match facts.content_length {
        _ if facts.transfer_encodings > 0 => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    })
}

/// Digits only: no sign, no list, no blank inside.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}
