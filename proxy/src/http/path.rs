//! Path normalisation as Envoy does it before routing and authorisation see a path.
//!
//! Nearly every path needs no change, so one scan decides that without allocating; only then the rules run, in Envoy's
//! order: the fragment is cut off, escaped slashes are handled, dot segments and escapes become canonical, slashes merge.
//! The query is never touched. Normalising twice equals normalising once, so that a filter and the application behind
//! it cannot see two different paths.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto>

use std::borrow::Cow;

use crate::config::{EscapedSlashesAction, HttpConnectionManager};

#[cfg(test)]
mod tests;

/// Which of Envoy's normalisations are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathOptions {
    /// Dot segments, backslashes and unreserved escapes (`normalize_path`, mesh BASE).
    pub normalize: bool,
    /// `//` becomes `/` (`merge_slashes`).
    pub merge_slashes: bool,
    /// What is done about `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashesAction,
}

impl From<&HttpConnectionManager> for PathOptions {
    fn from(hcm: &HttpConnectionManager) -> Self {
        Self { normalize: hcm.normalize_path, merge_slashes: hcm.merge_slashes, escaped_slashes: hcm.escaped_slashes }
    }
}

/// What became of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathOutcome {
    /// It stays as it is.
    Unchanged,
    /// It becomes this, query included.
    Rewritten(Vec<u8>),
    /// Answer 307 with this as `location`; the log shows it as the path.
    Redirect(Vec<u8>),
    /// Answer with `status` and an empty body.
    Reject {
        /// 400, or 404 for a target that is no path.
        status: u16,
        /// Response code details.
        details: &'static str,
        /// The path as far as it was rewritten, for the log; `None` shows what was received.
        path: Option<Vec<u8>>,
    },
}

/// Response code details of a path that is answered 307 or 400 here.
pub const NORMALIZATION_FAILED: &str = "path_normalization_failed";
/// Response code details of a target without leading slash (`OPTIONS *`).
pub const ABSOLUTE_PATH_REJECTED: &str = "absolute_path_rejected";

/// Normalises `path` (with its query). An empty path, as CONNECT has, stays.
pub fn normalize(path: &[u8], options: PathOptions) -> PathOutcome {
    match path.first() {
        None => PathOutcome::Unchanged,
        Some(b'/') if is_plain(path, options) => PathOutcome::Unchanged,
        Some(b'/') => apply(path, options),
        Some(_) => PathOutcome::Reject { status: 404, details: ABSOLUTE_PATH_REJECTED, path: None },
    }
}

/// What the scan has to know of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Slash,
    Dot,
    Query,
    Fragment,
    Percent,
    /// Must be percent-encoded; the backslash, too, which becomes a slash.
    Escape,
}

const CLASSES: [Class; 256] = {
    let mut table = [Class::Escape; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        table[byte] = match byte as u8 {
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            b'?' => Class::Query,
            b'#' => Class::Fragment,
            b'%' => Class::Percent,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => Class::Escape,
            _ => Class::Plain,
        };
        byte += 1;
    }
    table
};

/// Whether no rule can apply. May say no to a path that turns out to be canonical, never yes to one that is not.
fn is_plain(path: &[u8], options: PathOptions) -> bool {
    let PathOptions { normalize, merge_slashes, escaped_slashes } = options;
    let percent_matters = normalize || escaped_slashes != EscapedSlashesAction::KeepUnchanged;
    let mut after_slash = false;
    for (at, byte) in path.iter().enumerate() {
        let class = CLASSES[usize::from(*byte)];
        let attention = match class {
            Class::Plain => false,
            Class::Slash => merge_slashes && after_slash,
            Class::Dot => normalize && after_slash,
            Class::Query => return !path[at..].contains(&b'#'),
            Class::Fragment => true,
            Class::Percent => percent_matters,
            Class::Escape => normalize,
        };
        if attention {
            return false;
        }
        after_slash = class == Class::Slash;
    }
    true
}

fn apply(received: &[u8], options: PathOptions) -> PathOutcome {
    let end = received.iter().position(|b| *b == b'#').unwrap_or(received.len());
    let whole = &received[..end];
    let (path, query) = whole.split_at(whole.iter().position(|b| *b == b'?').unwrap_or(end));
    let with_query = |path: &[u8]| [path, query].concat();
    let mut path = Cow::Borrowed(path);
    let mut redirect = false;

    if options.escaped_slashes != EscapedSlashesAction::KeepUnchanged
        && let Some(unescaped) = unescape_slashes(&path)
    {
        match options.escaped_slashes {
            EscapedSlashesAction::RejectRequest => return reject(Some(with_query(&unescaped))),
            EscapedSlashesAction::UnescapeAndRedirect => redirect = true,
            EscapedSlashesAction::UnescapeAndForward | EscapedSlashesAction::KeepUnchanged => {}
        }
        path = Cow::Owned(unescaped);
    }
    if options.normalize {
        match canonical(&path) {
            Some(canonical) => path = Cow::Owned(canonical),
            None => return reject((with_query(&path) != received).then(|| with_query(&path))),
        }
    }
    if options.merge_slashes && path.windows(2).any(|two| two == b"//") {
        let path = path.to_mut();
        path.dedup_by(|b, a| *a == b'/' && *b == b'/');
        // Envoy joins the segments between a first and a last slash: where there is no segment both stay.
        if path == b"/" {
            path.push(b'/');
        }
    }
    let rewritten = with_query(&path);
    if redirect {
        PathOutcome::Redirect(rewritten)
    } else if rewritten == received {
        PathOutcome::Unchanged
    } else {
        PathOutcome::Rewritten(rewritten)
    }
}

