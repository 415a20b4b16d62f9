//! Fields to header blocks.

use std::hash::{BuildHasher, Hasher};

use super::table::Table;
use super::{STATIC, TABLE_SIZE, huffman, static_field, static_name};

/// How a field is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Kept in the table: the next message says it with an index.
    Keep,
    /// Not worth an entry, since its value is seldom repeated.
    Once,
    /// Never to be kept, by anyone on the way: credentials (RFC 7541 §7.1.3).
    Never,
}

/// Encodes the header blocks of one direction of a connection.
#[derive(Debug)]
pub(in crate::http::h2) struct Encoder {
    table: Table,
    hash: foldhash::fast::RandomState,
    /// The table's size has changed: the next block says so.
    resized: bool,
}

impl Encoder {
    pub(in crate::http::h2) fn new() -> Self {
        Self { table: Table::new(TABLE_SIZE), hash: foldhash::fast::RandomState::default(), resized: false }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub(in crate::http::h2) fn resize(&mut self, size: usize) {
        let size = size.min(TABLE_SIZE);
        if size != self.table.max() {
            self.table.resize(size);
            self.resized = true;
        }
    }

    /// A new block begins.
    pub(in crate::http::h2) fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.resized) {
            integer(out, 0x20, 5, self.table.max());
        }
    }

    /// Appends a field.
    pub(in crate::http::h2) fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        let static_at = static_name(name);
        let whole = static_field(static_at, value);
        if whole > 0 {
            integer(out, 0x80, 7, whole);
            return;
        }
        let form = form(name, value);
        let tag = self.tag(name, value);
        if form == Form::Keep
            && let Some(at) = self.table.find(0, tag, |n, v| n == name && v == value)
        {
            integer(out, 0x80, 7, STATIC.len() + 1 + at);
            return;
        }
        let name_tag = if static_at > 0 { 0 } else { self.tag(name, b"") };
        let at = match static_at {
            0 => self.table.find(1, name_tag, |n, _| n == name).map_or(0, |at| STATIC.len() + 1 + at),
            at => at,
        };
        // A name that is not known yet is worth an entry even where its value is not.
        let keep = form == Form::Keep || form == Form::Once && at == 0;
        match form {
            Form::Never => integer(out, 0x10, 4, at),
            _ if keep => integer(out, 0x40, 6, at),
            _ => integer(out, 0x00, 4, at),
        }
        if at == 0 {
            string(out, name);
        }
        string(out, value);
        if keep {
            self.table.insert(name, value, [tag, name_tag]);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
    fn tag(&self, name: &[u8], value: &[u8]) -> u32 {
        let mut hasher = self.hash.build_hasher();
        hasher.write(name);
        hasher.write(value);
        hasher.finish() as u32
    }
}

fn form(name: &[u8], value: &[u8]) -> Form {
    match name {
        b"authorization" | b"proxy-authorization" => Form::Never,
        // A short secret could be guessed by what it makes of the table.
        b"cookie" | b"set-cookie" if value.len() < 20 => Form::Never,
        b":path"
        | b"age"
        | b"content-length"
        | b"etag"
        | b"grpc-message"
        | b"grpc-timeout"
        | b"if-modified-since"
        | b"if-none-match"
        | b"last-modified"
        | b"location"
        | b"set-cookie"
        | b"traceparent"
        | b"x-b3-spanid"
        | b"x-b3-traceid"
        | b"x-envoy-expected-rq-timeout-ms"
        | b"x-envoy-upstream-service-time"
        | b"x-request-id" => Form::Once,
        _ => Form::Keep,
    }
}

/// An integer of which the low `prefix` bits of the first byte are free (RFC 7541 §5.1).
#[expect(clippy::cast_possible_truncation, reason = "masked to seven bits, or smaller than the prefix")]
fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, mut value: usize) {
    let max = (1usize << prefix) - 1;
    if value < max {
        out.push(first | value as u8);
        return;
    }
    out.push(first | max as u8);
    value -= max;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        integer(out, 0x80, 7, coded);
        huffman::encode(text, out);
    } else {
        integer(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}
