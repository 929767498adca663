//! What one flow says: the protocol is found, its parser fed, and requests paired with responses.

use std::sync::Arc;

use metaflow_schema::enums::L7Protocol;

use super::pending::Pending;
use super::seek::{Found, Seek};
use super::{Config, Direction, Segment, SessionBox, Transport};
use crate::protocol::{Context, Message, Parser, Progress, Protocol};

/// What a conversation could not use, since it was last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Requests that were reported without waiting for their response, because too many were open.
    pub excess_requests: u32,
    /// Times that a parser lost its way (missing bytes, or bytes that are not what the protocol allows).
    pub resynchronisations: u32,
    /// 1 when the flow was given up as no known protocol.
    pub unrecognised: u32,
}

/// The application side of one flow.
///
/// Directions are those of the first segment throughout: when they turn out to be wrong ([`Self::reversed`]) the caller goes on giving
/// them as before and swaps the ends in what it reports.
pub struct Conversation {
    config: Arc<Config>,
    transport: Transport,
    server_port: u16,
    protocol: L7Protocol,
    reversed: bool,
    losses: Losses,
    state: State,
}

enum State {
    Seeking(Box<Seek>),
    Talking(Box<Talk>),
    /// Nothing more to learn.
    Deaf,
}

struct Talk {
    parser: Box<dyn Parser>,
    pending: Pending,
    messages: Vec<Message>,
}

/// A larger message buffer is not kept between segments.
const MESSAGES_KEPT: usize = 8;

impl Conversation {
    pub fn new(transport: Transport, server_port: u16, config: &Arc<Config>) -> Self {
        Conversation {
            config: Arc::clone(config),
            transport,
            server_port,
            protocol: L7Protocol::Unknown,
            reversed: false,
            losses: Losses::default(),
            state: State::Seeking(Box::default()),
        }
    }

    /// What counts from now on; names of headers of HTTP/2 do for connections that begin later.
    pub(crate) fn set_config(&mut self, config: &Arc<Config>) {
        self.config = Arc::clone(config);
    }

    /// The protocol that was found, `Unknown` until then and when none was.
    pub fn protocol(&self) -> L7Protocol {
        self.protocol
    }

    /// The side that was taken for the server is the client: capture began in the middle of the connection.
    pub fn reversed(&self) -> bool {
        self.reversed
    }

