//! What a `Columns` message takes in memory, found before it is decoded.
//!
//! Protobuf is small where memory is not: an empty string is two bytes on the wire and 24 in a list, a number one byte and up to eight in a
//! column. So the entries are counted first, and more than the rows of the batch can use is refused. Leaves out what is right for each
//! table: whoever maps columns to rows checks that.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::{MalformedBatch, TEXT_BYTES_MAX};

/// Columns of a row that refer to strings, in the table that has most of them.
const STRINGS_A_ROW: usize = 15;
/// Both ends.
const ADDRESSES_A_ROW: usize = 2;
/// A request with names of hosts and clients that others have, too.
const SHARED_TEXT_BYTES_A_ROW: usize = 512;
/// A few rows may share long texts.
const SHARED_TEXT_BYTES_FREE: usize = 256 << 10;
/// A small batch may list what none of its rows uses: this much costs little.
const SPARE_ENTRIES: usize = 1_024;
/// What an entry of a list takes beside its bytes.
const ENTRY_BYTES: usize = size_of::<String>();
/// The smallest entry: its key and the length 0.
const ENTRY_BYTES_MIN: usize = 2;

/// Numbers of fields above this are not of this release, so they are skipped when they are decoded.
const FIELDS: usize = 64;

/// Entries of the two lists of a message, so that they can be made as large as they get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) strings: usize,
    pub(crate) addresses: usize,
}

/// Memory that the lists of an opened batch take at most, beside the bytes of their entries.
pub fn list_bytes_max(rows: u32, uncompressed_bytes: u32) -> usize {
    let entries = entries_max(rows, STRINGS_A_ROW) + entries_max(rows, ADDRESSES_A_ROW);
    entries.min(uncompressed_bytes as usize / ENTRY_BYTES_MIN) * ENTRY_BYTES
}

/// Bytes of text that the rows of a batch may have, each use of a listed string counted.
pub fn text_bytes_max(rows: u32, uncompressed_bytes: u32) -> usize {
    let listed = uncompressed_bytes as usize;
    listed + shared_text_bytes_max(rows).min(listed.saturating_mul(rows as usize * STRINGS_A_ROW))
}

/// How much more text the rows of a batch may have than is listed: they share strings, and each gets its own in the store. It is charged
/// to every batch, so it is what rows usually have and not what they could have; agents cut batches before.
pub fn shared_text_bytes_max(rows: u32) -> usize {
    (rows as usize * SHARED_TEXT_BYTES_A_ROW).clamp(SHARED_TEXT_BYTES_FREE, TEXT_BYTES_MAX)
}

fn entries_max(rows: u32, a_row: usize) -> usize {
    SPARE_ENTRIES + rows as usize * a_row
}

/// Counts what `message` has; refuses what so many rows cannot use.
pub(crate) fn measure(message: &[u8], rows: u32) -> Result<Entries, MalformedBatch> {
    let mut entries = Entries::default();
    // Of the rows, of their ends, and of their performance.
    let mut cells = [[0; FIELDS]; 3];
    each_field(message, |number, field| {
        let Field::Bytes(bytes) = field else { return Ok(()) };
        match number {
            1 => entries.strings += 1,
            2 => entries.addresses += 1,
            3..=6 => count_rows(bytes, performance_of(number), &mut cells)?,
            _ => {}
        }
        Ok(())
    })?;
    for (what, listed, a_row) in
        [("strings", entries.strings, STRINGS_A_ROW), ("addresses", entries.addresses, ADDRESSES_A_ROW)]
    {
        if listed > entries_max(rows, a_row) {
            return Err(MalformedBatch::Entries { what, listed, rows });
        }
    }
    match cells.as_flattened().iter().max() {
        Some(&cells) if cells > rows as usize => Err(MalformedBatch::Cells { cells, rows }),
        _ => Ok(entries),
    }
}

/// The field that holds `NetworkPerformance`, by the field that holds the rows.
fn performance_of(rows: u32) -> Option<u32> {
    match rows {
        3 => Some(27),
        5 => Some(12),
        _ => None,
    }
}

/// Counts the cells of each column of a table's message.
fn count_rows(
    message: &[u8],
    performance: Option<u32>,
    cells: &mut [[usize; FIELDS]; 3],
) -> Result<(), MalformedBatch> {
    let [own, ends, delays] = cells;
    each_field(message, |number, field| match field {
        Field::Bytes(bytes) if number == 1 => count_columns(bytes, ends),
        Field::Bytes(bytes) if Some(number) == performance => count_columns(bytes, delays),
        field => {
            count(number, &field, own);
            Ok(())
        }
    })
}

fn count_columns(message: &[u8], cells: &mut [usize; FIELDS]) -> Result<(), MalformedBatch> {
    each_field(message, |number, field| {
        count(number, &field, cells);
        Ok(())
    })
}

fn count(number: u32, field: &Field<'_>, cells: &mut [usize; FIELDS]) {
    if let Some(cells) = cells.get_mut(number as usize) {
        *cells += match field {
            // The last byte of each number has no upper bit.
            Field::Bytes(packed) => packed.iter().filter(|byte| **byte < 0x80).count(),
            Field::Number => 1,
        };
    }
}

enum Field<'a> {
    Bytes(&'a [u8]),
    Number,
}

/// Calls `see` for each field that can hold what is counted.
fn each_field<'a>(
    mut message: &'a [u8],
    mut see: impl FnMut(u32, Field<'a>) -> Result<(), MalformedBatch>,
) -> Result<(), MalformedBatch> {
    while !message.is_empty() {
        let (number, wire_type) = decode_key(&mut message).map_err(MalformedBatch::encoding)?;
        match wire_type {
            WireType::LengthDelimited => {
                let length = decode_varint(&mut message).map_err(MalformedBatch::encoding)?;
                let halves = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
                let (bytes, rest) = halves.ok_or_else(|| MalformedBatch::encoding("a field is cut off"))?;
                message = rest;
                see(number, Field::Bytes(bytes))?;
            }
            WireType::Varint => {
                decode_varint(&mut message).map_err(MalformedBatch::encoding)?;
                see(number, Field::Number)?;
            }
            other => skip_field(other, number, &mut message, DecodeContext::default())
                .map_err(MalformedBatch::encoding)?,
        }
    }
    Ok(())
}
