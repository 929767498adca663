//! Sockets: what processes send and receive becomes requests, each with the thread that it came from.
//!
//! Pure: events come in with their times, calls go out. The conversations and parsers are those of the packet path.
//!
//! Which request causes which is told by threads. A request that comes in gets a number of its own (`trace`), and its thread works for it
//! from then on; what the thread sends to others carries the number, and so does the answer to that, which makes the thread that
//! reads it work for the number again (so event loops come out right that handle one event at a time); when the response is complete, the
//! thread works for nothing. Processes that work for several requests on one thread are told from others (`loops`): what they send is put to a
//! request in the same way, but the row says that it is a guess.
//!
//! It is kept here, and not in the kernel: the events of a thread come in order, and here it is known when a
//! response is complete, which is what keeps requests apart that follow one another on a thread.
//! Where coroutines are seen (goroutines, tasks of tokio), they count instead of threads; one that is begun works for what the one that began it
//! works for. Tasks of tokio hand requests to one another over queues (`tasks`).
//!
//! TLS: a library hands over plain text and the address of its session. The socket is the one that the same thread used while it was in the
//! library; where it used none (the data was there before), the one that the session had last.
//!
//! Leaves out: how events come (`probes`, `events`), counting each request once (`emit`).

mod buffered;
mod coroutines;
mod dark;
mod datagrams;
mod frames;
mod judging;
mod loops;
mod opening;
mod plain;
mod socket;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;
mod threads;
mod unix;
mod work;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use metaflow_schema::enums::{L7Protocol, L7Type, ObservationPoint, SyscallTraceSource};
use rustc_hash::{FxHashMap, FxHashSet};

use self::datagrams::Datagrams;
use self::loops::{Connecting, Loop};
use self::plain::Plain;
use self::socket::{Part, Socket};
use self::stream::Origin;
use self::tasks::Tasks;
use self::threads::{Threads, Touch};
use self::unix::Unix;
use crate::events::{Data, Event, SocketEnds, Way};
use crate::flow::FlowFacts;
use crate::session::{self, Conversation, SessionBox, Transport};

/// Flow numbers of sockets have this bit, so that none is a number of the packet path.
const FLOW_BIT: u64 = 1 << 63;
/// A closed socket waits so long: the end of a connection may overtake the last bytes on another CPU.
const CLOSED_KEPT_NS: u64 = 200_000_000;
/// Sockets that were silent for so long are over; their end may have been lost.
const IDLE_TCP_NS: u64 = 3_600_000_000_000;
const IDLE_UDP_NS: u64 = 30_000_000_000;
/// How often requests that wait too long, and silent sockets, are looked for.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Sockets followed at one time.
    pub sockets_max: usize,
    pub session: Arc<session::Config>,
    /// Whether plain text of TLS libraries can come.
    pub tls: bool,
    /// Number before that of the first request; any that no other agent has used.
    pub trace_base: u64,
}

/// A request as one of its processes saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub facts: FlowFacts,
    /// `ClientProcess` or `ServerProcess`.
    pub point: ObservationPoint,
    /// 0 when unknown or elsewhere.
    pub client_pid: u32,
    pub server_pid: u32,
    /// Of request and response.
    pub threads: [u32; 2],
    /// 0 where there are none; else no other coroutine of the host has the number.
    pub coroutines: [u64; 2],
    pub traces: [u64; 2],
    pub source: SyscallTraceSource,
    pub session: SessionBox,
}

/// What the kernel need not do for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Copy payload.
    NoPayload,
    /// Copy payload before these TCP sequence numbers: the rest of a long body.
    Skip { sent: Option<u32>, received: Option<u32> },
    /// Anything.
    Ignore,
    /// The socket is gone: forget what was said.
    Forget,
}

