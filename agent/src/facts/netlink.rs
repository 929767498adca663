//! Interfaces, addresses and sockets over netlink: the messages (pure) and the exchange.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use metaflow_wire::{Address, Interface};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket,
    sockopt::{Timeout, set_socket_timeout},
};

use super::sockets::{self, Entry};

const HEADER: usize = 16;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
/// NLM_F_REQUEST | NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
/// SOCK_DIAG_BY_FAMILY
const GET_SOCKETS: u16 = 20;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const ADDRESS_PEER: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
/// The kernel answers at once; this is for the case that it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Messages that one dump may have.
const RECEIVES_MAX: usize = 4_096;

/// All interfaces of this network namespace with their addresses.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found = BTreeMap::new();
    for request in [GET_LINK, GET_ADDRESS] {
        // A general body of zeros means every family.
        dump(None, &message(request, &[0; 16]), |kind, body| add(&mut found, kind, body))?;
    }
    Ok(found.into_values().collect())
}

/// The sockets of one protocol (IANA number) in this network namespace: one walk over the kernel's table each for IPv4 and IPv6, where
/// /proc/net walks anew for each page that is read.
pub(super) fn sockets(ip_protocol: u8) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for family in [FAMILY_V4, FAMILY_V6] {
        let mut body = [0; 56];
        body[0] = family;
        body[1] = ip_protocol;
        body[4..8].copy_from_slice(&sockets::STATES_WITH_PROCESS.to_ne_bytes());
        dump(Some(netlink::SOCK_DIAG), &message(GET_SOCKETS, &body), |kind, body| {
            if kind == GET_SOCKETS {
                found.extend(parse_socket(body));
            }
        })?;
    }
    Ok(found)
}

/// An `inet_diag_msg`: family and state, ports and addresses in network order, and the inode at its end.
fn parse_socket(body: &[u8]) -> Option<Entry> {
    let address = |at: usize| match body[0] {
        FAMILY_V4 => to_ip(body.get(at..at + 4)?),
        _ => to_ip(body.get(at..at + 16)?).map(|ip| ip.to_canonical()),
    };
    let port = |at: usize| Some(u16::from_be_bytes(*body.get(at..)?.first_chunk()?));
    let state = *body.get(1)?;
    let local = SocketAddr::new(address(8)?, port(4)?);
    let remote = SocketAddr::new(address(24)?, port(6)?);
    let inode = u32::from_ne_bytes(*body.get(68..)?.first_chunk()?);
    sockets::entry(local, remote, state, inode.into())
}

/// Addresses of an interface as they are compared.
pub(super) fn addresses(interfaces: &[Interface]) -> impl Iterator<Item = IpAddr> {
    interfaces.iter().flat_map(|interface| &interface.addresses).filter_map(|address| to_ip(&address.ip))
}

fn dump(protocol: Option<Protocol>, request: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let netlink: OwnedFd = socket(AddressFamily::NETLINK, SocketType::RAW, protocol)?;
    set_socket_timeout(&netlink, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    sendto(&netlink, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..RECEIVES_MAX {
        let (_, length) = recv(&netlink, buffer.as_mut_slice(), RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length.min(buffer.len())]) {
            match kind {
                DONE => return Ok(()),
                ERROR => return Err(io::Error::other("netlink refused the request")),
                _ => each(kind, body),
            }
        }
    }
    Err(io::Error::other("netlink answered without end"))
}

/// A dump request: header and body.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(body);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes
}

/// Kind and body of each message in a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Kind and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn add(found: &mut BTreeMap<u32, Interface>, kind: u16, body: &[u8]) {
    let Some(index) =
        body.get(4..).and_then(|rest| rest.first_chunk()).map(|index| u32::from_ne_bytes(*index))
    else {
        return;
    };
    match kind {
        NEW_LINK => {
            let interface = found.entry(index).or_default();
            interface.index = index;
            for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
                match kind {
                    LINK_NAME => {
                        interface.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
                    }
                    LINK_ADDRESS if value.len() == 6 => interface.mac = value.to_vec(),
                    _ => {}
                }
            }
        }
        NEW_ADDRESS => {
            let attributes: Vec<_> = attributes(body.get(8..).unwrap_or_default()).collect();
            // On a point-to-point link the local address is the one that counts.
            let ip = [ADDRESS_LOCAL, ADDRESS_PEER].iter().find_map(|wanted| {
                let (_, value) = attributes.iter().find(|(kind, _)| kind == wanted)?;
                to_ip(value).map(|_| value.to_vec())
            });
            if let (Some(ip), Some(interface)) = (ip, found.get_mut(&index)) {
                interface.addresses.push(Address { ip, prefix_length: body[1].into() });
            }
        }
        _ => {}
    }
}

fn to_ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(Ipv4Addr::from(*octets.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*octets.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_loopback_interface_with_its_address() {
        let interfaces = interfaces().unwrap();
        let loopback = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(loopback.index > 0);
        assert!(addresses(&interfaces).any(|address| address == IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn damaged_messages_end_the_walk() {
        let mut bytes = message(GET_LINK, &[0; 16]);
        assert_eq!(messages(&bytes).count(), 1);
        bytes[0] = 200;
        assert_eq!(messages(&bytes).count(), 0, "longer than the datagram");
        bytes[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(messages(&bytes).count(), 0, "shorter than a header");
        assert_eq!(attributes(&[1, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[0; 3]).count(), 0);
        add(&mut BTreeMap::new(), NEW_ADDRESS, &[0; 3]);
        for length in 0..80 {
            let body = vec![2; length];
            assert_eq!(parse_socket(&body).is_some(), length >= 72, "{length}");
        }
    }
}
