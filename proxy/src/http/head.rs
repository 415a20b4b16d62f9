//! Message heads: what routing, filters and logs see of HTTP/1 and HTTP/2 alike.
//!
//! A head is an ordered list of fields over one arena: every name and value is a span of a single byte vector. Parsing
//! costs one copy and no allocation per field, a cleared head is used again for the next request of a connection, and
//! the order of fields survives removal, which `http::HeaderMap` cannot promise. Names are lower case. `host` is never a
//! field: it is [`RequestHead::authority`], as in HTTP/2.

use std::fmt;
use std::ops::Range;

use http::{Method, StatusCode};

/// HTTP version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As access logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// URI scheme of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Plaintext.
    #[default]
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// Lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A pseudo header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the pseudo header of its name")]
pub enum Pseudo {
    Authority,
    Path,
    Method,
    Scheme,
}

macro_rules! known {
    ($($name:ident $text:literal,)*) => {
        /// Header names that the proxy itself looks at: compared as one byte instead of as text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each is the header of its name")]
        pub enum Known {
            $($name,)*
            /// Any other name.
            Other,
        }

        impl Known {
            /// The id of a lower-case name.
            #[expect(non_upper_case_globals, reason = "the constants are named after the variants")]
            pub fn of(name: &[u8]) -> Self {
                $(const $name: &[u8] = $text.as_bytes();)*
                match name {
                    $($name => Self::$name,)*
                    _ => Self::Other,
                }
            }

            /// The lower-case name; empty for [`Known::Other`].
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other => "",
                }
            }
        }
    };
}

known! {
    Accept "accept",
    AccessControlRequestMethod "access-control-request-method",
    Authorization "authorization",
    Connection "connection",
    ContentLength "content-length",
    ContentType "content-type",
    Cookie "cookie",
    Date "date",
    Expect "expect",
    GrpcMessage "grpc-message",
    GrpcStatus "grpc-status",
    GrpcTimeout "grpc-timeout",
    Http2Settings "http2-settings",
    KeepAlive "keep-alive",
    Location "location",
    Origin "origin",
    ProxyConnection "proxy-connection",
    Server "server",
    SetCookie "set-cookie",
    Te "te",
    Trailer "trailer",
    TransferEncoding "transfer-encoding",
    Upgrade "upgrade",
    UserAgent "user-agent",
    Via "via",
    XEnvoyAttemptCount "x-envoy-attempt-count",
    XEnvoyExpectedRqTimeoutMs "x-envoy-expected-rq-timeout-ms",
    XEnvoyExternalAddress "x-envoy-external-address",
    XEnvoyInternal "x-envoy-internal",
    XEnvoyOriginalHost "x-envoy-original-host",
    XEnvoyOriginalPath "x-envoy-original-path",
    XEnvoyPeerMetadata "x-envoy-peer-metadata",
    XEnvoyPeerMetadataId "x-envoy-peer-metadata-id",
    XEnvoyRatelimited "x-envoy-ratelimited",
    XEnvoyUpstreamServiceTime "x-envoy-upstream-service-time",
    XForwardedClientCert "x-forwarded-client-cert",
    XForwardedFor "x-forwarded-for",
    XForwardedHost "x-forwarded-host",
    XForwardedPort "x-forwarded-port",
    XForwardedProto "x-forwarded-proto",
    XRequestId "x-request-id",
}

/// A header name prepared for look-ups: made when configuration is compiled, never per request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderName {
    id: Known,
    text: Box<str>,
}

impl HeaderName {
    /// Lower-cases `name`.
    pub fn new(name: &str) -> Self {
        let text = name.to_ascii_lowercase().into_boxed_str();
        Self { id: Known::of(text.as_bytes()), text }
    }

    /// The lower-case name.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<Known> for HeaderName {
    fn from(id: Known) -> Self {
        Self { id, text: id.as_str().into() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start as usize..(self.start + self.len) as usize]
    }
}

#[derive(Clone, Copy, Debug)]
struct Field {
    id: Known,
    name: Span,
    value: Span,
    /// The name as it was spelled, when that must be kept; empty otherwise.
    spelling: Span,
}

/// An ordered list of header fields over one arena. Heads and trailers are bounded far below 4 GiB by the codecs.
#[derive(Clone, Default)]
pub struct Headers {
    arena: Vec<u8>,
    fields: Vec<Field>,
    /// Known names that have been added, a bit each: most look-ups are for headers that are not there. A bit may outlive its
    /// header, it never misses one.
    seen: u64,
}

const _: () = assert!((Known::Other as u32) < 64, "Headers has one bit for each known header");

