//! x-request-id: random version 4 UUIDs.

/// Both hex digits of every byte.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    table
};

/// A UUID as text. Random enough to tell requests apart, not a secret.
pub(super) fn generate() -> [u8; 36] {
    const POSITIONS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let bits = fastrand::u128(..) & !VERSION & !VARIANT | 0x4 << 76 | 0b10 << 62;
    let mut text = [b'-'; 36];
    for (at, byte) in POSITIONS.into_iter().zip(bits.to_be_bytes()) {
        [text[at], text[at + 1]] = HEX[usize::from(byte)];
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_version_4() {
        let id = super::generate();
        let text = std::str::from_utf8(&id).unwrap();
        assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19]), "{text}");
        assert_ne!(id, super::generate());
    }
}
