//! Bodies whole, in drops, and broken.

use super::*;

/// Decodes `text` given `step` bytes at a time: the data, the trailers, and what is left for the next message.
fn decode(framing: Framing, text: &[u8], step: usize, keep_trailers: bool) -> Result<(String, Vec<String>, usize), DecodeError> {
    let mut decoder = Decoder::new(framing, keep_trailers, 16 * 1024);
    let mut buf = BytesMut::new();
    let (mut data, mut trailers) = (String::new(), Vec::new());
    for piece in text.chunks(step) {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf)? {
                Decoded::Data(bytes) => data.push_str(&String::from_utf8_lossy(&bytes)),
                Decoded::Trailers(fields) => {
                    trailers.extend(fields.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned()));
                }
                Decoded::End | Decoded::NeedMore => break,
            }
        }
    }
    if decoder.end_of_input() { Ok((data, trailers, buf.len())) } else { Err(DecodeError::Chunk) }
}

#[test]
fn good_bodies_are_read_at_any_pace() {
    let table: &[(Framing, &str, &str, usize)] = &[
        (Framing::None, "GET", "", 3),
        (Framing::Length(0), "GET", "", 3),
        (Framing::Length(5), "helloGET", "hello", 3),
        (Framing::UntilClose, "hello", "hello", 0),
        (Framing::Chunked, "5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\nGET", "hello", 3),
        (Framing::Chunked, "0005\r\nhello\r\n000\r\n\r\n", "hello", 0),
        (Framing::Chunked, "A\r\n0123456789\r\n0\r\n\r\n", "0123456789", 0),
        (Framing::Chunked, "3\r\nabc\r\n3 \r\ndef\r\n0\r\n\r\n", "abcdef", 0),
        (Framing::Chunked, "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\nG", "hello", 1),
        (Framing::Chunked, "0\r\n\r\n", "", 0),
        (Framing::Chunked, "3\r\nabc\n0\r\n\r\n", "abc", 0),
        (Framing::Chunked, "3\r\nabc\r\n0\r\nX: a\r\n b\r\nY:\n\r\nG", "abc", 1),
    ];
    for (framing, text, data, left) in table {
        for step in [1, 2, 7, text.len()] {
            let (got, trailers, rest) = decode(*framing, text.as_bytes(), step, false).expect(text);
            assert_eq!((got.as_str(), trailers.len(), rest), (*data, 0, *left), "{text:?} by {step}");
        }
    }
}

#[test]
fn bad_chunks_are_refused() {
    for text in [
        "0x3\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabcXX0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3 3\0\r\nabc\r\n0\r\n\r\n",
        "10000000000000000\r\nabc",
        "3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: a\0b\r\n\r\n",
    ] {
        for step in [1, text.len()] {
            assert!(decode(Framing::Chunked, text.as_bytes(), step, true).is_err(), "{text:?} by {step}");
        }
    }
}

#[test]
fn overhead_is_bounded() {
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(17_000));
    assert_eq!(decode(Framing::Chunked, long.as_bytes(), 100, false), Err(DecodeError::Extensions));
    let spread = "1;xxxxxxxxxxxxxxxx\r\na\r\n".repeat(1100);
    assert_eq!(decode(Framing::Chunked, spread.as_bytes(), 100, false), Err(DecodeError::Extensions));
    let zeros = "0".repeat(17_000);
    assert_eq!(decode(Framing::Chunked, zeros.as_bytes(), 100, false), Err(DecodeError::Extensions));
    let trailers = format!("0\r\nx: {}\r\n\r\n", "y".repeat(17_000));
    for keep in [false, true] {
        let refused = decode(Framing::Chunked, trailers.as_bytes(), 1000, keep);
        assert_eq!(refused, Err(DecodeError::TrailersTooLarge), "{keep}");
    }
    let many = format!("0\r\n{}\r\n", "x: y\r\n".repeat(101));
    assert_eq!(decode(Framing::Chunked, many.as_bytes(), 1000, true), Err(DecodeError::Trailers));
    assert!(decode(Framing::Chunked, many.as_bytes(), 1000, false).is_ok(), "what is dropped need not be counted");
}