/// What could not be used, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events of sockets beyond the bound.
    pub excess: u64,
    /// Plain text, and last bytes of connections that were reset, whose socket was not found.
    pub unplaced: u64,
    /// Streams of which bytes were not seen.
    pub gaps: u64,
    /// Connections with TLS whose plain text nobody showed.
    pub unseen_tls: u64,
}

/// A time on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    monotonic_ns: u64,
    /// Microseconds since 1970.
    wall_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    socket: u64,
    /// One datagram socket may have many partners.
    partner: Option<SocketAddr>,
}

impl Key {
    fn new(socket: u64, ends: &SocketEnds) -> Self {
        Self { socket, partner: (ends.transport == Transport::Udp).then_some(ends.remote) }
    }
}

/// All sockets of a host.
pub struct Sockets {
    config: Config,
    sockets: FxHashMap<Key, Socket>,
    /// Who has an end of a connection.
    owners: FxHashMap<SocketEnds, u32>,
    threads: Threads,
    tasks: Tasks,
    /// Processes that work for several requests on one thread.
    loops: FxHashMap<u32, Loop>,
    /// Who begins connections, and what for.
    connecting: FxHashMap<u64, Connecting>,
    datagrams: Datagrams,
    unix: Unix,
    plain: Plain,
    servers: FxHashSet<u16>,
    closed: VecDeque<(u64, Key)>,
    /// Wall clock minus monotonic clock, microseconds.
    clock_offset_us: i64,
    looked_ns: u64,
    flows: u64,
    /// Partners of datagram sockets among them.
    partners: usize,
    trace: u64,
    judgements: Vec<(u64, Judgement)>,
    sessions: Vec<SessionBox>,
    counters: Counters,
    /// Processes whose TLS was found to stay unseen.
    dark: Vec<u32>,
}

impl Sockets {
    pub fn new(config: Config) -> Self {
        Self {
            trace: config.trace_base,
            sockets: FxHashMap::default(),
            owners: FxHashMap::default(),
            threads: Threads::default(),
            tasks: Tasks::default(),
            loops: FxHashMap::default(),
            connecting: FxHashMap::default(),
            datagrams: Datagrams::default(),
            unix: Unix::new(config.trace_base),
            plain: Plain::default(),
            servers: FxHashSet::default(),
            closed: VecDeque::new(),
            clock_offset_us: 0,
            looked_ns: 0,
            flows: 0,
            partners: 0,
            judgements: Vec::new(),
            sessions: Vec::new(),
            counters: Counters::default(),
            dark: Vec::new(),
            config,
        }
    }

    /// What the wall clock is ahead of the monotonic clock.
    pub fn set_clock(&mut self, offset_us: i64) {
        self.clock_offset_us = offset_us;
    }

    /// Something listens on this port.
    pub fn server_port(&mut self, port: u16) {
        self.servers.insert(port);
    }

