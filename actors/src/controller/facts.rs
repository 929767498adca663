//! What one agent said of its host. Pure: facts come in, edits for the disk go out.
//!
//! Processes that ended are kept for a while, since rows of theirs are still on their way, in spools too. All is bounded: what
//! exceeds a limit is left out and counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use metaflow_schema::types::ip_cell_from_bytes;
use metaflow_wire as wire;

/// Running processes of a host.
pub(super) const PROCESSES_MAX: usize = 32_768;
/// Processes that ended; the oldest go first.
pub(super) const GONE_MAX: usize = 4_096;
pub(super) const LISTENERS_MAX: usize = 8_192;
/// Addresses of all interfaces.
pub(super) const ADDRESSES_MAX: usize = 1_024;
/// Longest text of a fact; command lines are the longest.
const TEXT_BYTES_MAX: usize = 256;

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    pub ip: [u8; 16],
    pub port: u16,
    pub ip_protocol: u8,
    pub pid: u32,
}

impl Listener {
    fn from_wire(listener: &wire::Listener) -> Option<Self> {
        let wire::Listener { ip, port, ip_protocol, pid } = listener;
        Some(Self {
            ip: ip_cell_from_bytes(ip)?,
            port: u16::try_from(*port).ok()?,
            ip_protocol: u8::try_from(*ip_protocol).ok()?,
            pid: *pid,
        })
    }
}

/// An address of an interface, with its prefix counted of 128.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub ip: [u8; 16],
    pub prefix_length: u8,
    pub is_v4: bool,
}

#[derive(Debug)]
struct Entry {
    process: wire::Process,
    /// When it ended, in the order of ends.
    gone: Option<u64>,
}

/// What must change on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    /// It is in [`Facts::process`].
    Process(u32),
    NoProcess(u32),
    Listener(Listener),
    NoListener(Listener),
    Addresses,
}

/// A version is missing: only all facts help.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// None until all facts came over a connection of this process's life.
    version: Option<u64>,
    processes: HashMap<u32, Entry>,
    /// Pids by the order in which they ended.
    gone: BTreeMap<u64, u32>,
    gone_count: u64,
    listeners: BTreeSet<Listener>,
    addresses: Vec<Address>,
    refused: u64,
}

impl Facts {
    /// Facts from the disk. They name rows; the agent must send all before it may send changes.
    pub(super) fn restored(
        processes: impl IntoIterator<Item = wire::Process>,
        listeners: impl IntoIterator<Item = Listener>,
        addresses: Vec<Address>,
    ) -> Self {
        let mut facts = Self { listeners: listeners.into_iter().collect(), addresses, ..Self::default() };
        for process in processes {
            facts.processes.insert(process.pid, Entry { process, gone: None });
        }
        facts
    }

    pub(super) fn apply(&mut self, facts: wire::Facts) -> Result<Vec<Edit>, Gap> {
        let wire::Facts { version, full, processes, gone_pids, listeners, gone_listeners, interfaces } =
            facts;
        if !full && self.version.is_none_or(|known| known.checked_add(1) != Some(version)) {
            self.version = None;
            return Err(Gap);
        }
        self.version = Some(version);
        let mut edits = Vec::new();
        if full {
            self.forget_all_but(&processes, &listeners, &mut edits);
        }
        for pid in gone_pids {
            self.end(pid, &mut edits);
        }
        for listener in gone_listeners.iter().filter_map(Listener::from_wire) {
            if self.listeners.remove(&listener) {
                edits.push(Edit::NoListener(listener));
            }
        }
        for process in processes {
            self.put(process, &mut edits);
        }
        for listener in &listeners {
            self.put_listener(listener, &mut edits);
        }
        let addresses = self.addresses_of(&interfaces);
        if addresses != self.addresses {
            self.addresses = addresses;
            edits.push(Edit::Addresses);
        }
        Ok(edits)
    }

    /// Takes no changes until all facts came.
    pub(super) fn expect_all(&mut self) {
        self.version = None;
    }

    pub(super) fn version(&self) -> u64 {
        self.version.unwrap_or(0)
    }

