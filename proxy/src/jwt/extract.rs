//! Where tokens are in a request, and how a verified one is taken out of it.

use std::borrow::Cow;

use crate::config::JwtProvider;
use crate::http::head::{HeaderName, Known, RequestHead};

/// The places of one provider, or of several together, in Envoy's order: headers, query parameters and cookies, each by name.
#[derive(Debug, Default)]
pub(super) struct Locations {
    headers: Vec<HeaderLocation>,
    params: Vec<NamedLocation>,
    cookies: Vec<NamedLocation>,
}

#[derive(Debug)]
struct HeaderLocation {
    name: HeaderName,
    prefix: Box<str>,
    issuers: Issuers,
}

#[derive(Debug)]
struct NamedLocation {
    name: Box<str>,
    issuers: Issuers,
}

/// Whose tokens may be at a place; an empty issuer stands for everybody.
#[derive(Debug, Default)]
struct Issuers(Vec<Box<str>>);

impl Issuers {
    fn add(&mut self, issuer: &str) {
        self.0.push(issuer.into());
    }

    fn allow(&self, issuer: &str) -> bool {
        self.0.iter().any(|known| known.is_empty() || **known == *issuer)
    }
}

/// A token that was found.
#[derive(Debug)]
pub(super) struct Found<'l> {
    pub(super) text: Vec<u8>,
    issuers: &'l Issuers,
    place: Place<'l>,
}

#[derive(Clone, Copy, Debug)]
enum Place<'l> {
    Header(&'l HeaderName),
    Param(&'l str),
    Cookie,
}

impl Found<'_> {
    /// Whether a provider of this issuer looks for tokens here.
    pub(super) fn may_be_of(&self, issuer: &str) -> bool {
        self.issuers.allow(issuer)
    }

    /// Takes the token out of the request; the path as it was, when that has changed. Cookies stay, as in Envoy.
    pub(super) fn remove(&self, head: &mut RequestHead) -> Option<Vec<u8>> {
        match self.place {
            Place::Header(name) => {
                head.headers.remove_named(name);
                None
            }
            Place::Param(name) => {
                let before = head.path().to_vec();
                let after = without_param(&before, name);
                head.set_path(&after);
                Some(before)
            }
            Place::Cookie => None,
        }
    }
}

impl Locations {
    pub(super) fn add(&mut self, provider: &JwtProvider) {
        let issuer = &provider.issuer;
        let nowhere = provider.from_headers.is_empty() && provider.from_params.is_empty() && provider.from_cookies.is_empty();
        for header in &provider.from_headers {
            self.add_header(&header.name, &header.value_prefix, issuer);
        }
        if nowhere {
            self.add_header("authorization", "Bearer ", issuer);
            add_named(&mut self.params, "access_token", issuer);
        }
        provider.from_params.iter().for_each(|name| add_named(&mut self.params, name, issuer));
        provider.from_cookies.iter().for_each(|name| add_named(&mut self.cookies, name, issuer));
        self.headers.sort_by_cached_key(|location| format!("{}{}", location.name.as_str(), location.prefix));
        self.params.sort_by(|a, b| a.name.cmp(&b.name));
        self.cookies.sort_by(|a, b| a.name.cmp(&b.name));
    }

    fn add_header(&mut self, name: &str, prefix: &str, issuer: &str) {
        let name = HeaderName::new(name);
        match self.headers.iter_mut().find(|location| location.name == name && *location.prefix == *prefix) {
            Some(location) => location.issuers.add(issuer),
            None => self.headers.push(HeaderLocation { name, prefix: prefix.into(), issuers: Issuers(vec![issuer.into()]) }),
        }
    }

    /// All tokens of a request.
    pub(super) fn find(&self, head: &RequestHead) -> Vec<Found<'_>> {
        let mut found = Vec::new();
        for location in &self.headers {
            location.find(head, &mut found);
        }
        for location in &self.params {
            if let Some(text) = head.query().and_then(|query| param(query, &location.name)) {
                found.push(Found { text, issuers: &location.issuers, place: Place::Param(&location.name) });
            }
        }
        for location in &self.cookies {
            if let Some(text) = cookie(head, &location.name) {
                found.push(Found { text: text.to_vec(), issuers: &location.issuers, place: Place::Cookie });
            }
        }
        found
    }
}

fn add_named(list: &mut Vec<NamedLocation>, name: &str, issuer: &str) {
    match list.iter_mut().find(|location| *location.name == *name) {
        Some(location) => location.issuers.add(issuer),
        None => list.push(NamedLocation { name: name.into(), issuers: Issuers(vec![issuer.into()]) }),
    }
}

impl HeaderLocation {
    fn find<'l>(&'l self, head: &RequestHead, found: &mut Vec<Found<'l>>) {
        let mut take = |value: &[u8]| {
            if let Some(text) = behind_prefix(value, &self.prefix) {
                found.push(Found { text: text.to_vec(), issuers: &self.issuers, place: Place::Header(&self.name) });
            }
        };
        // Envoy joins its inline headers when it receives them: two `authorization` fields are one token that is none.
        let inline = !matches!(Known::of(self.name.as_str().as_bytes()), Known::Other | Known::Cookie);
        if inline {
            let joined: Option<Cow<'_, [u8]>> = head.headers.joined(&self.name);
            joined.iter().for_each(|value| take(value));
        } else {
            head.headers.find_all(&self.name).for_each(take);
        }
    }
}

