//! Column types: how a ClickHouse type is held in memory and written in its Native format.
//!
//! Native is ClickHouse's own column format: integers as little-endian arrays, strings as length (LEB128) and bytes.
//! <https://clickhouse.com/docs/interfaces/formats/Native>

use std::net::{IpAddr, Ipv6Addr};

/// Cells of one column.
pub trait Cells: Default + Clone {
    /// One cell.
    type Item: Default + Clone;

    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn push(&mut self, item: &Self::Item);
    /// Moves all of `other` behind what is here.
    fn append(&mut self, other: Self);
    /// The cells at `rows`, in that order.
    ///
    /// # Panics
    /// When a row is out of range.
    fn select(&self, rows: &[u32]) -> Self;
    /// Appends the cells in Native encoding.
    fn encode(&self, out: &mut Vec<u8>);
    /// Bytes held, for memory accounting.
    fn bytes(&self) -> usize;
}

impl<T: bytemuck::Pod + Default> Cells for Vec<T> {
    type Item = T;

    fn len(&self) -> usize {
        self.len()
    }
    fn push(&mut self, item: &T) {
        self.push(*item);
    }
    fn append(&mut self, other: Self) {
        if self.is_empty() { *self = other } else { self.extend_from_slice(&other) }
    }
    fn select(&self, rows: &[u32]) -> Self {
        rows.iter().map(|&row| self[row as usize]).collect()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        // Native is little-endian; so is every platform that ClickHouse runs on.
        const { assert!(cfg!(target_endian = "little")) }
        out.extend_from_slice(bytemuck::cast_slice(self));
    }
    fn bytes(&self) -> usize {
        size_of_val(self.as_slice())
    }
}

/// Strings of one column, held as Native writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    encoded: Vec<u8>,
    /// End of each string in `encoded`.
    ends: Vec<u32>,
}

impl Texts {
    /// Room for `rows` strings of `bytes` together.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        // A length has one byte, and another one from each of these on.
        let lengths = rows + (bytes >> 7) + (bytes >> 14) + (bytes >> 21);
        Self { encoded: Vec::with_capacity(bytes + lengths), ends: Vec::with_capacity(rows) }
    }

    /// As many empty strings.
    pub fn empty(rows: usize) -> Self {
        let rows = u32::try_from(rows).expect("a block stays below 4 GiB: batches are bounded");
        Self { encoded: vec![0; rows as usize], ends: (1..=rows).collect() }
    }

    pub fn push_str(&mut self, text: &str) {
        write_varint(text.len() as u64, &mut self.encoded);
        self.encoded.extend_from_slice(text.as_bytes());
        self.ends
            .push(u32::try_from(self.encoded.len()).expect("a block stays below 4 GiB: batches are bounded"));
    }

    /// The strings, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|row| self.text(row))
    }

    /// The string of a row, which must be there.
    pub fn text(&self, row: usize) -> &str {
        let mut cell = self.cell(row);
        while cell.first().is_some_and(|byte| byte & 0x80 != 0) {
            cell = &cell[1..];
        }
        std::str::from_utf8(cell.get(1..).unwrap_or_default()).expect("only whole strings are pushed")
    }

    fn cell(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.encoded[start..self.ends[row] as usize]
    }
}

impl Cells for Texts {
    type Item = String;

    fn len(&self) -> usize {
        self.ends.len()
    }
    fn push(&mut self, item: &String) {
        self.push_str(item);
    }
    fn append(&mut self, other: Self) {
        let shift =
            u32::try_from(self.encoded.len()).expect("a block stays below 4 GiB: batches are bounded");
        self.encoded.extend_from_slice(&other.encoded);
        self.ends.extend(other.ends.iter().map(|end| end + shift));
    }
    fn select(&self, rows: &[u32]) -> Self {
        let mut selected = Self::default();
        for &row in rows {
            selected.encoded.extend_from_slice(self.cell(row as usize));
            selected.ends.push(
                u32::try_from(selected.encoded.len()).expect("a selection is no larger than its block"),
            );
        }
        selected
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encoded);
    }
    fn bytes(&self) -> usize {
        self.encoded.len() + size_of_val(self.ends.as_slice())
    }
}

