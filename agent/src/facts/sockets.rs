//! Sockets of the kernel's tables, and the texts of /proc/net/{tcp,udp}{,6}. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
/// An unconnected UDP socket.
const UDP_OPEN: u8 = 7;

/// Bits of the states in which a socket has a process: all but the last wait of a closed connection.
pub(super) const STATES_WITH_PROCESS: u32 = 0xfff & !(1 << 6);

/// A socket of the kernel's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub local: SocketAddr,
    pub remote: Option<SocketAddr>,
    pub inode: u64,
    /// It takes connections, or datagrams from anyone.
    pub is_listener: bool,
}

/// The sockets of one table; lines that make no sense and sockets without a process are left out.
pub(super) fn parse(text: &str) -> impl Iterator<Item = Entry> {
    text.lines().skip(1).filter_map(parse_line)
}

fn parse_line(line: &str) -> Option<Entry> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = parse_address(fields.next()?)?;
    let remote = parse_address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode: u64 = fields.nth(5)?.parse().ok()?;
    entry(local, remote, state, inode)
}

/// None for sockets without a process and without a use.
pub(super) fn entry(local: SocketAddr, remote: SocketAddr, state: u8, inode: u64) -> Option<Entry> {
    let is_listener = matches!(state, TCP_LISTEN | UDP_OPEN) && remote.port() == 0;
    let is_connected = state >= TCP_ESTABLISHED && remote.port() != 0;
    (inode != 0 && (is_listener || is_connected)).then_some(Entry {
        local,
        remote: is_connected.then_some(remote),
        inode,
        is_listener,
    })
}

/// `0100007F:1F90`: the address as words in the host's byte order, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut octets = [0; 16];
            octets.copy_from_slice(words.as_flattened());
            // A connection over IPv4 on a socket of IPv6 is one over IPv4.
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The inode of a link in /proc/PID/fd such as `socket:[1234]`.
pub(super) fn parse_link(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn tables_are_read() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 x 100 0\n\
            1: 0100007F:1F90 0200A8C0:C350 01 00000000:00000000 00:00000000 00000000  1000        0 102 1 x 20 4\n\
            2: 0100007F:1F90 0200A8C0:C351 06 00000000:00000000 03:00000000 00000000     0        0 0 3 x\n\
            nonsense\n";
        let entries: Vec<_> = parse(tcp).collect();
        let listener =
            Entry { local: "0.0.0.0:80".parse().unwrap(), remote: None, inode: 101, is_listener: true };
        let connection = Entry {
            local: "127.0.0.1:8080".parse().unwrap(),
            remote: Some("192.168.0.2:50000".parse().unwrap()),
            inode: 102,
            is_listener: false,
        };
        assert_eq!(entries, [listener, connection]);
        let tcp6 = "header\n\
            0: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 7 2 x\n\
            1: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:C350 01 0:0 0:0 0 0 0 8 1 x\n";
        let locals: Vec<_> = parse(tcp6).map(|entry| entry.local.to_string()).collect();
        assert_eq!(locals, ["[::1]:53", "127.0.0.1:80"]);
    }

    #[test]
    fn links_of_sockets_are_told_from_others() {
        assert_eq!(parse_link(b"socket:[1234]"), Some(1234));
        for other in [&b"pipe:[1]"[..], b"/dev/null", b"socket:[]", b"socket:[1"] {
            assert_eq!(parse_link(other), None);
        }
    }
}
