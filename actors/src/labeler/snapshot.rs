//! The snapshot: what is known of hosts and processes, for finding tags without a lock.
//!
//! Immutable; the controller publishes a new one when facts change. A change rebuilds the view of its agent alone, and the map of
//! addresses only when addresses changed.

use std::{collections::HashMap, sync::Arc};

use super::tags::{is_link_local, is_loopback, is_unspecified};

/// A listener's address that stands for all addresses of the host.
const ANY: [u8; 16] = [0; 16];

/// Tags that every end on a host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostTags {
    pub host_id: u32,
    pub vpc_id: u32,
}

/// Tags of a process, as dictionary ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessTags {
    pub pid: u32,
    pub process_id: u32,
    /// Only of units that name a service.
    pub unit_id: u32,
    pub container_id: u32,
}

/// A network that an interface of a host stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    pub ip: [u8; 16],
    /// Of 128: an IPv4 prefix counts from bit 96.
    pub prefix_length: u8,
    pub subnet_id: u32,
}

impl Subnet {
    fn contains(&self, ip: &[u8; 16]) -> bool {
        let shift = 128 - u32::from(self.prefix_length.min(128));
        let differs = u128::from_be_bytes(self.ip) ^ u128::from_be_bytes(*ip);
        differs.checked_shr(shift).unwrap_or(0) == 0
    }
}

/// A listening socket of a known process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Unspecified: every address of the host.
    pub ip: [u8; 16],
    pub port: u16,
    pub ip_protocol: u8,
    pub pid: u32,
}

/// What one agent knows of its host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentView {
    host: HostTags,
    processes: HashMap<u32, ProcessTags>,
    /// Process by address (all zero: every address), port and protocol.
    listeners: HashMap<([u8; 16], u16, u8), u32>,
    /// Addresses of interfaces, sorted.
    addresses: Vec<[u8; 16]>,
    /// Most exact first.
    subnets: Vec<Subnet>,
}

impl AgentView {
    pub fn new(
        host: HostTags,
        processes: impl IntoIterator<Item = ProcessTags>,
        listening: impl IntoIterator<Item = Listening>,
        mut addresses: Vec<[u8; 16]>,
        mut subnets: Vec<Subnet>,
    ) -> Self {
        let processes = processes.into_iter().map(|process| (process.pid, process)).collect();
        let mut listeners = HashMap::new();
        for Listening { ip, port, ip_protocol, pid } in listening {
            let key = (if is_unspecified(&ip) { ANY } else { ip }, port, ip_protocol);
            // Workers share their parent's socket; the parent is the oldest.
            listeners.entry(key).and_modify(|first: &mut u32| *first = pid.min(*first)).or_insert(pid);
        }
        addresses.sort_unstable();
        addresses.dedup();
        subnets.sort_unstable_by_key(|subnet| std::cmp::Reverse(subnet.prefix_length));
        Self { host, processes, listeners, addresses, subnets }
    }

    pub(super) fn host(&self) -> HostTags {
        self.host
    }

    pub(super) fn process(&self, pid: u32) -> Option<&ProcessTags> {
        if pid == 0 { None } else { self.processes.get(&pid) }
    }

    /// The process that listens there: on the very address, else on every address.
    pub(super) fn listener(&self, ip: &[u8; 16], port: u16, ip_protocol: u8) -> Option<&ProcessTags> {
        let find = |ip: [u8; 16]| self.listeners.get(&(ip, port, ip_protocol));
        self.process(*find(*ip).or_else(|| find(ANY))?)
    }

    pub(super) fn subnet(&self, ip: &[u8; 16]) -> Option<u32> {
        self.subnets.iter().find(|subnet| subnet.contains(ip)).map(|subnet| subnet.subnet_id)
    }

    fn has(&self, ip: &[u8; 16]) -> bool {
        self.addresses.binary_search(ip).is_ok()
    }

    /// Addresses by which other hosts know this one.
    fn reachable(&self) -> impl Iterator<Item = &[u8; 16]> {
        self.addresses.iter().filter(|ip| !is_loopback(ip) && !is_link_local(ip))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Agent(u32),
    /// Several hosts have the address: it names none of them.
    Several,
}

/// Every agent's view, and which host has which address.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    agents: HashMap<u32, Arc<AgentView>>,
    /// By VPC and address.
    owners: Arc<HashMap<(u32, [u8; 16]), Owner>>,
}

impl Snapshot {
    /// The same with these agents' views replaced.
    pub fn with(&self, changed: impl IntoIterator<Item = (u32, Arc<AgentView>)>) -> Self {
        let mut agents = self.agents.clone();
        let mut moved = false;
        for (agent_id, view) in changed {
            let place = |view: &AgentView| (view.host.vpc_id, view.addresses.clone());
            let after = place(&view);
            let before = agents.insert(agent_id, view);
            moved |= before.map(|before| place(&before)) != Some(after);
        }
        let owners = if moved { Arc::new(owners(&agents)) } else { Arc::clone(&self.owners) };
        Self { agents, owners }
    }

    /// The same without these agents.
    pub fn without(mut self, removed: impl IntoIterator<Item = u32>) -> Self {
        let before = self.agents.len();
        for agent_id in removed {
            self.agents.remove(&agent_id);
        }
        if self.agents.len() < before {
            self.owners = Arc::new(owners(&self.agents));
        }
        self
    }

    pub(super) fn agent(&self, agent_id: u32) -> Option<&AgentView> {
        self.agents.get(&agent_id).map(Arc::as_ref)
    }

    /// The host that has an address, as seen from `agent`.
    pub(super) fn owner<'a>(&'a self, agent: Option<&'a AgentView>, ip: &[u8; 16]) -> Option<&'a AgentView> {
        let agent = agent?;
        if agent.has(ip) {
            return Some(agent);
        }
        match self.owners.get(&(agent.host.vpc_id, *ip)) {
            Some(Owner::Agent(owner)) => self.agent(*owner),
            Some(Owner::Several) | None => None,
        }
    }
}

fn owners(agents: &HashMap<u32, Arc<AgentView>>) -> HashMap<(u32, [u8; 16]), Owner> {
    let mut owners = HashMap::new();
    for (agent_id, view) in agents {
        for ip in view.reachable() {
            owners
                .entry((view.host.vpc_id, *ip))
                .and_modify(|owner| *owner = Owner::Several)
                .or_insert(Owner::Agent(*agent_id));
        }
    }
    owners
}
