//! The flow table: packets become flows with TCP state, delays and counters.
//!
//! Time is the packets' own, moved on by [`FlowTable::tick`] when none come. A flow reports each second in which it did something
//! once that second is over, and each minute likewise; packets that come late count in the second that is open, so that the sums
//! over all reports equal what came in. Bound: `flows_max` flows; the flow that would be over first makes room.
//!
//! Leaves out: decoding (`packet`), requests inside the streams (`session`), sending (`emit`).

pub mod report;

mod clock;
mod delays;
mod entry;
mod key;
mod sequence;
mod state;
mod stream;
mod talk;
mod tcp;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use metaflow_schema::enums::CloseType;

use self::clock::second_of;
use self::entry::{Flow, orientation};
use self::key::{Key, KeyedHash, PortSet};
use self::stream::Room;
use self::talk::Shared;
use self::timers::Timers;
use crate::packet::{Packet, TIMESTAMP_MAX, Transport, flags};
use crate::session;

pub use self::report::{Activity, Delay, Ends, FlowFacts, FlowReport, Output, Traffic};
pub use self::state::Timeouts;

/// Limits and settings of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Flows kept at one time; about 1.2 KB each.
    pub flows_max: usize,
    pub timeouts: Timeouts,
    /// Packets from or to these ports are not looked at: the agent's and the node's own traffic.
    pub excluded_ports: Vec<u16>,
    /// Ports on which something here listens: tells the server where no handshake was seen.
    pub server_ports: Vec<u16>,
    /// Any number that senders of packets do not know.
    pub hash_seed: u64,
    /// Payload that came too early, held by all flows together.
    pub reorder_bytes_max: usize,
    /// Look for requests in the payload.
    pub sessions: bool,
    pub session: Arc<session::Config>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flows_max: 65_536,
            timeouts: Timeouts::default(),
            excluded_ports: Vec::new(),
            server_ports: Vec::new(),
            hash_seed: 0,
            reorder_bytes_max: 16 << 20,
            sessions: true,
            session: Arc::default(),
        }
    }
}

/// What the table did, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets: u64,
    /// Packets of excluded ports.
    pub excluded: u64,
    pub flows: u64,
    /// Flows that made room for others.
    pub evicted: u64,
    /// Packets that came after their second was over.
    pub late: u64,
    /// Times at which the clock of the packets was set back.
    pub clock_steps: u64,
    /// Of the conversations: requests that were reported early because too many were open,
    pub excess_requests: u64,
    /// times that a parser lost its way,
    pub resynchronisations: u64,
    /// and flows that speak no known protocol.
    pub unrecognised: u64,
}

/// All flows of a source of packets.
pub struct FlowTable {
    config: Config,
    index: HashMap<Key, u32, KeyedHash>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    timers: Timers,
    /// Flows with an open second, and with an open minute; each flow is at most once in each.
    seconds: Vec<u32>,
    minutes: Vec<u32>,
    /// Seconds since 1970; 0 before the first packet.
    now: u64,
    excluded: PortSet,
    servers: PortSet,
    shared: Shared,
    counters: Counters,
}

/// A place for a flow. The marks outlive a flow, so that the lists hold a place only once.
#[derive(Default)]
struct Slot {
    flow: Option<Flow>,
    in_seconds: bool,
    in_minutes: bool,
}

impl FlowTable {
    pub fn new(config: Config) -> Self {
        let room = config.flows_max.min(1024);
        Self {
            index: HashMap::with_capacity_and_hasher(room, KeyedHash::new(config.hash_seed)),
            slots: Vec::with_capacity(room),
            free: Vec::new(),
            timers: Timers::new(),
            seconds: Vec::new(),
            minutes: Vec::new(),
            now: 0,
            excluded: PortSet::new(&config.excluded_ports),
            servers: PortSet::new(&config.server_ports),
            shared: Shared {
                config: Arc::clone(&config.session),
                room: Room::new(config.reorder_bytes_max),
                sessions: Vec::new(),
            },
            counters: Counters::default(),
            config,
        }
    }

    /// Takes in one packet.
    pub fn packet(&mut self, packet: &Packet<'_>, output: &mut Output) {
        let (source_port, destination_port) = packet.transport.ports();
        if self.excluded.contains(source_port) || self.excluded.contains(destination_port) {
            self.counters.excluded += 1;
            return;
        }
        self.counters.packets += 1;
        self.clock_of_packet(packet.timestamp, output);
        let (key, from_low) = Key::of(packet);
        let at = match self.index.get(&key) {
            Some(&at) if !self.takes_over(at, packet) => at,
            Some(&at) => {
                self.close(at, packet.timestamp, Ending::Reuse, output);
                self.open(key, from_low, packet, output)
            }
            None => self.open(key, from_low, packet, output),
        };
        self.update(at, from_low, packet, output);
    }

    /// Moves the clock: reports what is over by then.
    pub fn tick(&mut self, now_us: u64, output: &mut Output) {
        let now_us = now_us.min(TIMESTAMP_MAX);
        if second_of(now_us) > self.now {
            self.advance(now_us, output);
        }
    }

    /// Ends all flows: the input is over.
    pub fn finish(&mut self, output: &mut Output) {
        for at in 0..self.slots.len() {
            self.close(at as u32, 0, Ending::EndOfInput, output);
        }
    }

