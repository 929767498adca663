//! The life of a connection: states, how long each may be silent, and what its end is called.

use metaflow_schema::enums::CloseType;

use crate::packet::flags::{ACK, FIN, RST, SYN};
use crate::session::Direction;

/// Where a flow is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// SYN seen.
    Opening,
    /// SYN-ACK seen, not yet acknowledged.
    Answered,
    Established,
    /// The client sent FIN.
    ClientClosed,
    /// The server sent FIN.
    ServerClosed,
    /// Both sent FIN.
    Finished,
    /// One side sent RST.
    Reset(CloseType),
    /// Datagrams one way.
    DatagramsOneWay,
    /// Datagrams both ways.
    Datagrams,
}

/// How long a flow may be silent, by state, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// A connection that is being opened: covers the first three repetitions of a SYN.
    pub opening_s: u32,
    pub established_s: u32,
    /// One side has closed.
    pub half_closed_s: u32,
    /// Closed or reset: waits for last ACKs and late packets, so that they do not count as a new flow.
    pub ended_s: u32,
    /// UDP, requests only.
    pub datagrams_one_way_s: u32,
    /// UDP both ways.
    pub datagrams_s: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            opening_s: 10,
            established_s: 300,
            half_closed_s: 120,
            ended_s: 2,
            datagrams_one_way_s: 30,
            datagrams_s: 60,
        }
    }
}

impl State {
    /// State of a flow whose first TCP packet this is.
    pub(super) fn first(tcp_flags: u8, direction: Direction) -> Self {
        match tcp_flags & (SYN | ACK) {
            SYN => Self::Opening,
            flags if flags == SYN | ACK => Self::Answered,
            _ => Self::Established.next(tcp_flags, direction),
        }
    }

    /// State after a TCP packet.
    #[inline]
    pub(super) fn next(self, tcp_flags: u8, direction: Direction) -> Self {
        use Direction::{ToClient, ToServer};
        if tcp_flags & (SYN | FIN | RST) == 0 {
            return match self {
                // An acknowledgement by the client completes the handshake; data by the server means that we missed it.
                Self::Opening | Self::Answered if tcp_flags & ACK != 0 => match (self, direction) {
                    (Self::Opening, ToClient) => self,
                    _ => Self::Established,
                },
                _ => self,
            };
        }
        if tcp_flags & RST != 0 {
            return match self {
                Self::Finished | Self::Reset(_) => self,
                _ => Self::Reset(self.reset_by(direction)),
            };
        }
        if tcp_flags & SYN != 0 {
            return match self {
                Self::Opening if tcp_flags & ACK != 0 => Self::Answered,
                _ => self,
            };
        }
        match (self, direction) {
            (Self::Finished | Self::Reset(_), _) => self,
            (Self::ServerClosed, ToServer) | (Self::ClientClosed, ToClient) => Self::Finished,
            (_, ToServer) => Self::ClientClosed,
            (_, ToClient) => Self::ServerClosed,
        }
    }

    fn reset_by(self, direction: Direction) -> CloseType {
        match (self, direction) {
            (Self::Opening, Direction::ToClient) => CloseType::ServerReset,
            (Self::Answered, Direction::ToClient) => CloseType::ServerEstablishReset,
            (Self::Opening | Self::Answered, Direction::ToServer) => CloseType::ClientEstablishReset,
            (_, Direction::ToClient) => CloseType::ServerReset,
            (_, Direction::ToServer) => CloseType::ClientReset,
        }
    }

