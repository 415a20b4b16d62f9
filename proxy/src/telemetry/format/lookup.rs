//! Headers and parts of the path.

use std::borrow::Cow;

use crate::http::head::{HeaderName, Headers, Known, RequestHead, ResponseHead};

/// A header, and the one to take when it is missing.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    pub(super) main: Source,
    pub(super) alternative: Option<Source>,
}

/// Where a header's value is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    /// One of Envoy's inline headers: repeated ones were joined when they were received.
    Joined(HeaderName),
    /// Of repeated headers Envoy logs the first.
    First(HeaderName),
}

impl Lookup {
    pub(super) fn in_request<'a>(&'a self, head: Option<&'a RequestHead>) -> Option<Cow<'a, [u8]>> {
        let head = head?;
        self.main.of_request(head).or_else(|| self.alternative.as_ref()?.of_request(head))
    }

    pub(super) fn in_response<'a>(&'a self, head: Option<&'a ResponseHead>) -> Option<Cow<'a, [u8]>> {
        let head = head?;
        let of = |source: &'a Source| match source {
            Source::Status => Some(head.status.as_str().as_bytes().into()),
            _ => source.of_headers(&head.headers),
        };
        of(&self.main).or_else(|| of(self.alternative.as_ref()?))
    }

    pub(super) fn in_trailers<'a>(&'a self, trailers: Option<&'a Headers>) -> Option<Cow<'a, [u8]>> {
        let trailers = trailers?;
        self.main.of_headers(trailers).or_else(|| self.alternative.as_ref()?.of_headers(trailers))
    }
}

impl Source {
    /// The source of a header name, pseudo headers included.
    pub(super) fn named(name: &str) -> Self {
        let name = HeaderName::new(name);
        match name.as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            text => match Known::of(text.as_bytes()) {
                Known::Other | Known::Cookie | Known::SetCookie => Self::First(name),
                _ => Self::Joined(name),
            },
        }
    }

    fn of_request<'a>(&'a self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Method => Some(head.method.as_str().as_bytes().into()),
            // CONNECT has no path.
            Self::Path => Some(head.path()).filter(|path| !path.is_empty()).map(Cow::from),
            Self::Authority => head.has_authority().then(|| head.authority().into()),
            Self::Scheme => Some(head.scheme.as_str().as_bytes().into()),
            _ => self.of_headers(&head.headers),
        }
    }

    fn of_headers<'a>(&'a self, headers: &'a Headers) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::First(name) => headers.find(name).map(Cow::from),
            Self::Joined(name) => headers.joined(name),
            _ => None,
        }
    }
}

/// A path without its query.
pub(super) fn without_query(value: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match (value.iter().position(|byte| *byte == b'?'), value) {
        (None, value) => value,
        (Some(at), Cow::Borrowed(value)) => value[..at].into(),
        (Some(at), Cow::Owned(mut value)) => {
            value.truncate(at);
            value.into()
        }
    }
}

/// The value of a query parameter, as it is on the wire.
pub(super) fn query_param<'a>(head: &'a RequestHead, name: &str) -> Option<Cow<'a, [u8]>> {
    head.query()?.split(|byte| *byte == b'&').find_map(|pair| {
        let (key, value) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &pair[pair.len()..]),
        };
        (key == name.as_bytes()).then_some(value.into())
    })
}

/// The whole query, percent-decoded if asked for.
pub(super) fn query_params(head: &RequestHead, decoded: bool) -> Option<Cow<'_, [u8]>> {
    let query = head.query()?;
    if !decoded || !query.contains(&b'%') {
        return Some(query.into());
    }
    let digit = |at: usize| query.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut text = Vec::with_capacity(query.len());
    let mut at = 0;
    while let Some(&byte) = query.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                text.extend(u8::try_from(high * 16 + low));
                at += 3;
            }
            _ => {
                text.push(byte);
                at += 1;
            }
        }
    }
    Some(text.into())
}