impl Headers {
    /// An empty list; allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the list and keeps its memory for the next message, unless an unusual one has blown it up.
    pub fn clear(&mut self) {
        const KEEP: usize = 8 * 1024;
        if self.arena.capacity() > KEEP {
            *self = Self::default();
        }
        self.arena.clear();
        self.fields.clear();
        self.seen = 0;
    }

    /// Number of fields, repeated names counted each.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    #[expect(clippy::cast_possible_truncation, reason = "codecs bound a head to 60 KiB by default and to a few MiB at the most")]
    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    /// Appends a field and says which name it has. `name` is lower-cased on the way in.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Known {
        let name = self.store(name);
        self.arena[name.start as usize..].make_ascii_lowercase();
        let id = Known::of(name.of(&self.arena));
        let value = self.store(value);
        self.add(Field { id, name, value, spelling: Span::default() });
        id
    }

    /// Takes over a block of wire bytes into an empty list, for [`Headers::push_within`]: one copy for all fields.
    pub fn load(&mut self, block: &[u8]) {
        debug_assert!(self.arena.is_empty(), "spans are offsets into the block");
        self.arena.extend_from_slice(block);
    }

    /// As [`Headers::push`], for a name and a value that are offsets into the block given to [`Headers::load`].
    #[expect(clippy::cast_possible_truncation, reason = "codecs bound a head to 60 KiB by default and to a few MiB at the most")]
    pub fn push_within(&mut self, name: Range<usize>, value: Range<usize>) -> Known {
        let text = &mut self.arena[name.clone()];
        text.make_ascii_lowercase();
        let id = Known::of(text);
        let span = |range: Range<usize>| Span { start: range.start as u32, len: range.len() as u32 };
        self.add(Field { id, name: span(name), value: span(value), spelling: Span::default() });
        id
    }

    /// Appends a field and remembers how its name is spelled (`preserve_case`).
    pub fn push_spelled(&mut self, name: &[u8], value: &[u8]) -> Known {
        let spelling = self.store(name);
        let id = self.push(name, value);
        if let Some(field) = self.fields.last_mut() {
            field.spelling = spelling;
        }
        id
    }

    /// Appends a field with a name that is known.
    pub fn push_known(&mut self, id: Known, value: &[u8]) {
        let name = self.store(id.as_str().as_bytes());
        let value = self.store(value);
        self.add(Field { id, name, value, spelling: Span::default() });
    }

    /// The fields in order, names lower case.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (f.name.of(&self.arena), f.value.of(&self.arena)))
    }

    /// The fields in order with their ids, names lower case.
    pub fn iter_known(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.fields.iter().map(|f| (f.id, f.name.of(&self.arena), f.value.of(&self.arena)))
    }

    /// The fields in order with their ids and the spelling to write (HTTP/1).
    pub fn iter_spelled(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.fields.iter().map(|f| {
            let name = if f.spelling.len > 0 { f.spelling } else { f.name };
            (f.id, name.of(&self.arena), f.value.of(&self.arena))
        })
    }

    /// As [`Headers::iter_spelled`], with the line `name: value\r\n` where the arena holds it in one piece: a field that came
    /// over HTTP/1 and was not touched goes out in one copy.
    pub fn iter_lines(&self) -> impl Iterator<Item = (Known, &[u8], &[u8], Option<&[u8]>)> {
        self.fields.iter().map(|f| {
            let name = if f.spelling.len > 0 { f.spelling } else { f.name };
            (f.id, name.of(&self.arena), f.value.of(&self.arena), self.line(name, f.value))
        })
    }

    fn line(&self, name: Span, value: Span) -> Option<&[u8]> {
        let (start, colon, end) = (name.start as usize, (name.start + name.len) as usize, (value.start + value.len) as usize);
        let whole = self.arena.get(start..end + 2)?;
        let adjacent = value.start as usize == colon + 2 && &whole[colon - start..colon - start + 2] == b": ";
        (adjacent && whole.ends_with(b"\r\n")).then_some(whole)
    }

    fn add(&mut self, field: Field) {
        self.seen |= 1 << field.id as u32;
        self.fields.push(field);
    }

    fn may_contain(&self, id: Known) -> bool {
        self.seen & (1 << id as u32) != 0
    }

    /// The first value of a known header.
    pub fn get(&self, id: Known) -> Option<&[u8]> {
        if !self.may_contain(id) {
            return None;
        }
        self.fields.iter().find(|f| f.id == id).map(|f| f.value.of(&self.arena))
    }

    /// Whether the known header is there.
    pub fn contains(&self, id: Known) -> bool {
        self.may_contain(id) && self.fields.iter().any(|f| f.id == id)
    }

    /// All values of a known header.
    pub fn get_all(&self, id: Known) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |f| f.id == id).map(|f| f.value.of(&self.arena))
    }

    /// The first value of a header.
    pub fn find<'a>(&'a self, name: &HeaderName) -> Option<&'a [u8]> {
        self.fields.iter().find(|f| self.is_named(f, name)).map(|f| f.value.of(&self.arena))
    }

    /// All values of a header.
    pub fn find_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |f| self.is_named(f, name)).map(|f| f.value.of(&self.arena))
    }

    fn is_named(&self, field: &Field, name: &HeaderName) -> bool {
        field.id == name.id && (name.id != Known::Other || field.name.of(&self.arena) == name.text.as_bytes())
    }

    /// Removes every field of a known name; whether there was one.
    pub fn remove(&mut self, id: Known) -> bool {
        let before = self.fields.len();
        self.fields.retain(|f| f.id != id);
        before != self.fields.len()
    }

    /// Removes every field of this name; whether there was one.
    pub fn remove_named(&mut self, name: &HeaderName) -> bool {
        let before = self.fields.len();
        let arena = &self.arena;
        self.fields.retain(|f| f.id != name.id || (name.id == Known::Other && f.name.of(arena) != name.text.as_bytes()));
        before != self.fields.len()
    }

    /// Removes the fields for which `keep(name, value)` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(Known, &[u8], &[u8]) -> bool) {
        let arena = &self.arena;
        self.fields.retain(|f| keep(f.id, f.name.of(arena), f.value.of(arena)));
    }

    /// Replaces the value of the first field of this name in its place and removes further ones; appends when missing.
    pub fn set(&mut self, id: Known, value: &[u8]) {
        if !self.may_contain(id) {
            self.push_known(id, value);
            return;
        }
        self.set_where(|f, _| f.id == id, value, |headers, value| headers.push_known(id, value));
    }

    /// As [`Headers::set`], for any name.
    pub fn set_named(&mut self, name: &HeaderName, value: &[u8]) {
        let same =
            |f: &Field, arena: &[u8]| f.id == name.id && (name.id != Known::Other || f.name.of(arena) == name.text.as_bytes());
        self.set_where(same, value, |headers, value| {
            headers.push(name.text.as_bytes(), value);
        });
    }

    fn set_where(&mut self, same: impl Fn(&Field, &[u8]) -> bool, value: &[u8], append: impl FnOnce(&mut Self, &[u8])) {
        let Some(first) = self.fields.iter().position(|f| same(f, &self.arena)) else {
            append(self, value);
            return;
        };
        let span = self.store(value);
        self.fields[first].value = span;
        let mut index = 0;
        let arena = &self.arena;
        self.fields.retain(|f| {
            index += 1;
            index - 1 <= first || !same(f, arena)
        });
    }

    /// All values joined with a comma, as Envoy matches and logs repeated headers; `None` when missing.
    pub fn joined<'a>(&'a self, name: &'a HeaderName) -> Option<std::borrow::Cow<'a, [u8]>> {
        if !self.may_contain(name.id) {
            return None;
        }
        let mut values = self.find_all(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(first.into()) };
        let mut all = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            all.push(b',');
            all.extend_from_slice(value);
        }
        Some(all.into())
    }
}

