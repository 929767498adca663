//! What runs here at one moment, and the difference between two moments. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use metaflow_wire as wire;

/// What tells a listener: address (unspecified is every address), port, IANA protocol number, process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    pub ip: IpAddr,
    pub port: u16,
    pub ip_protocol: u8,
    pub pid: u32,
}

impl Listener {
    fn to_wire(self) -> wire::Listener {
        wire::Listener {
            ip: octets(self.ip),
            port: self.port.into(),
            ip_protocol: self.ip_protocol.into(),
            pid: self.pid,
        }
    }
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Processes, listeners and interfaces of a host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    pub processes: BTreeMap<u32, wire::Process>,
    /// Sorted, each once.
    pub listeners: Vec<Listener>,
    pub interfaces: Vec<wire::Interface>,
}

impl Snapshot {
    /// All of it.
    pub fn full(&self, version: u64) -> wire::Facts {
        wire::Facts {
            version,
            full: true,
            processes: self.processes.values().cloned().collect(),
            gone_pids: Vec::new(),
            listeners: self.listeners.iter().map(|listener| listener.to_wire()).collect(),
            gone_listeners: Vec::new(),
            interfaces: self.interfaces.clone(),
        }
    }

    /// What changed since an earlier snapshot; none when nothing did.
    pub fn delta(&self, earlier: &Self, version: u64) -> Option<wire::Facts> {
        if self == earlier {
            return None;
        }
        let Self { processes, listeners, interfaces } = self;
        let new_of = |these: &[Listener], those: &[Listener]| -> Vec<wire::Listener> {
            these
                .iter()
                .filter(|listener| those.binary_search(listener).is_err())
                .map(|listener| listener.to_wire())
                .collect()
        };
        Some(wire::Facts {
            version,
            full: false,
            processes: processes
                .iter()
                .filter(|(pid, process)| earlier.processes.get(*pid) != Some(*process))
                .map(|(_, process)| process.clone())
                .collect(),
            gone_pids: earlier
                .processes
                .keys()
                .filter(|pid| !processes.contains_key(*pid))
                .copied()
                .collect(),
            listeners: new_of(listeners, &earlier.listeners),
            gone_listeners: new_of(&earlier.listeners, listeners),
            interfaces: interfaces.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, name: &str) -> (u32, wire::Process) {
        (pid, wire::Process { pid, name: name.to_owned(), ..Default::default() })
    }

    fn listener(port: u16, pid: u32) -> Listener {
        Listener { ip: [0, 0, 0, 0].into(), port, ip_protocol: 6, pid }
    }

    #[test]
    fn a_delta_holds_what_came_changed_and_went() {
        let earlier = Snapshot {
            processes: [process(1, "init"), process(2, "sh"), process(3, "old")].into(),
            listeners: vec![listener(80, 1), listener(81, 2)],
            interfaces: vec![],
        };
        let now = Snapshot {
            processes: [process(1, "init"), process(2, "nginx"), process(4, "new")].into(),
            listeners: vec![listener(80, 4), listener(81, 2)],
            interfaces: vec![],
        };
        let delta = now.delta(&earlier, 9).unwrap();
        let names: Vec<_> = delta.processes.iter().map(|process| process.name.as_str()).collect();
        assert_eq!((names, &delta.gone_pids), (vec!["nginx", "new"], &vec![3]));
        assert_eq!((delta.version, delta.full), (9, false));
        let pids = |listeners: &[wire::Listener]| listeners.iter().map(|entry| entry.pid).collect::<Vec<_>>();
        assert_eq!((pids(&delta.listeners), pids(&delta.gone_listeners)), (vec![4], vec![1]));
        assert_eq!(now.delta(&now.clone(), 10), None);
    }

    #[test]
    fn the_full_facts_hold_all() {
        let now = Snapshot {
            processes: [process(1, "init")].into(),
            listeners: vec![listener(80, 1)],
            interfaces: vec![],
        };
        let full = now.full(3);
        assert!(full.full && full.version == 3);
        assert_eq!((full.processes.len(), full.listeners[0].port), (1, 80));
    }
}
