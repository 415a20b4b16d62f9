//! Envoy's URI templates (`envoy.path.match.uri_template`), compiled to regular expressions.

use super::RouteError;
use crate::config::Regex;

/// What one `*` may stand for: a segment of unreserved, escaped and most sub-delimiter bytes, as in Envoy.
const SEGMENT: &str = "a-zA-Z0-9\\-._~%!$&'()+,;:@";

/// Compiles `/books/*/x/**` and named forms (`{id}`, `{rest=**}`, `{a=x/*/y}`) to an expression for the whole path.
///
/// # Errors
/// When braces do not pair up or the template does not start with a slash.
pub(super) fn compile(template: &str) -> Result<Regex, RouteError> {
    let bad = || RouteError::UriTemplate(template.to_owned());
    if !template.starts_with('/') {
        return Err(bad());
    }
    let mut pattern = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        literal(&rest[..open], &mut pattern);
        let close = rest.find('}').filter(|close| *close > open).ok_or_else(bad)?;
        let variable = &rest[open + 1..close];
        match variable.split_once('=').map_or(variable, |(_, value)| value) {
            // Istio writes a segment and the rest of a path as `{*}` and `{**}`.
            value if variable.contains('=') || value == "*" || value == "**" => literal(value, &mut pattern),
            _ => literal("*", &mut pattern),
        }
        rest = &rest[close + 1..];
    }
    if rest.contains('}') {
        return Err(bad());
    }
    literal(rest, &mut pattern);
    Regex::new(&pattern).map_err(|_| bad())
}

fn literal(text: &str, pattern: &mut String) {
    let mut rest = text;
    while let Some(star) = rest.find('*') {
        pattern.push_str(&regex::escape(&rest[..star]));
        rest = &rest[star + 1..];
        if let Some(after) = rest.strip_prefix('*') {
            rest = after;
            pattern.push_str(&format!("[{SEGMENT}/]*"));
        } else {
            pattern.push_str(&format!("[{SEGMENT}]+"));
        }
    }
    pattern.push_str(&regex::escape(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_segments_and_rests() {
        for (template, path, expected) in [
            ("/books/*/x/**", "/books/1/x/y/z", true),
            ("/books/*/x/**", "/books/1/2/x/y", false),
            ("/books/*/x/**", "/books//x/", false),
            ("/{lang}/v1", "/en/v1", true),
            ("/{lang}/v1", "/en/us/v1", false),
            ("/a/{rest=**}", "/a/b/c", true),
            ("/{p=x/*/y}", "/x/1/y", true),
            ("/{*}/bar/{**}", "/foo/bar/baz/qux", true),
            ("/a.b", "/aXb", false),
        ] {
            assert_eq!(compile(template).unwrap().is_full_match(path.as_bytes()), expected, "{template} {path}");
        }
        for bad in ["books", "/a{b", "/a}b"] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
