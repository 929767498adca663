//! Tags of one end of a row: which process, host or network an address belongs to.
//!
//! Rules, first match wins:
//! 1. the process that the agent names (`pid`), if the agent told of it: [`TagSource::Process`];
//! 2. for a server, the process that listens on address, port and protocol. Loopback addresses stand for the agent's own host; other
//!    addresses for the host that has them, the agent's own first; an address that several hosts have (a bridge, say) stands for none
//!    of them: [`TagSource::Listener`];
//! 3. the host that has the address: [`TagSource::Address`];
//! 4. a subnet of the agent's host: the address itself, within that subnet: [`TagSource::Subnet`];
//! 5. a private address is itself, any other is the internet: [`TagSource::None`].
//!
//! The instance of a process is the process, else the host. The service of a process is its systemd unit, unless that is only
//! a place where programs are started (see [`names_service`]); else the process; of a host, the host. So nginx is `nginx` and Redis
//! `redis-server`, with systemd or without. Internet and plain addresses have id 0: their name is the address.

use metaflow_schema::{
    enums::{Kind, TagSource},
    tags::{INTERNET_EPC, TagRow},
};

use super::snapshot::{AgentView, HostTags, ProcessTags, Snapshot};

/// What is known of an end before it is looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub ip: [u8; 16],
    pub pid: u32,
    /// Listening port; 0 for a client.
    pub port: u16,
    pub ip_protocol: u8,
}

/// Finds the tags of one end of a row of `agent_id`.
pub(super) fn find(snapshot: &Snapshot, agent_id: u32, end: &End) -> TagRow {
    let agent = snapshot.agent(agent_id);
    if let Some(agent) = agent
        && let Some(process) = agent.process(end.pid)
    {
        return process_tags(end, agent, process, TagSource::Process);
    }
    let host = if is_loopback(&end.ip) { agent } else { snapshot.owner(agent, &end.ip) };
    if let Some(host) = host {
        return match host.listener(&end.ip, end.port, end.ip_protocol) {
            Some(process) => process_tags(end, host, process, TagSource::Listener),
            None => host_tags(end, host),
        };
    }
    let vpc_id = agent.map_or(0, |agent| agent.host().vpc_id);
    let subnet_id = agent.and_then(|agent| agent.subnet(&end.ip));
    let plain = TagRow { ip: end.ip, ..TagRow::default() };
    if subnet_id.is_some() || is_private(&end.ip) {
        return TagRow {
            l3_epc_id: vpc_id,
            vpc_id,
            subnet_id: subnet_id.unwrap_or(0),
            auto_instance_type: Kind::Ip as u8,
            auto_service_type: Kind::Ip as u8,
            tag_source: subnet_id.map_or(TagSource::None, |_| TagSource::Subnet) as u8,
            ..plain
        };
    }
    TagRow {
        l3_epc_id: INTERNET_EPC,
        auto_instance_type: Kind::Internet as u8,
        auto_service_type: Kind::Internet as u8,
        tag_source: TagSource::None as u8,
        ..plain
    }
}

fn host_tags(end: &End, view: &AgentView) -> TagRow {
    let HostTags { host_id, vpc_id } = view.host();
    TagRow {
        ip: end.ip,
        host_id,
        l3_epc_id: vpc_id,
        vpc_id,
        l2_vpc_id: vpc_id,
        subnet_id: view.subnet(&end.ip).unwrap_or(0),
        l3_device_type: Kind::Host as u8,
        l3_device_id: host_id,
        auto_instance_type: Kind::Host as u8,
        auto_instance_id: host_id,
        auto_service_type: Kind::Host as u8,
        auto_service_id: host_id,
        tag_source: TagSource::Address as u8,
        ..TagRow::default()
    }
}

fn process_tags(end: &End, view: &AgentView, process: &ProcessTags, source: TagSource) -> TagRow {
    let ProcessTags { pid, process_id, unit_id, container_id } = *process;
    let (service_type, service_id) =
        if unit_id != 0 { (Kind::Unit, unit_id) } else { (Kind::Process, process_id) };
    TagRow {
        process_id,
        pid,
        container_id,
        unit_id,
        auto_instance_type: Kind::Process as u8,
        auto_instance_id: process_id,
        auto_service_type: service_type as u8,
        auto_service_id: service_id,
        tag_source: source as u8,
        ..host_tags(end, view)
    }
}

/// Whether a systemd unit says what runs in it. Sessions, scopes and slices hold whatever a user starts, transient units have random
/// names, and job runners and supervisors start programs that have names of their own.
pub fn names_service(unit: &str) -> bool {
    const PLACES: [&str; 9] =
        ["init", "cron", "crond", "atd", "supervisor", "supervisord", "ssh", "sshd", "rc-local"];
    const PREFIXES: [&str; 5] = ["user@", "session-", "run-", "init.", "app-"];
    const SUFFIXES: [&str; 5] = [".scope", ".slice", ".mount", ".socket", ".timer"];
    !unit.is_empty()
        && !PLACES.contains(&unit)
        && !PREFIXES.iter().any(|prefix| unit.starts_with(prefix))
        && !SUFFIXES.iter().any(|suffix| unit.ends_with(suffix))
}

pub(super) fn is_unspecified(ip: &[u8; 16]) -> bool {
    let (head, tail) = ip.split_at(12);
    tail == [0; 4] && (head == [0; 12] || head == MAPPED)
}

pub(super) fn is_loopback(ip: &[u8; 16]) -> bool {
    match v4(ip) {
        Some([first, ..]) => first == 127,
        None => *ip == std::net::Ipv6Addr::LOCALHOST.octets(),
    }
}

/// Addresses that mean a host only within one network segment.
pub(super) fn is_link_local(ip: &[u8; 16]) -> bool {
    match v4(ip) {
        Some([first, second, ..]) => (first, second) == (169, 254),
        None => ip[0] == 0xfe && ip[1] & 0xc0 == 0x80,
    }
}

/// Addresses that no one reaches through the internet (RFC 1918, 6598, 4193), and those that name no host at all.
fn is_private(ip: &[u8; 16]) -> bool {
    if is_unspecified(ip) || is_loopback(ip) || is_link_local(ip) {
        return true;
    }
    match v4(ip) {
        Some([first, second, ..]) => match first {
            0 | 10 => true,
            100 => second & 0xc0 == 64,
            172 => second & 0xf0 == 16,
            192 => second == 168,
            // Multicast, reserved, broadcast.
            _ => first >= 224,
        },
        // Unique local and multicast.
        None => ip[0] & 0xfe == 0xfc || ip[0] == 0xff,
    }
}

const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn v4(ip: &[u8; 16]) -> Option<[u8; 4]> {
    let (head, tail) = ip.split_first_chunk::<12>()?;
    if *head == MAPPED { tail.try_into().ok() } else { None }
}