impl fmt::Debug for Headers {
    /// Names only: values may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

/// The head of a request.
#[derive(Clone)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// Version that the sender speaks.
    pub version: Version,
    /// Scheme.
    pub scheme: Scheme,
    authority: Option<Span>,
    path: Span,
    /// The order in which HTTP/2 says the pseudo headers: the caller's, or Envoy's own for a request that came over HTTP/1.
    pub pseudo_order: [Pseudo; 4],
    /// Fields without `host`.
    pub headers: Headers,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            method: Method::GET,
            version: Version::default(),
            scheme: Scheme::default(),
            authority: None,
            path: Span::default(),
            pseudo_order: PSEUDO_ORDER,
            headers: Headers::new(),
        }
    }
}

/// Envoy's order of pseudo headers.
const PSEUDO_ORDER: [Pseudo; 4] = [Pseudo::Authority, Pseudo::Path, Pseudo::Method, Pseudo::Scheme];

impl RequestHead {
    /// An empty head, to be filled by a codec.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the head and keeps its memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.method = Method::GET;
        self.version = Version::Http11;
        self.scheme = Scheme::Http;
        self.authority = None;
        self.path = Span::default();
        self.pseudo_order = PSEUDO_ORDER;
    }

    /// `:authority` or Host; empty when missing.
    pub fn authority(&self) -> &[u8] {
        self.authority.map_or(b"", |span| span.of(&self.headers.arena))
    }

    /// Whether the request carried a Host or `:authority` at all, an empty one included.
    pub fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// The host of the authority, without port and brackets; `None` where there is none.
    pub fn host(&self) -> Option<&str> {
        let authority = std::str::from_utf8(self.authority()).ok()?;
        let host = match authority.strip_prefix('[') {
            Some(literal) => literal.split_once(']')?.0,
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        };
        Some(host).filter(|host| !host.is_empty())
    }

    /// Path with query; empty for CONNECT without path.
    pub fn path(&self) -> &[u8] {
        self.path.of(&self.headers.arena)
    }

    /// Path without query.
    pub fn path_without_query(&self) -> &[u8] {
        let path = self.path();
        path.iter().position(|b| *b == b'?').map_or(path, |at| &path[..at])
    }

    /// Query, without the question mark.
    pub fn query(&self) -> Option<&[u8]> {
        let path = self.path();
        path.iter().position(|b| *b == b'?').map(|at| &path[at + 1..])
    }

    /// Replaces the authority.
    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = Some(self.headers.store(authority));
    }

    /// Replaces path and query.
    pub fn set_path(&mut self, path: &[u8]) {
        self.path = self.headers.store(path);
    }

    /// The value of a header or of a pseudo header (`:method`, `:path`, `:authority`, `:scheme`, `host`), joined when repeated.
    pub fn value<'a>(&'a self, name: &'a HeaderName) -> Option<std::borrow::Cow<'a, [u8]>> {
        match name.as_str() {
            ":method" => Some(self.method.as_str().as_bytes().into()),
            ":path" => Some(self.path().into()),
            ":authority" | "host" => self.has_authority().then(|| self.authority().into()),
            ":scheme" => Some(self.scheme.as_str().as_bytes().into()),
            _ => self.headers.joined(name),
        }
    }

    /// `application/grpc` and `application/grpc+…` (not grpc-web): local errors then take gRPC's form.
    pub fn is_grpc(&self) -> bool {
        self.headers
            .get(Known::ContentType)
            .is_some_and(|value| value.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+'))
    }
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes);
        write!(f, "{} {} {} {:?}", self.method, text(self.authority()), text(self.path_without_query()), self.headers)
    }
}

