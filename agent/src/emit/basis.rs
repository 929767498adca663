//! The basis of a row: where it was seen and which processes are its ends; asked once per flow and remembered while the flow lives.

use std::net::{IpAddr, Ipv4Addr};

use metaflow_schema::enums::ObservationPoint;
use rustc_hash::FxHashMap;

use crate::flow::{Ends, FlowFacts};
use crate::session::Transport;

/// What the host knows about the ends of a flow.
pub trait Basis {
    fn observation_point(&self, ends: &Ends) -> ObservationPoint;
    /// Processes of client and server; 0 when unknown or elsewhere.
    fn pids(&self, ends: &Ends) -> (u32, u32);
    /// The process belongs to MetaFlow itself: what it says and hears is not reported.
    fn is_own(&self, _pid: u32) -> bool {
        false
    }
}

/// The basis of captures from elsewhere: nothing is here.
#[derive(Debug, Default, Clone, Copy)]
pub struct Nowhere;

impl Basis for Nowhere {
    fn observation_point(&self, _ends: &Ends) -> ObservationPoint {
        ObservationPoint::Rest
    }
    fn pids(&self, _ends: &Ends) -> (u32, u32) {
        (0, 0)
    }
}

/// Ends of a row as every table keys them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub client_ip: IpAddr,
    pub server_ip: IpAddr,
    pub server_port: u16,
    pub client_pid: u32,
    pub server_pid: u32,
    pub ip_protocol: u8,
    pub point: ObservationPoint,
    pub interface_index: u32,
}

const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// The address of a socket that has none, because it does not leave the host.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Place {
    /// Of a row that a process's own socket gave. The other end's process may be known from its socket, too; else the host is asked.
    pub(super) fn of_process(
        facts: &FlowFacts,
        point: ObservationPoint,
        [client_pid, server_pid]: [u32; 2],
        basis: &dyn Basis,
    ) -> Self {
        let ends = &facts.ends;
        let mut place = Self {
            client_ip: ends.client_ip,
            server_ip: ends.server_ip,
            server_port: ends.server_port,
            client_pid,
            server_pid,
            ip_protocol: ends.ip_protocol,
            point,
            interface_index: facts.interface_index,
        };
        if ends.ip_protocol == Transport::Unix.ip_protocol() {
            (place.client_ip, place.server_ip) = (HERE, HERE);
        } else if client_pid == 0 || server_pid == 0 {
            let (client, server) = basis.pids(ends);
            place.client_pid = if client_pid == 0 { client } else { client_pid };
            place.server_pid = if server_pid == 0 { server } else { server_pid };
        }
        place
    }

    /// One end is MetaFlow itself.
    pub(super) fn is_own(&self, basis: &dyn Basis) -> bool {
        basis.is_own(self.client_pid) || basis.is_own(self.server_pid)
    }

    /// The serving side alone.
    pub(super) fn one_sided(self) -> Self {
        Self { client_ip: NOBODY, client_pid: 0, ..self }
    }

    /// What is left when an interval has too many keys even by server.
    pub(super) fn anonymous(self) -> Self {
        Self { server_ip: NOBODY, server_port: 0, server_pid: 0, interface_index: 0, ..self.one_sided() }
    }
}

/// A closed flow's notes stay for requests that come out after it.
const CLOSED_KEPT_US: u64 = 30_000_000;
/// A flow that was silent for so long is looked up anew.
const IDLE_KEPT_US: u64 = 600_000_000;
/// Socket tables are a snapshot a second old: a process not found is asked for again a few times.
const RETRY_AFTER_US: u64 = 1_000_000;
const RETRIES: u8 = 4;
/// How often the notes are searched for old ones.
const PURGE_EVERY_US: u64 = 5_000_000;

#[derive(Debug, Clone, Copy)]
struct Note {
    place: Place,
    used: u64,
    asked: u64,
    retries: u8,
    minute: u32,
    closed: bool,
}

/// What is remembered of live flows; bounded.
pub(super) struct FlowNotes {
    notes: FxHashMap<u64, Note>,
    limit: usize,
    purged: u64,
}

impl FlowNotes {
    pub(super) fn new(limit: usize) -> Self {
        Self { notes: FxHashMap::default(), limit, purged: 0 }
    }

    pub(super) fn place(&mut self, facts: &FlowFacts, now: u64, basis: &dyn Basis) -> Place {
        // A flow's ends change places when it turns out that the server was taken for the client.
        let note = self.notes.get_mut(&facts.flow_id);
        if let Some(note) = note.filter(|note| is_same(&note.place, facts)) {
            note.used = now;
            if note.retries > 0 && now >= note.asked + RETRY_AFTER_US {
                note.asked = now;
                note.retries -= 1;
                resolve(&mut note.place, facts, basis);
                if is_resolved(&note.place) {
                    note.retries = 0;
                }
            }
            return note.place;
        }
        let ends = &facts.ends;
        let mut place = Place {
            client_ip: ends.client_ip,
            server_ip: ends.server_ip,
            server_port: ends.server_port,
            client_pid: 0,
            server_pid: 0,
            ip_protocol: ends.ip_protocol,
            point: basis.observation_point(ends),
            interface_index: facts.interface_index,
        };
        resolve(&mut place, facts, basis);
        if self.notes.len() < self.limit || self.notes.contains_key(&facts.flow_id) {
            let retries = if is_resolved(&place) { 0 } else { RETRIES };
            let minute = self.notes.get(&facts.flow_id).map_or(u32::MAX, |note| note.minute);
            let note = Note { place, used: now, asked: now, retries, minute, closed: false };
            self.notes.insert(facts.flow_id, note);
        }
        place
    }

    /// Whether this is the flow's first report in a minute. Without a note (too many flows) each report is taken for the first.
    pub(super) fn first_in_minute(&mut self, flow_id: u64, minute: u32) -> bool {
        self.notes.get_mut(&flow_id).is_none_or(|note| std::mem::replace(&mut note.minute, minute) != minute)
    }

    pub(super) fn close(&mut self, flow_id: u64, now: u64) {
        if let Some(note) = self.notes.get_mut(&flow_id) {
            note.closed = true;
            note.used = now;
        }
    }

    pub(super) fn purge(&mut self, now: u64) {
        if now < self.purged + PURGE_EVERY_US && self.notes.len() < self.limit {
            return;
        }
        self.purged = now;
        self.notes.retain(|_, note| {
            let kept = if note.closed { CLOSED_KEPT_US } else { IDLE_KEPT_US };
            now < note.used + kept
        });
    }
}

fn is_same(place: &Place, facts: &FlowFacts) -> bool {
    let ends = &facts.ends;
    place.server_port == ends.server_port
        && place.server_ip == ends.server_ip
        && place.client_ip == ends.client_ip
}

fn resolve(place: &mut Place, facts: &FlowFacts, basis: &dyn Basis) {
    let (client_pid, server_pid) = basis.pids(&facts.ends);
    // A process found once stays: its socket may be gone at the next look.
    if client_pid != 0 {
        place.client_pid = client_pid;
    }
    if server_pid != 0 {
        place.server_pid = server_pid;
    }
}

fn is_resolved(place: &Place) -> bool {
    match place.point {
        ObservationPoint::Local => place.client_pid != 0 && place.server_pid != 0,
        ObservationPoint::Client | ObservationPoint::ClientProcess => place.client_pid != 0,
        ObservationPoint::Server | ObservationPoint::ServerProcess => place.server_pid != 0,
        ObservationPoint::Rest => true,
    }
}