    /// Takes in one event; appends the calls that it completes.
    pub fn event(&mut self, event: &Event<'_>, out: &mut Vec<Call>) {
        match *event {
            Event::Transfer { time, socket, ends, tcp_seq: _, data } if ends.transport == Transport::Udp => {
                self.datagram(time, socket, ends, &data, out);
            }
            Event::Transfer { time, socket, ends, tcp_seq, data } => {
                self.transfer(time, Key::new(socket, &ends), ends, tcp_seq, &data, out);
            }
            Event::UnixTransfer { time, socket, ends, end, data } => {
                self.unix_transfer(time, socket, ends, end, &data, out);
            }
            Event::Named { socket, path } => self.unix.named(socket, path),
            Event::UnixEnded { time, socket } => self.unix.ended(time, socket),
            Event::Plain { time, entered, session, data } => {
                self.plain_text(time, entered, session, &data, out)
            }
            Event::Buffered { time, session, data } => self.buffered(time, session, &data, out),
            Event::Opened { time, socket, ends, is_client } => {
                let key = Key::new(socket, &ends);
                self.end(key, out);
                self.open(key, ends, is_client, self.moment(time));
                let begun = self.connecting.remove(&socket);
                if let (Some(known), Some(Connecting { pid, trace })) = (self.sockets.get_mut(&key), begun) {
                    known.begun_for = trace;
                    // The server may have answered before the end of the client's first call is told.
                    self.owners.insert(ends, pid);
                }
                if !is_client {
                    self.servers.insert(ends.local.port());
                }
            }
            Event::Connecting { time: _, socket, task } => self.connecting(socket, task),
            Event::Closed { time, socket } => {
                let key = Key { socket, partner: None };
                self.connecting.remove(&socket);
                if let Some(known) = self.sockets.get_mut(&key) {
                    known.is_closed = true;
                    self.closed.push_back((time.saturating_add(CLOSED_KEPT_NS), key));
                    let asker = known.asker;
                    self.threads.answered(asker, socket);
                }
            }
            Event::Sending { time, task, session } => self.sending(time, session, task),
            Event::Spawn { task, child } => self.threads.spawn(task, child),
            Event::Act { task, act, other } => self.act(task, act, other),
            Event::HandOver { task, place, stream } => self.hand_over(task, place, stream),
            Event::TakeOver { task, place, stream } => self.take_over(task, place, stream),
            Event::ThreadExit { task } => {
                self.threads.remove(task);
                if task.thread == task.pid {
                    self.loops.remove(&task.pid);
                }
            }
            Event::Exec { task } => {
                self.loops.remove(&task.pid);
            }
        }
    }

    /// Moves the clock (monotonic, nanoseconds): sockets that are over and requests that wait too long.
    pub fn tick(&mut self, now_ns: u64, out: &mut Vec<Call>) {
        while let Some((due, key)) = self.closed.front().copied().filter(|(due, _)| *due <= now_ns) {
            debug_assert!(due <= now_ns);
            self.closed.pop_front();
            // The key may have been used again (addresses are).
            if self.sockets.get(&key).is_some_and(|socket| socket.is_closed) {
                self.end(key, out);
            }
        }
        self.end_unix(now_ns, out);
        self.tell_overdue(now_ns, out);
        if now_ns < self.looked_ns.saturating_add(LOOK_EVERY_NS) {
            return;
        }
        self.looked_ns = now_ns;
        self.look(now_ns, out);
    }

    /// Ends all: the probes are gone.
    pub fn finish(&mut self, out: &mut Vec<Call>) {
        let all: Vec<Key> = self.sockets.keys().copied().collect();
        for key in all {
            self.end(key, out);
        }
    }

