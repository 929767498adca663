//! Datagrams whose sender the kernel does not say: told from the answer.
//!
//! On a socket that anyone may send to, the kernel reports a datagram before it writes down who sent it. The answer names the partner, and both
//! share their transaction (`protocol::transaction`). So a datagram waits until the same socket answers it, and one that answers what the socket
//! asked before belongs to whom it asked. What fits to two partners, or to none in time, is given to nobody: packets see it.
//!
//! A socket that carries nothing known is left to the kernel for a while: one that floods would leave no room for the records of others.

use std::collections::VecDeque;
use std::net::SocketAddr;

use metaflow_schema::enums::L7Protocol;
use rustc_hash::FxHashMap;

use super::socket::Socket;
use super::{Call, Judgement, Key, Sockets};
use crate::events::{Data, SocketEnds, Task, Way};
use crate::protocol::transaction;

/// Of one socket, waiting or asked; of all, sockets.
const EACH_MAX: usize = 64;
const SOCKETS_MAX: usize = 4_096;
/// Answers come sooner, or the asker has given up.
const KEPT_NS: u64 = 10_000_000_000;
/// Datagrams in a row of no known protocol, after which the kernel may pass over the socket for [`KEPT_NS`].
const UNKNOWN_MAX: u32 = 64;

/// A datagram that waits for its answer.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) time: u64,
    pub(super) task: Task,
    pub(super) length: u32,
    pub(super) payload: Vec<u8>,
    transaction: u64,
}

#[derive(Debug)]
struct Asked {
    time: u64,
    transaction: u64,
    partner: SocketAddr,
}

#[derive(Debug, Default)]
struct Entry {
    held: VecDeque<Held>,
    asked: VecDeque<Asked>,
    used: u64,
    /// In a row, the last ones.
    unknown: u32,
}

#[derive(Debug, Default)]
pub(super) struct Datagrams(FxHashMap<u64, Entry>);

impl Datagrams {
    /// Who sent a datagram, if it answers what the socket asked; else it waits.
    pub(super) fn received(&mut self, time: u64, socket: u64, data: &Data<'_>) -> Option<SocketAddr> {
        let transaction = transaction(data.payload)?;
        let entry = self.entry(time, socket)?;
        let fits =
            |asked: &Asked| asked.transaction == transaction && asked.time.saturating_add(KEPT_NS) > time;
        if let Some(asked) = only(&mut entry.asked, fits) {
            return Some(asked.partner);
        }
        let Data { way: _, task, length, payload } = *data;
        push(&mut entry.held, Held { time, task, length, payload: payload.to_vec(), transaction });
        None
    }

    /// The datagram that one to this partner answers. Without one, an answer is awaited.
    pub(super) fn sent(
        &mut self,
        time: u64,
        socket: u64,
        partner: SocketAddr,
        payload: &[u8],
    ) -> Option<Held> {
        let transaction = transaction(payload)?;
        let entry = self.entry(time, socket)?;
        let fits = |held: &Held| held.transaction == transaction && held.time.saturating_add(KEPT_NS) > time;
        let held = only(&mut entry.held, fits);
        if held.is_none() {
            push(&mut entry.asked, Asked { time, transaction, partner });
        }
        held
    }

    /// Whether one datagram more of no known protocol is the last that is worth looking at.
    fn is_last(&mut self, time: u64, socket: u64, is_known: bool) -> bool {
        if is_known {
            if let Some(entry) = self.0.get_mut(&socket) {
                entry.unknown = 0;
            }
            return false;
        }
        let Some(entry) = self.entry(time, socket) else { return false };
        entry.unknown = entry.unknown.saturating_add(1);
        entry.unknown == UNKNOWN_MAX
    }

    /// Forgets sockets that were silent; the kernel passes over those among them that it was told to no longer.
    pub(super) fn look(&mut self, now: u64, out: &mut Vec<(u64, Judgement)>) {
        self.0.retain(|socket, entry| {
            let is_kept = now.saturating_sub(entry.used) < KEPT_NS;
            if !is_kept && entry.unknown >= UNKNOWN_MAX {
                out.push((*socket, Judgement::Forget));
            }
            is_kept
        });
    }

    /// The kernel passes over none any more.
    pub(super) fn judge_again(&mut self) {
        for entry in self.0.values_mut() {
            entry.unknown = 0;
        }
    }

    fn entry(&mut self, time: u64, socket: u64) -> Option<&mut Entry> {
        if self.0.len() >= SOCKETS_MAX && !self.0.contains_key(&socket) {
            return None;
        }
        let entry = self.0.entry(socket).or_default();
        entry.used = time;
        Some(entry)
    }
}

impl Sockets {
    /// A datagram, whose other end may have to be found out.
    pub(super) fn datagram(
        &mut self,
        time: u64,
        socket: u64,
        mut ends: SocketEnds,
        data: &Data<'_>,
        out: &mut Vec<Call>,
    ) {
        if data.way == Way::Out {
            if let Some(held) = self.datagrams.sent(time, socket, ends.remote, data.payload) {
                let data =
                    Data { way: Way::In, task: held.task, length: held.length, payload: &held.payload };
                self.transfer(held.time, Key::new(socket, &ends), ends, 0, &data, out);
            }
        } else if ends.remote.port() == 0 {
            let Some(remote) = self.datagrams.received(time, socket, data) else {
                self.datagram_was(time, socket, transaction(data.payload).is_some());
                return;
            };
            ends = SocketEnds { remote, ..ends }.within_host();
        }
        let key = Key::new(socket, &ends);
        self.transfer(time, key, ends, 0, data, out);
        let is_known = |socket: &Socket| socket.protocol() != L7Protocol::Unknown;
        self.datagram_was(time, socket, self.sockets.get(&key).is_none_or(is_known));
    }

