//! What the first bytes of a connection are (Envoy's `tls_inspector` and `http_inspector`): no I/O, no state.
//!
//! The caller reads, calls again with everything read so far, and stops at [`SNIFF_LIMIT`]. While bytes are missing only
//! record headers are looked at, so a peer that sends one byte at a time buys no more work than one that does not.

/// Bytes after which sniffing gives up.
pub const SNIFF_LIMIT: usize = 64 * 1024;

/// What [`sniff`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// It could still be TLS: read on.
    NeedMore,
    /// Not TLS, or a `ClientHello` that no TLS library would accept.
    Plaintext,
    /// A complete `ClientHello`.
    Tls {
        /// SNI, lower case, as Envoy matches and logs it.
        server_name: Option<String>,
        /// Offered protocols in order.
        alpn: Vec<Vec<u8>>,
    },
}

/// What [`sniff_http`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpSniff {
    /// It could still be HTTP: read on.
    NeedMore,
    /// An HTTP/1 request line.
    Http1,
    /// The connection preface of HTTP/2.
    Http2Preface,
    /// Something else.
    NotHttp,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// Honest clients need two or three; the bound keeps a call cheap for a hello of one-byte records.
const MAX_RECORDS: usize = 256;
const MAX_RECORD: usize = 1 << 14;

/// Looks for a TLS `ClientHello` in the first bytes of a connection; it may be split over several records.
pub fn sniff(bytes: &[u8]) -> Sniff {
    let more = if bytes.len() < SNIFF_LIMIT { Sniff::NeedMore } else { Sniff::Plaintext };
    match client_hello(bytes) {
        Hello::Incomplete => more,
        Hello::None => Sniff::Plaintext,
        Hello::Whole(message) => parse_client_hello(&message).unwrap_or(Sniff::Plaintext),
    }
}

enum Hello {
    Incomplete,
    None,
    Whole(Vec<u8>),
}

/// The body of the `ClientHello`, joined from its records.
fn client_hello(bytes: &[u8]) -> Hello {
    let (mut prefix, mut have) = ([0; MESSAGE_HEADER], 0);
    let mut rest = bytes;
    for _ in 0..MAX_RECORDS {
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3) {
            return Hello::None;
        }
        let Some((header, tail)) = rest.split_at_checked(RECORD_HEADER) else { return Hello::Incomplete };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > MAX_RECORD {
            return Hello::None;
        }
        let fragment = &tail[..len.min(tail.len())];
        for (slot, byte) in prefix.iter_mut().skip(have).zip(fragment) {
            *slot = *byte;
        }
        have += fragment.len();
        if have > 0 && prefix[0] != CLIENT_HELLO {
            return Hello::None;
        }
        if have >= MESSAGE_HEADER {
            let body = u32::from_be_bytes([0, prefix[1], prefix[2], prefix[3]]) as usize;
            if body > SNIFF_LIMIT {
                return Hello::None;
            }
            if have >= MESSAGE_HEADER + body {
                return Hello::Whole(joined(bytes, body));
            }
        }
        let Some(next) = tail.get(len..) else { return Hello::Incomplete };
        rest = next;
    }
    Hello::None
}

/// The first `len` bytes of the message behind its header, from records that are known to hold them.
fn joined(mut records: &[u8], len: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(MESSAGE_HEADER + len);
    while message.len() < MESSAGE_HEADER + len && records.len() > RECORD_HEADER {
        let (header, tail) = records.split_at(RECORD_HEADER);
        let record = usize::from(u16::from_be_bytes([header[3], header[4]])).min(tail.len());
        let (fragment, next) = tail.split_at(record);
        message.extend_from_slice(fragment);
        records = next;
    }
    message.truncate(MESSAGE_HEADER + len);
    message.split_off(MESSAGE_HEADER)
}

fn parse_client_hello(body: &[u8]) -> Option<Sniff> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?;
    let session = hello.u8()?;
    hello.take(session.into())?;
    hello.vector16()?;
    let compression = hello.u8()?;
    hello.take(compression.into())?;
    let (mut server_name, mut alpn) = (None, Vec::new());
    if !hello.0.is_empty() {
        let mut extensions = hello.vector16()?;
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let mut data = extensions.vector16()?;
            match kind {
                SERVER_NAME => server_name = host_name(data.vector16()?)?,
                ALPN => alpn = protocols(data.vector16()?)?,
                _ => {}
            }
        }
    }
    Some(Sniff::Tls { server_name, alpn })
}

fn host_name(mut list: Reader<'_>) -> Option<Option<String>> {
    const HOST_NAME: u8 = 0;
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.vector16()?.0;
        if kind == HOST_NAME {
            let printable = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
            return printable.then(|| Some(String::from_utf8_lossy(name).to_ascii_lowercase()));
        }
    }
    Some(None)
}

fn protocols(mut list: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while !list.0.is_empty() {
        let len = list.u8()?;
        let name = list.take(len.into())?;
        if name.is_empty() {
            return None;
        }
        all.push(name.to_vec());
    }
    Some(all)
}

/// Reads from the front; `None` past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector16(&mut self) -> Option<Reader<'a>> {
        let len = self.u16()?;
        self.take(len.into()).map(Reader)
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer than any registered method.
const MAX_METHOD: usize = 32;

