//! One flow of the table: what it is, what it did, and its reports.

use metaflow_schema::enums::{CloseType, L7Protocol};

use super::clock::second_of;
use super::delays::Delays;
use super::key::{Key, PortSet};
use super::report::{Activity, Ends, FlowFacts, FlowReport, Output, Traffic};
use super::sequence::Sequence;
use super::state::{State, Timeouts};
use super::talk::Talk;
use crate::packet::{Packet, Transport, flags};
use crate::session::Direction;

/// Below this port only privileged programs listen.
const WELL_KNOWN_END: u16 = 1024;
/// Linux takes a client's port from here upwards.
const EPHEMERAL_START: u16 = 32_768;
/// Requests that wait too long are looked for this often.
const EXPIRE_S: u64 = 5;

pub(super) struct Flow {
    pub(super) key: Key,
    /// The client is the low end of the key.
    client_is_low: bool,
    /// Which end is the client was seen in a handshake, not guessed.
    pub(super) certain: bool,
    pub(super) facts: FlowFacts,
    pub(super) state: State,
    /// Microseconds: last packet.
    pub(super) last_seen: u64,
    pub(super) client_sequence: Sequence,
    pub(super) server_sequence: Sequence,
    pub(super) delays: Delays,
    pub(super) syn_seq: Option<u32>,
    pub(super) synack_seq: Option<u32>,
    /// Number of the open second, and what happened in it.
    pub(super) second: u64,
    second_open: bool,
    pub(super) activity: Activity,
    /// Number of the open minute, what happened in it, and its first and last packet.
    pub(super) minute: u64,
    minute_open: bool,
    minute_activity: Activity,
    minute_first: u64,
    total_tx: Traffic,
    total_rx: Traffic,
    second_is_first: bool,
    minute_is_first: bool,
    /// From the first payload until nothing more is to be learnt.
    pub(super) talk: Option<Box<Talk>>,
    /// Nothing more is to be learnt from the payload.
    pub(super) deaf: bool,
    /// Payload came early and waits.
    pub(super) streams_wait: bool,
    pub(super) l7_protocol: L7Protocol,
}

/// Whether a packet that begins a flow comes from the client, and whether that is certain.
pub(super) fn orientation(packet: &Packet<'_>, servers: &PortSet) -> (bool, bool) {
    let (source, destination) = packet.transport.ports();
    let from_client_if = |source_serves: bool, destination_serves: bool| {
        (source_serves != destination_serves).then_some(destination_serves)
    };
    let tcp = match &packet.transport {
        Transport::Tcp(tcp) => match tcp.flags & (flags::SYN | flags::ACK) {
            flags::SYN => return (true, true),
            both if both == flags::SYN | flags::ACK => return (false, true),
            _ => true,
        },
        Transport::Udp { .. } => false,
    };
    let guess = from_client_if(servers.contains(source), servers.contains(destination))
        .or_else(|| from_client_if(source < WELL_KNOWN_END, destination < WELL_KNOWN_END))
        .or_else(|| from_client_if(source < EPHEMERAL_START, destination < EPHEMERAL_START))
        // Most likely the first datagram asks; a packet from the middle of a connection says nothing.
        .unwrap_or(!tcp || destination <= source);
    (guess, false)
}

