//! HTTP/1: heads, bodies, and whole connections in memory.

use bytes::BytesMut;
use http::Method;
use skiff_proxy::http::body::BodySize;
use skiff_proxy::http::h1::body::{DecodeError, Decoded, Decoder, Framing};
use skiff_proxy::http::h1::encode::{HeaderCase, WriteHead, encode_request, encode_response};
use skiff_proxy::http::h1::head::{HeadLimits, ParsedRequest, RequestKind, parse_request, parse_response};
use skiff_proxy::http::head::{Headers, RequestHead, ResponseHead};

use crate::input::{Input, cuts, pieces};
use crate::strict::{self, Kind};

/// Limits for texts that skiff has written itself: the parser must have no excuse.
fn roomy() -> HeadLimits {
    HeadLimits { max_bytes: 1 << 20, max_headers: 1000, allow_https_target: true, ..HeadLimits::default() }
}

fn limits(choice: u8) -> HeadLimits {
    HeadLimits {
        accept_http_10: choice & 1 != 0,
        allow_https_target: choice & 2 != 0,
        preserve_case: choice & 4 != 0,
        allow_chunked_length: choice & 8 != 0,
        ..HeadLimits::default()
    }
}

fn fields(headers: &Headers) -> Vec<(String, Vec<u8>)> {
    let framing = ["content-length", "transfer-encoding", "connection"];
    let own = headers.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()));
    own.filter(|(name, _)| !framing.contains(&name.as_str())).collect()
}

/// A request head: what arrives in pieces means what it means as a whole, and what is sent on is one request, the same one,
/// to the strictest reader.
pub fn request(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = limits(input.byte());
    let bytes = input.rest();
    let mut head = RequestHead::new();
    let whole = parse_request(bytes, &limits, &mut head);
    for cut in cuts(bytes) {
        let early = parse_request(&bytes[..cut], &limits, &mut RequestHead::new());
        match (whole, early) {
            (Ok(Some(parsed)), early) if cut >= parsed.consumed => assert_eq!(early, Ok(Some(parsed)), "cut at {cut}"),
            (Ok(_), early) => assert_eq!(early, Ok(None), "cut at {cut}"),
            (Err(_), early) => assert!(!matches!(early, Ok(Some(_))), "cut at {cut}: accepted what the whole is refused for"),
        }
    }
    let Ok(Some(parsed)) = whole else { return };
    assert!(parsed.consumed <= bytes.len() && parsed.consumed <= limits.max_bytes);
    // A request without host is answered 400 before anything is sent on.
    if head.has_authority() {
        forwarded(&head, parsed);
    }
}

fn forwarded(head: &RequestHead, parsed: ParsedRequest) {
    let mut out = Vec::new();
    let framing = encode_request(head, parsed.framing.size(), HeaderCase::Lower, &mut out);
    let (strict, size) = strict::read_head(&out, Kind::Request).unwrap().expect("a whole head");
    assert_eq!(size, out.len(), "more than one message in one head");
    let expected = match framing {
        Framing::Length(length) => strict::Framing::Length(length),
        Framing::Chunked => strict::Framing::Chunked,
        Framing::None if strict.framing == strict::Framing::Length(0) => strict::Framing::Length(0),
        Framing::None => strict::Framing::None,
        Framing::UntilClose => panic!("a request cannot end with its connection"),
    };
    assert_eq!(strict.framing, expected);
    assert_eq!(framing, parsed.framing);

    let mut again = RequestHead::new();
    let reparsed = parse_request(&out, &roomy(), &mut again).unwrap().expect("a whole head");
    assert_eq!(reparsed.consumed, out.len());
    assert_eq!(reparsed.framing.size().is_empty(), framing.size().is_empty());
    assert_eq!((&again.method, again.path(), again.authority()), (&head.method, head.path(), head.authority()));
    assert_eq!(fields(&again.headers), fields(&head.headers));
}

/// A response head: as [`request`].
pub fn response(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let limits = limits(choice);
    let kind = RequestKind { head: choice & 16 != 0, connect: choice & 32 != 0, upgrade: choice & 64 != 0 };
    let bytes = input.rest();
    let mut head = ResponseHead::default();
    let whole = parse_response(bytes, &limits, kind, &mut head);
    for cut in cuts(bytes) {
        let early = parse_response(&bytes[..cut], &limits, kind, &mut ResponseHead::default());
        match (whole, early) {
            (Ok(Some(parsed)), early) if cut >= parsed.consumed => assert_eq!(early, Ok(Some(parsed)), "cut at {cut}"),
            (Ok(_), early) => assert_eq!(early, Ok(None), "cut at {cut}"),
            (Err(_), early) => assert!(!matches!(early, Ok(Some(_))), "cut at {cut}: accepted what the whole is refused for"),
        }
    }
    let Ok(Some(parsed)) = whole else { return };
    assert!(head.status != 101 || kind.upgrade, "an upgrade that nobody asked for");
    let size = if kind.head && parsed.framing == Framing::None { BodySize::Unknown } else { parsed.framing.size() };
    let write = WriteHead { request_is_head: kind.head, tunnel: kind.connect && parsed.upgraded, ..WriteHead::default() };
    let mut out = Vec::new();
    let framing = encode_response(&head, size, write, HeaderCase::Lower, &mut out);
    let strict_kind = Kind::Response { head: kind.head, connect: kind.connect };
    let (strict, size) = strict::read_head(&out, strict_kind).unwrap().expect("a whole head");
    assert_eq!(size, out.len(), "more than one message in one head");
    match framing {
        Framing::None => assert!(matches!(strict.framing, strict::Framing::None | strict::Framing::Length(0)), "{strict:?}"),
        Framing::Length(length) => assert_eq!(strict.framing, strict::Framing::Length(length)),
        Framing::Chunked => assert_eq!(strict.framing, strict::Framing::Chunked),
        Framing::UntilClose => panic!("HTTP/1.1 has chunks for that"),
    }
    let again: Vec<_> =
        strict.fields.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone())).collect();
    let kept = |all: Vec<(String, Vec<u8>)>| -> Vec<(String, Vec<u8>)> {
        let framing = ["content-length", "transfer-encoding", "connection"];
        all.into_iter().filter(|(name, _)| !framing.contains(&name.to_ascii_lowercase().as_str())).collect()
    };
    let lower = |all: Vec<(String, Vec<u8>)>| -> Vec<_> { all.into_iter().map(|(n, v)| (n.to_ascii_lowercase(), v)).collect() };
    assert_eq!(lower(kept(again)), fields(&head.headers));
}

