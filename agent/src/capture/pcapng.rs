//! The newer capture file format: sections, interfaces with their own link type and clock resolution, packets.

use std::io::BufRead;

use super::file::{Damage, Input, Record};
use crate::packet::LinkType;

/// First four bytes of a file: a section header.
pub(super) const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const PACKET: u32 = 6;

const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

/// More interfaces in one section than any host has: a file with more is damaged.
const INTERFACES_MAX: usize = 65_536;

#[derive(Debug)]
pub(super) struct PcapNg {
    big_endian: bool,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link: LinkType,
    /// 0 without a limit.
    snap_length: u32,
    resolution: Resolution,
    offset_s: i64,
}

/// Clock units in a second.
#[derive(Debug, Clone, Copy)]
struct Resolution(u128);

impl PcapNg {
    /// Begins after the first four bytes of the file.
    pub(super) fn open<R: BufRead>(input: &mut Input<R>) -> Result<Self, Damage> {
        let mut file = Self { big_endian: false, interfaces: Vec::new() };
        file.section(input)?;
        Ok(file)
    }

    /// The next packet; none at a clean end of the file.
    pub(super) fn next<R: BufRead>(&mut self, input: &mut Input<R>) -> Result<Option<Record>, Damage> {
        while !input.at_end()? {
            let kind = self.u32(input.read(4, "block type")?, 0)?;
            if kind == SECTION {
                self.section(input)?;
                continue;
            }
            let length = self.u32(input.read(4, "block length")?, 0)?;
            let body = self.body(length, 8, input)?;
            match kind {
                INTERFACE => self.interface(body)?,
                PACKET => return self.packet(body, 20, self.u32(body, 0)?).map(Some),
                OLD_PACKET => return self.packet(body, 20, u32::from(self.u16(body, 0)?)).map(Some),
                SIMPLE_PACKET => return self.simple(body).map(Some),
                _ => {}
            }
        }
        Ok(None)
    }

    fn section<R: BufRead>(&mut self, input: &mut Input<R>) -> Result<(), Damage> {
        let head = input.read(8, "section header")?;
        self.big_endian = match head.get(4..8) {
            Some([0x1a, 0x2b, 0x3c, 0x4d]) => true,
            Some([0x4d, 0x3c, 0x2b, 0x1a]) => false,
            _ => return Err(Damage::Wrong("section header without byte order".to_owned())),
        };
        let length = self.u32(head, 0)?;
        self.body(length, 12, input)?;
        self.interfaces.clear();
        Ok(())
    }

    /// Reads the rest of a block of which `seen` bytes were read: its body, without the length that is repeated at its end.
    fn body<'a, R: BufRead>(
        &self,
        length: u32,
        seen: u32,
        input: &'a mut Input<R>,
    ) -> Result<&'a [u8], Damage> {
        if length < seen + 4 || !length.is_multiple_of(4) {
            return Err(Damage::Wrong(format!("block of {length} bytes")));
        }
        let rest = input.read_data(length - seen)?;
        let (body, end) = rest.split_at(rest.len().saturating_sub(4));
        if self.u32(end, 0)? != length {
            return Err(Damage::Wrong("block whose two lengths differ".to_owned()));
        }
        Ok(body)
    }

    fn interface(&mut self, body: &[u8]) -> Result<(), Damage> {
        if self.interfaces.len() == INTERFACES_MAX {
            return Err(Damage::Wrong("too many interfaces".to_owned()));
        }
        let mut interface = Interface {
            link: LinkType::from_file(self.u16(body, 0)?),
            snap_length: self.u32(body, 4)?,
            resolution: Resolution(1_000_000),
            offset_s: 0,
        };
        let mut options = body.get(8..).unwrap_or_default();
        while let (Ok(code), Ok(length)) = (self.u16(options, 0), self.u16(options, 2)) {
            let Some(value) = options.get(4..4 + usize::from(length)) else { break };
            match (code, value) {
                (0, _) => break,
                (OPTION_RESOLUTION, &[exponent]) => interface.resolution = Resolution::from_option(exponent)?,
                (OPTION_OFFSET, value) => {
                    interface.offset_s = value.first_chunk().map_or(0, |bytes| {
                        if self.big_endian { i64::from_be_bytes(*bytes) } else { i64::from_le_bytes(*bytes) }
                    });
                }
                _ => {}
            }
            options = options.get(4 + usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        }
        self.interfaces.push(interface);
        Ok(())
    }

    /// A packet block: interface, time, lengths, then the data from `start`.
    fn packet(&self, body: &[u8], start: usize, interface: u32) -> Result<Record, Damage> {
        let known = self.interfaces.get(interface as usize);
        let known =
            known.ok_or_else(|| Damage::Wrong(format!("interface {interface}, which is not described,")))?;
        let ticks = u64::from(self.u32(body, 4)?) << 32 | u64::from(self.u32(body, 8)?);
        let captured = self.u32(body, 12)? as usize;
        if body.len() < start + captured {
            return Err(Damage::Wrong("data longer than its block".to_owned()));
        }
        Ok(Record {
            timestamp: known.resolution.microseconds(ticks, known.offset_s),
            interface_index: interface,
            link: known.link,
            start,
            captured,
            wire_length: self.u32(body, 16)?.max(captured as u32),
        })
    }

    /// A packet without a time: it takes that of the one before it.
    fn simple(&self, body: &[u8]) -> Result<Record, Damage> {
        let Some(known) = self.interfaces.first() else {
            return Err(Damage::Wrong("packet without an interface".to_owned()));
        };
        let wire_length = self.u32(body, 0)?;
        let limit = if known.snap_length == 0 { u32::MAX } else { known.snap_length };
        let captured = (wire_length.min(limit) as usize).min(body.len().saturating_sub(4));
        Ok(Record { timestamp: 0, interface_index: 0, link: known.link, start: 4, captured, wire_length })
    }

    fn u16(&self, data: &[u8], at: usize) -> Result<u16, Damage> {
        let bytes = data.get(at..).and_then(|rest| rest.first_chunk().copied()).ok_or_else(Damage::short)?;
        Ok(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, data: &[u8], at: usize) -> Result<u32, Damage> {
        let bytes = data.get(at..).and_then(|rest| rest.first_chunk().copied()).ok_or_else(Damage::short)?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }
}

impl Resolution {
    /// A power of ten, or with the highest bit a power of two.
    fn from_option(option: u8) -> Result<Self, Damage> {
        let exponent = u32::from(option & 0x7f);
        let units =
            if option & 0x80 == 0 { 10_u128.checked_pow(exponent) } else { 2_u128.checked_pow(exponent) };
        units
            .filter(|units| *units <= 1 << 96)
            .map(Self)
            .ok_or_else(|| Damage::Wrong("clock resolution".to_owned()))
    }

    fn microseconds(self, ticks: u64, offset_s: i64) -> u64 {
        let microseconds = u128::from(ticks) * 1_000_000 / self.0;
        let offset = i128::from(offset_s) * 1_000_000;
        let moved = i128::try_from(microseconds).unwrap_or(i128::MAX).saturating_add(offset);
        u64::try_from(moved.max(0)).unwrap_or(u64::MAX)
    }
}
