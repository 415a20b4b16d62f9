//! Header blocks to heads, by the rules that Envoy's HTTP/2 library has for them: what breaks one closes the connection.

use http::{Method, StatusCode};

use super::hpack::Field;
use super::validate;
use crate::config::HeadersWithUnderscores;
use crate::http::head::{Headers, Known, Pseudo, RequestHead, ResponseHead, Scheme, Version};

/// What is wrong with a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A field that must not be there, or not like this.
    Field,
    /// A message that is not one: pseudo headers are missing, or its length is wrong.
    Messaging,
    /// More fields than the limit.
    TooMany,
    /// More bytes than the limit.
    TooLarge,
    /// An underscore in a name, where that is refused.
    Underscore,
}

impl Fault {
    /// Envoy's response code details.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Field => "http2.invalid.header.field",
            Self::Messaging => "http2.violation.of.messaging.rule",
            Self::TooMany => "http2.too_many_headers",
            Self::TooLarge => "http2.header_list_size_too_large",
            Self::Underscore => "http2.unexpected_underscore",
        }
    }

    /// Whether it ends the stream alone.
    pub(super) fn is_limit(self) -> bool {
        matches!(self, Self::TooMany | Self::TooLarge | Self::Underscore)
    }
}

/// Limits of a header block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Names and values together.
    pub(super) bytes: usize,
    pub(super) fields: usize,
    /// `:protocol` is known (RFC 8441).
    pub(super) connect_protocol: bool,
    /// What happens to names with an underscore.
    pub(super) underscores: HeadersWithUnderscores,
}

/// What a header block becomes.
#[derive(Debug)]
pub(super) enum Head {
    Request(RequestHead),
    Response(ResponseHead),
    Trailers(Headers),
}

/// Pseudo headers that have been seen, a bit each.
mod seen {
    pub(super) const METHOD: u8 = 1;
    pub(super) const SCHEME: u8 = 2;
    pub(super) const AUTHORITY: u8 = 4;
    pub(super) const PATH: u8 = 8;
    pub(super) const PROTOCOL: u8 = 16;
    pub(super) const STATUS: u8 = 32;
    pub(super) const HOST: u8 = 64;
}

/// Takes the fields of one block.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) head: Head,
    limits: Limits,
    seen: u8,
    order: usize,
    regular: bool,
    bytes: usize,
    fields: usize,
    content_length: Option<u64>,
    /// Values of the cookie fields, joined (RFC 9113 §8.2.3).
    cookie: Vec<u8>,
    /// The scheme is one whose path must be absolute.
    http_scheme: bool,
    pub(super) fault: Option<Fault>,
}

impl Builder {
    pub(super) fn new(head: Head, limits: Limits) -> Self {
        Self {
            head,
            limits,
            seen: 0,
            order: 0,
            regular: false,
            bytes: 0,
            fields: 0,
            content_length: None,
            cookie: Vec::new(),
            http_scheme: false,
            fault: None,
        }
    }

