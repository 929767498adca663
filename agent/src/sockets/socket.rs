//! One socket, or one partner of an unconnected one: its streams and what is said on them.

use std::collections::VecDeque;

use metaflow_schema::enums::{L7Protocol, L7Type, ObservationPoint, SyscallTraceSource};

use super::dark::Dark;
use super::stream::{Origin, Stream};
use super::{Call, Judgement, Moment};
use crate::events::{SocketEnds, Task, Way};
use crate::flow::{Ends, FlowFacts};
use crate::session::{Conversation, Direction, Segment, Session, SessionBox, Transport};

/// Streams of one connection that are remembered; servers commonly allow 100 to 250 at one time.
const STREAMS_MAX: usize = 256;

/// The kernel is told to leave so much of a body uncopied, or more: a word to it costs as much as copying a few parts.
const SKIP_MIN: u64 = 64 << 10;
/// Told at one time: far from where sequence numbers wrap round.
const SKIP_MAX: u64 = 1 << 30;

/// Of one process's end of a connection.
pub(super) struct Socket {
    pub(super) ends: SocketEnds,
    pub(super) flow_id: u64,
    /// Microseconds since 1970.
    pub(super) first_seen: u64,
    /// Nanoseconds of the monotonic clock.
    pub(super) used: u64,
    /// This end is the client, as far as was known at the beginning; the conversation may find otherwise.
    pub(super) is_client: bool,
    /// The process that used it last.
    pub(super) pid: u32,
    /// Of the request that it is at (see `sockets.rs`).
    pub(super) trace: u64,
    /// That number is a guess, whatever the process is.
    pub(super) is_guess: bool,
    /// What the thread worked for that began the connection; 0: nothing, or it was not seen.
    pub(super) begun_for: u64,
    /// The thread that was asked, or asked, last.
    pub(super) asker: u32,
    /// When the last response ended, microseconds since 1970.
    pub(super) served_until: u64,
    pub(super) last_way: Option<Way>,
    pub(super) has_sent: bool,
    /// Coroutines use it, which the programs tell apart.
    pub(super) has_coroutines: bool,
    /// What goes through it is encrypted; the streams are those of the plain text.
    pub(super) is_tls: bool,
    pub(super) dark: Dark,
    /// The kernel was told something about it.
    pub(super) is_judged: bool,
    /// Nothing more is to be learnt from it.
    pub(super) is_given_up: bool,
    pub(super) is_closed: bool,
    /// Of streams of HTTP/2 whose work was seen to change hands: which requests they are, or are for.
    streams: VecDeque<(u32, u64)>,
    /// Before these TCP sequence numbers the kernel copies no payload: of what is sent, of what is received.
    skips: [Option<u32>; 2],
    sent: Stream,
    received: Stream,
    pub(super) conversation: Option<Box<Conversation>>,
}

impl Socket {
    pub(super) fn new(ends: SocketEnds, is_client: bool, flow_id: u64, now: Moment) -> Self {
        Self {
            ends,
            flow_id,
            first_seen: now.wall_us,
            used: now.monotonic_ns,
            is_client,
            pid: 0,
            trace: 0,
            is_guess: false,
            begun_for: 0,
            asker: 0,
            served_until: 0,
            last_way: None,
            has_sent: false,
            has_coroutines: false,
            is_tls: false,
            dark: Dark::default(),
            is_judged: false,
            is_given_up: false,
            is_closed: false,
            streams: VecDeque::new(),
            skips: [None; 2],
            sent: Stream::default(),
            received: Stream::default(),
            conversation: None,
        }
    }

    pub(super) fn set_stream(&mut self, stream: u32, trace: u64) {
        if self.streams.len() >= STREAMS_MAX {
            self.streams.pop_front();
        }
        self.streams.push_back((stream, trace));
    }

    /// Of a session on a connection that many share at one time, what its own stream tells.
    fn trace_of_stream(&self, session: &Session) -> Option<u64> {
        if !matches!(session.protocol, L7Protocol::Http2 | L7Protocol::Grpc) {
            return None;
        }
        let mut known = self.streams.iter().rev();
        known.find(|(stream, _)| u64::from(*stream) == session.request_id).map(|(_, trace)| *trace)
    }

    pub(super) fn is_client_now(&self) -> bool {
        self.is_client != self.conversation.as_ref().is_some_and(|conversation| conversation.reversed())
    }

    pub(super) fn protocol(&self) -> L7Protocol {
        self.conversation.as_ref().map_or(L7Protocol::Unknown, |conversation| conversation.protocol())
    }

    pub(super) fn server_port(&self) -> u16 {
        if self.is_client { self.ends.remote.port() } else { self.ends.local.port() }
    }

    pub(super) fn stream(&mut self, way: Way) -> &mut Stream {
        match way {
            Way::Out => &mut self.sent,
            Way::In => &mut self.received,
        }
    }

    /// From here on it is plain text inside TLS: what was seen before says nothing about it.
    pub(super) fn begin_tls(&mut self) {
        self.is_tls = true;
        self.conversation = None;
        self.sent = Stream::default();
        self.received = Stream::default();
        self.last_way = None;
    }

    pub(super) fn forget_skips(&mut self) {
        self.skips = [None; 2];
    }

    /// What the kernel need not do once nothing more is to be learnt; one that spoke a known protocol may go on with TLS.
    pub(super) fn parting(&self) -> Judgement {
        let protocol = self.conversation.as_ref().map_or(L7Protocol::Unknown, |talk| talk.protocol());
        if protocol == L7Protocol::Unknown { Judgement::Ignore } else { Judgement::NoPayload }
    }

