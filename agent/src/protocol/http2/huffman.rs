//! The Huffman code of header texts (RFC 7541, appendix B).
//!
//! The code is canonical, so that the lengths say everything.

use std::sync::LazyLock;

/// Bits of each byte's code.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26,
];
/// The mark of the end, which no text contains: ones only.
const END_LENGTH: usize = 30;

struct Tables {
    /// Byte and length by the next eight bits; length 0: the code is longer.
    short: [(u8, u8); 256],
    /// First code of each length.
    first: [u32; END_LENGTH + 1],
    /// Place of each length's first byte in `bytes`, and one past the last.
    place: [usize; END_LENGTH + 2],
    /// By length of their code, then by value.
    bytes: Vec<u8>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables {
        short: [(0, 0); 256],
        first: [0; END_LENGTH + 1],
        place: [0; END_LENGTH + 2],
        bytes: Vec::with_capacity(256),
    };
    let mut code = 0u32;
    for length in 1..=END_LENGTH {
        code <<= 1;
        tables.first[length] = code;
        tables.place[length] = tables.bytes.len();
        for byte in (0..=255u8).filter(|byte| usize::from(LENGTHS[usize::from(*byte)]) == length) {
            tables.bytes.push(byte);
            if length <= 8 {
                let start = (code << (8 - length)) as usize;
                tables.short[start..start + (1 << (8 - length))].fill((byte, length as u8));
            }
            code += 1;
        }
    }
    tables.place[END_LENGTH + 1] = tables.bytes.len();
    tables
});

/// Decodes into `out`, of which no more than `max` bytes are kept. Answers the length of the whole text; None when it is none.
pub(super) fn decode(encoded: &[u8], out: &mut Vec<u8>, max: usize) -> Option<usize> {
    let tables = &*TABLES;
    let (mut bits, mut count, mut length) = (0u64, 0u32, 0usize);
    let mut rest = encoded.iter();
    loop {
        while count <= 56 {
            let Some(byte) = rest.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        // Filled up with ones, as the last byte is.
        let window = match count {
            0 => return Some(length),
            1..32 => ((bits << (32 - count)) as u32) | (u32::MAX >> count),
            _ => (bits >> (count - 32)) as u32,
        };
        let (byte, size) = match tables.short[(window >> 24) as usize] {
            (_, 0) => match long(tables, window) {
                Some(found) => found,
                None => return (count < 8 && window == u32::MAX).then_some(length),
            },
            (byte, size) => (byte, u32::from(size)),
        };
        if size > count {
            return (count < 8 && window == u32::MAX).then_some(length);
        }
        count -= size;
        length += 1;
        if out.len() < max {
            out.push(byte);
        }
    }
}

/// A code of more than eight bits.
fn long(tables: &Tables, window: u32) -> Option<(u8, u32)> {
    (9..=END_LENGTH).find_map(|length| {
        let code = window >> (32 - length);
        let nth = code.checked_sub(tables.first[length])? as usize;
        let place = tables.place[length] + nth;
        (place < tables.place[length + 1]).then(|| (tables.bytes[place], length as u32))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(encoded: &[u8], expected: Option<&str>) {
        let mut out = Vec::new();
        let length = decode(encoded, &mut out, 100);
        assert_eq!(length.map(|_| String::from_utf8(out).unwrap()).as_deref(), expected);
    }

    #[test]
    fn texts_of_the_standard_are_read() {
        check(&[], Some(""));
        check(
            &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff],
            Some("www.example.com"),
        );
        check(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], Some("no-cache"));
        check(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], Some("custom-value"));
        // `\` has 19 bits: 1111111111111110000.
        check(&[0xff, 0xfe, 0x1f], Some("\\"));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        // A byte of padding too many, padding that is not ones, the mark of the end.
        check(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf, 0xff], None);
        check(&[0x18], None);
        check(&[0xff; 4], None);
        check(&[0xff, 0xff, 0xff, 0xfc], None);
    }

    #[test]
    fn every_byte_has_its_code() {
        let tables = &*TABLES;
        assert_eq!(tables.bytes.len(), 256);
        for byte in 0..=255u8 {
            let length = usize::from(LENGTHS[usize::from(byte)]);
            let range = tables.place[length]..tables.place[length + 1];
            let nth = tables.bytes[range].iter().position(|other| *other == byte).unwrap();
            let code = u64::from(tables.first[length]) + nth as u64;
            let bits = (code << (40 - length)) | ((1 << (40 - length)) - 1);
            let size = length.div_ceil(8);
            let mut out = Vec::new();
            assert_eq!(decode(&bits.to_be_bytes()[3..3 + size], &mut out, 9), Some(1), "{byte}");
            assert_eq!(out, [byte]);
        }
    }

    #[test]
    fn no_more_is_kept_than_wanted() {
        let mut out = Vec::new();
        assert_eq!(decode(&[0x00; 1000], &mut out, 10), Some(1600));
        assert_eq!(out.len(), 10);
    }
}
