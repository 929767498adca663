//! Sockets of the node, and the way to its peers.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use rustix::net::sockopt;

use super::{Check, judge};
use crate::node::Parts;

/// The node's own sockets are on this machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Whether the node's sockets take connections where others are told that they do.
pub(super) async fn sockets(parts: &Parts) -> Vec<Check> {
    let view = parts.membership().view().borrow().clone();
    let Some(own) = view.member(view.own) else { return vec![] };
    let mut checks = Vec::new();
    for (setting, address) in [("grpc.listen", own.facts.grpc), ("http.listen", own.facts.http)] {
        let Some(address) = address else { continue };
        let connecting = tokio::net::TcpStream::connect(address);
        checks.push(match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
            Ok(Ok(_)) => Check::ok("socket", format!("{setting}: {address} takes connections")),
            Ok(Err(error)) => unreachable_socket(setting, address, &error.to_string()),
            Err(_) => unreachable_socket(setting, address, "nothing answers"),
        });
    }
    checks
}

fn unreachable_socket(setting: &str, address: SocketAddr, cause: &str) -> Check {
    Check::fail(
        "socket",
        format!("{setting}: others are told {address}, which takes no connection: {cause}"),
        "set cluster.advertise to an address at which this machine is reached, and see that no firewall is before it",
    )
}

/// The socket that gossip comes to.
pub(super) fn gossip(parts: &Parts) -> Vec<Check> {
    if parts.config().cluster.seeds.is_empty() {
        return vec![Check::ok("gossip socket", "none: the node is a cluster of one")];
    }
    let mut checks = Vec::new();
    if let Some(bytes) = number("/proc/sys/net/core/rmem_default") {
        checks.push(judge::udp_buffer(bytes));
    }
    let listen = parts.config().cluster.listen;
    let port = if listen.port() == 0 { parts.membership().address().port() } else { listen.port() };
    let dropped = ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .find_map(|table| dropped(&table, port));
    checks.push(judge::gossip_socket(SocketAddr::new(listen.ip(), port), dropped));
    checks
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The last column of the socket's line: datagrams that found no room.
fn dropped(table: &str, port: u16) -> Option<u64> {
    let line = table.lines().skip(1).find(|line| {
        let local = line.split_ascii_whitespace().nth(1).and_then(|local| local.rsplit_once(':'));
        local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port))
    })?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

/// What lies between this node and each other: size of packets, clocks, protocols.
pub(super) fn peers(parts: &Parts) -> Vec<Check> {
    let view = parts.membership().view().borrow().clone();
    let largest = parts.membership().largest_datagram().unwrap_or(0);
    let mut checks = Vec::new();
    for member in view.live().filter(|member| member.node_id != view.own) {
        let name = &member.facts.name;
        match path_mtu(member.gossip) {
            Ok(mtu) => checks.push(judge::mtu(name, mtu.into(), largest)),
            Err(error) => checks.push(Check::fail(
                "mtu",
                format!("{name}: there is no way to {}: {error}", member.gossip),
                "look at the routes of this machine",
            )),
        }
        checks.push(judge::clock(name, member.skew_ms));
        checks.push(protocol(name, member.facts.protocol, &member.facts.version));
    }
    for duplicate in &view.duplicates {
        checks.push(Check::fail(
            "node id",
            format!("two running nodes use node_id {}: {:?}", duplicate.node_id, duplicate.addresses),
            "give one of them another node_id: until then neither names anything new",
        ));
    }
    checks
}

fn protocol(name: &str, (oldest, newest): (u32, u32), version: &str) -> Check {
    let found = format!("{name}: release {version}, protocol {oldest} to {newest}");
    if newest < metaflow_wire::PROTOCOL_VERSION_OLDEST || oldest > metaflow_wire::PROTOCOL_VERSION {
        let advice =
            "nodes of two neighbouring releases work together: bring one of them to the release between";
        return Check::fail("version", found, advice);
    }
    if version != env!("CARGO_PKG_VERSION") {
        let advice = "bring all nodes to one release when you are done with the change";
        return Check::warn("version", found, advice);
    }
    Check::ok("version", found)
}

/// What the kernel knows of the way there; nothing is sent.
fn path_mtu(to: SocketAddr) -> std::io::Result<u32> {
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(if to.is_ipv4() { sockopt::ip_mtu(&socket)? } else { sockopt::ipv6_mtu(&socket)? })
}

#[cfg(test)]
mod tests {
    use super::{super::Health, *};

    #[test]
    fn the_kernel_knows_sockets_and_paths() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let table = std::fs::read_to_string("/proc/net/udp").unwrap();
        assert_eq!(dropped(&table, port), Some(0));
        drop(socket);
        assert!(path_mtu(SocketAddr::from(([127, 0, 0, 1], 9))).unwrap() >= 1280);
    }

    #[test]
    fn lines_of_other_ports_do_not_count() {
        let table = "  sl  local_address rem_address st\n  1: 0100007F:4E45 00000000:0000 07 0:0 0:0 0 0 0 1 2 0 17\n";
        assert_eq!(dropped(table, 20037), Some(17));
        assert_eq!(dropped(table, 20038), None);
    }

    #[test]
    fn releases_that_do_not_understand_each_other_are_found() {
        let now = metaflow_wire::PROTOCOL_VERSION;
        assert_eq!(protocol("n2", (now, now), env!("CARGO_PKG_VERSION")).health, Health::Ok);
        assert_eq!(protocol("n2", (now, now + 1), "99.0.0").health, Health::Warn);
        assert_eq!(protocol("n2", (now + 1, now + 2), "99.0.0").health, Health::Fail);
        assert_eq!(protocol("n2", (0, 0), "").health, Health::Fail);
    }
}