    /// What the kernel may leave uncopied from here on: `end` is the sequence number of the next byte.
    pub(super) fn skip(&mut self, way: Way, end: u32) -> Option<Judgement> {
        if self.is_tls || self.ends.transport != Transport::Tcp {
            return None;
        }
        let to_server = (way == Way::Out) == self.is_client;
        let direction = if to_server { Direction::ToServer } else { Direction::ToClient };
        let ahead = self.conversation.as_ref().map_or(0, |conversation| conversation.passes_over(direction));
        if ahead < SKIP_MIN {
            return None;
        }
        let told = &mut self.skips[usize::from(way == Way::In)];
        if told.is_some_and(|told| told.wrapping_sub(end).cast_signed() > 0) {
            return None;
        }
        *told = Some(end.wrapping_add(ahead.min(SKIP_MAX) as u32));
        let [sent, received] = self.skips;
        Some(Judgement::Skip { sent, received })
    }

    /// Hands bytes to the conversation.
    pub(super) fn feed(&mut self, part: Part<'_>, origin: Origin, sessions: &mut Vec<SessionBox>) {
        let Part { way, time_us, payload, length, is_gap, is_turn } = part;
        let counts = !self.is_tls && self.ends.transport != Transport::Udp;
        if self.protocol() == L7Protocol::Http2 {
            self.stream(way).multiplex();
        }
        let tcp_seq = self.stream(way).push(length, origin, counts, is_turn);
        let to_server = (way == Way::Out) == self.is_client;
        let direction = if to_server { Direction::ToServer } else { Direction::ToClient };
        let segment =
            Segment { timestamp: time_us, direction, tcp_seq, payload, payload_length: length, gap: is_gap };
        if let Some(conversation) = &mut self.conversation {
            conversation.segment(&segment, sessions);
        }
    }

    /// A response is complete, and some of the next request is there already: it was sent at once, or its first bytes were seen before the end of the
    /// call that sent the response. It goes on with that one, by a number that it has already or by `fresh`.
    pub(super) fn follow(&mut self, session: &Session, fresh: u64) -> Option<u64> {
        let is_whole = session.l7_type == L7Type::Session && session.protocol == L7Protocol::Http1;
        if self.is_client_now() || !is_whole {
            return None;
        }
        let length = u32::try_from(session.request_length).ok()?;
        let before = self.received.origin(session.req_tcp_seq)?.trace;
        let next = self.received.follow(session.req_tcp_seq.wrapping_add(length), before, fresh)?;
        self.trace = next;
        self.last_way = Some(Way::In);
        Some(next)
    }

    /// A session with where it was seen.
    pub(super) fn call(&self, mut session: SessionBox, peer_pid: u32, is_loop: bool) -> Call {
        let is_client = self.is_client_now();
        let (requests, responses) =
            if is_client { (&self.sent, &self.received) } else { (&self.received, &self.sent) };
        let origin = |stream: &Stream, number: u32, is_there: bool| {
            is_there.then(|| stream.origin(number)).flatten().unwrap_or_default()
        };
        let request = origin(requests, session.req_tcp_seq, session.l7_type != L7Type::Response);
        let response = origin(responses, session.resp_tcp_seq, session.l7_type != L7Type::Request);
        session.req_tcp_seq = request.tcp_seq;
        session.resp_tcp_seq = response.tcp_seq;
        let SocketEnds { transport, local, remote } = self.ends;
        let (client, server) = if is_client { (local, remote) } else { (remote, local) };
        let facts = FlowFacts {
            ends: Ends {
                client_ip: client.ip(),
                server_ip: server.ip(),
                client_port: client.port(),
                server_port: server.port(),
                ip_protocol: transport.ip_protocol(),
            },
            flow_id: self.flow_id,
            interface_index: 0,
            client_mac: 0,
            server_mac: 0,
            vlan: 0,
            first_seen: self.first_seen,
        };
        let (point, client_pid, server_pid) = if is_client {
            (ObservationPoint::ClientProcess, self.pid, peer_pid)
        } else {
            (ObservationPoint::ServerProcess, peer_pid, self.pid)
        };
        // On a connection that carries several requests at a time, the response came while it was at another one.
        let trace = if request.trace == 0 { response.trace } else { request.trace };
        let traces = [self.trace_of_stream(&session).unwrap_or(trace); 2];
        let source = match traces {
            [0, 0] => SyscallTraceSource::None,
            _ if request.is_guess => SyscallTraceSource::EventLoop,
            // Where coroutines are told apart, threads say nothing.
            _ if request.task.coroutine != 0 => SyscallTraceSource::Coroutine,
            _ if is_loop => SyscallTraceSource::EventLoop,
            _ => SyscallTraceSource::Thread,
        };
        Call {
            facts,
            point,
            client_pid,
            server_pid,
            threads: [request, response].map(|origin| origin.task.thread),
            coroutines: [request, response].map(|origin| coroutine(origin.task)),
            traces,
            source,
            session,
        }
    }
}

/// A coroutine's number that no other one on the host has: numbers of processes have 22 bits.
fn coroutine(Task { pid, thread: _, coroutine }: Task) -> u64 {
    const BITS: u32 = 42;
    if coroutine == 0 { 0 } else { u64::from(pid) << BITS | coroutine & ((1 << BITS) - 1) }
}

/// Bytes on their way to a conversation.
pub(super) struct Part<'a> {
    pub(super) way: Way,
    pub(super) time_us: u64,
    pub(super) payload: &'a [u8],
    pub(super) length: u32,
    pub(super) is_gap: bool,
    /// The other side spoke before.
    pub(super) is_turn: bool,
}
