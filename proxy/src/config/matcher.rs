//! Matchers shared by routes, RBAC and TLS (Envoy `type.matcher.v3`).

use serde::{Serialize, Serializer};

/// How a string is compared (Envoy `StringMatcher`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum StringMatch {
    /// The whole value.
    Exact(String),
    /// The beginning of the value.
    Prefix(String),
    /// The end of the value.
    Suffix(String),
    /// Any part of the value.
    Contains(String),
    /// The whole value, RE2 syntax.
    Regex(Regex),
}

/// A [`StringMatch`] with its case rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StringMatcher {
    /// What is compared.
    pub pattern: StringMatch,
    /// ASCII case is ignored. Never set together with [`StringMatch::Regex`].
    pub ignore_case: bool,
}

impl StringMatcher {
    /// A case-sensitive exact match.
    pub fn exact(value: impl Into<String>) -> Self {
        StringMatch::Exact(value.into()).into()
    }

    /// A case-sensitive prefix match.
    pub fn prefix(value: impl Into<String>) -> Self {
        StringMatch::Prefix(value.into()).into()
    }

    /// A case-sensitive suffix match.
    pub fn suffix(value: impl Into<String>) -> Self {
        StringMatch::Suffix(value.into()).into()
    }

    /// Whether `value` matches. Works on bytes: header values need not be UTF-8.
    pub fn matches(&self, value: &[u8]) -> bool {
        let fold = self.ignore_case;
        match &self.pattern {
            StringMatch::Exact(p) => eq(value, p.as_bytes(), fold),
            StringMatch::Prefix(p) => value.len() >= p.len() && eq(&value[..p.len()], p.as_bytes(), fold),
            StringMatch::Suffix(p) => value.len() >= p.len() && eq(&value[value.len() - p.len()..], p.as_bytes(), fold),
            StringMatch::Contains(p) => p.is_empty() || value.windows(p.len()).any(|w| eq(w, p.as_bytes(), fold)),
            StringMatch::Regex(r) => r.is_full_match(value),
        }
    }
}

impl From<StringMatch> for StringMatcher {
    fn from(pattern: StringMatch) -> Self {
        Self { pattern, ignore_case: false }
    }
}

fn eq(a: &[u8], b: &[u8], fold: bool) -> bool {
    if fold { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// A compiled regular expression that must match the whole value, as Envoy's `safe_regex` does.
///
/// The engine is linear-time (no backtracking), so a hostile value cannot stall a worker. Equality is equality of the source.
#[derive(Clone, Debug)]
pub struct Regex {
    source: String,
    full: regex::bytes::Regex,
    search: regex::bytes::Regex,
}

impl Regex {
    /// Compiles `source`.
    ///
    /// # Errors
    /// When the syntax is wrong or the compiled program exceeds 1 MiB.
    pub fn new(source: &str) -> Result<Self, regex::Error> {
        const SIZE_LIMIT: usize = 1 << 20;
        let build =
            |pattern: &str| regex::bytes::RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build();
        // (?s) as in RE2's full match: a header value never holds a line feed, a path may hold any byte once decoded.
        Ok(Self { source: source.to_owned(), full: build(&format!("^(?s:{source})$"))?, search: build(source)? })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether the whole of `value` matches.
    pub fn is_full_match(&self, value: &[u8]) -> bool {
        self.full.is_match(value)
    }

    /// Whether any part of `value` matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.search.is_match(value)
    }

    /// Replaces every match in `value`; `\1` to `\9` in `substitution` are groups (RE2 rewrite syntax).
    pub fn replace_all(&self, value: &[u8], substitution: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(value.len());
        let mut at = 0;
        for found in self.search.captures_iter(value) {
            let Some(whole) = found.get(0) else { continue };
            out.extend_from_slice(&value[at..whole.start()]);
            let mut bytes = substitution.bytes();
            while let Some(byte) = bytes.next() {
                match (byte, byte == b'\\').1.then(|| bytes.next()).flatten() {
                    Some(digit @ b'0'..=b'9') => {
                        if let Some(group) = found.get(usize::from(digit - b'0')) {
                            out.extend_from_slice(group.as_bytes());
                        }
                    }
                    Some(escaped) => out.push(escaped),
                    None => out.push(byte),
                }
            }
            at = whole.end();
        }
        out.extend_from_slice(&value[at..]);
        out
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Serialize for Regex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

/// A condition on one header (Envoy `HeaderMatcher`). Pseudo headers are spelled `:method`, `:path`, `:authority`, `:scheme`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeaderMatcher {
    /// Lower-case name.
    pub name: String,
    /// What is asked of the value.
    pub value: HeaderMatch,
    /// The condition is turned around.
    pub invert: bool,
    /// A missing header counts as an empty value instead of as "no match".
    pub treat_missing_as_empty: bool,
}

/// What a [`HeaderMatcher`] asks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum HeaderMatch {
    /// The header is there (`true`) or is not (`false`).
    Present(bool),
    /// Its value matches. Repeated headers are joined with a comma first, as Envoy does.
    String(StringMatcher),
    /// Its value is an integer in `start..end`.
    Range {
        /// First value that matches.
        start: i64,
        /// First value that no longer matches.
        end: i64,
    },
}

/// A share of requests, in parts per million (Envoy `FractionalPercent` with denominator MILLION).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fraction(u32);

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self(1_000_000);
    /// No request.
    pub const NONE: Self = Self(0);

    /// From parts per million, capped at one million.
    pub fn from_millionths(parts: u32) -> Self {
        Self(parts.min(1_000_000))
    }

    /// From a percentage; `None` unless it lies in 0.0..=100.0.
    pub fn from_percent(percent: f64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        (0.0..=100.0).contains(&percent).then(|| Self((percent * 10_000.0).round() as u32))
    }

    /// Parts per million.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Draws once: true for this share of calls.
    pub fn draw(self) -> bool {
        self.0 >= 1_000_000 || (self.0 > 0 && fastrand::u32(0..1_000_000) < self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_matchers_compare_bytes() {
        let folded = StringMatcher { pattern: StringMatch::Exact("Details".into()), ignore_case: true };
        assert!(folded.matches(b"dETAILS"));
        assert!(!StringMatcher::exact("Details").matches(b"dETAILS"));
        assert!(StringMatcher::prefix("/a").matches(b"/a\x80"));
        assert!(!StringMatcher::suffix("long-suffix").matches(b"fix"));
        assert!(StringMatcher::from(StringMatch::Contains("b".into())).matches(b"abc"));
    }

    #[test]
    fn regex_matches_the_whole_value_whatever_its_alternatives() {
        let regex = Regex::new("a|ab").unwrap();
        assert!(regex.is_full_match(b"ab"));
        assert!(!regex.is_full_match(b"abc"));
        assert!(Regex::new(".*admin").unwrap().is_full_match(b"\n/admin"));
        assert!(Regex::new("(").is_err());
    }

    #[test]
    fn regex_rewrites_with_groups() {
        let regex = Regex::new("^/re/([^/]+)").unwrap();
        assert_eq!(regex.replace_all(b"/re/abc/d?q=1", "/x/\\1"), b"/x/abc/d?q=1");
        assert_eq!(Regex::new("o").unwrap().replace_all(b"foo", "\\\\"), b"f\\\\");
    }

    #[test]
    fn fraction_keeps_its_range() {
        assert_eq!(Fraction::from_percent(12.5), Some(Fraction::from_millionths(125_000)));
        assert_eq!(Fraction::from_percent(100.1), None);
        assert!(Fraction::ALL.draw());
        assert!(!Fraction::NONE.draw());
    }
}
