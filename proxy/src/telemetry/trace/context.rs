//! How a trace is carried from hop to hop: W3C's `traceparent` and `tracestate`, Zipkin's `x-b3-*`.

use std::sync::LazyLock;

use crate::http::head::{HeaderName, RequestHead};

/// Which trace a request belongs to, and which of its spans is the request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanIds {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// It is exported.
    pub sampled: bool,
}

/// What a caller says of its own span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// The span before; only B3 tells it.
    pub(super) before: Option<u64>,
    /// `None` leaves the decision to us.
    pub(super) sampled: Option<bool>,
    pub(super) state: Vec<u8>,
}

/// What the headers of a request say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// Nothing: a trace begins here, if at all.
    Nothing,
    /// Something that cannot be read. As in Envoy the request has no span then, and its headers stay.
    Unreadable,
    Parent(Parent),
}

macro_rules! names {
    ($($name:ident $text:literal,)*) => {
        $(static $name: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::new($text));)*
    };
}

names! {
    TRACEPARENT "traceparent",
    TRACESTATE "tracestate",
    B3 "b3",
    B3_TRACE "x-b3-traceid",
    B3_SPAN "x-b3-spanid",
    B3_PARENT "x-b3-parentspanid",
    B3_SAMPLED "x-b3-sampled",
    B3_FLAGS "x-b3-flags",
}

/// Reads `traceparent` (<https://www.w3.org/TR/trace-context/>).
pub(super) fn read_w3c(head: &RequestHead) -> Carried {
    let Some(value) = head.headers.find(&TRACEPARENT) else { return Carried::Nothing };
    let parent = || {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() == 55)?;
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace, span, flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        let whole = parts.next().is_none() && version != 0xff && trace != 0 && span != 0;
        let state = head.headers.joined(&TRACESTATE).unwrap_or_default().into_owned();
        let span = u64::try_from(span).ok()?;
        whole.then_some(Parent { trace, span, before: None, sampled: Some(flags & 1 == 1), state })
    };
    parent().map_or(Carried::Unreadable, Carried::Parent)
}

/// Writes `traceparent` and `tracestate`. A state without the parent it belongs to is none.
pub(super) fn write_w3c(head: &mut RequestHead, ids: SpanIds, state: &[u8]) {
    let value = format!("00-{:032x}-{:016x}-{:02x}", ids.trace, ids.span, u8::from(ids.sampled));
    head.headers.set_named(&TRACEPARENT, value.as_bytes());
    if state.is_empty() {
        head.headers.remove_named(&TRACESTATE);
    } else {
        head.headers.set_named(&TRACESTATE, state);
    }
}

/// Reads `b3`, else `x-b3-*` (<https://github.com/openzipkin/b3-propagation>).
pub(super) fn read_b3(head: &RequestHead) -> Carried {
    let text = |name: &HeaderName| head.headers.find(name).map(|value| std::str::from_utf8(value).unwrap_or("?"));
    if let Some(single) = text(&B3) {
        return read_single_b3(single);
    }
    let sampled = match (text(&B3_FLAGS), text(&B3_SAMPLED)) {
        (Some("1"), _) | (_, Some("1" | "true")) => Some(true),
        (_, Some("0" | "false")) => Some(false),
        _ => None,
    };
    let (Some(trace), Some(span)) = (text(&B3_TRACE), text(&B3_SPAN)) else {
        // A caller may decide without having a span.
        return sampled.map_or(Carried::Nothing, |sampled| Carried::Parent(decision_only(sampled)));
    };
    let parent = || {
        let before = match text(&B3_PARENT) {
            Some(before) => Some(u64::try_from(hex(before, 16)?).ok()?),
            None => None,
        };
        Some(Parent { trace: trace_id(trace)?, span: u64::try_from(hex(span, 16)?).ok()?, before, sampled, state: Vec::new() })
    };
    parent().map_or(Carried::Unreadable, Carried::Parent)
}

