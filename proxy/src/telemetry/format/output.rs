//! Where rendered values go: text or the inside of a JSON string, escaped accordingly.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// How values are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Nothing is escaped: for the first, optimistic rendering of text, see [`super::Format::render`].
    Raw,
    /// Text: control characters become `\xNN`, everything else stays.
    Line,
    /// The inside of a JSON string: RFC 8259 escapes, and U+FFFD for what is not UTF-8.
    Json,
}

/// Static text of a format. Most of it is a blank or a quote between two operators, so a copy of fixed size pays.
#[derive(Clone, Debug)]
pub(super) struct StaticText {
    text: Box<str>,
    /// The text, if it fits, padded with zeros.
    short: Option<[u8; SHORT]>,
}

const SHORT: usize = 8;

impl StaticText {
    pub(super) fn new(text: &str) -> Self {
        let mut short = [0; SHORT];
        let padded = short.get_mut(..text.len()).map(|prefix| prefix.copy_from_slice(text.as_bytes()));
        Self { text: text.into(), short: padded.map(|()| short) }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Appends the text: escaped for JSON, verbatim in text, where it holds the line feed.
    #[inline]
    pub(super) fn write(&self, out: &mut Output<'_>) {
        match (&self.short, out.style) {
            (_, Style::Json) => out.literal(&self.text),
            (Some(short), _) => {
                let end = out.buffer.len() + self.text.len();
                out.buffer.extend_from_slice(short);
                out.buffer.truncate(end);
            }
            (None, _) => out.buffer.extend_from_slice(self.text.as_bytes()),
        }
    }
}

/// A buffer with a style, and the limit of the value that is being written. What appends a value returns true, for
/// operators to end with.
pub(super) struct Output<'a> {
    /// What has been rendered so far.
    pub(super) buffer: &'a mut Vec<u8>,
    /// How values are escaped.
    pub(super) style: Style,
    /// Bytes of the value that are kept (`%REQ(X):10%`), counted before escaping as in Envoy.
    pub(super) limit: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(buffer: &'a mut Vec<u8>, style: Style) -> Self {
        Self { buffer, style, limit: usize::MAX }
    }

    /// A value that holds nothing to escape: numbers, addresses, flags.
    #[inline]
    pub(super) fn trusted(&mut self, value: &[u8]) -> bool {
        self.buffer.extend_from_slice(value);
        true
    }

    /// Static text of the format: escaped for JSON, verbatim in text, where it holds the line feed.
    #[inline]
    pub(super) fn literal(&mut self, text: &str) {
        match self.style {
            Style::Raw | Style::Line => self.buffer.extend_from_slice(text.as_bytes()),
            Style::Json => push_json(self.buffer, text.as_bytes()),
        }
    }

    /// A value that a peer or the configuration chose.
    #[inline]
    pub(super) fn untrusted(&mut self, value: &[u8]) -> bool {
        let value = &value[..value.len().min(self.limit)];
        match self.style {
            Style::Raw => self.buffer.extend_from_slice(value),
            Style::Line => push_line(self.buffer, value),
            Style::Json => push_json(self.buffer, value),
        }
        true
    }

    /// As [`Output::untrusted`]; an empty text is a missing one.
    pub(super) fn text(&mut self, value: Option<&str>) -> bool {
        value.is_some_and(|value| !value.is_empty() && self.untrusted(value.as_bytes()))
    }

    /// As [`Output::text`], white space replaced by `_`, so that the value stays one word of a text log.
    pub(super) fn one_word(&mut self, value: Option<&str>) -> bool {
        match value {
            Some(text) if text.bytes().any(|byte| byte.is_ascii_whitespace()) => {
                let word = text.replace(|c: char| c.is_ascii_whitespace(), "_");
                self.untrusted(word.as_bytes())
            }
            _ => self.text(value),
        }
    }

    /// Items separated by commas; false when there is none.
    pub(super) fn list(&mut self, items: &[String]) -> bool {
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.trusted(b",");
            }
            self.untrusted(item.as_bytes());
        }
        !items.is_empty()
    }

    /// A decimal number.
    pub(super) fn number(&mut self, value: u64) -> bool {
        self.trusted(itoa::Buffer::new().format(value).as_bytes())
    }

    /// `1.2.3.4` or `2001:db8::1`, without brackets.
    pub(super) fn ip(&mut self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => {
                let (text, length) = dotted(v4);
                self.trusted(&text[..length])
            }
            IpAddr::V6(_) => self.trusted(ip.to_string().as_bytes()),
        }
    }

    /// `1.2.3.4:80` or `[2001:db8::1]:80`.
    pub(super) fn address(&mut self, address: SocketAddr) -> bool {
        match address {
            SocketAddr::V4(v4) => {
                let (text, length) = dotted(*v4.ip());
                self.trusted(&text[..length]);
            }
            SocketAddr::V6(v6) => {
                self.trusted(b"[");
                self.ip((*v6.ip()).into());
                self.trusted(b"]");
            }
        }
        let mut port = *b":00000";
        let (mut at, mut rest) = (port.len(), address.port());
        loop {
            at -= 1;
            port[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        port[at - 1] = b':';
        self.trusted(&port[at - 1..])
    }
}

/// An IPv4 address and its length. Written by hand because three of them
/// are in every line, and fmt made them a third of its cost.
fn dotted(ip: Ipv4Addr) -> ([u8; 16], usize) {
    let (mut text, mut at) = ([0; 16], 0);
    for octet in ip.octets() {
        let (digits, length) = OCTETS[usize::from(octet)];
        text[at..at + 4].copy_from_slice(&digits);
        at += length;
    }
    // The last octet has its dot, too.
    (text, at - 1)
}

/// Octets as text with a dot behind, and the length of that.
const OCTETS: [([u8; 4], usize); 256] = {
    let mut table = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [(octet / 100) as u8 + b'0', (octet / 10 % 10) as u8 + b'0', (octet % 10) as u8 + b'0'];
        let length = if octet >= 100 {
            3
        } else if octet >= 10 {
            2
        } else {
            1
        };
        let mut at = 0;
        while at < length {
            table[octet].0[at] = digits[3 - length + at];
            at += 1;
        }
        table[octet].1 = length + 1;
        octet += 1;
    }
    table
};

/// Control characters in a text.
pub(super) fn count_controls(text: &[u8]) -> usize {
    // Sums that fit a byte are added in one vector register; whole registers leave no remainder but the last.
    text.chunks(240).map(|chunk| usize::from(chunk.iter().map(|byte| u8::from(is_control(*byte))).sum::<u8>())).sum()
}

/// Tabs are legal in headers and cannot end a line.
fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

fn push_line(out: &mut Vec<u8>, value: &[u8]) {
    for &byte in value {
        if is_control(byte) {
            out.extend_from_slice(&[b'\\', b'x', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        } else {
            out.push(byte);
        }
    }
}

fn push_json(out: &mut Vec<u8>, value: &[u8]) {
    // A fold without an early exit is vectorised; bytes that need escapes are rare.
    let plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if value.iter().fold(true, |all, byte| all & plain(*byte)) {
        return out.extend_from_slice(value);
    }
    for chunk in value.utf8_chunks() {
        for &byte in chunk.valid().as_bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..b' ' | 0x7f => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex_digit(byte >> 4), hex_digit(byte & 15)]),
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn hex_digit(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble & 15)]
}
