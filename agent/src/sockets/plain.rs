//! Plain text of TLS sessions: which socket it belongs to, and in which order it is told.
//!
//! A call into a TLS library is seen at its end. Where one coroutine sends and another receives, the answer may be seen before the end of the
//! call that sent the request: what comes in meanwhile waits for that end. What is read first on a session may have come with its handshake, which
//! another coroutine did: it waits until the session's socket is known.

use rustc_hash::FxHashMap;

use super::{Call, Judgement, Key, Moment, Sockets};
use crate::events::{Data, Task, Way};

/// Sessions for which something may wait.
const SESSIONS_MAX: usize = 4_096;
/// What may wait for one session: more than one burst of a fast peer.
const WAITING_MAX: usize = 64;
/// After so long it is told all the same: a call that sends waits for the peer to read.
const WAIT_NS: u64 = 500_000_000;
/// Sessions whose sockets are remembered.
const PLACES_MAX: usize = 65_536;

/// A session of a process.
pub(super) type Name = (u32, u64);

#[derive(Debug, Default)]
pub(super) struct Plain {
    places: FxHashMap<Name, u64>,
    held: FxHashMap<Name, Held>,
}

#[derive(Debug)]
pub(super) struct Held {
    since: u64,
    /// A call that sends has not ended.
    is_sending: bool,
    pub(super) waiting: Vec<Waiting>,
}

/// Plain text that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// None: not known yet.
    pub(super) key: Option<Key>,
    pub(super) now: Moment,
    pub(super) tcp_seq: u32,
    pub(super) way: Way,
    pub(super) task: Task,
    pub(super) length: u32,
    pub(super) payload: Box<[u8]>,
}

impl Waiting {
    pub(super) fn data(&self) -> Data<'_> {
        let Self { way, task, length, ref payload, .. } = *self;
        Data { way, task, length, payload }
    }
}

impl Plain {
    /// Room for what waits for a session, if there is some.
    pub(super) fn room(&mut self, name: Name, now: u64) -> Option<&mut Held> {
        if self.held.len() >= SESSIONS_MAX && !self.held.contains_key(&name) {
            return None;
        }
        let held = self.held.entry(name).or_insert_with(|| Held {
            since: now,
            is_sending: false,
            waiting: Vec::new(),
        });
        (held.waiting.len() < WAITING_MAX).then_some(held)
    }

    fn is_sending(&self, name: Name) -> bool {
        self.held.get(&name).is_some_and(|held| held.is_sending && held.waiting.len() < WAITING_MAX)
    }

    pub(super) fn take(&mut self, name: Name) -> Vec<Waiting> {
        self.held.remove(&name).map_or_else(Vec::new, |held| held.waiting)
    }

    pub(super) fn socket(&self, name: Name) -> Option<u64> {
        self.places.get(&name).copied()
    }

    pub(super) fn place(&mut self, name: Name, socket: u64) {
        if self.places.len() >= PLACES_MAX && !self.places.contains_key(&name) {
            self.places.clear();
        }
        self.places.insert(name, socket);
    }
}

impl Sockets {
    /// A call that sends began.
    pub(super) fn sending(&mut self, time: u64, session: u64, task: Task) {
        if let Some(held) = self.plain.room((task.pid, session), time) {
            held.is_sending = true;
        }
    }

    pub(super) fn plain_text(
        &mut self,
        time: u64,
        entered: u64,
        session: u64,
        data: &Data<'_>,
        out: &mut Vec<Call>,
    ) {
        let now = self.moment(time);
        let thread = self.threads.at(data.task);
        let carrier = thread.carrier(entered, time, data.way);
        let last = thread.last().copied();
        let name = (data.task.pid, session);
        let known = self.plain.socket(name);
        let socket = carrier.map(|touch| touch.socket).or(known).or_else(|| last.map(|touch| touch.socket));
        let tcp_seq = carrier.or(last).map_or(0, |touch| touch.tcp_seq);
        let key = socket.map(|socket| Key { socket, partner: None });
        let key = key.filter(|key| self.sockets.contains_key(key));
        let is_early = data.way == Way::In && self.plain.is_sending(name);
        if key.is_none() || is_early {
            let Data { way, task, length, payload } = *data;
            match self.plain.room(name, time) {
                Some(held) => held.waiting.push(Waiting {
                    key,
                    now,
                    tcp_seq,
                    way,
                    task,
                    length,
                    payload: payload.into(),
                }),
                None => self.counters.unplaced += 1,
            }
            return;
        }
        let Some(key) = key else { return };
        self.threads.at(data.task).plain = key.socket;
        if known != Some(key.socket) {
            self.plain.place(name, key.socket);
        }
        self.encrypt(key);
        // What waited for the socket was before, what waited for the end of this call is after it; where too much waits, it is before what comes in.
        let (before, after): (Vec<_>, Vec<_>) = self
            .plain
            .take(name)
            .into_iter()
            .partition(|waiting| waiting.key.is_none() || data.way == Way::In);
        for waiting in before {
            self.threads.at(waiting.task).plain = key.socket;
            self.place_streams(key, waiting.task);
            self.talk(key, waiting.now, waiting.tcp_seq, false, &waiting.data(), out);
        }
        self.talk(key, now, tcp_seq, false, data, out);
        self.tell(after, out);
    }

    /// What waited too long.
    pub(super) fn tell_overdue(&mut self, now_ns: u64, out: &mut Vec<Call>) {
        let is_overdue = |held: &Held| held.since.saturating_add(WAIT_NS) <= now_ns;
        let names: Vec<Name> =
            self.plain.held.iter().filter(|(_, held)| is_overdue(held)).map(|(name, _)| *name).collect();
        for name in names {
            let waiting = self.plain.take(name);
            self.tell(waiting, out);
        }
    }

    fn tell(&mut self, waiting: Vec<Waiting>, out: &mut Vec<Call>) {
        for waiting in waiting {
            match waiting.key.filter(|key| self.sockets.contains_key(key)) {
                Some(key) => {
                    self.encrypt(key);
                    self.talk(key, waiting.now, waiting.tcp_seq, false, &waiting.data(), out);
                }
                None => self.counters.unplaced += 1,
            }
        }
    }

    fn encrypt(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(&key).filter(|socket| !socket.is_tls) else { return };
        socket.begin_tls();
        self.judge(key, Judgement::NoPayload);
    }
}
