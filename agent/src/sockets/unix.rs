//! Unix sockets: which ends belong together, and what stands for the sequence numbers that they lack.
//!
//! An end is told by its place in the kernel, which another socket has when both ends are gone. The kernel does not say when an end is closed: it is
//! seen when the other one reads the end of the stream, when a place is used anew, or by silence.
//! Bytes are numbered from the first transfer that was seen on, from a number that both ends of a connection share, so that rows of both have the
//! same numbers. Where a transfer of one end was not seen, they differ from there on, and the rows stay apart.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{Call, Key, Sockets};
use crate::events::{Data, SocketEnds, UnixEnd, Way};
use crate::session::SessionBox;

/// Silent for so long, a socket is taken for closed; it is known anew when it speaks again.
pub(super) const IDLE_NS: u64 = 60_000_000_000;
/// The same where there is no room for another one.
const IDLE_WHEN_FULL_NS: u64 = 2_000_000_000;
/// Who is done with sending may still wait for the answer so long.
const ENDED_KEPT_NS: u64 = 2_000_000_000;
/// Unix sockets may take this part of the room: connections over networks must not wait for them.
const PART: usize = 4;
/// Paths that wait for the first transfer of their socket.
const NAMES_MAX: usize = 1_024;
/// Between the first numbers of two connections: the golden ratio, which spreads them.
const SPREAD: u32 = 0x9e37_79b9;

/// One end that is known.
struct End {
    ends: SocketEnds,
    said: UnixEnd,
    path: Box<str>,
    /// The first number of the connection.
    first: u32,
    /// The socket at the other end, once it was seen.
    peer: Option<u64>,
    /// Bytes that were seen: sent, received.
    seen: [u32; 2],
    used: u64,
    /// The stream has ended, and is looked at last at this time.
    ended: Option<u64>,
}

pub(super) struct Unix {
    known: FxHashMap<u64, End>,
    places: FxHashMap<SocketEnds, u64>,
    names: FxHashMap<u64, Box<str>>,
    ended: VecDeque<(u64, u64)>,
    next: u32,
    /// When room was made last.
    cleared: u64,
}

impl Unix {
    pub(super) fn new(base: u64) -> Self {
        Self {
            known: FxHashMap::default(),
            places: FxHashMap::default(),
            names: FxHashMap::default(),
            ended: VecDeque::new(),
            next: base as u32,
            cleared: 0,
        }
    }

    pub(super) fn named(&mut self, socket: u64, path: &[u8]) {
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(socket, text(path));
    }

    /// Both ends are looked at for the last time soon, unless they go on.
    pub(super) fn ended(&mut self, time: u64, socket: u64) {
        let due = time.saturating_add(ENDED_KEPT_NS);
        let peer = self.known.get(&socket).and_then(|end| end.peer);
        for socket in [Some(socket), peer].into_iter().flatten() {
            if let Some(end) = self.known.get_mut(&socket) {
                end.ended = Some(due);
                self.ended.push_back((due, socket));
            }
        }
    }

    pub(super) fn peer_pid(&self, socket: u64) -> u32 {
        self.known.get(&socket).map_or(0, |end| end.said.peer_pid)
    }

    /// The port that stands for the same server where it listens on one; none where the socket is none of Unix.
    pub(super) fn usual_port(&self, socket: u64) -> Option<u16> {
        self.known.get(&socket).map(|end| usual_port(&end.path))
    }

    /// Says of sessions by which socket they came.
    pub(super) fn name(&self, socket: u64, sessions: &mut [SessionBox]) {
        let Some(end) = self.known.get(&socket) else { return };
        for session in sessions {
            session.socket_path = end.path.clone().into();
        }
    }

    /// True when it was known.
    pub(super) fn forget(&mut self, socket: u64) -> bool {
        let Some(end) = self.known.remove(&socket) else { return false };
        if self.places.get(&end.ends) == Some(&socket) {
            self.places.remove(&end.ends);
        }
        true
    }

    /// The number of the first byte of a transfer.
    fn count(&mut self, time: u64, socket: u64, way: Way, length: u32) -> u32 {
        let Some(end) = self.known.get_mut(&socket) else { return 0 };
        (end.used, end.ended) = (time, None);
        let seen = &mut end.seen[usize::from(way == Way::In)];
        let before = *seen;
        *seen = before.wrapping_add(length);
        // Both ends agree which of them has the lower place.
        let is_from_lower = (way == Way::Out) == (end.ends.local < end.ends.remote);
        let first = if is_from_lower { end.first } else { end.first ^ 1 << 31 };
        // 0 means none.
        first.wrapping_add(before).max(1)
    }