    /// Something listens on this port.
    pub fn server_port(&mut self, port: u16) {
        self.servers.insert(port);
    }

    /// Look for requests in flows that have not begun to talk.
    pub fn set_sessions(&mut self, sessions: bool) {
        self.config.sessions = sessions;
    }

    /// How requests are searched for from now on.
    pub fn set_session(&mut self, session: Arc<session::Config>) {
        let flows = self.slots.iter_mut().filter_map(|slot| slot.flow.as_mut());
        for talk in flows.filter_map(|flow| flow.talk.as_mut()) {
            talk.set_session(&session);
        }
        self.shared.config = session;
    }

    /// Flows at the moment.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn update(&mut self, at: u32, from_low: bool, packet: &Packet<'_>, output: &mut Output) {
        self.open_second(at, packet.timestamp, output);
        let Some(flow) = &mut self.slots[at as usize].flow else { return };
        let state = flow.state;
        let talk_began = match &packet.transport {
            Transport::Tcp(tcp) => {
                flow.tcp(packet, tcp, from_low);
                if tcp.flags & (flags::SYN | flags::ACK) == flags::SYN | flags::ACK {
                    self.servers.insert(flow.facts.ends.server_port);
                }
                (self.config.sessions || flow.talk.is_some())
                    && flow.talk_tcp(packet, tcp, from_low, &mut self.shared)
            }
            Transport::Udp { .. } => {
                flow.udp(packet, from_low);
                (self.config.sessions || flow.talk.is_some())
                    && flow.talk_udp(packet, from_low, &mut self.shared)
            }
        };
        if flow.deaf && flow.talk.is_some() {
            flow.end_talk(&mut self.shared, &mut self.counters);
        }
        if !self.shared.sessions.is_empty() {
            flow.record(&mut self.shared, output);
        }
        if flow.state != state || talk_began {
            self.timers.due_by(at, flow.next_look(self.now, &self.config.timeouts));
        }
    }

    /// Sees to it that what a flow does now is reported.
    #[inline]
    fn open_second(&mut self, at: u32, timestamp: u64, output: &mut Output) {
        let slot = &mut self.slots[at as usize];
        let Some(flow) = &mut slot.flow else { return };
        if flow.open_second(timestamp, output) {
            if !slot.in_seconds {
                slot.in_seconds = true;
                self.seconds.push(at);
            }
            if !slot.in_minutes {
                slot.in_minutes = true;
                self.minutes.push(at);
            }
        }
    }

    /// A packet with the ends of a known flow begins a new connection.
    fn takes_over(&self, at: u32, packet: &Packet<'_>) -> bool {
        let Transport::Tcp(tcp) = &packet.transport else { return false };
        if tcp.flags & flags::SYN == 0 {
            return false;
        }
        let Some(flow) = &self.slots[at as usize].flow else { return false };
        flow.state.has_ended()
            || (tcp.flags & flags::ACK == 0 && flow.syn_seq.is_some_and(|seq| seq != tcp.seq))
    }

    fn open(&mut self, key: Key, from_low: bool, packet: &Packet<'_>, output: &mut Output) -> u32 {
        if self.index.len() >= self.config.flows_max.max(1) {
            self.evict(packet.timestamp, output);
        }
        self.counters.flows += 1;
        let (from_client, certain) = orientation(packet, &self.servers);
        let flow = Flow::new(key, from_low == from_client, certain, self.counters.flows, packet);
        let deadline = flow.deadline(&self.config.timeouts);
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[at as usize].flow = Some(flow);
        self.index.insert(key, at);
        self.timers.put(at, deadline);
        at
    }

    /// Makes room: takes the flow that would be over first, so that half-open connections go before established ones.
    fn evict(&mut self, now_us: u64, output: &mut Output) {
        /// Flows whose timer is found to be out of date before one is taken anyway: bounds the work of one packet.
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            let Some(at) = self.timers.earliest() else { return };
            let Some(flow) = &self.slots[at as usize].flow else { break };
            let deadline = flow.deadline(&self.config.timeouts);
            if deadline <= self.timers.due(at) {
                break;
            }
            self.timers.put(at, deadline);
        }
        if let Some(at) = self.timers.earliest() {
            self.counters.evicted += 1;
            self.close(at, now_us, Ending::Evicted, output);
        }
    }

    fn close(&mut self, at: u32, now_us: u64, ending: Ending, output: &mut Output) {
        let Some(mut flow) = self.slots[at as usize].flow.take() else { return };
        let close_type = match ending {
            Ending::Silence => flow.state.close_type(),
            Ending::Reuse => flow.state.close_type_at_reuse(),
            Ending::EndOfInput => flow.state.close_type_at_end_of_input(),
            Ending::Evicted => CloseType::Evicted,
        };
        flow.end_talk(&mut self.shared, &mut self.counters);
        flow.record(&mut self.shared, output);
        flow.end(now_us, close_type, output);
        self.index.remove(&flow.key);
        self.timers.remove(at);
        self.free.push(at);
    }
}

/// Why a flow leaves the table.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Silence,
    Reuse,
    EndOfInput,
    Evicted,
}