/// What a body came to.
#[derive(Debug, PartialEq, Eq)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    /// Unused bytes behind the end; `None` when there is no end.
    end: Option<usize>,
    error: Option<DecodeError>,
}

fn decode<'a>(decoder: &mut Decoder, parts: impl Iterator<Item = &'a [u8]>) -> Body {
    let mut body = Body { data: Vec::new(), trailers: Vec::new(), end: None, error: None };
    let mut buf = BytesMut::new();
    let mut done = false;
    // Where there is nothing to read there may still be an end.
    for part in parts.chain([&[][..]]) {
        buf.extend_from_slice(part);
        while !done && body.error.is_none() {
            match decoder.decode(&mut buf) {
                Ok(Decoded::Data(data)) => {
                    assert!(!data.is_empty(), "an empty piece");
                    body.data.extend_from_slice(&data);
                }
                Ok(Decoded::Trailers(trailers)) => body.trailers = fields(&trailers),
                Ok(Decoded::End) => done = true,
                Ok(Decoded::NeedMore) => break,
                Err(error) => body.error = Some(error),
            }
        }
    }
    assert_eq!(done, decoder.is_done());
    body.end = done.then_some(buf.len());
    body
}

/// A body: cut anywhere it is the same body with the same end, and a chunked one is what the strict reader makes of it.
pub fn body(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let framing = match choice & 3 {
        0 | 1 => Framing::Chunked,
        2 => Framing::Length(u64::from(input.byte())),
        _ => Framing::UntilClose,
    };
    let sizes: Vec<u8> = (0..choice >> 5).map(|_| input.byte()).collect();
    let bytes = input.rest();
    let fresh = || Decoder::new(framing, choice & 4 != 0, 16 * 1024);
    let whole = decode(&mut fresh(), std::iter::once(bytes));
    for parts in [&sizes[..], &[1]] {
        let split = decode(&mut fresh(), pieces(bytes, parts));
        assert_eq!(split.error.is_some(), whole.error.is_some(), "{parts:?}");
        // What comes together with a fault is held back; what came before it may have been given out.
        let given_out =
            if whole.error.is_some() { &split.data[..whole.data.len().min(split.data.len())] } else { &split.data[..] };
        assert_eq!(given_out, whole.data, "{parts:?}");
        assert_eq!((split.end, &split.trailers), (whole.end, &whole.trailers), "{parts:?}");
    }
    for (name, _) in &whole.trailers {
        assert!(!matches!(name.as_str(), "host" | "content-length" | "transfer-encoding" | "trailer"), "{name}");
    }
    if framing == Framing::Chunked && whole.error.is_none() && whole.end.is_some() {
        chunked_as_others_read_it(&bytes[..bytes.len() - whole.end.unwrap_or(0)], &whole.data);
    }
}

/// Takes a chunked body apart by the plain rule, extensions cut off; the sizes must lead to the same body.
fn chunked_as_others_read_it(mut bytes: &[u8], data: &[u8]) {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|two| two == b"\r\n").expect("a size line");
        let digits = bytes[..line].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        assert!(!bytes[..line].contains(&b'\n') && !bytes[..line].contains(&b'\r'), "a bare line end in a size line");
        assert!(digits > 0 && matches!(bytes.get(digits), Some(b'\r' | b';' | b' ' | b'\t')));
        let size =
            bytes[..digits].iter().fold(0usize, |sum, b| sum * 16 + usize::try_from((*b as char).to_digit(16).unwrap()).unwrap());
        bytes = &bytes[line + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(&bytes[..size]);
        // A bare LF ends the data of a chunk for Envoy, too.
        let end = if bytes[size] == b'\n' { 1 } else { 2 };
        assert!(bytes[size..].starts_with(b"\r\n") || end == 1);
        bytes = &bytes[size + end..];
    }
    assert_eq!(body, data);
    assert!(bytes.ends_with(b"\n"), "the end of the trailers");
}

/// Whether the method's requests may be sent on in [`crate::connection`]: a tunnel is none of its business.
pub(crate) fn is_tunnel(method: &Method) -> bool {
    *method == Method::CONNECT
}
