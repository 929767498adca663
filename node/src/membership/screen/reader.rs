//! Bytes as the gossip library writes them: little-endian numbers, short texts, addresses, and streams of compressed blocks.

use std::{
    cell::RefCell,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use zstd::bulk::Decompressor;

/// Cut off, beyond its limit, or not written by the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The library's buffer for one block.
const BLOCK_BYTES_MAX: usize = u16::MAX as usize;

// A new one costs more than a datagram: it asks the processor what it can do, and a virtual one asks its host.
thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::default();
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(Malformed)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn number(&mut self, max: u64) -> Result<u64, Malformed> {
        Some(self.u64()?).filter(|number| *number <= max).ok_or(Malformed)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u16()?.into();
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)
    }

    pub(super) fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.u8()? {
            4 => Ipv4Addr::from(self.array::<4>()?).into(),
            6 => Ipv6Addr::from(self.array::<16>()?).into(),
            _ => return Err(Malformed),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }
}

/// A stream of blocks, decompressed, never more than `bytes_max`.
pub(super) fn unpack(reader: &mut Reader<'_>, bytes_max: usize) -> Result<Vec<u8>, Malformed> {
    let mut plain = Vec::new();
    loop {
        let block_type = reader.u8()?;
        if block_type == 0 {
            return Ok(plain);
        }
        let length = reader.u16()?.into();
        let block = reader.take(length)?;
        match block_type {
            1 => {
                let room = BLOCK_BYTES_MAX.min(bytes_max - plain.len());
                let block = DECOMPRESSOR
                    .with_borrow_mut(|decompressor| decompressor.decompress(block, room))
                    .map_err(|_| Malformed)?;
                plain.extend_from_slice(&block);
            }
            2 => plain.extend_from_slice(block),
            _ => return Err(Malformed),
        }
        // An empty block is never written; it would let a datagram ask for work without end.
        if block.is_empty() || plain.len() > bytes_max {
            return Err(Malformed);
        }
    }
}
