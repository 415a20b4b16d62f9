//! The cold paths of head parsing: heads that arrive in drops, and heads that httparse refuses.

use http::Method;

use super::target::{check_target, known_method};
use super::{HeadError, HeadLimits};

/// Where the head in `buf` ends for a receiver that takes bare LF for a line end; the search begins at `from`.
fn end_from(buf: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(lf) = buf[at..].iter().position(|b| *b == b'\n') {
        let next = at + lf + 1;
        match &buf[next..] {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => at = next,
        }
    }
    None
}

/// Keeps a head that arrives in drops from being parsed again for each of them.
#[derive(Debug, Default)]
pub(in crate::http::h1) struct Progress {
    seen: usize,
    line_seen: bool,
}

impl Progress {
    /// Whether parsing `buf` can find anything new: at the first bytes, at the end of the first line, at the end of the head,
    /// and beyond the limit.
    pub(in crate::http::h1) fn is_due(&self, buf: &[u8], limits: &HeadLimits) -> bool {
        let seen = self.seen.min(buf.len());
        seen == 0
            || buf.len() > limits.max_bytes
            || (!self.line_seen && buf[seen..].contains(&b'\n'))
            || end_from(buf, seen.saturating_sub(3)).is_some()
    }

    /// `buf` holds no whole head.
    pub(in crate::http::h1) fn note(&mut self, buf: &[u8]) {
        self.line_seen |= buf[self.seen.min(buf.len())..].contains(&b'\n');
        self.seen = buf.len();
    }

    /// The next head begins.
    pub(in crate::http::h1) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What can be done about a head that httparse refuses.
pub(super) enum Look {
    /// A verdict needs more bytes.
    Wait,
    /// It stays refused.
    Final,
    /// Its text without what Envoy takes but httparse does not; `consumed` is what the original takes up.
    Rewritten { consumed: usize, text: Vec<u8> },
}

#[cold]
pub(super) fn second_look(buf: &[u8], limits: &HeadLimits, error: httparse::Error, request: bool) -> Result<Look, HeadError> {
    if error == httparse::Error::TooManyHeaders {
        return Err(HeadError::TooManyHeaders);
    }
    let blank = buf.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let start = &buf[blank..];
    // A request may still turn out well as long as it starts like a method, a response when only a field's line is odd.
    let hopeless =
        if request { start.first().is_some_and(|b| !b.is_ascii_uppercase()) } else { error != httparse::Error::HeaderName };
    if hopeless {
        return Err(HeadError::Malformed);
    }
    let line = start.iter().position(|b| *b == b'\n').map(|lf| &start[..lf]);
    if request && let Some(refusal) = line.and_then(explain_line) {
        return Err(refusal);
    }
    let Some(end) = end_from(start, 0) else {
        return if buf.len() > limits.max_bytes { Err(HeadError::HeadersTooLarge) } else { Ok(Look::Wait) };
    };
    Ok(match rewrite(&start[..end], request, blank > 0) {
        Some(text) => Look::Rewritten { consumed: blank + end, text },
        None => Look::Final,
    })
}

/// Joins folded lines and, in requests, turns tabs between the words of the first line into spaces and cuts off the blanks
/// after them; `None` when there is nothing of that kind, and nothing was `skipped` before.
fn rewrite(head: &[u8], request: bool, skipped: bool) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(head.len());
    let mut changed = skipped;
    for (index, line) in head.split_inclusive(|b| *b == b'\n').enumerate() {
        if index == 0 && request {
            let words = line.trim_ascii_end();
            text.extend(words.iter().map(|b| if *b == b'\t' { b' ' } else { *b }));
            text.extend_from_slice(b"\r\n");
            changed |= text != line;
            continue;
        }
        if index > 1 && matches!(line[0], b' ' | b'\t') {
            changed = true;
            // The line end alone goes: what blanks there are stay, as with Envoy.
            text.pop_if(|b| *b == b'\n');
            text.pop_if(|b| *b == b'\r');
        }
        text.extend_from_slice(line);
    }
    changed.then_some(text)
}

/// Which refusal a request has earned that can't be parsed.
#[cold]
pub(super) fn explain_request(buf: &[u8]) -> HeadError {
    let buf = buf.trim_ascii_start();
    let head = &buf[..end_from(buf, 0).unwrap_or(buf.len())];
    if head.iter().any(|b| b.is_ascii_control() && !matches!(b, b'\r' | b'\n' | b'\t')) {
        return HeadError::InvalidCharacters;
    }
    head.split(|b| *b == b'\n').next().and_then(explain_line).unwrap_or(HeadError::Malformed)
}

/// What is wrong with a request line; `None` when nothing is. Envoy looks at method, target and version in this order, and
/// says it as soon as the line is there.
fn explain_line(line: &[u8]) -> Option<HeadError> {
    let line = line.trim_ascii_end();
    if line.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Some(HeadError::InvalidCharacters);
    }
    let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    let (Some(method), Some(target)) = (words.next().and_then(known_method), words.next()) else {
        return Some(HeadError::Malformed);
    };
    if let Err(error) = check_target(target, method == Method::CONNECT) {
        return Some(error);
    }
    match (words.next(), words.next()) {
        (None, None) => Some(HeadError::LowVersion),
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None) if major.is_ascii_digit() && minor.is_ascii_digit() => {
            (*major != b'1' || !matches!(minor, b'0' | b'1')).then_some(HeadError::LowVersion)
        }
        _ => Some(HeadError::Malformed),
    }
}
