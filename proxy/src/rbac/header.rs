//! Conditions on headers and pseudo headers.

use std::borrow::Cow;

use super::Doubt;
use super::rule::lenient;
use crate::config::{HeaderMatch, HeaderMatcher, RbacAction, StringMatch, StringMatcher};
use crate::http::head::{HeaderName, RequestHead};

/// A compiled [`HeaderMatcher`].
#[derive(Debug)]
pub(super) struct HeaderRule {
    source: Source,
    value: HeaderMatch,
    invert: bool,
    treat_missing_as_empty: bool,
    lines: Lines,
    /// Of the value condition, before [`Self::invert`] turns it around.
    doubt: Doubt,
}

#[derive(Debug)]
enum Source {
    Method,
    Path,
    Scheme,
    Authority,
    Header(HeaderName),
}

/// How a repeated header counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// One line or all of them joined must satisfy the condition.
    AnyOrJoined,
    /// One line must, as in Envoy since CVE-2026-26308.
    Any,
    /// Every line must.
    All,
}

impl HeaderRule {
    pub(super) fn compile(matcher: &HeaderMatcher, action: RbacAction, doubt: Doubt) -> Self {
        let source = match matcher.name.as_str() {
            ":method" => Source::Method,
            ":path" => Source::Path,
            ":scheme" => Source::Scheme,
            ":authority" | "host" => Source::Authority,
            name => Source::Header(HeaderName::new(name)),
        };
        let lines = match doubt {
            Doubt::Match => Lines::AnyOrJoined,
            Doubt::Miss if action == RbacAction::Allow && !matcher.invert => Lines::Any,
            Doubt::Miss => Lines::All,
        };
        let doubt = doubt.flipped_if(matcher.invert);
        let value = match &matcher.value {
            HeaderMatch::String(text) if matches!(source, Source::Authority) => HeaderMatch::String(lenient(text, doubt)),
            other => other.clone(),
        };
        let (invert, treat_missing_as_empty) = (matcher.invert, matcher.treat_missing_as_empty);
        Self { source, value, invert, treat_missing_as_empty, lines, doubt }
    }

    pub(super) fn matches(&self, head: &RequestHead) -> bool {
        match &self.source {
            Source::Method => self.single(Some(head.method.as_str().as_bytes())),
            Source::Path => self.single(Some(head.path()).filter(|path| !path.is_empty())),
            Source::Scheme => self.single(Some(head.scheme.as_str().as_bytes())),
            Source::Authority => self.single(head.has_authority().then(|| head.authority())),
            Source::Header(name) => self.repeated(head, name),
        }
    }

    fn single(&self, value: Option<&[u8]>) -> bool {
        match (&self.value, value) {
            (HeaderMatch::Present(expected), value) => (value.is_some() == *expected) != self.invert,
            (_, Some(value)) => self.condition(value),
            (_, None) => self.missing(),
        }
    }

    fn repeated(&self, head: &RequestHead, name: &HeaderName) -> bool {
        let mut lines = head.headers.find_all(name);
        let Some(first) = lines.next() else { return self.single(None) };
        if matches!(self.value, HeaderMatch::Present(_)) {
            return self.single(Some(first));
        }
        match self.lines {
            Lines::Any => self.condition(first) || lines.any(|line| self.condition(line)),
            Lines::All => self.condition(first) && lines.all(|line| self.condition(line)),
            Lines::AnyOrJoined => {
                self.condition(first)
                    || lines.any(|line| self.condition(line))
                    || head.headers.joined(name).is_some_and(|joined| self.condition(&joined))
            }
        }
    }

    /// A missing header satisfies nothing, not even the inverted condition, as in Envoy.
    fn missing(&self) -> bool {
        self.treat_missing_as_empty && self.condition(b"")
    }

    fn condition(&self, value: &[u8]) -> bool {
        let matched = match &self.value {
            HeaderMatch::Present(expected) => *expected,
            HeaderMatch::String(text) if matches!(self.source, Source::Authority) => authority_matches(text, value, self.doubt),
            HeaderMatch::String(text) => self.doubt.matches(text, value),
            HeaderMatch::Range { start, end } => integer(value).is_some_and(|number| (*start..*end).contains(&number)),
        };
        matched != self.invert
    }
}

fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// In doubt, the host counts with and without port, trailing dot and case: `Admin.example:80` is `admin.example.` too.
/// Otherwise it counts as it was sent, as in Envoy.
fn authority_matches(wanted: &StringMatcher, authority: &[u8], doubt: Doubt) -> bool {
    if doubt.matches(wanted, authority) {
        return true;
    }
    if doubt == Doubt::Miss {
        return false;
    }
    // Only a regular expression still tells cases apart: `lenient` has seen to the others.
    let folded = matches!(wanted.pattern, StringMatch::Regex(_)) && authority.iter().any(u8::is_ascii_uppercase);
    let authority: Cow<'_, [u8]> = if folded { authority.to_ascii_lowercase().into() } else { authority.into() };
    let (host, port) = split_port(&authority);
    let bare = &host[..host.iter().rposition(|b| *b != b'.').map_or(0, |last| last + 1)];
    (folded && doubt.matches(wanted, &authority))
        || doubt.matches(wanted, host)
        || doubt.matches(wanted, bare)
        || (bare.len() < host.len() && !port.is_empty() && doubt.matches(wanted, &[bare, port].concat()))
}

/// Host and `:port`; the colons inside a bare IPv6 address are no port.
fn split_port(authority: &[u8]) -> (&[u8], &[u8]) {
    let Some(colon) = authority.iter().rposition(|b| *b == b':') else { return (authority, b"") };
    let (host, port) = authority.split_at(colon);
    let is_port = port[1..].iter().all(u8::is_ascii_digit);
    let is_whole_host = !host.contains(&b':') || host.ends_with(b"]");
    if is_port && is_whole_host { (host, port) } else { (authority, b"") }
}