    /// Over: only late packets may come.
    #[inline]
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Reset(_))
    }

    /// Silence after which a flow in this state is over, in seconds.
    #[inline]
    pub(super) fn timeout_s(self, timeouts: &Timeouts) -> u32 {
        match self {
            Self::Opening | Self::Answered => timeouts.opening_s,
            Self::Established => timeouts.established_s,
            Self::ClientClosed | Self::ServerClosed => timeouts.half_closed_s,
            Self::Finished | Self::Reset(_) => timeouts.ended_s,
            Self::DatagramsOneWay => timeouts.datagrams_one_way_s,
            Self::Datagrams => timeouts.datagrams_s,
        }
    }

    /// What the end of a flow is called that was silent for the timeout of this state.
    pub(super) fn close_type(self) -> CloseType {
        match self {
            Self::Opening => CloseType::ClientSynRepeat,
            Self::Answered => CloseType::ServerSynAckRepeat,
            Self::Established => CloseType::Timeout,
            Self::ClientClosed => CloseType::ServerHalfClose,
            Self::ServerClosed => CloseType::ClientHalfClose,
            Self::Finished => CloseType::Finish,
            Self::Reset(close_type) => close_type,
            // Datagrams have no other end than silence.
            Self::DatagramsOneWay | Self::Datagrams => CloseType::Finish,
        }
    }

    /// What the end of a flow is called whose input ends now: it may well go on, unless it had ended or never began.
    pub(super) fn close_type_at_end_of_input(self) -> CloseType {
        match self {
            Self::Established | Self::ClientClosed | Self::ServerClosed => CloseType::ForcedReport,
            other => other.close_type(),
        }
    }

    /// What the end of a flow is called whose ports a new connection takes over.
    pub(super) fn close_type_at_reuse(self) -> CloseType {
        match self {
            Self::Established => CloseType::Unknown,
            other => other.close_type(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Direction::{ToClient, ToServer};

    fn check(packets: &[(Direction, u8)], expected: CloseType) {
        let (direction, tcp_flags) = packets[0];
        let mut state = State::first(tcp_flags, direction);
        for (direction, tcp_flags) in &packets[1..] {
            state = state.next(*tcp_flags, *direction);
        }
        assert_eq!(state.close_type(), expected, "{packets:?}");
    }

    #[test]
    fn the_end_of_a_connection_has_a_name() {
        const SA: u8 = SYN | ACK;
        const FA: u8 = FIN | ACK;
        let open = [(ToServer, SYN), (ToClient, SA), (ToServer, ACK)];
        let after = |rest: &[(Direction, u8)]| [&open[..], rest].concat();
        check(&[(ToServer, SYN)], CloseType::ClientSynRepeat);
        check(&[(ToServer, SYN), (ToServer, SYN), (ToServer, RST)], CloseType::ClientEstablishReset);
        check(&[(ToServer, SYN), (ToClient, RST | ACK)], CloseType::ServerReset);
        check(&[(ToClient, SA), (ToClient, SA)], CloseType::ServerSynAckRepeat);
        check(&[(ToServer, SYN), (ToClient, SA), (ToClient, RST)], CloseType::ServerEstablishReset);
        check(&[(ToServer, SYN), (ToClient, SA), (ToServer, RST)], CloseType::ClientEstablishReset);
        check(&after(&[]), CloseType::Timeout);
        check(&after(&[(ToServer, RST)]), CloseType::ClientReset);
        check(&after(&[(ToClient, RST)]), CloseType::ServerReset);
        check(&after(&[(ToServer, FA), (ToClient, ACK)]), CloseType::ServerHalfClose);
        check(&after(&[(ToClient, FA), (ToServer, ACK)]), CloseType::ClientHalfClose);
        check(&after(&[(ToServer, FA), (ToClient, FA), (ToServer, ACK)]), CloseType::Finish);
        check(&after(&[(ToServer, FA), (ToClient, FA), (ToClient, RST)]), CloseType::Finish);
        check(&after(&[(ToServer, FA), (ToClient, RST)]), CloseType::ServerReset);
        check(&[(ToServer, ACK)], CloseType::Timeout);
        check(&[(ToClient, RST)], CloseType::ServerReset);
        check(&[(ToServer, FA)], CloseType::ServerHalfClose);
    }
}
