//! Header blocks to fields.

use super::table::Table;
use super::{MAX_STRING, Malformed, STATIC, TABLE_SIZE, huffman};
use crate::http::h2::validate;

/// One field of a header block.
#[derive(Clone, Copy, Debug)]
pub(in crate::http::h2) struct Field<'a> {
    pub(in crate::http::h2) name: &'a [u8],
    pub(in crate::http::h2) value: &'a [u8],
    /// Name and value are made of characters that a field may have. A pseudo header's name passes with its colon.
    pub(in crate::http::h2) legal: bool,
}

/// Decodes the header blocks of one direction of a connection.
#[derive(Debug)]
pub(in crate::http::h2) struct Decoder {
    table: Table,
    /// Name and value of the literal at hand.
    scratch: Vec<u8>,
    /// No field has come yet in this block: the table's size may change.
    at_start: bool,
}

impl Decoder {
    pub(in crate::http::h2) fn new() -> Self {
        Self { table: Table::new(TABLE_SIZE), scratch: Vec::new(), at_start: true }
    }

    /// A new block begins.
    pub(in crate::http::h2) fn begin(&mut self) {
        self.at_start = true;
        if self.scratch.capacity() > TABLE_SIZE {
            self.scratch = Vec::new();
        }
    }

    /// Decodes every field that is complete and says how many bytes those took.
    ///
    /// # Errors
    /// When the block is malformed; nothing more can be decoded on this connection then.
    pub(in crate::http::h2) fn decode(&mut self, block: &[u8], mut field: impl FnMut(Field<'_>)) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < block.len() {
            match self.representation(&block[at..], &mut field)? {
                Some(taken) => at += taken,
                None => break,
            }
        }
        Ok(at)
    }

    /// One representation; `None` when it is not complete.
    fn representation(&mut self, input: &[u8], field: &mut impl FnMut(Field<'_>)) -> Result<Option<usize>, Malformed> {
        let first = input[0];
        if first & 0xe0 == 0x20 {
            let Some((size, taken)) = integer(input, 5)? else { return Ok(None) };
            if !self.at_start || size > TABLE_SIZE {
                return Err(Malformed);
            }
            self.table.resize(size);
            return Ok(Some(taken));
        }
        self.at_start = false;
        if first & 0x80 != 0 {
            let Some((index, taken)) = integer(input, 7)? else { return Ok(None) };
            let (name, value, legal) = self.indexed(index)?;
            field(Field { name, value, legal });
            return Ok(Some(taken));
        }
        let keep = first & 0xc0 == 0x40;
        let Some((index, mut at)) = integer(input, if keep { 6 } else { 4 })? else { return Ok(None) };
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let name_legal = if index == 0 {
            let Some(taken) = string(&input[at..], &mut scratch)? else { return Ok(self.give_back(scratch)) };
            at += taken;
            validate::is_name(&scratch)
        } else {
            let (name, _, _) = self.indexed(index)?;
            scratch.extend_from_slice(name);
            validate::is_name(name)
        };
        let middle = scratch.len();
        let Some(taken) = string(&input[at..], &mut scratch)? else { return Ok(self.give_back(scratch)) };
        let (name, value) = scratch.split_at(middle);
        let legal = name_legal && validate::is_value(value);
        field(Field { name, value, legal });
        if keep {
            self.table.insert(name, value, [u32::from(legal), 0]);
        }
        self.scratch = scratch;
        Ok(Some(at + taken))
    }

    /// The literal is not complete: its memory waits for the next try.
    fn give_back(&mut self, scratch: Vec<u8>) -> Option<usize> {
        self.scratch = scratch;
        None
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8], bool), Malformed> {
        if index == 0 {
            return Err(Malformed);
        }
        if let Some((name, value)) = STATIC.get(index - 1) {
            return Ok((name.as_bytes(), value.as_bytes(), true));
        }
        let (name, value, legal) = self.table.get(index - 1 - STATIC.len()).ok_or(Malformed)?;
        Ok((name, value, legal == 1))
    }
}

/// An integer that begins in the low `prefix` bits (RFC 7541 §5.1), and its length.
fn integer(input: &[u8], prefix: u32) -> Result<Option<(usize, usize)>, Malformed> {
    let Some(first) = input.first() else { return Ok(None) };
    let max = (1usize << prefix) - 1;
    let mut value = usize::from(*first) & max;
    if value < max {
        return Ok(Some((value, 1)));
    }
    // Four more bytes reach 2^28: far more than any length that is accepted.
    for (at, byte) in input.iter().enumerate().skip(1) {
        if at > 4 {
            return Err(Malformed);
        }
        value += usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if input.len() > 4 { Err(Malformed) } else { Ok(None) }
}

/// Appends a string and says how many bytes it took.
fn string(input: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, Malformed> {
    let Some((length, at)) = integer(input, 7)? else { return Ok(None) };
    if length > MAX_STRING {
        return Err(Malformed);
    }
    let Some(text) = input.get(at..at + length) else { return Ok(None) };
    if input[0] & 0x80 == 0 {
        out.extend_from_slice(text);
    } else {
        let before = out.len();
        huffman::decode(text, out)?;
        if out.len() - before > MAX_STRING {
            return Err(Malformed);
        }
    }
    Ok(Some(at + length))
}
