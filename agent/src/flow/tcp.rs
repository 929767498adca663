//! What one packet changes in its flow.

use super::delays::Data;
use super::entry::Flow;
use super::report::Traffic;
use super::sequence::{REORDER_US, Verdict};
use super::state::State;
use crate::packet::flags::{ACK, FIN, RST, SYN};
use crate::packet::{Packet, Tcp};
use crate::session::Direction;

impl Flow {
    pub(super) fn tcp(&mut self, packet: &Packet<'_>, tcp: &Tcp, from_low: bool) {
        let mut direction = self.direction(from_low);
        if tcp.flags & SYN != 0 && !self.certain {
            let expected = if tcp.flags & ACK == 0 { Direction::ToServer } else { Direction::ToClient };
            if direction != expected {
                self.reverse();
                direction = expected;
            }
            self.certain = true;
        }
        self.last_seen = self.last_seen.max(packet.timestamp);
        let verdict = self.observe(packet, tcp, direction);
        let traffic = self.count(packet, direction);
        traffic.tcp_flags |= tcp.flags;
        match verdict {
            Verdict::Repeated => traffic.retransmissions += 1,
            Verdict::OutOfOrder => traffic.out_of_order += 1,
            Verdict::New | Verdict::Empty => {}
        }
        if tcp.window == 0 && tcp.flags & (ACK | SYN | RST) == ACK {
            traffic.zero_windows += 1;
        }
        self.measure(packet, tcp, direction, verdict);
        self.state = self.state.next(tcp.flags, direction);
    }

    pub(super) fn udp(&mut self, packet: &Packet<'_>, from_low: bool) {
        let direction = self.direction(from_low);
        self.last_seen = self.last_seen.max(packet.timestamp);
        self.count(packet, direction);
        self.delays.datagram(packet.timestamp, direction, &mut self.activity);
        if direction == Direction::ToClient || self.state == State::Datagrams {
            self.state = State::Datagrams;
        }
    }

    #[inline]
    fn count(&mut self, packet: &Packet<'_>, direction: Direction) -> &mut Traffic {
        let traffic = match direction {
            Direction::ToServer => &mut self.activity.tx,
            Direction::ToClient => &mut self.activity.rx,
        };
        traffic.packets += 1;
        traffic.bytes += u64::from(packet.wire_length);
        traffic.l4_bytes += u64::from(packet.payload_length);
        traffic
    }

    /// What the packet's place in its direction's sequence says. A RST may bear any number, so it says nothing.
    #[inline]
    fn observe(&mut self, packet: &Packet<'_>, tcp: &Tcp, direction: Direction) -> Verdict {
        if tcp.flags & RST != 0 {
            return Verdict::Empty;
        }
        let controls = u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
        let length = packet.payload_length + controls;
        let reorder_us = match self.delays.round_trip_us {
            0 => REORDER_US,
            known => known,
        };
        let sequence = match direction {
            Direction::ToServer => &mut self.client_sequence,
            Direction::ToClient => &mut self.server_sequence,
        };
        let verdict = sequence.observe(tcp.seq, length, controls == 0, packet.timestamp, reorder_us);
        // A second SYN-ACK repeats the first even if the server chose a new number for it.
        match direction {
            Direction::ToClient if tcp.flags & SYN != 0 && self.synack_seq.is_some() => Verdict::Repeated,
            _ => verdict,
        }
    }

    #[inline]
    fn measure(&mut self, packet: &Packet<'_>, tcp: &Tcp, direction: Direction, verdict: Verdict) {
        let timestamp = packet.timestamp;
        if tcp.flags & SYN != 0 {
            self.handshake(timestamp, tcp);
        } else if direction == Direction::ToServer
            && tcp.flags & (ACK | RST) == ACK
            && self.synack_seq.is_some_and(|seq| tcp.ack == seq.wrapping_add(1))
        {
            self.delays.handshake_ack(timestamp, &mut self.activity);
        }
        if packet.payload_length > 0 {
            let repeated = match verdict {
                Verdict::New => false,
                Verdict::Repeated => true,
                Verdict::Empty | Verdict::OutOfOrder => return,
            };
            let end = tcp.seq.wrapping_add(packet.payload_length);
            let data = Data { timestamp, direction, end, ack: tcp.ack, repeated };
            self.delays.data(&data, &mut self.activity);
        } else if direction == Direction::ToClient && tcp.flags & (ACK | SYN | FIN | RST) == ACK {
            self.delays.bare_ack_of_server(timestamp, tcp.ack, &mut self.activity);
        }
    }

    fn handshake(&mut self, timestamp: u64, tcp: &Tcp) {
        if tcp.flags & ACK == 0 {
            self.activity.syn += 1;
            self.activity.retrans_syn += u32::from(self.syn_seq.is_some());
            self.syn_seq.get_or_insert(tcp.seq);
            self.delays.syn(timestamp);
        } else {
            self.activity.synack += 1;
            self.activity.retrans_synack += u32::from(self.synack_seq.is_some());
            self.synack_seq = Some(tcp.seq);
            self.delays.synack(timestamp, &mut self.activity);
        }
    }
}
