//! Interfaces and addresses over routing netlink: the messages (pure) and the exchange.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Duration,
};

use metaflow_wire::{Address, Interface};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType,
    netlink::SocketAddrNetlink,
    recv, sendto, socket,
    sockopt::{Timeout, set_socket_timeout},
};

const HEADER: usize = 16;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
/// NLM_F_REQUEST | NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
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
        dump(request, |kind, body| add(&mut found, kind, body))?;
    }
    Ok(found.into_values().collect())
}

/// Addresses of an interface as they are compared.
pub(super) fn addresses(interfaces: &[Interface]) -> impl Iterator<Item = IpAddr> {
    interfaces.iter().flat_map(|interface| &interface.addresses).filter_map(|address| to_ip(&address.ip))
}

fn dump(kind: u16, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let netlink: OwnedFd = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    set_socket_timeout(&netlink, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    sendto(&netlink, &request(kind), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
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

/// A dump request: header and a general body of zeros, which means every family.
fn request(kind: u16) -> [u8; HEADER + 16] {
    let mut bytes = [0; HEADER + 16];
    let length = (HEADER + 16) as u32;
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
        let mut bytes = request(GET_LINK).to_vec();
        assert_eq!(messages(&bytes).count(), 1);
        bytes[0] = 200;
        assert_eq!(messages(&bytes).count(), 0, "longer than the datagram");
        bytes[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(messages(&bytes).count(), 0, "shorter than a header");
        assert_eq!(attributes(&[1, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[0; 3]).count(), 0);
        add(&mut BTreeMap::new(), NEW_ADDRESS, &[0; 3]);
    }
}