fn reject(path: Option<Vec<u8>>) -> PathOutcome {
    PathOutcome::Reject { status: 400, details: NORMALIZATION_FAILED, path }
}

/// Decodes `%2F` and `%5C`; `None` when there is neither.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let is_escaped_slash = |at: usize| matches!(escape_at(path, at), Some(b'/' | b'\\'));
    let first = (0..path.len()).find(|at| is_escaped_slash(*at))?;
    let mut out = Vec::with_capacity(path.len());
    out.extend_from_slice(&path[..first]);
    let mut at = first;
    while at < path.len() {
        match escape_at(path, at) {
            Some(slash @ (b'/' | b'\\')) => {
                out.push(slash);
                at += 3;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    Some(out)
}

/// The byte that a valid `%XX` at `at` stands for.
fn escape_at(path: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low, ..] = path.get(at..)? else { return None };
    Some(hex(*high)? << 4 | hex(*low)?)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The canonical form of a path without query (WHATWG path state as Envoy's URL library has it); `None` when it holds NUL.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len() + 8);
    let mut at = 0;
    while at < path.len() {
        let byte = path[at];
        if let Some(dot) = dot_at(path, at) {
            let segment = if out.last() == Some(&b'/') { dot_segment(path, at + dot) } else { DotSegment::None };
            match segment {
                DotSegment::None => {
                    out.push(b'.');
                    at += dot;
                }
                DotSegment::Current(len) => at += dot + len,
                DotSegment::Up(len) => {
                    back_up(&mut out);
                    at += dot + len;
                }
            }
            continue;
        }
        at += 1;
        match CLASSES[usize::from(byte)] {
            Class::Percent => match escape_at(path, at - 1) {
                Some(0) => return None,
                Some(value) => {
                    if is_unreserved(value) {
                        escape_stray_percent(&mut out, value, path.get(at + 2));
                        out.push(value);
                    } else {
                        out.extend_from_slice(&path[at - 1..at + 2]);
                    }
                    at += 2;
                }
                None => out.push(b'%'),
            },
            Class::Escape if byte == b'\\' => out.push(b'/'),
            Class::Escape if byte == 0 => return None,
            Class::Escape => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
            }
            Class::Plain | Class::Slash | Class::Dot | Class::Query | Class::Fragment => out.push(byte),
        }
    }
    Some(out)
}

/// Escapes a stray percent sign at the end of `out` that would become an escape by `digit`, which was one itself, alone or
/// with the character that is `next`.
fn escape_stray_percent(out: &mut Vec<u8>, digit: u8, next: Option<&u8>) {
    let is_hex = |byte: u8| hex(byte).is_some();
    let at = match out.as_slice() {
        [.., b'%'] if is_hex(digit) && next.is_some_and(|next| is_hex(*next)) => out.len(),
        [.., b'%', first] if is_hex(*first) && is_hex(digit) => out.len() - 1,
        _ => return,
    };
    out.splice(at..at, *b"25");
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'.')
}

/// Length of a dot, written as it is or as `%2e`.
fn dot_at(path: &[u8], at: usize) -> Option<usize> {
    match path.get(at)? {
        b'.' => Some(1),
        b'%' => (escape_at(path, at) == Some(b'.')).then_some(3),
        _ => None,
    }
}

/// What a dot at the beginning of a segment starts; carries what follows that dot and is consumed with it.
enum DotSegment {
    None,
    Current(usize),
    Up(usize),
}

fn dot_segment(path: &[u8], after: usize) -> DotSegment {
    // The slash that ends the segment goes with it; the one before it stays. Parameters belong to the segment: servers that
    // know them take `..;x` for `..`.
    let end = |at: usize| match path.get(at) {
        None => Some(0),
        Some(b'/' | b'\\') => Some(1),
        Some(b';') => {
            let rest = &path[at..];
            Some(rest.iter().position(|b| matches!(b, b'/' | b'\\')).map_or(rest.len(), |slash| slash + 1))
        }
        Some(_) => None,
    };
    if let Some(slash) = end(after) {
        return DotSegment::Current(slash);
    }
    match dot_at(path, after).and_then(|dot| Some(dot + end(after + dot)?)) {
        Some(len) => DotSegment::Up(len),
        None => DotSegment::None,
    }
}

/// Removes the last segment; `out` ends with a slash before and after.
fn back_up(out: &mut Vec<u8>) {
    out.pop();
    let keep = out.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    out.truncate(keep);
    if out.is_empty() {
        out.push(b'/');
    }
}
