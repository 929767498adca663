//! Values of an execution's parameters as text.

use super::packet::{double_word, integer, word};
use crate::protocol::text::{NAME_MAX, TEXT_MAX, text, truncate};

/// Parameters that are shown.
const SHOWN_MAX: u16 = 256;

/// `LongLong(12) , text`: what follows an execution's fixed part, which is a bitmap of NULLs, types, and values.
pub(super) fn parameters(bytes: &[u8], count: u16) -> String {
    let mut line = String::new();
    // Without new types the earlier execution's hold; they are not remembered.
    let bitmap = usize::from(count).div_ceil(8);
    let Some((nulls, [1, rest @ ..])) = bytes.split_at_checked(bitmap) else { return line };
    let Some((types, mut values)) = rest.split_at_checked(usize::from(count) * 2) else { return line };
    for index in 0..usize::from(count.min(SHOWN_MAX)) {
        if index > 0 {
            line.push_str(" , ");
        }
        if nulls[index / 8] & (1 << (index % 8)) != 0 {
            line.push_str("NULL");
            continue;
        }
        let Some((value, rest)) = value(types[index * 2], values) else { break };
        line.push_str(&value);
        values = rest;
        if line.len() > 2 * TEXT_MAX {
            break;
        }
    }
    truncate(&mut line, 2 * TEXT_MAX);
    line
}

fn value(kind: u8, bytes: &[u8]) -> Option<(String, &[u8])> {
    let fixed = |size: usize| bytes.split_at_checked(size);
    Some(match kind {
        0x01 => {
            let (value, rest) = fixed(1)?;
            (format!("Tiny({})", value[0] as i8), rest)
        }
        0x02 | 0x0d => (format!("Short({})", word(bytes, 0)? as i16), fixed(2)?.1),
        0x03 | 0x09 => (format!("Long({})", double_word(bytes, 0)? as i32), fixed(4)?.1),
        0x04 => (format!("Float({})", f32::from_bits(double_word(bytes, 0)?)), fixed(4)?.1),
        0x05 => (format!("Double({})", f64::from_le_bytes(*bytes.first_chunk()?)), fixed(8)?.1),
        0x08 => (format!("LongLong({})", i64::from_le_bytes(*bytes.first_chunk()?)), fixed(8)?.1),
        0x06 => ("NULL".to_owned(), bytes),
        0x07 | 0x0a | 0x0c => {
            let (size, rest) = bytes.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*size))?;
            (date(value), rest)
        }
        0x0b => {
            let (size, rest) = bytes.split_first()?;
            ("Time".to_owned(), rest.get(usize::from(*size)..)?)
        }
        _ => {
            let (size, rest) = integer(bytes)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(size).ok()?)?;
            (text(value, NAME_MAX), rest)
        }
    })
}

fn date(bytes: &[u8]) -> String {
    let (Some(year), Some([month, day])) = (word(bytes, 0), bytes.get(2..4)) else {
        return "0000-00-00".to_owned();
    };
    match bytes.get(4..7) {
        Some([hour, minute, second]) => {
            format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
        }
        _ => format!("{year:04}-{month:02}-{day:02}"),
    }
}
