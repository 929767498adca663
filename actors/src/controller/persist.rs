//! Agents and their facts on disk, a key for each fact, so that a change writes what changed.
//!
//! Keys begin with the agent's id (big-endian), then a letter: `h` who it is, `a` addresses, `p` and pid, `l` and listener.
//! Values are messages of the wire, which the next release can read.

use metaflow_wire as wire;
use prost::Message;
use tracing::warn;

use super::{
    agents::{Agents, Greeting},
    facts::{Address, Edit, Facts, Listener},
};
use crate::disk::{Changes, Disk, Error, Family};

/// Adds the changes for an agent that said Hello, and for one that was forgotten in its favour.
pub(super) fn greeted(
    disk: &Disk,
    greeting: &Greeting,
    forgotten: Option<u32>,
    changes: &mut Changes,
) -> Result<(), Error> {
    if let Some(forgotten) = forgotten {
        let prefix = forgotten.to_be_bytes();
        disk.scan(Family::Facts, &prefix, |key, _| {
            let is_its = key.starts_with(&prefix);
            if is_its {
                changes.delete(Family::Facts, key);
            }
            is_its
        })?;
    }
    let value = [&greeting.host_id.to_be_bytes()[..], &greeting.hello.encode_to_vec()].concat();
    changes.put(Family::Facts, key(greeting.agent_id, b'h', &[]), value);
    Ok(())
}

/// Changes for edits that are in `facts` already.
pub(super) fn edited(agent_id: u32, facts: &Facts, edits: &[Edit]) -> Changes {
    let mut changes = Changes::default();
    for edit in edits {
        match edit {
            Edit::Process(pid) => {
                // Added and pushed out again within one message.
                let Some(process) = facts.process(*pid) else { continue };
                changes.put(Family::Facts, key(agent_id, b'p', &pid.to_be_bytes()), process.encode_to_vec());
            }
            Edit::NoProcess(pid) => changes.delete(Family::Facts, key(agent_id, b'p', &pid.to_be_bytes())),
            Edit::Listener(listener) => changes.put(Family::Facts, listener_key(agent_id, listener), []),
            Edit::NoListener(listener) => changes.delete(Family::Facts, listener_key(agent_id, listener)),
            Edit::Addresses => {
                let addresses = facts.addresses().iter().map(|address| wire::Address {
                    ip: address.ip.to_vec(),
                    prefix_length: address.prefix_length.into(),
                });
                let interface = wire::Interface { addresses: addresses.collect(), ..Default::default() };
                changes.put(Family::Facts, key(agent_id, b'a', &[]), interface.encode_to_vec());
            }
        }
    }
    changes
}

/// What is being read of one agent.
#[derive(Default)]
struct Draft {
    greeting: Option<Greeting>,
    processes: Vec<wire::Process>,
    listeners: Vec<Listener>,
    addresses: Vec<Address>,
}

/// Every agent on disk, up to a limit.
pub(super) fn load(disk: &Disk, agents_max: usize) -> Result<Agents, Error> {
    let mut agents = Agents::default();
    let mut current: Option<(u32, Draft)> = None;
    disk.scan(Family::Facts, b"", |key, value| {
        let Some((agent_id, rest)) = key.split_first_chunk() else { return true };
        let agent_id = u32::from_be_bytes(*agent_id);
        if current.as_ref().is_none_or(|(reading, _)| *reading != agent_id) {
            finish(&mut agents, current.replace((agent_id, Draft::default())));
        }
        if let Some((_, draft)) = &mut current
            && draft.read(agent_id, rest, value).is_none()
        {
            warn!(agent_id, "a fact on disk cannot be read: left out until the agent sends it again");
        }
        agents.len() < agents_max
    })?;
    if agents.len() < agents_max {
        finish(&mut agents, current);
    }
    Ok(agents)
}

fn finish(agents: &mut Agents, read: Option<(u32, Draft)>) {
    if let Some((_, Draft { greeting: Some(greeting), processes, listeners, addresses })) = read {
        agents.restore(greeting, Facts::restored(processes, listeners, addresses));
    }
}

impl Draft {
    fn read(&mut self, agent_id: u32, key: &[u8], value: &[u8]) -> Option<()> {
        let (letter, key) = key.split_first()?;
        match letter {
            b'h' => {
                let (host_id, hello) = value.split_first_chunk()?;
                let hello = wire::Hello::decode(hello).ok()?;
                let host_id = u32::from_be_bytes(*host_id);
                self.greeting = Some(Greeting { agent_id, host_id, is_stranger: false, hello });
            }
            b'a' => {
                for wire::Address { ip, prefix_length } in wire::Interface::decode(value).ok()?.addresses {
                    let ip: [u8; 16] = ip.try_into().ok()?;
                    let is_v4 = std::net::Ipv6Addr::from(ip).to_ipv4_mapped().is_some();
                    let prefix_length = u8::try_from(prefix_length).ok()?;
                    self.addresses.push(Address { ip, prefix_length, is_v4 });
                }
            }
            b'p' => self.processes.push(wire::Process::decode(value).ok()?),
            b'l' => self.listeners.push(read_listener(key)?),
            _ => return None,
        }
        Some(())
    }
}

fn key(agent_id: u32, letter: u8, rest: &[u8]) -> Vec<u8> {
    [&agent_id.to_be_bytes(), &[letter][..], rest].concat()
}

fn listener_key(agent_id: u32, listener: &Listener) -> Vec<u8> {
    let Listener { ip, port, ip_protocol, pid } = listener;
    let rest = [&ip[..], &port.to_be_bytes(), &[*ip_protocol], &pid.to_be_bytes()].concat();
    key(agent_id, b'l', &rest)
}

fn read_listener(key: &[u8]) -> Option<Listener> {
    let (ip, rest) = key.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (ip_protocol, pid) = rest.split_first()?;
    Some(Listener {
        ip: *ip,
        port: u16::from_be_bytes(*port),
        ip_protocol: *ip_protocol,
        pid: u32::from_be_bytes(pid.try_into().ok()?),
    })
}
