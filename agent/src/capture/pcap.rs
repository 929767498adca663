//! The classic capture file format, in both byte orders, with micro- and nanoseconds, and with the long record headers that some
//! Linux versions wrote.

use std::io::BufRead;

use super::file::{Damage, Input, Record};
use crate::packet::LinkType;

/// Number of bytes of the file header behind the magic number.
const HEADER: usize = 20;

/// How the records of a file are to be read.
#[derive(Debug)]
pub(super) struct Pcap {
    big_endian: bool,
    /// Units of the fraction in a microsecond.
    fraction_per_us: u32,
    record_header: usize,
    link: LinkType,
}

impl Pcap {
    /// Knows the format by its first four bytes; reads the rest of the file header.
    pub(super) fn open<R: BufRead>(magic: [u8; 4], input: &mut Input<R>) -> Result<Option<Self>, Damage> {
        let big_endian = magic[0] == 0xa1;
        let (fraction_per_us, record_header) = match ordered(magic, big_endian) {
            0xa1b2_c3d4 => (1, 16),
            0xa1b2_3c4d => (1_000, 16),
            // Alexey Kuznetsov's variant: interface index, protocol and packet type follow in each record header.
            0xa1b2_cd34 => (1, 24),
            _ => return Ok(None),
        };
        let header = input.read(HEADER, "file header")?;
        // The upper bits say whether checksums of the link follow the frames.
        let link = ordered(word(header, 16), big_endian) as u16;
        Ok(Some(Self { big_endian, fraction_per_us, record_header, link: LinkType::from_file(link) }))
    }

    /// The next record; none at a clean end of the file.
    pub(super) fn next<R: BufRead>(&self, input: &mut Input<R>) -> Result<Option<Record>, Damage> {
        if input.at_end()? {
            return Ok(None);
        }
        let header = input.read(self.record_header, "record header")?;
        let number = |at| ordered(word(header, at), self.big_endian);
        let (seconds, fraction, captured, wire_length) = (number(0), number(4), number(8), number(12));
        let interface_index = if self.record_header == 24 { number(16) } else { 0 };
        input.read_data(captured)?;
        Ok(Some(Record {
            timestamp: u64::from(seconds) * 1_000_000 + u64::from(fraction / self.fraction_per_us),
            interface_index,
            link: self.link,
            start: 0,
            captured: captured as usize,
            wire_length: wire_length.max(captured),
        }))
    }
}

fn ordered(bytes: [u8; 4], big_endian: bool) -> u32 {
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

/// Four bytes at an offset that was read.
fn word(data: &[u8], at: usize) -> [u8; 4] {
    data.get(at..).and_then(|rest| rest.first_chunk().copied()).unwrap_or_default()
}