#[test]
fn nothing_of_what_comes_with_a_malformed_chunk_goes_on() {
    let mut decoder = Decoder::new(Framing::Chunked, false, 1024);
    let mut buf = BytesMut::from(&b"3\r\nabc\r\n3\r\ndefX"[..]);
    assert!(decoder.decode(&mut buf).is_err());
    let mut decoder = Decoder::new(Framing::Chunked, true, 1024);
    let mut buf = BytesMut::from(&b"3\r\nabc\r\n2\r\nde\r\n0\r\nX: 1\r\n\r\nGET"[..]);
    assert!(matches!(decoder.decode(&mut buf), Ok(Decoded::Data(data)) if data == "abcde"));
    assert!(!decoder.is_done(), "the trailers are still to come");
    assert!(matches!(decoder.decode(&mut buf), Ok(Decoded::Trailers(_))));
    assert!(decoder.is_done() && buf == "GET");
    let mut decoder = Decoder::new(Framing::Chunked, false, 1024);
    let mut buf = BytesMut::from(&b"3\r\nabc\r\n0\r\nbad\r\n\r\n"[..]);
    assert!(matches!(decoder.decode(&mut buf), Ok(Decoded::Data(data)) if data == "abc"), "before the trailers the data is good");
    assert_eq!(decoder.decode(&mut buf).unwrap_err(), DecodeError::Trailers);
}

#[test]
fn trailers_never_reframe_or_reroute_a_message() {
    let text = b"0\r\nX-Sum: 1\r\nHost: evil\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let (_, trailers, _) = decode(Framing::Chunked, text, text.len(), true).expect("good");
    assert_eq!(trailers, ["x-sum"]);
    assert!(decode(Framing::Chunked, text, 1, false).expect("good").1.is_empty());
}

#[test]
fn a_body_that_ends_early_is_not_complete() {
    for (framing, text) in [
        (Framing::Length(10), "abc"),
        (Framing::Chunked, "5\r\nhello\r\n"),
        (Framing::Chunked, "5\r\nhel"),
        (Framing::Chunked, "0\r\n"),
    ] {
        assert!(decode(framing, text.as_bytes(), 1, false).is_err(), "{text:?}");
    }
}

#[test]
fn chunk_sizes_are_hexadecimal() {
    for size in [1usize, 9, 10, 15, 16, 255, 256, 4096, 65_535, 1_048_577] {
        let mut out = Vec::new();
        write_chunk_size(size, &mut out);
        assert_eq!(out, format!("{size:x}\r\n").into_bytes());
    }
}

#[test]
fn an_encoder_writes_neither_more_nor_less_than_announced() {
    let mut out = Output::default();
    let mut encoder = Encoder::new(Framing::Length(5));
    assert!(encoder.write(Bytes::from_static(b"hel"), &mut out));
    assert!(!encoder.write(Bytes::from_static(b"lo and more"), &mut out));
    assert_eq!(out.tail(), b"hello");
    assert!(encoder.finish(None, &mut out) && encoder.is_done());
    let mut short = Encoder::new(Framing::Length(5));
    assert!(!short.finish(None, &mut out), "bytes are owed");
    let mut out = Output::default();
    let mut chunked = Encoder::new(Framing::Chunked);
    assert!(chunked.write(Bytes::new(), &mut out), "an empty chunk would be the last one");
    assert!(chunked.write(Bytes::from_static(b"hello"), &mut out));
    let mut trailers = Headers::new();
    trailers.push(b"x-sum", b"1");
    assert!(chunked.finish(Some((&trailers, HeaderCase::Lower)), &mut out));
    assert_eq!(String::from_utf8_lossy(out.tail()), "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n");
}