/// The head of a response.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Version that the sender speaks.
    pub version: Version,
    /// Fields.
    pub headers: Headers,
}

impl ResponseHead {
    /// A head with this status and no field.
    pub fn new(status: StatusCode) -> Self {
        Self { status, version: Version::Http11, headers: Headers::new() }
    }

    /// Empties the head and keeps its memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.status = StatusCode::OK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(headers: &Headers) -> Vec<String> {
        headers.iter().map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v))).collect()
    }

    #[test]
    fn order_survives_set_and_remove() {
        let mut headers = Headers::new();
        for (name, value) in [("X-B", "1"), ("Server", "app"), ("x-a", "2"), ("server", "twice"), ("X-B", "3")] {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        headers.set(Known::Server, b"envoy");
        headers.set_named(&HeaderName::new("X-New"), b"n");
        assert_eq!(list(&headers), ["x-b: 1", "server: envoy", "x-a: 2", "x-b: 3", "x-new: n"]);
        assert_eq!(headers.joined(&HeaderName::new("x-b")).as_deref(), Some(&b"1,3"[..]));
        assert!(headers.remove_named(&HeaderName::new("x-b")));
        assert_eq!(list(&headers), ["server: envoy", "x-a: 2", "x-new: n"]);
        headers.set_named(&HeaderName::new("x-a"), b"changed");
        assert_eq!(headers.find(&HeaderName::new("X-A")), Some(&b"changed"[..]));
    }

    #[test]
    fn known_names_are_found_by_id() {
        let mut headers = Headers::new();
        headers.push_spelled(b"Content-Length", b"5");
        assert_eq!(headers.get(Known::ContentLength), Some(&b"5"[..]));
        assert_eq!(headers.iter_spelled().next(), Some((Known::ContentLength, &b"Content-Length"[..], &b"5"[..])));
        assert_eq!(Known::of(b"content-lengt"), Known::Other);
    }

    #[test]
    fn request_parts_are_replaced() {
        let mut head = RequestHead::new();
        head.set_authority(b"details:9080");
        head.set_path(b"/a?x=1");
        assert_eq!((head.path_without_query(), head.query()), (&b"/a"[..], Some(&b"x=1"[..])));
        head.set_path(b"/b");
        assert_eq!((head.path(), head.query()), (&b"/b"[..], None));
        assert_eq!(head.value(&HeaderName::new("Host")).as_deref(), Some(&b"details:9080"[..]));
        head.headers.push(b"content-type", b"application/grpc-web");
        assert!(!head.is_grpc());
    }

    #[test]
    fn debug_output_holds_no_values() {
        let mut head = RequestHead::new();
        head.set_path(b"/p?token=secret");
        head.headers.push(b"authorization", b"Bearer secret");
        assert!(!format!("{head:?}").contains("secret"));
    }
}