    pub(super) fn process(&self, pid: u32) -> Option<&wire::Process> {
        self.processes.get(&pid).map(|entry| &entry.process)
    }

    /// Running processes and those that ended lately.
    pub(super) fn processes(&self) -> impl Iterator<Item = &wire::Process> {
        self.processes.values().map(|entry| &entry.process)
    }

    pub(super) fn running(&self) -> usize {
        self.processes.len() - self.gone.len()
    }

    pub(super) fn listeners(&self) -> impl ExactSizeIterator<Item = &Listener> {
        self.listeners.iter()
    }

    pub(super) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Facts that were left out because of a limit or because they made no sense.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    fn forget_all_but(
        &mut self,
        processes: &[wire::Process],
        listeners: &[wire::Listener],
        edits: &mut Vec<Edit>,
    ) {
        let kept: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
        let mut ended: Vec<u32> = self.processes.keys().filter(|pid| !kept.contains(pid)).copied().collect();
        ended.sort_unstable();
        for pid in ended {
            self.end(pid, edits);
        }
        let kept: BTreeSet<Listener> = listeners.iter().filter_map(Listener::from_wire).collect();
        self.listeners.retain(|listener| {
            let is_kept = kept.contains(listener);
            if !is_kept {
                edits.push(Edit::NoListener(*listener));
            }
            is_kept
        });
    }

    fn end(&mut self, pid: u32, edits: &mut Vec<Edit>) {
        let Some(entry) = self.processes.get_mut(&pid).filter(|entry| entry.gone.is_none()) else { return };
        self.gone_count += 1;
        entry.gone = Some(self.gone_count);
        self.gone.insert(self.gone_count, pid);
        if self.gone.len() > GONE_MAX
            && let Some((_, oldest)) = self.gone.pop_first()
        {
            self.processes.remove(&oldest);
            edits.push(Edit::NoProcess(oldest));
        }
    }

    fn put(&mut self, mut process: wire::Process, edits: &mut Vec<Edit>) {
        let pid = process.pid;
        bound(&mut process);
        if pid == 0 || (!self.processes.contains_key(&pid) && self.running() >= PROCESSES_MAX) {
            self.refused += 1;
            return;
        }
        if self.process(pid) != Some(&process) {
            edits.push(Edit::Process(pid));
        }
        if let Some(Entry { gone: Some(at), .. }) = self.processes.insert(pid, Entry { process, gone: None })
        {
            self.gone.remove(&at);
        }
    }

    fn put_listener(&mut self, listener: &wire::Listener, edits: &mut Vec<Edit>) {
        match Listener::from_wire(listener) {
            Some(listener) if self.listeners.len() < LISTENERS_MAX => {
                if self.listeners.insert(listener) {
                    edits.push(Edit::Listener(listener));
                }
            }
            Some(listener) if self.listeners.contains(&listener) => {}
            Some(_) | None => self.refused += 1,
        }
    }

    fn addresses_of(&mut self, interfaces: &[wire::Interface]) -> Vec<Address> {
        let all = interfaces.iter().flat_map(|interface| &interface.addresses);
        let mut addresses = Vec::new();
        for wire::Address { ip, prefix_length } in all {
            let is_v4 = ip.len() == 4;
            let prefix_length = if is_v4 { prefix_length.saturating_add(96) } else { *prefix_length };
            match (ip_cell_from_bytes(ip), u8::try_from(prefix_length)) {
                (Some(ip), Ok(prefix_length)) if prefix_length <= 128 && addresses.len() < ADDRESSES_MAX => {
                    addresses.push(Address { ip, prefix_length, is_v4 });
                }
                _ => self.refused += 1,
            }
        }
        addresses
    }
}

/// Cuts the texts of a process.
fn bound(process: &mut wire::Process) {
    let wire::Process { pid: _, start_ticks: _, name, command_line, unit, container_id, user_id: _, pod_uid } =
        process;
    for text in [name, command_line, unit, container_id, pod_uid] {
        if text.len() > TEXT_BYTES_MAX {
            let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.shrink_to_fit();
        }
    }
}