    fn datagram_was(&mut self, time: u64, socket: u64, is_known: bool) {
        if self.datagrams.is_last(time, socket, is_known) {
            self.judgements.push((socket, Judgement::Ignore));
        }
    }
}

/// Takes out the one that fits, if it is the only one.
fn only<T>(queue: &mut VecDeque<T>, fits: impl Fn(&T) -> bool) -> Option<T> {
    let mut found = queue.iter().enumerate().filter(|(_, item)| fits(item)).map(|(at, _)| at);
    let (Some(at), None) = (found.next(), found.next()) else { return None };
    queue.remove(at)
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= EACH_MAX {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::events::Event;

    fn message(id: u8, is_answer: bool, name: u8) -> Vec<u8> {
        let flags = if is_answer { 0x81 } else { 1 };
        [&[0, id, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, name, 0, 0, 1, 0, 1][..]].concat()
    }

    fn received(datagrams: &mut Datagrams, time: u64, payload: &[u8]) -> Option<SocketAddr> {
        let data = Data {
            way: Way::In,
            task: Task { pid: 1, thread: 1, coroutine: 0 },
            length: payload.len() as u32,
            payload,
        };
        datagrams.received(time, 7, &data)
    }

    #[test]
    fn the_answer_tells_who_asked_and_who_was_asked_is_who_answers() {
        let partner: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        let mut datagrams = Datagrams::default();
        assert_eq!(received(&mut datagrams, 1, &message(1, false, b'a')), None);
        assert_eq!(received(&mut datagrams, 2, &message(2, false, b'a')), None);
        let held = datagrams.sent(3, 7, partner, &message(2, true, b'a')).unwrap();
        assert_eq!((held.time, held.payload), (2, message(2, false, b'a')));
        assert!(datagrams.sent(4, 7, partner, &message(1, true, b'b')).is_none(), "another question");
        assert!(datagrams.sent(5, 8, partner, &message(1, true, b'a')).is_none(), "another socket");
        assert!(datagrams.sent(6, 7, partner, &message(9, false, b'c')).is_none());
        assert_eq!(received(&mut datagrams, 7, &message(9, true, b'c')), Some(partner));
        assert_eq!(received(&mut datagrams, 8, &message(9, true, b'c')), None, "answered already");
    }

    #[test]
    fn what_fits_twice_or_too_late_is_given_to_nobody_and_there_is_a_bound() {
        let partner: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        let mut datagrams = Datagrams::default();
        for time in [1, 2] {
            assert_eq!(received(&mut datagrams, time, &message(1, false, b'a')), None);
        }
        assert!(datagrams.sent(3, 7, partner, &message(1, true, b'a')).is_none());
        received(&mut datagrams, 4, &message(3, false, b'a'));
        assert!(datagrams.sent(5 + KEPT_NS, 7, partner, &message(3, true, b'a')).is_none());
        for id in 0..200 {
            received(&mut datagrams, 6 + KEPT_NS, &message(id, false, b'z'));
        }
        assert_eq!(datagrams.0[&7].held.len(), EACH_MAX);
        assert_eq!(received(&mut datagrams, 7, b"no message of DNS"), None);
        datagrams.look(7 + 2 * KEPT_NS, &mut Vec::new());
        assert!(datagrams.0.is_empty());
    }

    fn carry(
        sockets: &mut Sockets,
        time: u64,
        socket: u64,
        count: u32,
        payload: &[u8],
    ) -> Vec<(u64, Judgement)> {
        let ends = SocketEnds {
            transport: crate::session::Transport::Udp,
            local: "10.0.0.2:4000".parse().unwrap(),
            remote: "10.0.0.1:53".parse().unwrap(),
        };
        let task = Task { pid: 1, thread: 1, coroutine: 0 };
        for _ in 0..count {
            let data = Data { way: Way::Out, task, length: payload.len() as u32, payload };
            let event = Event::Transfer { time, socket, ends, tcp_seq: 0, data };
            sockets.event(&event, &mut Vec::new());
        }
        sockets.tick(time, &mut Vec::new());
        sockets.take_judgements()
    }

    #[test]
    fn what_carries_nothing_known_is_left_to_the_kernel_for_a_while() {
        const SECOND: u64 = 1_000_000_000;
        let config =
            Config { sockets_max: 100, session: std::sync::Arc::default(), tls: true, trace_base: 0 };
        let sockets = &mut Sockets::new(config);
        let ignored = [(7, Judgement::Ignore)];
        assert!(carry(sockets, SECOND, 7, UNKNOWN_MAX - 1, &[0xfe; 300]).is_empty());
        assert_eq!(carry(sockets, SECOND, 7, 10, &[0xfe; 300]), ignored);
        sockets.judge_again();
        assert_eq!(carry(sockets, 3 * SECOND, 7, UNKNOWN_MAX + 10, &[0xfe; 300]), ignored);
        assert!(carry(sockets, 12 * SECOND, 8, 2 * UNKNOWN_MAX, &message(1, false, b'a')).is_empty());
        assert_eq!(carry(sockets, 13 * SECOND, 8, 1, &[0xfe; 300]), [(7, Judgement::Forget)]);
        assert_eq!(carry(sockets, 14 * SECOND, 7, UNKNOWN_MAX, &[0xfe; 300]), ignored);
        // What turns out to be known later is looked at again.
        assert!(carry(sockets, 15 * SECOND, 9, UNKNOWN_MAX - 1, &[0xfe; 300]).is_empty());
        assert!(carry(sockets, 16 * SECOND, 9, 1, &message(1, false, b'a')).is_empty());
        assert!(carry(sockets, 16 * SECOND, 9, UNKNOWN_MAX, &[0xfe; 300]).is_empty());
    }
}