impl Flow {
    pub(super) fn new(
        key: Key,
        client_is_low: bool,
        certain: bool,
        flow_id: u64,
        packet: &Packet<'_>,
    ) -> Self {
        let (source_port, destination_port) = packet.transport.ports();
        let facts = FlowFacts {
            ends: Ends {
                client_ip: packet.source,
                server_ip: packet.destination,
                client_port: source_port,
                server_port: destination_port,
                ip_protocol: packet.transport.number(),
            },
            flow_id,
            interface_index: packet.interface_index,
            client_mac: packet.source_mac,
            server_mac: packet.destination_mac,
            vlan: packet.vlan,
            first_seen: packet.timestamp,
        };
        let (_, from_low) = Key::of(packet);
        let from_client = from_low == client_is_low;
        let direction = if from_client { Direction::ToServer } else { Direction::ToClient };
        let state = match &packet.transport {
            Transport::Tcp(tcp) => State::first(tcp.flags, direction),
            Transport::Udp { .. } => State::DatagramsOneWay,
        };
        Self {
            key,
            client_is_low,
            certain,
            facts: if from_client { facts } else { swapped(&facts) },
            state,
            last_seen: packet.timestamp,
            client_sequence: Sequence::default(),
            server_sequence: Sequence::default(),
            delays: Delays::default(),
            syn_seq: None,
            synack_seq: None,
            second: 0,
            second_open: false,
            activity: Activity::default(),
            minute: 0,
            minute_open: false,
            minute_activity: Activity::default(),
            minute_first: 0,
            total_tx: Traffic::default(),
            total_rx: Traffic::default(),
            second_is_first: true,
            minute_is_first: true,
            talk: None,
            deaf: false,
            streams_wait: false,
            l7_protocol: L7Protocol::Unknown,
        }
    }

    #[inline]
    pub(super) fn direction(&self, from_low: bool) -> Direction {
        if from_low == self.client_is_low { Direction::ToServer } else { Direction::ToClient }
    }

    /// The second in which the flow is over if nothing more comes.
    #[inline]
    pub(super) fn deadline(&self, timeouts: &Timeouts) -> u64 {
        second_of(self.last_seen) + u64::from(self.state.timeout_s(timeouts)) + 1
    }

    /// The second in which to look at the flow: when it may be over, and earlier for requests that wait for their response.
    #[inline]
    pub(super) fn next_look(&self, now: u64, timeouts: &Timeouts) -> u64 {
        let deadline = self.deadline(timeouts);
        if self.talk.is_some() { deadline.min(now + EXPIRE_S) } else { deadline }
    }

    #[inline]
    pub(super) fn has_open_second(&self) -> bool {
        self.second_open
    }

    /// Client and server were taken for one another: what is not yet reported turns round.
    pub(super) fn reverse(&mut self) {
        self.client_is_low = !self.client_is_low;
        self.facts = swapped(&self.facts);
        std::mem::swap(&mut self.client_sequence, &mut self.server_sequence);
        std::mem::swap(&mut self.activity.tx, &mut self.activity.rx);
        std::mem::swap(&mut self.minute_activity.tx, &mut self.minute_activity.rx);
        std::mem::swap(&mut self.total_tx, &mut self.total_rx);
        self.delays = Delays::default();
        if let Some(talk) = &mut self.talk {
            talk.reverse();
        }
    }

    /// Opens the second of a time, after reporting an older one. A late time counts in the open second. Says whether one was opened.
    #[inline]
    pub(super) fn open_second(&mut self, timestamp: u64, output: &mut Output) -> bool {
        let second = second_of(timestamp);
        if self.second_open {
            if second <= self.second {
                return false;
            }
            self.report_second(output);
        }
        if self.minute_open && second / 60 > self.minute {
            self.report_minute(output);
        }
        if !self.minute_open {
            self.minute_open = true;
            self.minute = second / 60;
            self.minute_first = timestamp;
        }
        self.second = second;
        self.second_open = true;
        true
    }

    /// Reports the open second of a flow that goes on.
    pub(super) fn report_second(&mut self, output: &mut Output) {
        self.close_second(CloseType::ForcedReport, output);
    }

    /// Reports the open minute of a flow that goes on, if it has one.
    pub(super) fn report_minute(&mut self, output: &mut Output) {
        if self.minute_open {
            if self.second_open {
                self.report_second(output);
            }
            self.close_minute(CloseType::ForcedReport, output);
        }
    }

    /// The last reports: those that are open, else an empty one for the second of the end.
    pub(super) fn end(&mut self, now_us: u64, close_type: CloseType, output: &mut Output) {
        let end = now_us.max(self.last_seen);
        if !self.second_open {
            self.second = second_of(end);
        }
        if !self.minute_open {
            self.minute_first = end;
        }
        self.close_second(close_type, output);
        self.close_minute(close_type, output);
    }

