//! IPv4 and IPv6 headers, with options and extension headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::link::Network;
use super::{Skip, read_u16};

/// A longer chain of extension headers is not followed: real ones have at most three or four.
const EXTENSIONS_MAX: usize = 8;

pub(super) struct Datagram<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// IANA protocol number.
    pub(super) protocol: u8,
    /// Captured part of what follows the IP headers, without padding of the link.
    pub(super) payload: &'a [u8],
    /// The same on the wire.
    pub(super) payload_length: u32,
    /// More fragments follow: the transport's own length goes beyond this packet.
    pub(super) fragmented: bool,
}

/// `wire` is the number of bytes from the IP header to the end of the frame on the wire.
#[inline]
pub(super) fn decode(network: Network, data: &[u8], wire: u32) -> Result<Datagram<'_>, Skip> {
    match network {
        Network::Ipv4 => ipv4(data, wire),
        Network::Ipv6 => ipv6(data, wire),
    }
}

#[inline]
fn ipv4(data: &[u8], wire: u32) -> Result<Datagram<'_>, Skip> {
    let head: &[u8; 20] = data.first_chunk().ok_or(Skip::TruncatedNetwork)?;
    let header = usize::from(head[0] & 0x0f) * 4;
    if head[0] >> 4 != 4 || header < 20 {
        return Err(Skip::BadNetwork);
    }
    // Packets over 64 KiB, which offload makes, state 0.
    let total = match u32::from(u16::from_be_bytes([head[2], head[3]])) {
        0 => wire,
        stated => stated,
    };
    if total > wire || total < header as u32 {
        return Err(Skip::BadNetwork);
    }
    if data.len() < header {
        return Err(Skip::TruncatedNetwork);
    }
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    if fragment & 0x1fff != 0 {
        return Err(Skip::LaterFragment);
    }
    let end = data.len().min(total as usize);
    Ok(Datagram {
        source: IpAddr::V4(Ipv4Addr::new(head[12], head[13], head[14], head[15])),
        destination: IpAddr::V4(Ipv4Addr::new(head[16], head[17], head[18], head[19])),
        protocol: head[9],
        payload: &data[header..end],
        payload_length: total - header as u32,
        fragmented: fragment & 0x2000 != 0,
    })
}

fn ipv6(data: &[u8], wire: u32) -> Result<Datagram<'_>, Skip> {
    let head: &[u8; 40] = data.first_chunk().ok_or(Skip::TruncatedNetwork)?;
    if head[0] >> 4 != 6 {
        return Err(Skip::BadNetwork);
    }
    // Jumbograms state 0.
    let total = match u32::from(u16::from_be_bytes([head[4], head[5]])) {
        0 => wire,
        stated => stated + 40,
    };
    if total > wire || total < 40 {
        return Err(Skip::BadNetwork);
    }
    let data = &data[..data.len().min(total as usize)];
    let (protocol, header, fragmented) = behind_extensions(data, head[6])?;
    if header as u32 > total {
        return Err(Skip::BadNetwork);
    }
    Ok(Datagram {
        source: address(&head[8..]),
        destination: address(&head[24..]),
        protocol,
        payload: data.get(header..).ok_or(Skip::TruncatedNetwork)?,
        payload_length: total - header as u32,
        fragmented,
    })
}

/// Steps over extension headers; gives the transport's number, where it begins, and whether fragments follow.
fn behind_extensions(data: &[u8], mut next: u8) -> Result<(u8, usize, bool), Skip> {
    let mut at = 40;
    let mut fragmented = false;
    for _ in 0..EXTENSIONS_MAX {
        let length = match next {
            // Hop by hop, routing, destination options, mobility.
            0 | 43 | 60 | 135 => {
                let units = data.get(at + 1).ok_or(Skip::TruncatedNetwork)?;
                (usize::from(*units) + 1) * 8
            }
            44 => {
                let fragment = read_u16(data, at + 2).ok_or(Skip::TruncatedNetwork)?;
                if fragment & 0xfff8 != 0 {
                    return Err(Skip::LaterFragment);
                }
                fragmented = fragment & 1 != 0;
                8
            }
            // Authentication header: counts in 4 bytes.
            51 => {
                let units = data.get(at + 1).ok_or(Skip::TruncatedNetwork)?;
                (usize::from(*units) + 2) * 4
            }
            transport => return Ok((transport, at, fragmented)),
        };
        next = *data.get(at).ok_or(Skip::TruncatedNetwork)?;
        at += length;
    }
    Err(Skip::BadNetwork)
}

fn address(bytes: &[u8]) -> IpAddr {
    IpAddr::V6(bytes.first_chunk().map_or(Ipv6Addr::UNSPECIFIED, |octets: &[u8; 16]| Ipv6Addr::from(*octets)))
}