    /// What is known of a place is of a connection that is gone: the socket that has it now is another one, or its other end is.
    fn outdated(&self, socket: u64, ends: &SocketEnds) -> [Option<u64>; 2] {
        let own = self.places.get(ends).copied().filter(|other| *other != socket);
        let peer = self.places.get(&mirrored(ends)).copied().filter(|other| {
            self.known.get(other).is_some_and(|end| end.peer.is_some_and(|peer| peer != socket))
        });
        [own, peer]
    }

    fn begin(&mut self, socket: u64, ends: SocketEnds, said: UnixEnd) {
        let peer = self.places.get(&mirrored(&ends)).copied();
        let first = match peer.and_then(|peer| self.known.get_mut(&peer)) {
            Some(other) => {
                other.peer = Some(socket);
                other.first
            }
            None => {
                self.next = self.next.wrapping_add(SPREAD);
                self.next
            }
        };
        let path = self.names.remove(&socket).unwrap_or_default();
        let end = End { ends, said, path, first, peer, seen: [0; 2], used: 0, ended: None };
        self.places.insert(ends, socket);
        self.known.insert(socket, end);
    }

    /// Those that have been silent since a time.
    fn silent(&self, since: u64) -> Vec<u64> {
        self.known.iter().filter(|(_, end)| end.used < since).map(|(socket, _)| *socket).collect()
    }
}

impl Sockets {
    pub(super) fn unix_transfer(
        &mut self,
        time: u64,
        socket: u64,
        ends: SocketEnds,
        said: UnixEnd,
        data: &Data<'_>,
        out: &mut Vec<Call>,
    ) {
        let key = Key { socket, partner: None };
        let known = self.unix.known.get(&socket);
        let known = known.filter(|end| {
            let is_same_peer = end.ends == ends || ends.remote.ip().is_unspecified();
            end.said.inode == said.inode && is_same_peer
        });
        let ends = match known {
            Some(end) => end.ends,
            None => {
                self.end(key, out);
                for gone in self.unix.outdated(socket, &ends).into_iter().flatten() {
                    self.end(Key { socket: gone, partner: None }, out);
                }
                if !self.has_room_for_unix(time, out) {
                    self.counters.excess += 1;
                    return;
                }
                self.unix.begin(socket, ends, said);
                ends
            }
        };
        let number = self.unix.count(time, socket, data.way, data.length);
        let is_client = said.is_client.unwrap_or(data.way == Way::Out);
        self.carry(time, key, ends, number, Some(is_client), data, out);
        if !self.sockets.contains_key(&key) {
            self.unix.forget(socket);
        }
    }

    fn has_room_for_unix(&mut self, time: u64, out: &mut Vec<Call>) -> bool {
        let room = self.config.sockets_max / PART;
        if self.unix.known.len() >= room && time >= self.unix.cleared.saturating_add(IDLE_WHEN_FULL_NS) {
            self.unix.cleared = time;
            for socket in self.unix.silent(time.saturating_sub(IDLE_WHEN_FULL_NS)) {
                self.end(Key { socket, partner: None }, out);
            }
        }
        self.unix.known.len() < room
    }

    /// Streams that have ended.
    pub(super) fn end_unix(&mut self, now_ns: u64, out: &mut Vec<Call>) {
        while let Some((due, socket)) = self.unix.ended.front().copied().filter(|(due, _)| *due <= now_ns) {
            self.unix.ended.pop_front();
            if self.unix.known.get(&socket).is_some_and(|end| end.ended == Some(due)) {
                let key = Key { socket, partner: None };
                if let Some(asker) = self.sockets.get(&key).map(|socket| socket.asker) {
                    self.threads.answered(asker, socket);
                }
                self.end(key, out);
            }
        }
    }
}

fn mirrored(ends: &SocketEnds) -> SocketEnds {
    SocketEnds { transport: ends.transport, local: ends.remote, remote: ends.local }
}

/// A path as programs show it: an abstract one begins with `@`.
fn text(path: &[u8]) -> Box<str> {
    match path {
        [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name).trim_end_matches('\0')),
        path => {
            String::from_utf8_lossy(path.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
        }
    }
    .into()
}

/// By the names that servers give to their sockets; 0 for all others.
fn usual_port(path: &str) -> u16 {
    let name = path.rsplit('/').next().unwrap_or_default();
    if let Some(port) = name.strip_prefix(".s.PGSQL.") {
        return port.parse().unwrap_or(0);
    }
    let known = [("mysql", 3_306), ("mariadb", 3_306), ("redis", 6_379), ("valkey", 6_379)];
    known.into_iter().find(|(part, _)| name.contains(part)).map_or(0, |(_, port)| port)
}

#[cfg(test)]
mod tests;