    /// Nothing more can come of it: more segments would be ignored.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Deaf)
    }

    /// Bytes that come next in a direction and that nobody needs: the rest of a body.
    pub fn passes_over(&self, direction: Direction) -> u64 {
        match &self.state {
            State::Talking(talk) if self.reversed => talk.parser.passes_over(direction.opposite()),
            State::Talking(talk) => talk.parser.passes_over(direction),
            State::Seeking(_) | State::Deaf => 0,
        }
    }

    /// What was lost since the last call.
    pub fn take_losses(&mut self) -> Losses {
        if let State::Talking(talk) = &mut self.state {
            talk.count(&mut self.losses);
        }
        std::mem::take(&mut self.losses)
    }

    /// Takes new payload and appends the sessions that it completes.
    pub fn segment(&mut self, segment: &Segment<'_>, out: &mut Vec<SessionBox>) {
        match &mut self.state {
            State::Deaf => {}
            State::Talking(_) => self.talk(segment, out),
            State::Seeking(seek) => match seek.segment(self.transport, self.server_port, segment) {
                Found::Nothing => {}
                Found::GaveUp => {
                    self.losses.unrecognised = 1;
                    // Datagrams may become a known protocol's: they are looked at now and then.
                    if self.transport != Transport::Udp {
                        self.state = State::Deaf;
                    }
                }
                Found::Protocol { protocol, from_client } => self.start(protocol, from_client, segment, out),
            },
        }
    }

    /// Appends requests that waited too long by now (microseconds since 1970).
    pub fn expire(&mut self, now_us: u64, out: &mut Vec<SessionBox>) {
        if let State::Talking(talk) = &mut self.state {
            talk.pending.expire(now_us, out);
        }
    }

    /// The flow is over: appends everything that is still open.
    pub fn finish(&mut self, out: &mut Vec<SessionBox>) {
        let ctx = Context { config: &self.config, transport: self.transport, server_port: self.server_port };
        if let State::Talking(talk) = &mut self.state {
            talk.parser.finish(&ctx, &mut talk.messages);
            talk.pair(out);
            talk.pending.flush(out);
            talk.count(&mut self.losses);
        }
        self.state = State::Deaf;
    }

    fn start(
        &mut self,
        protocol: &'static Protocol,
        from_client: bool,
        segment: &Segment<'_>,
        out: &mut Vec<SessionBox>,
    ) {
        let ctx = Context { config: &self.config, transport: self.transport, server_port: self.server_port };
        let talk = Talk {
            parser: (protocol.parser)(&ctx),
            pending: Pending::new(protocol.number, protocol.pairing, protocol.timeout_us),
            messages: Vec::new(),
        };
        self.protocol = protocol.number;
        self.losses.unrecognised = 0;
        self.reversed = from_client != (segment.direction == Direction::ToServer);
        let before = std::mem::replace(&mut self.state, State::Talking(Box::new(talk)));
        if let State::Seeking(seek) = before {
            let [to_server, to_client] = seek.into_kept();
            let kept = [to_server.segment(Direction::ToServer), to_client.segment(Direction::ToClient)];
            // What this segment goes on with comes right before it.
            for segment in kept.iter().flatten().filter(|kept| kept.direction != segment.direction) {
                self.talk(segment, out);
            }
            for segment in kept.iter().flatten().filter(|kept| kept.direction == segment.direction) {
                self.talk(segment, out);
            }
        }
        self.talk(segment, out);
    }

    fn talk(&mut self, segment: &Segment<'_>, out: &mut Vec<SessionBox>) {
        let State::Talking(talk) = &mut self.state else { return };
        let direction = if self.reversed { segment.direction.opposite() } else { segment.direction };
        let ctx = Context { config: &self.config, transport: self.transport, server_port: self.server_port };
        let progress = talk.parser.parse(&ctx, &Segment { direction, ..*segment }, &mut talk.messages);
        talk.pair(out);
        match progress {
            Progress::Going => {}
            Progress::Done => {
                talk.pending.flush(out);
                talk.count(&mut self.losses);
                self.state = State::Deaf;
            }
            Progress::Becomes { protocol, rest } => {
                talk.pending.becomes(protocol);
                talk.parser = (protocol.parser)(&ctx);
                self.protocol = protocol.number;
                if let Some(segment) = last_of(segment, rest) {
                    self.talk(&segment, out);
                }
            }
        }
    }
}

/// The last bytes of a segment, counted on the wire.
fn last_of<'a>(segment: &Segment<'a>, rest: u64) -> Option<Segment<'a>> {
    let rest = u32::try_from(rest).ok().filter(|rest| (1..=segment.payload_length).contains(rest))?;
    let skipped = segment.payload_length - rest;
    let payload = segment.payload.get(skipped as usize..)?;
    let tcp_seq = segment.tcp_seq.wrapping_add(skipped);
    Some(Segment { payload, payload_length: rest, tcp_seq, gap: false, ..*segment })
}

impl Talk {
    fn count(&mut self, losses: &mut Losses) {
        losses.excess_requests += std::mem::take(&mut self.pending.excess);
        losses.resynchronisations += std::mem::take(&mut self.pending.losses);
    }

    fn pair(&mut self, out: &mut Vec<SessionBox>) {
        for message in &mut self.messages {
            self.pending.message(message, out);
        }
        if self.messages.capacity() > MESSAGES_KEPT {
            self.messages = Vec::new();
        } else {
            self.messages.clear();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