/// `<trace>-<span>[-<sampled>[-<span before>]]`, or the sampling state alone.
fn read_single_b3(text: &str) -> Carried {
    let sampled = |state: &str| match state {
        "1" | "d" => Some(true),
        "0" => Some(false),
        _ => None,
    };
    if let Some(decided) = sampled(text) {
        return Carried::Parent(decision_only(decided));
    }
    let parent = || {
        let mut parts = text.split('-');
        let (trace, span) = (trace_id(parts.next()?)?, u64::try_from(hex(parts.next()?, 16)?).ok()?);
        let state = parts.next();
        let before = match parts.next() {
            Some(before) => Some(u64::try_from(hex(before, 16)?).ok()?),
            None => None,
        };
        Some(Parent { trace, span, before, sampled: state.and_then(sampled), state: Vec::new() })
    };
    parent().map_or(Carried::Unreadable, Carried::Parent)
}

fn decision_only(sampled: bool) -> Parent {
    Parent { trace: 0, span: 0, before: None, sampled: Some(sampled), state: Vec::new() }
}

/// Writes `x-b3-*`.
pub(super) fn write_b3(head: &mut RequestHead, ids: SpanIds, parent: Option<u64>) {
    head.headers.remove_named(&B3);
    head.headers.set_named(&B3_TRACE, b3_trace_id(ids.trace).as_bytes());
    head.headers.set_named(&B3_SPAN, format!("{:016x}", ids.span).as_bytes());
    match parent {
        Some(parent) => head.headers.set_named(&B3_PARENT, format!("{parent:016x}").as_bytes()),
        None => drop(head.headers.remove_named(&B3_PARENT)),
    }
    head.headers.set_named(&B3_SAMPLED, if ids.sampled { b"1" } else { b"0" });
}

/// 64 bits where that is all there is.
pub(crate) fn b3_trace_id(trace: u128) -> String {
    if trace >> 64 == 0 { format!("{trace:016x}") } else { format!("{trace:032x}") }
}

fn trace_id(text: &str) -> Option<u128> {
    hex(text, if text.len() > 16 { 32 } else { 16 }).filter(|trace| *trace != 0)
}

/// A number of exactly so many hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let all = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if all { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new();
        for (name, value) in headers {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    const SPAN: u64 = 0xb7ad_6b71_6920_3331;

    #[test]
    fn a_traceparent_is_read_as_the_standard_has_it() {
        let value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let carried = read_w3c(&head(&[("traceparent", value), ("tracestate", "a=1"), ("tracestate", "b=2")]));
        let state = b"a=1,b=2".to_vec();
        assert_eq!(carried, Carried::Parent(Parent { trace: TRACE, span: SPAN, before: None, sampled: Some(true), state }));
        assert_eq!(read_w3c(&head(&[("tracestate", "a=1")])), Carried::Nothing);
        let bad = [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        for value in bad {
            assert_eq!(read_w3c(&head(&[("traceparent", value)])), Carried::Unreadable, "{value:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let ids = SpanIds { trace: TRACE, span: SPAN, sampled: false };
        let mut request = head(&[("traceparent", "x"), ("tracestate", "old=1")]);
        write_w3c(&mut request, ids, b"");
        assert_eq!(request.headers.len(), 1, "a state without its parent goes");
        let read = Parent { trace: TRACE, span: SPAN, before: None, sampled: Some(false), state: Vec::new() };
        assert_eq!(read_w3c(&request), Carried::Parent(read.clone()));
        let mut request = head(&[("b3", "0")]);
        write_b3(&mut request, ids, Some(7));
        assert_eq!(read_b3(&request), Carried::Parent(Parent { before: Some(7), ..read }));
    }

    #[test]
    fn b3_comes_in_one_header_or_in_many() {
        let parent = |trace, sampled, before| Carried::Parent(Parent { trace, span: SPAN, before, sampled, state: Vec::new() });
        let single = |value: &str| read_b3(&head(&[("b3", value)]));
        assert_eq!(single("8448eb211c80319c-b7ad6b7169203331"), parent(0x8448_eb21_1c80_319c, None, None));
        let all = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-d-0000000000000007";
        assert_eq!(single(all), parent(TRACE, Some(true), Some(7)));
        assert_eq!(single("0"), Carried::Parent(decision_only(false)));
        assert_eq!(single("nonsense"), Carried::Unreadable);
        assert_eq!(read_b3(&head(&[("x-b3-sampled", "1")])), Carried::Parent(decision_only(true)));
        assert_eq!(read_b3(&head(&[("x-b3-traceid", "1"), ("x-b3-spanid", "2")])), Carried::Unreadable);
        assert_eq!(read_b3(&head(&[])), Carried::Nothing);
    }
}