/// Looks for HTTP in the first bytes of a plaintext connection.
pub fn sniff_http(bytes: &[u8]) -> HttpSniff {
    if bytes.starts_with(PREFACE) {
        return HttpSniff::Http2Preface;
    }
    if PREFACE.starts_with(bytes) {
        return HttpSniff::NeedMore;
    }
    let window = &bytes[..bytes.len().min(SNIFF_LIMIT)];
    let end = window.iter().position(|b| *b == b'\n');
    let line = &window[..end.unwrap_or(window.len())];
    let method = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let method_ok = method > 0 && method <= MAX_METHOD && line[..method].iter().copied().all(is_token);
    let rest = line.strip_suffix(b"\r").unwrap_or(line).get(method..).unwrap_or_default();
    if !method_ok || rest.iter().any(u8::is_ascii_control) && end.is_some() {
        return HttpSniff::NotHttp;
    }
    match end {
        Some(_) if rest.len() > 10 && (rest.ends_with(b" HTTP/1.1") || rest.ends_with(b" HTTP/1.0")) => HttpSniff::Http1,
        Some(_) => HttpSniff::NotHttp,
        None if bytes.len() >= SNIFF_LIMIT => HttpSniff::NotHttp,
        None => HttpSniff::NeedMore,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector16(data: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(data.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(data);
        out
    }

    fn hello(sni: &[u8], protocols: &[&str]) -> Vec<u8> {
        let mut name = vec![0];
        name.extend(vector16(sni));
        let mut list = Vec::new();
        for protocol in protocols {
            list.push(u8::try_from(protocol.len()).unwrap());
            list.extend(protocol.as_bytes());
        }
        let mut extensions = vec![0, 0];
        extensions.extend(vector16(&vector16(&name)));
        extensions.extend([0, 16]);
        extensions.extend(vector16(&vector16(&list)));
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(vector16(&[0x13, 1]));
        body.extend([1, 0]);
        body.extend(vector16(&extensions));
        let mut message = vec![1, 0];
        message.extend(vector16(&body));
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|fragment| [vec![22, 3, 1], vector16(fragment)].concat()).collect()
    }

    #[test]
    fn a_client_hello_is_found_however_it_is_split() {
        let message = hello(b"Outbound_.9080_._.details", &["istio", "h2"]);
        let found =
            Sniff::Tls { server_name: Some("outbound_.9080_._.details".into()), alpn: vec![b"istio".to_vec(), b"h2".to_vec()] };
        for size in [1, 2, 3, 5, 50, 16_384] {
            let bytes = records(&message, size);
            assert_eq!(sniff(&bytes), found, "records of {size}");
            for cut in 0..bytes.len() {
                assert_eq!(sniff(&bytes[..cut]), Sniff::NeedMore, "records of {size} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_client_hello_is_plaintext() {
        let whole = records(&hello(b"a", &["h2"]), 16_384);
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            &[22, 2],
            &[21, 3, 1],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0x50, 0],
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            &[22, 3, 1, 0, 4, 1, 0xff, 0, 0],
            &records(&hello(b"a\0b", &["h2"]), 99),
            &records(&hello(b"", &["h2"]), 99),
            &records(&hello(b"a", &[""]), 99),
            &[&whole[..50], &vec![0xff; whole.len() - 50][..]].concat(),
        ] {
            assert_eq!(sniff(bad), Sniff::Plaintext, "{bad:?}");
        }
        assert_eq!(sniff(&[]), Sniff::NeedMore);
        assert_eq!(sniff(&[22, 3, 1, 0, 1, 1].repeat(SNIFF_LIMIT / 6 + 1)), Sniff::Plaintext);
    }

    #[test]
    fn random_and_damaged_bytes_never_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        let whole = records(&hello(b"details.bookinfo", &["istio-http/1.1", "istio", "http/1.1"]), 60);
        for _ in 0..50_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=whole.len()));
            sniff(&bytes);
            sniff_http(&bytes);
            random.fill(&mut bytes);
            sniff(&bytes);
            sniff_http(&bytes);
        }
    }

    #[test]
    fn http_is_told_from_other_plaintext() {
        assert_eq!(sniff_http(PREFACE), HttpSniff::Http2Preface);
        assert_eq!(sniff_http(b"GET /a b HTTP/1.1\r\n"), HttpSniff::Http1);
        assert_eq!(sniff_http(b"PRI-X / HTTP/1.0\n"), HttpSniff::Http1);
        for more in [&b""[..], b"P", &PREFACE[..20], b"GET", b"GET / HTTP/1.1", b"GET /\r"] {
            assert_eq!(sniff_http(more), HttpSniff::NeedMore, "{more:?}");
        }
        for other in [&b"\x16\x03\x01"[..], b" GET", b"GET / HTTP/2.0\r\n", b"GET HTTP/1.1\r\n", b"hello world\n", &[b'A'; 40]] {
            assert_eq!(sniff_http(other), HttpSniff::NotHttp, "{other:?}");
        }
        assert_eq!(sniff_http(&[b"GET /", &[b'a'; SNIFF_LIMIT][..]].concat()), HttpSniff::NotHttp);
    }
}
