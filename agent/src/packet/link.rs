//! Link headers: Ethernet with VLAN tags, Linux cooked captures, loopback, and none at all.

use super::{Skip, read_u16};

/// More VLAN tags than any network stacks: a frame that goes on is not decoded further.
const VLAN_TAGS_MAX: usize = 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkType {
    Ethernet,
    /// Directly IPv4 or IPv6: tunnel devices.
    Raw,
    /// BSD loopback: address family in the byte order of the capturing host.
    Null,
    /// Linux "cooked" capture.
    LinuxCooked,
    /// Second version of it, with the interface index.
    LinuxCooked2,
    /// The number that the source gave: not decoded.
    Unknown(u16),
}

impl LinkType {
    /// Link type of a capture file (the registry of `LINKTYPE_` numbers).
    pub fn from_file(number: u16) -> Self {
        match number {
            0 | 108 => Self::Null,
            1 => Self::Ethernet,
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            113 => Self::LinuxCooked,
            276 => Self::LinuxCooked2,
            other => Self::Unknown(other),
        }
    }

    /// Link type of a Linux interface (`ARPHRD_` numbers).
    pub fn from_interface(number: u16) -> Self {
        match number {
            // Ethernet and loopback.
            1 | 772 => Self::Ethernet,
            // PPP without its header, IP in IP, IPv6 tunnels, SIT, no header at all, and "raw IP" of modems.
            512 | 519 | 768 | 769 | 776 | 0xfffe => Self::Raw,
            other => Self::Unknown(other),
        }
    }
}

/// Which network protocol follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Ipv4,
    Ipv6,
}

pub(super) struct Link<'a> {
    pub(super) network: Network,
    pub(super) source_mac: u64,
    pub(super) destination_mac: u64,
    pub(super) vlan: u16,
    pub(super) header_length: u32,
    pub(super) payload: &'a [u8],
}

#[inline]
pub(super) fn decode(link: LinkType, data: &[u8]) -> Result<Link<'_>, Skip> {
    match link {
        LinkType::Ethernet => ethernet(data),
        LinkType::Raw => raw(data, 0),
        LinkType::Null => {
            // The family's number differs by system and byte order; the IP version says the same.
            raw(data, 4)
        }
        LinkType::LinuxCooked => {
            let protocol = read_u16(data, 14).ok_or(Skip::TruncatedLink)?;
            cooked(data, protocol, 16, 6)
        }
        LinkType::LinuxCooked2 => {
            let protocol = read_u16(data, 0).ok_or(Skip::TruncatedLink)?;
            cooked(data, protocol, 20, 12)
        }
        LinkType::Unknown(_) => Err(Skip::UnknownLink),
    }
}

#[inline]
fn ethernet(data: &[u8]) -> Result<Link<'_>, Skip> {
    let head: &[u8; 14] = data.first_chunk().ok_or(Skip::TruncatedLink)?;
    let ethertype = u16::from_be_bytes([head[12], head[13]]);
    let (network, vlan, header) = behind_tags(data, ethertype, 14)?;
    Ok(Link {
        network,
        destination_mac: mac(head.first_chunk()),
        source_mac: mac(head[6..].first_chunk()),
        vlan,
        header_length: header as u32,
        payload: data.get(header..).unwrap_or_default(),
    })
}

/// Steps over VLAN tags; gives the outermost id and where the network header begins.
#[inline]
fn behind_tags(data: &[u8], mut ethertype: u16, mut at: usize) -> Result<(Network, u16, usize), Skip> {
    let mut vlan = 0;
    for depth in 0..=VLAN_TAGS_MAX {
        match ethertype {
            ETHERTYPE_IPV4 => return Ok((Network::Ipv4, vlan, at)),
            ETHERTYPE_IPV6 => return Ok((Network::Ipv6, vlan, at)),
            0x8100 | 0x88a8 | 0x9100 => {
                let tag = read_u16(data, at).ok_or(Skip::TruncatedLink)?;
                if depth == 0 {
                    vlan = tag & 0x0fff;
                }
                ethertype = read_u16(data, at + 2).ok_or(Skip::TruncatedLink)?;
                at += 4;
            }
            _ => return Err(Skip::NotIp),
        }
    }
    Err(Skip::NotIp)
}

fn raw(data: &[u8], header: usize) -> Result<Link<'_>, Skip> {
    let network = match data.get(header).ok_or(Skip::TruncatedLink)? >> 4 {
        4 => Network::Ipv4,
        6 => Network::Ipv6,
        _ => return Err(Skip::NotIp),
    };
    Ok(Link {
        network,
        source_mac: 0,
        destination_mac: 0,
        vlan: 0,
        header_length: header as u32,
        payload: &data[header..],
    })
}

fn cooked(data: &[u8], protocol: u16, header: usize, address: usize) -> Result<Link<'_>, Skip> {
    let (network, vlan, header) = behind_tags(data, protocol, header)?;
    let source_mac = data.get(address..).and_then(|rest| rest.first_chunk());
    Ok(Link {
        network,
        source_mac: mac(source_mac),
        destination_mac: 0,
        vlan,
        header_length: header as u32,
        payload: data.get(header..).unwrap_or_default(),
    })
}

fn mac(bytes: Option<&[u8; 6]>) -> u64 {
    match bytes {
        Some(&[a, b, c, d, e, f]) => u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
        None => 0,
    }
}
