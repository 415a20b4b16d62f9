//! Where rendered values go: text or the inside of a JSON string, escaped accordingly.

use std::net::{IpAddr, SocketAddr};

/// How values are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Text: control characters become `\xNN`, everything else stays.
    Line,
    /// The inside of a JSON string: RFC 8259 escapes, and U+FFFD for what is not UTF-8.
    Json,
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
    pub(super) fn trusted(&mut self, value: &[u8]) -> bool {
        self.buffer.extend_from_slice(value);
        true
    }

    /// Static text of the format: escaped for JSON, verbatim in text, where it holds the line feed.
    pub(super) fn literal(&mut self, text: &str) {
        match self.style {
            Style::Line => self.buffer.extend_from_slice(text.as_bytes()),
            Style::Json => push_json(self.buffer, text.as_bytes()),
        }
    }

    /// A value that a peer or the configuration chose.
    pub(super) fn untrusted(&mut self, value: &[u8]) -> bool {
        let value = &value[..value.len().min(self.limit)];
        match self.style {
            Style::Line => push_line(self.buffer, value),
            Style::Json => push_json(self.buffer, value),
        }
        true
    }

    /// As [`Output::untrusted`], white space replaced by `_`, so that the value stays one word of a text log.
    pub(super) fn one_word(&mut self, value: &str) -> bool {
        if !value.contains(char::is_whitespace) {
            return self.untrusted(value.as_bytes());
        }
        let word: String = value.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        self.untrusted(word.as_bytes())
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
            // Written by hand because fmt costs ten times as much, three times a line.
            IpAddr::V4(v4) => {
                for (index, octet) in v4.octets().into_iter().enumerate() {
                    if index > 0 {
                        self.trusted(b".");
                    }
                    self.trusted(itoa::Buffer::new().format(octet).as_bytes());
                }
                true
            }
            IpAddr::V6(_) => self.trusted(ip.to_string().as_bytes()),
        }
    }

    /// `1.2.3.4:80` or `[2001:db8::1]:80`.
    pub(super) fn address(&mut self, address: SocketAddr) -> bool {
        match address {
            SocketAddr::V4(v4) => {
                self.ip((*v4.ip()).into());
                self.trusted(b":");
            }
            SocketAddr::V6(v6) => {
                self.trusted(b"[");
                self.ip((*v6.ip()).into());
                self.trusted(b"]:");
            }
        }
        self.number(address.port().into())
    }
}

/// Tabs are legal in headers and cannot end a line.
fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

fn push_line(out: &mut Vec<u8>, value: &[u8]) {
    // A fold without an early exit is vectorised; hostile bytes are rare.
    if !value.iter().fold(false, |found, byte| found | is_control(*byte)) {
        return out.extend_from_slice(value);
    }
    for &byte in value {
        if is_control(byte) {
            out.extend_from_slice(&[b'\\', b'x', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        } else {
            out.push(byte);
        }
    }
}

fn push_json(out: &mut Vec<u8>, value: &[u8]) {
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