/// A ClickHouse type.
pub trait ColumnType {
    type Data: Cells;
    const CLICKHOUSE: &'static str;
    /// Used where a declaration names none.
    const CODEC: &'static str;
}

macro_rules! column_types {
    ($( #[doc = $doc:literal] $name:ident $data:ty = $clickhouse:literal $codec:literal, )+) => {
        $( #[doc = $doc] #[derive(Debug)] pub enum $name {}
           impl ColumnType for $name {
               type Data = $data;
               const CLICKHOUSE: &'static str = $clickhouse;
               const CODEC: &'static str = $codec;
           } )+
    };
}

// Codecs were measured on the engine. Forty correlated tag ids a row (`./dev bench encoding`): T64 with ZSTD(1) takes 12.9 bytes a row
// for 2.3 us of inserts and merges, T64 with LZ4 16.8 bytes for 2.1 to 2.5 us, ZSTD(1) alone 11.7 bytes for 2.9 us. Spread ids and
// counters take 1.4 times the space without T64. `batch_seq` grows in steps: DoubleDelta (declared there) makes it a thirtieth.
// Microseconds do not profit from DoubleDelta.
column_types! {
    /// Small enumerations and flags.
    U8 Vec<u8> = "UInt8" "T64, LZ4",
    /// Ports.
    U16 Vec<u16> = "UInt16" "T64, ZSTD(1)",
    /// Dictionary ids and counters.
    U32 Vec<u32> = "UInt32" "T64, ZSTD(1)",
    /// Counters, sums and unbounded dictionary ids.
    U64 Vec<u64> = "UInt64" "T64, ZSTD(1)",
    /// Signed codes.
    I32 Vec<i32> = "Int32" "T64, ZSTD(1)",
    /// Whole seconds since 1970.
    Seconds Vec<u32> = "DateTime('UTC')" "DoubleDelta, LZ4",
    /// Microseconds since 1970.
    Micros Vec<i64> = "DateTime64(6, 'UTC')" "T64, LZ4",
    /// IP address; IPv4 in its mapped form (RFC 4291 §2.5.5.2).
    Ip Vec<[u8; 16]> = "IPv6" "ZSTD(1)",
    /// Text without a bound on its number of values.
    Text Texts = "String" "ZSTD(1)",
}

/// The stored form of an address.
pub fn ip_cell(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The stored form of an address that came as 4 or 16 bytes.
pub fn ip_cell_from_bytes(bytes: &[u8]) -> Option<[u8; 16]> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(ip_cell(IpAddr::V4(v4.into())));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| ip_cell(Ipv6Addr::from(v6).to_canonical()))
}

/// LEB128, as Native writes lengths.
pub fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length and its text, as Native writes names.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    write_varint(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_select_append_and_encode_whole_strings() {
        let mut texts = Texts::default();
        let long = "x".repeat(300);
        assert_eq!(Texts::empty(3).iter().collect::<Vec<_>>(), ["", "", ""]);
        for text in ["a", "", &long, "\u{e9}"] {
            texts.push_str(text);
        }
        let mut selected = texts.select(&[3, 2]);
        selected.append(texts.select(&[0]));
        assert_eq!(selected.iter().collect::<Vec<_>>(), ["\u{e9}", &long, "a"]);
        let mut out = Vec::new();
        texts.select(&[2, 0]).encode(&mut out);
        assert_eq!(&out[..3], &[0xac, 0x02, b'x']);
        assert_eq!(&out[out.len() - 2..], &[1, b'a']);
    }

    #[test]
    fn addresses_have_one_stored_form() {
        let mapped = ip_cell_from_bytes(&[127, 0, 0, 1]).unwrap();
        assert_eq!(ip_cell_from_bytes(&mapped), Some(mapped));
        assert_eq!(mapped[10..], [0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(ip_cell_from_bytes(&[1, 2, 3]), None);
    }
}
