//! Delays of one connection: handshake, the stack's and the application's answer, the client's pause.

use super::report::{Activity, Delay};
use super::sequence::ahead;
use crate::session::Direction;

impl Delay {
    /// Adds one sample.
    #[inline]
    pub fn add(&mut self, microseconds: u64) {
        self.sum = self.sum.saturating_add(microseconds);
        self.count += 1;
        self.max = self.max.max(u32::try_from(microseconds).unwrap_or(u32::MAX));
    }

    /// Adds the samples of another.
    #[inline]
    pub fn merge(&mut self, other: &Delay) {
        self.sum = self.sum.saturating_add(other.sum);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }
}

/// What of a TCP packet matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data {
    pub(super) timestamp: u64,
    pub(super) direction: Direction,
    /// One past the last byte.
    pub(super) end: u32,
    pub(super) ack: u32,
    pub(super) repeated: bool,
}

/// Open measurements.
#[derive(Debug, Default)]
pub(super) struct Delays {
    syn_at: u64,
    synack_at: u64,
    /// Server part, kept until the client's part is known.
    server_part: u64,
    handshake: Handshake,
    /// Last data packet, if any.
    last: Option<(Direction, u64)>,
    /// The client's data that waits for a bare ACK: its end and time.
    unacknowledged: Option<(u32, u64)>,
    /// The client's request that waits for data: its end, the time of its last packet, and whether the server has it.
    request: Option<Request>,
    /// Round trip of the handshake, 0 if unknown.
    pub(super) round_trip_us: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    #[default]
    None,
    Syn,
    SynAck,
    Done,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    end: u32,
    at: u64,
    acknowledged: bool,
}

impl Delays {
    /// A SYN, possibly repeated. The wait between repetitions is no round trip, so the last one counts.
    pub(super) fn syn(&mut self, timestamp: u64) {
        if matches!(self.handshake, Handshake::None | Handshake::Syn) {
            self.syn_at = timestamp;
            self.handshake = Handshake::Syn;
        }
    }

    /// A SYN-ACK, possibly repeated.
    pub(super) fn synack(&mut self, timestamp: u64, activity: &mut Activity) {
        match self.handshake {
            Handshake::Syn => {
                self.server_part = timestamp.saturating_sub(self.syn_at);
                activity.rtt_server.add(self.server_part);
                self.handshake = Handshake::SynAck;
                self.synack_at = timestamp;
            }
            Handshake::SynAck => self.synack_at = timestamp,
            Handshake::None | Handshake::Done => {}
        }
    }

    /// The client's first acknowledgement.
    #[inline]
    pub(super) fn handshake_ack(&mut self, timestamp: u64, activity: &mut Activity) {
        if self.handshake == Handshake::SynAck {
            let client_part = timestamp.saturating_sub(self.synack_at);
            activity.rtt_client.add(client_part);
            self.round_trip_us = self.server_part + client_part;
            activity.rtt.add(self.round_trip_us);
            self.handshake = Handshake::Done;
        }
    }

    /// A TCP packet with payload.
    #[inline]
    pub(super) fn data(&mut self, data: &Data, activity: &mut Activity) {
        match data.direction {
            Direction::ToServer => self.request(data, activity),
            Direction::ToClient => self.response(data, activity),
        }
    }

    fn request(&mut self, data: &Data, activity: &mut Activity) {
        if data.repeated {
            // Which of the two an ACK answers cannot be known; and a server that did not have the first starts with the second.
            self.unacknowledged = None;
            if let Some(request) = &mut self.request
                && !request.acknowledged
            {
                request.at = data.timestamp;
            }
            return;
        }
        if let Some((Direction::ToClient, at)) = self.last {
            activity.cit.add(data.timestamp.saturating_sub(at));
        }
        self.last = Some((Direction::ToServer, data.timestamp));
        self.unacknowledged = Some((data.end, data.timestamp));
        self.request = Some(Request { end: data.end, at: data.timestamp, acknowledged: false });
    }

    fn response(&mut self, data: &Data, activity: &mut Activity) {
        if data.repeated {
            return;
        }
        self.unacknowledged = None;
        // Data that was sent before the request arrived does not answer it.
        if let Some(request) = self.request
            && ahead(data.ack, request.end) >= 0
        {
            activity.art.add(data.timestamp.saturating_sub(request.at));
            self.request = None;
        }
        self.last = Some((Direction::ToClient, data.timestamp));
    }

    /// A packet of the server with nothing but an ACK.
    #[inline]
    pub(super) fn bare_ack_of_server(&mut self, timestamp: u64, ack: u32, activity: &mut Activity) {
        if let Some((end, at)) = self.unacknowledged
            && ahead(ack, end) >= 0
        {
            if ack == end {
                activity.srt.add(timestamp.saturating_sub(at));
            }
            self.unacknowledged = None;
        }
        if let Some(request) = &mut self.request
            && ahead(ack, request.end) >= 0
        {
            request.acknowledged = true;
        }
    }

    /// A datagram.
    #[inline]
    pub(super) fn datagram(&mut self, timestamp: u64, direction: Direction, activity: &mut Activity) {
        match direction {
            Direction::ToServer => {
                self.request = Some(Request { end: 0, at: timestamp, acknowledged: false })
            }
            Direction::ToClient => {
                if let Some(request) = self.request.take() {
                    activity.art.add(timestamp.saturating_sub(request.at));
                }
            }
        }
    }
}
