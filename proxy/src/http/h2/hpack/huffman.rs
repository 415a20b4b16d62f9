//! The Huffman code of HPACK (RFC 7541 appendix B). It is canonical, so the lengths are the whole table.

use super::Malformed;

/// Bits of each symbol's code. The end-of-string symbol, thirty ones, is never sent and decodes as an error.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const LONGEST: usize = 30;

struct Tables {
    /// Code of each symbol.
    codes: [u32; 256],
    /// Symbols by length, then by value: the order of their codes.
    symbols: [u8; 256],
    /// First code of each length, and where its symbols begin.
    first: [u32; LONGEST + 1],
    begin: [u16; LONGEST + 2],
    /// Symbol and length by the next eight bits; length zero where the code is longer.
    short: [(u8, u8); 256],
}

static TABLES: Tables = tables();

#[expect(clippy::cast_possible_truncation, reason = "symbols are bytes, and there are 256 of them")]
const fn tables() -> Tables {
    let mut t =
        Tables { codes: [0; 256], symbols: [0; 256], first: [0; LONGEST + 1], begin: [0; LONGEST + 2], short: [(0, 0); 256] };
    let (mut code, mut length, mut next) = (0u32, 1, 0);
    while length <= LONGEST {
        code <<= 1;
        t.first[length] = code;
        t.begin[length] = next as u16;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                t.codes[symbol] = code;
                t.symbols[next] = symbol as u8;
                if length <= 8 {
                    let low = (code as usize) << (8 - length);
                    let mut at = low;
                    while at < low + (1 << (8 - length)) {
                        t.short[at] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                next += 1;
                code += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    t.begin[LONGEST + 1] = next as u16;
    t
}

/// Appends what `input` stands for.
///
/// # Errors
/// For a code that does not exist and for padding that is not the beginning of the end-of-string symbol.
#[expect(clippy::cast_possible_truncation, reason = "masked to the bits of a code")]
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut bits, mut count) = (0u64, 0u32);
    'input: for byte in input {
        bits = bits << 8 | u64::from(*byte);
        count += 8;
        while count >= 8 {
            let (symbol, length) = TABLES.short[(bits >> (count - 8)) as u8 as usize];
            if length > 0 {
                out.push(symbol);
                count -= u32::from(length);
                continue;
            }
            let Some((symbol, length)) = long(bits, count)? else { continue 'input };
            out.push(symbol);
            count -= length;
        }
    }
    while count > 0 && count < 8 {
        let (symbol, length) = TABLES.short[((bits << (8 - count)) as u8 | (0xff >> count)) as usize];
        if length == 0 || u32::from(length) > count {
            break;
        }
        out.push(symbol);
        count -= u32::from(length);
    }
    let padding = (1u64 << count) - 1;
    if count < 8 && bits & padding == padding { Ok(()) } else { Err(Malformed) }
}

/// A symbol of more than eight bits; `None` when it is not all there yet.
#[expect(clippy::cast_possible_truncation, reason = "masked to the bits of a code")]
fn long(bits: u64, count: u32) -> Result<Option<(u8, u32)>, Malformed> {
    for length in 9..=LONGEST as u32 {
        if count < length {
            return Ok(None);
        }
        let code = (bits >> (count - length)) as u32 & ((1 << length) - 1);
        let (begin, end) = (TABLES.begin[length as usize], TABLES.begin[length as usize + 1]);
        let offset = code.wrapping_sub(TABLES.first[length as usize]);
        if offset < u32::from(end - begin) {
            return Ok(Some((TABLES.symbols[usize::from(begin) + offset as usize], length)));
        }
    }
    Err(Malformed)
}

/// Bytes that `input` takes when it is encoded.
pub(super) fn encoded_len(input: &[u8]) -> usize {
    input.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum::<usize>().div_ceil(8)
}

/// Appends the code of `input`.
#[expect(clippy::cast_possible_truncation, reason = "whole bytes are taken from the top")]
pub(super) fn encode(input: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0u64, 0u32);
    for byte in input {
        let length = u32::from(LENGTHS[usize::from(*byte)]);
        bits = bits << length | u64::from(TABLES.codes[usize::from(*byte)]);
        count += length;
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        out.push((bits << (8 - count)) as u8 | (0xff >> count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(text: &[u8]) {
        let (mut code, mut back) = (Vec::new(), Vec::new());
        encode(text, &mut code);
        assert_eq!(code.len(), encoded_len(text));
        decode(&code, &mut back).unwrap();
        assert_eq!(back, text);
    }

    #[test]
    fn the_examples_of_the_rfc_come_out() {
        let mut code = Vec::new();
        encode(b"www.example.com", &mut code);
        assert_eq!(code, [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff]);
        code.clear();
        encode(b"no-cache", &mut code);
        assert_eq!(code, [0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]);
    }

    #[test]
    fn every_byte_survives_in_every_position() {
        let all: Vec<u8> = (0..=255).collect();
        round_trip(&all);
        for byte in 0..=255u8 {
            round_trip(&[byte]);
            round_trip(&[b'a', byte, b'0']);
            round_trip(&[byte; 7]);
        }
    }

    #[test]
    fn bad_padding_and_the_end_symbol_are_refused() {
        for bad in [&[0xff][..], &[0xff, 0xff], &[0xff, 0xff, 0xff, 0xff], &[0x00], &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbe]] {
            assert!(decode(bad, &mut Vec::new()).is_err(), "{bad:x?}");
        }
    }
}