    /// What the kernel is to be told, since the last call.
    pub fn take_judgements(&mut self) -> Vec<(u64, Judgement)> {
        std::mem::take(&mut self.judgements)
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    fn moment(&self, monotonic_ns: u64) -> Moment {
        let wall_us = (monotonic_ns / 1_000).saturating_add_signed(self.clock_offset_us);
        Moment { monotonic_ns, wall_us }
    }

    fn transfer(
        &mut self,
        time: u64,
        key: Key,
        ends: SocketEnds,
        tcp_seq: u32,
        data: &Data<'_>,
        out: &mut Vec<Call>,
    ) {
        // What is sent may come back as a reset before the call ends, and a socket that was reset has no port any more.
        let is_reset = ends.transport == Transport::Tcp && ends.local.port() == 0;
        let ends = match self.sockets.get(&key) {
            Some(known) if is_reset => known.ends,
            None if is_reset => {
                self.counters.unplaced += 1;
                return;
            }
            _ => ends,
        };
        self.carry(time, key, ends, tcp_seq, None, data, out);
    }

    /// `is_client`: this end began the connection, where the kernel says so.
    #[expect(clippy::too_many_arguments, reason = "what is known of a transfer")]
    fn carry(
        &mut self,
        time: u64,
        key: Key,
        ends: SocketEnds,
        tcp_seq: u32,
        is_client: Option<bool>,
        data: &Data<'_>,
        out: &mut Vec<Call>,
    ) {
        let now = self.moment(time);
        let is_out = data.way == Way::Out;
        let touch = Touch { time, socket: key.socket, is_out, tcp_seq, length: data.length };
        self.threads.at(data.task).touch(touch);
        let known = self.sockets.get(&key).map(|known| known.ends == ends);
        if known == Some(false) {
            self.end(key, out);
        }
        if known != Some(true) {
            let is_client = is_client.unwrap_or_else(|| self.is_client(&ends, data.way));
            if !self.open(key, ends, is_client, now) {
                self.counters.excess += 1;
                return;
            }
        }
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        socket.used = time;
        if socket.pid != data.task.pid {
            socket.pid = data.task.pid;
            self.owners.insert(ends, data.task.pid);
        }
        let begins_tls = !socket.is_tls && socket.last_way.is_none() && is_tls(data.payload);
        if begins_tls {
            socket.begin_tls();
        }
        if socket.is_tls {
            socket.dark.transfer(data.way);
            if begins_tls {
                self.judge(key, if self.config.tls { Judgement::NoPayload } else { Judgement::Ignore });
            }
            if is_out {
                self.send_buffered(key, data.task, tcp_seq, out);
            }
            return;
        }
        let is_gap = ends.transport == Transport::Tcp && socket.stream(data.way).is_gap(tcp_seq, data.length);
        self.counters.gaps += u64::from(is_gap);
        self.talk(key, now, tcp_seq, is_gap, data, out);
    }

    /// Bytes of a conversation; of HTTP/2 each request that begins among them by itself.
    fn talk(
        &mut self,
        key: Key,
        now: Moment,
        tcp_seq: u32,
        is_gap: bool,
        data: &Data<'_>,
        out: &mut Vec<Call>,
    ) {
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        if socket.conversation.is_none() {
            let Config { session, .. } = &self.config;
            let transport = socket.ends.transport.of_protocols();
            let port = self.unix.usual_port(key.socket).unwrap_or_else(|| socket.server_port());
            socket.conversation = Some(Box::new(Conversation::new(transport, port, session)));
        }
        let asks = socket.is_client_now() == (data.way == Way::Out);
        let is_multiplexed =
            asks && (socket.protocol() == L7Protocol::Http2 || frames::is_preface(data.payload));
        let begins = if is_multiplexed { frames::requests(data.payload) } else { Vec::new() };
        let counts = !socket.is_tls && socket.ends.transport != Transport::Udp;
        for part in frames::parts(data, &begins) {
            let tcp_seq = if counts { tcp_seq.wrapping_add(part.offset) } else { tcp_seq };
            let begins = if is_multiplexed { Some(part.begins) } else { None };
            self.say(key, now, tcp_seq, is_gap && part.offset == 0, &part.data, begins, out);
        }
    }

    /// Whom bytes are for, what they say, and what that means for the thread. `begins`: whether they are a request's first, where the
    /// protocol carries several at a time.
    #[expect(clippy::too_many_arguments, reason = "what is known of bytes")]
    fn say(
        &mut self,
        key: Key,
        now: Moment,
        tcp_seq: u32,
        is_gap: bool,
        data: &Data<'_>,
        begins: Option<bool>,
        out: &mut Vec<Call>,
    ) {
        let Data { way, task, length, payload } = *data;
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        socket.has_coroutines |= task.coroutine != 0;
        let is_turn = socket.last_way.replace(way) != Some(way);
        self.work_for(key, task, way, is_turn, begins);
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        socket.has_sent |= way == Way::Out;
        let origin = Origin { task, trace: socket.trace, is_guess: socket.is_guess, tcp_seq };
        let part = Part { way, time_us: now.wall_us, payload, length, is_gap, is_turn };
        socket.feed(part, origin, &mut self.sessions);
        if is_turn {
            self.turn(key, task, way);
        }
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        let is_over = socket.conversation.as_ref().is_some_and(|conversation| conversation.is_over());
        let skip = socket.skip(way, tcp_seq.wrapping_add(length));
        let first = out.len();
        let next = self.follow(key, way);
        self.hand_out(key, out);
        self.after(task, way, next, &out[first..]);
        if is_over {
            self.give_up(key);
        } else if let Some(skip) = skip {
            self.judge(key, skip);
        }
    }

    /// Sessions that came become calls.
    fn hand_out(&mut self, key: Key, out: &mut Vec<Call>) {
        if self.sessions.is_empty() {
            return;
        }
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        let SocketEnds { transport, local, remote } = socket.ends;
        let peer = SocketEnds { transport, local: remote, remote: local };
        let peer_pid = self.owners.get(&peer).copied().unwrap_or_else(|| self.unix.peer_pid(key.socket));
        self.unix.name(key.socket, &mut self.sessions);
        let mut overlap = false;
        for session in self.sessions.iter().filter(|session| session.l7_type == L7Type::Session) {
            overlap |= session.start_time < socket.served_until;
            socket.served_until = socket.served_until.max(session.end_time);
        }
        let (pid, is_client) = (socket.pid, socket.is_client_now());
        if overlap && !is_client && !socket.has_coroutines {
            self.is_loop(pid, false);
        }
        let is_loop = self.loops.contains_key(&pid);
        let Some(socket) = self.sockets.get(&key) else { return };
        out.extend(self.sessions.drain(..).map(|session| socket.call(session, peer_pid, is_loop)));
    }

    /// A socket is over: what is open is handed out.
    fn end(&mut self, key: Key, out: &mut Vec<Call>) {
        self.count_dark(key);
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        if let Some(conversation) = &mut socket.conversation {
            conversation.finish(&mut self.sessions);
        }
        self.hand_out(key, out);
        if let Some(socket) = self.sockets.remove(&key) {
            if !socket.is_client_now() {
                self.tasks.answered(socket.trace);
            }
            if let Some(known) = self.loops.get_mut(&socket.pid)
                && !socket.is_client_now()
            {
                known.answered(socket.trace);
            }
            self.partners -= usize::from(key.partner.is_some());
            let was_told = self.unix.forget(key.socket);
            if socket.is_judged || was_told {
                self.judgements.push((key.socket, Judgement::Forget));
            }
            self.owners.remove(&socket.ends);
        }
    }

    fn look(&mut self, now_ns: u64, out: &mut Vec<Call>) {
        self.datagrams.look(now_ns, &mut self.judgements);
        let now_us = self.moment(now_ns).wall_us;
        let (mut over, mut waiting, mut dark) = (Vec::new(), Vec::new(), Vec::new());
        for (key, socket) in &mut self.sockets {
            let kept = match socket.ends.transport {
                Transport::Tcp => IDLE_TCP_NS,
                Transport::Udp => IDLE_UDP_NS,
                Transport::Unix => unix::IDLE_NS,
            };
            if now_ns.saturating_sub(socket.used) > kept {
                over.push(*key);
            } else if socket.conversation.is_some() {
                waiting.push(*key);
            } else if socket.is_tls && socket.dark.is_due(now_us.saturating_sub(socket.first_seen)) {
                dark.push(*key);
            }
        }
        for key in dark {
            self.count_dark(key);
        }
        for key in waiting {
            if let Some(conversation) =
                self.sockets.get_mut(&key).and_then(|socket| socket.conversation.as_mut())
            {
                conversation.expire(now_us, &mut self.sessions);
                self.hand_out(key, out);
            }
        }
        for key in over {
            self.end(key, out);
        }
    }
}

/// A record of TLS: type, version.
fn is_tls(payload: &[u8]) -> bool {
    matches!(payload, [0x14..=0x17, 3, 0..=4, ..])
}
