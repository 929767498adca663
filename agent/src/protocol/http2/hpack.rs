//! HPACK (RFC 7541): header blocks into the fields that matter, with a table whose beginning may have been missed.
//!
//! New entries come first in the table. So entries that were seen being added have certain indices, and what lies behind them is unknown:
//! it stays unknown, and is never guessed. When a block or a part of one is lost, nothing of the table is certain any more.

use std::collections::VecDeque;

use super::field::Field;
use super::huffman;
use crate::protocol::text::TEXT_MAX;
use crate::session::Config;

/// The table's size until an encoder says something else.
const TABLE_DEFAULT: usize = 4096;
/// What is kept of larger tables: the oldest entries are then unknown earlier than for the peers.
const TABLE_MAX: usize = 64 * 1024;
/// What an entry counts beside its texts.
const ENTRY_SIZE: usize = 32;
/// Entries of the table that the standard fixes.
const FIXED: usize = 61;
/// Longest name that is compared.
const NAME_MAX: usize = 32;

/// One direction's table.
pub(super) struct Decoder {
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
    /// Where an operator named headers: those that count since the connection began.
    own: Option<Box<Config>>,
}

struct Entry {
    field: Field,
    /// Empty unless the field matters.
    value: Box<[u8]>,
    /// At least what it counts; less when its name is not known. So entries may be kept that the peers dropped, which then nobody names.
    size: usize,
}

/// The block ends in the middle of a field, or breaks the rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            entries: VecDeque::new(),
            size: 0,
            size_max: TABLE_DEFAULT,
            name: Vec::new(),
            value: Vec::new(),
            own: None,
        }
    }
}

impl Decoder {
    pub(super) fn new(config: &Config) -> Self {
        let own = config.has_own_headers().then(|| Box::new(config.clone()));
        Decoder { own, ..Decoder::default() }
    }

    fn named(&self, name: &[u8]) -> Field {
        match &self.own {
            Some(config) => Field::named_by(config, name),
            None => Field::named(name),
        }
    }

    /// What was said before is no longer certain.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.size = 0;
    }

    /// Hands every field of a block to `take`; of an unknown one neither name nor value. After an error the table is forgotten.
    pub(super) fn decode(&mut self, block: &[u8], mut take: impl FnMut(Field, &[u8])) -> Result<(), Broken> {
        let mut rest = block;
        while !rest.is_empty() {
            rest = match self.field(rest, &mut take) {
                Some(after) => after,
                None => {
                    self.forget();
                    return Err(Broken);
                }
            };
        }
        Ok(())
    }

    fn field<'a>(&mut self, bytes: &'a [u8], take: &mut impl FnMut(Field, &[u8])) -> Option<&'a [u8]> {
        let first = *bytes.first()?;
        if first & 0x80 != 0 {
            let (index, rest) = integer(bytes, 7)?;
            self.indexed(index, take)?;
            return Some(rest);
        }
        if first & 0xe0 == 0x20 {
            let (size, rest) = integer(bytes, 5)?;
            self.size_max = size.min(TABLE_MAX);
            self.evict();
            return Some(rest);
        }
        let kept = first & 0x40 != 0;
        let (index, rest) = integer(bytes, if kept { 6 } else { 4 })?;
        let (field, name_length, rest) = if index == 0 {
            self.name.clear();
            let (length, rest) = string(rest, &mut self.name, NAME_MAX + 1)?;
            (self.named(&self.name), length, rest)
        } else {
            let (field, length) = self.name_at(index)?;
            (field, length, rest)
        };
        self.value.clear();
        let max = if field.matters() { TEXT_MAX } else { 0 };
        let (value_length, rest) = string(rest, &mut self.value, max)?;
        take(field, &self.value);
        if kept {
            let size = name_length + value_length + ENTRY_SIZE;
            self.entries.push_front(Entry { field, value: self.value.as_slice().into(), size });
            self.size += size;
            self.evict();
        }
        Some(rest)
    }

    fn indexed(&mut self, index: usize, take: &mut impl FnMut(Field, &[u8])) -> Option<()> {
        match index {
            0 => return None,
            1..=FIXED => {
                let (name, value) = STATIC[index - 1];
                take(Field::named(name.as_bytes()), value.as_bytes());
            }
            _ => match self.entries.get(index - FIXED - 1) {
                Some(entry) => take(entry.field, &entry.value),
                None => take(Field::Unknown, b""),
            },
        }
        Some(())
    }

    /// A name and its length.
    fn name_at(&self, index: usize) -> Option<(Field, usize)> {
        Some(match index {
            0 => return None,
            1..=FIXED => {
                let name = STATIC[index - 1].0;
                (Field::named(name.as_bytes()), name.len())
            }
            // The name's part of an entry's size is not known any more; the least that it can be is nothing.
            _ => (self.entries.get(index - FIXED - 1).map_or(Field::Unknown, |entry| entry.field), 0),
        })
    }

    fn evict(&mut self) {
        while self.size > self.size_max {
            match self.entries.pop_back() {
                Some(entry) => self.size -= entry.size,
                None => break,
            }
        }
    }
}

/// An integer whose first byte shares its upper bits with something else. Larger ones than any real length are refused.
fn integer(bytes: &[u8], prefix: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value < mask {
        return Some((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first()?;
        rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

/// Appends at most `max` bytes of a string; answers the length of all of it and what follows.
fn string<'a>(bytes: &'a [u8], out: &mut Vec<u8>, max: usize) -> Option<(usize, &'a [u8])> {
    let coded = bytes.first()? & 0x80 != 0;
    let (length, rest) = integer(bytes, 7)?;
    let (text, rest) = rest.split_at_checked(length)?;
    if coded {
        return Some((huffman::decode(text, out, max)?, rest));
    }
    out.extend_from_slice(&text[..length.min(max)]);
    Some((length, rest))
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); FIXED] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests;
