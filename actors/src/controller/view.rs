//! Facts become a view for the labeler: texts are replaced by ids, all in one question to the dictionary.

use std::net::{IpAddr, Ipv6Addr};

use metaflow_schema::enums::Kind;

use super::facts::{Address, Facts, Listener};
use crate::labeler::{AgentView, HostTags, Listening, Names, ProcessTags, Subnet, names_service};

pub(super) fn build<N: Names>(facts: &Facts, host: HostTags, names: &N) -> Result<AgentView, N::Error> {
    let subnets: Vec<_> = facts.addresses().iter().filter_map(subnet).collect();
    // Kind by kind: the dictionary takes a lock for each run of one kind.
    let processes = || facts.processes();
    let wanted: Vec<(Kind, &str)> = processes()
        .map(|process| (Kind::Process, process.name.as_str()))
        .chain(processes().map(|process| (Kind::Unit, unit(process))))
        .chain(processes().map(|process| (Kind::Container, process.container_id.as_str())))
        .chain(subnets.iter().map(|(_, name)| (Kind::Subnet, name.as_str())))
        .collect();
    let ids = names.ids(&wanted)?;
    let count = processes().count();
    let id = |section: usize, at: usize| ids.get(section * count + at).copied().unwrap_or(0);
    Ok(AgentView::new(
        host,
        processes().enumerate().map(|(at, process)| ProcessTags {
            pid: process.pid,
            process_id: id(0, at),
            unit_id: id(1, at),
            container_id: id(2, at),
        }),
        facts.listeners().map(|listener| {
            let Listener { ip, port, ip_protocol, pid } = *listener;
            Listening { ip, port, ip_protocol, pid }
        }),
        facts.addresses().iter().map(|address| address.ip).collect(),
        subnets
            .iter()
            .enumerate()
            .map(|(at, (subnet, _))| Subnet { subnet_id: id(3, at), ..*subnet })
            .collect(),
    ))
}

/// The unit, where it says what the process is. In a container it is the runtime's.
fn unit(process: &metaflow_wire::Process) -> &str {
    if process.container_id.is_empty() && names_service(&process.unit) { &process.unit } else { "" }
}

/// The network of an address and its name; none for loopback and for addresses that stand alone.
fn subnet(address: &Address) -> Option<(Subnet, String)> {
    let Address { ip, prefix_length, is_v4 } = *address;
    let full = Ipv6Addr::from(ip);
    let shown = full.to_canonical();
    let is_link_local = match shown {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let shortest = if is_v4 { 96 } else { 0 };
    if shown.is_loopback() || is_link_local || prefix_length <= shortest || prefix_length >= 128 {
        return None;
    }
    let network = u128::from(full) & (u128::MAX << (128 - u32::from(prefix_length)));
    let network = Ipv6Addr::from(network);
    let name = format!("{}/{}", network.to_canonical(), prefix_length - shortest);
    Some((Subnet { ip: network.octets(), prefix_length, subnet_id: 0 }, name))
}
