//! Conditions of routes, compiled (Envoy `RouteMatch`, `HeaderMatcher`, `QueryParameterMatcher`).

use http::Method;

use super::RouteError;
use crate::config::{self, Fraction, HeaderMatch, PathMatch, QueryParameterMatcher, Regex};
use crate::http::head::{HeaderName, Headers, RequestHead};

/// The condition of a route.
#[derive(Debug)]
pub(crate) struct Condition {
    path: PathMatcher,
    headers: Box<[HeaderMatcher]>,
    query: Box<[QueryParameterMatcher]>,
    grpc: bool,
    fraction: Fraction,
}

impl Condition {
    pub(crate) fn compile(config: &config::RouteMatch) -> Result<Self, RouteError> {
        Ok(Self {
            path: PathMatcher::compile(&config.path, config.ignore_case)?,
            headers: config.headers.iter().map(HeaderMatcher::compile).collect(),
            query: config.query_parameters.clone().into_boxed_slice(),
            grpc: config.grpc,
            fraction: config.fraction,
        })
    }

    /// Whether the request meets it; `path` is the path of `head` without query.
    pub(crate) fn matches(&self, head: &RequestHead, path: &[u8]) -> bool {
        self.path.matches(head, path)
            && self.headers.iter().all(|header| header.matches(head))
            && self.query.iter().all(|parameter| query_matches(parameter, head))
            && (!self.grpc || head.is_grpc())
            && self.fraction.draw()
    }

    /// What of the path a prefix rewrite replaces.
    pub(super) fn matched(&self) -> MatchedPath {
        match &self.path {
            PathMatcher::Prefix { prefix, .. } | PathMatcher::SeparatedPrefix { prefix, .. } => MatchedPath::Prefix(prefix.len()),
            PathMatcher::Exact { .. } | PathMatcher::Regex(_) | PathMatcher::Connect => MatchedPath::Whole,
        }
    }
}

/// What of a path (without query) a condition has matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedPath {
    /// This many bytes at the beginning.
    Prefix(usize),
    /// All of it.
    Whole,
}

#[derive(Debug)]
enum PathMatcher {
    Prefix { prefix: Box<[u8]>, fold: bool },
    Exact { path: Box<[u8]>, fold: bool },
    SeparatedPrefix { prefix: Box<[u8]>, fold: bool },
    Regex(Regex),
    Connect,
}

impl PathMatcher {
    fn compile(path: &PathMatch, fold: bool) -> Result<Self, RouteError> {
        let bytes = |text: &str| text.as_bytes().into();
        Ok(match path {
            PathMatch::Prefix(prefix) => Self::Prefix { prefix: bytes(prefix), fold },
            PathMatch::Exact(path) => Self::Exact { path: bytes(path), fold },
            PathMatch::SeparatedPrefix(prefix) => Self::SeparatedPrefix { prefix: bytes(prefix), fold },
            PathMatch::Regex(regex) => Self::Regex(regex.clone()),
            PathMatch::UriTemplate(template) => Self::Regex(super::template::compile(template)?),
            PathMatch::Connect => Self::Connect,
        })
    }

    fn matches(&self, head: &RequestHead, path: &[u8]) -> bool {
        if path.is_empty() {
            // CONNECT has no path: only a route that is meant for it may take it.
            return matches!(self, Self::Connect) && head.method == Method::CONNECT;
        }
        match self {
            Self::Prefix { prefix, fold } => starts_with(path, prefix, *fold),
            Self::Exact { path: exact, fold } => path.len() == exact.len() && starts_with(path, exact, *fold),
            Self::SeparatedPrefix { prefix, fold } => {
                starts_with(path, prefix, *fold) && path.get(prefix.len()).is_none_or(|next| *next == b'/')
            }
            Self::Regex(regex) => regex.is_full_match(path),
            Self::Connect => head.method == Method::CONNECT,
        }
    }
}

fn starts_with(path: &[u8], prefix: &[u8], fold: bool) -> bool {
    match path.get(..prefix.len()) {
        Some(start) if fold => start.eq_ignore_ascii_case(prefix),
        Some(start) => start == prefix,
        None => false,
    }
}

/// A condition on one header, compiled. One line of a repeated header has to meet it, as in Envoy; inverted, none may.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    source: Source,
    value: HeaderMatch,
    invert: bool,
    treat_missing_as_empty: bool,
}

#[derive(Clone, Debug)]
enum Source {
    Method,
    Path,
    Authority,
    Scheme,
    Header(HeaderName),
}

impl HeaderMatcher {
    /// Prepares the name for look-ups.
    pub fn compile(config: &config::HeaderMatcher) -> Self {
        let source = match config.name.to_ascii_lowercase().as_str() {
            ":method" => Source::Method,
            ":path" => Source::Path,
            ":authority" | "host" => Source::Authority,
            ":scheme" => Source::Scheme,
            name => Source::Header(HeaderName::new(name)),
        };
        Self { source, value: config.value.clone(), invert: config.invert, treat_missing_as_empty: config.treat_missing_as_empty }
    }

    /// Whether the request meets the condition. A missing header meets none but those that ask for its absence, inverted
    /// ones included, unless it counts as empty.
    pub fn matches(&self, head: &RequestHead) -> bool {
        match &self.source {
            Source::Method => self.judge(std::iter::once(head.method.as_str().as_bytes())),
            Source::Path => self.judge(Some(head.path()).filter(|path| !path.is_empty()).into_iter()),
            Source::Authority => self.judge(head.has_authority().then(|| head.authority()).into_iter()),
            Source::Scheme => self.judge(std::iter::once(head.scheme.as_str().as_bytes())),
            Source::Header(name) => self.judge(head.headers.find_all(name)),
        }
    }

    /// As [`Self::matches`], for a head of which only the fields are looked at.
    pub fn matches_fields(&self, headers: &Headers) -> bool {
        match &self.source {
            Source::Header(name) => self.judge(headers.find_all(name)),
            Source::Method | Source::Path | Source::Authority | Source::Scheme => self.judge(std::iter::empty()),
        }
    }

    fn judge<'a>(&self, mut lines: impl Iterator<Item = &'a [u8]>) -> bool {
        let first = lines.next();
        if let HeaderMatch::Present(present) = self.value {
            return (first.is_some() == present) != self.invert;
        }
        let Some(first) = first.or(self.treat_missing_as_empty.then_some(b"")) else { return false };
        (self.is_met_by(first) || lines.any(|line| self.is_met_by(line))) != self.invert
    }

    fn is_met_by(&self, value: &[u8]) -> bool {
        match &self.value {
            HeaderMatch::Present(present) => *present,
            HeaderMatch::String(matcher) => matcher.matches(value),
            HeaderMatch::Range { start, end } => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            }
        }
    }
}

/// The first parameter of the name decides; nothing is decoded.
pub(in crate::http) fn query_matches(matcher: &QueryParameterMatcher, head: &RequestHead) -> bool {
    let parameters = head.query().into_iter().flat_map(|query| query.split(|b| *b == b'&'));
    let mut pairs = parameters.map(|pair| {
        let name_end = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        (&pair[..name_end], pair.get(name_end + 1..).unwrap_or_default())
    });
    match pairs.find(|(name, _)| *name == matcher.name.as_bytes()) {
        Some((_, value)) => matcher.value.as_ref().is_none_or(|matcher| matcher.matches(value)),
        None => false,
    }
}
