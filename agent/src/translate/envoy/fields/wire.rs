//! The fields of an encoded message, one after the other.
//!
//! <https://protobuf.dev/programming-guides/encoding/>

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) enum Value<'a> {
    /// A number.
    Scalar,
    /// A text, bytes, a message, or numbers that were packed.
    Bytes(&'a [u8]),
}

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) struct Malformed;

/// Numbers and values of the fields, in their order. Ends after the first mistake.
pub(super) fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>), Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = one(&mut rest);
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

/// The next field; `rest` is what follows it.
pub(in super::super) fn one<'a>(rest: &mut &'a [u8]) -> Result<(u32, Value<'a>), Malformed> {
    let (number, kind) = decode_key(rest).map_err(|_| Malformed)?;
    let length = match kind {
        WireType::Varint => {
            decode_varint(rest).map_err(|_| Malformed)?;
            return Ok((number, Value::Scalar));
        }
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => usize::try_from(decode_varint(rest).map_err(|_| Malformed)?).map_err(|_| Malformed)?,
        // Groups: in none of Envoy's messages.
        WireType::StartGroup | WireType::EndGroup => return Err(Malformed),
    };
    if length > rest.remaining() {
        return Err(Malformed);
    }
    let (value, after) = rest.split_at(length);
    *rest = after;
    Ok((number, if kind == WireType::LengthDelimited { Value::Bytes(value) } else { Value::Scalar }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_field_is_passed_over_whole() {
        // 1: varint 300; 2: "ab"; 3: fixed32; 4: fixed64; 20: varint 1.
        let bytes = [0x08, 0xac, 0x02, 0x12, 2, b'a', b'b', 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0xa0, 0x01, 1];
        let found: Vec<_> = fields(&bytes).map(Result::unwrap).collect();
        let scalar = Value::Scalar;
        assert_eq!(found, [(1, scalar), (2, Value::Bytes(b"ab")), (3, scalar), (4, scalar), (20, scalar)]);
    }

    #[test]
    fn what_is_cut_off_or_no_field_ends_the_walk() {
        for bytes in
            [&[0x12, 5, b'a'][..], &[0x08], &[0x0b, 0x0c], &[0x1d, 1, 2], &[0xff; 20], &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            assert_eq!(fields(bytes).collect::<Vec<_>>(), [Err(Malformed)], "{bytes:x?}");
        }
    }
}
