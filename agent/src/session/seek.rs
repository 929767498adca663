//! Finding the protocol of a flow from its first payloads, in either direction and also in the middle of a connection.
//!
//! Bounded in bytes and tries, so that a flow that speaks nothing known soon costs nothing. Only datagrams are looked at now and then as long
//! as they come, because each stands for itself: what it follows says nothing of what it is.

use metaflow_schema::enums::L7Protocol;

use super::{Direction, Segment, Transport};
use crate::protocol::{PROTOCOLS, Probe, Protocol, Recognition};

/// Bytes of a payload that recognition looks at, and that are kept while they do not suffice.
const PROBE_MAX: usize = 1024;
/// Payloads that no protocol recognised until the flow is given up.
const TRIES_MAX: u8 = 12;
/// Of a run of segments in one direction only the first ones can start a message that helps.
const TRIES_PER_TURN: u8 = 2;
/// Datagrams beyond those tries are looked at no more often than this, whatever the rate at which they come.
const RETRY_US: u64 = 100_000;

/// What came of a segment.
pub(super) enum Found {
    Nothing,
    /// Tried often enough. Told once.
    GaveUp,
    Protocol {
        protocol: &'static Protocol,
        from_client: bool,
    },
}

#[derive(Debug, Default)]
pub(super) struct Seek {
    tries: u8,
    turn: Option<Direction>,
    tries_in_turn: u8,
    /// Time of the last one that was no known protocol's.
    tried: u64,
    /// To server, to client.
    kept: [Kept; 2],
}

/// The start of a message that needs more bytes to be told.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    timestamp: u64,
    tcp_seq: u32,
}

impl Kept {
    /// As the segment that it would have been.
    pub(super) fn segment(&self, direction: Direction) -> Option<Segment<'_>> {
        (!self.bytes.is_empty()).then(|| Segment {
            timestamp: self.timestamp,
            direction,
            tcp_seq: self.tcp_seq,
            payload: &self.bytes,
            payload_length: self.bytes.len() as u32,
            gap: false,
        })
    }
}

impl Seek {
    pub(super) fn segment(&mut self, transport: Transport, server_port: u16, segment: &Segment<'_>) -> Found {
        if segment.payload.is_empty() {
            return Found::Nothing;
        }
        if self.turn != Some(segment.direction) {
            self.turn = Some(segment.direction);
            self.tries_in_turn = 0;
        }
        let kept = &mut self.kept[segment.direction as usize];
        if segment.gap {
            kept.bytes.clear();
        }
        let is_enough = self.tries_in_turn >= TRIES_PER_TURN || self.tries >= TRIES_MAX;
        // A clock that went back does not make it wait.
        let is_again = transport == Transport::Udp && segment.timestamp.wrapping_sub(self.tried) >= RETRY_US;
        if kept.bytes.is_empty() && is_enough && !is_again {
            return Found::Nothing;
        }
        let (joined, room) = (kept.bytes.len(), PROBE_MAX.saturating_sub(kept.bytes.len()));
        let added = &segment.payload[..segment.payload.len().min(room)];
        let cut = segment.payload.len() >= room || segment.payload.len() < segment.payload_length as usize;
        let last = cut || transport == Transport::Udp;
        let bytes = if joined == 0 {
            added
        } else {
            kept.bytes.extend_from_slice(added);
            &kept.bytes
        };
        let probe = Probe { bytes, transport, usual_port: false, last };
        match recognise(probe, server_port) {
            (Recognition::No, _) | (_, None) if last => self.fail(segment),
            (Recognition::More, _) => {
                if joined == 0 {
                    kept.bytes.extend_from_slice(added);
                    (kept.timestamp, kept.tcp_seq) = (segment.timestamp, segment.tcp_seq);
                }
                Found::Nothing
            }
            (answer, Some(protocol)) => {
                kept.bytes.truncate(joined);
                Found::Protocol { protocol, from_client: answer == Recognition::Request }
            }
            (_, None) => self.fail(segment),
        }
    }

    pub(super) fn into_kept(self) -> [Kept; 2] {
        self.kept
    }

    fn fail(&mut self, segment: &Segment<'_>) -> Found {
        self.kept[segment.direction as usize].bytes = Vec::new();
        self.tried = segment.timestamp;
        self.tries_in_turn = self.tries_in_turn.saturating_add(1);
        self.tries = self.tries.saturating_add(1);
        if self.tries == TRIES_MAX { Found::GaveUp } else { Found::Nothing }
    }
}

/// Asks the protocols whose port it is, then the others. A certain answer beats a wish for more bytes.
fn recognise(probe: Probe<'_>, server_port: u16) -> (Recognition, Option<&'static Protocol>) {
    let mut answer = (Recognition::No, None);
    for usual_port in [true, false] {
        for protocol in PROTOCOLS.iter().copied() {
            debug_assert_ne!(protocol.number, L7Protocol::Unknown);
            let usual = protocol.ports.contains(&server_port);
            if usual != usual_port || !protocol.transports.contains(&probe.transport) {
                continue;
            }
            match (protocol.recognise)(&Probe { usual_port, ..probe }) {
                Recognition::No => {}
                Recognition::More => answer = (Recognition::More, None),
                found => return (found, Some(protocol)),
            }
        }
    }
    answer
}