    fn close_second(&mut self, close_type: CloseType, output: &mut Output) {
        let activity = std::mem::take(&mut self.activity);
        self.minute_activity.merge(&activity);
        self.total_tx.merge(&activity.tx);
        self.total_rx.merge(&activity.rx);
        let start = self.second * 1_000_000;
        let is_new = std::mem::take(&mut self.second_is_first);
        output.seconds.push(self.report(start, start + 1_000_000, activity, is_new, close_type));
        self.second_open = false;
    }

    fn close_minute(&mut self, close_type: CloseType, output: &mut Output) {
        let activity = std::mem::take(&mut self.minute_activity);
        let is_new = std::mem::take(&mut self.minute_is_first);
        let end = self.last_seen.max(self.minute_first);
        output.logs.push(self.report(self.minute_first, end, activity, is_new, close_type));
        self.minute_open = false;
    }

    fn report(
        &self,
        start_time: u64,
        end_time: u64,
        activity: Activity,
        is_new: bool,
        close_type: CloseType,
    ) -> FlowReport {
        FlowReport {
            facts: self.facts,
            start_time,
            end_time,
            activity,
            total_tx: self.total_tx,
            total_rx: self.total_rx,
            l7_protocol: self.l7_protocol,
            syn_seq: self.syn_seq.unwrap_or(0),
            synack_seq: self.synack_seq.unwrap_or(0),
            is_new,
            close_type,
        }
    }
}

fn swapped(facts: &FlowFacts) -> FlowFacts {
    let Ends { client_ip, server_ip, client_port, server_port, ip_protocol } = facts.ends;
    FlowFacts {
        ends: Ends {
            client_ip: server_ip,
            server_ip: client_ip,
            client_port: server_port,
            server_port: client_port,
            ip_protocol,
        },
        client_mac: facts.server_mac,
        server_mac: facts.client_mac,
        ..*facts
    }
}

impl Traffic {
    /// Adds what another counted.
    pub fn merge(&mut self, other: &Traffic) {
        let Traffic { packets, bytes, l4_bytes, retransmissions, zero_windows, out_of_order, tcp_flags } =
            *other;
        self.packets = self.packets.saturating_add(packets);
        self.bytes = self.bytes.saturating_add(bytes);
        self.l4_bytes = self.l4_bytes.saturating_add(l4_bytes);
        self.retransmissions = self.retransmissions.saturating_add(retransmissions);
        self.zero_windows = self.zero_windows.saturating_add(zero_windows);
        self.out_of_order = self.out_of_order.saturating_add(out_of_order);
        self.tcp_flags |= tcp_flags;
    }
}

impl Activity {
    /// Adds what another counted.
    pub fn merge(&mut self, other: &Activity) {
        let Activity {
            tx,
            rx,
            rtt,
            rtt_client,
            rtt_server,
            srt,
            art,
            cit,
            syn,
            synack,
            retrans_syn,
            retrans_synack,
            l7_request,
            l7_response,
            l7_client_error,
            l7_server_error,
            l7_timeout,
            l7_rrt,
        } = other;
        self.tx.merge(tx);
        self.rx.merge(rx);
        let delays = [
            (&mut self.rtt, rtt),
            (&mut self.rtt_client, rtt_client),
            (&mut self.rtt_server, rtt_server),
            (&mut self.srt, srt),
            (&mut self.art, art),
            (&mut self.cit, cit),
            (&mut self.l7_rrt, l7_rrt),
        ];
        for (total, part) in delays {
            total.merge(part);
        }
        let counts = [
            (&mut self.syn, syn),
            (&mut self.synack, synack),
            (&mut self.retrans_syn, retrans_syn),
            (&mut self.retrans_synack, retrans_synack),
            (&mut self.l7_request, l7_request),
            (&mut self.l7_response, l7_response),
            (&mut self.l7_client_error, l7_client_error),
            (&mut self.l7_server_error, l7_server_error),
            (&mut self.l7_timeout, l7_timeout),
        ];
        for (total, part) in counts {
            *total = total.saturating_add(*part);
        }
    }
}