    /// Takes one field. After a fault the rest is only counted.
    pub(super) fn field(&mut self, field: Field<'_>) {
        if self.fault.is_some() {
            return;
        }
        self.bytes += field.name.len() + field.value.len();
        self.fields += 1;
        // Counted before they are kept: fields that come out of the table cost the peer a byte each.
        if self.bytes > self.limits.bytes {
            self.fault = Some(Fault::TooLarge);
        } else if !field.legal {
            self.fault = Some(Fault::Field);
        } else if field.name[0] == b':' {
            self.pseudo(&field.name[1..], field.value);
        } else {
            self.regular = true;
            match self.limits.underscores {
                HeadersWithUnderscores::DropHeader if field.name.contains(&b'_') => {}
                HeadersWithUnderscores::RejectRequest if field.name.contains(&b'_') => self.fault = Some(Fault::Underscore),
                _ => self.regular(field.name, field.value),
            }
        }
        if self.fault.is_none() && self.fields > self.limits.fields {
            self.fault = Some(Fault::TooMany);
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) {
        let bit = match (&self.head, name) {
            (Head::Request(_), b"method") => seen::METHOD,
            (Head::Request(_), b"scheme") => seen::SCHEME,
            (Head::Request(_), b"authority") => seen::AUTHORITY,
            (Head::Request(_), b"path") => seen::PATH,
            (Head::Request(_), b"protocol") if self.limits.connect_protocol => seen::PROTOCOL,
            (Head::Response(_), b"status") => seen::STATUS,
            _ => 0,
        };
        let valid = match &mut self.head {
            Head::Request(head) => set_pseudo(head, bit, value, &mut self.order),
            Head::Response(head) => {
                status(value).is_some_and(|status| {
                    head.status = status;
                    true
                }) && bit == seen::STATUS
            }
            Head::Trailers(_) => false,
        };
        if bit == 0 || self.regular || self.seen & bit != 0 || !valid {
            self.fault = Some(Fault::Field);
        }
        if bit == seen::SCHEME {
            self.http_scheme = value.eq_ignore_ascii_case(b"http") || value.eq_ignore_ascii_case(b"https");
        }
        self.seen |= bit;
    }

    fn regular(&mut self, name: &[u8], value: &[u8]) {
        let id = Known::of(name);
        let valid = match id {
            Known::Connection | Known::ProxyConnection | Known::KeepAlive | Known::TransferEncoding | Known::Upgrade => false,
            Known::Te => !matches!(self.head, Head::Request(_)) || value.eq_ignore_ascii_case(b"trailers"),
            Known::ContentLength if !matches!(self.head, Head::Trailers(_)) => self.set_length(value),
            _ => true,
        };
        if !valid {
            self.fault = Some(Fault::Field);
            return;
        }
        match &mut self.head {
            Head::Request(_) if id == Known::Cookie => {
                if !self.cookie.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
            }
            Head::Request(head) if id == Known::Other && name == b"host" => {
                if self.seen & seen::HOST != 0 || !validate::is_authority(value) {
                    self.fault = Some(Fault::Field);
                }
                // `:authority` is what counts; a Host beside it is dropped.
                if self.seen & (seen::AUTHORITY | seen::HOST) == 0 {
                    set_pseudo(head, seen::AUTHORITY, value, &mut self.order);
                }
                self.seen |= seen::HOST;
            }
            Head::Request(head) => push(&mut head.headers, id, name, value),
            Head::Response(head) => push(&mut head.headers, id, name, value),
            Head::Trailers(headers) => push(headers, id, name, value),
        }
    }

    fn set_length(&mut self, value: &[u8]) -> bool {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        let first = self.content_length.is_none();
        self.content_length = length;
        first && length.is_some()
    }

    /// The block is complete; `end` when the stream is, too. What `content-length` promises comes back.
    ///
    /// # Errors
    /// The first fault of the block.
    pub(super) fn finish(mut self, end: bool) -> Result<(Head, Option<u64>), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let complete = match &mut self.head {
            Head::Request(head) => {
                if !self.cookie.is_empty() {
                    head.headers.push_known(Known::Cookie, &self.cookie);
                }
                let complete = request_is_complete(self.seen, self.http_scheme, head);
                if self.seen & seen::PROTOCOL != 0 {
                    // An upgrade from here on, as on HTTP/1 (RFC 8441 §5).
                    head.method = Method::GET;
                    head.headers.push_known(Known::Connection, b"upgrade");
                }
                complete
            }
            // 101 has no meaning in HTTP/2 (RFC 9113 §8.6), and an informational answer is never the last one.
            Head::Response(head) => {
                self.seen & seen::STATUS != 0
                    && head.status != StatusCode::SWITCHING_PROTOCOLS
                    && !(end && head.status.is_informational())
            }
            Head::Trailers(_) => end,
        };
        let wrong_length = matches!(self.head, Head::Request(_)) && end && self.content_length.is_some_and(|length| length > 0);
        if complete && !wrong_length { Ok((self.head, self.content_length)) } else { Err(Fault::Messaging) }
    }
}

fn push(headers: &mut Headers, id: Known, name: &[u8], value: &[u8]) {
    match id {
        Known::Other => drop(headers.push(name, value)),
        id => headers.push_known(id, value),
    }
}

/// Sets one pseudo header and notes its place; whether the value is a possible one.
fn set_pseudo(head: &mut RequestHead, bit: u8, value: &[u8], order: &mut usize) -> bool {
    let (valid, pseudo) = match bit {
        seen::METHOD => {
            head.method = Method::from_bytes(value).unwrap_or_default();
            (validate::is_token(value), Pseudo::Method)
        }
        seen::SCHEME => {
            head.scheme = if value.eq_ignore_ascii_case(b"https") { Scheme::Https } else { Scheme::Http };
            (validate::is_scheme(value), Pseudo::Scheme)
        }
        seen::AUTHORITY => {
            head.set_authority(value);
            (validate::is_authority(value), Pseudo::Authority)
        }
        seen::PATH => {
            head.set_path(value);
            (validate::is_path(value), Pseudo::Path)
        }
        // What is asked for with `:protocol` is an upgrade everywhere else.
        seen::PROTOCOL => {
            head.headers.push_known(Known::Upgrade, value);
            return validate::is_token(value);
        }
        _ => return false,
    };
    if *order < head.pseudo_order.len() {
        // The places of those that have not come stay filled with the rest.
        let from = head.pseudo_order.iter().position(|p| *p == pseudo).unwrap_or(*order);
        if from >= *order {
            head.pseudo_order[*order..=from].rotate_right(1);
        }
        *order += 1;
    }
    valid
}

fn request_is_complete(seen: u8, http_scheme: bool, head: &mut RequestHead) -> bool {
    let has = |bits| seen & bits == bits;
    let named = seen & (seen::AUTHORITY | seen::HOST) != 0;
    head.version = Version::Http2;
    if head.method == Method::CONNECT && !has(seen::PROTOCOL) {
        return has(seen::AUTHORITY) && seen & (seen::SCHEME | seen::PATH) == 0;
    }
    let path = head.path();
    let absolute = path.starts_with(b"/") || head.method == Method::OPTIONS && path == b"*";
    let protocol = !has(seen::PROTOCOL) || head.method == Method::CONNECT && has(seen::AUTHORITY);
    has(seen::METHOD | seen::SCHEME | seen::PATH) && named && protocol && (absolute || !http_scheme)
}

fn status(value: &[u8]) -> Option<StatusCode> {
    StatusCode::from_bytes(value).ok().filter(|_| value.len() == 3)
}
