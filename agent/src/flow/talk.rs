//! The application side of a flow: its streams go to a conversation, whose sessions come back to the flow.

use std::sync::Arc;

use metaflow_schema::enums::{L7Type, ResponseStatus};

use super::entry::Flow;
use super::report::{Activity, FlowFacts};
use super::stream::{Part, Room, Stream};
use super::{Counters, Output};
use crate::packet::flags::{ACK, RST, SYN};
use crate::packet::{Packet, Tcp};
use crate::session::{self, Conversation, Direction, Segment, Session, SessionBox, Transport};

/// What flows share to talk.
pub(super) struct Shared {
    pub(super) config: Arc<session::Config>,
    pub(super) room: Room,
    /// Sessions on their way to the output; empty between packets.
    pub(super) sessions: Vec<SessionBox>,
}

/// One flow's streams and their conversation.
pub(super) struct Talk {
    conversation: Conversation,
    client: Stream,
    server: Stream,
    /// The flow was turned round since the conversation began, which goes on with its first directions.
    turned: bool,
}

impl Talk {
    pub(super) fn set_session(&mut self, config: &Arc<session::Config>) {
        self.conversation.set_config(config);
    }

    pub(super) fn reverse(&mut self) {
        std::mem::swap(&mut self.client, &mut self.server);
        self.turned = !self.turned;
    }
}

impl Flow {
    /// Hands the payload of a TCP packet on. Says whether a conversation began.
    pub(super) fn talk_tcp(
        &mut self,
        packet: &Packet<'_>,
        tcp: &Tcp,
        from_low: bool,
        shared: &mut Shared,
    ) -> bool {
        // A packet without payload matters only to what waits; the conversation's memory is not touched otherwise.
        if self.deaf || tcp.flags & RST != 0 || (packet.payload_length == 0 && !self.streams_wait) {
            return false;
        }
        let began = self.begin_talk(Transport::Tcp, shared);
        let direction = self.direction(from_low);
        let Some(talk) = &mut self.talk else { return false };
        let Talk { conversation, client, server, turned } = &mut **talk;
        let (mine, other) = match direction {
            Direction::ToServer => (client, server),
            Direction::ToClient => (server, client),
        };
        let (room, sessions) = (&mut shared.room, &mut shared.sessions);
        if tcp.flags & ACK != 0 {
            let answered = towards(direction.opposite(), *turned);
            other.acknowledged(tcp.ack, room, &mut |part| {
                conversation.segment(&segment(part, answered), sessions)
            });
        }
        if packet.payload_length > 0 {
            let part = Part {
                timestamp: packet.timestamp,
                seq: tcp.seq.wrapping_add(u32::from(tcp.flags & SYN != 0)),
                payload: packet.payload,
                length: packet.payload_length,
                gap: false,
            };
            let direction = towards(direction, *turned);
            mine.push(part, room, &mut |part| conversation.segment(&segment(part, direction), sessions));
        }
        self.streams_wait = mine.is_waiting() || other.is_waiting();
        self.after_talk();
        began
    }

    /// Hands a datagram on. Says whether a conversation began.
    pub(super) fn talk_udp(&mut self, packet: &Packet<'_>, from_low: bool, shared: &mut Shared) -> bool {
        if self.deaf || packet.payload_length == 0 {
            return false;
        }
        let began = self.begin_talk(Transport::Udp, shared);
        let direction = self.direction(from_low);
        let Some(talk) = &mut self.talk else { return false };
        let Packet { timestamp, payload, payload_length, .. } = *packet;
        let part = Part { timestamp, seq: 0, payload, length: payload_length, gap: false };
        talk.conversation.segment(&segment(part, towards(direction, talk.turned)), &mut shared.sessions);
        self.after_talk();
        began
    }

    /// Requests that waited too long by now.
    pub(super) fn expire(&mut self, now_us: u64, shared: &mut Shared) {
        if let Some(talk) = &mut self.talk {
            talk.conversation.expire(now_us, &mut shared.sessions);
        }
    }

    /// The flow is over.
    pub(super) fn end_talk(&mut self, shared: &mut Shared, counters: &mut Counters) {
        let Some(mut talk) = self.talk.take() else { return };
        let Talk { conversation, client, server, turned } = &mut *talk;
        let (room, sessions) = (&mut shared.room, &mut shared.sessions);
        for (stream, direction) in [(client, Direction::ToServer), (server, Direction::ToClient)] {
            let direction = towards(direction, *turned);
            stream.finish(room, &mut |part| conversation.segment(&segment(part, direction), sessions));
        }
        conversation.finish(sessions);
        let session::Losses { excess_requests, resynchronisations, unrecognised } =
            conversation.take_losses();
        counters.excess_requests += u64::from(excess_requests);
        counters.resynchronisations += u64::from(resynchronisations);
        counters.unrecognised += u64::from(unrecognised);
    }

    /// Counts the sessions that came and sends them on.
    pub(super) fn record(&mut self, shared: &mut Shared, output: &mut Output) {
        let facts: FlowFacts = self.facts;
        for session in shared.sessions.drain(..) {
            self.activity.session(&session);
            output.sessions.push((facts, session));
        }
    }

    fn begin_talk(&mut self, transport: Transport, shared: &Shared) -> bool {
        if self.talk.is_some() {
            return false;
        }
        let stream = |seq: Option<u32>| {
            seq.map_or_else(Stream::default, |seq| Stream::starting_at(seq.wrapping_add(1)))
        };
        self.talk = Some(Box::new(Talk {
            conversation: Conversation::new(transport, self.facts.ends.server_port, &shared.config),
            client: stream(self.syn_seq),
            server: stream(self.synack_seq),
            turned: false,
        }));
        true
    }

    /// Takes over what the conversation found out.
    fn after_talk(&mut self) {
        let Some(talk) = &self.talk else { return };
        self.l7_protocol = talk.conversation.protocol();
        self.deaf = talk.conversation.is_over();
        if !self.certain && talk.conversation.reversed() != talk.turned {
            self.reverse();
        }
    }
}

impl Activity {
    /// Counts a session.
    fn session(&mut self, session: &Session) {
        match session.l7_type {
            L7Type::Request => self.l7_request += 1,
            L7Type::Response => self.l7_response += 1,
            L7Type::Session => {
                self.l7_request += 1;
                self.l7_response += 1;
            }
        }
        match session.status {
            ResponseStatus::ClientError => self.l7_client_error += 1,
            ResponseStatus::ServerError => self.l7_server_error += 1,
            ResponseStatus::Timeout => self.l7_timeout += 1,
            ResponseStatus::Normal | ResponseStatus::Unknown => {}
        }
        if let Some(duration) = session.response_duration {
            self.l7_rrt.add(duration);
        }
    }
}

/// The direction as the conversation knows it.
#[inline]
fn towards(direction: Direction, turned: bool) -> Direction {
    if turned { direction.opposite() } else { direction }
}

#[inline]
fn segment(part: Part<'_>, direction: Direction) -> Segment<'_> {
    Segment {
        timestamp: part.timestamp,
        direction,
        tcp_seq: part.seq,
        payload: part.payload,
        payload_length: part.length,
        gap: part.gap,
    }
}
