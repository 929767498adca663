//! Frames become packets: pure decoding of link, network and transport headers.
//!
//! Works on what was captured, which may be less than what was on the wire, and keeps both lengths. A frame that is no TCP or UDP
//! packet comes back as a [`Skip`], which says why; [`Skips`] counts them. Leaves out: where frames come from (`capture`), what
//! packets mean (`flow`), tunnels and the reassembly of fragments: the first fragment counts as its datagram, later ones are counted.

mod link;
mod network;
mod skip;
mod transport;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use link::LinkType;
pub use skip::{Skip, Skips};
pub use transport::{Tcp, TcpOptions, Transport, flags};

/// The latest time a packet may have, the year 2200 in microseconds: far from the range of the arithmetic on times. Later ones count
/// as this.
pub const TIMESTAMP_MAX: u64 = 7_258_118_400_000_000;

/// One frame as a source hands it out.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Microseconds since 1970.
    pub timestamp: u64,
    pub interface_index: u32,
    pub link: LinkType,
    /// VLAN id that the kernel took out of the frame; 0 without.
    pub vlan: u16,
    /// What was captured.
    pub data: &'a [u8],
    /// Bytes on the wire.
    pub wire_length: u32,
}

/// A TCP or UDP packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Microseconds since 1970.
    pub timestamp: u64,
    pub interface_index: u32,
    /// Outermost VLAN id; 0 without.
    pub vlan: u16,
    /// 0 where the link has no addresses.
    pub source_mac: u64,
    pub destination_mac: u64,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub transport: Transport,
    /// Captured part of the transport's payload.
    pub payload: &'a [u8],
    /// Payload on the wire.
    pub payload_length: u32,
    /// The whole frame on the wire.
    pub wire_length: u32,
}

/// Decodes one frame.
#[inline]
pub fn decode<'a>(frame: &Frame<'a>) -> Result<Packet<'a>, Skip> {
    let link = link::decode(frame.link, frame.data)?;
    let network_wire = frame.wire_length.max(captured(frame.data)).saturating_sub(link.header_length);
    let network = network::decode(link.network, link.payload, network_wire)?;
    let transport = transport::decode(&network)?;
    Ok(Packet {
        timestamp: frame.timestamp.min(TIMESTAMP_MAX),
        interface_index: frame.interface_index,
        vlan: if frame.vlan == 0 { link.vlan } else { frame.vlan },
        source_mac: link.source_mac,
        destination_mac: link.destination_mac,
        source: network.source,
        destination: network.destination,
        transport: transport.header,
        payload: transport.payload,
        payload_length: transport.payload_length,
        wire_length: frame.wire_length.max(captured(frame.data)),
    })
}

/// Length of what was captured; a capture never reaches 4 GiB.
fn captured(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// Big-endian number at an offset, if that much was captured.
#[inline]
fn read_u16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..)?.first_chunk().copied()?))
}

#[inline]
fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(at..)?.first_chunk().copied()?))
}