/// What begins like a token behind the prefix, wherever that stands; `None` without the prefix. A value with nothing that could
/// be a token behind it is taken whole, which then is a malformed one.
fn behind_prefix<'v>(value: &'v [u8], prefix: &str) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|window| window == prefix.as_bytes())?;
    let rest = &value[at + prefix.len()..];
    let begins = rest.iter().position(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    Some(begins.map_or(value, |begin| &rest[begin..]))
}

/// Key and value of a parameter, not decoded.
fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(|pair| match pair.iter().position(|b| *b == b'=') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &pair[pair.len()..]),
    })
}

/// The first value of a parameter, decoded.
fn param(query: &[u8], name: &str) -> Option<Vec<u8>> {
    pairs(query).find(|(key, _)| *decoded(key) == *name.as_bytes()).map(|(_, value)| decoded(value).into_owned())
}

/// The path without a parameter. As in Envoy the others are sorted by their keys; unlike there they stay encoded, as a decoded
/// blank or `&` would make another request of it.
fn without_param(path: &[u8], name: &str) -> Vec<u8> {
    let Some(at) = path.iter().position(|byte| *byte == b'?') else { return path.to_vec() };
    let mut kept: Vec<_> = pairs(&path[at + 1..]).filter(|(key, _)| *decoded(key) != *name.as_bytes()).collect();
    kept.sort_by_cached_key(|(key, _)| decoded(key).into_owned());
    let mut out = path[..at].to_vec();
    for (index, (key, value)) in kept.into_iter().enumerate() {
        out.push(if index == 0 { b'?' } else { b'&' });
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
    }
    out
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return text.into();
    }
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.extend(u8::try_from(high * 16 + low));
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out.into()
}

/// The first cookie of the name, without quotes.
fn cookie<'h>(head: &'h RequestHead, name: &str) -> Option<&'h [u8]> {
    let cookies = head.headers.get_all(Known::Cookie).flat_map(|value| value.split(|byte| *byte == b';'));
    let value = cookies.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Jwks, JwtHeader, LocalJwks};

    fn provider() -> JwtProvider {
        JwtProvider::new("iss", Jwks::Local(LocalJwks(String::new())))
    }

    fn locations(provider: &JwtProvider) -> Locations {
        let mut locations = Locations::default();
        locations.add(provider);
        locations
    }

    fn request(path: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new();
        head.set_path(path.as_bytes());
        for (name, value) in headers {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn texts(locations: &Locations, head: &RequestHead) -> Vec<String> {
        locations.find(head).into_iter().map(|found| String::from_utf8(found.text).unwrap()).collect()
    }

    #[test]
    fn the_bearer_token_begins_behind_the_prefix() {
        let places = locations(&provider());
        let of = |value| texts(&places, &request("/", &[("authorization", value)]));
        assert_eq!(of("Bearer a.b.c"), ["a.b.c"]);
        assert_eq!(of("fooBearer  ,a.b.c"), ["a.b.c"]);
        assert_eq!(of("Bearer !!"), ["Bearer !!"]);
        for none in ["bearer a.b.c", "Bearer", "Bearer\ta.b.c", ""] {
            assert!(of(none).is_empty(), "{none}");
        }
        let twice = request("/", &[("authorization", "Bearer a.b.c"), ("authorization", "Bearer x")]);
        assert_eq!(texts(&places, &twice), ["a.b.c,Bearer x"]);
    }

    #[test]
    fn all_places_in_order() {
        let places = locations(&JwtProvider {
            from_headers: vec![
                JwtHeader { name: "x-tok".into(), value_prefix: "Tok".into() },
                JwtHeader { name: "x-plain".into(), value_prefix: String::new() },
            ],
            from_params: vec!["t".into(), "a".into()],
            from_cookies: vec!["c".into()],
            ..provider()
        });
        let head = request(
            "/?t=p%2E1&a=p2&t=p3",
            &[("x-tok", "Tok h1"), ("cookie", "b=1; c=\"k1\""), ("x-plain", "h2"), ("x-plain", ""), ("cookie", "c=k2")],
        );
        assert_eq!(texts(&places, &head), ["h2", "", "h1", "p2", "p.1", "k1"]);
        assert!(texts(&places, &request("/?access_token=x", &[("authorization", "Bearer x")])).is_empty());
    }

    #[test]
    fn a_verified_token_leaves_the_request() {
        let places = locations(&provider());
        let mut head = request("/a?z=1&access%5Ftoken=x&y&b=%20&access_token=z", &[("authorization", "Bearer a"), ("x-a", "1")]);
        let found = places.find(&head);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].remove(&mut head), None);
        assert!(!head.headers.contains(Known::Authorization) && head.headers.len() == 1);
        assert!(found[1].remove(&mut head).unwrap().starts_with(b"/a?z=1&access"));
        assert_eq!(String::from_utf8_lossy(head.path()), "/a?b=%20&y=&z=1");
        let mut only = request("/a?access_token=x", &[]);
        places.find(&only)[0].remove(&mut only);
        assert_eq!(only.path(), b"/a");
    }

    #[test]
    fn a_place_is_for_the_issuers_that_name_it() {
        let mut places = locations(&provider());
        places.add(&JwtProvider { issuer: "other".into(), ..provider() });
        let head = request("/?access_token=x", &[]);
        let found = places.find(&head);
        assert_eq!(found.len(), 1);
        assert!(found[0].may_be_of("iss") && found[0].may_be_of("other") && !found[0].may_be_of("third"));
        places.add(&JwtProvider { issuer: String::new(), ..provider() });
        assert!(places.find(&head)[0].may_be_of("third"));
    }
}
