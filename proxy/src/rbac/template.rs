//! Envoy's URI templates (`envoy.path.match.uri_template`), compiled to a regular expression.

use super::Doubt;
use crate::config::{Regex, StringMatch, StringMatcher};

/// A compiled path template such as `/books/*/chapters/**`.
#[derive(Debug)]
pub(super) struct UriTemplate {
    matcher: StringMatcher,
    doubt: Doubt,
}

/// What a segment may hold: Envoy's set when a match admits, everything when it denies.
fn segment_class(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::Miss => r"[A-Za-z0-9\-._~%!$&'()+,;:@=*]",
        Doubt::Match => "[^/]",
    }
}

impl UriTemplate {
    /// Compiles `template`: `*` is one segment, `**` any number of them, `{name}`, `{name=*}`, `{name=**}` and
    /// `{name=a/*}` are the same with a name, which a condition has no use for. Istio's `{*}` and `{**}` are taken too.
    pub(super) fn compile(template: &str, doubt: Doubt) -> Result<Self, String> {
        let error = |expected: &str| format!("uri_template {template:?}: expected {expected}");
        if !template.starts_with('/') {
            return Err(error("a path that starts with a slash"));
        }
        let mut pattern = String::with_capacity(template.len() * 2);
        let mut any_depth = false;
        let mut rest = template;
        while let Some(next) = rest.chars().next() {
            let (operator, tail) = match next {
                '{' => {
                    let (variable, tail) = rest[1..].split_once('}').ok_or_else(|| error("'}' after '{'"))?;
                    let unnamed = if variable == "**" { "**" } else { "*" };
                    let (name, value) = variable.split_once('=').unwrap_or((variable, unnamed));
                    if name.is_empty() || value.is_empty() || value.contains('{') {
                        return Err(error("{name} or {name=pattern}"));
                    }
                    (value, tail)
                }
                '}' => return Err(error("'{' before '}'")),
                '*' if rest.starts_with("**") => rest.split_at(2),
                _ => rest.split_at(next.len_utf8()),
            };
            if any_depth && operator.contains('*') {
                return Err(error("no operator after '**'"));
            }
            any_depth |= operator.contains("**");
            push(operator, doubt, &mut pattern);
            rest = tail;
        }
        let regex = Regex::new(&pattern).map_err(|_| error("a shorter template"))?;
        Ok(Self { matcher: StringMatch::Regex(regex).into(), doubt })
    }

    /// Whether `path`, without query, matches.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        self.doubt.matches(&self.matcher, path)
    }
}

fn push(text: &str, doubt: Doubt, pattern: &mut String) {
    let class = segment_class(doubt);
    for (index, deep) in text.split("**").enumerate() {
        if index > 0 {
            pattern.push_str("(?:");
            pattern.push_str(class);
            pattern.push_str("|/)*");
        }
        for (index, literal) in deep.split('*').enumerate() {
            if index > 0 {
                pattern.push_str(class);
                pattern.push('+');
            }
            pattern.push_str(&regex::escape(literal));
        }
    }
}
